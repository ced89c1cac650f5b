"""A table of figures by training step, as CSV, that survives a kill in the middle of a line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tcseg.io.files import write_atomically

__all__ = ["MetricsFile"]


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
        """Read all rows as text, without empty fields and without a row cut off by a kill."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        # A row of too few fields has values None, one of too many the key None.
        whole = [row for row in rows if None not in row and None not in row.values()]
        return [
            {name: value for name, value in row.items() if value}
            for row in whole
            if row.get("step", "").isdecimal()
        ]

    def rewind(self, step: int) -> None:
        """Drop the rows beyond `step`."""
        if self.path.exists():
            self._replace(self._columns(), [r for r in self.rows() if int(r["step"]) <= step])

    def _columns(self) -> list[str]:
        if not self.path.exists():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])

    def _replace(self, columns: list[str], rows: Iterable[Mapping[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())
