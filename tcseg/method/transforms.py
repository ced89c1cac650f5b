"""Random transforms t = (t_in, t_out) of images and their labels.

A transform is a class with one method, ``sample``. What that returns moves pixels (a displacement,
applied to image and label alike) or changes the values of the image (t_out is then the
identity), or both. Strengths in pixels are given for images of 512 x 512 pixels and scale with the
longer side of others, so that a picture deforms alike at every size, with margins and without. A
patch deforms as an image of its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

import tcwarp

REFERENCE_SIZE = 512


@dataclass(frozen=True)
class SampledTransform:
    """One transform for each member of a batch.

    Attributes
    ----------
    displacement : Tensor, shape (b, 2, H, W), or None
        Where t_in and t_out read from, in pixels; None is the identity. Larger images are read in
        their middle, with what lies around: patches of this size.
    adjust : callable or None
        What t_in does to image values (b, C, H, W) after the warp, to all channels alike.
    """

    displacement: Tensor | None = None
    adjust: Callable[[Tensor], Tensor] | None = None

    def motion(self, rows: slice) -> SampledTransform:
        """Return what moves the pixels of some of the images, for `label` and `align`."""
        return SampledTransform(None if self.displacement is None else self.displacement[rows])

    def rows(self, index: Tensor, batch: int) -> SampledTransform:
        """Return the draw for images `index` of the batch of that many it was drawn for."""
        adjust, displacement = self.adjust, self.displacement

        def adjust_rows(images: Tensor) -> Tensor:
            # What `adjust` keeps for each image is its own; others are blank meanwhile.
            whole = images.new_zeros(batch, *images.shape[1:])
            whole[index] = images
            assert adjust is not None
            return adjust(whole)[index]

        return SampledTransform(
            None if displacement is None else displacement[index],
            None if adjust is None else adjust_rows,
        )

    def image(self, images: Tensor) -> Tensor:
        """Apply t_in to images (b, C, H, W) in [0, 1]."""
        if self.displacement is not None:
            images = tcwarp.warp(images, self._source(images), mode="cubic", padding_mode="border")
        return images if self.adjust is None else self.adjust(images)

    def label(self, labels: Tensor) -> Tensor:
        """Apply t_out to labels (b, C, H, W) of any dtype: values are copied, never mixed."""
        if self.displacement is None:
            return labels
        return tcwarp.warp(labels, self._source(labels), mode="nearest", padding_mode="border")

    def _source(self, images: Tensor) -> Tensor:
        assert self.displacement is not None
        sizes = zip(images.shape[2:], self.displacement.shape[2:], strict=True)
        corner = [(n - m) // 2 for n, m in sizes]
        if not any(corner):
            return self.displacement
        parts = zip(self.displacement.unbind(1), corner, strict=True)
        return torch.stack([part + start for part, start in parts], dim=1)


def align(first: SampledTransform, second: SampledTransform, predictions: Tensor) -> Tensor:
    """Apply ``t2_out o t1_out^-1`` to predictions (b, C, H, W) made under the first draw.

    Differentiable: gradients go back to the pixels that the values came from.
    """
    if first.displacement is None and second.displacement is None:
        return predictions
    t1 = _or_zeros(first.displacement, second.displacement)
    t2 = _or_zeros(second.displacement, first.displacement)
    return tcwarp.warp(predictions, tcwarp.align(t1, t2), mode="nearest", padding_mode="border")


def _or_zeros(displacement: Tensor | None, other: Tensor | None) -> Tensor:
    if displacement is not None:
        return displacement
    assert other is not None
    return torch.zeros_like(other)


class Transform(Protocol):
    """A distribution of transforms."""

    def sample(self, batch: int, size: tuple[int, ...], generator: Generator) -> SampledTransform:
        """Draw one transform for each of `batch` images of `size`, on the generator's device."""
        ...


@dataclass(frozen=True)
class Elastic:
    """Smooth random deformation by Gaussian-smoothed noise.

    Attributes
    ----------
    magnitude, sigma : float
        Of the noise and its Gaussian, in pixels at 512 x 512.
    displacement_std : float, optional
        Root mean square displacement in pixels at 512 x 512, in place of `magnitude`.
    identity_probability : float
        How often an image stays as it is.
    """

    magnitude: float = 1000.0
    sigma: float = 100.0
    displacement_std: float | None = None
    identity_probability: float = 0.5

    def sample(self, batch: int, size: tuple[int, ...], generator: Generator) -> SampledTransform:
        """Draw displacements."""
        scale = max(size) / REFERENCE_SIZE
        std = self.displacement_std
        return SampledTransform(
            tcwarp.random_displacement(
                batch,
                size,
                # Smoothing divides the noise by sigma in pixels, so the noise scales twice.
                magnitude=self.magnitude * scale * scale,
                sigma=self.sigma * scale,
                displacement_std=None if std is None else std * scale,
                identity_probability=self.identity_probability,
                generator=generator,
                dtype=torch.float32,
                device=generator.device,
            )
        )


