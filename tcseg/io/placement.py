"""Fitting images into a frame of some size and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcseg.io.sizes import ORIGINAL, Size, shape_of

__all__ = ["Placement", "as_masks", "resize", "resize_picture"]

Pixels = NDArray[np.float32]
BAND = 2**22  # pixels that are brought to the size of a large image at a time, of few classes
FEW = 9


@dataclass(frozen=True)
class Placement:
    """Where an image lies in a frame, which is square or not.

    Attributes
    ----------
    shape : (int, int)
        Height and width of the image.
    inner : (int, int)
        Height and width within the frame.
    corner : (int, int)
        Its first row and column there.
    size : (int, int)
        Height and width of the frame.
    """

    shape: tuple[int, int]
    inner: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, int], size: Size) -> Placement:
        """Place an image in the middle, as large as it fits, its proportions kept.

        Of size `ORIGINAL` the frame is the image.
        """
        frame = shape if size == ORIGINAL else shape_of(size)
        scale = min(most / side for most, side in zip(frame, shape, strict=True))
        height, width = (
            max(1, min(most, round(side * scale))) for most, side in zip(frame, shape, strict=True)
        )
        corner = ((frame[0] - height) // 2, (frame[1] - width) // 2)
        return cls(shape, (height, width), corner, frame)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that the image takes."""
        (top, left), (height, width) = self.corner, self.inner
        return slice(top, top + height), slice(left, left + width)

    def spacing(self, spacing: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return height and width of a pixel of the frame, from those of the image."""
        if spacing is None:
            return None
        (height, width), (inner_height, inner_width) = self.shape, self.inner
        return spacing[0] * height / inner_height, spacing[1] * width / inner_width

    def fit(self, pixels: NDArray[np.floating | np.bool_]) -> Pixels:
        """Resize (C, H, W) into the frame, by averaging areas; 0 around it."""
        framed = np.zeros((len(pixels), *self.size), np.float32)
        for place, channel in zip(framed[:, *self.window], pixels, strict=True):
            place[:] = resize(channel.astype(np.float32, copy=False), self.inner)
        return framed

    def fit_masks(self, masks: NDArray[np.bool_], disjoint: bool) -> NDArray[np.bool_]:
        """Resize masks (C, H, W) into the frame, disjoint ones without a gap where they touch."""
        fitted = np.zeros((len(masks), *self.size), bool)
        shown = masks.any(axis=(1, 2))  # few of many, perhaps
        shares = self.fit(masks[shown])
        shares = np.concatenate([shares, 1 - shares.sum(axis=0, keepdims=True)])
        fitted[shown] = as_masks(shares, disjoint)
        return fitted

    def restore(self, framed: Pixels, rows: slice | None = None) -> Pixels:
        """Cut (C, *size) to the image and bring it to the image's own size, or some rows."""
        inner = np.asarray(framed, np.float32)[:, *self.window]
        return np.stack([resize(np.ascontiguousarray(c), self.shape, rows) for c in inner])

    def restore_masks(self, framed: Pixels, disjoint: bool) -> NDArray[np.bool_]:
        """Return `as_masks` of what `restore` gives; of a large image, band by band."""
        height, width = self.shape
        masks = np.empty((len(framed) - 1, height, width), bool)
        band = BAND * FEW // max(FEW, len(framed))
        step = height if height * width <= band else max(1, band // width)
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            masks[:, rows] = as_masks(self.restore(framed, rows), disjoint)
        return masks


def as_masks(shares: Pixels, disjoint: bool) -> NDArray[np.bool_]:
    """Return (C, H, W): where the share or probability of each structure exceeds one half.

    Of disjoint ones, where it is the largest of all. The shares are (C + 1, H, W), that of the
    background is the last one.
    """
    if not disjoint:
        return shares[:-1] > 0.5
    best = np.concatenate([shares[-1:], shares[:-1]]).argmax(axis=0)
    return np.asarray(best == 1 + np.arange(len(shares) - 1).reshape(-1, 1, 1))


def resize(channel: Pixels, shape: tuple[int, int], rows: slice | None = None) -> Pixels:
    """Resize (H, W): averaging areas where it gets smaller, linear where it gets larger."""
    if channel.shape == shape:
        return channel if rows is None else channel[rows]
    return np.asarray(resize_picture(Image.fromarray(channel), shape, rows), np.float32)


def resize_picture(
    picture: Image.Image, shape: tuple[int, int], rows: slice | None = None
) -> Image.Image:
    """Resize an image to (H, W) in its own number type, as `resize` does; give some rows of it."""
    if (picture.height, picture.width) == shape:
        return picture
    shrinks = shape[0] * shape[1] < picture.height * picture.width
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    if rows is None:
        return picture.resize((shape[1], shape[0]), method)
    top, bottom = (row * picture.height / shape[0] for row in (rows.start, rows.stop))
    box = (0, top, picture.width, min(bottom, picture.height))
    return picture.resize((shape[1], rows.stop - rows.start), method, box)
