"""Writing files so that a kill at any moment leaves the old content or the new, never half."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

__all__ = ["read_json", "write_atomically", "write_json"]

T = TypeVar("T")
LARGEST_JSON = 2**28
"""Bytes; files of a run hold some thousand numbers and names."""


def write_atomically(path: str | os.PathLike[str], content: bytes | memoryview | str) -> None:
    """Replace `path` by `content` in one step.

    The content goes to a temporary file in the same folder, reaches the disk, and is renamed.

    Parameters
    ----------
    path
        The file to write; its folder must exist.
    content
        Bytes, or text that is written as UTF-8.

    Raises
    ------
    OSError
        If the folder is missing, read-only or full; what `path` held before is then untouched.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    # The process id keeps two writers apart; the leading dot marks it as no part of a run.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
    if os.path.getsize(path) > LARGEST_JSON:
        raise ValueError(f"larger than {LARGEST_JSON >> 20} MiB")
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=kind)
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
