"""What resizing takes from masks: brought to the size of a network, and back to their own."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from tcseg.data import MIN_SIZE, Dataset
from tcseg.evaluation.metrics import iou
from tcseg.io.placement import Placement, as_masks
from tcseg.io.sizes import Size, pixels, shape_of

__all__ = ["ENOUGH", "Kept", "candidates", "kept_by_resizing", "suggested"]

SIZES = (64, 128, 256, 512, 1024, 2048)
ENOUGH = 0.95
Named = int | str  # 256, or "192x256"
IMAGES = 50  # of a structure that are measured at most, spread over all


@dataclass
class Kept:
    """What is left of one structure, in each of some images that show it.

    Attributes
    ----------
    overlaps
        IOU of its mask with itself, brought to a size and back.
    components, lost
        Its connected components, over corners as well, and those of which no pixel is left.
    """

    overlaps: list[float] = field(default_factory=list)
    components: int = 0
    lost: int = 0

    @property
    def iou(self) -> float:
        """Mean over the images."""
        return float(np.mean(self.overlaps)) if self.overlaps else float("nan")


def kept_by_resizing(dataset: Dataset, sizes: Sequence[Named]) -> dict[Named, dict[str, Kept]]:
    """Bring true masks to sizes and back to their own, as in training and prediction.

    Parameters
    ----------
    dataset
        The masks are read from its files again.
    sizes
        In pixels, as `pixels` writes them.

    Returns
    -------
    dict
        By size, the smallest first, and structure.

    Raises
    ------
    DataError
        If the files can no longer be read.
    """
    sizes = sorted(sizes, key=lambda size: math.prod(shape_of(size)))
    kept = {size: {name: Kept() for name in dataset.classes} for size in sizes}
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    images = _images(dataset)
    for index in track(images, "Resizing masks", console=console, transient=True):
        whole, _ = dataset.original(index)
        shown = np.flatnonzero(whole.any(axis=(1, 2)))  # few of many, perhaps
        whole = whole[shown]
        names = [dataset.classes[c] for c in shown if c < len(dataset.classes)]  # not the ignored
        labelled = [ndimage.label(mask, np.ones((3, 3))) for mask in whole[: len(names)]]
        for size in sizes:
            back = _there_and_back(whole, size, dataset.exclusive)
            parts = zip(names, whole, back, labelled, strict=False)
            for name, before, after, (labels, count) in parts:
                found = kept[size][name]
                found.overlaps.append(iou(before, after))
                found.components += count
                found.lost += count - int(np.count_nonzero(np.unique(labels[after])))
    return kept


def candidates(dataset: Dataset) -> list[Named]:
    """Return sizes to choose from, up to the first one that no image exceeds.

    Each has a longer side of `SIZES`, and another as short as the proportions of all images allow.
    """
    shapes = np.array([dataset.original(index)[0].shape[1:] for index in _images(dataset)])
    longer = [side for n, side in enumerate(SIZES) if n == 0 or SIZES[n - 1] < shapes.max()]
    parts = (shapes / shapes.max(axis=1, keepdims=True)).max(axis=0)
    heights, widths = (
        [max(MIN_SIZE, 16 * math.ceil(side * part / 16)) for side in longer] for part in parts
    )
    return [pixels(shape) for shape in zip(heights, widths, strict=True)]


def suggested(kept: Mapping[Named, Mapping[str, Kept]]) -> tuple[Named, str, float]:
    """Return the smallest size that keeps enough of every structure, else that which keeps most.

    With the structure that keeps least there, and its IOU.
    """
    least = {}
    for size, structures in kept.items():
        known = {name: found.iou for name, found in structures.items() if found.overlaps}
        name = min(known, key=lambda name: known[name])
        least[size] = (name, known[name])
    enough = [size for size, (_, value) in least.items() if value >= ENOUGH]
    size = enough[0] if enough else max(least, key=lambda size: least[size][1])
    return size, *least[size]


def _images(dataset: Dataset) -> list[int]:
    """Return images that show each structure, few of each."""
    annotated = range(len(dataset)) if dataset.annotated is None else dataset.annotated
    shown: dict[str, list[int]] = {name: [] for name in dataset.classes}
    for index in annotated:
        here = {dataset.classes[c] for c in dataset.shown(index)}
        for name in here.union(dataset.vanished.get(index, ())):
            shown[name].append(index)
    return sorted({i for part in shown.values() for i in part[:: -(-len(part) // IMAGES) or 1]})


def _there_and_back(masks: NDArray[np.bool_], size: Size, disjoint: bool) -> NDArray[np.bool_]:
    place = Placement.of((masks.shape[1], masks.shape[2]), size)
    fitted = place.fit_masks(masks, disjoint)
    found = np.concatenate([fitted, ~fitted.any(axis=0, keepdims=True)])
    return as_masks(place.restore(found.astype(np.float32)), disjoint)
