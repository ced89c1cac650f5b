"""Which images train, validate and test, and which of the training images are labelled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize

import numpy as np

from tcseg.data.dataset import Dataset
from tcseg.errors import DataError, counted
from tcseg.io.files import read_json, write_json

JSRT_SPLITS = 5
TRAINING_IMAGES = 100


@dataclass(frozen=True)
class Split:
    """Indices into a data set.

    The order of `train` decides which images are labelled first, that of `validation` which ones
    choose the network where not all do. `unlabelled` are images without masks; they belong to the
    training set.
    """

    train: list[int]
    validation: list[int]
    test: list[int]
    unlabelled: list[int] = field(default_factory=list)


def make_split(dataset: Dataset, split: int, file: str | os.PathLike[str] | None = None) -> Split:
    """Divide a data set into training, validation and test images.

    JSRT, splits 0 to 4: the images with even numbers are the test set of even splits, those with
    odd numbers of odd ones. Of the rest, shuffled by the split number, 100 train and the others
    validate (a partial copy of the data keeps at least a sixth of the rest for validation).

    Phantom: the same 100 training, 20 validation and 40 test images for every split (30, 6 and 12
    volumes); the split number only shuffles the training images, and so draws other labelled ones.

    Folder: the patients with masks (files, where nothing says more), shuffled by the split number;
    a fifth of them validates (one at least), a fifth is the test set, the others train. Below five
    the validation images are the test set as well. Images without masks of those that validate or
    test are not used.

    Parameters
    ----------
    dataset
        The images.
    split
        Number of the split.
    file
        A file of splits as `save_splits` writes it, in place of the built-in ones.

    Raises
    ------
    DataError
        If the data set has no such split, or the file cannot be used.
    """
    if file is not None:
        splits = read_splits(file, dataset)
        if not 0 <= split < len(splits):
            raise DataError(f"`split_file` {file}: has {len(splits)} splits, from 0, got {split}")
        return splits[split]
    if dataset.name == "jsrt":
        return _jsrt_split(dataset, split)
    if split < 0:
        raise DataError(f"{dataset.name}: split must be 0 or more, got {split}")
    if dataset.name == "folder":
        return _folder_split(dataset, split)
    count = len(dataset)
    training, rest = 5 * count // 8, 6 * count // 8  # 100 and 20 of 160, and 40 for the test
    train = np.random.default_rng([split, count]).permutation(training)
    return Split(train.tolist(), list(range(training, rest)), list(range(rest, count)))


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
        validation=rest[count:].tolist(),
        test=test.tolist(),
    )


def _folder_split(dataset: Dataset, split: int) -> Split:
    # Images of one patient stay together: they are too alike to be tested on each other.
    groups: dict[str, list[int]] = {}
    for index in dataset.with_masks:
        groups.setdefault(dataset.group_of(index), []).append(index)
    if len(groups) < 2:
        by = dataset.grouped_by
        what = "image file with masks" if by is None else f"group of images with masks, by {by}"
        way = "" if by is None else "; `group` '.+' takes each file for a patient of its own"
        raise DataError(
            f"folder: {len(groups)} {what}; two are needed at least, one to train and one to "
            f"choose the network{way}"
        )
    order = np.random.default_rng([split, len(dataset)]).permutation(sorted(groups))
    fifth = len(groups) // 5
    parts = np.split(order, [fifth, fifth + max(1, fifth)])
    test, validation, train = ([i for name in part for i in groups[name]] for part in parts)
    return Split(train, validation, test or validation, _unlabelled(dataset, validation + test))


def _unlabelled(dataset: Dataset, held_out: Sequence[int] = ()) -> list[int]:
    """Return the images without masks, but for those of the patients that are held out."""
    groups = set(map(dataset.group_of, held_out))
    without = sorted(set(range(len(dataset))) - set(dataset.with_masks))
    return [index for index in without if dataset.group_of(index) not in groups]


def split_remarks(dataset: Dataset, split: Split) -> list[str]:
    """Say which masks a split leaves out, what groups there are, and where it divides them."""
    lines = []
    named = {*split.train, *split.validation, *split.test}
    if left_out := [dataset.ids[i] for i in dataset.with_masks if i not in named]:
        images, some = counted(len(left_out), dataset.noun), ", ".join(left_out[:3])
        lines.append(
            f"Not used: {images} with masks ({some}), as the split file names them in no part."
        )
    if dataset.grouped_by is None:
        return lines
    trained, chosen, tested = (
        set(map(dataset.group_of, part)) for part in (split.train, split.validation, split.test)
    )
    divided = (trained & (chosen | tested)) | (chosen & tested if chosen != tested else set())
    count = len({dataset.group_of(index) for index in range(len(dataset))})
    images, groups = counted(len(dataset), dataset.noun), counted(count, "group")
    lines.append(f"{images} in {groups}, by {dataset.grouped_by}.")
    if divided:
        some = ", ".join(sorted(divided)[:3])
        lines.append(f"The split divides {len(divided)} of them ({some}): its figures flatter.")
    unused = len(_unlabelled(dataset)) - len(split.unlabelled)
    if unused:
        lines.append(
            f"{unused} images without masks are not used: they are of groups held out for "
            "validation or the test."
        )
    return lines


def labelled_subset(split: Split, count: int | None) -> list[int]:
    """Return the first `count` training images, all if it is None: subsets are nested.

    Raises
    ------
    DataError
        If `count` is below 1 or exceeds the training images.
    """
    return _first(split.train, count, "`labelled`", "there are training images")


def validation_subset(split: Split, count: int | None) -> list[int]:
    """Return the first validation images, as `labelled_subset` does of the training images."""
    return _first(split.validation, count, "`validation_images`", "the split has")


def _first(images: list[int], count: int | None, option: str, most: str) -> list[int]:
    if count is not None and not 1 <= count <= len(images):
        raise DataError(f"{option} must be 1 to {len(images)}, as many as {most}, got {count}")
    return images[:count]


# ---- files of splits ------------------------------------------------------------------------

_PARTS = ("train", "validation", "test")


def split_record(dataset: Dataset, split: Split) -> dict[str, Any]:
    """Return what a run has to remember of its data: ids of a split, and the structures."""
    parts = {**_named(dataset, split), "unlabelled": [dataset.ids[i] for i in split.unlabelled]}
    record = {"data": dataset.name, "classes": list(dataset.classes), "splits": [parts]}
    # Where that of a folder says nothing of its grey scale, an earlier version has written it.
    scaled = dataset.name == "folder" and dataset.scale == "volume"
    return {**record, "scale": dataset.scale} if scaled else record


def _named(dataset: Dataset, split: Split) -> dict[str, list[str]]:
    return {part: [dataset.ids[i] for i in getattr(split, part)] for part in _PARTS}


def save_splits(path: str | os.PathLike[str], dataset: Dataset, splits: list[Split]) -> None:
    """Write splits as JSON, images by their ids.

    The file is ``{"data": name, "splits": [{"train": [...], "validation": [...], "test": [...]},
    ...]}``, in the order of `Split`: the first n training ids are the labelled ones.
    """
    named = [_named(dataset, split) for split in splits]
    write_json(path, {"data": dataset.name, "splits": named})


def read_splits(
    path: str | os.PathLike[str], dataset: Dataset, option: str = "`split_file` "
) -> list[Split]:
    """Read a file of `save_splits`, or one like it; errors begin with the option that named it.

    Raises
    ------
    DataError
        If it cannot be read, or one of its splits has an empty part, an image twice, or one that
        the data set has not. Validation and test may be the same images: few have no others.
    """
    try:
        content = read_json(path, dict[str, Any])
        splits = [
            {part: [normalize("NFC", str(name)) for name in split[part]] for part in _PARTS}
            for split in content["splits"]
        ]
    except OSError as error:
        raise DataError(f"{option}{path}: cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise DataError(
            f"{option}{path}: it has no {error}; `tcseg data splits` writes such a file"
        ) from error
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{option}{path}: not a file of splits ({error!r}); `tcseg data splits` writes one"
        ) from error
    known = {name: i for i, name in enumerate(dataset.ids)}
    without = {dataset.ids[i] for i in _unlabelled(dataset)}
    for number, split in enumerate(splits):
        seen: set[str] = set()
        for part, names in split.items():
            if not names:
                raise DataError(f"{option}{path}: split {number} has no {part} images")
            for name in names:
                if name not in known:
                    raise DataError(
                        f"{option}{path}: {dataset.name} has no image {name!r}; all that the file "
                        "names must be there"
                    )
                if name in without:
                    raise DataError(
                        f"{option}{path}: {name!r} has no masks; name those with masks only, "
                        "the others are used without labels by themselves"
                    )
                if name in seen and not (part == "test" and names == split["validation"]):
                    raise DataError(f"{option}{path}: split {number} has {name!r} twice")
                seen.add(name)
    indices = [{part: [known[name] for name in split[part]] for part in _PARTS} for split in splits]
    return [
        Split(**parts, unlabelled=_unlabelled(dataset, parts["validation"] + parts["test"]))
        for parts in indices
    ]
