"""Reading DICOM files: their frames as a reader would see them, and the size of a pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.errors import DataError, reason
from tcseg.extras import needs

__all__ = [
    "has_dicom_content",
    "read_dataset",
    "read_frames",
    "read_segments",
    "segment_labels",
]

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"

# Functional groups of enhanced files with attributes that other files have at the top.
MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")

Spacing = tuple[float, float]


def has_dicom_content(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or _is_bare(head)


def _is_bare(head: bytes) -> bool:
    """Whether a file has no preamble, as old ones: it begins with an element of group 8."""
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return head[:2] == b"\x08\0" and head[3:4] == b"\0" and (explicit or head[6:8] == b"\0\0")


def read_dataset(path: Path, **options: Any) -> Any:
    """Read a file as a pydicom data set, also one that lacks its preamble.

    The options are those of `pydicom.dcmread`.
    """
    with needs("dicom"):
        import pydicom
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with open(path, "rb") as file:
        bare = _is_bare(file.read(132))
    data = pydicom.dcmread(path, force=bare, **options)
    if bare and "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return data


def read_frames(path: Path) -> tuple[NDArray[Any], list[Spacing | None], bool]:
    """Read all frames of a file.

    Returns
    -------
    frames : array (frames, H, W) or (frames, H, W, 3)
        Bright where they are to be shown bright. uint8 where the file says which values to show as
        black and white (a window), or of other numbers.
    spacings : list of (float, float) or None
        Height and width of a pixel of each frame in mm.
    at_detector : bool
        Whether that is the size on the detector or film, where a projection shows things larger
        than they are.
    """
    with needs("dicom"):
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    data = read_dataset(path)
    count = int(data.get("NumberOfFrames", 1) or 1)
    frames = data.pixel_array if count > 1 else data.pixel_array[None]
    headers = [_header(data, number) for number in range(count)] if _is_enhanced(data) else [data]
    measured = [_spacing(header) for header in headers]
    spacings = [spacing for spacing, _ in measured] * (count // len(measured))
    at_detector = any(at for _, at in measured)
    photometric = str(data.get("PhotometricInterpretation"))
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(frames, data)
        wide = colours.dtype.itemsize > 1
        if wide and not data.original_encoding[1] and "RedPaletteColorLookupTableData" in data:
            colours = colours.byteswap()  # pydicom takes these tables for little-endian ones
        return (colours >> 8).astype(np.uint8) if wide else colours, spacings, at_detector
    if frames.ndim == 4:
        return frames, spacings, at_detector
    parts = zip(np.split(frames, len(headers)), headers, strict=True)
    values = [apply_modality_lut(part, header) for part, header in parts]
    windowed = [_windowed(part, header) for part, header in zip(values, headers, strict=True)]
    shown = [part for part in windowed if part is not None]
    stack: NDArray[Any] = np.concatenate(shown if len(shown) == len(values) else values)
    if photometric == "MONOCHROME1":
        stack = 255 - stack if stack.dtype == np.uint8 else -stack.astype(np.float64)
    return stack, spacings, at_detector


def _is_enhanced(data: Any) -> bool:
    return "SharedFunctionalGroupsSequence" in data or "PerFrameFunctionalGroupsSequence" in data


def _header(data: Any, frame: int) -> Any:
    """Return the attributes of a frame of an enhanced file, of its groups or of the file."""
    import pydicom

    header = pydicom.Dataset()
    header.update(data)
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for groups in (*shared, *(data.get("PerFrameFunctionalGroupsSequence") or [])[frame:][:1]):
        for macro in MACROS:
            for item in groups.get(macro) or []:
                header.update(item)
    return header


def _windowed(values: NDArray[Any], header: Any) -> NDArray[np.uint8] | None:
    """Apply the window that the file asks for: what a reader would see; None if it has none.

    As 8 bits then, whose ends stay the ends.
    """
    from pydicom.pixels.processing import apply_voi_lut

    if "VOILUTSequence" in header:
        seen = apply_voi_lut(values, header).astype(np.float64)
        levels = (seen - seen.min()) / max(seen.max() - seen.min(), 1e-12)
    elif "WindowWidth" in header and "WindowCenter" in header:
        centre, width = (_first(header[name].value) for name in ("WindowCenter", "WindowWidth"))
        if not width > 1:
            return None
        # DICOM PS3.3 C.11.2.1.2
        levels = (values.astype(np.float64) - (centre - 0.5)) / (width - 1) + 0.5
    else:
        return None
    return np.asarray(np.rint(levels.clip(0, 1) * 255), np.uint8)


def _first(value: Any) -> float:
    """Return the first of several windows, or the only one."""
    return float(value if isinstance(value, (int, float, str)) else np.atleast_1d(value)[0])


def _spacing(header: Any) -> tuple[Spacing | None, bool]:
    """Return the size of a pixel, and whether it is that on the detector."""
    in_patient, on_detector, on_film = (
        _pair(header.get(name))
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    )
    # Equal, they are the one on the detector: DICOM PS3.3 10.7.1.3.
    if in_patient is not None and in_patient != on_detector:
        return in_patient, False
    spacing = on_detector or on_film
    magnification = float(header.get("EstimatedRadiographicMagnificationFactor") or 0)
    if spacing is not None and magnification >= 1:
        return (spacing[0] / magnification, spacing[1] / magnification), False
    return spacing, spacing is not None


def _pair(value: Any) -> Spacing | None:
    if value is None or len(value) != 2 or not min(map(float, value)) > 0:
        return None
    return float(value[0]), float(value[1])


# ---- segmentations --------------------------------------------------------------------------


def segment_labels(path: Path) -> list[str] | None:
    """Return the names of the segments of a DICOM segmentation, None for another file."""
    with needs("dicom"):
        import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.get("SOPClassUID") != SEGMENTATION:
            return None
        return [str(segment.SegmentLabel) for segment in header.SegmentSequence]
    except Exception:  # what it is, is told on reading it
        return None


def read_segments(path: Path) -> dict[str, NDArray[np.bool_]]:
    """Read a DICOM segmentation of one file: (planes, H, W) for each segment, by its name.

    Raises
    ------
    DataError
        If it cannot be read, or belongs to several files.
    """
    try:
        data = read_dataset(path)
        frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
        half = int(data.get("MaximumFractionalValue", 1)) / 2
        groups = data.get("PerFrameFunctionalGroupsSequence") or [{}] * len(frames)
        shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
        placed = [_place_of(group, shared) for group in groups]
        labels = {int(s.SegmentNumber): str(s.SegmentLabel) for s in data.SegmentSequence}
    except Exception as error:  # decoders of damaged files raise almost anything
        raise DataError(f"folder: {path} cannot be read ({reason(error)})") from error
    if len({source for _, source, _ in placed} - {""}) > 1 or len(set(placed)) < len(placed):
        raise DataError(
            f"folder: {path} is a segmentation of several files, or does not say of which frames; "
            "save one for each file"
        )
    planes = 1 + max(plane for _, _, plane in placed)
    segments = {
        label: np.zeros((planes, data.Rows, data.Columns), bool) for label in labels.values()
    }
    for (number, _, plane), frame in zip(placed, frames, strict=True):
        segments[labels[number]][plane] |= frame > half
    return segments


def _place_of(group: Any, shared: Any) -> tuple[int, str, int]:
    """Return segment, source file and source frame (from 0) of a frame."""

    def first(sequence: str, *groups: Any) -> Any:
        return next((group.get(sequence)[0] for group in groups if group.get(sequence)), {})

    segment = first("SegmentIdentificationSequence", group, shared)
    source = first("SourceImageSequence", first("DerivationImageSequence", group, shared))
    frame = source.get("ReferencedFrameNumber") or 1
    number = int(segment.get("ReferencedSegmentNumber", 1))
    return number, str(source.get("ReferencedSOPInstanceUID", "")), int(frame) - 1
