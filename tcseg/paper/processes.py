"""A grid of trainings as processes: each is `tcseg train`, here or where a launcher takes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tcseg.errors import RunError, RunFinished
from tcseg.paper.grid import PRETRAINING, Cell, Results
from tcseg.runs.folder import RunFolder
from tcseg.training.interrupts import stop_with_parent

LOOK_EVERY = 0.5  # seconds between looks at the trainings


def run_grid(
    cells: Sequence[Cell],
    results: Results,
    workers: int,
    launcher: Sequence[str],
    minutes: float,
    stop: Callable[[], int],
    console: Console,
) -> dict[Cell, str]:
    """Train what is not finished yet, several at once, until told to stop or the time is over.

    Returns
    -------
    dict
        What went wrong, by cell: those that failed, and those that depend on them.
    """
    todo = [cell for cell in cells if cell not in results.finished]
    # Pre-training that another machine has done is done again here: its weights stayed there.
    before = [
        cell
        for cell in sorted({cell.pretraining for cell in todo})
        if cell not in results.finished
        or not (results.folder / "runs" / cell.name / "checkpoint.pt").exists()
    ]
    if not todo:
        return {}
    deadline = time.time() + 60 * minutes
    trainings = _Trainings([*before, *todo], results, workers, launcher, console)
    return trainings.run(lambda: bool(stop()) or time.time() > deadline)


class _Trainings:
    """Those that run, and those that wait."""

    def __init__(
        self,
        cells: list[Cell],
        results: Results,
        workers: int,
        launcher: Sequence[str],
        console: Console,
    ) -> None:
        self.results, self.workers, self.launcher = results, workers, launcher
        self.waiting = cells
        self.running: dict[Cell, subprocess.Popen[bytes]] = {}
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
        self.told: set[Cell] = set()  # to stop: a second signal would end them at once
        self.environment = dict(os.environ)
        if not launcher:  # elsewhere, that is the launcher's to say
            threads = max(1, len(os.sched_getaffinity(0)) // workers)
            self.environment.setdefault("OMP_NUM_THREADS", str(threads))

    def run(self, stop: Callable[[], bool]) -> dict[Cell, str]:
        """Train all there is; return what went wrong."""
        everything = self.progress.add_task("all runs", total=sum(map(self._steps, self.waiting)))
        with self.progress:
            try:
                while self.waiting or self.running:
                    if stop():
                        self.waiting.clear()
                        self._terminate()
                    self._start()
                    for cell in list(self.running):
                        self._look_at(cell)
                    self.progress.update(everything, completed=sum(self.done.values()))
                    if self.running:
                        time.sleep(LOOK_EVERY)
            finally:  # however it ends, the trainings stop after a checkpoint
                self._terminate()
        return self.failed

    def _steps(self, cell: Cell) -> int:
        base = self.results.base
        return base.pretrain_steps if cell.method == PRETRAINING else base.steps

    def _folder(self, cell: Cell) -> RunFolder:
        return RunFolder(self.results.folder / "runs" / cell.name)

    def _start(self) -> None:
        """Start what can start: its pre-training neither waits nor runs."""
        pending = {*self.waiting, *self.running}
        for cell in [c for c in self.waiting if c == c.pretraining or c.pretraining not in pending]:
            if len(self.running) == self.workers:
                return
            if cell in self.waiting:  # a failed pre-training takes others with it
                self.waiting.remove(cell)
                self._launch(cell)

    def _launch(self, cell: Cell) -> None:
        run, config = self._folder(cell), cell.config(self.results.base, self.results.folder)
        resume = run.begun
        try:
            if resume:
                run.check_resumable(config)
            else:
                run.check_free()
        except RunFinished:
            self._keep(cell)
            return
        except RunError as error:
            self._fail(cell, str(error))
            return
        config.save(run.path.with_suffix(".toml"))
        command = [*self.launcher, sys.executable, "-m", "tcseg", "train"]
        command += ["--config", str(run.path.with_suffix(".toml").absolute())]
        command += ["--network", config.network]  # ours, not only the file's
        command += ["--out", str(run.path.absolute()), *(["--resume"] if resume else [])]
        with open(run.path.with_suffix(".log"), "wb") as log:
            # In a group of its own: Ctrl-C reaches this process alone, which passes it on.
            self.running[cell] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                preexec_fn=stop_with_parent,
            )
        self.bars[cell] = self.progress.add_task(cell.name, total=self._steps(cell))

    def _look_at(self, cell: Cell) -> None:
        """Show how far a training is; take its result where it has ended."""
        status = self.running[cell].poll()
        rows = self._folder(cell).metrics.rows()
        before = 0 if cell.method == PRETRAINING else self.results.base.pretrain_steps
        self.done[cell] = max(0, int(rows[-1]["step"]) - before) if rows else 0
        self.progress.update(self.bars[cell], completed=self.done[cell])
        if status is None:
            return
        del self.running[cell]
        self.progress.remove_task(self.bars.pop(cell))
        log = self._folder(cell).path.with_suffix(".log")
        if status == 0:
            self._keep(cell)
        elif status == -signal.SIGKILL and cell not in self.told:
            self._fail(
                cell, "its process was killed, for lack of memory perhaps: use fewer workers"
            )
        elif cell not in self.told and status not in (-signal.SIGTERM, 128 + signal.SIGTERM):
            lines = log.read_text(errors="replace").split("\n")
            said = [line for line in lines if line.strip()] or [f"exit status {status}"]
            self._fail(cell, f"{said[-1].removeprefix('Error: ')} ({log})")

    def _keep(self, cell: Cell) -> None:
        """Take the result of a finished training; leave what others need."""
        run = self._folder(cell)
        self.results.add(cell, run.summary())
        self.done[cell] = self._steps(cell)
        if not self.progress.console.is_terminal:  # bars are not seen there
            self.progress.console.print(f"Finished: {cell.name}")
        if cell.method != PRETRAINING:  # the one that others start from
            (run.path / "checkpoint.pt").unlink(missing_ok=True)
        for suffix in (".toml", ".log"):
            run.path.with_suffix(suffix).unlink(missing_ok=True)

    def _fail(self, cell: Cell, reason: str) -> None:
        self.failed[cell] = reason
        if cell.method == PRETRAINING:
            dependent = [c for c in self.waiting if c.pretraining == cell]
            self.failed |= dict.fromkeys(dependent, f"its pre-training failed: {reason}")
            self.waiting = [c for c in self.waiting if c not in dependent]

    def _terminate(self) -> None:
        for cell in self.running.keys() - self.told:
            self.running[cell].terminate()
            self.told.add(cell)
