"""`make cuda-check` without a GPU: rehearsed, and what becomes of parts that fail."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from unittest.mock import MagicMock

import processes
import pytest
import torch
from checkout import ROOT, TESTS

# What training needs, or its tests, and a bare machine lacks.
TRAINERS = (
    *("tcseg", "monai", "pydicom", "nibabel", "highdicom", "skimage", "PIL", "matplotlib"),
    *("click", "rich", "jinja2", "safetensors", "tensorboard", "onnx", "selenium", "mkdocs"),
)
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
import pytest
raise SystemExit(pytest.main({arguments}))
"""


@pytest.fixture
def load(monkeypatch):
    """Import a module of the folder benchmarks, which no package holds."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.python(*arguments, cwd=ROOT)


@pytest.fixture
def check(load, monkeypatch, tmp_path):
    """Run `benchmarks.cuda_check` in this process, up to where it starts others."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*options):
        arguments = ["cuda_check", "--out", str(tmp_path / "check.json"), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        load("cuda_check").main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


# ------------------------------------------------------------------------------ a bare machine


@pytest.mark.slow
def test_the_operators_tests_need_nothing_of_the_trainer(load):
    collect = ["--collect-only", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    arguments = [*collect, *load("cuda_check").OPERATOR_TESTS]
    result = python("-c", BLOCKER.format(names=set(TRAINERS), arguments=arguments))
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+)/\d+ tests collected", result.stdout)[1]) > 500


def test_all_tests_on_the_gpu_are_among_them(load):
    """Those that take the fixture `device`, or are marked."""
    on_the_gpu = re.compile(r"def test_\w+\([^)]*\bdevice\b|^pytestmark.*(\n.*)?mark\.cuda", re.M)
    found = {
        path.relative_to(ROOT).as_posix()
        for path in TESTS.rglob("test_*.py")
        if path != Path(__file__) and on_the_gpu.search(path.read_text())
    }
    assert found == set(load("cuda_check").OPERATOR_TESTS)


def test_missing_packages_are_named_in_one_line(load, check, monkeypatch, tmp_path):
    monkeypatch.setattr(load("cuda_check"), "NEEDED", ("torch", "a_package_that_is_nowhere"))
    with pytest.raises(SystemExit, match=r"^cuda_check: not installed: a_package_that.* wheels"):
        check("--rehearse")
    assert not (tmp_path / "check.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_an_earlier_record_stays(check, tmp_path):
    out = tmp_path / "check.json"
    out.write_text('{"earlier": true}')
    with pytest.raises(SystemExit, match=r"^cuda_check: torch .* sees no CUDA device"):
        check()
    assert json.loads(out.read_text()) == {"earlier": True}


def test_a_part_of_no_name_is_refused(check, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        check("--only", "load,figure")
    assert end.value.code == 2 and "--only: no part is named figure" in capsys.readouterr().err
    assert not (tmp_path / "check.json").exists()


# ------------------------------------------------------------------------------ parts


def test_all_parts_end_within_ten_minutes(load):
    assert sum(load("cuda_check").LIMITS.values()) < 600


def test_a_part_that_fails_leaves_the_others_their_results(load, tmp_path):
    module, out = load("cuda_check"), tmp_path / "check.json"

    def part(code: str, seconds: float = 60) -> object:
        return module.Part([sys.executable, "-c", code], seconds, {"SAID": "this"})

    # It leaves a child behind, in a group of its own, which would go on for long.
    slow = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '1000'], process_group=0);"
        "print(child.pid); time.sleep(1000)"
    )
    parts = {
        "load": part("pass"),
        "figures": part("raise SystemExit(3)"),
        "tests": part(slow, 3),
        "memcheck": module.Part(["a-tool-that-is-nowhere"], 1),
        "racecheck": part("import os; print(os.environ['SAID'])"),
    }
    assert module.run_parts(parts, out) == ["figures", "tests"]
    found = json.loads(out.read_text())["parts"]
    assert {name: one["result"] for name, one in found.items()} == {
        "load": "passed",
        "figures": "failed: exit status 3",
        "tests": "out of time: ended after 3 s",
        "memcheck": "not found",
        "racecheck": "passed",
    }
    assert found["racecheck"]["output"] == ["this"]
    (child,) = found["tests"]["output"]
    for _ in range(100):  # until init, or whoever stands in for it, has seen its end
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(int(child), signal.SIGKILL)
        pytest.fail(f"process {child} goes on")


def test_without_a_build_nothing_else_runs(load, tmp_path):
    module, out = load("cuda_check"), tmp_path / "check.json"
    compiler = "print('warp.cu(7): error: expected a ;'); raise SystemExit(1)"
    parts = {
        "build": module.Part([sys.executable, "-c", compiler], 60),
        "figures": module.Part([sys.executable, "-c", "pass"], 60),
    }
    assert module.run_parts(parts, out) == ["build", "figures"]
    found = json.loads(out.read_text())["parts"]
    assert found["build"]["output"] == ["warp.cu(7): error: expected a ;"]
    assert found["figures"]["result"].startswith("not run")


# ------------------------------------------------------------------------------ figures


