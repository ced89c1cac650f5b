"""Smooth random displacement fields: Gaussian-smoothed noise, drawn as its few cosine modes."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, ops

from . import _modes
from ._checks import (
    check_batch,
    check_device_name,
    check_dtype,
    check_generator,
    check_number,
    check_probability,
    check_sigma,
    check_size,
    without_autocast,
)
from ._modes import (
    along,
    are_many,
    at_once,
    basis_of,
    eigenvalues_of,
    in_parts,
    is_capturing,
    mode_count,
    to_pixels,
)

# What the kernel that sums modes on a GPU takes along the last two axes; more are matrix products.
MOST_MODES = (24, 64)
LARGEST = 1e30  # pixels: far beyond any image, far below what single precision holds


def _field_factor(
    length: int, sigma: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return basis * eigenvalues and the mean over x of the variance it gives white noise.

    Of many modes the eigenvalues alone, normalised for a fast transform.
    """
    # Beyond a few lengths nothing but the mean is left; the kernel stays short.
    sigma = min(sigma, 8.0 * length)
    count = mode_count(length, sigma, dtype)
    eigenvalues = eigenvalues_of(length, sigma, count)
    variance = eigenvalues.square().sum() / length
    if are_many(length, length, count):
        eigenvalues *= math.sqrt(length / 2)
        eigenvalues[0] *= math.sqrt(2)
        return eigenvalues.to(device, dtype), variance
    factor = (basis_of(length, count, 0, length) * eigenvalues).to(device, dtype)
    # On a GPU, mode by mode, so that neighbouring pixels of one are neighbours in memory.
    return factor.mT.contiguous().mT if factor.is_cuda else factor, variance


