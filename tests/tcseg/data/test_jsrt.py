"""JSRT reader, on made-up trees in the published layout, and on the data itself where it is."""

import os
import shutil

import numpy as np
import pytest
import torch
from made_up import IDS, made_up, mask_file
from PIL import Image

from tcseg.data import CLASSES, load_dataset, make_split
from tcseg.data.jsrt import read_image
from tcseg.errors import DataError

REAL = os.environ.get("TCSEG_JSRT_ROOT")


def refused(tree, *words):
    with pytest.raises(DataError) as caught:
        load_dataset("jsrt", root=tree, size=32)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_images_and_masks_belong_together(tree):
    data = load_dataset("jsrt", root=tree, size=64)
    assert data.name == "jsrt"
    assert data.ids == IDS
    assert data.classes == CLASSES
    assert data.spacing_of(0) == pytest.approx([0.175 * 2048 / 64] * 2)
    for number in range(4):
        picture, masks = made_up(number)
        assert np.array_equal(data.images[number, 0].numpy(), picture)
        covered = masks.reshape(5, 64, 2, 64, 2).mean((2, 4))
        assert np.array_equal(data.target_batch([number])[0, :5].numpy(), covered > 0.5)


def test_resizing_averages_areas(tree):
    data = load_dataset("jsrt", root=tree, size=32)
    picture, masks = made_up(2)
    average = picture.reshape(32, 2, 32, 2).mean((1, 3))
    assert np.abs(data.images[2, 0].numpy() - average).max() <= 0.5
    covered = masks.reshape(5, 32, 4, 32, 4).mean((2, 4))
    assert np.array_equal(data.target_batch([2])[0, :5].numpy(), covered > 0.5)


def test_masks_at_their_own_size_are_those_of_the_files(tree):
    dot = np.zeros((128, 128), np.uint8)
    dot[64, 64] = 255
    Image.fromarray(dot).save(mask_file(tree, IDS[0]))
    data = load_dataset("jsrt", root=tree, size=32)
    assert data.vanished == {0: ["heart"]}
    masks, spacing = data.original(2)
    assert np.array_equal(masks, made_up(2)[1])
    assert spacing == (0.175 * 2048 / 128,) * 2
    assert data.original(0)[0][2].sum() == 1
    Image.fromarray(dot[:64, :64]).save(mask_file(tree, IDS[2]))
    with pytest.raises(DataError, match="the masks of JPCNN001 differ in size"):
        data.original(2)


def test_exactly_half_covered_is_outside_and_thin_structures_keep_their_width(tree):
    mask = np.zeros((128, 128), np.uint8)
    mask[40:42] = 255  # half of a row of blocks
    mask[81:84] = 255  # three quarters of one
    Image.fromarray(mask).save(mask_file(tree, IDS[0]))
    heart = load_dataset("jsrt", root=tree, size=32).target_batch([0])[0, 2]
    assert heart.any(1).nonzero().flatten().tolist() == [20]


def test_images_may_be_smaller_than_asked(tree):
    data = load_dataset("jsrt", root=tree, size=256)
    assert data.images.shape == (4, 1, 256, 256)
    picture, masks = made_up(1)
    assert data.images[1].float().mean() == pytest.approx(picture.mean(), abs=1)
    covered = data.target_batch([1])[0, :5].float().mean((1, 2)).numpy()
    np.testing.assert_allclose(covered, masks.mean((1, 2)), rtol=0.02)


@pytest.mark.parametrize("folder", [".", "All247images"])
def test_images_may_lie_elsewhere(tree, folder):
    expected = load_dataset("jsrt", root=tree, size=32)
    (tree / folder).mkdir(exist_ok=True)
    for path in (tree / "images").iterdir():
        path.rename(tree / folder / path.name)
    (tree / "images").rmdir()
    found = load_dataset("jsrt", root=tree, size=32)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.masks, expected.masks)


def test_the_environment_names_the_folder(tree, monkeypatch):
    monkeypatch.setenv("TCSEG_JSRT_ROOT", str(tree))
    assert load_dataset("jsrt", size=32).ids == IDS


def test_a_tree_splits(tree):
    split = make_split(load_dataset("jsrt", root=tree, size=32), 1)
    assert split.test == [0, 2]
    assert len(split.train) == len(split.validation) == 1


# ---- formats --------------------------------------------------------------------------------


def write_raw(path, values):
    """Write 12-bit values (bone bright) as the original files hold them."""
    (4095 - values).astype(">u2").tofile(path)


def test_original_files(tree):
    values = np.repeat(np.arange(32, dtype=np.uint16) * 100, 64)[:, None] + np.zeros(2048, "u2")
    (tree / "images" / "JPCLN001.png").unlink()
    write_raw(tree / "images" / "JPCLN001.IMG", values)
    image = load_dataset("jsrt", root=tree, size=32).images[0, 0].numpy()
    expected = np.arange(32)[:, None] * 255 / 31 + np.zeros(32)
    assert np.abs(image - expected).max() <= 0.5


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
@pytest.mark.parametrize(("factor", "kind"), [(1, "u1"), (16, "<u2"), (257, "<u2")])
def test_depths_and_formats_agree(tmp_path, suffix, factor, kind):
    picture, _ = made_up(0)
    path = tmp_path / f"JPCLN001{suffix}"
    Image.fromarray((picture.astype(np.uint16) * factor).astype(kind)).save(path)
    read = read_image(path, 64)
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - picture).max() <= 1