@pytest.mark.slow
def test_rehearsal(load, tmp_path):
    """The code of the figures and of the small cases, on the CPU with tiny inputs."""
    out = tmp_path / "check.json"
    options = ("--out", str(out), "--rehearse", "--only", "load,figures,memcheck")
    result = python("-m", "benchmarks.cuda_check", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads(out.read_text())
    assert {name: part["result"] for name, part in record["parts"].items()} == {
        "load": "passed",
        "figures": "passed",
        "memcheck": "passed",
    }
    rows = {row["work"]: row for row in record["rows"]}
    assert len(rows) == len(record["rows"])
    goals = load("cuda_figures").GOALS
    assert goals == {name: row["goals"] for name, row in rows.items() if row["goals"]}
    assert all(row["ms"] > 0 and row["timed_by"]["ours"] == "calls" for row in rows.values())
    assert record["eager_call_us"]["random_displacement"] > 0
    assert record["ceilings"]["copy_gb_per_s"] > 0
    assert record["device"] == {"gpu": "no CUDA device"}
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80
    assert result.stdout.count(" reached") + result.stdout.count(" missed") == len(goals)


def row_of(load, call):
    works, figures = load("cuda_works"), load("cuda_figures")
    cpu = torch.device("cpu")
    work = works.Work("some work", call, lambda number: (torch.full((4, 6), 0.5 + number),))
    return figures.attempt(work.name, lambda: figures.measure(work, works.REHEARSAL, cpu))


def test_compulsory_bytes_and_ratios(load):
    row = row_of(load, lambda values: 2 * values)
    assert row["compulsory_bytes"] == 2 * 4 * 6 * 4
    assert row["gb_per_s"] == pytest.approx(192 / row["ms"] / 1e6)
    assert row["of_copy"] == pytest.approx(row["peers_ms"]["copy"] / row["ms"])


def test_a_row_whose_result_is_wrong_fails(load):
    def differs(values: torch.Tensor) -> torch.Tensor:
        calls.append(values)
        return values + len(calls)

    calls: list[torch.Tensor] = []
    row = row_of(load, differs)
    assert row.keys() == {"work", "failed"}
    assert row["failed"].startswith("AssertionError: Tensor-likes are not close")


def test_an_element_that_is_not_written_is_seen(load):
    """Filled with NaN, it is neither what was there before nor the same twice."""

    def forgetful(values: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(values)
        result.view(-1)[:-1] = 1
        return result

    assert "AssertionError" in row_of(load, forgetful)["failed"]
    with load("cuda_timing").poisoned():
        assert torch.empty(9).isnan().all()
        assert torch.empty(9, dtype=torch.uint8).eq(255).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_record_is_written_whole_or_not_at_all(load, tmp_path):
    record, out = load("record"), tmp_path / "check.json"
    record.amend(out, date="today")
    record.amend(out, rows=[1])
    with pytest.raises(TypeError):
        record.amend(out, rows=[object()])
    assert json.loads(out.read_text()) == {"date": "today", "rows": [1]}


# ------------------------------------------------------------------------------ calls of torch.cuda


@pytest.fixture
def gpu(monkeypatch):
    """Stand in for torch.cuda: what is called, not what it does."""
    stand_in = MagicMock()
    stand_in.get_device_capability.return_value = (9, 0)
    monkeypatch.setattr(torch, "cuda", stand_in)
    return stand_in


def test_a_graph_keeps_its_inputs_alive(load, gpu):
    values = torch.ones(3)
    watched = weakref.ref(values)
    repeated = load("cuda_timing").repeated
    run, how = repeated(lambda tensor: tensor + 1, [(values,)], torch.device("cuda"))
    del values
    assert how == "graph"
    run()
    gpu.CUDAGraph.return_value.replay.assert_called_once_with()
    assert watched() is not None


def test_where_no_graph_is_captured_calls_are_timed(load, gpu):
    gpu.graph.side_effect = RuntimeError("operation not permitted\nwhen capturing")
    calls = []
    timing = load("cuda_timing")
    run, how = timing.repeated(calls.append, [(1,), (2,)], torch.device("cuda"))
    assert how == "calls: no graph was captured (RuntimeError: operation not permitted)"
    calls.clear()
    run()
    assert calls == [1, 2] * (timing.CALLS // 2)


def test_times_and_memory_are_the_device_s(load, gpu):
    timing, cuda = load("cuda_timing"), torch.device("cuda")
    gpu.Event.return_value.elapsed_time.return_value = 4.0
    assert timing.medians({"a": lambda: None}, 3, cuda) == {"a": 4.0 / timing.CALLS}
    gpu.memory_allocated.return_value, gpu.max_memory_allocated.return_value = 2**20, 3 * 2**20
    assert timing.peak_mib(lambda: None, cuda) == 2.0
    gpu.get_device_properties.return_value.L2_cache_size = 50 * 2**20
    sets_for = load("cuda_figures").sets_for
    assert [sets_for(n * 2**20, cuda) for n in (1, 60, 1000)] == [timing.CALLS, 4, 2]


def test_what_is_run_on_a_gpu(load, gpu, tmp_path):
    parts = load("cuda_check").all_parts(tmp_path, rehearse=False)
    assert list(parts) == list(load("cuda_check").LIMITS)
    assert parts["build"].variables == {"TORCH_CUDA_ARCH_LIST": "9.0"}
    for name in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert parts[name].command[:3] == ["compute-sanitizer", "--tool", name]
        assert parts[name].command[-2:] == ["-m", "benchmarks.cuda_small"]
        assert parts[name].variables == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    assert not any("--rehearse" in part.command for part in parts.values())
