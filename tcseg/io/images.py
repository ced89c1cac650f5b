"""Reading images of any kind as grey levels in [0, 1], and fitting them into a square and back.

PNG, JPEG and TIFF by Pillow, DICOM by pydicom, NIfTI by nibabel, others in `arrays`. What holds
several planes (a volume, a multi-frame DICOM or TIFF file) is read plane by plane.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tcseg.errors import DataError, reason
from tcseg.io.arrays import ARRAYS, array_spacing, read_array
from tcseg.io.dicom import frame_spacing, has_dicom_content, limits_of, read_frames
from tcseg.io.grey import as_pixels, tails
from tcseg.io.nifti import load_nifti, nifti_spacing, read_voxels
from tcseg.io.placement import Pixels
from tcseg.io.plain import open_plain, read_channels
from tcseg.io.sizes import MILLIMETRES
from tcseg.io.windows import Limits

PLAIN = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
DICOM = (".dcm", ".dicom")
NIFTI = (".nii", ".nii.gz")
FORMATS = (*PLAIN, *DICOM, *NIFTI, *ARRAYS)

NO_TEXT = (
    "its name is not UTF-8; rename it, or, where the locale has no UTF-8, set PYTHONUTF8=1 in the "
    "environment"
)


@dataclass(frozen=True)
class Picture:
    """One image as read.

    Attributes
    ----------
    name : str
        Stem of its file; of one of several planes with its number, as in ``"ct/012"``.
    pixels : float32 (C, H, W)
        Grey levels in [0, 1], of one channel, three (red, green, blue), or any number.
    spacing : (float, float) or None
        Height and width of a pixel in mm, where the file says.
    path : Path
        The file.
    plane : int or None
        Number of the plane, of a file of several.
    at_detector : bool
        Whether the spacing is that on the detector of a projection, which shows things larger than
        they are.
    group : str or None
        What it belongs to with others, a patient perhaps, where that was looked for.
    volume : str or None
        Name of the volume that it is a plane of, where that was looked for.
    bits : int
        How many its file has for a value.
    slice_spacing : float or None
        Distance in mm to the planes beside it, of a file of several that says it.
    """

    name: str
    pixels: Pixels
    spacing: tuple[float, float] | None
    path: Path
    plane: int | None = None
    at_detector: bool = False
    group: str | None = None
    volume: str | None = None
    bits: int = 8
    slice_spacing: float | None = None


def suffix(path: Path) -> str:
    """Return the suffix in small letters, ``.nii.gz`` as one; a number is none."""
    name, last = path.name.lower(), path.suffix.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else "" if last[1:].isdecimal() else last


def stem(path: Path) -> str:
    """Return the name without its suffix; letters with accents as one character (NFC)."""
    return unicodedata.normalize("NFC", path.name[: len(path.name) - len(suffix(path))])


def is_text(name: str) -> bool:
    """Whether the name of a file can be written in UTF-8, as all tables of results are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_image(path: Path) -> bool:
    """Whether a file looks like one that `read_pictures` takes: by its name, DICOM by content."""
    if path.name.startswith(".") or not path.is_file():
        return False
    # Archives name DICOM files by number, or give them no suffix.
    return suffix(path) in FORMATS or has_dicom_content(path)


def is_dicom(path: Path) -> bool:
    """Whether a file is to be read as DICOM."""
    return suffix(path) in DICOM or (
        suffix(path) not in (*PLAIN, *NIFTI, *ARRAYS) and has_dicom_content(path)
    )


