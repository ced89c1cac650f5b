"""The command `tcseg predict`: files in, label maps, overlays and measurements out."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from tcseg.data.dataset import DataError
from tcseg.data.images import DICOM, NIFTI, Picture, is_image, read_pictures, stem, suffix
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
    table = out / "measurements.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(table, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed below)
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
                for picture, prediction in _pairs(segmenter, path, consistency):
                    masks = prediction.masks
                    if postprocess:
                        masks = np.stack([postprocessed(mask) for mask in masks])
                    writer.add(picture, masks)
                    if overlays:
                        _save_overlay(_target(out, picture, "overlay.png"), picture, masks)
                    rows.writerow(_measure(picture, masks, prediction, segmenter.classes))
                writer.close()
                file.flush()
            except DataError as error:
                problems.append(str(error))
            except (
                OSError
            ) as error:  # of writing, for reading has its own: the next would fail, too
                problems.append(
                    f"{out}: cannot be written ({error.strerror}); {len(files) - done} of "
                    f"{len(files)} files are not done"
                )
                break
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


def _target(out: Path, picture: Picture, ending: str) -> Path:
    return out / f"{picture.name.replace('/', '-')}-{ending}"


# ---- label maps -----------------------------------------------------------------------------


class _Writer:
    """Writes the masks of one file in the format that suits it.

    PNG, one for each structure, since structures may overlap; NIfTI for NIfTI, one volume for
    each structure; DICOM-SEG for DICOM, all structures in one file.
    """

    def __init__(self, path: Path, out: Path, classes: Sequence[str]) -> None:
        self.path, self.out, self.classes = path, out, classes
        self.kind = suffix(path)
        self.planes: list[NDArray[np.bool_]] = []

    def add(self, picture: Picture, masks: NDArray[np.bool_]) -> None:
        """Take the masks (C, H, W) of the next plane."""
        if self.kind in NIFTI or self.kind in DICOM:
            self.planes.append(masks)
            return
        for name, mask in zip(self.classes, masks, strict=True):
            path = _target(self.out, picture, f"{_file_name(name)}.png")
            _save_png(path, mask.astype(np.uint8) * 255)

    def close(self) -> None:
        """Write what has to be written as a whole."""
        if self.kind in NIFTI:
            self._save_nifti()
        elif self.kind in DICOM:
            self._save_dicom()

    def _save_nifti(self) -> None:
        import nibabel

        source: Any = nibabel.load(self.path)
        volume = np.stack(self.planes, axis=-1)[:, ::-1]  # (C, H, W, planes), as it was read
        for name, mask in zip(self.classes, volume, strict=True):
            values = mask.transpose(1, 0, 2).reshape(source.shape).astype(np.uint8)
            image = nibabel.Nifti1Image(values, source.affine)
            image.header.set_zooms(source.header.get_zooms()[: values.ndim])
            path = self.out / f"{stem(self.path)}-{_file_name(name)}.nii.gz"
            write_atomically(path, gzip.compress(image.to_bytes()))

    def _save_dicom(self) -> None:
        import pydicom

        source = pydicom.dcmread(self.path)
        path = self.out / f"{stem(self.path)}-segmentation.dcm"
        try:
            segmentation = _dicom_segmentation(source, np.stack(self.planes), self.classes)
        # highdicom refuses sources that lack what the standard asks for, each in its own way.
        except Exception as error:
            raise DataError(
                f"{self.path}: no DICOM segmentation can be made for it ({error}); save it as PNG "
                "to get masks"
            ) from error
        content = io.BytesIO()
        segmentation.save_as(content)
        write_atomically(path, content.getbuffer())


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


def _file_name(structure: str) -> str:
    """Return the name of a structure without what does not belong into a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in structure)


def _save_png(path: Path, values: NDArray[np.uint8]) -> None:
    content = io.BytesIO()
    Image.fromarray(values).save(content, format="png")
    write_atomically(path, content.getbuffer())


# ---- overlays and measurements --------------------------------------------------------------


def _save_overlay(path: Path, picture: Picture, masks: NDArray[np.bool_]) -> None:
    """Draw outlines on an image, at its own size."""
    from tcseg.pictures import outlined

    _save_png(path, outlined(picture.pixels, masks))


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
