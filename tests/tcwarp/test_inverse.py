"""Large rotations, mirror images, swirls: the root inside the image is found."""

import warnings

import numpy as np
import pytest
import torch
from assertions import assert_close

import tcwarp


def centred(size):
    axes = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def rotation(dimensions, degrees, mirrored):
    matrix = torch.eye(dimensions, dtype=torch.float64)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[-2:, -2:] = torch.tensor([[cosine, -sine], [sine, cosine]])
    if mirrored:
        matrix[:, 0] *= -1
    return matrix


def displacement_of(matrix, x):
    """Of x -> matrix x, about the middle."""
    return (torch.tensordot(matrix, x, 1) - x)[None]


def swirl(size, strength):
    """The rotation of each point about the middle by strength exp(-r^2 / 400) radians."""
    y, x = centred(size)
    angle = strength * torch.exp(-(y * y + x * x) / 400)
    return torch.stack(
        [angle.cos() * y - angle.sin() * x - y, angle.sin() * y + angle.cos() * x - x]
    )[None]


# Outside the image, where the field is continued, there need not be a solution.
@pytest.mark.filterwarnings("error", "ignore:.*leads far out of the image")
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 20, 60, 75, 90, 100, 120, 170, 180, 240, 330])
@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [((96, 128), torch.float64, 1e-9), ((9, 40, 31), torch.float32, 1e-3)],
)
def test_rotations_and_mirror_images(device, size, dtype, tolerance, degrees, mirrored):
    """By the rotation back, wherever that stays inside the image."""
    x = centred(size)
    matrix = rotation(len(size), degrees, mirrored)
    field, back = (displacement_of(m, x).to(dtype) for m in (matrix, matrix.T))
    inside = valid(back.double())
    inverse, residual = tcwarp.invert(field.to(device), return_residual=True)
    assert residual[0].cpu()[inside].max() <= tolerance
    assert_close(inverse.cpu()[..., inside], back[..., inside], "invert", atol=tolerance)
    aligned = tcwarp.align(field.to(device), torch.zeros_like(field, device=device))
    assert torch.equal(aligned, inverse)


def valid(displacement):
    """Inside the image to the rounding of a rotation."""
    x = centred(displacement.shape[2:])
    end = torch.tensor([(n - 1) / 2 + 1e-6 for n in displacement.shape[2:]])
    return ((x + displacement[0]).abs() <= end.view(-1, *[1] * (x.ndim - 1))).all(0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 60, 120, 180, 250])
@pytest.mark.parametrize(("size", "std"), [((60, 50), 1.5), ((24, 20, 28), 1.2)])
def test_whatever_comes_from_inside_is_found(device, size, std, degrees, mirrored):
    """Points anywhere in the image, looked for by where a bent rotation takes them."""
    generator = torch.Generator().manual_seed(71)
    random = {"generator": generator, "dtype": torch.float64}
    bend = tcwarp.random_displacement(1, size, sigma=6.0, displacement_std=std, **random)
    assert tcwarp.jacobian_determinant(bend).min() > 0.3
    x = centred(size)
    field = displacement_of(rotation(len(size), degrees, mirrored), x + bend[0]) + bend
    points = torch.rand(1, len(size), *size, **random) - 0.5
    offset = points * (torch.tensor(size) - 1.0).view(-1, *[1] * len(size)) - x
    target = tcwarp.compose(field, offset)
    aligned = tcwarp.align(field.to(device), target.to(device))
    assert_close(aligned, offset, "align", atol=1e-7)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strength", [-5.0, 3.0, 5.0])
def test_a_strong_swirl_is_inverted_by_its_opposite(device, strength):
    field = swirl((129, 129), strength)
    assert tcwarp.jacobian_determinant(field).min() > 0.9
    inverse, residual = tcwarp.invert(field.to(device), return_residual=True)
    assert residual.max() < 1e-9
    # The map between its pixels is not the swirl itself.
    assert_close(inverse, swirl((129, 129), -strength), "invert", atol=0.5)


@pytest.mark.parametrize("seed", range(20))
def test_folding_is_what_the_determinant_says(seed):
    """Warned of where `jacobian_determinant` changes sign, never elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    field = tcwarp.random_displacement(
        1, (40, 44), sigma=3.0, displacement_std=0.4 + 0.1 * seed, generator=generator
    )
    if seed % 2:
        field[:, 0] += displacement_of(rotation(2, 0, True), centred((40, 44)))[:, 0].float()
    determinant = tcwarp.jacobian_determinant(field)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tcwarp.invert(field)
    folds = bool((determinant <= 0).any() and (determinant >= 0).any())
    assert any("displacement folds" in str(warning.message) for warning in caught) == folds
