"""The command `tcseg preview`: what the network is shown while it trains."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tcseg.data import Dataset, unpack_masks
from tcseg.evaluation.pictures import Panel, save_grid
from tcseg.method.transforms import Draw, Transform, align

__all__ = ["preview"]

HEADINGS = ("image and labels", "t1", "t1(x), t1(y)", "t2(x), t2(y)", "t1(y) aligned to t2")
MESH = 16  # lines of the grid that shows a deformation


def preview(
    path: str | os.PathLike[str],
    dataset: Dataset,
    indices: Sequence[int],
    transform: Transform,
    seed: int,
    title: str,
) -> float:
    """Draw images, two transforms of each, and the labels of one aligned to the other.

    Parameters
    ----------
    path
        The PNG file to write.
    dataset
        Images and masks, on the CPU.
    indices
        The images to draw, a row each.
    transform
        The distribution of transforms.
    seed
        Of the draws.
    title
        Stands above the picture.

    Returns
    -------
    float
        Mean IOU of the aligned labels with those that they were aligned to; at edges nearest
        interpolation rounds twice on one way, once on the other.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = dataset.image_batch(indices), dataset.mask_batch(indices)
    size = (images.shape[-2], images.shape[-1])
    t1, t2 = (transform.draw(len(indices), size, generator) for _ in range(2))
    classes = len(dataset.classes)

    def masks(bits: Tensor) -> np.ndarray:
        return unpack_masks(bits[:, 0], classes)[:, :classes].numpy().astype(bool)

    one, other = masks(t1.label(labels)), masks(t2.label(labels))
    aligned = masks(align(t1, t2, t1.label(labels)))
    views = [np.asarray(t.image(images).clamp(0, 1)) for t in (t1, t2)]
    mesh = np.asarray(t1.image(_mesh(images)))
    plain, truth = np.asarray(images), masks(labels)
    rows = [
        [
            Panel(plain[i], truth[i], dataset.ids[index]),
            Panel(mesh[i], None, _strength(t1, i)),
            Panel(views[0][i], one[i]),
            Panel(views[1][i], other[i]),
            Panel(views[1][i], aligned[i], f"IOU {_iou(aligned[i], other[i]):.3f}"),
        ]
        for i, index in enumerate(indices)
    ]
    save_grid(path, rows, HEADINGS, title, dataset.classes)
    return float(np.mean([_iou(aligned[i], other[i]) for i in range(len(indices))]))


def _mesh(images: Tensor) -> Tensor:
    """Return a grid of lines of the images' size."""
    height, width = images.shape[-2:]
    step = max(2, round(max(height, width) / MESH))
    mesh = torch.zeros(len(images), 1, height, width)
    mesh[..., step // 2 :: step, :] = mesh[..., :, step // 2 :: step] = 0.8
    return mesh


def _strength(draw: Draw, index: int) -> str:
    if draw.displacement is None or not draw.displacement[index].any():
        return "identity"
    return f"up to {float(draw.displacement[index].square().sum(0).sqrt().max()):.1f} px"


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0
