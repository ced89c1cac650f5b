"""Files of what was segmented: PNG, NIfTI for NIfTI, a DICOM segmentation for DICOM."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcseg.data.dataset import reason
from tcseg.data.dicom import read_dataset
from tcseg.data.images import NIFTI, Picture, is_dicom, stem, suffix
from tcseg.files import write_atomically

__all__ = ["MOST", "LabelWriter", "label_map", "plane_name", "write_into"]

MOST = 2**16 - 1
"""Largest value in a label map: PNG holds no larger ones."""

Masks = NDArray[np.bool_]


def label_map(masks: Masks, values: Sequence[int]) -> NDArray[np.uint16]:
    """Return the number of the structure at each pixel, 0 for none.

    Parameters
    ----------
    masks : bool (C, ...)
        One mask for each structure; where they overlap the last one counts.
    values : sequence of int
        The number of each, at most `MOST`.

    Examples
    --------
    >>> label_map(np.array([[True, False, False], [False, True, False]]), [1, 5]).tolist()
    [1, 5, 0]
    """
    labels = np.zeros(masks.shape[1:], np.uint16)
    for mask, value in zip(masks, values, strict=True):
        labels[mask] = value
    return labels


class LabelWriter:
    """Writes what is found in one image file, in the form of the masks of the training data.

    These held a value for each structure: then label maps in ``labels/`` hold the same. Or they
    were files of their own for each structure, which may overlap: then a folder for each of them
    has masks. Both are PNG, NIfTI for NIfTI; for DICOM a segmentation in ``segmentations/`` has
    all structures.

    Parameters
    ----------
    path : Path
        The image file.
    out : Path
        Folder to write to.
    classes : sequence of str
        The structures.
    values : sequence of int, optional
        The value of each; masks are then disjoint.
    """

    def __init__(
        self, path: Path, out: Path, classes: Sequence[str], values: Sequence[int] | None
    ) -> None:
        self.path, self.out, self.classes, self.values = path, out, classes, values
        self.whole = suffix(path) in NIFTI or is_dicom(path)
        self.planes: list[Masks] = []
        self.names: list[str] = []

    def add(self, picture: Picture, masks: Masks) -> None:
        """Take the masks (C, H, W) of the next plane."""
        if self.whole:
            self.planes.append(masks)
            self.names.append(plane_name(picture))
        else:
            self._save_png(plane_name(picture), masks)

    def close(self) -> list[str]:
        """Write what has to be written as a whole; return what did not go as it should."""
        if suffix(self.path) in NIFTI:
            self._save_nifti()
        elif self.whole:
            return self._save_dicom()
        return []

    def _layers(self, masks: Masks, white: int) -> list[tuple[Path, NDArray[np.integer[Any]]]]:
        """Return the folders to write to, and the numbers that belong there."""
        if self.values is not None:
            labels = label_map(masks, self.values)
            small = max(self.values) < 256
            return [(self.out / "labels", labels.astype(np.uint8) if small else labels)]
        numbers = masks.astype(np.uint8) * np.uint8(white)
        folders = (self.out / name for name in _folder_names(self.classes))
        return list(zip(folders, numbers, strict=True))

    def _save_png(self, name: str, masks: Masks) -> None:
        for folder, numbers in self._layers(masks, white=255):
            picture = Image.fromarray(numbers)
            if self.values is not None and numbers.dtype == np.uint8:
                picture.putpalette(_palette(self.values))  # small numbers are black otherwise
            content = io.BytesIO()
            picture.save(content, format="png")
            write_into(folder / f"{name}.png", content.getbuffer())

    def _save_nifti(self) -> None:
        import nibabel

        source: Any = nibabel.load(self.path)
        volume = np.stack(self.planes, axis=-1)[:, ::-1]  # (C, H, W, planes), as it was read
        for folder, numbers in self._layers(volume, white=1):
            numbers = numbers.transpose(1, 0, 2).reshape(source.shape)
            image = nibabel.Nifti1Image(numbers, source.affine)
            image.header.set_zooms(source.header.get_zooms()[: numbers.ndim])
            write_into(folder / f"{stem(self.path)}.nii.gz", gzip.compress(image.to_bytes()))

    def _save_dicom(self) -> list[str]:
        try:
            with warnings.catch_warnings():  # of names of patients that are short
                warnings.simplefilter("ignore")
                source, planes = read_dataset(self.path), np.stack(self.planes)
                segmentation = _dicom_segmentation(source, planes, self.classes)
        # highdicom refuses sources that lack what the standard asks for, each in its own way.
        except Exception as error:
            for name, masks in zip(self.names, self.planes, strict=True):
                self._save_png(name, masks)
            why = f"no DICOM segmentation can be made ({reason(error)})"
            return [f"{self.path}: {why}; its masks are PNG"]
        content = io.BytesIO()
        segmentation.save_as(content)
        write_into(self.out / "segmentations" / f"{stem(self.path)}.dcm", content.getbuffer())
        return []


def plane_name(picture: Picture) -> str:
    """Return the name, without suffix, of files made of an image."""
    return picture.name.replace("/", "-")


def write_into(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one step, and make its folder."""
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)


def _palette(values: Sequence[int]) -> list[int]:
    from matplotlib.colors import to_rgb

    from tcseg.pictures import COLOURS

    palette = np.zeros((256, 3), np.uint8)
    for value, colour in zip(values, COLOURS, strict=False):
        palette[value] = 255 * np.array(to_rgb(colour))
    return palette.ravel().tolist()


def _folder_names(structures: Sequence[str]) -> list[str]:
    """Return a folder for each structure: its name without what does not belong into one."""
    names: list[str] = []
    for structure in structures:
        plain = "".join(c if c.isalnum() or c in "-_ " else "_" for c in structure).strip() or "_"
        taken = {*(name.lower() for name in names), "labels", "overlays", "segmentations"}
        name, number = plain, 2
        while name.lower() in taken:
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


def _dicom_segmentation(source: Any, planes: Masks, classes: Sequence[str]) -> Any:
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
