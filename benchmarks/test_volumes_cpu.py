"""Elastic deformation of one volume as users of other libraries call it, and its parts.

The libraries draw fields of different laws, so results cannot be equal: each is checked to move
the volume.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tcwarp
from benchmarks import peers
from benchmarks.conftest import Compare

SIDES = (96, 128)


def waves(side: int) -> Tensor:
    """Smooth waves, (1, 1, side, side, side) in [0, 1]."""
    z, y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 3, indexing="ij")
    return (0.5 + 0.2 * (z / 9).sin() + 0.15 * (y / 8).sin() + 0.15 * (x / 10).sin())[None, None]


def assert_moves(result: Any, volume: Tensor) -> None:
    """The same size, other values, none of them far outside the range."""
    moved = torch.as_tensor(np.asarray(result)).reshape(volume.shape)
    assert (moved - volume).abs().mean() > 1e-3
    assert moved.min() > -0.2
    assert moved.max() < 1.2


def run(compare: Compare, side: int, peer: str, make: Any, mode: tcwarp.Mode = "linear") -> None:
    volume = waves(side)
    deform = tcwarp.RandomElastic(mode=mode, sigma=side / 8, displacement_std=side / 40)
    theirs = make(volume)

    def ours() -> Any:
        return deform(volume)

    assert_moves(ours(), volume)
    assert_moves(theirs(), volume)
    compare(f"RandomElastic, {side}^3, {mode}", ours, peer, theirs, rounds=3)


@pytest.mark.parametrize("side", SIDES)
def test_monai(compare: Compare, side: int) -> None:
    transforms = pytest.importorskip("monai.transforms", reason=peers.MISSING.format("monai"))

    def make(volume: Tensor) -> Any:
        deform = transforms.Rand3DElastic(
            sigma_range=(5, 5), magnitude_range=(100, 200), prob=1.0, padding_mode="border"
        )
        return lambda: deform(volume[0])

    run(compare, side, "MONAI Rand3DElastic, sigma 5", make)


@pytest.mark.parametrize("side", SIDES)
def test_torchio(compare: Compare, side: int) -> None:
    torchio = pytest.importorskip("torchio", reason="pip install torchio", exc_type=ImportError)

    def make(volume: Tensor) -> Any:
        deform = torchio.RandomElasticDeformation(max_displacement=7.5)
        image = torchio.ScalarImage(tensor=volume[0])
        return lambda: deform(image).data

    run(compare, side, "TorchIO RandomElasticDeformation", make)


@pytest.mark.parametrize(("order", "mode"), [(1, "linear"), (3, "cubic")])
@pytest.mark.parametrize("side", SIDES)
def test_batchgenerators(compare: Compare, side: int, order: int, mode: tcwarp.Mode) -> None:
    spatial = pytest.importorskip(
        "batchgenerators.augmentations.spatial_transformations",
        reason="pip install batchgenerators",
        exc_type=ImportError,
    )

    def make(volume: Tensor) -> Any:
        array = volume.numpy()
        options = {"alpha": (200.0, 400.0), "sigma": (9.0, 13.0), "do_rotation": False}
        options |= {"do_scale": False, "random_crop": False, "order_data": order}
        options["border_mode_data"] = "nearest"
        return lambda: spatial.augment_spatial(array, None, (side,) * 3, **options)[0]

    run(compare, side, f"batchgenerators augment_spatial, order {order}", make, mode)


@pytest.mark.parametrize(
    "part", ["field", "linear warp", "cubic warp", "alignment", "nearest warp"]
)
@pytest.mark.parametrize("side", SIDES)
def test_parts(compare: Compare, side: int, part: str) -> None:
    """Fields, alignment and its warp, against all of MONAI's deformation."""
    transforms = pytest.importorskip("monai.transforms", reason=peers.MISSING.format("monai"))
    volume = waves(side)
    theirs = transforms.Rand3DElastic(
        sigma_range=(5, 5), magnitude_range=(100, 200), prob=1.0, padding_mode="border"
    )
    field: dict[str, Any] = {"sigma": side / 8, "displacement_std": side / 40}
    first, second = (tcwarp.random_displacement(1, (side,) * 3, **field) for _ in range(2))
    aligned = tcwarp.align(first, second)
    carried = tcwarp.warp(tcwarp.warp(volume, first, mode="cubic"), aligned, mode="linear")
    inner = tcwarp.valid_mask(aligned)[0] & tcwarp.valid_mask(second)[0]
    assert (carried - tcwarp.warp(volume, second, mode="cubic"))[0, 0][inner].abs().mean() < 0.01
    ours: dict[str, Any] = {
        "field": lambda: tcwarp.random_displacement(1, (side,) * 3, **field),
        "linear warp": lambda: tcwarp.warp(volume, first, mode="linear"),
        "cubic warp": lambda: tcwarp.warp(volume, first, mode="cubic"),
        "alignment": lambda: tcwarp.align(first, second),
        "nearest warp": lambda: tcwarp.warp(volume, aligned),
    }
    peer = "MONAI Rand3DElastic, all of it"
    compare(f"{part}, {side}^3", ours[part], peer, lambda: theirs(volume[0]), rounds=3)
