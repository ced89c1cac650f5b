"""Splits: disjoint, complete, reproducible, nested; impossible requests refused."""

import dataclasses
import itertools
import json

import pytest
import torch

from tcseg.data import (
    CLASSES,
    Dataset,
    labelled_subset,
    make_split,
    save_splits,
    split_record,
    split_remarks,
    validation_subset,
)
from tcseg.errors import DataError

JSRT_IDS = [f"JPCLN{i:03d}" for i in range(1, 155)] + [f"JPCNN{i:03d}" for i in range(1, 94)]


def dataset(name, ids):
    """Make a data set of which only name and ids matter."""
    empty = torch.zeros(len(ids), 1, 1, 1, dtype=torch.uint8)
    return Dataset(name, list(ids), CLASSES, empty, empty)


JSRT = dataset("jsrt", JSRT_IDS)
PHANTOM = dataset("phantom", [f"phantom{i:03d}" for i in range(160)])


def numbers(split):
    return sorted(split.train + split.validation + split.test)


@pytest.mark.parametrize("number", range(5))
def test_jsrt_follows_the_paper(number):
    split = make_split(JSRT, number)
    assert numbers(split) == list(range(247))
    parities = {int(JSRT.ids[i][-3:]) % 2 for i in split.test}
    assert parities == {number % 2}
    assert len(split.train) == 100
    assert len(split.test) == (123 if number % 2 == 0 else 124)
    assert len(split.validation) == 247 - 100 - len(split.test)


@pytest.mark.parametrize("number", range(3))
def test_phantom_keeps_its_test_set(number):
    split = make_split(PHANTOM, number)
    assert numbers(split) == list(range(160))
    assert sorted(split.train) == list(range(100))
    assert split.validation == list(range(100, 120))
    assert split.test == list(range(120, 160))


@pytest.mark.parametrize("data", [JSRT, PHANTOM], ids=["jsrt", "phantom"])
def test_split_number_draws_other_labels_and_nothing_else_does(data):
    assert make_split(data, 0) == make_split(data, 0)
    drawn = {tuple(sorted(labelled_subset(make_split(data, n), 5))) for n in range(5)}
    assert len(drawn) == 5


def test_labelled_subsets_are_nested():
    split = make_split(JSRT, 0)
    subsets = [labelled_subset(split, n) for n in (5, 10, 25, 50, 100)]
    for small, large in itertools.pairwise(subsets):
        assert large[: len(small)] == small
    assert [len(subset) for subset in subsets] == [5, 10, 25, 50, 100]
    assert not set(subsets[-1]) & set(split.test + split.validation)


@pytest.mark.parametrize("count", [-1, 0, 101])
def test_impossible_numbers_of_labels_are_refused(count):
    with pytest.raises(DataError, match=rf"`labelled` must be 1 to 100, .* got {count}"):
        labelled_subset(make_split(PHANTOM, 0), count)


@pytest.mark.parametrize(("data", "number"), [(JSRT, -1), (JSRT, 5), (PHANTOM, -1)])
def test_unknown_splits_are_refused(data, number):
    with pytest.raises(DataError, match=rf"{data.name}: split must be .*, got {number}"):
        make_split(data, number)


def test_a_partial_copy_still_splits():
    split = make_split(dataset("jsrt", JSRT_IDS[:12]), 0)
    assert numbers(split) == list(range(12))
    assert (len(split.train), len(split.validation), len(split.test)) == (5, 1, 6)


def test_too_few_images_are_refused():
    with pytest.raises(
        DataError, match="split 0 needs a test image and two others, got 1 and 1 of"
    ):
        make_split(dataset("jsrt", JSRT_IDS[:2]), 0)


def test_validation_subsets_are_nested():
    split = make_split(JSRT, 0)
    assert validation_subset(split, None) == split.validation
    assert validation_subset(split, 10) == split.validation[:10]
    for count in (0, 25):
        with pytest.raises(
            DataError, match=rf"`validation_images` must be 1 to 24, .* got {count}"
        ):
            validation_subset(split, count)


def test_splits_are_written_and_read_back(tmp_path):
    splits = [make_split(JSRT, number) for number in range(5)]
    save_splits(tmp_path / "splits.json", JSRT, splits)
    assert [make_split(JSRT, n, tmp_path / "splits.json") for n in range(5)] == splits
    # Ids, not numbers: another order of the images is the same split.
    turned = dataset("jsrt", JSRT_IDS[::-1])
    again = make_split(turned, 3, tmp_path / "splits.json")
    assert [turned.ids[i] for i in again.train] == [JSRT.ids[i] for i in splits[3].train]


GOOD = {"train": ["phantom000"], "validation": ["phantom001"], "test": ["phantom002"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a file of splits"),
        ("[]", "not a file of splits"),
        ('{"splits": [{"train": []}]}', "it has no 'validation'"),
        ('{"splits": 3}', "not a file of splits"),
        (json.dumps({"splits": []}), "has 0 splits, from 0, got 0"),
        (json.dumps({"splits": [GOOD | {"test": []}]}), "split 0 has no test images"),
        (json.dumps({"splits": [GOOD | {"test": ["x"]}]}), "phantom has no image 'x'"),
        (json.dumps({"splits": [GOOD | {"test": ["phantom000"]}]}), "has 'phantom000' twice"),
    ],
)
def test_a_file_of_splits_that_cannot_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        make_split(PHANTOM, 0, path)
    assert str(error.value).startswith(f"`split_file` {path}: ")


def test_masks_added_after_the_split_of_a_run_was_written_are_told_of(tmp_path):
    """The images are no longer without masks, and in no part: nothing would use them."""
    names = [f"case{number:02d}" for number in range(12)]
    data = dataset("folder", names)
    before = dataclasses.replace(data, annotated=list(range(10)))
    record = split_record(before, make_split(before, 0))
    path = tmp_path / "split.json"
    path.write_text(json.dumps(record))
    assert split_remarks(before, make_split(before, 0, path)) == []
    expected = (
        "Not used: 2 images with masks (case10, case11), as the split file names them in no part."
    )
    assert split_remarks(data, make_split(data, 0, path)) == [expected]

    # As the guide to own images has it.
    record["splits"][0]["train"] += names[10:]
    path.write_text(json.dumps(record))
    split = make_split(data, 0, path)
    assert split_remarks(data, split) == []
    assert split.train[-2:] == [10, 11]
    assert split.test == make_split(before, 0).test
