"""Volumes from training to prediction: the same commands, of three axes."""

import csv
import dataclasses
import json
import re

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from click.testing import CliRunner
from made_up import write_dicom
from rich.console import Console
from safetensors.numpy import load_file

import tcseg
from tcseg.cli import main
from tcseg.errors import RunError
from tcseg.evaluation.metrics import contour_distances, hausdorff95, iou
from tcseg.io.files import write_json
from tcseg.io.images import read_volume
from tcseg.runs.config import Config
from tcseg.runs.model import Model
from tcseg.use.predict import predict
from tcseg.use.segmenter import Segmenter
from tcseg.use.with_data import load_with_data

QUIET = Console(quiet=True)
TINY = ["--data", "phantom", "--dimensions", "3", "--size", "32", "--patch", "16", "--batch-size"]
TINY += ["2", "--labelled", "2", "--pretrain-steps", "2", "--steps", "2", "--validate-every", "2"]


class Bright(torch.nn.Module):
    """Finds what is bright."""

    shapes: list[tuple[int, ...]]

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape[2:]))
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([grey, 1 - grey], dim=1)


def segmenter(**options):
    model = Model("unet", "float32", ("bright",), channels=1, size="original", dimensions=3)
    model = dataclasses.replace(model, scale="volume", **options)
    return Segmenter(Bright(), model, torch.device("cpu"))


def ball(shape=(12, 30, 20), spacing=(3.0, 1.0, 1.5), radius=9.0):
    """A bright ball in mm, uint8 (D, H, W)."""
    axes = [(np.arange(n) - (n - 1) / 2) * side for n, side in zip(shape, spacing, strict=True)]
    away = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    return np.where(away < radius, 255, 20).astype(np.uint8)


def save_nifti(path, values, spacing=(3.0, 1.0, 1.5), affine=None):
    affine = np.diag([*spacing[::-1], 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0)[:, ::-1], affine), path)


def rows(out):
    with open(out / "measurements.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_volume_is_resampled_and_its_masks_brought_back():
    volume, spacing = ball(), (3.0, 1.0, 1.5)
    own = segmenter(voxel=(1.5, 1.5, 1.5))
    found = own.predict(volume, spacing=spacing)
    assert own.network.shapes == [(24, 20, 20)]
    assert found.masks.shape == (1, *volume.shape) == found.probabilities.shape
    assert iou(found.masks[0], volume > 128) > 0.9
    as_it_is = segmenter().predict(volume)
    assert np.array_equal(as_it_is.masks[0], volume > 128)


def test_what_a_volume_must_be_is_said():
    with pytest.raises(ValueError, match=r"voxels of 1.5x1x1 mm: `spacing` must say"):
        segmenter(voxel=(1.5, 1.0, 1.0)).predict(ball())
    for spacing in ((3.0, 1.0), 3.0, (0.0, 1.0, 1.5), (np.nan, 1.0, 1.5)):
        with pytest.raises(ValueError, match="`spacing` must be depth, height and width of a vox"):
            segmenter(voxel=(1.5, 1.0, 1.0)).predict(ball(), spacing=spacing)
    with pytest.raises(ValueError, match=r"shape \(D, H, W\) or \(D, H, W, C\), got \(30, 20\)"):
        segmenter().predict(ball()[0])
    with pytest.raises(ValueError, match="takes images of 1 channel, this one has 2"):
        segmenter().predict(np.stack([ball()] * 2, axis=-1))


def test_consistency_of_a_volume():
    found = segmenter(spacing=(3.0, 1.0, 1.5)).predict(ball(), consistency=True)
    assert 0.7 < found.consistency < 1
    assert segmenter().predict(ball() * 0 + 1, consistency=True).consistency is None


@pytest.mark.parametrize("voxel", [None, (1.5, 1.5, 1.5)])
def test_files_of_volumes(tmp_path, voxel):
    """One row a volume; labels in its grid, affine and kind of file."""
    images, out, volume = tmp_path / "images", tmp_path / "out", ball()
    images.mkdir()
    affine = np.array([[0, -1.0, 0, 5], [-1.5, 0, 0, 7], [0, 0, 3.0, -2], [0, 0, 0, 1]])
    save_nifti(images / "a.nii.gz", volume, affine=affine)
    picture = SimpleITK.GetImageFromArray(volume)
    picture.SetSpacing((1.5, 1.0, 3.0))
    picture.SetOrigin((4, 5, 6))
    SimpleITK.WriteImage(picture, images / "b.mha")
    problems = predict(segmenter(voxel=voxel, values=(3,)), [images], out, console=QUIET)
    assert problems == []
    written = nibabel.load(out / "labels" / "a.nii.gz")
    assert np.array_equal(written.affine, affine) and written.get_data_dtype() == np.uint8
    other = SimpleITK.ReadImage(out / "labels" / "b.mha")
    assert other.GetSpacing() == (1.5, 1.0, 3.0) and other.GetOrigin() == (4, 5, 6)
    for labels in (read_volume(out / "labels" / "a.nii.gz")[0], SimpleITK.GetArrayFromImage(other)):
        assert set(np.unique(labels)) == {0, 3}
        assert iou(labels, volume > 128) > (0.9 if voxel else 0.999)
    table = rows(out)
    assert [row["depth"] for row in table] == ["12", "12"]
    for row in table:
        assert float(row["bright mm3"]) == pytest.approx(4.5 * int(row["bright voxels"]), rel=1e-4)
        assert float(row["bright mm3"]) == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.1)
    assert len(list((out / "overlays").rglob("*.png"))) == 24


