"""Fitting images into a square and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Placement", "as_masks", "resize", "resize_picture"]

Pixels = NDArray[np.float32]
BAND = 2**22  # pixels that are brought to the size of a large image at a time


@dataclass(frozen=True)
class Placement:
    """Where an image lies in a square.

    Attributes
    ----------
    shape : (int, int)
        Height and width of the image.
    inner : (int, int)
        Height and width within the square.
    corner : (int, int)
        Its first row and column there.
    size : int
        Side of the square.
    """

    shape: tuple[int, int]
    inner: tuple[int, int]
    corner: tuple[int, int]
    size: int

    @classmethod
    def of(cls, shape: tuple[int, int], size: int) -> Placement:
        """Place an image in the middle, as large as it fits, its proportions kept."""
        scale = size / max(shape)
        height, width = (max(1, min(size, round(side * scale))) for side in shape)
        return cls(shape, (height, width), ((size - height) // 2, (size - width) // 2), size)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the image takes."""
        (top, left), (height, width) = self.corner, self.inner
        return slice(top, top + height), slice(left, left + width)

    def spacing(self, spacing: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return height and width of a pixel of the square, from those of the image."""
        if spacing is None:
            return None
        (height, width), (inner_height, inner_width) = self.shape, self.inner
        return spacing[0] * height / inner_height, spacing[1] * width / inner_width

    def fit(self, pixels: Pixels) -> Pixels:
        """Resize (C, H, W) into the square, by averaging areas; 0 around it."""
        square = np.zeros((len(pixels), self.size, self.size), np.float32)
        square[:, *self.window] = [resize(channel, self.inner) for channel in pixels]
        return square

    def fit_masks(self, masks: NDArray[np.bool_], disjoint: bool) -> NDArray[np.bool_]:
        """Resize masks (C, H, W) into the square, disjoint ones without a gap where they touch."""
        shares = self.fit(masks.astype(np.float32))
        return as_masks(np.concatenate([shares, 1 - shares.sum(axis=0, keepdims=True)]), disjoint)

    def restore(self, square: Pixels, rows: slice | None = None) -> Pixels:
        """Cut (C, size, size) to the image and bring it to the image's own size, or some rows."""
        inner = np.asarray(square, np.float32)[:, *self.window]
        return np.stack([resize(np.ascontiguousarray(c), self.shape, rows) for c in inner])

    def restore_masks(self, square: Pixels, disjoint: bool) -> NDArray[np.bool_]:
        """Return `as_masks` of what `restore` gives; of a large image, band by band."""
        height, width = self.shape
        masks = np.empty((len(square) - 1, height, width), bool)
        step = height if height * width <= BAND else max(1, BAND // width)
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            masks[:, rows] = as_masks(self.restore(square, rows), disjoint)
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
