"""Cost against image size, channels, sigma and threads: `python -m benchmarks.scaling --out DIR`.

Writes DIR/scaling.json and DIR/scaling.png. Times are medians of alternating rounds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

import tcwarp
from benchmarks import peers
from benchmarks.conftest import medians
from benchmarks.record import environment

PEERS = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}
Curves = dict[str, list[tuple[float, float]]]


def warps(batch: int, channels: int, size: int) -> dict[str, Callable[[], Any]]:
    """Return our warps and the peer's, by name."""
    image = torch.rand(batch, channels, size, size)
    field = tcwarp.random_displacement(
        batch, (size, size), sigma=size / 12, displacement_std=size / 64
    )
    functions: dict[str, Callable[[], Any]] = {}
    for mode, other in PEERS.items():
        functions[f"{mode} warp"] = lambda mode=mode: tcwarp.warp(image, field, mode=mode)  # type: ignore[misc]
        functions[f"grid_sample {other}"] = lambda other=other: peers.grid_sample(  # type: ignore[misc]
            image, peers.grid_from(field), other
        )
    return functions


def fields(sigma: float, size: int = 512) -> dict[str, Callable[[], Any]]:
    """Return our sampler and the peers', by name."""
    rng = np.random.default_rng(0)

    def scipy() -> Any:
        noise = rng.uniform(-1, 1, (2, size, size)).astype(np.float32)
        return [ndimage.gaussian_filter(plane, sigma) for plane in noise]

    return {
        "random_displacement": lambda: tcwarp.random_displacement(1, (size, size), sigma=sigma),
        "SciPy gaussian_filter": scipy,
        "torch convolution": lambda: peers.separable_gaussian(
            torch.empty(1, 2, size, size).uniform_(-1, 1), sigma
        ),
    }


def measure(steps: list[float], make: Callable[[float], dict[str, Callable[[], Any]]]) -> Curves:
    """Time all functions at each step."""
    curves: Curves = {}
    for step in steps:
        for name, time in medians(make(step), rounds=5).items():
            curves.setdefault(name, []).append((step, time))
    return curves


def with_threads(threads: float) -> dict[str, Callable[[], Any]]:
    """Set the number of threads, then the warps of a batch."""
    torch.set_num_threads(int(threads))
    return warps(8, 6, 512)


def draw(panels: dict[str, Curves], path: Path) -> None:
    """Plot each panel on logarithmic axes, ours solid, peers dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name, points in curves.items():
            ours = "warp" in name or "displacement" in name
            axes.plot(*zip(*points, strict=True), "o-" if ours else "o--", label=name)
        axes.set(xscale="log", yscale="log", xlabel=title, ylabel="ms")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out = parser.parse_args().out
    threads = torch.get_num_threads()
    counts = [2.0**k for k in range(threads.bit_length()) if 2**k <= threads]
    with torch.no_grad():
        panels = {
            "image size in pixels, batch 2, 3 channels": measure(
                [64, 128, 256, 512, 1024], lambda size: warps(2, 3, int(size))
            ),
            "channels, batch 2, 256 x 256": measure(
                [1, 2, 4, 8, 16, 32], lambda channels: warps(2, int(channels), 256)
            ),
            "sigma in pixels, one field of 512 x 512": measure([1, 3, 10, 30, 100, 300], fields),
            "threads, (8, 6, 512, 512)": measure(counts, with_threads),
        }
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    record = {**environment(f"python -m benchmarks.scaling --out {out}"), "milliseconds": panels}
    (out / "scaling.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(panels, out / "scaling.png")


if __name__ == "__main__":
    main()
