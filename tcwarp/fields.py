"""Smooth random displacement fields, and the Gaussian smoothing that defines them.

With reflecting borders a Gaussian is diagonal in the basis of the DCT-II, and a wide one leaves
few modes: smoothing and drawing are products with thin matrices instead of wide convolutions. Where
modes are many, fast cosine transforms take the place of the matrices; on a CPU, a narrow Gaussian
smooths as a convolution, block by block.
"""

import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, ops
from torch.nn import functional

from ._checks import (
    check_batch,
    check_device_name,
    check_dtype,
    check_floating,
    check_generator,
    check_number,
    check_probability,
    check_sigma,
    check_size,
    check_tensor,
    lookup,
    without_autocast,
)

BOUNDARIES = {"reflect": 0, "constant": 1}
# Pixels that are made at once where they need room beside the result: enough for the kernels of a
# GPU to outlast their launches.
AT_ONCE = {"cpu": 2**18, "cuda": 2**20, "meta": 2**20}
# What the kernel that sums modes on a GPU takes along the last two axes; more are matrix products.
MOST_MODES = (24, 64)
LARGEST = 1e30  # pixels: far beyond any image, far below what single precision holds
# More modes than that are summed by fast transforms; so are those whose matrix would hold more
# numbers than that, 16 MiB in single precision. Below, matrices are faster (one core).
MOST_IN_A_MATRIX = 256
LARGEST_BASIS = 2**22
# On a CPU, matrices of half as many rows, folded by symmetry, are faster up to so many modes.
MOST_FOLDED = 2048
# Pixels that one product of a convolution makes, and how many such products are worth it.
BLOCK, MOST_BLOCKS = 64, 256
TRUNCATE = 8.0  # the kernel ends at this many sigma; SciPy's default of 4 moves results by 4e-4


def _count(length: int) -> Tensor:
    # On the CPU whatever the default device is: small, and in float64.
    return torch.arange(length, dtype=torch.float64, device="cpu")


def _reach(sigma: float) -> int:
    return int(TRUNCATE * sigma + 0.5)


def _kernel(sigma: float) -> Tensor:
    """Return the sampled Gaussian, float64, from its centre to its last tap (one side)."""
    taps = torch.exp(-0.5 * (_count(_reach(sigma) + 1) / sigma) ** 2)
    return taps / (2 * taps.sum() - 1)


def _mode_count(length: int, sigma: float, dtype: torch.dtype) -> int:
    """Return how many modes of `length` pixels a Gaussian leaves above rounding."""
    negligible = 1e-17 if dtype == torch.float64 else 1e-9
    last = length / (math.pi * sigma) * math.sqrt(-2 * math.log(negligible))
    return length if last >= length else min(length, int(last) + 2)


def _is_narrow(planes: Tensor, axis: int, sigma: float) -> bool:
    """Whether a Gaussian is so narrow that a convolution is the fastest way to smooth."""
    length, reach = planes.shape[axis], _reach(sigma)
    # Of more modes fast transforms make the sums.
    modes = min(MOST_IN_A_MATRIX, _mode_count(length, sigma, planes.dtype))
    return (
        planes.device.type == "cpu"
        and not torch.compiler.is_compiling()  # a product for each block is too much to compile
        and BLOCK < length <= BLOCK * MOST_BLOCKS
        and reach <= length
        and BLOCK + 2 * reach < 2 * modes
    )


def _toeplitz(sigma: float, dtype: torch.dtype) -> tuple[Tensor]:
    """Return the matrix that makes a block of smoothed pixels of those within reach of it."""
    kernel = functional.pad(_kernel(sigma), (0, 1))  # 0 beyond its reach
    reach = len(kernel) - 2
    from_, to = _count(BLOCK + 2 * reach), _count(BLOCK) + reach
    distance = (from_ - to[:, None]).abs().clamp(max=reach + 1)
    return (kernel[distance.long()].to(dtype),)


def _smooth_blocks(planes: Tensor, sigma: float, boundary: str, axis: int) -> Tensor:
    (toeplitz,) = _factors.get(_toeplitz, sigma, planes.dtype)
    length, reach = planes.shape[axis], _reach(sigma)
    ends = [planes.narrow(axis, at, reach).flip(axis) for at in (0, length - reach)]
    if boundary == "constant":
        ends = [torch.zeros_like(end) for end in ends]
    padded = torch.cat([ends[0], planes, ends[1]], axis)
    blocks = []
    for first in range(0, length, BLOCK):
        count = min(BLOCK, length - first)
        within_reach = padded.narrow(axis, first, count + 2 * reach)
        blocks.append(_along(within_reach, toeplitz[:count, : count + 2 * reach], axis))
    return torch.cat(blocks, axis)


