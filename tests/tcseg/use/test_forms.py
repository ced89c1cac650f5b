"""What is found has the form of the image: NRRD, MHA and NPY, one DICOM file for a series."""

import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from made_up import write_dicom
from rich.console import Console

from tcseg.data import load_dataset
from tcseg.runs.model import Model
from tcseg.use.predict import predict
from tcseg.use.segmenter import Segmenter

QUIET = Console(quiet=True)
SIZE = 32


class Bright(torch.nn.Module):
    """Finds what is bright, and what is darker than that and not black."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        bright, middle = images > 0.75, (images > 0.25) & (images <= 0.75)
        return torch.cat([bright, middle, ~bright & ~middle], dim=1).float() + self.weight


def segmenter(values=None):
    classes = ("bright", "middle")
    model = Model("unet", "float32", classes, 1, SIZE, values=values, scale="volume")
    return Segmenter(Bright(), model, torch.device("cpu"))


def volume(planes=3):
    """Numbers, and the label of each: 1 bright, 2 middle."""
    labels = np.zeros((planes, SIZE, SIZE), np.uint8)
    for k in range(planes):
        labels[k, 4 : 20 + k, 8:20], labels[k, 24 : 28 + k] = 1, 2
    return np.array([0, 1000, 500])[labels].astype(np.int16), labels


@pytest.mark.parametrize("ending", ["nrrd", "mha", "npy"])
@pytest.mark.parametrize("values", [None, (1, 2)], ids=["by structure", "values"])
@pytest.mark.parametrize("planes", [1, 3])
def test_arrays(tmp_path, ending, values, planes):
    numbers, labels = volume(planes)
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / f"a.{ending}"
    axes = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0) if planes > 1 else (0.0, 1.0, -1.0, 0.0)
    if ending == "npy":
        np.save(path, numbers)
    else:
        image = SimpleITK.GetImageFromArray(numbers if planes > 1 else numbers[0])
        image.SetSpacing((0.5, 2.0, 3.0)[: image.GetDimension()])
        image.SetOrigin((-7.0, 8.0, 9.0)[: image.GetDimension()])
        image.SetDirection(axes)
        SimpleITK.WriteImage(image, path)
    assert predict(segmenter(values), [path], tmp_path / "masks", console=QUIET) == []
    for name, value in (("bright", 1), ("middle", 2)):
        file = tmp_path / "masks" / ("labels" if values else name) / f"a.{ending}"
        expected = labels == value
        if ending == "npy":
            found = np.load(file).reshape(labels.shape)
        else:
            written = SimpleITK.ReadImage(file)
            assert written.GetSpacing() == image.GetSpacing()
            assert written.GetOrigin() == image.GetOrigin()
            assert written.GetDirection() == pytest.approx(axes)
            found = SimpleITK.GetArrayFromImage(written).reshape(labels.shape)
        assert found.dtype == np.uint8
        assert np.array_equal(found == (value if values else 1), expected)
    # And it can be the masks of a training.
    if values:
        (tmp_path / "masks" / "labels" / file.name).rename(tmp_path / "masks" / file.name)
        (tmp_path / "masks" / "labels").rmdir()
    for part in ("overlays", "measurements.csv"):
        (tmp_path / "masks" / part).rename(tmp_path / part)
    data = load_dataset("folder", root=tmp_path, size=SIZE)
    found = data.target_batch(range(planes)).numpy()
    assert np.array_equal(found[:, :2], np.stack([labels == 1, labels == 2], axis=1))


def write_series(folder, names, series="1.2.3", damaged=()):
    numbers, labels = volume(len(names))
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        write_dicom(
            folder / f"{name}.dcm",
            numbers[k],
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
            Modality="CT",
            SeriesInstanceUID=series,
            StudyInstanceUID="1.2",
            FrameOfReferenceUID="1.5",
            ImagePositionPatient=[0, 0, 2 * k],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.5, 0.5],
            SliceThickness="2",
            InstanceNumber=k + 1,
        )
    return labels


def test_a_series_has_one_segmentation(tmp_path):
    images = tmp_path / "images"
    labels = write_series(images / "P1", "cab")
    write_series(images / "P2", "a", "1.2.4")
    out = tmp_path / "out"
    assert predict(segmenter(), [images], out, console=QUIET) == []
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.dcm"))
    assert files == ["segmentations/P1/c.dcm", "segmentations/P2/a.dcm"]
    found = pydicom.dcmread(out / files[0])
    assert (found.PatientID, found.NumberOfFrames) == ("phantom", 6)
    (out / "segmentations").rename(tmp_path / "masks")
    data = load_dataset("folder", root=tmp_path, size=SIZE)
    assert data.ids == ["P1/c", "P1/a", "P1/b", "P2/a"]
    assert data.annotated == [0, 1, 2, 3]
    for k in range(3):
        targets = data.target_batch([k])[0, :2].numpy()
        assert np.array_equal(targets, [labels[k] == 1, labels[k] == 2])


def test_a_series_of_which_a_slice_is_damaged(tmp_path):
    write_series(tmp_path / "images", "cab")
    header = pydicom.dcmread(tmp_path / "images" / "b.dcm")
    header.PixelData = header.PixelData[:100]
    header.save_as(tmp_path / "images" / "b.dcm")
    problems = predict(segmenter(), [tmp_path / "images"], tmp_path / "out", console=QUIET)
    assert len(problems) == 1
    assert "b.dcm: cannot be read" in problems[0]
    (file,) = (tmp_path / "out").rglob("*.dcm")
    assert pydicom.dcmread(file).NumberOfFrames == 4


def test_a_series_that_can_have_no_segmentation_has_masks_by_file(tmp_path):
    write_series(tmp_path / "images", "cab")
    header = pydicom.dcmread(tmp_path / "images" / "b.dcm")
    del header.StudyInstanceUID
    header.save_as(tmp_path / "images" / "b.dcm")
    (problem,) = predict(segmenter(), [tmp_path / "images"], tmp_path / "out", console=QUIET)
    assert "b.dcm: no DICOM segmentation can be made" in problem
    assert (tmp_path / "out" / "bright" / "b.png").is_file()
    for name in "ca":
        assert (tmp_path / "out" / "segmentations" / f"{name}.dcm").is_file()
