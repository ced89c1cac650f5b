"""Folders of one's own images and masks: every layout understood, every muddle named."""

import dataclasses
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from folders import SHAPES, load, picture, refused, save
from made_up import write_dicom
from PIL import Image

import tcseg.io.planes
from tcseg.cli import main
from tcseg.data import make_split, save_splits
from tcseg.errors import DataError, Problems, RunError
from tcseg.method.variants import METHODS
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model
from tcseg.training.session import train


@pytest.fixture
def valued_elsewhere(by_class, tmp_path_factory):
    """The same with values, in a folder of its own beside the one by class."""
    root = tmp_path_factory.mktemp("valued")
    shutil.copytree(by_class / "images", root / "images")
    for number in range(6):
        _, disc, square = picture(number)
        save(root / "masks" / f"scan{number}.png", np.where(square, 5, disc).astype("u1"))
    return root


def test_a_folder_for_each_class(by_class):
    data = load(by_class)
    assert data.classes == ("disc", "square")
    assert data.values is None
    assert data.ids == [f"scan{number}" for number in range(8)]
    assert data.annotated == list(range(6))
    assert data.images.shape == (8, 1, 64, 64)
    image, disc, square = picture(1)  # as large as the square it is fitted into
    assert np.array_equal(data.images[1, 0].numpy(), image)
    target = data.target_batch([1])[0].numpy().astype(bool)
    assert np.array_equal(target, [disc, square, ~(disc | square)])
    assert (disc & square).any()
    assert not data.target_batch([3])[0, 1].any()
    assert not data.masks[6:].any()
    # Proportions are kept, the rest is black.
    assert data.images[4, 0, :, 16:48].float().mean() > 10
    assert not data.images[4, 0, :, :16].any()
    area = data.target_batch([2])[0, 0].float().sum() / (64 * 64 * 50 / 90)
    assert area == pytest.approx(picture(2)[1].mean(), rel=0.05)


def test_one_file_with_values(valued):
    data = load(valued)
    assert data.classes == ("class 1", "class 5")
    _, disc, square = picture(1)
    target = data.target_batch([1])[0].numpy().astype(bool)
    assert np.array_equal(target[:2], [disc & ~square, square])
    (valued / "classes.txt").write_text("1 a disc\n\n5 square\n")
    assert load(valued).classes == ("a disc", "square")
    assert load(valued).values == (1, 5)


def test_names_of_classes_may_have_comments_and_the_background(valued):
    (valued / "classes.txt").write_text("# ours\n0 background\n1 a disc\n5 square\n")
    assert load(valued).classes == ("a disc", "square")
    assert load(valued).values == (1, 5)


def nifti_pair(folder, labels, image_affine, mask_affine):
    image = picture(1)[0]
    for part, values, affine in (
        ("images", np.stack([image, image], -1).astype("f4"), image_affine),
        ("masks", labels, mask_affine),
    ):
        (folder / part).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / part / "ct.nii.gz")


def test_labels_that_scaling_has_moved_a_little_are_whole_numbers(tmp_path):
    disc = np.stack([picture(1)[1]] * 2, -1).astype("f8")
    nifti_pair(tmp_path, disc * 3 * (1 + 1e-7), np.eye(4), np.eye(4))
    assert load(tmp_path).values == (3,)
    nifti_pair(tmp_path, disc * 2.5, np.eye(4), np.eye(4))
    refused(tmp_path, "ct.nii.gz has values that are not whole numbers")
    nifti_pair(tmp_path, np.where(disc > 0, np.nan, 0), np.eye(4), np.eye(4))
    refused(tmp_path, "ct.nii.gz has values that are not whole numbers")


def test_a_mask_that_lies_otherwise_in_the_patient_is_refused(tmp_path):
    # The same in the patient, stored flipped: pixel by pixel they would not meet.
    disc = np.stack([picture(1)[1]] * 2, -1).astype("u1")
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = len(disc) - 1
    nifti_pair(tmp_path, disc[::-1], np.eye(4), flipped)
    refused(tmp_path, "ct.nii.gz run LAS in the patient", "ct.nii.gz RAS", "as_closest_canonical")


