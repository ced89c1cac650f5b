"""How large an image may be: files of some kilobytes can hold any number of pixels."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from tcseg.errors import DataError

MOST_PIXELS = 2**28
VARIABLE = "TCSEG_MAX_PIXELS"


def most_pixels() -> int:
    """Return how many pixels, planes and channels included, a file may have."""
    text = os.environ.get(VARIABLE, "")
    if text and not text.isdecimal():
        raise DataError(f"{VARIABLE} must be a number of pixels, got {text!r}")
    return int(text or MOST_PIXELS)


def check_pixels(
    path: Path, shape: Iterable[int], how: str = "", remedy: str = "make it smaller"
) -> None:
    """Raise DataError, before anything is decoded, if a file has too many pixels.

    Or, before it is resampled, if it would have them then, which `how` says.
    """
    count, most = math.prod(shape), most_pixels()
    if count > most:
        raise DataError(
            f"{path}: has {count / 1e6:.6g} million pixels{how}, more than {most / 1e6:.6g} "
            f"million; {remedy}, or set {VARIABLE}={count} in the environment if memory allows"
        )


def memory() -> int:
    """Return the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_inflated(path: Path, file: BinaryIO, wbits: int = -zlib.MAX_WBITS, each: int = 4) -> None:
    """Raise DataError if what was deflated is larger than a file of so many pixels could be.

    With `each` bytes of a pixel. From `file`, as it stands, to its end; zlib.error if that is
    damaged or ends early.
    """
    stream, size, most = zlib.decompressobj(wbits), 0, each * most_pixels()
    while not stream.eof and (deflated := stream.unconsumed_tail or file.read(2**20)):
        size += len(stream.decompress(deflated, 2**20))
        if size > most:
            raise DataError(
                f"{path}: holds more than {most / 1e6:.6g} MB, deflated; if memory allows, set "
                f"{VARIABLE} in the environment to more than {most_pixels()}"
            )
    if not stream.eof:
        raise zlib.error("what was deflated ends early")
