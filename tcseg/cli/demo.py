"""The demonstration: what unlabelled images add, on the phantom, in a few minutes."""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from tcseg.errors import RunError
from tcseg.evaluation.evaluate import predict, results_table
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.training.session import train
from tcseg.training.trainer import Trainer, picture_cases

METHODS = ("baseline", "semitc")


def demo(out: Path, *, size: int, pretrain_steps: int, steps: int, seed: int = 0) -> float:
    """Train the baseline and semitc from one pre-training with 5 labelled phantoms; compare them.

    What is finished in `out` already is shown again and not trained again; what was interrupted
    is continued.

    Parameters
    ----------
    out : Path
        Folder for the two runs and the picture that compares them.
    size, pretrain_steps, steps, seed : int
        As for `tcseg train`.

    Returns
    -------
    float
        Test mIOU of semitc minus that of the baseline.
    """
    console = Console()
    common = Config(
        data="phantom", size=size, labelled=5, pretrain_steps=pretrain_steps, steps=steps, seed=seed
    )
    summaries: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        # The second run takes the pre-training of the first.
        pretrained = None if method == METHODS[0] else str(out.absolute() / METHODS[0])
        config = dataclasses.replace(common, method=method, pretrained=pretrained)
        run = RunFolder(out / method)
        if run.finished:
            differences = run.config().differences(config)
            if differences:
                raise RunError(
                    f"{run.path} was run with other options ({'; '.join(differences)}); use the "
                    "same ones, or choose another --out"
                )
            summaries[method] = run.summary()
        else:
            started = (run.path / "config.toml").exists()
            summaries[method] = train(config, run.path, started, show_results=False)

    picture = out / "comparison.png"
    _draw(out, picture)
    columns = {"pre-trained": summaries[METHODS[0]]["pretrained_test"]}
    columns |= {method: summaries[method]["test"] for method in METHODS}
    before, after = (summaries[method]["test"]["miou"] for method in METHODS)
    console.print(results_table(columns, "Test images, 5 labelled training images"))
    console.print(
        f"95 unlabelled images and the consistency term: {100 * (after - before):+.1f} points of "
        f"mIOU over the baseline with the same 5 labels and as many steps.\nPicture: {picture}",
        highlight=False,
        soft_wrap=True,
    )
    return float(after - before)


def _draw(out: Path, picture: Path) -> None:
    from tcseg.evaluation.pictures import save_panel

    predictions = {}
    for method in METHODS:
        run = RunFolder(out / method)
        trainer = Trainer(run.config(), run)
        cases = picture_cases(trainer.split.test)
        trainer.network.load_state_dict(run.load_weights())
        predictions[method] = predict(trainer.network, trainer.dataset, cases)
    save_panel(picture, trainer.dataset, cases, predictions, "phantom, 5 labelled images")
