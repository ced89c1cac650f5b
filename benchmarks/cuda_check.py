"""Check and time the operators on a GPU: `python -m benchmarks.cuda_check --out FILE`.

Bandwidth is counted over compulsory bytes (every input read once, every output written once)
and set against a device copy that moves as many. `make cuda-check` runs it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tcwarp
from benchmarks import peers
from benchmarks.record import environment

ROUNDS = 30
SHAPE = (16, 6, 512, 512)
FIELDS = (64, (512, 512))


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


def check_results(image: Tensor, displacement: Tensor) -> None:
    """Raise unless the GPU computes what the CPU does, in every mode and padding."""
    few, field = image[:2, :2], displacement[:2]
    whole = (few * 8).round()
    for mode in ("nearest", "linear"):
        # Linear weights may be fused into sums or not; nearest copies.
        atol = 0.0 if mode == "nearest" else 1e-4
        for padding_mode in ("zeros", "border", "reflection"):
            options = {"mode": mode, "padding_mode": padding_mode}
            results = []
            for device in ("cuda", "cpu"):
                leaf = whole.to(device).requires_grad_()
                output = tcwarp.warp(leaf, field.to(device), **options)
                # Small integers: sums of a scatter are exact in any order.
                (grad,) = torch.autograd.grad(output, leaf, whole.to(device))
                results.append((output.detach().cpu(), grad.cpu()))
            torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=atol)
            torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=atol)
    fields = [
        tcwarp.random_displacement(
            2, (512, 512), generator=torch.Generator().manual_seed(3), device=device
        )
        for device in ("cuda", "cpu")
    ]
    torch.testing.assert_close(fields[0].cpu(), fields[1], rtol=0, atol=1e-4)


def warp_figures(image: Tensor, displacement: Tensor, mode: str) -> dict[str, Any]:
    """Time forward and backward against a device copy and against grid_sample."""
    leaf = image.clone().requires_grad_()
    gradient = image.flip(-1).contiguous()
    peer_mode = "nearest" if mode == "nearest" else "bilinear"
    grid = peers.grid_from(displacement)
    own_output = tcwarp.warp(leaf, displacement, mode=mode)
    peer_output = peers.grid_sample(leaf, grid, peer_mode)

    def backward(output: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaf, gradient, retain_graph=True)[0]

    def deterministic() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            backward(own_output)
        finally:
            torch.use_deterministic_algorithms(False)

    # The same for both directions: two images and one field.
    compulsory = 2 * image.nbytes + displacement.nbytes
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


def main() -> None:
    """Check, time, write one JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON to write")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"cuda_check: torch {torch.__version__} sees no CUDA device; run it where one is")
    if tcwarp.cuda_status() != "loaded":
        sys.exit(f"cuda_check: the CUDA operators are {tcwarp.cuda_status()}")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(SHAPE, generator=generator).cuda()
    displacement = tcwarp.random_displacement(
        SHAPE[0], SHAPE[2:], sigma=40.0, displacement_std=8.0, generator=generator, device="cuda"
    )
    check_results(image, displacement)
    print("results: the GPU's are the CPU's")
    figures: dict[str, Any] = {
        mode: warp_figures(image, displacement, mode) for mode in ("nearest", "linear")
    }
    figures["sampler"] = sampler_figures()
    for mode in ("nearest", "linear"):
        for direction in ("forward", "backward"):
            one = figures[mode][direction]
            print(
                f"{mode} warp {direction}: {one['gb_per_s']:.0f} GB/s, {one['of_copy']:.0%} of a "
                f"device copy, {one['times_faster_than_grid_sample']:.2f}x grid_sample"
            )
    sampler = figures["sampler"]
    print(
        f"sampler: {sampler['gb_per_s']:.0f} GB/s, {sampler['of_write']:.0%} of writing the "
        f"result, {sampler['times_faster_than_convolution']:.0f}x a separable convolution"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {**environment(f"python -m benchmarks.cuda_check --out {arguments.out}"), **figures}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
