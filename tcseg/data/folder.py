"""A folder of the user's images: ``images/`` and ``masks/``, matched by name.

Masks are either files that hold one value per class (0 is background), ``masks/NAME.png``, or one
folder for each class with files that are white (or not 0) where it is, ``masks/CLASS/NAME.png``,
or DICOM segmentations; then classes may overlap. Images without a mask are unlabelled. A file
``classes.txt`` in the folder may name the values, a line each: ``1 liver``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tcseg.data.dataset import Dataset, Original
from tcseg.data.layout import Layout, find_layout
from tcseg.data.masks import Masks, mask_reader
from tcseg.data.nnunet import is_nnunet, nnunet_layout
from tcseg.data.packing import pack_masks
from tcseg.data.stored import Rows, Source
from tcseg.data.volumes import Volumes, name_of, voxel_of
from tcseg.errors import DataError, Problems, counted
from tcseg.io.grey import as_levels
from tcseg.io.grids import orientation, turned
from tcseg.io.images import Picture, is_dicom, is_image, suffix
from tcseg.io.placement import Pixels, Placement, lost_classes
from tcseg.io.series import Collection
from tcseg.io.sizes import ORIGINAL, Size, Spacing, resolution
from tcseg.sheet import track


def load(
    root: str | Path,
    size: Size,
    problems: Problems | None = None,
    group: str | None = None,
    mask_pattern: str | None = None,
    *,
    window: str | None = None,
    scale: str = "volume",
    dimensions: int = 2,
    spacing: str | None = None,
    into: tuple[Rows, Rows] | None = None,
) -> Dataset:
    """Read every image, and the masks that there are.

    Parameters are those of `tcseg.data.load_dataset`, and `into`: what takes images and masks; if
    not given they are kept in memory.

    Raises
    ------
    DataError
        If something is missing, does not fit or does not decode, and problems are not collected.
    ValueError
        If `spacing` is none, or volumes take more memory than there is.
    """
    problems = Problems() if problems is None else problems
    root = Path(root).expanduser()
    layout = find(root, mask_pattern, problems)
    if dimensions == 2:  # volumes are turned
        _check_axes(layout.images.values(), problems)
    masks = mask_reader(root, layout, problems)
    collection = Collection(
        layout.images, group, problems, window=window, scale=scale, channels=layout.channels
    )
    volumes = Volumes(collection, spacing, size) if dimensions == 3 else None
    read = _Read(masks, size, scale, volumes, into is None, *(into or ()))
    parts = collection.files if volumes is None else volumes.files
    for path in track(parts, "Reading images"):
        try:
            if volumes is None:
                for picture in collection.read(path):
                    read.add([picture], picture.pixels, picture.spacing)
            else:
                read.add(*volumes.read(path))
        except DataError as error:
            problems.add(str(error))
    masks.forget()
    read.check(root, problems)
    return Dataset(
        name="folder",
        classes=read.classes,
        grouped_by=collection.grouped_by,
        files=max([1, *map(len, layout.channels.values())]),
        scale=scale,
        values=tuple(filter(None, masks.structures.values())) or None,
        ignores=len(read.classes) < len(masks.classes),
        **read.fields(root),
    )


@dataclass
class _Read:
    """What is read, image by image; masks of each as bits or numbers.

    Attributes
    ----------
    in_memory : bool
        Whether all images are to be kept there.
    planes : list of list of Picture
        Those of each image, without their pixels: one, or all of a volume.
    """

    masks: Masks
    size: Size
    scale: str
    volumes: Volumes | None
    in_memory: bool
    pixels: Rows = field(default_factory=Rows)
    packed: Rows = field(default_factory=Rows)
    planes: list[list[Picture]] = field(default_factory=list)
    extents: list[tuple[int, ...]] = field(default_factory=list)
    spacings: list[Spacing | None] = field(default_factory=list)
    annotated: list[int] = field(default_factory=list)
    marked: list[list[int]] = field(default_factory=list)
    vanished: dict[int, list[str]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.masks.structures)

    def add(self, planes: Sequence[Picture], pixels: Pixels, spacing: Spacing | None) -> None:
        """Add an image (C, *shape); DataError if its channels or masks do not fit."""
        _check_channels(planes[0], len(pixels), self.pixels, self.planes)
        wanted, axes = None if self.volumes is None else self.volumes.wanted, pixels.ndim - 1
        place = Placement.of(pixels.shape[1:], self.size, spacing, wanted)
        if self.volumes is not None and self.in_memory:
            self.volumes.check_memory(place.size, len(pixels))
        whole, exclusive = _whole(self.masks, planes), self.masks.values is not None
        bits = 8 if self.scale == "image" else max(plane.bits for plane in planes)
        self.pixels.append(as_levels(place.fit(pixels), np.uint8 if bits == 8 else np.uint16))
        if whole is None:
            unmarked = np.zeros((len(self.masks.classes), *[1] * axes), bool)
            packed = pack_masks(unmarked, exclusive, axes).expand(-1, *place.size)
            self.packed.append(packed.numpy())
            self.marked.append([])
        else:
            fitted = place.fit_masks(whole, exclusive)
            self.packed.append(pack_masks(fitted, exclusive, axes).numpy())
            self.marked.append([c for c in range(len(self.classes)) if fitted[c].any()])
            if lost := lost_classes(whole, fitted, self.classes):
                self.vanished[len(self.planes)] = lost
            self.annotated.append(len(self.planes))
        self.extents.append(place.size)
        self.spacings.append(place.spacing(spacing))
        shape = (0, *planes[0].pixels.shape[1:])
        self.planes.append([replace(plane, pixels=np.empty(shape, np.float32)) for plane in planes])

    def check(self, root: Path, problems: Problems) -> None:
        """Report what no image shows; DataError if there is no image."""
        if not self.planes:
            raise DataError(f"folder: no image in {root / 'images'} can be read")
        given = self.volumes is not None and self.size == ORIGINAL
        voxel = None if self.volumes is None else self.volumes.wanted
        remedy = "a smaller `spacing`" if given else "a larger `size`"
        marked = set().union(*self.marked)
        for number, name in enumerate(self.classes):
            if number not in marked:
                problems.add(
                    f"folder: {name!r} is marked in no image "
                    f"{resolution(self.size, len(self.extents[0]), voxel)}; mark it in one at "
                    f"least, take it out of masks/ and classes.txt, or use {remedy}"
                )

    def fields(self, root: Path) -> dict[str, Any]:
        """Return what a `Dataset` holds of each image."""
        flat = self.volumes is None
        first = [planes[0] for planes in self.planes]
        names = [picture.name if flat else name_of(picture) for picture in first]
        return {
            "ids": names,
            "images": self.pixels.finish(),
            "masks": self.packed.finish(),
            "extents": torch.tensor(self.extents) if self.size == ORIGINAL else None,
            "spacings": self.spacings,
            "groups": [p.group or name for p, name in zip(first, names, strict=True)],
            "volumes": [picture.volume if flat else None for picture in first],
            "resampled": None if self.volumes is None else self.volumes.wanted,
            "slice_spacings": [picture.slice_spacing for picture in first] if flat else None,
            "annotated": self.annotated,
            "vanished": self.vanished,
            "marked": self.marked,
            "sources": [[_source(plane, root) for plane in planes] for planes in self.planes],
            "originals": partial(_original, lambda: self.masks, self.planes, not flat),
        }


def originals(
    sources: Sequence[Sequence[Source]], root: Path, mask_pattern: str | None, joined: bool
) -> Callable[[int], Original]:
    """Return what reads the masks of images again, looking for the files only then."""

    @cache
    def masks() -> Masks:
        problems = Problems()
        return mask_reader(root, find(root, mask_pattern, problems), problems)

    images = [[_picture(source, root) for source in planes] for planes in sources]
    return partial(_original, masks, images, joined)


def _source(plane: Picture, root: Path) -> Source:
    path, shape = str(plane.path.relative_to(root)), plane.pixels.shape[1:]
    return Source(plane.name, path, plane.plane, shape, plane.spacing, plane.slice_spacing)


def _picture(source: Source, root: Path) -> Picture:
    """Return a plane without its pixels."""
    name, path, plane, shape, spacing, distance = source
    nothing = np.empty((0, *shape), np.float32)
    return Picture(name, nothing, spacing, root / path, plane, slice_spacing=distance)


def _original(
    masks: Callable[[], Masks], images: Sequence[Sequence[Picture]], joined: bool, index: int
) -> Original:
    """Read the masks of an image again, as they are in their files."""
    planes = images[index]
    whole = _whole(masks(), planes)
    if whole is None:
        raise DataError(f"folder: {planes[0].name} has no masks")
    return whole, voxel_of(planes[0]) if joined else planes[0].spacing


def _whole(masks: Masks, planes: Sequence[Picture]) -> NDArray[np.bool_] | None:
    """Read the masks of an image (C, H, W), or of a volume (C, D, H, W), turned as it, if any.

    What one DICOM file marks in a series is all that is there; it may leave planes out.
    """
    marked = [masks.marked(plane) for plane in planes]
    known = [part for part in marked if part is not None]
    if not known:
        return None
    if len(planes) == 1:
        return known[0]
    bare = [plane for plane, part in zip(planes, marked, strict=True) if part is None]
    files = {masks.file_of(plane) for plane in planes} - {None}
    if bare and not (len(files) == 1 and all(path and is_dicom(path) for path in files)):
        raise DataError(
            f"folder: {len(known)} of {len(planes)} planes of the volume of {planes[0].path} have "
            f"masks ({bare[0].path.name} has none); give each plane a mask, which may be empty, or "
            "none of them"
        )
    nothing = np.zeros_like(known[0])
    whole = np.stack([nothing if part is None else part for part in marked], axis=1)
    return turned(whole, planes[0].path)


def _check_channels(
    picture: Picture, count: int, pixels: Rows, images: Sequence[Sequence[Picture]]
) -> None:
    for (known, *_), first in zip(pixels.shapes[:1], images, strict=False):
        if count != known and {count, known} != {1, 3}:
            raise DataError(
                f"folder: {picture.path} has {counted(count, 'channel')}, {first[0].path.name} "
                f"has {known}; all images must have the same, except grey beside colour"
            )


def formats(root: str | Path, mask_pattern: str | None = None) -> dict[str, Counter[str]]:
    """Count the image files by format, what in their folder is none, and how masks are named."""
    root = Path(root).expanduser()
    layout = find(root, mask_pattern, Problems(collect=True))
    files = layout.images.values()
    counts = {"images": Counter(suffix(path).lstrip(".").upper() or "DICOM" for path in files)}
    if axes := _axes(files):
        counts["axes in the patient"] = Counter({code: len(part) for code, part in axes.items()})
    united = {
        label: sum(len(files) > 1 for files in part.values())
        for label, part in layout.by_class.items()
    }
    if any(united.values()):
        counts["images with several files of"] = Counter(united)
    if layout.naming:
        counts["masks, by name"] = Counter(layout.naming)
    folder = root / "images"
    content = folder.iterdir() if folder.is_dir() else filter(Path.is_file, root.rglob("*"))
    known = {"classes.txt", *(path.name for path, _ in layout.drawn.images.values())}
    seen = {folder for path in files for folder in path.parents}
    content = (path for path in content if path.name[0] != "." and path.name not in known)
    others = [path for path in content if path not in seen and not is_image(path)]
    if others:
        counts["not read, as no images"] = Counter(path.suffix or path.name for path in others)
    return counts


def find(root: Path, mask_pattern: str | None, problems: Problems) -> Layout:
    """Find images and masks, in any layout."""
    if is_nnunet(root):
        return nnunet_layout(root, problems)
    return find_layout(root, mask_pattern, problems)


def _axes(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Group volumes by the way that their axes run in the patient."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        if (code := orientation(path)) is not None:
            groups.setdefault(code, []).append(path)
    return groups


def _check_axes(files: Iterable[Path], problems: Problems) -> None:
    axes = _axes(files)
    usual = max(axes, key=lambda code: len(axes[code]), default="")
    either_way = str.maketrans("LPI", "RAS")
    for code, part in axes.items():
        if code.translate(either_way) != usual.translate(either_way):
            names = problems.listed([path.name for path in part])
            problems.add(
                f"folder: the axes of {counted(len(part), 'volume')} ({names}) run {code} in the "
                f"patient, those of {axes[usual][0].name} {usual}: their planes are other cuts; "
                "save all in one orientation (nibabel.as_closest_canonical)"
            )
