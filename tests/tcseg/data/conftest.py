"""Folders of images and masks in the two plain layouts."""

import numpy as np
import pytest
from folders import picture, save


@pytest.fixture
def by_class(tmp_path):
    """Eight images, six with masks, one folder for each class."""
    for number in range(8):
        image, disc, square = picture(number)
        save(tmp_path / "images" / f"scan{number}.png", image)
        if number < 6:
            save(tmp_path / "masks" / "disc" / f"scan{number}.png", disc)
            if number != 3:  # one without the square
                save(tmp_path / "masks" / "square" / f"scan{number}.png", square.astype("u1") * 255)
    return tmp_path


@pytest.fixture
def valued(tmp_path):
    """The same with one file for each image; the square lies over the disc."""
    for number in range(8):
        image, disc, square = picture(number)
        save(tmp_path / "images" / f"scan{number}.png", image)
        if number < 6:
            save(tmp_path / "masks" / f"scan{number}.png", np.where(square, 5, disc).astype("u1"))
    return tmp_path
