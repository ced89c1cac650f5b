"""Opening what Pillow reads, or saying in one line why it does not."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
)

from tcseg.errors import DataError, counted
from tcseg.extras import needs
from tcseg.io.limits import check_pixels

for _name in "PIL", "tifffile":
    logging.getLogger(_name).addHandler(logging.NullHandler())  # what they log is said here

# Pillow opens more, as PostScript: by a program that does what the file says, perhaps for ever.
KINDS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")

# Series that tifffile makes of numbers in a file, or of files beside it; ours are ImageJ's, OME's
# and its own.
_OTHER_SERIES = (
    *("lsm", "mmstack", "ndtiff", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi", "bif"),
    *("avs", "eer", "philips", "scanimage", "nih", "mdgel"),
)
_NONE_BUT_OURS: dict[str, Any] = {f"is_{kind}": False for kind in _OTHER_SERIES}

NUMBERS = {1: "integers", 2: "integers with a sign", 3: "floating-point numbers"}


def open_plain(path: Path) -> Image.Image:
    """Open what Pillow reads; a file that is none, or would be misread, raises a DataError."""
    try:
        with _own_limit():
            file = Image.open(path, formats=KINDS)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: cannot be read (it {_what_it_is(path)})") from error
    check_pixels(path, [_pixels(file)])
    tags = getattr(file, "tag_v2", {})
    # Pillow leaves out channels, and signs of 8 bits, without a word.
    samples, bands = tags.get(SAMPLESPERPIXEL, 1), len(file.getbands())
    signed = file.mode == "L" and tags.get(SAMPLEFORMAT, (1,))[0] == 2
    if signed or (samples > bands and samples != 4):
        file.close()
        raise DataError(f"{path}: cannot be read (it {_what_it_is(path)})")
    return file


def read_channels(path: Path) -> tuple[NDArray[Any], dict[int, Any]] | None:
    """Read a TIFF file of several channels, (planes, H, W, C); None of colours and of other files.

    With its description and resolution, by tag. Channels are what its axes name so (ImageJ, OME,
    tifffile), or the samples of a pixel.
    """
    with needs("tcseg"):
        import tifffile
    try:
        if _is_circular(path):
            raise DataError(f"{path}: cannot be read (it is damaged: its pages run in a circle)")
        with tifffile.TiffFile(path, _multifile=False, **_NONE_BUT_OURS) as file:
            if file.is_ome:
                _check_ome(path, file.ome_metadata or "")
            series, page = file.series[0], file.series[0].keyframe
            samples, alpha = page.samplesperpixel, page.extrasamples[:1] in ((1,), (2,))
            grey = page.photometric in (0, 1) and not (samples == 2 and alpha)
            axis = "C" if samples == 1 else "S" if grey or samples > 4 else "colours"
            if len(file.series) > 1 or series.is_multifile or axis not in series.axes:
                return None
            check_pixels(path, series.shape)
            tags = {tag.code: tag.value for tag in page.tags if tag.code in (270, 282, 283)}
            tags |= {code: tags[code][0] / (tags[code][1] or 1) for code in tags.keys() - {270}}
            order = [*(a for a in series.axes if a not in (*"YX", axis)), "Y", "X", axis]
            values = series.asarray().transpose([series.axes.index(a) for a in order])
    except DataError:
        raise
    except Exception:  # no TIFF, or a damaged one, as Pillow says
        return None
    return values.reshape(-1, *values.shape[-3:]), tags


def _check_ome(path: Path, text: str) -> None:
    """Raise DataError if a file promises more planes than it can hold: tifffile lists them all."""
    try:
        elements = ElementTree.fromstring(text).iter()
    except ElementTree.ParseError:  # then it lists none
        return
    counts = [0]
    for found in (element.attrib for element in elements):
        counts.append(math.prod(int(found.get(name, 1)) for name in ("SizeZ", "SizeC", "SizeT")))
        counts += [int(found[name]) for name in ("NumPlanes", "PlaneCount") if name in found]
        if "Start" in found:
            start, end, step = (float(found.get(name, 1)) for name in ("Start", "End", "Step"))
            counts.append(int((end - start) / step))
    if max(counts) > path.stat().st_size:
        raise DataError(
            f"{path}: cannot be read (it is damaged: it promises more planes than it has bytes)"
        )


def _is_circular(path: Path) -> bool:
    """Whether the page after some page of a TIFF file is an earlier one: there is no last one."""
    with open(path, "rb") as file:
        header = file.read(4)
        order, big = "<" if header[:2] == b"II" else ">", b"+" in header[2:]

        def number(at: int, kind: str) -> int:
            file.seek(at)
            (value,) = struct.unpack(order + kind, file.read(struct.calcsize(order + kind)))
            return int(value)

        seen = set[int]()
        with suppress(struct.error, OverflowError, OSError):  # the file ends first
            page = number(8, "Q") if big else number(4, "L")
            while page and page not in seen:
                seen.add(page)
                tags = 8 + 20 * number(page, "Q") if big else 2 + 12 * number(page, "H")
                page = number(page + tags, "Q" if big else "L")
            return page != 0
    return False


def _pixels(file: Image.Image) -> int:
    """Return how many pixels a file has, channels included, in all pages of a TIFF file.

    Pages differ in size. Frames of other formats do not, and only the first is an image.
    """
    count = 0
    for number in reversed(range(getattr(file, "n_frames", 1) if file.format == "TIFF" else 1)):
        file.seek(number)
        count += math.prod((*file.size, len(file.getbands())))
    return count


@contextmanager
def _own_limit() -> Iterator[None]:
    """Let Pillow open, not decode, files of any size: `check_pixels` has a limit for all kinds."""
    most = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _what_it_is(path: Path) -> str:
    """Say why Pillow does not read a file."""
    with open(path, "rb") as file:
        content = file.read(2**20)
    if not content:
        return "is empty"
    if _bits_of_jpeg(content) > 8:
        return f"is a JPEG of {_bits_of_jpeg(content)} bits; save it as PNG or TIFF of 16"
    try:
        with open(path, "rb") as file:
            tags = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits, numbers = tags[BITSPERSAMPLE][0], NUMBERS[tags.get(SAMPLEFORMAT, (1,))[0]]
        channels = counted(tags.get(SAMPLESPERPIXEL, 1), "channel")
        return (
            f"has {channels} of {bits}-bit {numbers}; save 1 or 3 "
            "channels of 8 or 16 bits without a sign, or 1 of 32-bit floating-point numbers"
        )
    except Exception:  # no TIFF, or a damaged one
        return "is not an image, despite its name, or is damaged"


def _bits_of_jpeg(content: bytes) -> int:
    """Return the bits of a channel of a JPEG, 0 of other files: it stands in its frame header."""
    at = 2 if content[:2] == b"\xff\xd8" else len(content)
    while at + 4 < len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return content[at + 4]
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return 0
