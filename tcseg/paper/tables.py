"""The two tables of the paper from the results of a grid, with the published figures beside."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcseg.io.files import write_atomically
from tcseg.paper.published import STRUCTURES, TABLE1, TABLE2, TABLE2_OTHERS, Published
from tcseg.sheet import Sheet, plus_minus

if TYPE_CHECKING:
    from tcseg.paper.grid import Cell

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
    ("semitc-average", "semitc"),
    ("semitc-teacher", "semitc"),
    ("semitc-paste", "semitc"),
)


def table1(
    results: Summaries, methods: Sequence[str], labelled: Sequence[int], published: bool
) -> Sheet:
    """Test mIOU by method and number of labels, mean and standard deviation over splits.

    With the figures of the paper beside them if `published`: they are of JSRT.
    """
    columns = ["method"]
    for count in labelled:
        columns += [f"{count} labels", "paper"] if published else [f"{count} labels"]
    sheet = Sheet("Test mIOU in percent, mean ± standard deviation over splits", columns)
    sheet.together = 1 + published
    for heading, group in (
        ("inductive", [m for m in methods if m not in TRANSDUCTIVE]),
        ("transductive", TRANSDUCTIVE),
    ):
        rows = []
        for method in group:
            row = [method]
            for count in labelled:
                known = _over_splits(results, method, count)
                row += [_spread([100 * s["test"]["miou"] for s in known.values()])]
                if published:
                    row += [plus_minus(*TABLE1.get(method, {}).get(count, (None, None)))]
            if method in methods:
                rows.append(row)
        if rows:
            sheet.sections.append((heading, rows))
    sheet.notes = [
        "mIOU: overlap (intersection over union) of prediction and truth, mean over structures. In "
        "brackets the number of splits, where it is not 5. Transductive: the test images, without "
        "their labels, are among the unlabelled ones.",
    ]
    return sheet


def volumes(results: Summaries, methods: Sequence[str], labelled: Sequence[int]) -> Sheet:
    """Dice coefficient of whole volumes, over their planes, by method and number of labels."""
    rows = []
    for method in methods:
        known = [_over_splits(results, method, count).values() for count in labelled]
        dice = [[s["test"]["volumes"]["dice"].values() for s in column] for column in known]
        rows.append([method, *(_spread([_percent(d) for d in column]) for column in dice)])
    return Sheet(
        "3-D Dice of the test volumes in percent, mean ± standard deviation over splits",
        ["method", *(f"{count} labels" for count in labelled)],
        [("", rows)],
        ["At the size of training; mean over structures of the mean over volumes with it."],
    )


def _percent(values: Iterable[float | None]) -> float:
    return 100 * float(np.mean([value for value in values if value is not None]))


def comparisons(results: Summaries, methods: Sequence[str], labelled: Sequence[int]) -> Sheet:
    """Count the pairs (same labels, same split) in which one method is better than another."""
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
                    f"{method} against {other}",
                    f"{better} of {len(differences)}",
                    f"{np.mean(differences):+.2f} points",
                    _p_value(differences),
                ]
            )
    return Sheet(
        "What each term adds: pairs of the same labels and split",
        ["comparison", "better in", "mean difference", "p (Wilcoxon)"],
        [("", rows)],
        ["Two-sided signed-rank test over the pairs; pairs of one split are related."],
    )


def table2(
    results: Summaries, methods: Sequence[str], labelled: Sequence[int], published: bool
) -> Sheet:
    """IOU and contour distance of lungs, heart and clavicles, post-processed.

    With the figures of the paper and of others below if `published`: they are of JSRT.
    """
    columns = ["", "labelled", *(f"{name}, IOU %" for name in STRUCTURES)]
    sheet = Sheet(
        "Post-processed segmentations, mean ± standard deviation over test images",
        [*columns, *(f"{name}, MACD mm" for name in STRUCTURES)],
    )
    sheet.notes = [
        "Averaged over splits. IOU: overlap of prediction and truth, intersection over union. "
        "MACD: mean absolute distance of their contours. Labelled: training and validation images.",
    ]
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
            row.append(plus_minus(mean, deviation, digits))
    return row


def _published_row(row: Published) -> list[str]:
    cells = [row.name, row.labelled]
    for values, digits in ((row.iou, 1), (row.macd_mm, 2)):
        for value in values:
            mean, deviation = value or (None, None)
            cells.append(plus_minus(mean, deviation, digits))
    return cells


def save(folder: Path, name: str, sheets: Iterable[Sheet], results: Summaries) -> list[Path]:
    """Write the tables as Markdown and every single result as CSV."""
    markdown, rows = folder / f"{name}.md", folder / f"{name}.csv"
    write_atomically(markdown, "\n".join(sheet.markdown() for sheet in sheets))
    table = []
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
            **{
                f"3-D dice {name}": value
                for name, value in test.get("volumes", {}).get("dice", {}).items()
            },
            "validation miou": summary["validation"]["miou"],
            "pretrained miou": summary["pretrained_test"]["miou"],
            "best step": summary["best_step"],
            "seconds": summary["seconds"],
        }
        table.append({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
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
    return plus_minus(float(np.mean(values)), deviation) + splits
