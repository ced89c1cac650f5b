"""Where a training stands: what its checkpoint holds, and what another run has done for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tcseg.errors import RunError
from tcseg.runs.checkpoint import load_checkpoint
from tcseg.runs.config import AFTER_PRETRAINING, MAY_DIFFER_ON_RESUME, Config
from tcseg.runs.folder import RunFolder


@dataclass
class TrainingState:
    """How far a training is, and the best network so far; all of it is in the checkpoint.

    Networks are state dictionaries; `teacher` is empty for methods without one.
    """

    step: int = 0
    best_miou: float = -1.0
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    pretrained: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> TrainingState:
        """Take it out of a checkpoint, which anybody may have written.

        Raises
        ------
        KeyError
            If it lacks a part.
        ValueError
            If a part is of another type.
        """
        state = cls(**{part.name: checkpoint[part.name] for part in fields(cls)})
        for name, empty in vars(cls()).items():
            if not isinstance(value := getattr(state, name), type(empty)):
                raise ValueError(f"{name} must be {type(empty).__name__}, got {value!r:.80}")
        return state

    def check(self, network: nn.Module, steps: int) -> None:
        """Raise ValueError if it is of another network, or of a longer training."""
        if not 0 <= self.step <= steps:
            raise ValueError(f"step {self.step} of {steps}")
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        for weights in (self.best, self.pretrained):
            if weights and {name: value.shape for name, value in weights.items()} != shapes:
                raise ValueError("weights of another network")


def pretrained_weights(path: Path, config: Config, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that the pre-training of another run has ended with.

    Parameters
    ----------
    path
        Folder of that run.
    config
        Options of this run.
    record
        Images and structures of this run, as `tcseg.data.split_record` gives them.

    Raises
    ------
    RunError
        If that run is of other data or options, or has not finished pre-training.
    """
    run = RunFolder(path)
    try:
        theirs = run.config()
    except RunError as error:
        raise RunError(f"`pretrained` {error}") from error
    differences = config.differences(theirs, MAY_DIFFER_ON_RESUME + AFTER_PRETRAINING)
    if differences:
        raise RunError(
            f"`pretrained` {path}: its pre-training had other options "
            f"({'; '.join(differences)}); use the same, or leave out `pretrained`"
        )
    if run.split_record() != record:
        raise RunError(
            f"`pretrained` {path}: its pre-training was of other images, masks or structures "
            f"({path / 'split.json'}); leave out `pretrained`"
        )
    weights: dict[str, Tensor] = load_checkpoint(path / "checkpoint.pt").get("pretrained", {})
    if not weights:
        raise RunError(f"`pretrained` {path}: its pre-training is not finished")
    return weights
