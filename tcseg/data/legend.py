"""What `classes.txt` says of the values and colours in masks."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np

from tcseg.errors import DataError
from tcseg.io.planes import Planes

_COLOUR = r"(?:#(?P<hex>[0-9a-fA-F]{6})|(?P<rgb>\d{1,9}(?:[\s,]+\d{1,9}){2}))"
_LINES = (
    r"(?P<value>-?\d{1,18}|\*)\s+(?P<name>[^\d\s].*)",
    rf"{_COLOUR}\s+(?P<name>[^\d\s].*)",
    rf"(?P<name>\S.*?)\s+{_COLOUR}",
    r"(?P<value>\d{1,18})\s+(?P<name>\S.*)",
)


@dataclass
class Legend:
    """Names of classes.

    Attributes
    ----------
    names : dict of str
        By value; classes with a colour have the first values that are free, from 1 on.
    colours : dict of int
        The value of each colour, of 24 bits; 0 is the background.
    others : int or None
        The value that all values without a name count as.
    """

    names: dict[int, str] = field(default_factory=dict)
    colours: dict[int, int] = field(default_factory=dict)
    others: int | None = None

    def values(self, planes: Planes) -> Planes:
        """Return the values that count."""
        if self.others is None:
            return planes
        return np.where(np.isin(planes, [0, *self.names]), planes, self.others)


def read_legend(path: Path) -> Legend:
    """Read classes.txt, a line for each class; where there is none, classes have no names.

    Lines are ``1 liver``, ``liver #ff0000`` or ``liver 255 0 0``, or ``* liver`` for all values
    without a line of their own. A colour, or all other values, may be named background.

    Raises
    ------
    DataError
        If it is not such a file.
    """
    legend = Legend()
    if not path.exists():
        return legend
    try:
        lines = normalize("NFC", path.read_text(encoding="utf-8-sig")).splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    unplaced: list[tuple[int | None, str]] = []  # colours, None for all other values
    for line in filter(None, map(str.strip, lines)):
        if line[0] == "#" and not re.match(r"#[0-9a-fA-F]{6}\s", line):
            continue
        found = _parsed(line, path)
        mark, name = found.get("value"), found["name"]
        if mark is None or mark == "*":
            unplaced.append((_colour(found, path) if mark is None else None, name))
        else:
            legend.names[int(mark)] = name
    legend.names.pop(0, None)  # the background has no mask
    free = (value for value in itertools.count(1) if value not in legend.names)
    for colour, name in unplaced:
        value = 0 if name == "background" else next(free)
        if value:
            legend.names[value] = name
        if colour is None:
            legend.others = value
        else:
            legend.colours[colour] = value
    if legend.colours:
        legend.colours.setdefault(0, 0)  # black
    if min(legend.names, default=1) < 0 or len(set(legend.names.values())) < len(legend.names):
        raise DataError(f"{path}: values must not be negative, and names must differ")
    return legend


def _parsed(line: str, path: Path) -> dict[str, str]:
    for form in _LINES:
        if match := re.fullmatch(form, line):
            return {name: text for name, text in match.groupdict().items() if text is not None}
    raise DataError(
        f"{path}: {line!r} is neither a value and a name, as in '1 liver', nor a name and a "
        "colour, as in 'liver #ff0000' or 'liver 255 0 0'"
    )


def _colour(found: dict[str, str], path: Path) -> int:
    if "hex" in found:
        return int(found["hex"], 16)
    red, green, blue = map(int, re.findall(r"\d+", found["rgb"]))
    if max(red, green, blue) > 255:
        raise DataError(f"{path}: {found['rgb']!r} is no colour; its parts go from 0 to 255")
    return red << 16 | green << 8 | blue