def test_colour_copies_are_read_as_grey(tmp_path):
    picture, _ = made_up(0)
    Image.fromarray(np.stack([picture] * 3, -1)).save(tmp_path / "JPCLN001.png")
    assert np.array_equal(read_image(tmp_path / "JPCLN001.png", 64), picture)


def test_films_of_little_contrast_keep_their_grey_levels(tmp_path):
    # 17 levels among 256, dithered: averaging gives the levels between.
    smooth = np.add.outer(np.arange(256), np.arange(256)) / 510
    dither = np.random.default_rng(0).random((256, 256))
    Image.fromarray((236 + 17 * smooth + dither).astype(np.uint8)).save(tmp_path / "JPCLN031.png")
    read = read_image(tmp_path / "JPCLN031.png", 32)
    assert (read.min(), read.max()) == (0, 255)
    assert len(np.unique(read)) > 100
    average = smooth.reshape(32, 8, 32, 8).mean((1, 3))
    assert np.corrcoef(read.ravel(), average.ravel())[0, 1] > 0.999


# ---- half-present and damaged data ----------------------------------------------------------


def test_no_folder_given(monkeypatch):
    monkeypatch.delenv("TCSEG_JSRT_ROOT", raising=False)
    with pytest.raises(DataError, match="pass `root` DIR or set TCSEG_JSRT_ROOT"):
        load_dataset("jsrt")


def test_folder_that_is_not_there(tmp_path):
    refused(tmp_path / "nowhere", "no folder", "nowhere", "`root`")


def test_folder_without_images(tree):
    shutil.rmtree(tree / "images")
    refused(tree, "no images JPCLN001", ".img", str(tree), "put them into images/")


def test_missing_fold(tree):
    shutil.rmtree(tree / "scr" / "fold2")
    message = refused(tree, "5 folders missing", "scr/fold2/masks/left lung", "and 2 more")
    assert "fold1" not in message
    assert "unpack both folds" in message


def test_missing_masks_are_named_and_counted(tree):
    mask_file(tree, "JPCLN002").unlink()
    refused(tree, "1 mask missing", "JPCLN002 (heart)")
    for structure in CLASSES:
        mask_file(tree, "JPCNN001", structure).unlink()
    refused(tree, "6 masks missing", "JPCLN002 (heart)", "JPCNN001 (left lung)", "and 3 more")


def test_missing_images_are_named_and_counted(tree):
    (tree / "images" / "JPCLN002.png").unlink()
    refused(tree, "1 image missing", "JPCLN002", "copy all images again")


def test_two_files_of_one_image(tree):
    shutil.copy(tree / "images" / "JPCLN001.png", tree / "images" / "JPCLN001.tif")
    refused(tree, "two files of one image", "JPCLN001.png", "JPCLN001.tif")


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_files_that_do_not_decode(tree, kind, damage):
    path = tree / "images" / "JPCLN002.png" if kind == "image" else mask_file(tree, "JPCLN002")
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[damage])
    refused(tree, "cannot read", str(path), "copy it again")


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_files_that_are_not_square(tree, kind):
    path = tree / "images" / "JPCLN002.png" if kind == "image" else mask_file(tree, "JPCLN002")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    refused(tree, str(path), "30 x 20 pixels, not a square")


def test_original_file_of_wrong_length(tree):
    (tree / "images" / "JPCLN001.png").unlink()
    path = tree / "images" / "JPCLN001.IMG"
    path.write_bytes(bytes(1000))
    refused(tree, str(path), "has 1000 bytes, expected 8388608", "download it again")


def test_original_file_of_wrong_byte_order(tree):
    (tree / "images" / "JPCLN001.png").unlink()
    path = tree / "images" / "JPCLN001.IMG"
    np.full((2048, 2048), 1000, "<u2").tofile(path)
    refused(tree, str(path), "12 bits, big-endian")


def test_flat_images_are_refused(tree):
    path = tree / "images" / "JPCLN001.png"
    Image.fromarray(np.full((64, 64), 80, np.uint8)).save(path)
    refused(tree, str(path), "all its pixels are alike", "copy it again")


# ---- the data itself ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """The real data at 128 pixels."""
    if not REAL:
        pytest.skip("TCSEG_JSRT_ROOT is not set: the JSRT reader did not run on the real data")
    return load_dataset("jsrt", size=128)


def test_real_data_is_complete(real):
    assert len(real) == 247
    assert sum(name.startswith("JPCLN") for name in real.ids) == 154
    assert real.images.shape == (247, 1, 128, 128)
    assert real.spacing_of(0) == pytest.approx([2.8] * 2)


def test_real_masks_lie_where_they_should(real):
    targets = real.target_batch(range(247))[:, :5].float()
    area = targets.mean((0, 2, 3)).tolist()
    assert area == pytest.approx([0.136, 0.168, 0.090, 0.0095, 0.0095], rel=0.03)
    x = (targets * torch.arange(128)).sum((2, 3)) / targets.sum((2, 3))
    assert (x[:, 1] < x[:, 2]).all(), "the patient's right lung is at the left of the image"
    assert (x[:, 0] > x[:, 2]).all()
    lungs = targets[:, :2].amax(1)
    assert (targets[:, 3] * lungs).sum() / targets[:, 3].sum() > 0.8


def test_real_lungs_are_darker_than_hearts(real):
    images, targets = real.image_batch(range(247)), real.target_batch(range(247)).float()
    mean = (images * targets).sum((2, 3)) / targets.sum((2, 3))
    assert (mean[:, 2] > mean[:, :2].amax(1)).float().mean() > 0.97
