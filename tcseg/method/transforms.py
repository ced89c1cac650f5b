"""Random transforms t = (t_in, t_out) of images and their labels.

A transform is a class with one method, ``sample``. What that returns moves pixels (a displacement,
applied to image and label alike) or changes the values of the image (t_out is then the
identity), or both. Strengths in pixels are given for images of 512 x 512 pixels and scale with the
longest side of others, so that a picture deforms alike at every size, with margins and without. A
patch deforms as an image of its size. Voxels that are longer along one axis are moved by fewer of
them along it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

import tcwarp

REFERENCE_SIZE = 512


@dataclass(frozen=True)
class SampledTransform:
    """One transform for each member of a batch.

    Attributes
    ----------
    displacement : Tensor, shape (b, D, *spatial), or None
        Where t_in and t_out read from, in pixels; None is the identity. Larger images are read in
        their middle, with what lies around: patches of this size.
    adjust : callable or None
        What t_in does to image values (b, C, *spatial) after the warp, to all channels alike.
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

    def of_patch(self, batch: int, size: Sequence[int], device: torch.device) -> SampledTransform:
        """Return the same draw as one that reads the middle of larger images, moved or not."""
        if self.displacement is not None:
            return self
        still = torch.zeros(batch, len(size), *size, device=device)
        return replace(self, displacement=still)

    def image(self, images: Tensor) -> Tensor:
        """Apply t_in to images (b, C, *spatial) in [0, 1]."""
        if self.displacement is not None:
            images = tcwarp.warp(images, self._source(images), mode="cubic", padding_mode="border")
        return images if self.adjust is None else self.adjust(images)

    def label(self, labels: Tensor) -> Tensor:
        """Apply t_out to labels (b, C, *spatial) of any dtype: values are copied, never mixed."""
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


def align(
    first: SampledTransform,
    second: SampledTransform,
    predictions: Tensor,
    padding_mode: Literal["border", "zeros"] = "border",
) -> Tensor:
    """Apply ``t2_out o t1_out^-1`` to predictions (b, C, *spatial) made under the first draw.

    Differentiable: gradients go back to the pixels that the values came from.
    """
    if first.displacement is None and second.displacement is None:
        return predictions
    t1 = _or_zeros(first.displacement, second.displacement)
    t2 = _or_zeros(second.displacement, first.displacement)
    field = tcwarp.align(t1, t2)
    return tcwarp.warp(predictions, field, mode="nearest", padding_mode=padding_mode)


def align_known(
    first: SampledTransform,
    second: SampledTransform,
    predictions: Tensor,
    inside: Tensor | None,
    rows: slice,
) -> tuple[Tensor, Tensor | None]:
    """Apply `align`, and say where the result is known: 1, else 0, and the result is 0 there.

    `inside` is 1 where there is something of the images, of which these are some rows. Known is
    what both views show of that; if it is not given, all is (None).
    """
    if inside is None:
        return align(first, second, predictions), None
    inside = inside[rows]
    shown = first.label(inside).to(predictions.dtype)
    aligned = align(first, second, torch.cat([predictions, shown], dim=1), "zeros")
    known = aligned[:, -1:] * second.label(inside)
    return aligned[:, :-1] * known, known


def _or_zeros(displacement: Tensor | None, other: Tensor | None) -> Tensor:
    if displacement is not None:
        return displacement
    assert other is not None
    return torch.zeros_like(other)


class Transform(Protocol):
    """A distribution of transforms."""

    def sample(self, batch: int, size: Sequence[int], generator: Generator) -> SampledTransform:
        """Draw one transform for each of `batch` images of `size`, on the generator's device."""
        ...


def _pixel(size: Sequence[int], spacing: Sequence[float] | None) -> tuple[list[float], float]:
    """Return the sides of a pixel, in units of its shortest one, and the longest of the image."""
    shortest = min(spacing or (1.0,))
    pixel = [side / shortest for side in spacing or [1.0] * len(size)]
    return pixel, max(n * side for n, side in zip(size, pixel, strict=True))


