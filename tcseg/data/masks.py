"""Masks of a folder of images, by the names of their images, in one of four forms.

Files with one value for each class, ``NAME.png``; a folder for each class with files that are white
where it is, ``CLASS/NAME.png``, where classes may overlap; DICOM segmentations, ``NAME.dcm``, whose
segments are the classes, alone or beside either of the others; annotation files, whose shapes are
drawn (`tcseg.io.shapes`).
"""

from __future__ import annotations

import abc
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tcseg.data.dataset import IGNORED
from tcseg.data.layout import OBJECT, Layout
from tcseg.data.legend import Legend, read_legend
from tcseg.data.nnunet import is_nnunet, nnunet_legend
from tcseg.errors import DataError, Problems, counted
from tcseg.io.dicom import read_segments, segment_labels, text_of
from tcseg.io.grids import check_grid, check_orientation
from tcseg.io.images import Picture, is_dicom
from tcseg.io.planes import Planes, greys_of_palette, is_smoothed, read_planes
from tcseg.io.shapes import read_drawing

UNNAMED = 8
"""So many values may be classes without a line of classes.txt; more are no masks perhaps."""


class Masks(abc.ABC):
    """Masks by image.

    Attributes
    ----------
    classes : tuple of str
        What is marked; one named `IGNORED`, in any case, is to be ignored.
    files : mapping of Path to Path
        The file of masks of each image that has one of all classes.
    values : tuple of int or None
        The number of each class, in files that hold one for each pixel.
    """

    classes: tuple[str, ...]
    files: Mapping[Path, Path]
    values: tuple[int, ...] | None = None

    @abc.abstractmethod
    def read(self, picture: Picture) -> NDArray[np.bool_] | None:
        """Return the masks (C, H, W) of an image, of its size; None if it has none."""

    @property
    def structures(self) -> dict[str, int | None]:
        """The classes that count, with their numbers in files that hold one for each pixel."""
        values = self.values or (None,) * len(self.classes)
        pairs = zip(self.classes, values, strict=True)
        return {name: value for name, value in pairs if name.casefold() != IGNORED}

    def marked(self, picture: Picture) -> NDArray[np.bool_] | None:
        """Return what `read` does, what is to be ignored, if anything is, last and alone."""
        masks = self.read(picture)
        places = [c for c, name in enumerate(self.classes) if name.casefold() == IGNORED]
        if masks is None or not places:
            return masks
        ignored = masks[places].any(axis=0, keepdims=True)
        return np.concatenate([np.delete(masks, places, axis=0) & ~ignored, ignored])

    def file_of(self, picture: Picture) -> Path | None:
        """Return the file of masks or shapes that an image has for itself or with others, if any.

        Files of single classes are none.
        """
        return self.files.get(picture.path)

    @abc.abstractmethod
    def forget(self) -> None:
        """Free the memory of the file that was read last."""


class _Valued(Masks):
    """One file for each image, a value for each class."""

    def __init__(
        self,
        files: dict[Path, Path],
        labels: Mapping[Path, Sequence[str]],
        legend: Legend,
        problems: Problems,
    ) -> None:
        self.files, names = files, legend.names
        found: dict[Path, set[int]] = {}
        greys: dict[Path, dict[int, int]] = {}
        for image, path in list(files.items()):
            try:
                if path in labels:
                    found[path] = {_value_of(label, names, path) for label in labels[path]}
                elif not legend.colours and (palette := greys_of_palette(path)) is not None:
                    greys[path] = palette
                else:
                    found[path] = _values_in(path, legend)
            except DataError as error:
                problems.add(str(error))
                del files[image]
        marked = set().union(*found.values())
        if not names and marked == {1, 255} and marked not in found.values():
            alone = {min(values): path for path, values in found.items() if values}
            raise DataError(
                f"folder: {alone[1]} marks with 1 what {alone[255].name} marks with 255; save all "
                "masks of a structure with one value, or name both in classes.txt if they are two"
            )
        seen = _are_as_seen(list(greys.values()), marked | set(names))
        for palette in greys.values():
            shown = np.array(list(palette.values() if seen else palette))
            marked.update(legend.values(shown).tolist())
        values = sorted((marked | set(names)) - {0})
        unnamed = [value for value in values if value not in names]
        if len(unnamed) > UNNAMED:
            raise DataError(
                f"folder: the masks have {len(unnamed)} values without a name "
                f"({', '.join(map(str, unnamed[:12]))} ...), more than {UNNAMED}; name them in "
                "classes.txt if they are so many classes, or save all masks with the same values, "
                "without smoothed edges"
            )
        self.values = tuple(values)
        self.classes = tuple(names.get(value, f"class {value}") for value in values)

        def planes(path: Path) -> Planes:
            if path in labels:
                return _label_planes(path, names)
            return legend.values(read_planes(path, seen and path in greys, legend.colours))

        self._planes = functools.lru_cache(maxsize=1)(planes)

    def read(self, picture: Picture) -> NDArray[np.bool_] | None:
        path = self.files.get(picture.path)
        if path is None:
            return None
        plane = _plane_of(self._planes(path), path, picture)
        return np.asarray(plane == np.array(self.values).reshape(-1, 1, 1))

    def forget(self) -> None:
        self._planes.cache_clear()


