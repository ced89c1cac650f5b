"""The operator among MONAI's transforms."""

import numpy as np
import pytest
import torch
from assertions import assert_bits_equal
from monai.data import (
    DataLoader,
    Dataset,
    MetaTensor,
    decollate_batch,
    list_data_collate,
    set_track_meta,
)
from monai.transforms import Compose, RandFlipd

import tcwarp
from tcwarp.monai import RandElasticd


def smooth(seed=0, shape=(1, 96, 80)):
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    image = tcwarp.gaussian_smooth(noise, 6.0)[0]
    return (image - image.min()) / (image.max() - image.min())


def item(seed=0, shape=(1, 96, 80)):
    image = smooth(seed, shape)
    return {"image": image, "label": (image > 0.5).to(torch.uint8), "name": "x"}


def elastic(**options):
    options = {"sigma": 12.0, "displacement_std": 3.0, "prob": 1.0} | options
    return RandElasticd(["image", "label"], mode=["cubic", "nearest"], **options)


def inner(tensor, margin=16):
    return tensor[(slice(None), *(slice(margin, -margin),) * (tensor.dim() - 1))]


def test_image_and_label_move_alike_and_keep_their_types():
    transform = elastic().set_random_state(3)
    data = item()
    moved = transform(data)
    assert moved["name"] == "x"
    assert isinstance(moved["image"], MetaTensor)
    assert moved["label"].dtype == torch.uint8
    agree = (moved["image"] > 0.5) == (moved["label"] > 0)
    assert agree.float().mean() > 0.97
    assert (moved["image"] - data["image"]).abs().mean() > 0.02
    field = transform._field(data["image"], transform._seed)
    expected = tcwarp.warp(data["label"][None], field, padding_mode="border")[0]
    assert_bits_equal(moved["label"].as_tensor(), expected, "label")


@pytest.mark.parametrize("shape", [(1, 96, 80), (2, 40, 44, 48)], ids=["2d", "3d"])
def test_the_inverse_brings_back_what_did_not_leave(shape):
    transform = elastic(sigma=10.0, displacement_std=2.0).set_random_state(1)
    data = item(0, shape)
    moved = transform(data)
    assert moved["image"].applied_operations
    back = transform.inverse(moved)
    assert not back["image"].applied_operations
    error = inner(back["image"] - data["image"], 8).abs()
    assert error.max() < 0.02
    assert inner(moved["image"] - data["image"], 8).abs().mean() > 10 * error.mean()
    assert (inner(back["label"], 8) != inner(data["label"], 8)).float().mean() < 0.02


def test_one_state_gives_one_result_and_prob_is_kept():
    one, other = (elastic().set_random_state(5)(item())["image"] for _ in range(2))
    assert torch.equal(one, other)
    transform = elastic(prob=0.3).set_random_state(0)
    data = item()
    moved = sum(not torch.equal(transform(data)["image"], data["image"]) for _ in range(200))
    assert 40 < moved < 80
    still = elastic(prob=0.0)(data)
    assert torch.equal(still["image"], data["image"])
    never = elastic(prob=0.0)
    assert torch.equal(never.inverse(never(data))["image"], data["image"])


def test_it_composes_loads_and_undoes_with_others():
    chain = Compose([RandFlipd(["image", "label"], prob=1.0, spatial_axis=0), elastic()])
    chain.set_random_state(2)
    loader = DataLoader(Dataset([item(k) for k in range(4)], chain), batch_size=2, num_workers=0)
    for batch in loader:
        for moved in decollate_batch(batch):
            back = chain.inverse(moved)
            original = smooth(0)
            assert back["image"].shape == original.shape
    data = item()
    back = chain.inverse(chain(data))
    assert inner(back["image"] - data["image"]).abs().max() < 0.05


def test_arrays_and_plain_tensors_are_taken():
    data = {name: np.asarray(v) for name, v in item().items() if name != "name"}
    moved = elastic().set_random_state(0)(data)
    assert moved["image"].shape == data["image"].shape
    set_track_meta(False)
    try:
        plain = elastic().set_random_state(0)(item())["image"]
        assert not isinstance(plain, MetaTensor)
        assert torch.equal(plain, moved["image"].as_tensor())
    finally:
        set_track_meta(True)


@pytest.mark.parametrize("wrong", [{"mode": "bicubic"}, {"padding_mode": "wrap"}])
def test_a_wrong_mode_is_refused_before_the_first_item(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"RandElasticd: {name} must be one of"):
        RandElasticd(["image"], **wrong)


def test_items_of_different_sizes_are_refused():
    """One field could not move both alike."""
    data = {"image": smooth(), "label": torch.ones(1, 9, 9)}
    with pytest.raises(ValueError, match=r"one spatial size.*'label': \(1, 9, 9\)"):
        elastic()(data)


def test_items_without_channels_are_refused():
    with pytest.raises(ValueError, match=r"RandElasticd: items must have.*'image': \(96, 80\)"):
        elastic(allow_missing_keys=True)({"image": smooth()[0]})


def test_points_of_numpy_are_collated_whether_they_were_moved_or_not():
    transform = RandElasticd(["image"], sigma=12.0, prob=0.5, point_keys="points")
    transform.set_random_state(0)
    item = {"image": np.ones((1, 32, 32), np.float32), "points": np.full((5, 2), 9.0)}
    items = [transform(item) for _ in range(12)]
    items.sort(key=lambda item: bool((item["points"] == 9).all()))  # those that moved first
    points = list_data_collate(items)["points"]
    assert points.shape == (12, 5, 2)
    assert 0 < (points != 9).any(dim=2).all(dim=1).sum() < 12


def test_wrong_points_are_refused_whether_they_are_moved_or_not():
    for prob in (0.0, 1.0):
        transform = RandElasticd(["image"], prob=prob, point_keys="points")
        with pytest.raises(ValueError, match="RandElasticd: points of 'points' must be a floating"):
            transform({"image": smooth(), "points": np.ones((5, 2), int)})


def test_points_may_be_lists():
    transform = RandElasticd(["image"], prob=1.0, point_keys="points").set_random_state(0)
    moved = transform({"image": smooth(), "points": [[9.0, 8.0]]})
    assert moved["points"].shape == (1, 2)


def test_sigmas_of_numpy():
    transform = RandElasticd(["image"], sigma=np.array([3.0, 6.0, 6.0]), prob=1.0)
    assert transform({"image": smooth(0, (1, 12, 20, 20))})["image"].shape == (1, 12, 20, 20)


def test_missing_keys():
    data = {"image": smooth()}
    with pytest.raises(KeyError):
        elastic()(data)
    assert set(elastic(allow_missing_keys=True)(data)) == {"image"}
