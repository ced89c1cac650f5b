"""Pictures of what a network does: image, truth and prediction beside each other."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import binary_erosion
from torch import Tensor

from tcseg.data import Dataset
from tcseg.files import write_atomically
from tcseg.metrics import iou

__all__ = ["outlined", "save_contact_sheet", "save_panel"]

# One colour for each of at most 8 structures: bright on grey, apart for colour-blind eyes too.
COLOURS = (
    "#56b4e9",
    "#00c08b",
    "#f0507a",
    "#f5d742",
    "#ff9d3b",
    "#b98cff",
    "#ffffff",
    "#9a6324",
)
BACKGROUND, TEXT = "#14161a", "#e8e8e8"
INCHES = 2.6  # edge of one image
SHEET_COLUMNS = 6
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
    images = dataset.image_batch(indices).cpu().numpy()[:, 0]
    truths = dataset.target_batch(indices).cpu().numpy()[:, :classes].astype(bool)
    predicted = [masks.cpu().numpy()[:, :classes].astype(bool) for masks in predictions.values()]
    headings = ("image", "truth", *predictions)

    figure, grid = _canvas(cases, len(headings))
    for row, index in enumerate(indices):
        shown = (None, truths[row], *(masks[row] for masks in predicted))
        for axes, masks in zip(grid[row], shown, strict=True):
            _draw(axes, images[row], masks)
        _note(grid[row, 0], dataset.ids[index])
        for axes, masks in zip(grid[row, 2:], shown[2:], strict=True):
            pairs = zip(masks, truths[row], strict=True)
            _note(axes, f"mIOU {100 * np.mean([iou(a, b) for a, b in pairs]):.1f} %")
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, color=TEXT, fontsize=10, pad=5)
    _save(figure, path, title, dataset.classes)


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
    columns = min(SHEET_COLUMNS, len(indices))
    figure, grid = _canvas(-(-len(indices) // columns), columns)
    images = dataset.image_batch(indices).cpu().numpy()[:, 0]
    masks = dataset.target_batch(indices).cpu().numpy()[:, :-1].astype(bool)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index, image, mask in zip(grid.flat, indices, images, masks, strict=False):
        _draw(axes, image, mask)
        _note(axes, dataset.ids[index])
    _save(figure, path, title, dataset.classes)


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
    thickness = max(1, round(min(masks.shape[1:]) / 400))
    for colour, mask in zip(COLOURS, masks, strict=False):
        edge = mask & ~binary_erosion(mask, iterations=thickness, border_value=1)
        picture[edge] = 255 * np.array(to_rgb(colour))
    return np.asarray(picture.clip(0, 255) + 0.5, dtype=np.uint8)


def _canvas(rows: int, columns: int) -> tuple[Figure, Any]:
    """Return a figure and its axes, an image each, with room above for a title, below for a key."""
    width = columns * INCHES + (columns - 1) * GAP + 2 * MARGIN
    height = HEAD + rows * INCHES + (rows - 1) * GAP + FOOT
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        rows,
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
    return figure, grid


def _save(figure: Figure, path: str | os.PathLike[str], title: str, classes: Sequence[str]) -> None:
    height = figure.get_figheight()
    # Placed in inches from the edges, so that the number of rows does not matter.
    figure.text(0.5, 1 - 0.3 / height, title, color=TEXT, fontsize=12, ha="center", va="center")
    figure.legend(
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
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, facecolor=BACKGROUND)
    write_atomically(path, content.getbuffer())


def _draw(axes: Any, image: np.ndarray, masks: np.ndarray | None) -> None:
    """Show an image (H, W), with the masks (C, H, W) as tinted areas with an outline."""
    axes.set_axis_off()
    picture = np.repeat(image[..., None], 3, axis=2)
    # Tinted one after the other, so that structures that overlap both show.
    for colour, mask in zip(COLOURS, () if masks is None else masks, strict=False):
        picture[mask] = 0.7 * picture[mask] + 0.3 * np.array(to_rgb(colour))
    axes.imshow(picture.clip(0, 1), interpolation="nearest")
    for colour, mask in zip(COLOURS, () if masks is None else masks, strict=False):
        if mask.any() and not mask.all():  # a contour has to have two sides
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)


def _note(axes: Any, text: str) -> None:
    box = {"facecolor": BACKGROUND, "alpha": 0.6, "edgecolor": "none", "pad": 2}
    corner = {"x": 0.03, "y": 0.03, "transform": axes.transAxes, "va": "bottom"}
    axes.text(s=text, color=TEXT, fontsize=8, bbox=box, **corner)
