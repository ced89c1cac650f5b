"""The demonstration: what unlabelled images add, on the phantom, in a few minutes."""

import contextlib
from pathlib import Path
from typing import Any

from tcseg.errors import RunFinished, counted
from tcseg.evaluation.evaluate import predict, results_table
from tcseg.evaluation.pictures import save_panel, spread
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.sheet import plain_console
from tcseg.training.session import train
from tcseg.use.with_data import load_with_data

METHODS = ("baseline", "semitc")
SMALL: dict[int, dict[str, Any]] = {  # by dimensions: enough to show the gain, in a few minutes
    2: {"size": 64, "labelled": 5, "pretrain_steps": 300, "steps": 400},
    3: {"labelled": 3, "batch_size": 2, "pretrain_steps": 240, "steps": 120},
}


def demo(out: Path, dimensions: int, **given: int) -> None:
    """Train the baseline and semitc from one pre-training with few labelled phantoms; compare them.

    What is finished in `out` already is shown again and not trained again; what was interrupted
    is continued.

    Parameters
    ----------
    out : Path
        Folder for the two runs and the picture that compares them.
    dimensions : int
        2 for images, 3 for volumes.
    **given
        Options of `tcseg train` that take the place of those in `SMALL`.
    """
    summaries, predictions = {}, {}
    for method in METHODS:
        run = RunFolder(out / method)
        config = Config.of(
            **{**SMALL[dimensions], **given},
            dimensions=dimensions,
            method=method,
            # The second run takes the pre-training of the first.
            pretrained=None if method == METHODS[0] else str(out.absolute() / METHODS[0]),
        )
        with contextlib.suppress(RunFinished):
            train(config, run.path, run.begun, show_results=False)
        summaries[method] = run.summary()
        segmenter, dataset, split = load_with_data(run.path, config.device)
        cases = spread(split.test)
        predictions[method] = predict(segmenter.network, dataset, cases)

    picture = out / "comparison.png"
    labelled, noun = summaries[method]["labelled"], dataset.noun
    save_panel(
        picture, dataset, cases, predictions, f"phantom, {counted(labelled, f'labelled {noun}')}"
    )
    columns = {"pre-trained": summaries[METHODS[0]]["pretrained_test"]}
    columns |= {method: summary["test"] for method, summary in summaries.items()}
    before, after = (summary["test"]["miou"] for summary in summaries.values())
    console = plain_console()
    console.print(
        results_table(columns, f"Test {noun}s, {counted(labelled, f'labelled training {noun}')}")
    )
    console.print(
        f"{len(split.train) - labelled} unlabelled {noun}s and the consistency term: "
        f"{100 * (after - before):+.1f} points of mIOU over the baseline with the same {labelled} "
        f"labels and as many steps.\nPicture: {picture}"
    )
