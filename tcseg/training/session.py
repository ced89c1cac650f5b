"""The command `tcseg train`: a training with its progress bar, its files and its table."""

import datetime
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tcseg.data import split_record, split_remarks
from tcseg.data.phantom import population
from tcseg.errors import counted
from tcseg.evaluation.evaluate import evaluate, predict, results_table, validation_miou
from tcseg.evaluation.pictures import save_panel, spread
from tcseg.extras import is_installed
from tcseg.io.sizes import resolution, written
from tcseg.method.names import OWN_NETWORKS
from tcseg.method.network import emulates_bfloat16, network_factory
from tcseg.method.variants import Method
from tcseg.runs.config import Config, resolve_device
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import load_weights
from tcseg.sheet import plain_console
from tcseg.training import distributed
from tcseg.training.state import pretrained_weights
from tcseg.training.trainer import SUPERVISED, Trainer, divided

REHEARSED_STEPS = 5
LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal to draw a bar in


def train(
    config: Config,
    out: Path,
    resume: bool,
    *,
    show_results: bool = True,
    stop: Callable[[], int] = lambda: 0,
) -> dict[str, Any]:
    """Train a network into a run folder.

    Parameters
    ----------
    config : Config
        The options; see `tcseg train --help`.
    out : Path
        Folder of the run.
    resume : bool
        Continue the unfinished run in `out`.
    show_results : bool
        Print the table of results at the end.
    stop : callable
        Asked after each step whether to stop here: the number of a signal, or 0.

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    ValueError, RunError, DataError
        One clear line; nothing was overwritten.
    RunStopped
        When told to stop; the run can be resumed.
    """
    config.validate()
    with distributed.process_group(resolve_device(config.device)) as device:
        # One process writes, and says how it goes; the others compute.
        writes = distributed.rank() == 0
        console = plain_console(quiet=not writes)
        with distributed.first_of_all(lambda: RunFolder.create(out, config, resume=resume)) as run:
            _check_before_data(config, resume)
            trainer = Trainer(config, run, device)
            _start(trainer, resume)
            if writes:
                run.record_split(split_record(trainer.dataset, trainer.split), resume)
                if resume:
                    run.rewind(trainer.state.step)
            _describe(trainer, console)
            _fit(trainer, console, stop)
            return _finish(trainer, console, show_results) if writes else {}


def _check_before_data(config: Config, resume: bool) -> None:
    """Refuse what can be refused without the images: reading or drawing them takes a while."""
    if config.network not in OWN_NETWORKS:
        network_factory(config.network)
    if config.data == "phantom":
        phantoms = population.undrawn(config.dimensions)
        split, _, _ = divided(config, phantoms)
        if config.pretrained is not None and not resume:
            pretrained_weights(Path(config.pretrained), config, split_record(phantoms, split))


def _fit(trainer: Trainer, console: Console, stop: Callable[[], int]) -> None:
    """Train with a progress bar; where it is not shown, with a line of it now and then."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    config = trainer.config
    with Progress(*columns, console=console, refresh_per_second=4, expand=True) as progress:
        bar = progress.add_task("training", total=trainer.total_steps, figures="")
        told = time.monotonic()

        def show(step: int, loss: float, miou: float) -> None:
            figures = f"best mIOU {miou:.3f}" if miou >= 0 else ""
            figures = figures if loss != loss else f"loss {loss:.3f} {figures}"
            pretraining = step <= config.pretrain_steps
            name = "pre-training" if pretraining else config.method
            progress.update(bar, completed=step, figures=figures, description=name)
            nonlocal told
            if not console.is_terminal and time.monotonic() > told + LINE_EVERY:
                console.print(progress.get_renderable())
                told = time.monotonic()

        show(trainer.state.step, float("nan"), trainer.state.best_miou)
        trainer.fit(show, stop)


def rehearse(config: Config, out: Path, resume: bool) -> None:
    """Do a few steps of a training without writing anything; report what all of it would take.

    Parameters are those of `train`, and so are its errors.
    """
    run = RunFolder(out)
    if resume:
        run.check_resumable(config)
    else:
        run.check_free()
    _check_before_data(config, resume)
    trainer = Trainer(config, run)
    _start(trainer, resume)
    console = plain_console()
    _describe(trainer, console)
    left = trainer.total_steps - trainer.state.step
    begun = time.perf_counter()
    validation_miou(trainer.network, trainer.dataset, trainer.validation)
    validation = time.perf_counter() - begun
    of_method = min(left, config.steps)
    phases = ((SUPERVISED, left - of_method), (trainer.method, of_method))
    total = left / config.validate_every * validation
    for method, steps in phases:
        if steps:
            total += steps * _seconds_of_a_step(trainer, method)
    checkpoints = 6 * sum(p.nbytes for p in trainer.network.parameters()) / 2**20
    console.print(
        f"{left} steps, about {datetime.timedelta(seconds=round(total))} "
        f"with validation; memory {_peak_mib(trainer.device):.0f} MiB; files in {out} of up to "
        f"{checkpoints:.0f} MiB. Nothing was written{' but the cache' if config.cache else ''}."
    )


def _seconds_of_a_step(trainer: Trainer, method: Method) -> float:
    """Do a few steps, which are lost; return the median time of one."""
    if method.averages and trainer.teacher is None:
        trainer.make_teacher()
    trainer.network.train()
    times = []
    for _ in range(REHEARSED_STEPS + 1):
        begun = time.perf_counter()
        float(trainer.step(method)["loss"])  # waits for the device
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])  # the first one warms up


def _peak_mib(device: torch.device) -> float:
    """Return the most memory taken so far: of the GPU by tensors, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _start(trainer: Trainer, resume: bool) -> None:
    checkpoint = trainer.run.load_checkpoint() if resume else None
    if checkpoint is not None:
        trainer.load(checkpoint)
    elif trainer.config.pretrained is not None:
        trainer.take_pretrained(Path(trainer.config.pretrained))


