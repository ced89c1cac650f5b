"""The demonstration: what unlabelled images add, on the phantom, in a few minutes."""

import contextlib
from pathlib import Path

from tcseg.errors import RunFinished
from tcseg.evaluation.evaluate import predict, results_table
from tcseg.evaluation.pictures import save_panel, spread
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.sheet import plain_console
from tcseg.training.session import train
from tcseg.use.segmenter import load_with_data

METHODS = ("baseline", "semitc")


def demo(out: Path, *, size: int, pretrain_steps: int, steps: int) -> None:
    """Train the baseline and semitc from one pre-training with 5 labelled phantoms; compare them.

    What is finished in `out` already is shown again and not trained again; what was interrupted
    is continued.

    Parameters
    ----------
    out : Path
        Folder for the two runs and the picture that compares them.
    size, pretrain_steps, steps : int
        As for `tcseg train`.
    """
    summaries, predictions = {}, {}
    for method in METHODS:
        run = RunFolder(out / method)
        config = Config(
            size=size,
            labelled=5,
            pretrain_steps=pretrain_steps,
            steps=steps,
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
    save_panel(picture, dataset, cases, predictions, "phantom, 5 labelled images")
    columns = {"pre-trained": summaries[METHODS[0]]["pretrained_test"]}
    columns |= {method: summary["test"] for method, summary in summaries.items()}
    before, after = (summary["test"]["miou"] for summary in summaries.values())
    console = plain_console()
    console.print(results_table(columns, "Test images, 5 labelled training images"))
    console.print(
        f"95 unlabelled images and the consistency term: {100 * (after - before):+.1f} points of "
        f"mIOU over the baseline with the same 5 labels and as many steps.\nPicture: {picture}"
    )
