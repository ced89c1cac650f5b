"""Elastic deformation of one image as users of other libraries call it, and cubic splines.

The libraries draw fields of different laws, so results cannot be equal: each is checked to move
the image by pixels, and ours to be the sampler and the warp that the other benchmarks check.
"""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import tcwarp
from benchmarks import peers
from benchmarks.conftest import Compare

SIZE = (512, 512)


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Smooth waves, (1, 1, 512, 512) in [0, 1]."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SIZE), indexing="ij")
    return (0.5 + 0.25 * torch.sin(y / 20) + 0.25 * torch.sin(x / 25))[None, None]


def assert_moves(result: Any, image: Tensor) -> None:
    """The same size, other values, none of them far outside the range."""
    moved = torch.as_tensor(np.asarray(result)).reshape(SIZE)
    difference = (moved - image[0, 0]).abs()
    assert difference.mean() > 1e-3
    assert moved.min() > -0.2
    assert moved.max() < 1.2


def run(compare: Compare, image: Tensor, peer: str, theirs: Any, **field: Any) -> None:
    deform = tcwarp.RandomElastic(**field)

    def ours() -> Any:
        return deform(image)

    assert_moves(ours(), image)
    assert_moves(theirs(), image)
    compare(f"RandomElastic, 512 x 512, sigma {field['sigma']:g}", ours, peer, theirs, rounds=7)


def test_monai(compare: Compare, image: Tensor) -> None:
    transforms = pytest.importorskip("monai.transforms", reason=peers.MISSING.format("monai"))
    deform = transforms.Rand2DElastic(
        spacing=(30, 30), magnitude_range=(5, 6), prob=1.0, padding_mode="border"
    )
    run(
        *(compare, image, "MONAI Rand2DElastic, control points 30 px apart"),
        lambda: deform(image[0]),
        sigma=30.0,
        displacement_std=5.0,
    )


def test_kornia(compare: Compare, image: Tensor) -> None:
    augmentation = pytest.importorskip("kornia.augmentation", reason=peers.MISSING.format("kornia"))
    # Its kernel of 63 pixels cuts the Gaussian of sigma 32, both defaults, at one sigma.
    deform = augmentation.RandomElasticTransform(alpha=(5.0, 5.0), p=1.0)
    run(
        *(compare, image, "kornia RandomElasticTransform, kernel of 63 px"),
        lambda: deform(image),
        sigma=32.0,
        displacement_std=5.0,
    )


def test_albumentations(compare: Compare, image: Tensor) -> None:
    albumentations = pytest.importorskip(
        "albumentations", reason=peers.MISSING.format("albumentations")
    )
    deform = albumentations.ElasticTransform(alpha=300, sigma=50, p=1.0)
    array = image[0, 0].numpy()
    run(
        *(compare, image, "albumentations ElasticTransform"),
        lambda: deform(image=array)["image"],
        sigma=50.0,
        displacement_std=5.0,
    )


def test_elasticdeform(compare: Compare, image: Tensor) -> None:
    elasticdeform = pytest.importorskip(
        "elasticdeform",
        reason="build it for NumPy 2: pip install --no-binary elasticdeform elasticdeform",
        exc_type=ImportError,
    )
    array = image[0, 0].numpy()
    deform = tcwarp.RandomElastic(mode="cubic", sigma=100.0, displacement_std=5.0)

    def ours() -> Any:
        return deform(image)

    def theirs() -> Any:
        return elasticdeform.deform_random_grid(array, sigma=5, points=5, mode="nearest")

    assert_moves(ours(), image)
    assert_moves(theirs(), image)
    compare(
        *("RandomElastic, cubic, 512 x 512, sigma 100", ours),
        *("elasticdeform deform_random_grid, order 3", theirs),
        rounds=5,
    )


def test_cubic_against_scipy(compare: Compare, image: Tensor) -> None:
    displacement = tcwarp.random_displacement(1, SIZE, sigma=40.0, displacement_std=8.0)
    array = image[0, 0].numpy()
    places = np.indices(SIZE, dtype=np.float32) + displacement[0].numpy()

    def ours() -> Tensor:
        return tcwarp.warp(image, displacement, mode="cubic", padding_mode="reflection")

    def theirs() -> Any:
        return ndimage.map_coordinates(array, places, order=3, mode="reflect")

    # Positions near 512 in single precision are rounded to 3e-5 pixels.
    torch.testing.assert_close(ours()[0, 0], torch.from_numpy(theirs()), rtol=0, atol=1e-4)
    compare("cubic warp, 512 x 512", ours, "SciPy map_coordinates, order 3", theirs, rounds=5)


def test_cubic_against_grid_sample(compare: Compare) -> None:
    shape = (8, 6, *SIZE)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    displacement = tcwarp.random_displacement(
        8, SIZE, sigma=40.0, displacement_std=8.0, generator=torch.Generator().manual_seed(0)
    )

    def ours() -> Tensor:
        return tcwarp.warp(image, displacement, mode="cubic")

    def theirs() -> Tensor:
        return peers.grid_sample(image, peers.grid_from(displacement), "bicubic")

    # Another curve through the same pixels (Keys, without the filter of a spline): alike, not
    # equal. On a whole displacement both return the pixels themselves.
    whole = displacement.round()
    own = tcwarp.warp(image, whole, mode="cubic")
    other = peers.grid_sample(image, peers.grid_from(whole), "bicubic")
    torch.testing.assert_close(own, other, rtol=0, atol=2e-3)
    compare(
        *("cubic warp, (8, 6, 512, 512) float", ours),
        *("grid_sample bicubic (no spline) and its grid", theirs),
        rounds=15,
    )
