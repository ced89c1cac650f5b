"""The cosine modes of an axis, in which a Gaussian with reflecting borders is diagonal.

A wide Gaussian leaves few: products with thin matrices take images to them and back. Where they
are many, fast cosine transforms take the place of the matrices.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Numbers that are made at once where they need room beside the result: enough for the kernels of a
# GPU to outlast their launches.
AT_ONCE = {"cpu": 2**18, "cuda": 2**20, "meta": 2**20}
# More modes than that are summed by fast transforms; so are those whose matrix would hold more
# numbers than that, 16 MiB in single precision. Below, matrices are faster (one core).
MOST_IN_A_MATRIX = 256
LARGEST_BASIS = 2**22
TRUNCATE = 8.0  # the kernel ends at this many sigma; SciPy's default of 4 moves results by 4e-4


def count_to(length: int) -> Tensor:
    """Return 0, 1, ..., length - 1 in float64."""
    # On the CPU whatever the default device is: small.
    return torch.arange(length, dtype=torch.float64, device="cpu")


def reach_of(sigma: float) -> int:
    """Return how many pixels the kernel of a Gaussian reaches to either side."""
    return int(TRUNCATE * sigma + 0.5)


def kernel_of(sigma: float) -> Tensor:
    """Return the sampled Gaussian, float64, from its centre to its last tap (one side)."""
    taps = torch.exp(-0.5 * (count_to(reach_of(sigma) + 1) / sigma) ** 2)
    return taps / (2 * taps.sum() - 1)


def mode_count(length: int, sigma: float, dtype: torch.dtype) -> int:
    """Return how many modes of `length` pixels a Gaussian leaves above rounding."""
    negligible = 1e-17 if dtype == torch.float64 else 1e-9
    last = length / (math.pi * sigma) * math.sqrt(-2 * math.log(negligible))
    return length if last >= length else min(length, int(last) + 2)


def eigenvalues_of(length: int, sigma: float, count: int) -> Tensor:
    """Return what smoothing multiplies the first modes of `length` pixels by, in float64."""
    k = count_to(count)
    if sigma > 16:  # the sum over the taps is its integral to the last digit
        return torch.exp(-0.5 * (math.pi * sigma / length * k) ** 2)
    kernel = kernel_of(sigma)
    j = count_to(len(kernel))
    parts = k.split(2**16)  # a row of cosines for each mode
    sums = torch.cat([torch.cos(math.pi / length * part[:, None] * j) @ kernel for part in parts])
    return 2 * sums - kernel[0]


def basis_of(length: int, count: int, begin: int, end: int) -> Tensor:
    """Return rows begin to end of the orthonormal basis, (pixels, modes), in float64."""
    x = torch.arange(begin, end, dtype=torch.float64, device="cpu") + 0.5
    basis = torch.cos(math.pi / length * x[:, None] * count_to(count)) * math.sqrt(2 / length)
    basis[:, 0] = math.sqrt(1 / length)
    return basis


def are_many(length: int, whole: int, count: int) -> bool:
    """Whether modes are summed by fast transforms, not by a matrix."""
    # Padded by more than its length, an axis has two dozen modes at most.
    many = count > MOST_IN_A_MATRIX or length * count > LARGEST_BASIS
    return many and whole <= 4 * length


def turns_of(length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return what turns a Fourier transform into a cosine transform of the same length.

    Factors exp(i pi k / 2 length), the order of pixels that is transformed (the even ones, then
    the odd ones backwards), and the way back to theirs: Makhoul, "A fast cosine transform in one
    and two dimensions", IEEE Transactions on Acoustics, Speech, and Signal Processing 28 (1980).
    """
    angle = count_to(length // 2 + 1) * (math.pi / (2 * length))
    turns = torch.complex(torch.cos(angle), torch.sin(angle))
    pixels = torch.arange(length, device="cpu")
    order = torch.cat([pixels[::2], pixels[1::2].flip(0)])
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    return turns.to(device, wide), order.to(device), order.argsort().to(device)


def to_modes(pixels: Tensor, count: int, axis: int) -> Tensor:
    """Return the sums of pixels times cosines, the first `count` of an axis: the DCT-II."""
    length = pixels.shape[axis]
    turns, order, _ = factors.get(turns_of, length, pixels.dtype, pixels.device)
    spectrum = torch.fft.rfft(_reordered(pixels, order, axis), dim=axis)
    low: Tensor = spectrum * _along_axis(turns.conj(), pixels, axis)
    high = low.imag.narrow(axis, 1, (length - 1) // 2).flip(axis)
    return torch.cat([low.real, -high], axis).narrow(axis, 0, count)


def to_pixels(modes: Tensor, factor: Tensor, length: int, axis: int) -> Tensor:
    """Return the sums of factor * mode * cosine over an axis, 2 / length of them: the DCT-III.

    The first mode counts half.
    """
    modes = modes * _along_axis(factor, modes, axis)
    turns, _, back = factors.get(turns_of, length, modes.dtype, modes.device)
    half, count = len(turns), modes.shape[axis]
    after = [0, 0] * (modes.dim() - 1 - axis)  # padded here: irfft takes its time for it
    low = modes.narrow(axis, 0, min(half, count))
    low = functional.pad(low, [*after, 0, half - low.shape[axis]])
    first = length - half + 1  # of those that stand beside one before them
    if count > first:
        high = modes.narrow(axis, first, count - first).flip(axis)
        low = torch.complex(low, -functional.pad(high, [*after, half - (count - first), 0]))
    pixels = torch.fft.irfft(low * _along_axis(turns, modes, axis), length, dim=axis)
    return _reordered(pixels, back, axis)


def _reordered(tensor: Tensor, order: Tensor, axis: int) -> Tensor:
    if axis < tensor.dim() - 1:
        return tensor.index_select(axis, order)
    # Of two dimensions that is eight times as fast as of more.
    return tensor.flatten(0, -2).index_select(1, order).view(tensor.shape)


def _along_axis(factor: Tensor, tensor: Tensor, axis: int) -> Tensor:
    return factor.view(-1, *[1] * (tensor.dim() - 1 - axis))


def in_parts(function: Callable[[Tensor], Tensor], tensor: Tensor, axis: int) -> Tensor:
    """Apply a function to the lines along one axis, a few at once: it takes several times them."""
    if torch.compiler.is_compiling():
        return function(tensor)
    across = axis - 1 if axis == tensor.dim() - 1 else tensor.dim() - 1
    lines = tensor.numel() // max(1, tensor.shape[across])
    parts = tensor.split(at_once((lines,), tensor.device), across)
    return torch.cat([function(part) for part in parts], across)


class Cache:
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
        if is_capturing(value[0].device):
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


factors = Cache(64 * 2**20)


def _bytes_of(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def at_once(size: Sequence[int], device: torch.device) -> int:
    """Return how many planes of that size are made at once."""
    return max(1, AT_ONCE[device.type] // math.prod(size))


def _is_rounded(tensor: Tensor) -> bool:
    """Return whether products of float32 may be rounded to ten bits: the caller's to allow."""
    # What a compiler cannot look at is not trusted.
    return tensor.is_cuda and (
        torch.compiler.is_compiling() or torch.backends.cuda.matmul.fp32_precision == "tf32"
    )


def along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply the matrix (out, in) into one axis of a tensor."""
    working = torch.float64 if _is_rounded(tensor) else tensor.dtype
    product = tensor.movedim(axis, -1).to(working) @ matrix.mT.to(working)
    return product.movedim(-1, axis).to(tensor.dtype)
