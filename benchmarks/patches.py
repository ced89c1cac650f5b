"""Sets of large images with small structures, generated: what patches are measured on.

``python -m benchmarks.patches vessels DIR`` draws 30 images of 584 x 565 pixels with dark branching
curves, 1.5 to 8 pixels wide, ``nuclei`` 30 of 520 x 696 with bright ellipses, some side by side;
`tcseg` reads DIR as a folder. They look like fundus photographs and fluorescence only from afar.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Values = NDArray[np.float64]
COUNT = 30
SCALE = 2  # masks are drawn so much larger


def branch(
    draw: ImageDraw.ImageDraw, rng: Generator, place: Values, angle: float, width: float
) -> None:
    """Draw a curve that thins, bends and branches."""
    for _ in range(rng.integers(40, 90)):
        step = 6 * np.array([np.sin(angle), np.cos(angle)])
        ends = [tuple(SCALE * p[::-1]) for p in (place, place + step)]
        draw.line(ends, fill=255, width=max(3, round(SCALE * width)))
        place, angle, width = place + step, angle + rng.normal(0, 0.12), 0.99 * width
        if width < 1.5:
            return
        if rng.random() < 0.06:
            branch(
                draw, rng, place, angle + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9), 0.7 * width
            )


def smooth(rng: Generator, shape: tuple[int, int], sigma: float) -> Values:
    """Return smooth noise of unit deviation."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return np.asarray(noise / noise.std())


def vessels(rng: Generator) -> tuple[Values, NDArray[np.bool_]]:
    """Return an image in [0, 1] and its mask."""
    shape = (584, 565)
    picture = Image.new("L", (SCALE * shape[1], SCALE * shape[0]))
    draw, disc = ImageDraw.Draw(picture), np.array([292, 80]) + rng.normal(0, 15, 2)
    for angle in np.linspace(-1.4, 1.4, 6) + rng.normal(0, 0.15, 6):
        branch(draw, rng, disc, angle, rng.uniform(4, 8))
    cover = np.asarray(picture.resize(shape[::-1], Image.Resampling.BOX)) / 255
    y, x = np.indices(shape)
    light = np.exp(-((y - disc[0]) ** 2 + (x - disc[1]) ** 2) / 1500)
    contrast = 0.16 * np.clip(1 + 0.4 * smooth(rng, shape, 40), 0.2, None)
    image = 0.5 + 0.06 * smooth(rng, shape, 60) + 0.25 * light - contrast * cover
    image -= 0.08 * np.clip(smooth(rng, shape, 6) - 2, 0, None)  # spots that are no vessels
    return ndimage.gaussian_filter(image, 0.7) + 0.04 * rng.normal(size=shape), cover > 0.5


def nuclei(rng: Generator) -> tuple[Values, NDArray[np.bool_]]:
    """Return an image in [0, 1] and its mask, with a gap between nuclei that touch."""
    shape = (520, 696)
    y, x = np.indices(shape)
    image, mask = np.full(shape, 0.08), np.zeros(shape, bool)
    for _ in range(rng.integers(60, 120)):
        centre, turn = rng.uniform((0, 0), shape), rng.uniform(0, np.pi)
        a, b = rng.uniform(7, 14), rng.uniform(5, 10)
        u = (y - centre[0]) * np.cos(turn) + (x - centre[1]) * np.sin(turn)
        v = (x - centre[1]) * np.cos(turn) - (y - centre[0]) * np.sin(turn)
        inside, about = ((u / (a + d)) ** 2 + (v / (b + d)) ** 2 < 1 for d in (0, 2))
        if not (mask & inside).any():
            mask = (mask & ~about) | inside
            image = np.where(inside, rng.uniform(0.2, 0.7), image)
    image = ndimage.gaussian_filter(image * (1 + 0.15 * smooth(rng, shape, 3)), 1.2)
    return image + 0.03 * smooth(rng, shape, 50) + 0.03 * rng.normal(size=shape), mask


def main(kind: str, root: Path) -> None:
    """Write a set."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(COUNT):
        image, mask = {"vessels": vessels, "nuclei": nuclei}[kind](np.random.default_rng(number))
        values = (255 * image.clip(0, 1) + 0.5).astype(np.uint8)
        Image.fromarray(values).save(root / "images" / f"{number:02d}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{number:02d}.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
