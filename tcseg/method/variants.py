"""The methods that can be trained, one small record each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # `tcseg --help` reads the names of the methods, and must not import torch
    from tcseg.data import Split


@dataclass(frozen=True)
class Method:
    """What a method adds to supervised fine-tuning.

    Attributes
    ----------
    consistency : bool
        Whether the consistency term of Equation 1 is part of the loss.
    pool : tuple of str
        Parts of the data whose images are used without labels, beside the labelled ones:
        ``"train"`` (its unlabelled rest), ``"validation"``, ``"test"``.
    target : {"branch", "stopped", "teacher"}
        What the second branch is to agree with: the first branch, with gradient to both (the
        paper); the first branch without (self-ensembling, Laine and Aila, "Temporal ensembling
        for semi-supervised learning", ICLR 2017); the prediction of a teacher, the moving average
        of the network (Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS
        2017), which is then the network that is kept.
    """

    consistency: bool = True
    pool: tuple[str, ...] = ()
    target: Literal["branch", "stopped", "teacher"] = "branch"

    def unlabelled(self, split: Split, labelled: list[int]) -> list[int]:
        """Return the images of the pool, each once, none of them labelled."""
        parts = {"train": split.train + split.unlabelled}
        images = [i for part in self.pool for i in parts.get(part, getattr(split, part))]
        return [i for i in dict.fromkeys(images) if i not in set(labelled)]


METHODS: dict[str, Method] = {
    "baseline": Method(consistency=False),
    "suptc": Method(),
    "semitc": Method(pool=("train",)),
    "semitc+": Method(pool=("train", "validation", "test")),
    "stopgrad": Method(pool=("train",), target="stopped"),
    "mean-teacher": Method(pool=("train",), target="teacher"),
}
