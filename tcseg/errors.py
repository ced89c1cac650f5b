"""Errors that are shown as one line, and how foreign text is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path


class DataError(Exception):
    """Data that are missing, damaged or unfit for the request; the message is one clear line."""


def reason(error: Exception) -> str:
    """Return what an error says, on one line; its kind where it says nothing."""
    # Between backquotes the messages of tcseg have names of options.
    return " ".join(str(error).replace("`", "'").split()) or type(error).__name__


@contextlib.contextmanager
def mask_file(path: Path) -> Iterator[None]:
    """Name a file of masks in errors of its decoder: those of damaged files are almost any."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"folder: {path} cannot be read ({reason(error)})") from error


def counted(count: int, what: str) -> str:
    """Return so many of something in words.

    Examples
    --------
    >>> counted(1, "test image"), counted(3, "plane")
    ('1 test image', '3 planes')
    """
    return f"{count} {what}" + "s" * (count != 1)


def printable(text: str) -> str:
    r"""Escape what a terminal would obey, not show: text may hold names that others gave to files.

    Examples
    --------
    >>> print(printable("scan\x1b[2J.png"))
    scan\x1b[2J.png
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


class Problems:
    """What is wrong with a data set: the first fault raises, or all are collected.

    Parameters
    ----------
    collect
        Whether to continue after a fault, without what it affects.
    """

    def __init__(self, collect: bool = False) -> None:
        self.collect = collect
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Raise, or note, one fault: a clear line with the way out."""
        if not self.collect:
            raise DataError(problem)
        self.found.append(problem)

    def listed(self, names: Sequence[str]) -> str:
        """Return the first names, few where one line is to hold them, and how many more."""
        shown = 50 if self.collect else 3
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        return ", ".join(names[:shown]) + more


class RunError(Exception):
    """A run that cannot be started, continued or read; the message is one clear line."""


class RunFinished(RunError):
    """The run to be continued is finished already; nothing was changed."""


class RunUnfinished(RunError):
    """A run that has to be continued to its end first; `run` is its folder."""

    def __init__(self, message: str, run: Path) -> None:
        super().__init__(message)
        self.run = run


class RunStopped(RunError):
    """The run was told to stop, by a signal or otherwise (0); it can be continued."""

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal
