"""The command `tcseg preview`: what the network is shown while it trains."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

import tcwarp
from tcseg.data import Dataset
from tcseg.evaluation.metrics import iou
from tcseg.evaluation.pictures import Panel, save_grid
from tcseg.io.sizes import Size, shape_of
from tcseg.method.transforms import SampledTransform, Transform, align
from tcseg.training.batches import Patches

__all__ = ["deformed_mesh", "preview"]

HEADINGS = ("image and labels", "t1", "t1(x), t1(y)", "t2(x), t2(y)", "t1(y) aligned to t2")
# The mesh that shows a deformation: pixels along its longer edge, at least, and lines.
MESH_SIZE, MESH_LINES = 480, 16


def preview(
    path: str | os.PathLike[str],
    dataset: Dataset,
    indices: Sequence[int],
    transform: Transform,
    seed: int,
    title: str,
    patch: Size | None = None,
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
    patch
        Size of patches, where these are trained on.

    Returns
    -------
    float
        Mean IOU of the aligned labels with those that they were aligned to; at edges nearest
        interpolation rounds twice on one way, once on the other.
    """
    generator = torch.Generator().manual_seed(seed)
    window, size = None, shape_of(patch or (dataset.images.shape[-2], dataset.images.shape[-1]))
    if patch is not None:
        patches = Patches(dataset, indices, (), patch)
        window, _ = patches.draw(torch.tensor(indices), len(indices), generator)
    images, labels = dataset.image_batch(indices, window), dataset.mask_batch(indices, window)
    t1, t2 = (transform.sample(len(indices), size, generator) for _ in range(2))

    def masks(bits: Tensor) -> np.ndarray:
        return dataset.unpack(bits)[:, :-1].numpy().astype(bool)

    first, second = masks(t1.label(labels)), masks(t2.label(labels))
    aligned = masks(align(t1, t2, t1.label(labels)))
    views = [np.asarray(t.image(images).clamp(0, 1)) for t in (t1, t2)]
    field = _field(t1, images)
    mesh = deformed_mesh(field)
    sides = zip(images.shape[-2:], size, strict=True)
    height, width = (slice((n - m) // 2, (n + m) // 2) for n, m in sides)
    plain, truth = np.asarray(images[..., height, width]), masks(labels[..., height, width])
    rows = [
        [
            Panel(plain[i], truth[i], dataset.ids[index]),
            Panel(mesh[i], None, _strength(field[i])),
            Panel(views[0][i], first[i]),
            Panel(views[1][i], second[i]),
            Panel(views[1][i], aligned[i], f"IOU {iou(aligned[i], second[i]):.3f}"),
        ]
        for i, index in enumerate(indices)
    ]
    save_grid(path, rows, HEADINGS, title, dataset.classes)
    return float(np.nanmean([iou(aligned[i], second[i]) for i in range(len(indices))]))


def deformed_mesh(displacement: Tensor) -> np.ndarray:
    """Draw a mesh of lines deformed by displacements (b, 2, H, W): (b, 1, H', W'), finer."""
    size = displacement.shape[-2:]
    finer = max(1, -(-MESH_SIZE // max(size)))
    fine = finer * nn.functional.interpolate(displacement, scale_factor=finer, mode="bicubic")
    height, width = fine.shape[-2:]
    step, thickness = max(height, width) // MESH_LINES, max(1, finer // 2)
    mesh = torch.zeros(len(fine), 1, height, width)
    for line in range(thickness):
        start = step // 2 + line
        mesh[..., start::step, :] = mesh[..., start::step] = 0.8
    return np.asarray(tcwarp.warp(mesh, fine, mode="linear", padding_mode="reflection"))


def _field(transform: SampledTransform, images: Tensor) -> Tensor:
    if transform.displacement is None:
        return torch.zeros(len(images), 2, *images.shape[-2:])
    return transform.displacement


def _strength(displacement: Tensor) -> str:
    largest = float(displacement.square().sum(0).sqrt().max())
    return f"up to {largest:.1f} px" if largest else "identity"
