"""The folder of a run: what stands in it, how it is written, and when it is left alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from tcseg.errors import RunError, RunFinished, RunUnfinished, reason
from tcseg.extras import is_installed
from tcseg.io.files import open_lock, read_json, write_atomically, write_json
from tcseg.runs.checkpoint import load_checkpoint, save_checkpoint
from tcseg.runs.config import Config
from tcseg.runs.metrics_file import MetricsFile

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

# The way out of a broken summary: the checkpoint has all that it was made from.
_AGAIN = "delete it and continue the run with `resume` to write it again"


class RunFolder:
    """A run as files: options, figures by step, checkpoint, weights, summary.

    Everything but ``metrics.csv`` and the TensorBoard events is replaced in one step, so that a
    kill leaves the old file or the new. The summary comes last: a run that has one is finished.

    Use `create` to train, `RunFolder(path)` to read.

    Examples
    --------
    >>> with RunFolder.create("runs/first", config, resume=False) as run:  # doctest: +SKIP
    ...     run.log({"step": 1, "loss": 0.9})
    ...     run.save_checkpoint({"step": 1, "network": network.state_dict()})
    ...     run.save_weights(network.state_dict())
    ...     run.save_summary({"test": {"miou": 0.9}})
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metrics = MetricsFile(self.path / "metrics.csv")
        self._writer: SummaryWriter | None = None
        self._lock_file: IO[str] | None = None
        # TensorBoard hides what event files of an earlier process have from this step on.
        self._first_step = 1

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Config, *, resume: bool) -> RunFolder:
        """Open a folder to train in, before anything expensive is done.

        Parameters
        ----------
        path
            The folder; made if it is missing, with those above it.
        config
            The options, written to ``config.toml`` (when resuming: compared with it).
        resume
            Whether to continue the unfinished run that stands there.

        Raises
        ------
        RunError
            If the folder holds a run and `resume` is false, holds none and `resume` is true,
            holds something else, was run with other options, or cannot be written.
        RunFinished
            If `resume` is true and the run, of the same options, is finished.
        """
        run = cls(path)
        if resume:
            run.check_resumable(config)
            run._lock()
            return run
        run.check_free()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._lock()
            config.save(run.path / "config.toml")
        except OSError as error:
            message = f"{path}: cannot be written ({error.strerror}); choose another `out`"
            raise RunError(message) from error
        return run

    def check_free(self) -> None:
        """Raise RunError if the folder cannot be written, or holds a run or something else."""
        present = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not (present.is_dir() and os.access(present, os.W_OK)):
            what = "is read-only" if present.is_dir() else "is no folder"
            message = f"{self.path}: cannot be written ({present} {what}); choose another `out`"
            raise RunError(message)
        names = self._names()
        # Options alone are a run that never began, because of a wrong option perhaps.
        if names <= {"config.toml"}:
            return
        if "config.toml" not in names:
            raise RunError(f"{self.path} is not empty and holds no run; choose another `out`")
        if self.finished:
            raise RunError(f"{self.path} holds a finished run; choose another `out`")
        way = "continue it with `resume`, or choose another `out`"
        raise RunUnfinished(f"{self.path} holds an unfinished run; {way}", self.path)

    def check_resumable(self, config: Config) -> None:
        """Raise RunError if there is not a run of these options to continue."""
        if not (self.path / "config.toml").exists():
            raise RunError(f"{self.path} holds no run to resume; leave out `resume` to start one")
        differences = config.differences(self.config())
        if differences:
            raise RunError(
                f"{self.path} was started with other options ({'; '.join(differences)}); "
                "use the same ones, or choose another `out` without `resume`"
            )
        if not os.access(self.path, os.W_OK):
            raise RunError(f"{self.path} is read-only; make it writable to resume")
        if self.finished:
            raise RunFinished(f"{self.path} is finished already; nothing to do")

    def _lock(self) -> None:
        """Keep other processes out of the folder for as long as this one lives."""
        lock = self.path / ".lock"
        try:  # a link could lead to any file
            self._lock_file = os.fdopen(open_lock(lock), "r+")
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise RunError(f"{lock} is a link to another file; remove it") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Not of a file that its last owner has removed meanwhile, on ending.
            if not os.path.samestat(os.fstat(self._lock_file.fileno()), os.stat(lock)):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError) as error:
            self._lock_file.close()
            message = f"{self.path} is being trained in by another process; choose another `out`"
            raise RunError(message) from error
        for left in self.path.glob(".*.tmp"):  # by a kill in the middle of `write_atomically`
            left.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; a broken summary raises RunError."""
        return (self.path / "summary.json").exists() and bool(self.summary())

    def config(self) -> Config:
        """Read the options the run was started with.

        Raises
        ------
        RunError
            If the folder holds no run.
        ValueError
            If the file cannot be understood.
        """
        try:
            return Config.load(self.path / "config.toml")
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "it has no config.toml" if self.path.is_dir() else "there is no such folder"
            raise RunError(f"{self.path} is not a run: {what}") from error

    def log(self, row: Mapping[str, float | int | str]) -> None:
        """Append one row to ``metrics.csv``, its numbers to TensorBoard where that is installed.

        Parameters
        ----------
        row
            Values by name, ``"step"`` among them: the number of steps done since the beginning
            of the run, pre-training included. Rows may have different names.
        """
        if self._writer is None and is_installed("tensorboard"):
            # Imported late: TensorBoard takes a second or two.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path), purge_step=self._first_step)
        self.metrics.append(row)
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                self._writer.add_scalar(name, value, int(row["step"]))

    def rewind(self, step: int) -> None:
        """Forget the figures logged beyond `step`, the one of the checkpoint resumed from.

        Call it on every resume before the first `log`, with 0 where there was no checkpoint yet.
        """
        self.metrics.rewind(step)
        self._first_step = step + 1

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace ``checkpoint.pt``; see `save_checkpoint`."""
        save_checkpoint(self.path / "checkpoint.pt", state)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read ``checkpoint.pt`` as `load_checkpoint` does, or give None where there is none."""
        path = self.path / "checkpoint.pt"
        return load_checkpoint(path) if path.exists() else None

    def save_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replace ``model.safetensors`` by a network's state dictionary."""
        from safetensors.torch import save

        # Copies: safetensors refuses tensors that share memory or are not contiguous.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        write_atomically(self.path / "model.safetensors", save(tensors))

    def load_weights(self) -> dict[str, torch.Tensor]:
        """Read ``model.safetensors``, to the CPU.

        Raises
        ------
        RunError
            If there is none yet, or it is broken.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path / "model.safetensors"
        if not path.exists():
            self.config()  # a folder that is not a run says so
            message = f"{self.path} has no weights yet; continue the run with `resume`"
            raise RunUnfinished(message, self.path)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RunError(f"{path}: broken or not a safetensors file ({error})") from error

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, which makes the run a finished one: write it last."""
        write_json(self.path / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """Read ``summary.json``.

        Raises
        ------
        RunError
            If the run is not finished, or the file is broken.
        """
        path = self.path / "summary.json"
        try:
            summary = read_json(path, dict[str, Any])
        except (FileNotFoundError, NotADirectoryError) as error:
            self.config()  # a folder that is not a run says so
            message = (
                f"{self.path} is not a finished run: no summary.json; continue it with `resume`"
            )
            raise RunUnfinished(message, self.path) from error
        except ValueError as error:
            raise RunError(f"{path}: broken ({reason(error)}); {_AGAIN}") from error
        if not isinstance(summary.get("test"), dict):
            raise RunError(f"{path}: not a summary of tcseg (it has no test results); {_AGAIN}")
        return summary

    def record_split(self, record: Mapping[str, Any], resume: bool) -> None:
        """Write ``split.json``, which images the run trains and tests on; or compare with it.

        Raises
        ------
        RunError
            If a resumed run had other ones: it would be tested on images it was trained on.
        """
        path = self.path / "split.json"
        if not (resume and path.exists()):
            write_json(path, record)
        elif self.split_record() != record:
            raise RunError(
                f"{self.path}: images, masks or structures of the data have changed since the "
                f"run began ({path}); start a new run with another `out`"
            )

    def split_record(self) -> dict[str, Any]:
        """Read ``split.json``."""
        try:
            return read_json(self.path / "split.json", dict[str, Any])
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path} has no split.json: it is from an older version; train it again"
            ) from error
        except ValueError as error:
            raise RunError(f"{self.path / 'split.json'}: broken ({error})") from error

    @property
    def trained_with(self) -> set[str]:
        """Names of the images that the network has seen, with labels or without."""
        try:
            (parts,) = self.split_record()["splits"]
            return {*parts["train"], *parts["unlabelled"]}
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.path / 'split.json'}: broken ({error!r})") from error

    @property
    def scale(self) -> str:
        """Grey scale of the images: of each "image" in a run that an earlier version began."""
        if not (self.path / "split.json").exists():
            return "volume"
        return str(self.split_record().get("scale", "image"))

    @property
    def begun(self) -> bool:
        """Whether a training has left more than its options."""
        return self._names() > {"config.toml"}

    def _names(self) -> set[str]:
        # What starts with a dot is left by a kill in the middle of a write, or by the desktop.
        files = self.path.iterdir() if self.path.is_dir() else ()
        return {path.name for path in files if path.name[0] != "."}

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock_file is not None:
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()  # while it is ours still
            self._lock_file.close()
            self._lock_file = None

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the run."""
        self.close()
