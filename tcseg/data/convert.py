"""Convert a folder from any layout that is read to the plain one or to that of nnU-Net."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.data import folder
from tcseg.data.dataset import IGNORED, Dataset
from tcseg.data.masks import Masks, mask_reader
from tcseg.data.nnunet import DESCRIPTION, IMAGES, LABELS
from tcseg.errors import DataError, Problems
from tcseg.io.files import write_json
from tcseg.io.grey import as_levels
from tcseg.io.images import PLAIN, Picture, png, read_pictures, suffix
from tcseg.io.label_maps import LARGEST_LABEL, LabelWriter, folder_names, write_into


def convert(root: Path, out: Path, *, nnunet: bool = False, **reading: Any) -> None:
    """Write images and masks as they were read.

    Image files are copied, so that nothing in them is lost; for nnU-Net those of 8 bits become
    PNG. Masks have the size of their image and, for NIfTI, NRRD, MHA and NPY, its format;
    otherwise they are PNG, or TIFF for several planes. The plain layout is read back and compared
    before it is moved to `out`.

    Parameters
    ----------
    root
        The folder.
    out
        The folder to create; it may exist if it is empty.
    nnunet
        Whether to write `imagesTr`, `labelsTr` and `dataset.json`, with images without masks in
        `imagesTs`, which is not read.
    reading
        `group`, `mask_pattern` and `window`, as for `load_dataset`.

    Raises
    ------
    DataError
        If the folder cannot be read, or cannot be expressed in that layout.

    Examples
    --------
    >>> convert(Path("mine"), Path("plain"), mask_pattern="{name}_mask")  # doctest: +SKIP
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; choose another `out`")
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        part.mkdir(parents=True)
        layout = folder.find(root, reading.get("mask_pattern"), Problems())
        if layout.channels:
            raise DataError("folder: images with a file for each channel cannot be converted")
        masks = mask_reader(root, layout, Problems())
        if nnunet:
            _write_nnunet(layout.images, masks, part)
        else:
            _write_plain(layout.images, masks, part)
            before = _facts(folder.load(root, 32, **reading))
            after = _facts(folder.load(part, 32, **reading | {"mask_pattern": None}))
            if wrong := [name for name in before if before[name] != after[name]]:
                raise DataError(f"folder: the plain layout cannot hold the {wrong[0]} of {root}")
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_plain(images: dict[str, Path], masks: Masks, part: Path) -> None:
    values = masks.values
    for name, path in images.items():
        _write_masks(path, name, masks.read, masks.classes, values, part)
        copy = part / "images" / (name + path.name[len(path.name) - len(suffix(path)) :])
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    if values is None:
        (part / "made").rename(part / "masks")
        return
    (part / "made" / "labels").rename(part / "masks")
    (part / "made").rmdir()
    lines = (f"{value} {name}\n" for value, name in zip(values, masks.classes, strict=True))
    (part / "classes.txt").write_text("".join(lines), encoding="utf-8")


def _facts(dataset: Dataset) -> dict[str, Any]:
    """Return what a data set is, in whichever order it was found."""
    order = sorted(range(len(dataset)), key=dataset.ids.__getitem__)
    names = dataset.classes if dataset.values else folder_names(dataset.classes)
    masks = dataset.target_batch(order).numpy()
    facts: dict[str, Any] = {
        name: [getattr(dataset, name)[index] for index in order]
        for name in ("ids", "groups", "volumes", "spacings", "slice_spacings")
    }
    facts["annotated images"] = {dataset.ids[index] for index in dataset.annotated or ()}
    facts["values"], facts["classes"] = dataset.values, sorted(names)
    facts["masks"] = {name: masks[:, c].tobytes() for c, name in enumerate(names)}
    return facts | {"images": dataset.images[:].numpy()[order].tobytes()}


def _write_nnunet(images: dict[str, Path], masks: Masks, part: Path) -> None:
    ignored = [IGNORED] * (len(masks.structures) < len(masks.classes))  # which is to be the last
    classes, kinds, annotated = [*masks.structures, *ignored], set(), 0
    values = range(1, len(classes) + 1)
    if len({name.replace("/", "_") for name in images}) < len(images) or "background" in classes:
        raise DataError("folder: two images would share a name, or a structure is named background")
    for name, path in images.items():
        case, kind, picture = name.replace("/", "_"), suffix(path), next(read_pictures(path))
        content = path.read_bytes()
        if len(picture.pixels) not in (1, 3):
            raise DataError(f"{path}: nnU-Net needs a file for each channel; save it that way")
        if kind in PLAIN and picture.plane is None and picture.bits == 8:
            levels = as_levels(picture.pixels, np.uint8).transpose(1, 2, 0)
            content, kind = png(levels[..., 0] if levels.shape[2] == 1 else levels), ".png"
        elif kind == ".nii":
            content, kind = gzip.compress(content), ".nii.gz"
        elif kind not in (".nii.gz", ".nrrd", ".mha", ".png"):
            raise DataError(f"{path}: nnU-Net does not read this; save it as NIfTI, or in 8 bits")
        marked = _write_masks(path, case, masks.marked, classes, values, part)
        write_into(part / (IMAGES if marked else "imagesTs") / f"{case}_0000{kind}", content)
        kinds.add((kind, len(picture.pixels)))
        annotated += marked
    if len(kinds) > 1:
        raise DataError(f"folder: nnU-Net needs images of one kind, there are {sorted(kinds)}")
    (part / "made" / "labels").rename(part / LABELS)
    (part / "made").rmdir()
    ((kind, channels),) = kinds
    names = ("grey",) if channels == 1 else ("red", "green", "blue")
    description = {
        "channel_names": {str(n): name for n, name in enumerate(names)},
        "labels": {"background": 0} | dict(zip(classes, values, strict=True)),
        "numTraining": annotated,
        "file_ending": kind,
    }
    write_json(part / DESCRIPTION, description)


def _write_masks(
    path: Path,
    name: str,
    read: Callable[[Picture], NDArray[np.bool_] | None],
    classes: Sequence[str],
    values: Any,
    part: Path,
) -> bool:
    """Write the masks of an image; whether it has any."""
    writer = LabelWriter(path, name, part / "made", classes, values)
    for picture in read_pictures(path):
        whole = read(picture)
        if whole is None:
            return False
        if values is not None and (whole.sum(axis=0) > 1).any():
            raise DataError(f"{path}: its structures overlap, which a label map cannot hold")
        if values is not None and max(values) > LARGEST_LABEL:
            raise DataError(f"{path}: its masks have values above {LARGEST_LABEL}, the limit")
        writer.add(whole)
    writer.close(segmentation=False)
    return True
