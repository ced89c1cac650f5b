"""Check and time the operators on a GPU: `python -m benchmarks.cuda_figures --out FILE`.

A row is one piece of work. Its result is compared with the CPU's, then it is timed together with
its peers: a device copy of the same compulsory bytes (every input read once, every output written
once; writing them, where nothing is read), and what torch offers. Each row is in the file as soon
as it is there; one that fails says so and leaves the others their figures.
"""

import argparse
import math
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cuda_timing import (
    CALLS,
    Inputs,
    eager_microseconds,
    first_line,
    medians,
    peak_mib,
    poisoned,
    repeated,
)
from benchmarks.cuda_works import REHEARSAL, Scale, Work, all_works, latencies
from benchmarks.record import amend, environment, figures_table

# How fast to be at least, as a multiple of a peer's speed.
GOALS = {
    "nearest forward, planes": {"copy": 0.90, "grid_sample and its grid": 3.0},
    "nearest backward, planes": {"copy": 0.65, "grid_sample backward": 3.0},
    "linear forward, planes": {"copy": 0.75},
    "linear backward, planes": {"copy": 0.50},
    "nearest forward, channels last": {"copy": 0.70},
    "linear forward, channels last": {"copy": 0.70},
    "nearest deterministic backward, planes": {"plain backward": 1 / 3},
    "linear deterministic backward, planes": {"plain backward": 1 / 3},
    "cubic deterministic backward, planes": {"plain backward": 1 / 3},
    "fields, sigma 100": {"write": 0.85},
}


def check(work: Work, inputs: Inputs) -> Tensor:
    """Return the result; raise unless all of it is written and is the CPU's."""
    call = work.checked or work.call
    with poisoned():
        result = call(*inputs)
    expected = call(*(tensor.cpu() for tensor in inputs))
    torch.testing.assert_close(result.cpu(), expected, rtol=work.tolerance, atol=work.tolerance)
    return result


def sets_for(nbytes: int, device: torch.device) -> int:
    """Return how many sets of inputs are four times what the second-level cache holds."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(CALLS, max(2, math.ceil(4 * cache / nbytes)))


def ceiling(nbytes: int, copy: bool, sets: int, device: torch.device) -> tuple[Any, list[Inputs]]:
    """Return a copy, or a fill, that moves so many bytes in all, and what it moves."""
    each = nbytes // (8 if copy else 4)
    buffers = [
        tuple(torch.zeros(each, dtype=torch.float32, device=device) for _ in range(1 + copy))
        for _ in range(sets)
    ]
    return (Tensor.copy_ if copy else lambda target: target.fill_(1.0)), buffers


def measure(work: Work, scale: Scale, device: torch.device) -> dict[str, Any]:
    """Return the row of one piece of work."""
    inputs = work.inputs(0)
    result = check(work, inputs)
    read = sum(tensor.nbytes for tensor in inputs)
    nbytes = read + result.nbytes
    del result
    count = sets_for(nbytes, device)
    sets = [inputs, *(work.inputs(number) for number in range(1, count))]
    limit = "copy" if read else "write"
    functions = {
        "ours": repeated(work.call, sets, device),
        limit: repeated(*ceiling(nbytes, bool(read), count, device), device),
    }
    for name, peer in work.peers.items():
        functions[name] = repeated(peer.call, [peer.prepare(*one) for one in sets], device)
    times = medians({name: run for name, (run, _) in functions.items()}, scale.rounds, device)
    for name, peer in work.peers.items():
        times[name] *= peer.times
    ours = times.pop("ours")
    ratios = {name: value / ours for name, value in times.items()}
    goals = GOALS.get(work.name, {})
    return {
        "work": work.name,
        "ms": ours,
        "compulsory_bytes": nbytes,
        "gb_per_s": nbytes / ours / 1e6,
        f"of_{limit}": ratios[limit],
        "peers_ms": times,
        "times_as_fast_as": ratios,
        "goals": goals,
        "reached": all(ratios[name] >= goal for name, goal in goals.items()) if goals else None,
        "peak_mib": peak_mib(lambda: work.call(*inputs), device),
        "sets_of_inputs": count,
        "timed_by": {name: how for name, (_, how) in functions.items()},
    }


def ceilings(scale: Scale, device: torch.device) -> dict[str, float]:
    """Return what the device's memory can do, in GB/s: a large copy, and a large fill."""
    found = {}
    for name in ("copy", "write"):
        call, buffers = ceiling(scale.ceiling_bytes, name == "copy", 1, device)
        run, _ = repeated(call, buffers, device)
        took = medians({name: run}, scale.rounds, device)[name]
        found[f"{name}_gb_per_s"] = scale.ceiling_bytes / took / 1e6
    return found


def attempt(name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row, or one that says how it failed."""
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        return {"work": name, "failed": first_line(error)}


def main() -> None:
    """Measure row by row; exit with status 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_figures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON to add to")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny inputs")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    scale = REHEARSAL if arguments.rehearse else Scale()
    with poisoned():
        if not bool(torch.empty(64, device=device).isnan().all()):
            sys.exit("cuda_figures: memory is not filled when allocated; no check would see it")
    flag = " --rehearse" * arguments.rehearse
    command = f"python -m benchmarks.cuda_figures --out {arguments.out.name}{flag}"
    amend(arguments.out, figures=environment(command), ceilings=ceilings(scale, device))
    rows: list[dict[str, Any]] = []
    for work in all_works(scale, device):
        rows.append(attempt(work.name, partial(measure, work, scale, device)))
        amend(arguments.out, rows=rows)
    latency = {
        name: eager_microseconds(call, scale.eager_rounds, device)
        for name, call in latencies(scale, device)
    }
    amend(arguments.out, eager_call_us=latency)
    print(figures_table(rows, latency))
    if failed := [row["work"] for row in rows if "failed" in row]:
        sys.exit(f"cuda_figures: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
