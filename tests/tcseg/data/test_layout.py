"""Which files are images, and which masks belong to them, as people name and place them."""

import numpy as np
import pytest
from click.testing import CliRunner
from folders import load, picture, refused, save

from tcseg.cli import main
from tcseg.errors import DataError


def write(root, names, number=1):
    """Write an image or its mask, of the disc, for each name; masks are those with 'disc: '."""
    image, disc, _ = picture(number)
    for name in names:
        is_mask = name.startswith("disc: ")
        save(root / f"{name.removeprefix('disc: ')}.png", disc.astype("u1") if is_mask else image)
    return disc


def understood(root, *options):
    command = ["data", "check", "--data", "folder", "--root", str(root), "--size", "32"]
    result = CliRunner().invoke(main, [*command, *options])
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("images", "masks", "how"),
    [
        ("img_01 img_02 img_10", "img_01_mask img_02_mask", "{name}_mask"),
        ("a b c", "a-seg b-seg", "{name}-seg"),
        ("c1 c11 c2", "mask_c1", "mask_{name}"),
        ("ant asp bee", "ant_m asp_m", "{name}_m"),
        ("21_training 22_training", "21_manual1 22_manual1", "{name}"),
        ("bt_12_0000 bt_1_0000 bt_2_0000", "bt_12 bt_1", "{name} for images {name}_0000"),
        ("image1 image12 image2", "mask1 mask12 mask2", "mask{name} for images image{name}"),
    ],
)
def test_what_is_common_to_the_names_of_masks_is_found(tmp_path, images, masks, how):
    images, masks = images.split(), masks.split()
    write(tmp_path / "images", images)
    disc = write(tmp_path / "masks", [f"disc: {name}" for name in masks])
    data = load(tmp_path)
    assert (data.ids, data.annotated) == (images, list(range(len(masks))))
    for index in data.annotated:
        assert np.array_equal(data.target_batch([index])[0, 0].numpy().astype(bool), disc)
    assert f"masks, by name: {len(masks)} of {how}" in understood(tmp_path)


@pytest.mark.parametrize(
    ("files", "ids", "how"),
    [
        ("P01/image disc:P01/mask P02/image disc:P02/mask", "P01 P02", "{name}/mask"),
        ("P1/a disc:P1/a_mask P1/b disc:P1/b_mask P2/a", "P1/a P1/b P2/a", "{name}_mask"),
        ("b_1 b_2 disc:b_1_mask disc:b_2_mask sub/c_1", "b_1 b_2 sub/c_1", "{name}_mask"),
        ("images/P1/a images/P2/a disc:masks/P1/a disc:masks/P2/a", "P1/a P2/a", None),
        ("images/P1/a images/P2/a disc:masks/x/P1/a disc:masks/x/P2/a", "P1/a P2/a", None),
    ],
)
def test_images_and_masks_side_by_side_or_in_folders_of_patients(tmp_path, files, ids, how):
    disc = write(tmp_path, [name.replace(":", ": ") for name in files.split()])
    data = load(tmp_path)
    assert data.ids == ids.split()
    assert data.annotated == [0, 1]
    assert np.array_equal(data.target_batch([1])[0, 0].numpy().astype(bool), disc)
    assert how is None or f"masks, by name: 2 of {how}" in understood(tmp_path)


def test_the_more_fitting_of_two_names_counts_or_none(tmp_path):
    write(tmp_path / "images", ["c1", "c11"])
    disc = write(tmp_path / "masks", ["disc: c1_mask", "disc: c11_mask"])
    assert load(tmp_path).ids == ["c1", "c11"]
    assert np.array_equal(load(tmp_path).target_batch([0])[0, 0].numpy().astype(bool), disc)
    write(tmp_path / "images", ["1_a", "1_b", "2_a", "2_b"])
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    write(tmp_path / "masks", ["disc: 1", "disc: 2"])
    refused(tmp_path, "'1' may be the mask of 1_a or 1_b", "`mask_pattern`")


def test_folders_may_be_links_but_not_in_circles(tmp_path):
    write(tmp_path / "images", ["a", "b"])
    write(tmp_path / "elsewhere", ["disc: a"])
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "disc").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path).classes == ("disc",)


