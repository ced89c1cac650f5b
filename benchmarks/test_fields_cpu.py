"""Random fields and smoothing on the CPU against SciPy and torch convolutions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import tcwarp
from benchmarks import peers
from benchmarks.conftest import Compare


def expected_rms(size: tuple[int, int], sigma: float, magnitude: float = 1000.0) -> float:
    """Root mean square of uniform noise smoothed by SciPy, exactly: from the smoothing matrices."""
    rms = magnitude / math.sqrt(3)
    for n in size:
        matrix = ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, truncate=8, mode="reflect")
        rms *= math.sqrt((matrix**2).sum() / n)
    return rms


def assert_law(size: tuple[int, int], sigma: float, draws: int) -> None:
    """Fields are as large as the peer's; tests/tcwarp/test_fields.py checks the rest of the law."""
    generator = torch.Generator().manual_seed(0)
    squares = [
        tcwarp.random_displacement(4, size, sigma=sigma, generator=generator).square().mean().item()
        for _ in range(draws // 4)
    ]
    expected = expected_rms(size, sigma)
    assert abs(math.sqrt(np.mean(squares)) / expected - 1) < 0.1


def test_field_against_scipy(compare: Compare) -> None:
    size, sigma = (512, 512), 100.0
    rng = np.random.default_rng(0)
    assert_law(size, sigma, 400)

    def ours() -> Tensor:
        return tcwarp.random_displacement(1, size, sigma=sigma)

    def theirs() -> list[Any]:
        # SciPy's own cut at 4 sigma, twice as fast as the one at 8 that our results are equal to.
        return [
            ndimage.gaussian_filter(rng.uniform(-1000, 1000, size).astype(np.float32), sigma)
            for _ in range(2)
        ]

    compare(
        *("field, 512 x 512, sigma 100", ours, "SciPy gaussian_filter of noise", theirs),
        at_least=100,
        rounds=7,
    )


def test_field_against_torch_convolution(compare: Compare) -> None:
    size, sigma = (1008, 1008), 50.0
    assert_law(size, sigma, 40)

    def ours() -> Tensor:
        return tcwarp.random_displacement(1, size, sigma=sigma)

    def theirs() -> Tensor:
        return peers.separable_gaussian(torch.empty(1, 2, *size).uniform_(-1000, 1000), sigma)

    compare(
        *("field, 1008 x 1008, sigma 50", ours, "torch separable convolution of noise", theirs),
        at_least=50,
        rounds=5,
    )


def test_smoothing_against_scipy(compare: Compare) -> None:
    noise = torch.rand(1, 2, 512, 512, generator=torch.Generator().manual_seed(0)) - 0.5
    planes = noise[0].numpy()

    def ours() -> Tensor:
        return tcwarp.gaussian_smooth(noise, 100.0)

    def theirs() -> list[Any]:
        return [ndimage.gaussian_filter(plane, 100.0, truncate=8) for plane in planes]

    expected = torch.from_numpy(np.stack(theirs()))[None]
    torch.testing.assert_close(ours(), expected, rtol=0, atol=1e-6)
    compare(
        *("gaussian_smooth, 2 x 512 x 512, sigma 100", ours, "SciPy gaussian_filter", theirs),
        rounds=5,
    )


def test_smoothing_against_torch_convolution(compare: Compare) -> None:
    noise = torch.rand(1, 2, 1008, 1008, generator=torch.Generator().manual_seed(0)) - 0.5

    def ours() -> Tensor:
        return tcwarp.gaussian_smooth(noise, 50.0)

    def theirs() -> Tensor:
        return peers.separable_gaussian(noise, 50.0)

    exact = peers.separable_gaussian(noise, 50.0, truncate=8.0)
    torch.testing.assert_close(ours(), exact, rtol=0, atol=1e-6)
    compare(
        *("gaussian_smooth, 2 x 1008 x 1008, sigma 50", ours, "torch separable convolution"),
        theirs,
        rounds=5,
    )


@pytest.mark.parametrize("sigma", [3.0, 5.0, 10.0])
def test_field_against_opencv(compare: Compare, sigma: float) -> None:
    cv2 = pytest.importorskip("cv2", reason=peers.MISSING.format("cv2"))
    cv2.setNumThreads(torch.get_num_threads())
    rng, width = np.random.default_rng(0), 2 * int(4 * sigma) + 1

    def ours() -> Tensor:
        return tcwarp.random_displacement(1, (2048, 2048), sigma=sigma)

    def theirs() -> list[Any]:
        noise = rng.random((2, 2048, 2048), dtype=np.float32)
        return [
            cv2.GaussianBlur(
                plane * 2000 - 1000, (width, width), sigma, borderType=cv2.BORDER_REFLECT
            )
            for plane in noise
        ]

    work = f"field, 2048 x 2048, sigma {sigma:g}"
    compare(work, ours, "OpenCV GaussianBlur of noise", theirs, rounds=5)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 5.0])
def test_narrow_smoothing_against_scipy(compare: Compare, sigma: float) -> None:
    image = torch.rand(1, 1, 1024, 1024, generator=torch.Generator().manual_seed(0))
    plane = image[0, 0].numpy()

    def ours() -> Tensor:
        return tcwarp.gaussian_smooth(image, sigma)

    def theirs() -> Any:
        return ndimage.gaussian_filter(plane, sigma, truncate=8)

    torch.testing.assert_close(ours()[0, 0], torch.from_numpy(theirs()), rtol=0, atol=1e-5)
    work = f"gaussian_smooth, 1024 x 1024, sigma {sigma:g}"
    compare(work, ours, "SciPy gaussian_filter, truncate=8", theirs, rounds=5)
