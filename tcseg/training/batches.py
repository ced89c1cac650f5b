"""Mini-batches: which images, and which of them with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from tcseg.data import Dataset
from tcseg.data.dataset import Window
from tcseg.io.sizes import Size, shape_of, suits, written
from tcseg.method.transforms import Transform
from tcseg.method.variants import Method
from tcseg.training import distributed

__all__ = ["Batches", "Patches", "sample"]

# As in nnU-Net: how often a patch of a labelled image is about a pixel of a structure, and of how
# many pixels of an image, as many of each structure, one is taken.
ABOUT_STRUCTURES, MARKED = 1 / 3, 1000


class Batches:
    """The mini-batches of a training.

    Parameters
    ----------
    dataset : Dataset
        Images and masks, for work on the device.
    labelled, unlabelled : sequence of int
        Images that are used with their labels, and without.
    size : int
        Images in a mini-batch, of all processes.
    generator : Generator
        Source of the random choice of images; on the device.
    patch : int or str, optional
        Size of patches, if the network is trained on those. They lie anywhere in the images, or,
        in labelled images with probability 1/3, around a pixel of a structure.

    Raises
    ------
    ValueError
        If an image is smaller than a patch.
    """

    def __init__(
        self,
        dataset: Dataset,
        labelled: Sequence[int],
        unlabelled: Sequence[int],
        size: int,
        generator: Generator,
        patch: Size | None = None,
    ) -> None:
        self.dataset, self.size = dataset, size
        self.generator = generator
        # On the device beforehand: a copy in the loop would wait for it.
        self.labelled = torch.tensor(labelled, device=generator.device)
        self.unlabelled = torch.tensor(unlabelled, device=generator.device)
        self.patches = None if patch is None else Patches(dataset, labelled, unlabelled, patch)

    def draw(
        self, method: Method, views: Sequence[Transform] = ()
    ) -> tuple[Tensor, Tensor, list[Transform], Tensor | None]:
        """Draw the part of a mini-batch that this process works on.

        Parameters
        ----------
        method : Method
            Whether there are unlabelled images in it.
        views : sequence of Transform
            Distributions that transforms of the whole batch are drawn from.

        Returns
        -------
        images, labels, views, inside
            Images (b, C, *spatial), labelled ones first; the packed masks of those; the
            distributions to draw their transforms from. Images with patches in their middle are
            twice as long along each axis; uint8 (b, 1, *spatial) says where they show something of
            an image, 0 beyond it (None: they do everywhere).
        """
        semi = bool(method.pool and len(self.unlabelled))
        count = self.size // 2 if semi else self.size
        indices = sample(self.labelled, count, self.generator)
        if semi:
            others = sample(self.unlabelled, self.size - count, self.generator)
            indices = torch.cat([indices, others])
        window: Window | None = None
        inside: Tensor | None = None
        if self.patches is not None:
            window, inside = self.patches.draw(indices, count, self.generator)
        processes = distributed.world_size()
        if processes > 1:
            rows = distributed.share(self.size, count, self.generator.device)
            indices, count = indices[rows], count // processes
            window = window and tuple(places[rows] for places in window)
            inside = inside if inside is None else inside[rows]
            views = [distributed.Rows(view, rows, self.size) for view in views]
        first = window and tuple(places[:count] for places in window)
        labels = self.dataset.mask_batch(indices[:count], first)
        return self.dataset.image_batch(indices, window), labels, list(views), inside


class Patches:
    """Places of patches in images; parameters are those of `Batches`.

    What is read is a window twice as long along each axis, so that a deformed patch takes one
    interpolation, as if from the whole image; beyond the image, its border is repeated. Volumes may
    be smaller than a patch: they lie in its middle.
    """

    def __init__(
        self, dataset: Dataset, labelled: Sequence[int], unlabelled: Sequence[int], patch: Size
    ) -> None:
        axes = len(dataset.spatial)
        self.shape = shape_of(patch, axes)
        extents = [dataset.extent_of(index) for index in range(len(dataset))]
        for index in (*labelled, *unlabelled):
            if axes == 2 and not suits(self.shape, extents[index]):
                raise ValueError(
                    f"`patch` {written(self.shape)} is larger than the image {dataset.ids[index]}, "
                    f"{written(extents[index])}; use a smaller one"
                )
        marked = torch.full((len(labelled), MARKED, axes), -1, dtype=torch.int32)
        rows = torch.zeros(len(dataset), dtype=torch.int64)  # of those, by image
        generator = torch.Generator().manual_seed(0)
        for row, index in enumerate(labelled):
            rows[index] = row
            masks = dataset.target_batch([index])[0, :-1].cpu()
            shown = [mask.nonzero() for mask in masks if mask.any()]
            for number, found in enumerate(shown):  # as many of each
                part = marked[row, number :: len(shown)]
                part.copy_(found[torch.randint(len(found), (len(part),), generator=generator)])
        self.size, self.extents, self.marked, self.rows = (
            torch.as_tensor(part, device=dataset.device)
            for part in (self.shape, extents, marked, rows)
        )

    def draw(self, indices: Tensor, labelled: int, generator: Generator) -> tuple[Window, Tensor]:
        """Draw one in each of these images, the first ones of which are labelled.

        Returns what to read, and where that is inside the image, uint8 (b, 1, *spatial).
        """
        draw: dict[str, Any] = {"generator": generator, "device": generator.device}
        extents, axes = self.extents[indices], len(self.shape)
        over = (self.size - extents).clamp(min=0) // 2  # of a patch beyond a smaller volume
        spare = (extents - self.size).clamp(min=0)
        corner = (torch.rand(len(indices), axes, **draw) * (spare + 1)).long().minimum(spare)
        rows = self.rows[indices[:labelled]]
        marked = self.marked[rows, torch.randint(MARKED, (labelled,), **draw)]
        about = (marked - self.size // 2).clamp(min=0).minimum(spare[:labelled])
        chosen = (torch.rand(labelled, 1, **draw) < ABOUT_STRUCTURES) & (marked >= 0)
        corner[:labelled] = torch.where(chosen, about, corner[:labelled])
        window, inside = [], torch.ones((), dtype=torch.uint8, device=generator.device)
        for k, n in enumerate(self.shape):
            places = torch.arange(-(n // 2), 2 * n - n // 2, device=generator.device)
            places = (corner - over)[:, k, None] + places
            within = (places >= 0) & (places < extents[:, k, None])
            inside = inside * within.view(-1, 1, *(2 * n if j == k else 1 for j in range(axes)))
            window.append(places.clamp(min=0).minimum(extents[:, k, None] - 1))
        return tuple(window), inside


def sample(pool: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw `count` of a pool: no image twice before each came once."""
    # Whole shuffles one after the other.
    rounds = -(-count // len(pool))
    shuffles = [
        torch.randperm(len(pool), generator=generator, device=generator.device)
        for _ in range(rounds)
    ]
    return pool[torch.cat(shuffles)[:count]]
