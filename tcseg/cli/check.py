"""What a data set holds, what is missing, and how it would be divided: `tcseg data check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console

from tcseg.cli.options import with_options
from tcseg.data import folder, jsrt
from tcseg.data.dataset import Dataset
from tcseg.data.splits import JSRT_SPLITS, make_split, read_splits, split_remarks
from tcseg.errors import DataError, Problems
from tcseg.evaluation.resizing import ENOUGH, candidates, kept_by_resizing, suggested
from tcseg.io.sizes import pixels
from tcseg.sheet import Sheet, plus_minus

SHEET_IMAGES = 24


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
    channels, height, width = dataset.images.shape[1:]
    size = "" if dataset.extents is None else "their own size, up to "
    without = 0 if dataset.annotated is None else len(dataset) - len(dataset.annotated)
    kinds = {1: "grey images", 3: "colour images"}
    images = kinds.get(channels * dataset.files, f"images of {channels} channels")
    console.print(
        f"{len(dataset)} {images} read at "
        f"{size}{height} x {width} pixels{_spacing(dataset)}: "
        f"{len(dataset) - without} with masks, {without} without",
        markup=False,
    )
    if dataset.bits > 8:
        console.print("more than 8 bits kept, one grey scale for each volume or series")
    if volumes := Counter(filter(None, map(dataset.volume_of, range(len(dataset))))):
        console.print(f"{volumes.total()} of them are planes of {len(volumes)} volumes")
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
        if dataset.originals is not None and dataset.extents is None:
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
    sides: list[float] = []
    for index in range(len(dataset)):
        spacing = dataset.spacing_of(index)
        if spacing is not None:
            sides += spacing if isinstance(spacing, tuple) else (spacing,)
    if not sides:
        return " of unknown size in mm"
    low, high = min(sides), max(sides)
    return f" of {low:.3g} mm" if high - low < 1e-3 * low else f" of {low:.3g} to {high:.3g} mm"


def _structures(dataset: Dataset) -> Sheet:
    columns = ["structure", "images", "area %", "smallest", "largest", "shared with others %"]
    rows = []
    annotated = range(len(dataset)) if dataset.annotated is None else dataset.annotated
    areas = torch.zeros(len(annotated), len(dataset.classes))
    shared = torch.zeros(2, len(dataset.classes))
    ignored = []
    for row, index in enumerate(annotated):  # few in memory at a time
        height, width = dataset.extent_of(index)
        target = dataset.target_batch([index])[0, :, :height, :width].bool()
        masks, together = target[:-1], target[:-1].sum(dim=0) > 1
        areas[row] = masks.float().mean(dim=(1, 2)) * 100
        shared += torch.stack([(masks & together).sum(dim=(1, 2)), masks.sum(dim=(1, 2))])
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
        sheet.notes.append(f"Marked as ignored: {mean:.2f} % of all pixels, in {count} images.")
    if dataset.originals is not None and dataset.extents is None:
        height, width = dataset.images.shape[-2:]
        sheet.notes.append(f"Areas are of {height} x {width} pixels, margins of images included.")
    return sheet


def _tell_resizing(dataset: Dataset, problems: Problems, console: Console) -> None:
    """Say how much of the masks survives this size and others, and suggest one."""
    size = pixels((dataset.images.shape[-2], dataset.images.shape[-1]))
    try:
        sizes = candidates(dataset)
        kept = kept_by_resizing(dataset, [*{*sizes, size}])
    except DataError as error:
        problems.add(str(error))
        return
    sheet = Sheet("Masks resized and brought back", ["structure"])
    sheet.columns += [f"IOU %\nat {tried}" for tried in kept]
    sheet.columns.append(f"parts lost\nat {size}")
    rows = []
    for name in dataset.classes:
        here = kept[size][name]
        cells = [plus_minus(100 * structures[name].iou, None) for structures in kept.values()]
        rows.append([name, *cells, f"{here.lost} of {here.components}"])
    sheet.sections.append(("", rows))
    sheet.notes.append("IOU with the original masks. Parts: connected components.")
    console.print(sheet)
    annotated = range(len(dataset)) if dataset.annotated is None else dataset.annotated
    if remark := dataset.size_remark(annotated, "annotated"):
        console.print(remark, markup=False)
    best, name, value = suggested({tried: kept[tried] for tried in sizes})
    among = ", ".join(map(str, sizes))
    which = f"the smallest of {among} at which every structure keeps"
    if value < ENOUGH:
        which = f"the best of {among}, though not every structure keeps"
    console.print(
        f"Suggested: --size {best}, {which} {100 * ENOUGH:.0f} % IOU "
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
    sheet = Sheet("Splits: images", ["split", "training", "validation", "test"])
    sheet.sections.append(("", rows))
    console.print(sheet)
    for number, split in enumerate(splits):
        first = ", ".join(dataset.ids[i] for i in split.train[:5])
        console.print(f"Split {number}, first labelled images: {first}", markup=False)


def file_formats(
    dataset: str, root: str | Path, mask_pattern: str | None
) -> dict[str, Mapping[str, int]]:
    """Return the formats of the files of a data set; none if it has no files."""
    if dataset == "jsrt":
        return dict(jsrt.formats(root))
    return dict(folder.formats(root, mask_pattern)) if dataset == "folder" else {}
