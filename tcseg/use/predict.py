"""The command `tcseg predict`: files in, label maps, overlays and measurements out."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import tcwarp
from tcseg.data.volumes import Volumes
from tcseg.errors import DataError, RunError, reason
from tcseg.evaluation.metrics import postprocess_all
from tcseg.evaluation.pictures import outlined
from tcseg.io.files import write_atomically
from tcseg.io.grids import turned
from tcseg.io.images import Picture, png
from tcseg.io.label_maps import LabelWriter, write_into
from tcseg.io.series import Collection, channels_by_case
from tcseg.use.inputs import find_inputs
from tcseg.use.measurements import Rows, measure, scale_of, tell_scales
from tcseg.use.segmenter import Segmenter
from tcseg.use.sharing import Ledger

BATCH = 8
LARGE = 2**23  # pixels that wait for a batch to be full
OVERLAY = 2048  # pixels, at most
_WHERE = {True: "detector", False: "patient"}  # a pixel has its size
Work = dict[str, list[tuple[Path, str]]]  # by key: paths and names of what is written together


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
        Height and width of a pixel in mm, of images (not of volumes) whose files do not say.
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
    ValueError
        If `spacing` is given for volumes.
    """
    problems: list[str] = []
    model = segmenter.model
    if spacing is not None and model.dimensions == 3:
        raise ValueError(
            "`spacing` is for images: the network is one of volumes, whose files must say how "
            "large their voxels are; leave it out"
        )
    files = find_inputs(inputs, out, problems)
    names, channels = {name: path for path, name in files.items()}, {}
    if model.files > 1:
        cases = channels_by_case(names)
        channels = {parts[0]: parts for parts in cases.values()}
        files = {parts[0]: case for case, parts in cases.items()}
        names = {case: path for path, case in files.items()}
    collection = Collection(names, window=model.window, scale=model.scale, channels=channels)
    volumes = None
    if model.dimensions == 3:
        volumes = Volumes(collection, model.resampled_to, model.size)
    segmentation = _Segmentation(
        segmenter, collection, volumes, out, postprocess, consistency, overlays, spacing
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
    tell_scales(segmentation.scales, console)
    return problems


@dataclass
class _Segmentation:
    """What is done with each file; the options are those of `predict`."""

    segmenter: Segmenter
    collection: Collection
    volumes: Volumes | None
    out: Path
    postprocess: bool
    consistency: bool
    overlays: bool
    spacing: float | None
    scales: list[tuple[float, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = Rows(self.segmenter.model)

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
        # All files of a volume are read or none, of images each by itself.
        for part in [files] if self.volumes is not None else [[file] for file in files]:
            with _noted(part[0][0], problems):
                text, written = self._segment(part)
                rows, writers = rows + text, writers | written
        series = self.collection.series(files[0][0])
        if ordered := [writers[path] for path in series if path in writers]:
            with _noted(ordered[0].path, problems):
                ordered[0].others = ordered[1:]
                problems += ordered[0].close()
                return rows, problems
        return "", problems

    def _segment(self, files: Sequence[tuple[Path, str]]) -> tuple[str, dict[Path, LabelWriter]]:
        """Segment an image file, or all of a volume; return rows of the table, and the masks."""
        model = self.segmenter.model
        writers = {
            path: LabelWriter(path, name, self.out, model.classes, model.values)
            for path, name in files
        }
        if self.volumes is not None:
            return self.rows.text([self._of_volume(self.volumes, writers)]), writers
        ((_, writer),) = writers.items()
        return self.rows.text(self._of_planes(writer)), writers

    def _of_planes(self, writer: LabelWriter) -> list[dict[str, Any]]:
        """Segment the planes of one file."""
        model, measured = self.segmenter.model, []
        for chunk in _chunks(self.collection.read(writer.path)):
            predictions = self.segmenter.predict_all(
                [picture.pixels for picture in chunk],
                consistency=self.consistency,
                batch_size=BATCH,
            )
            for picture, prediction in zip(chunk, predictions, strict=True):
                if picture.spacing is None and self.spacing is not None:
                    picture = replace(picture, spacing=(self.spacing, self.spacing))
                masks, spacing = self._processed(prediction.masks), picture.spacing
                self._write(writer, picture, masks)
                where = None if spacing is None else _WHERE[picture.at_detector]
                more = {"plane": picture.plane, "mm at": where}
                row = measure(writer.path, masks, prediction, spacing, model.classes, **more)
                measured.append(row)
                self.scales.append((scale_of(model, picture), writer.path))
        return measured

    def _of_volume(self, volumes: Volumes, writers: Mapping[Path, LabelWriter]) -> dict[str, Any]:
        """Segment the volume of these files."""
        first = next(iter(writers))
        planes, pixels, voxel = volumes.read(first)
        (prediction,) = self.segmenter.predict_all(
            [pixels], consistency=self.consistency, spacings=[voxel]
        )
        masks = turned(self._processed(prediction.masks), first, back=True)
        for number, plane in enumerate(planes):
            self._write(writers[plane.path], plane, masks[:, number])
        return measure(first, masks, prediction, voxel, self.segmenter.classes)

    def _processed(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if not self.postprocess:
            return masks
        return postprocess_all(masks, disjoint=self.segmenter.model.values is not None)

    def _write(self, writer: LabelWriter, picture: Picture, masks: NDArray[np.bool_]) -> None:
        """Take the masks of one plane, and draw them."""
        writer.add(masks)
        if self.overlays:
            plane = "" if picture.plane is None else f"/{picture.plane:03d}"
            overlay = self.out / "overlays" / f"{writer.name}{plane}.png"
            write_into(overlay, png(outlined(picture.pixels, masks, at_most=OVERLAY)))


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


def _chunks(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    """Yield the planes of a file, few in memory at a time."""
    chunk: list[Picture] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == BATCH or sum(p.pixels.size for p in chunk) > LARGE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
