"""JSRT chest radiographs with the SCR outlines, read as they are published."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tcseg.data.dataset import CLASSES, Dataset, Original
from tcseg.data.packing import pack_masks
from tcseg.errors import DataError, Problems
from tcseg.io.placement import lost_classes, resize
from tcseg.io.plain import KINDS
from tcseg.sheet import track

FIELD_OF_VIEW_MM = 0.175 * 2048
FOLDS = ("fold1", "fold2")

_ID = re.compile(r"JPC(LN|NN)\d{3}")
_RAW_SIDE, _RAW_BYTES = 2048, 2048 * 2048 * 2
_EXTENSIONS = (".png", ".tif", ".tiff", ".img")


def load(root: str | Path, size: int, problems: Problems | None = None) -> Dataset:
    """Read every image and its five masks.

    Parameters
    ----------
    root
        Folder with ``scr/fold{1,2}/masks/<structure>/<id>.gif`` and the images: PNG or TIFF (8 or
        16 bit, square, any size) or the original ``.IMG`` files, in ``images/``, in the folder
        itself or in any other folder inside it, such as ``All247images/``.
    size
        Height and width to resize to, in pixels: images by area averaging, masks by area averaging
        and a threshold of one half, so that the thin clavicles keep their width.
    problems
        Where to collect what is wrong; images that it concerns are left out.

    Raises
    ------
    DataError
        If files are missing, have no counterpart or do not decode, and problems are not
        collected; the message names them.
    """
    problems = Problems() if problems is None else problems
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"jsrt: no folder {root}; `root` must hold images/ and scr/")
    images = _find_images(root, problems)
    masks = _find_masks(root, images, problems)

    ids: list[str] = []
    vanished: dict[int, list[str]] = {}
    pixels = np.empty((len(masks), 1, size, size), np.uint8)
    bits = torch.empty((len(masks), 1, size, size), dtype=torch.uint8)
    for name in track(masks, "Reading JSRT"):
        i = len(ids)
        try:
            pixels[i, 0] = read_image(images[name], size)
            decoded = [_decode(path) for path in masks[name]]
            fitted = np.stack([_fit_mask(mask, size) for mask in decoded])
            bits[i] = pack_masks(fitted)
            if lost := lost_classes([np.asarray(mask) for mask in decoded], fitted, CLASSES):
                vanished[i] = lost
        except DataError as error:
            problems.add(str(error))
        else:
            ids.append(name)
    return Dataset(
        name="jsrt",
        ids=ids,
        classes=CLASSES,
        images=torch.from_numpy(pixels[: len(ids)]),
        masks=bits[: len(ids)],
        spacings=[(FIELD_OF_VIEW_MM / size,) * 2] * len(ids),
        vanished=vanished,
        originals=partial(_original, ids, masks),
    )


def _original(ids: Sequence[str], masks: Mapping[str, Sequence[Path]], index: int) -> Original:
    """Read the masks of a radiograph as they are in their files."""
    decoded = [np.asarray(_decode(path)) > 0 for path in masks[ids[index]]]
    if len({mask.shape for mask in decoded}) > 1:
        raise DataError(f"jsrt: the masks of {ids[index]} differ in size; copy them again")
    whole = np.stack(decoded)
    return whole, (FIELD_OF_VIEW_MM / whole.shape[-1],) * 2


# ---- finding --------------------------------------------------------------------------------


def formats(root: str | Path) -> dict[str, Counter[str]]:
    """Count the image files and the mask files by format and size, as their headers say."""
    root = Path(root).expanduser()
    images = _find_images(root, Problems(collect=True))
    masks = _find_masks(root, images, Problems(collect=True))
    files = {
        "images": list(images.values()),
        "masks": [p for paths in masks.values() for p in paths],
    }
    return {kind: Counter(map(_format, paths)) for kind, paths in files.items()}


def _format(path: Path) -> str:
    if path.suffix.lower() == ".img":
        return "IMG (raw)"
    try:
        with Image.open(path, formats=KINDS) as file:
            depth = 16 if file.mode.startswith("I") else 8
            return f"{file.format}, {file.width} x {file.height}, {depth} bit"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "cannot be read"


def _find_images(root: Path, problems: Problems) -> dict[str, Path]:
    """Image files by id, sorted, from the first folder that has any."""
    others = sorted(p for p in root.iterdir() if p.is_dir() and p.name not in ("images", "scr"))
    for folder in (root / "images", root, *others):
        files = [p for p in _files(folder) if p.suffix.lower() in _EXTENSIONS]
        files = [p for p in files if _ID.fullmatch(p.stem.upper())]
        if files:
            break
    else:
        raise DataError(
            f"jsrt: no images JPCLN001 ... JPCNN093 ({', '.join(_EXTENSIONS)}) in {root} "
            "or a folder inside it; put them into images/"
        )
    paths: dict[str, Path] = {}
    for path in files:
        twin = paths.setdefault(path.stem.upper(), path)
        if twin is not path:
            problems.add(f"jsrt: two files of one image, {twin} and {path}; remove one of them")
    return dict(sorted(paths.items()))


def _find_masks(root: Path, images: Iterable[str], problems: Problems) -> dict[str, list[Path]]:
    """Mask files by id, in the order of CLASSES, of the images that have all of them."""
    folders = [root / "scr" / fold / "masks" / name for name in CLASSES for fold in FOLDS]
    _refuse(
        problems,
        [str(folder.relative_to(root)) for folder in folders if not folder.is_dir()],
        "folder",
        f"missing from {root}",
        "unpack both folds of the SCR masks into scr/",
    )
    masks: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in _files(folder):
            if path.suffix.lower() == ".gif" and _ID.fullmatch(path.stem.upper()):
                masks.setdefault(path.stem.upper(), {})[folder.name] = path
    _refuse(
        problems,
        [f"{i} ({name})" for i in images for name in CLASSES if name not in masks.get(i, {})],
        "mask",
        f"missing from {root / 'scr'}",
        "unpack both folds of the SCR masks again, or remove the images without masks",
    )
    _refuse(
        problems,
        sorted(set(masks) - set(images)),
        "image",
        f"missing from {root}, though their masks are there",
        "copy all images again, or remove the masks without images",
    )
    whole = [i for i in images if len(masks.get(i, {})) == len(CLASSES)]
    return {i: [masks[i][name] for name in CLASSES] for i in whole}


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []


def _refuse(
    problems: Problems, names: Sequence[str], kind: str, trouble: str, way_out: str
) -> None:
    if names:
        plural = "s" if len(names) > 1 else ""
        listed = problems.listed(names)
        problems.add(f"jsrt: {len(names)} {kind}{plural} {trouble}: {listed}; {way_out}")


# ---- reading --------------------------------------------------------------------------------


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Read one radiograph as uint8 (size, size), bone bright.

    The range of the image, after averaging, fills the 8 bits. A fixed range would do for most, but
    seven films use a tenth of it or less and would stay a white sheet; and copies of the data
    differ in their number of bits.
    """
    is_raw = path.suffix.lower() == ".img"
    pixels = _read_raw(path) if is_raw else _decode(path)
    values = resize(np.asarray(pixels, np.float32), (size, size))
    low, high = values.min(), values.max()
    if not high > low:
        raise DataError(f"jsrt: {path} shows nothing, all its pixels are alike; copy it again")
    scaled = (values - low) * (255 / (high - low)) + 0.5
    return np.asarray(scaled, dtype=np.uint8)


