"""Files of what was segmented: in the form of the image, a DICOM segmentation for DICOM."""

from __future__ import annotations

import colorsys
import gzip
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcseg.errors import reason
from tcseg.extras import needs
from tcseg.io.arrays import ARRAYS, encode_array
from tcseg.io.dicom import read_dataset
from tcseg.io.files import write_atomically
from tcseg.io.images import NIFTI, is_dicom, suffix

LARGEST_LABEL = 2**16 - 1
"""Largest value in a label map: PNG holds no larger ones."""


def _further(number: int) -> str:
    """Return a colour whose hue is far from those of the last few."""
    parts = colorsys.hsv_to_rgb(0.618034 * number % 1, 1 - number % 3 / 4, 1 - number % 2 / 5)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in parts))


# Bright on grey, the first five also apart for colour-blind eyes.
COLOURS = (
    "#33ccff",
    "#ffee55",
    "#e6324b",
    "#7a4dff",
    "#ff66cc",
    "#00d09c",
    "#ffffff",
    "#a65e1a",
    *map(_further, range(248)),
)

Masks = NDArray[np.bool_]


def label_map(masks: Masks, values: Sequence[int]) -> NDArray[np.uint16]:
    """Return the number of the structure at each pixel, 0 for none.

    Parameters
    ----------
    masks : bool (C, ...)
        One mask for each structure; where they overlap the last one counts.
    values : sequence of int
        The number of each, at most `LARGEST_LABEL`.

    Examples
    --------
    >>> label_map(np.array([[True, False, False], [False, True, False]]), [1, 5]).tolist()
    [1, 5, 0]
    """
    labels = np.zeros(masks.shape[1:], np.uint16)
    for mask, value in zip(masks, values, strict=True):
        labels[mask] = value
    return labels


