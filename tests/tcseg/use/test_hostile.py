"""Files that anybody may have made: one line says what is wrong, and the others are done."""

import copy
import json
import os
import shutil
import socket
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from processes import python, run
from rich.console import Console
from tiny import TINY

from tcseg.cli import main
from tcseg.cli.options import with_options
from tcseg.data.legend import read_legend
from tcseg.errors import DataError, RunError
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model
from tcseg.training.session import train
from tcseg.use.predict import predict
from tcseg.use.segmenter import Segmenter

QUIET = Console(quiet=True)


class Bright(torch.nn.Module):
    """Finds what is bright."""

    def forward(self, images):
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([grey, 1 - grey], dim=1)


@pytest.fixture(scope="module")
def segmenter():
    model = Model("unet", "float32", ("bright",), channels=1, size=32)
    return Segmenter(Bright(), model, torch.device("cpu"))


def save(path):
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(path)


def segmented(segmenter, folder, out, **options):
    options = {"consistency": False, "overlays": False} | options
    problems = predict(segmenter, [folder], out, console=QUIET, **options)
    rows = (out / "measurements.csv").read_text().splitlines()[1:]
    return problems, [row.split(",")[0] for row in rows]


# ---- folders and names ----------------------------------------------------------------------


def test_what_is_no_file_is_named_and_nothing_waits_for_it(segmenter, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    save(data / "good.png")
    os.mkfifo(data / "pipe.png")
    (data / "nowhere.png").symlink_to(tmp_path / "missing")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(data / "socket.dcm"))
        problems, done = segmented(segmenter, data, tmp_path / "out")
    assert done == [str(data / "good.png")]
    names = ["nowhere.png", "pipe.png", "socket.dcm"]
    assert problems == [
        f"{data / name}: is no file but a pipe, a device or a link to nothing" for name in names
    ]


