"""The command `tcseg predict`: files in, label maps, overlays and measurements out."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from tcseg.data.dataset import DataError, reason
from tcseg.data.images import (
    NIFTI,
    Picture,
    is_dicom,
    is_image,
    png,
    read_pictures,
    stem,
    suffix,
)
from tcseg.files import write_atomically
from tcseg.metrics import cardiothoracic_ratio
from tcseg.metrics import postprocess as postprocessed
from tcseg.runs import RunError
from tcseg.segmenter import Prediction, Segmenter

__all__ = ["predict"]

BATCH = 8
RATIO = "cardiothoracic ratio"
CHEST = {"heart", "left lung", "right lung"}


def predict(
    segmenter: Segmenter,
    inputs: Sequence[Path],
    out: Path,
    *,
    postprocess: bool = False,
    consistency: bool = True,
    overlays: bool = True,
    console: Console,
) -> list[str]:
    """Segment files; write what is found in each, and a table of measurements.

    Parameters
    ----------
    segmenter : Segmenter
        The trained network.
    inputs : sequence of Path
        Files, or folders of files.
    out : Path
        Folder to write to, made if it is missing. Files of earlier predictions are replaced.
    postprocess : bool
        Whether to keep the largest component of each structure only, and fill its holes.
    consistency : bool
        Whether to measure how much predictions change under deformation.
    overlays : bool
        Whether to draw pictures of images with outlines.
    console : Console
        For the progress.

    Returns
    -------
    list of str
        What could not be read or written, one line each; the other files are done.

    Raises
    ------
    RunError
        If there is nothing to segment, two files would be written to one, or `out` cannot be
        written.
    """
    files = _files(inputs)
    if out.resolve() in {path.resolve().parent for path in files}:
        raise RunError(f"{out} holds the images themselves; choose another --out")
    # Under a name of its own until it is whole, so that an earlier table is not lost.
    table, partial = out / "measurements.csv", out / "measurements.csv.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(partial, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    problems: list[str] = []
    with file:
        rows = csv.DictWriter(file, _columns(segmenter.classes), lineterminator="\n")
        rows.writeheader()
        for done, path in enumerate(track(files, "Segmenting", console=console, transient=True)):
            try:
                writer = _Writer(path, out, segmenter.classes)
                measured = []
                for picture, prediction in _pairs(segmenter, path, consistency):
                    masks = prediction.masks
                    if postprocess:
                        masks = np.stack([postprocessed(mask) for mask in masks])
                    writer.add(picture, masks)
                    if overlays:
                        _save_overlay(out / "overlays" / f"{_stem(picture)}.png", picture, masks)
                    measured.append(_measure(picture, masks, prediction, segmenter.classes))
                problems += writer.close()
                rows.writerows(measured)
                file.flush()
            except DataError as error:
                problems.append(str(error))
            except OSError as error:  # of writing, for reading has its own
                if error.errno == errno.ENAMETOOLONG:
                    problems.append(
                        f"{path}: its name is too long for files made from it; shorten it"
                    )
                    continue
                problems.append(
                    f"{out}: cannot be written ({error.strerror}); {len(files) - done} of "
                    f"{len(files)} files are not done"
                )
                break
    os.replace(partial, table)
    return problems


def _files(inputs: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise RunError(f"{path}: no such file or folder")
        found = sorted(p for p in path.iterdir() if is_image(p)) if path.is_dir() else [path]
        if not found:
            raise RunError(f"{path}: no images in it")
        files += found
    files = list(dict.fromkeys(files))
    by_stem: dict[str, Path] = {}
    for path in files:
        twin = by_stem.setdefault(stem(path), path)
        if twin is not path:
            raise RunError(
                f"{twin} and {path} would be written to files of one name; segment them into "
                "different folders"
            )
    return files


def _pairs(
    segmenter: Segmenter, path: Path, consistency: bool
) -> Iterator[tuple[Picture, Prediction]]:
    """Segment the planes of a file, few in memory at a time."""
    pictures = read_pictures(path)
    while chunk := list(itertools.islice(pictures, BATCH)):
        pixels: Iterable[NDArray[np.float32]] = [picture.pixels for picture in chunk]
        predictions = segmenter.predict_all(pixels, consistency=consistency, batch_size=BATCH)
        yield from zip(chunk, predictions, strict=True)


def _stem(picture: Picture) -> str:
    return picture.name.replace("/", "-")


# ---- label maps -----------------------------------------------------------------------------


class _Writer:
    """Writes the masks of one file in the format that suits it.

    A folder for each structure, since structures may overlap, as ``masks/`` of the training data:
    PNG, NIfTI for NIfTI. All structures in one file in ``segmentations/`` for DICOM.
    """

    def __init__(self, path: Path, out: Path, classes: Sequence[str]) -> None:
        self.path, self.out, self.classes = path, out, classes
        self.folders = [out / name for name in _folder_names(classes)]
        self.whole = suffix(path) in NIFTI or is_dicom(path)
        self.planes: list[NDArray[np.bool_]] = []
        self.names: list[str] = []

    def add(self, picture: Picture, masks: NDArray[np.bool_]) -> None:
        """Take the masks (C, H, W) of the next plane."""
        if self.whole:
            self.planes.append(masks)
            self.names.append(_stem(picture))
        else:
            self._save_masks(_stem(picture), masks)

    def close(self) -> list[str]:
        """Write what has to be written as a whole; return what did not go as it should."""
        if suffix(self.path) in NIFTI:
            self._save_nifti()
        elif self.whole:
            return self._save_dicom()
        return []

    def _save_masks(self, name: str, masks: NDArray[np.bool_]) -> None:
        for folder, mask in zip(self.folders, masks, strict=True):
            _write(folder / f"{name}.png", png(mask.astype(np.uint8) * 255))

    def _save_nifti(self) -> None:
        import nibabel

        source: Any = nibabel.load(self.path)
        volume = np.stack(self.planes, axis=-1)[:, ::-1]  # (C, H, W, planes), as it was read
        for folder, mask in zip(self.folders, volume, strict=True):
            values = mask.transpose(1, 0, 2).reshape(source.shape).astype(np.uint8)
            image = nibabel.Nifti1Image(values, source.affine)
            image.header.set_zooms(source.header.get_zooms()[: values.ndim])
            _write(folder / f"{stem(self.path)}.nii.gz", gzip.compress(image.to_bytes()))

    def _save_dicom(self) -> list[str]:
        import pydicom

        source = pydicom.dcmread(self.path)
        try:
            segmentation = _dicom_segmentation(source, np.stack(self.planes), self.classes)
        # highdicom refuses sources that lack what the standard asks for, each in its own way.
        except Exception as error:
            for name, masks in zip(self.names, self.planes, strict=True):
                self._save_masks(name, masks)
            why = f"no DICOM segmentation can be made ({reason(error)})"
            return [f"{self.path}: {why}; its masks are PNG"]
        content = io.BytesIO()
        segmentation.save_as(content)
        _write(self.out / "segmentations" / f"{stem(self.path)}.dcm", content.getbuffer())
        return []


def _folder_names(structures: Sequence[str]) -> list[str]:
    """Return a folder for each structure: its name without what does not belong into one."""
    names: list[str] = []
    for structure in structures:
        plain = "".join(c if c.isalnum() or c in "-_ " else "_" for c in structure).strip() or "_"
        taken = {*(name.lower() for name in names), "overlays", "segmentations"}
        name, number = plain, 2
        while name.lower() in taken:
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


def _dicom_segmentation(source: Any, planes: NDArray[np.bool_], classes: Sequence[str]) -> Any:
    from importlib.metadata import version

    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="tcseg", version=version("tcwarp"), family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes, 1)
    ]
    return highdicom.seg.Segmentation(
        source_images=[source],
        pixel_array=planes.transpose(0, 2, 3, 1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=100,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="tcseg",
        manufacturer_model_name="tcseg",
        software_versions=version("tcwarp"),
        device_serial_number="0",
        omit_empty_frames=False,
    )


def _write(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)


# ---- overlays and measurements --------------------------------------------------------------


def _save_overlay(path: Path, picture: Picture, masks: NDArray[np.bool_]) -> None:
    """Draw outlines on an image, at its own size."""
    from tcseg.pictures import outlined

    _write(path, png(outlined(picture.pixels, masks)))


def _columns(classes: Sequence[str]) -> list[str]:
    areas = [f"{name} {unit}" for name in classes for unit in ("pixels", "mm2")]
    ratio = [RATIO] if set(classes) >= CHEST else []
    return ["file", "plane", "height", "width", "consistency", *areas, *ratio]


def _measure(
    picture: Picture, masks: NDArray[np.bool_], prediction: Prediction, classes: Sequence[str]
) -> dict[str, Any]:
    height, width = masks.shape[1:]
    row: dict[str, Any] = {"file": str(picture.path), "plane": picture.plane}
    row |= {"height": height, "width": width, "consistency": prediction.consistency}
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
