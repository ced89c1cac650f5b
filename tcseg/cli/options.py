"""What the commands share: how errors are shown, and options made from `Config`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from tcseg.errors import (
    DataError,
    RunError,
    RunFinished,
    RunStopped,
    RunUnfinished,
    printable,
    reason,
)
from tcseg.extras import MissingPackageError, needs
from tcseg.method.names import OWN_NETWORKS
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder

FIELDS = Config.__dataclass_fields__
FOLDS = (
    "Note: some of the random deformations fold, so labels cannot be carried from one view to the "
    "other everywhere; a smaller --displacement-std avoids that"
)


class Commands(click.Group):
    """Commands whose expected errors are one line on stderr instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; tell an expected error in one line."""
        try:
            with needs("tcseg"), _folding_told_once():
                return super().invoke(ctx)
        # Click's own: wrong usage, the end of --help, and `tcseg ... | head`.
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except RunStopped as error:
            ctx.exit(128 + error.signal)
        except RunFinished as error:
            click.echo(error)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)
        except Exception as error:
            message, status = _explain(error)
            if not message or os.environ.get("TCSEG_DEBUG"):
                raise
            if isinstance(error, RunUnfinished):
                message += f": {resume_command(error.run)}"
            for line in with_options(message).splitlines():
                click.echo(f"Error: {line}", err=True)
            ctx.exit(status)


def _explain(error: Exception) -> tuple[str, int]:
    """Give the message and exit status of an expected error; no message for a bug."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way = "; make room and try again" if full else ""
        return f"{where}{error.strerror}{way}", 1
    if isinstance(error, DataError | RunError | OSError | MissingPackageError):
        return str(error), 1
    if isinstance(error, ValueError):
        return str(error), 2
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search("of memory|allocate memory", str(error))
    ):
        way = (
            "use a smaller `size`, `patch` or `batch_size`, a larger `spacing`, or a machine with "
            "more memory"
        )
        return f"out of memory ({reason(error)[:200]}); {way}", 1
    if isinstance(error, ImportError):
        return f"{error}; `tcseg doctor` says what is missing", 1
    return "", 1


@contextlib.contextmanager
def _folding_told_once() -> Iterator[None]:
    """Tell that deformations fold in words of options, once; the operator's are for programmers."""
    told, show = False, warnings.showwarning

    def tell(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        nonlocal told
        if category.__name__ != "FoldingWarning":  # its import takes seconds
            show(message, category, *where, **more)
        elif not told:
            click.echo(FOLDS, err=True)
            told = True

    warnings.showwarning = tell
    try:
        yield
    finally:
        warnings.showwarning = show


def resume_command(run: Path) -> str:
    """Return the command that continues a run."""
    command = f"tcseg train --out {shlex.quote(str(run))} --resume"
    with contextlib.suppress(RunError, ValueError):  # of options that cannot be read
        network = RunFolder(run).config().network
        command += "" if network in OWN_NETWORKS else f" --network {network}"
    return command


def check_root(data: str, root: str | None, way: str = "choose --data jsrt or folder, or ") -> None:
    """Refuse a folder for data that are drawn."""
    if root is not None and data == "phantom":
        raise click.UsageError(
            f"--root {root}: the data are phantoms, which are not read from a folder; {way}leave "
            "out --root"
        )


def with_options(message: str) -> str:
    """Write names of options as one types them, `batch_size` as --batch-size; escape the rest."""
    typed = re.sub(r"`([a-z_]+)`", lambda name: f"--{name[1].replace('_', '-')}", message)
    return printable(typed)


def config_options(
    *names: str, without: Collection[str] = (), **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what adds options for fields of `Config`: for these, or for all but some."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names or [name for name in FIELDS if name not in without]):
            field = FIELDS[name]
            choices, kind = field.metadata["choices"], field.metadata["kind"]
            typed = name.replace("_", "-")
            command = click.option(
                f"--{typed}/--no-{typed}" if kind is bool else f"--{typed}",
                type=click.Choice(choices) if choices else kind,
                default=defaults.get(name, field.default),
                show_default=field.default is not None,
                help=field.metadata["help"],
            )(command)
        return command

    return add


def read_config(
    ctx: click.Context, file: Path | None, options: dict[str, Any], **default: Any
) -> Config:
    """Options of a file, else of default, overridden by those of the command line; checked."""
    given = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    # Absolute, so that the run can be continued from another folder.
    for name in ("root", "cache", "pretrained", "split_file"):
        if name in given:
            given[name] = str(Path(given[name]).expanduser().absolute())
    config = Config.of(**{**default, **given}) if file is None else Config.load(file, **given)
    config.validate()
    check_root(config.data, given.get("root"))
    of_file = "network" in options and "network" not in given
    if of_file and config.network not in OWN_NETWORKS:
        raise click.UsageError(
            f"{file} names the network {config.network!r}, code that would be run; if you trust "
            f"it, add --network {config.network}"
        )
    return config


OF_FOLDERS = ("group", "mask_pattern", "window")

network_option = click.option(
    "--network",
    metavar="NAME",
    help="Dotted path of the run's network, if it is not tcseg's own and you trust its code.",
)
postprocess_option = click.option(
    "--postprocess",
    is_flag=True,
    help="Keep the largest component of each structure only, and fill its holes.",
)
moved_root_option = click.option(
    "--root", help="Folder of the data set, if it is not the one trained with."
)
moved_cache_option = click.option(
    "--cache", help="Folder of decoded images, if it is not the one trained with."
)
device_option = config_options("device")
config_file_option = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of options, such as the config.toml of a run; options given here override it.",
)


FOLDER = click.Path(file_okay=False, path_type=Path)


def out_option(text: str, kind: click.Path = FOLDER) -> Callable[..., Any]:
    """Return the option that says where to write."""
    return click.option("--out", required=True, type=kind, help=text)


class FileToWrite(click.Path):
    """A file in a folder that exists and can be written to: found out before any work.

    Its name must have one of `endings`, as what is written does not depend on it.
    """

    def __init__(self, *endings: str) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.endings = endings

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Check the name and the folder."""
        path: Any = super().convert(value, param, ctx)
        folder = Path(path).absolute().parent
        if not folder.is_dir():
            self.fail(f"there is no folder {folder}; make it first", param, ctx)
        if not os.access(folder, os.W_OK):
            self.fail(f"{folder} is read-only", param, ctx)
        if Path(path).suffix.lower() not in self.endings:
            self.fail(f"{path} does not end in {' or '.join(self.endings)}", param, ctx)
        return path


class ListOf(click.ParamType[list[Any]]):
    """Values with commas between, each once."""

    name = "list"

    def __init__(self, kind: type, choices: tuple[str, ...] = ()) -> None:
        self.kind, self.choices = kind, choices

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        """Split and check."""
        if isinstance(value, list):
            return value
        kind = click.Choice(self.choices) if self.choices else self.kind
        convert = click.types.convert_type(kind).convert
        return list(dict.fromkeys(convert(part.strip(), param, ctx) for part in value.split(",")))


def examples(*lines: str) -> str:
    """Set examples below a help text; the control character keeps click from wrapping them."""
    return "\n  ".join(("\b\nExamples:", *lines))