def read_pictures(
    path: Path, limits: Limits | None = None, scale: str = "volume"
) -> Iterator[Picture]:
    """Read all planes of one file, one at a time.

    Parameters
    ----------
    path
        The file.
    limits
        Values to be black and white; if not given, a window that the file has, the levels of 8
        bits, or the range of its values.
    scale
        One of ``"volume"`` for all planes, or of each ``"image"`` for itself where that was so in
        earlier versions: pages of TIFF, and frames of DICOM files with windows of their own.

    Raises
    ------
    DataError
        If it cannot be read; one line that names it.
    """
    kind = suffix(path)
    if not is_text(path.name):
        raise DataError(f"{str(path)!r}: {NO_TEXT}")
    try:
        if kind in NIFTI:
            yield from _read_stack(path, limits, *read_volume(path))
        elif kind in ARRAYS:
            yield from _read_stack(path, limits, *read_array(path))
        elif kind in (".tif", ".tiff") and (channels := read_channels(path)) is not None:
            yield from _read_stack(path, limits, channels[0], *_tiff_spacing(channels[1]))
        elif kind in PLAIN:
            yield from _read_plain(path, limits, scale)
        elif is_dicom(path):
            yield from _read_dicom(path, limits, scale)
        else:
            raise DataError(f"{path}: {kind!r} is not a known image format")
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{path}: cannot be read, {error}") from error
    # Decoders of damaged files raise almost anything.
    except Exception as error:
        if "Unable to decompress" in str(error):  # pydicom lists what each of its plugins lacks
            raise DataError(
                f"{path}: cannot be read, its compression needs another decoder: try pip install "
                "python-gdcm"
            ) from error
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error


def png(values: NDArray[np.uint8]) -> bytes:
    """Encode (H, W) or (H, W, 3)."""
    content = io.BytesIO()
    Image.fromarray(values).save(content, format="png")
    return content.getvalue()


# ---- formats --------------------------------------------------------------------------------


def _picture(
    path: Path,
    plane: int,
    count: int,
    pixels: Pixels,
    spacing: tuple[float, float] | None,
    bits: int,
    slice_spacing: float | None = None,
) -> Picture:
    """Return a plane of a file that has so many."""
    name, number = (stem(path), None) if count == 1 else (f"{stem(path)}/{plane:03d}", plane)
    return Picture(name, pixels, spacing, path, number, bits=bits, slice_spacing=slice_spacing)


def _read_plain(path: Path, limits: Limits | None, scale: str) -> Iterator[Picture]:
    given = limits is not None
    with open_plain(path) as file:
        count = getattr(file, "n_frames", 1) if suffix(path) in (".tif", ".tiff") else 1
        spacing, between = _tiff_spacing(getattr(file, "tag_v2", {}))
        if limits is None and scale == "volume" and count > 1:
            values = [page for k in range(count) if (page := _page(file, k)).dtype.itemsize > 1]
            limits = tails(values) if values else None
        for plane in range(count):
            page = _page(file, plane)
            bits = 8 * page.dtype.itemsize
            if bits == 8 and given:
                raise DataError(
                    f"{path}: its grey levels of 8 bits are no values that `window` could choose "
                    "from; leave `window` out, or give the original files"
                )
            pixels = as_pixels(page, limits if bits > 8 else None)
            if len(pixels) == 3 and (pixels == pixels[:1]).all():
                pixels = pixels[:1]  # grey, saved as colour
            yield _picture(path, plane, count, pixels, spacing, bits, between)


def _page(file: Image.Image, number: int) -> NDArray[Any]:
    """Return the values of a page, in grey or in colours."""
    file.seek(number)
    picture: Image.Image = ImageOps.exif_transpose(file)
    if picture.mode in ("P", "RGBA", "CMYK", "YCbCr", "PA", "LAB", "HSV"):
        picture = picture.convert("RGB")
    elif picture.mode in ("LA", "1", "La"):
        picture = picture.convert("L")
    return np.asarray(picture)


def _tiff_spacing(tags: Mapping[int, Any]) -> tuple[tuple[float, float] | None, float | None]:
    """Return the size of a pixel and the distance of planes, as microscopes say it: ImageJ or OME.

    The resolution that other TIFF files have is one for printing.
    """
    text = str(tags.get(270, ""))
    sizes: list[float] = []
    try:
        if text.startswith("ImageJ="):
            unit, between = (
                re.search(rf"^{name}=(.*)$", text, re.M) for name in ("unit", "spacing")
            )
            scale = MILLIMETRES.get(unit[1].strip(), 0.0) if unit else 0.0
            sizes = [scale / float(tags[tag]) for tag in (283, 282)]
            sizes.append(abs(float(between[1])) * scale if between else 0.0)
        elif "<OME" in text:
            for axis in "YXZ":
                size = re.search(rf'PhysicalSize{axis}="([^"]+)"', text)
                unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', text)
                scale = MILLIMETRES.get(unit[1], 0.0) if unit else 0.001
                sizes.append(float(size[1]) * scale if size else 0.0)
    except (KeyError, ValueError, ZeroDivisionError):
        return None, None
    height, width, distance = sizes or [0.0] * 3
    return (height, width) if min(height, width) > 0 else None, distance or None


