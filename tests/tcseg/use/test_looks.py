"""What is to be looked at or carried away: previews, reports in a browser, exports, rehearsals."""

import base64
import dataclasses
import io
import json
import logging
import os
import re
import shutil
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.colors import to_rgb
from PIL import Image
from rich.console import Console
from skimage.color import rgb2lab
from tiny import TINY

import tcseg
from tcseg.cli import main
from tcseg.data import load_dataset
from tcseg.errors import RunError
from tcseg.evaluation.pictures import Panel, outlined, save_grid
from tcseg.io.label_maps import COLOURS
from tcseg.method.network import emulates_bfloat16
from tcseg.method.recipes import RECIPES
from tcseg.method.transforms import Elastic
from tcseg.runs.folder import RunFolder
from tcseg.training.preview import preview
from tcseg.training.session import _fit, train
from tcseg.use.export import export

pytestmark = pytest.mark.usefixtures("phantoms_made_once")


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A finished run, of a name to be escaped."""
    return shutil.copytree(finished_run[0], tmp_path_factory.mktemp("runs") / "first <run>")


def command(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(a) for a in arguments])


# ---- preview --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_preview_is_a_picture_and_its_labels_agree(tmp_path, recipe):
    out = tmp_path / "preview.png"
    result = command("preview", "--size", 64, "--recipe", recipe, "--images", 2, "--out", out)
    assert result.exit_code == 0, result.output
    width, height = Image.open(out).size
    assert width > 2 * height
    agreement = float(re.search(r"IOU ([\d.]+)", result.output).group(1))
    assert 0.9 < agreement <= 1


def test_aligned_labels_are_the_labels_of_the_other_view(tmp_path):
    dataset = load_dataset("phantom", size=64)
    still = Elastic(displacement_std=0.0, identity_probability=1.0)
    assert preview(tmp_path / "a.png", dataset, [0, 1], still, 0, "still") == 1
    moved = Elastic(displacement_std=30.0, identity_probability=0.0)
    assert 0.8 < preview(tmp_path / "b.png", dataset, [0, 1], moved, 0, "moved") < 1


def test_outlines_lie_on_the_edge_of_masks():
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 5:15, 5:15] = True
    picture = outlined(np.full((1, 20, 20), 0.5, np.float32), mask)
    changed = (picture != 128).any(-1)
    inner = np.zeros((20, 20), bool)
    inner[6:14, 6:14] = True
    assert np.array_equal(changed, mask[0] & ~inner)


# Machado, Oliveira and Fernandes 2009, complete absence of one of the three cones; linear RGB.
COLOUR_BLIND = {
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0519]],
    "deuteranopia": [
        [0.3673, 0.8606, -0.2279],
        [0.2801, 0.6726, 0.0473],
        [-0.0118, 0.0429, 0.9689],
    ],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


@pytest.mark.parametrize("vision", ["trichromacy", *COLOUR_BLIND])
def test_colours_of_the_first_five_structures_are_far_apart(vision):
    """In Lab, where a distance of about 2 is just seen."""
    colours = np.array([to_rgb(colour) for colour in COLOURS[:5]])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(COLOUR_BLIND.get(vision, np.eye(3))).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(5, 1)]
    assert distances.min() > 20


def test_keys_of_many_structures_fit_into_a_narrow_picture(tmp_path):
    masks = np.zeros((8, 16, 16), bool)
    rows = [[Panel(np.zeros((1, 16, 16), np.float32), masks, "note")]]
    heights = []
    for count in (2, 8):
        names = [f"structure number {k}" for k in range(count)]
        save_grid(tmp_path / "a.png", rows, (), "title", names)
        with Image.open(tmp_path / "a.png") as picture:
            heights.append(picture.height)
            border = np.asarray(picture.convert("RGB"))[:, [0, 1, -2, -1]]
        assert (border == border[0, 0]).all()  # nothing is cut off
    assert heights[1] > heights[0]


def test_the_line_of_a_training_fits_80_columns(tmp_path):
    config = dataclasses.replace(TINY, pretrain_steps=12_000, steps=12_000, validate_every=1)
    trainer = types.SimpleNamespace(config=config, total_steps=24_000)
    trainer.state = types.SimpleNamespace(step=11_998, best_miou=0.8765)
    trainer.fit = lambda show, stop: show(11_999, 0.5432, 0.8765)
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system=None)
    _fit(trainer, console, lambda: 0)
    figures = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", output.getvalue()).splitlines()
    assert any("pre-training" in line and "best mIOU 0.876" in line for line in figures)
    assert max(map(len, figures)) <= 80


def test_without_a_terminal_a_training_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tcseg.training.session.LINE_EVERY", 0.0)
    train(TINY, tmp_path / "run", False, show_results=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "/12" in line]
    assert [int(re.search(r"(\d+)/12", line)[1]) for line in lines[:4]] == [0, 2, 3, 4]
    assert "pre-training" in lines[1] and re.search(r"loss \d\.\d\d\d", lines[1])
    assert "semitc" in lines[-2] and "best mIOU" in lines[-2]


# ---- training -------------------------------------------------------------------------------


def test_training_leaves_a_picture_of_validation_cases(run):
    picture = Image.open(run / "validation.png")
    assert picture.size == (3 * 192, 4 * 192)


def test_a_rehearsal_says_what_a_run_takes_and_writes_nothing(tmp_path):
    out = tmp_path / "run"
    result = command("train", "--size", 32, "--batch-size", 4, "--dry-run", "--out", out)
    assert result.exit_code == 0, result.output
    assert re.search(r"2000 steps, about \d+:\d\d:\d\d with validation", result.output)
    assert "Nothing was written." in result.output
    assert "bfloat16" not in result.output
    assert not out.exists()
    bad = command("train", "--size", 32, "--labelled", 101, "--dry-run", "--out", out)
    assert bad.exit_code == 1
    assert "--labelled must be 1 to 100" in bad.stderr
    (tmp_path / "file").touch()
    bad = command("train", "--size", 32, "--dry-run", "--out", tmp_path / "file" / "run")
    assert (bad.exit_code, "cannot be written" in bad.stderr) == (1, True)


@pytest.mark.parametrize("emulated", [True, False])
def test_a_device_that_emulates_bfloat16_is_named(tmp_path, monkeypatch, emulated):
    monkeypatch.setattr("tcseg.training.session.emulates_bfloat16", lambda device: emulated)
    small = ("--size", 32, "--batch-size", 2, "--validation-images", 1, "--pretrain-steps", 1)
    result = command(
        *("train", *small, "--steps", 0, "--precision", "bfloat16", "--device", "cpu"),
        *("--dry-run", "--out", tmp_path / "run"),
    )
    line = "cpu has no instructions for bfloat16: --precision float32 is faster.\n"
    assert (line in result.output) == emulated, result.output


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="Linux says what a processor has")
def test_bfloat16_is_emulated_where_the_processor_lacks_it():
    with open("/proc/cpuinfo") as file:
        has = {word for line in file if line.startswith("flags") for word in line.split()}
    if "sse2" not in has:
        pytest.skip("not a processor of the x86 family")
    # Without AVX-512 BF16 oneDNN still has vectors of 512 bits to convert with.
    computes = {"avx512vl", "avx512bw", "avx512dq"} <= has
    assert emulates_bfloat16(torch.device("cpu")) == (not computes)


def test_a_rehearsal_of_a_run_that_goes_on(run, tmp_path):
    assert "holds a finished run" in command("train", "--dry-run", "--out", run).stderr
    result = command("train", "--dry-run", "--resume", "--out", run)
    assert "is finished already" in result.output
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    result = command("train", "--dry-run", "--resume", "--out", out)
    assert "0 steps, about" in result.output, result.output
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_names_are_shown_as_they_are(tmp_path):
    """A $ is no mathematics, brackets are no markup: neither costs a run its end."""
    phantom = load_dataset("phantom", size=32)
    for i in range(8):
        for part in ("images", "masks"):
            (tmp_path / "data $x_{[/b]" / part).mkdir(parents=True, exist_ok=True)
        root = tmp_path / "data $x_{[/b]"
        Image.fromarray(phantom.images[i, 0].numpy()).save(root / "images" / f"a$x_{{{i}.png")
        mask = (phantom.masks[i, 0] > 0).to(torch.uint8).numpy()
        Image.fromarray(mask).save(root / "masks" / f"a$x_{{{i}.png")
    (root / "classes.txt").write_text("\ufeff1 lung [/red] $y_{\r\n", encoding="utf-8")
    config = dataclasses.replace(TINY, data="folder", root=str(root), labelled=None)
    summary = train(config, tmp_path / "run [/i] $z_{", False)
    assert set(summary["test"]["iou"]) == {"lung [/red] $y_{"}
    out = tmp_path / "run [/i] $z_{"
    assert command("evaluate", out).exit_code == 0
    assert command("report", out, "--out", tmp_path / "r.html").exit_code == 0
    sheet = ("--sheet", tmp_path / "s.png")
    assert command("data", "check", "--data", "folder", "--root", root, *sheet).exit_code == 0
    assert command("predict", out, root / "images", "--out", tmp_path / "found").exit_code == 0


# ---- export ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_export_does_what_the_network_does(run, tmp_path, form):
    out = tmp_path / f"network.{form}"
    result = command("export", run, "--format", form, "--out", out)
    assert result.exit_code == 0, result.output
    assert "run and compared" in result.output
    segmenter = tcseg.load(run, "cpu")
    images = torch.rand(5, 1, 32, 32)
    with torch.inference_mode():
        expected = segmenter.network(images).numpy()
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out))
        found = session.run(None, {"images": images.numpy()})[0]
        properties = session.get_modelmeta().custom_metadata_map
        classes = json.loads(properties["classes"])
    else:
        extra = {"classes": ""}
        program = torch.export.load(out, extra_files=extra)
        found = program.module()(images).detach().numpy()
        classes = json.loads(extra["classes"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert classes == [*segmenter.classes, "background"]
    again = command("export", run, "--format", form, "--out", out)
    assert (again.exit_code, "exists; choose another --out" in again.stderr) == (1, True)


def test_an_export_that_does_something_else_is_refused(run, tmp_path):
    segmenter = tcseg.load(run, "cpu")

    calls = []

    class Depends(torch.nn.Module):
        """Traced once, it keeps the branch it took."""

        def forward(self, images):
            calls.append(1)
            return images.repeat(1, 6, 1, 1) * (1.0 if len(calls) == 1 else 0.5)

    segmenter.network = Depends()
    with pytest.raises(RunError, match=r"differs by 0\.5 from itself"):
        export(segmenter, tmp_path / "x.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_export_leaves_all_else_as_it_was(run, tmp_path):
    segmenter = tcseg.load(run, "cpu")
    segmenter.network.precision = torch.bfloat16
    segmenter.network.train()
    level = logging.getLogger("torch.onnx").level
    export(segmenter, tmp_path / "x.onnx", "onnx")
    assert segmenter.network.training
    assert segmenter.network.precision == torch.bfloat16
    assert logging.getLogger("torch.onnx").level == level


# ---- reports --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """A report on two runs."""
    folder = tmp_path_factory.mktemp("report")
    train(dataclasses.replace(TINY, method="baseline"), folder / "second", False)
    result = command("report", run, folder / "second", "--out", folder / "report.html")
    assert result.exit_code == 0, result.output
    return folder / "report.html"


def test_a_report_needs_no_other_file(page):
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "first &lt;run&gt;" in text  # and not a tag
    assert text.count("<figure>") == 2 * 6
    for structure in load_dataset("phantom", size=32).classes:
        assert f"<td>{structure}</td>" in text
    picture = next(s for s in sources if s.startswith("data:image/png"))
    image = Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1])))
    assert image.size[0] == 2 * image.size[1]


def test_a_report_says_where_runs_were_tested_on_different_images(run, page, tmp_path):
    """As two rounds are that divide their images anew."""
    remark = "The runs were tested on different images, so their figures do not compare."
    assert remark not in page.read_text()
    other = tmp_path / "other"
    shutil.copytree(run, other)
    record = json.loads((other / "split.json").read_text())
    parts = record["splits"][0]
    parts["train"][0], parts["test"][0] = parts["test"][0], parts["train"][0]
    (other / "split.json").write_text(json.dumps(record))
    result = command("report", run, other, "--out", tmp_path / "report.html")
    assert f"Note: {remark}" in result.stderr
    assert remark in (tmp_path / "report.html").read_text()


def test_a_report_without_the_data_says_so(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    config = dataclasses.replace(TINY, data="folder", root=str(tmp_path / "nowhere"))
    config.save(out / "config.toml")
    result = command("report", out, "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "Note: run: No cases can be shown: folder: no folder" in result.stderr
    assert "No cases can be shown: folder: no folder" in (tmp_path / "report.html").read_text()


def test_a_report_of_an_older_version_is_refused(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    summary = json.loads((out / "summary.json").read_text())
    del summary["seed"]
    (out / "summary.json").write_text(json.dumps(summary))
    result = command("report", out, "--out", tmp_path / "report.html")
    assert (result.exit_code, "field 'seed'" in result.stderr) == (1, True)


def test_files_are_not_written_into_folders_that_are_not_there(run, tmp_path):
    for line in (
        ("report", run),
        ("export", run),
        ("preview",),
        ("data", "splits"),
    ):
        result = command(*line, "--out", tmp_path / "missing" / "x")
        assert result.exit_code == 2
        assert f"there is no folder {tmp_path / 'missing'}; make it first" in result.stderr


def test_a_report_on_what_is_no_finished_run_is_refused(tmp_path):
    RunFolder.create(tmp_path / "run", TINY, resume=False).close()
    for folder, message in (("run", "is not a finished run"), ("missing", "no such folder")):
        result = command("report", tmp_path / folder, "--out", tmp_path / "report.html")
        assert result.exit_code == 1
        assert message in result.stderr
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
def test_a_report_in_a_browser(page, tmp_path, width):
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("chromium and chromedriver are not installed: the report was not looked at")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option(
        "mobileEmulation", {"deviceMetrics": {"width": width, "height": 800, "pixelRatio": 1}}
    )
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as chrome:
        chrome.get(page.as_uri())
        assert chrome.title == "tcseg: 2 runs compared"
        assert chrome.get_log("browser") == []
        broken = "return [...document.images].filter(i => !(i.complete && i.naturalWidth)).length"
        assert chrome.execute_script(broken) == 0
        # Wide tables scroll by themselves; the page does not.
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
        size = chrome.execute_script("return parseFloat(getComputedStyle(document.body).fontSize)")
        assert size >= 16
