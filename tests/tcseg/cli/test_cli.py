"""The commands: help at once, one line for each expected error, and what they print."""

import itertools
import json
import os
import shlex
import sys
import types
import warnings

import pytest
import torch
from click.testing import CliRunner
from processes import python

import tcwarp
from tcseg.cli import main
from tcseg.data import load_dataset, make_split, split_record
from tcseg.errors import DataError, RunError
from tcseg.evaluation.evaluate import evaluate
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model

pytestmark = pytest.mark.usefixtures("phantoms_made_once")


def tcseg(*arguments):
    wide = {"COLUMNS": "200"}  # so that no line of a table is wrapped
    return CliRunner(env=wide).invoke(main, [str(a) for a in arguments])


def module(name, **members):
    made = types.ModuleType(name)
    made.__dict__.update(members)
    return made


@pytest.fixture
def train(monkeypatch):
    """Stands for the training: notes its arguments, or raises what `train.error` is set to."""

    def run(config, out, resume, stop):
        run.calls.append((config, out, resume))
        if run.error:
            raise run.error

    run.calls, run.error = [], None
    monkeypatch.setitem(
        sys.modules, "tcseg.training.session", module("tcseg.training.session", train=run)
    )
    monkeypatch.delenv("TCSEG_DEBUG", raising=False)
    return run


class Thresholds(torch.nn.Module):
    """A network so simple that its answer is known: class c where the image exceeds level[c]."""

    def __init__(self, classes):
        super().__init__()
        self.level = torch.nn.Parameter(torch.linspace(0.2, 0.7, classes + 1))

    def forward(self, images):
        return (images > self.level.view(1, -1, 1, 1)).float()


@pytest.fixture
def network_module(monkeypatch):
    def build_network(name, classes, *options):
        return Thresholds(classes)

    monkeypatch.setattr("tcseg.runs.model.build_network", build_network)


@pytest.fixture(scope="module")
def phantom(phantoms_made_once):
    return load_dataset("phantom", size=32)


# Help.


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["doctor"]])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from tcseg.cli import main\n"
        "try:\n"
        f"    main({[*command, '--help']})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'monai', 'numpy', 'matplotlib', 'rich', 'tcwarp'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "Usage: " in result.stdout
    if command != ["doctor"]:
        assert "\nExamples:\n  tcseg" in result.stdout.replace(
            "\n  Examples:\n    ", "\nExamples:\n  "
        )


def test_python_m_is_the_command():
    result = python("-m", "tcseg", "--version")
    assert result.returncode == 0
    assert result.stdout.startswith("tcseg, version ")


def test_every_option_of_a_run_is_an_option_of_the_command():
    text = tcseg("train", "--help").output
    names = (
        "data root size method labelled split seed pretrain-steps steps batch-size recipe device "
        "config out resume network consistency-weight learning-rate validate-every "
        "checkpoint-every pretrained"
    )
    for name in names.split():
        assert f"--{name} " in text
    assert "semitc+" in text


# Options.


