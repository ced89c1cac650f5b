"""Procedural chest radiographs with five overlapping structures, and abdomens, made from a seed.

The image is the attenuation summed along the beam, so structures shine through each other as in a
projection. As in JSRT, the patient's right side is on the left of the image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tcseg.data.dataset import CLASSES, Dataset
from tcseg.data.packing import pack_masks
from tcseg.data.phantom import abdomen
from tcseg.data.phantom.anatomy import draw_anatomy
from tcseg.data.phantom.radiograph import attenuation, expose

COUNT = 160
FIELD_OF_VIEW_MM = 0.175 * 2048  # as JSRT
FINE_SIZE = 128  # so many pixels at least are rendered


def load(size: int, dimensions: int = 2, *, count: int | None = None, seed: int = 0) -> Dataset:
    """Make phantoms of `size` pixels along each axis; number i does not depend on `count`."""
    make, width = make_phantom, FIELD_OF_VIEW_MM
    if dimensions == 3:
        make, width = abdomen.make_volume, abdomen.FIELD_OF_VIEW_MM
    dataset = undrawn(dimensions, count)
    pairs = [make(index, size, seed=seed) for index in range(len(dataset))]
    return replace(
        dataset,
        images=torch.from_numpy(np.stack([image for image, _ in pairs])[:, None]),
        masks=torch.stack([pack_masks(masks, dimensions=dimensions) for _, masks in pairs]),
        spacings=[(width / size,) * dimensions] * len(pairs),
    )


def undrawn(dimensions: int = 2, count: int | None = None) -> Dataset:
    """Return the data set without its pixels, which take a while: enough to divide it."""
    classes, usual = (CLASSES, COUNT) if dimensions == 2 else (abdomen.CLASSES, abdomen.COUNT)
    ids = [f"phantom{index:03d}" for index in range(usual if count is None else count)]
    empty = torch.empty(len(ids), 1, *[0] * dimensions, dtype=torch.uint8)
    return Dataset("phantom", ids, classes, images=empty, masks=empty)


def make_phantom(
    index: int, size: int, *, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Make one phantom.

    Parameters
    ----------
    index
        Its number; phantom `index` of `seed` is always the same one.
    size
        Height and width in pixels; changes the resolution, not the anatomy.
    seed
        Number of the population.

    Returns
    -------
    image : uint8 (size, size)
        Bone bright, air dark.
    masks : bool (5, size, size)
        One mask per structure of ``CLASSES``; they overlap.
    """
    rng = np.random.default_rng([seed, index])
    # Coarse images are averaged from finer ones: ribs and clavicles are a pixel wide there.
    factor = -(-FINE_SIZE // size)
    patient = draw_anatomy(rng, factor * size)
    beam = attenuation(rng, patient)
    film = expose(rng, beam, np.random.default_rng([seed, index, size]))
    image = (255 * _average(film, factor) + 0.5).astype(np.uint8)
    return image, _average(patient.masks(), factor) > 0.5


def _average(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Average blocks of `factor` x `factor` pixels of (..., height, width)."""
    *channels, height, width = values.shape
    blocks = values.reshape(*channels, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(-3, -1)))
