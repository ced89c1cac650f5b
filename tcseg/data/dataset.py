"""The data set as the trainer sees it: tensors on one device, masks as bits or numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcseg.data.packing import numbers_of, unpack_masks
from tcseg.data.stored import Source, Stored
from tcseg.errors import counted
from tcseg.io.sizes import Spacing, mm_written, written

CLASSES = ("left lung", "right lung", "heart", "left clavicle", "right clavicle")
"""Structures of chests, in the order of their masks; left and right are the patient's."""


IGNORED = "ignore"
"""What masks name a class that is none: its pixels count in no loss and no figure."""


Window = tuple[Tensor, ...]  # of each axis the places to read (b, n), as rows and columns
Original = tuple[NDArray[np.bool_], Spacing | None]


@dataclass(frozen=True)
class Dataset:
    """Images and masks of one data set, decoded once.

    They lie on the device that works on them, or, where they would take more than half of its free
    memory, on the CPU or in files, and batches are sent to it one by one.

    Attributes
    ----------
    name
        ``"phantom"``, ``"jsrt"`` or ``"folder"``.
    ids
        One name per image.
    classes
        Structures, in the order of their masks.
    images
        uint8 or, where files have more bits, uint16 (n, C, H, W), C 3 for colour, or (n, C, D, H,
        W) of volumes; from 0 to the largest number. Radiographs with bone bright.
    masks
        uint8 (n, B, *spatial), as of `pack_masks`; after the classes, what is ignored may be
        packed.
    extents
        Where images keep their own sizes, heights and widths of each, int64 (n, 2), or (n, 3): they
        lie in the first rows and columns, the rest is 0 and is never read. None if they fill the
        tensors.
    spacings
        Height and width (of volumes: depth, height, width) of a pixel in mm at this size for each
        image, None if not known.
    groups
        Patient, series or file of each image, which no split divides; None: the volume, or each
        image is one for itself.
    grouped_by
        What says so, where several files make a group.
    volumes
        Name of the volume that each image is a plane of, in the order of its planes, None if it is
        none; if not given, what stands before the last slash of its id.
    files
        How many an image is in: as many as it has channels, perhaps.
    scale
        One grey scale of each ``"volume"``, or ``"image"`` as in earlier versions.
    resampled
        Of volumes that were brought to one size of voxels, that: depth, height and width in mm (in
        a frame of one size, in proportion).
    slice_spacings
        Of planes of volumes: distance in mm to those beside each, None if not known.
    annotated
        Indices of the images that have masks; None if all do.
    values
        Number that stands for each class in the mask files, where these hold one for each pixel,
        and so do `masks`; None where each class has files of its own, and classes may overlap.
    ignores
        Whether pixels of some masks are to be ignored.
    vanished
        By index, classes that the masks of an image show in their file and no longer at this size.
    marked
        Numbers of the classes that each image shows, from 0 on; looked for in `masks` if not given.
    sources
        Where the planes of each image come from, if from files of a folder.
    originals
        Reads the masks of an image as they are in their files; see `original`.
    streams_to
        Device that batches are sent to, where the tensors do not lie on it.
    """

    name: str
    ids: list[str]
    classes: tuple[str, ...]
    images: Tensor | Stored
    masks: Tensor | Stored
    extents: Tensor | None = None
    spacings: list[Spacing | None] | None = None
    groups: list[str] | None = None
    grouped_by: str | None = None
    volumes: list[str | None] | None = None
    files: int = 1
    scale: str = "volume"
    resampled: Spacing | None = None
    slice_spacings: list[float | None] | None = None
    annotated: list[int] | None = None
    values: tuple[int, ...] | None = None
    ignores: bool = False
    vanished: Mapping[int, Sequence[str]] = field(default_factory=dict)
    marked: list[list[int]] | None = None
    sources: list[list[Source]] | None = None
    originals: Callable[[int], Original] | None = None
    streams_to: torch.device | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @property
    def noun(self) -> str:
        """What messages call one of them."""
        return "image" if len(self.spatial) == 2 else "volume"

    @property
    def spatial(self) -> tuple[int, ...]:
        """Height and width, or depth, height and width, of the tensors."""
        return tuple(self.images.shape[2:])

    @property
    def pixel(self) -> Spacing | None:
        """Lengths of the sides of a pixel in mm, the medians; None if no file says them."""
        sides = self.known_pixels
        return tuple(np.median(sides, axis=0).tolist()) if len(sides) else None

    @property
    def known_pixels(self) -> NDArray[np.float64]:
        """Lengths of the sides of a pixel in mm (images, axes), of images whose files say them."""
        known = [sides for sides in self.spacings or () if sides is not None]
        return np.array(known).reshape(-1, len(self.spatial))

    @property
    def with_masks(self) -> Sequence[int]:
        """Indices of the images that have masks."""
        return range(len(self)) if self.annotated is None else self.annotated

    def spacing_of(self, index: int) -> Spacing | None:
        """Return the size of a pixel of one image in mm, None if it is not known."""
        return None if self.spacings is None else self.spacings[index]

    def extent_of(self, index: int) -> tuple[int, ...]:
        """Return height and width of an image, or depth, height and width of a volume."""
        return self.spatial if self.extents is None else tuple(self.extents[index].tolist())

    def slice_spacing_of(self, index: int) -> float | None:
        """Return the distance of a plane to those beside it in mm, None if it is not known."""
        return None if self.slice_spacings is None else self.slice_spacings[index]

    def volume_of(self, index: int) -> str | None:
        """Return the name of the volume that an image is a plane of, None if it is none."""
        if self.volumes is not None:
            return self.volumes[index]
        return self.ids[index].rpartition("/")[0] or None

    def group_of(self, index: int) -> str:
        """Return the name of what an image belongs to, whose images no split divides."""
        if self.groups is not None:
            return self.groups[index]
        return self.volume_of(index) or self.ids[index]

    def absent_from(self, indices: Sequence[int]) -> list[str]:
        """Return the classes that none of these images shows."""
        shown = {c for index in indices for c in self.shown(index)}
        return [name for c, name in enumerate(self.classes) if c not in shown]

    def shown(self, index: int) -> list[int]:
        """Return the numbers of the classes that an image shows, from 0 on."""
        if self.marked is not None:
            return self.marked[index]
        packed = self.masks[index : index + 1].cpu()
        present: NDArray[Any]
        if self.exclusive:
            present = np.bincount(numbers_of(packed).ravel(), minlength=len(self.classes) + 1)[1:]
        else:
            united = np.bitwise_or.reduce(packed[0].flatten(1).numpy(), axis=1)
            present = np.unpackbits(united, bitorder="little")
        return np.flatnonzero(present[: len(self.classes)]).tolist()

    def size_remark(self, indices: Sequence[int], part: str) -> str | None:
        """Say which classes resizing took from how many of these images; None if it took none."""
        lost = Counter(name for index in indices for name in self.vanished.get(index, ()))
        if not lost:
            return None
        listed = ", ".join(f"{name} in {count}" for name, count in lost.items())
        at = f"{written(self.spatial)} pixels"
        if self.extents is not None and self.resampled is not None:
            at = f"voxels of {mm_written(self.resampled)} mm"
        of = counted(len(indices), f"{part} {self.noun}")
        return f"Too small for {at}: nothing is left of {listed} of {of}."

    def original(self, index: int) -> Original:
        """Return the masks of an image in its own size, and the size of a pixel there in mm.

        As bool (C, *spatial), the background not among them, but what is to be ignored, if anything
        is, as one more. Of images made, not read, that is the size they were made at.
        """
        if self.originals is not None:
            return self.originals(index)
        masks = self.target_batch([index])[0, :-1].cpu().numpy().astype(bool)
        return masks, self.spacing_of(index)

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set for work on `device`: moved there if it fits, else streamed."""
        device = torch.device(device)
        if fits(self.images.nbytes + self.masks.nbytes, device):
            images, masks = self.images.to(device), self.masks.to(device)
            return replace(self, images=images, masks=masks, streams_to=None)
        return replace(self, streams_to=device)

    @property
    def exclusive(self) -> bool:
        """Whether no two classes overlap, so that masks are numbers."""
        return self.values is not None

    @property
    def bits(self) -> int:
        """How many bits a grey level has."""
        return 8 * self.images.itemsize

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.images.device if self.streams_to is None else self.streams_to

    def image_batch(self, indices: Sequence[int] | Tensor, window: Window | None = None) -> Tensor:
        """Return images, or windows of them, as float32 (b, C, *spatial) in [0, 1]."""
        return self._batch(self.images, indices, window).to(torch.float32) / ((1 << self.bits) - 1)

    def mask_batch(self, indices: Sequence[int] | Tensor, window: Window | None = None) -> Tensor:
        """Return masks, or windows of them, as they are packed, uint8 (b, B, *spatial)."""
        return self._batch(self.masks, indices, window)

    def target_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return masks as uint8 (b, C + 1, *spatial) of zeros and ones, the background last.

        All are 0 at pixels to be ignored.
        """
        return self.unpack(self._batch(self.masks, indices))

    def unpack(self, packed: Tensor) -> Tensor:
        """Return the masks of `target_batch` from those of `mask_batch`, moved perhaps."""
        return unpack_masks(packed, len(self.classes), self.exclusive)

    def _batch(
        self, tensor: Tensor | Stored, indices: Sequence[int] | Tensor, window: Window | None = None
    ) -> Tensor:
        # Of indices on another device, as when streaming, this waits for their values.
        index = torch.as_tensor(indices, dtype=torch.int64, device=tensor.device)
        # As signed numbers, which all devices can take by an index, and back.
        signed = tensor.view(torch.int16) if tensor.dtype == torch.uint16 else tensor
        if window is None:
            taken: Tensor = signed[index]
        else:
            places: list[Any] = [index.view(-1, *[1] * len(window)), slice(None)]
            for axis, part in enumerate(window):
                ones = [1] * (len(window) - 1)
                ones.insert(axis, part.shape[1])
                places.append(part.to(tensor.device).view(-1, *ones))
            taken = signed[tuple(places)].movedim(-1, 1)
        return taken.to(self.device).view(tensor.dtype)


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes leave a GPU at least half of the memory that is free now."""
    return device.type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]
