"""Slices of one patient stay together, and those of one series make a volume."""

import numpy as np
import pytest
from click.testing import CliRunner
from made_up import write_dicom
from PIL import Image

from tcseg.cli import main
from tcseg.data import load_dataset, make_split, save_splits
from tcseg.errors import DataError
from tcseg.io.series import Collection

UID = "1.2.826.0.1.3680043.8.498.{}"
SLICES = 4


def write_slice(path, values, patient, series, position, **attributes):
    axial = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.5]}
    position = {"ImagePositionPatient": [0, 0, position]}
    identity = {"PatientID": patient, "SeriesInstanceUID": UID.format(series), "Modality": "CT"}
    write_dicom(path, values, **{**axial, **position, **identity, **attributes})


@pytest.fixture
def slices(tmp_path):
    """Six patients of four slices in files of their own, whose names say nothing."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    names = [f"IM{number:03d}" for number in rng.permutation(6 * SLICES)]
    for number, name in enumerate(names):
        patient, k = divmod(number, SLICES)
        values = rng.integers(0, 1000, (16, 16))
        path = tmp_path / "images" / f"{name}.dcm"
        write_slice(path, values, f"patient {patient}", patient, 3.0 * k)
        mask = Image.fromarray((values > 500).astype(np.uint8))
        mask.save(tmp_path / "masks" / f"{name}.png")
    return tmp_path, names


def load(root, **options):
    return load_dataset("folder", root=root, size=32, **options)


def parts(data, split):
    return [set(map(data.group_of, part)) for part in (split.train, split.validation, split.test)]


def test_slices_of_a_patient_are_in_one_part(slices):
    data = load(slices[0])
    assert data.grouped_by == "PatientID"
    for number in range(5):
        groups = parts(data, make_split(data, number))
        assert list(map(len, groups)) == [4, 1, 1]
        assert set.union(*groups) == {f"patient {n}" for n in range(6)}


def test_slices_of_a_series_are_a_volume_in_the_order_of_their_places(slices):
    root, names = slices
    data = load(root)
    for patient in range(6):
        of_series = [i for i in range(len(data)) if data.volume_of(i) == UID.format(patient)]
        assert [data.ids[i] for i in of_series] == names[SLICES * patient :][:SLICES]
        assert of_series == list(range(of_series[0], of_series[0] + SLICES))
        assert {data.slice_spacing_of(i) for i in of_series} == {3.0}  # distances have three axes


def test_a_series_is_the_group_where_all_have_one_patient_or_none(tmp_path):
    values = np.arange(64).reshape(8, 8)
    for patient in ("ANONYMOUS", ""):
        files = [tmp_path / f"{patient}{number}.dcm" for number in range(6)]
        for number, path in enumerate(files):
            write_slice(path, values, patient, number % 3, number)
        collection = Collection({path.stem: path for path in files})
        assert collection.grouped_by == "SeriesInstanceUID"
        groups = {path: next(collection.read(path)).group for path in files}
        assert [groups[path] for path in files] == [UID.format(n % 3) for n in range(6)]


def test_times_at_one_place_are_volumes_of_their_own(tmp_path):
    """Two times of three slices each, as of a beating heart, and a slice across."""
    files = [tmp_path / f"{number}.dcm" for number in range(7)]
    for number, path in enumerate(files[:6]):
        place = {"InstanceNumber": number + 1}
        write_slice(path, np.arange(64).reshape(8, 8), "a", 1, number // 2, **place)
    across = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    write_slice(files[6], np.arange(64).reshape(8, 8), "a", 1, 0, **across)
    collection = Collection({path.stem: path for path in files})
    volumes = {path.stem: next(collection.read(path)).volume for path in collection.files}
    first, second = UID.format(1), UID.format(1) + "#1"
    assert list(volumes.items()) == [
        *((number, first) for number in "024"),
        *((number, second) for number in "135"),
        ("6", None),
    ]


def test_images_without_masks_of_a_held_out_patient_are_not_used(slices):
    root, names = slices
    for name in names[::SLICES]:
        (root / "masks" / f"{name}.png").unlink()
    data = load(root)
    split = make_split(data, 0)
    assert len(split.unlabelled) == 4
    held_out = set.union(*parts(data, split)[1:])
    assert held_out.isdisjoint(map(data.group_of, split.unlabelled))
    result = CliRunner().invoke(main, ["data", "check", "--data", "folder", "--root", str(root)])
    assert "24 of them are planes of 6 volumes" in result.output
    assert "24 images in 6 groups, by PatientID." in result.output
    assert "2 images without masks are not used" in result.output
    assert result.exit_code == 0


def test_names_say_the_patient_if_told_how(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for number in range(12):
            values = np.tile(np.arange(16, dtype=np.uint8) % 2, (16, 1))
            path = tmp_path / part / f"p{number // 2}_eye{number % 2}.png"
            Image.fromarray(values).save(path)
    assert load(tmp_path).grouped_by is None
    for expression in (r"(p\d+)_", r"p\d+"):
        data = load(tmp_path, group=expression)
        assert [data.group_of(i) for i in range(4)] == ["p0", "p0", "p1", "p1"]
        groups = parts(data, make_split(data, 0))
        assert sum(map(len, groups)) == len(set.union(*groups)) == 6
    with pytest.raises(DataError, match="`group` 'eye0' matches no part of 6 names"):
        load(tmp_path, group="eye0")
    with pytest.raises(DataError, match="is not a regular expression"):
        load(tmp_path, group="(")
    with pytest.raises(DataError, match=r"1 group .* two are needed .* `group` '.\+' takes each"):
        make_split(load(tmp_path, group="p"), 0)
    assert len(set(map(load(tmp_path, group=".+").group_of, range(12)))) == 12


def test_a_split_file_that_divides_patients_is_remarked(slices):
    root, _ = slices
    options = ["data", "check", "--data", "folder", "--root", str(root)]
    alone = load(root, group=".+")
    save_splits(root / "splits.json", alone, [make_split(alone, 0)])
    result = CliRunner().invoke(main, [*options, "--split-file", str(root / "splits.json")])
    assert "The split divides" in result.output
    assert "The split divides" not in CliRunner().invoke(main, options).output
