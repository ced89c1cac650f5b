"""Predictions that processes share, or that were stopped: each file once, none lost, one table."""

import contextlib
import signal
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from processes import started, wait_until
from rich.console import Console

from tcseg.cli import main
from tcseg.errors import RunError
from tcseg.runs.model import Model
from tcseg.use import predict as module
from tcseg.use.predict import predict
from tcseg.use.segmenter import Segmenter
from tcseg.use.sharing import Ledger

KEYS = [f"{number:016x}" for number in range(60)]
# Takes keys, each for a moment, and notes them; imports no torch, so it starts at once.
SHARE = """
import sys, time
from pathlib import Path
from tcseg.use.sharing import Ledger

out, keys = Path(sys.argv[1]), [f"{number:016x}" for number in range(60)]
ledger = Ledger(out, sys.argv[2])
for key, number in ledger.take({key: int(key, 16) for key in keys}):
    with open(out / "log", "a") as log:
        log.write(f"{number}\\n")
    time.sleep(0.01)
    ledger.write(key, (f"row {number}\\n", []))
assert set(ledger.records) >= set(keys)
"""


class Bright(torch.nn.Module):
    """Finds what is brighter than a level."""

    def __init__(self, level=0.5):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, images):
        grey = images.mean(dim=1, keepdim=True) + 0.5 - self.level
        return torch.cat([grey, 1 - grey], dim=1)


def segmenter(level=0.5):
    model = Model("unet", "float32", ("bright",), channels=1, size=32)
    return Segmenter(Bright(level), model, torch.device("cpu"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "abcd":
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def segmented(monkeypatch):
    """Names of the files that go through a network, in a list that fills."""
    names = []
    segment = module._Segmentation._segment

    def noted(self, files):
        names.append(files[0][0].name)
        return segment(self, files)

    monkeypatch.setattr(module._Segmentation, "_segment", noted)
    return names


def run(data, out, level=0.5, **options):
    console = Console(quiet=True)
    options = {"consistency": False, "overlays": False, "console": console} | options
    problems = predict(segmenter(level), [data], out, **options)
    rows = (out / "measurements.csv").read_text().splitlines()[1:]
    return problems, [row.split(",")[0].rpartition("/")[2] for row in rows]


def test_what_was_stopped_goes_on_with_what_is_missing(data, tmp_path, segmented, monkeypatch):
    write = Ledger.write

    def stopped(self, key, record):
        if len(segmented) == 3:
            raise KeyboardInterrupt
        write(self, key, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "write", stopped)
        run(data, tmp_path / "out")
    (lines,) = (tmp_path / "out").glob(".measurements.*.jsonl")
    lines.write_bytes(lines.read_bytes() + b'["0123456789abcdef", ["torn')
    names = ["a.png", "b.png", "c.png", "d.png"]
    assert run(data, tmp_path / "out") == ([], names)
    assert segmented == ["a.png", "b.png", "c.png", "c.png", "d.png"]
    assert run(data, tmp_path / "out") == ([], names)
    assert len(segmented) == 5


def test_only_what_changed_is_done_again(data, tmp_path, segmented):
    run(data, tmp_path / "out")
    segmented.clear()
    Image.fromarray(np.full((9, 8), 200, np.uint8)).save(data / "b.png")
    (data / "c.png").unlink()
    (data / "e.png").write_bytes(b"hello")
    for _ in range(2):  # what cannot be read is tried, and told, each time
        (problem,), rows = run(data, tmp_path / "out")
        assert problem.startswith(f"{data / 'e.png'}: cannot be read")
        assert rows == ["a.png", "b.png", "d.png"]
    assert segmented == ["b.png", "e.png", "e.png"]


@pytest.mark.parametrize(
    "change", [{"level": 0.9}, {"postprocess": True}, {"spacing": 2.0}], ids=str
)
def test_with_another_network_or_option_all_is_done_again(data, tmp_path, segmented, change):
    run(data, tmp_path / "out")
    run(data, tmp_path / "out", **change)
    run(data, tmp_path / "out")  # its masks were replaced
    assert segmented == ["a.png", "b.png", "c.png", "d.png"] * 3


def test_processes_share_and_a_lost_one_loses_nothing(tmp_path):
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", SHARE, tmp_path, "5eed"]
        ones = [stack.enter_context(started(command)) for _ in range(3)]
        log = tmp_path / "log"
        wait_until(
            lambda: log.exists() and len(log.read_text().split()) > 10,
            lambda: ones[0].poll() is None,
        )
        ones[0].send_signal(signal.SIGKILL)
        assert [one.wait(60) for one in ones] == [-signal.SIGKILL, 0, 0]
    done = [int(word) for word in log.read_text().split()]
    assert sorted(set(done)) == list(range(60))
    assert len(done) in (60, 61)  # what the lost one had in hand may have been done twice
    ledger = Ledger(tmp_path, "5eed")
    assert {key: rows for key, (rows, _) in ledger.records.items()} == {
        key: f"row {int(key, 16)}\n" for key in KEYS
    }
    ledger.close()


def test_others_of_other_options_are_not_disturbed(tmp_path):
    taken = "import sys, time; from pathlib import Path; from tcseg.use.sharing import Ledger\n"
    taken += "ledger = Ledger(Path(sys.argv[1]), 'aa'); print('ready', flush=True); time.sleep(60)"
    with started([sys.executable, "-c", taken, tmp_path], stdout=-1) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(RunError, match="other processes write to it, with another network"):
            Ledger(tmp_path, "bb")
    Ledger(tmp_path, "bb").close()
    assert [path.name[:16] for path in tmp_path.glob("*.jsonl")] == [".measurements.bb"]


def test_the_command_says_what_is_done_already(finished_run, data, tmp_path):
    command = ["predict", finished_run[0], data, "--out", tmp_path / "out", "--no-consistency"]
    first, second = (CliRunner().invoke(main, list(map(str, command))) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert "already" not in first.output
    assert "4 of 4 are already segmented; to do them again, remove" in second.output
