"""A folder of the user's images: ``images/`` and ``masks/``, matched by name.

Masks are either files that hold one value per class (0 is background), ``masks/NAME.png``, or one
folder for each class with files that are white (or not 0) where it is, ``masks/CLASS/NAME.png``,
or DICOM segmentations; then classes may overlap. Images without a mask are unlabelled. A file
``classes.txt`` in the folder may name the values, a line each: ``1 liver``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from tcseg.data.dataset import Dataset, Original, lost_classes, pack_masks
from tcseg.data.layout import Layout, find_layout
from tcseg.data.masks import Masks, mask_reader
from tcseg.data.nnunet import is_nnunet, nnunet_layout
from tcseg.errors import DataError, Problems
from tcseg.io.grey import as_levels
from tcseg.io.images import Picture, is_image, orientation, suffix
from tcseg.io.placement import Placement
from tcseg.io.series import Collection
from tcseg.io.sizes import ORIGINAL, Size, written


def load(
    root: str | Path,
    size: Size,
    problems: Problems | None = None,
    group: str | None = None,
    mask_pattern: str | None = None,
    *,
    window: str | None = None,
    scale: str = "volume",
) -> Dataset:
    """Read every image, and the masks that there are.

    Parameters
    ----------
    root
        The folder.
    size
        Height and width to fit images into, in pixels, their proportions kept; or ``"original"``.
    problems
        Where to collect what is wrong; images that it concerns are left out.
    group
        Regular expression that finds the patient in the names of images; see `Collection`.
    mask_pattern
        How masks are named; see `find_layout`.
    window, scale
        What is black and white; see `Collection`. Images of scale ``"image"`` have 8 bits.

    Raises
    ------
    DataError
        If something is missing, does not fit or does not decode, and problems are not collected.
    """
    problems = Problems() if problems is None else problems
    root = Path(root).expanduser()
    layout = find(root, mask_pattern, problems)
    _check_axes(layout.images.values(), problems)
    masks = mask_reader(root, layout, problems)
    classes, exclusive = tuple(masks.structures), masks.values is not None
    collection = Collection(
        layout.images, group, problems, window=window, scale=scale, channels=layout.channels
    )

    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    pictures: list[Picture] = []  # without their pixels
    pixels: list[NDArray[np.unsignedinteger]] = []
    packed: list[torch.Tensor] = []
    unmarked = pack_masks(np.zeros((len(masks.classes), 1, 1), bool), exclusive)
    marked = np.zeros(len(classes), bool)
    annotated: list[int] = []
    spacings: list[tuple[float, float] | None] = []
    vanished: dict[int, list[str]] = {}
    for path in track(collection.files, "Reading images", console=console, transient=True):
        try:
            for picture in collection.read(path):
                _check_channels(picture, pixels, pictures)
                shape = (picture.pixels.shape[1], picture.pixels.shape[2])
                place = Placement.of(shape, size)
                whole = masks.marked(picture)
                kind = np.uint8 if picture.bits == 8 or scale == "image" else np.uint16
                pixels.append(as_levels(place.fit(picture.pixels), kind))
                if whole is None:
                    packed.append(unmarked.expand(-1, *place.size))
                else:
                    fitted = place.fit_masks(whole, exclusive)
                    packed.append(pack_masks(fitted, exclusive))
                    marked |= fitted[: len(marked)].any(axis=(1, 2))
                    if lost := lost_classes(whole, fitted, classes):
                        vanished[len(pictures)] = lost
                    annotated.append(len(pictures))
                spacings.append(place.spacing(picture.spacing))
                pictures.append(replace(picture, pixels=np.empty((0, *shape), np.float32)))
        except DataError as error:
            problems.add(str(error))
    masks.forget()
    if not pictures:
        raise DataError(f"folder: no image in {root / 'images'} can be read")
    for name, found in zip(classes, marked, strict=True):
        if not found:
            problems.add(
                f"folder: {name!r} is marked in no image at {written(size)}; mark it in one at "
                "least, take it out of masks/ and classes.txt, or use a larger `size`"
            )
    extents = torch.tensor([picture.pixels.shape[1:] for picture in pictures])
    return Dataset(
        name="folder",
        ids=[picture.name for picture in pictures],
        classes=classes,
        images=torch.from_numpy(_stacked(pixels)),
        masks=torch.from_numpy(_stacked([part.numpy() for part in packed])),
        extents=extents if size == ORIGINAL else None,
        spacing=None,
        spacings=spacings,
        groups=[picture.group or picture.name for picture in pictures],
        grouped_by=collection.grouped_by,
        volumes=[picture.volume for picture in pictures],
        files=max([1, *map(len, layout.channels.values())]),
        scale=scale,
        slice_spacings=[picture.slice_spacing for picture in pictures],
        annotated=annotated,
        values=tuple(filter(None, masks.structures.values())) or None,
        ignores=len(classes) < len(masks.classes),
        vanished=vanished,
        originals=partial(_original, masks, pictures),
    )


def _original(masks: Masks, pictures: Sequence[Picture], index: int) -> Original:
    """Read the masks of an image again, as they are in their files."""
    whole = masks.marked(pictures[index])
    if whole is None:
        raise DataError(f"folder: {pictures[index].name} has no masks")
    return whole, pictures[index].spacing


def _check_channels(
    picture: Picture, pixels: Sequence[NDArray[Any]], pictures: Sequence[Picture]
) -> None:
    count = len(picture.pixels)
    for known, first in zip(map(len, pixels[:1]), pictures, strict=False):
        if count != known and {count, known} != {1, 3}:
            raise DataError(
                f"folder: {picture.path} has {count} channels, {first.path.name} has {known}; all "
                "images must have the same, except grey beside colour"
            )


def _stacked(pixels: list[NDArray[np.unsignedinteger]]) -> NDArray[np.unsignedinteger]:
    """Join images in the most channels, rows, columns and bits that one has, 0 beyond them.

    The list is emptied on the way.
    """
    shape = [max(sides) for sides in zip(*(part.shape for part in pixels), strict=True)]
    kind = max((part.dtype for part in pixels), key=lambda dtype: dtype.itemsize)
    images = np.zeros((len(pixels), *shape), kind)
    for index in reversed(range(len(pixels))):
        image = pixels.pop()
        images[index, :, : image.shape[1], : image.shape[2]] = image
        if image.dtype != kind:
            images[index] *= 257  # white stays white
    return images


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
                f"folder: the axes of {len(part)} volumes ({names}) run {code} in the patient, "
                f"those of {axes[usual][0].name} {usual}: their planes are other cuts; save all in "
                "one orientation (nibabel.as_closest_canonical)"
            )
