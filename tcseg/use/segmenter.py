"""A trained network as something to use: images or volumes of any size in, masks of it out."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from tcseg.data import Dataset
from tcseg.errors import RunError, counted
from tcseg.io.grey import as_pixels
from tcseg.io.placement import Placement
from tcseg.io.sizes import ORIGINAL, Spacing, mm_written, shape_of
from tcseg.io.windows import window_limits
from tcseg.method.network import at_once, found, rivals
from tcseg.method.transforms import Elastic, align
from tcseg.runs.config import resolve_device
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model, load_weights

# Pairs of deformed views of an image that its consistency is measured on, and their deformation.
PAIRS = 4
DEFORMATION = Elastic(displacement_std=16.0, identity_probability=0.0)


@dataclass(frozen=True)
class Prediction:
    """What is found in one image or volume.

    Attributes
    ----------
    masks : bool (C, H, W) or (C, D, H, W)
        One mask for each structure, of the size of the image. They may overlap, unless the masks of
        the training data held one value for each pixel.
    consistency : float or None
        Mean IOU of predictions for pairs of deformed views of the image, one aligned to the other:
        1 if deformation changes nothing. None if nothing was found, or if it was not asked for.
    """

    masks: NDArray[np.bool_]
    consistency: float | None
    _restore: Callable[[], NDArray[np.float32]] = field(repr=False)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """What the masks are made from, of their shape, made when it is asked for.

        A structure is where its probability exceeds one half and, where structures cannot overlap,
        those of all others; of a softmax, where it is the largest, the background's included.
        """
        return self._restore()


class Segmenter:
    """A trained network with all that it takes to use it.

    Parameters
    ----------
    network : Module
        Images (b, C, H, W) in [0, 1] to probabilities (b, classes + 1, H, W), background last.
    model : Model
        Its description.
    device : torch.device
        Where it runs.

    Examples
    --------
    >>> segmenter = tcseg.load("runs/semitc")  # doctest: +SKIP
    >>> masks = segmenter.predict(image).masks  # image: (H, W) array of any size  # doctest: +SKIP
    """

    def __init__(self, network: nn.Module, model: Model, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.model, self.device = model, device

    def check(self, dataset: Dataset, run: Path) -> None:
        """Raise RunError unless a data set is of the kind that the run was trained on."""
        if dataset.classes != self.classes:
            raise RunError(
                f"{run} was trained for {', '.join(self.classes)}; the data now have "
                f"{', '.join(dataset.classes)}"
            )
        if dataset.images.shape[1] != self.model.channels:
            raise RunError(
                f"{run} was trained on images of {counted(self.model.channels, 'channel')}; "
                f"the data now have {dataset.images.shape[1]}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the structures."""
        return self.model.classes

    def predict(
        self,
        image: NDArray[Any],
        *,
        consistency: bool = False,
        spacing: Spacing | None = None,
    ) -> Prediction:
        """Segment one image, or one volume where the network was trained on those.

        Parameters
        ----------
        image : array
            (H, W), or (H, W, C) for colour (alpha is left out) and other channels, of any size and
            number type; 8 bits are taken as they are, the range of anything wider is stretched, of
            each channel as in training, or the window of the training is taken. A volume is
            (D, H, W) or (D, H, W, C), its axes as of those trained on: of volumes of files, towards
            the head, the back and the right of the patient.
        consistency : bool
            Whether to compute the consistency as well, which takes several times as long.
        spacing : (float, float, float), optional
            Of a volume: depth, height and width of a voxel in mm, each above 0.

        Raises
        ------
        ValueError
            If the shape is another one, the network takes another number of channels, 8 bits are
            given to one trained in a window, or no spacing to one whose volumes were resampled.
        """
        image, window = np.asarray(image), self.model.window
        axes = self.model.dimensions
        if axes == 3 and image.ndim not in (3, 4):
            raise ValueError(
                f"a volume must have the shape (D, H, W) or (D, H, W, C), got {image.shape}"
            )
        if window is not None and image.dtype.itemsize == 1:
            raise ValueError(
                f"the network was trained in the window {window}: give it the values themselves, "
                f"such as Hounsfield units, got {image.dtype}"
            )
        if image.ndim > axes and image.shape[-1] == 4 and self.model.channels in (1, 3):
            image = image[..., :3]
        limits = None if window is None else window_limits(window)
        shape = image.shape[:axes]
        image = image.reshape(-1, *image.shape[axes - 1 :])  # planes of a volume as one image
        if image.ndim == 3 and self.model.files > 1:  # each has a scale, as its files had
            pixels = np.concatenate([as_pixels(channel) for channel in np.moveaxis(image, 2, 0)])
        else:
            pixels = as_pixels(image, limits)
        whole = pixels.reshape(-1, *shape)
        return next(self.predict_all([whole], consistency=consistency, spacings=[spacing]))

    def predict_all(
        self,
        images: Iterable[NDArray[np.float32]],
        *,
        consistency: bool = False,
        batch_size: int = 8,
        spacings: Iterable[Spacing | None] = itertools.repeat(None),
    ) -> Iterator[Prediction]:
        """Segment images one after the other, `batch_size` of them in memory.

        Parameters
        ----------
        images : iterable of float32 (C, *spatial)
            In [0, 1], as of `tcseg.io.images`; their sizes may differ.
        consistency : bool
            As for `predict`.
        batch_size : int
            How many go through the network at once, fewer where there are many structures.
        spacings : iterable of (float, float, float) or None
            Of volumes: depth, height and width of a voxel in mm.
        """
        if self.model.size == ORIGINAL:  # they cannot be stacked
            batch_size = 1
        else:
            size = shape_of(self.model.size, self.model.dimensions)
            batch_size = at_once(batch_size, len(self.classes), size)
        batch: list[tuple[Placement, NDArray[np.float32]]] = []
        for image, spacing in zip(images, spacings, strict=False):
            batch.append((self._place(image.shape[1:], spacing), self._channels(image)))
            if len(batch) == batch_size:
                yield from self._predict_batch(batch, consistency, batch_size)
                batch = []
        if batch:
            yield from self._predict_batch(batch, consistency, batch_size)

    def _place(self, shape: tuple[int, ...], spacing: Spacing | None) -> Placement:
        """Return how an image is brought to the size, or the spacing, of the training."""
        model = self.model
        if len(shape) != model.dimensions:
            raise ValueError(
                f"the network takes images of {model.dimensions} axes and their channels, this one "
                f"has {len(shape)}"
            )
        if model.voxel is not None and spacing is None:
            raise ValueError(
                "the network was trained on volumes resampled to voxels of "
                f"{mm_written(model.voxel)} mm: `spacing` must say how large these voxels are"
            )
        sides = np.array([1.0] * model.dimensions if spacing is None else spacing)
        if sides.shape != (model.dimensions,) or not ((sides > 0) & (sides < math.inf)).all():
            wanted = "depth, height and width of a voxel in mm"
            raise ValueError(f"`spacing` must be {wanted}, got {spacing}")
        return Placement.of(shape, model.size, spacing, model.voxel)

    def _channels(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring an image to the number of channels that the network takes."""
        wanted = self.model.channels
        if len(image) == wanted:
            return image
        if {wanted, len(image)} != {1, 3} or self.model.files > 1:
            raise ValueError(
                f"the network takes images of {counted(wanted, 'channel')}, this one has "
                f"{len(image)}"
            )
        if wanted == 1:
            weights = np.array([0.299, 0.587, 0.114], np.float32)  # luma, as Pillow's
            grey: NDArray[np.float32] = np.tensordot(weights, image, 1)[None]
            return grey
        return np.repeat(image[:1], wanted, axis=0)

    @torch.inference_mode()
    def _predict_batch(
        self,
        batch: list[tuple[Placement, NDArray[np.float32]]],
        consistency: bool,
        batch_size: int,
    ) -> Iterator[Prediction]:
        fitted = np.stack([place.fit(image) for place, image in batch])
        # Levels of as many bits as in training.
        most = (1 << self.model.bits) - 1
        images = torch.from_numpy(np.floor(fitted * most + 0.5)).to(self.device) / most
        answers = self.network(images)
        agreement = self._consistency(images, batch_size) if consistency else [None] * len(batch)
        squares = rivals(self.network, answers).float().cpu().numpy()
        for (place, _), square, score in zip(batch, squares, agreement, strict=True):
            masks = place.restore_masks(square, disjoint=self.model.values is not None)
            yield Prediction(masks, score, partial(place.restore, square[:-1]))

    def _consistency(self, images: Tensor, batch_size: int) -> list[float | None]:
        """Return the mean IOU of predictions under pairs of deformations, for each image."""
        generator = Generator(self.device).manual_seed(0)
        size, count = images.shape[2:], len(images)
        spacing = self.model.spacing if self.model.dimensions == 3 else None
        deformation = replace(DEFORMATION, spacing=spacing)
        disjoint = self.model.values is not None
        # The same for all images, whichever stand beside one: they are compared with each other.
        draws = [deformation.sample(1, size, generator) for _ in range(2 * PAIRS)]
        scores = []
        some = 2 * max(1, batch_size // (2 * count))  # go through the network at once
        for part in (draws[start : start + some] for start in range(0, len(draws), some)):
            views = torch.cat([t.image(images) for t in part]).split(max(batch_size, count))
            masks = [found(self.network, self.network(v), disjoint)[:, :-1] for v in views]
            marked = torch.cat(masks).split(count)
            pairs = zip(part[::2], part[1::2], marked[::2], marked[1::2], strict=True)
            for t1, t2, first, second in pairs:
                first = align(t1, t2, first)
                union = (first | second).flatten(2).sum(dim=2)
                shared = (first & second).flatten(2).sum(dim=2)
                # What is found in neither view says nothing; found in none, there is no score.
                scores.append(torch.where(union == 0, torch.nan, shared / union.clamp(min=1)))
        means = torch.cat(scores, dim=1).nanmean(dim=1).tolist()
        return [None if math.isnan(mean) else mean for mean in means]


def load(
    run: str | os.PathLike[str], device: str = "auto", *, network: str | None = None
) -> Segmenter:
    """Load the network of a finished run.

    A run may come from anybody: it is read as data, and no code that it names is run unless
    `network` allows it.

    Parameters
    ----------
    run
        The run's folder.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    network
        Dotted path of the run's network, if it is not one of tcseg's own and you trust its code.

    Raises
    ------
    RunError
        If the folder holds no finished run, its files do not fit each other, or its network is code
        that `network` does not allow.
    ValueError
        If there is no such device, or the network of the run cannot be built.
    """
    folder = RunFolder(run)
    weights = folder.load_weights()
    model = Model.load(folder.path)
    module = model.build(folder.path, network)
    load_weights(module, weights, folder.path, model.network)
    place = resolve_device(device)
    if place == torch.device("cuda"):  # processes that torchrun started take one each
        rank = int(os.environ.get("LOCAL_RANK", 0))
        place = torch.device("cuda", rank % torch.cuda.device_count())
    return Segmenter(module, model, place)
