"""What a training step costs and on what: `python -m benchmarks.training --size 512 --out FILE`.

Times the parts of a step of semitc on phantoms, each alone: the network's forward and backward;
drawing and applying the transforms; alignment with both losses, forward and backward; the
optimizer. Then whole steps, and the memory that one keeps.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cuda_timing import synchronize
from benchmarks.record import environment
from tcseg.method.losses import soft_iou_loss
from tcseg.method.transforms import SampledTransform, align
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.training.trainer import Trainer

MIB = 2**20


class Parts:
    """The parts of a step, each a function without arguments."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        images, self.labels, _, _ = trainer.batches.draw(trainer.method)
        self.view, _ = trainer.views(trainer.method)
        self.images = images.contiguous(memory_format=trainer.layout)
        self.t1, self.t2 = self.draws()
        self.views = self.transformed()
        with torch.no_grad():
            self.predictions = trainer.network(self.views)
        self.network()
        trainer.step(trainer.method)

    def draws(self) -> tuple[SampledTransform, SampledTransform]:
        """Draw the transforms of both branches."""
        size = self.images.shape[2:]
        sample = self.view.sample
        generator = self.trainer.generator
        return sample(len(self.images), size, generator), sample(len(self.images), size, generator)

    def transformed(self) -> Tensor:
        """Apply the transforms to the images."""
        return torch.cat([self.t1.image(self.images), self.t2.image(self.images)])

    def targets(self) -> list[Tensor]:
        """Apply the transforms to the labels."""
        count = len(self.labels)
        moves = (t.motion(slice(count)) for t in (self.t1, self.t2))
        return [self.trainer.dataset.unpack(move.label(self.labels)) for move in moves]

    def network(self) -> None:
        """Forward and backward of the network alone."""
        self.trainer.optimizer.zero_grad(set_to_none=True)
        prediction = self.trainer.network(self.views)
        prediction.backward(self.predictions)  # any gradient costs the same

    def supervised(self) -> None:
        """Supervised loss, forward and backward."""
        predictions = self.predictions.detach().requires_grad_()
        y1, y2 = predictions.chunk(2)
        count = len(self.labels)
        for target, y in zip(self.targets(), (y1, y2), strict=True):
            soft_iou_loss(target, y[:count]).mean().backward()

    def consistency(self) -> None:
        """Alignment and consistency loss, forward and backward."""
        predictions = self.predictions.detach().requires_grad_()
        y1, y2 = predictions.chunk(2)
        soft_iou_loss(align(self.t1, self.t2, y1), y2).mean().backward()


def medians(
    functions: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Time functions in alternating rounds; return the median of each in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def memory_mib(trainer: Trainer) -> dict[str, float]:
    """Memory of one step: what autograd keeps for the backward; on a GPU also the peak."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(trainer.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.step(trainer.method)
    result = {"kept for backward": sum(kept.values()) / MIB}
    if on_gpu:
        result["peak allocated"] = torch.cuda.max_memory_allocated(trainer.device) / MIB
    return result


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """Return times in milliseconds and memory in MiB of a training with these options."""
    torch._dynamo.reset()  # what was compiled before counts towards a limit
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, RunFolder(folder))
        parts = Parts(trainer)
        trainer.network.train()
        functions: dict[str, Callable[[], Any]] = {
            "network": parts.network,
            "drawing fields": parts.draws,
            "warping images": parts.transformed,
            "labels and supervised loss": parts.supervised,
            "alignment and consistency loss": parts.consistency,
            "optimizer": trainer.optimizer.step,
            "whole step": lambda: trainer.step(trainer.method),
        }
        times = medians(functions, rounds, trainer.device)
        return {"milliseconds": times, "mib": memory_mib(trainer)}


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[512])
    parser.add_argument("--dimensions", type=int, default=2, help="3: volumes of that size")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--recipe", default="strong")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="measure the compiled network, too")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    command = f"python -m benchmarks.training {' '.join(sys.argv[1:])}"
    results: dict[str, Any] = {
        "environment": environment(command),
        "options": vars(arguments) | {"out": ""},
    }
    for size in arguments.size:
        for compiled in (False, True) if arguments.compile else (False,):
            config = Config(
                size=size,
                dimensions=arguments.dimensions,
                batch_size=arguments.batch_size,
                precision=arguments.precision,
                recipe=arguments.recipe,
                device=arguments.device,
                compile=compiled,
            )
            result = measure(config, arguments.rounds)
            sides = " x ".join([str(size)] * arguments.dimensions)
            name = f"{sides}{', compiled' if compiled else ''}"
            results[name] = result
            print(f"\n{name}, batch of {config.batch_size}, {config.precision}")
            network = result["milliseconds"]["network"]
            for part, value in result["milliseconds"].items():
                print(
                    f"  {part:32} {value:10.2f} ms  {100 * value / network:6.1f} % of the network"
                )
            for part, value in result["mib"].items():
                print(f"  {part:32} {value:10.1f} MiB")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
