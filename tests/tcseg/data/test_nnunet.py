"""Folders of nnU-Net, of both versions."""

import json

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

from tcseg.cli import main
from tcseg.data import load_dataset
from tcseg.errors import DataError

CASES = ("liver_001", "liver_002", "liver_003")


def write(root, description, ending=".nii.gz"):
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir()
    for case in CASES:
        labels = rng.integers(0, 3, (32, 32, 2)).astype(np.uint8)
        for path, values in (
            (root / "imagesTr" / f"{case}_0000{ending}", labels * np.int16(100)),
            (root / "labelsTr" / f"{case}{ending}", labels),
        ):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    (root / "labelsTr" / f"{CASES[2]}{ending}").unlink()
    (root / "dataset.json").write_text(json.dumps(description))


def load(root):
    return load_dataset("folder", root=root, size=32)


@pytest.mark.parametrize(
    ("labels", "ending"),
    [
        ({"background": 0, "liver": 1, "tumour": 2}, ".nii"),
        ({"0": "background", "1": "liver", "2": "tumour"}, None),
    ],
)
def test_images_labels_and_names(tmp_path, labels, ending):
    description = {"labels": labels, "channel_names": {"0": "CT"}}
    if ending is not None:
        description["file_ending"] = ending
    write(tmp_path, description, ending or ".nii.gz")
    data = load(tmp_path)
    assert data.ids == [f"{case}/{plane:03d}" for case in CASES for plane in range(2)]
    assert (data.classes, data.values, data.annotated) == (
        ("liver", "tumour"),
        (1, 2),
        [0, 1, 2, 3],
    )
    # The images show their labels.
    images, targets = data.image_batch(range(4))[:, 0], data.target_batch(range(4))
    assert ((images - targets[:, 0] * 0.5 - targets[:, 1]).abs() < 1e-3).float().mean() == 1
    result = CliRunner().invoke(
        main, ["data", "check", "--data", "folder", "--root", str(tmp_path)]
    )
    assert "masks, by name: 2 of dataset.json of nnU-Net" in result.output


def test_what_is_to_be_ignored(tmp_path):
    write(tmp_path, {"labels": {"background": 0, "ignore": 1, "tumour": 2}})
    data = load(tmp_path)
    assert (data.classes, data.values, data.ignores) == (("tumour",), (2,), True)
    assert (data.target_batch(range(4)).sum(dim=1) == 0).float().mean() == pytest.approx(
        0.33, abs=0.03
    )


def test_what_is_not_read_says_so(tmp_path):
    write(tmp_path, {"labels": {"background": 0, "liver": 1, "tumour": 2}})
    (tmp_path / "labelsTr" / "other.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 mask in .*labelsTr without an image: other"):
        load(tmp_path)
    (tmp_path / "labelsTr" / "other.nii.gz").unlink()
    for labels, words in (
        ({"whole": [1, 2]}, r"the label 'whole' is \[1, 2\]; regions of several values"),
        ([], "has no labels; it is not of nnU-Net"),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        with pytest.raises(DataError, match=words):
            load(tmp_path)
    (tmp_path / "imagesTr" / "liver_001_0001.nii.gz").write_bytes(b"")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"liver": 1, "tumour": 2}}))
    with pytest.raises(DataError, match=r"liver_002_0000.nii.gz has 1 channel, .* has 2; all"):
        load(tmp_path)
    for case in CASES:
        path = tmp_path / "imagesTr" / f"{case}_0001.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.ones((32, 32, 3), np.int16), np.eye(4)), path)
    with pytest.raises(DataError, match=r"channels, up to liver_001_0001\.nii\.gz, differ in"):
        load(tmp_path)
    (tmp_path / "imagesTr" / "liver_001_0000.nii.gz").unlink()
    with pytest.raises(DataError, match=r"liver_001_0001.nii.gz: expected CASE_0000, CASE_0001"):
        load(tmp_path)
