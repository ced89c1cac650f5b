"""The command `tcseg preview`: what the network is shown while it trains."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import binary_erosion
from torch import Tensor, nn

import tcwarp
from tcseg.data import Dataset
from tcseg.evaluation.metrics import iou
from tcseg.evaluation.pictures import Panel, save_grid
from tcseg.evaluation.planes import Planes
from tcseg.io.sizes import Size
from tcseg.method.transforms import Transform, align
from tcseg.training.batches import Patches

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

    Of volumes, `Planes` through the largest structure as it is before the transforms.

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
    window, size = None, tuple(dataset.images.shape[2:])
    if patch is not None:
        patches = Patches(dataset, indices, (), patch)
        window, _ = patches.draw(torch.tensor(indices), len(indices), generator)
        size = patches.shape
    images, labels = dataset.image_batch(indices, window), dataset.mask_batch(indices, window)
    t1, t2 = (transform.sample(len(indices), size, generator) for _ in range(2))

    def masks(bits: Tensor) -> np.ndarray:
        return dataset.unpack(bits)[:, :-1].numpy().astype(bool)

    first, second = masks(t1.label(labels)), masks(t2.label(labels))
    aligned = masks(align(t1, t2, t1.label(labels)))
    views = [np.asarray(t.image(images).clamp(0, 1)) for t in (t1, t2)]
    field = t1.displacement
    if field is None:
        field = torch.zeros(len(images), len(size), *size)
    sides = zip(images.shape[2:], size, strict=True)
    middle = (slice(None), slice(None), *(slice((n - m) // 2, (n + m) // 2) for n, m in sides))
    plain, truth = np.asarray(images[middle]), masks(labels[middle])
    overlaps = [iou(*pair) for pair in zip(aligned, second, strict=True)]
    rows = []
    for i, index in enumerate(indices):
        parts = [part[i] for part in (plain, truth, views[0], first, views[1], second, aligned)]
        if len(size) == 3:
            planes = Planes.of(truth[i], dataset.spacing_of(index))
            parts = [planes.of_volume(part) for part in parts]
            mesh = _mesh_in(planes, field[i])
        else:
            mesh = deformed_mesh(field[i : i + 1])[0]
        image, labelled, view, moved, other, goal, carried = parts
        rows.append(
            [
                Panel(image, labelled, dataset.ids[index]),
                Panel(mesh, None, _strength(field[i])),
                Panel(view, moved),
                Panel(other, goal),
                Panel(other, carried, f"IOU {overlaps[i]:.3f}"),
            ]
        )
    save_grid(path, rows, HEADINGS, title, dataset.classes)
    return float(np.nanmean(overlaps))


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


def _mesh_in(planes: Planes, displacement: Tensor) -> np.ndarray:
    """Draw the mesh in planes of a volume deformed by a displacement (3, D, H, W): (1, H', W').

    Of sheets across all axes, a plane shows those across its own two as lines, and the two
    components along these say where. So it is a mesh of the picture in two dimensions.
    """
    shape = displacement.shape[1:]
    # In pixels of the picture, where D runs backwards.
    scale = torch.tensor(planes.sides) / torch.tensor(shape) * torch.tensor([-1, 1, 1])
    axial, coronal, sagittal = planes.cut((displacement * scale.view(3, 1, 1, 1)).numpy())
    field = planes.composed([axial[[1, 2]], coronal[[0, 2]], sagittal[[1, 0]]])
    mesh = deformed_mesh(torch.from_numpy(field)[None])[0]
    inside = planes.of_volume(np.ones((1, *shape), bool))[0]
    # Without the pixels beside the seams, where the field jumps.
    inside = binary_erosion(inside, border_value=1)
    finer = mesh.shape[-1] // field.shape[-1]
    return np.asarray(mesh * inside.repeat(finer, axis=0).repeat(finer, axis=1))


def _strength(displacement: Tensor) -> str:
    largest = float(displacement.square().sum(0).sqrt().max())
    return f"up to {largest:.1f} px" if largest else "identity"
