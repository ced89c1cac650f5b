"""The two tables of the paper from the results of a grid, with the published figures beside."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcseg.files import write_atomically
from tcseg.published import STRUCTURES, TABLE1, TABLE2, TABLE2_OTHERS, Published

if TYPE_CHECKING:
    from rich.table import Table

    from tcseg.reproduce import Cell

Summaries = Mapping["Cell", Mapping[str, Any]]

# Those whose pool holds the test images: not to be compared with the others.
TRANSDUCTIVE = ("semitc+",)
# What each term adds, in the order of the paper: (method, against).
COMPARISONS = (
    ("suptc", "baseline"),
    ("semitc", "suptc"),
    ("semitc", "baseline"),
    ("semitc+", "semitc"),
    ("stopgrad", "semitc"),
    ("mean-teacher", "semitc"),
)


@dataclass
class Sheet:
    """A table of text; `sections` are groups of rows with a heading each, which may be empty."""

    title: str
    columns: list[str]
    sections: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Table:
        """Return it for the terminal."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(self.title), title_justify="left", caption_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(escape(column), justify="right" if i else "left")
        for heading, rows in self.sections:
            if heading:
                table.add_row(escape(heading), style="italic")
            for i, row in enumerate(rows):
                table.add_row(*map(escape, row), end_section=i == len(rows) - 1)
        table.caption = escape("\n".join(self.notes)) or None
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


def table1(
    results: Summaries, methods: Sequence[str], labelled: Sequence[int], published: bool
) -> Sheet:
    """Test mIOU by method and number of labels, mean and standard deviation over splits.

    With the figures of the paper beside them if `published`: they are of JSRT.
    """
    columns = ["method"]
    for count in labelled:
        columns += [f"{count} labels", "paper"] if published else [f"{count} labels"]
    sheet = Sheet("Test mIOU in percent, mean and standard deviation over splits", columns)
    for heading, group in (
        ("inductive", [m for m in methods if m not in TRANSDUCTIVE]),
        ("transductive: test images, without labels, in the pool", TRANSDUCTIVE),
    ):
        rows = []
        for method in group:
            row = [method]
            for count in labelled:
                known = _over_splits(results, method, count)
                row += [_spread([100 * s["test"]["miou"] for s in known.values()])]
                if published:
                    row += [_plus_minus(*TABLE1.get(method, {}).get(count, (None, None)))]
            if method in methods:
                rows.append(row)
        if rows:
            sheet.sections.append((heading, rows))
    sheet.notes = ["In brackets the number of splits, where it is not 5."]
    return sheet


def comparisons(results: Summaries, methods: Sequence[str], labelled: Sequence[int]) -> Sheet:
    """Count the pairs (same labels, same split) in which one method is better than another."""
    sheet = Sheet(
        "What each term adds: pairs of the same labels and split",
        ["method", "against", "better in", "mean difference", "p (Wilcoxon)"],
    )
    rows = []
    for method, other in COMPARISONS:
        if not {method, other} <= set(methods):
            continue
        differences = []
        for count in labelled:
            ours, theirs = (_over_splits(results, m, count) for m in (method, other))
            differences += [
                100 * (ours[split]["test"]["miou"] - theirs[split]["test"]["miou"])
                for split in sorted(ours.keys() & theirs.keys())
            ]
        if differences:
            better = sum(d > 0 for d in differences)
            rows.append(
                [
                    method,
                    other,
                    f"{better} of {len(differences)}",
                    f"{np.mean(differences):+.2f} points",
                    _p_value(differences),
                ]
            )
    sheet.sections.append(("", rows))
    sheet.notes = ["Two-sided signed-rank test over the pairs; pairs of one split are related."]
    return sheet


