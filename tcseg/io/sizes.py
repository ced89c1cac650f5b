"""Sizes of images as options name them: 256, 256x512 (height x width), 32x64x64 with the depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = int | str | tuple[int, ...]
Spacing = tuple[float, ...]  # the sides of a pixel or voxel in mm
ORIGINAL = "original"  # of images that keep their own
FORMS = {2: "256, or 256x512 (height x width)", 3: "64, or 32x64x64 (depth x height x width)"}
LEAST = {2: 32, 3: 16}  # what a network takes
# Of the units that files name, with the micro sign, the Greek letter, and what ImageJ writes.
MILLIMETRES = {"meter": 1000.0, "m": 1000.0, "cm": 10.0, "mm": 1.0, "nm": 1e-6, "inch": 25.4}
MILLIMETRES |= dict.fromkeys(("micron", "um", "\u00b5m", "\u03bcm", "\\u00B5m"), 0.001)


def default_size(data: str, dimensions: int) -> int | str:
    """Return the size of the images of a data set, where none is given."""
    if dimensions == 2:
        return 512
    return ORIGINAL if data == "folder" else 48


def shape_of(size: Size, dimensions: int = 2) -> tuple[int, ...]:
    """Return the sides of 256, ``"256x512"`` or ``(256, 512)``; of three, the depth comes first.

    Raises
    ------
    ValueError
        If they are not as many as there are dimensions, or no whole numbers.
    """
    try:
        sides = _sides(size)
    except ValueError:
        sides = ()
    if len(sides) not in (1, dimensions):
        raise ValueError(f"`size` must be in pixels, as {FORMS[dimensions]}, got {size}")
    return sides * dimensions if len(sides) == 1 else sides


def pixels(size: Size) -> int | str:
    """Return a size in its one form, other words as they are.

    That is an integer where all sides are alike, but for text of two, which makes no cube.

    Examples
    --------
    >>> pixels("256"), pixels((256, 256)), pixels("256x256"), pixels("256x512"), pixels("large")
    (256, 256, '256x256', '256x512', 'large')
    """
    try:
        sides = _sides(size)
    except ValueError:
        return str(size)
    alike = len(set(sides)) == 1 and not (isinstance(size, str) and len(sides) == 2)
    return sides[0] if alike else "x".join(map(str, sides))


def suits(size: Size, within: Size = ORIGINAL, dimensions: int = 2) -> bool:
    """Whether a network can be trained at a size, as part of a larger one."""
    try:
        sides = shape_of(size, dimensions)
        most = shape_of(size if within == ORIGINAL else within, dimensions)
    except ValueError:
        return False
    pairs = zip(sides, most, strict=True)
    return all(n >= m >= LEAST[dimensions] and m % 16 == 0 for m, n in pairs)


def written(size: Size, dimensions: int = 2) -> str:
    """Return a size as messages write it, ``"256 x 512"``."""
    if size == ORIGINAL:
        return "their own size"
    sides = _sides(size)
    return " x ".join(map(str, sides * dimensions if len(sides) == 1 else sides))


def resolution(size: Size, dimensions: int, voxel: Sequence[float] | None = None) -> str:
    """Return how images were brought to a size, or volumes to voxels, as messages write it.

    Examples
    --------
    >>> resolution(64, 3), resolution("original", 3), resolution("original", 3, (3, 1.5, 1.5))
    ('at 64 x 64 x 64', 'at their own size', 'in voxels of 3x1.5x1.5 mm')
    """
    if size != ORIGINAL or voxel is None:
        return f"at {written(size, dimensions)}"
    return f"in voxels of {mm_written(voxel)} mm"


def mm_of(spacing: str, dimensions: int = 3) -> Spacing:
    """Return the sides of a voxel in mm, of ``"1.5"`` or ``"5x1.5x1.5"`` (depth x height x width).

    Raises
    ------
    ValueError
        If they are not as many as there are dimensions, or not greater than 0.
    """
    try:
        sides = tuple(map(float, str(spacing).split("x")))
    except ValueError:
        sides = ()
    if len(sides) not in (1, dimensions) or not all(0 < side < math.inf for side in sides):
        raise ValueError(
            "`spacing` must be median, original, or in mm, as 1.5 or 5x1.5x1.5 (depth x height x "
            f"width), got {spacing}"
        )
    return sides * dimensions if len(sides) == 1 else sides


def mm_written(spacing: Sequence[float]) -> str:
    """Return sides of a voxel as an option names them, rounded.

    Examples
    --------
    >>> mm_written((5, 1.40625, 1.40625)), mm_written((1.5, 1.5, 1.5))
    ('5x1.406x1.406', '1.5')
    """
    sides = [f"{side:.4g}" for side in spacing]
    return sides[0] if len({*sides}) == 1 else "x".join(sides)


def _sides(size: Size) -> tuple[int, ...]:
    return tuple(map(int, size if isinstance(size, tuple) else str(size).split("x")))