def _eigenvalues(length: int, sigma: float, count: int) -> Tensor:
    """Return what smoothing multiplies the first modes of `length` pixels by, in float64."""
    k = _count(count)
    if sigma > 16:  # the sum over the taps is its integral to the last digit
        return torch.exp(-0.5 * (math.pi * sigma / length * k) ** 2)
    kernel = _kernel(sigma)
    j = _count(len(kernel))
    parts = k.split(2**16)  # a row of cosines for each mode
    sums = torch.cat([torch.cos(math.pi / length * part[:, None] * j) @ kernel for part in parts])
    return 2 * sums - kernel[0]


def _basis(length: int, count: int, begin: int, end: int) -> Tensor:
    """Return rows begin to end of the orthonormal basis, (pixels, modes), in float64."""
    x = torch.arange(begin, end, dtype=torch.float64, device="cpu") + 0.5
    basis = torch.cos(math.pi / length * x[:, None] * _count(count)) * math.sqrt(2 / length)
    basis[:, 0] = math.sqrt(1 / length)
    return basis


def _are_many(length: int, whole: int, count: int) -> bool:
    """Whether modes are summed by fast transforms, not by a matrix."""
    # Padded by more than its length, an axis has two dozen modes at most.
    many = count > MOST_IN_A_MATRIX or length * count > LARGEST_BASIS
    return many and whole <= 4 * length


def _is_folded(length: int, count: int, device: torch.device) -> bool:
    """Whether modes are summed by half a matrix: they are even or odd about the middle."""
    few = count <= MOST_FOLDED and length * count <= 2 * LARGEST_BASIS
    return device.type == "cpu" and count > MOST_IN_A_MATRIX and few


def _margin(sigma: float, boundary: str) -> int:
    # Zeros outside are a mirror too far away to matter: padded on both sides by half the kernel,
    # the data never meets its mirror image.
    return 0 if boundary == "reflect" else (_reach(sigma) + 1) // 2


