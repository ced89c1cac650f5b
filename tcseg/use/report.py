"""The command `tcseg report`: runs as one page to look at, to send and to keep."""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jinja2
import msgspec
from matplotlib.figure import Figure

from tcseg.data import Dataset, Split
from tcseg.errors import DataError, RunError, reason
from tcseg.evaluation.evaluate import evaluate, predict
from tcseg.evaluation.pictures import images_and_truths, side_by_side
from tcseg.io.files import write_atomically
from tcseg.io.images import png
from tcseg.io.label_maps import COLOURS
from tcseg.runs.folder import RunFolder
from tcseg.sheet import plus_minus
from tcseg.use.segmenter import Segmenter
from tcseg.use.with_data import load_with_data


class _Results(TypedDict):
    """Figures of a set of images, as `evaluate` gives them; null where nothing is known."""

    miou: float | None
    miou_std: NotRequired[float | None]
    iou: dict[str, float | None]
    iou_std: NotRequired[dict[str, float | None]]
    dice: dict[str, float | None]
    dice_std: NotRequired[dict[str, float | None]]
    macd_mm: dict[str, float | None]
    missed: NotRequired[dict[str, int]]


class _Summary(TypedDict):
    """What of ``summary.json`` is shown."""

    method: str
    data: str
    labelled: int
    size: int | str
    recipe: str
    pretrain_steps: int
    steps: int
    seed: int
    seconds: float
    pretrained_test: _Results
    test: _Results


CURVES = {"loss": "loss", "validation_miou": "validation mIOU"}
CASES = 3  # best ones, and as many worst
CASE_SIZE = 256  # pixels of an image, at least


@dataclass
class _Run:
    name: str
    summary: _Summary
    rows: list[dict[str, str]]
    cases: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    key: list[tuple[str, str]] = field(default_factory=list)
    volumes: bool = False
    why_no_cases: str = ""
    tested: list[str] = field(default_factory=list)  # images, where the data can be read


def report(
    runs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    root: str | None = None,
    device: str = "auto",
    network: str | None = None,
) -> list[str]:
    """Write runs as one HTML page that needs no other file.

    Curves, a table of structures, and the best and worst test cases of each run as overlays.

    Parameters
    ----------
    runs
        Folders of finished runs.
    path
        The HTML file, replaced in one step.
    root
        Folder of the data, where it is not the one trained with. Where the data cannot be read
        there are no cases, and the page says so.
    device
        Where the networks run.
    network
        Dotted path of a network of the runs that is none of the package's, and that you trust.

    Returns
    -------
    list of str
        What could not be shown, or not be compared, a line each.

    Raises
    ------
    RunError
        If a folder holds no finished run.
    """
    folders = [RunFolder(run) for run in runs]
    names = _names([folder.path for folder in folders])
    shown = []
    for name, folder in zip(names, folders, strict=True):
        try:
            summary = msgspec.convert(folder.summary(), _Summary)
        except msgspec.ValidationError as error:
            raise RunError(
                f"{folder.path / 'summary.json'}: broken, or from an older version "
                f"({reason(error)}); delete it, and write it again with tcseg train --resume"
            ) from error
        run = _Run(name, summary, folder.metrics.rows())
        try:
            _add_cases(run, *load_with_data(folder.path, device, root, network))
        except (DataError, RunError, ValueError) as error:
            run.why_no_cases = f"No cases can be shown: {error}"
        shown.append(run)
    tests = {tuple(sorted(run.tested)) for run in shown if run.tested}
    remark = (
        "The runs were tested on different images, so their figures do not compare."
        if len(tests) > 1
        else ""
    )
    structures = dict.fromkeys(s for run in shown for s in run.summary["test"]["iou"])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tcseg.use", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "distance": _distance}
    title = names[0] if len(names) == 1 else f"{len(names)} runs compared"
    page = environment.get_template("report.html.j2").render(
        title=f"tcseg: {title}",
        version=version("tcwarp"),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        runs=shown,
        remark=remark,
        structures=list(structures),
        curves={label: _curve(shown, name, label) for name, label in CURVES.items()},
        in_mm=any(v is not None for r in shown for v in r.summary["test"]["macd_mm"].values()),
    )
    write_atomically(path, page)
    missing = [f"{run.name}: {run.why_no_cases}" for run in shown if run.why_no_cases]
    return [*missing, *filter(None, [remark])]


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with those above where they are alike."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return names


def _add_cases(run: _Run, segmenter: Segmenter, dataset: Dataset, split: Split) -> None:
    test = split.test
    run.tested = [dataset.ids[i] for i in test]
    rows = evaluate(segmenter.network, dataset, test)["images"]
    shown = [i for i, row in enumerate(rows) if math.isfinite(row["miou"])]
    order = sorted(shown, key=lambda i: -rows[i]["miou"])
    run.volumes = len(dataset.images.shape) > 4
    run.key = list(zip(dataset.classes, itertools.cycle(COLOURS), strict=False))
    count = min(CASES, len(order))
    worst = [i for i in order[::-1][:count] if i not in order[:count]]  # of few images
    for heading, chosen in (("Best", order[:count]), ("Worst", worst)):
        if not chosen:
            continue
        indices = [test[i] for i in chosen]
        predictions = predict(segmenter.network, dataset, indices)
        cases = [
            {
                "name": rows[i]["id"],
                "miou": rows[i]["miou"],
                "picture": _embedded("image/png", png(side_by_side(image, masks, CASE_SIZE))),
            }
            for i, image, *masks in zip(
                chosen, *images_and_truths(dataset, indices, predictions), strict=True
            )
        ]
        run.cases.append((heading, cases))


def _curve(runs: Sequence[_Run], name: str, label: str) -> str:
    figure = Figure(figsize=(5.5, 4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for run in runs:
        points = [(int(r["step"]), _number(r[name])) for r in run.rows if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=run.name, linewidth=1.2)
        axes.axvline(run.summary["pretrain_steps"], color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("step; the dotted line ends pre-training")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    return _embedded("image/svg+xml", content.getvalue())


def _number(text: str) -> float:
    """Return the number of a field of a table; nan, which is not drawn, where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _embedded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _percent(results: _Results, figure: str, name: str | None = None) -> str:
    figures: Mapping[str, Any] = results
    mean, deviation = figures.get(figure), figures.get(f"{figure}_std")
    if name is not None:
        mean, deviation = (None if v is None else v.get(name) for v in (mean, deviation))
    mean, deviation = (None if v is None else 100 * v for v in (mean, deviation))
    return plus_minus(mean, deviation)


def _distance(results: _Results, name: str) -> str:
    value, missed = results["macd_mm"].get(name), results.get("missed", {}).get(name, 0)
    return ("-" if value is None else f"{value:.2f}") + (f" ({missed})" if missed else "")