def test_a_pipe_by_name_is_not_waited_for(segmenter, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    problems, done = segmented(segmenter, tmp_path / "pipe.png", tmp_path / "out")
    assert (len(problems), done) == (1, [])


def test_a_name_that_is_no_text_is_skipped(segmenter, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    save(data / "good.png")
    shutil.copy(os.fsencode(data / "good.png"), os.fsencode(data) + b"/bad\xff.png")
    problems, done = segmented(segmenter, data, tmp_path / "out")
    assert done == [str(data / "good.png")]
    assert [with_options(p) for p in problems] == [
        f"{data}/bad\\udcff.png: its name is not UTF-8; rename it"
    ]


def test_links_to_folders_are_followed_once(segmenter, tmp_path):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "b").mkdir()
    save(data / "a" / "one.png")
    for name, target in (("loop", "."), ("again", "a"), ("a/up", ".."), ("b/across", "../a")):
        (data / name).symlink_to(target)
    (data / "itself").symlink_to("itself")
    problems, done = segmented(segmenter, data, tmp_path / "out")
    assert (problems, done) == ([], [str(data / "a" / "one.png")])


def test_a_folder_that_cannot_be_read_is_named(segmenter, tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "closed").mkdir(parents=True)
    save(data / "good.png")
    listed = Path.iterdir

    def iterdir(path):
        if path.name == "closed":  # the tests may run as one who may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    problems, done = segmented(segmenter, data, tmp_path / "out")
    assert done == [str(data / "good.png")]
    assert len(problems) == 1
    assert problems[0].startswith(f"{data / 'closed'}: cannot be read")


def test_folders_lie_deeper_than_functions_can_be_nested(segmenter, tmp_path):
    deep = tmp_path / "data"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    bottom = deep.joinpath(*["d"] * 1200)
    save(bottom / "one.png")
    problems, done = segmented(segmenter, deep, tmp_path / "out")
    # Python's own removal of trees, which clears up after tests, calls itself for each folder.
    run(["rm", "-rf", deep, tmp_path / "out" / "bright"])
    assert (problems, done) == ([], [str(bottom / "one.png")])


def test_text_of_others_is_no_formula(segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+2.png", "@SUM(A1).png", "+1.png", "-1.png", "plain.png"]
    for name in names:
        save(name)
    predict(segmenter, [Path(n) for n in names], Path("out"), console=QUIET)
    rows = Path("out/measurements.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [*(f"'{name}" for name in names[:4]), names[4]]


def test_a_terminal_is_told_nothing_by_a_name(finished_run, tmp_path):
    (tmp_path / "clear\x1b[2J.png").write_text("no image")
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["predict", str(finished_run[0]), str(tmp_path), "--out", str(out)]
    )
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert r"clear\x1b[2J.png: cannot be read" in result.output


@pytest.mark.parametrize("zooms", [(np.nan, 1, 1), (1, np.inf, 1), (0, 0, 0)])
def test_a_nifti_file_of_strange_zooms_stops_no_others(segmenter, tmp_path, zooms):
    data = tmp_path / "data"
    data.mkdir()
    volume = nibabel.Nifti1Image(np.zeros((6, 5, 2), np.uint8), np.eye(4))
    content = bytearray(volume.to_bytes())
    content[80:92] = np.array(zooms, "<f4").tobytes()  # pixdim[1:4]
    (data / "a.nii").write_bytes(content)
    save(data / "b.png")
    problems, done = segmented(segmenter, data, tmp_path / "out", overlays=True)
    assert str(data / "b.png") in done
    assert len(problems) + len([d for d in done if d.endswith(".nii")]) in (1, 2)
    assert all(p.startswith(f"{data / 'a.nii'}: ") for p in problems)


# ---- memory ---------------------------------------------------------------------------------

SEGMENT = """
import resource, sys
from pathlib import Path
import torch
from rich.console import Console
from tcseg.runs.model import Model
from tcseg.use.predict import predict
from tcseg.use.segmenter import Segmenter

class Levels(torch.nn.Module):
    def forward(self, images):
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([grey, grey / 2, 1 - grey, grey / 3, 0 * grey, 0.4 + 0 * grey], dim=1)

classes, values = ("a", "b", "c", "d", "e"), eval(sys.argv[3])
model = Model("unet", "float32", classes, channels=1, size=256, values=values)
segmenter = Segmenter(Levels(), model, torch.device("cpu"))

def peak(name):
    predict(segmenter, [Path(name)], Path(sys.argv[2]), consistency=False, console=Console())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak(sys.argv[1] + "/small.png")
print((peak(sys.argv[1] + "/large.png") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("values", [None, (1, 2, 3, 4, 5)])
def test_memory_is_some_bytes_a_pixel(tmp_path, values):
    side = 4000
    Image.new("L", (16, 16), 100).save(tmp_path / "small.png")
    Image.new("L", (side, side), 100).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 50_000
    result = python("-c", SEGMENT, tmp_path, tmp_path / "out", values)
    assert result.returncode == 0, result.stderr
    # 18 bytes for each pixel, and 150 MiB for an overlay, which is no larger for larger images.
    assert int(result.stdout.split()[-1]) < 32 * side**2


# ---- files of a run -------------------------------------------------------------------------

MODEL = {
    "network": "unet",
    "precision": "float32",
    "classes": ["heart", "lung"],
    "channels": 1,
    "size": 64,
    "values": None,
    "spacing": [1, 2.0],
}


@pytest.mark.parametrize(
    "change",
    [
        {"network": ".."},
        {"network": ""},
        {"network": 3},
        {"precision": "float128"},
        {"classes": ["heart", "heart"]},
        {"classes": []},
        {"classes": "heart"},
        {"classes": ["\x1b[2J"]},
        {"channels": -1},
        {"channels": 10**9},
        {"channels": True},
        {"size": 0},
        {"size": 33},
        {"size": 10**9},
        {"size": "64"},
        {"values": [1]},
        {"values": [1, 1]},
        {"values": [0, 1]},
        {"values": [1, 10**9]},
        {"spacing": [0, 1]},
        {"spacing": [1]},
        {"spacing": [1, "x"]},
    ],
    ids=str,
)
def test_a_description_that_cannot_be_is_one_line(tmp_path, change):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(MODEL))
    assert Model.load(tmp_path).spacing == (1.0, 2.0)
    path.write_text(json.dumps(MODEL | change))
    with pytest.raises(RunError, match=r"model.json: broken \([^\n]+\); train the run again"):
        Model.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"\xff", b"", b"nan", b"3"]
)
@pytest.mark.parametrize("name", ["model.json", "summary.json", "split.json"])
def test_what_is_no_such_file_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    folder = RunFolder(tmp_path)
    read = {
        "model.json": lambda: Model.load(tmp_path),
        "summary.json": folder.summary,
        "split.json": folder.split_record,
    }[name]
    with pytest.raises(RunError, match=f"^[^\n]*{name}[^\n]*$"):
        read()


def paths(value, path=()):
    """Yield the way to each thing in nested dictionaries."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield (*path, name)
            yield from paths(item, (*path, name))


def test_a_summary_of_wrong_types_is_one_line(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    summary = json.loads((run / "summary.json").read_text())
    shown = ("pretrained_test", "test", "seconds", "pretrain_steps", "method", "labelled", "size")
    known = ("miou", "miou_std", "iou", "dice", "macd_mm", "missed")
    tried = 0
    for path in paths(summary):
        if path[0] not in shown or len(path) > 2 or (len(path) == 2 and path[1] not in known):
            continue
        broken = copy.deepcopy(summary)
        place = broken
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = [{"x": 1}]
        (run / "summary.json").write_text(json.dumps(broken))
        result = CliRunner().invoke(main, ["report", str(run), "--out", str(tmp_path / "r.html")])
        assert isinstance(result.exception, SystemExit), (path, result.exception)
        assert result.exit_code == 1
        assert "summary.json" in result.output
        tried += 1
    assert tried > 15


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "long"},
        {"step": 10**6},
        {"step": -1},
        {"best_miou": None},
        {"best": {"conv.weight": torch.zeros(3)}},
        {"best": [1]},
        {"pretrained": {"x": 1}},
        {"network": {}},
        {"optimizer": 3},
        {"generator": torch.zeros(3)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_that_cannot_be_is_refused_before_any_step(finished_run, tmp_path, change):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    (run / "summary.json").unlink()
    folder = RunFolder(run)
    folder.save_checkpoint({**folder.load_checkpoint(), **change})
    with pytest.raises(RunError, match=r"checkpoint.pt: incomplete, or of another network"):
        train(TINY, run, True)


def test_a_table_of_figures_with_words_in_it_is_drawn_without(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([*lines, ",".join(["7", *["=cmd"] * 20])]) + "\n")
    result = CliRunner().invoke(main, ["report", str(run), "--out", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_too_little_memory_is_one_line(monkeypatch, tmp_path, error):
    def train(*arguments, **options):
        raise error

    monkeypatch.setattr("tcseg.training.session.train", train)
    result = CliRunner().invoke(main, ["train", "--size", "32", "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "Error: out of memory" in result.output
    assert "--batch-size" in result.output


@pytest.mark.parametrize("line", ["9" * 5000 + " liver", "liver " + "9" * 5000 + " 0 0"])
def test_endless_numbers_in_classes_are_one_line(tmp_path, line):
    (tmp_path / "classes.txt").write_text(line)
    with pytest.raises(DataError, match=r"classes.txt: .* is neither a value and a name"):
        read_legend(tmp_path / "classes.txt")
