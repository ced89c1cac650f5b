"""Composition, inversion, alignment, folding: against the specification and their identities."""

import contextlib
import re
import warnings

import numpy as np
import pytest
import torch
from assertions import assert_bits_equal, assert_close
from hypothesis import given
from strategies import coordinates, warp_cases

import tcwarp
from tcwarp import reference

# What Newton's method leaves of |y + u(y) - p|, in pixels.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
SIZES = [(20, 17), (6, 7, 8)]
DTYPES = [torch.float32, torch.float64]


def smooth_field(size, seed, *, std=1.0, sigma=4.0, batch=2, dtype=torch.float64, device="cpu"):
    """Fields that do not fold: their slopes stay well below 1."""
    field = tcwarp.random_displacement(
        batch,
        size,
        sigma=sigma,
        displacement_std=std,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    assert tcwarp.jacobian_determinant(field).min() > 0.1
    return field.to(device, dtype)


def smooth_image(size):
    """Waves so long that linear interpolation is accurate."""
    grid = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    return torch.from_numpy(sum(np.sin(0.05 * (k + 1) * x) for k, x in enumerate(grid)))[None, None]


# ---------------------------------------------------------------------------- specification


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compose_equals_reference(device, size, dtype):
    first, second = (smooth_field(size, s, std=3.0, sigma=12.0, dtype=dtype) for s in (0, 1))
    expected = reference.compose(first.numpy(), second.numpy())
    composed = tcwarp.compose(first.to(device), second.to(device))
    assert composed.dtype == dtype
    assert_close(composed, expected, "compose", atol=50 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_invert_equals_reference(device, size, dtype):
    field = smooth_field(size, 2, dtype=dtype)
    expected, residual = reference.invert(field.numpy())
    assert residual.max() < 1e-12
    inverse, own_residual = tcwarp.invert(field.to(device), return_residual=True)
    assert_close(inverse, expected, "invert", atol=10 * TOLERANCE[dtype])
    assert own_residual.shape == (2, *size)
    assert own_residual.max() < TOLERANCE[dtype]
    assert_bits_equal(tcwarp.invert(field.to(device)), inverse, "invert")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_align_equals_reference(device, size, dtype):
    t1, t2 = smooth_field(size, 3, dtype=dtype), smooth_field(size, 4, dtype=dtype)
    expected, residual = reference.align(t1.numpy(), t2.numpy())
    assert residual.max() < 1e-12
    aligned = tcwarp.align(t1.to(device), t2.to(device))
    assert_close(aligned, expected, "align", atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("size", [*SIZES, (1, 5), (4, 1, 3), (2, 2)])
def test_jacobian_determinant_equals_reference(device, size):
    field = torch.from_numpy(np.random.default_rng(5).normal(size=(2, len(size), *size)))
    expected = reference.jacobian_determinant(field.numpy())
    determinant = tcwarp.jacobian_determinant(field.to(device))
    assert_close(determinant, expected, "jacobian_determinant", atol=1e-11)


# ------------------------------------------------------------------------ defining identities


@pytest.mark.parametrize("size", [(40, 44), (20, 21, 22)])
def test_warping_twice_is_warping_by_the_composition(device, size):
    image = smooth_image(size).to(device)
    first, second = (
        smooth_field(size, s, std=1.5, sigma=8.0, batch=1, device=device) for s in (6, 7)
    )
    options = {"mode": "linear", "padding_mode": "border"}
    twice = tcwarp.warp(tcwarp.warp(image, first, **options), second, **options)
    once = tcwarp.warp(image, tcwarp.compose(first, second), **options)
    # Away from the border, where both see the image itself; interpolating twice costs 1e-2.
    inside = (..., *(slice(7, -7),) * len(size))
    assert_close(twice[inside], once[inside], "compose", atol=1e-2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_field_after_its_inverse_is_the_identity(device, size, dtype):
    field = smooth_field(size, 8, dtype=dtype, device=device)
    inverse = tcwarp.invert(field)
    # phi(phi^-1(x)) = x holds up to the solver's tolerance at every pixel, the border included.
    composed = tcwarp.compose(field, inverse)
    assert_close(composed, torch.zeros_like(field), "invert", atol=TOLERANCE[dtype])


def test_an_inverse_after_its_field_is_the_identity_inside(device):
    field = smooth_field((60, 60), 9, std=2.0, sigma=15.0, batch=1, device=device)
    composed = tcwarp.compose(tcwarp.invert(field), field)
    inside = composed[..., 8:-8, 8:-8]
    # The inverse is known at pixels only and interpolated in between.
    assert_close(inside, torch.zeros_like(inside), "invert", atol=0.02)


def test_warping_back_restores_the_image(device):
    image = smooth_image((60, 60)).to(device)
    field = smooth_field((60, 60), 10, std=2.0, sigma=15.0, batch=1, device=device)
    options = {"mode": "linear", "padding_mode": "border"}
    back = tcwarp.warp(tcwarp.warp(image, field, **options), tcwarp.invert(field), **options)
    assert_close(back[..., 8:-8, 8:-8], image[..., 8:-8, 8:-8], "invert", atol=1e-2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_first_after_alignment_is_second(device, size, dtype):
    t1, t2 = (smooth_field(size, s, dtype=dtype, device=device) for s in (11, 12))
    assert_close(tcwarp.compose(t1, tcwarp.align(t1, t2)), t2, "align", atol=TOLERANCE[dtype])


def test_alignment_carries_one_view_to_the_other(device):
    labels = (smooth_image((64, 64)) > 0.8).to(torch.uint8).to(device)
    t1, t2 = (
        smooth_field((64, 64), s, std=2.0, sigma=12.0, batch=1, device=device) for s in (13, 14)
    )
    moved = tcwarp.warp(tcwarp.warp(labels, t1), tcwarp.align(t1, t2))
    inside = (..., slice(8, -8), slice(8, -8))
    differ = moved[inside] != tcwarp.warp(labels, t2)[inside]
    assert tcwarp.warp(labels, t2)[inside].float().mean() > 0.1
    # Rounding twice moves a pixel of the outline here and there.
    assert differ.float().mean() < 0.02


def test_align_where_a_member_is_the_identity(device):
    field = smooth_field((16, 16), 15, dtype=torch.float32, device=device)
    zero = torch.zeros_like(field)
    assert_close(tcwarp.align(zero, field), field, "align", atol=0)
    assert_bits_equal(tcwarp.align(field, zero), tcwarp.invert(field), "align")
    assert_close(tcwarp.align(zero, zero), zero, "align", atol=0)
    assert_close(tcwarp.align(field, field), zero, "align", atol=TOLERANCE[torch.float32])


def test_translations_add_up(device):
    field = torch.zeros(1, 2, 8, 9, device=device)
    field[:, 0], field[:, 1] = 2.25, -1.5
    assert_close(tcwarp.invert(field), -field, "invert", atol=0)
    assert_close(tcwarp.compose(field, field), 2 * field, "compose", atol=0)
    ones = torch.ones(1, 8, 9, device=device)
    assert_close(tcwarp.jacobian_determinant(field), ones, "jacobian_determinant", atol=0)


# ----------------------------------------------------------------------- folding and limits


def folding_field(dtype=torch.float32) -> torch.Tensor:
    """Pixels 10 to 20 of every row swap their order; the rest stays."""
    field = torch.zeros(1, 2, 8, 32, dtype=dtype)
    x = torch.arange(10, 21, dtype=dtype)
    field[:, 1, :, 10:21] = -2 * (x - 15)
    return field


def folding_warned(device, *parts):
    """On the CPU a fold is warned of; on a GPU a look at the result would wait for it."""
    if device == "cpu":
        return pytest.warns(tcwarp.FoldingWarning, match=".*".join(map(re.escape, parts)))
    return contextlib.nullcontext()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_fields_that_do_not_fold_are_not_warned_of(device, dtype):
    for size in SIZES:
        t1, t2 = (smooth_field(size, s, device=device).to(dtype) for s in (24, 25))
        tcwarp.invert(t1)
        tcwarp.align(t1, 3 * t2)
    far = torch.full((1, 2, 5, 5), 1e9, device=device)
    tcwarp.align(torch.zeros_like(far), far)
    tcwarp.invert(far)


@given(warp_cases("nearest"))
def test_valid_mask(device, case):
    field = case.displacement.to(device)
    ones = torch.ones(len(field), 1, *field.shape[2:], dtype=torch.float64, device=device)
    for mode in ("nearest", "linear"):
        mask = tcwarp.valid_mask(field, mode=mode)
        expected = reference.valid_mask(coordinates(field), mode)
        np.testing.assert_array_equal(mask.cpu().numpy(), expected)
        # Ones are left of ones where all that is read is inside.
        assert (tcwarp.warp(ones, field, mode=mode)[:, 0][mask] > 1 - 1e-6).all()
    assert torch.equal(tcwarp.valid_mask(field, mode="cubic"), mask)


@pytest.mark.parametrize(("dtype", "x"), [(torch.bfloat16, 259), (torch.float16, 4095)])
def test_positions_beyond_the_digits_of_half_precision(device, dtype, x):
    """A displacement of one pixel more than there are: the position rounds to the edge."""
    field = torch.zeros(1, 2, 1, x + 1, dtype=dtype, device=device)
    field[0, 1, 0, x] = -(x + 1)
    for mode in ("nearest", "linear"):
        assert not tcwarp.valid_mask(field, mode=mode)[0, 0, x]
        assert tcwarp.valid_mask(field, mode=mode)[0, 0, :x].all()


def centred(size):
    return torch.meshgrid(*(torch.arange(float(n)) - (n - 1) / 2 for n in size), indexing="ij")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [0.3, 0.7, 1.6, 1.9, 2.0, 2.5, 5.0])
def test_a_zoom_is_inverted_by_its_opposite(device, factor):
    """Newton's method steps over the border, where the field is continued."""
    grid = torch.stack(centred((32, 31)))[None]
    inverse, residual = tcwarp.invert((factor - 1) * grid.to(device), return_residual=True)
    assert residual.max() < 1e-4
    if factor > 1:  # otherwise the inverse leads out of the image
        assert_close(inverse, (1 / factor - 1) * grid, "invert", atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_fields_far_from_folding_are_inverted_at_every_pixel():
    fields = [
        tcwarp.random_displacement(
            *(100, (40, 44)),
            sigma=sigma,
            displacement_std=std,
            generator=torch.Generator().manual_seed(26),
        )
        for sigma, std in ((3.0, 1.0), (8.0, 3.0), (20.0, 6.0))
    ]
    whole = torch.cat(fields)
    sound = whole[tcwarp.jacobian_determinant(whole).amin(dim=(1, 2)) > 0.2]
    assert len(sound) > 200
    _, residual = tcwarp.invert(sound, return_residual=True)
    assert residual.max() < 1e-3


@pytest.mark.parametrize("size", [(8, 9), (8, 9, 10)])
def test_no_fold_goes_unnoticed(size):
    """Also of cells that no solution comes by: every cell that turns over is met at a corner."""
    folds = 0
    for seed in range(60):
        field = tcwarp.random_displacement(
            *(1, size),
            sigma=1.5,
            displacement_std=0.3 + 0.01 * seed,
            generator=torch.Generator().manual_seed(seed),
        )
        smallest = tcwarp.jacobian_determinant(field).min().item()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tcwarp.invert(field)
        warned = any("folds" in str(warning.message) for warning in caught)
        # Central differences average cells: where they turn over, a cell does.
        assert warned or smallest > 0, seed
        folds += smallest <= 0
    assert 5 < folds < 60


def test_folding_is_reported(device):
    field = folding_field().to(device)
    determinant = tcwarp.jacobian_determinant(field)
    assert (determinant[..., 11:20] < 0).all()
    assert (determinant[..., :8] == 1).all()
    with folding_warned(device, "invert: displacement folds", "goes from -1 to 6"):
        inverse, residual = tcwarp.invert(field, return_residual=True)
    with folding_warned(device, "align: t1 folds"):
        tcwarp.align(field, torch.zeros_like(field))
    # Whatever was found, the residual tells the truth about it ...
    left = tcwarp.compose(field, inverse).abs().amax(dim=1)
    assert_close(residual, left, "invert", atol=1e-6)
    # ... and away from the fold the inverse is sound.
    assert residual[..., :4].max() < 1e-4
    assert inverse.isfinite().all()


def test_residual_of_a_rough_field_is_not_small(device):
    noise = torch.from_numpy(np.random.default_rng(16).normal(scale=6, size=(1, 2, 24, 24)))
    with folding_warned(device, "invert: displacement folds"):
        _, residual = tcwarp.invert(noise.to(device), return_residual=True)
    assert (tcwarp.jacobian_determinant(noise) <= 0).any()
    assert residual.max() > 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_field_that_is_not_finite_has_no_inverse_there(device, value):
    field = torch.zeros(1, 2, 6, 6, device=device)
    field[0, 0, 3, 3] = value
    inverse, residual = tcwarp.invert(field, return_residual=True)
    assert inverse[0, :, 3, 3].isnan().any()
    assert residual[0, 3, 3].isnan()
    assert_close(inverse[..., :2, :], torch.zeros(1, 2, 2, 6), "invert", atol=0)
    other = torch.zeros_like(field)
    assert tcwarp.align(other, field)[0, :, 3, 3].isnan().any()


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 2, 0, 5), (1, 3, 2, 0, 4)])
def test_empty(device, shape):
    field = torch.zeros(shape, device=device)
    assert tcwarp.compose(field, field).shape == shape
    assert tcwarp.align(field, field).shape == shape
    inverse, residual = tcwarp.invert(field, return_residual=True)
    assert inverse.shape == shape
    assert residual.shape == (shape[0], *shape[2:])
    assert tcwarp.jacobian_determinant(field).shape == (shape[0], *shape[2:])


def test_single_pixel(device):
    field = torch.full((1, 2, 1, 1), 0.75, device=device)
    assert_close(tcwarp.invert(field), -field, "invert", atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, dtype):
    field = smooth_field((12, 12), 17, device=device).to(dtype)
    inverse = tcwarp.invert(field)
    assert inverse.dtype == dtype
    # Solved in float32; only the result is rounded.
    assert_bits_equal(inverse, tcwarp.invert(field.float()).to(dtype), "invert")


def test_strided_fields(device):
    t1, t2 = (smooth_field((9, 8), s, device=device) for s in (18, 19))
    expected = tcwarp.align(t1, t2)
    last = [t.to(memory_format=torch.channels_last) for t in (t1, t2)]
    turned = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (t1, t2)]
    for strided in (last, turned):
        assert_close(tcwarp.align(*strided), expected, "align", atol=0)


def test_number_of_threads_does_not_matter(threads):
    t1, t2 = (smooth_field((70, 90), s, dtype=torch.float32) for s in (20, 21))
    results = []
    for count in threads:
        torch.set_num_threads(count)
        results.append(tcwarp.align(t1, t2))
    for other in results[1:]:
        assert_bits_equal(other, results[0], "align")


# --------------------------------------------------------------------------------- gradients


def test_compose_gradcheck():
    rng = np.random.default_rng(22)
    first = torch.from_numpy(rng.normal(size=(1, 2, 3, 4))).requires_grad_()
    # Away from whole steps, where linear interpolation has kinks.
    fractions = rng.integers(-2, 2, size=(1, 2, 3, 4)) + rng.uniform(0.2, 0.8, size=(1, 2, 3, 4))
    second = torch.from_numpy(fractions).requires_grad_()
    assert torch.autograd.gradcheck(tcwarp.compose, (first, second))


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
def test_jacobian_determinant_gradcheck(size):
    field = torch.rand(1, len(size), *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tcwarp.jacobian_determinant, (field,))
