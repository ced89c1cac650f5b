"""Sizes of images as options name them: 256, or 256x512 for height and width."""

from __future__ import annotations

__all__ = ["ORIGINAL", "Size", "pixels", "shape_of", "suits", "written"]

Size = int | str | tuple[int, int]
ORIGINAL = "original"  # of images that keep their own


def shape_of(size: Size) -> tuple[int, int]:
    """Return height and width of 256, ``"256x512"`` or ``(256, 512)``; else raise a ValueError."""
    sides = size if isinstance(size, tuple) else str(size).split("x")
    try:
        height, width = map(int, sides if len(sides) > 1 else (*sides, *sides))
    except ValueError:
        what = "256, or 256x512 (height x width)"
        raise ValueError(f"`size` must be in pixels, as {what}, got {size}") from None
    return height, width


def pixels(size: Size) -> int | str:
    """Return a size in its one form, an integer where it is square; other words as they are.

    Examples
    --------
    >>> pixels("256"), pixels("256x256"), pixels("256x512"), pixels("large")
    (256, 256, '256x512', 'large')
    """
    try:
        height, width = shape_of(size)
    except ValueError:
        return str(size)
    return height if height == width else f"{height}x{width}"


def suits(size: Size, within: Size = ORIGINAL) -> bool:
    """Whether a network can be trained at a size, as part of a larger one."""
    try:
        sides, most = shape_of(size), shape_of(size if within == ORIGINAL else within)
    except ValueError:
        return False
    return all(n >= m >= 32 and m % 16 == 0 for m, n in zip(sides, most, strict=True))


def written(size: Size) -> str:
    """Return a size as messages write it, ``"256 x 512"``."""
    return "their own size" if size == ORIGINAL else " x ".join(map(str, shape_of(size)))
