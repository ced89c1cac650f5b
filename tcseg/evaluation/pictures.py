"""Pictures of what a network does: image, truth and prediction beside each other."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import binary_erosion
from torch import Tensor

from tcseg.data import Dataset
from tcseg.evaluation.metrics import iou
from tcseg.io.files import write_atomically
from tcseg.io.images import png, resize
from tcseg.io.label_maps import COLOURS

__all__ = [
    "Panel",
    "outlined",
    "save_contact_sheet",
    "save_grid",
    "save_panel",
    "save_progress",
    "side_by_side",
]

BACKGROUND, TEXT = "#14161a", "#e8e8e8"
INCHES = 2.6  # edge of one image
SHEET_COLUMNS = 6
PROGRESS_SIZE = 192  # pixels of an image while training, at least
GAP, MARGIN, HEAD, FOOT = 0.08, 0.15, 0.75, 0.45


def save_panel(
    path: str | os.PathLike[str],
    dataset: Dataset,
    indices: Sequence[int],
    predictions: Mapping[str, Tensor],
    title: str,
) -> None:
    """Draw cases one below the other: image, truth and predictions, a colour for each structure.

    Parameters
    ----------
    path
        The PNG file to write, in one step; its folder must exist.
    dataset
        Images and truth.
    indices
        The cases to draw; a row of the picture each.
    predictions
        By heading, a column of the picture each: bool (b, C + 1, H, W), background last, in the
        order of `indices`.
    title
        Stands above the picture.

    Raises
    ------
    ValueError
        If there are no cases, or not one prediction for each.
    """
    cases, classes = len(indices), len(dataset.classes)
    shape = (cases, classes + 1, *dataset.images.shape[-2:])
    for name, masks in predictions.items():
        if cases == 0 or tuple(masks.shape) != shape:
            raise ValueError(
                "save_panel: predictions must be one (C + 1, H, W) for each of at least one case, "
                f"expected shape {shape}, got {tuple(masks.shape)} for {name!r}"
            )
    images = dataset.image_batch(indices).cpu().numpy()
    truths = dataset.target_batch(indices).cpu().numpy()[:, :classes].astype(bool)
    rows = [
        [Panel(images[row], None, dataset.ids[index]), Panel(images[row], truths[row])]
        for row, index in enumerate(indices)
    ]
    for masks in predictions.values():
        predicted = masks.cpu().numpy()[:, :classes].astype(bool)
        for row, found, truth in zip(rows, predicted, truths, strict=True):
            overlaps = [iou(a, b) for a, b in zip(found, truth, strict=True)]
            row.append(Panel(row[0].image, found, f"mIOU {100 * np.mean(overlaps):.1f} %"))
    save_grid(path, rows, ("image", "truth", *predictions), title, dataset.classes)


def save_contact_sheet(
    path: str | os.PathLike[str], dataset: Dataset, indices: Sequence[int], title: str
) -> None:
    """Draw images side by side with the outlines of their masks, to be looked over at a glance.

    Parameters
    ----------
    path
        The PNG file to write, in one step; its folder must exist.
    dataset
        Images and masks.
    indices
        The images to draw, in rows from the left.
    title
        Stands above the picture.

    Raises
    ------
    ValueError
        If there are no images.
    """
    if len(indices) == 0:
        raise ValueError("save_contact_sheet: indices must name at least one image, got none")
    images = dataset.image_batch(indices).cpu().numpy()
    masks = dataset.target_batch(indices).cpu().numpy()[:, :-1].astype(bool)
    panels = [
        Panel(image, mask, dataset.ids[index])
        for index, image, mask in zip(indices, images, masks, strict=True)
    ]
    columns = min(SHEET_COLUMNS, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    save_grid(path, rows, (), title, dataset.classes)


def save_progress(
    path: str | os.PathLike[str], dataset: Dataset, indices: Sequence[int], predictions: Tensor
) -> None:
    """Draw outlines of truth and prediction side by side, quickly: a picture to watch a training.

    Parameters
    ----------
    path
        The PNG file to write, in one step; its folder must exist.
    dataset
        Images and truth.
    indices
        The cases: a row of image, truth and prediction each.
    predictions
        bool (b, C + 1, H, W), background last.
    """
    images = dataset.image_batch(indices).cpu().numpy()
    truths = dataset.target_batch(indices)[:, :-1].cpu().numpy().astype(bool)
    found = predictions[:, :-1].cpu().numpy()
    rows = [
        side_by_side(image, (None, truth, mask), PROGRESS_SIZE)
        for image, truth, mask in zip(images, truths, found, strict=True)
    ]
    write_atomically(path, png(np.concatenate(rows)))


@dataclass(frozen=True)
class Panel:
    """One image of a grid of images.

    Attributes
    ----------
    image
        float (C, H, W) in [0, 1], C 1 or 3.
    masks
        bool (K, H, W), drawn as tinted areas with outlines; None for none.
    note
        Stands in its corner.
    """

    image: np.ndarray
    masks: np.ndarray | None = None
    note: str = ""


def save_grid(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[Panel]],
    headings: Sequence[str],
    title: str,
    classes: Sequence[str],
) -> None:
    """Draw images in rows and columns, with a key of the structures below.

    Parameters
    ----------
    path
        The PNG file to write, in one step; its folder must exist.
    rows
        The images; rows may be shorter than the first.
    headings
        One for each column, or none.
    title
        Stands above the picture.
    classes
        Names of the structures, in the order of the masks.
    """
    columns = len(rows[0])
    width = columns * INCHES + (columns - 1) * GAP + 2 * MARGIN
    height = HEAD + len(rows) * INCHES + (len(rows) - 1) * GAP + FOOT
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows),
        columns,
        squeeze=False,
        gridspec_kw={
            "left": MARGIN / width,
            "right": 1 - MARGIN / width,
            "top": 1 - HEAD / height,
            "bottom": FOOT / height,
            "wspace": GAP / INCHES,
            "hspace": GAP / INCHES,
        },
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for line, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(line, panels, strict=False):
            _draw(axes, panel)
    for axes, heading in zip(grid[0], headings, strict=False):
        axes.set_title(heading, color=TEXT, fontsize=10, pad=5, parse_math=False)
    # Placed in inches from the edges, so that the number of rows does not matter.
    # Names are shown as they are: a $ in one is no mathematics.
    middle = {"ha": "center", "va": "center", "parse_math": False}
    figure.text(0.5, 1 - 0.3 / height, title, fontdict=middle | {"color": TEXT, "size": 12})
    key = figure.legend(
        handles=[
            Patch(color=colour, label=name) for colour, name in zip(COLOURS, classes, strict=False)
        ],
        loc="center",
        bbox_to_anchor=(0.5, FOOT / 2 / height),
        ncols=len(classes),
        frameon=False,
        labelcolor=TEXT,
        fontsize=8,
        handlelength=1,
        columnspacing=1.2,
    )
    for text in key.get_texts():
        text.set_parse_math(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, facecolor=BACKGROUND)
    write_atomically(path, content.getbuffer())


def outlined(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Draw the outlines of masks on an image, pixel by pixel.

    Parameters
    ----------
    pixels
        float (C, H, W) in [0, 1], C 1 or 3.
    masks
        bool (K, H, W).

    Returns
    -------
    numpy.ndarray
        uint8 (H, W, 3).
    """
    picture = np.repeat(pixels, 3 // len(pixels), axis=0).transpose(1, 2, 0) * 255
    thickness = max(1, round(min(masks.shape[1:]) / 200))
    for colour, mask in zip(COLOURS, masks, strict=False):
        edge = mask & ~binary_erosion(mask, iterations=thickness, border_value=1)
        picture[edge] = 255 * np.array(to_rgb(colour))
    return np.asarray(picture.clip(0, 255) + 0.5, dtype=np.uint8)


def side_by_side(
    image: np.ndarray, masks: Sequence[np.ndarray | None], at_least: int
) -> np.ndarray:
    """Draw an image once for each set of masks, from left to right, enlarged.

    Parameters
    ----------
    image
        float (C, H, W) in [0, 1], C 1 or 3.
    masks
        bool (K, H, W) each; None for none.
    at_least
        Width of one image in the picture, in pixels.

    Returns
    -------
    numpy.ndarray
        uint8 (H', W', 3).
    """
    factor = -(-at_least // image.shape[-1])
    shape = (factor * image.shape[-2], factor * image.shape[-1])

    def enlarged(planes: np.ndarray | None) -> np.ndarray:
        large = [
            resize(plane.astype(np.float32), shape) for plane in (() if planes is None else planes)
        ]
        return np.stack(large) if large else np.zeros((0, *shape), np.float32)

    large = enlarged(image)
    return np.concatenate([outlined(large, enlarged(m) > 0.5) for m in masks], axis=1)


def _draw(axes: Any, panel: Panel) -> None:
    masks = () if panel.masks is None else panel.masks
    picture = np.repeat(panel.image, 3 // len(panel.image), axis=0).transpose(1, 2, 0).copy()
    # Tinted one after the other, so that structures that overlap both show.
    for colour, mask in zip(COLOURS, masks, strict=False):
        picture[mask] = 0.7 * picture[mask] + 0.3 * np.array(to_rgb(colour))
    axes.imshow(picture.clip(0, 1), interpolation="nearest")
    for colour, mask in zip(COLOURS, masks, strict=False):
        if mask.any() and not mask.all():  # a contour has to have two sides
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)
    if panel.note:
        box = {"facecolor": BACKGROUND, "alpha": 0.6, "edgecolor": "none", "pad": 2}
        corner = {"x": 0.03, "y": 0.03, "transform": axes.transAxes, "va": "bottom"}
        axes.text(s=panel.note, color=TEXT, fontsize=8, bbox=box, parse_math=False, **corner)
