"""A folder's images and masks, decoded once into files that trainings read their batches from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
import torch
from msgspec import Meta

import tcwarp
from tcseg.data import folder as reader
from tcseg.data.dataset import Dataset
from tcseg.data.layout import refuse
from tcseg.data.nnunet import is_nnunet
from tcseg.data.stored import Rows, Stored
from tcseg.io.files import decode_json, open_lock, read_whole, walk, write_atomically
from tcseg.io.shapes import DRAWN
from tcseg.io.sizes import Size

PARTS = ("images", "masks")


class _File(msgspec.Struct):
    """What a file must be; one that was written to since has another time."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=4)]
    dtype: Literal["uint8", "uint16"]
    time: int

    def open(self, path: Path) -> Stored:
        stored = Stored(path, torch.Size(self.shape), getattr(torch, self.dtype))
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (stored.nbytes, self.time):
            raise ValueError(f"{path}: was changed")
        return stored


_READING = 3  # another number where the same files are read as something else
# All of a data set but its tensors and functions; extents are written as numbers.
_NAMES = [f.name for f in fields(Dataset) if f.name not in (*PARTS, "originals", "streams_to")]
_TYPES = get_type_hints(Dataset) | {"extents": list[tuple[int, ...]] | None}
_Facts = msgspec.defstruct(
    "_Facts", [*((name, _TYPES[name]) for name in _NAMES), *((name, _File) for name in PARTS)]
)


def load(cache: str | Path, root: str | Path, size: Size, **how: Any) -> Dataset:
    """Return a data set whose images and masks lie in files; decode them, unless that was done.

    Parameters
    ----------
    cache
        Folder of such files, made if it is missing. In it each data set has a folder of its own,
        named by `how` and by names, sizes and times of the files that it was read from.
    root, size, how
        As for `tcseg.data.folder.load`.

    Raises
    ------
    DataError
        As there.
    OSError
        If the cache cannot be written.
    """
    cache, root = Path(cache).expanduser(), Path(root).expanduser()
    if not root.is_dir():
        return reader.load(root, size, **how)  # says what is expected
    how_read = (size, tcwarp.__version__, _READING, *_NAMES, *sorted(how.items()))
    known = [*how_read, *_files(root, cache)]
    folder = cache / hashlib.sha256(repr(known).encode()).hexdigest()[:32]
    dataset = _stored(folder, lambda into: reader.load(root, size, into=into, **how))
    joined = how["dimensions"] == 3
    originals = reader.originals(dataset.sources or [], root, how["mask_pattern"], joined)
    return replace(dataset, originals=originals)


def _stored(folder: Path, read: Callable[[tuple[Rows, Rows]], Dataset]) -> Dataset:
    """Return what a folder holds; read it into that first, where it is not there or not whole."""
    with contextlib.suppress(OSError, ValueError):
        return _open(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            with contextlib.suppress(OSError, ValueError):
                return _open(folder)  # of another process, meanwhile
            _make(folder, read)
    except OSError as error:  # a full disk gives no name
        where = error.filename or str(folder)
        raise OSError(error.errno, error.strerror or str(error), where) from error
    return _open(folder)


def _files(root: Path, cache: Path) -> Iterator[tuple[str, int, int]]:
    """Yield names, sizes and times of the files that reading depends on."""
    tops = [root]
    if (root / "images").is_dir() or is_nnunet(root):  # then the rest may be anything, runs even
        tops = [root / part for part in ("images", "masks", "annotations", "imagesTr", "labelsTr")]
        tops += [root / "classes.txt", root / "dataset.json"]
        tops += sorted(path for path in root.iterdir() if path.suffix.lower() in DRAWN)
    for top in filter(Path.exists, tops):
        for path in filter(Path.is_file, walk(top, refuse, without=cache)):
            status = path.stat()
            yield str(path.relative_to(root)), status.st_size, status.st_mtime_ns


def _open(folder: Path) -> Dataset:
    """Return what was stored; ValueError or OSError if that is not whole."""
    facts: Any = decode_json(read_whole(folder / "facts.json"), _Facts)
    images, masks = (getattr(facts, part).open(folder / f"{part}.bin") for part in PARTS)
    count, classes = len(facts.ids), len(facts.classes)
    by_image = ("extents", "spacings", "groups", "volumes", "slice_spacings", "marked", "sources")
    lists = [getattr(facts, name) for name in by_image]
    places = {*(facts.annotated or ()), *facts.vanished}
    numbers = {number for shown in facts.marked or () for number in shown}
    planes = classes + facts.ignores
    known = (1 if planes < 256 else 2) if facts.values else -(-planes // 8)
    whole = (
        len(images.shape) == len(masks.shape)
        and (count, known, *images.shape[2:]) == tuple(masks.shape)
        and count == images.shape[0]
        and all(part is None or len(part) == count for part in lists)
        and places <= {*range(count)}
        and numbers <= {*range(classes)}
    )
    if not whole:
        raise ValueError(f"{folder}: was changed")
    values = {name: getattr(facts, name) for name in _NAMES}
    if facts.extents is not None:
        values["extents"] = torch.tensor(facts.extents)
    return Dataset(**values, images=images, masks=masks)


def _make(folder: Path, read: Callable[[tuple[Rows, Rows]], Dataset]) -> None:
    """Read the images into files, the facts last, so that a kill leaves none."""
    (folder / "facts.json").unlink(missing_ok=True)
    temporary = [folder / f".{part}.tmp" for part in PARTS]
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "w+b")) for path in temporary]
            images, masks = map(Rows, files)
            dataset = read((images, masks))
            for file in files:
                os.fsync(file.fileno())
        facts = {name: getattr(dataset, name) for name in _NAMES}
        for part, path in zip(PARTS, temporary, strict=True):
            stored = getattr(dataset, part)
            dtype = str(stored.dtype).removeprefix("torch.")
            facts[part] = {"shape": stored.shape, "dtype": dtype, "time": path.stat().st_mtime_ns}
            path.replace(folder / f"{part}.bin")
        # What is no number of Python's, a tensor or of NumPy, can say which ones it holds.
        content = msgspec.json.encode(facts, enc_hook=lambda value: value.tolist())
        write_atomically(folder / "facts.json", content)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out: they wait until it is done, or this process has ended."""
    with os.fdopen(open_lock(folder / ".lock"), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process decodes the images; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