def _factors(
    size: Sequence[int], sigmas: Sequence[float], dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what `_field_factor` does, of all axes."""
    made = [
        _modes.factors.get(_field_factor, length, sigma, dtype, device)
        for length, sigma in zip(size, sigmas, strict=True)
    ]
    return [factor for factor, _ in made], [variance for _, variance in made]


def _device_of(
    name: str, device: torch.device | str | None, generator: torch.Generator | None
) -> torch.device:
    """Return the device of a field: the one that is named, or the generator's, or the default."""
    if device is None:
        # An empty tensor, as torch.get_default_device cannot be compiled.
        device = torch.empty(0).device if generator is None else generator.device
    device = check_device_name(name, device)
    if str(device) == "cuda":  # which one is part of what is cached
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _draw_seed(name: str, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return the seed of a draw on that device, 64 bits, without waiting for it."""
    drawn_on = torch.device("cpu") if generator is None else generator.device
    if drawn_on.type == "cpu" and is_capturing(device):
        raise RuntimeError(
            f"{name}: in a CUDA graph, generator must be one of the GPU, registered with the graph "
            "(CUDAGraph.register_generator_state), got one of the CPU"
        )
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=drawn_on)
    return seed.to(device, non_blocking=True)


def _fits_kernel(factors: list[Tensor], scale: float | Tensor, device: torch.device) -> bool:
    """Whether one kernel of a GPU sums the modes of the last two axes."""
    # The scale is a number there: a compiler and fake tensors do not know that of a tensor.
    known = type(scale) is float or (type(scale) is Tensor and not torch.compiler.is_compiling())
    few = all(
        factor.shape[-1] <= most for factor, most in zip(factors[-2:], MOST_MODES, strict=True)
    )
    return device.type == "cuda" and known and few and _are_matrices(factors)


def _are_matrices(factors: list[Tensor]) -> bool:
    return all(factor.dim() == 2 for factor in factors)


def _sum_in_kernel(
    planes: Tensor, factors: list[Tensor], scale: float | Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the pixels of planes of coefficients, by the kernel of a GPU."""
    for axis, factor in enumerate(factors[:-2], start=1):
        planes = along(planes, factor.double(), axis)
    pixels: Tensor = ops.tcwarp.sum_modes(
        planes.flatten(0, -3), factors[-2], factors[-1].mT, float(scale), dtype
    )
    return pixels


def _sum_by_axes(
    planes: Tensor, factors: list[Tensor], scale: float | Tensor, size: Sequence[int]
) -> Tensor:
    """Return the pixels of planes of coefficients, axis by axis."""
    planes = planes.to(factors[0].dtype).mul_(scale)
    for axis, (factor, length) in enumerate(zip(factors, size, strict=True), start=1):
        if factor.dim() == 2:
            planes = along(planes, factor, axis)
        else:
            total = functools.partial(to_pixels, factor=factor, length=length, axis=axis)
            planes = in_parts(total, planes, axis)
    return planes


def random_displacement(
    batch: int,
    size: Sequence[int],
    *,
    magnitude: float = 1000.0,
    sigma: float | Sequence[float] = 100.0,
    displacement_std: float | None = None,
    identity_probability: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw smooth random displacement fields: Gaussian-smoothed noise, made from its few modes.

    The law is that of noise, independent and uniform on (-magnitude, magnitude) per pixel and
    component, smoothed with reflecting borders: the covariance is exactly the same, and the
    values are normal, which smoothed uniform noise is to within the inverse of the number of
    pixels that one Gaussian averages.

    Smoothing shrinks noise: far from the border a component has standard deviation
    ``magnitude / (sqrt(3) * 2 * sqrt(pi) * sigma)`` in two dimensions. The defaults, those of
    the paper for 512 x 512 images, move pixels by 1.6 px (2.2 px root mean square over the
    image, as reflection doubles the variance of each axis at the border).

    Parameters
    ----------
    batch : int
        Number of fields.
    size : sequence of 2 or 3 int
        Spatial size, e.g. ``(H, W)``.
    magnitude : float
        Half-width of the uniform noise, in pixels, before smoothing.
    sigma : float or one float per axis
        Standard deviation of the Gaussian, in pixels.
    displacement_std : float, optional
        In pixels; replaces `magnitude`: the root mean square of a component of the field, over
        all pixels and draws.
    identity_probability : float
        Each field is exactly zero with this probability.
    generator : torch.Generator, optional
        Where the seed is drawn from; the CPU's default generator if none. One seed gives one
        field on every device (up to rounding), whatever the number of threads; a CUDA generator
        keeps the draw on the device.
    dtype : torch.dtype, optional
        Floating; the default dtype if none.
    device : torch.device or str, optional
        That of the generator, or the default device if none.

    Returns
    -------
    Tensor, shape (batch, len(size), *size)
        Displacements in pixels.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind or out of range.

    References
    ----------
    Noise and parameters: Bortsova et al., MICCAI 2019. Random numbers: Salmon et al., SC 2011.

    Examples
    --------
    >>> field = tcwarp.random_displacement(4, (128, 128), sigma=16.0, displacement_std=3.0)
    >>> field.shape
    torch.Size([4, 2, 128, 128])
    """
    name = "random_displacement"
    batch, size = check_batch(name, batch), check_size(name, size)
    sigmas = check_sigma(name, sigma, len(size))
    magnitude = check_number(name, "magnitude", magnitude, at_most=LARGEST)
    if displacement_std is not None:
        displacement_std = check_number(name, "displacement_std", displacement_std, at_most=LARGEST)
    check_probability(name, "identity_probability", identity_probability)
    check_generator(name, generator)
    dtype = check_dtype(name, torch.get_default_dtype() if dtype is None else dtype)
    device = _device_of(name, device, generator)
    if batch == 0 or 0 in size:
        return torch.zeros((batch, len(size), *size), dtype=dtype, device=device)

    seed = _draw_seed(name, generator, device)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    factors, variances = _factors(size, sigmas, working, device)
    scale: float | Tensor = magnitude / math.sqrt(3)
    if displacement_std is not None:
        # A tensor of no dimension on the CPU: its value is not looked at, nor waited for.
        scale = displacement_std / torch.stack(variances).prod().sqrt()
    modes = [factor.shape[-1] for factor in factors]
    in_kernel = _fits_kernel(factors, scale, device)

    def draw(first: int, count: int) -> Tensor:
        coefficients: Tensor = ops.tcwarp.field_coefficients(
            seed, first, count, modes, identity_probability
        )
        return coefficients

    def sum_modes(coefficients: Tensor) -> Tensor:
        if in_kernel:
            return _sum_in_kernel(coefficients, factors, scale, dtype)
        return _sum_by_axes(coefficients, factors, scale, size)

    planes = batch * len(size)
    together = planes
    # Where the modes of the last axis are few, so are all numbers on the way to the pixels.
    few = dtype == working and _are_matrices(factors) and 8 * modes[-1] <= size[-1]
    if not (torch.compiler.is_compiling() or in_kernel or few):
        together = at_once(size, device)
    # Whole samples are drawn at once: their components share random numbers.
    drawn = -(-together // len(size)) * len(size)
    with without_autocast(device):
        if together >= planes:
            return sum_modes(draw(0, planes)).to(dtype).view(batch, len(size), *size)
        field = seed.new_empty((planes, *size), dtype=dtype)  # vectorised where the seed is
        for first in range(0, planes, drawn):
            coefficients = draw(first, min(drawn, planes - first))
            parts = coefficients.split(together)
            fields = field[first : first + drawn].split(together)
            for part, pixels in zip(parts, fields, strict=True):
                pixels.copy_(sum_modes(part))
    return field.view(batch, len(size), *size)
