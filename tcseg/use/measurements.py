"""The table of measurements of `tcseg predict`, a row for each plane or volume."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from tcseg.evaluation.metrics import cardiothoracic_ratio
from tcseg.io.images import Picture
from tcseg.io.placement import Placement
from tcseg.io.sizes import Spacing
from tcseg.runs.model import Model
from tcseg.use.segmenter import Prediction

# From this ratio on, a note is printed: augmentation does not go that far.
OTHER_SCALE = 1.5
RATIO = "cardiothoracic ratio"
CHEST = {"heart", "left lung", "right lung"}
SIDES: dict[int, tuple[str, ...]] = {2: ("height", "width"), 3: ("depth", "height", "width")}
UNITS = {2: ("pixels", "mm2"), 3: ("voxels", "mm3")}


def scale_of(model: Model, picture: Picture) -> float:
    """Return the size of a pixel for the network against that in training; 1 if not known."""
    height, width = picture.pixels.shape[1:]
    spacing = Placement.of((height, width), model.size).spacing(picture.spacing)
    if spacing is None or model.spacing is None:
        return 1.0
    return math.sqrt(math.prod(spacing) / math.prod(model.spacing))


def tell_scales(scales: Sequence[tuple[float, Path]], console: Console) -> None:
    """Print a note if some images are at another scale than the training data."""
    different = [
        (scale, path) for scale, path in scales if not 1 / OTHER_SCALE < scale < OTHER_SCALE
    ]
    if different:
        scale, path = different[0]
        console.print(
            f"Note: {len(different)} of {len(scales)} images are at a different scale from the "
            f"training data (the pixels of {path}, fitted to the network, are {scale:.2g} times as "
            "large): look at their overlays",
            markup=False,
        )


class Rows:
    """The table of measurements as text."""

    def __init__(self, model: Model) -> None:
        flat = model.dimensions == 2
        sides = ("plane", *SIDES[2], "mm at") if flat else SIDES[3]
        measures = [f"{name} {unit}" for name in model.classes for unit in UNITS[model.dimensions]]
        ratio = [RATIO] if flat and set(model.classes) >= CHEST else []
        self.columns = ["file", *sides, "consistency", *measures, *ratio]

    @property
    def header(self) -> str:
        """The first line."""
        return self.text([dict(zip(self.columns, self.columns, strict=True))])

    def text(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Return rows by column as lines of CSV."""
        with io.StringIO(newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerows(
                [_no_formula(row.get(column)) for column in self.columns] for row in rows
            )
            return text.getvalue()


def _no_formula(value: Any) -> Any:
    """Mark text that a spreadsheet would run, such as a file named ``=cmd``, as text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value


def measure(
    path: Path,
    masks: NDArray[np.bool_],
    prediction: Prediction,
    spacing: Spacing | None,
    classes: Sequence[str],
    **more: Any,
) -> dict[str, Any]:
    """Return the row of an image, a plane or a volume; `spacing` is of its pixels, if known."""
    sides, units = SIDES[masks.ndim - 1], UNITS[masks.ndim - 1]
    row: dict[str, Any] = {"file": str(path), "consistency": prediction.consistency, **more}
    row |= zip(sides, masks.shape[1:], strict=True)
    by_name = dict(zip(classes, masks, strict=True))
    for name, mask in by_name.items():
        row[f"{name} {units[0]}"] = count = int(np.count_nonzero(mask))
        if spacing is not None:
            row[f"{name} {units[1]}"] = count * math.prod(spacing)
    if len(sides) == 2 and set(classes) >= CHEST:
        lungs = by_name["left lung"] | by_name["right lung"]
        row[RATIO] = cardiothoracic_ratio(by_name["heart"], lungs)
    # What is not known stays empty.
    known = {k: v for k, v in row.items() if not (isinstance(v, float) and np.isnan(v))}
    return {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in known.items()}
