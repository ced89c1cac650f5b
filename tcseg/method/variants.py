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
        2017).
    hard : bool
        Whether a fixed target is a mask, where it exceeds one half, and not a probability.
    mix : {"none", "boxes", "labelled"}
        Whether boxes of the second view come from another image, and so does what is to be found
        there: from any image of the batch, or a labelled one for an unlabelled one and the other
        way round. A labelled image's target in the consistency term is then its label.
    exposure : bool
        Whether exposure and contrast of the second view are changed as well.
    keep : {"network", "average"}
        What is validated, chosen and saved: the network, or the moving average of its weights.
    """

    consistency: bool = True
    pool: tuple[str, ...] = ()
    target: Literal["branch", "stopped", "teacher"] = "branch"
    hard: bool = False
    mix: Literal["none", "boxes", "labelled"] = "none"
    exposure: bool = False
    keep: Literal["network", "average"] = "network"

    @property
    def averages(self) -> bool:
        """Whether a moving average of the network's weights is needed."""
        return self.target == "teacher" or self.keep == "average"

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
    "mean-teacher": Method(pool=("train",), target="teacher", keep="average"),
    # Beyond the paper.
    "semitc-average": Method(pool=("train",), keep="average"),
    "semitc-teacher": Method(
        pool=("train",), target="teacher", hard=True, mix="boxes", exposure=True, keep="average"
    ),
    "semitc-paste": Method(
        pool=("train",), target="teacher", hard=True, mix="labelled", exposure=True, keep="average"
    ),
}
