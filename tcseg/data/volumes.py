"""Volumes of a folder: their planes joined, and how large their voxels are to be."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tcseg.errors import DataError, counted
from tcseg.io.grids import turned, turned_axes
from tcseg.io.images import Picture
from tcseg.io.limits import check_pixels, memory
from tcseg.io.placement import Pixels, Placement
from tcseg.io.series import Collection
from tcseg.io.sizes import ORIGINAL, Size, Spacing, mm_of, resolution, written

MEDIAN = "median"
ISOTROPIC = (1.0, 1.0, 1.0)


class Volumes:
    """The volumes among some files.

    Parameters
    ----------
    collection
        The files.
    spacing, size
        How large voxels are to be, and volumes; see `load_dataset`.

    Attributes
    ----------
    files : list of Path
        The file, or the first slice, of each volume.
    wanted : tuple of float or None
        Depth, height and width of a voxel in mm; None if each volume keeps its own.

    Raises
    ------
    DataError
        If `spacing` needs to know the voxels of all volumes, and some files do not say them.
    ValueError
        If `spacing` is something else.
    """

    def __init__(self, collection: Collection, spacing: str | None, size: Size) -> None:
        self._collection, self._spacing, self._size = collection, spacing, size
        firsts = (collection.series(path)[0] for path in collection.files)
        self.files = list(dict.fromkeys(firsts))
        self._largest: tuple[int, ...] = (0, 0, 0)
        self.wanted: Spacing | None = None
        if spacing in (None, MEDIAN):
            self.wanted = self._usual(spacing, size)
        elif spacing != ORIGINAL:
            self.wanted = mm_of(spacing)

    def read(self, path: Path) -> tuple[list[Picture], Pixels, Spacing | None]:
        """Read a volume: its planes, its pixels (C, D, H, W), and the sides of a voxel in mm.

        Pixels and sides are `turned`, planes as they are.

        Raises
        ------
        DataError
            If a file cannot be read, or its planes are not those of a volume.
        """
        files = self._collection.series(path)
        planes = [plane for file in files for plane in self._collection.read(file)]
        first = planes[0]
        voxel = voxel_of(first)
        if len(planes) == 1:
            raise DataError(
                f"folder: {path} is a single plane, no volume; save all planes of a volume in one "
                "file, or as a DICOM series, or read planes (`dimensions` 2)"
            )
        kinds = {(plane.pixels.shape[1:], plane.spacing) for plane in planes}
        channels = {len(plane.pixels) for plane in planes}
        if len(kinds) > 1 or not (len(channels) == 1 or channels == {1, 3}):
            raise DataError(
                f"folder: the planes of {path} differ in size, channels or the size of a pixel; "
                "those of a volume must be alike: take out what is no part of it"
            )
        if len(files) > 1 and voxel is None and self._spacing != ORIGINAL:
            raise DataError(
                f"folder: the {len(files)} slices of the series of {path} do not lie at equal "
                "distances, or do not say how large a pixel is; add those that are missing, take "
                "the series out, or train on voxels as they are (`spacing` original)"
            )
        if voxel is None and self.wanted is not None:
            raise DataError(
                f"folder: {path} does not say how large its voxels are; save it with that, take it "
                "out, or train on voxels as they are (`spacing` original)"
            )
        pixels = np.empty((max(channels), len(planes), *first.pixels.shape[1:]), np.float32)
        for number, plane in enumerate(planes):
            pixels[:, number] = plane.pixels  # grey beside colours is grey in each
        pixels = turned(pixels, path)
        place = Placement.of(pixels.shape[1:], self._size, voxel, self.wanted)
        check_pixels(
            path,
            (len(pixels), *place.size),
            f" {resolution(self._size, 3, self.wanted)}",
            f"choose {self._smaller}",
        )
        return planes, pixels, voxel

    def check_memory(self, sides: Sequence[int], channels: int) -> None:
        """Raise ValueError if all, as large as the largest so far, are more than memory holds."""
        self._largest = tuple(map(max, self._largest, sides))
        needed = len(self.files) * math.prod(self._largest) * (channels + 1)  # and masks
        if needed > (most := memory()):
            raise ValueError(
                f"{counted(len(self.files), 'volume')} of {written(self._largest)} voxels "
                f"{resolution(self._size, 3, self.wanted)} would take at least "
                f"{needed / 2**30:,.1f} GiB, this machine has {most / 2**30:,.1f}; choose "
                f"{self._smaller}, or decode them into files (`cache`)"
            )

    @property
    def _smaller(self) -> str:
        return "larger voxels (`spacing`)" if self._size == ORIGINAL else "a smaller `size`"

    def _usual(self, spacing: str | None, size: Size) -> Spacing | None:
        """Return the median voxel; in a frame without `spacing`, a cube, for its proportions."""
        known: list[Spacing] = []
        unknown: list[Path] = []
        for path in self.files:
            with contextlib.suppress(Exception):  # told on reading all of it
                pixel, between = self._collection.spacing(path)
                if (voxel := _turned_voxel(pixel, between, path)) is not None:
                    known.append(voxel)
                elif len(self._collection.series(path)) == 1:
                    unknown.append(path)
        if unknown and spacing == MEDIAN:
            raise DataError(
                f"folder: {len(unknown)} of {len(self.files)} volumes ({unknown[0].name} ...) do "
                "not say how large their voxels are, so there is no median; save them with that, "
                "or train on voxels as they are (`spacing` original)"
            )
        if unknown or not known:
            return None
        if spacing is None and size != ORIGINAL:
            return ISOTROPIC
        return tuple(np.median(known, axis=0).tolist())


def voxel_of(plane: Picture) -> Spacing | None:
    """Return the sides of a voxel in mm, turned, None if the file of a plane does not say all."""
    return _turned_voxel(plane.spacing, plane.slice_spacing, plane.path)


def _turned_voxel(
    pixel: tuple[float, float] | None, between: float | None, path: Path
) -> Spacing | None:
    if pixel is None or between is None:
        return None
    return tuple((between, *pixel)[axis] for axis in turned_axes(path))


def name_of(plane: Picture) -> str:
    """Return the name of a volume by its first plane: of its file, or of the first slice."""
    return plane.name if plane.plane is None else plane.volume or plane.name
