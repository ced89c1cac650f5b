"""Run folders: what is refused, what survives a kill, what can be read back."""

import json
import math
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import python, started

from tcseg.errors import RunError, RunFinished, RunUnfinished
from tcseg.io import files
from tcseg.runs.checkpoint import load_checkpoint
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.runs.metrics_file import MetricsFile

CONFIG = Config(size=32, steps=4)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, resume=False) as run:
        yield run


def test_a_new_run_holds_its_config(run):
    assert RunFolder(run.path).config() == CONFIG
    assert not run.finished


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / ".config.toml.1.tmp").touch()  # left by a kill
    RunFolder.create(tmp_path, CONFIG, resume=False)
    assert RunFolder(tmp_path).config() == CONFIG


def test_what_a_kill_left_goes_with_the_next_resume_under_the_lock(run):
    left = run.path / ".checkpoint.pt.7.tmp"
    left.touch()  # of the process that trains there now
    with pytest.raises(RunError, match="being trained in"):
        RunFolder.create(run.path, CONFIG, resume=True)
    assert left.exists()
    run.close()
    with RunFolder.create(run.path, CONFIG, resume=True):
        assert not left.exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_none(run, monkeypatch):
    opened = os.open

    def open_late(path, *arguments):  # just before the owner, on ending, removes the file
        file = opened(path, *arguments)
        run.close()
        return file

    with monkeypatch.context() as patch, pytest.raises(RunError, match="being trained in"):
        patch.setattr(os, "open", open_late)
        RunFolder.create(run.path, CONFIG, resume=True)
    RunFolder.create(run.path, CONFIG, resume=True).close()
    assert not (run.path / ".lock").exists()


def test_a_run_that_never_began_may_begin_again(run):
    # Such as one stopped by an option that does not fit the data.
    other = replace(CONFIG, labelled=7)
    run.close()
    RunFolder.create(run.path, other, resume=False)
    assert run.config() == other


def test_an_unfinished_run_is_only_continued_when_asked(run):
    run.metrics.append({"step": 1, "loss": 0.5})
    before = contents(run.path)
    with pytest.raises(RunError, match=r"unfinished run; continue it with `resume`, or .* `out`"):
        RunFolder.create(run.path, CONFIG, resume=False)
    assert contents(run.path) == before
    run.close()
    going_on = RunFolder.create(run.path, CONFIG, resume=True)
    with pytest.raises(RunError, match="is being trained in by another process"):
        RunFolder.create(run.path, CONFIG, resume=True)
    going_on.close()


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_left_alone(run, resume):
    run.save_summary({"test": {"miou": 0.5}})
    before = contents(run.path)
    error, message = (RunFinished, "finished already") if resume else (RunError, "choose another")
    with pytest.raises(error, match=message):
        RunFolder.create(run.path, CONFIG, resume=resume)
    assert contents(run.path) == before


@pytest.mark.parametrize("finished", [False, True])
def test_resuming_with_other_options_names_them(run, finished):
    if finished:
        run.save_summary({"test": {"miou": 0.5}})
    with pytest.raises(RunError) as error:
        RunFolder.create(run.path, replace(CONFIG, steps=5, seed=1), resume=True)
    assert not isinstance(error.value, RunFinished)
    assert "`steps`: 5 here, 4 there" in str(error.value)
    assert "`seed`: 1 here, 0 there" in str(error.value)


@pytest.mark.parametrize("exists", [False, True])
def test_nothing_to_resume(tmp_path, exists):
    path = tmp_path / "run"
    if exists:
        path.mkdir()
    with pytest.raises(RunError, match="no run to resume; leave out `resume`"):
        RunFolder.create(path, CONFIG, resume=True)
    assert path.exists() == exists


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="not empty and holds no run"):
        RunFolder.create(tmp_path, CONFIG, resume=False)
    assert list(contents(tmp_path)) == ["thesis.txt"]


def test_missing_parent_folders_are_made(tmp_path):
    run = RunFolder.create(tmp_path / "missing" / "run", CONFIG, resume=False)
    assert run.config() == CONFIG


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        message = rf"cannot be written \({tmp_path / 'run'} is no folder\); choose another `out`"
        with pytest.raises(RunError, match=message):
            RunFolder(path).check_free()


def test_a_read_only_folder_is_found_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(RunError, match=rf"cannot be written \({tmp_path} is read-only\)"):
        RunFolder(tmp_path / "missing" / "run").check_free()
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_parent_folder(tmp_path, monkeypatch):
    def refuse(path, mode=0o777):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)  # permissions do not bind root, so no chmod
    with pytest.raises(RunError, match=r"cannot be written \(Permission denied\); choose another"):
        RunFolder.create(tmp_path / "run", CONFIG, resume=False)


def test_a_read_only_run_is_not_resumed(run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="read-only"):
        RunFolder.create(run.path, CONFIG, resume=True)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: it has no config.toml"):
        RunFolder(tmp_path).config()
    with pytest.raises(RunError, match="is not a run: there is no such folder"):
        RunFolder(tmp_path / "missing").load_weights()


