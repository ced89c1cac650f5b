"""What a data set holds, what is missing, and how it would be divided: `tcseg data check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from tcseg.cli.options import with_options
from tcseg.data.dataset import Dataset
from tcseg.data.splits import JSRT_SPLITS, make_split, read_splits, split_remarks
from tcseg.errors import DataError, Problems, counted
from tcseg.evaluation.resizing import (
    ENOUGH,
    candidates,
    kept_by_resizing,
    suggested,
    suggested_patch,
)
from tcseg.io.sizes import mm_written, pixels, written
from tcseg.sheet import Sheet, plus_minus

SHEET_IMAGES = 24
WORDS = {2: ("pixels", "area"), 3: ("voxels", "volume")}  # by dimensions


def check(
    dataset: Dataset,
    problems: Problems,
    formats: Mapping[str, Mapping[str, int]],
    split_file: Path | None,
    console: Console,
) -> bool:
    """Print a report on a data set.

    Parameters
    ----------
    dataset
        What could be read.
    problems
        What was found on reading; problems with splits are added.
    formats
        Numbers of files by kind and format.
    split_file
        A file of splits, in place of the built-in ones.
    console
        Where to print.

    Returns
    -------
    bool
        Whether there is no problem.
    """
    for kind, counts in formats.items():
        listed = "; ".join(f"{n} of {name}" for name, n in sorted(counts.items()))
        console.print(f"{kind}: {listed}", markup=False)
    channels, flat = dataset.images.shape[1], len(dataset.spatial) == 2
    noun, parts = dataset.noun, WORDS[len(dataset.spatial)][0]
    size = "" if dataset.extents is None else "their own size, up to "
    annotated = len(dataset.with_masks)
    kinds = {1: f"grey {noun}", 3: f"colour {noun}"}
    several = channels * dataset.files not in kinds
    images = counted(len(dataset), kinds.get(channels * dataset.files, noun))
    console.print(
        f"{images}{f' of {channels} channels' if several else ''} read at "
        f"{size}{written(dataset.spatial)} {parts}{_spacing(dataset)}: "
        f"{annotated} with masks, {len(dataset) - annotated} without",
        markup=False,
    )
    if not flat and dataset.extents is not None:
        _tell_volumes(dataset, console)
    if dataset.bits > 8:
        console.print("more than 8 bits kept, one grey scale for each volume or series")
    if volumes := Counter(filter(None, map(dataset.volume_of, range(len(dataset))))):
        console.print(f"{volumes.total()} of them are planes of {counted(len(volumes), 'volume')}")
    if dataset.values is not None:
        pairs = zip(dataset.values, dataset.classes, strict=True)
        listed = ", ".join(f"{value} is {name}" for value, name in pairs)
        console.print(f"masks hold a value for each structure: {listed}", markup=False)
        last = f"class {dataset.values[-1]}" == dataset.classes[-1] and dataset.values[-1] > 100
        if last and len(dataset.values) > 1:
            line = f"{dataset.values[-1]} ignore"
            console.print(f"to leave those pixels out, say so in classes.txt: {line}")
    if len(dataset):
        console.print(_structures(dataset))
        resized = dataset.extents is None or dataset.resampled is not None
        if dataset.originals is not None and resized:
            _tell_resizing(dataset, problems, console)
        _tell_splits(dataset, split_file, problems, console)
    tell_problems(problems, console)
    if not problems.found:
        console.print("No problem found.")
    return not problems.found


def tell_problems(problems: Problems, console: Console) -> None:
    """Print what was found, a line each."""
    for problem in problems.found:
        console.print(f"Problem: {with_options(problem)}", style="bold red", markup=False)


def _spacing(dataset: Dataset) -> str:
    sides = dataset.known_pixels
    if not len(sides):
        return " of unknown size in mm"
    if sides.shape[1] == 3:
        return f" of {' x '.join(map(_range, sides.T))} mm"
    return f" of {_range(sides)} mm"


def _range(values: NDArray[np.floating]) -> str:
    low, high = values.min(), values.max()
    return f"{low:.3g}" if high - low < 1e-3 * low else f"{low:.3g} to {high:.3g}"


def _tell_volumes(dataset: Dataset, console: Console) -> None:
    """Say how large volumes are, to what they were resampled, and which patches suit them."""
    extents = [dataset.extent_of(index) for index in range(len(dataset))]
    sides = (f"{min(part)} to {max(part)}" for part in zip(*extents, strict=True))
    console.print(f"from the smallest to the largest: {' x '.join(sides)} voxels", markup=False)
    unknown = sum(dataset.spacing_of(index) is None for index in range(len(dataset)))
    if dataset.resampled is not None:
        console.print(f"resampled to voxels of {mm_written(dataset.resampled)} mm", markup=False)
    elif unknown:
        console.print(
            f"{unknown} of them do not say how large their voxels are: all are taken as they are"
        )
    console.print(f"Suggested: --patch {suggested_patch(dataset)}", markup=False)


def _structures(dataset: Dataset) -> Sheet:
    parts, extent = WORDS[len(dataset.spatial)]
    noun = f"{dataset.noun}s"
    columns = ["structure", noun, f"{extent} %", "smallest", "largest", "shared with others %"]
    rows = []
    areas = torch.zeros(len(dataset.with_masks), len(dataset.classes))
    shared = torch.zeros(2, len(dataset.classes))
    ignored = []
    for row, index in enumerate(dataset.with_masks):  # few in memory at a time
        own: tuple[slice, ...] = tuple(map(slice, dataset.extent_of(index)))
        target = dataset.target_batch([index])[0][:, *own].bool()
        masks, together = target[:-1].flatten(1), (target[:-1].sum(dim=0) > 1).flatten()
        areas[row] = masks.float().mean(dim=1) * 100
        shared += torch.stack([(masks & together).sum(dim=1), masks.sum(dim=1)])
        ignored.append(float((~target.any(dim=0)).float().mean() * 100))
    for c, name in enumerate(dataset.classes):
        present = areas[:, c] > 0
        known = areas[:, c][present] if present.any() else areas[:, c]
        shares = (f"{v:.2f}" for v in (known.mean(), known.min(), known.max()))
        overlap = shared[0, c] / shared[1, c].clamp(min=1) * 100
        rows.append([name, str(int(present.sum())), *shares, f"{overlap:.0f}"])
    sheet = Sheet("Structures", columns, [("", rows)])
    if dataset.ignores:
        count, mean = sum(map(bool, ignored)), sum(ignored) / len(ignored)
        sheet.notes.append(f"Marked as ignored: {mean:.2f} % of all {parts}, in {count} {noun}.")
    if dataset.originals is not None and dataset.extents is None:
        size = f"{written(dataset.spatial)} {parts}"
        sheet.notes.append(f"{extent.capitalize()}s are of {size}, margins included.")
    return sheet


def _tell_resizing(dataset: Dataset, problems: Problems, console: Console) -> None:
    """Say how much of the masks survives this size and others, and suggest one."""
    voxel = None if dataset.extents is None else dataset.resampled
    size = pixels(dataset.spatial) if voxel is None else mm_written(voxel)
    try:
        sizes = candidates(dataset)
        kept = kept_by_resizing(dataset, [*{*sizes, size}])
    except DataError as error:
        problems.add(str(error))
        return
    sheet = Sheet("Masks resized and brought back", ["structure"])
    unit = "" if voxel is None else " mm"
    sheet.columns += [f"IOU %\nat {tried}{unit}" for tried in kept]
    sheet.columns.append(f"parts lost\nat {size}{unit}")
    rows = []
    for name in dataset.classes:
        here = kept[size][name]
        cells = [plus_minus(100 * structures[name].iou, None) for structures in kept.values()]
        rows.append([name, *cells, f"{here.lost} of {here.components}"])
    sheet.sections.append(("", rows))
    sheet.notes.append("IOU with the original masks. Parts: connected components.")
    console.print(sheet)
    if remark := dataset.size_remark(dataset.with_masks, "annotated"):
        console.print(remark, markup=False)
    best, name, value = suggested({tried: kept[tried] for tried in sizes})
    among = ", ".join(map(str, sizes))
    option, least = ("--size", "smallest") if voxel is None else ("--spacing", "coarsest")
    which = f"the {least} of {among} at which every structure keeps"
    if value < ENOUGH:
        which = f"the best of {among}, though not every structure keeps"
    console.print(
        f"Suggested: {option} {best}, {which} {100 * ENOUGH:.0f} % IOU "
        f"(lowest: {name}, {100 * value:.1f} %)",
        markup=False,
    )


def _tell_splits(
    dataset: Dataset, split_file: Path | None, problems: Problems, console: Console
) -> None:
    try:
        if split_file is None:
            splits = [make_split(dataset, number) for number in range(JSRT_SPLITS)]
        else:
            splits = read_splits(split_file, dataset)
    except DataError as error:
        problems.add(str(error))
        return
    remarks = [line for split in splits for line in split_remarks(dataset, split)]
    for remark in dict.fromkeys(remarks):
        console.print(remark, markup=False)
    rows = [
        [str(number), *(str(len(part)) for part in (split.train, split.validation, split.test))]
        for number, split in enumerate(splits)
    ]
    columns = ["split", "training", "validation", "test"]
    console.print(Sheet(f"Splits: {dataset.noun}s", columns, [("", rows)]))
    for number, split in enumerate(splits):
        first = ", ".join(dataset.ids[i] for i in split.train[:5])
        console.print(f"Split {number}, first labelled {dataset.noun}s: {first}", markup=False)