def test_masks_are_turned_back_as_their_file_runs(tmp_path):
    volume = ball()
    volume[:6, :15, 2:9] = 250
    turns = {"RAS": np.eye(3), "LPI": -np.eye(3), "PSR": np.roll(np.diag([-1, 1, 1]), 1, axis=0)}
    for code, turn in turns.items():
        affine = np.eye(4)
        affine[:3, :3] = turn * (1.5, 1.0, 3.0)
        assert "".join(nibabel.aff2axcodes(affine)) == code
        save_nifti(tmp_path / f"{code}.nii", volume, affine=affine)
    picture = SimpleITK.GetImageFromArray(volume)
    SimpleITK.WriteImage(picture, tmp_path / "LPS.mha")
    shapes = (own := segmenter(values=(3,))).network.shapes
    assert predict(own, [tmp_path], tmp_path / "out", overlays=False, console=QUIET) == []
    assert set(shapes) == {(12, 30, 20), (30, 20, 12)}
    for code in turns:
        labels = read_volume(tmp_path / "out" / "labels" / f"{code}.nii.gz")[0]
        assert np.array_equal(labels == 3, volume > 128)
    written = SimpleITK.ReadImage(tmp_path / "out" / "labels" / "LPS.mha")
    assert np.array_equal(SimpleITK.GetArrayFromImage(written) == 3, volume > 128)


def test_a_series_of_dicom_files_is_one_volume(tmp_path):
    images, out, volume = tmp_path / "images", tmp_path / "out", ball(spacing=(3.0, 1.0, 1.0))
    images.mkdir()
    for k in (3, 0, 5, 1, 4, 2, 11, 7, 8, 9, 10, 6):
        write_dicom(
            images / f"{99 - k}.dcm",
            volume[k].astype(np.uint16) * 16,
            Modality="CT",
            SeriesInstanceUID="1.2.3",
            FrameOfReferenceUID="1.2.4",
            StudyInstanceUID="1.2.5",
            InstanceNumber=k,
            ImagePositionPatient=[0, 0, 3.0 * k],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
            SliceThickness=3,
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
        )
    assert predict(segmenter(), [images], out, console=QUIET) == []
    (row,) = rows(out)
    assert int(row["bright voxels"]) == np.count_nonzero(volume > 128)
    assert float(row["bright mm3"]) == pytest.approx(3 * int(row["bright voxels"]), rel=1e-4)
    assert len(list((out / "segmentations").iterdir())) == 1


def test_a_spacing_of_pixels_is_none_of_voxels(tmp_path):
    save_nifti(tmp_path / "a.nii", ball())
    with pytest.raises(ValueError, match="`spacing` is for images: the network is one of volumes"):
        predict(segmenter(), [tmp_path], tmp_path / "out", spacing=2.0, console=QUIET)


def test_a_plane_is_no_volume(tmp_path):
    save_nifti(tmp_path / "a.nii", ball()[:1])
    save_nifti(tmp_path / "b.nii", ball())
    problems = predict(segmenter(), [tmp_path], tmp_path / "out", console=QUIET)
    assert len(problems) == 1 and "a.nii is a single plane, no volume" in problems[0]
    assert [row["file"][-5:] for row in rows(tmp_path / "out")] == ["b.nii"]


def tcseg_command(*words, status=0):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.slow
def test_from_training_to_prediction(tmp_path, phantoms_made_once):
    """The embedded phantom; twice the same weights."""
    options = [*TINY, "--patch", "16x32x32", "--method", "semitc"]  # slides along one axis only
    for name in ("one", "two"):
        text = tcseg_command("train", *options, "--out", tmp_path / name)
        assert "at 32 x 32 x 32, patches of 16 x 32 x 32: 2 labelled and 28 unlabelled" in text
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[key], two[key]) for key in one)
    model = Model.load(tmp_path / "one")
    assert model.dimensions == 3 and model.spacing == (9.0, 9.0, 9.0)
    assert "IOU %" in tcseg_command("evaluate", tmp_path / "one", "--original-size")
    results = json.loads((tmp_path / "one" / "evaluation-test-original.json").read_text())
    assert set(results["iou"]) == set(model.classes) and "hd95_mm" in results
    volume = ball((20, 36, 40))
    save_nifti(tmp_path / "a.nii.gz", volume)
    tcseg_command("predict", tmp_path / "one", tmp_path / "a.nii.gz", "--out", tmp_path / "out")
    found = tcseg.load(tmp_path / "one").predict(read_volume(tmp_path / "a.nii.gz")[0]).masks
    assert found.shape == (4, 20, 36, 40)
    (row,) = rows(tmp_path / "out")
    assert int(row["spine voxels"]) == np.count_nonzero(found[model.classes.index("spine")])


