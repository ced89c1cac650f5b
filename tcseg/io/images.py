"""Reading images of any kind as grey levels in [0, 1], and fitting them into a square and back.

PNG, JPEG and TIFF by Pillow, DICOM by pydicom, NIfTI by nibabel. What holds several planes (a
volume, a multi-frame DICOM or TIFF file) is read plane by plane.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tcseg.errors import DataError, reason
from tcseg.extras import needs
from tcseg.io.dicom import has_dicom_content, read_frames
from tcseg.io.placement import Pixels
from tcseg.io.plain import open_plain

PLAIN = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
DICOM = (".dcm", ".dicom")
NIFTI = (".nii", ".nii.gz")
# Beyond these fractions of the pixels, values of more than 8 bits are cut off: a few hot pixels, a
# burnt-in label or metal would leave the rest in a tenth of the range.
TAILS = (0.1, 99.9)

# Of the units that files name, with the micro sign, the Greek letter, and what ImageJ writes.
_MILLIMETRES = {"meter": 1000.0, "m": 1000.0, "cm": 10.0, "mm": 1.0, "nm": 1e-6, "inch": 25.4}
_MILLIMETRES |= dict.fromkeys(("micron", "um", "\u00b5m", "\u03bcm", "\\u00B5m"), 0.001)


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
        Grey levels in [0, 1], one channel or three (red, green, blue).
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
    """

    name: str
    pixels: Pixels
    spacing: tuple[float, float] | None
    path: Path
    plane: int | None = None
    at_detector: bool = False
    group: str | None = None
    volume: str | None = None


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
    if suffix(path) in (*PLAIN, *DICOM, *NIFTI):
        return True
    return has_dicom_content(path)  # archives name them by number, or give them no suffix


def is_dicom(path: Path) -> bool:
    """Whether a file is to be read as DICOM."""
    return suffix(path) in DICOM or (
        suffix(path) not in (*PLAIN, *NIFTI) and has_dicom_content(path)
    )


