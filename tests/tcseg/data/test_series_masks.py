"""One DICOM segmentation for a whole series."""

import highdicom
import numpy as np
import pydicom
import pytest
from made_up import write_dicom
from pydicom.sr.codedict import codes

from tcseg.data import load_dataset
from tcseg.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:The string .phantom.")
SIZE, SLICES = 32, 4
# Nothing is marked in the first slice.
MASKS = np.random.default_rng(0).random((SLICES, SIZE, SIZE, 2)) > 0.5
MASKS[0] = False


@pytest.fixture
def series(tmp_path):
    """A series of four slices with a segmentation, and a file of another series."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    files = [tmp_path / "images" / f"{name}.dcm" for name in "dbca"]
    for k, path in enumerate((*files, tmp_path / "images" / "other.dcm")):
        place = {
            "ImagePositionPatient": [0, 0, 2 * k],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        }
        ours = {"SeriesInstanceUID": "1.2.3" if path in files else "1.2.4", "PatientID": "a"}
        kind = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"}
        spacing = {"PixelSpacing": [0.5, 0.5], "SliceThickness": "2"}
        common = {"StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.5"}
        values = np.random.default_rng(k).integers(0, 2000, (SIZE, SIZE))
        write_dicom(path, values, **place, **ours, **kind, **spacing, **common)
    write_segmentation(tmp_path / "masks" / "series.dcm", files)
    return tmp_path, files


def write_segmentation(path, files, masks=MASKS):
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(("liver", "spleen"), 1)
    ]
    segmentation = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in files],
        pixel_array=masks.astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="x",
        device_serial_number="0",
        omit_empty_frames=True,
    )
    segmentation.save_as(path)


def test_each_slice_has_its_masks(series):
    root, files = series
    data = load_dataset("folder", root=root, size=SIZE)
    assert data.classes == ("liver", "spleen")
    assert [data.ids[i] for i in data.annotated] == [file.stem for file in files]
    found = data.target_batch(data.annotated)[:, :2].numpy()
    assert np.array_equal(found, MASKS.transpose(0, 3, 1, 2))


def test_a_segmentation_that_names_no_files_is_refused(series):
    root, _ = series
    data = pydicom.dcmread(root / "masks" / "series.dcm")
    for group in data.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    data.save_as(root / "masks" / "series.dcm")
    with pytest.raises(DataError, match="does not say which images"):
        load_dataset("folder", root=root, size=SIZE)


def test_a_segmentation_may_lie_with_its_images_but_there_is_one(series):
    root, files = series
    (root / "masks" / "series.dcm").rename(root / "images" / "seg.dcm")
    (root / "masks").rmdir()
    data = load_dataset("folder", root=root, size=SIZE)
    assert [data.ids[i] for i in data.annotated] == [file.stem for file in files]
    write_segmentation(root / "images" / "second.dcm", files)
    with pytest.raises(DataError, match="another DICOM segmentation marks as well"):
        load_dataset("folder", root=root, size=SIZE)


def test_what_it_marks_in_a_volume_is_all_that_is_there(series):
    root, files = series
    (root / "images" / "other.dcm").unlink()
    write_segmentation(root / "masks" / "series.dcm", files[1:3], MASKS[1:3])
    data = load_dataset("folder", root=root, dimensions=3)
    assert data.ids == ["d"]
    assert data.spacings == [(2, 0.5, 0.5)]
    expected = MASKS.copy()
    expected[3] = False
    expected = expected[:, :, ::-1]  # from left to right of the patient
    found = data.target_batch([0])[0, :2].numpy()
    assert np.array_equal(found, expected.transpose(3, 0, 1, 2))
    assert np.array_equal(data.original(0)[0], found)
