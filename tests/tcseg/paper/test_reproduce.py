"""Grids of trainings: finished once, resumed, merged, put into tables; nothing is ever lost."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
import types

import pytest
from click.testing import CliRunner
from preloaded import run_command
from processes import started, wait_until
from rich.console import Console
from tiny import TINY

import tcseg.paper.processes
from tcseg.cli import main
from tcseg.errors import RunError
from tcseg.paper import tables
from tcseg.paper.grid import Cell, Results
from tcseg.paper.published import TABLE1, TABLE2
from tcseg.paper.reproduce import grid, reproduce

TINY = dataclasses.replace(TINY, labelled=None, pretrain_steps=3, steps=3)
pytestmark = pytest.mark.usefixtures("phantoms_made_once")
PART = {"labelled": [5], "methods": ["baseline", "semitc"], "splits": [0]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small grid that came to its end, in a process started as users' are."""
    out = tmp_path_factory.mktemp("grid") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: {0})  # one thread
        assert reproduce("table1", TINY, out, **PART)
    return out


@pytest.fixture
def quick(monkeypatch, child):
    """Processes that need not import anything."""

    def start(command, *, stdout, **options):
        assert command[1:3] == ["-m", "tcseg"]
        process = child(run_command, stdout.name, command[3:])
        process.poll = lambda: None if process.is_alive() else process.exitcode
        return process

    monkeypatch.setattr(subprocess, "Popen", start)


def names(folder):
    return sorted(path.stem for path in (folder / "results").glob("*.json"))


def copied(finished, folder, *parts):
    """A new grid folder with the options of another one, and some of its parts."""
    folder.mkdir()
    for part in ("options.toml", *parts):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_bytes((finished / part).read_bytes())
    return folder


@pytest.mark.slow
def test_a_finished_grid_has_results_and_tables(finished):
    assert names(finished) == ["l5-s0-baseline", "l5-s0-pretraining", "l5-s0-semitc"]
    text = (finished / "table1.md").read_text()
    assert "| baseline |" in text and "| semitc against baseline |" in text
    assert "paper" not in text.split("##")[1]  # its figures are of other images
    rows = (finished / "table1.csv").read_text().splitlines()
    assert len(rows) == 3
    # All start from one network, which is kept; other checkpoints have served.
    checkpoints = [path.parent.name for path in finished.glob("runs/*/checkpoint.pt")]
    assert checkpoints == ["l5-s0-pretraining"]
    summaries = [json.loads(p.read_text())["summary"] for p in finished.glob("results/*.json")]
    assert len({summary["pretrained_test"]["miou"] for summary in summaries}) == 1


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(finished, capsys, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("r*/**/*")}
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    assert reproduce("table1", TINY, finished, **PART)
    assert {p: p.stat().st_mtime_ns for p in finished.glob("r*/**/*")} == before
    assert "continues" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_lost_result_is_read_from_its_run(finished, tmp_path, quick):
    run = "runs/l5-s0-semitc"
    out = copied(finished, tmp_path / "grid", f"{run}/config.toml", f"{run}/summary.json")
    copied_pretraining = finished / "runs" / "l5-s0-pretraining"
    (out / "runs" / "l5-s0-pretraining").symlink_to(copied_pretraining)
    config = Cell(5, None, 0, "semitc").config(TINY, out)
    config.save(out / run / "config.toml")
    assert reproduce("table1", TINY, out, **(PART | {"methods": ["semitc"]}))
    one, other = (f / "results" / "l5-s0-semitc.json" for f in (finished, out))
    assert json.loads(one.read_text()) == json.loads(other.read_text())


def test_it_stops_in_time_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch, quick):
    out = tmp_path / "grid"
    pretraining = out / "runs" / "l5-s0-pretraining"

    def hours_pass_at_the_first_figures():
        return 7200.0 if (pretraining / "metrics.csv").exists() else 0.0

    clock = types.SimpleNamespace(time=hours_pass_at_the_first_figures, sleep=time.sleep)
    monkeypatch.setattr(tcseg.paper.processes, "time", clock)
    long = dataclasses.replace(TINY, pretrain_steps=2000, checkpoint_every=2000)
    part = PART | {"methods": ["baseline"]}
    assert reproduce("table1", long, out, minutes=60, **part)
    assert "0 of 1 runs are finished; the same command continues" in capsys.readouterr().out
    assert (pretraining / "checkpoint.pt").exists()
    assert names(out) == []