def test_figures_go_to_csv_and_tensorboard(run):
    run.log({"step": 1, "phase": "pre-training", "loss": 0.5})
    run.log({"step": 2, "phase": "semitc", "loss": 0.25, "consistency": 0.125})
    run.close()
    assert (run.path / "metrics.csv").read_text() == (
        "step,phase,loss,consistency\n1,pre-training,0.5,\n2,semitc,0.25,0.125\n"
    )
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(run.path)).Reload()
    assert [(e.step, e.value) for e in accumulator.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path, cut):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        metrics.append({"step": step, "loss": step / 8})
    whole = metrics.path.read_bytes()
    assert whole.endswith(b"\n20,2.5\n30,3.75\n")
    metrics.path.write_bytes(whole[:-cut])
    kept = [{"step": "10", "loss": "1.25"}, {"step": "20", "loss": "2.5"}][: 2 if cut < 9 else 1]
    assert metrics.rows() == kept
    metrics.rewind(20)
    metrics.append({"step": 30, "loss": 1.5, "miou": 0.5})
    assert metrics.rows() == [*kept, {"step": "30", "loss": "1.5", "miou": "0.5"}]


def test_rewinding_drops_what_is_beyond_the_checkpoint(run):
    for step in (1, 2, 3, 4):
        run.metrics.append({"step": step, "loss": 0.5})
    run.close()
    resumed = RunFolder.create(run.path, CONFIG, resume=True)
    resumed.rewind(2)
    resumed.log({"step": 3, "loss": 0.25})
    resumed.close()
    assert [(row["step"], row["loss"]) for row in run.metrics.rows()] == [
        ("1", "0.5"),
        ("2", "0.5"),
        ("3", "0.25"),
    ]


def test_rewinding_a_run_without_figures_does_nothing(run):
    run.rewind(0)
    assert run.metrics.rows() == []


def test_a_checkpoint_is_read_back(run):
    network = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adadelta(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    random = np.random.default_rng(3)
    state = {
        "step": 3,
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": {"numpy": random.bit_generator.state, "torch": torch.get_rng_state()},
        "best": [0.5, None, "semitc", (1, True)],
    }
    run.save_checkpoint(state)
    loaded = run.load_checkpoint()
    assert loaded["step"] == 3
    assert loaded["best"] == state["best"]
    assert loaded["random"]["numpy"] == state["random"]["numpy"]
    torch.testing.assert_close(loaded["network"], dict(network.state_dict()))
    torch.optim.Adadelta(network.parameters()).load_state_dict(loaded["optimiser"])


def test_a_run_without_checkpoint_has_none(run):
    assert run.load_checkpoint() is None


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ({"step": np.int64(1)}, "numpy"),
        ({"step": 1, "best": [0.5, np.float64(0.5)]}, "numpy"),
        ({"step": 1, "config": CONFIG}, "tcseg.runs.config.Config"),
    ],
)
def test_a_checkpoint_that_could_not_be_read_back_is_refused(run, state, kind):
    with pytest.raises(TypeError, match=f"must be of tensors, numbers, strings .* got {kind}"):
        run.save_checkpoint(state)
    assert run.load_checkpoint() is None


