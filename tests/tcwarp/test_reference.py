"""The specification itself: against SciPy, against cases worked out by hand, and without torch."""

from pathlib import Path

import numpy as np
import pytest
from processes import python
from scipy import ndimage

from tcwarp import reference

ORDERS = [("nearest", 0), ("linear", 1), ("cubic", 3)]
# SciPy continues the image by 12 pixels before it makes the spline: 0.268^12 is 1e-7.
SCIPY_CUBIC = [
    *(("zeros", "grid-constant", 1e-6), ("border", "nearest", 1e-6)),
    ("reflection", "reflect", 1e-12),
]
PADDING_TO_SCIPY = {"border": "nearest", "reflection": "reflect"}


def positions(displacement: np.ndarray) -> np.ndarray:
    return np.indices(displacement.shape[1:]) + displacement


@pytest.mark.parametrize("size", [(7, 9), (1, 5), (4, 5, 3)])
@pytest.mark.parametrize("padding_mode", PADDING_TO_SCIPY)
@pytest.mark.parametrize("mode, order", ORDERS)
def test_warp_equals_map_coordinates(size, padding_mode, mode, order):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, *size))
    displacement = rng.normal(scale=4, size=(2, len(size), *size))
    warped = reference.warp(image, displacement, mode, padding_mode)
    # SciPy starts the recursions of a cubic spline with what little it sees beyond the border
    # (on 3 pixels, off by 1e-4): give it more.
    margin = 60 if mode == "cubic" else 0
    numpy_mode = {"border": "edge", "reflection": "symmetric"}[padding_mode]
    for n, c in np.ndindex(2, 3):
        expected = ndimage.map_coordinates(
            np.pad(image[n, c], margin, numpy_mode),
            positions(displacement[n]) + margin,
            order=order,
            mode=PADDING_TO_SCIPY[padding_mode],
        )
        np.testing.assert_allclose(warped[n, c], expected, atol=1e-12)


@pytest.mark.parametrize("padding_mode, mode, atol", SCIPY_CUBIC)
def test_cubic_equals_scipy_as_it_is_called(padding_mode, mode, atol):
    rng = np.random.default_rng(0)
    image, displacement = rng.normal(size=(1, 1, 26, 31)), rng.normal(size=(1, 2, 26, 31))
    warped = reference.warp(image, 9 * displacement, "cubic", padding_mode)
    expected = ndimage.map_coordinates(
        image[0, 0], positions(9 * displacement[0]), order=3, mode=mode
    )
    np.testing.assert_allclose(warped[0, 0], expected, atol=atol)


