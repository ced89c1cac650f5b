"""What is measured on prediction and truth of one image or volume, and over many."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.data import Dataset
from tcseg.evaluation import metrics
from tcseg.io.sizes import Spacing

# Structures that count as one as well, as in the paper's second table.
JOINED = {
    "lungs": ("left lung", "right lung"),
    "clavicles": ("left clavicle", "right clavicle"),
}

Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """Prediction and truth of an image, each (C, *spatial), and the classes that resizing took."""

    index: int
    predicted: Any
    true: Any
    spacing: Spacing | None
    vanished: Collection[str] = ()
    ignored: Masks | None = None
    shape: tuple[int, ...] = ()  # of each of packed masks

    def packed(self) -> Case:
        """Return the same in little memory."""
        predicted, true = (
            [zlib.compress(np.packbits(mask).tobytes(), 1) for mask in masks]
            for masks in (self.predicted, self.true)
        )
        return replace(self, predicted=predicted, true=true, shape=self.true.shape[1:])


def _unpacked(
    classes: Sequence[str], planes: Sequence[Sequence[bytes]], shape: tuple[int, ...]
) -> Callable[[str], Masks]:
    """Return what gives the masks (planes, H, W) of a class, unpacked when asked for."""

    def of(name: str) -> Masks:
        c = classes.index(name)
        packed = [np.frombuffer(zlib.decompress(plane[c]), np.uint8) for plane in planes]
        bits = np.unpackbits(np.stack(packed), axis=-1, count=math.prod(shape))
        return bits.view(np.bool_).reshape(-1, *shape)

    return of


def structures_of(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the classes that make each structure, those taken as one included."""
    structures: dict[str, tuple[str, ...]] = {name: (name,) for name in classes}
    for name, parts in JOINED.items():
        if set(parts) <= set(classes):
            structures.setdefault(name, parts)
    return structures


def _joined(masks: Callable[[str], Masks], parts: Sequence[str]) -> Masks:
    return functools.reduce(np.logical_or, map(masks, parts))


def _measure(
    structures: Mapping[str, Sequence[str]],
    predicted: Callable[[str], Masks],
    true: Callable[[str], Masks],
    spacing: Spacing | None,
    vanished: Collection[str],
) -> dict[str, Any]:
    unit = "px" if spacing is None else "mm"
    distance, farthest = f"macd_{unit}", f"hd95_{unit}"
    figures = ("iou", "dice", "macd_mm", distance, farthest, "missed", "vanished")
    row: dict[str, Any] = {figure: {} for figure in figures}
    for name, parts in structures.items():
        a, b = _joined(predicted, parts), _joined(true, parts)
        if gone := not b.any() and not set(parts).isdisjoint(vanished):
            a = b  # what is predicted may be right
        row["iou"][name], row["dice"][name] = metrics.iou(a, b), metrics.dice(a, b)
        row["macd_mm"][name] = math.nan
        away = metrics.contour_distances(a, b, 1.0 if spacing is None else spacing)
        row[distance][name] = float(away.mean()) if away.size else math.nan
        if a.ndim > 2:
            row[farthest][name] = float(np.percentile(away, 95)) if away.size else math.nan
        row["missed"][name], row["vanished"][name] = bool(a.any() != b.any()), gone
    return {figure: values for figure, values in row.items() if values}


def measure_image(
    structures: Mapping[str, Sequence[str]], dataset: Dataset, case: Case
) -> dict[str, Any]:
    """Measure one image but for the mean over its structures."""
    predicted, true = (
        dict(zip(dataset.classes, masks, strict=True)).__getitem__
        for masks in (case.predicted, case.true)
    )
    row = _measure(structures, predicted, true, case.spacing, case.vanished)
    if "heart" in structures and "lungs" in structures and case.true[0].ndim == 2:
        row["cardiothoracic_ratio"] = {
            kind: metrics.cardiothoracic_ratio(masks("heart"), _joined(masks, structures["lungs"]))
            for kind, masks in (("predicted", predicted), ("true", true))
        }
    return row


def measure_volume(
    structures: Mapping[str, Sequence[str]], dataset: Dataset, planes: Sequence[Case]
) -> list[dict[str, Any]]:
    """Measure the planes of a volume together; nothing if they are of several sizes."""
    planes = sorted(planes, key=lambda plane: plane.index)
    if len({plane.shape for plane in planes}) > 1:
        return []
    first, last = planes[0], planes[-1]
    predicted = _unpacked(dataset.classes, [plane.predicted for plane in planes], first.shape)
    true = _unpacked(dataset.classes, [plane.true for plane in planes], first.shape)
    between = dataset.slice_spacing_of(first.index)
    spacing = None
    if between is not None and first.spacing is not None:
        spacing = (between, *first.spacing)
    vanished = {name for plane in planes for name in plane.vanished}
    row = _measure(structures, predicted, true, spacing, vanished)
    if last.index - first.index >= len(planes):  # what lies between has no known surface
        distances = [figure for figure in row if figure.startswith(("macd", "hd95"))]
        row |= {figure: dict.fromkeys(structures, math.nan) for figure in distances}
    return [row]


def summary(images: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Add the mean over structures to every row, and return those over rows."""
    for image in images:
        image["miou"] = mean(np.array([image["iou"][name] for name in classes]))
    results = over_images(images, classes)
    mious = np.array([image["miou"] for image in images])
    return {
        "miou": mean(np.array(list(results["iou"].values()))),
        "miou_std": deviation(mious),
        **results,
    }


def over_images(
    images: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Means and standard deviations by structure, where they are defined."""
    results: dict[str, dict[str, Any]] = {}
    for figure in ("iou", "dice", "macd_mm", "macd_px", "hd95_mm", "hd95_px"):
        rows = [image[figure] for image in images if figure in image]
        if rows:
            values = {name: np.array([row[name] for row in rows]) for name in names}
            results[figure] = {name: mean(values[name]) for name in names}
            results[f"{figure}_std"] = {name: deviation(values[name]) for name in names}
    for figure in ("missed", "vanished"):
        results[figure] = {name: sum(image[figure][name] for image in images) for name in names}
    return results


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of those that are known, nan if none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def deviation(values: NDArray[np.float64]) -> float:
    """Return the standard deviation of those that are known, nan if none is."""
    known = values[np.isfinite(values)]
    return float(known.std()) if known.size else math.nan
