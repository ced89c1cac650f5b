"""Data sets: the procedural phantom, the JSRT radiographs, folders of images; their splits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tcseg.data.dataset import CLASSES, Dataset
from tcseg.data.packing import pack_masks, unpack_masks
from tcseg.data.splits import (
    Split,
    labelled_subset,
    make_split,
    read_splits,
    save_splits,
    split_record,
    split_remarks,
    validation_subset,
)
from tcseg.errors import DataError, Problems
from tcseg.io.sizes import LEAST, ORIGINAL, Size, default_size, pixels, shape_of

__all__ = [
    "CLASSES",
    "Dataset",
    "Split",
    "labelled_subset",
    "load_dataset",
    "make_split",
    "pack_masks",
    "read_splits",
    "save_splits",
    "split_record",
    "split_remarks",
    "unpack_masks",
    "validation_subset",
]

MIN_SIZE, MAX_SIZE = LEAST[2], 2048


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    size: Size | None = None,
    problems: Problems | None = None,
    group: str | None = None,
    mask_pattern: str | None = None,
    window: str | None = None,
    scale: str = "volume",
    dimensions: int = 2,
    spacing: str | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """Read or make a whole data set.

    Parameters
    ----------
    name
        ``"phantom"`` (160 procedural chest radiographs, made on the spot), ``"jsrt"`` or
        ``"folder"``.
    root
        Folder of the data; for JSRT the environment variable ``TCSEG_JSRT_ROOT`` where not given.
        Not used by the phantom.
    size
        Height and width of the images in pixels, 32 to 2048 each: 256, ``"256x512"`` or (256, 512);
        512 if not given. Images are fitted into it, their proportions kept. Of a folder also
        ``"original"``: each image keeps its own, and all take the memory of the largest. Of volumes
        depth, height and width, from 16 on, as 64 or ``"32x64x64"``; original if not given.
    problems
        Where to collect what is wrong, instead of raising at the first fault; images that it
        concerns are left out.
    group
        Of a folder: regular expression whose first group, or else all that it matches in the name
        of an image, is the patient. Without it DICOM files say their patients or series.
    mask_pattern
        Of a folder: how masks are named, such as ``"{name}_mask"``, where that is not found.
    window
        Of a folder: values to be black and white, as centre and width, such as ``"-600,1500"``, or
        a name: lung, mediastinum, abdomen, liver, brain or bone.
    scale
        Of a folder: one grey scale of each ``"volume"`` or series, or of each ``"image"`` in 8
        bits, as earlier versions had it.
    dimensions
        2 for images and planes of volumes; 3 for volumes: of a folder, files of several planes and
        DICOM series; of phantoms, abdomens.
    spacing
        Of volumes: depth, height and width of a voxel in mm, as ``"1.5"`` or ``"5x1.5x1.5"``, to
        which they are resampled; ``"median"`` for that of all, or ``"original"``, each keeping its
        own. Of volumes that are fitted into a size it gives the proportions of voxels. If not
        given, the median, or in a size cubes, where all files say theirs, else original.
    cache
        Of a folder: where to keep what was decoded, in files that batches are read from, so that
        data may exceed memory, and are decoded once. Not used where problems are collected.

    Returns
    -------
    Dataset
        On the CPU.

    Raises
    ------
    DataError
        If the name or size is not known, or files are missing or damaged.
    OSError
        If the cache cannot be written.

    Examples
    --------
    >>> data = load_dataset("phantom", size=32)
    >>> len(data), data.images.shape
    (160, torch.Size([160, 1, 32, 32]))
    """
    if size is None:
        size = default_size(name, dimensions)
    if dimensions not in LEAST:
        raise DataError(f"`dimensions` must be 2 or 3, got {dimensions}")
    if dimensions == 3 and name == "jsrt":
        raise DataError("`dimensions` 3 is for volumes; radiographs (jsrt) are planes")
    if spacing is not None and (dimensions == 2 or name != "folder"):
        raise DataError(
            f"`spacing` {spacing} is for volumes of a folder, with `dimensions` 3; use `size`"
        )
    least = LEAST[dimensions]
    shape = (least, least) if (name, size) == ("folder", ORIGINAL) else shape_of(size, dimensions)
    if not least <= min(shape) <= max(shape) <= MAX_SIZE:
        raise DataError(f"`size` must lie between {least} and {MAX_SIZE} pixels, got {size}")
    if name != "folder" and len(set(shape)) > 1:
        raise DataError(f"`size` {pixels(size)}: images of {name} are square; give one number")
    if name == "phantom":
        from tcseg.data.phantom import population

        return population.load(shape[0], dimensions)
    if name == "jsrt":
        from tcseg.data import jsrt

        return jsrt.load(jsrt_root(root), shape[0], problems)
    if name == "folder":
        from tcseg.data import decoded, folder

        if root is None:
            raise DataError(
                "folder: no folder given; pass `root` DIR, with images/ and masks/ in it"
            )
        how: dict[str, Any] = dict(
            group=group,
            mask_pattern=mask_pattern,
            window=window,
            scale=scale,
            dimensions=dimensions,
            spacing=spacing,
        )
        if cache is None or (problems is not None and problems.collect):
            return folder.load(root, size, problems, **how)
        return decoded.load(cache, root, size if size == ORIGINAL else shape, **how)
    raise DataError(f"unknown data set {name!r}; expected phantom, jsrt or folder")


def jsrt_root(root: str | Path | None) -> str | Path:
    """Return the folder of JSRT: the one given, else the environment's.

    Raises
    ------
    DataError
        If there is neither.
    """
    root = root if root is not None else os.environ.get("TCSEG_JSRT_ROOT")
    if not root:
        raise DataError(
            "jsrt: no folder given; pass `root` DIR or set TCSEG_JSRT_ROOT to the folder "
            "that holds images/ and scr/"
        )
    return root