class _ByClass(Masks):
    """Masks of each class for themselves: in folders of files, or as segments of DICOM files."""

    def __init__(
        self,
        folders: Mapping[str, Mapping[Path, Sequence[Path]]],
        layout: Layout,
        labels: Mapping[Path, Sequence[str]],
    ) -> None:
        self.folders, self.files, self.drawn = folders, layout.files, layout.drawn.images
        segments = layout.drawn.labels.union(*labels.values())
        self.classes = tuple(dict.fromkeys([*folders, *sorted(segments)]))
        self._planes = functools.lru_cache(maxsize=max(8, len(folders)))(_white_planes)
        self._segments = functools.lru_cache(maxsize=1)(read_segments)

    def read(self, picture: Picture) -> NDArray[np.bool_] | None:
        paths = {c: self.folders[c].get(picture.path, ()) for c in self.folders}
        whole, drawn = self.files.get(picture.path), self.drawn.get(picture.path)
        if whole is None and drawn is None and not any(paths.values()):
            return None
        marked = {} if whole is None else _segments_of(self._segments(whole), whole, picture)
        for label, mask in {} if drawn is None else _drawn_on(picture, *drawn).items():
            marked[label] = marked.get(label, False) | mask
        nothing = np.zeros(picture.pixels.shape[1:], bool)
        planes = []
        for c in self.classes:
            plane = marked.get(c, nothing)  # the class may be in none
            for path in paths.get(c, ()):
                plane = plane | _plane_of(self._planes(path), path, picture).astype(bool)
            planes.append(plane)
        return np.stack(planes)

    def file_of(self, picture: Picture) -> Path | None:
        drawn, _ = self.drawn.get(picture.path, (None, ""))
        return self.files.get(picture.path, drawn)

    def forget(self) -> None:
        self._planes.cache_clear()
        self._segments.cache_clear()
        read_drawing.cache_clear()


def mask_reader(root: Path, layout: Layout, problems: Problems) -> Masks:
    """Return what reads the masks of a folder, in the form that they have.

    Raises
    ------
    DataError
        If none can be used, or they have many values without a name.
    """
    # The names of the segments of those files that are segmentations.
    segments = {path: segment_labels(path) for path in set(layout.files.values()) if is_dicom(path)}
    labels = {path: names for path, names in segments.items() if names is not None}
    plain = [path for path in layout.files.values() if path not in labels]
    legend = nnunet_legend(root) if is_nnunet(root) else read_legend(root / "classes.txt")
    if layout.by_class and plain:
        raise DataError(
            f"folder: {plain[0].parent} has both folders ({next(iter(layout.by_class))}) and masks "
            f"({plain[0].name}); use one folder for each class, or one file for each image"
        )
    if layout.drawn.images and plain:
        raise DataError(
            f"folder: there are both masks of values ({plain[0].name}) and shapes "
            f"({next(iter(layout.drawn.images.values()))[0].name}); use one of them, or folders "
            "of masks, one for each class"
        )
    if plain:
        known, folder = len(problems.found), plain[0].parent
        reader: Masks = _Valued(layout.files, labels, legend, problems)
        if not reader.structures:
            raise DataError(
                f"folder: no mask in {folder} can be used"
                if len(problems.found) > known
                else f"folder: all masks in {folder} are 0: no class is marked in any image"
            )
        return reader
    by_class = layout.by_class
    if legend.others:  # a name for objects
        by_class = {
            legend.names[legend.others] if c == OBJECT else c: by_class[c] for c in by_class
        }
    reader = _ByClass(by_class, layout, labels)
    if not reader.structures:
        raise DataError(f"folder: no shape in {root} marks anything in an image that is here")
    return reader


# ---- files ----------------------------------------------------------------------------------