@pytest.mark.parametrize("mode, order", ORDERS)
def test_warp_with_zeros_equals_map_coordinates_of_a_padded_image(mode, order):
    # SciPy's "constant" mode does not blend with the zeros outside: give it the zeros.
    rng = np.random.default_rng(1)
    image = rng.normal(size=(1, 1, 6, 8))
    displacement = rng.normal(scale=4, size=(1, 2, 6, 8))
    padded = np.pad(image[0, 0], 30)
    expected = ndimage.map_coordinates(padded, positions(displacement[0]) + 30, order=order)
    warped = reference.warp(image, displacement, mode, "zeros")
    np.testing.assert_allclose(warped[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize(
    "displacement, offset",
    [
        *((0.5, 1), (-0.5, 0), (1.5, 2), (-1.5, -1), (2.5, 3), (-2.5, -2), (0.0, 0), (-0.0, 0)),
        *((np.float32(0.49999997), 0), (np.float32(-0.50000006), -1), (np.float32(1e-45), 0)),
        *((np.float32(-1e-45), 0), (np.float32(8388609.0), 8388609), (-(2.0**30), -(2**30))),
    ],
)
def test_nearest_rounds_half_up(displacement, offset):
    assert reference.nearest_offset(displacement) == offset


def test_nearest_by_hand_at_exact_halves():
    image = np.arange(1, 6).reshape(1, 1, 1, 5)
    displacement = np.zeros((1, 2, 1, 5))
    displacement[0, 1, 0] = [0.5, -0.5, 1.5, -1.5, 0.5]
    expected = {"zeros": [2, 2, 5, 3, 0], "border": [2, 2, 5, 3, 5], "reflection": [2, 2, 5, 3, 5]}
    for padding_mode, values in expected.items():
        warped = reference.warp(image, displacement, "nearest", padding_mode)
        assert warped.tolist() == [[[values]]], padding_mode


def test_linear_by_hand():
    image = np.array([[[[10.0, 20.0, 40.0]]]])
    displacement = np.zeros((1, 2, 1, 3))
    displacement[0, 1, 0] = [-0.25, 0.5, 0.25]
    for padding_mode, values in {
        "zeros": [7.5, 30, 30],
        "border": [10, 30, 40],
        "reflection": [10, 30, 40],
    }.items():
        warped = reference.warp(image, displacement, "linear", padding_mode)
        np.testing.assert_allclose(warped[0, 0, 0], values, err_msg=padding_mode)


def test_linear_does_not_read_taps_of_weight_zero():
    image = np.array([[[[1.0, np.inf, -0.0, np.nan, 2.0]]]])
    warped = reference.warp(image, np.zeros((1, 2, 1, 5)), "linear", "border")
    np.testing.assert_array_equal(warped, image)
    assert np.signbit(warped[0, 0, 0, 2])


def test_cubic_goes_through_the_pixels_and_bends_between_them():
    image = np.array([[[[1.0, np.inf, -0.0, np.nan, 2.0]]]])
    warped = reference.warp(image, np.zeros((1, 2, 1, 5)), "cubic", "border")
    np.testing.assert_array_equal(warped, image)
    assert np.signbit(warped[0, 0, 0, 2])
    # Far from the border a cubic polynomial is its own spline.
    x = np.arange(80.0)
    displacement = np.zeros((1, 2, 1, 80))
    displacement[0, 1] = 0.3
    cube = ((x - 40) / 10) ** 3
    warped = reference.warp(cube.reshape(1, 1, 1, 80), displacement, "cubic", "reflection")
    np.testing.assert_allclose(warped[0, 0, 0, 30:50], ((x + 0.3 - 40) / 10)[30:50] ** 3, atol=1e-9)


def test_displacement_runs_along_its_axis():
    image = np.arange(24.0).reshape(1, 1, 2, 3, 4)
    for axis in range(3):
        displacement = np.zeros((1, 3, 2, 3, 4))
        displacement[0, axis] = 1
        warped = reference.warp(image, displacement)
        np.testing.assert_array_equal(
            np.moveaxis(warped[0, 0], axis, 0)[:-1], np.moveaxis(image[0, 0], axis, 0)[1:]
        )
        assert not np.moveaxis(warped[0, 0], axis, 0)[-1].any()


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_displacement_that_is_not_finite_reads_zero(padding_mode, mode, value):
    displacement = np.zeros((1, 2, 2, 2))
    displacement[0, 1, 0, 1] = value
    warped = reference.warp(np.ones((1, 1, 2, 2)), displacement, mode, padding_mode)
    assert warped[0, 0].tolist() == [[1, 0], [1, 1]]
    back = reference.warp_backward(np.ones((1, 1, 2, 2)), displacement, mode, padding_mode)
    np.testing.assert_allclose(back[0, 0], [[1, 0], [1, 1]], atol=1e-12)


def test_pad_index_by_hand():
    reflected = [reference.pad_index(i, 3, "reflection") for i in range(-7, 10)]
    assert reflected == [0, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2]
    assert [reference.pad_index(i, 3, "border") for i in (-9, -1, 0, 2, 3, 9)] == [0, 0, 0, 2, 2, 2]
    assert [reference.pad_index(i, 3, "zeros") for i in (-1, 0, 2, 3)] == [-1, 0, 2, -1]
    with pytest.raises(ValueError, match="padding_mode must be zeros, border or reflection"):
        reference.pad_index(0, 3, "wrap")


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_backward_is_the_adjoint(padding_mode, mode):
    rng = np.random.default_rng(2)
    image, gradient = rng.normal(size=(2, 2, 2, 5, 6))
    displacement = rng.normal(scale=3, size=(2, 2, 5, 6))
    forward = (reference.warp(image, displacement, mode, padding_mode) * gradient).sum()
    backward = (image * reference.warp_backward(gradient, displacement, mode, padding_mode)).sum()
    assert forward == pytest.approx(backward, abs=1e-11)


@pytest.mark.parametrize("boundary", ["reflect", "constant"])
@pytest.mark.parametrize("sigma", [0.5, 1.3, (4.0, 0.7), 60.0])
def test_gaussian_smooth_equals_scipy(boundary, sigma):
    image = np.random.default_rng(3).normal(size=(2, 1, 19, 12))
    smoothed = reference.gaussian_smooth(image, sigma, boundary=boundary)
    for n in range(2):
        expected = ndimage.gaussian_filter(image[n, 0], sigma, truncate=8, mode=boundary)
        np.testing.assert_allclose(smoothed[n, 0], expected, atol=1e-13)


def test_spectral_field_is_smoothed_white_noise():
    # The cosine modes are orthonormal: with all of them, coefficients are noise in another basis,
    # and the field must equal that noise smoothed by convolution.
    size, sigma = (11, 8), (1.7, 0.6)
    coefficients = reference.field_coefficients(7, 1, size)
    noise = coefficients
    for axis, n in enumerate(size, start=2):
        basis = np.array(
            [
                [np.sqrt((2 if k else 1) / n) * np.cos(np.pi * k * (x + 0.5) / n) for x in range(n)]
                for k in range(n)
            ]
        )
        np.testing.assert_allclose(basis @ basis.T, np.eye(n), atol=1e-12)
        noise = np.moveaxis(np.tensordot(noise, basis, axes=(axis, 0)), -1, axis)
    expected = reference.gaussian_smooth(noise, sigma) * 10 / np.sqrt(3)
    field = reference.random_displacement(7, 1, size, magnitude=10, sigma=sigma)
    np.testing.assert_allclose(field, expected, atol=1e-12)


# The test vectors of the Random123 library.
@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert reference.philox4x32(counter, key) == words


def test_identity_draws_leave_other_samples_alone():
    always = reference.field_coefficients(3, 40, (2, 2))
    sometimes = reference.field_coefficients(3, 40, (2, 2), identity_probability=0.5)
    identity = ~sometimes.any(axis=(1, 2, 3))
    assert 10 < identity.sum() < 30
    np.testing.assert_array_equal(sometimes[~identity], always[~identity])


def smooth_field(size, seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(1, len(size), *size))
    field = reference.gaussian_smooth(noise, 3.0)
    return field / np.abs(field).max() * 1.5


def test_invert_and_align_solve_their_equations():
    t1, t2 = smooth_field((12, 10), 4), smooth_field((12, 10), 5)
    inverse, residual = reference.invert(t1)
    assert residual.max() < 1e-12
    np.testing.assert_allclose(reference.compose(t1, inverse), 0, atol=1e-12)
    aligned, residual = reference.align(t1, t2)
    assert residual.max() < 1e-12
    np.testing.assert_allclose(reference.compose(t1, aligned), t2, atol=1e-12)


def test_jacobian_determinant_of_a_linear_map():
    matrix = np.array([[0.1, -0.3, 0.0], [0.2, 0.05, 0.4], [-0.1, 0.3, -0.2]])
    for dimensions, size in ((2, (4, 5)), (3, (4, 3, 5))):
        part = matrix[:dimensions, :dimensions]
        displacement = np.einsum("cd,d...->c...", part, np.indices(size))[None]
        determinant = reference.jacobian_determinant(displacement)
        expected = np.full((1, *size), np.linalg.det(np.eye(dimensions) + part))
        np.testing.assert_allclose(determinant, expected)
    np.testing.assert_array_equal(reference.jacobian_determinant(np.ones((1, 2, 1, 1))), 1)


def test_reference_needs_no_torch():
    path = Path(reference.__file__)
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('reference', {str(path)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules and 'tcwarp' not in sys.modules\n"
        "print(module.philox4x32((0, 0, 0, 0), (0, 0))[0])\n"
    )
    result = python("-c", script)
    assert result.stdout.strip() == str(0x6627E8D5), result.stderr
