"""Build, time and check the operators on a GPU: `python -m benchmarks.cuda_check --out FILE`.

Every part is a process of its own that is ended, with all it started, at its limit. What it found
is in the JSON as soon as it is there: a part that fails or runs out of time leaves the others
theirs. The exit status is 1 then. Nothing is fetched, and nothing of the trainer is needed.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import CUDA_HOME

from benchmarks.cuda_compiled import read_log
from benchmarks.record import amend, figures_table, surroundings

ROOT = Path(__file__).parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Seconds; together less than ten minutes.
LIMITS = {
    **{"build": 150.0, "load": 15.0, "figures": 130.0, "tests": 120.0},
    **dict.fromkeys(TOOLS, 40.0),
}
NEEDED = ("torch", "numpy", "scipy", "pytest", "hypothesis", "ninja", "pybind11", "setuptools")
OPERATOR_TESTS = tuple(
    f"tests/tcwarp/test_{name}.py"
    for name in (
        "cuda_only",
        "warp",
        "warp_gradients",
        "algebra",
        "fields",
        "citizen",
        "derivatives",
        "inverse",
        "points",
    )
)
# ninja may lie beside this python, nvcc and compute-sanitizer in a toolkit that is on no path.
PATH = os.pathsep.join(
    [
        str(Path(sys.executable).parent),
        os.environ.get("PATH", os.defpath),
        *([str(Path(CUDA_HOME) / "bin")] if CUDA_HOME else []),
    ]
)
LINES_KEPT = 300  # of the output of a part that did not pass
LOADED = "import sys, tcwarp; s = tcwarp.cuda_status(); print(s); sys.exit(s != 'loaded')"


@dataclass(frozen=True)
class Part:
    """A command, how long it may take, and variables of its environment."""

    command: list[str]
    seconds: float
    variables: dict[str, str] = field(default_factory=dict)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its whole session: ninja gives what it starts groups of their own."""
    for _ in range(2):  # once more for what was started meanwhile
        for entry in Path("/proc").glob("[1-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == process.pid:
                    os.kill(int(entry.name), signal.SIGKILL)
    process.wait()


def run_part(part: Part) -> dict[str, Any]:
    """Run a command to its end or its limit; return its result, seconds and last lines."""
    if shutil.which(part.command[0], path=PATH) is None:
        return {"result": "not found", "command": part.command[0]}
    start = time.monotonic()
    variables = {**os.environ, "PATH": PATH, "PYTHONUNBUFFERED": "1", **part.variables}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # to be ended as one
        )
        try:
            status = process.wait(part.seconds)
            result = "passed" if status == 0 else f"failed: exit status {status}"
        except subprocess.TimeoutExpired:
            result = f"out of time: ended after {part.seconds:g} s"
        finally:
            end(process)
        log.seek(0)
        lines = log.read().replace(f"{ROOT}/", "").splitlines()
    kept = 10 if result == "passed" else LINES_KEPT
    seconds = round(time.monotonic() - start, 1)
    return {"result": result, "seconds": seconds, "limit": part.seconds, "output": lines[-kept:]}


def run_parts(parts: dict[str, Part], out: Path) -> list[str]:
    """Run the parts in turn, each result into the JSON at once; return names of those that fail.

    Without a library that loads there is nothing to run the others on.
    """
    results: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for name, part in parts.items():
        if {"build", "load"} & set(failed):
            results[name] = {"result": "not run: there is no library to run it on"}
        else:
            print(f"== {name}, at most {part.seconds:g} s", flush=True)
            amend(out, parts={**results, name: {"result": "started, and ended from outside"}})
            results[name] = run_part(part)
            print(f"== {name}: {results[name]['result']}, {results[name].get('seconds', 0)} s")
        if results[name]["result"] not in ("passed", "not found"):
            print("\n".join(results[name].get("output", [])[-25:]), flush=True)
            failed.append(name)
        amend(out, parts=results)
    return failed