def _values_in(path: Path, legend: Legend) -> set[int]:
    """Return the values in a mask, few but for those that have a name."""
    planes = read_planes(path, colours=legend.colours)
    values = set(np.unique(legend.values(planes)).tolist()) - {0}
    if len(unnamed := values - set(legend.names)) > UNNAMED:
        raise DataError(
            f"folder: {path} has {len(unnamed)} values beside 0 without a name, more than "
            f"{UNNAMED}; "
            + (
                "its edges are smoothed perhaps, or it is a JPEG: save it again without, or use "
                "one folder for each class"
                if is_smoothed(planes)
                else "name all in classes.txt, or some, and the others as one structure ('* cell', "
                "of single objects) or none ('* background')"
            )
        )
    return values


def _are_as_seen(palettes: Sequence[Mapping[int, int]], known: Collection[int]) -> bool:
    """Whether masks with palettes of greys hold these greys, and not the indices that they have.

    The indices count where other masks, or classes.txt, have them too, or, if there are no others,
    where each stands for one grey in all masks, and 0 for black.
    """
    pairs = {pair for palette in palettes for pair in palette.items()}
    if known:
        return not {index for index, _ in pairs} - {0} <= set(known) or (0, 255) in pairs
    return any(len(pairs) > len(set(side)) for side in zip(*pairs, strict=True)) or any(
        index == 0 and grey > 0 for index, grey in pairs
    )


def _value_of(label: str, names: Mapping[int, str], path: Path) -> int:
    """Return the value of a segment, which has the name of a class."""
    for value, name in names.items():
        if name == label:
            return value
    numbered = re.fullmatch(r"class (\d+)", label)
    if numbered:
        return int(numbered[1])
    raise DataError(
        f"folder: {path} has a segment {label!r}, which stands for no value; add the line "
        f"'VALUE {label}' to classes.txt"
    )


def _label_planes(path: Path, names: Mapping[int, str]) -> Planes:
    """Read a segmentation as a file of values."""
    by_image = read_segments(path)
    if len(by_image) > 1:
        raise DataError(
            f"folder: {path} is a segmentation of several files, beside masks of one value for "
            "each class; save these as DICOM segmentations too"
        )
    (segments,) = by_image.values()
    planes = np.zeros_like(next(iter(segments.values())), np.int64)
    for label, masks in segments.items():
        planes[masks] = _value_of(label, names, path)
    return planes


def _white_planes(path: Path) -> NDArray[np.bool_]:
    """Read a file that is white, or not 0, where a class is."""
    planes = read_planes(path, as_seen=True)
    # The outline of smoothed edges is at one half; of other values each that is not 0 is inside.
    return np.asarray(planes > (planes.max() / 2 if is_smoothed(planes) else 0))


def _plane_of(planes: NDArray[np.generic], path: Path, picture: Picture) -> NDArray[np.generic]:
    """Return the plane of a mask that belongs to an image, of the image's size."""
    number = picture.plane or 0
    if number >= len(planes) or (picture.plane is None and len(planes) > 1):
        more = "only one" if picture.plane is None else "more"
        raise DataError(
            f"folder: {path} has {counted(len(planes), 'plane')}, its image {picture.path} has "
            + more
            + "; channels are the last of four axes" * (picture.path.suffix == ".npy")
        )
    plane, shape = planes[number], picture.pixels.shape[1:]
    if number == 0:  # the planes of a file lie alike
        check_orientation(path, picture.path, plane.shape == shape and shape[0] != shape[1])
    if plane.shape != shape:
        raise DataError(
            f"folder: {path} has {plane.shape[1]} x {plane.shape[0]} pixels, its image "
            f"{picture.path.name} {shape[1]} x {shape[0]}; a mask must have the size of its image"
        )
    if number == 0:
        check_grid(path, picture.path, planes.shape[::-1])
    return np.asarray(plane)


def _drawn_on(picture: Picture, path: Path, name: str) -> dict[str, NDArray[np.bool_]]:
    """Return what a file of shapes marks in an image."""
    drawing = read_drawing(path)
    masks = {} if drawing is None else drawing.masks(name, picture)
    return {c: _plane_of(m[None], path, picture).astype(bool) for c, m in masks.items()}


def _segments_of(
    by_image: Mapping[str, Mapping[str, NDArray[np.bool_]]], path: Path, picture: Picture
) -> dict[str, NDArray[np.bool_]]:
    """Return what is marked in an image; segmentations may leave out planes with nothing."""
    number = picture.plane or 0
    image = text_of(picture.path, "SOPInstanceUID") if len(by_image) > 1 else next(iter(by_image))
    segments = by_image.get(image, {})
    return {
        label: _plane_of(masks, path, picture).astype(bool)
        for label, masks in segments.items()
        if number < len(masks)
    }
