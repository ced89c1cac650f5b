"""The methods that can be trained, one small record each."""

from dataclasses import dataclass

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
    """

    consistency: bool = True
    pool: tuple[str, ...] = ()

    def unlabelled(self, split: Split, labelled: list[int]) -> list[int]:
        """Return the images of the pool, none of them labelled."""
        known = set(labelled)
        return [i for part in self.pool for i in getattr(split, part) if i not in known]


METHODS: dict[str, Method] = {
    "baseline": Method(consistency=False),
    "suptc": Method(),
    "semitc": Method(pool=("train",)),
    "semitc+": Method(pool=("train", "validation", "test")),
}
