"""Splits: disjoint, complete, reproducible, nested; impossible requests refused."""

import itertools

import pytest
import torch

from tcseg.data import CLASSES, DataError, Dataset, labelled_subset, make_split

JSRT_IDS = [f"JPCLN{i:03d}" for i in range(1, 155)] + [f"JPCNN{i:03d}" for i in range(1, 94)]


def dataset(name, ids):
    """Make a data set of which only name and ids matter."""
    empty = torch.zeros(len(ids), 1, 1, 1, dtype=torch.uint8)
    return Dataset(name, list(ids), CLASSES, empty, empty[:, 0], 1.0)


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
    with pytest.raises(DataError, match=rf"{count} labelled images .* has 100; choose 1 to 100"):
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
