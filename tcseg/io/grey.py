"""Grey levels in [0, 1] from values of any number type: which are black, and which white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.io.placement import Pixels
from tcseg.io.windows import Limits

MOST_CHANNELS = 64

# Beyond these fractions of the pixels, values of more than 8 bits are cut off: a few hot pixels, a
# burnt-in label or metal would leave the rest in a tenth of the range.
TAILS = (0.1, 99.9)


def tails(parts: Sequence[NDArray[Any]]) -> Limits:
    """Return the ends of the range of values of all parts together, but for a few.

    Raises
    ------
    ValueError
        If none of them is finite.
    """
    finite = [part[np.isfinite(part)] if part.dtype.kind == "f" else part.ravel() for part in parts]
    known = np.concatenate(finite)  # a copy, which may be sorted in its place
    if not known.size:
        raise ValueError("none of its values is a finite number")
    low, high = np.percentile(known, TAILS, overwrite_input=True)
    if not high > low:  # all alike but for a few pixels
        low, high = known.min(), known.max()
    return float(low), float(high)


def as_levels(pixels: Pixels, kind: type[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Round [0, 1] to whole numbers up to the largest of a type."""
    return (pixels * np.iinfo(kind).max + 0.5).astype(kind)


def as_pixels(values: NDArray[Any], limits: Limits | Sequence[Limits] | None = None) -> Pixels:
    """Bring an image of any number type into [0, 1], as float32 (C, H, W).

    Parameters
    ----------
    values
        (H, W) or (H, W, C), up to 64 channels. NaN counts as the lowest level.
    limits
        What is to be black and white, of all channels or, in a list, of each. If it is not given, 8
        bits keep their levels, booleans are 0 and 1, and of anything wider the range between its
        tails is stretched: of three channels together, as of colours, of others each.

    Raises
    ------
    ValueError
        If the shape is another one, a side is 0, or no value is finite and there are no limits.
    """
    values = np.asarray(values)
    several = values.ndim == 3 and values.shape[2] <= MOST_CHANNELS
    if not (values.ndim == 2 or several) or 0 in values.shape:
        raise ValueError(
            f"an image must have the shape (H, W) or (H, W, C) of at most {MOST_CHANNELS} channels,"
            f" got {values.shape}"
        )
    if several and (values.shape[2] != 3 or isinstance(limits, list)):
        each = limits if isinstance(limits, list) else [limits] * values.shape[2]
        channels = np.moveaxis(values, 2, 0)
        return np.concatenate([as_pixels(c, part) for c, part in zip(channels, each, strict=True)])
    if limits is None and values.dtype == np.uint8:
        levels = values.astype(np.float32)
        levels /= 255  # in place: images may be large
    elif values.dtype == bool:
        levels = values.astype(np.float32)
    else:
        # No more precision, and no more copies, than it takes.
        wide: NDArray[Any] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        low, high = map(wide.dtype.type, tails([values]) if limits is None else limits)
        np.nan_to_num(wide, copy=False, nan=low)
        wide.clip(low, high, out=wide)
        wide -= low
        wide /= high - low if high > low else 1
        levels = wide.astype(np.float32, copy=False)
    return np.ascontiguousarray(levels.transpose(2, 0, 1) if several else levels[None])
