"""Images that are not square, from their folder to what is found in them."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tcseg
from tcseg.cli import main
from tcseg.data import load_dataset
from tcseg.errors import DataError
from tcseg.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("phantoms_made_once")
QUICK = ("--pretrain-steps", 2, "--steps", 2, "--batch-size", 2, "--device", "cpu")


def command(*arguments):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Images of 40 x 72 with a bright box, marked."""
    root = tmp_path_factory.mktemp("wide")
    for part in ("images", "masks"):
        (root / part).mkdir()
    for number in range(8):
        mask = np.zeros((40, 72), np.uint8)
        mask[8:24, 3 * number + 4 : 3 * number + 30] = 1
        noise = np.random.default_rng(number).integers(0, 60, mask.shape)
        Image.fromarray((noise + 150 * mask).astype(np.uint8)).save(root / f"images/{number}.png")
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    return root


@pytest.fixture(scope="module")
def run(wide):
    out = wide / "run"
    command("train", "--data", "folder", "--root", wide, "--size", "48x64", *QUICK, "--out", out)
    return out


@pytest.mark.slow
def test_a_run_of_another_shape_is_used_as_any(run, wide, tmp_path):
    assert RunFolder(run).summary()["size"] == "48x64"
    assert json.loads((run / "model.json").read_text())["size"] == "48x64"
    assert "mIOU" in command("evaluate", run, "--original-size")
    command("predict", run, wide / "images" / "0.png", "--out", tmp_path / "found")
    assert Image.open(tmp_path / "found" / "labels" / "0.png").size == (72, 40)
    said = command("export", run, "--format", "pt2", "--out", tmp_path / "network.pt2")
    assert "images (b, 1, 48, 64) in [0, 1]" in said
    assert "finished" in command("train", "--out", run, "--resume")


def test_a_run_is_measured_on_a_folder_that_it_has_not_seen(run, wide, tmp_path):
    other, found = tmp_path / "other", tmp_path / "found"
    for part in ("images", "masks"):
        (other / part).mkdir(parents=True)
        for number in (1, 5):
            shutil.copy(wide / part / f"{number}.png", other / part / f"new{number}.png")
    shutil.copy(wide / "images/2.png", other / "images/unmarked.png")
    said = command("evaluate", run, "--on", "all", "--root", other, "--original-size")
    assert "2 annotated images at their own size" in said
    assert "flatter" not in said
    command("predict", run, other / "images", "--out", found)
    rows = json.loads((run / "evaluation-all-original.json").read_text())["images"]
    assert [row["id"] for row in rows] == ["new1", "new5"]
    for row in rows:
        predicted, true = (
            np.asarray(Image.open(folder / f"{row['id']}.png")) > 0
            for folder in (found / "labels", other / "masks")
        )
        assert row["miou"] == pytest.approx((predicted & true).sum() / (predicted | true).sum())

    said = command("evaluate", run, "--on", "all")
    assert "8 annotated images\n" in said
    (parts,) = RunFolder(run).split_record()["splits"]
    assert f"{len(parts['train'])} have names of images that the network was trained with" in said
    with pytest.raises(AssertionError, match=r"split\.json: folder has no image"):
        command("evaluate", run, "--root", other)


def test_images_of_several_sizes_keep_them_with_patches(tmp_path):
    for number in range(6):
        shape = (64, 40 + 20 * number)
        mask = np.zeros(shape, np.uint8)
        mask[20:40, 4:30] = 1
        for part, values in {"images": 200 * mask, "masks": mask}.items():
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / part / f"{number}.png")
    options = ("--data", "folder", "--root", tmp_path, "--size", "original")
    said = command("data", "check", *options)
    assert "read at their own size, up to 64 x 140 pixels" in said
    assert "│     5.80 │   20.31 │" in said  # per cent of 64 x 140 and of 64 x 40 pixels
    run, patch = tmp_path / "run", ("--patch", "48x32")
    said = command("train", *options, *patch, *QUICK, "--out", run)
    assert "at their own size, patches of 48 x 32" in said
    command("evaluate", run)
    command("predict", run, tmp_path / "images" / "5.png", "--out", tmp_path / "found")
    assert Image.open(tmp_path / "found" / "labels" / "5.png").size == (140, 64)
    command("preview", *options, *patch, "--images", 1, "--out", tmp_path / "p.png")
    segmenter = tcseg.load(run, "cpu")
    assert (segmenter.model.size, segmenter.model.patch) == ("original", "48x32")
    assert segmenter.predict(np.zeros((30, 99), np.uint8)).masks.shape == (1, 30, 99)


def test_check_and_preview_take_another_shape(wide, tmp_path):
    options = ("--data", "folder", "--root", wide)
    said = command("data", "check", *options, "--size", "48x64")
    assert "read at 48 x 64 pixels" in said
    assert "Suggested: --size 48x64, the " in said and " of 48x64, 80x128" in said
    command("preview", *options, "--size", "48x64", "--images", 1, "--out", tmp_path / "p.png")


@pytest.mark.parametrize("name", ["phantom", "jsrt"])
def test_square_images_have_one_size(name):
    with pytest.raises(DataError, match=f"`size` 32x48: images of {name} are square"):
        load_dataset(name, root=".", size=(32, 48))


def test_a_model_of_no_size_is_refused(run, tmp_path):
    for size in ("48x50", "48", "x", "48x64x3", "original"):
        copy = tmp_path / size
        copy.mkdir()
        for name in ("config.toml", "model.safetensors", "summary.json"):
            (copy / name).write_bytes((run / name).read_bytes())
        model = json.loads((run / "model.json").read_text()) | {"size": size}
        (copy / "model.json").write_text(json.dumps(model))
        with pytest.raises(tcseg.errors.RunError, match=r"model\.json: broken"):
            tcseg.load(copy, "cpu")
