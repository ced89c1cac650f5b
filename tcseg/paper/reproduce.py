"""The command `tcseg reproduce`: the trainings behind a table of the paper, and the table.

A folder holds ``options.toml``, ``runs/`` with a run folder for every training, ``results/`` with
a small JSON for every finished one, and the tables made from those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tcseg.data import load_dataset
from tcseg.data.phantom import population
from tcseg.data.splits import TRAINING_IMAGES
from tcseg.errors import RunStopped
from tcseg.method.variants import METHODS
from tcseg.paper import tables
from tcseg.paper.grid import Cell, Results
from tcseg.paper.processes import run_grid
from tcseg.runs.config import Config
from tcseg.sheet import plain_console
from tcseg.training.interrupts import stop_requests
from tcseg.training.trainer import divided

TABLE_METHODS = {
    "table1": ("baseline", "suptc", "semitc", "semitc+"),
    "table2": ("baseline", "semitc+"),
}
TABLE_LABELLED = {"table1": (5, 10, 25, 50, 100), "table2": (10, 100)}


def reproduce(
    table: str,
    base: Config,
    out: Path,
    *,
    labelled: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    splits: Sequence[int] = range(5),
    workers: int = 1,
    launcher: Sequence[str] = (),
    minutes: float = math.inf,
    merge: Sequence[Path] = (),
) -> bool:
    """Train the grid behind a table of the paper; write and print the table.

    Parameters
    ----------
    table : {"table1", "table2"}
        Which one: in the second the network is chosen on as many validation images as there are
        labelled ones, where those are few.
    base : Config
        Options of all trainings.
    out : Path
        Folder of runs, results and tables.
    labelled, methods, splits : sequence, optional
        Part of the grid; that of the paper if not given.
    workers : int
        Trainings at one time.
    launcher : sequence of str
        Command that starts a training, given as further arguments, on some machine.
    minutes : float
        When to stop; 0 only makes the table of what is there.
    merge : sequence of Path
        Other such folders whose results are taken over.

    Returns
    -------
    bool
        Whether nothing went wrong; runs that are not finished yet are nothing wrong.

    Raises
    ------
    RunError, ValueError, DataError
        One clear line, before any training.
    RunStopped
        After a signal to stop, the table made of what is there.
    """
    console = plain_console()
    methods = list(methods or TABLE_METHODS[table])
    own = base.data == "folder"
    if own and not labelled:
        raise ValueError("`labelled` must be given for images of your own")
    labelled = list(labelled or TABLE_LABELLED[table])
    # Of images of one's own, as many as there are may be labelled.
    cells = grid(table, labelled, methods, splits, math.inf if own else TRAINING_IMAGES)
    if base.steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {base.steps}")
    for cell in cells:
        cell.config(base, out).validate()
    if minutes > 0:
        _check_data(base, cells, out)
    results = Results(out, base)
    for other in merge:
        console.print(f"{other}: {results.merge(other)} new results")
    failed: dict[Cell, str] = {}
    with stop_requests() as stopped:
        if minutes > 0:
            failed = run_grid(cells, results, workers, launcher, minutes, stopped, console)
    _show(table, base, results, cells, methods, labelled, console)
    for cell, reason in failed.items():
        console.print(f"Failed: {cell.name}: {reason}")
    if left := sum(cell not in results.finished for cell in cells):
        message = "Stopped. " if stopped() else ""
        message += f"{len(cells) - left} of {len(cells)} runs are finished"
        console.print(f"{message}; the same command continues.")
    if stopped():
        raise RunStopped(f"{out}: stopped", stopped())
    return not failed


def _show(
    table: str,
    base: Config,
    results: Results,
    cells: Sequence[Cell],
    methods: Sequence[str],
    labelled: Sequence[int],
    console: Console,
) -> None:
    """Print and write the tables of what is finished."""
    known = {cell: results.finished[cell] for cell in cells if cell in results.finished}
    if not known:
        return
    published = base.data == "jsrt"
    if table == "table1":
        sheets = [tables.table1(known, methods, labelled, published)]
        if any("volumes" in summary["test"] for summary in known.values()):
            sheets.append(tables.volumes(known, methods, labelled))
        sheets.append(tables.comparisons(known, methods, labelled))
    else:
        sheets = [tables.table2(known, methods, labelled, published)]
    for sheet in sheets:
        console.print(sheet)
    written = tables.save(results.folder, table, sheets, known)
    console.print(f"Written: {', '.join(map(str, written))}")


def grid(
    table: str,
    labelled: Sequence[int],
    methods: Sequence[str],
    splits: Sequence[int],
    images: float = TRAINING_IMAGES,
) -> list[Cell]:
    """Return the trainings of a table, splits first, so that a part of it is a part of each."""
    cells = []
    for split in splits:
        for count in labelled:
            few = table == "table2" and count < images
            for method in methods:
                # With all training images labelled there is nothing left to learn from.
                if METHODS[method].pool != ("train",) or count < images:
                    cells.append(Cell(count, count if few else None, split, method))
    return cells


def _check_data(base: Config, cells: Sequence[Cell], out: Path) -> None:
    """Find out before any training whether the data set has all that is asked for."""
    if base.data == "phantom":
        dataset = population.undrawn(base.dimensions)
    else:
        dataset = load_dataset(base.data, **base.reading)
    for cell in cells:
        divided(cell.config(base, out), dataset)
