"""Sizes of images as options name them: 256, 256x512 for height and width, or 64x96x96."""

from __future__ import annotations

__all__ = ["ORIGINAL", "Size", "pixels", "shape_of", "suits", "written"]

Size = int | str | tuple[int, ...]
ORIGINAL = "original"  # of images that keep their own

_FORMS = {2: "256, or 256x512 (height x width)", 3: "64, or 64x96x96 (depth x height x width)"}


def shape_of(size: Size, dimensions: int = 2) -> tuple[int, ...]:
    """Return the sides of 256, ``"256x512"`` or ``(256, 512)``; else raise a ValueError.

    Of volumes, of three dimensions, depth comes first.
    """
    sides = size if isinstance(size, tuple) else str(size).split("x")
    try:
        shape = tuple(map(int, sides if len(sides) > 1 else [*sides] * dimensions))
    except ValueError:
        shape = ()
    if len(shape) != dimensions:
        raise ValueError(f"`size` must be in pixels, as {_FORMS[dimensions]}, got {size}")
    return shape


def pixels(size: Size) -> int | str:
    """Return a size in its one form, an integer where all sides are alike; other words as they are.

    Examples
    --------
    >>> pixels("256"), pixels("256x256"), pixels("256x512"), pixels("large")
    (256, 256, '256x512', 'large')
    """
    sides = "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
    try:
        shape = shape_of(sides, max(2, sides.count("x") + 1))
    except (ValueError, KeyError):
        return sides
    return shape[0] if len({*shape}) == 1 else "x".join(map(str, shape))


def suits(size: Size, within: Size = ORIGINAL, dimensions: int = 2) -> bool:
    """Whether a network can be trained at a size, as part of a larger one."""
    try:
        sides = shape_of(size, dimensions)
        most = sides if within == ORIGINAL else shape_of(within, dimensions)
    except ValueError:
        return False
    least = 32 if dimensions == 2 else 16
    return all(n >= m >= least and m % 16 == 0 for m, n in zip(sides, most, strict=True))


def written(size: Size, dimensions: int = 2) -> str:
    """Return a size as messages write it, ``"256 x 512"``."""
    return (
        "their own size" if size == ORIGINAL else " x ".join(map(str, shape_of(size, dimensions)))
    )
