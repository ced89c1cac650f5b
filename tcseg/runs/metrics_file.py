"""A table of figures by training step, as CSV, that survives a kill in the middle of a line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tcseg.errors import RunError
from tcseg.io.files import write_atomically

MOST_DIGITS = 19  # of a step


class MetricsFile:
    """Rows appended one at a time, each with a ``step``.

    Parameters
    ----------
    path
        The CSV file; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, float | int | str]) -> None:
        """Add a row; a name not seen before becomes a new column, a name left out stays empty."""
        columns = self._columns()
        new = [name for name in row if name not in columns]
        if new:
            columns += new
            self._replace(columns, self.rows())
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """Read all rows as text, without empty fields and without a row cut off by a kill.

        Raises
        ------
        RunError
            If the file is no table.
        """
        rows = csv.DictReader(line for line in self._lines() if line.endswith("\n"))
        try:
            # A row of too few fields has values None, one of too many the key None.
            whole = [row for row in rows if None not in row and None not in row.values()]
        except csv.Error as error:
            raise self._broken(error) from error
        return [
            {name: value for name, value in row.items() if value}
            for row in whole
            if (step := row.get("step", "")).isdecimal() and len(step) < MOST_DIGITS
        ]

    def rewind(self, step: int) -> None:
        """Drop the rows beyond `step`."""
        if self.path.exists():
            self._replace(self._columns(), [r for r in self.rows() if int(r["step"]) <= step])

    def _columns(self) -> list[str]:
        try:
            return next(csv.reader(self._lines()), [])
        except csv.Error as error:
            raise self._broken(error) from error

    def _lines(self) -> Iterator[str]:
        """Read line by line, as both the names of columns and all rows are: others may edit it."""
        if self.path.exists():
            with open(self.path, encoding="utf-8", errors="replace", newline="\n") as file:
                yield from file

    def _broken(self, error: csv.Error) -> RunError:
        way = "put a good copy there, or delete it and do without its figures"
        return RunError(f"{self.path}: broken ({error}); {way}")

    def _replace(self, columns: list[str], rows: Iterable[Mapping[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())