@dataclass(frozen=True)
class Elastic:
    """Smooth random deformation by Gaussian-smoothed noise.

    Attributes
    ----------
    magnitude, sigma : float
        Of the noise and its Gaussian, in pixels at 512 x 512; volumes are moved as far as images
        would be.
    displacement_std : float, optional
        Root mean square displacement in pixels at 512 x 512, in place of `magnitude`.
    identity_probability : float
        How often an image stays as it is.
    spacing : sequence of float, optional
        How long a pixel is along each axis, in any unit; the same along all if not given.
    """

    magnitude: float = 1000.0
    sigma: float = 100.0
    displacement_std: float | None = None
    identity_probability: float = 0.5
    spacing: Sequence[float] | None = None

    def sample(self, batch: int, size: Sequence[int], generator: Generator) -> SampledTransform:
        """Draw displacements."""
        pixel, longest = _pixel(size, self.spacing)
        scale = longest / REFERENCE_SIZE
        std = self.displacement_std
        if std is None and len(size) > 2:
            std = self.magnitude / (math.sqrt(12 * math.pi) * self.sigma)
        displacement = tcwarp.random_displacement(
            batch,
            size,
            # Smoothing divides the noise by sigma in pixels, so the noise scales twice.
            magnitude=self.magnitude * scale * scale,
            sigma=[self.sigma * scale / side for side in pixel],
            displacement_std=None if std is None else std * scale,
            identity_probability=self.identity_probability,
            generator=generator,
            dtype=torch.float32,
            device=generator.device,
        )
        for component, side in zip(displacement.unbind(1), pixel, strict=True):
            if side != 1:
                component /= side
        return SampledTransform(displacement)


@dataclass(frozen=True)
class Affine:
    """Rotation, scaling, shear and shift about the centre, uniform within plus or minus a bound.

    Attributes
    ----------
    rotation : float
        Degrees, in each plane of two axes.
    scale, shear, shift : float
        Fractions: of the size of things, of a unit shear, of the longest side.
    identity_probability : float
        How often an image stays as it is.
    spacing : sequence of float, optional
        How long a pixel is along each axis, in any unit; the same along all if not given.
    """

    rotation: float = 5.0
    scale: float = 0.1
    shear: float = 0.05
    shift: float = 0.05
    identity_probability: float = 0.5
    spacing: Sequence[float] | None = None

    def sample(self, batch: int, size: Sequence[int], generator: Generator) -> SampledTransform:
        """Draw displacements ``(A - 1) (x - centre) + shift``."""
        axes, device = len(size), generator.device
        upper = torch.triu_indices(axes, axes, 1, device=device).unbind()  # planes of two axes
        parts = (len(upper[0]), axes, len(upper[0]), axes)
        kept = _uniform((batch, 1), generator) >= self.identity_probability
        values = (2 * _uniform((batch, sum(parts)), generator) - 1) * kept
        angles, scales, shears, shifts = values.split(parts, dim=1)
        turns, stretch = values.new_zeros(2, batch, axes, axes)
        turns[:, *upper] = -angles * math.radians(self.rotation)
        stretch[:, *upper] = shears * self.shear
        stretch += torch.diag_embed(1 + scales * self.scale)
        matrix = torch.linalg.matrix_exp(turns - turns.mT) @ stretch
        pixel, longest = _pixel(size, self.spacing)
        lengths = [
            (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * side
            for n, side in zip(size, pixel, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*lengths, indexing="ij")).flatten(1)
        moved = (matrix - torch.eye(axes, device=device)) @ grid
        moved += shifts[:, :, None] * (self.shift * longest)
        moved /= torch.tensor(pixel, device=device)[:, None]
        return SampledTransform(moved.view(batch, axes, *size))


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

    def sample(self, batch: int, size: Sequence[int], generator: Generator) -> SampledTransform:
        """Draw factors, and noise for every pixel."""
        each = (batch, 1, *[1] * len(size))  # one number for each image
        normals = torch.randn(4, *each, generator=generator, device=generator.device)
        gamma, contrast = (normals[0] * self.gamma).exp(), (normals[1] * self.contrast).exp()
        brightness, deviation = normals[2] * self.brightness, normals[3].abs() * self.noise
        noise = torch.randn(batch, 1, *size, generator=generator, device=generator.device)
        changed: Tensor | None = None
        if self.identity_probability > 0:
            changed = _uniform(each, generator) >= self.identity_probability

        def adjust(images: Tensor) -> Tensor:
            exposed = images.clamp(0, 1) ** gamma
            centre = exposed.mean(dim=tuple(range(1, exposed.dim())), keepdim=True)
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

    def sample(self, batch: int, size: Sequence[int], generator: Generator) -> SampledTransform:
        """Draw from all, joining displacements into one so that the image is read once."""
        joined = SampledTransform()
        for transform in self.transforms:
            joined = _join(joined, transform.sample(batch, size, generator))
        if joined.displacement is None or self.identity_probability == 0:
            return joined
        each = (batch, 1, *[1] * len(size))
        moved = _uniform(each, generator) >= self.identity_probability
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
