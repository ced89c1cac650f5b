"""The command `tcseg reproduce`: the grid of trainings behind a table, in parallel, resumable.

A folder holds ``options.toml``, ``runs/`` with a run folder for every training, ``results/`` with
a small JSON for every finished one, and the tables made from those.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tcseg.data import labelled_subset, load_dataset, make_split, validation_subset
from tcseg.data.splits import TRAINING_IMAGES
from tcseg.errors import RunFinished, RunStopped
from tcseg.method.variants import METHODS
from tcseg.paper import tables
from tcseg.paper.grid import PRETRAINING, Cell, Results
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder

TABLE_METHODS = {
    "table1": ("baseline", "suptc", "semitc", "semitc+"),
    "table2": ("baseline", "semitc+"),
}
TABLE_LABELLED = {"table1": (5, 10, 25, 50, 100), "table2": (10, 100)}
# ---- the work of one process ----------------------------------------------------------------

_dataset: Any = None
_messages: Any = None
_stopping: Any = None


def _begin_worker(base: Config, threads: int, messages: Any, stopping: Any) -> None:
    """Read the data once for all trainings of this process."""
    # Ctrl-C goes to all processes; the one that started these tells them to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    global _dataset, _messages, _stopping
    threading.Thread(target=_end_with_parent, args=(stopping,), daemon=True).start()
    torch.set_num_threads(threads)
    _dataset = load_dataset(base.data, root=base.root, size=base.size)
    _messages, _stopping = messages, stopping


def _end_with_parent(stopping: Any) -> None:
    """Stop, and end, this process where the one that started it was killed."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    stopping.set()
    time.sleep(30)  # for a checkpoint
    os._exit(1)


def _train_cell(cell: Cell, base: Config, folder: Path) -> dict[str, Any]:
    """Train one cell, or go on with it; return its summary."""
    from tcseg.training.session import train

    config, out = cell.config(base, folder), folder / "runs" / cell.name
    resume = RunFolder(out).begun

    def show(step: int, loss: float, miou: float) -> None:
        _messages.put((cell, step))

    try:
        summary = train(config, out, resume, dataset=_dataset, show=show, stop=_stopping.is_set)
    except RunFinished:
        summary = RunFolder(out).summary()
    if cell.method != PRETRAINING:  # the one that others start from
        (out / "checkpoint.pt").unlink(missing_ok=True)
    return summary


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---- the grid -------------------------------------------------------------------------------


def run_grid(
    cells: Sequence[Cell],
    results: Results,
    *,
    workers: int = 1,
    minutes: float = float("inf"),
    console: Console,
) -> dict[Cell, str]:
    """Train what is not finished yet, several at once.

    Parameters
    ----------
    cells : sequence of Cell
        The trainings wanted; pre-training is added where one needs it.
    results : Results
        Where finished ones are, and will be, kept.
    workers : int
        Trainings at the same time; the processor's cores are shared out.
    minutes : float
        Time after which trainings are stopped, with a checkpoint.
    console : Console
        For the progress.

    Returns
    -------
    dict
        What went wrong, by cell: those that failed, and those that depend on them.
    """
    todo = [cell for cell in cells if cell not in results.finished]
    if not todo or minutes <= 0:
        return {}
    # Pre-training that another machine has done is done again here: its weights stayed there.
    begun = [
        cell
        for cell in sorted({cell.pretraining for cell in todo})
        if cell not in results.finished
        or not (results.folder / "runs" / cell.name / "checkpoint.pt").exists()
    ]
    deadline = time.time() + 60 * minutes
    return _Grid([*begun, *todo], results, workers, deadline, console).run()