def test_classes_with_numbers_are_no_objects_of_images_with_numbers(tmp_path):
    write(tmp_path / "images", ["1", "2", "3"])
    write(tmp_path / "masks", ["disc: 1/1", "disc: 1/2", "disc: 2/1"])
    data = load(tmp_path)
    assert (data.classes, data.annotated) == (("1", "2"), [0, 1])


def test_masks_named_as_images_may_be_added(tmp_path):
    """As those that `tcseg predict` writes."""
    write(tmp_path / "images", ["a", "b", "c"])
    write(tmp_path / "masks", ["disc: a_mask", "disc: b_mask", "disc: c"])
    assert load(tmp_path).annotated == [0, 1, 2]
    write(tmp_path / "masks", ["disc: a"])
    refused(tmp_path, "1 mask without an image of their name: a_mask")


def test_a_pattern_says_how_masks_are_named(tmp_path):
    write(tmp_path / "images", ["1_a", "1_b", "2"])
    write(tmp_path / "masks", ["disc: x1_a.v2.done", "disc: x2.v1.done"])
    with pytest.raises(DataError, match="no mask in"):
        load(tmp_path)
    data = load(tmp_path, mask_pattern="x{name}.v*.done")
    assert [data.ids[i] for i in data.annotated] == ["1_a", "2"]
    assert "2 of x{name}.v*.done" in understood(tmp_path, "--mask-pattern", "x{name}.v*.done")
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    write(tmp_path / "masks", ["disc: 1_a/1_a x", "disc: 2/2 x"])
    assert load(tmp_path, mask_pattern="{name}/{name} x").annotated == [0, 2]
    with pytest.raises(DataError, match=r"must contain {name}, the name of the image"):
        load(tmp_path, mask_pattern="*_mask")
    with pytest.raises(DataError, match="no mask in"):
        load(tmp_path, mask_pattern="{name}_y*")


@pytest.mark.parametrize("pattern", ["{name}_v*", "{name}/ct_v*", "{name}/*_v*"])
def test_a_pattern_for_a_folder_of_each_patient(tmp_path, pattern):
    write(tmp_path, ["P1/ct", "disc: P1/ct_v1", "P2/ct", "disc: P2/ct_v2", "P3/ct"])
    data = load(tmp_path, mask_pattern=pattern)
    assert (data.ids, data.annotated) == (["P1", "P2", "P3"], [0, 1])


def test_a_pattern_may_name_classes_side_by_side_with_images(tmp_path):
    image, disc, square = picture(1)
    for name in ("p (1)", "p (2)"):
        save(tmp_path / "set" / f"{name}.png", image)
        save(tmp_path / "set" / f"{name}_disc_1.png", disc.astype("u1"))
        save(tmp_path / "set" / f"{name}_square_1.png", square.astype("u1"))
    data = load(tmp_path, mask_pattern="{name}_{class}_*")
    assert (data.classes, data.ids) == (("disc", "square"), ["set/p (1)", "set/p (2)"])
    found = data.target_batch([1])[0, :2].numpy().astype(bool)
    assert np.array_equal(found, [disc, square])


@pytest.mark.parametrize(
    ("of_images", "of_masks", "label"),
    [
        ("images/{}.png", "masks/{}/object{:03d}.png", "object"),
        ("images/{}.png", "masks/nucleus/{}/object{:03d}.png", "nucleus"),
        ("train/{0}/images/{0}.png", "train/{0}/masks/{1:08x}.png", "object"),
    ],
)
def test_a_file_for_each_object(tmp_path, of_images, of_masks, label):
    image, disc, square = picture(1)
    for name in ("a1", "b2", "c3"):
        save(tmp_path / of_images.format(name), image)
    for name in ("a1", "b2"):
        for number, mask in enumerate((disc, square)):
            save(tmp_path / of_masks.format(name, number + 9 * ord(name[0])), mask)
    data = load(tmp_path)
    assert (data.classes, data.annotated) == ((label,), [0, 1])
    for index in data.annotated:
        found = data.target_batch([index])[0, 0].numpy().astype(bool)
        assert np.array_equal(found, disc | square)
    assert f"images with several files of: 2 of {label}" in understood(tmp_path)