def read_pictures(path: Path) -> Iterator[Picture]:
    """Read all planes of one file, one at a time.

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
            yield from _read_nifti(path)
        elif kind in PLAIN:
            yield from _read_plain(path)
        elif is_dicom(path):
            yield from _read_dicom(path)
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


def as_pixels(values: NDArray[Any]) -> Pixels:
    """Bring an image of any number type into [0, 1], as float32 (C, H, W).

    Parameters
    ----------
    values
        (H, W), (H, W, 3) or (H, W, 4), whose last channel is left out. 8 bits keep their levels;
        of anything wider the range between its tails is stretched. Booleans are 0 and 1. NaN
        counts as the lowest level.

    Raises
    ------
    ValueError
        If the shape is another one, or a side is 0.
    """
    values = np.asarray(values)
    colour = values.ndim == 3 and values.shape[2] in (3, 4)
    if not (values.ndim == 2 or colour) or 0 in values.shape:
        raise ValueError(
            f"an image must have the shape (H, W), (H, W, 3) or (H, W, 4), got {values.shape}"
        )
    if colour:
        values = values[..., :3]
    if values.dtype == np.uint8:
        levels = values.astype(np.float32) / 255
    elif values.dtype == bool:
        levels = values.astype(np.float32)
    else:
        known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        low, high = np.percentile(known, TAILS) if known.size else (0.0, 0.0)
        if not high > low:  # all alike but for a few pixels
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        # Volumes are large: no more precision, and no more copies, than it takes.
        wide: NDArray[Any] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        low, high = wide.dtype.type(low), wide.dtype.type(high)
        np.nan_to_num(wide, copy=False, nan=low)
        wide.clip(low, high, out=wide)
        wide -= low
        wide /= high - low if high > low else 1
        levels = wide.astype(np.float32, copy=False)
    return np.ascontiguousarray(levels.transpose(2, 0, 1) if colour else levels[None])


# ---- formats --------------------------------------------------------------------------------


def _read_plain(path: Path) -> Iterator[Picture]:
    with open_plain(path) as file:
        count = getattr(file, "n_frames", 1) if suffix(path) in (".tif", ".tiff") else 1
        spacing = _tiff_spacing(file)
        for plane in range(count):
            file.seek(plane)
            picture: Image.Image = ImageOps.exif_transpose(file)
            if picture.mode in ("P", "RGBA", "CMYK", "YCbCr", "PA", "LAB", "HSV"):
                picture = picture.convert("RGB")
            elif picture.mode in ("LA", "1", "La"):
                picture = picture.convert("L")
            pixels = as_pixels(np.asarray(picture))
            if len(pixels) == 3 and (pixels == pixels[:1]).all():
                pixels = pixels[:1]  # grey, saved as colour
            name = stem(path) if count == 1 else f"{stem(path)}/{plane:03d}"
            yield Picture(name, pixels, spacing, path, None if count == 1 else plane)


def _tiff_spacing(file: Image.Image) -> tuple[float, float] | None:
    """Return the size of a pixel as microscopes say it, by ImageJ or OME.

    The resolution that other TIFF files have is one for printing.
    """
    tags = getattr(file, "tag_v2", {})
    text = str(tags.get(270, ""))
    sizes: list[float] = []
    try:
        if text.startswith("ImageJ="):
            unit = re.search(r"^unit=(.*)$", text, re.M)
            scale = _MILLIMETRES.get(unit[1].strip(), 0.0) if unit else 0.0
            sizes = [scale / float(tags[tag]) for tag in (283, 282)]
        elif "<OME" in text:
            for axis in "YX":
                size = re.search(rf'PhysicalSize{axis}="([^"]+)"', text)
                unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', text)
                scale = _MILLIMETRES.get(unit[1], 0.0) if unit else 0.001
                sizes.append(float(size[1]) * scale if size else 0.0)
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    return (sizes[0], sizes[1]) if sizes and min(sizes) > 0 else None


def _read_dicom(path: Path) -> Iterator[Picture]:
    frames, spacings, at_detector = read_frames(path)
    if frames.ndim == 4:
        levels = [as_pixels(frame) for frame in frames]
    else:  # one scale for all frames
        rows = as_pixels(frames.reshape(-1, frames.shape[-1]))[0]
        levels = [frame[None] for frame in rows.reshape(frames.shape)]
    for plane, (pixels, spacing) in enumerate(zip(levels, spacings, strict=True)):
        name = stem(path) if len(levels) == 1 else f"{stem(path)}/{plane:03d}"
        number = None if len(levels) == 1 else plane
        yield Picture(name, pixels, spacing, path, number, at_detector)


def read_volume(path: Path) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Read a NIfTI file as planes (planes, H, W), as viewers show them, and the size of a pixel.

    Rows run along the second axis of the file, the first row at its end.
    """
    with needs("nifti"):
        import nibabel

    image: Any = nibabel.load(path)
    volume = np.asarray(image.dataobj)
    while volume.ndim > 3 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim == 2:
        volume = volume[..., None]
    if volume.dtype.fields is not None:
        raise DataError(f"{path}: holds colours, which are read from PNG or TIFF only; convert it")
    if volume.ndim != 3 or 0 in volume.shape:
        raise DataError(
            f"{path}: has shape {image.shape}; expected a plane or a volume: save each time or "
            "channel as a file of its own"
        )
    unit = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    zooms = [float(z) * unit for z in image.header.get_zooms()[:2]]
    spacing = (zooms[1], zooms[0]) if min(zooms) > 0 else None
    return volume.transpose(2, 1, 0)[:, ::-1], spacing


def orientation(path: Path) -> str | None:
    """Return which way in the patient the axes of a NIfTI file run, as "RAS"; None of others."""
    if suffix(path) not in NIFTI:
        return None
    try:
        import nibabel

        affine: Any = nibabel.load(path).affine  # type: ignore[attr-defined]
    except Exception:  # what is wrong is told on reading it
        return None
    return "".join(code or "?" for code in nibabel.aff2axcodes(affine))


def exif_orientation(path: Path) -> int:
    """Return how a file is to be turned to be seen upright, 1 (not at all) to 8, as EXIF says."""
    if suffix(path) not in PLAIN:
        return 1
    with open_plain(path) as file:
        return int(file.getexif().get(0x0112, 1))


def _read_nifti(path: Path) -> Iterator[Picture]:
    planes, spacing = read_volume(path)
    count, height, width = planes.shape
    # One scale for all planes.
    levels = as_pixels(planes.reshape(count * height, width))[0].reshape(planes.shape)
    for plane, pixels in enumerate(levels):
        name = stem(path) if count == 1 else f"{stem(path)}/{plane:03d}"
        yield Picture(name, pixels[None], spacing, path, None if count == 1 else plane)
