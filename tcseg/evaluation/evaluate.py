"""How good a network is: its predictions on a part of a data set against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcseg.data import Dataset
from tcseg.evaluation import metrics
from tcseg.sheet import Sheet, plus_minus

# Structures that count as one as well, as in the paper's second table.
JOINED = {
    "lungs": ("left lung", "right lung"),
    "clavicles": ("left clavicle", "right clavicle"),
}

# Of the columns of `results_table`.
EXPLANATIONS = (
    "IOU: overlap of prediction and truth, intersection over union; mean ± standard deviation over "
    "images. The mean over the structures is the mIOU.",
    "MACD: mean absolute distance of the contours of prediction and truth.",
    "Missed: images in which only one of prediction and truth is empty.",
)

__all__ = ["evaluate", "predict", "results_table", "validation_miou"]


def predict(
    network: nn.Module, dataset: Dataset, indices: Sequence[int], *, batch_size: int = 8
) -> Tensor:
    """Segment images of a data set.

    Parameters
    ----------
    network
        Maps images (b, 1, H, W) in [0, 1] to probabilities (b, C + 1, H, W), background last; on
        the device of the data set. It runs in evaluation mode and is left in the mode it was in.
    dataset
        The images.
    indices
        Which of them.
    batch_size
        How many at a time.

    Returns
    -------
    Tensor
        bool (b, C + 1, H, W) on the data set's device: where the probability exceeds one half.
    """
    batches = [masks for _, masks in _predictions(network, dataset, indices, batch_size)]
    if not batches:
        shape = (0, len(dataset.classes) + 1, *dataset.images.shape[-2:])
        return torch.zeros(shape, dtype=torch.bool, device=dataset.device)
    return torch.cat(batches)


def validation_miou(
    network: nn.Module, dataset: Dataset, indices: Sequence[int], *, batch_size: int = 8
) -> float:
    """Mean IOU over images and structures, computed on the device: the quick form of `evaluate`.

    Parameters are those of `predict`; the background does not count.

    Returns
    -------
    float
        Between 0 and 1; a structure absent from prediction and truth counts 1.

    Raises
    ------
    ValueError
        If `indices` is empty.
    """
    if len(indices) == 0:
        raise ValueError("validation_miou: indices must name at least one image, got none")
    classes = len(dataset.classes)
    total = torch.zeros((), dtype=torch.float64, device=dataset.device)
    for batch, masks in _predictions(network, dataset, indices, batch_size):
        predicted = masks[:, :classes]
        truth = dataset.target_batch(batch)[:, :classes].bool()
        # Exact: below 2**53 every count of pixels is a double.
        intersection = (predicted & truth).sum(dim=(-2, -1), dtype=torch.float64)
        union = (predicted | truth).sum(dim=(-2, -1), dtype=torch.float64)
        total += torch.where(union == 0, 1.0, intersection / union).sum()
    return total.item() / (len(indices) * classes)


def evaluate(
    network: nn.Module,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    postprocess: bool = False,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Measure predictions against the truth, by structure and image.

    Parameters
    ----------
    network, dataset, indices, batch_size
        As for `predict`.
    postprocess
        Whether to keep the largest component of each structure only, and fill its holes.

    Returns
    -------
    dict
        ``"miou"``, the mean over images and structures without background, and ``"miou_std"``,
        its standard deviation over images; by structure ``"iou"``, ``"dice"`` and ``"macd_mm"``
        (mean absolute contour distance in mm), means over images, of the distance over those
        where it is defined (nan if there are none), ``"iou_std"``, ``"dice_std"`` and
        ``"macd_mm_std"``, and ``"missed"`` (number of images where only one of prediction and truth
        is empty, so that the distance is not defined; nor is it where the size of a pixel is not
        known); ``"joined"``: the same by name for structures
        taken as one (lungs, clavicles); ``"cardiothoracic_ratio"``, where there are heart and
        lungs: ``"error"`` (mean absolute difference from that of the true masks), ``"bias"``
        (mean difference) and ``"missed"``; ``"images"``: a list of rows
        ``{"id", "miou", "iou": {structure: ...}, "dice": {...}, "macd_mm": {...}}``, joined
        structures included. Overlaps as fractions; standard deviations divide by the number of
        images.

    Raises
    ------
    ValueError
        If `indices` is empty.
    """
    if len(indices) == 0:
        raise ValueError("evaluate: indices must name at least one image, got none")
    images: list[dict[str, Any]] = []
    for batch, masks in _predictions(network, dataset, indices, batch_size):
        truth = dataset.target_batch(batch).cpu().numpy().astype(bool)
        for index, predicted, true in zip(batch, masks.cpu().numpy(), truth, strict=True):
            spacing = dataset.spacing_of(index)
            row = _measure(dataset.classes, predicted, true, spacing, postprocess)
            images.append({"id": dataset.ids[index], **row})
    mious = np.array([image["miou"] for image in images])
    joined = [name for name in images[0]["iou"] if name not in dataset.classes]
    results = {
        "miou": float(mious.mean()),
        "miou_std": float(mious.std()),
        **_over_images(images, dataset.classes),
        "joined": _over_images(images, joined),
    }
    if "cardiothoracic_ratio" in images[0]:
        ratios = np.array([list(image["cardiothoracic_ratio"].values()) for image in images])
        known = (differences := ratios[:, 0] - ratios[:, 1])[np.isfinite(differences)]
        results["cardiothoracic_ratio"] = {
            "error": _mean(np.abs(known)),
            "bias": _mean(known),
            "missed": int(np.isnan(differences).sum()),
        }
    return {**results, "images": images}


