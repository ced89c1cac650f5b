"""Reading DICOM files: their frames as a reader would see them, and the size of a pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.errors import DataError, mask_file
from tcseg.extras import needs
from tcseg.io.grey import tails
from tcseg.io.limits import check_inflated, check_pixels
from tcseg.io.windows import Limits

DEFLATED = b"1.2.840.10008.1.2.1.99"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"

# Functional groups of enhanced files with attributes that other files have at the top.
MACROS = (
    *("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence"),
    *("PlanePositionSequence", "PlaneOrientationSequence"),
)

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
        from pydicom.filereader import data_element_generator
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with open(path, "rb") as file:
        head = file.read(132)
        bare = _is_bare(head)
        if head[128:] == b"DICM":
            meta = data_element_generator(file, False, True, lambda tag, *_: tag.group != 2)
            syntaxes = [element.value or b"" for element in meta if element.tag == 0x00020010]
            if any(DEFLATED in syntax for syntax in syntaxes):
                check_inflated(path, file)
    data = pydicom.dcmread(path, force=bare, **options)
    if not options.get("stop_before_pixels"):
        names = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")
        check_pixels(path, (int(data.get(name, 1) or 1) for name in names))
    if bare and "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return data


@dataclass(frozen=True)
class Frames:
    """The frames of a file.

    Attributes
    ----------
    values : list of array (H, W) or (H, W, 3)
        In the units of the file, such as Hounsfield's.
    windows : list of (float, float) or None
        Values of each frame that are to be shown as black and white, where the file says.
    inverted : bool
        Whether black and white are to be exchanged.
    bits : int
        How many a value is stored in.
    spacings : list of (float, float) or None
        Height and width of a pixel of each frame in mm.
    at_detector : bool
        Whether that is the size on the detector or film, where a projection shows things larger
        than they are.
    slice_spacing : float or None
        Distance in mm from frame to frame, where the file says.
    """

    values: list[NDArray[Any]]
    windows: list[Limits | None]
    inverted: bool
    bits: int
    spacings: list[Spacing | None]
    at_detector: bool
    slice_spacing: float | None


def limits_of(files: Sequence[Frames]) -> Limits | None:
    """Return what is black and white in all frames of some files, as one volume.

    That is the median of their windows, or, unless all have one, the range of all values. None if
    these have 8 bits, which are to stay as they are.
    """
    windows = [window for frames in files for window in frames.windows]
    known = [window for window in windows if window is not None]
    if len(known) == len(windows):
        low, high = np.median(known, axis=0).tolist()
        return low, high
    values = [part for frames in files for part in frames.values]
    return None if {part.dtype for part in values} == {np.dtype(np.uint8)} else tails(values)


def read_frames(path: Path) -> Frames:
    """Read all frames of a file."""
    with needs("dicom"):
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    data = read_dataset(path)
    headers = headers_of(data)
    count = len(headers)
    frames = data.pixel_array if count > 1 else data.pixel_array[None]
    measured = [_spacing(header) for header in headers]
    spacings = [spacing for spacing, _ in measured]
    where = any(at for _, at in measured), _slice_spacing(headers)
    photometric = str(data.get("PhotometricInterpretation"))
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(frames, data)
        wide = colours.dtype.itemsize > 1
        if wide and not data.original_encoding[1] and "RedPaletteColorLookupTableData" in data:
            colours = colours.byteswap()  # pydicom takes these tables for little-endian ones
        frames = (colours >> 8).astype(np.uint8) if wide else colours
    if frames.ndim == 4:
        return Frames(list(frames), [None] * count, False, 8, spacings, *where)
    values, windows = [], []
    for frame, header in zip(frames, headers, strict=True):
        value, window = _windowed(apply_modality_lut(frame, header), header)
        # Volumes are large; as float32 all values of 24 bits are exact.
        values.append(value.astype(np.float32) if value.dtype == np.float64 else value)
        windows.append(window)
    inverted, bits = photometric == "MONOCHROME1", int(data.get("BitsStored", 16))
    return Frames(values, windows, inverted, bits, spacings, *where)


def frame_spacing(path: Path) -> tuple[Spacing | None, float | None]:
    """Return height and width of a pixel and the distance of frames in mm, where a header says."""
    headers = headers_of(read_dataset(path, stop_before_pixels=True))
    return _spacing(headers[0])[0], _slice_spacing(headers)


def headers_of(data: Any) -> list[Any]:
    """Return the attributes of each frame."""
    count = int(data.get("NumberOfFrames", 1) or 1)
    if "SharedFunctionalGroupsSequence" in data or "PerFrameFunctionalGroupsSequence" in data:
        return [_header(data, number) for number in range(count)]
    return [data] * count


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


def _windowed(values: NDArray[Any], header: Any) -> tuple[NDArray[Any], Limits | None]:
    """Return values, and the window that the file asks for: what a reader would see."""
    from pydicom.pixels.processing import apply_voi_lut

    if "VOILUTSequence" in header:
        seen = apply_voi_lut(values, header)
        return seen, (float(seen.min()), float(seen.max()))
    if "WindowWidth" in header and "WindowCenter" in header:
        centre, width = (_first(header[name].value) for name in ("WindowCenter", "WindowWidth"))
        if width > 1:  # DICOM PS3.3 C.11.2.1.2
            return values, (centre - width / 2, centre + width / 2 - 1)
    return values, None


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


def even_step(steps: NDArray[np.float64]) -> float | None:
    """Return the step from plane to plane, None if they are not alike, to a hundredth."""
    even = np.ptp(steps) <= 0.01 * abs(steps[0])
    return abs(float(steps.mean())) if even and steps[0] else None


def _slice_spacing(headers: Sequence[Any]) -> float | None:
    """Return the distance of frames: of evenly spaced ones in the patient, else as the file has it.

    That is not their thickness: slices overlap, or leave gaps.
    """
    positions = [header.get("ImagePositionPatient") for header in headers]
    axes = headers[0].get("ImageOrientationPatient")
    if len(headers) > 1 and axes is not None and None not in positions:
        normal = np.cross(*np.array(axes, float).reshape(2, 3))
        steps = np.diff(np.array(positions, float) @ normal)
        if steps.any():  # all at one place are frames of an older file
            return even_step(steps)
    spacing = float(headers[0].get("SpacingBetweenSlices") or 0)
    return abs(spacing) or None


def _pair(value: Any) -> Spacing | None:
    if value is None or len(value) != 2 or not min(map(float, value)) > 0:
        return None
    return float(value[0]), float(value[1])


# ---- segmentations --------------------------------------------------------------------------


def segment_labels(path: Path) -> list[str] | None:
    """Return the names of the segments of a DICOM segmentation, None for another file."""
    try:
        header = read_dataset(path, stop_before_pixels=True)
        if header.get("SOPClassUID") != SEGMENTATION:
            return None
        return [str(segment.SegmentLabel) for segment in header.SegmentSequence]
    except Exception:  # what it is, is told on reading it
        return None


def segmented_files(path: Path) -> list[str]:
    """Return the instances of the files that a DICOM segmentation is of; none of another file."""
    try:
        header = read_dataset(path, stop_before_pixels=True)
        return _sources(header) if header.get("SOPClassUID") == SEGMENTATION else []
    except Exception:  # what it is, is told on reading it
        return []


def text_of(path: Path, name: str) -> str:
    """Return an attribute of a DICOM file, an empty text if it has none."""
    try:
        header = read_dataset(path, stop_before_pixels=True, specific_tags=[name])
        return str(header.get(name, ""))
    except Exception:  # what is wrong is told on reading it
        return ""


def _sources(header: Any) -> list[str]:
    """Return the instances that a segmentation is of, those without a segment too."""
    series = header.get("ReferencedSeriesSequence") or []
    listed = [str(i.ReferencedSOPInstanceUID) for s in series for i in s.ReferencedInstanceSequence]
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    named = (_place_of(group, shared)[1] for group in groups)
    return list(dict.fromkeys(filter(None, [*listed, *named])))


def read_segments(path: Path) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Read a DICOM segmentation: by image file, (planes, H, W) for each segment, by its name.

    Image files are named by their instance; one that nothing is marked in has no segments.

    Raises
    ------
    DataError
        If it cannot be read, or does not say what its frames are of.
    """
    with mask_file(path):
        data = read_dataset(path)
        frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
        half = int(data.get("MaximumFractionalValue", 1)) / 2
        groups = data.get("PerFrameFunctionalGroupsSequence") or [{}] * len(frames)
        shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
        placed = [_place_of(group, shared) for group in groups]
        labels = {int(s.SegmentNumber): str(s.SegmentLabel) for s in data.SegmentSequence}
        images = _sources(data)
    if len(images) == 1:  # frames need not name it
        placed = [(number, images[0], plane) for number, _, plane in placed]
    nameless = len(images) > 1 and "" in {source for _, source, _ in placed}
    if len(set(placed)) < len(placed) or nameless:
        raise DataError(
            f"folder: {path} does not say which images, or frames, its frames are of; save a "
            "segmentation for each image, under its name"
        )
    planes = Counter[str]()
    for _, source, plane in placed:
        planes[source] = max(planes[source], plane + 1)
    segments: dict[str, dict[str, NDArray[np.bool_]]] = {image: {} for image in images}
    for source, count in planes.items():
        shape = (count, data.Rows, data.Columns)
        segments[source] = {label: np.zeros(shape, bool) for label in labels.values()}
    for (number, source, plane), frame in zip(placed, frames, strict=True):
        segments[source][labels[number]][plane] |= frame > half
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
