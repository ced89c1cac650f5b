"""Many structures that exclude each other, from files to label maps; ten that overlap."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from folders import save
from PIL import Image
from tiny import TINY

from tcseg.cli import main
from tcseg.data import load_dataset
from tcseg.errors import DataError
from tcseg.method.network import at_once, build_network, found
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model, head_of
from tcseg.training.session import train

VALUES = range(280, 300)  # of two bytes


def tcseg(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def atlas(tmp_path):
    """Six images of 20 cells, with label maps of 16 bits."""
    numbers = np.repeat(np.repeat(np.arange(64).reshape(8, 8), 8, 0), 8, 1)
    for k in range(6):
        cells = np.roll(np.where(numbers < 20, numbers + VALUES[0], 0), 4 * k, 0)
        save(tmp_path / "images" / f"{k}.png", (cells % 256).astype("u1"))
        save(tmp_path / "masks" / f"{k}.png", cells.astype("u2"))
    lines = [f"{value} cell {value}" for value in VALUES]
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    return tmp_path


def test_from_files_to_label_maps(atlas, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    config = dataclasses.replace(TINY, data="folder", root=str(atlas), size=64, labelled=None)
    config = dataclasses.replace(config, method="semitc-paste", pretrain_steps=2, steps=2)
    train(config, run, False, show_results=False)
    model = Model.load(run)
    assert (len(model.classes), model.head) == (20, "softmax")
    assert RunFolder(run).load_weights()["backbone.final_conv.weight"].shape[0] == 21
    tcseg("evaluate", run, "--postprocess", "--original-size")
    results = json.loads((run / "evaluation-test-original-postprocessed.json").read_text())
    assert len(results["iou"]) == 20
    tcseg("predict", run, atlas / "images" / "0.png", "--out", out)
    labels = np.asarray(Image.open(out / "labels" / "0.png"))
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) <= {0, *VALUES}
    tcseg("report", run, "--out", tmp_path / "report.html")
    data = ("--data", "folder", "--root", atlas, "--size", "64")
    tcseg("preview", *data, "--out", tmp_path / "preview.png", "--images", "1")
    assert "299 is cell 299" in tcseg("data", "check", *data, "--sheet", tmp_path / "sheet.png")


def test_structures_that_overlap_have_files_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((10, 64, 64)) < 0.5
    for k in range(3):
        save(tmp_path / "images" / f"{k}.png", rng.integers(0, 255, (64, 64)).astype("u1"))
        for c, mask in enumerate(masks):
            save(tmp_path / "masks" / f"part {c}" / f"{k}.png", np.roll(mask, k, 0))
    data = load_dataset("folder", root=tmp_path, size=64)
    assert data.masks.shape == (3, 2, 64, 64)
    assert np.array_equal(data.target_batch([0])[0, :-1].numpy() > 0, masks)
    assert data.absent_from([0, 1]) == []
    assert head_of(TINY, data) == "sigmoid"
    with pytest.raises(ValueError, match="those of data 'folder' may overlap: choose sigmoid"):
        head_of(dataclasses.replace(TINY, head="softmax"), data)


def test_values_without_a_name_are_few(atlas):
    (atlas / "classes.txt").write_text("100 one\n")
    with pytest.raises(DataError, match="has 20 values beside 0 without a name, more than 8"):
        load_dataset("folder", root=atlas, size=64)


def test_each_pixel_is_of_the_class_that_softmax_finds_likeliest():
    torch.manual_seed(0)
    network = build_network("unet", 20, head="softmax").eval()
    answers = network(torch.rand(2, 1, 32, 32))
    assert torch.allclose(answers.sum(dim=1), torch.ones(2, 32, 32))
    masks = found(network, answers)
    assert (masks.sum(dim=1) == 1).all()
    assert torch.equal(answers[masks].sort().values, answers.amax(dim=1).flatten().sort().values)


@pytest.mark.parametrize(("classes", "images"), [(5, 8), (200, 2), (5000, 1)])
def test_answers_are_bounded(classes, images):
    assert at_once(8, classes, (512, 512)) == images
