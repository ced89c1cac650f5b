"""The command `tcseg predict`: files in, label maps, overlays and measurements out."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import tcwarp
from tcseg.errors import DataError, RunError, reason
from tcseg.evaluation.metrics import cardiothoracic_ratio, postprocess_all
from tcseg.evaluation.pictures import outlined
from tcseg.io.files import write_atomically
from tcseg.io.images import Picture, png
from tcseg.io.label_maps import LabelWriter, write_into
from tcseg.io.placement import Placement
from tcseg.io.series import Collection, channels_by_case
from tcseg.runs.model import Model
from tcseg.use.inputs import find_inputs
from tcseg.use.segmenter import Prediction, Segmenter
from tcseg.use.sharing import Ledger

__all__ = ["predict"]

BATCH = 8
LARGE = 2**23  # pixels that wait for a batch to be full
OVERLAY = 2048  # pixels, at most
# From this ratio on, a note is printed: augmentation does not go that far.
OTHER_SCALE = 1.5
RATIO = "cardiothoracic ratio"
Work = dict[str, list[tuple[Path, str]]]  # by key: paths and names of what is written together
CHEST = {"heart", "left lung", "right lung"}


def predict(
    segmenter: Segmenter,
    inputs: Sequence[Path],
    out: Path,
    *,
    postprocess: bool = False,
    consistency: bool = True,
    overlays: bool = True,
    spacing: float | None = None,
    console: Console,
) -> list[str]:
    """Segment files; write what is found in each, and a table of measurements.

    Parameters
    ----------
    segmenter : Segmenter
        The trained network.
    inputs : sequence of Path
        Files, or folders, which are searched with their subfolders.
    out : Path
        Folder to write to, made if it is missing. What is already there from the same images,
        network and options is not done again, and processes that write there at the same time
        share the work; files of other predictions are replaced.
    postprocess : bool
        Whether to keep the largest component of each structure only, and fill its holes.
    consistency : bool
        Whether to measure how much predictions change under deformation.
    overlays : bool
        Whether to draw pictures of images with outlines.
    spacing : float, optional
        Height and width of a pixel in mm, of images whose files do not say.
    console : Console
        For the progress, and for a note on images at another scale than the training data.

    Returns
    -------
    list of str
        What could not be read or written, one line each; the other files are done.

    Raises
    ------
    RunError
        If there is nothing to segment, or `out` cannot be written.
    """
    problems: list[str] = []
    files = find_inputs(inputs, out, problems)
    model = segmenter.model
    names, channels = {name: path for path, name in files.items()}, {}
    if model.files > 1:
        cases = channels_by_case(names)
        channels = {parts[0]: parts for parts in cases.values()}
        files = {parts[0]: case for case, parts in cases.items()}
        names = {case: path for path, case in files.items()}
    collection = Collection(names, window=model.window, scale=model.scale, channels=channels)
    segmentation = _Segmentation(
        segmenter, collection, out, postprocess, consistency, overlays, spacing
    )
    work: Work = {}
    for path, name in files.items():
        work.setdefault(collection.identity(path), []).append((path, name))
    try:
        out.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(out, segmentation.identity)
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror}); choose another `out`"
        ) from error
    with contextlib.closing(ledger):
        if done := sum(len(work[key]) for key in work.keys() & ledger.records):
            again = f"to do them again, remove {out} or choose another folder"
            console.print(f"{done} of {len(files)} are already segmented; {again}", markup=False)
        problems += segmentation.of_rest(work, ledger, console)
    _tell_scales(segmentation.scales, console)
    return problems


@dataclass
class _Segmentation:
    """What is done with each file; the options are those of `predict`."""

    segmenter: Segmenter
    collection: Collection
    out: Path
    postprocess: bool
    consistency: bool
    overlays: bool
    spacing: float | None
    scales: list[tuple[float, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = _Rows(self.segmenter.classes)

    def of_rest(self, work: Work, ledger: Ledger, console: Console) -> list[str]:
        """Segment what no process has, write the table of all; return what went wrong."""
        left = len(work.keys() - ledger.records)
        taken = track(ledger.take(work), "Segmenting", left, console=console, transient=True)
        problems = []
        try:
            for key, files in taken:
                ledger.write(key, self.of_series(files))
        except OSError as error:  # of writing, for reading has its own
            rest = [file for key in work if key not in ledger.records for file in work[key]]
            problems.append(
                f"{self.out}: cannot be written ({error.strerror}); {len(rest)} of "
                f"{sum(map(len, work.values()))} files are not done, the first is {rest[0][0]}: "
                "make room, and run the same command again"
            )
        # Whoever ends has the records of all, and so the same table.
        records = [ledger.records[key] for key in work if key in ledger.records]
        table = self.rows.header + "".join(rows for rows, _ in records)
        try:
            write_atomically(self.out / "measurements.csv", table)
        except OSError as error:
            problems.append(f"{error.filename}: cannot be written ({error.strerror}); make room")
        return problems + [problem for _, found in records for problem in found]

    @property
    def identity(self) -> str:
        """Digits that stand for network and options: what was made with others is done anew."""
        network = self.segmenter.network
        options = (self.postprocess, self.consistency, self.overlays, self.spacing)
        about = (tcwarp.__version__, self.segmenter.model, network, options)
        digest = hashlib.sha256(repr(about).encode())
        for tensor in network.state_dict().values():
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def of_series(self, files: Sequence[tuple[Path, str]]) -> tuple[str, list[str]]:
        """Segment what is written together; return rows of the table, and what went wrong.

        OSError is of a disk that is full or cannot be written.
        """
        rows, problems, writers = "", list[str](), dict[Path, LabelWriter]()
        for path, name in files:
            with _noted(path, problems):
                text, writers[path] = self._segment(path, name)
                rows += text
        series = self.collection.series(files[0][0])
        if ordered := [writers[path] for path in series if path in writers]:
            with _noted(ordered[0].path, problems):
                ordered[0].others = ordered[1:]
                problems += ordered[0].close()
                return rows, problems
        return "", problems

    def _segment(self, path: Path, name: str) -> tuple[str, LabelWriter]:
        model = self.segmenter.model
        writer = LabelWriter(path, name, self.out, model.classes, model.values)
        measured = []
        for picture, prediction in _pairs(
            self.segmenter, self.collection.read(path), self.consistency
        ):
            if picture.spacing is None and self.spacing is not None:
                picture = replace(picture, spacing=(self.spacing, self.spacing))
            masks = prediction.masks
            if self.postprocess:
                masks = postprocess_all(masks, disjoint=model.values is not None)
            writer.add(masks)
            if self.overlays:
                plane = "" if picture.plane is None else f"/{picture.plane:03d}"
                overlay = self.out / "overlays" / f"{name}{plane}.png"
                write_into(overlay, png(outlined(picture.pixels, masks, at_most=OVERLAY)))
            measured.append(_measure(picture, masks, prediction, model.classes))
            self.scales.append((_scale(model, picture), path))
        return self.rows.text(measured), writer


@contextlib.contextmanager
def _noted(path: Path, problems: list[str]) -> Iterator[None]:
    """Note what is wrong with one file, which stops no others."""
    try:
        yield
    except DataError as error:
        problems.append(str(error))
    except (ValueError, MemoryError) as error:  # such as of a NIfTI header full of nan
        problems.append(f"{path}: cannot be segmented ({reason(error)})")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        problems.append(f"{path}: its name is too long for files made from it; shorten it")


def _pairs(
    segmenter: Segmenter, pictures: Iterator[Picture], consistency: bool
) -> Iterator[tuple[Picture, Prediction]]:
    """Segment the planes of a file, few in memory at a time."""
    for chunk in _chunks(pictures):
        pixels: Iterable[NDArray[np.float32]] = [picture.pixels for picture in chunk]
        predictions = segmenter.predict_all(pixels, consistency=consistency, batch_size=BATCH)
        yield from zip(chunk, predictions, strict=True)


def _chunks(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    chunk: list[Picture] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == BATCH or sum(p.pixels.size for p in chunk) > LARGE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# ---- overlays and measurements --------------------------------------------------------------


def _scale(model: Model, picture: Picture) -> float:
    """Return the size of a pixel for the network against that in training; 1 if not known."""
    height, width = picture.pixels.shape[1:]
    spacing = Placement.of((height, width), model.size).spacing(picture.spacing)
    if spacing is None or model.spacing is None:
        return 1.0
    return math.sqrt(math.prod(spacing) / math.prod(model.spacing))


def _tell_scales(scales: Sequence[tuple[float, Path]], console: Console) -> None:
    different = [
        (scale, path) for scale, path in scales if not 1 / OTHER_SCALE < scale < OTHER_SCALE
    ]
    if different:
        scale, path = different[0]
        console.print(
            f"Note: {len(different)} of {len(scales)} images are at a different scale from the "
            f"training data (the pixels of {path}, fitted to the network, are {scale:.2g} times as "
            "large): look at their overlays",
            markup=False,
        )


class _Rows:
    """The table of measurements as text."""

    def __init__(self, classes: Sequence[str]) -> None:
        areas = [f"{name} {unit}" for name in classes for unit in ("pixels", "mm2")]
        ratio = [RATIO] if set(classes) >= CHEST else []
        image = ("file", "plane", "height", "width", "mm at", "consistency")
        self.columns = [*image, *areas, *ratio]

    @property
    def header(self) -> str:
        return self.text([dict(zip(self.columns, self.columns, strict=True))])

    def text(self, rows: Iterable[Mapping[str, Any]]) -> str:
        with io.StringIO(newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerows(
                [_no_formula(row.get(column)) for column in self.columns] for row in rows
            )
            return text.getvalue()


def _no_formula(value: Any) -> Any:
    """Mark text that a spreadsheet would run, such as a file named ``=cmd``, as text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value


def _measure(
    picture: Picture, masks: NDArray[np.bool_], prediction: Prediction, classes: Sequence[str]
) -> dict[str, Any]:
    height, width = masks.shape[1:]
    row: dict[str, Any] = {"file": str(picture.path), "plane": picture.plane}
    row |= {"height": height, "width": width, "consistency": prediction.consistency}
    if picture.spacing is not None:
        row["mm at"] = "detector" if picture.at_detector else "patient"
    by_name = dict(zip(classes, masks, strict=True))
    for name, mask in by_name.items():
        count = int(np.count_nonzero(mask))
        row[f"{name} pixels"] = count
        if picture.spacing is not None:
            row[f"{name} mm2"] = count * picture.spacing[0] * picture.spacing[1]
    if set(classes) >= CHEST:
        lungs = by_name["left lung"] | by_name["right lung"]
        row[RATIO] = cardiothoracic_ratio(by_name["heart"], lungs)
    # What is not known stays empty.
    known = {k: v for k, v in row.items() if not (isinstance(v, float) and np.isnan(v))}
    return {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in known.items()}