def test_palettes_and_16_bits_are_values_too(valued):
    values = np.asarray(Image.open(valued / "masks" / "scan0.png"))
    image = Image.fromarray(values, "L")
    image.putpalette([0, 0, 0, 255, 0, 0] * 3)
    image.save(valued / "masks" / "scan0.png")
    wide = np.asarray(Image.open(valued / "masks" / "scan1.png")).astype("<u2")
    Image.fromarray(wide).save(valued / "masks" / "scan1.png")
    data = load(valued)
    assert data.classes == ("class 1", "class 5")
    assert data.target_batch([0])[0, 0].any()


def test_colour_images_make_a_data_set_of_three_channels(by_class):
    image, *_ = picture(0)
    save(by_class / "images" / "scan0.png", np.stack([image, image // 2, image // 3], -1))
    data = load(by_class)
    assert data.images.shape == (8, 3, 64, 64)
    assert torch.equal(data.images[1, 0], data.images[1, 2])
    assert not torch.equal(data.images[0, 0], data.images[0, 2])


def test_dicom_and_nifti_with_their_spacing(tmp_path):
    image, disc, square = picture(1)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    write_dicom(tmp_path / "images" / "a.dcm", image.astype("u2"), PixelSpacing=[0.5, 0.5])
    save(tmp_path / "masks" / "a.png", np.where(square, 2, disc).astype("u1"))
    upright = np.stack([image, image[::-1]], -1).transpose(1, 0, 2)[:, ::-1]
    labels = np.stack([disc, disc[::-1]], -1).transpose(1, 0, 2)[:, ::-1].astype("u1")
    affine = np.diag([2.0, 2.0, 5.0, 1])
    nibabel.save(nibabel.Nifti1Image(upright.astype("i2"), affine), tmp_path / "images/ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "masks/ct.nii.gz")
    data = load(tmp_path, size=32)
    assert data.ids == ["a", "ct/000", "ct/001"]
    assert [data.spacing_of(i) for i in range(3)] == [(1.0, 1.0), (4.0, 4.0), (4.0, 4.0)]
    assert [data.slice_spacing_of(i) for i in range(3)] == [None, 5, 5]
    assert [data.original(i)[1] for i in range(3)] == [(0.5, 0.5), (2, 2), (2, 2)]
    first, second = data.target_batch([1, 2])[:, 0]
    assert first.any()
    assert torch.equal(second, first.flip(0))


def test_masks_at_their_own_size_are_those_of_the_files(by_class, valued_elsewhere):
    for root in (by_class, valued_elsewhere):
        data = load(root, size=32)
        for number in (2, 1):
            _, disc, square = picture(number)
            masks, spacing = data.original(number)
            exclusive = root == valued_elsewhere
            assert np.array_equal(masks, [disc & ~square if exclusive else disc, square])
            assert spacing is None
    with pytest.raises(DataError, match="scan7 has no masks"):
        data.original(7)


def test_structures_smaller_than_a_pixel_are_noted(by_class, tmp_path, capsys):
    for number, dots in ((0, True), (1, False)):
        mask = np.zeros(SHAPES[number], np.uint8)
        if dots:
            mask[7, 9] = mask[20, 30] = 255
        save(by_class / "masks" / "disc" / f"scan{number}.png", mask)
    data = load(by_class, size=32)
    assert data.vanished == {0: ["disc"]}
    assert load(by_class, size=64).vanished == {}
    tested = next(number for number in range(20) if 0 in make_split(data, number).test)
    config = Config(
        data="folder",
        root=str(by_class),
        size=32,
        split=tested,
        batch_size=2,
        pretrain_steps=1,
        steps=1,
    )
    summary = train(config, tmp_path / "run", False)
    remark = "Too small for 32 x 32 pixels: nothing is left of disc in 1 of 1 test image.\n"
    assert capsys.readouterr().out.count("Too small") == 1
    assert summary["test"]["vanished"] == {"disc": 1, "square": 0}
    command = ["evaluate", str(tmp_path / "run"), "--device", "cpu"]
    assert remark in CliRunner().invoke(main, command).output
    result = CliRunner().invoke(main, [*command, "--original-size"])
    assert remark not in result.output
    written = json.loads((tmp_path / "run" / "evaluation-test-original.json").read_text())
    assert written["iou"]["disc"] is not None


# ---- splits and training --------------------------------------------------------------------


def test_images_without_masks_are_unlabelled(by_class, tmp_path):
    data = load(by_class)
    split = make_split(data, 0)
    assert split.unlabelled == [6, 7]
    assert sorted(split.train + split.validation + split.test) == list(range(6))
    assert (len(split.train), len(split.validation), len(split.test)) == (4, 1, 1)
    pool = METHODS["semitc"].unlabelled(split, split.train[:3])
    assert sorted(pool) == sorted([split.train[3], 6, 7])
    save_splits(tmp_path / "splits.json", data, [split])
    assert make_split(data, 0, tmp_path / "splits.json") == split
    assert make_split(data, 1) != split
    text = (tmp_path / "splits.json").read_text().replace(data.ids[split.test[0]], "scan7")
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(DataError, match="'scan7' has no masks"):
        make_split(data, 0, tmp_path / "splits.json")


def test_few_masks_are_validation_and_test_at_once(by_class, tmp_path):
    for number in range(3, 6):
        (by_class / "masks" / "disc" / f"scan{number}.png").unlink()
        (by_class / "masks" / "square" / f"scan{number}.png").unlink(missing_ok=True)
    data = load(by_class)
    split = make_split(data, 0)
    assert (len(split.train), len(split.validation)) == (2, 1)
    assert split.test == split.validation
    # As the folder of a run keeps it: `tcseg evaluate` reads it again.
    save_splits(tmp_path / "splits.json", data, [split])
    assert make_split(data, 0, tmp_path / "splits.json") == split


def test_a_folder_trains_and_its_network_knows_its_classes(by_class, tmp_path):
    config = Config(
        data="folder",
        root=str(by_class),
        size=32,
        batch_size=4,
        pretrain_steps=2,
        steps=2,
        device="cpu",
    )
    summary = train(config, tmp_path / "run", False)
    assert summary["labelled"] == 4
    assert set(summary["test"]["iou"]) == {"disc", "square"}
    assert summary["test"]["joined"]["iou"] == {}
    model = Model.load(tmp_path / "run")
    assert (model.classes, model.channels, model.size) == (("disc", "square"), 1, 32)
    assert RunFolder(tmp_path / "run").finished
    few = dataclasses.replace(config, labelled=5)
    with pytest.raises(
        DataError, match="`labelled` must be 1 to 4, as many as there are training images, got 5"
    ):
        train(few, tmp_path / "other", False)


def test_values_and_spacing_travel_with_the_run(valued, tmp_path):
    for path in sorted((valued / "images").iterdir()):
        values = np.asarray(Image.open(path)).astype("u2")
        write_dicom(path.with_suffix(".dcm"), values, PixelSpacing=[0.5, 0.25])
        path.unlink()
    config = Config(
        data="folder", root=str(valued), size=32, batch_size=4, pretrain_steps=1, steps=1
    )
    train(config, tmp_path / "run", False)
    model = Model.load(tmp_path / "run")
    assert model.values == (1, 5)
    spacings = load(valued, size=32).spacings
    assert model.spacing == pytest.approx(np.median(spacings, axis=0))
    # What is found can be masks of the next training.
    command = ["predict", str(tmp_path / "run"), str(tmp_path / "more"), "--out"]
    (tmp_path / "more").mkdir()
    save(tmp_path / "more" / "scan9.png", picture(7)[0])
    result = CliRunner().invoke(main, [*command, str(tmp_path / "found")])
    assert result.exit_code == 0, result.output
    found = np.asarray(Image.open(tmp_path / "found" / "labels" / "scan9.png"))
    assert found.shape == SHAPES[7]
    assert set(np.unique(found)) <= {0, 1, 5}
    shutil.copy(tmp_path / "more" / "scan9.png", valued / "images")
    shutil.copy(tmp_path / "found" / "labels" / "scan9.png", valued / "masks")
    assert "scan9" in [load(valued).ids[i] for i in load(valued).annotated]


def test_masks_added_later_do_not_turn_training_images_into_test_images(by_class, tmp_path):
    config = Config(
        data="folder", root=str(by_class), size=32, batch_size=4, pretrain_steps=2, steps=2
    )
    train(config, tmp_path / "run", False)
    record = RunFolder(tmp_path / "run").split_record()["splits"][0]
    assert record["unlabelled"] == ["scan6", "scan7"]
    for number in (6, 7):
        save(by_class / "masks" / "disc" / f"scan{number}.png", picture(number)[1])
    assert sorted(make_split(load(by_class), 0).test) != [
        load(by_class).ids.index(record["test"][0])
    ]
    result = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "run" / "evaluation-test.json").read_text())
    assert [row["id"] for row in measured["images"]] == record["test"]
    # Training does not go on with other images, nor from a pre-training on others.
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(RunError, match="have changed since the run began"):
        train(config, tmp_path / "run", True)
    shared = dataclasses.replace(config, pretrained=str(tmp_path / "run"))
    with pytest.raises(RunError, match="was of other images, masks or structures"):
        train(shared, tmp_path / "other", False)


@pytest.mark.parametrize("change", ["class", "colour", "images"])
def test_a_run_is_not_measured_on_data_of_another_kind(by_class, tmp_path, change):
    config = Config(
        data="folder", root=str(by_class), size=32, batch_size=4, pretrain_steps=2, steps=2
    )
    train(config, tmp_path / "run", False)
    wrong = "the data now have"
    if change == "class":
        save(by_class / "masks" / "another" / "scan0.png", picture(0)[1])
    elif change == "images":  # another folder, perhaps; evaluation has no option for its split
        for path in by_class.rglob("scan0.png"):
            path.rename(path.with_name("other.png"))
        wrong = f"Error: {tmp_path}/run/split.json: folder has no image 'scan0'; all that"
    else:
        save(
            by_class / "images" / "scan0.png",
            np.stack([picture(0)[0]] * 2 + [picture(0)[0] // 2], -1),
        )
    result = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run")])
    assert (result.exit_code, wrong in result.stderr) == (1, True)
    page = str(tmp_path / "report.html")
    assert CliRunner().invoke(main, ["report", str(tmp_path / "run"), "--out", page]).exit_code == 0
    assert "No cases can be shown" in (tmp_path / "report.html").read_text()


def test_planes_of_one_file_stay_together(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for name in "abcdef":
        for part, high in (("images", 200), ("masks", 2)):
            volume = rng.integers(0, high, (16, 16, 4)).astype("u1")
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / part / f"{name}.nii")
    data = load(tmp_path, size=32)
    split = make_split(data, 0)
    parts = [{data.ids[i][0] for i in part} for part in (split.train, split.validation, split.test)]
    assert list(map(len, parts)) == [4, 1, 1]
    assert len(set.union(*parts)) == 6
    assert len(split.train) == 16


def test_palettes_of_masks_by_class_are_as_seen(by_class):
    """Black and white pictures whose palette begins with white."""
    _, disc, _ = picture(0)
    expected = load(by_class).target_batch([0])[0, 0]
    image = Image.fromarray((~disc).astype("u1"), "L")
    image.putpalette([255, 255, 255, 0, 0, 0])
    for kind in ("gif", "png"):
        (by_class / "masks" / "disc" / "scan0.png").unlink(missing_ok=True)
        image.save(by_class / "masks" / "disc" / f"scan0.{kind}")
        assert torch.equal(load(by_class).target_batch([0])[0, 0], expected)
        (by_class / "masks" / "disc" / f"scan0.{kind}").unlink()


def test_structures_that_touch_leave_no_gap(valued):
    """At a quarter of the size, pixels between two have less than half of either."""
    for number in range(6):
        height, width = SHAPES[number]
        y, x = np.indices((height, width))
        values = np.where((x + y) % 20 < 10, 1, 5).astype("u1")
        save(valued / "masks" / f"scan{number}.png", values)
    data = load(valued, size=32)
    assert not data.target_batch([1])[0, 2].any()


def test_masks_of_volumes_are_read_once(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    volume = np.random.default_rng(0).integers(0, 2, (16, 16, 30)).astype("u1")
    for part in ("images", "masks"):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / part / "a.nii")
    reads = []
    read = tcseg.io.planes.read_volume
    monkeypatch.setattr("tcseg.io.planes.read_volume", lambda path: reads.append(1) or read(path))
    assert len(load(tmp_path, size=32).annotated) == 30
    assert len(reads) == 2  # for the values, and for the masks


def test_a_mask_of_more_planes_than_its_image_is_refused(by_class):
    plane = Image.fromarray(picture(0)[1].astype("u1") * 255)
    plane.save(
        by_class / "masks" / "disc" / "scan0.tif", save_all=True, append_images=[plane, plane]
    )
    (by_class / "masks" / "disc" / "scan0.png").unlink()
    refused(by_class, "scan0.tif has 3 planes, its image", "only one")


def test_values_of_masks_by_class_all_count(by_class):
    _, disc, square = picture(1)
    save(by_class / "masks" / "disc" / "scan1.png", (disc + 2 * (disc & square)).astype("u1"))
    assert np.array_equal(load(by_class).target_batch([1])[0, 0].numpy().astype(bool), disc)


def test_gif_masks_and_files_that_are_no_images(by_class):
    before = load(by_class).target_batch([0])
    Image.open(by_class / "masks" / "disc" / "scan0.png").save(by_class / "masks/disc/scan0.gif")
    (by_class / "masks" / "disc" / "scan0.png").unlink()
    assert torch.equal(load(by_class).target_batch([0]), before)
    (by_class / "images" / "notes.txt").write_text("x")
    result = CliRunner().invoke(
        main, ["data", "check", "--data", "folder", "--root", str(by_class)]
    )
    assert "not read, as no images: 1 of .txt" in result.output


# ---- muddles --------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="pass `root` DIR"):
        load(None)
    refused(tmp_path, "no folder", "images", "`root` must hold images/ and masks/")
    (tmp_path / "images").mkdir()
    refused(tmp_path, "no images in", ".png")
    save(tmp_path / "images" / "a.png", picture(0)[0])
    refused(tmp_path, "no folder", "masks", "NAME.png")
    (tmp_path / "masks").mkdir()
    refused(tmp_path, "no mask in", "name each mask as its image")


def test_masks_of_other_names(valued):
    for path in list((valued / "masks").iterdir()):
        path.rename(path.with_name(f"{hash(path.name):x}_mask.png"))
    refused(valued, "the first mask is '", "the first image 'scan0'", "`mask_pattern`")


def test_one_mask_without_an_image(valued):
    (valued / "masks" / "scan0.png").rename(valued / "masks" / "other.png")
    refused(valued, "1 mask without an image of their name: other")


def test_both_layouts_at_once(by_class):
    save(by_class / "masks" / "scan0.png", picture(0)[1])
    refused(by_class, "has both folders (disc) and masks (scan0.png)")


def test_a_mask_of_another_size(valued):
    save(valued / "masks" / "scan0.png", picture(1)[1].astype("u1"))
    refused(valued, "has 64 x 64 pixels, its image scan0.png 60 x 40", "the size of its image")


def test_too_many_values_together(valued):
    for number in range(6):
        values = np.asarray(Image.open(valued / "masks" / f"scan{number}.png"))
        save(valued / "masks" / f"scan{number}.png", (values * (number + 1)).astype("u1"))
    refused(valued, "the masks have 11 values without a name", "more than 8")


def test_masks_without_any_class(valued):
    for number in range(6):
        save(valued / "masks" / f"scan{number}.png", np.zeros(SHAPES[number], "u1"))
    refused(valued, "all masks in", "are 0: no class is marked")


def test_a_class_that_is_nowhere(valued):
    (valued / "classes.txt").write_text("1 a disc\n5 square\n7 never seen\n")
    refused(valued, "'never seen' is marked in no image", "mark it in one at least")


def test_one_corrupt_file_is_named_and_the_rest_is_read_on_request(valued):
    (valued / "images" / "scan2.png").write_bytes(b"hello")
    (valued / "masks" / "scan4.png").write_bytes(b"hello")
    refused(valued, "scan4.png: cannot be read (it is not an image, despite its name")
    problems = Problems(collect=True)
    data = load(valued, problems=problems)
    assert len(problems.found) == 2
    assert data.ids == ["scan0", "scan1", "scan3", "scan4", "scan5", "scan6", "scan7"]
    assert data.annotated == [0, 1, 2, 4]


def test_two_images_of_one_name(valued):
    save(valued / "images" / "scan0.tif", picture(0)[0])
    refused(valued, "scan0.png and", "scan0.tif have one name")


@pytest.mark.parametrize("text", ["disc", "x disc", "-1 nothing", "1 a\n2 a"])
def test_names_of_classes_that_cannot_be_used(valued, text):
    (valued / "classes.txt").write_text(text)
    refused(valued, "classes.txt: ")


def test_one_mask_is_not_enough(valued):
    for number in range(1, 6):
        (valued / "masks" / f"scan{number}.png").unlink()
    with pytest.raises(DataError, match="1 image file with masks; two are needed"):
        make_split(load(valued), 0)
