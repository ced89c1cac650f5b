"""Which images train, validate and test, and which of the training images are labelled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dataset import DataError, Dataset

JSRT_SPLITS = 5
TRAINING_IMAGES = 100


@dataclass(frozen=True)
class Split:
    """Indices into a data set; the order of `train` decides which images are labelled first."""

    train: list[int]
    validation: list[int]
    test: list[int]


def make_split(dataset: Dataset, split: int) -> Split:
    """Divide a data set into training, validation and test images.

    JSRT, splits 0 to 4: the images with even numbers are the test set of even splits, those with
    odd numbers of odd ones. Of the rest, shuffled by the split number, 100 train and the others
    validate (a partial copy of the data keeps at least a sixth of the rest for validation).

    Phantom: the same 100 training, 20 validation and 40 test images for every split; the split
    number only shuffles the training images, and so draws other labelled ones.

    Raises
    ------
    DataError
        If the data set has no such split.
    """
    if dataset.name == "jsrt":
        return _jsrt_split(dataset, split)
    if split < 0:
        raise DataError(f"{dataset.name}: split must be 0 or more, got {split}")
    train = np.random.default_rng([split, len(dataset)]).permutation(TRAINING_IMAGES)
    return Split(
        train=train.tolist(),
        validation=list(range(TRAINING_IMAGES, TRAINING_IMAGES + 20)),
        test=list(range(TRAINING_IMAGES + 20, len(dataset))),
    )


def _jsrt_split(dataset: Dataset, split: int) -> Split:
    if not 0 <= split < JSRT_SPLITS:
        raise DataError(f"jsrt: split must be 0 to {JSRT_SPLITS - 1}, got {split}")
    # The parity of the id's number, as in the two folds of the SCR masks.
    parity = np.array([int(name[-3:]) % 2 for name in dataset.ids])
    test = np.flatnonzero(parity == split % 2)
    rest = np.flatnonzero(parity != split % 2)
    if len(test) == 0 or len(rest) < 2:
        raise DataError(
            f"jsrt: split {split} needs a test image and two others, "
            f"got {len(test)} and {len(rest)} of {len(dataset)} images"
        )
    rest = np.random.default_rng([split, len(dataset)]).permutation(rest)
    count = min(TRAINING_IMAGES, len(rest) - max(1, len(rest) // 6))
    return Split(
        train=rest[:count].tolist(),
        validation=sorted(rest[count:].tolist()),
        test=test.tolist(),
    )


def labelled_subset(split: Split, count: int) -> list[int]:
    """Return the first `count` training images: subsets of one split are nested.

    Raises
    ------
    DataError
        If `count` is below 1 or exceeds the training images.
    """
    if not 1 <= count <= len(split.train):
        raise DataError(
            f"{count} labelled images asked for, but the training set has {len(split.train)}; "
            f"choose 1 to {len(split.train)}"
        )
    return split.train[:count]
