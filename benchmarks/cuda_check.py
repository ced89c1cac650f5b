"""Check and time the operators on a GPU: `python -m benchmarks.cuda_check --out FILE`.

Bandwidth is counted over compulsory bytes (every input read once, every output written once)
and set against a device copy that moves as many. The GPU's tests and compute-sanitizer (on
`--small`, a small case only) run first, each in a process of its own. A part that fails is said so
in the file and leaves the others their figures; the exit status is 1 then.
"""

import argparse
import contextlib
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tcwarp
from benchmarks import peers
from benchmarks.record import environment
from tcwarp._native import PADDING_MODES

ROUNDS = 30
SHAPE = (16, 6, 512, 512)
FIELDS = (64, (512, 512))
SANITIZERS = ("memcheck", "racecheck")
PEERS = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


def milliseconds(function: Callable[[], Any]) -> float:
    """Time one call by events on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def medians(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Time functions in alternating rounds; return the median of each in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(3):
            function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            times[name].append(milliseconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mib(function: Callable[[], Any]) -> float:
    """Return how much memory one call allocates at its peak, its result included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def copy_of(total_bytes: int) -> Callable[[], Any]:
    """Return a device copy that reads and writes `total_bytes` in all."""
    source = torch.empty(total_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


@contextlib.contextmanager
def algorithms(deterministic: bool) -> Iterator[None]:
    """Set whether algorithms must be deterministic, and set it back."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check_results(image: Tensor, displacement: Tensor) -> None:
    """Raise unless the GPU computes what the CPU does, in every mode, padding and layout."""
    whole = (image * 8).round()
    # Weights may be fused into sums or not; nearest copies.
    tolerance = {"nearest": 0.0, "linear": 1e-4, "cubic": 1e-3}
    layouts = (torch.contiguous_format, torch.channels_last)
    for mode, padding_mode, layout in itertools.product(PEERS, PADDING_MODES, layouts):
        for deterministic in (False, True):
            results = []
            for device in ("cuda", "cpu"):
                leaf = whole.to(device, memory_format=layout).requires_grad_()
                output = tcwarp.warp(
                    leaf, displacement.to(device), mode=mode, padding_mode=padding_mode
                )
                # Small integers: sums of a nearest scatter are exact in any order.
                with algorithms(deterministic):
                    (grad,) = torch.autograd.grad(output, leaf, whole.to(device))
                results.append((output.detach().cpu(), grad.cpu()))
            for own, expected in zip(*results, strict=True):
                torch.testing.assert_close(own, expected, rtol=1e-5, atol=tolerance[mode])
    size = tuple(image.shape[2:])
    fields = [
        tcwarp.random_displacement(
            2, size, generator=torch.Generator().manual_seed(3), device=device
        )
        for device in ("cuda", "cpu")
    ]
    torch.testing.assert_close(fields[0].cpu(), fields[1], rtol=0, atol=1e-4)
    for pair in zip(
        *((tcwarp.align(f[:1], f[1:]), tcwarp.invert(f[:1])) for f in fields), strict=True
    ):
        torch.testing.assert_close(pair[0].cpu(), pair[1], rtol=0, atol=1e-3)


def compiled_kernels() -> dict[str, dict[str, int]]:
    """Return registers and spilled bytes by file, the worst kernel of each, as nvcc said."""
    found = {}
    for log in sorted(Path("build").glob("temp.*/cuda/*.log")):
        text = log.read_text()
        registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", text)]
        if registers:
            found[log.stem] = {
                "kernels": len(registers),
                "most_registers": max(registers),
                "most_spilled_bytes": max(spills, default=0),
            }
    return found


def warp_figures(image: Tensor, displacement: Tensor, mode: str) -> dict[str, Any]:
    """Time forward and backward against a device copy and against grid_sample."""
    leaf = image.clone().requires_grad_()
    gradient = image.flip(-1).contiguous()
    peer_mode = PEERS[mode]
    grid = peers.grid_from(displacement)
    own_output = tcwarp.warp(leaf, displacement, mode=mode)
    peer_output = peers.grid_sample(leaf, grid, peer_mode)

    def backward(output: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaf, gradient, retain_graph=True)[0]

    def deterministic() -> None:
        with algorithms(True):
            backward(own_output)

    # The same for both directions: two images and one field.
    compulsory = 2 * image.nbytes + displacement.nbytes
    last = image.to(memory_format=torch.channels_last)
    last_leaf = last.clone(memory_format=torch.preserve_format).requires_grad_()
    last_output = tcwarp.warp(last_leaf, displacement, mode=mode)
    last_gradient = gradient.to(memory_format=torch.channels_last)
    functions: dict[str, Callable[[], Any]] = {
        "copy": copy_of(compulsory),
        "forward": lambda: tcwarp.warp(image, displacement, mode=mode),
        "grid_sample": lambda: peers.grid_sample(image, grid, peer_mode),
        "grid_sample and its grid": lambda: peers.grid_sample(
            image, peers.grid_from(displacement), peer_mode
        ),
        "backward": lambda: backward(own_output),
        "grid_sample backward": lambda: backward(peer_output),
        "deterministic backward": deterministic,
        "forward, channels last": lambda: tcwarp.warp(last, displacement, mode=mode),
        "backward, channels last": lambda: torch.autograd.grad(
            last_output, last_leaf, last_gradient, retain_graph=True
        ),
    }
    times = medians(functions)
    return {
        "compulsory_bytes": compulsory,
        "ms": times,
        "copy_gb_per_s": compulsory / times["copy"] / 1e6,
        **{
            direction: {
                "gb_per_s": compulsory / times[direction] / 1e6,
                "of_copy": times["copy"] / times[direction],
                "times_faster_than_grid_sample": times[peer] / times[direction],
                "peak_mib": peak_mib(functions[direction]),
            }
            for direction, peer in (
                ("forward", "grid_sample and its grid"),
                ("backward", "grid_sample backward"),
                ("forward, channels last", "grid_sample and its grid"),
                ("backward, channels last", "grid_sample backward"),
                ("deterministic backward", "grid_sample backward"),
            )
        },
    }


def sampler_figures() -> dict[str, Any]:
    """Time the field sampler against writing as many bytes, and against a convolution."""
    batch, size = FIELDS
    generator = torch.Generator("cuda").manual_seed(0)

    def sample() -> Tensor:
        return tcwarp.random_displacement(batch, size, generator=generator, device="cuda")

    target = torch.empty_like(sample())
    noise = torch.rand(1, 2, *size, device="cuda")
    times = medians(
        {
            "write": lambda: target.fill_(1.0),
            "sampler": sample,
            "convolution of one field": lambda: peers.separable_gaussian(noise, 100.0),
        }
    )
    return {
        "compulsory_bytes": target.nbytes,
        "ms": times,
        "write_gb_per_s": target.nbytes / times["write"] / 1e6,
        "gb_per_s": target.nbytes / times["sampler"] / 1e6,
        "of_write": times["write"] / times["sampler"],
        "times_faster_than_convolution": batch
        * times["convolution of one field"]
        / times["sampler"],
        "peak_mib": peak_mib(sample),
    }


def run(command: list[str]) -> str:
    """Run a command; raise where it fails."""
    if shutil.which(command[0]) is None:
        return "not found"
    status = subprocess.run(command).returncode
    if status:
        raise RuntimeError(f"exit status {status} of {' '.join(command)}")
    return "passed"


def run_parts(parts: dict[str, Callable[[], Any]], record: dict[str, Any], out: Path) -> list[str]:
    """Write what the parts return into one JSON, after each; return names of those that fail."""
    failed = []
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        try:
            record[name] = part()
        except Exception as error:
            traceback.print_exc()
            record[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            failed.append(name)
        out.write_text(json.dumps(record, indent=2) + "\n")
    return failed


def print_figures(record: dict[str, Any]) -> None:
    """Print the figures that there are, and what was not found."""
    for mode, direction in itertools.product(
        PEERS, ("forward", "backward", "deterministic backward")
    ):
        if one := record[mode].get(direction):
            print(
                f"{mode} warp {direction}: {one['gb_per_s']:.0f} GB/s, {one['of_copy']:.0%} of a "
                f"device copy, {one['times_faster_than_grid_sample']:.2f}x grid_sample"
            )
    if "ms" in (sampler := record["sampler"]):
        print(
            f"sampler: {sampler['gb_per_s']:.0f} GB/s, {sampler['of_write']:.0%} of writing the "
            f"result, {sampler['times_faster_than_convolution']:.0f}x a separable convolution"
        )
    for tool in SANITIZERS:
        if record[tool] == "not found":
            print(f"compute-sanitizer is not on the path: {tool} NOT run", file=sys.stderr)


def main() -> None:
    """Check, time, write one JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_check", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    what.add_argument("--small", action="store_true", help="check a small case only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"cuda_check: torch {torch.__version__} sees no CUDA device; run it where one is")
    if tcwarp.cuda_status() != "loaded":
        sys.exit(f"cuda_check: the CUDA operators are {tcwarp.cuda_status()}")
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 40, 36) if arguments.small else SHAPE
    image = torch.rand(shape, generator=generator).cuda()
    displacement = tcwarp.random_displacement(
        shape[0], shape[2:], sigma=40.0, displacement_std=8.0, generator=generator, device="cuda"
    )

    def results() -> str:
        check_results(image[:2, :4], displacement[:2])
        return "the GPU's are the CPU's"

    if arguments.small:
        return print(results())
    python, out = sys.executable, arguments.out
    small = [python, "-m", "benchmarks.cuda_check", "--small"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1", "--tool"]
    parts: dict[str, Callable[[], Any]] = {
        "tests": lambda: run([python, "-m", "pytest", "tests", "-m", "cuda"]),
        **{tool: partial(run, [*sanitizer, tool, *small]) for tool in SANITIZERS},
        "results": results,
        **{mode: partial(warp_figures, image, displacement, mode) for mode in PEERS},
        "sampler": sampler_figures,
        "compiled": compiled_kernels,
    }
    record = environment(f"python -m benchmarks.cuda_check --out {out}")
    failed = run_parts(parts, record, out)
    print_figures(record)
    print(f"written: {out}")
    if failed:
        sys.exit(f"cuda_check: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