def test_defaults_then_file_then_command_line(train, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text("steps = 7\nseed = 3\nroot = 'kept'\n")
    out = tmp_path / "run"
    # The default, said aloud, overrides the file.
    result = tcseg("train", "--config", file, "--seed", 0, "--method", "semitc+", "--out", out)
    assert result.exit_code == 0, result.output
    assert train.calls == [(Config(steps=7, root="kept", method="semitc+"), out, False)]


def test_paths_are_made_absolute(train, tmp_path):
    options = ("--data", "folder", "--root", "data", "--pretrained", "a/b")
    tcseg("train", *options, "--out", tmp_path / "run")
    ((config, _, _),) = train.calls
    assert config.root == os.path.abspath("data")
    assert config.pretrained == os.path.abspath("a/b")


def test_resume_takes_the_options_of_the_run(train, tmp_path):
    RunFolder.create(tmp_path / "run", Config(steps=7, size=64), resume=False)
    tcseg("train", "--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert train.calls == [(Config(steps=7, size=64, device="cpu"), tmp_path / "run", True)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing option '--out'"),
        (["train", "--out", "x", "--size", "100"], "Error: --size must be a multiple of 16"),
        (["train", "--out", "x", "--method", "magic"], "'magic' is not one of 'baseline'"),
        (["train", "--out", "x", "--steps", "many"], "'many' is not a valid integer"),
        (["train", "--out", "x", "--config", "missing.toml"], "'missing.toml' does not exist"),
        (["train", "--out", "x", "--config", "bad.toml"], "Error: bad.toml: unknown option 'step'"),
        (["evaluate", "x", "--on", "training"], "'training' is not one of"),
        (["evaluate", "run", "--device", "gpu"], "Error: --device must be auto, cpu"),
        (["evaluate", "run", "--root", "."], "--root .: the data are phantoms"),
        (["train", "--out", "x", "--root", "."], "not read from a folder; choose --data"),
        (["preview", "--out", "x.png", "--root", "."], "--root"),
        (["data", "check", "--root", "."], "--root .: the data are phantoms"),
        (["data", "splits", "--out", "x.json", "--root", "."], "--root .: the data are phantoms"),
        (["preview", "--out", "x.jpgg"], "x.jpgg does not end in .png"),
        (["data", "check", "--sheet", "x.jpg"], "x.jpg does not end in .png"),
        (["data", "splits", "--out", "x"], "x does not end in .json"),
        (["report", "run", "--out", "x.pdf"], "x.pdf does not end in .html or .htm"),
        (["export", "run", "--format", "onnx", "--out", "x.pt2"], "x.pt2 does not end in .onnx"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_status_2(
    train, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("step = 3")
    RunFolder.create("run", Config(), resume=False)
    result = tcseg(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert train.calls == []


# Errors.


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (RunError("run: broken"), "Error: run: broken\n", 1),
        (DataError("no images"), "Error: no images\n", 1),
        (ValueError("`x_a` must be y"), "Error: --x-a must be y\n", 2),
        (ValueError("one\ntwo"), "Error: one\nError: two\n", 2),
        (PermissionError(13, "Permission denied", "a/b"), "Error: a/b: Permission denied\n", 1),
        (OSError("disk on fire"), "Error: disk on fire\n", 1),
        (OSError(28, "Full", "a/b"), "Error: a/b: Full; make room and try again\n", 1),
        (OSError(28, "Full"), "Error: Full; make room and try again\n", 1),
        (ImportError("no tcwarp"), "Error: no tcwarp; `tcseg doctor` says what is missing\n", 1),
    ],
)
def test_an_expected_error_is_a_line_without_traceback(
    train, tmp_path, monkeypatch, error, line, status
):
    train.error = error
    result = tcseg("train", "--out", tmp_path / "run")
    assert (result.exit_code, result.stderr, result.stdout) == (status, line, "")
    monkeypatch.setenv("TCSEG_DEBUG", "1")
    assert tcseg("train", "--out", tmp_path / "run").exception is error


def test_a_bug_keeps_its_traceback(train, tmp_path):
    train.error = KeyError("bug")
    assert tcseg("train", "--out", tmp_path / "run").exception is train.error


def test_ctrl_c_says_how_to_go_on(train, tmp_path):
    train.error = KeyboardInterrupt()
    early = tcseg("train", "--out", tmp_path / "a run")
    assert (early.exit_code, early.stderr) == (130, "Stopped.\n")
    RunFolder.create(tmp_path / "a run", Config(), resume=False)
    late = tcseg("train", "--out", tmp_path / "a run")
    assert late.exit_code == 130
    assert f"tcseg train --out '{tmp_path / 'a run'}' --resume" in late.stderr


def test_what_needs_a_finished_run_gives_the_command_to_go_on(tmp_path):
    run = tmp_path / "a run"
    config = Config(size=32, network="my.net")
    with RunFolder.create(run, config, resume=False) as folder:
        folder.log({"step": 1})
    way = f"tcseg train --out '{run}' --resume --network my.net\n"
    for words in (
        ("train", "--out", run),
        ("evaluate", run, "--network", "my.net"),
        ("report", run, "--out", tmp_path / "x.html"),
    ):
        result = tcseg(*words)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert result.stderr.endswith(way)


def test_deformations_that_fold_are_told_once_in_words_of_options(monkeypatch, tmp_path):
    def train(config, out, resume, stop):
        for seed in range(3):  # the operator's warnings differ in their numbers
            fields = tcwarp.random_displacement(
                2,
                (32, 32),
                sigma=6.0,
                displacement_std=12.0,
                generator=torch.Generator().manual_seed(seed),
            )
            tcwarp.align(fields[:1], fields[1:])
        warnings.warn("another one", stacklevel=2)

    session = module("tcseg.training.session", train=train)
    monkeypatch.setitem(sys.modules, "tcseg.training.session", session)
    with pytest.warns(UserWarning) as others:
        result = tcseg("train", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert [str(warning.message) for warning in others] == ["another one"]
    assert result.stderr.count("fold") == result.stderr.count("\n") == 1
    assert "smaller --displacement-std" in result.stderr


def test_resuming_a_finished_run_changes_nothing_and_succeeds(train, tmp_path):
    run = RunFolder.create(tmp_path / "run", Config(), resume=False)
    run.save_summary({"test": {}})
    try:
        RunFolder.create(run.path, Config(), resume=True)
    except RunError as error:
        train.error = error
    result = tcseg("train", "--out", run.path, "--resume")
    assert result.exit_code == 0
    assert "is finished already" in result.stdout


# Evaluation.


def test_a_disk_that_fills_up_costs_nothing(tmp_path, monkeypatch):
    """Neither the checkpoint there is nor the way on."""
    options = ["--size", 32, "--batch-size", 2, "--pretrain-steps", 2, "--steps", 1]
    command = ["train", *options, "--validate-every", 3, "--checkpoint-every", 1]
    synchronize, writes = os.fsync, itertools.count()

    def full(descriptor):
        if os.path.getsize(descriptor) > 2**20 and next(writes) == 1:  # the second checkpoint
            raise OSError(28, "No space left on device")
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    run = tmp_path / "run"
    result = tcseg(*command, "--out", run)
    assert result.exit_code == 1
    way_on = f"tcseg train --out {shlex.quote(str(run))} --resume"
    assert f"To continue from the last checkpoint: {way_on}\n" in result.stderr
    wanted = f"Error: {run / 'checkpoint.pt'}: No space left on device; make room and try again\n"
    assert result.stderr.endswith(wanted)
    assert RunFolder(run).load_checkpoint()["step"] == 1
    assert tcseg("train", "--out", run, "--resume").exit_code == 0
    assert RunFolder(run).finished


def test_evaluate_prints_a_table_and_writes_json(network_module, phantom, tmp_path):
    run = RunFolder.create(tmp_path / "run", Config(size=32, split=1), resume=False)
    network = Thresholds(len(phantom.classes))
    run.save_weights(network.state_dict())
    Model.of(run.config(), phantom).save(run.path)
    run.record_split(split_record(phantom, make_split(phantom, 1)), resume=False)
    expected = evaluate(network, phantom, make_split(phantom, 1).validation)
    result = tcseg("evaluate", run.path, "--on", "validation", "--device", "cpu")
    assert result.exit_code == 0, result.output
    for structure in phantom.classes:
        assert structure in result.stdout
    written = json.loads((run.path / "evaluation-validation.json").read_text())
    assert written["on"] == "validation"
    assert written["miou"] == expected["miou"]
    assert [row["id"] for row in written["images"]] == [row["id"] for row in expected["images"]]

    assert tcseg("evaluate", run.path, "--postprocess", "--device", "cpu").exit_code == 0
    processed = json.loads((run.path / "evaluation-test-postprocessed.json").read_text())
    assert processed["postprocess"] is True
    assert len(processed["images"]) == len(make_split(phantom, 1).test)

    result = tcseg("evaluate", run.path, "--original-size", "--on", "validation", "--device", "cpu")
    assert f"{run.path}: 20 validation images at their own size\n" in result.stdout
    original = json.loads((run.path / "evaluation-validation-original.json").read_text())
    assert original["original_size"] is True
    assert original["iou"] == written["iou"]  # phantoms are made at the size of the training


def test_evaluate_of_something_else_is_an_error(network_module, phantom, tmp_path):
    assert "is not a run: it has no config.toml" in tcseg("evaluate", tmp_path).stderr
    assert "is not a run" in tcseg("evaluate", tmp_path / "missing").stderr
    run = RunFolder.create(tmp_path / "run", Config(size=32), resume=False)
    result = tcseg("evaluate", run.path)
    assert (result.exit_code, "has no weights yet" in result.stderr) == (1, True)
    run.save_weights({"other": torch.ones(1)})
    result = tcseg("evaluate", run.path, "--device", "cpu")
    assert (result.exit_code, "has no model.json" in result.stderr) == (1, True)
    Model.of(run.config(), phantom).save(run.path)
    result = tcseg("evaluate", run.path, "--device", "cpu")
    assert result.exit_code == 1
    assert "weights do not fit network 'unet'" in result.stderr


# Demo.


@pytest.mark.slow
def test_a_finished_demo_is_shown_again(tmp_path):
    options = ("--size", 32, "--pretrain-steps", 2, "--steps", 2, "--out", tmp_path)
    first = tcseg("demo", *options)
    assert first.exit_code == 0, first.output
    assert "points of mIOU over the baseline" in first.output
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert {path.name for path in before} >= {"model.safetensors", "summary.json"}
    again = tcseg("demo", *options)
    assert first.output.endswith(again.output)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == before
    other = tcseg("demo", *options, "--steps", 3)
    assert (other.exit_code, "--steps: 3 here, 2 there" in other.stderr) == (1, True)


@pytest.mark.slow
def test_a_demo_of_volumes(tmp_path):
    small = ("--dimensions", 3, "--size", 32, "--pretrain-steps", 1, "--steps", 1)
    result = tcseg("demo", *small, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "Test volumes, 3 labelled training volumes" in result.output
    assert "27 unlabelled volumes and the consistency term" in result.output


# Doctor.


def test_doctor_reports_and_tests_the_operator(monkeypatch):
    monkeypatch.delenv("TCSEG_JSRT_ROOT", raising=False)
    result = tcseg("doctor")
    assert result.exit_code == 0, result.output
    for expected in (
        "torch",
        "threads",
        "compiler",
        "CUDA library",
        "TCSEG_JSRT_ROOT",
        "bfloat16",
        "align",
    ):
        assert expected in result.stdout
    assert "failed" not in result.stdout


def test_doctor_finds_a_wrong_operator(monkeypatch):
    monkeypatch.setattr(tcwarp, "align", lambda t1, t2: t2 - t1)
    result = tcseg("doctor")
    assert result.exit_code == 1
    (line,) = (line for line in result.stdout.splitlines() if "align" in line)
    assert "failed" in line


def test_doctor_works_where_the_extension_does_not(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tcwarp", None)  # makes its import fail
    monkeypatch.setenv("TCSEG_JSRT_ROOT", str(tmp_path / "missing"))
    result = tcseg("doctor")
    assert result.exit_code == 1
    assert "ModuleNotFoundError" in result.stdout
    assert "no such folder" in result.stdout


# Help for all, and completion.


def commands(group=main, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: str(value))
def test_every_command_explains_itself(path, command):
    result = tcseg(*path, "--help")
    assert result.exit_code == 0
    assert command.help
    assert "Examples:" in result.output or path == ("doctor",)
    for option in command.params:
        if option.param_type_name == "option":
            assert option.help, f"{' '.join(path)} {option.name} has no help"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_choices(shell):
    environment = {**os.environ, "_TCSEG_COMPLETE": f"{shell}_source"}
    code = "from tcseg.cli import main; main(prog_name='tcseg')"
    source = python("-c", code, env=environment).stdout
    assert "_TCSEG_COMPLETE" in source
    environment |= {"_TCSEG_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    environment["COMP_WORDS"] = "tcseg train --method sem"
    found = python("-c", code, env=environment).stdout
    assert {"plain,semitc", "plain,semitc+"} <= set(found.split())
