"""Opening NIfTI files by nibabel."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.errors import DataError
from tcseg.extras import needs
from tcseg.io.limits import check_pixels
from tcseg.io.sizes import MILLIMETRES

# Bytes of a header and its extensions, all of which nibabel reads: compressed, they may be few.
MOST_BEFORE_VOXELS = 2**26
MOST_BEHIND_VOXELS = 2**26


def load_nifti(path: Path) -> Any:
    """Return nibabel's image of a file, its voxels not read; DataError if that would take long."""
    with needs("nifti"):
        import nibabel

    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        header = file.read(540)
    if (before := _before_voxels(header)) > MOST_BEFORE_VOXELS:
        raise DataError(
            f"{path}: cannot be read (its voxels begin after {before / 1e6:.6g} MB of other data)"
        )
    return nibabel.load(path)


def read_voxels(path: Path) -> tuple[Any, NDArray[Any]]:
    """Return nibabel's image of a file and its voxels; DataError if they are too many.

    Of a compressed file all is read: its checksum, which nibabel leaves alone, comes last.
    """
    image = load_nifti(path)
    check_pixels(path, image.shape)
    if path.suffix.lower() != ".gz":
        return image, np.asarray(image.dataobj)
    from nibabel.fileholders import FileHolder

    with gzip.open(path, "rb") as file:
        again = type(image).from_file_map({"image": FileHolder(fileobj=file)})
        voxels, behind = np.asarray(again.dataobj), 0
        while part := file.read(2**20):
            if (behind := behind + len(part)) > MOST_BEHIND_VOXELS:
                raise DataError(f"{path}: cannot be read (its voxels are not the end of it)")
    return image, voxels


def nifti_spacing(image: Any) -> tuple[tuple[float, float] | None, float | None]:
    """Return height and width of a pixel and the distance of planes in mm, where a header says."""
    unit = MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    width, height, *others = (float(zoom) * unit for zoom in image.header.get_zooms())
    known = [size if 0 < size < math.inf else None for size in (height, width, *others[:1])]
    spacing = None if None in known[:2] else (height, width)
    return spacing, known[2] if len(known) > 2 else None


def _before_voxels(header: bytes) -> float:
    """Return the number of bytes before the voxels, as a header of either version says it."""
    if len(header) < 348:
        return 0  # as nibabel will say
    for order in "<>":
        (size,) = struct.unpack(f"{order}i", header[:4])
        if size == 540:
            return float(struct.unpack(f"{order}q", header[168:176])[0])
        if 1 <= struct.unpack(f"{order}h", header[40:42])[0] <= 7:  # dimensions tell the order
            return float(struct.unpack(f"{order}f", header[108:112])[0])
    return 0