@dataclass(frozen=True)
class Affine:
    """Rotation, scaling, shear and shift about the centre, uniform within plus or minus a bound.

    Attributes
    ----------
    rotation : float
        Degrees.
    scale, shear, shift : float
        Fractions: of the size of things, of a unit shear, of the longer side.
    identity_probability : float
        How often an image stays as it is.
    """

    rotation: float = 5.0
    scale: float = 0.1
    shear: float = 0.05
    shift: float = 0.05
    identity_probability: float = 0.5

    def sample(self, batch: int, size: tuple[int, ...], generator: Generator) -> SampledTransform:
        """Draw displacements ``(A - 1) (x - centre) + shift``."""
        kept = _uniform((batch, 1), generator) >= self.identity_probability
        values = (2 * _uniform((batch, 6), generator) - 1) * kept
        angle = values[:, 0] * math.radians(self.rotation)
        scales = 1 + values[:, 1:3] * self.scale
        shears = values[:, 3] * self.shear
        cosine, sine = torch.cos(angle), torch.sin(angle)
        rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
        stretch = torch.diag_embed(scales)
        stretch[:, 0, 1] = shears
        matrix = rotation @ stretch - torch.eye(2, device=generator.device)
        axes = [
            torch.arange(n, device=generator.device, dtype=torch.float32) - (n - 1) / 2
            for n in size
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        shift = values[:, 4:6, None] * (self.shift * max(size))
        return SampledTransform((matrix @ grid + shift).view(batch, 2, *size))


@dataclass(frozen=True)
class Intensity:
    """Change of exposure: gamma, contrast, brightness, and noise. Labels stay as they are.

    All channels of an image get the same change, and the same noise.

    Attributes
    ----------
    gamma, contrast : float
        Standard deviation of the logarithm of the factor.
    brightness, noise : float
        Standard deviation in units of the image range.
    identity_probability : float
        How often an image stays as it is.
    """

    gamma: float = 0.3
    contrast: float = 0.2
    brightness: float = 0.1
    noise: float = 0.02
    identity_probability: float = 0.0

    def sample(self, batch: int, size: tuple[int, ...], generator: Generator) -> SampledTransform:
        """Draw factors, and noise for every pixel."""
        normals = torch.randn(4, batch, 1, 1, 1, generator=generator, device=generator.device)
        gamma, contrast = (normals[0] * self.gamma).exp(), (normals[1] * self.contrast).exp()
        brightness, deviation = normals[2] * self.brightness, normals[3].abs() * self.noise
        noise = torch.randn(batch, 1, *size, generator=generator, device=generator.device)
        changed: Tensor | None = None
        if self.identity_probability > 0:
            changed = _uniform((batch, 1, 1, 1), generator) >= self.identity_probability

        def adjust(images: Tensor) -> Tensor:
            exposed = images.clamp(0, 1) ** gamma
            centre = exposed.mean(dim=(1, 2, 3), keepdim=True)
            exposed = (exposed - centre) * contrast + centre + brightness + noise * deviation
            return exposed if changed is None else torch.where(changed, exposed, images)

        return SampledTransform(adjust=adjust)


@dataclass(frozen=True)
class Compose:
    """One transform after the other.

    Attributes
    ----------
    transforms : sequence of Transform
        The first is applied to the image first.
    identity_probability : float
        How often no pixel of an image is moved by any of them.
    """

    transforms: Sequence[Transform]
    identity_probability: float = 0.0

    def sample(self, batch: int, size: tuple[int, ...], generator: Generator) -> SampledTransform:
        """Draw from all, joining displacements into one so that the image is read once."""
        joined = SampledTransform()
        for transform in self.transforms:
            joined = _join(joined, transform.sample(batch, size, generator))
        if joined.displacement is None or self.identity_probability == 0:
            return joined
        moved = _uniform((batch, 1, 1, 1), generator) >= self.identity_probability
        return replace(joined, displacement=joined.displacement * moved)


def _join(first: SampledTransform, second: SampledTransform) -> SampledTransform:
    displacement = second.displacement if first.displacement is None else first.displacement
    if first.displacement is not None and second.displacement is not None:
        displacement = tcwarp.compose(first.displacement, second.displacement)
    adjusts = [draw.adjust for draw in (first, second) if draw.adjust is not None]

    def adjust(images: Tensor) -> Tensor:
        for change in adjusts:
            images = change(images)
        return images

    return SampledTransform(displacement, adjust if adjusts else None)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


# What `recipe` names: deformations ten times as large as those of the paper, and the
# distribution T of the paper. On JSRT, 5 labels, rotation and scale beside them gain nothing,
# changes of intensity cost 3 points of mIOU: benchmarks/results/jsrt.md.
RECIPES: dict[str, Transform] = {
    "strong": Elastic(displacement_std=16.0, sigma=100.0, identity_probability=0.5),
    "paper": Elastic(magnitude=1000.0, sigma=100.0, identity_probability=0.5),
}


def recipe(name: str, displacement_std: float | None = None) -> Transform:
    """Return the transforms that `recipe` names, elastic fields of another strength on demand.

    Parameters
    ----------
    name : str
        A key of `RECIPES`.
    displacement_std : float, optional
        Root mean square displacement in pixels at 512 x 512, in place of the recipe's.
    """

    def changed(transform: Transform) -> Transform:
        if isinstance(transform, Elastic):
            return replace(transform, displacement_std=displacement_std)
        if isinstance(transform, Compose):
            return replace(transform, transforms=[changed(t) for t in transform.transforms])
        return transform

    return RECIPES[name] if displacement_std is None else changed(RECIPES[name])
