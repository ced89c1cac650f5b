"""Make the pictures of README and guides from the phantom: `make pictures`, in a few minutes.

All is drawn in full colour: with a palette, structures lose theirs and thin lines vanish.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from selenium import webdriver

import tcwarp
from tcseg.cli import main
from tcseg.evaluation.evaluate import predict
from tcseg.evaluation.metrics import iou
from tcseg.evaluation.pictures import Panel, images_and_truths, save_grid
from tcseg.runs.folder import RunFolder
from tcseg.training.preview import deformed_mesh
from tcseg.use.segmenter import load_with_data

DOCS = Path(__file__).parent
HEADINGS = (
    "image",
    "smooth random field",
    "image, deformed by it",
    "5 labelled images",
    "and 95 without labels",
    "truth",
)
CASES = 2


def overview(demo: Path) -> None:
    """Draw what the operator does, and what consistency under it adds."""
    masks, scores = {}, {}
    for method in ("baseline", "semitc"):
        segmenter, dataset, split = load_with_data(demo / method, "cpu")
        images, truths = images_and_truths(dataset, split.test)
        masks[method] = predict(segmenter.network, dataset, split.test)[:, :-1].numpy()
        scores[method] = np.array(
            [
                np.nanmean([iou(a, b) for a, b in zip(*pair, strict=True)])
                for pair in zip(masks[method], truths, strict=True)
            ]
        )
    # Not the greatest gains but those about the median: what may be expected.
    order = np.argsort(scores["semitc"] - scores["baseline"])
    cases = order[len(order) // 2 :][:CASES]
    plain, truths = images[cases], truths[cases]
    generator = torch.Generator().manual_seed(3)
    size = (plain.shape[-2], plain.shape[-1])
    field = tcwarp.random_displacement(
        CASES, size, sigma=size[0] / 6, displacement_std=size[0] / 24, generator=generator
    )
    warped = tcwarp.warp(torch.from_numpy(plain), field, mode="cubic", padding_mode="border")
    deformed = warped.clamp(0, 1).numpy()
    lines = deformed_mesh(field)
    rows = []
    for row, case in enumerate(cases):
        image = plain[row]
        results = [
            Panel(image, masks[m][case], f"mIOU {100 * scores[m][case]:.1f} %") for m in masks
        ]
        views = [Panel(image), Panel(lines[row]), Panel(deformed[row])]
        rows.append([*views, *results, Panel(image, truths[row])])
    save_grid(
        DOCS / "overview.png",
        rows,
        HEADINGS,
        f"Phantoms at {size[0]} x {size[1]} pixels",
        dataset.classes,
    )


def command(*arguments: object) -> None:
    """Run a command of tcseg."""
    CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def photograph(page: Path, picture: Path) -> None:
    """Draw the beginning of a page as a browser shows it."""
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1060,1440")
    options.add_argument("--hide-scrollbars")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as chrome:
        chrome.get(page.absolute().as_uri())
        chrome.save_screenshot(str(picture))


if __name__ == "__main__":
    demo = Path(sys.argv[1])
    assert RunFolder(demo / "semitc").finished
    overview(demo)
    shutil.copy(demo / "comparison.png", DOCS / "comparison.png")
    command("preview", "--size", 128, "--images", 2, "--out", DOCS / "preview.png")
    report = demo / "report.html"
    report.unlink(missing_ok=True)
    command("report", demo / "baseline", demo / "semitc", "--out", report)
    photograph(report, DOCS / "report.png")
