"""Folders of volumes: planes joined, resampled, and every muddle named."""

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from made_up import enhanced, write_dicom
from PIL import Image

from tcseg.data import load_dataset
from tcseg.errors import DataError, Problems

SHAPE = (6, 20, 24)  # depth, height, width


def blob(number, shape=SHAPE):
    """A ball of 2 with a box of 5 in it, on noise: image and labels, (D, H, W)."""
    rng = np.random.default_rng(number)
    z, y, x = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1)) - 0.5
    labels = np.where(z**2 + y**2 + x**2 < 0.14, 2, 0).astype("u1")
    labels[:, 8:12, 9:14] = 5
    return (rng.integers(0, 40, shape) + 40 * labels).astype("u1"), labels


def as_nifti(planes, spacing=(1, 1, 1), corner=(0, 0, 0)):
    """Planes as viewers show them, in the axes of a file; corner and spacing are by its axes."""
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = corner
    return nibabel.Nifti1Image(planes[:, ::-1].swapaxes(0, 2), affine)


def write(root, name, image, labels=None, spacing=(1, 1, 1)):
    for part, planes in (("images", image), ("masks", labels)):
        (root / part).mkdir(parents=True, exist_ok=True)
        if planes is not None:
            nibabel.save(as_nifti(planes, spacing), root / part / f"{name}.nii.gz")


def load(root, **options):
    return load_dataset("folder", root=root, dimensions=3, **options)


def refused(root, *words, **options):
    with pytest.raises(DataError) as error:
        load(root, **options)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def truth(data, index):
    """Masks of an image, in its own extent."""
    own = tuple(map(slice, data.extent_of(index)))
    packed = data.masks[index].numpy()[:, *own]
    return packed[0] == np.arange(1, len(data.classes) + 1).reshape(-1, 1, 1, 1)


@pytest.fixture
def volumes(tmp_path):
    """Three volumes of different sizes with labels, and one without."""
    for number, shape in enumerate([SHAPE, (4, 20, 24), (6, 16, 30), (5, 10, 10)]):
        image, labels = blob(number, shape)
        write(tmp_path, f"v{number}", image, labels if number < 3 else None, spacing=(3, 1, 1))
    return tmp_path


def test_planes_of_a_file_are_one_volume(volumes):
    data = load(volumes)
    assert data.ids == ["v0", "v1", "v2", "v3"]
    assert data.images.shape == (4, 1, 6, 20, 30)
    assert data.extents.tolist() == [[6, 20, 24], [4, 20, 24], [6, 16, 30], [5, 10, 10]]
    assert data.spacings == [(3, 1, 1)] * 4
    assert data.annotated == [0, 1, 2]
    assert data.values == (2, 5)
    assert data.volumes == [None] * 4  # none is a plane
    for number in range(3):
        image, labels = blob(number, tuple(data.extents[number].tolist()))
        own = tuple(map(slice, image.shape))
        assert np.array_equal(data.images[number, 0].numpy()[own], image)
        assert data.images[number].sum() == image.sum()  # 0 beyond it
        assert np.array_equal(truth(data, number), [labels == 2, labels == 5])
        whole, spacing = data.original(number)
        assert np.array_equal(whole, [labels == 2, labels == 5])
        assert spacing == (3, 1, 1)
    assert not data.masks[3].any()


def test_planes_as_in_two_dimensions(volumes):
    """The same levels and masks as plane by plane, in the same order."""
    flat, data = load_dataset("folder", root=volumes, size="original"), load(volumes)
    for index, name in enumerate(data.ids):
        planes = [k for k, volume in enumerate(flat.volumes) if volume == name]
        stacked = flat.images[planes].movedim(0, 1)
        depth = stacked.shape[1]
        assert torch.equal(stacked, data.images[index][:, :depth])
        assert torch.equal(flat.masks[planes].movedim(0, 1), data.masks[index][:, :depth])


# ---- spacing and size -----------------------------------------------------------------------


def ramps(shape, spacing):
    """Rising with depth and falling with width, by position in mm; 16 bits."""
    z, _, x = (np.indices(shape) + 0.5) * np.reshape(spacing, (3, 1, 1, 1))
    return np.rint(20000 + 500 * z - 100 * x).astype("u2")


