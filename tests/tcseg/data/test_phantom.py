"""The phantom: reproducible, anatomically right, varied; and the packing of masks."""

import numpy as np
import pytest
import torch
from skimage.measure import label

from tcseg.data import CLASSES, load_dataset, pack_masks, unpack_masks
from tcseg.data.phantom.population import load, make_phantom
from tcseg.errors import DataError

LEFT_LUNG, RIGHT_LUNG, HEART, LEFT_CLAVICLE, RIGHT_CLAVICLE = range(5)


@pytest.fixture(scope="module")
def phantoms():
    """Images and masks of 40 phantoms at 128 pixels."""
    pairs = [make_phantom(i, 128) for i in range(40)]
    return np.stack([image for image, _ in pairs]), np.stack([masks for _, masks in pairs])


def test_number_and_seed_decide_the_image():
    image, masks = make_phantom(7, 64)
    again = load(64, count=9)
    assert np.array_equal(image, again.images[7, 0].numpy())
    assert torch.equal(pack_masks(masks), again.masks[7])
    assert np.array_equal(image, load(64, count=8).images[7, 0].numpy())
    for other in (make_phantom(8, 64), make_phantom(7, 64, seed=1)):
        assert not np.array_equal(other[1], masks)
        assert np.abs(other[0].astype(int) - image).mean() > 5


@pytest.mark.parametrize("size", [32, 50, 128, 300, 512])
def test_size_changes_the_resolution_only(size):
    image, masks = make_phantom(3, size)
    fine_image, fine_masks = make_phantom(3, 256)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert masks.shape == (5, size, size)
    assert masks.dtype == np.bool_
    area, fine_area = masks.mean((1, 2)), fine_masks.mean((1, 2))
    np.testing.assert_allclose(area[:3], fine_area[:3], rtol=0.06)
    np.testing.assert_allclose(area[3:], fine_area[3:], rtol=0.35)  # a pixel or two thick at 32
    assert abs(image.mean() - fine_image.mean()) < 4
    for mask, fine in zip(masks, fine_masks, strict=True):
        centre = (np.argwhere(mask) + 0.5).mean(0) / size
        fine_centre = (np.argwhere(fine) + 0.5).mean(0) / 256
        np.testing.assert_allclose(centre, fine_centre, atol=max(0.01, 0.7 / size))


def test_anatomy_is_that_of_a_chest_radiograph(phantoms):
    images, masks = phantoms
    assert masks.any((2, 3)).all(), "every structure is in every image"
    x = (masks * np.arange(128)).sum((2, 3)) / masks.sum((2, 3))
    y = (masks * np.arange(128)[:, None]).sum((2, 3)) / masks.sum((2, 3))
    # As in JSRT: the patient's right is at the left of the image, the heart left of the midline.
    assert (x[:, RIGHT_LUNG] < 64).all()
    assert (x[:, LEFT_LUNG] > 64).all()
    assert (x[:, RIGHT_CLAVICLE] < x[:, HEART]).all()
    assert (x[:, LEFT_CLAVICLE] > x[:, HEART]).all()
    assert x[:, HEART].mean() > 66
    assert (y[:, 3:].max(1) < y[:, :2].min(1)).all(), "clavicles above the middle of the lungs"
    area = masks.mean((0, 2, 3))
    assert 0.12 < area[LEFT_LUNG] < area[RIGHT_LUNG] < 0.20
    assert 0.06 < area[HEART] < 0.12
    assert ((area[3:] > 0.006) & (area[3:] < 0.013)).all()
    lungs = masks[:, :2].any(1)
    for clavicle in (LEFT_CLAVICLE, RIGHT_CLAVICLE):
        share = (masks[:, clavicle] & lungs).sum((1, 2)) / masks[:, clavicle].sum((1, 2))
        assert 0.78 < share.mean() < 0.92
    heart = np.array([image[mask[HEART]].mean() for image, mask in zip(images, masks, strict=True)])
    air = np.array([image[lung].mean() for image, lung in zip(images, lungs, strict=True)])
    assert (heart > air).all(), "the heart is brighter than the lungs"


def test_structures_are_in_one_piece(phantoms):
    for masks in phantoms[1]:
        for mask in masks:
            pieces = np.bincount(label(mask, connectivity=2).ravel())[1:]
            assert pieces.max() > 0.95 * pieces.sum()


def test_patients_and_exposures_vary(phantoms):
    images, masks = phantoms
    area = masks.mean((2, 3))
    assert (area.std(0) / area.mean(0) > 0.08).all()
    centres = (masks * np.arange(128)[:, None]).sum((2, 3)) / masks.sum((2, 3))
    assert (centres.std(0) > 2).all()
    assert images.mean((1, 2)).std() > 10
    lungs = np.array([i[m[:2].any(0)].mean() for i, m in zip(images, masks, strict=True)])
    assert lungs.std() > 15


def test_load_dataset_makes_the_whole_set():
    data = load_dataset("phantom", size=32)
    assert data.name == "phantom"
    assert len(data) == len(set(data.ids)) == 160
    assert data.classes == CLASSES
    assert data.images.shape == (160, 1, 32, 32)
    assert data.masks.shape == (160, 1, 32, 32)
    assert data.images.dtype == data.masks.dtype == torch.uint8
    assert data.spacing_of(0) == pytest.approx([0.175 * 2048 / 32] * 2)
    images, targets = data.image_batch([3, 5]), data.target_batch(torch.tensor([3, 5]))
    assert images.dtype == torch.float32
    assert torch.equal(images * 255, data.images[[3, 5]].float())
    assert targets.dtype == torch.uint8
    assert targets.shape == (2, 6, 32, 32)
    assert np.array_equal(targets[1, :5].numpy() > 0, make_phantom(5, 32)[1])


def test_packed_masks_come_back_with_the_background():
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((3, 5, 9, 7)) < 0.2)
    back = unpack_masks(pack_masks(masks), 5)
    assert torch.equal(back[:, :5], masks.to(torch.uint8))
    assert torch.equal(back[:, 5].bool(), ~masks.any(1))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("classes", [1, 8, 9, 200, 300])
def test_any_number_of_classes_is_packed(classes, exclusive):
    """The last pixel but one is of no class, the last one is to be ignored."""
    masks = torch.eye(classes + 2, dtype=torch.bool)[:, None, None, :]
    planes = masks[[*range(classes), classes + 1], 0]
    packed = pack_masks(planes, exclusive)
    whole = sum(packed[k].long() << 8 * k for k in range(len(packed)))
    if exclusive:
        assert whole.flatten().tolist() == [*range(1, classes + 1), 0, classes + 1]
    assert len(packed) == ((classes > 254) + 1 if exclusive else classes // 8 + 1)
    back = unpack_masks(packed[None], classes, exclusive)[0]
    assert torch.equal(back[:, 0].bool(), torch.eye(classes + 1, classes + 2, dtype=torch.bool))


@pytest.mark.parametrize("size", [0, 31, 4096])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(DataError, match=f"between 32 and 2048 pixels, got {size}"):
        load_dataset("phantom", size=size)


def test_unknown_data_set_is_refused():
    with pytest.raises(DataError, match="'montgomery'; expected phantom, jsrt or folder"):
        load_dataset("montgomery")
