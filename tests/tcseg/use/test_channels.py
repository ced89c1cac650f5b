"""Images of many channels: read from files of each kind, learnt from, segmented, exported."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from click.testing import CliRunner
from folders import save
from PIL import Image
from tiny import TINY

import tcseg
from tcseg.cli import main
from tcseg.data import load_dataset
from tcseg.errors import DataError
from tcseg.evaluation.pictures import outlined
from tcseg.io.images import read_pictures
from tcseg.io.planes import read_planes
from tcseg.method.network import build_network
from tcseg.runs.model import Model
from tcseg.training.session import train
from tcseg.use.segmenter import Segmenter

# (planes, H, W, C), each channel in a range of its own.
VALUES = np.random.default_rng(0).integers(0, 100, (2, 24, 32, 5)) * 10 ** np.arange(5) // 100
VALUES = VALUES.astype(np.uint16)


def tiff(**options):
    return lambda path, values: tifffile.imwrite(path, values, **options)


def itk(path, values):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values, isVector=True), str(path))


def nifti(path, values):
    volume = values.transpose(2, 1, 0, 3)[:, ::-1, :, None]
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


SAMPLES = {"photometric": "minisblack", "planarconfig": "contig"}
KINDS = {
    "last.tif": (tiff(**SAMPLES), VALUES[0]),
    "two.tif": (tiff(**SAMPLES), VALUES[0, ..., 3:]),
    "colours.tif": (tiff(photometric="rgb"), VALUES[0]),
    "first.tif": (tiff(**SAMPLES | {"planarconfig": "separate"}), np.moveaxis(VALUES[0], 2, 0)),
    "axes.tif": (tiff(metadata={"axes": "CYX"}), np.moveaxis(VALUES[0], 2, 0)),
    "imagej.tif": (
        tiff(imagej=True, metadata={"axes": "ZCYX"}),
        np.moveaxis(VALUES, 3, 1),
    ),
    "ome.tif": (tiff(ome=True, metadata={"axes": "CZYX"}), np.moveaxis(VALUES, 3, 0)),
    "planes.npy": (np.save, VALUES),
    "picture.nrrd": (itk, VALUES[0]),
    "planes.mha": (itk, VALUES),
    "planes.nii.gz": (nifti, VALUES),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_channel_has_a_scale_of_its_own_over_all_planes(tmp_path, name):
    path, (write, values) = tmp_path / name, KINDS[name]
    write(path, values)
    pictures = list(read_pictures(path))
    expected = VALUES[: len(pictures), ..., 3 if name == "two.tif" else 0 :].astype(float)
    low, high = np.percentile(expected, (0.1, 99.9), axis=(0, 1, 2))
    expected = ((expected - low) / np.maximum(high - low, 1e-9)).clip(0, 1).transpose(0, 3, 1, 2)
    assert len(pictures) == (2 if values.ndim == 4 else 1)
    np.testing.assert_allclose([p.pixels for p in pictures], expected, atol=1e-6)
    if path.suffix != ".tif":
        with pytest.raises(DataError, match="has 5 channels; a mask must have one value"):
            read_planes(path)


def test_pages_without_axes_are_planes_and_eight_bits_keep_their_levels(tmp_path):
    values = (VALUES[0] % 256).astype(np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(values, 2, 0))
    tifffile.imwrite(tmp_path / "samples.tif", values, **SAMPLES)
    pages = np.concatenate([p.pixels for p in read_pictures(tmp_path / "pages.tif")])
    (picture,) = read_pictures(tmp_path / "samples.tif")
    assert np.array_equal(pages, picture.pixels)
    assert np.array_equal(pages, np.moveaxis(values, 2, 0) / np.float32(255))


def test_pixels_have_a_size_where_channels_are_pages(tmp_path):
    for name, options in (
        ("imagej", {"imagej": True, "metadata": {"axes": "CYX", "unit": "um"}}),
        ("ome", {"ome": True, "metadata": {"axes": "CYX", "PhysicalSizeX": 2, "PhysicalSizeY": 4}}),
    ):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, np.moveaxis(VALUES[0], 2, 0), resolution=(0.5, 0.25), **options)
        (picture,) = read_pictures(path)
        assert picture.spacing == pytest.approx((0.004, 0.002))


def test_three_channels_in_files_of_their_own_are_no_colours(tmp_path):
    image, disc = discs(0)
    for part in "imagesTr", "labelsTr":
        (tmp_path / part).mkdir()
    for c in range(3):
        nifti(tmp_path / "imagesTr" / f"a_{c:04d}.nii.gz", image[None, ..., c + 1, None])
    nifti(tmp_path / "labelsTr" / "a.nii.gz", disc[None, ..., None])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"disc": 1}}))
    data = load_dataset("folder", root=tmp_path, size=32)
    assert (data.images.shape[1], data.files) == (3, 3)
    assert (data.images.numpy().max(axis=(0, 2, 3)) == 2**16 - 1).all()
    told = tcseg_("data", "check", "--data", "folder", "--root", tmp_path, "--size", "32", status=1)
    assert "1 image of 3 channels" in told
    model = Model("unet", "float32", ("disc",), channels=3, size=32, files=3)
    segmenter = Segmenter(build_network("unet", 1, channels=3), model, torch.device("cpu"))
    assert segmenter.predict(image[..., 1:4]).masks.shape == (1, 32, 32)
    with pytest.raises(ValueError, match="takes images of 3 channels, this one has 1"):
        segmenter.predict(disc)


def tcseg_(*arguments, status=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result.output


def discs(number):
    """Return five channels of noise, a disc in one of them, and the disc."""
    rng = np.random.default_rng(number)
    y, x = np.ogrid[:32, :32]
    disc = (y - rng.integers(10, 22)) ** 2 + (x - rng.integers(10, 22)) ** 2 < 36
    image = rng.integers(0, 1000, (32, 32, 5)).astype(np.uint16)
    image[..., 3] += 3000 * disc.astype(np.uint16)
    return image, disc.astype(np.uint8)


def write_tiff(root):
    for k in range(6):
        image, disc = discs(k)
        for part in "images", "masks":
            (root / part).mkdir(exist_ok=True, parents=True)
        tifffile.imwrite(root / "images" / f"{k}.tif", image, **SAMPLES)
        save(root / "masks" / f"{k}.png", disc)
    return root / "images", lambda out: out / "labels" / "0.png"


def write_nnunet(root):
    for k in range(6):
        image, disc = discs(k)
        for part in "imagesTr", "labelsTr":
            (root / part).mkdir(exist_ok=True, parents=True)
        for c in range(5):
            nifti(root / "imagesTr" / f"{k}_{c:04d}.nii.gz", image[None, ..., c, None])
        nifti(root / "labelsTr" / f"{k}.nii.gz", disc[None, ..., None])
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "disc": 1}}))
    return root / "imagesTr", lambda out: out / "labels" / "0.nii.gz"


def trained(root, run):
    config = dataclasses.replace(TINY, data="folder", root=str(root), size=32, labelled=None)
    train(
        dataclasses.replace(config, method="baseline", pretrain_steps=0, steps=2, validate_every=2),
        run,
        False,
        show_results=False,
    )
    return Model.load(run)


@pytest.mark.parametrize(("write", "files"), [(write_tiff, 1), (write_nnunet, 5)])
def test_from_files_to_masks(tmp_path, write, files):
    root, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    images, found = write(root)
    model = trained(root, run)
    assert (model.channels, model.files, model.bits) == (5, files, 16)
    tcseg_("predict", run, images, "--out", out, "--no-consistency", "--no-overlays")
    assert len((out / "measurements.csv").read_text().splitlines()) == 7
    labels = read_planes(found(out))
    assert labels.shape == (1, 32, 32)
    segmenter = tcseg.load(run, "cpu")
    assert np.array_equal(segmenter.predict(discs(0)[0]).masks[0], labels[0] == 1)
    with pytest.raises(ValueError, match="takes images of 5 channels, this one has 1"):
        segmenter.predict(discs(0)[1])
    save(tmp_path / "grey" / "a_0000.png", discs(0)[1])
    told = tcseg_("predict", run, tmp_path / "grey", "--out", tmp_path / "none", status=1)
    assert "takes images of 5 channels, this one has 1" in told.replace("\n", " ")
    layout = ("--layout", "nnunet", "--out", tmp_path / "other")
    told = tcseg_("data", "convert", "--root", root, *layout, status=1)
    assert "for each channel" in told


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of TIFF files and a run on it."""
    folder = tmp_path_factory.mktemp("channels")
    write_tiff(folder / "data")
    trained(folder / "data", folder / "run")
    return folder


