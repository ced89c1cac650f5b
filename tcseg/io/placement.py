"""Fitting images and volumes into a frame of some size and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tcseg.io.sizes import ORIGINAL, Size, Spacing, shape_of

Pixels = NDArray[np.float32]
Shape = tuple[int, ...]
BAND = 2**22  # pixels that are brought to the size of a large image at a time, of few classes
FEW = 9


@dataclass(frozen=True)
class Placement:
    """Where an image lies in a frame: height and width, of volumes the depth before them.

    Attributes
    ----------
    shape : tuple of int
        Sides of the image.
    inner : tuple of int
        Its sides within the frame.
    corner : tuple of int
        Its first row and column (plane, row and column) there.
    size : tuple of int
        Sides of the frame.
    """

    shape: Shape
    inner: Shape
    corner: Shape
    size: Shape

    @classmethod
    def of(
        cls,
        shape: Shape,
        size: Size,
        spacing: Spacing | None = None,
        wanted: Spacing | None = None,
    ) -> Placement:
        """Place an image in the middle, as large as it fits, its proportions kept.

        Of size `ORIGINAL` the frame is the image.

        Parameters
        ----------
        shape, size
            Of the image and the frame.
        spacing, wanted
            Sides of a pixel in mm, as they are and as they are to be: an image of size `ORIGINAL`
            gets as many pixels as that takes; in a given frame, pixels of these proportions. Unless
            both are given, each pixel counts as it is.
        """
        sides: list[float] = [*shape]
        if spacing is not None and wanted is not None:
            parts = zip(shape, spacing, wanted, strict=True)
            sides = [count * own / new for count, own, new in parts]
        if size == ORIGINAL:
            inner = frame = tuple(max(1, round(side)) for side in sides)
        else:
            frame = shape_of(size, len(shape))
            scale = min(most / side for most, side in zip(frame, sides, strict=True))
            pairs = zip(frame, sides, strict=True)
            inner = tuple(max(1, min(most, round(side * scale))) for most, side in pairs)
        corner = tuple((most - side) // 2 for most, side in zip(frame, inner, strict=True))
        return cls(shape, inner, corner, frame)

    @property
    def window(self) -> tuple[slice, ...]:
        """What of the frame the image takes, by axis."""
        parts = zip(self.corner, self.inner, strict=True)
        return tuple(slice(first, first + count) for first, count in parts)

    def spacing(self, spacing: Spacing | None) -> Spacing | None:
        """Return the sides of a pixel of the frame in mm, from those of the image."""
        if spacing is None:
            return None
        parts = zip(spacing, self.shape, self.inner, strict=True)
        return tuple(side * count / inner for side, count, inner in parts)

    def fit(self, pixels: NDArray[np.floating | np.bool_]) -> Pixels:
        """Resize (C, *shape) into the frame, by averaging areas; 0 around it."""
        framed = np.zeros((len(pixels), *self.size), np.float32)
        for place, channel in zip(framed[:, *self.window], pixels, strict=True):
            place[:] = resize(channel.astype(np.float32, copy=False), self.inner)
        return framed

    def fit_masks(self, masks: NDArray[np.bool_], disjoint: bool) -> NDArray[np.bool_]:
        """Resize masks (C, *shape) into the frame, disjoint ones without a gap where they touch.

        As `as_masks` of their shares, which are in memory one by one.
        """
        if self.shape == self.size:  # as they are: volumes are large
            return masks
        fitted = np.zeros((len(masks), *self.size), bool)
        best, total = np.zeros((2, *self.size), np.float32)
        winner = np.full(self.size, -1, np.int32)
        shown = [number for number, mask in enumerate(masks) if mask.any()]  # few of many, perhaps
        for number in shown:
            share = self.fit(masks[number : number + 1])[0]
            if not disjoint:
                fitted[number] = share > 0.5
                continue
            winner[share > best] = number
            np.maximum(best, share, out=best)
            total += share
        if disjoint:
            winner[1 - total >= best] = -1  # the background
            for number in shown:
                fitted[number] = winner == number
        return fitted

    def restore(self, framed: Pixels, rows: slice | None = None) -> Pixels:
        """Cut (C, *size) to the image and bring it to the image's own size.

        Or some rows of it, of volumes some planes.
        """
        inner = np.asarray(framed, np.float32)[:, *self.window]
        return np.stack([resize(np.ascontiguousarray(c), self.shape, rows) for c in inner])

    def restore_masks(self, framed: Pixels, disjoint: bool) -> NDArray[np.bool_]:
        """Return `as_masks` of what `restore` gives; of a large image, band by band."""
        count, row = self.shape[0], math.prod(self.shape[1:])
        masks = np.empty((len(framed) - 1, *self.shape), bool)
        band = BAND * FEW // max(FEW, len(framed))
        step = count if count * row <= band else max(1, band // row)
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            masks[:, rows] = as_masks(self.restore(framed, rows), disjoint)
        return masks


def as_masks(shares: Pixels, disjoint: bool) -> NDArray[np.bool_]:
    """Return (C, *shape): where the share or probability of each structure exceeds one half.

    Of disjoint ones, where it is the largest of all. The shares are (C + 1, *shape), that of the
    background is the last one.
    """
    if not disjoint:
        return shares[:-1] > 0.5
    best = np.concatenate([shares[-1:], shares[:-1]]).argmax(axis=0)
    numbers = np.arange(1, len(shares)).reshape(-1, *[1] * best.ndim)
    return np.asarray(best == numbers)


def lost_classes(
    whole: Iterable[NDArray[Any]], fitted: NDArray[np.bool_], classes: Sequence[str]
) -> list[str]:
    """Return the classes of which resizing, from `whole` to `fitted`, has left nothing."""
    pairs = zip(classes, whole, fitted, strict=False)  # what is ignored may be the last one
    return [name for name, before, after in pairs if before.any() and not after.any()]


def resize(channel: Pixels, shape: Shape, rows: slice | None = None) -> Pixels:
    """Resize (H, W) or (D, H, W): averaging areas along axes that shrink, linear along others.

    Give some of the new rows, or planes, only.
    """
    growth = [new / old for new, old in zip(shape, channel.shape, strict=True)]
    if rows is not None:
        growth[0] = 0.0  # before the others: it is the axis of which only some is wanted
    for axis in sorted(range(len(shape)), key=growth.__getitem__):  # what takes less comes first
        channel = _resize_axis(channel, axis, shape[axis], rows if axis == 0 else None)
    return channel


def _resize_axis(channel: Pixels, axis: int, count: int, rows: slice | None) -> Pixels:
    if channel.shape[axis] == count:
        return channel if rows is None else channel[rows]
    if channel.ndim == 3 and axis > 0:  # plane by plane, which takes less memory
        return np.stack([_resize_axis(plane, axis - 1, count, None) for plane in channel])
    weights = _weights(channel.shape[axis], count)
    lines = np.moveaxis(channel, axis, 0)
    new = (weights if rows is None else weights[rows]) @ lines.reshape(len(lines), -1)
    return np.ascontiguousarray(np.moveaxis(new.reshape(-1, *lines.shape[1:]), 0, axis))


@functools.lru_cache(maxsize=16)
def _weights(old: int, new: int) -> csr_array:
    """Return how much of each old pixel is in each new one, (new, old), each row of sum 1.

    Pillow's box filter takes pixels whole or not at all: where sizes are nearly alike it leaves
    some out, and what it keeps is moved by up to half a pixel.
    """
    edges = np.linspace(0, old, new + 1)[:, None]
    if new < old:
        pixels = np.floor(edges[:-1]) + np.arange(math.ceil(old / new) + 1)
        within = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        shares = within.clip(min=0) * (new / old)
    else:
        centres = (edges[1:] + edges[:-1] - 1) / 2
        pixels = np.floor(centres) + np.arange(2)
        shares = 1 - abs(centres - pixels)
    kept = shares > 0
    columns = pixels.clip(0, old - 1).astype(np.int32)[kept]  # the border stands beyond it as well
    places = (np.nonzero(kept)[0], columns)
    return csr_array((shares[kept].astype(np.float32), places), shape=(new, old))
