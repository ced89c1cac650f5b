"""Using a trained network: from Python and by `tcseg predict`, on files of every kind."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from click.testing import CliRunner
from made_up import enhanced, write_dicom
from PIL import Image
from rich.console import Console

import tcseg
from tcseg.cli import main
from tcseg.data import load_dataset
from tcseg.errors import DataError, RunError
from tcseg.evaluation.evaluate import evaluate
from tcseg.evaluation.metrics import contour_distance, iou
from tcseg.io.images import read_pictures
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model
from tcseg.use.predict import predict
from tcseg.use.segmenter import Segmenter

CLASSES = ("left lung", "right lung", "heart")
QUIET = Console(quiet=True)


class Boxes(torch.nn.Module):
    """Finds the right lung (dark), the left lung (middle) and the heart (bright) by their level."""

    def __init__(self, in_channels=1, out_channels=4):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor([0.4, 0.2, 0.8, 0.0]))

    def forward(self, images):
        grey = images.mean(dim=1, keepdim=True)
        near = 0.05 - (grey - self.level.view(1, -1, 1, 1)).abs()
        found = torch.sigmoid(200 * near)
        found[:, -1] = 1 - found[:, :-1].amax(dim=1)  # the background
        return found


def chest(height=96, width=64):
    """A picture of three boxes with a bright mark in a corner, and its masks (3, H, W)."""
    masks = np.zeros((3, height, width), bool)
    top, bottom = height // 4, 3 * height // 4
    masks[1, top:bottom, width // 8 : 3 * width // 8] = True
    masks[0, top:bottom, 5 * width // 8 : 7 * width // 8] = True
    masks[2, height // 2 : bottom, 3 * width // 8 : 5 * width // 8] = True
    levels = np.array([102, 51, 204]).reshape(3, 1, 1)
    image = (masks * levels).sum(0).astype(np.uint8)
    image[0, :8] = 255  # so that the range of levels is the whole one
    return image, masks


@pytest.fixture
def segmenter():
    model = Model("unet", "float32", CLASSES, channels=1, size=96)
    return Segmenter(Boxes(), model, torch.device("cpu"))


def table(out):
    with open(out / "measurements.csv", newline="") as file:
        return list(csv.DictReader(file))


def mask(path):
    return np.asarray(Image.open(path)) > 0


# ---- from Python ----------------------------------------------------------------------------


def test_masks_have_the_size_of_the_image(segmenter):
    image, masks = chest()
    found = segmenter.predict(image)
    assert np.array_equal(found.masks, masks)
    assert found.consistency is None
    assert found.probabilities.shape == masks.shape
    large, large_masks = chest(960, 640)
    found = segmenter.predict(large).masks
    assert found.shape == (3, 960, 640)
    assert (found != large_masks).mean() < 0.02
    small = segmenter.predict(chest(48, 32)[0]).masks
    assert small.shape == (3, 48, 32)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_number_types_and_colour_do_not_matter(segmenter, kind):
    image, masks = chest()
    wide = (image.astype(np.float64) * (257 if kind == np.uint16 else 1)).astype(kind)
    assert np.array_equal(segmenter.predict(wide).masks, masks)
    colour = np.stack([wide] * 3, -1)
    assert np.array_equal(segmenter.predict(colour).masks, masks)
    with pytest.raises(ValueError, match=r"shape \(H, W\)"):
        segmenter.predict(wide[None, None])


@pytest.mark.parametrize("values", [None, (1, 2, 3)])
def test_evaluation_at_the_original_size_is_of_what_predict_finds(segmenter, tmp_path, values):
    segmenter.model = dataclasses.replace(segmenter.model, values=values, bits=16)
    (tmp_path / "images").mkdir()
    truth = {}
    for name, shape in {"x": (300, 200), "y": (64, 96), "z": (250, 333)}.items():
        image, truth[name] = chest(*shape)
        image[0] = 255
        values_of = image.astype("u2")
        write_dicom(tmp_path / "images" / f"{name}.dcm", values_of, PixelSpacing=[0.5, 0.25])
        for c, part in zip("abc", truth[name], strict=True):
            folder = tmp_path / "masks" / ("" if values else c)
            folder.mkdir(parents=True, exist_ok=True)
            label = np.tensordot([1, 2, 3], truth[name], 1) if values else part * 255
            Image.fromarray(label.astype("u1")).save(folder / f"{name}.png")
    data = load_dataset("folder", root=tmp_path, size=96)
    results = evaluate(segmenter.network, data, [2, 0, 1], original_size=True, batch_size=2)
    assert [row["id"] for row in results["images"]] == ["z", "x", "y"]
    for row in results["images"]:
        (shown,) = read_pictures(tmp_path / "images" / f"{row['id']}.dcm")
        (found,) = segmenter.predict_all([shown.pixels])
        for c, a, b in zip(data.classes, found.masks, truth[row["id"]], strict=True):
            assert row["iou"][c] == iou(a, b) > 0.5
            assert row["macd_mm"][c] == contour_distance(a, b, (0.5, 0.25))
    assert results["images"][0]["miou"] < 1


def test_a_grey_image_for_a_network_of_colour():
    seen = []

    class Colour(Boxes):
        def forward(self, images):
            seen.append(images.shape)
            return super().forward(images)

    model = Model("unet", "float32", CLASSES, channels=3, size=96)
    image, masks = chest()
    segmenter = Segmenter(Colour(), model, torch.device("cpu"))
    assert np.array_equal(segmenter.predict(image).masks, masks)
    assert seen == [(1, 3, 96, 96)]


def test_batches_change_nothing(segmenter):
    images = [chest(40 + 8 * k, 64)[0][None] / np.float32(255) for k in range(5)]
    together = segmenter.predict_all(iter(images), batch_size=2, consistency=True)
    alone = [next(segmenter.predict_all([image], consistency=True)) for image in images]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.masks, other.masks)
        assert one.consistency == other.consistency


def test_consistency_tells_sure_from_unsure():
    class Noise(Boxes):
        """Decides by the single pixel, so that any deformation changes it."""

        def forward(self, images):
            return torch.sigmoid(1e4 * torch.sin(1e5 * images.repeat(1, 4, 1, 1)))

    model = Model("unet", "float32", CLASSES, channels=1, size=96)
    rng = np.random.default_rng(0)
    sure = Segmenter(Boxes(), model, torch.device("cpu")).predict(chest()[0], consistency=True)
    image = rng.integers(0, 256, (96, 96), np.uint8)
    unsure = Segmenter(Noise(), model, torch.device("cpu")).predict(image, consistency=True)
    assert 0.85 < sure.consistency <= 1
    assert unsure.consistency < 0.6
    again = Segmenter(Boxes(), model, torch.device("cpu")).predict(chest()[0], consistency=True)
    assert again.consistency == sure.consistency


def test_a_run_is_loaded_with_all_it_needs(tmp_path):
    config = Config(size=96, network=f"{__name__}.Boxes")
    run = RunFolder.create(tmp_path / "run", config, resume=False)
    network = Model("unet", "float32", CLASSES, 1, 96)
    with pytest.raises(RunError, match="has no weights yet"):
        tcseg.load(run.path)
    run.save_weights({"backbone.level": torch.tensor([0.4, 0.2, 0.8, 0.0])})
    with pytest.raises(RunError, match=r"has no model\.json"):
        tcseg.load(run.path)
    (run.path / "model.json").write_text("{}")
    with pytest.raises(RunError, match=r"model\.json: broken"):
        tcseg.load(run.path)
    Model(config.network, "float32", CLASSES, 1, 96).save(run.path)
    loaded = tcseg.load(run.path, device="cpu", network=config.network)
    assert loaded.classes == CLASSES
    whole = Model(config.network, "float32", CLASSES, 1, 96, values=VALUES, spacing=(0.5, 0.7))
    whole.save(run.path)
    assert Model.load(run.path) == whole
    for values in ([1, 2], [1, 2, 0], [1, 2, 70000], "abc"):
        text = json.dumps(dataclasses.asdict(whole) | {"values": values})
        (run.path / "model.json").write_text(text)
        with pytest.raises(RunError, match=r"model\.json: broken"):
            Model.load(run.path)
    older = {k: v for k, v in dataclasses.asdict(whole).items() if k not in ("values", "spacing")}
    (run.path / "model.json").write_text(json.dumps(older))
    loaded = tcseg.load(run.path, device="cpu", network=config.network)
    assert loaded.predict(chest()[0]).masks.shape == (3, 96, 64)
    assert network.size == 96
    with pytest.raises(RunError, match="is not a run"):
        tcseg.load(tmp_path)


# ---- files ----------------------------------------------------------------------------------


def test_png(segmenter, tmp_path):
    image, masks = chest()
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    Image.fromarray(chest(64, 96)[0]).save(tmp_path / "in" / "b.jpg", quality=95)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    out = tmp_path / "new" / "out"
    assert predict(segmenter, [tmp_path / "in"], out, console=QUIET) == []
    for name, expected in zip(CLASSES, masks, strict=True):
        assert np.array_equal(mask(out / name / "a.png"), expected)
    overlay = np.asarray(Image.open(out / "overlays" / "a.png"))
    assert overlay.shape == (96, 64, 3)
    changed = (overlay != image[..., None]).any(-1)
    assert changed.any()
    assert not (changed & ~masks.any(0)).any()  # outlines lie on the masks
    first, second = table(out)
    assert (first["file"], first["height"], first["width"]) == (
        str(tmp_path / "in/a.png"),
        "96",
        "64",
    )
    assert int(first["heart pixels"]) == masks[2].sum()
    assert first["heart mm2"] == ""
    assert float(first["cardiothoracic ratio"]) == pytest.approx(16 / 48, rel=1e-4)
    assert 0 < float(first["consistency"]) <= 1
    assert second["height"] == "64"
    assert {path.name for path in out.glob("[!.]*")} == {*CLASSES, "overlays", "measurements.csv"}


# ---- label maps -----------------------------------------------------------------------------

VALUES = (3, 7, 200)


@pytest.fixture
def valued():
    model = Model("unet", "float32", CLASSES, channels=1, size=96, values=VALUES)
    return Segmenter(Boxes(), model, torch.device("cpu"))


def expected_labels(masks):
    return sum(value * mask.astype(int) for value, mask in zip(VALUES, masks, strict=True))


def test_masks_of_values_give_label_maps_of_the_same(valued, tmp_path):
    image, masks = chest()
    Image.fromarray(image).save(tmp_path / "a.png")
    assert predict(valued, [tmp_path / "a.png"], tmp_path / "out", console=QUIET) == []
    names = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert names == {"labels", "overlays", "measurements.csv"}
    found = Image.open(tmp_path / "out" / "labels" / "a.png")
    assert np.array_equal(np.asarray(found), expected_labels(masks))
    assert len(found.convert("RGB").getcolors()) == 4  # to be told apart by eye
    assert table(tmp_path / "out")[0]["heart pixels"] == str(masks[2].sum())


def test_large_values_have_16_bits(tmp_path):
    model = Model("unet", "float32", CLASSES, 1, 96, values=(1, 2, 40000))
    image, masks = chest()
    Image.fromarray(image).save(tmp_path / "a.png")
    segmenter = Segmenter(Boxes(), model, torch.device("cpu"))
    predict(segmenter, [tmp_path / "a.png"], tmp_path / "out", console=QUIET)
    found = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))
    assert (found[masks[2]] == 40000).all()
    assert (found[masks[1]] == 2).all()


def test_a_pixel_has_one_value_the_likeliest(tmp_path):
    class Overlapping(Boxes):
        def forward(self, images):
            found = torch.full((len(images), 4, 96, 96), 0.6)
            found[:, 1, :48] = 0.9
            found[:, 2, 40:] = 0.7
            return found

    for values, overlap in ((None, True), (VALUES, False)):
        model = Model("unet", "float32", CLASSES, 1, 96, values=values)
        found = Segmenter(Overlapping(), model, torch.device("cpu")).predict(chest(96, 96)[0])
        assert (found.masks.sum(axis=0) > 1).any() == overlap
        if values:
            assert np.array_equal(found.masks[1], np.arange(96)[:, None] < np.full(96, 48))
            assert not found.masks[0].any()


def test_postprocessing_fills_no_structure_in_the_hole_of_another(valued, tmp_path):
    image = np.zeros((96, 96), np.uint8)
    image[20:70, 20:70] = 102  # a ring around another structure and a real hole
    image[30:40, 30:60], image[50:60, 30:60] = 204, 0
    image[0, :8] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    options = {"console": QUIET, "consistency": False, "overlays": False, "postprocess": True}
    predict(valued, [tmp_path / "a.png"], tmp_path / "out", **options)
    found = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))
    expected = np.where(image == 204, 200, 3 * (image > 0))
    expected[50:60, 30:60], expected[0, :8] = 3, 0
    assert np.array_equal(found, expected)
    (row,) = table(tmp_path / "out")
    assert int(row["left lung pixels"]) == (expected == 3).sum()


def test_nifti_label_maps_have_the_values_too(valued, tmp_path):
    image, masks = chest()
    values = image[::-1].T.astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "ct.nii.gz")
    predict(valued, [tmp_path / "ct.nii.gz"], tmp_path / "out", console=QUIET)
    found = np.asarray(nibabel.load(tmp_path / "out" / "labels" / "ct.nii.gz").dataobj)
    assert np.array_equal(found, expected_labels(masks)[::-1].T)


def test_nifti_units_and_orientation_are_kept(valued, tmp_path):
    image, masks = chest()
    affine = np.array([[0, 300.0, 0, 5], [200, 0, 0, -3], [0, 0, 4, 0], [0, 0, 0, 1]])
    source = nibabel.Nifti1Image(image[::-1].T.astype(np.float32) * 3, affine)
    source.header.set_xyzt_units("micron")
    source.set_sform(affine, 2)
    source.set_qform(affine, 1)
    nibabel.save(source, tmp_path / "ct.nii.gz")
    predict(valued, [tmp_path / "ct.nii.gz"], tmp_path / "out", console=QUIET)
    found = nibabel.load(tmp_path / "out" / "labels" / "ct.nii.gz")
    assert found.header.get_xyzt_units()[0] == "micron"
    assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == (1, 2)
    np.testing.assert_allclose(found.affine, affine)
    assert np.array_equal(np.asarray(found.dataobj), expected_labels(masks)[::-1].T)
    (row,) = table(tmp_path / "out")
    assert float(row["heart mm2"]) == pytest.approx(masks[2].sum() * 0.3 * 0.2, rel=1e-4)


# ---- there and back -------------------------------------------------------------------------


def write_image(path, image, form):
    """Write two planes, or one, of which the second is upside down."""
    planes = [image, image[::-1]]
    if form == "png":
        Image.fromarray(image).save(path.with_suffix(".png"))
        return 1
    if form == "tif":
        pages = [Image.fromarray(plane) for plane in planes]
        pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])
    elif form == "nii.gz":
        values = np.stack(planes, -1).transpose(1, 0, 2)[:, ::-1]
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path.with_suffix(".nii.gz"))
    elif form == "dcm":
        write_dicom(path.with_suffix(".dcm"), image.astype("u2"), PixelSpacing=[0.5, 0.5])
        return 1
    else:
        frames = np.stack(planes).astype("u2")
        attributes = {} if form == "frames" else enhanced(len(planes), form == "by frame")
        write_dicom(path.with_suffix(".dcm"), frames, NumberOfFrames=2, **attributes)
    return 2


@pytest.mark.parametrize("values", [None, VALUES], ids=["by structure", "values"])
@pytest.mark.parametrize("form", ["png", "tif", "nii.gz", "dcm", "frames", "enhanced", "by frame"])
def test_what_is_found_can_be_masks_of_the_next_training(tmp_path, form, values):
    model = Model("unet", "float32", CLASSES, 1, 96, values=values)
    segmenter = Segmenter(Boxes(), model, torch.device("cpu"))
    image, masks = chest()
    (tmp_path / "images").mkdir()
    planes = write_image(tmp_path / "images" / "a", image, form)
    problems = predict(segmenter, [tmp_path / "images"], tmp_path / "out", console=QUIET)
    # Without functional groups a segmentation cannot say of which frame it is.
    assert bool(problems) == (form == "frames")
    written = tmp_path / "out" / "segmentations"
    if not written.exists() and values is None:
        written = tmp_path / "masks"
        for name in CLASSES:
            shutil.copytree(tmp_path / "out" / name, written / name)
    else:
        written = written if written.exists() else tmp_path / "out" / "labels"
        shutil.copytree(written, tmp_path / "masks")
    if values is not None:
        names = "".join(f"{v} {name}\n" for v, name in zip(values, CLASSES, strict=True))
        (tmp_path / "classes.txt").write_text(names)
    data = load_dataset("folder", root=tmp_path, size=96)
    assert len(data) == planes
    assert data.annotated == list(range(planes))
    assert sorted(data.classes) == sorted(CLASSES)
    for plane in range(planes):
        found = dict(zip(data.classes, data.target_batch([plane])[0].numpy(), strict=False))
        for name, expected in zip(CLASSES, masks, strict=True):
            wanted = expected[::-1] if plane else expected
            assert np.array_equal(found[name][:, 16:80] > 0, wanted), (name, plane)


def test_a_segmentation_beside_values_is_one_of_them(tmp_path):
    """Of a run trained with values, of which the masks of two images are corrected."""
    image, masks = chest()
    model = Model("unet", "float32", CLASSES, 1, 96)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    write_image(tmp_path / "images" / "a", image, "dcm")
    Image.fromarray(image).save(tmp_path / "images" / "b.png")
    segmenter = Segmenter(Boxes(), model, torch.device("cpu"))
    predict(segmenter, [tmp_path / "images" / "a.dcm"], tmp_path / "out", console=QUIET)
    shutil.copy(tmp_path / "out" / "segmentations" / "a.dcm", tmp_path / "masks")
    Image.fromarray(expected_labels(masks).astype("u1")).save(tmp_path / "masks" / "b.png")
    with pytest.raises(DataError, match="segment 'left lung', which stands for no value; add"):
        load_dataset("folder", root=tmp_path, size=96)
    names = "".join(f"{v} {name}\n" for v, name in zip(VALUES, CLASSES, strict=True))
    (tmp_path / "classes.txt").write_text(names)
    data = load_dataset("folder", root=tmp_path, size=96)
    assert data.values == VALUES
    assert torch.equal(data.masks[0], data.masks[1])
    assert data.masks[0].any()


# ---- other files ----------------------------------------------------------------------------


def test_nifti_in_nifti_out(segmenter, tmp_path):
    planes = [chest()[0], chest()[0][::-1]]
    values = np.stack(planes, -1).transpose(1, 0, 2)[:, ::-1].astype(np.int16)
    affine = np.array([[0, 2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "ct.nii.gz")
    assert predict(segmenter, [tmp_path / "ct.nii.gz"], tmp_path / "out", console=QUIET) == []
    found = nibabel.load(tmp_path / "out" / "heart" / "ct.nii.gz")
    np.testing.assert_allclose(found.affine, affine)
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(found.dataobj) > 0, values == 204)
    rows = table(tmp_path / "out")
    assert [row["plane"] for row in rows] == ["0", "1"]
    spacing = found.header.get_zooms()
    area = int(rows[0]["heart pixels"]) * spacing[0] * spacing[1]
    assert float(rows[0]["heart mm2"]) == pytest.approx(area, rel=1e-4)


def test_dicom_in_dicom_seg_out(segmenter, tmp_path):
    image, masks = chest()
    write_dicom(tmp_path / "a.dcm", image.astype("u2"), PixelSpacing=[0.5, 0.5])
    assert predict(segmenter, [tmp_path / "a.dcm"], tmp_path / "out", console=QUIET) == []
    found = pydicom.dcmread(tmp_path / "out" / "segmentations" / "a.dcm")
    assert [s.SegmentLabel for s in found.SegmentSequence] == list(CLASSES)
    assert found.PatientID == "phantom"
    source = pydicom.dcmread(tmp_path / "a.dcm")
    assert found.StudyInstanceUID == source.StudyInstanceUID
    frames = found.pixel_array
    assert frames.shape == (3, 96, 64)
    for frame, expected in zip(frames, masks, strict=True):
        assert np.array_equal(frame > 0, expected)
    (row,) = table(tmp_path / "out")
    assert float(row["heart mm2"]) == masks[2].sum() * 0.25


def test_areas_in_mm2_say_where(segmenter, tmp_path):
    image, masks = chest()
    write_dicom(tmp_path / "a.dcm", image.astype("u2"), ImagerPixelSpacing=[0.5, 0.5])
    write_dicom(tmp_path / "b.dcm", image.astype("u2"), PixelSpacing=[0.5, 0.5])
    Image.fromarray(image).save(tmp_path / "c.png")
    options = {"console": QUIET, "consistency": False, "overlays": False}
    predict(segmenter, sorted(tmp_path.iterdir()), tmp_path / "out", **options)
    assert [row["mm at"] for row in table(tmp_path / "out")] == ["detector", "patient", ""]
    files = sorted(tmp_path.glob("*.*"))
    predict(segmenter, files, tmp_path / "given", spacing=2.0, **options)
    areas = [float(row["heart mm2"]) for row in table(tmp_path / "given")]
    assert areas == pytest.approx(masks[2].sum() * np.array([0.25, 0.25, 4]), rel=1e-4)


def test_images_of_another_scale_are_remarked(tmp_path):
    model = Model("unet", "float32", CLASSES, 1, 96, spacing=(0.5, 0.5))
    segmenter = Segmenter(Boxes(), model, torch.device("cpu"))
    image, _ = chest()
    for name, spacing in (("a", 0.6), ("b", 0.5), ("c", 2.0)):
        write_dicom(tmp_path / f"{name}.dcm", image.astype("u2"), PixelSpacing=[spacing] * 2)
    Image.fromarray(image).save(tmp_path / "d.png")
    with io.StringIO() as text:
        console = Console(file=text, soft_wrap=True)
        predict(segmenter, sorted(tmp_path.iterdir()), tmp_path / "out", console=console)
        said = text.getvalue()
    assert "Note: 1 of 4 images are at a different scale" in said
    assert "c.dcm, fitted to the network, are 4 times as large" in said
    predict(segmenter, [tmp_path / "b.dcm"], tmp_path / "one", console=QUIET)


def test_postprocessing_is_applied(segmenter, tmp_path):
    image, masks = chest()
    image[2, 2] = 204
    Image.fromarray(image).save(tmp_path / "a.png")
    options = {"console": QUIET, "consistency": False, "overlays": False}
    predict(segmenter, [tmp_path / "a.png"], tmp_path / "raw", **options)
    predict(segmenter, [tmp_path / "a.png"], tmp_path / "clean", postprocess=True, **options)
    assert mask(tmp_path / "raw" / "heart" / "a.png").sum() == masks[2].sum() + 1
    assert np.array_equal(mask(tmp_path / "clean" / "heart" / "a.png"), masks[2])
    assert table(tmp_path / "raw")[0]["consistency"] == ""
    assert not (tmp_path / "raw" / "overlays").exists()


def test_one_bad_file_is_named_and_the_others_are_done(segmenter, tmp_path):
    for name in "abc":
        Image.fromarray(chest()[0]).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"hello")
    problems = predict(segmenter, [tmp_path], tmp_path / "out", console=QUIET)
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'b.png'}: cannot be read")
    assert [row["file"][-5:] for row in table(tmp_path / "out")] == ["a.png", "c.png"]


def test_a_full_disk_costs_no_finished_work(segmenter, tmp_path):
    for name in "abcd":
        Image.fromarray(chest()[0]).save(tmp_path / f"{name}.png")
    write = tcseg.io.label_maps.write_atomically

    def full(path, content, *, alone):
        if path.name == "c.png":
            raise OSError(28, "No space left on device", str(path))
        write(path, content, alone=alone)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcseg.io.label_maps.write_atomically", full)
        problems = predict(segmenter, [tmp_path], tmp_path / "out", console=QUIET)
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'out'}: cannot be written (No space left on device); ")
    assert f"2 of 4 files are not done, the first is {tmp_path / 'c.png'}: " in problem
    assert len(table(tmp_path / "out")) == 2
    assert (tmp_path / "out" / "heart" / "b.png").exists()


def test_what_cannot_be_done_is_said_before_anything_is(segmenter, tmp_path):
    Image.fromarray(chest()[0]).save(tmp_path / "a.png")
    Image.fromarray(chest()[0]).save(tmp_path / "a.tif")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for inputs, message in (
        ([tmp_path / "missing.png"], "no such file"),
        ([tmp_path / "empty"], "no images in it"),
    ):
        with pytest.raises(RunError, match=message):
            predict(segmenter, inputs, out, console=QUIET)
    assert not out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        predict(segmenter, [tmp_path / "a.png"], tmp_path / "file", console=QUIET)


def test_images_are_not_written_over(segmenter, tmp_path):
    Image.fromarray(chest()[0]).save(tmp_path / "a.png")
    with pytest.raises(RunError, match="holds the images themselves"):
        predict(segmenter, [tmp_path], tmp_path, console=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_of_files_of_one_name_the_first_is_taken(segmenter, tmp_path):
    image = Image.fromarray(chest()[0])
    for name in ("a.png", "a.tif", "b.png"):
        image.save(tmp_path / name)
    (problem,) = predict(segmenter, [tmp_path], tmp_path / "out", console=QUIET)
    assert problem.startswith(f"{tmp_path / 'a.tif'}: would be written to the files of ")
    assert [row["file"][-5:] for row in table(tmp_path / "out")] == ["a.png", "b.png"]


def test_folders_in_folders_are_searched_and_kept(segmenter, tmp_path):
    image, masks = chest()
    scans = tmp_path / "scans"
    for name in ("one/IM1.png", "two/IM1.png", "two/late/IM1.png"):
        (scans / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(scans / name)
    for _ in range(2):  # what was written is no image to segment
        assert predict(segmenter, [scans], scans / "found", console=QUIET) == []
    found = sorted(str(p.relative_to(scans)) for p in (scans / "found" / "heart").rglob("*.png"))
    assert found == [
        f"found/heart/{name}" for name in ("one/IM1.png", "two/IM1.png", "two/late/IM1.png")
    ]
    assert np.array_equal(mask(scans / "found" / "heart" / "two" / "IM1.png"), masks[2])
    assert (scans / "found" / "overlays" / "two" / "late" / "IM1.png").exists()


def test_structures_of_any_name_have_folders_of_their_own(tmp_path):
    classes = ("left lung", "left/lung", "left_lung", "../../overlays", "Overlays")
    model = Model("unet", "float32", classes, channels=1, size=96)

    class Five(Boxes):
        def forward(self, images):
            return super().forward(images)[:, [0, 1, 2, 0, 1, 3]]

    segmenter = Segmenter(Five(), model, torch.device("cpu"))
    (tmp_path / "in").mkdir()
    Image.fromarray(chest()[0]).save(tmp_path / "in" / "a.png")
    assert predict(segmenter, [tmp_path / "in"], tmp_path / "out", console=QUIET) == []
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    folders = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len(folders) == 6
    assert all([path.name for path in folder.iterdir()] == ["a.png"] for folder in folders)


def test_a_name_too_long_stops_no_others(segmenter, tmp_path):
    for name in ("a", "b" * 245, "c"):
        Image.fromarray(chest()[0]).save(tmp_path / f"{name}.png")
    (problem,) = predict(segmenter, [tmp_path], tmp_path / "out", console=QUIET)
    assert "its name is too long" in problem
    assert len(table(tmp_path / "out")) == 2


def test_dicom_that_cannot_have_a_segmentation_gets_png(segmenter, tmp_path):
    image, masks = chest()
    write_dicom(tmp_path / "a.dcm", image.astype("u2"))
    data = pydicom.dcmread(tmp_path / "a.dcm")
    del data.StudyInstanceUID
    data.save_as(tmp_path / "a.dcm")
    (problem,) = predict(segmenter, [tmp_path / "a.dcm"], tmp_path / "out", console=QUIET)
    assert "no DICOM segmentation can be made" in problem
    assert np.array_equal(mask(tmp_path / "out" / "heart" / "a.png"), masks[2])
    assert len(table(tmp_path / "out")) == 1


def test_nothing_found_has_no_consistency(segmenter, tmp_path):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "black.png")
    predict(segmenter, [tmp_path], tmp_path / "out", console=QUIET)
    (row,) = table(tmp_path / "out")
    assert (row["consistency"], row["heart pixels"]) == ("", "0")


def test_memory_does_not_grow_with_the_number_of_files(segmenter, tmp_path):
    image = np.zeros((1500, 1500), np.uint8)
    for number in range(24):
        Image.fromarray(image).save(tmp_path / f"{number}.png", compress_level=1)
    options = {"console": QUIET, "consistency": False, "overlays": False}
    files = sorted(tmp_path.glob("*.png"))

    def peak_mib(number):
        try:  # other tests of this process may have needed more
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pytest.skip("the peak of this process's memory cannot be measured anew")
        predict(segmenter, files[:number], tmp_path / f"of {number}", **options)
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024

    peak_mib(1)  # what is kept from then on
    # 20 more images are 180 MB as they are read, and 540 MB of probabilities.
    assert peak_mib(24) - peak_mib(4) < 100


def test_the_command(tmp_path):
    config = Config(size=96, network=f"{__name__}.Boxes")
    run = RunFolder.create(tmp_path / "run", config, resume=False)
    run.save_weights({"backbone.level": torch.tensor([0.4, 0.2, 0.8, 0.0])})
    Model(config.network, "float32", CLASSES, 1, 96).save(run.path)
    Image.fromarray(chest()[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"hello")
    command = ["predict", str(run.path), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    command += ["--network", config.network]
    result = CliRunner().invoke(main, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "measurements.csv" in result.stdout
    result = CliRunner().invoke(main, [*command, str(tmp_path / "b.png"), "--device", "cpu"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'b.png'}: cannot be read")
    result = CliRunner().invoke(main, ["predict", str(tmp_path), "a.png", "--out", "x"])
    assert (result.exit_code, "is not a run" in result.stderr) == (1, True)
    assert not os.path.exists("x")
