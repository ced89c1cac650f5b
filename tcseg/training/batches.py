"""Mini-batches: which images, and which of them with their labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from tcseg.data import Dataset
from tcseg.method.transforms import Transform
from tcseg.method.variants import Method
from tcseg.training import distributed

__all__ = ["Batches", "sample"]


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
        What the images are drawn by; on the device.
    """

    def __init__(
        self,
        dataset: Dataset,
        labelled: Sequence[int],
        unlabelled: Sequence[int],
        size: int,
        generator: Generator,
    ) -> None:
        self.dataset, self.size = dataset, size
        self.generator = generator
        # On the device beforehand: a copy in the loop would wait for it.
        self.labelled = torch.tensor(labelled, device=generator.device)
        self.unlabelled = torch.tensor(unlabelled, device=generator.device)

    def draw(
        self, method: Method, views: Sequence[Transform] = ()
    ) -> tuple[Tensor, Tensor, list[Transform]]:
        """Draw the part of a mini-batch that this process works on.

        Parameters
        ----------
        method : Method
            Whether there are unlabelled images in it.
        views : sequence of Transform
            Distributions that transforms of the whole batch are drawn from.

        Returns
        -------
        images, labels, views
            Images (b, 1, H, W), labelled ones first; the labels of those as bits; the
            distributions to draw their transforms from.
        """
        semi = bool(method.pool and len(self.unlabelled))
        count = self.size // 2 if semi else self.size
        indices = sample(self.labelled, count, self.generator)
        if semi:
            others = sample(self.unlabelled, self.size - count, self.generator)
            indices = torch.cat([indices, others])
        processes = distributed.world_size()
        if processes > 1:
            rows = distributed.share(self.size, count, self.generator.device)
            indices, count = indices[rows], count // processes
            views = [distributed.Rows(view, rows, self.size) for view in views]
        labels = self.dataset.mask_batch(indices[:count])
        return self.dataset.image_batch(indices), labels, list(views)


def sample(pool: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw `count` of a pool: no image twice before each came once."""
    # Whole shuffles one after the other.
    rounds = -(-count // len(pool))
    shuffles = [
        torch.randperm(len(pool), generator=generator, device=generator.device)
        for _ in range(rounds)
    ]
    return pool[torch.cat(shuffles)[:count]]