def test_what_is_checked_and_measured(finished):
    data = ("--data", "folder", "--root", finished / "data", "--size", "32")
    assert "6 images of 5 channels read at 32 x 32" in tcseg_("data", "check", *data)
    tcseg_("evaluate", finished / "run")


def test_what_is_shown(finished, tmp_path):
    image = finished / "data" / "images" / "0.tif"
    tcseg_("predict", finished / "run", image, "--out", tmp_path / "out")
    with Image.open(tmp_path / "out" / "overlays" / "0.png") as overlay:
        assert overlay.size == (32, 32)
    image = np.random.default_rng(0).random((5, 24, 32))
    assert np.array_equal(outlined(image, None), outlined(image[:1], None))


@pytest.mark.slow
def test_what_is_exported(finished, tmp_path):
    out = ("--format", "pt2", "--out", tmp_path / "net.pt2")
    assert "images (b, 5, 32, 32)" in tcseg_("export", finished / "run", *out)


def test_what_does_not_fit_is_named(tmp_path):
    write_tiff(tmp_path)
    with pytest.raises(DataError, match=r"0\.tif: `window` is for images of one channel"):
        load_dataset("folder", root=tmp_path, size=32, window="lung")
    save(tmp_path / "images" / "x.png", discs(0)[1])
    with pytest.raises(DataError, match=r"x\.png has 1 channel, 0\.tif has 5; all images must"):
        load_dataset("folder", root=tmp_path, size=32)