class Dangerous:
    """Pickled, it would create a file when loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_runs_no_code(run, tmp_path):
    torch.save({"step": Dangerous(tmp_path / "hacked")}, run.path / "checkpoint.pt")
    with pytest.raises(RunError, match="broken or not a checkpoint"):
        run.load_checkpoint()
    assert not (tmp_path / "hacked").exists()


def test_a_checkpoint_that_was_compressed_is_refused(run):
    """It could take any memory: `torch.save` compresses nothing."""
    run.save_checkpoint({"step": 1, "weight": torch.zeros(10**5)})
    path = run.path / "checkpoint.pt"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert len(torch.load(path, weights_only=True)["weight"]) == 10**5
    with pytest.raises(RunError, match="broken or not a checkpoint"):
        run.load_checkpoint()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_a_broken_checkpoint_is_named(run, content):
    path = run.path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(RunError) as error:
        run.load_checkpoint()
    assert str(error.value).startswith(f"{path}: broken")


def test_a_checkpoint_cut_short_is_named(run):
    run.save_checkpoint({"step": 1, "weights": torch.ones(1000)})
    path = run.path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(RunError, match="broken"):
        run.load_checkpoint()


@pytest.mark.parametrize("foreign", [{"model": {}}, [1, 2], torch.ones(2), {"step": "x"}])
def test_the_checkpoint_of_another_program_is_named(tmp_path, foreign):
    torch.save(foreign, tmp_path / "foreign.pt")
    with pytest.raises(RunError, match="not a checkpoint of tcseg"):
        load_checkpoint(tmp_path / "foreign.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(RunError, match=r"missing.pt: cannot be read \(No such file"):
        load_checkpoint(tmp_path / "missing.pt")


def test_weights_are_read_back(run):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    network.to(memory_format=torch.channels_last)
    run.save_weights(network.state_dict())
    loaded = run.load_weights()
    assert list(sorted(loaded)) == sorted(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype


def test_weights_that_share_memory_are_saved(run):
    shared = torch.arange(4.0)
    run.save_weights({"a": shared, "b": shared[:2]})
    assert torch.equal(run.load_weights()["b"], shared[:2])


def test_missing_and_broken_weights_are_named(run):
    with pytest.raises(RunError, match=r"has no weights yet; continue the run with `resume`"):
        run.load_weights()
    (run.path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(RunError, match=r"model.safetensors: broken"):
        run.load_weights()


def test_a_summary_is_json_that_any_program_reads(run):
    run.save_summary({"test": {"miou": 0.5, "heart": math.nan}, "each": [(math.inf, 1)]})
    text = (run.path / "summary.json").read_text()
    wanted = {"test": {"miou": 0.5, "heart": None}, "each": [[None, 1]]}
    assert json.loads(text, parse_constant=pytest.fail) == wanted == run.summary()
    assert run.finished


def test_missing_and_broken_summaries_are_named(run):
    with pytest.raises(RunUnfinished, match=r"not a finished run: .*; continue it with `resume`"):
        run.summary()
    for content, what in (("{", "broken"), ("[]", "broken"), ("{}", "not a summary")):
        (run.path / "summary.json").write_text(content)
        with pytest.raises(RunError, match=f"summary.json: {what}.*delete it and continue"):
            run.summary()
        # Neither a finished run, which would be skipped, nor a free folder, to be overwritten.
        for resume in (True, False):
            with pytest.raises(RunError, match=f"summary.json: {what}"):
                RunFolder.create(run.path, CONFIG, resume=resume)


def test_a_summary_alone_is_no_run(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunError, match="not empty and holds no run; choose another `out`"):
        RunFolder.create(tmp_path, CONFIG, resume=False)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(run, monkeypatch):
    run.save_checkpoint({"step": 1})
    before = contents(run.path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.save_checkpoint({"step": 2})
    assert contents(run.path) == before


def test_a_read_only_disk_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system", "something else")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(files.Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as error:
        files.write_atomically(tmp_path / "a.json", b"{}")
    assert error.value.filename == str(tmp_path / "a.json")


def test_a_kill_during_a_write_leaves_a_whole_checkpoint(run):
    # A child writes checkpoints without end, is killed in the midst, and what is there is whole.
    code = (
        "import sys, torch\n"
        "from tcseg.runs.folder import RunFolder\n"
        "run, step = RunFolder(sys.argv[1]), 0\n"
        "while True:\n"
        "    step += 1\n"
        "    run.save_checkpoint({'step': step, 'weights': torch.full((200_000,), float(step))})\n"
        "    run.metrics.append({'step': step, 'loss': 0.5})\n"
        "    print(step, flush=True)\n"
    )
    command = [sys.executable, "-c", code, run.path]
    with started(command, stdout=subprocess.PIPE) as child:
        for line in child.stdout:
            if int(line) == 5:
                child.kill()
                break
    state = run.load_checkpoint()
    assert state["step"] >= 5
    assert torch.equal(state["weights"], torch.full((200_000,), float(state["step"])))
    steps = [int(row["step"]) for row in run.metrics.rows()]
    assert steps == list(range(1, len(steps) + 1))


def test_reading_a_run_needs_no_torch():
    code = (
        "import sys, tcseg.runs.folder; assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (b"step,loss\n1,\xff\n2,0.5\n", ["1", "2"]),
        (b"step,l\xff\n1,0.5\n", ["1"]),
        (b"step,loss\n1,a\x0bb\n2,a\xe2\x80\xa8b\n", ["1", "2"]),
        (b"step\x0bx,step,loss\n1,1,2\n", ["1"]),
        (b"step,loss\n" + b"9" * 5000 + b",1\n3,1\n", ["3"]),
    ],
)
def test_figures_that_others_have_damaged_are_read_and_continued(tmp_path, content, steps):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.path.write_bytes(content)
    assert [row["step"] for row in metrics.rows()] == steps
    metrics.rewind(5)
    metrics.append({"step": 6, "new": 0.5})
    assert [row["step"] for row in metrics.rows()] == [*steps, "6"]
    assert metrics.rows()[-1] == {"step": "6", "new": "0.5"}


@pytest.mark.parametrize("content", [b"step,loss\n1," + b"x" * 200_000 + b"\n", b"step,a\rb\n"])
def test_figures_that_are_no_table_are_one_line(tmp_path, content):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.path.write_bytes(content)
    with pytest.raises(RunError, match=r"^[^\n]*metrics.csv: broken [^\n]*$"):
        metrics.rows()
