"""How good a network is: its predictions on a part of a data set against the truth."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcseg.data import Dataset
from tcseg.evaluation import metrics
from tcseg.evaluation.measures import (
    Case,
    mean,
    measure_image,
    measure_volume,
    over_images,
    structures_of,
    summary,
)
from tcseg.io.placement import Placement
from tcseg.method.network import at_once, found, rivals
from tcseg.sheet import Sheet, plus_minus, track

# Of the columns of `results_table` in whose headings the words are.
EXPLANATIONS = {
    "IOU": "IOU: overlap of prediction and truth, intersection over union; mean ± standard "
    "deviation over images, without those where a structure is in neither. The mean over the "
    "structures is the mIOU.",
    "MACD": "MACD: mean absolute distance of the contours of prediction and truth.",
    "HD95": "HD95: distance of those surfaces that 95 % of their points do not exceed.",
    "3-D": "3-D: of the planes of a volume taken together, contours being surfaces; mean ± "
    "standard deviation over volumes.",
    "px": "px: in pixels, or voxels, of the size measured at, where files do not say theirs in mm.",
    "missed": "Missed: images in which only one of prediction and truth is empty.",
    "vanished": "Vanished: images whose mask shows the structure, but not at this size; there it "
    "says nothing.",
}


def predict(
    network: nn.Module, dataset: Dataset, indices: Sequence[int], *, batch_size: int = 8
) -> Tensor:
    """Segment images of a data set.

    Parameters
    ----------
    network
        Maps images (b, 1, *spatial) in [0, 1] to probabilities (b, C + 1, *spatial), background
        last; on the device of the data set. It runs in evaluation mode and is left in the mode it
        was in.
    dataset
        The images.
    indices
        Which of them.
    batch_size
        How many at a time, fewer where there are many classes.

    Returns
    -------
    Tensor
        bool (b, C + 1, *spatial) on the data set's device: where the probability exceeds one half,
        and, where structures exclude each other, is the largest.
    """
    answers = _predictions(network, dataset, indices, batch_size)
    batches = [found(network, answer, dataset.exclusive) for _, answer in answers]
    if not batches:
        shape = (0, len(dataset.classes) + 1, *dataset.spatial)
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
        truth has it, but for those where it vanished. nan if there is no structure anywhere.

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
    shape = (len(numbers), classes)
    pixels = torch.zeros(3, *shape, dtype=torch.float64, device=dataset.device)
    vanished = torch.zeros(shape, dtype=torch.bool, device=dataset.device)
    for batch, answers in _predictions(network, dataset, indices, batch_size):
        target = dataset.target_batch(batch).bool()
        predicted = found(network, answers, dataset.exclusive)[:, :classes]
        if dataset.ignores:
            predicted &= target.any(dim=1, keepdim=True)
        truth = target[:, :classes]
        image = torch.tensor([numbers[names[index]] for index in batch], device=dataset.device)
        for total, mask in zip(pixels, (predicted & truth, predicted | truth, truth), strict=True):
            total.index_add_(0, image, mask.flatten(2).sum(dim=-1, dtype=torch.float64))
        for index in batch:
            for name in dataset.vanished.get(index, ()):
                vanished[numbers[names[index]], dataset.classes.index(name)] = True
    intersection, union, true = pixels
    union[vanished & (true == 0)] = 0
    intersection[union == 0] = 0
    return float((intersection / union).nanmean(0).nanmean())


def evaluate(
    network: nn.Module,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    postprocess: bool = False,
    original_size: bool = False,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Measure predictions against the truth, by structure and image.

    Parameters
    ----------
    network, dataset, indices, batch_size
        As for `predict`.
    postprocess
        Whether to keep the largest component of each structure only, and fill its holes.
    original_size
        Whether to bring each prediction back to the size of its image, as `tcseg predict` does, and
        compare it there with the masks as they are in their files; else all is measured at the size
        of the data set.

    Returns
    -------
    dict
        ``"miou"``, the mean over structures without background, and ``"miou_std"``, the standard
        deviation over images of their means; by structure ``"iou"``, ``"dice"`` and ``"macd_mm"``
        (mean absolute contour distance in mm), means over the images where they are defined (nan
        if there are none): overlaps where prediction or truth has the structure, the distance
        where both have it and the size of a pixel is known; ``"macd_px"``, in pixels, over images
        where it is not, if there are any; of volumes ``"hd95_mm"`` and ``"hd95_px"``, the distance
        that 95 % of the points of both surfaces do not exceed; ``"iou_std"`` and so on;
        ``"missed"`` (number of images where only one of prediction and truth is empty) and
        ``"vanished"`` (where the structure is lost from the truth by resizing: there it counts in
        no other figure); ``"joined"``: the same
        by name for structures taken as one (lungs, clavicles); ``"volumes"``, where images are
        planes of volumes: the same over volumes, the planes of each taken together in three
        dimensions (distances only if no plane between is left out);
        ``"cardiothoracic_ratio"``, where there are heart and lungs: ``"error"`` (mean absolute
        difference from that of the true masks), ``"bias"`` (mean difference) and ``"missed"``;
        ``"images"``: a list of rows ``{"id", "miou", "iou": {structure: ...}, ...}``, joined
        structures included. Overlaps as fractions; standard deviations divide by the number of
        images.

    Raises
    ------
    ValueError
        If `indices` is empty.
    DataError
        If files of masks can no longer be read.
    """
    if len(indices) == 0:
        raise ValueError("evaluate: indices must name at least one image, got none")
    structures = structures_of(dataset.classes)
    images: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    stacks: dict[str, list[Case]] = defaultdict(list)
    planes = Counter(map(dataset.volume_of, indices))
    cases = _cases(network, dataset, indices, batch_size, original_size)
    for case in track(cases, "Measuring", len(indices)):
        if postprocess:
            case = replace(
                case, predicted=metrics.postprocess_all(case.predicted, dataset.exclusive)
            )
        if case.ignored is not None:
            case = replace(case, predicted=case.predicted & ~case.ignored, ignored=None)
        images.append({"id": dataset.ids[case.index], **measure_image(structures, dataset, case)})
        volume = dataset.volume_of(case.index)
        if volume is not None:
            stacks[volume].append(case.packed())
            if len(stacks[volume]) == planes[volume]:
                volumes += measure_volume(structures, dataset, stacks.pop(volume))
    joined = [name for name in structures if name not in dataset.classes]
    results = {**summary(images, dataset.classes), "joined": over_images(images, joined)}
    if volumes:
        results["volumes"] = summary(volumes, dataset.classes)
    if "cardiothoracic_ratio" in images[0]:
        ratios = np.array([list(image["cardiothoracic_ratio"].values()) for image in images])
        differences = ratios[:, 0] - ratios[:, 1]
        results["cardiothoracic_ratio"] = {
            "error": mean(np.abs(differences)),
            "bias": mean(differences),
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
        IOU in percent (mean and standard deviation over images); contour distance; and how many
        structures were missed, if any.
    """
    structures = list(next(iter(results.values()))["iou"])
    blocks = [_columns(structures, result) for result in results.values()]
    # What no result has is left out of all.
    headings = [
        heading
        for heading in blocks[0]
        if heading == "IOU %" or any(set(block[heading]) - {"-", "0"} for block in blocks)
    ]
    columns = [f"{name}\n{heading}" for heading in headings for name in results]
    rows = [
        [name, *(block[heading][i] for heading in headings for block in blocks)]
        for i, name in enumerate([*structures, "mean"])
    ]
    sheet = Sheet(title, ["structure", *columns], [("", rows[:-1]), ("", rows[-1:])])
    sheet.together = len(results)
    sheet.notes = [
        text for word, text in EXPLANATIONS.items() if any(word in name for name in headings)
    ]
    return sheet


def _columns(structures: Sequence[str], result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the figures as text by heading, each by structure and over all."""

    # None is what nan becomes in a file of JSON.
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    def overlaps(part: Mapping[str, Any]) -> list[str]:
        if not part:
            return ["-"] * (len(structures) + 1)
        figures = [(part["iou"][name], part["iou_std"][name]) for name in structures]
        figures.append((part["miou"], part["miou_std"]))
        return [plus_minus(100 * number(mean), 100 * number(std)) for mean, std in figures]

    def distances(part: Mapping[str, Any], figure: str) -> list[str]:
        values = np.array([number(part.get(figure, {}).get(name)) for name in structures])
        return [plus_minus(value, None, 2) for value in (*values, mean(values))]

    def counts(figure: str) -> list[str]:
        values = [result.get(figure, {}).get(name, 0) for name in structures]
        return [*map(str, values), f"{np.mean(values):.2g}"]

    volumes = result.get("volumes", {})
    return {
        "IOU %": overlaps(result),
        "3-D IOU %": overlaps(volumes),
        "MACD mm": distances(result, "macd_mm"),
        "3-D MACD mm": distances(volumes, "macd_mm"),
        "MACD px": distances(result, "macd_px"),
        "3-D MACD px": distances(volumes, "macd_px"),
        "HD95 mm": distances(result, "hd95_mm"),
        "HD95 px": distances(result, "hd95_px"),
        "missed": counts("missed"),
        "vanished": counts("vanished"),
    }


def _cases(
    network: nn.Module,
    dataset: Dataset,
    indices: Sequence[int],
    batch_size: int,
    original_size: bool,
) -> Iterator[Case]:
    for batch, answers in _predictions(network, dataset, indices, batch_size):
        if original_size:
            shares = rivals(network, answers).float().cpu().numpy()
            for index, framed in zip(batch, shares, strict=True):
                true, spacing = dataset.original(index)
                ignored = true[len(dataset.classes)] if dataset.ignores else None
                true = true[: len(dataset.classes)]
                extent, shape = dataset.extent_of(index), true.shape[1:]
                if dataset.extents is None:
                    place = Placement.of(shape, extent, spacing, dataset.resampled)
                else:
                    place = Placement(shape, extent, (0,) * len(extent), extent)
                framed = framed[:, *map(slice, extent)]
                predicted = place.restore_masks(framed, disjoint=dataset.exclusive)
                yield Case(index, predicted, true, spacing, ignored=ignored)
        else:
            masks = found(network, answers, dataset.exclusive).cpu().numpy()
            truth = dataset.target_batch(batch).cpu().numpy().astype(bool)
            for index, predicted, true in zip(batch, masks[:, :-1], truth, strict=True):
                spacing, vanished = dataset.spacing_of(index), dataset.vanished.get(index, ())
                own = tuple(map(slice, dataset.extent_of(index)))
                predicted, true = predicted[:, *own], true[:, *own]
                ignored = ~true.any(axis=0) if dataset.ignores else None
                yield Case(index, predicted, true[:-1], spacing, vanished, ignored=ignored)


def _predictions(
    network: nn.Module, dataset: Dataset, indices: Sequence[int], batch_size: int
) -> Iterator[tuple[Sequence[int], Tensor]]:
    training = network.training
    batch_size = at_once(batch_size, len(dataset.classes), dataset.spatial)
    network.eval()
    if dataset.extents is not None:  # of many sizes
        batch_size = 1
    try:
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            # Within the loop: a generator must not keep the mode on while its caller runs.
            with torch.inference_mode():
                extent = dataset.extent_of(batch[0])
                own: Any = (..., *map(slice, extent))
                answers = network(dataset.image_batch(batch)[own])
                sides = zip(reversed(dataset.spatial), reversed(extent), strict=True)
                around = [part for most, own in sides for part in (0, most - own)]
                answers = nn.functional.pad(answers, around)
            yield batch, answers
    finally:
        network.train(training)
