"""Annotation files: shapes from COCO, LabelMe and CVAT, and DICOM RTSTRUCT.

Structures may overlap, and all shapes of a structure are merged; RTSTRUCT contours within others
are holes. Except in RTSTRUCT, the corner of the first pixel is at 0, and its centre at 0.5.
"""

from __future__ import annotations

import codecs
import functools
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from tcseg.errors import DataError, mask_file, reason
from tcseg.io.dicom import read_dataset, text_of
from tcseg.io.files import decode_json, read_whole
from tcseg.io.images import Picture, is_dicom
from tcseg.io.outlines import add_inside, add_runs, on_slice

DRAWN = (".json", ".xml")
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"

Mask = NDArray[np.bool_]
Contours = list[NDArray[np.float64]]


@dataclass
class Drawing:
    """What one annotation file holds.

    Under the name that the file gives to each image (in RTSTRUCT, its instance UID): its
    structures, and what adds them to a mask. `sizes` (height, width), 0 where not known, also has
    the images without a shape.
    """

    path: Path
    kind: str
    shapes: dict[str, list[tuple[str, Callable[[Mask, Path], None]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    contours: Contours = field(default_factory=list)

    def masks(self, name: str, picture: Picture) -> dict[str, Mask]:
        """Return the mask (H, W) of each structure that is annotated on an image.

        Raises
        ------
        DataError
            If the image has another size, or a shape has no interior.
        """
        height, width = picture.pixels.shape[1:]
        said = self.sizes.get(name, (0, 0))
        if all(said) and said != (height, width):
            raise DataError(
                f"folder: {self.path} annotates {said[1]} x {said[0]} pixels, {picture.path.name} "
                f"has {width} x {height} (width x height); annotate the image at its own size"
            )
        masks: dict[str, Mask] = defaultdict(lambda: np.zeros((height, width), bool))
        for label, add in self.shapes[name]:
            try:
                add(masks[label], picture.path)
            except Exception as error:  # anything may stand in place of a shape
                raise DataError(
                    f"folder: {self.path}: {label!r} on {name} cannot be read ({reason(error)})"
                ) from error
        return masks


@functools.lru_cache(maxsize=1)
def read_drawing(path: Path) -> Drawing | None:
    """Read an annotation file; None if it is not one, DataError if it cannot be read."""
    with mask_file(path):
        if path.suffix.lower() == ".json":
            return _of_json(path)
        if path.suffix.lower() == ".xml":
            return _of_cvat(path)
        if is_dicom(path) and text_of(path, "SOPClassUID") == STRUCTURE_SET:
            return _of_structures(path)
    return None


def _polygons(mask: Mask, *parts: Any) -> None:
    for part in parts:
        add_inside(mask, [np.asarray(part, float).reshape(-1, 2) - 0.5])


def _box(left: float, top: float, right: float, bottom: float) -> Any:
    return (left, top), (right, top), (right, bottom), (left, bottom)


def _ellipse(x: float, y: float, a: float, b: float) -> Any:
    angles = np.arange(360) * np.pi / 180
    return np.stack([x + a * np.cos(angles), y + b * np.sin(angles)], axis=1)


# ---- COCO and LabelMe -----------------------------------------------------------------------


class _Listed(Struct):
    """An image or a category of COCO."""

    id: int | str
    file_name: str = ""
    name: str = ""
    height: int | None = None
    width: int | None = None


class _Annotation(Struct):
    image_id: int | str
    category_id: int | str
    segmentation: Raw = Raw(b"null")


class _Coco(Struct):
    images: list[_Listed]
    annotations: list[_Annotation]
    categories: list[_Listed]


class _Runs(Struct):
    size: tuple[int, int]
    counts: list[int] | str


class _Shape(Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = None


class _LabelMe(Struct, rename="camel"):
    shapes: list[_Shape]
    image_height: int | None = None
    image_width: int | None = None


def _of_json(path: Path) -> Drawing | None:
    content = read_whole(path).removeprefix(codecs.BOM_UTF8)
    if b'"annotations"' in content and b'"categories"' in content:
        drawing, coco = Drawing(path, "COCO"), decode_json(content, _Coco)
        drawing.sizes = {i.file_name: (i.height or 0, i.width or 0) for i in coco.images}
        names = {image.id: image.file_name for image in coco.images}
        labels = {category.id: category.name for category in coco.categories}
        whole = len(names) + len(labels) == len(coco.images) + len(coco.categories)
        if not whole or "" in (*names.values(), *labels.values()):
            raise ValueError("images and categories must have names, and each an id to itself")
        for one in coco.annotations:
            if one.image_id not in names or one.category_id not in labels:
                where = f"image {one.image_id} and category {one.category_id}"
                raise ValueError(f"an annotation refers to {where}, which are not both listed")
            add = partial(_add_coco, one.segmentation)
            drawing.shapes[names[one.image_id]].append((labels[one.category_id], add))
        return drawing
    if b'"shapes"' in content:
        drawing, file = Drawing(path, "LabelMe"), decode_json(content, _LabelMe)
        drawing.sizes[path.name] = (file.image_height or 0, file.image_width or 0)
        drawing.shapes[path.name] = [(s.label, partial(_add_labelme, s)) for s in file.shapes]
        return drawing
    return None


def _add_coco(segmentation: Raw, mask: Mask, image: Path) -> None:
    found = msgspec.json.decode(segmentation, type=list[list[float]] | _Runs | None)
    if not found:
        raise ValueError("it has no segmentation; a box alone is not a mask")
    if not isinstance(found, _Runs):
        return _polygons(mask, *found)
    if found.size != mask.shape:
        raise ValueError(f"its size is {found.size}, not {mask.shape}")
    counts = found.counts
    add_runs(mask.T, _counts(counts) if isinstance(counts, str) else counts)


def _counts(text: str) -> list[int]:
    """Return the runs of COCO's text: five bits a letter, from the fourth run on differences."""
    counts: list[int] = []
    value = bits = 0
    for code in text.encode():
        if not 48 <= code < 112 or bits > 60:
            raise ValueError("it is not valid COCO run-length encoding")
        value |= (code - 48 & 31) << bits
        bits += 5
        if not code - 48 & 32:
            value -= (code - 48 & 16) << bits - 4
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    return counts


def _add_labelme(shape: _Shape, mask: Mask, image: Path) -> None:
    points: Any = shape.points
    if shape.shape_type == "rectangle":
        points = _box(*points[0], *points[1])
    elif shape.shape_type == "circle":
        (x, y), edge = points
        radius = float(np.hypot(edge[0] - x, edge[1] - y))
        points = _ellipse(x, y, radius, radius)
    elif shape.shape_type not in ("polygon", None):
        raise ValueError(f"shape {shape.shape_type!r} is not supported; use a polygon")
    _polygons(mask, points)


# ---- CVAT -----------------------------------------------------------------------------------


def _of_cvat(path: Path) -> Drawing | None:
    content = read_whole(path)
    if b"<annotations" not in content:
        return None
    if b"<!ENTITY" in content:  # which could swell, or read other files
        raise ValueError("it defines entities, which CVAT does not")
    drawing = Drawing(path, "CVAT")
    for _, element in ElementTree.iterparse(io.BytesIO(content)):
        if element.tag == "track":
            raise ValueError("it annotates a video; export as 'CVAT for images'")
        if element.tag == "image":
            name = element.attrib["name"]
            drawing.sizes[name] = (int(element.get("height", 0)), int(element.get("width", 0)))
            for part in element:
                if part.tag != "tag":
                    add = partial(_add_cvat, part.tag, part.attrib)
                    drawing.shapes[name].append((part.attrib["label"], add))
            element.clear()
    return drawing


def _add_cvat(kind: str, attributes: dict[str, str], mask: Mask, image: Path) -> None:
    def numbers(*names: str) -> list[float]:
        return [float(attributes.get(name, "nan")) for name in names]

    if float(attributes.get("rotation", 0)):
        raise ValueError(f"a rotated {kind} is not supported; use a polygon")
    if kind == "polygon":
        _polygons(mask, [point.split(",") for point in attributes.get("points", "").split(";")])
    elif kind == "box":
        _polygons(mask, _box(*numbers("xtl", "ytl", "xbr", "ybr")))
    elif kind == "ellipse":
        _polygons(mask, _ellipse(*numbers("cx", "cy", "rx", "ry")))
    elif kind == "mask":
        top, left, height, width = map(int, numbers("top", "left", "height", "width"))
        if min(top, left) < 0 or top + height > mask.shape[0] or left + width > mask.shape[1]:
            raise ValueError("it extends beyond the image")
        part = mask[top : top + height, left : left + width]
        add_runs(part, list(map(int, attributes.get("rle", "").split(","))))
    else:
        raise ValueError(f"shape {kind!r} is not supported; use a polygon")


# ---- RTSTRUCT -------------------------------------------------------------------------------


def _of_structures(path: Path) -> Drawing:
    """Read a structure set: contours are filled on the slices that they lie in."""
    data, drawing = read_dataset(path), Drawing(path, "RTSTRUCT")
    slices: set[str] = set()
    for frame in data.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.RTReferencedSeriesSequence:
                images = series.get("ContourImageSequence") or []
                slices |= {str(image.ReferencedSOPInstanceUID) for image in images}
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in data.StructureSetROISequence}
    structures: list[tuple[str, Contours]] = []
    for structure in data.get("ROIContourSequence") or []:
        name = names[int(structure.ReferencedROINumber)]
        contours: Contours = []
        for contour in structure.get("ContourSequence") or []:
            kind = str(contour.ContourGeometricType)
            if kind == "POINT":  # a marker
                continue
            if not kind.startswith("CLOSED"):
                raise ValueError(f"{name!r} has a contour of type {kind}, which is not closed")
            images = contour.get("ContourImageSequence") or []
            slices |= {str(image.ReferencedSOPInstanceUID) for image in images}
            # As text: pydicom makes an object of each number.
            numbers = np.array(contour.get_item("ContourData").value.split(b"\\"), float)
            contours.append(numbers.reshape(-1, 3))
        structures += [(name, contours)] if contours else []
    drawing.contours = [contour for _, contours in structures for contour in contours]
    for slice_ in slices:
        drawing.shapes[slice_] = [(name, partial(_add_contours, c)) for name, c in structures]
    return drawing


def _add_contours(contours: Sequence[NDArray[np.float64]], mask: Mask, image: Path) -> None:
    add_inside(mask, list(on_slice(contours, image).values()))