@dataclass
class LabelWriter:
    """Writes what is found in one image file, in the form of the masks of the training data.

    These held a value for each structure: then label maps in ``labels/`` hold the same. Or they
    were files of their own for each structure, which may overlap: then a folder for each of them
    has masks. Both are PNG, TIFF for TIFF of several pages, NIfTI for NIfTI, and so for NRRD, MHA
    and NPY; for DICOM a segmentation in ``segmentations/`` has all structures.

    Attributes
    ----------
    path : Path
        The image file.
    name : str
        Name of the files to write, without suffix; may have folders. The DICOM segmentation of
        several slices has the name of the first one.
    out : Path
        Folder to write to.
    classes : sequence of str
        The structures.
    values : sequence of int, optional
        The value of each; masks are then disjoint.
    others : list of LabelWriter
        Further slices of a series, which have one segmentation with this one.
    """

    path: Path
    name: str
    out: Path
    classes: Sequence[str]
    values: Sequence[int] | None
    planes: list[Masks] = field(default_factory=list, init=False)
    others: list[LabelWriter] = field(default_factory=list, init=False)

    def add(self, masks: Masks) -> None:
        """Take the masks (C, H, W) of the next plane."""
        self.planes.append(masks)

    def close(self, segmentation: bool = True) -> list[str]:
        """Write, for DICOM a segmentation or plain masks; return what did not go as it should."""
        if suffix(self.path) in NIFTI:
            self._save_nifti()
        elif segmentation and is_dicom(self.path):
            return self._save_dicom()
        elif suffix(self.path) in ARRAYS:
            for folder, numbers in self._layers(np.stack(self.planes, axis=1), white=1):
                name = f"{self.name}{suffix(self.path)}"
                write_into(folder / name, encode_array(numbers, self.path))
        else:
            self._save_plain()
        return []

    def _layers(self, masks: Masks, white: int) -> Iterator[tuple[Path, NDArray[np.integer[Any]]]]:
        """Yield the folders to write to, and the numbers that belong there, one at a time."""
        if self.values is not None:
            labels = label_map(masks, self.values)
            small = max(self.values) < 256
            yield self.out / "labels", labels.astype(np.uint8) if small else labels
            return
        for name, mask in zip(folder_names(self.classes), masks, strict=True):
            yield self.out / name, mask * np.uint8(white)

    def _save_plain(self) -> None:
        one = len(self.planes) == 1  # perhaps a large one: not copied
        planes = self.planes[0][:, None] if one else np.stack(self.planes, axis=1)
        for folder, numbers in self._layers(planes, white=255):
            pages = [Image.fromarray(plane) for plane in numbers]
            if self.values is not None and numbers.dtype == np.uint8:
                for page in pages:
                    page.putpalette(_palette(self.values))  # small numbers are black otherwise
            content = io.BytesIO()
            if len(pages) == 1:
                pages[0].save(content, format="png")
            else:
                options = {"compression": "tiff_deflate", "append_images": pages[1:]}
                pages[0].save(content, format="tiff", save_all=True, **options)
            kind = "png" if len(pages) == 1 else "tif"
            write_into(folder / f"{self.name}.{kind}", content.getbuffer())

    def _save_nifti(self) -> None:
        with needs("nifti"):
            import nibabel

        source: Any = nibabel.load(self.path)
        volume = np.stack(self.planes, axis=-1)[:, ::-1]  # (C, H, W, planes), as it was read
        for folder, numbers in self._layers(volume, white=1):
            shape = source.shape if numbers.size == math.prod(source.shape) else source.shape[:3]
            numbers = numbers.transpose(1, 0, 2).reshape(shape)
            image = nibabel.Nifti1Image(numbers, source.affine, source.header)
            image.set_data_dtype(numbers.dtype)  # units and orientation are those of the source
            image.header.set_intent("none")  # not vectors, as channels are
            image.header["cal_min"] = image.header["cal_max"] = 0
            write_into(folder / f"{self.name}.nii.gz", gzip.compress(image.to_bytes()))

    def _save_dicom(self) -> list[str]:
        try:
            with warnings.catch_warnings():  # of names of patients that are short
                warnings.simplefilter("ignore")
                files = [self, *self.others]
                planes = np.stack([masks for file in files for masks in file.planes])
                sources = [read_dataset(file.path) for file in files]
                for source in sources:
                    _share_pixel_measures(source)
                segmentation = _dicom_segmentation(sources, planes, self.classes)
            if int(segmentation.NumberOfFrames) != len(planes) * len(self.classes):
                raise ValueError("the file does not say where its frames lie")
        # highdicom refuses sources that lack what the standard asks for, each in its own way.
        except Exception as error:
            if self.others:  # each for itself
                files, self.others = [self, *self.others], []
                return [problem for file in files for problem in file._save_dicom()]
            self._save_plain()
            why = f"no DICOM segmentation can be made ({reason(error)})"
            kind = "PNG" if len(self.planes) == 1 else "TIFF"
            return [f"{self.path}: {why}; its masks are {kind}"]
        content = io.BytesIO()
        segmentation.save_as(content)
        write_into(self.out / "segmentations" / f"{self.name}.dcm", content.getbuffer())
        return []


def write_into(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is nobody else's in one step, and make its folder."""
    missing = list(takewhile(lambda folder: not folder.is_dir(), path.parents))
    for folder in reversed(missing):  # mkdir(parents=True) would call itself for each
        folder.mkdir(exist_ok=True)
    write_atomically(path, content, alone=True)


def _palette(values: Sequence[int]) -> list[int]:
    from matplotlib.colors import to_rgb

    palette = np.zeros((256, 3), np.uint8)
    for value, colour in zip(values, COLOURS, strict=False):
        palette[value] = 255 * np.array(to_rgb(colour))
    return palette.ravel().tolist()


def folder_names(structures: Sequence[str]) -> list[str]:
    """Return a folder for each structure: its name without what does not belong into one."""
    names: list[str] = []
    for structure in structures:
        fits = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in structure)
        plain = fits.strip(" .") or "_"
        taken = {*(name.lower() for name in names), "labels", "overlays", "segmentations"}
        name, number = plain, 2
        while name.lower() in taken:
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


def _dicom_segmentation(sources: Sequence[Any], planes: Masks, classes: Sequence[str]) -> Any:
    from importlib.metadata import version

    with needs("dicom"):
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
        source_images=sources,
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


def _share_pixel_measures(source: Any) -> None:
    """Put the measures of frames, if alike, where highdicom looks for them."""
    shared = source.get("SharedFunctionalGroupsSequence")
    frames = source.get("PerFrameFunctionalGroupsSequence") or []
    measures = [frame.get("PixelMeasuresSequence") for frame in frames]
    alike = bool(measures) and all(measure == measures[0] for measure in measures)
    if shared and alike and measures[0]:
        shared[0].PixelMeasuresSequence = measures[0]
