"""What is printed: tables of text, for a terminal of any width and as Markdown, and progress."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

T = TypeVar("T")


def plain_console(*, quiet: bool = False) -> Console:
    """Return a console that prints names and paths as they are: unbroken, and not as markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True, quiet=quiet)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Yield items, on a terminal with a bar that says how far it is."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    return track(items, what, total, console=console, transient=True)


@dataclass
class Sheet:
    """A table whose rows never break in a terminal.

    Where not all columns fit, they go below one another in blocks, each with the first column, the
    names of the rows, before it.

    Attributes
    ----------
    title
        Stands above; may be empty.
    columns
        Headings.
    sections
        Groups of rows with a heading each, which may be empty.
    notes
        Sentences that stand below.
    together
        So many columns, from the second on, stay in one block where they fit.
    """

    title: str
    columns: list[str]
    sections: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    together: int = 1

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield what `rich` prints."""
        from rich.text import Text

        if self.title:
            yield Text(self.title, style="bold", no_wrap=False, overflow="fold")
        for block in self._blocks(options.max_width):
            yield self._table(block)
        for note in self.notes:
            yield Text(note, style="dim", no_wrap=False, overflow="fold")

    def _blocks(self, width: int) -> Iterator[list[int]]:
        """Yield the columns of each block, that of the names not counted."""
        from rich.cells import cell_len

        rows = [row for _, rows in self.sections for row in rows]
        lines = ("\n".join(texts).split("\n") for texts in zip(self.columns, *rows, strict=True))
        widths = [max(map(cell_len, texts)) + 3 for texts in lines]
        headings = [cell_len(heading) + 3 for heading, _ in self.sections]
        names = 1 + max([widths[0], *headings])
        room, block = width - names, list[int]()
        for start in range(1, len(widths), self.together):
            group = list(range(start, min(start + self.together, len(widths))))
            whole = sum(widths[i] for i in block + group) <= room
            for i in group:
                full = sum(widths[j] for j in [*block, i]) > room
                if block and (full or (i == start and not whole)):
                    yield block
                    block = []
                block.append(i)
        yield block

    def _table(self, block: Sequence[int]) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        for i in (0, *block):
            column = escape(self.columns[i])
            table.add_column(column, justify="right" if i else "left", overflow="fold")
        for heading, rows in self.sections:
            if heading:
                table.add_row(escape(heading), style="italic")
            for n, row in enumerate(rows):
                cells = (escape(row[i]) for i in (0, *block))
                table.add_row(*cells, end_section=n == len(rows) - 1)
        return table

    def markdown(self) -> str:
        """Return it as Markdown."""
        lines = [f"## {self.title}", "", _line(self.columns)]
        lines.append(_line(["---"] + ["---:"] * (len(self.columns) - 1)))
        for heading, rows in self.sections:
            if heading:
                lines.append(_line([f"*{heading}*"] + [""] * (len(self.columns) - 1)))
            lines += map(_line, rows)
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plus_minus(mean: float | None, deviation: float | None, digits: int = 1) -> str:
    """Return "mean ± deviation"; the mean alone, or "-", where there is no more."""
    if mean is None or math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