def _smoothing_factor(
    length: int, sigma: float, boundary: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return (basis, basis * eigenvalues), whose product smooths along one axis.

    Of many modes what fast transforms need, in one dimension: see `_turns`.
    """
    if boundary == "reflect":  # beyond a few lengths nothing but the mean is left
        sigma = min(sigma, 8.0 * length)
    sigma = min(sigma, 1e12)  # what is left of the image, 1e-24 of it, is 0
    margin = _margin(sigma, boundary)
    whole = length + 2 * margin
    count = _mode_count(whole, sigma, dtype)
    eigenvalues = _eigenvalues(whole, sigma, count)
    if _are_many(length, whole, count):
        turns, back = _turns(whole, eigenvalues)
        return _complex(turns, device, dtype), _complex(back, device, dtype)
    basis = _basis(whole, count, margin, margin + length)
    return basis.to(device, dtype), (basis * eigenvalues).to(device, dtype)


def _field_factor(
    length: int, sigma: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return basis * eigenvalues and the mean over x of the variance it gives white noise.

    Of many modes what a fast transform needs, in one dimension: see `_turns`.
    """
    # Beyond a few lengths nothing but the mean is left; the kernel stays short.
    sigma = min(sigma, 8.0 * length)
    count = _mode_count(length, sigma, dtype)
    eigenvalues = _eigenvalues(length, sigma, count)
    variance = eigenvalues.square().sum() / length
    if _is_folded(length, count, device):
        half = _basis(length, count, 0, (length + 1) // 2) * eigenvalues
        return half.to(device, dtype), variance
    if _are_many(length, length, count):
        return _complex(_turns(length, eigenvalues)[1], device, dtype), variance
    factor = (_basis(length, count, 0, length) * eigenvalues).to(device, dtype)
    # On a GPU, mode by mode, so that neighbouring pixels of one are neighbours in memory.
    return factor.mT.contiguous().mT if factor.is_cuda else factor, variance


def _turns(length: int, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """Return what turns a Fourier transform of twice the length into modes, and modes back.

    exp(-i pi k / 2 length) normalised, and its conjugate times the eigenvalues, in complex128.
    """
    k = _count(len(eigenvalues))
    angle = k * (math.pi / (2 * length))
    turns = torch.complex(torch.cos(angle), torch.sin(angle))
    turns[0] *= math.sqrt(0.5)
    back = turns * (eigenvalues * math.sqrt(2 * length))
    back[0] *= 2  # a transform back doubles all others
    return turns.conj() * math.sqrt(2 / length), back


def _complex(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return values.to(device, torch.complex128 if dtype == torch.float64 else torch.complex64)


def _transform(lines: Tensor, turns: Tensor) -> Tensor:
    """Return the products of the last axis with the first modes: the DCT-II, orthonormal."""
    modes: Tensor = torch.fft.rfft(lines, 2 * lines.shape[-1])[..., : len(turns)] * turns
    return modes.real


def _sum_modes(modes: Tensor, turns: Tensor, length: int) -> Tensor:
    """Return the sum of modes times eigenvalues at each pixel of the last axis: the DCT-III."""
    pixels: Tensor = torch.fft.irfft(modes * turns, 2 * length)
    return pixels[..., :length]


def _by_lines(function: Callable[[Tensor], Tensor], tensor: Tensor, axis: int) -> Tensor:
    """Apply a function to the lines along one axis, a few at once: it takes several times them."""
    lines = tensor.movedim(axis, -1)
    if torch.compiler.is_compiling():
        return function(lines).movedim(-1, axis)
    at_once = _at_once(lines.shape[-1:], tensor.device)
    parts = [function(part) for part in lines.flatten(0, -2).split(at_once)]
    whole: Tensor = torch.cat(parts).unflatten(0, lines.shape[:-1])
    return whole.movedim(-1, axis)


class _Cache:
    """The factors used last, up to so many bytes: they take longer to make than to use."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self.kept: OrderedDict[tuple[Any, ...], tuple[Tensor, ...]] = OrderedDict()
        self.captured: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        self.lock = threading.Lock()

    def get(self, factor: Callable[..., tuple[Tensor, ...]], *arguments: Any) -> tuple[Tensor, ...]:
        """Return factor(*arguments)."""
        # A compiler traces into the function; in a fake mode tensors have no values to keep.
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
            return factor(*arguments)
        key = (factor, *arguments)
        with self.lock:
            value = self.kept.get(key) or self.captured.get(key)
            if key in self.kept:
                self.kept.move_to_end(key)
        if value is None:
            # Never inference tensors: they are kept and may meet autograd later.
            with torch.inference_mode(False):
                value = factor(*arguments)
            self._keep(key, value)
        if value[0].is_cuda:
            self._guard(key, value)
        return value

    def _guard(self, key: tuple[Any, ...], value: tuple[Tensor, ...]) -> None:
        """Keep what is dropped from the cache while the GPU may still read it."""
        if _is_capturing(value[0].device):
            self.captured.setdefault(key, value)  # the graph holds its address for good
            return
        for tensor in value:
            if tensor.is_cuda:  # the stream that reads it need not be the one it was made on
                tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def _keep(self, key: tuple[Any, ...], value: tuple[Tensor, ...]) -> None:
        size = _bytes_of(value)
        if 4 * size > self.most:
            return  # it would drive out all others
        with self.lock:
            if key not in self.kept:
                self.kept[key] = value
                self.bytes += size
            while self.bytes > self.most:
                _, dropped = self.kept.popitem(last=False)
                self.bytes -= _bytes_of(dropped)


_factors = _Cache(64 * 2**20)


def _bytes_of(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _at_once(size: Sequence[int], device: torch.device) -> int:
    """Return how many planes of that size are made at once."""
    return max(1, AT_ONCE[device.type] // math.prod(size))


def _is_rounded(tensor: Tensor) -> bool:
    """Return whether products of float32 may be rounded to ten bits: the caller's to allow."""
    # What a compiler cannot look at is not trusted.
    return tensor.is_cuda and (
        torch.compiler.is_compiling() or torch.backends.cuda.matmul.fp32_precision == "tf32"
    )


def _along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply the matrix (out, in) into one axis of a tensor."""
    working = torch.float64 if _is_rounded(tensor) else tensor.dtype
    product = tensor.movedim(axis, -1).to(working) @ matrix.mT.to(working)
    return product.movedim(-1, axis).to(tensor.dtype)


def _along_folded(modes: Tensor, half: Tensor, axis: int, length: int) -> Tensor:
    """Multiply the matrix (out, in) into one axis, given its first half of rows."""
    lines = modes.movedim(axis, -1)
    even, odd = (lines[..., k::2] @ half[:, k::2].mT for k in (0, 1))
    mirrored = (even - odd)[..., : length // 2].flip(-1)
    return torch.cat([even + odd, mirrored], -1).movedim(-1, axis)


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
        Standard deviation in pixels.
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
    sigmas = check_sigma("gaussian_smooth", sigma, input.dim() - 2)
    lookup("gaussian_smooth", "boundary", boundary, BOUNDARIES)
    if input.numel() == 0:
        return input.clone()
    dtype = input.dtype if input.element_size() >= 4 else torch.float32

    reach = [_reach(axis_sigma) for axis_sigma in sigmas]

    def smooth(planes: Tensor) -> Tensor:
        beyond = None if _is_finite(planes) else _infinities(planes, reach)
        if beyond is not None:
            planes = planes.nan_to_num(0.0, 0.0, 0.0)
        output = planes.to(dtype)
        for axis, axis_sigma in enumerate(sigmas, start=1):
            output = _smooth_axis(output, axis_sigma, boundary, axis)
        output = _within(output, planes, boundary).to(input.dtype)
        return output if beyond is None else output + beyond

    planes = input.flatten(0, 1)
    with without_autocast(input.device):
        if torch.compiler.is_compiling():
            return smooth(planes).view(input.shape)
        parts = planes.split(_at_once(planes.shape[1:], input.device))
        return torch.cat([smooth(part) for part in parts]).view(input.shape)


def _smooth_axis(planes: Tensor, sigma: float, boundary: str, axis: int) -> Tensor:
    if _is_narrow(planes, axis, sigma):
        return _smooth_blocks(planes, sigma, boundary, axis)
    length = planes.shape[axis]
    basis, scaled = _factors.get(
        _smoothing_factor, length, sigma, boundary, planes.dtype, planes.device
    )
    if basis.dim() == 1:
        margin = _margin(sigma, boundary)

        def smooth(lines: Tensor) -> Tensor:
            lines = functional.pad(lines, (margin, margin))
            smoothed = _sum_modes(_transform(lines, basis), scaled, lines.shape[-1])
            return smoothed[..., margin : margin + length]

        return _by_lines(smooth, planes, axis)
    return _along(_along(planes, basis.mT, axis), scaled, axis)


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
    try:  # a sum is finite only where all terms are
        return math.isfinite(planes.detach().sum().item())
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
    if device is None:
        # An empty tensor, as torch.get_default_device cannot be compiled.
        device = torch.empty(0).device if generator is None else generator.device
    device = check_device_name(name, device)
    if str(device) == "cuda":  # which one is part of what is cached
        device = torch.device("cuda", torch.cuda.current_device())
    if batch == 0 or 0 in size:
        return torch.zeros((batch, len(size), *size), dtype=dtype, device=device)

    drawn_on = torch.device("cpu") if generator is None else generator.device
    if drawn_on.type == "cpu" and _is_capturing(device):
        raise RuntimeError(
            f"{name}: in a CUDA graph, generator must be one of the GPU, registered with the graph "
            "(CUDAGraph.register_generator_state), got one of the CPU"
        )
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=drawn_on)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    factors, variances = [], []
    for length, axis_sigma in zip(size, sigmas, strict=True):
        factor, variance = _factors.get(_field_factor, length, axis_sigma, working, device)
        factors.append(factor)
        variances.append(variance)
    scale: float | Tensor = magnitude / math.sqrt(3)
    if displacement_std is not None:
        # A tensor of no dimension on the CPU: its value is not looked at, nor waited for.
        scale = displacement_std / torch.stack(variances).prod().sqrt()
    seed = seed.to(device, non_blocking=True)
    modes = [factor.shape[-1] for factor in factors]
    # The scale is a number there: a compiler and fake tensors do not know that of a tensor.
    known = type(scale) is float or (type(scale) is Tensor and not torch.compiler.is_compiling())
    fits = all(n <= most for n, most in zip(modes[-2:], MOST_MODES, strict=True))
    short = all(factor.dim() == 2 for factor in factors)
    in_one = device.type == "cuda" and known and fits and short

    def draw(first: int, count: int) -> Tensor:
        planes: Tensor = ops.tcwarp.field_coefficients(
            seed, first, count, modes, identity_probability
        )
        if in_one:
            for axis, factor in enumerate(factors[:-2], start=1):
                planes = _along(planes, factor.double(), axis)
            pixels: Tensor = ops.tcwarp.sum_modes(
                planes.flatten(0, -3), factors[-2], factors[-1].mT, float(scale), dtype
            )
            return pixels
        planes = planes.mul_(scale).to(working)
        for axis, (factor, length) in enumerate(zip(factors, size, strict=True), start=1):
            if factor.dim() == 2 and len(factor) < length:
                planes = _along_folded(planes, factor, axis, length)
            elif factor.dim() == 2:
                planes = _along(planes, factor, axis)
            else:
                total = functools.partial(_sum_modes, turns=factor, length=length)
                planes = _by_lines(total, planes, axis)
        return planes

    planes = batch * len(size)
    at_once = planes
    # Where the modes of the last axis are few, so are all numbers on the way to the pixels.
    few = in_one or (dtype == working and short and 8 * modes[-1] <= size[-1])
    if not torch.compiler.is_compiling() and not few:
        at_once = _at_once(size, device)
    with without_autocast(device):
        if at_once >= planes:
            return draw(0, planes).to(dtype).view(batch, len(size), *size)
        field = seed.new_empty((planes, *size), dtype=dtype)  # vectorised where the seed is
        for first in range(0, planes, at_once):
            part = field[first : first + at_once]
            part.copy_(draw(first, len(part)))
    return field.view(batch, len(size), *size)
