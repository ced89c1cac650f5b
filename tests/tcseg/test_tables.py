"""Every table that is printed fits 80 columns, and no row of it breaks."""

import dataclasses
import io
import re

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from tcseg.cli.check import check
from tcseg.data import Dataset, load_dataset
from tcseg.errors import Problems
from tcseg.evaluation.evaluate import evaluate, results_table
from tcseg.paper import tables
from tcseg.paper.grid import Cell
from tcseg.sheet import Sheet

LONG = ("left ventricular endocardium, end-systolic", "myocardium", "right ventricle, cavity")
METHODS = ["baseline", "suptc", "semitc", "semitc+", "stopgrad", "mean-teacher"]
METHODS += ["semitc-average", "semitc-teacher", "semitc-paste"]


class Truth(torch.nn.Module):
    """A network that finds what is there."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.answers = dataset.target_batch([0, 1]).float()

    def forward(self, images):
        return self.answers


def shown(renderable, width: int = 80, soft_wrap: bool = True) -> list[str]:
    """Return the lines; each fits, and none was cut."""
    console = Console(width=width, file=io.StringIO(), soft_wrap=soft_wrap)
    console.print(renderable)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not any("…" in line for line in lines)
    return lines


def rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of the rows, without headings."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in lines if line[:1] == "│"
    ]


@pytest.fixture(scope="module")
def phantom():
    return load_dataset("phantom", size=32)


def named(phantom: Dataset, names: tuple[str, ...], spacing: float | None) -> Dataset:
    return dataclasses.replace(
        phantom,
        ids=tuple(f"JPCLN{i:03d}" for i in range(len(phantom))),
        classes=names,
        masks=phantom.masks & 2 ** len(names) - 1,
        spacings=None if spacing is None else [(spacing, spacing)] * len(phantom),
    )


def results(dataset: Dataset, count: int) -> dict:
    found = evaluate(Truth(dataset), dataset, [0, 1])
    return {method: found for method in ["pre-trained", *METHODS][:count]}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("spacing", [None, 0.7])
@pytest.mark.parametrize("names", [None, LONG], ids=["phantom", "long names"])
def test_results(phantom, names, spacing, count):
    dataset = named(phantom, names or phantom.classes, spacing)
    lines = shown(results_table(results(dataset, count), "Test images"))
    known = [row for row in rows(lines) if row[0] in (*dataset.classes, "mean")]
    assert rows(lines) == known  # no line without its name
    joined = [cell for row in known for cell in row[1:]]
    assert joined.count("100.0 ± 0.0") == count * (len(dataset.classes) + 1)
    text = " ".join(lines)
    assert "intersection over union" in text and "MACD" in text
    assert ("px" in text) is (spacing is None)


def test_results_of_the_demo_stand_side_by_side(phantom):
    lines = shown(results_table(results(named(phantom, phantom.classes, 0.7), 3)))
    headings = [lines[i + 1 : i + 3] for i, line in enumerate(lines) if line.startswith("┏")]
    assert len(headings) == 2
    for (methods, figures), figure in zip(headings, ("IOU %", "MACD mm"), strict=True):
        assert re.search("pre-trained .* baseline .* suptc", methods)
        assert figures.count(figure) == 3


@pytest.mark.parametrize("names", [None, LONG], ids=["phantom", "long names"])
def test_data_check(phantom, names):
    console = Console(width=80, file=io.StringIO(), soft_wrap=True)
    assert check(named(phantom, names or phantom.classes, 0.7), Problems(), {}, None, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80
    starts = {row[0] for row in rows(lines)}
    assert starts == {*(names or phantom.classes), *map(str, range(5))}


def summaries(labelled: tuple[int, ...]) -> dict[Cell, dict]:
    figures = {name: 12.34567 for name in ("lungs", "heart", "clavicles")}
    parts = {name: figures for name in ("iou", "iou_std", "macd_mm", "macd_mm_std")}
    test = {**parts, "miou": 0.7654, "joined": parts}
    summary = {"test": test, "test_postprocessed": test, "validation_images": 20}
    return {
        Cell(count, None, split, method): summary
        for method in METHODS
        for count in labelled
        for split in range(3)
    }


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_of_the_paper(published, width):
    labelled = (5, 10, 25, 50, 100)
    known = summaries(labelled)
    first = shown(tables.table1(known, METHODS, labelled, published), width)
    assert sum("76.5 ± 0.0 (3)" in cell for row in rows(first) for cell in row) == 5 * len(METHODS)
    second = shown(tables.table2(known, METHODS, labelled, published), width)
    assert sum(row[0] == "mean-teacher, 3 splits" for row in rows(second)) % 5 == 0
    third = shown(tables.comparisons(known, METHODS, labelled), width)
    assert len({row[0] for row in rows(third)}) == len(tables.COMPARISONS)
    for row in rows(first) + rows(second) + rows(third):
        assert row[0], row  # a row that broke has no name on its second line


def test_a_name_longer_than_the_terminal_breaks_and_loses_nothing():
    name = "a" * 100
    lines = shown(Sheet("", ["name", "value"], [("", [[name, "12"]])]), 40)
    assert "".join(row[0] for row in rows(lines)) == name
