"""A run folder is data, whoever made it: nothing in it is run, followed or believed."""

import dataclasses
import json
import shutil
import sys

import pytest
from click.testing import CliRunner
from processes import python
from tiny import TINY

import tcseg
from tcseg.cli import main
from tcseg.errors import RunError
from tcseg.runs.folder import RunFolder
from tcseg.training.session import train

CODE = """
from pathlib import Path
from monai.networks.nets import BasicUNet
Path(__file__).with_name("ran").touch()
def net(in_channels, out_channels):
    return BasicUNet(2, in_channels, out_channels, features=(16, 16, 32, 64, 128, 16), norm="batch")
"""


@pytest.fixture
def foreign(finished_run, tmp_path):
    """A run whose files name the code that lies beside them as its network."""
    run = tmp_path / "foreign"
    shutil.copytree(finished_run[0], run)
    (run / "payload.py").write_text(CODE)
    model = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**model, "network": "payload.net"}))
    config = (run / "config.toml").read_text().replace('"unet"', '"payload.net"')
    (run / "config.toml").write_text(config)
    return run


def commands(run, out):
    return {
        "predict": ["predict", str(run), str(run / "test.png"), "--out", str(out)],
        "evaluate": ["evaluate", str(run)],
        "export": ["export", str(run), "--format", "pt2", "--out", str(out / "net.pt2")],
        "train from its options": [
            *("train", "--config", str(run / "config.toml"), "--out", str(out / "new"))
        ],
        "continue it": ["train", "--resume", "--out", str(run)],
    }


@pytest.mark.parametrize("name", commands(RunFolder("").path, RunFolder("").path))
def test_no_command_runs_code_that_a_run_names(foreign, tmp_path, monkeypatch, name):
    # As `python -m tcseg` beside it would: its folder is where modules are looked for.
    monkeypatch.syspath_prepend(foreign)
    arguments = commands(foreign, tmp_path)[name]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert "payload.net" in result.output
    assert "--network payload.net" in result.output.replace("\n", " ")
    assert not (foreign / "ran").exists()
    assert "payload" not in sys.modules


def test_a_report_goes_without_the_network_that_is_not_trusted(foreign, tmp_path):
    result = CliRunner().invoke(main, ["report", str(foreign), "--out", str(tmp_path / "r.html")])
    assert result.exit_code == 0
    assert "code that would be run" in result.output
    assert not (foreign / "ran").exists()


def test_code_inside_the_run_is_never_run(foreign, monkeypatch):
    monkeypatch.syspath_prepend(foreign)
    with pytest.raises(RunError, match="code in the folder of the run itself"):
        tcseg.load(foreign, "cpu", network="payload.net")
    assert not (foreign / "ran").exists()


@pytest.mark.slow
def test_a_process_started_in_the_run_does_not_run_its_code(foreign):
    result = python(
        *("-m", "tcseg", "predict", ".", "test.png", "--out", "found", "--network", "payload.net"),
        cwd=foreign,
    )
    assert result.returncode == 1
    assert "code in the folder of the run itself" in result.stderr.replace("\n", " ")
    assert not (foreign / "ran").exists()


def test_a_network_that_the_caller_names_is_built(foreign, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    shutil.move(foreign / "payload.py", tmp_path / "code" / "payload.py")
    monkeypatch.syspath_prepend(tmp_path / "code")
    with pytest.raises(RunError, match=r"its network is 'payload.net', not 'other.net'"):
        tcseg.load(foreign, "cpu", network="other.net")
    try:
        segmenter = tcseg.load(foreign, "cpu", network="payload.net")
    finally:
        sys.modules.pop("payload", None)
    assert segmenter.model.network == "payload.net"
    assert (tmp_path / "code" / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(finished_run, tmp_path, value):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    folder = RunFolder(run)
    weights = folder.load_weights()
    key = next(name for name, value in weights.items() if value.is_floating_point())
    weights[key].view(-1)[0] = value
    folder.save_weights(weights)
    with pytest.raises(RunError, match="not finite"):
        tcseg.load(run, "cpu")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("do not empty me")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(precious)
    with pytest.raises(RunError, match="is a link to another file"):
        train(dataclasses.replace(TINY, pretrain_steps=1, steps=1), run, False)
    assert precious.read_text() == "do not empty me"
