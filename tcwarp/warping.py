"""The warp: values pulled from where the displacement points."""

import torch
from torch import Tensor, ops
from torch.autograd import forward_ad

from ._checks import (
    check_displacement,
    check_floating,
    check_same_device,
    check_tensor,
    lookup,
)
from ._native import MODES, NEAREST, PADDING_MODES, Mode, PaddingMode


def warp(
    input: Tensor,
    displacement: Tensor,
    *,
    mode: Mode = "nearest",
    padding_mode: PaddingMode = "zeros",
) -> Tensor:
    """Warp a batch of images or volumes by displacement fields: ``out(x) = input(x + u(x))``.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W) or (N, C, D, H, W)
        Any strides; channels-last stays channels-last. Mode ``"nearest"`` takes every dtype and
        copies values bit for bit; the others take floating ones and sum in float32, double
        precision in float64.
    displacement : Tensor, shape (N, 2, H, W) or (N, 3, D, H, W)
        Pixels, in array order: component k displaces along spatial axis k. Half precision is
        converted to float32. Where a component is NaN or infinite the output is 0 under every
        padding mode; finite ones are clamped to 2**30 pixels.
    mode : {"nearest", "linear", "cubic"}
        Nearest reads from ``x + floor(u + 1/2)``: the displacement is rounded, half up. Cubic is
        the B-spline through the pixels (SciPy's order 3): sharper than linear, with overshoot
        beside edges, and a pixel that is not finite spreads; it takes a buffer of the size of
        the input for its coefficients. In every mode a displacement of 0 is the identity, bit
        for bit.
    padding_mode : {"zeros", "border", "reflection"}
        What stands outside the image. Reflection is half-sample symmetric, d c b a | a b c d.

    Returns
    -------
    Tensor
        Shape, dtype and memory format of the input. Differentiable by the input (its backward is
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
    check_tensor("warp", "input", input)
    check_displacement("warp", "displacement", displacement)
    if input.dim() != displacement.dim():
        form = "(N, C, H, W)" if displacement.dim() == 4 else "(N, C, D, H, W)"
        raise ValueError(
            f"warp: input must have shape {form} like its displacement, got {tuple(input.shape)}"
        )
    if displacement.shape[0] not in (1, input.shape[0]):
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
    mode_code = lookup("warp", "mode", mode, MODES)
    padding_code = lookup("warp", "padding_mode", padding_mode, PADDING_MODES)
    if mode_code != NEAREST:
        check_floating("warp", f"input (in mode {mode!r}; 'nearest' takes any dtype)", input)
    if not torch.compiler.is_compiling() and _has_tangent(input, displacement):
        raise RuntimeError(
            "warp: input and displacement must have no tangent, got forward-mode differentiation; "
            "only the reverse mode (torch.autograd) knows the operator"
        )
    if input.requires_grad and not input.is_complex():
        check_floating("warp", "input (that requires a gradient)", input)
    if input.is_complex() and input.requires_grad:
        # Two real scatters are the gradient of a complex gather.
        parts = (input.real, input.imag)
        real, imag = (
            warp(part, displacement, mode=mode, padding_mode=padding_mode) for part in parts
        )
        return torch.complex(real, imag)
    if input.requires_grad and displacement.requires_grad:
        # Of a leaf the backward could not tell whether its gradient is asked for.
        input, displacement = input.view_as(input), displacement.view_as(displacement)
    output: Tensor = ops.tcwarp.warp(input, displacement, mode_code, padding_code)
    return output


def _has_tangent(*tensors: Tensor) -> bool:
    # Torch would give a tangent of zeros, without a word.
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )
