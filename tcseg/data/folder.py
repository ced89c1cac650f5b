"""A folder of one's own images: ``images/`` and ``masks/``, matched by name.

Masks are either files that hold one value per class (0 is background), ``masks/NAME.png``, or one
folder for each class with files that are white (or not 0) where it is, ``masks/CLASS/NAME.png``;
then classes may overlap. Images without a mask are unlabelled. A file ``classes.txt`` in the
folder may name the values, a line each: ``1 liver``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from .dataset import DataError, Dataset, Problems, pack_masks, reason
from .dicom import read_dataset
from .images import (
    NIFTI,
    PLAIN,
    Picture,
    Placement,
    is_dicom,
    is_image,
    open_plain,
    read_pictures,
    read_volume,
    stem,
    suffix,
)

MAX_CLASSES = 8


def load(root: str | Path, size: int, problems: Problems | None = None) -> Dataset:
    """Read every image, and the masks that there are.

    Parameters
    ----------
    root
        The folder.
    size
        Height and width to fit images into, in pixels, their proportions kept.
    problems
        Where to collect what is wrong; images that it concerns are left out.

    Raises
    ------
    DataError
        If something is missing, does not fit or does not decode, and problems are not collected.
    """
    problems = Problems() if problems is None else problems
    root = Path(root).expanduser()
    files = _image_files(root, problems)
    masks = _mask_reader(root, files, problems)

    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    ids: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    bits: list[torch.Tensor] = []
    annotated: list[int] = []
    spacings: list[tuple[float, float] | None] = []
    for path in track(files, "Reading images", console=console, transient=True):
        try:
            for picture in read_pictures(path):
                shape = (picture.pixels.shape[1], picture.pixels.shape[2])
                place = Placement.of(shape, size)
                mask = masks.read(picture, place)
                pixels.append((place.fit(picture.pixels) * 255 + 0.5).astype(np.uint8))
                bits.append(torch.zeros(size, size, dtype=torch.uint8) if mask is None else mask)
                if mask is not None:
                    annotated.append(len(ids))
                spacings.append(place.spacing(picture.spacing))
                ids.append(picture.name)
        except DataError as error:
            problems.add(str(error))
    if not ids:
        raise DataError(f"folder: no image in {root / 'images'} can be read")
    stacked = torch.stack(bits)
    for c, name in enumerate(masks.classes):
        if not (stacked >> c & 1).any():
            problems.add(
                f"folder: {name!r} is marked in no image at {size} x {size} pixels; mark it in one "
                "at least, take it out of masks/ and classes.txt, or use a larger --size"
            )
    channels = max(map(len, pixels))
    return Dataset(
        name="folder",
        ids=ids,
        classes=masks.classes,
        images=torch.from_numpy(
            np.stack([np.broadcast_to(p, (channels, size, size)) for p in pixels])
        ),
        masks=stacked,
        spacing=None,
        spacings=spacings,
        annotated=annotated,
        values=masks.values,
    )


def formats(root: str | Path) -> dict[str, Counter[str]]:
    """Count the image files by format, and what in their folder is none."""
    root = Path(root).expanduser()
    files = _image_files(root, Problems(collect=True))
    counts = {"images": Counter(suffix(path).lstrip(".").upper() or "DICOM" for path in files)}
    others = [p for p in (root / "images").iterdir() if p.name[0] != "." and not is_image(p)]
    if others:
        counts["not read, as no images"] = Counter(path.suffix or path.name for path in others)
    return counts


def _image_files(root: Path, problems: Problems) -> list[Path]:
    folder = root / "images"
    if not folder.is_dir():
        raise DataError(f"folder: no folder {folder}; --root must hold images/ and masks/")
    files = sorted(path for path in folder.iterdir() if is_image(path))
    if not files:
        raise DataError(
            f"folder: no images in {folder}; expected {', '.join((*PLAIN, '.dcm', *NIFTI))}"
        )
    by_stem: dict[str, Path] = {}
    for path in files:
        twin = by_stem.setdefault(stem(path), path)
        if twin is not path:
            problems.add(
                f"folder: {twin} and {path} have one name, so a mask would belong to both; rename "
                "one of them"
            )
    return list(by_stem.values())


# ---- masks ----------------------------------------------------------------------------------


class _Masks:
    """Masks by image, of either layout."""

    classes: tuple[str, ...]
    values: tuple[int, ...] | None = None
    """Number of each class in files that hold one for each pixel."""

    def read(self, picture: Picture, place: Placement) -> torch.Tensor | None:
        """Return the masks of an image, fitted and packed into bits; None if it has none."""
        raise NotImplementedError


class _Valued(_Masks):
    """One file for each image, a value for each class."""

    def __init__(self, files: dict[str, Path], names: dict[int, str], problems: Problems) -> None:
        self.files = files
        counts: Counter[int] = Counter()
        for name, path in list(files.items()):
            try:
                found = {int(v) for plane in _planes(path) for v in np.unique(plane)}
                if len(found) > MAX_CLASSES + 1:
                    raise DataError(
                        f"folder: {path} has {len(found)} values, more than background and "
                        f"{MAX_CLASSES} classes; its edges are smoothed perhaps, or it is a JPEG: "
                        "save it again without, or use one folder for each class"
                    )
                counts.update(found - {0})
            except DataError as error:
                problems.add(str(error))
                del files[name]
        values = sorted(set(counts) | set(names))
        if len(values) > MAX_CLASSES:
            raise DataError(
                f"folder: the masks have {len(values)} values ({', '.join(map(str, values[:12]))} "
                f"...), at most {MAX_CLASSES} classes are possible; are all masks saved with the "
                "same values, without smoothed edges?"
            )
        self.values = tuple(values)
        self.classes = tuple(names.get(value, f"class {value}") for value in values)

    def read(self, picture: Picture, place: Placement) -> torch.Tensor | None:
        path = self.files.get(stem(picture.path))
        if path is None:
            return None
        plane = _plane(path, picture)
        return _pack([plane == value for value in self.values or ()], place)


class _ByClass(_Masks):
    """One folder for each class, a file for each image in it."""

    def __init__(self, files: dict[str, dict[str, Path]]) -> None:
        self.files = files
        self.classes = tuple(files)

    def read(self, picture: Picture, place: Placement) -> torch.Tensor | None:
        paths = [self.files[name].get(stem(picture.path)) for name in self.classes]
        if not any(paths):
            return None
        shape = picture.pixels.shape[1:]
        planes = []
        for path in paths:
            if path is None:  # the class is not in this image
                planes.append(np.zeros(shape, bool))
            else:
                plane = _plane(path, picture)
                # White on black may have smoothed edges, whose outline is at one half; of other
                # values each that is not 0 is inside.
                planes.append(plane > (plane.max() / 2 if plane.max() > 128 else 0))
        return _pack(planes, place)


def _mask_reader(root: Path, images: Sequence[Path], problems: Problems) -> _Masks:
    folder = root / "masks"
    if not folder.is_dir():
        raise DataError(
            f"folder: no folder {folder}; put masks of some images there, under the names of their "
            "images: NAME.png with a value for each class, or CLASS/NAME.png"
        )
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    files = sorted(p for p in folder.iterdir() if is_image(p))
    if subfolders and files:
        raise DataError(
            f"folder: {folder} has both folders ({subfolders[0].name}) and masks "
            f"({files[0].name}); use one folder for each class, or one file for each image"
        )
    if len(subfolders) > MAX_CLASSES:
        raise DataError(
            f"folder: {folder} has {len(subfolders)} classes, at most {MAX_CLASSES} are possible"
        )
    known = {stem(path) for path in images}
    by_class = {
        p.name: {stem(f): f for f in sorted(p.iterdir()) if is_image(f)} for p in subfolders
    }
    valued = {stem(path): path for path in files}
    masks = by_class.values() if subfolders else [valued]
    names = sorted({name for part in masks for name in part})
    strays = [name for name in names if name not in known]
    if not names or len(strays) == len(names):
        example = (
            f"; the first mask is {names[0]!r}, the first image {stem(images[0])!r}"
            if names
            else ""
        )
        raise DataError(
            f"folder: no mask in {folder} has the name of an image in {root / 'images'}{example}; "
            "name each mask as its image"
        )
    if strays:
        problems.add(
            f"folder: {len(strays)} masks without an image of their name: "
            f"{problems.listed(strays)}; name each mask as its image, or remove it"
        )
    empty = [name for name, part in by_class.items() if not part]
    if empty:
        problems.add(f"folder: no masks in {folder / empty[0]}; remove it, or put masks there")
    if subfolders:
        return _ByClass({name: part for name, part in by_class.items() if part})
    reader = _Valued(valued, _class_names(root / "classes.txt"), problems)
    if not reader.classes:
        raise DataError(f"folder: all masks in {folder} are 0: no class is marked in any image")
    return reader


def _class_names(path: Path) -> dict[int, str]:
    if not path.exists():
        return {}
    names: dict[int, str] = {}
    try:
        for line in filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())):
            value, name = line.split(maxsplit=1)
            names[int(value)] = name
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: each line must be a value and a name, as in '1 liver'") from error
    if 0 in names or len(set(names.values())) < len(names):
        raise DataError(f"{path}: values must be 1 or more, and names must differ")
    return names


def _plane(path: Path, picture: Picture) -> NDArray[np.int64]:
    """Return the plane of a mask that belongs to an image, of the image's size."""
    planes = list(_planes(path))
    number = picture.plane or 0
    if number >= len(planes):
        raise DataError(
            f"folder: {path} has {len(planes)} planes, its image {picture.path} has more"
        )
    plane, shape = planes[number], picture.pixels.shape[1:]
    if plane.shape != shape:
        raise DataError(
            f"folder: {path} has {plane.shape[1]} x {plane.shape[0]} pixels, its image "
            f"{picture.path.name} {shape[1]} x {shape[0]}; a mask must have the size of its image"
        )
    return plane