def test_evaluation_reads_what_the_training_decoded(tmp_path):
    """And keeps the voxels of the training when the median is another by then."""
    root, run, cache = tmp_path / "data", tmp_path / "run", tmp_path / "cache"
    volume, voxel = ball((16, 20, 20)), (2.0, 2.0, 2.0)
    for part, values in (("images", volume), ("masks", (volume > 100).astype(np.uint8))):
        (root / part).mkdir(parents=True)
        for number in range(5):
            save_nifti(root / part / f"{number}.nii", values, voxel)
    options = ["--data", "folder", "--root", root, "--size", "original", "--cache", cache]
    tcseg_command("train", *TINY, *options, "--method", "baseline", "--out", run)
    tcseg_command("evaluate", run)
    assert len(list(cache.iterdir())) == 1
    for number in range(5, 11):
        save_nifti(root / "images" / f"{number}.nii", volume, (4.0, 4.0, 4.0))
    _, dataset, _ = load_with_data(run, "cpu")
    assert dataset.resampled == Model.load(run).voxel == voxel


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "24"], "--size must be a multiple of 16, at least 16, or three: 32x96x96"),
        (["--patch", "16x32"], "--patch must be a multiple of 16, at least 16, or three"),
        (["--size", "32", "--patch", "48"], "--patch must be .* within --size"),
        (["--spacing", "2"], "--spacing must be left out, but for volumes of a folder"),
        (["--data", "jsrt"], "--dimensions must be 2 for radiographs"),
        (["--size", "original"], "--size must be .*original: of a folder, with --patch"),
        (
            ["--data", "folder", "--root", "x"],
            "^Error: --patch must be .* given where that is orig",
        ),
        (["--dimensions", "4"], "Error: --dimensions must be at least 2 and less than 4, got 4\n$"),
        (["--dimensions", "1"], "Error: --dimensions must be at least 2 and less than 4, got 1\n$"),
    ],
)
def test_options_that_do_not_suit_volumes(tmp_path, words, message):
    result = CliRunner().invoke(
        main, ["train", "--dimensions", "3", *words, "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 2
    assert re.search(message, result.output), result.output


@pytest.mark.parametrize(
    "change",
    [
        {"dimensions": 4},
        {"spacing": [1.0, 1.0]},
        {"voxel": [1.0, 1.0]},
        {"voxel": [1.0, 1.0, 0.0]},
        {"size": "32x32"},
        {"patch": "16x16x24"},
    ],
)
def test_a_broken_description_is_refused(tmp_path, change):
    Model("unet", "float32", ("a",), 1, size=32, dimensions=3).save(tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    Model.load(tmp_path)
    write_json(tmp_path / "model.json", {**record, **change})
    with pytest.raises(RunError, match=r"model.json: broken"):
        Model.load(tmp_path)


def test_what_differs_for_volumes_where_it_is_not_given(tmp_path, monkeypatch):
    assert Config.of() == Config()
    volumes = Config.of(data="phantom", dimensions=3)
    volumes.validate()
    assert (volumes.size, volumes.patch) == (48, 32)
    assert Config.of(data="folder", dimensions=3).size == "original"
    part = tmp_path / "part.toml"
    part.write_text("dimensions = 3\n")
    assert Config.load(part) == volumes
    read = []
    monkeypatch.setattr(
        "tcseg.paper.reproduce.reproduce", lambda _, base, *a, **b: read.append(base)
    )
    for data in (["phantom"], ["folder", "--root", tmp_path]):
        words = ["--data", *data, "--patch", 16, "--config", part]
        command = ["reproduce", "table1", *words, "--out", tmp_path / "out"]
        CliRunner().invoke(main, list(map(str, command)))
    assert [base.size for base in read] == [48, "original"]


def test_hd95_against_monai():
    from monai.metrics import compute_hausdorff_distance

    rng = np.random.default_rng(0)
    base = ball((14, 14, 14), (1.0, 1.0, 1.0), 4.0) > 128
    other = np.roll(base, (2, -1, 1), (0, 1, 2)) ^ (rng.random(base.shape) > 0.995)
    distances = contour_distances(base, other, (2.0, 1.0, 1.5))
    assert hausdorff95(base, other, (2.0, 1.0, 1.5)) == np.percentile(distances, 95)
    y = torch.from_numpy(np.stack([base, other])[:, None, None])
    most = compute_hausdorff_distance(
        y[:1, 0], y[1:, 0], include_background=True, spacing=(2.0, 1.0, 1.5)
    )
    assert distances.max() == pytest.approx(float(most), rel=1e-6)
    assert np.isnan(hausdorff95(base, base & False))
