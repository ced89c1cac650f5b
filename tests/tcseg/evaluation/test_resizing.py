"""What resizing takes from masks: shapes whose fate is known."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tcseg.cli import main
from tcseg.data import Dataset, load_dataset
from tcseg.errors import DataError
from tcseg.evaluation.resizing import Kept, candidates, kept_by_resizing, suggested
from tcseg.io.sizes import pixels


@pytest.fixture
def shapes(tmp_path):
    """Two images of 128 x 128: a band, a square, and three dots; on the second one no dots."""
    band, square, dots = np.zeros((3, 128, 128), np.uint8)
    band[:, 32:64], square[16:80, 16:80] = 255, 255
    dots[8, 8] = dots[100, 100] = 255
    dots[64:68, 64:68] = 255  # this one fills a pixel of 32
    for name in "ab":
        parts = {"band": band, "square": square, "dots": dots if name == "a" else 0 * dots}
        for part, values in {f"masks/{k}": v for k, v in parts.items()}.items():
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / part / f"{name}.png")
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(band).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def test_what_is_kept_is_what_interpolation_leaves(shapes):
    data = load_dataset("folder", root=shapes, size=32)
    kept = kept_by_resizing(data, [32, 128])
    for found in kept[128].values():
        assert (found.iou, found.lost) == (1, 0)
    # Edges lie between pixels of 32, and come back where they were; only corners are rounded: there
    # linear interpolation of the square is a product of two ramps.
    assert kept[32]["band"].overlaps == [1, 1]
    ramp = (np.arange(128) + 0.5 - 16) / 4 + 0.5
    profile = np.clip(np.minimum(ramp, 17 - ramp), 0, 1)
    expected = (np.outer(profile, profile) > 0.5).sum() / 64**2
    assert 0.99 < expected < 1
    assert kept[32]["square"].iou == pytest.approx(expected)
    dots = kept[32]["dots"]
    assert (dots.components, dots.lost, len(dots.overlaps)) == (3, 2, 1)  # of the first image
    spot = np.clip(1 - abs(np.arange(-6, 6) + 0.5) / 4, 0, 1)
    assert dots.iou == pytest.approx((np.outer(spot, spot) > 0.5).sum() / 18)


def test_the_smallest_size_that_keeps_enough_is_suggested():
    def kept(*values):
        return {name: Kept([value]) for name, value in zip("ab", values, strict=True)}

    sizes = {64: kept(0.9, 0.99), 128: kept(0.96, 0.95), 256: kept(1, 1)}
    assert suggested(sizes) == (128, "b", 0.95)
    assert suggested({64: kept(0.4, 0.8), 128: kept(0.9, 0.7)}) == (128, "b", 0.7)
    assert suggested({64: {**kept(1, 1), "nowhere": Kept()}}) == (64, "a", 1)


def test_check_says_what_is_lost_and_suggests_a_size(shapes):
    command = ["data", "check", "--data", "folder", "--root", str(shapes), "--size"]
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*command, "32"])
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if "│ dots" in line]
    dots = [cell.strip() for cell in rows[1]]
    assert dots[0] == "dots"
    assert dots[-1] == "2 of 3"
    assert dots[3] == "100.0"  # after 32 and 64
    wanted = (
        "Suggested: --size 128, the smallest of 64, 128 at which every structure keeps 95 % IOU"
    )
    assert wanted in result.output
    assert "nothing is left" not in result.output
    dot = np.zeros((128, 128), np.uint8)
    dot[8, 8] = 255
    Image.fromarray(dot).save(shapes / "masks" / "dots" / "b.png")
    result = CliRunner().invoke(main, [*command, "32"])
    remark = "Too small for 32 x 32 pixels: nothing is left of dots in 1 of 2 annotated images."
    assert remark in result.output


def test_sizes_to_choose_from_end_where_all_images_fit(shapes):
    data = load_dataset("folder", root=shapes, size=32)
    assert candidates(data) == [64, 128]


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ([(520, 696)], ["48x64", "96x128", "192x256", "384x512", "768x1024"]),
        ([(100, 60), (100, 80)], ["64x64", "128x112"]),
        ([(100, 60), (60, 100)], [64, 128]),
        ([(20, 100)], ["32x64", "32x128"]),
    ],
)
def test_sizes_to_choose_from_have_no_margins_that_all_images_share(shapes, sizes):
    masks = [torch.zeros(1, *shape, dtype=torch.bool) for shape in shapes]
    data = Dataset(
        name="folder",
        ids=[str(number) for number in range(len(shapes))],
        classes=("a",),
        images=torch.zeros(len(shapes), 1, 32, 32, dtype=torch.uint8),
        masks=torch.ones(len(shapes), 1, 32, 32, dtype=torch.uint8),
        spacing=None,
        originals=lambda index: (masks[index].numpy(), None),
    )
    assert candidates(data) == list(map(pixels, sizes))


def test_files_that_are_gone_are_named(shapes):
    data = load_dataset("folder", root=shapes, size=32)
    (shapes / "masks" / "band" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        kept_by_resizing(data, [32])
