"""Training: supervised pre-training, then fine-tuning by a method from that same network."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from torch import Tensor, nn

from tcseg.config import Config, resolve_device
from tcseg.data import Dataset, Split, labelled_subset, load_dataset, make_split
from tcseg.evaluation import evaluate, predict, results_table, validation_miou
from tcseg.methods import METHODS, Method
from tcseg.network import build_network
from tcseg.runs import RunError, RunFolder, load_checkpoint
from tcseg.siamese import siamese_objective
from tcseg.transforms import RECIPES

LOG_EVERY = 20  # steps between looks at the loss: each look waits for the device
PICTURE_CASES = 4
SUPERVISED = Method(consistency=False)


@dataclass
class Progressed:
    """How far a training is, and the best network so far; all of it is in the checkpoint."""

    step: int = 0
    best_miou: float = -1.0
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    pretrained: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


class Trainer:
    """One training, from a new network to its best checkpoint.

    Parameters
    ----------
    config : Config
        Validated options.
    run : RunFolder
        Where figures and checkpoints go.
    """

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        self.device = resolve_device(config.device)
        self.dataset: Dataset = load_dataset(config.data, root=config.root, size=config.size)
        self.split: Split = make_split(self.dataset, config.split)
        self.labelled = labelled_subset(self.split, config.labelled)
        self.method = METHODS[config.method]
        self.unlabelled = self.method.unlabelled(self.split, self.labelled)
        self.dataset = self.dataset.to(self.device)
        self.transform = RECIPES[config.recipe]
        torch.manual_seed(config.seed)
        self.network: nn.Module = build_network(
            config.network, len(self.dataset.classes), config.precision
        )
        # Convolutions on CPU and on tensor cores are faster in this layout.
        self.network.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = self._new_optimizer()
        # Batches and transforms are drawn from here, on the device: no waiting. Only dropout, of a
        # network that has it, draws from torch's global generator.
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.state = Progressed()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adadelta(self.network.parameters(), lr=self.config.learning_rate)

    @property
    def total_steps(self) -> int:
        """Steps of both phases."""
        return self.config.pretrain_steps + self.config.steps

    def batch(self, method: Method) -> tuple[Tensor, Tensor]:
        """Draw images (b, 1, H, W), labelled ones first, and the labels of those as bits."""
        size = self.config.batch_size
        semi = bool(method.pool and self.unlabelled)
        labelled = self._sample(self.labelled, size // 2 if semi else size)
        indices = labelled
        if semi:
            indices = torch.cat([labelled, self._sample(self.unlabelled, size - size // 2)])
        return self.dataset.image_batch(indices), self.dataset.masks[labelled, None]

    def _sample(self, pool: list[int], count: int) -> Tensor:
        # Whole shuffles one after the other: no image twice before each came once.
        rounds = -(-count // len(pool))
        shuffles = [
            torch.randperm(len(pool), generator=self.generator, device=self.device)
            for _ in range(rounds)
        ]
        order = torch.cat(shuffles)[:count]
        return torch.as_tensor(pool, device=self.device)[order]

    def step(self, method: Method) -> dict[str, Tensor]:
        """Do one step of Equation 1; return its terms, still on the device."""
        images, labels = self.batch(method)
        objective = siamese_objective(
            self.network,
            images.contiguous(memory_format=torch.channels_last),
            labels,
            self.transform,
            self.generator,
            classes=len(self.dataset.classes),
            consistency_weight=self.config.consistency_weight if method.consistency else 0.0,
        )
        self.optimizer.zero_grad(set_to_none=True)
        objective.total.backward()
        self.optimizer.step()
        return {
            "loss": objective.total.detach(),
            "supervised": objective.supervised.detach(),
            "consistency": objective.consistency.detach(),
        }

    def fit(self, show: Callable[[int, float, float], None]) -> None:
        """Train from where the state is to the end; `show(step, loss, best mIOU)` as it goes."""
        state, config = self.state, self.config
        started = time.monotonic() - state.seconds
        terms: dict[str, Tensor] = {}
        logged_at = state.step
        while True:
            if state.step == config.pretrain_steps and not state.pretrained:
                self._begin_method()
                self.save()  # so that a kill does not begin it, and log it, twice
            if state.step >= self.total_steps:
                break
            pretraining = state.step < config.pretrain_steps
            self.network.train()
            self._set_learning_rate()
            for name, value in self.step(SUPERVISED if pretraining else self.method).items():
                terms[name] = terms.get(name, 0) + value
            state.step += 1
            phase_end = state.step in (config.pretrain_steps, self.total_steps)
            saving = state.step % config.checkpoint_every == 0 or phase_end
            # Also before every checkpoint: none is written whose loss was not looked at.
            if state.step % LOG_EVERY == 0 or saving:
                means = {k: float(v) / (state.step - logged_at) for k, v in terms.items()}
                self._check_finite(means["loss"])
                phase = "pre-training" if pretraining else config.method
                self.run.log({"step": state.step, "phase": phase, **means})
                show(state.step, means["loss"], state.best_miou)
                terms, logged_at = {}, state.step
            if state.step % config.validate_every == 0 or phase_end:
                self._validate()
                show(state.step, float("nan"), state.best_miou)
            if saving:
                state.seconds = time.monotonic() - started
                self.save()
        state.seconds = time.monotonic() - started

    def _set_learning_rate(self) -> None:
        """Keep the rate in pre-training; let it fall to 0 over the steps of the method."""
        config = self.config
        done = max(0, self.state.step - config.pretrain_steps) / config.steps
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - done)

    def _begin_method(self) -> None:
        """Go on from the best network of pre-training, with a new optimizer."""
        state = self.state
        if state.best:
            self.network.load_state_dict(state.best)
        self.optimizer = self._new_optimizer()
        state.pretrained = self._copy_weights()
        # Own streams: a run that took pre-training over goes on exactly as one that did it.
        self.generator.manual_seed(self.config.seed + 2**32)
        torch.manual_seed(self.config.seed + 2**32)
        state.best_miou = -1.0
        self._validate()

    def _validate(self) -> None:
        state = self.state
        miou = validation_miou(self.network, self.dataset, self.split.validation)
        self.run.log({"step": state.step, "validation_miou": miou})
        if miou > state.best_miou:
            state.best_miou, state.best_step = miou, state.step
            state.best = self._copy_weights()

    def _copy_weights(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.network.state_dict())

    def _check_finite(self, loss: float) -> None:
        if loss != loss or abs(loss) == float("inf"):
            raise RunError(
                f"the loss became {loss} before step {self.state.step}; the last checkpoint in "
                f"{self.run.path} is from before. Try a lower --learning-rate"
            )

    def save(self) -> None:
        """Write a checkpoint from which training goes on bit for bit (on CPU)."""
        self.run.save_checkpoint(
            {
                **vars(self.state),
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "global_generator": torch.get_rng_state(),
            }
        )

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Raises
        ------
        RunError
            If it is incomplete or of another network.
        """
        try:
            self.state = Progressed(**{name: checkpoint[name] for name in vars(Progressed())})
            self.network.load_state_dict(checkpoint["network"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.generator.set_state(checkpoint["generator"])
            torch.set_rng_state(checkpoint["global_generator"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.run.path / 'checkpoint.pt'}: incomplete, or of another network than "
                f"{self.config.network!r}; delete it to start the run again"
            ) from error

    def take_pretrained(self, path: Path) -> None:
        """Start after the pre-training that another run has done.

        Raises
        ------
        RunError
            If that run is of other data, or has not finished pre-training.
        """
        theirs = RunFolder(path).config()
        fixed = ("data", "size", "labelled", "split", "seed", "recipe", "network", "pretrain_steps")
        for name in (*fixed, "batch_size", "learning_rate", "validate_every", "precision"):
            here, there = getattr(self.config, name), getattr(theirs, name)
            if here != there:
                option = name.replace("_", "-")
                raise RunError(
                    f"--pretrained {path}: its pre-training had --{option} {there!r}, here it is "
                    f"{here!r}; use the same, or leave out --pretrained"
                )
        checkpoint = load_checkpoint(path / "checkpoint.pt")
        if not checkpoint.get("pretrained"):
            raise RunError(f"--pretrained {path}: its pre-training is not finished")
        try:
            self.network.load_state_dict(checkpoint["pretrained"])
        except RuntimeError as error:
            raise RunError(
                f"--pretrained {path}: its weights do not fit network {self.config.network!r}; "
                "was its code changed?"
            ) from error
        self.state.best = checkpoint["pretrained"]
        self.state.step = self.config.pretrain_steps


def train(config: Config, out: Path, resume: bool, *, show_results: bool = True) -> dict[str, Any]:
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

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    ValueError, RunError, DataError
        One clear line; nothing was overwritten.
    """
    config.validate()
    console = Console()
    with RunFolder.create(out, config, resume=resume) as run:
        trainer = Trainer(config, run)
        _start(trainer, resume)
        _describe(trainer, console)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console, refresh_per_second=4) as progress:
            bar = progress.add_task("training", total=trainer.total_steps, figures="")

            def show(step: int, loss: float, miou: float) -> None:
                figures = f"best validation mIOU {miou:.3f}" if miou >= 0 else ""
                figures = figures if loss != loss else f"loss {loss:.3f}  {figures}"
                pretraining = step <= config.pretrain_steps
                name = "pre-training" if pretraining else config.method
                progress.update(bar, completed=step, figures=figures, description=name)

            show(trainer.state.step, float("nan"), trainer.state.best_miou)
            trainer.fit(show)
        return _finish(trainer, console, show_results)


def _start(trainer: Trainer, resume: bool) -> None:
    checkpoint = trainer.run.load_checkpoint() if resume else None
    if checkpoint is not None:
        trainer.load(checkpoint)
    elif trainer.config.pretrained is not None:
        trainer.take_pretrained(Path(trainer.config.pretrained))
    if resume:
        trainer.run.rewind(trainer.state.step)


def _describe(trainer: Trainer, console: Console) -> None:
    config, split = trainer.config, trainer.split
    console.print(
        f"{config.method} on {config.data} at {config.size} x {config.size}: "
        f"{len(trainer.labelled)} labelled and {len(trainer.unlabelled)} unlabelled images, "
        f"{len(split.validation)} for validation, {len(split.test)} for the test; "
        f"device {trainer.device}",
        highlight=False,
        soft_wrap=True,
    )


def picture_cases(indices: list[int]) -> list[int]:
    """Choose a few cases, evenly spread, for a picture."""
    return indices[:: max(1, len(indices) // PICTURE_CASES)][:PICTURE_CASES]


def _finish(trainer: Trainer, console: Console, show_results: bool) -> dict[str, Any]:
    """Evaluate the best network and the pre-trained one; write and print the results."""
    from tcseg.pictures import save_panel

    config, state, run = trainer.config, trainer.state, trainer.run
    network, dataset, split = trainer.network, trainer.dataset, trainer.split
    network.load_state_dict(state.pretrained)
    pretrained = evaluate(network, dataset, split.test)
    network.load_state_dict(state.best)
    run.save_weights(network.state_dict())
    test = evaluate(network, dataset, split.test)
    validation = evaluate(network, dataset, split.validation)
    cases = picture_cases(split.test)
    title = f"{config.method}, {config.labelled} labelled images, {config.data}"
    prediction = {"prediction": predict(network, dataset, cases)}
    save_panel(run.path / "test.png", dataset, cases, prediction, title)
    summary = {
        **{name: getattr(config, name) for name in ("data", "size", "method", "labelled")},
        **{name: getattr(config, name) for name in ("split", "seed", "recipe", "pretrain_steps")},
        "steps": config.steps,
        "best_step": state.best_step,
        "seconds": state.seconds,
        "device": str(trainer.device),
        "test": _without_images(test),
        "validation": _without_images(validation),
        "pretrained_test": _without_images(pretrained),
    }
    run.save_summary(summary)
    if show_results:
        title = f"{len(split.test)} test images, {state.seconds:.0f} s of training"
        console.print(results_table({"pre-trained": pretrained, config.method: test}, title))
        where = f"Weights, figures and pictures: {run.path}"
        console.print(where, highlight=False, soft_wrap=True)
    return summary


def _without_images(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "images"}
