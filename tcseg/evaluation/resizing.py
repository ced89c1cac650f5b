"""What resizing takes from masks: brought to the size of a network, and back to their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from tcseg.data import Dataset
from tcseg.evaluation.metrics import iou
from tcseg.io.placement import Placement
from tcseg.io.sizes import LEAST, ORIGINAL, Spacing, mm_of, mm_written, pixels, shape_of
from tcseg.sheet import track

SIZES = {2: (64, 128, 256, 512, 1024, 2048), 3: (32, 64, 96, 128, 192, 256)}
COARSER = (1, 1.5, 2, 3, 4)  # times the finest side of a voxel
ENOUGH = 0.95
Named = int | str  # 256, or "192x256"; of volumes at their own size, voxels: "5x1.5x1.5"
IMAGES = {2: 50, 3: 8}  # of a structure that are measured at most, spread over all
PATCH = 64 * 96 * 96  # voxels


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
        In pixels, as `pixels` writes them; of volumes that keep their own size, voxels in mm, as
        `mm_written` writes them.

    Returns
    -------
    dict
        By size, the smallest (of voxels, the largest) first, and structure.

    Raises
    ------
    DataError
        If the files can no longer be read.
    """
    axes = len(dataset.spatial)
    if dataset.extents is None:
        sizes = sorted(sizes, key=lambda size: math.prod(shape_of(size, axes)))
    else:
        sizes = sorted(sizes, key=lambda size: -math.prod(mm_of(str(size))))
    kept = {size: {name: Kept() for name in dataset.classes} for size in sizes}
    for index in track(_images(dataset), "Resizing masks"):
        whole, spacing = dataset.original(index)
        shown = np.flatnonzero(whole.any(axis=tuple(range(1, whole.ndim))))  # few of many, perhaps
        whole = whole[shown]
        names = [dataset.classes[c] for c in shown if c < len(dataset.classes)]  # not the ignored
        labelled = [ndimage.label(mask, np.ones([3] * axes)) for mask in whole[: len(names)]]
        for size in sizes:
            place = _placed(dataset, whole.shape[1:], spacing, size)
            fitted = place.fit_masks(whole, dataset.exclusive)
            found = np.concatenate([fitted, ~fitted.any(axis=0, keepdims=True)])
            back = place.restore_masks(found.astype(np.float32), dataset.exclusive)
            parts = zip(names, whole, back, labelled, strict=False)
            for name, before, after, (labels, count) in parts:
                left = kept[size][name]
                left.overlaps.append(iou(before, after))
                left.components += count
                left.lost += count - int(np.count_nonzero(np.unique(labels[after])))
    return kept


def candidates(dataset: Dataset) -> list[Named]:
    """Return sizes to choose from, up to the first one that no image exceeds.

    Each has a longer side of `SIZES`, and the others as short as the proportions of all images
    allow. Of volumes that keep their own size, return voxels: the median, and coarser ones, whose
    longer sides stay as they are until the others have reached them.
    """
    axes, read = len(dataset.spatial), map(dataset.original, _images(dataset))
    known = [(whole.shape[1:], spacing) for whole, spacing in read]
    if dataset.extents is not None:
        own = np.median([spacing for _, spacing in known if spacing], axis=0)
        return [mm_written(np.maximum(own, times * own.min()).tolist()) for times in COARSER]
    wanted = dataset.resampled
    placed = [Placement.of(shape, ORIGINAL, spacing, wanted) for shape, spacing in known]
    shapes = np.array([place.size for place in placed])
    sizes = SIZES[axes]
    longer = [side for n, side in enumerate(sizes) if n == 0 or sizes[n - 1] < shapes.max()]
    parts = (shapes / shapes.max(axis=1, keepdims=True)).max(axis=0)
    sides = [
        [max(LEAST[axes], 16 * math.ceil(side * part / 16)) for part in parts] for side in longer
    ]
    return [pixels(tuple(shape)) for shape in sides]


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


def suggested_patch(dataset: Dataset) -> Named:
    """Return a patch for volumes: of their median extent, its longest sides cut to be `PATCH`."""
    extents = [dataset.extent_of(index) for index in range(len(dataset))]
    sides = [16 * math.ceil(side / 16) for side in np.median(extents, axis=0)]
    while math.prod(sides) > PATCH:
        sides[sides.index(max(sides))] -= 16
    return pixels(tuple(sides))


def _images(dataset: Dataset) -> list[int]:
    """Return images that show each structure, few of each."""
    most = IMAGES[len(dataset.spatial)]
    shown: dict[str, list[int]] = {name: [] for name in dataset.classes}
    for index in dataset.with_masks:
        here = {dataset.classes[c] for c in dataset.shown(index)}
        for name in here.union(dataset.vanished.get(index, ())):
            shown[name].append(index)
    return sorted({i for part in shown.values() for i in part[:: -(-len(part) // most) or 1]})


def _placed(
    dataset: Dataset, shape: tuple[int, ...], spacing: Spacing | None, size: Named
) -> Placement:
    if dataset.extents is None:
        return Placement.of(shape, size, spacing, dataset.resampled)
    return Placement.of(shape, ORIGINAL, spacing, mm_of(str(size)))
