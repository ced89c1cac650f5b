"""Masks as bits or as numbers: a byte or a few a pixel, however many classes there are."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pack_masks(
    masks: Tensor | NDArray[np.bool_], exclusive: bool = False, dimensions: int = 2
) -> Tensor:
    """Pack one mask per class into the bits of as many bytes as it takes, or into numbers.

    Parameters
    ----------
    masks
        bool (..., C, *spatial). They may overlap, unless they are exclusive.
    exclusive
        Whether to keep the number of the class at each pixel, from 1 on, in the place of bits.
    dimensions
        Of the images: 2, or 3 for volumes.

    Returns
    -------
    Tensor
        uint8 (..., B, *spatial): bit c % 8 of byte c // 8 is set where the mask of class c is; or
        the number of the class, 0 for none, in one byte or, of more than 255, two, the low one
        first.

    Examples
    --------
    >>> masks = torch.tensor([[[True, False]], [[False, True]], [[False, True]]])
    >>> pack_masks(masks).tolist(), pack_masks(masks[:2], exclusive=True).tolist()
    ([[[1, 6]]], [[[1, 2]]])
    """
    planes, axis = np.asarray(masks, bool), -1 - dimensions
    if not exclusive:
        return torch.from_numpy(np.packbits(planes, axis=axis, bitorder="little"))
    by_class = np.moveaxis(planes, axis, 0)
    numbers = np.zeros(by_class.shape[1:], np.uint16)
    for number in range(len(by_class), 0, -1):  # volumes are large: no copy of all as integers
        numbers[by_class[number - 1]] = number
    places = range(1 if len(by_class) < 256 else 2)
    parts = [(numbers >> 8 * k).astype(np.uint8) for k in places]
    return torch.from_numpy(np.stack(parts, axis=axis))


def unpack_masks(packed: Tensor, classes: int, exclusive: bool = False) -> Tensor:
    """Unpack bytes of :func:`pack_masks` and add the background.

    Parameters
    ----------
    packed
        uint8 (b, B, *spatial).
    classes
        Number of classes C. What was packed after them is to be ignored.
    exclusive
        Whether they hold numbers.

    Returns
    -------
    Tensor
        uint8 (b, C + 1, *spatial) of zeros and ones; the last channel is the background, the
        complement of the union of the classes. All are 0 where a pixel is to be ignored.
    """
    spatial = packed.shape[2:]
    if exclusive:
        # The channel of each number; those of ignored pixels are left out.
        channels = torch.tensor([classes, *range(classes), classes + 1], device=packed.device)
        shape = (len(packed), classes + 2, *spatial)
        hot = packed.new_zeros(shape).scatter_(1, channels[numbers_of(packed)], 1)
        return hot[:, :-1]
    weights = (1 << torch.arange(8, device=packed.device)).to(torch.uint8)
    weights = weights.view(8, *[1] * len(spatial))
    masks = ((packed.unsqueeze(2) & weights) != 0).flatten(1, 2)[:, : classes + 1]
    background = ~masks.any(dim=1, keepdim=True)
    return torch.cat((masks[:, :classes], background), dim=1).to(torch.uint8)


def numbers_of(packed: Tensor) -> Tensor:
    """Return the numbers of exclusive classes, int64 (b, 1, *spatial)."""
    places = 256 ** torch.arange(packed.shape[1], device=packed.device)
    places = places.view(-1, *[1] * (packed.dim() - 2))
    return (packed.long() * places).sum(dim=1, keepdim=True)