def _planes(path: Path) -> Iterator[NDArray[np.int64]]:
    """Read a mask as it is, value by value."""
    try:
        if suffix(path) in NIFTI:
            yield from (_whole(plane, path) for plane in read_volume(path)[0])
            return
        if is_dicom(path):
            values = read_dataset(path).pixel_array
            yield from (_whole(v, path) for v in (values if values.ndim == 3 else values[None]))
            return
        with open_plain(path) as file:
            for number in range(getattr(file, "n_frames", 1)):
                file.seek(number)
                values = np.asarray(
                    file
                    if file.mode in ("L", "P", "1", "I", "F") or file.mode.startswith("I;")
                    else file.convert("RGB")
                )
                if values.ndim == 3:
                    if not (values == values[..., :1]).all():
                        raise DataError(
                            f"folder: {path} is a colour picture; a mask must have one value for "
                            "each class, or a folder for each class with masks in black and white"
                        )
                    values = values[..., 0]
                yield _whole(values, path)
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise DataError(f"folder: {path} cannot be read ({reason(error)})") from error


def _whole(values: NDArray[np.generic], path: Path) -> NDArray[np.int64]:
    whole = values.astype(np.int64)
    if not (whole == values).all() or (whole < 0).any():
        raise DataError(f"folder: {path} has values that are not whole numbers from 0 on")
    return whole


def _pack(planes: Sequence[NDArray[np.bool_]], place: Placement) -> torch.Tensor:
    fitted = place.fit(np.stack(planes).astype(np.float32))
    return pack_masks(fitted > 0.5)