def all_parts(out: Path, rehearse: bool) -> dict[str, Part]:
    """Return every part by its name, in order; in a rehearsal the CPU is the device."""
    python = sys.executable
    flag = ["--rehearse"] if rehearse else []
    small = [python, "-m", "benchmarks.cuda_small", *flag]
    # For this card and no other.
    capability = (9, 0) if rehearse else torch.cuda.get_device_capability()
    build = {"TORCH_CUDA_ARCH_LIST": ".".join(map(str, capability))}
    tests = [
        *(python, "-m", "pytest", "-m", "cuda", "-v", "--tb=short", "--durations=10"),
        *("-p", "no:cacheprovider", *OPERATOR_TESTS),
    ]
    figures = [python, "-m", "benchmarks.cuda_figures", "--out", str(out), *flag]
    parts = {
        "build": Part([python, "setup.py", "build_ext", "--inplace"], LIMITS["build"], build),
        "load": Part([python, "-c", "import tcwarp" if rehearse else LOADED], LIMITS["load"]),
        "figures": Part(figures, LIMITS["figures"]),
        "tests": Part(tests, LIMITS["tests"]),
    }
    # Blocks of the caching allocator have no limits that a tool could see.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in TOOLS[:1] if rehearse else TOOLS:  # one is enough where none can be used
        command = small if rehearse else [*sanitizer(tool), *small]
        parts[tool] = Part(command, LIMITS[tool], uncached)
    return parts


def sanitizer(tool: str) -> list[str]:
    """Return how compute-sanitizer is called."""
    # Torch's kernels are its own business; but what they wrote counts as initialised.
    ours = [] if tool == "initcheck" else ["--kernel-name", "kns=tcwarp"]
    return [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "1",
        "--print-limit",
        "5",
        *ours,
    ]


def missing_packages() -> list[str]:
    """Return what the parts need and is not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def device_facts() -> dict[str, Any]:
    """Return what the GPU is, and its driver."""
    if not torch.cuda.is_available():
        return {"gpu": "no CUDA device"}
    device = torch.cuda.get_device_properties(0)
    facts = {
        "gpu": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "l2_mib": round(device.L2_cache_size / 2**20, 1),
        "driver": "not known",
    }
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        facts["driver"] = said.stdout.strip()
    return facts


def compiled_kernels() -> dict[str, dict[str, int]]:
    """Return registers and spilled bytes by file, the worst kernel of each, as nvcc said."""
    found = {}
    for log in sorted((ROOT / "build").glob("temp.*/csrc/cuda/*.log")):
        if usage := read_log(log.read_text()).values():
            found[log.stem] = {
                "kernels": len(usage),
                "most_registers": max(registers for registers, _, _ in usage),
                "most_spilled_bytes": max(spilled for _, spilled, _ in usage),
            }
    return found


def main() -> None:
    """Run all parts, write one JSON, print its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON to write")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on tiny inputs")
    parser.add_argument("--only", metavar="PART,...", help=f"some of: {', '.join(LIMITS)}")
    arguments = parser.parse_args()
    # Ended from outside, a dropped connection included, it ends its part, whose session is another.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    if unknown := set(filter(None, (arguments.only or "").split(","))) - set(LIMITS):
        parser.error(f"--only: no part is named {', '.join(sorted(unknown))}")
    # An earlier record is not touched where nothing can be measured.
    if missing := missing_packages():
        sys.exit(
            f"cuda_check: not installed: {', '.join(missing)}; where there is no network, bring "
            f"wheels along (pip download {' '.join(missing)}) and install them first"
        )
    if not (arguments.rehearse or torch.cuda.is_available()):
        sys.exit(f"cuda_check: torch {torch.__version__} sees no CUDA device; run it where one is")
    out = arguments.out.resolve()
    out = out / "cuda-check.json" if out.is_dir() else out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
    except OSError as error:
        sys.exit(f"cuda_check: {arguments.out} cannot be written: {error.strerror}")
    given = ["--rehearse"] * arguments.rehearse
    given += ["--only", arguments.only] if arguments.only else []
    command = shlex.join(["python", "-m", "benchmarks.cuda_check", "--out", out.name, *given])
    amend(out, **surroundings(command))
    amend(out, device=device_facts(), rehearsal=arguments.rehearse)
    parts = all_parts(out, arguments.rehearse)
    wanted = arguments.only.split(",") if arguments.only else list(parts)
    failed = run_parts({name: part for name, part in parts.items() if name in wanted}, out)
    amend(out, compiled=compiled_kernels())
    record = json.loads(out.read_text())
    print(figures_table(record.get("rows", []), record.get("eager_call_us", {})))
    print("; ".join(f"{name}: {part['result']}" for name, part in record["parts"].items()))
    print(f"written: {out}")
    if failed:
        sys.exit(f"cuda_check: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
