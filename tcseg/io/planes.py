"""Reading masks of any format value by value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.errors import DataError, reason
from tcseg.io.dicom import read_dataset
from tcseg.io.images import NIFTI, is_dicom, open_plain, read_volume, suffix

__all__ = ["read_planes"]

FEW_COLOURS = 9  # so many are listed
WHOLE_TO = 1e-3

Planes = NDArray[np.integer]


def read_planes(path: Path, as_seen: bool = False) -> Planes:
    """Read a mask value by value, (planes, H, W); of palettes the index, or, as seen, the grey."""
    try:
        if suffix(path) in NIFTI:
            return _whole(read_volume(path)[0], path)
        if is_dicom(path):
            values = read_dataset(path).pixel_array
            return _whole(values if values.ndim == 3 else values[None], path)
        return np.stack([_whole(plane, path) for plane in _plain_planes(path, as_seen)])
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise DataError(f"folder: {path} cannot be read ({reason(error)})") from error


def _plain_planes(path: Path, as_seen: bool) -> Iterator[NDArray[np.generic]]:
    with open_plain(path) as file:
        for number in range(getattr(file, "n_frames", 1)):
            file.seek(number)
            if file.mode == "P" and as_seen:
                yield np.asarray(file.convert("L"))
            elif file.mode in ("L", "P", "1", "I", "F") or file.mode.startswith("I;"):
                yield np.asarray(file)
            else:
                values = np.asarray(file.convert("RGB"))
                if not (values == values[..., :1]).all():
                    raise DataError(
                        f"folder: {path} is a colour picture{_colours(values)}; a mask must have "
                        "one value for each class, or a folder for each class with masks in black "
                        "and white"
                    )
                yield values[..., 0]


def _colours(values: NDArray[np.generic]) -> str:
    """Say the colours of a picture, if they are few."""
    colours = np.unique(values.reshape(-1, 3), axis=0)
    if len(colours) > FEW_COLOURS:
        return f" of {len(colours)} colours"
    return f" ({', '.join('#{:02x}{:02x}{:02x}'.format(*colour) for colour in colours)})"


def _whole(values: NDArray[Any], path: Path) -> Planes:
    # Scaled on the way, as by the slope of a NIfTI, a number may be a little off.
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    with np.errstate(invalid="ignore"):  # nan, found below
        whole: Planes = rounded.astype(np.int64 if values.dtype.itemsize > 1 else np.uint8)
    near = rounded is values or (np.abs(rounded - values) < WHOLE_TO).all()
    if not near or not (whole == rounded).all() or (whole < 0).any():
        raise DataError(f"folder: {path} has values that are not whole numbers from 0 on")
    return whole