@contextlib.contextmanager
def endless(out, **options):
    """Start a grid that would take hours; gives its process, and the run that has begun."""
    long = dataclasses.replace(TINY, pretrain_steps=100_000, checkpoint_every=100_000)
    long.save(out.parent / "options.toml")
    command = [sys.executable, "-m", "tcseg", "reproduce", "table1", "--out", out]
    command += ["--config", out.parent / "options.toml", "--splits", 0]
    # Of two workers with a thread each one has work: threads gain nothing at this size.
    command += ["--labelled", 5, "--methods", "baseline", "--workers", 2]
    run = out / "runs" / "l5-s0-pretraining"
    with started(command, stdout=subprocess.DEVNULL, **options) as process:
        wait_until((run / "metrics.csv").exists, lambda: process.poll() is None)
        yield process, run


@pytest.mark.slow  # a process of processes
def test_ctrl_c_stops_after_a_checkpoint(tmp_path):
    with endless(tmp_path / "grid", stderr=subprocess.PIPE) as (process, run):
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to all of them
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert (run / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_goes_on(finished, tmp_path, quick):
    out = copied(finished, tmp_path / "grid")
    run = out / "runs" / "l5-s0-pretraining"
    run.mkdir(parents=True)
    Cell(5, None, 0, "pretraining").config(TINY, out).save(run / "config.toml")
    (run / "metrics.csv").write_text("step,loss\n1,0.5\n")
    assert reproduce("table1", TINY, out, **(PART | {"methods": ["baseline"]}))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_trainings_stop_with_the_process_that_started_them(tmp_path, number):
    """Also where Ctrl-C is ignored, as under nohup."""
    with endless(tmp_path / "grid", ctrl_c=False, stderr=subprocess.DEVNULL) as (process, run):
        os.killpg(process.pid, signal.SIGINT)
        process.send_signal(number)
        assert process.wait(timeout=60) in (-signal.SIGKILL, 128 + signal.SIGTERM)
        # The worker leaves the folder's lock when its training has stopped.
        wait_until(lambda: not (run / ".lock").exists(), lambda: True)
        assert (run / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_launcher_stands_before_each_training(tmp_path, capsys):
    script = tmp_path / "launch"
    script.write_text('#!/bin/sh\necho "$@" >> "$1"; shift; exec "$@"\n')
    script.chmod(0o755)
    launcher = [str(script), str(tmp_path / "launched")]
    out = tmp_path / "grid"
    assert reproduce("table1", TINY, out, launcher=launcher, **(PART | {"methods": ["baseline"]}))
    assert names(out) == ["l5-s0-baseline", "l5-s0-pretraining"]
    told = [line for line in capsys.readouterr().out.splitlines() if "Finished: " in line]
    assert told[0].split()[-1] == "l5-s0-pretraining"  # where no bar is seen
    assert len(told) == len(names(out))
    launched = (tmp_path / "launched").read_text().splitlines()
    assert len(launched) == len(names(out))
    assert all(" -m tcseg train --config " in line for line in launched)


def test_a_launcher_that_fails_is_named_with_what_it_said(tmp_path, capsys):
    out = tmp_path / "grid"
    assert not reproduce(
        "table1", TINY, out, launcher=["sh", "-c", "echo no such queue; exit 3"], **PART
    )
    assert "no such queue" in capsys.readouterr().out


@pytest.mark.slow
def test_results_of_other_machines_are_merged(finished, tmp_path, capsys):
    out = tmp_path / "here"
    assert reproduce("table1", TINY, out, minutes=0, merge=[finished], **PART)
    assert "3 new results" in capsys.readouterr().out
    assert names(out) == names(finished)
    assert (out / "table1.md").read_text() == (finished / "table1.md").read_text()
    assert reproduce("table1", TINY, out, minutes=0, merge=[finished], **PART)
    assert "0 new results" in capsys.readouterr().out


@pytest.mark.slow
def test_results_of_other_options_are_refused(finished, tmp_path):
    other = dataclasses.replace(TINY, size=48)
    with pytest.raises(
        RunError, match=r"holds results of runs with other options \(`size`: 48 here, 32"
    ):
        reproduce("table1", other, finished, **PART)
    with pytest.raises(
        RunError, match=r"l5-s0-\w+\.json was run with other options \(`size`: 48 here"
    ):
        reproduce("table1", other, tmp_path / "new", minutes=0, merge=[finished], **PART)
    assert names(tmp_path / "new") == []
    longer = dataclasses.replace(TINY, steps=4)
    with pytest.raises(RunError, match="`steps`: 4 here, 3 there"):
        reproduce("table1", longer, finished, minutes=0, **PART)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{", "[]", '{"summary": {}}', '{"options": {"a": 1}}'])
def test_a_broken_result_is_named_and_nothing_is_lost(finished, tmp_path, content):
    out = copied(finished, tmp_path / "grid", "results/l5-s0-baseline.json")
    (out / "results" / "l5-s0-semitc.json").write_text(content)
    with pytest.raises(RunError, match=r"l5-s0-semitc\.json: broken.*; delete it"):
        reproduce("table1", TINY, out, **PART)
    assert names(out) == ["l5-s0-baseline", "l5-s0-semitc"]


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(finished, tmp_path, capsys, quick):
    out = copied(finished, tmp_path / "grid")
    (out / "runs").mkdir()
    (out / "runs" / "l5-s0-pretraining").symlink_to(finished / "runs" / "l5-s0-pretraining")
    (out / "runs" / "l5-s0-baseline").mkdir()
    (out / "runs" / "l5-s0-baseline" / "photo.txt").write_text("not a run")
    assert not reproduce("table1", TINY, out, workers=2, **PART)
    assert names(out) == ["l5-s0-pretraining", "l5-s0-semitc"]
    assert "Failed: l5-s0-baseline: " in (printed := capsys.readouterr().out)
    assert "holds no run" in printed
    assert (out / "runs" / "l5-s0-baseline" / "photo.txt").exists()


def test_without_pretraining_nothing_that_needs_it_starts(tmp_path, quick):
    (tmp_path / "runs" / "l5-s0-pretraining").mkdir(parents=True)
    (tmp_path / "runs" / "l5-s0-pretraining" / "photo.txt").write_text("not a run")
    TINY.save(tmp_path / "options.toml")
    assert not reproduce("table1", TINY, tmp_path, **PART)
    assert names(tmp_path) == []
    assert not (tmp_path / "runs" / "l5-s0-baseline").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labelled", "101"], "--labelled must be 1 to 100"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--labelled", "0"], "--labelled must be at least 1, got 0"),
        (["--splits", "-1"], "--split must be at least 0, got -1"),
        (["--labelled", "5;10"], "'5;10' is not a valid integer"),
        (["--methods", "baseline,semi"], "'semi' is not one of 'baseline'"),
        (["--data", "jsrt", "--root", "/nowhere"], "jsrt: no folder /nowhere"),
        (["--merge", "."], "--merge .: has no results/*.json"),
        (["--split-file", "nothing.json"], "nothing.json: cannot be read"),
        (["--dimensions", "3"], "--labelled must be 1 to 30, as many as there are training images"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    base = ["reproduce", "table1", "--data", "phantom", "--size", "32", "--out", "grid"]
    result = CliRunner().invoke(main, [*base, *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no results"):
        reproduce("table1", TINY, tmp_path, **PART)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.txt"]


# ---- grids and tables -----------------------------------------------------------------------


def test_the_grid_of_the_first_table_is_that_of_the_paper():
    cells = grid("table1", (5, 10, 25, 50, 100), tuple(TABLE1), range(5))
    assert len(cells) == 5 * (5 * 4 - 1)  # nothing is unlabelled where all 100 are labelled
    published = {(m, n) for m, row in TABLE1.items() for n in row}
    assert {(cell.method, cell.labelled) for cell in cells} == published
    assert all(cell.validation_images is None for cell in cells)


def test_the_grid_of_the_second_table_counts_validation_images():
    cells = grid("table2", (10, 100), ("baseline", "semitc+"), [3])
    assert {(c.method, c.labelled) for c in cells} == set(TABLE2)
    assert {(c.labelled, c.validation_images) for c in cells} == {(10, 10), (100, None)}


def test_a_grid_of_ones_own_images_may_label_more_than_the_paper_has():
    cells = grid("table1", (32, 136), ("baseline", "semitc"), [0], math.inf)
    assert [(c.labelled, c.method) for c in cells] == [
        (n, method) for n in (32, 136) for method in ("baseline", "semitc")
    ]


def test_a_grid_of_ones_own_images_needs_its_numbers_of_labels(tmp_path):
    with pytest.raises(ValueError, match="`labelled` must be given"):
        reproduce("table1", dataclasses.replace(TINY, data="folder"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_table_of_volumes_is_the_mean_over_structures_then_splits():
    known = {}
    for split, dice in enumerate(({"a": 0.5, "b": 0.7}, {"a": 0.8, "b": None})):
        known[Cell(3, None, split, "semitc")] = {"test": {"volumes": {"dice": dice}}}
    sheet = tables.volumes(known, ["semitc", "baseline"], [3, 7])
    # 60 and 80: the deviation of a sample of two is 10 sqrt(2).
    assert sheet.sections == [("", [["semitc", "70.0 ± 14.1 (2)", "-"], ["baseline", "-", "-"]])]


def summary(miou, validation_images=24, joined=0.5):
    part = {"iou": {"heart": joined}, "iou_std": {"heart": 0.1}}
    part |= {"macd_mm": {"heart": 1.0}, "macd_mm_std": {"heart": 0.25}}
    both = {"iou": {"lungs": 0.9, "clavicles": 0.6}, "iou_std": {"lungs": 0.02, "clavicles": 0.2}}
    both |= {"macd_mm": {"lungs": 2.0, "clavicles": None}}  # nan, as it is written
    both |= {"macd_mm_std": {"lungs": 0.5, "clavicles": None}}
    return {
        "validation_images": validation_images,
        "best_step": 1,
        "seconds": 2.0,
        "test": {"miou": miou},
        "validation": {"miou": miou},
        "pretrained_test": {"miou": miou},
        "test_postprocessed": {"miou": miou, **part, "joined": both},
    }


def row_of(sheet, name):
    return next(row for _, rows in sheet.sections for row in rows if row[0].startswith(name))


def test_cells_are_mean_and_deviation_over_splits():
    results = {Cell(5, None, s, "semitc"): summary(m) for s, m in enumerate((0.80, 0.82, 0.84))}
    results[Cell(10, None, 0, "semitc")] = summary(0.9)
    results[Cell(5, 5, 0, "semitc")] = summary(0.1)  # of the second table
    results |= {Cell(25, None, s, "semitc+"): summary(0.5) for s in range(5)}
    sheet = tables.table1(results, ["semitc", "semitc+"], [5, 10, 25], published=True)
    assert row_of(sheet, "semitc")[1:] == [
        *("82.0 ± 2.0 (3)", "85.4 ± 1.0"),
        *("90.0 (1)", "86.9 ± 1.4"),
        *("-", "88.7 ± 1.0"),
    ]
    assert row_of(sheet, "semitc+")[-2:] == ["50.0 ± 0.0", "89.7 ± 0.4"]
    assert [heading for heading, _ in sheet.sections] == ["inductive", "transductive"]
    bare = tables.table1(results, ["semitc"], [5], published=False)
    assert bare.columns == ["method", "5 labels"]


def test_pairs_are_counted_where_both_are_there():
    results = {Cell(5, None, s, "baseline"): summary(0.7) for s in range(5)}
    gains = (0.01, 0.02, 0.03, -0.01)
    results |= {Cell(5, None, s, "semitc"): summary(0.7 + d) for s, d in enumerate(gains)}
    results[Cell(10, None, 0, "semitc")] = summary(0.9)
    sheet = tables.comparisons(results, ["baseline", "semitc"], [5, 10])
    (row,) = sheet.sections[0][1]
    assert row[:3] == ["semitc against baseline", "3 of 4", "+1.25 points"]
    assert 0.2 < float(row[3]) < 0.5  # signed ranks 1.5, 3, 4 against 1.5


def test_the_second_table_joins_structures_and_keeps_what_is_not_defined():
    cells = [Cell(10, 10, 0, "baseline"), Cell(10, 10, 1, "baseline")]
    results = dict(zip(cells, (summary(0.8, 10, 0.4), summary(0.8, 10, 0.6)), strict=True))
    sheet = tables.table2(results, ["baseline", "semitc+"], [10], published=True)
    assert row_of(sheet, "baseline, 2 splits")[1:] == [
        "20",
        *("90.0 ± 2.0", "50.0 ± 10.0", "60.0 ± 20.0"),
        *("2.00 ± 0.50", "1.00 ± 0.25", "-"),
    ]
    assert row_of(sheet, "baseline, paper")[2] == "93.3 ± 3.4"
    assert row_of(sheet, "human")[2:5] == ["94.6 ± 1.8", "87.8 ± 5.4", "89.6 ± 3.7"]
    text = sheet.markdown()
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {9}


def test_results_are_written_whole(tmp_path):
    results = Results(tmp_path / "grid", TINY)
    cell = Cell(5, None, 0, "semitc+")
    results.add(cell, summary(0.5))
    again = Results(tmp_path / "grid", TINY)
    assert again.finished == results.finished == {cell: summary(0.5)}
    Console(quiet=True).print(tables.table1(again.finished, ["semitc+"], [5], True))
