"""Mixing: boxes of one image in the place of those of another, and the same for their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Mixture:
    """One box for each image of a batch, and the image that its content comes from.

    Attributes
    ----------
    box : Tensor, bool (b, 1, *spatial)
    partner : Tensor, int64 (b,)
    """

    box: Tensor
    partner: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Mix images, or what is known of their pixels, (b, C, *spatial)."""
        return torch.where(self.box, values[self.partner], values)


@dataclass(frozen=True)
class Boxes:
    """A distribution of mixtures: boxes anywhere within the image.

    Attributes
    ----------
    area : tuple of float
        Least and largest part of the image, or of the volume, uniform between.
    aspect : float
        Largest ratio of a box's height and width, as parts of the image's; its logarithm is
        uniform.
    across : bool
        Whether the partner is of the other half of the batch, labelled images for unlabelled ones
        and the other way round, and not any image.
    """

    area: tuple[float, float]
    aspect: float
    across: bool = False

    def sample(self, batch: int, size: Sequence[int], generator: Generator) -> Mixture:
        """Draw boxes and partners for `batch` images of `size`, on the generator's device."""
        device = generator.device
        axes = len(size)
        uniform = torch.rand(2 + axes, batch, 1, generator=generator, device=device)
        least, largest = self.area
        area = least + (largest - least) * uniform[0]
        # No side is longer than the image's.
        face = area ** (2 / axes)
        ratio = ((2 * uniform[1] - 1) * face.log().neg().clamp(max=math.log(self.aspect))).exp()
        sides = [face.sqrt()] * (axes - 2) + [(face * ratio).sqrt(), (face / ratio).sqrt()]
        box = torch.ones(batch, 1, *size, dtype=torch.bool, device=device)
        for axis, (side, place, pixels) in enumerate(zip(sides, uniform[2:], size, strict=True)):
            centres = (torch.arange(pixels, device=device) + 0.5) / pixels
            start = place * (1 - side)
            within = (centres >= start) & (centres < start + side)
            box &= within.view(batch, 1, *(pixels if k == axis else 1 for k in range(axes)))
        if self.across:
            partner = torch.arange(batch, device=device).roll(batch // 2)
        else:
            partner = torch.randperm(batch, generator=generator, device=device)
        return Mixture(box, partner)


# What the field `mix` of a method names: the boxes of UniMatch (Yang et al., "Revisiting
# weak-to-strong consistency in semi-supervised semantic segmentation", CVPR 2023), and those of
# BCP (Bai et al., "Bidirectional copy-paste for semi-supervised medical image segmentation",
# CVPR 2023), two thirds of each side.
MIXES = {
    "boxes": Boxes(area=(0.02, 0.4), aspect=1 / 0.3),
    "labelled": Boxes(area=(4 / 9, 4 / 9), aspect=1.0, across=True),
}


def mixed_target(
    mixture: Mixture, masks: Tensor, target: Tensor, known: Tensor | None, ignores: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the target of mixed views (b, C, *spatial), and where it is known, 1, or else 0.

    Masks of the labelled images come first, then `target`, of all others, known where it says
    (None: everywhere). With `ignores`, masks are not known where they are all 0.
    """
    if ignores:
        rest = torch.ones_like(target[:, :1]) if known is None else known
        known = mixture(torch.cat([masks.any(1, True).to(rest.dtype), rest]))
    return mixture(torch.cat([masks, target])), known
