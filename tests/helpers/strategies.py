"""Hypothesis strategies: displacements of every kind, shapes at their limits, dtypes, layouts.

Values come from a NumPy generator whose seed is drawn, which is fast and prints short; shapes and
kinds are drawn by Hypothesis itself, so failures shrink to the smallest shape that shows them.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

MODES = ("nearest", "linear", "cubic")
PADDING_MODES = ("zeros", "border", "reflection")
MODE_AND_PADDING = list(itertools.product(MODES, PADDING_MODES))
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "expanded")
DISPLACEMENT_KINDS = ("zero", "smooth", "rough", "halves", "extreme", "mixed")

FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHER_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex64),
)

# Around ties, at the limits of 32 bits and of floats, denormal, and not finite.
EXTREME_VALUES = (
    *(0.5, -0.5, 1.5, -1.5, 0.49999997, -0.49999997, 0.50000006, -0.50000006),
    *(0.0, -0.0, 1e-40, -1e-40, 1e-7, -1e-7, 2.0**23 + 1, -(2.0**23) - 1),
    *(2.0**30, -(2.0**30), 2.0**31, -(2.0**31), 1e30, -1e30, 3.4e38, -3.4e38),
    *(float("nan"), float("inf"), float("-inf")),
)


def displacement_values(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return a float64 displacement (N, D, *spatial) of one kind."""
    rng = np.random.default_rng(seed)
    size = shape[2:]
    if kind == "zero":
        values = np.zeros(shape)
    elif kind == "smooth":
        grid = np.meshgrid(*(np.linspace(0, 1, n) for n in size), indexing="ij")
        slopes = rng.normal(size=(*shape[:2], len(size)))
        values = np.einsum("ncd,d...->nc...", slopes, np.stack(grid))
    elif kind == "rough":
        values = rng.normal(scale=1.5 * max(size), size=shape)
    elif kind == "halves":
        values = rng.integers(-4 * max(size), 4 * max(size), size=shape) / 4
    elif kind == "extreme":
        values = rng.choice(EXTREME_VALUES, size=shape)
    else:
        common = rng.normal(scale=2, size=shape)
        values = np.where(rng.random(shape) < 0.2, rng.choice(EXTREME_VALUES, size=shape), common)
    return torch.from_numpy(values)


def coordinates(displacement: torch.Tensor) -> np.ndarray:
    """Return the displacement as the specification sees it; NumPy has no bfloat16."""
    wide = displacement if displacement.element_size() >= 4 else displacement.float()
    return wide.cpu().numpy()


def image_values(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return an image of one dtype: any bits for nearest's sake if it is not floating."""
    rng = np.random.default_rng(seed)
    if dtype == torch.bool:
        return torch.from_numpy(rng.random(shape) < 0.5)
    if dtype in FLOATING_DTYPES:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype)
    raw = rng.integers(0, 256, size=(*shape, dtype.itemsize), dtype=np.uint8)
    return (
        torch.from_numpy(raw).view(dtype).squeeze(-1)
        if raw.size
        else torch.empty(shape, dtype=dtype)
    )


def with_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same values (one channel repeated if expanded) with other strides."""
    if layout == "channels_last":
        last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        return tensor.to(memory_format=last)
    if layout == "sliced":
        larger = tensor.new_zeros([2 * n + 1 for n in tensor.shape])
        view = larger[tuple(slice(1, 2 * n + 1, 2) for n in tensor.shape)]
        view.copy_(tensor)
        return view
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded" and tensor.dim() > 1:
        return tensor[:, :1].expand(tensor.shape)
    return tensor.contiguous()


@dataclass
class WarpCase:
    """The arguments of one warp, and a gradient of its result."""

    input: torch.Tensor
    displacement: torch.Tensor
    gradient: torch.Tensor
    mode: str
    padding_mode: str
    layout: str

    def precision(self) -> float:
        """Weights are as precise as the displacement, sums and the result as the dtypes allow."""
        single = torch.finfo(torch.float32).eps
        weights = torch.finfo(self.displacement.dtype).eps
        return max(torch.finfo(self.input.dtype).eps, min(weights, single))

    def to(self, device: str) -> "WarpCase":
        """Move to a device; strides are kept."""
        tensors = (t.to(device) for t in (self.input, self.displacement, self.gradient))
        return WarpCase(*tensors, self.mode, self.padding_mode, self.layout)

    @property
    def image_size(self) -> tuple[int, ...]:
        """The spatial size of the input."""
        return tuple(self.input.shape[2:])


@st.composite
def spatial_sizes(draw: st.DrawFn, dimensions: int | None = None) -> tuple[int, ...]:
    """Draw 2-D and 3-D sizes with single pixels, odd lengths and now and then a long last axis."""
    if (dimensions or draw(st.sampled_from((2, 3)))) == 2:
        return (draw(st.integers(1, 7)), draw(st.one_of(st.integers(1, 9), st.just(37))))
    return tuple(draw(st.integers(1, 4)) for _ in range(3))


@st.composite
def warp_cases(
    draw: st.DrawFn,
    mode: str | None = None,
    input_dtypes: tuple[torch.dtype, ...] = FLOATING_DTYPES,
    displacement_dtypes: tuple[torch.dtype, ...] = FLOATING_DTYPES,
    kinds: tuple[str, ...] = DISPLACEMENT_KINDS,
) -> WarpCase:
    """Draw the arguments of a warp; in part of them the image is of another size, or the
    displacement one for all samples.
    """
    size = draw(spatial_sizes())
    image_size = draw(st.one_of(st.just(size), spatial_sizes(len(size))))
    batch, channels = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    fields = draw(st.sampled_from((batch, batch, 1)))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(kinds))
    layout = draw(st.sampled_from(LAYOUTS))
    displacement = displacement_values(kind, (fields, len(size), *size), seed)
    displacement = displacement.to(draw(st.sampled_from(displacement_dtypes)))
    shape = (batch, channels, *image_size)
    input = image_values(draw(st.sampled_from(input_dtypes)), shape, seed + 1)
    return WarpCase(
        # Strides of the displacement vary too, save the expanded ones, which change its values.
        with_layout(input, layout),
        with_layout(displacement, draw(st.sampled_from(LAYOUTS[:4]))),
        with_layout(image_values(input.dtype, (batch, channels, *size), seed + 2), layout),
        draw(st.sampled_from(MODES)) if mode is None else mode,
        draw(st.sampled_from(PADDING_MODES)),
        layout,
    )
