"""Volumes as pictures in two dimensions: planes through the middle of a structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcseg.io.placement import resize
from tcseg.io.sizes import Spacing

LONGEST = 1024  # pixels of a side of a volume, at most


@dataclass(frozen=True)
class Planes:
    """Three planes of a volume as one picture, all through the same voxel.

    The axial one (D is fixed) stands at the top left, the coronal one (H) below and the sagittal
    one (W) to the right of it, so that the columns of the first two are the same, and so are the
    rows of the first and the last. D runs towards the head, which is up, or on the left.

    Attributes
    ----------
    at
        The voxel.
    sides
        Depth, height and width of the volume in pixels of the picture.
    """

    at: tuple[int, ...]
    sides: tuple[int, ...]

    @classmethod
    def of(cls, masks: np.ndarray, spacing: Spacing | None) -> Planes:
        """Choose planes through the middle of the largest structure.

        Parameters
        ----------
        masks
            bool (K, D, H, W). If all are empty, the planes go through the middle of the volume.
        spacing
            Size of a voxel in mm, for true proportions; None if it is not known.
        """
        shape, sizes = masks.shape[1:], np.count_nonzero(masks, axis=(1, 2, 3))
        at = tuple(side // 2 for side in shape)
        if sizes.any():  # the centre of mass may lie in a hollow: the voxel nearest to it
            # Along each axis: two thirds of the time that `argwhere` takes.
            voxels = np.unravel_index(np.flatnonzero(masks[sizes.argmax()]), shape)
            nearest = sum((along - along.mean()) ** 2 for along in voxels).argmin()
            at = tuple(int(along[nearest]) for along in voxels)
        size = np.array(shape) * (1.0 if spacing is None else spacing)
        pixel = max((size / shape).min(), size.max() / LONGEST)
        return cls(at, tuple(max(1, round(side / pixel)) for side in size))

    def of_volume(self, volume: np.ndarray) -> np.ndarray:
        """Draw planes of a volume (K, D, H, W), numbers or bool: (K, H', W')."""
        return self.composed(self.cut(volume))

    def cut(self, volume: np.ndarray) -> list[np.ndarray]:
        """Return the planes of a volume (K, D, H, W): (K, H, W), (K, D, W) and (K, H, D)."""
        z, y, x = self.at
        upright = volume[:, ::-1]
        return [volume[:, z], upright[:, :, y], upright[..., x].swapaxes(1, 2)]

    def composed(self, planes: Sequence[np.ndarray]) -> np.ndarray:
        """Compose planes, as of `cut`, black between them."""
        depth, height, width = self.sides
        seam = 1 + max(self.sides) // 50
        shape = (len(planes[0]), height + seam + depth, width + seam + depth)
        picture = np.zeros(shape, planes[0].dtype)
        places = (
            picture[:, :height, :width],
            picture[:, -depth:, :width],
            picture[:, :height, -depth:],
        )
        for place, plane in zip(places, planes, strict=True):
            for part, channel in zip(place, plane, strict=True):
                large = resize(np.ascontiguousarray(channel, np.float32), part.shape)
                part[:] = large > 0.5 if part.dtype == bool else large
        return picture
