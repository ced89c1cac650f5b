"""Reading arrays of NumPy, and NRRD and MetaImage by SimpleITK."""

from __future__ import annotations

import io
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.errors import DataError
from tcseg.extras import needs
from tcseg.io.limits import check_inflated, check_pixels

ITK = (".nrrd", ".mha")
ARRAYS = (".npy", *ITK)

# Headers as far as the values, and what says that these lie in another file, which may be any.
_HEADER = 2**16
_HEADERS = {".nrrd": rb".*?\n\r?\n", ".mha": rb".*?\nElementDataFile[^\n]*\n"}
_ELSEWHERE = re.compile(rb"^(data ?file:|ElementDataFile\s*=\s*+(?!LOCAL\s))", re.M | re.I)

# Where ITK quotes a longer path or field of NRRD, it overruns a buffer; values (:=) may be long.
_LONGEST_PATH = 1000
_OVERLONG = re.compile(rb"^(?!#)(?![^\n:]{1,250}:=)[^\n]{500}", re.M)

# NRRD leaves out bytes one by one, however many there are in what was compressed.
_SKIPPED = re.compile(rb"^byte ?skip:[\s+]*(\d+)", re.M | re.I)
_LINES = re.compile(rb"^line ?skip:[\s+]*[1-9]", re.M | re.I)  # before what was compressed

# What ITK inflates without a look at its checksum, or as far as it comes.
_DEFLATED = re.compile(rb"^(encoding:\s*gz|CompressedData\s*=\s*True)", re.M | re.I)
_ANY_HEADER = 32 + zlib.MAX_WBITS  # of zlib or gzip

# MetaImage makes room for as many axes as are promised, also for fewer than none.
_NO_AXES = re.compile(rb"NDims\s*+[=:]?+\s*+(?!\d\s)")


def read_array(path: Path) -> tuple[NDArray[Any], tuple[float, float] | None, float | None]:
    """Read planes (planes, H, W), or of several channels (planes, H, W, C).

    With height and width of a pixel and the distance of planes in mm, where the file says them.
    An array of three axes is a stack of planes; with 3 or 4 at the end and 8 bits, a picture in
    colour. Four channels of 8 bits are colours and alpha, which is left out. Values are read from
    files that may come from anybody: nothing else is.
    """
    spacing: tuple[tuple[float, float] | None, float | None]
    if path.suffix.lower() == ".npy":
        # Mapped: a header that promises more than there is takes no memory.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        check_pixels(path, values.shape)
        spacing = None, None
        colour = values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8
        several = values.ndim == 4 or colour
    else:
        reader = _itk_reader(path)
        import SimpleITK

        check_pixels(path, (*reader.GetSize(), reader.GetNumberOfComponents()))
        _check_sum(path)
        image = reader.Execute()
        values = SimpleITK.GetArrayFromImage(image)
        several = image.GetNumberOfComponentsPerPixel() > 1
        spacing = _sides(image)
    if values.ndim == 2 + several:
        values = values[None]
    if several and values.shape[-1] == 4 and values.dtype == np.uint8:
        values = values[..., :3]
    if values.ndim != 3 + several or 0 in values.shape or values.dtype.kind not in "buif":
        time = path.suffix.lower() != ".npy" and values.ndim > 3
        raise DataError(
            f"{path}: has shape {values.shape} of {values.dtype}; expected numbers, (H, W), "
            "(planes, H, W), (planes, H, W, channels), or (H, W, 3) of 8 bits for colour"
            + ("; its first axis is time perhaps: save each as a file of its own" if time else "")
        )
    return values, *spacing


def array_spacing(path: Path) -> tuple[tuple[float, float] | None, float | None]:
    """Return height and width of a pixel and the distance of planes in mm, where a header says."""
    return (None, None) if path.suffix.lower() == ".npy" else _sides(_itk_reader(path))


def _sides(image: Any) -> tuple[tuple[float, float], float | None]:
    width, height, *others = image.GetSpacing()
    return (height, width), others[0] if others else None


def encode_array(numbers: NDArray[Any], source: Path) -> bytes:
    """Return the file of planes (planes, H, W) in the form of another, where that lies."""
    if source.suffix.lower() == ".npy":
        content = io.BytesIO()
        np.save(content, numbers[0] if len(numbers) == 1 else numbers)
        return content.getvalue()
    reader = _itk_reader(source)
    import SimpleITK

    image = SimpleITK.GetImageFromArray(numbers if reader.GetDimension() == 3 else numbers[0])
    image.SetSpacing(reader.GetSpacing())
    image.SetOrigin(reader.GetOrigin())
    image.SetDirection(reader.GetDirection())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"labels{source.suffix.lower()}")
        SimpleITK.WriteImage(image, path, True)  # compressed
        return path.read_bytes()


def itk_orientation(path: Path) -> str:
    """Return which way in the patient the axes of a file run, as "LPS"."""
    reader = _itk_reader(path)
    import SimpleITK

    cosines, axes = np.eye(3), reader.GetDimension()
    cosines[:axes, :axes] = np.reshape(reader.GetDirection(), (axes, axes))
    code = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
        cosines.ravel().tolist()
    )
    return str(code)


def itk_affine(path: Path) -> NDArray[np.float64]:
    """Return where the voxels of a file lie, (4, 4) from their numbers to mm, axes as NIfTI's."""
    reader = _itk_reader(path)
    affine, axes = np.eye(4), min(3, reader.GetDimension())
    cosines = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))[:axes, :axes]
    affine[:axes, :axes] = cosines * np.array(reader.GetSpacing()[:axes])
    affine[:axes, 3] = reader.GetOrigin()[:axes]
    return np.diag([-1.0, -1, 1, 1]) @ affine


def _header(path: Path) -> tuple[bytes, re.Match[bytes] | None]:
    """Return the beginning of a file, and the header in it, if it is one."""
    with open(path, "rb") as file:
        beginning = file.read(_HEADER)
    return beginning, re.match(_HEADERS[path.suffix.lower()], beginning, re.S)


def _check_sum(path: Path) -> None:
    """Raise zlib.error if values that were deflated are damaged."""
    _, header = _header(path)
    if header is not None and _DEFLATED.search(header[0]) and not _LINES.search(header[0]):
        with open(path, "rb") as file:
            file.seek(header.end())
            check_inflated(path, file, _ANY_HEADER, each=8)


def _itk_reader(path: Path) -> Any:
    """Return what reads a file, its header read; DataError if that would lead astray."""
    beginning, header = _header(path)
    endless = header is None and len(beginning) == _HEADER
    if endless or (header is not None and _ELSEWHERE.search(header[0])):
        raise DataError(
            f"{path}: its values lie in a file of their own; save it as one file (.nrrd or .mha)"
        )
    fields = beginning if header is None else header[0]
    if path.suffix.lower() == ".mha" and (wrong := _NO_AXES.search(fields)):
        line = fields[wrong.start() :].splitlines()[0].decode(errors="replace")
        raise DataError(f"{path}: cannot be read (its header says {line[:80]!r})")
    if path.suffix.lower() == ".nrrd":
        if _OVERLONG.search(fields):
            raise DataError(f"{path}: cannot be read (a line of its header is too long)")
        if any(int(count) > path.stat().st_size for count in _SKIPPED.findall(fields)):
            raise DataError(
                f"{path}: cannot be read (its header leaves out more than the file has)"
            )
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise DataError(f"{path}: cannot be read (its path is too long); move it")
    with needs("itk"):
        import SimpleITK
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() == ".nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader
