"""Patches of images of several sizes: what is read of them, where they lie, how views align."""

import copy

import numpy as np
import pytest
import torch

import tcwarp
from tcseg.data import Dataset
from tcseg.evaluation import metrics
from tcseg.evaluation.evaluate import evaluate, validation_miou
from tcseg.method.network import Segmentation
from tcseg.method.transforms import Affine, Compose, Elastic, Intensity, align
from tcseg.method.variants import METHODS
from tcseg.training import distributed
from tcseg.training.batches import ABOUT_STRUCTURES, Batches, Patches

PATCH = (32, 48)
SIZES = [(40, 100), (90, 48), (64, 64), (90, 100)]
ELASTIC = Elastic(displacement_std=16.0, identity_probability=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dataset(kind=torch.uint16):
    """Noise of several sizes, a pixel of each marked in its last row; beyond them all is white."""
    most = 255 if kind == torch.uint8 else 65535
    images = torch.full((4, 2, 90, 100), most, dtype=torch.int32)
    masks = torch.full((4, 1, 90, 100), 255, dtype=torch.uint8)
    for index, (height, width) in enumerate(SIZES):
        noise = torch.randint(most // 2, (2, height, width), generator=seeded(index))
        images[index, :, :height, :width] = noise.to(torch.int32)
        masks[index, 0, :height, :width] = 0
        masks[index, 0, height - 1, 3] = 1
    return Dataset(
        name="folder",
        ids=list("abcd"),
        classes=("dot",),
        images=images.to(kind),
        masks=masks,
        extents=torch.tensor(SIZES),
    )


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(
    "transform",
    [ELASTIC, Compose([Affine(identity_probability=0.0), ELASTIC, Intensity(noise=0.0)])],
    ids=["elastic", "all"],
)
def test_a_deformed_patch_is_read_from_the_whole_image(kind, transform):
    data, indices = dataset(kind), torch.tensor([0, 1, 2, 3] * 4)
    patches = Patches(data, range(4), (), PATCH)
    window, inside = patches.draw(indices, 8, seeded())
    images, labels = data.image_batch(indices, window), data.mask_batch(indices, window)
    assert images.shape == (16, 2, 64, 96)
    assert images.max() < 0.51  # nothing beyond the images
    # A window of 64 rows is inside where its places are not those of a repeated border.
    steps = window[0].diff(dim=1).sum(dim=1) + 1
    assert torch.equal(inside[:, 0].amax(dim=2).sum(dim=1), steps)
    plain = transform.sample(16, PATCH, seeded(1))
    views, targets = plain.image(images), plain.label(labels)
    assert views.shape == (16, 2, *PATCH)
    for row, index in enumerate(indices.tolist()):
        height, width = SIZES[index]
        whole = data.image_batch([index])[..., :height, :width]
        corner = torch.stack([window[0][row, 16], window[1][row, 24]]).view(1, 2, 1, 1)
        field = corner + plain.displacement[[row]]
        expected = tcwarp.warp(whole, field, mode="cubic", padding_mode="border")
        if plain.adjust is not None:
            expected = plain.adjust(expected.expand(16, -1, -1, -1))[[row]]
        torch.testing.assert_close(views[[row]], expected, rtol=0, atol=2e-4)
        marks = data.mask_batch([index])[..., :height, :width]
        expected = tcwarp.warp(marks, field, padding_mode="border")
        assert (targets[[row]] != expected).float().mean() < 1e-3  # but for ties


def test_views_of_one_patch_align():
    grid = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij"))
    places = grid.expand(6, -1, -1, -1)
    t1, t2 = (ELASTIC.sample(6, PATCH, seeded(seed)) for seed in (1, 2))
    aligned, wanted = align(t1.motion(slice(6)), t2, t1.label(places)), t2.label(places)
    inside = tcwarp.valid_mask(tcwarp.align(t1.displacement, t2.displacement))
    assert inside.float().mean() > 0.7
    off = (aligned - wanted).abs().amax(dim=1)[inside]
    assert off.max() <= 2  # each is rounded, at most one pixel away
    assert off.mean() < 0.8


def test_patches_lie_anywhere_and_often_about_structures():
    data = dataset()
    patches = Patches(data, [3], [2], PATCH)
    (rows, columns), _ = patches.draw(torch.full((4000,), 3), 2000, seeded())
    tops, lefts = rows[:, 16], columns[:, 24]
    assert {*tops.tolist()} == {*range(90 - 32 + 1)}
    assert {*lefts.tolist()} == {*range(100 - 48 + 1)}
    seen = (tops == 58) & (lefts <= 3)  # the one pixel is in it
    about = seen[:2000].float().mean()
    assert about == pytest.approx(ABOUT_STRUCTURES, abs=0.04)
    assert seen[2000:].float().mean() < 0.01


def test_images_without_structures_have_patches_anywhere():
    data = dataset()
    data.masks[2] = 0
    patches = Patches(data, [2, 3], (), PATCH)
    (rows, _), _ = patches.draw(torch.full((500,), 2), 500, seeded())
    assert rows[:, 16].float().mean() == pytest.approx(16, abs=1)


def test_an_image_smaller_than_a_patch_is_named():
    with pytest.raises(ValueError, match="`patch` 32 x 64 is larger than the image b, 90 x 48"):
        Patches(dataset(), [0], [1], (32, 64))
    Patches(dataset(), [0], [], (32, 64))  # it is not trained on


def test_processes_share_the_patches_of_a_batch(monkeypatch):
    def draw():
        data = dataset()
        batches = Batches(data, [0, 1], [2, 3], 4, seeded(), PATCH)
        images, labels, (view,), inside = batches.draw(METHODS["semitc"], [ELASTIC])
        drawn = view.sample(len(images), PATCH, seeded(5))
        seen = torch.cat([drawn.image(images), drawn.label(inside)], dim=1)
        return seen, drawn.motion(slice(len(labels))).label(labels)

    images, labels = draw()
    parts = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(draw())
    of_images, of_labels = zip(*parts, strict=True)
    order = torch.tensor([0, 2, 1, 3])  # labelled and unlabelled ones of each
    torch.testing.assert_close(torch.cat(of_images)[order], images, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat(of_labels), labels)


# ---- prediction -----------------------------------------------------------------------------


class Same(torch.nn.Module):
    """Gives the standardised image itself."""

    def forward(self, images):
        assert images.shape[-2:] == PATCH
        return torch.cat([images + 3, -images], dim=1)


@pytest.mark.parametrize("shape", [(32, 48), (32, 96), (80, 120), (20, 24), (20, 120), (48, 30)])
def test_sliding_covers_images_of_any_shape(shape):
    # Patches are half a patch apart, so that each has the same columns in another order.
    stripes = (torch.arange(shape[1]) % 12 >= 6).float()
    image = stripes.expand(2, 1, *shape)
    with torch.inference_mode():
        found = Segmentation(Same(), patch=PATCH)(image)
    assert found.shape == (2, 2, *shape)
    assert torch.equal(found[:, :1] > 0.5, image > 0.5)
    if shape[1] % 24 == 0 and shape[1] >= 48:
        expected = torch.sigmoid((image - 0.5) / 0.501)  # standardised
        torch.testing.assert_close(found[:, :1], expected, rtol=0, atol=2e-3)


def test_a_compiled_backbone_slides_as_any():
    plain = Segmentation(Same(), patch=PATCH)
    compiled = copy.deepcopy(plain)
    shapes = []

    def backend(graph, inputs):
        shapes.extend(x.shape[2:] for x in inputs if isinstance(x, torch.Tensor))
        return graph

    torch._dynamo.reset()
    compiled.backbone.compile(backend=backend, dynamic=False)
    for size in (PATCH, (80, 120), (48, 30)):
        image = torch.rand(2, 1, *size)
        torch.testing.assert_close(compiled(image), plain(image))
    assert set(shapes) == {PATCH}


@pytest.mark.filterwarnings("error")
def test_an_image_of_one_pixel_has_no_deviation():
    found = Segmentation(torch.nn.Conv2d(1, 2, 1))(torch.ones(2, 1, 1, 1))
    assert found.isfinite().all()


def test_figures_are_those_of_the_images_without_what_lies_beyond():
    data = dataset()
    for index, (height, width) in enumerate(SIZES):
        data.images[index, :, :height, :width] = 0
        data.masks[index] = 0
        data.masks[index, 0, height - 20 : height, 5:width] = 1

    class Bright(torch.nn.Module):
        """Misses the first rows of what is marked, which the last ones stand for here."""

        def forward(self, images):
            found = torch.zeros(len(images), 2, *images.shape[-2:])
            found[:, 0, -18:, 7:] = 1
            return found

    expected = []
    for height, width in SIZES:
        true, found = np.zeros((2, height, width), bool)
        true[-20:, 5:], found[-18:, 7:] = True, True
        expected.append((metrics.iou(found, true), metrics.contour_distance(found, true, 1.0)))
    results = evaluate(Bright(), data, range(4))
    for image, (overlap, distance) in zip(results["images"], expected, strict=True):
        assert image["iou"]["dot"] == pytest.approx(overlap)
        assert image["macd_px"]["dot"] == pytest.approx(distance)
    assert validation_miou(Bright(), data, range(4)) == pytest.approx(results["miou"])
