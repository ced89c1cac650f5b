"""What to install where a package is missing that only some parts of tcseg need."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from importlib import metadata


class MissingPackageError(ImportError):
    """A package is not installed; the message is one line that says how to get it."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Name the extra to install where an import inside fails.

    Parameters
    ----------
    extra : str
        The extra of the distribution that brings what is imported.

    Raises
    ------
    MissingPackageError
        If a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or is_installed(name):
            raise
        # In a clone of which nothing was installed, an index would be asked for tcwarp.
        distribution = "tcwarp" if list(metadata.distributions(name="tcwarp")) else "."
        raise MissingPackageError(
            f'{name} is not installed; run `pip install "{distribution}[{extra}]"`', name=name
        ) from None


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # blocked, or made by hand
        return False
