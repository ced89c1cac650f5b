"""Gaussian smoothing, at a cost that does not grow with sigma.

By the cosine modes that a Gaussian leaves (see ``_modes.py``); on a CPU, a narrow one smooths as a
convolution, block by block.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from . import _modes
from ._checks import (
    LONGEST_AXIS,
    check_floating,
    check_sigma,
    check_tensor,
    lookup,
    without_autocast,
)
from ._modes import (
    along,
    are_many,
    at_once,
    basis_of,
    count_to,
    eigenvalues_of,
    in_parts,
    kernel_of,
    mode_count,
    reach_of,
    to_modes,
    to_pixels,
)

BOUNDARIES = {"reflect": 0, "constant": 1}
# Pixels that one product of a convolution makes, and how many such products are worth it.
BLOCK, MOST_BLOCKS = 64, 256


def _is_narrow(planes: Tensor, axis: int, sigma: float) -> bool:
    """Whether a Gaussian is so narrow that a convolution is the fastest way to smooth."""
    length, reach = planes.shape[axis], reach_of(sigma)
    # Of more modes fast transforms make the sums.
    modes = min(_modes.MOST_IN_A_MATRIX, mode_count(length, sigma, planes.dtype))
    return (
        planes.device.type == "cpu"
        and not torch.compiler.is_compiling()  # a product for each block is too much to compile
        and BLOCK < length <= BLOCK * MOST_BLOCKS
        and reach <= length
        and BLOCK + 2 * reach < 2 * modes
    )


def _toeplitz(sigma: float, dtype: torch.dtype) -> tuple[Tensor]:
    """Return the matrix that makes a block of smoothed pixels of those within reach of it."""
    kernel = functional.pad(kernel_of(sigma), (0, 1))  # 0 beyond its reach
    reach = len(kernel) - 2
    from_, to = count_to(BLOCK + 2 * reach), count_to(BLOCK) + reach
    distance = (from_ - to[:, None]).abs().clamp(max=reach + 1)
    return (kernel[distance.long()].to(dtype),)


def _smooth_blocks(planes: Tensor, sigma: float, boundary: str, axis: int) -> Tensor:
    (toeplitz,) = _modes.factors.get(_toeplitz, sigma, planes.dtype)
    length, reach = planes.shape[axis], reach_of(sigma)
    ends = [planes.narrow(axis, at, reach).flip(axis) for at in (0, length - reach)]
    if boundary == "constant":
        ends = [torch.zeros_like(end) for end in ends]
    padded = torch.cat([ends[0], planes, ends[1]], axis)
    blocks = []
    for first in range(0, length, BLOCK):
        count = min(BLOCK, length - first)
        within_reach = padded.narrow(axis, first, count + 2 * reach)
        blocks.append(along(within_reach, toeplitz[:count, : count + 2 * reach], axis))
    return torch.cat(blocks, axis)


def _margin(sigma: float, boundary: str) -> int:
    # Zeros outside are a mirror too far away to matter: padded on both sides by half the kernel,
    # the data never meets its mirror image.
    return 0 if boundary == "reflect" else (reach_of(sigma) + 1) // 2


def _smoothing_factor(
    length: int, sigma: float, boundary: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Return (basis, basis * eigenvalues), whose product smooths along one axis.

    Of many modes the eigenvalues alone, for fast transforms.
    """
    if boundary == "reflect":  # beyond a few lengths nothing but the mean is left
        sigma = min(sigma, 8.0 * length)
    sigma = min(sigma, 1e12)  # what is left of the image, 1e-24 of it, is 0
    margin = _margin(sigma, boundary)
    whole = length + 2 * margin
    count = mode_count(whole, sigma, dtype)
    eigenvalues = eigenvalues_of(whole, sigma, count)
    if are_many(length, whole, count):
        return (eigenvalues.to(device, dtype),)
    basis = basis_of(whole, count, margin, margin + length)
    return basis.to(device, dtype), (basis * eigenvalues).to(device, dtype)


def gaussian_smooth(
    input: Tensor,
    sigma: float | Sequence[float],
    *,
    boundary: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """Smooth the spatial axes with a Gaussian, equal to SciPy's ``gaussian_filter(truncate=8)``.

    By cosine modes, so that the cost does not grow with sigma: the wider a Gaussian, the fewer it
    leaves. Values stay within the range of their image; NaN and infinities reach as far as the
    kernel, 8 sigma. Differentiable.

    Parameters
    ----------
    input : Tensor, shape (N, C, *spatial)
        Floating, any number of spatial axes from one to three.
    sigma : float or one float per spatial axis
        Standard deviation in pixels; an axis of 0 stays as it is.
    boundary : {"reflect", "constant"}
        ``"reflect"`` mirrors at the edge of the border pixels (d c b a | a b c d | d c b a),
        ``"constant"`` continues with zeros.

    Returns
    -------
    Tensor
        Shape and dtype of the input.

    Raises
    ------
    TypeError, ValueError
        Wrong shape, dtype, sigma or boundary.

    Examples
    --------
    >>> noise = torch.rand(1, 2, 512, 512) * 2000 - 1000
    >>> tcwarp.gaussian_smooth(noise, 100.0).std() < 5
    tensor(True)
    """
    check_tensor("gaussian_smooth", "input", input)
    check_floating("gaussian_smooth", "input", input)
    if not 3 <= input.dim() <= 5:
        raise ValueError(
            "gaussian_smooth: input must have shape (N, C, *spatial) with 1 to 3 spatial axes, "
            f"got {tuple(input.shape)}"
        )
    sigmas = check_sigma("gaussian_smooth", sigma, input.dim() - 2, positive=False)
    lookup("gaussian_smooth", "boundary", boundary, BOUNDARIES)
    if input.numel() == 0:
        return input.clone()
    dtype = input.dtype if input.element_size() >= 4 else torch.float32

    # No axis is longer, and tensors hold no longer reaches.
    reach = [min(reach_of(axis_sigma), LONGEST_AXIS) for axis_sigma in sigmas]

    def smooth(planes: Tensor) -> Tensor:
        beyond = None if _is_finite(planes) else _infinities(planes, reach)
        if beyond is not None:
            planes = planes.nan_to_num(0.0, 0.0, 0.0)
        output = planes.to(dtype)
        for axis, axis_sigma in enumerate(sigmas, start=1):
            if axis_sigma > 0:
                output = _smooth_axis(output, axis_sigma, boundary, axis)
        output = _within(output, planes, boundary).to(input.dtype)
        return output if beyond is None else output + beyond

    planes = input.flatten(0, 1)
    with without_autocast(input.device):
        if torch.compiler.is_compiling():
            return smooth(planes).view(input.shape)
        parts = planes.split(at_once(planes.shape[1:], input.device))
        return torch.cat([smooth(part) for part in parts]).view(input.shape)


def _smooth_axis(planes: Tensor, sigma: float, boundary: str, axis: int) -> Tensor:
    if _is_narrow(planes, axis, sigma):
        return _smooth_blocks(planes, sigma, boundary, axis)
    length = planes.shape[axis]
    factor = _modes.factors.get(
        _smoothing_factor, length, sigma, boundary, planes.dtype, planes.device
    )
    if len(factor) == 2:
        basis, scaled = factor
        return along(along(planes, basis.mT, axis), scaled, axis)
    (eigenvalues,), margin = factor, _margin(sigma, boundary)

    def smooth(lines: Tensor) -> Tensor:
        padding = [0, 0] * (lines.dim() - 1 - axis) + [margin, margin]
        lines = functional.pad(lines, padding)
        modes = to_modes(lines, len(eigenvalues), axis)
        smoothed = to_pixels(modes, eigenvalues, lines.shape[axis], axis)
        return smoothed.narrow(axis, margin, length)

    return in_parts(smooth, planes, axis)


def _within(smoothed: Tensor, planes: Tensor, boundary: str) -> Tensor:
    """Round back what rounding took out of the range of its plane: averages lie in it."""
    with torch.no_grad():
        axes = tuple(range(1, planes.dim()))
        low, high = planes.amin(axes, keepdim=True), planes.amax(axes, keepdim=True)
        if boundary == "constant":
            low, high = low.clamp(max=0), high.clamp(min=0)
        within = smoothed.clamp(low.to(smoothed.dtype), high.to(smoothed.dtype))
        if not smoothed.requires_grad:
            return within
        excess = smoothed - within
    return smoothed - excess  # whose gradient is that of what was smoothed, everywhere


def _is_finite(planes: Tensor) -> bool:
    """Whether all is finite, where that is known without waiting for a GPU."""
    if planes.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # A sum is finite only where all terms are; half precision overflows where none is large.
    wide = torch.promote_types(planes.dtype, torch.float32)
    try:
        return math.isfinite(planes.detach().sum(dtype=wide).item())
    except RuntimeError:  # under vmap or in a fake mode there are no values
        return False


def _infinities(planes: Tensor, reach: Sequence[int]) -> Tensor:
    """Return what infinities and NaN of planes add within reach of them, 0 elsewhere."""
    nan = planes.isnan()
    infinite = torch.stack([planes.isposinf() | nan, planes.isneginf() | nan])
    for axis, radius in enumerate(reach, start=2):
        length = infinite.shape[axis]
        counts = functional.pad(infinite.movedim(axis, -1).cumsum(-1, dtype=torch.int32), (1, 0))
        x = torch.arange(length, device=planes.device)
        up, down = (x + radius + 1).clamp(max=length), (x - radius).clamp(min=0)
        infinite = (counts[..., up] > counts[..., down]).movedim(-1, axis)
    nothing = torch.zeros((), dtype=planes.dtype, device=planes.device)
    up, down = infinite.unbind()
    return torch.where(up, torch.inf, nothing) - torch.where(down, torch.inf, nothing)
