"""Volumes in pictures: three planes through the middle of a structure, figures of the whole."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from PIL import Image

from tcseg.data import Dataset
from tcseg.evaluation import pictures
from tcseg.evaluation.metrics import iou
from tcseg.evaluation.planes import Planes
from tcseg.method.transforms import Elastic, SampledTransform, align
from tcseg.training import preview as previews
from tcseg.use import report

SHAPE = (12, 20, 28)


def ellipsoid(centre, radii, shape=SHAPE):
    inside = zip(np.indices(shape), centre, radii, strict=True)
    return sum(((index - middle) / radius) ** 2 for index, middle, radius in inside) <= 1


def volumes(count=2, extents=None, **attributes):
    """Two overlapping ellipsoids in noise, which move from volume to volume."""
    generator = np.random.default_rng(0)
    images, masks = [], []
    for i in range(count):
        pair = [ellipsoid((5 + i, 8, 9), (4, 6, 7)), ellipsoid((6, 12, 18 - i), (3, 5, 4))]
        image = 60 * pair[0] + 90 * pair[1] + generator.integers(0, 50, SHAPE)
        images.append(image[None].astype(np.uint8))
        masks.append(np.packbits(pair, axis=0, bitorder="little"))
    return Dataset(
        name="folder",
        ids=[f"case {i}" for i in range(count)],
        classes=("large", "small"),
        images=torch.from_numpy(np.stack(images)),
        masks=torch.from_numpy(np.stack(masks)),
        extents=None if extents is None else torch.tensor(extents),
        **attributes,
    )


@pytest.fixture
def drawn(monkeypatch):
    """What `save_grid` is given, in place of a picture."""
    calls = []
    for module in (pictures, previews):
        monkeypatch.setattr(module, "save_grid", lambda path, rows, *_: calls.append(rows))
    return calls


# ---- planes ---------------------------------------------------------------------------------


def test_planes_are_those_of_the_volume_with_the_head_up():
    volume = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    picture = Planes(at=(1, 2, 3), sides=(3, 4, 5)).of_volume(volume)
    assert picture.shape == (2, 4 + 1 + 3, 5 + 1 + 3)
    assert np.array_equal(picture[:, :4, :5], volume[:, 1])
    assert np.array_equal(picture[:, 5:, :5], volume[:, ::-1, 2])
    assert np.array_equal(picture[:, :4, 6:], volume[:, ::-1, :, 3].transpose(0, 2, 1))
    assert not picture[:, 4].any() and not picture[:, :, 5].any() and not picture[:, 4:, 5:].any()


def test_planes_go_through_the_middle_of_the_largest_structure():
    ball = ellipsoid((5, 9, 10), (3, 3, 3))
    assert Planes.of(np.stack([ellipsoid((6, 9, 20), (2, 2, 2)), ball]), None).at == (5, 9, 10)
    assert Planes.of(np.zeros((2, *SHAPE), bool), None).at == (6, 10, 14)


def test_planes_hit_a_hollow_structure():
    """The centre of mass of a shell is outside it: here the nearest voxel is above or below."""
    shell = ellipsoid((5, 9, 12), (4, 8, 8)) & ~ellipsoid((5, 9, 12), (2.5, 6, 6))
    assert not shell[5, 9, 12]
    at = Planes.of(shell[None], None).at
    assert at in [(2, 9, 12), (8, 9, 12)]
    planes = Planes(at, SHAPE)
    assert all(plane.any() for plane in planes.cut(shell[None]))


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 0.5), (0.5, 0.5, 2.0)])
def test_a_ball_is_round_whatever_its_voxels(spacing):
    radius = 12  # mm
    shape = [round(2.5 * radius / side) for side in spacing]
    centre = [side // 2 for side in shape]
    ball = ellipsoid(centre, [radius / side for side in spacing], shape)[None]
    planes = Planes.of(ball, spacing)
    assert planes.sides == (60, 60, 60)  # 30 mm in pixels of 0.5 mm
    picture = planes.of_volume(ball)[0]
    assert picture.dtype == bool
    for plane in (picture[:60, :60], picture[-60:, :60], picture[:60, -60:]):
        sides = [np.ptp(np.flatnonzero(plane.any(axis=axis))) + 1 for axis in (0, 1)]
        # A voxel more or less at both ends.
        assert np.abs(np.array(sides) - 48).max() <= 2 * max(spacing)


def test_a_header_of_odd_sizes_makes_no_large_picture():
    planes = Planes.of(np.zeros((1, *SHAPE), bool), (1000.0, 1.0, 0.001))
    assert planes.sides == (1024, 2, 1)
    assert planes.of_volume(np.ones((1, *SHAPE), np.float32)).shape[1:] == (1047, 1046)


# ---- pictures of a data set -----------------------------------------------------------------


def test_what_is_beyond_a_volume_is_not_shown():
    dataset = volumes(2, extents=[SHAPE, (9, 15, 20)])
    dataset.images[1, :, 9:] = dataset.images[1, :, :, 15:] = dataset.images[1, ..., 20:] = 255
    images, truths = pictures.images_and_truths(dataset, [0, 1])
    assert images.shape == (2, 1, 20 + 1 + 12, 28 + 1 + 12)
    assert truths.shape == (2, 2, 20 + 1 + 12, 28 + 1 + 12)
    assert images[1].max() < 1
    z, y, x = Planes.of(dataset.target_batch([1])[0, :2, :9, :15, :20].numpy() > 0, None).at
    values = dataset.images[1, 0, :9, :15, :20].numpy() / np.float32(255)
    assert np.array_equal(images[1, 0, :15, :20], values[z])
    assert np.array_equal(images[1, 0, 16:25, :20], values[::-1, y])
    assert np.array_equal(images[1, 0, :15, 21:30], values[::-1, :, x].T)
    assert not images[1, :, 25:].any() and not images[1, :, :, 30:].any()


def test_masks_that_are_numbers_are_drawn_alike():
    dataset = volumes(1)
    large, small = dataset.target_batch([0])[0, :2].bool()
    bits = torch.stack([large, small & ~large]).to(torch.uint8)
    apart = dataclasses.replace(dataset, masks=(bits[0] + 2 * bits[1])[None, None])
    numbered = dataclasses.replace(apart, values=(1, 2))
    for kind in (apart, numbered):
        _, truths = pictures.images_and_truths(kind, [0])
        planes = Planes.of(bits.numpy().astype(bool), None)
        assert np.array_equal(truths[0], planes.of_volume(bits.numpy()) > 0)


def test_figures_of_a_panel_are_of_the_whole_volume(tmp_path, drawn):
    dataset = volumes()
    truth = dataset.target_batch([0, 1]).bool()
    wrong = truth.clone()
    for masks, each in zip(truth, wrong, strict=True):
        z, y, x = Planes.of(masks[:-1].numpy(), None).at
        each[:, torch.arange(12) != z] = False
        each[:-1, :, y], each[:-1, :, :, x] = masks[:-1, :, y], masks[:-1, :, :, x]
    pictures.save_panel(tmp_path / "p.png", dataset, [0, 1], {"a": truth, "b": wrong}, "title")
    for i, (image, true, right, missing) in enumerate(drawn[0]):
        assert image.image.shape == (1, 33, 41)
        assert right.note == "mIOU 100.0 %"
        figures = [iou(wrong[i, c], truth[i, c]) for c in range(2)]
        assert missing.note == f"mIOU {100 * np.mean(figures):.1f} %" != right.note
        assert true.masks.any()
        assert np.array_equal(true.masks, right.masks)
        assert np.array_equal(true.masks, missing.masks)  # alike in these planes
    with pytest.raises(ValueError, match=r"\(2, 3, 12, 20, 28\), got \(2, 3, 20, 28\) for 'a'"):
        pictures.save_panel(tmp_path / "p.png", dataset, [0, 1], {"a": truth[:, :, 0]}, "title")


def test_all_pictures_take_volumes_of_several_sizes(tmp_path):
    spacings = [(2.0, 1.0, 1.0), None]
    dataset = volumes(2, extents=[(12, 20, 24), (9, 20, 28)], spacings=spacings)
    predictions = dataset.target_batch([0, 1]).bool()
    pictures.save_panel(tmp_path / "a.png", dataset, [0, 1], {"a": predictions}, "title")
    pictures.save_contact_sheet(tmp_path / "b.png", dataset, [0, 1], "title")
    pictures.save_progress(tmp_path / "c.png", dataset, [0, 1], predictions)
    with Image.open(tmp_path / "c.png") as picture:
        width, height = 24 + 1 + 24, 20 + 1 + 24  # of the first, twice as deep in pixels
        factor = -(-192 // width)
        assert picture.size == (3 * factor * width, 2 * factor * height)


# ---- preview --------------------------------------------------------------------------------


def test_a_preview_of_volumes(tmp_path, drawn):
    dataset = dataclasses.replace(volumes(), spacings=[(2.0, 1.0, 1.0), None])
    transform = Elastic(displacement_std=20.0, identity_probability=0.0)
    agreement = previews.preview(tmp_path / "p.png", dataset, [1, 0], transform, 3, "title")
    generator = torch.Generator().manual_seed(3)
    t1, t2 = (transform.sample(2, SHAPE, generator) for _ in range(2))
    truth = dataset.target_batch([1, 0])
    goal, carried = (
        dataset.unpack(labels)[:, :2].numpy() > 0
        for labels in (
            t2.label(dataset.mask_batch([1, 0])),
            align(t1, t2, t1.label(dataset.mask_batch([1, 0]))),
        )
    )
    overlaps = [iou(*pair) for pair in zip(goal, carried, strict=True)]
    assert agreement == pytest.approx(np.mean(overlaps)) and agreement < 1
    seen = [t.image(dataset.image_batch([1, 0])).clamp(0, 1).numpy() for t in (t1, t2)]
    for i, (plain, mesh, first, second, last) in enumerate(drawn[0]):
        planes = Planes.of(truth[i, :2].numpy() > 0, dataset.spacing_of(1 - i))
        assert planes.sides == ((12, 20, 28), (24, 20, 28))[i]
        assert np.array_equal(plain.masks, planes.of_volume(truth[i, :2].numpy() > 0))
        assert np.array_equal(first.image, planes.of_volume(seen[0][i]))
        assert np.array_equal(second.image, planes.of_volume(seen[1][i]))
        assert np.array_equal(second.masks, planes.of_volume(goal[i]))
        assert np.array_equal(last.masks, planes.of_volume(carried[i]))
        assert last.note == f"IOU {overlaps[i]:.3f}"
        finer = mesh.image.shape[-1] // plain.image.shape[-1]
        assert mesh.image.shape == (1, *(finer * side for side in plain.image.shape[1:]))


def test_a_preview_of_patches_of_volumes(tmp_path, drawn, monkeypatch):
    """What is read is larger than the patch, which lies in its middle."""
    size = (6, 12, 16)
    patches = types.SimpleNamespace(shape=size, draw=lambda *_: (None, None))
    monkeypatch.setattr(previews, "Patches", lambda *_: patches)
    still = Elastic(displacement_std=0.0, identity_probability=1.0)
    assert previews.preview(tmp_path / "p.png", volumes(), [0, 1], still, 0, "", patch=32) == 1
    middle = volumes().image_batch([0, 1])[..., 3:9, 4:16, 6:22].numpy()
    truth = volumes().target_batch([0, 1])[:, :2, 3:9, 4:16, 6:22].numpy() > 0
    for i, row in enumerate(drawn[0]):
        planes = Planes.of(truth[i], None)
        for panel in (row[0], row[2], row[3]):
            np.testing.assert_allclose(panel.image, planes.of_volume(middle[i]), atol=1e-6)
            assert np.array_equal(panel.masks, planes.of_volume(truth[i]))
        assert row[1].note == "identity"


def test_a_preview_of_what_moves_no_pixel(tmp_path, drawn):
    class Nothing:
        def sample(self, batch, size, generator):
            return SampledTransform()

    assert previews.preview(tmp_path / "p.png", volumes(), [0], Nothing(), 0, "") == 1
    assert drawn[0][0][1].note == "identity"


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.0)])
def test_a_mesh_moves_against_a_constant_field(axis, spacing):
    """A field that reads further on along an axis moves what is seen back along it."""
    shape = (24, 40, 48)
    planes = Planes.of(np.zeros((1, *shape), bool), spacing)
    field = torch.zeros(3, *shape)
    still = previews._mesh_in(planes, field)[0]
    field[axis] = 1
    moved = previews._mesh_in(planes, field)[0]
    finer = len(still) // planes.of_volume(np.zeros((1, *shape), bool)).shape[1]
    depth, height, width = (finer * side for side in planes.sides)
    step = finer * planes.sides[axis] // shape[axis]
    for rows, columns, shifts in (  # by axis; in the picture D runs backwards
        (slice(0, height), slice(0, width), {1: (-step, 0), 2: (0, -step)}),
        (slice(-depth, None), slice(0, width), {0: (step, 0), 2: (0, -step)}),
        (slice(0, height), slice(-depth, None), {1: (-step, 0), 0: (0, step)}),
    ):
        expected = np.roll(still[rows, columns], shifts.get(axis, (0, 0)), (0, 1))
        inner = (slice(3 * step, -3 * step),) * 2
        assert expected[inner].max() > 0.5
        np.testing.assert_allclose(moved[rows, columns][inner], expected[inner], atol=1e-5)


# ---- report ---------------------------------------------------------------------------------


def test_a_report_shows_planes_of_truth_and_prediction(monkeypatch):
    dataset = volumes(3)
    predictions = dataset.target_batch([0, 1, 2]).bool().roll(1, -1)
    rows = [{"id": name, "miou": 0.9 - 0.1 * i} for i, name in enumerate(dataset.ids)]
    monkeypatch.setattr(report, "evaluate", lambda *_: {"images": rows})
    monkeypatch.setattr(report, "predict", lambda network, data, chosen: predictions[chosen])
    embedded = []
    monkeypatch.setattr(report, "png", lambda picture: embedded.append(picture) or b"")
    run = report._Run("name", {}, [])
    split = types.SimpleNamespace(test=[0, 1, 2])
    report._add_cases(run, types.SimpleNamespace(network=None), dataset, split)
    assert run.volumes and [heading for heading, _ in run.cases] == ["Best"]
    images, *masks = pictures.images_and_truths(dataset, [0, 1, 2], predictions)
    assert not np.array_equal(*masks)
    for picture, image, *pair in zip(embedded, images, *masks, strict=True):
        expected = pictures.side_by_side(image, pair, report.CASE_SIZE)
        assert np.array_equal(picture, expected)
