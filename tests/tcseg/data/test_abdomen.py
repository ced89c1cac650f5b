"""The phantom of volumes: reproducible, anatomically right, varied."""

import numpy as np
import pytest
import torch
from skimage.measure import label

from tcseg.data.phantom import abdomen
from tcseg.data.phantom.abdomen import FIELD_OF_VIEW_MM, make_volume
from tcseg.data.phantom.population import load, undrawn

LIVER, KIDNEYS, SPINE, AORTA = range(4)
SIZE = 48


@pytest.fixture(scope="module")
def volumes():
    """Images and masks of all volumes at 48 voxels a side."""
    pairs = [make_volume(index, SIZE) for index in range(abdomen.COUNT)]
    return np.stack([image for image, _ in pairs]), np.stack([masks for _, masks in pairs])


def centres(masks, axis):
    """Centres of masks (..., D, H, W) along an axis, 0 to 1 over the field of view."""
    size = masks.shape[axis - 3]
    profile = masks.sum(tuple({-3, -2, -1} - {axis - 3}))
    return (profile * (np.arange(size) + 0.5)).sum(-1) / profile.sum(-1) / size


def test_number_and_seed_decide_the_volume():
    image, masks = make_volume(2, 32)
    assert image.shape == (32, 32, 32)
    assert image.dtype == np.uint8
    assert masks.shape == (4, 32, 32, 32)
    assert masks.dtype == np.bool_
    again, fewer = load(32, 3, count=4), load(32, 3, count=3)
    assert np.array_equal(image, again.images[2, 0].numpy())
    assert torch.equal(again.images[:3], fewer.images)
    assert torch.equal(again.masks[:3], fewer.masks)
    for other in (make_volume(3, 32), make_volume(2, 32, seed=1)):
        assert not np.array_equal(other[1], masks)
        assert np.abs(other[0].astype(int) - image).mean() > 5


def test_load_packs_the_masks_of_each_volume():
    data = load(32, 3, count=3)
    assert data.ids == undrawn(3, 3).ids == [f"phantom00{number}" for number in range(3)]
    assert data.classes == undrawn(3).classes == abdomen.CLASSES
    assert len(undrawn(3)) == abdomen.COUNT
    assert undrawn(3).spacings is None
    assert data.images.shape == data.masks.shape == (3, 1, 32, 32, 32)
    assert data.images.dtype == data.masks.dtype == torch.uint8
    assert data.spacings == [(FIELD_OF_VIEW_MM / 32,) * 3] * 3
    bits = data.masks[:, 0].numpy()[:, None] >> np.arange(4)[:, None, None, None] & 1
    for index in range(3):
        assert np.array_equal(bits[index] > 0, make_volume(index, 32)[1])


@pytest.mark.parametrize("index", [0, 5])
@pytest.mark.parametrize("size", [32, 41, 96])
def test_size_changes_the_resolution_only(size, index):
    image, masks = make_volume(index, size)
    fine_image, fine_masks = make_volume(index, 64)
    share, fine_share = masks.mean((1, 2, 3)), fine_masks.mean((1, 2, 3))
    np.testing.assert_allclose(share[:AORTA], fine_share[:AORTA], rtol=0.06)
    # Three voxels across at 32, about 200 in all, of which a few more or less are inside.
    np.testing.assert_allclose(share[AORTA], fine_share[AORTA], rtol=0.1)
    assert abs(image.mean() - fine_image.mean()) < 1
    for axis in range(3):
        np.testing.assert_allclose(centres(masks, axis), centres(fine_masks, axis), atol=0.01)


def test_anatomy_is_that_of_an_abdomen(volumes):
    images, masks = volumes
    share = masks.mean((2, 3, 4))
    assert (share.min(0) > [0.012, 0.004, 0.01, 0.003]).all(), "every structure is there"
    assert (share.max(0) < [0.12, 0.036, 0.05, 0.02]).all()
    z, y, x = (centres(masks, axis) for axis in range(3))
    # Seen from the feet, as usual, the patient's left is at the right, the back below.
    assert (x[:, LIVER] < x[:, SPINE]).all()
    for kidneys, spine in zip(masks[:, KIDNEYS], (x[:, SPINE] * SIZE).astype(int), strict=True):
        sides = kidneys[..., :spine].sum(), kidneys[..., spine:].sum()
        assert min(sides) > 0.3 * kidneys.sum()
        assert not kidneys[..., spine].any()
    assert (y[:, AORTA] < y[:, SPINE]).all(), "the aorta lies in front of the spine"
    assert (z[:, LIVER] > z[:, KIDNEYS]).mean() > 0.9
    ends = masks[:, [SPINE, AORTA]][:, :, [0, -1]].any((3, 4))
    assert ends.mean() > 0.95, "tubes go through the whole volume"
    air = np.stack([images[:, :2, :2], images[:, -2:, :2]])
    assert air.mean() < 25


def test_structures_overlap_by_little(volumes):
    masks = volumes[1]
    common = np.einsum("ncv,nkv->nck", *2 * [masks.reshape(len(masks), 4, -1).astype(np.float32)])
    areas = np.einsum("ncc->nc", common)
    share = (common - np.einsum("nc,ck->nck", areas, np.eye(4))) / areas[:, :, None]
    assert share.max() < 0.2
    assert (share[:, LIVER, KIDNEYS] > 0).mean() > 0.2


def test_structures_are_in_one_piece(volumes):
    for masks in volumes[1]:
        for structure, mask in enumerate(masks):
            pieces = np.sort(np.bincount(label(mask).ravel())[1:])
            assert pieces[-2 if structure == KIDNEYS else -1 :].sum() > 0.9 * pieces.sum()


def test_patients_and_scans_vary(volumes):
    images, masks = volumes
    share = masks.mean((2, 3, 4))
    assert (share.std(0) / share.mean(0) > 0.12).all()
    for axis in range(3):
        assert (centres(masks[:, :2], axis).std(0) > 0.015).all()
    greys = np.array(
        [[image[mask].mean() for mask in of] for image, of in zip(images, masks, strict=True)]
    )
    assert (greys.std(0) > 15).all()
    # No organ is told by its grey: each is the brighter one in many patients and not in others.
    liver_over_kidney = (greys[:, LIVER] > greys[:, KIDNEYS]).mean()
    aorta_over_spine = (greys[:, AORTA] > greys[:, SPINE]).mean()
    assert 0.1 < liver_over_kidney < 0.9
    assert 0.1 < aorta_over_spine < 0.9