def _read_dicom(path: Path, limits: Limits | None, scale: str) -> Iterator[Picture]:
    frames = read_frames(path)
    count = len(frames.values)
    by_frame = limits is None and scale == "image" and None not in frames.windows
    levels = (
        frames.windows if by_frame else [limits_of([frames]) if limits is None else limits] * count
    )
    for plane, (values, spacing) in enumerate(zip(frames.values, frames.spacings, strict=True)):
        pixels = as_pixels(values, levels[plane] if values.ndim == 2 else None)
        pixels = 1 - pixels if frames.inverted else pixels
        picture = _picture(path, plane, count, pixels, spacing, frames.bits, frames.slice_spacing)
        yield replace(picture, at_detector=frames.at_detector)


def read_volume(
    path: Path,
) -> tuple[NDArray[Any], tuple[float, float] | None, float | None]:
    """Read a NIfTI file as planes (planes, H, W), as viewers show them.

    Or (planes, H, W, C): channels are along the fifth axis, time would be along the fourth.

    With the height and width of a pixel and the distance of planes in mm, where it says them. Rows
    run along the second axis of the file, the first row at its end.
    """
    image, volume = read_voxels(path)
    while volume.ndim > 3 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim == 2:
        volume = volume[..., None]
    if volume.dtype.fields is not None:
        raise DataError(f"{path}: holds colours, which are read from PNG or TIFF only; convert it")
    if volume.ndim == 5 and volume.shape[3] == 1:
        volume = volume[..., 0, :]
    elif volume.ndim != 3 or 0 in volume.shape:
        time = f", {volume.shape[3]} times along its fourth axis" if volume.ndim > 3 else ""
        raise DataError(
            f"{path}: has shape {image.shape}{time}; expected a plane or a volume: save each time "
            "as a file of its own, and channels along the fifth axis or in files as nnU-Net wants "
            "them"
        )
    return volume.swapaxes(0, 2)[:, ::-1], *nifti_spacing(image)


def read_spacing(path: Path) -> tuple[tuple[float, float] | None, float | None]:
    """Return height and width of a pixel and the distance of planes in mm, where a file says them.

    Of volumes by their header alone, but for TIFF files.
    """
    kind = suffix(path)
    if kind in NIFTI:
        return nifti_spacing(load_nifti(path))
    if kind in ARRAYS:
        return array_spacing(path)
    if is_dicom(path):
        return frame_spacing(path)
    first = next(read_pictures(path))
    return first.spacing, first.slice_spacing


def exif_orientation(path: Path) -> int:
    """Return how a file is to be turned to be seen upright, 1 (not at all) to 8, as EXIF says."""
    if suffix(path) not in PLAIN:
        return 1
    try:
        with open_plain(path) as file:
            return int(file.getexif().get(0x0112, 1))
    except DataError:  # of many channels, or as is told on reading it
        return 1


def _read_stack(
    path: Path,
    limits: Limits | list[Limits] | None,
    planes: NDArray[Any],
    spacing: tuple[float, float] | None,
    slice_spacing: float | None = None,
) -> Iterator[Picture]:
    bits, count = 8 * planes.dtype.itemsize, len(planes)
    if limits is None and planes.dtype not in (np.uint8, bool):
        together = planes.ndim == 3 or planes.shape[3] == 3
        parts = [planes] if together else np.moveaxis(planes, 3, 0)
        each = [tails([part]) for part in parts]
        limits = each[0] if together else each
    for plane, values in enumerate(planes):
        pixels = as_pixels(values, limits)
        yield _picture(path, plane, count, pixels, spacing, bits, slice_spacing)
