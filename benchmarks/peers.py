"""The peers' side of the comparisons, as their users write it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Why a comparison is skipped.
MISSING = '{} is not installed; run `pip install "tcwarp[bench]"`'


def grid_from(displacement: Tensor) -> Tensor:
    """Return the grid of `grid_sample` (align_corners=True) for a displacement in pixels."""
    coordinates = []
    for axis, length in enumerate(displacement.shape[2:]):
        position = torch.arange(length, device=displacement.device, dtype=displacement.dtype)
        position = position.view(-1, *[1] * (displacement.dim() - 3 - axis))
        coordinates.append((position + displacement[:, axis]) * (2 / (length - 1)) - 1)
    return torch.stack(coordinates[::-1], dim=-1)


def grid_sample(image: Tensor, grid: Tensor, mode: str = "nearest") -> Tensor:
    """Sample with zeros outside."""
    return functional.grid_sample(image, grid, mode, "zeros", align_corners=True)


def opencv_nearest(image: NDArray[Any], displacement: NDArray[Any]) -> NDArray[Any]:
    """Warp (N, C, H, W) by `remap`, plane by plane, with zeros outside."""
    import cv2

    output = np.empty_like(image)
    rows, columns = np.indices(image.shape[2:], dtype=np.float32)
    for source, field, target in zip(image, displacement, output, strict=True):
        # One conversion for all planes of a sample: faster than maps of floats for each.
        fixed, none = cv2.convertMaps(
            columns + field[1], rows + field[0], cv2.CV_16SC2, nninterpolation=True
        )
        for plane, result in zip(source, target, strict=True):
            cv2.remap(plane, fixed, none, cv2.INTER_NEAREST, result, cv2.BORDER_CONSTANT, 0)
    return output


def separable_gaussian(image: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Smooth (N, C, H, W) tap by tap, one axis after the other, borders mirrored."""
    radius = int(truncate * sigma + 0.5)
    taps = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)
    weights = weights / weights.sum()
    planes = image.flatten(0, 1)[:, None]
    for axis, kernel in ((2, weights[:, None]), (3, weights[None, :])):
        length = planes.shape[axis]
        position = torch.arange(-radius, length + radius, device=image.device) % (2 * length)
        mirrored = torch.minimum(position, 2 * length - 1 - position)
        planes = functional.conv2d(planes.index_select(axis, mirrored), kernel[None, None])
    return planes.reshape(image.shape)


def near_a_tie(displacement: Tensor, band: float = 1e-3) -> Tensor:
    """Return where (N, 1, *spatial) peers, who round positions, may round another way."""
    distance = (displacement - displacement.floor() - 0.5).abs()
    return (distance < band).any(dim=1, keepdim=True)
