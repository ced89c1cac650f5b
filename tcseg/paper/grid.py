"""The trainings behind a table, and the results of those that are finished."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcseg.errors import RunError
from tcseg.io.files import read_json, write_json
from tcseg.runs.config import MAY_DIFFER_ON_RESUME, Config

PRETRAINING = "pretraining"
# What a grid varies; all else is the same for its trainings.
VARIED = ("method", "labelled", "validation_images", "split", "pretrained", "steps")
_NOT_COMPARED = (*MAY_DIFFER_ON_RESUME, *VARIED)


@dataclass(frozen=True, order=True)
class Cell:
    """One training of a grid; method `PRETRAINING` is the pre-training that others share."""

    labelled: int
    validation_images: int | None
    split: int
    method: str

    @property
    def name(self) -> str:
        """Name of its files."""
        chosen = "" if self.validation_images is None else f"-v{self.validation_images}"
        return f"l{self.labelled}{chosen}-s{self.split}-{self.method}"

    @property
    def pretraining(self) -> Cell:
        """The pre-training it starts from."""
        return dataclasses.replace(self, method=PRETRAINING)

    def config(self, base: Config, folder: Path) -> Config:
        """Return its options."""
        source = None if self == self.pretraining else folder / "runs" / self.pretraining.name
        return dataclasses.replace(
            base,
            labelled=self.labelled,
            validation_images=self.validation_images,
            split=self.split,
            method="baseline" if source is None else self.method,
            steps=0 if source is None else base.steps,
            pretrained=None if source is None else str(source.absolute()),
        )


class Results:
    """The finished trainings of a folder.

    Parameters
    ----------
    folder : Path
        Of the grid, made if it is missing.
    base : Config
        Options of all trainings, those in `VARIED` left aside.

    Raises
    ------
    RunError
        If the folder was run with other options, holds something else, or has a broken file.
    """

    def __init__(self, folder: Path, base: Config) -> None:
        self.folder, self.base = folder, base
        options = folder / "options.toml"
        begun = any(any(folder.glob(f"{part}/[!.]*")) for part in ("results", "runs"))
        if options.exists() and begun:
            differences = base.differences(Config.load(options), _NOT_COMPARED)
            if differences:
                raise RunError(
                    f"{folder} holds results of runs with other options "
                    f"({'; '.join(differences)}); use the same ones, or choose another `out`"
                )
        elif not options.exists() and any(folder.glob("[!.]*")):
            raise RunError(f"{folder} is not empty and holds no results; choose another `out`")
        try:
            (folder / "results").mkdir(parents=True, exist_ok=True)
            (folder / "runs").mkdir(exist_ok=True)
            base.save(options)
        except OSError as error:
            message = f"{folder}: cannot be written ({error.strerror}); choose another `out`"
            raise RunError(message) from error
        self.finished: dict[Cell, dict[str, Any]] = {}
        for path in sorted((folder / "results").glob("[!.]*.json")):
            cell, content = self._read(path)
            self.finished[cell] = content["summary"]

    def merge(self, other: Path) -> int:
        """Take over the results of another folder; return how many were new."""
        paths = sorted((other / "results").glob("[!.]*.json"))
        if not paths:
            raise RunError(f"`merge` {other}: has no results/*.json")
        read = [self._read(path) for path in paths]  # all of them, before any is taken
        new = [(cell, content) for cell, content in read if cell not in self.finished]
        for cell, content in new:
            write_json(self._path(cell), content)
            self.finished[cell] = content["summary"]
        return len(new)

    def add(self, cell: Cell, summary: dict[str, Any]) -> None:
        """Keep the result of a training."""
        options = dataclasses.asdict(cell.config(self.base, self.folder))
        options = {k: v for k, v in options.items() if k not in ("root", "cache", "pretrained")}
        write_json(self._path(cell), {"options": options, "summary": summary})
        self.finished[cell] = self._read(self._path(cell))[1]["summary"]  # nan is null there

    def _path(self, cell: Cell) -> Path:
        return self.folder / "results" / f"{cell.name}.json"

    def _read(self, path: Path) -> tuple[Cell, dict[str, Any]]:
        try:
            content = read_json(path, dict[str, Any])
            options = Config(**content["options"])
            method = options.method if options.steps else PRETRAINING
            cell = Cell(
                content["options"]["labelled"], options.validation_images, options.split, method
            )
            summary = content["summary"]
            for part in ("test", "test_postprocessed", "validation", "pretrained_test"):
                float(summary[part]["miou"])
            for part in ("best_step", "seconds", "validation_images"):
                float(summary[part])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path}: broken, or not a result of tcseg reproduce ({error!r}); delete it: a run "
                "finished in this folder is not trained again, and a merged one can be merged again"
            ) from error
        ignored = _NOT_COMPARED if method == PRETRAINING else set(_NOT_COMPARED) - {"steps"}
        differences = self.base.differences(options, tuple(ignored))
        if differences:
            raise RunError(
                f"{path} was run with other options ({'; '.join(differences)}); merge results of "
                "the same ones only"
            )
        return cell, content
