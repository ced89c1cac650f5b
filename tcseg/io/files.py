"""Writing files so that a kill at any moment leaves the old content or the new, never half."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
LARGEST = 2**28
"""Bytes; files of a run hold some thousand numbers and names."""


def walk(
    folder: Path, fail: Callable[[Path, OSError], None], without: Path | None = None
) -> Iterator[Path]:
    """Yield what is in a folder and those in it, by name, but for what is hidden.

    Each real folder is searched once, and that of `without` not: links may lead in circles, and
    folders lie deeper than functions can be nested. `fail` is told of what cannot be read.
    """
    seen = {_identity(without)} if without is not None and without.is_dir() else set()
    seen -= {_identity(folder)}
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            if not path.is_dir():
                yield path
            elif (identity := _identity(path)) not in seen:
                seen.add(identity)
                content = sorted(path.iterdir(), reverse=True)
                waiting += [p for p in content if not p.name.startswith(".")]
        except OSError as error:
            fail(path, error)


def _identity(folder: Path) -> tuple[int, int]:
    """Return what a folder is known by, whatever links lead to it."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def write_atomically(
    path: str | os.PathLike[str], content: bytes | memoryview | str, *, alone: bool = False
) -> None:
    """Replace `path` by `content` in one step.

    The content goes to a temporary file in the same folder, reaches the disk, and is renamed.

    Parameters
    ----------
    path
        The file to write; its folder must exist.
    content
        Bytes, or text that is written as UTF-8.
    alone
        Whether nobody else can be writing it: a temporary file that a kill left is then reused.

    Raises
    ------
    OSError
        If the folder is missing, read-only or full; what `path` held before is then untouched.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    # Random digits keep two writers apart, whose process ids may be equal on two machines; the
    # leading dot marks it as no part of a run.
    temporary = path.with_name(f".{path.name}.{'tcseg' if alone else uuid.uuid4().hex[:6]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a read-only disk refuses even what is not there
            temporary.unlink(missing_ok=True)
        # Of the file that was asked for, not of the one beside it.
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_lock(path: Path) -> int:
    """Open a file to hold locks on, made if it is missing; OSError if it is a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def read_json(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Read a JSON file that anybody may have written.

    Parameters
    ----------
    path
        The file.
    kind
        What it must hold: a type, whose annotations may have limits, see `msgspec.Meta`.

    Raises
    ------
    ValueError
        If it holds anything else, or is larger than any of ours.
    OSError
        If it cannot be read.
    """
    return decode_json(read_whole(path), kind)


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Read a file; ValueError if it is larger than any that is to be read whole."""
    if os.path.getsize(path) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    return Path(path).read_bytes()


def decode_json(content: bytes, kind: type[T]) -> T:
    """Return what JSON holds; ValueError if that is of another kind."""
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step; nan and infinity, which JSON lacks, become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