class _Grid:
    """The trainings under way, and those that wait."""

    def __init__(
        self,
        cells: list[Cell],
        results: Results,
        workers: int,
        deadline: float,
        console: Console,
    ) -> None:
        self.results, self.deadline, self.workers = results, deadline, workers
        self.waiting = cells
        self.running: dict[Future[dict[str, Any]], Cell] = {}
        self.failed: dict[Cell, str] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.progress = Progress(*columns, console=console, refresh_per_second=2)
        self.bars: dict[Cell, Any] = {}
        self.done: dict[Cell, int] = {}

    def _steps(self, cell: Cell) -> int:
        base = self.results.base
        return base.pretrain_steps if cell.method == PRETRAINING else base.steps

    def run(self) -> dict[Cell, str]:
        """Train all there is; return what went wrong."""
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        messages, stopping = context.Queue(), context.Event()
        threads = max(1, len(os.sched_getaffinity(0)) // self.workers)
        begin = (self.results.base, threads, messages, stopping)
        total = sum(map(self._steps, self.waiting))
        everything = self.progress.add_task("all runs", total=total)
        with (
            self.progress,
            ProcessPoolExecutor(self.workers, context, _begin_worker, begin) as pool,
        ):
            try:
                while self.waiting or self.running:
                    if time.time() > self.deadline:
                        stopping.set()
                        self.waiting.clear()
                    self._submit(pool)
                    finished, _ = wait(self.running, timeout=0.5, return_when=FIRST_COMPLETED)
                    self._show(messages, everything)
                    for future in finished:
                        self._take(self.running.pop(future), future)
            finally:  # however it ends, the processes stop after a checkpoint
                stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
        return self.failed

    def _submit(self, pool: ProcessPoolExecutor) -> None:
        """Start what can start: its pre-training neither waits nor runs."""
        pending = {*self.waiting, *self.running.values()}
        ready = [c for c in self.waiting if c == c.pretraining or c.pretraining not in pending]
        for cell in ready[: self.workers - len(self.running)]:
            self.waiting.remove(cell)
            with _without_interrupts():  # processes that are started now inherit it
                future = pool.submit(_train_cell, cell, self.results.base, self.results.folder)
            self.running[future] = cell
            self.bars[cell] = self.progress.add_task(cell.name, total=self._steps(cell))

    def _show(self, messages: Any, everything: Any) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                cell, step = messages.get_nowait()
                before = 0 if cell.method == PRETRAINING else self.results.base.pretrain_steps
                self.done[cell] = max(0, step - before)
                if cell in self.bars:
                    self.progress.update(self.bars[cell], completed=self.done[cell])
        self.progress.update(everything, completed=sum(self.done.values()))

    def _take(self, cell: Cell, future: Future[dict[str, Any]]) -> None:
        self.progress.remove_task(self.bars.pop(cell))
        try:
            self.results.add(cell, future.result())
            self.done[cell] = self._steps(cell)
        except RunStopped:
            pass
        except BrokenProcessPool:
            self._fail(cell, "its process was killed, for lack of memory perhaps: fewer --workers")
            self.waiting.clear()
        except Exception as error:  # whatever it is, the other trainings go on
            self._fail(cell, f"{error or type(error).__name__}")

    def _fail(self, cell: Cell, reason: str) -> None:
        self.failed[cell] = reason
        if cell.method == PRETRAINING:
            dependent = [c for c in self.waiting if c.pretraining == cell]
            self.failed |= dict.fromkeys(dependent, f"its pre-training failed: {reason}")
            self.waiting = [c for c in self.waiting if c not in dependent]


# ---- the command ----------------------------------------------------------------------------


def reproduce(
    table: str,
    base: Config,
    out: Path,
    *,
    labelled: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    splits: Sequence[int] = range(5),
    workers: int = 1,
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
    """
    console = Console(highlight=False, soft_wrap=True)
    methods = list(methods or TABLE_METHODS[table])
    labelled = list(labelled or TABLE_LABELLED[table])
    cells = grid(table, labelled, methods, splits)
    if base.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {base.steps}")
    for cell in cells:
        cell.config(base, out).validate()
    if minutes > 0:
        _check_data(base, cells)
    results = Results(out, base)
    for other in merge:
        console.print(f"{other}: {results.merge(other)} new results", markup=False)
    failed = run_grid(cells, results, workers=workers, minutes=minutes, console=console)

    known = {cell: results.finished[cell] for cell in cells if cell in results.finished}
    published = base.data == "jsrt"
    if known:
        if table == "table1":
            sheets = [tables.table1(known, methods, labelled, published)]
            sheets.append(tables.comparisons(known, methods, labelled))
        else:
            sheets = [tables.table2(known, methods, labelled, published)]
        for sheet in sheets:
            console.print(sheet)
        written = tables.save(out, table, sheets, known)
        console.print(f"Written: {', '.join(map(str, written))}", markup=False)
    for cell, reason in failed.items():
        console.print(f"Failed: {cell.name}: {reason}", markup=False)
    if len(known) < len(cells):
        console.print(
            f"{len(known)} of {len(cells)} runs are finished; the same command goes on.",
            markup=False,
        )
    return not failed


def grid(
    table: str, labelled: Sequence[int], methods: Sequence[str], splits: Sequence[int]
) -> list[Cell]:
    """Return the trainings of a table, splits first, so that a part of it is a part of each."""
    cells = []
    for split in splits:
        for count in labelled:
            few = table == "table2" and count < TRAINING_IMAGES
            for method in methods:
                # With all training images labelled there is nothing left to learn from.
                if METHODS[method].pool != ("train",) or count < TRAINING_IMAGES:
                    cells.append(Cell(count, count if few else None, split, method))
    return cells


def _check_data(base: Config, cells: Sequence[Cell]) -> None:
    """Find out before any training whether the data set has all that is asked for."""
    dataset = load_dataset(base.data, root=base.root, size=base.size)
    for cell in cells:
        split = make_split(dataset, cell.split, base.split_file)
        labelled_subset(split, cell.labelled)
        validation_subset(split, cell.validation_images)
