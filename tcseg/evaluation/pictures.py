"""Pictures of what a network does: image, truth and prediction beside each other.

Each `path` is a PNG file, written in one step into a folder that exists; `indices` are the cases of
a data set to draw, and predictions bool (b, C + 1, *spatial), background last, in their order. Of
images of neither one nor three channels the first is shown. Of volumes three planes are drawn, as
one picture (`Planes`).
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import binary_erosion, find_objects
from torch import Tensor

from tcseg.data import Dataset
from tcseg.evaluation.metrics import iou
from tcseg.evaluation.planes import Planes
from tcseg.io.files import write_atomically
from tcseg.io.images import png
from tcseg.io.label_maps import COLOURS
from tcseg.io.placement import Placement, resize

BACKGROUND, TEXT = "#14161a", "#e8e8e8"
DPI = 110
CASES = 4
SHEET_COLUMNS = 6
FEW = 8  # structures, all of which are in the key; of more, those that are seen
PROGRESS_SIZE = 192  # pixels of an image while training, at least
PANEL_SIZE = 480  # pixels of an image before it is fitted into its panel, at least
# In inches: the edge of an image, between images, around all, title and headings, a line of keys.
IMAGE, GAP, MARGIN, HEAD, LINE = 2.6, 0.08, 0.15, 0.8, 0.26
SWATCH, LETTER = 0.5, 0.1  # of a key: its colour with the space around, and each letter


def spread(indices: Sequence[int], count: int = CASES) -> Sequence[int]:
    """Choose a few cases, evenly spread."""
    return indices[:: max(1, len(indices) // count)][:count]


def save_panel(
    path: str | os.PathLike[str],
    dataset: Dataset,
    indices: Sequence[int],
    predictions: Mapping[str, Tensor],
    title: str,
) -> None:
    """Draw cases one below the other: image, truth and predictions, a colour for each structure.

    Predictions are given by heading, a column each. A ValueError is raised if there are no cases,
    or not one prediction for each.
    """
    cases, classes = len(indices), len(dataset.classes)
    shape = (cases, classes + 1, *dataset.images.shape[2:])
    for name, masks in predictions.items():
        if cases == 0 or tuple(masks.shape) != shape:
            raise ValueError(
                "save_panel: predictions must be one (C + 1, *spatial) for each of at least one "
                f"case, expected shape {shape}, got {tuple(masks.shape)} for {name!r}"
            )
    images, truths, *drawn = images_and_truths(dataset, indices, *predictions.values())
    rows = [
        [Panel(images[row], None, dataset.ids[index]), Panel(images[row], truths[row])]
        for row, index in enumerate(indices)
    ]
    for masks, pictures in zip(predictions.values(), drawn, strict=True):
        for row, index, predicted, picture in zip(rows, indices, masks, pictures, strict=True):
            pairs = zip(predicted[:classes], dataset.target_batch([index])[0], strict=False)
            overlaps = [iou(a, b) for a, b in pairs]  # of all of a volume
            row.append(Panel(row[0].image, picture, f"mIOU {100 * np.mean(overlaps):.1f} %"))
    save_grid(path, rows, ("image", "truth", *predictions), title, dataset.classes)


def save_contact_sheet(
    path: str | os.PathLike[str], dataset: Dataset, indices: Sequence[int], title: str
) -> None:
    """Draw images side by side with the outlines of their masks, to be looked over at a glance."""
    if len(indices) == 0:
        raise ValueError("save_contact_sheet: indices must name at least one image, got none")
    panels = [
        Panel(image, masks, dataset.ids[index])
        for index, image, masks in zip(indices, *images_and_truths(dataset, indices), strict=True)
    ]
    columns = min(SHEET_COLUMNS, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    save_grid(path, rows, (), title, dataset.classes)


def save_progress(
    path: str | os.PathLike[str], dataset: Dataset, indices: Sequence[int], predictions: Tensor
) -> None:
    """Draw image, truth and prediction in a row for each case, quickly: to watch a training."""
    cases = zip(*images_and_truths(dataset, indices, predictions), strict=True)
    rows = [side_by_side(image, (None, *masks), PROGRESS_SIZE) for image, *masks in cases]
    write_atomically(path, png(np.concatenate(rows)))


def images_and_truths(
    dataset: Dataset, indices: Sequence[int], *predictions: Tensor
) -> tuple[np.ndarray, ...]:
    """Return what is drawn of at least one case: images, truths, and each of the predictions.

    Images are float (b, C, H, W); all else are masks, bool (b, K, H, W), the background not among
    them. Of volumes they are `Planes` through the largest structure of the truth, and those of
    smaller volumes have black margins.
    """
    cases = []
    for row, index in enumerate(indices):  # one volume at a time: they are large
        image, truth = dataset.image_batch([index])[0], dataset.target_batch([index])[0]
        channels = [truth, *(masks[row] for masks in predictions)]
        masks = [each[:-1].cpu().numpy().astype(bool) for each in channels]
        parts = [image.cpu().numpy(), *masks]
        if image.dim() > 3:
            own = (slice(None), *map(slice, dataset.extent_of(index)))
            parts = [part[own] for part in parts]
            planes = Planes.of(parts[1], dataset.spacing_of(index))
            parts = [planes.of_volume(part) for part in parts]
        cases.append(parts)
    height, width = (max(case[0].shape[axis] for case in cases) for axis in (1, 2))

    def framed(part: np.ndarray) -> np.ndarray:
        return np.pad(part, ((0, 0), (0, height - part.shape[1]), (0, width - part.shape[2])))

    return tuple(np.stack([framed(part) for part in parts]) for parts in zip(*cases, strict=True))


@dataclass(frozen=True)
class Panel:
    """One image of a grid of images.

    Attributes
    ----------
    image
        float (C, H, W) in [0, 1].
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
    rows
        The images; rows may be shorter than the first. Of many channels the first is shown, which
        the title says.
    headings
        One for each column, or none.
    classes
        Names of the structures, in the order of the masks.
    """
    columns, channels = len(rows[0]), len(rows[0][0].image)
    title += "" if channels in (1, 3) else f" (channel 1 of {channels})"
    width = columns * IMAGE + (columns - 1) * GAP + 2 * MARGIN
    shown = [panel.masks for row in rows for panel in row if panel.masks is not None]
    keys = [
        (colour, name)
        for c, (colour, name) in enumerate(zip(itertools.cycle(COLOURS), classes, strict=False))
        if len(classes) <= FEW or any(masks[c].any() for masks in shown)
    ]
    in_line = max(1, int(width / (SWATCH + LETTER * max([len(name) for _, name in keys] or [1]))))
    foot = -(-len(keys) // in_line) * LINE + 2 * GAP
    height = HEAD + len(rows) * IMAGE + (len(rows) - 1) * GAP + foot
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    # Placed in inches, so that the number of rows does not matter. Names are shown as they are:
    # a $ in one is no mathematics.
    text: dict[str, Any] = {"color": TEXT, "parse_math": False}
    for row, panels in enumerate(rows):
        bottom = height - HEAD - (row + 1) * IMAGE - row * GAP
        for column, panel in enumerate(panels):
            left = MARGIN + column * (IMAGE + GAP)
            axes = figure.add_axes(
                (left / width, bottom / height, IMAGE / width, IMAGE / height), frameon=False
            )
            axes.set(xticks=(), yticks=())
            axes.imshow(outlined(panel.image, panel.masks, at_least=PANEL_SIZE, tint=0.3))
            if row == 0 and headings:
                axes.set_title(headings[column], fontsize=12, pad=5, **text)
            if panel.note:
                box = {"facecolor": BACKGROUND, "alpha": 0.7, "edgecolor": "none", "pad": 2}
                corner: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom"}
                axes.text(0.03, 0.03, panel.note, fontsize=11, bbox=box, **corner, **text)
    figure.text(0.5, 1 - 0.28 / height, title, ha="center", va="center", fontsize=14, **text)
    key = figure.legend(
        handles=[Patch(color=colour, label=name) for colour, name in keys],
        loc="center",
        bbox_to_anchor=(0.5, foot / 2 / height),
        ncols=min(in_line, len(keys)),
        frameon=False,
        labelcolor=TEXT,
        fontsize=11,
        handlelength=1,
        columnspacing=1.2,
    )
    for name in key.get_texts():
        name.set_parse_math(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor=BACKGROUND)
    write_atomically(path, content.getbuffer())


def outlined(
    image: np.ndarray,
    masks: np.ndarray | None,
    *,
    at_least: int = 0,
    at_most: int | None = None,
    tint: float = 0.0,
) -> np.ndarray:
    """Draw masks on an image, pixel by pixel.

    Parameters
    ----------
    image
        float (C, H, W) in [0, 1].
    masks
        bool (K, H, W); None for none.
    at_least
        Width of the picture in pixels: smaller images are enlarged by a whole factor.
    at_most
        Height and width of the picture in pixels: larger images are made smaller.
    tint
        How much of its colour the area of a mask takes on, from 0 to 1.

    Returns
    -------
    numpy.ndarray
        uint8 (H', W', 3).
    """
    factor = max(1, -(-at_least // image.shape[-1]))
    shape: tuple[int, ...] = (factor * image.shape[-2], factor * image.shape[-1])
    if at_most is not None and max(shape) > at_most:
        shape = Placement.of(shape, at_most).inner
    shown = image if len(image) == 3 else image[:1]
    large = [resize(plane.astype(np.float32), shape) for plane in shown]
    picture = np.stack(large * (3 // len(large)), axis=-1)
    thickness = max(1, round(min(shape) / 200))
    drawn = []
    pairs = zip(itertools.cycle(COLOURS), () if masks is None else masks, strict=False)
    for colour, mask in pairs:
        area = resize(mask.astype(np.float32), shape) > 0.5 if mask.any() else mask
        if area.any():  # in the part of the picture that it takes
            sides = find_objects(area.astype(np.uint8))[0]
            box = tuple(slice(max(0, s.start - thickness), s.stop + thickness) for s in sides)
            drawn.append((np.array(to_rgb(colour)), area[box], picture[box]))
    # All tints before all outlines, so that structures that overlap both show.
    for tone, area, part in drawn:
        part[area] += tint * (tone - part[area])
    for tone, area, part in drawn:
        part[area & ~binary_erosion(area, iterations=thickness, border_value=1)] = tone
    return np.asarray(picture.clip(0, 1) * 255 + 0.5, dtype=np.uint8)


def side_by_side(
    image: np.ndarray, masks: Sequence[np.ndarray | None], at_least: int
) -> np.ndarray:
    """Draw an image once for each set of masks, from left to right; see `outlined`."""
    return np.concatenate([outlined(image, each, at_least=at_least) for each in masks], axis=1)