def _describe(trainer: Trainer, console: Console) -> None:
    config, processes = trainer.config, distributed.world_size()
    noun = trainer.dataset.noun
    console.print(
        f"{config.method} on {config.data} "
        + resolution(config.size, config.dimensions, trainer.dataset.resampled)
        + (
            ""
            if config.patch is None
            else f", patches of {written(config.patch, config.dimensions)}"
        )
        + f": {len(trainer.labelled)} labelled and "
        f"{counted(len(trainer.unlabelled), f'unlabelled {noun}')}, "
        f"{len(trainer.validation)} for validation, {len(trainer.split.test)} for the test; "
        f"device {trainer.device}{f', {processes} processes' if processes > 1 else ''}"
    )
    if config.precision == "bfloat16" and emulates_bfloat16(trainer.device):
        console.print(
            f"{trainer.device} has no instructions for bfloat16: --precision float32 is faster."
        )
    if trainer.dataset.extents is not None and isinstance(trainer.dataset.images, torch.Tensor):
        taken = (trainer.dataset.images.nbytes + trainer.dataset.masks.nbytes) / 2**20
        console.print(f"Each {noun} takes the memory of the largest, all {taken:,.1f} MiB.")
    parts = {
        "labelled": trainer.labelled,
        "validation": trainer.validation,
        "test": trainer.split.test,
    }
    for part, indices in parts.items():
        if absent := trainer.dataset.absent_from(indices):
            console.print(f"No {part} {noun} shows {', '.join(absent)}.")
        if remark := trainer.dataset.size_remark(indices, part):
            console.print(remark)
    for remark in split_remarks(trainer.dataset, trainer.split):
        console.print(remark)
    if not is_installed("tensorboard"):
        console.print('No TensorBoard events: run `pip install "tcwarp[tensorboard]"` for them.')


def _finish(trainer: Trainer, console: Console, show_results: bool) -> dict[str, Any]:
    """Evaluate the best network and the pre-trained one; write and print the results."""
    config, state, run = trainer.config, trainer.state, trainer.run
    network, dataset, split = trainer.network, trainer.dataset, trainer.split
    network.load_state_dict(state.pretrained)
    pretrained = evaluate(network, dataset, split.test)
    load_weights(network, state.best, run.path, config.network)
    run.save_weights(network.state_dict())
    trainer.description.save(run.path)
    test = evaluate(network, dataset, split.test)
    processed = evaluate(network, dataset, split.test, postprocess=True)
    validation = evaluate(network, dataset, trainer.validation)
    cases = spread(split.test)
    labelled = counted(len(trainer.labelled), f"labelled {dataset.noun}")
    title = f"{config.method}, {labelled}, {config.data}"
    prediction = {"prediction": predict(network, dataset, cases)}
    save_panel(run.path / "test.png", dataset, cases, prediction, title)
    summary = {
        **{name: getattr(config, name) for name in ("data", "size", "method")},
        "labelled": len(trainer.labelled),
        **{name: getattr(config, name) for name in ("split", "seed", "recipe", "pretrain_steps")},
        "steps": config.steps,
        "validation_images": len(trainer.validation),
        "best_step": state.best_step,
        "seconds": state.seconds,
        "device": str(trainer.device),
        "test": _without_images(test),
        "test_postprocessed": _without_images(processed),
        "validation": _without_images(validation),
        "pretrained_test": _without_images(pretrained),
    }
    run.save_summary(summary)
    if show_results:
        title = (
            f"{counted(len(split.test), f'test {dataset.noun}')}, {state.seconds:.0f} s of training"
        )
        console.print(results_table({"pre-trained": pretrained, config.method: test}, title))
        console.print(f"Weights, figures and pictures: {run.path}")
    return summary


def _without_images(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "images"}
