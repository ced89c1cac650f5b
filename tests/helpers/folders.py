"""Folders of images with masks, made up: each a disc and a square, which overlap, on noise."""

import numpy as np
import pytest
from PIL import Image

from tcseg.data import load_dataset
from tcseg.errors import DataError

SHAPES = [(40, 60), (64, 64), (90, 50), (33, 47), (64, 32), (20, 20), (50, 50), (64, 64)]


def picture(number):
    """A bright disc and a square, which overlap, on noise: image and masks."""
    height, width = SHAPES[number]
    y, x = np.indices((height, width))
    disc = (y - height / 2) ** 2 + (x - width / 3) ** 2 < (min(height, width) / 4) ** 2
    square = (abs(y - height / 2) < height / 6) & (abs(x - width / 2) < width / 5)
    noise = np.random.default_rng(number).integers(0, 40, (height, width))
    return (noise + 90 * disc + 90 * square).astype(np.uint8), disc, square


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def load(root, size=64, **options):
    return load_dataset("folder", root=root, size=size, **options)


def refused(root, *words):
    with pytest.raises(DataError) as error:
        load(root)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
