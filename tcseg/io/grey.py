"""Grey levels in [0, 1] from values of any number type: which are black, and which white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.io.placement import Pixels
from tcseg.io.windows import Limits

__all__ = ["as_levels", "as_pixels", "tails"]

# Beyond these fractions of the pixels, values of more than 8 bits are cut off: a few hot pixels, a
# burnt-in label or metal would leave the rest in a tenth of the range.
TAILS = (0.1, 99.9)


def tails(parts: Sequence[NDArray[Any]]) -> Limits:
    """Return the ends of the range of values of all parts together, but for a few."""
    finite = [part[np.isfinite(part)] if part.dtype.kind == "f" else part.ravel() for part in parts]
    known = np.concatenate(finite)  # a copy, which may be sorted in its place
    low, high = np.percentile(known, TAILS, overwrite_input=True) if known.size else (0.0, 0.0)
    if not high > low and known.size:  # all alike but for a few pixels
        low, high = known.min(), known.max()
    return float(low), float(high)


def as_levels(pixels: Pixels, kind: type[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Round [0, 1] to whole numbers up to the largest of a type."""
    return (pixels * np.iinfo(kind).max + 0.5).astype(kind)


def as_pixels(values: NDArray[Any], limits: Limits | None = None) -> Pixels:
    """Bring an image of any number type into [0, 1], as float32 (C, H, W).

    Parameters
    ----------
    values
        (H, W), (H, W, 3) or (H, W, 4), whose last channel is left out. NaN counts as the lowest
        level.
    limits
        What is to be black and white. If it is not given, 8 bits keep their levels, booleans are 0
        and 1, and of anything wider the range between its tails is stretched.

    Raises
    ------
    ValueError
        If the shape is another one, or a side is 0.
    """
    values = np.asarray(values)
    colour = values.ndim == 3 and values.shape[2] in (3, 4)
    if not (values.ndim == 2 or colour) or 0 in values.shape:
        raise ValueError(
            f"an image must have the shape (H, W), (H, W, 3) or (H, W, 4), got {values.shape}"
        )
    if colour:
        values = values[..., :3]
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
    return np.ascontiguousarray(levels.transpose(2, 0, 1) if colour else levels[None])
