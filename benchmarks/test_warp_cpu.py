"""Warps on the CPU against grid_sample and OpenCV."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import tcwarp
from benchmarks import peers
from benchmarks.conftest import Compare

SHAPE = (8, 6, 512, 512)


@pytest.fixture(scope="module")
def displacement() -> Tensor:
    return tcwarp.random_displacement(
        8, (512, 512), sigma=40.0, displacement_std=8.0, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


def assert_same_outside_ties(ours: Tensor, theirs: Tensor, displacement: Tensor) -> None:
    """Equal bit for bit, save where the rounding is within 1/1000 pixel of undecided."""
    differ = (ours != theirs) & ~peers.near_a_tie(displacement)
    assert not differ.any(), f"{int(differ.sum())} pixels differ from the peer"


def test_nearest_against_grid_sample(compare: Compare, image: Tensor, displacement: Tensor) -> None:
    def ours() -> Tensor:
        return tcwarp.warp(image, displacement)

    def theirs() -> Tensor:
        return peers.grid_sample(image, peers.grid_from(displacement))

    assert_same_outside_ties(ours(), theirs(), displacement)
    compare(
        "nearest warp, (8, 6, 512, 512) float", ours, "grid_sample and its grid", theirs, at_least=2
    )


def test_nearest_against_opencv(compare: Compare, image: Tensor, displacement: Tensor) -> None:
    cv2 = pytest.importorskip("cv2", reason=peers.MISSING.format("cv2"))
    cv2.setNumThreads(torch.get_num_threads())
    image_array, displacement_array = image.numpy(), displacement.numpy()

    def ours() -> Tensor:
        return tcwarp.warp(image, displacement)

    def theirs() -> Any:
        return peers.opencv_nearest(image_array, displacement_array)

    assert_same_outside_ties(ours(), torch.from_numpy(theirs()), displacement)
    compare(
        "nearest warp, (8, 6, 512, 512) float",
        ours,
        "OpenCV remap and its maps",
        theirs,
        at_least=1,
    )


def test_nearest_labels_against_grid_sample(
    compare: Compare, image: Tensor, displacement: Tensor
) -> None:
    labels = (image * 6).to(torch.uint8)

    def ours() -> Tensor:
        return tcwarp.warp(labels, displacement)

    def theirs() -> Tensor:
        return peers.grid_sample(labels.float(), peers.grid_from(displacement)).to(torch.uint8)

    assert_same_outside_ties(ours(), theirs(), displacement)
    compare(
        "nearest warp, (8, 6, 512, 512) uint8", ours, "grid_sample, cast to float and back", theirs
    )


def test_nearest_channels_last_against_grid_sample(
    compare: Compare, image: Tensor, displacement: Tensor
) -> None:
    last = image.to(memory_format=torch.channels_last)

    def ours() -> Tensor:
        return tcwarp.warp(last, displacement)

    def theirs() -> Tensor:
        return peers.grid_sample(last, peers.grid_from(displacement))

    assert_same_outside_ties(ours(), theirs(), displacement)
    compare("nearest warp, channels last", ours, "grid_sample and its grid, channels last", theirs)


def test_linear_against_grid_sample(compare: Compare, image: Tensor, displacement: Tensor) -> None:
    def ours() -> Tensor:
        return tcwarp.warp(image, displacement, mode="linear")

    def theirs() -> Tensor:
        return peers.grid_sample(image, peers.grid_from(displacement), "bilinear")

    # The peer's positions near 512 are rounded to 3e-5 pixels.
    torch.testing.assert_close(ours(), theirs(), rtol=0, atol=3e-4)
    compare("linear warp, (8, 6, 512, 512) float", ours, "grid_sample and its grid", theirs)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_backward_against_grid_sample(
    compare: Compare, image: Tensor, displacement: Tensor, mode: Literal["nearest", "linear"]
) -> None:
    leaf = image.clone().requires_grad_()
    gradient = image.flip(-1).contiguous()
    grid = peers.grid_from(displacement)
    with torch.enable_grad():
        own_output = tcwarp.warp(leaf, displacement, mode=mode)
        peer_output = peers.grid_sample(leaf, grid, "nearest" if mode == "nearest" else "bilinear")

    def ours() -> Tensor:
        return torch.autograd.grad(own_output, leaf, gradient, retain_graph=True)[0]

    def theirs() -> Tensor:
        return torch.autograd.grad(peer_output, leaf, gradient, retain_graph=True)[0]

    # In nearest mode a tie sends a value to a neighbour; anywhere else sums differ by rounding.
    differ = ((ours() - theirs()).abs() > 1e-3).float().mean().item()
    ties = peers.near_a_tie(displacement).float().mean().item()
    assert differ <= (2 * ties if mode == "nearest" else 0)
    compare(
        f"{mode} warp backward, (8, 6, 512, 512) float",
        ours,
        "grid_sample backward",
        theirs,
        at_least=2 if mode == "nearest" else None,
    )


@pytest.mark.parametrize("grid", ["its grid ready", "and its grid"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_small_against_grid_sample(
    compare: Compare, mode: Literal["nearest", "linear"], grid: str
) -> None:
    small = torch.rand(1, 1, 64, 64)
    field = tcwarp.random_displacement(1, (64, 64), sigma=8.0, displacement_std=3.0)
    ready = peers.grid_from(field)
    peer_mode = "nearest" if mode == "nearest" else "bilinear"

    def ours() -> None:
        for _ in range(100):
            tcwarp.warp(small, field, mode=mode)

    def theirs() -> None:
        for _ in range(100):
            built = ready if grid == "its grid ready" else peers.grid_from(field)
            peers.grid_sample(small, built, peer_mode)

    compare(f"{mode} warp, (1, 1, 64, 64), 100 times", ours, f"grid_sample, {grid}", theirs)


@pytest.mark.parametrize("shape", [(4, 1, 512, 512), (1, 1, 128, 128, 128)])
def test_both_gradients_against_grid_sample(compare: Compare, shape: tuple[int, ...]) -> None:
    leaf = torch.rand(shape, requires_grad=True)
    field = tcwarp.random_displacement(shape[0], shape[2:], sigma=20.0, displacement_std=4.0)
    field.requires_grad_()
    grid = peers.grid_from(field.detach()).contiguous().requires_grad_()
    gradient = torch.rand(shape)
    with torch.enable_grad():
        own_output = tcwarp.warp(leaf, field, mode="linear")
        peer_output = peers.grid_sample(leaf, grid, "bilinear")

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(own_output, (leaf, field), gradient, retain_graph=True)

    def theirs() -> tuple[Tensor, ...]:
        return torch.autograd.grad(peer_output, (leaf, grid), gradient, retain_graph=True)

    torch.testing.assert_close(ours()[0], theirs()[0], rtol=0, atol=1e-3)
    compare(f"linear warp, both gradients, {shape}", ours, "grid_sample backward", theirs, rounds=7)
