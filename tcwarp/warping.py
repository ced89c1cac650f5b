"""The warp: values pulled from where the displacement points."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import (
    check_displacement,
    check_floating,
    check_same_device,
    check_size,
    check_tensor,
    lookup,
    shown,
)
from ._derivatives import gather, is_transformed, scatter
from ._native import MODES, NEAREST, PADDING_MODES, Mode, PaddingMode

PLAIN = {Tensor, torch.nn.Parameter}  # not the tensors without values of torch.compile


def warp(
    input: Tensor,
    displacement: Tensor,
    *,
    mode: Mode = "nearest",
    padding_mode: PaddingMode = "zeros",
    padding_value: float | Sequence[float] | Tensor = 0.0,
) -> Tensor:
    """Warp a batch of images or volumes by displacement fields: ``out(x) = input(x + u(x))``.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W) or (N, C, D, H, W)
        Any strides; channels-last stays channels-last. Mode ``"nearest"`` takes every dtype and
        copies values bit for bit; the others take floating ones and sum in float32, double
        precision in float64.
    displacement : Tensor, shape (N, 2, H', W') or (N, 3, D', H', W')
        Pixels, in array order: component k displaces along spatial axis k. Its spatial size is
        that of the output, which need not be the input's: ``x`` counts the output's pixels, so
        that a displacement of zeros keeps the first rows and columns. One sample, (1, 2, H', W'),
        serves the whole batch without being copied. Half precision is converted to float32. Where
        a component is NaN or infinite the output is 0 under every padding mode; finite ones are
        clamped to 2**30 pixels.
    mode : {"nearest", "linear", "cubic"}
        Nearest reads from ``x + floor(u + 1/2)``: the displacement is rounded, half up. Cubic is
        the B-spline through the pixels (SciPy's order 3): sharper than linear, with overshoot
        beside edges, and a pixel that is not finite spreads; it takes a buffer of the size of
        the input for its coefficients. In every mode a displacement of 0 is the identity, bit
        for bit.
    padding_mode : {"zeros", "border", "reflection"}
        What stands outside the image. Reflection is half-sample symmetric, d c b a | a b c d.
    padding_value : float, or sequence or Tensor of C of them
        In padding mode ``"zeros"``: what stands outside instead of 0, in all channels or in each;
        also the output of a displacement that is not finite. Another value than 0 takes up to
        three times as long, and several times the memory of the output.

    Returns
    -------
    Tensor, shape (N, C, H', W') or (N, C, D', H', W')
        Dtype and memory format of the input. Differentiable any number of times, backwards and
        once among them forwards, under `torch.func` too: by the input (its backward is
        the exact adjoint: values go back to where they came from) and, in modes ``"linear"`` and
        ``"cubic"``, by the displacement (that of nearest is 0). On CUDA the backward adds
        with atomics, which take subnormal numbers of float32 (below 1.2e-38) for zero; under
        ``torch.use_deterministic_algorithms(True)`` on integers instead: the same on every run,
        each term rounded to the number of pixels times 2^-58 of the sample's largest gradient
        (float64: the square of that), slower, with a buffer of some MiB.

    Raises
    ------
    TypeError
        Not tensors, or a dtype that the mode does not take.
    ValueError
        Shapes or devices that do not fit, an unknown mode.

    References
    ----------
    The nearest gather and its scatter are the transformation layer of Bortsova et al.,
    "Semi-supervised medical image segmentation via learning consistency under transformations",
    MICCAI 2019. Cubic splines: Unser, Aldroubi, Eden, "B-spline signal processing", IEEE
    Transactions on Signal Processing 41 (1993).

    Examples
    --------
    >>> image = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> displacement = torch.zeros(1, 2, 1, 4)
    >>> displacement[:, 1] = 1  # read one pixel to the right
    >>> tcwarp.warp(image, displacement)
    tensor([[[[1., 2., 3., 0.]]]])
    """
    if torch.compiler.is_compiling() or not _is_checked_natively(input, displacement):
        _check(input, displacement, mode, padding_mode)
        return _warp(input, displacement, mode, padding_mode, padding_value)
    try:
        return _warp(input, displacement, mode, padding_mode, padding_value)
    except (KeyError, RuntimeError, TypeError):
        _explain(input, displacement, mode, padding_mode)
        raise


def _warp(
    input: Tensor, displacement: Tensor, mode: Mode, padding_mode: PaddingMode, padding_value: Any
) -> Tensor:
    codes = MODES[mode], PADDING_MODES[padding_mode]
    if not input.requires_grad:
        output = gather(input, displacement, *codes)
    elif input.is_complex():
        # Two real scatters are the gradient of a complex gather.
        output = torch.complex(
            *(_warp(part, displacement, mode, padding_mode, 0) for part in (input.real, input.imag))
        )
    else:
        check_floating("warp", "input (that requires a gradient)", input)
        if displacement.requires_grad:
            # Of a leaf the backward could not tell whether its gradient is asked for.
            input, displacement = input.view_as(input), displacement.view_as(displacement)
        output = gather(input, displacement, *codes)
    if is_zero(padding_value):
        return output
    return _padded(output, input, displacement, mode, _outside(padding_value, padding_mode, input))


def _is_checked_natively(input: Any, displacement: Any) -> bool:
    """Whether the operator's own checks do: those here take half of the time of a small warp."""
    return (
        type(input) in PLAIN
        and type(displacement) in PLAIN
        and not (input.is_meta or displacement.is_meta)
        and not is_transformed()
    )


def _explain(*arguments: Any) -> None:
    """Say what is wrong with arguments that the operator refused, if it is one of them."""
    try:
        _check(*arguments)
    except (RuntimeError, TypeError, ValueError) as reason:
        raise reason from None


def _check(input: Any, displacement: Any, mode: Any, padding_mode: Any) -> None:
    check_tensor("warp", "input", input)
    check_displacement("warp", "displacement", displacement)
    if input.dim() != displacement.dim():
        form = "(N, C, H, W)" if displacement.dim() == 4 else "(N, C, D, H, W)"
        raise ValueError(
            f"warp: input must have shape {form} like its displacement, got {tuple(input.shape)}"
        )
    if displacement.shape[0] != 1 and displacement.shape[0] != input.shape[0]:
        raise ValueError(
            f"warp: displacement must have as many samples as input {tuple(input.shape)}, or one "
            f"for all, got {tuple(displacement.shape)}"
        )
    if 0 in input.shape[2:] and 0 not in displacement.shape[2:]:
        raise ValueError(
            f"warp: input must have pixels for displacement {tuple(displacement.shape)} to read, "
            f"got {tuple(input.shape)}"
        )
    check_same_device("warp", "displacement", displacement, "input", input)
    lookup("warp", "mode", mode, MODES)
    lookup("warp", "padding_mode", padding_mode, PADDING_MODES)
    if MODES[mode] != NEAREST:
        check_floating("warp", f"input (in mode {mode!r}; 'nearest' takes any dtype)", input)


def is_zero(padding_value: Any) -> bool:
    """Return whether it is the number that padding takes unless told otherwise."""
    return isinstance(padding_value, (int, float)) and padding_value == 0


def _outside(value: Any, padding_mode: str, input: Tensor) -> Tensor:
    """Return what stands outside in the dtype of the input, (1, C or 1, 1, ...)."""
    name = "warp: padding_value"
    if padding_mode != "zeros":
        raise ValueError(f"{name} is for padding_mode 'zeros', got {padding_mode!r}")
    try:
        wide = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a number of 64 bits, or one for each channel, got {shown(value)}"
        ) from error
    if wide.dim() > 1 or (wide.numel() != 1 and wide.numel() != input.shape[1]):
        raise ValueError(
            f"{name} must be one number or one for each of the {input.shape[1]} channels, got "
            f"shape {tuple(wide.shape)}"
        )
    fits = not (wide.is_complex() and not input.is_complex())
    own = wide.to(input.dtype) if fits else wide
    # A tensor may be on a GPU, which would be waited for.
    if fits and not isinstance(value, Tensor) and not torch.compiler.is_compiling():
        if input.is_floating_point():
            fits = torch.equal(own.isinf(), wide.isinf())
        elif not input.is_complex():
            fits = torch.equal(own.to(wide.dtype), wide)
    if not fits:
        raise ValueError(
            f"{name} must be a value that {input.dtype} has, got {shown(wide.tolist())}; choose "
            "another, or convert the input"
        )
    return own.to(input.device).view(1, -1, *[1] * (input.dim() - 2))


def _padded(
    output: Tensor, input: Tensor, displacement: Tensor, mode: Mode, value: Tensor
) -> Tensor:
    """Add what stands outside, by linearity: ``warp(input - value) + value``."""
    shape = (displacement.shape[0], 1, *input.shape[2:])
    if mode == "nearest":
        inside = torch.ones(shape, dtype=torch.bool, device=input.device)
        return torch.where(warp(inside, displacement), output, value)
    dtype = torch.promote_types(torch.promote_types(input.dtype, displacement.dtype), torch.float32)
    ones = torch.ones(shape, dtype=dtype, device=input.device)
    outside = 1 - warp(ones, displacement, mode=mode)
    # Weights that are rounded add up to a little more or less than 1.
    some = outside.abs() > 8 * torch.finfo(dtype).eps
    return torch.where(some, output + outside * value, output).to(output.dtype)


def splat(
    input: Tensor,
    displacement: Tensor,
    *,
    weight: Tensor | None = None,
    mode: Mode = "linear",
    padding_mode: PaddingMode = "zeros",
    size: Sequence[int] | None = None,
    normalize: bool = False,
) -> Tensor:
    """Warp forwards: add every pixel to where its displacement points, the adjoint of `warp`.

    ``sum(splat(a, u) * b) = sum(a * warp(b, u))``. Where pixels meet they add up, where none
    arrives is 0; with `normalize`, the result is their weighted mean.

    Parameters
    ----------
    input : Tensor, shape (N, C, *spatial)
        Floating.
    displacement : Tensor, shape (N, D, *spatial) or (1, D, *spatial)
        Where pixels go, in pixels, as in `warp`.
    weight : Tensor, shape (N, 1, *spatial), optional
        Of each pixel, in the dtype of the input; 1 unless given. ``torch.exp`` of an importance,
        less its maximum, gives softmax splatting.
    mode : {"linear", "nearest", "cubic"}
        How a pixel is spread over those around; cubic is the adjoint of the interpolation, whose
        weights are negative in part.
    padding_mode : str
        Where pixels go that leave the image: with ``"zeros"`` nowhere; see `warp`.
    size : sequence of int, optional
        Spatial size of the result, that of the input unless given.
    normalize : bool
        Whether to divide by the sum of the weights that arrive; not in mode ``"cubic"``, whose
        sums may be near 0.

    Returns
    -------
    Tensor, shape (N, C, *size)
        Differentiable by input, displacement and weight. On CUDA it adds with atomics, see
        `warp`.

    Raises
    ------
    TypeError, ValueError
        Not such tensors, an unknown mode.

    References
    ----------
    Niklaus, Liu, "Softmax splatting for video frame interpolation", CVPR 2020.

    Examples
    --------
    >>> shift = torch.zeros(1, 2, 1, 4)
    >>> shift[:, 1] = 1
    >>> tcwarp.splat(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), shift)
    tensor([[[[0., 1., 2., 3.]]]])
    """
    check_tensor("splat", "input", input)
    check_floating("splat", "input", input)
    check_displacement("splat", "displacement", displacement)
    expected = (displacement.dim(), *displacement.shape[2:])
    samples_fit = input.dim() > 1 and displacement.shape[0] in (1, input.shape[0])
    if (input.dim(), *input.shape[2:]) != expected or not samples_fit:
        raise ValueError(
            f"splat: input must have the spatial size of displacement "
            f"{tuple(displacement.shape)} and its samples, unless that has one for all, got "
            f"{tuple(input.shape)}"
        )
    check_same_device("splat", "displacement", displacement, "input", input)
    codes = (
        lookup("splat", "mode", mode, MODES),
        lookup("splat", "padding_mode", padding_mode, PADDING_MODES),
    )
    image = tuple(input.shape[2:]) if size is None else check_size("splat", size)
    if len(image) != input.dim() - 2:
        raise ValueError(f"splat: size must be {input.dim() - 2} lengths, got {image}")
    if not isinstance(normalize, bool):
        raise TypeError(f"splat: normalize must be a bool, got {type(normalize).__name__}")
    if normalize and mode == "cubic":
        raise ValueError(
            "splat: normalize must be False in mode 'cubic', whose weights have sums near 0, got "
            "True; use mode 'linear'"
        )
    if weight is not None:
        check_tensor("splat", "weight", weight)
        check_same_device("splat", "weight", weight, "input", input)
        one = (input.shape[0], 1, *input.shape[2:])
        if tuple(weight.shape) != one or weight.dtype != input.dtype:
            raise ValueError(
                f"splat: weight must have shape {one} and dtype {input.dtype}, got "
                f"{tuple(weight.shape)} and {weight.dtype}"
            )
    rest = displacement, *codes, torch.are_deterministic_algorithms_enabled(), image
    # A mean may fit half precision where the sums do not.
    values = input.float() if normalize and input.element_size() < 4 else input
    weighted = values if weight is None else values * weight
    total = scatter(weighted, *rest)
    if not normalize:
        return total
    weights = torch.ones_like(values[:, :1]) if weight is None else weight.to(values.dtype)
    arrived = scatter(weights, *rest)
    mean = torch.where(arrived == 0, 0, total / torch.where(arrived == 0, 1, arrived))
    return mean.to(input.dtype)