def table2(
    results: Summaries, methods: Sequence[str], labelled: Sequence[int], published: bool
) -> Sheet:
    """IOU and contour distance of lungs, heart and clavicles, post-processed.

    With the figures of the paper and of others below if `published`: they are of JSRT.
    """
    columns = ["", "images with labels", *(f"{name}, IOU %" for name in STRUCTURES)]
    sheet = Sheet(
        "Post-processed: overlap and mean absolute contour distance (MACD), mean and standard "
        "deviation over test images, averaged over splits",
        [*columns, *(f"{name}, MACD mm" for name in STRUCTURES)],
    )
    for count in labelled:
        rows = []
        for method in methods:
            if any((c.method, c.labelled) == (method, count) for c in results):
                rows.append(_table2_row(method, count, results))
            if published and (method, count) in TABLE2:
                rows.append(_published_row(TABLE2[method, count]))
        sheet.sections.append((f"{count} training images with labels", rows))
    if published:
        others = [_published_row(row) for row in TABLE2_OTHERS]
        sheet.sections.append(("others, as published", others))
    return sheet


def _table2_row(method: str, count: int, results: Summaries) -> list[str]:
    chosen = {c: s for c, s in results.items() if (c.method, c.labelled) == (method, count)}
    images = {count + (s["validation_images"]) for s in chosen.values()}
    numbers = " or ".join(map(str, sorted(images)))
    row = [f"{method}, {len(chosen)} split{'s' * (len(chosen) > 1)}", numbers]
    for figure, scale, digits in (("iou", 100, 1), ("macd_mm", 1, 2)):
        for name in STRUCTURES:
            values = []
            for summary in chosen.values():
                test = summary["test_postprocessed"]
                part = test if name in test[figure] else test["joined"]
                values.append((part[figure][name], part[f"{figure}_std"][name]))
            pairs = np.array(values, dtype=float)  # None becomes nan
            known = pairs[np.isfinite(pairs).all(axis=1)]
            mean, deviation = scale * known.mean(axis=0) if len(known) else (None, None)
            row.append(_plus_minus(mean, deviation, digits))
    return row


def _published_row(row: Published) -> list[str]:
    cells = [row.name, row.labelled]
    for values, digits in ((row.iou, 1), (row.macd_mm, 2)):
        for value in values:
            mean, deviation = value or (None, None)
            cells.append(_plus_minus(mean, deviation, digits))
    return cells


def save(folder: Path, name: str, sheets: Iterable[Sheet], results: Summaries) -> list[Path]:
    """Write the tables as Markdown and every single result as CSV."""
    markdown, rows = folder / f"{name}.md", folder / f"{name}.csv"
    write_atomically(markdown, "\n".join(sheet.markdown() for sheet in sheets))
    text = io.StringIO()
    writer: Any = None
    for cell, summary in sorted(results.items(), key=lambda item: str(item[0])):
        test = summary["test"]
        row = {
            "labelled": cell.labelled,
            "validation_images": cell.validation_images or "all",
            "split": cell.split,
            "method": cell.method,
            "miou": test["miou"],
            **{f"iou {name}": value for name, value in test["iou"].items()},
            **{f"macd mm {name}": value for name, value in test["macd_mm"].items()},
            "validation miou": summary["validation"]["miou"],
            "pretrained miou": summary["pretrained_test"]["miou"],
            "best step": summary["best_step"],
            "seconds": summary["seconds"],
        }
        if writer is None:
            writer = csv.DictWriter(text, row, lineterminator="\n")
            writer.writeheader()
        writer.writerow({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    write_atomically(rows, text.getvalue())
    return [markdown, rows]


def _over_splits(results: Summaries, method: str, labelled: int) -> dict[int, Mapping[str, Any]]:
    return {
        cell.split: summary
        for cell, summary in results.items()
        if (cell.method, cell.labelled, cell.validation_images) == (method, labelled, None)
    }


def _p_value(differences: Sequence[float]) -> str:
    from scipy.stats import wilcoxon

    if len(differences) < 2 or not any(differences):
        return "-"
    return f"{wilcoxon(differences).pvalue:.2g}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    # Of a sample: the splits stand for all that could have been drawn.
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    splits = "" if len(values) == 5 else f" ({len(values)})"
    return _plus_minus(float(np.mean(values)), deviation) + splits


def _plus_minus(mean: float | None, deviation: float | None, digits: int = 1) -> str:
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
