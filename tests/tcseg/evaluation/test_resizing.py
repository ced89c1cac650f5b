"""What resizing takes from masks: shapes whose fate is known."""

import numpy as np
import pytest
import SimpleITK
import torch
from click.testing import CliRunner
from PIL import Image

from tcseg.cli import main
from tcseg.data import Dataset, load_dataset
from tcseg.errors import DataError
from tcseg.evaluation.resizing import (
    Kept,
    candidates,
    kept_by_resizing,
    suggested,
    suggested_patch,
)
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
        ([(100, 60), (100, 80)], [64, "128x112"]),
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
        originals=lambda index: (masks[index].numpy(), None),
    )
    assert candidates(data) == list(map(pixels, sizes))


def test_files_that_are_gone_are_named(shapes):
    data = load_dataset("folder", root=shapes, size=32)
    (shapes / "masks" / "band" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        kept_by_resizing(data, [32])


# ---- volumes --------------------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path):
    """Two volumes of 8 x 16 x 16 voxels of 3 x 1 x 1 mm: a box, and a dot in the first one."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name in "ab":
        labels = np.zeros((8, 16, 16), np.uint8)
        labels[2:6, 4:12, 4:12] = 1
        labels[0, 0, 0] = 2 * (name == "a")
        for part, planes in (("images", 40 * labels), ("masks", labels)):
            image = SimpleITK.GetImageFromArray(planes)
            image.SetSpacing((1, 1, 3))
            SimpleITK.WriteImage(image, tmp_path / part / f"{name}.mha")
    return tmp_path


def test_what_a_spacing_keeps_of_volumes(volumes):
    data = load_dataset("folder", root=volumes, dimensions=3)
    assert candidates(data) == ["3x1x1", "3x1.5x1.5", "3x2x2", "3", "4"]
    kept = kept_by_resizing(data, ["3x1x1", "6x2x2", "3x2x2"])
    assert list(kept) == ["6x2x2", "3x2x2", "3x1x1"]
    assert kept["3x1x1"]["class 1"].overlaps == [1, 1]
    # Faces come back where they were; at corners interpolation leaves 3/4 of each axis, at edges
    # of two.
    assert kept["6x2x2"]["class 1"].overlaps == pytest.approx([1 - 8 / 256] * 2)
    assert kept["3x2x2"]["class 1"].overlaps == [1, 1]
    dot = kept["6x2x2"]["class 2"]
    assert (dot.overlaps, dot.components, dot.lost) == ([0], 1, 1)


def test_sizes_of_volumes_have_their_proportions_in_the_patient(volumes):
    data = load_dataset("folder", root=volumes, dimensions=3, size=32)
    assert candidates(data) == [32]
    place = kept_by_resizing(data, [32])[32]["class 1"]
    assert place.iou > 0.9


def test_a_patch_has_the_proportions_of_volumes():
    def patch(*extents):
        return suggested_patch(
            Dataset(
                name="folder",
                ids=[str(k) for k in range(len(extents))],
                classes=("a",),
                images=torch.zeros(len(extents), 1, 1, 1, 1),
                masks=torch.ones(len(extents), 1, 1, 1, 1),
                extents=torch.tensor(extents),
            )
        )

    assert patch((10, 256, 216), (9, 256, 208), (18, 240, 216)) == "16x192x192"
    assert patch((40, 30, 33)) == "48x32x48"
    assert patch((300, 512, 512)) == 80


def test_check_describes_volumes(volumes):
    def check(*options):
        command = ["data", "check", "--data", "folder", "--root", str(volumes), "--dimensions", "3"]
        result = CliRunner(env={"COLUMNS": "120"}).invoke(main, [*command, *options])
        return " ".join(result.output.split())

    said = check()
    assert (
        "2 grey volumes read at their own size, up to 8 x 16 x 16 voxels of 3 x 1 x 1 mm: "
        "2 with masks, 0 without" in said
    )
    assert "from the smallest to the largest: 8 to 8 x 16 to 16 x 16 to 16 voxels" in said
    assert "Suggested: --patch 16" in said
    assert "Suggested: --spacing 3x1x1, the coarsest of 3x1x1, 3x1.5x1.5, 3x2x2, 3, 4" in said
    said = check("--spacing", "6x2x2")
    assert "resampled to voxels of 6x2x2 mm" in said
    assert "Too small for voxels of 6x2x2 mm: nothing is left of class 2 in 1 of 2" in said
    assert "2 grey volumes read at 32 x 32 x 32 voxels of" in check("--size", "32")
    said = check("--spacing", "original")
    assert "Suggested: --spacing" not in said
    said = check("--spacing", "wide")
    assert "`spacing`" not in said
    assert "--spacing must be median, original, or in mm" in said
