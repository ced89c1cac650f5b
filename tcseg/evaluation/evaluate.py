"""How good a network is: its predictions on a part of a data set against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    "images, without those where a structure is in neither. The mean over the structures is the "
    "mIOU.",
    "3-D IOU: that of the planes of a volume taken together; mean ± standard deviation over "
    "volumes.",
    "MACD: mean absolute distance of the contours of prediction and truth.",
    "Missed: images in which only one of prediction and truth is empty.",
)

Masks = NDArray[np.bool_]

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

    Planes of one volume count as one image. Parameters are those of `predict`; the background does
    not count.

    Returns
    -------
    float
        Between 0 and 1: the mean over structures of the mean over the images where prediction or
        truth has it. nan if there is no structure anywhere.

    Raises
    ------
    ValueError
        If `indices` is empty.
    """
    if len(indices) == 0:
        raise ValueError("validation_miou: indices must name at least one image, got none")
    classes = len(dataset.classes)
    names = {index: dataset.volume_of(index) or dataset.ids[index] for index in indices}
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names.values()))}
    # Exact: below 2**53 every count of pixels is a double.
    pixels = torch.zeros(2, len(numbers), classes, dtype=torch.float64, device=dataset.device)
    for batch, masks in _predictions(network, dataset, indices, batch_size):
        predicted = masks[:, :classes]
        truth = dataset.target_batch(batch)[:, :classes].bool()
        image = torch.tensor([numbers[names[index]] for index in batch], device=dataset.device)
        for total, mask in zip(pixels, (predicted & truth, predicted | truth), strict=True):
            total.index_add_(0, image, mask.sum(dim=(-2, -1), dtype=torch.float64))
    intersection, union = pixels
    return float((intersection / union).nanmean(0).nanmean())


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
        ``"miou"``, the mean over structures without background, and ``"miou_std"``, the standard
        deviation over images of their means; by structure ``"iou"``, ``"dice"`` and ``"macd_mm"``
        (mean absolute contour distance in mm), means over the images where they are defined (nan
        if there are none): overlaps where prediction or truth has the structure, the distance
        where both have it and the size of a pixel is known; ``"iou_std"``, ``"dice_std"`` and
        ``"macd_mm_std"``, and ``"missed"`` (number of images where only one of prediction and truth
        is empty); ``"joined"``: the same by name for structures
        taken as one (lungs, clavicles); ``"volumes"``, where images are planes of volumes:
        ``"miou"``, ``"iou"``, ``"dice"`` and their deviations over volumes, the planes of each
        taken together in three dimensions; ``"cardiothoracic_ratio"``, where there are heart and
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
    volumes: dict[str, dict[str, NDArray[np.int64]]] = {}
    for batch, masks in _predictions(network, dataset, indices, batch_size):
        truth = dataset.target_batch(batch).cpu().numpy().astype(bool)
        for index, predicted, true in zip(batch, masks.cpu().numpy(), truth, strict=True):
            pairs = _pairs(dataset.classes, predicted, true, postprocess)
            images.append({"id": dataset.ids[index], **_measure(pairs, dataset.spacing_of(index))})
            if (volume := dataset.volume_of(index)) is not None:
                total = volumes.setdefault(volume, {})
                for name, pixels in _counts(pairs).items():
                    total[name] = total.get(name, 0) + pixels
    joined = [name for name in images[0]["iou"] if name not in dataset.classes]
    results = {**_all(images, dataset.classes), "joined": _over_images(images, joined)}
    if volumes:
        results["volumes"] = _all(list(map(_overlaps, volumes.values())), dataset.classes)
    if "cardiothoracic_ratio" in images[0]:
        ratios = np.array([list(image["cardiothoracic_ratio"].values()) for image in images])
        differences = ratios[:, 0] - ratios[:, 1]
        results["cardiothoracic_ratio"] = {
            "error": _mean(np.abs(differences)),
            "bias": _mean(differences),
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
    headings = ("IOU %", "3-D IOU %", "MACD mm", "missed")
    kept = [
        c
        for c in range(len(headings))
        if c == 0 or any(set(block[c]) - {"-", "0"} for block in blocks)
    ]
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
    """Return IOU, that of volumes, distance and number of missed ones as text, and over all."""

    # None is what nan becomes in a file of JSON.
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    def overlaps(result: Mapping[str, Any]) -> list[str]:
        figures = [(result["iou"][name], result["iou_std"][name]) for name in structures]
        figures.append((result["miou"], result["miou_std"]))
        return [plus_minus(100 * number(mean), 100 * number(std)) for mean, std in figures]

    distances = [number(result["macd_mm"][name]) for name in structures]
    known = [d for d in distances if math.isfinite(d)]
    missed = [result["missed"][name] for name in structures]
    volumes = result.get("volumes")
    return [
        overlaps(result),
        overlaps(volumes) if volumes else ["-"] * (len(structures) + 1),
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


def _pairs(
    classes: Sequence[str], predicted: Masks, true: Masks, postprocess: bool
) -> dict[str, tuple[Masks, Masks]]:
    """Return prediction and truth of one image by structure; masks are (C + 1, H, W)."""
    pairs = {
        name: (metrics.postprocess(a) if postprocess else a, b)
        for name, a, b in zip(classes, predicted[:-1], true[:-1], strict=True)
    }
    for name, parts in JOINED.items():
        if set(parts) <= set(classes) and name not in classes:
            left, right = (pairs[part] for part in parts)
            pairs[name] = (left[0] | right[0], left[1] | right[1])
    return pairs


def _counts(pairs: Mapping[str, tuple[Masks, Masks]]) -> dict[str, NDArray[np.int64]]:
    """Count the pixels of intersection and union by structure."""
    return {
        name: np.array([np.count_nonzero(a & b), np.count_nonzero(a | b)])
        for name, (a, b) in pairs.items()
    }


def _overlaps(counts: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, float]]:
    """Return IOU and Dice by structure, nan where there is nothing to agree on."""
    return {
        "iou": {name: i / u if u else math.nan for name, (i, u) in counts.items()},
        "dice": {name: 2 * i / (i + u) if u else math.nan for name, (i, u) in counts.items()},
    }


def _measure(
    pairs: Mapping[str, tuple[Masks, Masks]], spacing: float | tuple[float, float] | None
) -> dict[str, Any]:
    """Measure one image but for its mean."""
    row: dict[str, Any] = {
        **_overlaps(_counts(pairs)),
        "macd_mm": {
            name: math.nan if spacing is None else metrics.contour_distance(a, b, spacing)
            for name, (a, b) in pairs.items()
        },
        "missed": {name: bool(a.any() != b.any()) for name, (a, b) in pairs.items()},
    }
    if "heart" in pairs and "lungs" in pairs:
        ratios = map(metrics.cardiothoracic_ratio, pairs["heart"], pairs["lungs"])
        row["cardiothoracic_ratio"] = dict(zip(("predicted", "true"), ratios, strict=True))
    return row


def _all(images: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Add the mean over structures to every row, and return those over rows."""
    for image in images:
        image["miou"] = _mean(np.array([image["iou"][name] for name in classes]))
    results = _over_images(images, classes)
    mious = np.array([image["miou"] for image in images])
    return {
        "miou": _mean(np.array(list(results["iou"].values()))),
        "miou_std": _deviation(mious),
        **results,
    }


def _over_images(
    images: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Means and standard deviations by structure, where they are defined."""
    results: dict[str, dict[str, Any]] = {}
    for figure in ("iou", "dice", "macd_mm"):
        if figure in images[0]:
            values = {name: np.array([image[figure][name] for image in images]) for name in names}
            results[figure] = {name: _mean(values[name]) for name in names}
            results[f"{figure}_std"] = {name: _deviation(values[name]) for name in names}
    if "missed" in images[0]:
        results["missed"] = {name: sum(image["missed"][name] for image in images) for name in names}
    return results


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _deviation(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.std()) if known.size else math.nan
