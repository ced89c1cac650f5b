"""Outlines as masks, and contours in the patient as outlines on a slice."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tcseg.errors import DataError
from tcseg.io.dicom import read_dataset

FARTHEST = 1e9  # pixels from the corner that an outline may be
MOST_CROSSINGS = 2**22  # of rows of pixels by outlines
OFF = 0.1  # mm from a slice that its contours may lie


def add_inside(mask: NDArray[np.bool_], parts: Sequence[ArrayLike]) -> None:
    """Mark the pixels whose centres lie inside an odd number of outlines: one in another is a hole.

    Of a centre on an outline, the pixel counts where the inside is to the right of it or, on a
    level side, below: a box has as many pixels as its area, and neighbours share none.

    Parameters
    ----------
    mask
        bool (H, W), changed in place.
    parts
        Corners (n, 2) of each outline, x before y; centres of pixels lie at whole numbers.

    Raises
    ------
    ValueError
        If the corners are not such numbers, or the outlines are far too long.

    Examples
    --------
    >>> mask = np.zeros((4, 4), bool)
    >>> add_inside(mask, [[(0.5, 0.5), (2.5, 0.5), (2.5, 3.5), (0.5, 3.5)]])
    >>> mask.sum(axis=0).tolist()
    [0, 3, 3, 0]
    """
    outlines = [np.zeros((1, 2)), *(np.asarray(part, float).reshape(-1, 2) for part in parts)]
    starts = np.concatenate(outlines)
    ends = np.concatenate([np.roll(outline, -1, axis=0) for outline in outlines])
    if not (np.abs(starts) < FARTHEST).all():
        raise ValueError(f"its corners must be numbers below {FARTHEST:g} pixels")
    # Downwards, so that a side is the same whichever way an outline runs along it.
    upwards = (starts[:, 1] > ends[:, 1])[:, None]
    starts, ends = np.where(upwards, ends, starts), np.where(upwards, starts, ends)
    rows, below = (np.ceil(p[:, 1]).clip(0, len(mask)).astype(int) for p in (starts, ends))
    counts = below - rows
    if counts.sum() > MOST_CROSSINGS:
        raise ValueError(f"its outline crosses rows of pixels {counts.sum()} times")
    if not counts.any():
        return
    side = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(side)) - np.repeat(counts.cumsum() - counts, counts) + rows[side]
    (x, y), (run, fall) = starts[side].T, (ends - starts)[side].T
    column = np.ceil(x + (row - y) * (run / fall)).clip(0, mask.shape[1]).astype(int)
    top, left, right = row.min(), column.min(), column.max()
    crossed = np.zeros((row.max() + 1 - top, right + 1 - left), bool)
    np.logical_xor.at(crossed, (row - top, column - left), True)
    inside = np.logical_xor.accumulate(crossed, axis=1)[:, :-1]
    mask[top : top + len(inside), left:right] |= inside


def add_runs(mask: NDArray[np.bool_], counts: Sequence[int]) -> None:
    """Mark every second run of pixels, row by row, from the second run on."""
    if sum(counts) != mask.size or min(counts) < 0:
        raise ValueError(f"its runs are of {sum(counts)} pixels in all, not {mask.size}")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, np.array(counts, int))
    mask |= inside.reshape(mask.shape)


def on_slice(contours: Sequence[NDArray[Any]], image: Path) -> dict[int, NDArray[np.float64]]:
    """Return those contours (n, 3), in mm in the patient, that lie in a DICOM slice.

    By number, as corners (n, 2) in pixels; DataError if the file does not say where it lies.
    """
    corner, axes, spacing = _plane(image, image.stat().st_mtime_ns)
    normal = np.cross(*axes)
    firsts = np.array([points[0] for points in contours]).reshape(-1, 3)
    near = np.flatnonzero(np.abs((firsts - corner) @ normal) < OFF)
    return {
        number: (contours[number] - corner) @ axes.T / spacing[::-1]
        for number in map(int, near)
        if np.abs((contours[number] - corner) @ normal).max() < OFF
    }


@functools.lru_cache(maxsize=1)  # of a slice, for one structure after the other
def _plane(image: Path, changed: int) -> Any:
    """Return where the first pixel is, the directions of x and y, and the steps down and across."""
    tags = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "NumberOfFrames"]
    header: Any = read_dataset(image, stop_before_pixels=True, specific_tags=tags)
    if any(tag not in header for tag in tags[:3]) or int(header.get("NumberOfFrames") or 1) > 1:
        raise DataError(f"folder: {image} is not a slice that says where it lies in the patient")
    corner, axes, spacing = (np.array(header[tag].value, float) for tag in tags[:3])
    return corner, axes.reshape(2, 3), spacing