def _read_raw(path: Path) -> NDArray[np.uint16]:
    """Read an original JSRT file as 12-bit values, bone bright."""
    length = path.stat().st_size
    if length != _RAW_BYTES:
        raise DataError(
            f"jsrt: {path} has {length} bytes, expected {_RAW_BYTES} (2048 x 2048, 16 bit); "
            "download it again"
        )
    raw = np.fromfile(path, dtype=">u2").reshape(_RAW_SIDE, _RAW_SIDE)
    if raw.max() > 4095:
        raise DataError(
            f"jsrt: {path} has values up to {raw.max()}, expected at most 4095 (12 bits, "
            "big-endian); take the original file"
        )
    return (4095 - raw).astype(np.uint16)  # the film digitiser stored bone dark


def _fit_mask(picture: Image.Image, size: int) -> NDArray[np.bool_]:
    return resize((np.asarray(picture) > 0).astype(np.float32), (size, size)) > 0.5


def _decode(path: Path) -> Image.Image:
    """Decode an image file to one square grey channel, of 8 bits (mode L) or as many as it has."""
    try:
        with Image.open(path, formats=KINDS) as file:
            picture = file if file.mode[0] in "FI" else file.convert("L")
            picture.load()
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"jsrt: cannot read {path}: {error}; copy it again") from error
    if picture.width != picture.height:
        raise DataError(f"jsrt: {path} has {picture.width} x {picture.height} pixels, not a square")
    return picture