@pytest.mark.parametrize(
    ("spacing", "shape", "voxels"),
    [
        (None, (10, 30, 36), (2, 1, 1)),  # the median of both
        ("median", (10, 30, 36), (2, 1, 1)),
        ("4x2x2", (5, 15, 18), (4, 2, 2)),
        ("1.25", (16, 24, 29), (1.25, 1.25, 36 / 29)),
        ("original", (10, 20, 24), (2, 1.5, 1.5)),
    ],
)
def test_volumes_are_resampled_to_a_spacing(tmp_path, spacing, shape, voxels):
    own = {"a": ((10, 20, 24), (2, 1.5, 1.5)), "b": ((20, 60, 72), (2, 0.5, 0.5))}
    for name, (count, sides) in own.items():
        labels = np.zeros(count, "u1")
        labels[count[0] // 2 :] = 1
        write(tmp_path, name, ramps(count, sides), labels, spacing=sides)
    data = load(tmp_path, spacing=spacing, window="23000,16001")
    assert data.extents[0].tolist() == list(shape)
    assert data.spacings[0] == pytest.approx(voxels)
    low, high = 15000, 31000
    found = data.images[0, 0][tuple(map(slice, shape))].numpy() / 65535 * (high - low) + low
    expected = ramps(shape, voxels)
    inside = (slice(1, -1),) * 3  # linear interpolation repeats the border
    # Averages are of whole voxels, here of 1.5 mm.
    assert np.abs(found - expected)[inside].max() < 100 * 1.5 / 2 + 1
    marked = truth(data, 0)[0]
    assert marked[-(shape[0] // 2) :].all()
    assert not marked[: shape[0] // 2].any()
    whole, sides = data.original(0)
    assert whole.shape == (1, 10, 20, 24)
    assert sides == (2, 1.5, 1.5)


def test_a_size_keeps_proportions_in_the_patient(tmp_path):
    image, labels = blob(0, (4, 40, 40))
    write(tmp_path, "a", image, labels, spacing=(10, 1, 1))
    data = load(tmp_path, size=32)
    assert data.images.shape == (1, 1, 32, 32, 32)
    assert data.extents is None
    assert data.spacings[0] == pytest.approx((1.25, 1.25, 1.25))
    assert data.images[0].any(dim=-1).any(dim=-1).all()  # all planes
    # As they are, the planes would fill a tenth of the depth.
    flat = load(tmp_path, size=32, spacing="original")
    assert flat.images[0, 0].any(dim=-1).any(dim=-1).sum() == 3
    thick = load(tmp_path, size="16x32x32", spacing="5x1x1")  # 6.4 planes
    assert thick.spacings[0] == pytest.approx((40 / 6, 1.25, 1.25))


def test_what_spacing_cannot_be(volumes):
    for wrong in ("1x2", "0", "fine", "-1", "nan", "1x1x1x1"):
        with pytest.raises(ValueError, match="`spacing` must be median, original, or in mm"):
            load(volumes, spacing=wrong)
    with pytest.raises(DataError, match="`spacing` 1 is for volumes"):
        load_dataset("folder", root=volumes, size=32, spacing="1")
    with pytest.raises(DataError, match="between 16 and 2048"):
        load(volumes, size=8)


def test_voxels_too_many_are_counted_before_they_are_made(volumes, monkeypatch, tmp_path):
    load(volumes, spacing="3x0.5x0.5")
    monkeypatch.setattr("tcseg.data.volumes.memory", lambda: 4 * 6 * 40 * 60 * 2 - 1)
    with pytest.raises(
        ValueError, match=r"6 x 40 x 60 .* 0\.0; choose larger voxels \(`spacing`\)"
    ):
        load(volumes, spacing="3x0.5x0.5")
    load(volumes, spacing="3x0.5x0.5", cache=tmp_path / "cache")
    monkeypatch.setenv("TCSEG_MAX_PIXELS", str(6 * 40 * 48 - 1))
    message = "0.01152 million pixels in voxels of 3x0.5x0.5 mm, more than 0.011519 million; "
    refused(volumes, message, "choose larger voxels (`spacing`), or set", spacing="3x0.5x0.5")


def test_the_median_is_of_headers(volumes, monkeypatch):
    read = []
    monkeypatch.setattr("tcseg.io.images.read_volume", lambda path: read.append(path) or 1 / 0)
    problems = Problems(collect=True)
    with pytest.raises(DataError, match="can be read"):
        load(volumes, problems=problems)
    assert len(read) == 4  # each once


def test_volumes_that_do_not_say_their_spacing_keep_their_voxels(tmp_path):
    for part, values in zip(("images", "masks"), blob(0), strict=True):
        (tmp_path / part).mkdir()
        np.save(tmp_path / part / "a.npy", values)
    write(tmp_path, "b", *blob(1), spacing=(3, 1, 1))
    data = load(tmp_path)
    assert data.extents.tolist() == [list(SHAPE)] * 2
    assert data.spacings == [None, (3, 1, 1)]
    assert data.resampled is None
    refused(tmp_path, "1 of 2 volumes (a.npy", "no median", "`spacing` original", spacing="median")
    refused(tmp_path, "a.npy does not say how large", "`spacing` original", spacing="2")


def test_structures_that_a_spacing_takes_are_noted(tmp_path):
    image, labels = blob(0)
    labels[0, 0, 0] = 7
    write(tmp_path, "a", image, labels)
    write(tmp_path, "b", *blob(1))
    fine = load(tmp_path)
    assert fine.classes[-1] == "class 7"
    assert not fine.vanished
    refused(
        tmp_path,
        "'class 7' is marked in no image in voxels of 4 mm;",
        "a smaller `spacing`",
        spacing="4",
    )
    problems = Problems(collect=True)
    coarse = load(tmp_path, spacing="4", problems=problems)
    assert len(problems.found) == 1
    assert coarse.vanished == {0: ["class 7"]}


# ---- formats --------------------------------------------------------------------------------


def write_pages(path, planes):
    first, *others = map(Image.fromarray, planes)
    first.save(path, save_all=True, append_images=others)


def write_itk(path, planes, spacing=(1, 1, 1), origin=(0, 0, 0)):
    image = SimpleITK.GetImageFromArray(planes, isVector=False)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    SimpleITK.WriteImage(image, path)


def write_series(folder, planes, step=2.0, places=None, **attributes):
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(planes):
        place = step * k if places is None else places[k]
        write_dicom(
            folder / f"s{len(planes) - k}.dcm",  # named against their order
            plane,
            ImagePositionPatient=[0, 0, place],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.5, 0.5],
            SeriesInstanceUID="1.2.3",
            SOPInstanceUID=f"1.2.3.{k}",
            **attributes,
        )


@pytest.mark.parametrize("kind", ["tif", "npy", "mha", "nrrd", "frames", "series"])
def test_all_forms_of_volumes(tmp_path, kind):
    image, labels = blob(0)
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    expected = None
    if kind == "tif":
        for folder, planes in ((images, image), (masks, labels)):
            write_pages(folder / "a.tif", planes)
    elif kind == "npy":
        for folder, planes in ((images, image), (masks, labels)):
            np.save(folder / "a.npy", planes)
    elif kind in ("mha", "nrrd"):
        expected = (3.0, 1.0, 0.5)
        for folder, planes in ((images, image), (masks, labels)):
            write_itk(folder / f"a.{kind}", planes, expected)
    elif kind == "frames":
        expected = (2.0, 0.5, 0.5)
        write_dicom(images / "a.dcm", image, NumberOfFrames=len(image), **enhanced(len(image)))
        write_pages(masks / "a.tif", labels)
    else:
        expected = (2.0, 0.5, 0.5)
        write_series(images, image)
        for k, plane in enumerate(labels):
            Image.fromarray(plane).save(masks / f"s{len(labels) - k}.png")
    if kind not in ("tif", "npy"):  # their columns run to the patient's left
        image, labels = image[..., ::-1], labels[..., ::-1]
    data = load(tmp_path)
    assert data.ids == ["s6" if kind == "series" else "a"]
    assert data.spacings == [expected]
    assert data.bits == (16 if kind in ("frames", "series") else 8)
    levels = data.image_batch([0])[0, 0].numpy()
    assert np.corrcoef(levels.ravel(), image.ravel())[0, 1] > 0.999
    assert np.array_equal(truth(data, 0), [labels == 2, labels == 5])
    assert np.array_equal(data.original(0)[0], [labels == 2, labels == 5])


def test_volumes_are_turned_to_run_alike(tmp_path):
    """However a file runs, the same part of the patient is at the same place."""
    image, labels = blob(0)
    for name, code in (("a", "RAS"), ("b", "LAS"), ("c", "SRA"), ("d", "PIL")):
        for part, planes in (("images", image), ("masks", labels)):
            (tmp_path / part).mkdir(exist_ok=True)
            file, turns = as_nifti(planes, (3, 1, 2)), nibabel.orientations
            own = turns.io_orientation(file.affine)
            turn = turns.ornt_transform(own, turns.axcodes2ornt(code))
            nibabel.save(file.as_reoriented(turn), tmp_path / part / f"{name}.nii")
    write_itk(tmp_path / "images" / "e.mha", image[..., ::-1], (3, 1, 2))
    data = load(tmp_path)
    for number in range(5):
        assert np.array_equal(data.images[number, 0], image)
    assert data.spacings == [(3, 1, 2)] * 5
    for number in range(4):
        assert np.array_equal(truth(data, number), [labels == 2, labels == 5])
        whole, spacing = data.original(number)
        assert np.array_equal(whole, [labels == 2, labels == 5])
        assert spacing == (3, 1, 2)
    said_nothing = as_nifti(image).as_reoriented(nibabel.orientations.axcodes2ornt("LPI"))
    nibabel.save(nibabel.Nifti1Image(said_nothing.dataobj, None), tmp_path / "images" / "f.nii")
    stays = load(tmp_path, spacing="original").images[5, 0]
    assert np.array_equal(stays, image[::-1, ::-1, ::-1])


def test_sagittal_frames_are_turned(tmp_path):
    image, _ = blob(0)
    axes = [0, 1, 0, 0, 0, -1]  # sagittal: columns to the back, rows to the feet
    for name, order in (("a", 1), ("b", -1)):
        attributes = enhanced(len(image))
        (shared,) = attributes["SharedFunctionalGroupsSequence"]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = axes
        for k, group in enumerate(attributes["PerFrameFunctionalGroupsSequence"]):
            group.PlanePositionSequence[0].ImagePositionPatient = [-2 * k * order, 0, 0]
        (tmp_path / "images").mkdir(exist_ok=True)
        planes = image[::order]
        write_dicom(tmp_path / "images" / f"{name}.dcm", planes, NumberOfFrames=6, **attributes)
    (tmp_path / "masks").mkdir()
    write_pages(tmp_path / "masks" / "a.tif", blob(0)[1])
    data = load(tmp_path)
    assert data.spacings == [(0.5, 0.5, 2)] * 2
    image, labels = (planes.transpose(1, 2, 0)[::-1] for planes in blob(0))
    assert np.array_equal(truth(data, 0), [labels == 2, labels == 5])
    assert torch.equal(data.images[0], data.images[1])
    levels = data.image_batch([0])[0, 0].numpy()
    assert np.corrcoef(levels.ravel(), image.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("kind", ["ImageJ", "OME"])
@pytest.mark.parametrize("channels", [False, True])
def test_tiff_files_of_microscopes_say_how_far_planes_lie_apart(tmp_path, kind, channels):
    image, labels = blob(0)
    axes = "ZCYX" if channels else "ZYX"
    values = np.stack([image, image], axis=1) if channels else image
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    if kind == "ImageJ":
        how = {"imagej": True, "resolution": (2.0, 4.0), "metadata": {"axes": axes, "unit": "mm"}}
        how["metadata"]["spacing"] = 3.0
    else:
        sizes = {"PhysicalSizeX": 500, "PhysicalSizeY": 250, "PhysicalSizeZ": 3}
        units = {"PhysicalSizeZUnit": "mm"}  # others are in micrometres
        how = {"ome": True, "metadata": {"axes": axes, **sizes, **units}}
    tifffile.imwrite(tmp_path / "images" / "a.tif", values, **how)
    write_pages(tmp_path / "masks" / "a.tif", labels)
    data = load(tmp_path)
    assert data.spacings == [pytest.approx((3, 0.25, 0.5))]
    assert data.images.shape == (1, 1 + channels, *SHAPE)


@pytest.mark.parametrize("kind", ["nii", "npy"])
def test_signed_bytes_have_one_scale_for_the_volume(tmp_path, kind):
    """They were stretched plane by plane."""
    _, labels = blob(0)
    ramp = np.broadcast_to(np.linspace(-100, 100, 6)[:, None, None], SHAPE).astype("i1")
    write(tmp_path, "a", None, labels)
    if kind == "nii":
        nibabel.save(as_nifti(ramp), tmp_path / "images" / "a.nii")
    else:
        np.save(tmp_path / "images" / "a.npy", ramp)
    levels = load(tmp_path).image_batch([0])[0, 0].numpy()
    assert np.allclose(levels[:, 0, 0], np.linspace(0, 1, 6), atol=0.003)
    assert np.array_equal(levels, np.broadcast_to(levels[:, :1, :1], SHAPE))


def test_masks_by_class_may_overlap(tmp_path):
    image, labels = blob(0)
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", image)
    parts = {"ball": labels > 0, "box": labels == 5}
    for name, mask in parts.items():
        (tmp_path / "masks" / name).mkdir(parents=True)
        np.save(tmp_path / "masks" / name / "a.npy", mask)
    data = load(tmp_path)
    assert data.classes == ("ball", "box")
    assert np.array_equal(data.target_batch([0])[0, :2].numpy().astype(bool), [*parts.values()])
    assert data.shown(0) == [0, 1]


def test_8_and_16_bits_and_grey_and_colour(tmp_path):
    image, labels = blob(0)
    write(tmp_path, "a", image, labels)
    write(tmp_path, "b", image.astype("u2") * 100, labels)
    colour = np.stack([image, image, 255 - image], axis=-1)
    (tmp_path / "images").mkdir(exist_ok=True)
    write_pages(tmp_path / "images" / "c.tif", colour)
    colour[2] = image[2][..., None]  # one page is grey
    write_pages(tmp_path / "images" / "d.tif", colour)
    data = load(tmp_path)
    assert data.images.shape == (4, 3, *SHAPE)
    assert data.images.dtype == torch.uint16
    assert np.array_equal(data.images[0].numpy(), [image.astype(int) * 257] * 3)
    assert data.images[1].numpy().max() == 65535
    assert np.array_equal(data.images[2].numpy(), colour_levels(255 - image, image))
    assert np.array_equal(data.images[3, 2, 2].numpy(), image[2].astype(int) * 257)


def colour_levels(blue, others):
    return [others.astype(int) * 257, others.astype(int) * 257, blue.astype(int) * 257]


def test_channels_in_files_and_along_the_fifth_axis(tmp_path):
    image, labels = blob(0)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "nnunet" / folder).mkdir(parents=True)
    for k, planes in enumerate((image, 255 - image)):
        nibabel.save(as_nifti(planes), tmp_path / f"nnunet/imagesTr/a_{k:04d}.nii.gz")
    nibabel.save(as_nifti(labels), tmp_path / "nnunet/labelsTr/a.nii.gz")
    (tmp_path / "nnunet/dataset.json").write_text(
        '{"labels": {"background": 0, "ball": 2, "box": 5}, "file_ending": ".nii.gz"}'
    )
    data = load(tmp_path / "nnunet")
    assert np.array_equal(data.images[0].numpy(), [image, 255 - image])
    assert np.array_equal(truth(data, 0), [labels == 2, labels == 5])
    write(tmp_path / "fifth", "a", image, labels)
    both = np.stack([as_nifti(planes).get_fdata() for planes in (image, 255 - image)], axis=-1)
    file = nibabel.Nifti1Image(both[:, :, :, None].astype("u1"), np.eye(4))
    nibabel.save(file, tmp_path / "fifth/images/a.nii.gz")
    assert torch.equal(load(tmp_path / "fifth").images, data.images)


# ---- what is wrong --------------------------------------------------------------------------


def test_a_single_plane_is_no_volume(volumes):
    image, labels = blob(0)
    write(volumes, "flat", image[:1], labels[:1])
    refused(volumes, "flat.nii.gz is a single plane", "`dimensions` 2")
    problems = Problems(collect=True)
    assert len(load(volumes, problems=problems)) == 4
    assert len(problems.found) == 1


@pytest.mark.parametrize("kind", ["nii.gz", "mha"])
def test_a_time_axis_is_named(tmp_path, kind):
    image, labels = blob(0)
    write(tmp_path, "a", image, labels)
    several = np.stack([image, image])
    if kind == "mha":
        write_itk(tmp_path / "images" / "b.mha", several, (1, 1, 1, 1), (0, 0, 0, 0))
    else:
        file = nibabel.Nifti1Image(several.transpose(3, 2, 1, 0), np.eye(4))
        nibabel.save(file, tmp_path / "images" / "b.nii.gz")
    refused(tmp_path, f"b.{kind}: has shape", "time", "a file of its own")


@pytest.mark.parametrize("kind", ["nii.gz", "mha"])
@pytest.mark.parametrize(
    ("spacing", "corner", "words"),
    [
        ((3, 1, 1), (9, 5, 0), "1 voxels apart"),
        ((3, 1, 1), (8, 5, 3), "1 voxels apart"),
        ((3, 1, 1.1), (8, 5, 0), "2.3 voxels apart"),
        ((3, 1, 1), (8.3, 5, 0.4), None),
    ],
)
def test_a_mask_on_another_grid_is_refused(tmp_path, kind, spacing, corner, words):
    image, labels = blob(0)
    for part, planes, *grid in (
        ("images", image, (3, 1, 1), (8, 5, 0)),
        ("masks", labels, spacing, corner),
    ):
        (tmp_path / part).mkdir()
        path = tmp_path / part / f"a.{kind}"
        if kind == "mha":
            write_itk(path, planes, *grid)
        else:
            nibabel.save(as_nifti(planes, *grid), path)
    if words is None:
        assert len(load(tmp_path)) == 1
    else:
        refused(tmp_path, f"a.{kind}, of 3x1x1", "another grid", words, "Resample")


def test_a_mask_made_from_an_array_alone_is_taken(tmp_path):
    image, labels = blob(0)
    write(tmp_path, "a", image, labels, spacing=(3, 1, 1))
    nibabel.save(as_nifti(labels), tmp_path / "masks" / "a.nii.gz")
    assert load(tmp_path).annotated == [0]


def test_a_mask_of_other_planes_or_orientation_is_refused(volumes):
    image, labels = blob(0)
    write(volumes, "v0", image, labels[:-1], spacing=(3, 1, 1))
    refused(volumes, "v0.nii.gz has 5 planes, its image", "more")
    write(volumes, "v0", image, labels, spacing=(3, 1, 1))
    turned = nibabel.Nifti1Image(image.transpose(0, 2, 1), np.eye(4)[[0, 2, 1, 3]])
    nibabel.save(turned, volumes / "images" / "v0.nii.gz")
    refused(volumes, "v0.nii.gz run RAS in the patient, those of its image v0.nii.gz RSA")


def test_planes_of_different_sizes_are_no_volume(tmp_path):
    image, labels = blob(0)
    for part, planes in (("images", image), ("masks", labels)):
        (tmp_path / part).mkdir()
        write_pages(tmp_path / part / "a.tif", planes)
    write_pages(tmp_path / "images" / "b.tif", [image[0], image[1, 1:]])
    refused(tmp_path, "the planes of", "b.tif differ in size")


def test_an_uneven_series_is_named(tmp_path):
    image, labels = blob(0)
    write_series(tmp_path / "images", image, places=[0, 2, 4, 8, 10, 12])
    (tmp_path / "masks").mkdir()
    for k, plane in enumerate(labels):
        Image.fromarray(plane).save(tmp_path / "masks" / f"s{len(labels) - k}.png")
    refused(tmp_path, "the 6 slices of the series of", "equal distances", "`spacing` original")
    data = load(tmp_path, spacing="original")
    assert data.spacings == [None]
    assert data.images.shape[2:] == SHAPE


def test_a_volume_with_masks_of_some_planes_is_named(tmp_path):
    image, labels = blob(0)
    write_series(tmp_path / "images", image)
    (tmp_path / "masks").mkdir()
    for k in range(2):
        Image.fromarray(labels[k]).save(tmp_path / "masks" / f"s{len(labels) - k}.png")
    refused(
        tmp_path, "2 of 6 planes of the volume", "have masks", "s4.dcm has none", "none of them"
    )


def test_a_slice_that_cannot_be_read_takes_its_volume(tmp_path):
    image, labels = blob(0)
    write_series(tmp_path / "images", image)
    write(tmp_path, "whole", image, labels)
    path = tmp_path / "images" / "s3.dcm"
    path.write_bytes(path.read_bytes()[:-100])  # its header is whole
    problems = Problems(collect=True)
    data = load(tmp_path, problems=problems)
    assert data.ids == ["whole"]
    assert len(problems.found) == 1
    assert "s3.dcm" in problems.found[0]
