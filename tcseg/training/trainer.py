"""One training: supervised pre-training, then a method from that same network."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tcseg.data import (
    Dataset,
    Split,
    labelled_subset,
    load_dataset,
    make_split,
    split_record,
    validation_subset,
)
from tcseg.errors import RunError, RunStopped
from tcseg.evaluation.evaluate import predict, validation_miou
from tcseg.evaluation.pictures import save_progress, spread
from tcseg.io.sizes import shape_of
from tcseg.method.losses import LOSSES, over_batch
from tcseg.method.mixing import MIXES
from tcseg.method.objective import siamese_objective
from tcseg.method.recipes import recipe
from tcseg.method.transforms import Compose, Intensity, Transform
from tcseg.method.variants import METHODS, Method
from tcseg.runs.config import Config, resolve_device
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model, load_weights
from tcseg.training import distributed
from tcseg.training.batches import Batches
from tcseg.training.schedule import consistency_weight, learning_rate
from tcseg.training.state import TrainingState, pretrained_weights

LABELLED = 5  # images, where the number is not given
LOG_EVERY = 20  # steps between looks at the loss: each look waits for the device
SUPERVISED = Method(consistency=False)


def divided(config: Config, dataset: Dataset) -> tuple[Split, list[int], list[int]]:
    """Return the split of a training, its labelled images, and those that it validates on."""
    split = make_split(dataset, config.split, config.split_file)
    default = None if config.data == "folder" else LABELLED
    labelled = labelled_subset(split, config.labelled or default)
    return split, labelled, validation_subset(split, config.validation_images)


class Trainer:
    """One training, from a new network to its best checkpoint.

    Parameters
    ----------
    config : Config
        Validated options.
    run : RunFolder
        Where figures and checkpoints go.
    device : torch.device, optional
        In place of the one in the options: the GPU of this process.
    """

    def __init__(self, config: Config, run: RunFolder, device: torch.device | None = None) -> None:
        self.config, self.run = config, run
        self.device = resolve_device(config.device) if device is None else device
        dataset = load_dataset(config.data, **config.reading, scale=run.scale)
        self.split, self.labelled, self.validation = divided(config, dataset)
        self.method = METHODS[config.method]
        self.unlabelled = self.method.unlabelled(self.split, self.labelled)
        count = config.batch_size // 2 if self.unlabelled else config.batch_size
        distributed.share(config.batch_size, count, self.device)  # or an error, before any work
        self.dataset: Dataset = dataset.to(self.device)
        torch.manual_seed(config.seed)
        self.description = Model.of(config, self.dataset)
        self.network = self.description.new_network()
        self.pixel = None if config.dimensions == 2 else self.dataset.pixel
        # Convolutions on CPU and on tensor cores are faster in this layout.
        self.layout = torch.channels_last if config.dimensions == 2 else torch.channels_last_3d
        self.network.to(self.device)
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        # What trains is the same network, in several processes wrapped to average gradients.
        self.model = distributed.parallel(self.network)
        if config.compile:
            self.network.backbone.compile(dynamic=False)  # not what slides it over images
        self.teacher: AveragedModel | None = None
        self.optimizer = self._new_optimizer()
        # Batches and transforms are drawn from here, on the device: no waiting. Only dropout, of a
        # network that has it, draws from torch's global generator.
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.batches = Batches(
            self.dataset,
            self.labelled,
            self.unlabelled,
            config.batch_size,
            self.generator,
            config.patch,
        )
        self.state = TrainingState()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        # In one call for all weights: on the CPU, too, less than a loop over them in Python.
        return torch.optim.Adadelta(
            self.network.parameters(), lr=self.config.learning_rate, foreach=True
        )

    @property
    def total_steps(self) -> int:
        """Steps of both phases."""
        return self.config.pretrain_steps + self.config.steps

    def views(self, method: Method) -> tuple[Transform, Transform]:
        """Return the distributions that both views of this step are drawn from."""
        config, strength = self.config, self.config.displacement_std
        if self.state.step < config.pretrain_steps and config.pretrain_displacement_std is not None:
            strength = config.pretrain_displacement_std
        view = recipe(config.recipe, strength, self.pixel)
        return view, Compose([view, Intensity()]) if method.exposure else view

    def _loss(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        return over_batch(LOSSES[name]) if self.config.loss_over == "batch" else LOSSES[name]

    def step(self, method: Method) -> dict[str, Tensor]:
        """Do one step of Equation 1; return its terms, still on the device."""
        config = self.config
        images, labels, (first, second), inside = self.batches.draw(method, self.views(method))
        objective = siamese_objective(
            self.model,
            images.contiguous(memory_format=self.layout),
            labels,
            first,
            self.generator,
            second=second,
            classes=len(self.dataset.classes),
            exclusive=self.dataset.exclusive,
            ignores=self.dataset.ignores,
            supervised_loss=self._loss(config.loss),
            consistency_loss=self._loss(config.consistency_loss),
            consistency_weight=consistency_weight(config, self.state.step)
            if method.consistency
            else 0.0,
            stop_gradient=method.target == "stopped",
            teacher=self.teacher if method.target == "teacher" else None,
            hard=method.hard,
            mix=MIXES.get(method.mix),
            patch=None if config.patch is None else shape_of(config.patch, config.dimensions),
            inside=inside,
        )
        self.optimizer.zero_grad(set_to_none=True)
        objective.total.backward()
        self.optimizer.step()
        if self.teacher is not None:
            self.teacher.update_parameters(self.network)
        return {
            "loss": objective.total.detach(),
            "supervised": objective.supervised.detach(),
            "consistency": objective.consistency.detach(),
        }

    def fit(
        self, show: Callable[[int, float, float], None], stop: Callable[[], int] = lambda: 0
    ) -> None:
        """Train from where the state is to the end.

        Parameters
        ----------
        show : callable
            Gets step, loss (nan if not known) and best validation mIOU as it goes.
        stop : callable
            Asked after each step whether to stop here: the number of a signal, or 0.

        Raises
        ------
        RunError
            If the loss is no longer finite.
        RunStopped
            When told to stop, after a checkpoint.
        """
        state, config = self.state, self.config
        started = time.monotonic() - state.seconds
        terms: dict[str, Tensor] = {}
        logged_at = state.step
        while True:
            if state.step == config.pretrain_steps and not state.pretrained:
                self.begin_method()
                self.save()  # so that a kill does not begin it, and log it, twice
            if state.step >= self.total_steps:
                break
            pretraining = state.step < config.pretrain_steps
            self.network.train()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(config, state.step)
            for name, value in self.step(SUPERVISED if pretraining else self.method).items():
                terms[name] = terms.get(name, 0) + value
            state.step += 1
            phase_end = state.step in (config.pretrain_steps, self.total_steps)
            # Several processes stop at one step; to agree on it at each would cost time.
            ask = distributed.world_size() == 1 or state.step % LOG_EVERY == 0
            stopping = distributed.highest(stop(), self.device) if ask else 0
            saving = state.step % config.checkpoint_every == 0 or phase_end or bool(stopping)
            # Also before every checkpoint: none is written whose loss was not looked at.
            if state.step % LOG_EVERY == 0 or saving:
                means = {k: float(v) / (state.step - logged_at) for k, v in terms.items()}
                means = distributed.mean(means, self.device)
                self._check_finite(means["loss"])
                phase = "pre-training" if pretraining else config.method
                self._log({"step": state.step, "phase": phase, **means})
                show(state.step, means["loss"], state.best_miou)
                terms, logged_at = {}, state.step
            if state.step % config.validate_every == 0 or phase_end:
                self.validate()
                show(state.step, float("nan"), state.best_miou)
            if saving:
                state.seconds = time.monotonic() - started
                self.save()
            if stopping and state.step < self.total_steps:
                raise RunStopped(f"{self.run.path}: stopped at step {state.step}", stopping)
        state.seconds = time.monotonic() - started

    def begin_method(self) -> None:
        """Continue from the best network of pre-training, with a new optimizer."""
        state = self.state
        if state.best:
            self.network.load_state_dict(state.best)
        self.optimizer = self._new_optimizer()
        state.pretrained = copy.deepcopy(self.network.state_dict())
        self.make_teacher()
        # Random streams of its own: a run that took over a pre-training continues exactly like the
        # one that did it.
        self.generator.manual_seed(self.config.seed + 2**32)
        torch.manual_seed(self.config.seed + 2**32)
        state.best_miou = -1.0
        self.validate()

    def make_teacher(self) -> None:
        """Copy the network to its moving average, where the method has one."""
        if self.method.averages:
            average = get_ema_multi_avg_fn(self.config.teacher_decay)
            self.teacher = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
            self.teacher.update_parameters(self.network)  # the first one copies
            self.teacher.eval()

    def validate(self) -> None:
        """Measure the network on the validation images; keep it, and draw it, if it is the best."""
        state = self.state
        network: torch.nn.Module = self.network
        if self.teacher is not None and self.method.keep == "average":
            network = self.teacher.module
        miou = validation_miou(network, self.dataset, self.validation)
        self._log({"step": state.step, "validation_miou": miou})
        miou = 0.0 if math.isnan(miou) else miou  # nothing to choose by: keep the first
        if miou > state.best_miou:
            state.best_miou, state.best_step = miou, state.step
            state.best = copy.deepcopy(network.state_dict())
            if distributed.rank() == 0:
                cases = spread(self.validation)
                predictions = predict(network, self.dataset, cases)
                save_progress(self.run.path / "validation.png", self.dataset, cases, predictions)

    def _log(self, row: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            self.run.log(row)

    def _check_finite(self, loss: float) -> None:
        if loss != loss or abs(loss) == float("inf"):
            way = "nothing is kept"
            if (self.run.path / "checkpoint.pt").exists():
                way = f"the last checkpoint in {self.run.path} is from before"
            raise RunError(
                f"the loss became {loss} before step {self.state.step}; {way}. Try a lower "
                "`learning_rate`"
            )

    def save(self) -> None:
        """Write a checkpoint from which training continues bit for bit (on the CPU)."""
        if distributed.rank() != 0:
            return
        if self.teacher is not None:
            self.state.teacher = self.teacher.state_dict()
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
            self.state = TrainingState.of(checkpoint)
            self.state.check(self.network, self.total_steps)
            self.network.load_state_dict(checkpoint["network"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            if self.state.teacher:
                self.make_teacher()
                assert self.teacher is not None
                self.teacher.load_state_dict(self.state.teacher)
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
        record = split_record(self.dataset, self.split)
        weights = pretrained_weights(path, self.config, record)
        load_weights(self.network, weights, f"`pretrained` {path}", self.config.network)
        self.state.best = weights
        self.state.step = self.config.pretrain_steps