def results_table(results: Mapping[str, Mapping[str, Any]], title: str = "") -> Sheet:
    """Set results of `evaluate` side by side, one row for each structure.

    Parameters
    ----------
    results
        Results by name, such as ``{"pre-trained": ..., "semitc": ...}``, all of the same
        structures.
    title
        Stands above the table.

    Returns
    -------
    Sheet
        IOU in percent (mean and standard deviation over images); contour distance in mm where the
        size of pixels is known; and how many structures were missed, if any.
    """
    structures = list(next(iter(results.values()))["iou"])
    blocks = [_columns(structures, result) for result in results.values()]
    # What no result has is left out of all.
    kept = [c for c in range(3) if any(set(block[c]) - {"-", "0"} for block in blocks)]
    headings = ("IOU %", "MACD mm", "missed")
    columns = [f"{name}\n{headings[c]}" for c in kept for name in results]
    rows = [
        [name, *(block[c][i] for c in kept for block in blocks)]
        for i, name in enumerate([*structures, "mean"])
    ]
    sheet = Sheet(title, ["structure", *columns], [("", rows[:-1]), ("", rows[-1:])])
    sheet.together = len(results)
    sheet.notes = [text for c, text in enumerate(EXPLANATIONS) if c in kept]
    return sheet


def _columns(structures: Sequence[str], result: Mapping[str, Any]) -> list[list[str]]:
    """Return IOU, distance and number of missed ones as text, by structure and over all."""
    # None is what nan becomes in a file of JSON.
    distances = [math.nan if (d := result["macd_mm"][name]) is None else d for name in structures]
    known = [d for d in distances if math.isfinite(d)]
    missed = [result["missed"][name] for name in structures]
    return [
        [
            *(
                plus_minus(100 * result["iou"][name], 100 * result["iou_std"][name])
                for name in structures
            ),
            plus_minus(100 * result["miou"], 100 * result["miou_std"]),
        ],
        [
            f"{d:.2f}" if math.isfinite(d) else "-"
            for d in (*distances, sum(known) / len(known) if known else math.nan)
        ],
        [*map(str, missed), f"{np.mean(missed):.2g}"],
    ]


def _predictions(
    network: nn.Module, dataset: Dataset, indices: Sequence[int], batch_size: int
) -> Iterator[tuple[Sequence[int], Tensor]]:
    training = network.training
    network.eval()
    try:
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            # Within the loop: a generator must not keep the mode on while its caller runs.
            with torch.inference_mode():
                masks = network(dataset.image_batch(batch)) > 0.5
            yield batch, masks
    finally:
        network.train(training)


def _measure(
    classes: Sequence[str],
    predicted: np.ndarray,
    true: np.ndarray,
    spacing: float | tuple[float, float] | None,
    postprocess: bool,
) -> dict[str, Any]:
    """Measure one image: masks (C + 1, H, W)."""
    pairs = {
        name: (metrics.postprocess(a) if postprocess else a, b)
        for name, a, b in zip(classes, predicted[:-1], true[:-1], strict=True)
    }
    for name, parts in JOINED.items():
        if set(parts) <= set(classes) and name not in classes:
            left, right = (pairs[part] for part in parts)
            pairs[name] = (left[0] | right[0], left[1] | right[1])
    overlaps = {name: metrics.iou(a, b) for name, (a, b) in pairs.items()}
    row: dict[str, Any] = {
        "miou": float(np.mean([overlaps[name] for name in classes])),
        "iou": overlaps,
        "dice": {name: metrics.dice(a, b) for name, (a, b) in pairs.items()},
        "macd_mm": {
            name: float("nan") if spacing is None else metrics.contour_distance(a, b, spacing)
            for name, (a, b) in pairs.items()
        },
        "missed": {name: bool(a.any() != b.any()) for name, (a, b) in pairs.items()},
    }
    if "heart" in pairs and "lungs" in pairs:
        ratios = map(metrics.cardiothoracic_ratio, pairs["heart"], pairs["lungs"])
        row["cardiothoracic_ratio"] = dict(zip(("predicted", "true"), ratios, strict=True))
    return row


def _over_images(
    images: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Means and standard deviations by structure, where they are defined."""
    results: dict[str, dict[str, Any]] = {}
    for figure in ("iou", "dice", "macd_mm"):
        means, deviations = {}, {}
        for name in names:
            values = np.array([image[figure][name] for image in images])
            known = values[np.isfinite(values)]
            means[name] = _mean(known)
            deviations[name] = float(known.std()) if known.size else float("nan")
        results |= {figure: means, f"{figure}_std": deviations}
    results["missed"] = {name: sum(image["missed"][name] for image in images) for name in names}
    return results


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
