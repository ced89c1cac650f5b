"""The CUDA kernels, run on the host (`emulation/`), against the CPU operators.

For machines without a GPU: indices, bounds, vector paths and sums are those of the device code, and
what no thread writes stays NaN. `test_cuda_races.py` is about races.
"""

import math
import os

import pytest
import torch
from assertions import assert_bits_equal, assert_close
from emulator import compile_library, poison
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    FLOATING_DTYPES,
    OTHER_DTYPES,
    WarpCase,
    displacement_values,
    image_values,
    warp_cases,
    with_layout,
)

from tcwarp._native import MODES, PADDING_MODES

# The kernels are compiled first, for a minute or more.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def emulated():
    """torch.ops.tcwarp_emulated; what its operators allocate is poisoned."""
    # Not UndefinedBehaviorSanitizer: with that of GCC 12, which reports nothing, sums are wrong.
    flags = ["-fsanitize=address"] if "TCWARP_EXPECTED" in os.environ else []  # make sanitize
    torch.ops.load_library(str(compile_library("kernels", *flags)))
    with poison():
        yield torch.ops.tcwarp_emulated


def codes(case: WarpCase) -> tuple[int, int]:
    return MODES[case.mode], PADDING_MODES[case.padding_mode]


def wide(displacement: torch.Tensor) -> torch.Tensor:
    return displacement if displacement.element_size() >= 4 else displacement.float()


def tolerance(displacement: torch.Tensor, *tensors: torch.Tensor) -> float:
    """Rounding of weights and of sums whose terms are added in another order."""
    largest = max(float(t.double().nan_to_num().abs().amax()) for t in tensors)
    return 60 * max(torch.finfo(t.dtype).eps for t in (wide(displacement), *tensors)) * largest


@given(data=st.data())
def test_nearest(emulated, data):
    case = data.draw(warp_cases("nearest", FLOATING_DTYPES + OTHER_DTYPES))
    arguments = case.input, case.displacement, *codes(case)
    output = emulated.warp(*arguments)
    assert_bits_equal(output, torch.ops.tcwarp.warp(*arguments), "warp")
    assert output.stride() == torch.ops.tcwarp.warp(*arguments).stride()


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@given(data=st.data())
def test_interpolation(emulated, mode, data):
    case = data.draw(warp_cases(mode))
    arguments = case.input, case.displacement, *codes(case)
    output, expected = emulated.warp(*arguments), torch.ops.tcwarp.warp(*arguments)
    if output.numel():
        assert_close(
            output, expected, "warp", atol=tolerance(case.displacement, expected, case.input)
        )


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@given(data=st.data())
def test_backward_by_the_input(emulated, mode, deterministic, data):
    case = data.draw(warp_cases(mode))
    arguments = case.gradient, case.displacement, *codes(case), deterministic, case.image_size
    output = emulated.warp_backward_input(*arguments)
    expected = torch.ops.tcwarp.warp_backward_input(*arguments)
    assert output.stride() == expected.stride()
    if output.numel():
        # All pixels may meet in one.
        atol = tolerance(case.displacement, expected, case.gradient.abs().sum(dim=(2, 3)))
        assert_close(output, expected, "gradient", atol=atol)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@given(data=st.data())
def test_backward_by_the_displacement(emulated, mode, data):
    case = data.draw(warp_cases(mode))
    gradient = case.gradient
    arguments = gradient, case.input, case.displacement, *codes(case)
    output = emulated.warp_backward_displacement(*arguments)
    expected = torch.ops.tcwarp.warp_backward_displacement(*arguments)
    if case.input.numel():
        atol = 30 * tolerance(case.displacement, expected, case.input, gradient * gradient)
        assert_close(output, expected, "gradient", atol=atol)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("size", [(9, 10), (5, 6, 7)])
def test_the_displacement_gradient_is_summed_in_the_image_s_precision(emulated, size, mode):
    """Large channels that cancel leave a small one, which float32 would not have."""
    image = 1e6 * image_values(torch.float64, (2, 2, *size), 0)
    image[:, 1] = image[:, 0] + image_values(torch.float64, (2, *size), 1)
    gradient = torch.ones_like(image)
    gradient[:, 0] = -1
    field = displacement_values("halves", (2, len(size), *size), 2).float()  # exact weights
    arguments = gradient, image, field, mode, 1
    output = emulated.warp_backward_displacement(*arguments)
    expected = torch.ops.tcwarp.warp_backward_displacement(*arguments)
    # Weights are rounded to float32 alike in both channels: what remains of them is about 1.
    assert_close(output, expected, "gradient", atol=1e-4)


# Large enough for vectors of pixels, with rows that do and do not end where vectors do.
@pytest.mark.parametrize("size", [(16, 64), (36, 45), (8, 6, 14)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_vector_paths(emulated, dtype, layout, channels, size):
    image = with_layout(image_values(dtype, (2, channels, *size), 0), layout)
    displacement = displacement_values("mixed", (2, len(size), *size), 1).float()
    for padding in PADDING_MODES.values():
        output = emulated.warp(image, displacement, 0, padding)
        assert_bits_equal(output, torch.ops.tcwarp.warp(image, displacement, 0, padding), "warp")
    # Each mode with one padding: the other pairs are among the cases of the tests above.
    for codes in zip(MODES.values(), PADDING_MODES.values(), strict=True):
        if dtype.is_floating_point:
            arguments = image, displacement, *codes, False
            scattered = emulated.warp_backward_input(*arguments)
            expected = torch.ops.tcwarp.warp_backward_input(*arguments)
            sums = image.abs().double().sum(dim=(2, 3)).to(dtype)
            atol = tolerance(displacement, expected, sums)
            assert_close(scattered, expected, "gradient", atol=atol)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_blocks_changes_no_bit(emulated, mode):
    """Save in sums by atomics, which show that the order does change from launch to launch."""
    image = image_values(torch.float32, (2, 3, 24, 40), 0)
    field = displacement_values("rough", (2, 2, 24, 40), 1).float()
    arguments = image, field, MODES[mode], PADDING_MODES["border"]
    ordered, unordered = [], set()
    for _ in range(5):
        results = [
            emulated.warp(*arguments),
            emulated.warp_backward_input(*arguments, True),
            *(
                []
                if mode == "nearest"
                else [emulated.warp_backward_displacement(image, *arguments)]
            ),
        ]
        ordered.append(torch.cat([result.flatten() for result in results]))
        unordered.add(emulated.warp_backward_input(*arguments, False).numpy().tobytes())
    for other in ordered[1:]:
        assert_bits_equal(other, ordered[0], mode)
    assert len(unordered) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deterministic_sums_are_exact(emulated, dtype):
    """Terms that cancel: sums of floats would keep what is lost in another order."""
    image = image_values(dtype, (1, 1, 20, 20), 0)
    image[0, 0, 0, 0], image[0, 0, 10, 10] = 1e6, -1e6
    displacement = torch.full((1, 2, 20, 20), -1e3)
    output = emulated.warp_backward_input(image, displacement, 0, 1, True)
    exact = math.fsum(image.flatten().tolist())
    # Each term is rounded to 2^-50 of the largest, in double precision to 2^-100.
    atol = 400 * 1e6 * 2.0**-50 if dtype == torch.float32 else 0.0
    atol += torch.finfo(dtype).eps * abs(exact)
    assert output[0, 0, 0, 0].item() == pytest.approx(exact, rel=0, abs=atol)
    assert not output.flatten()[1:].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e-44, 3e38, 0.0])
def test_deterministic_sums_of_extremes(emulated, value):
    image = torch.zeros(1, 1, 4, 8)
    image[0, 0, 0, :2] = value
    image[0, 0, 3, 3] = 0.5 if abs(value) != 3e38 and value != 1e-44 else 0.0
    arguments = image, torch.zeros(1, 2, 4, 8), 0, 0, True
    assert_close(emulated.warp_backward_input(*arguments), image, "gradient", atol=0)


@pytest.mark.parametrize("size", [(40, 70), (33, 1), (1, 65), (6, 5, 34)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_spline_filter_over_many_tiles(emulated, layout, transposed, size):
    image = with_layout(image_values(torch.float64, (1, 3, *size), 0), layout)
    displacement = torch.full((1, len(size), *size), 0.25, dtype=torch.float64)
    for padding in PADDING_MODES.values():
        arguments = image, displacement, 2, padding
        if transposed:
            pair = [
                ops.warp_backward_input(*arguments, False) for ops in (emulated, torch.ops.tcwarp)
            ]
        else:
            pair = [ops.warp(*arguments) for ops in (emulated, torch.ops.tcwarp)]
        assert_close(*pair, "cubic warp", atol=1e-12)


@pytest.mark.parametrize("size", [(30, 40), (9, 8, 10)])
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_align(emulated, dtype, size):
    first, second = (
        0.3 * displacement_values("smooth", (2, len(size), *size), seed).to(dtype)
        for seed in (1, 2)
    )
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    other_grid = 0.3 * displacement_values("smooth", (2, len(size), *size[::-1]), 3).to(dtype)
    for t1, t2 in ((first, second), (first, None), (first[:1], other_grid), (-2.9 * first, None)):
        pairs = zip(
            emulated.align(t1, t2, tolerance, 32),
            torch.ops.tcwarp.align(t1, t2, tolerance, 32),
            strict=True,
        )
        for output, expected in pairs:
            assert output.dtype == expected.dtype
            # Both end within the tolerance; half precision rounds the two apart.
            atol = 10 * tolerance + float(expected.abs().max()) * torch.finfo(dtype).eps
            assert_close(output, expected, "align", atol=atol)


@pytest.mark.parametrize("modes", [(5, 7), (3, 4, 5)])
def test_field_coefficients(emulated, modes):
    arguments = torch.tensor([-5]), 7, 60, list(modes), 0.3
    expected = torch.ops.tcwarp.field_coefficients(*arguments)
    assert_close(emulated.field_coefficients(*arguments), expected, "coefficients", atol=1e-13)


# Modes that end where a kernel for fewer ends, and the most; rows that end amid four pixels.
@pytest.mark.parametrize("modes", [(1, 1), (8, 12), (12, 64), (24, 3)])
@pytest.mark.parametrize("size", [(3, 2), (70, 45), (65, 1100)])
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_sum_modes(emulated, dtype, size, modes):
    working = torch.promote_types(dtype, torch.float32)
    coefficients = image_values(torch.float64, (3, *modes), 0)
    rows = image_values(working, (size[0], modes[0]), 1)
    columns = image_values(working, (modes[1], size[1]), 2)
    output = emulated.sum_modes(coefficients, rows, columns, 0.3, dtype)
    exact = 0.3 * rows.double() @ coefficients @ columns.double()
    terms = (rows.abs().double() @ coefficients.abs() @ columns.abs().double()).max()
    assert output.dtype == dtype
    rounding = 64 * torch.finfo(working).eps * terms + torch.finfo(dtype).eps * exact.abs().max()
    assert_close(output, exact, "sum", atol=float(rounding))


def test_sum_modes_of_too_many(emulated):
    arguments = torch.ones(1, 25, 1).double(), torch.ones(4, 25), torch.ones(1, 4)
    with pytest.raises(RuntimeError, match="at most 24 and 64 modes, got 25 and 1"):
        emulated.sum_modes(*arguments, 1.0, torch.float32)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_sample_of_large_gradients_does_not_coarsen_another(emulated, deterministic):
    image = image_values(torch.float32, (2, 1, 16, 16), 0)
    image[1] *= 1e30
    displacement = displacement_values("smooth", (2, 2, 16, 16), 1)
    arguments = displacement, 1, 1, deterministic
    output = emulated.warp_backward_input(image, *arguments)
    alone = emulated.warp_backward_input(image[:1], displacement[:1], 1, 1, deterministic)
    assert_close(output[:1], alone, "gradient", atol=1e-6)


@pytest.mark.parametrize("axes", [(1, 1, 64), (2, 1, 32), (1, 1, 1)])
def test_deterministic_sums_of_short_axes(emulated, axes):
    """All taps of a cubic volume meet in a pixel: 64 rests of half a unit each."""
    image = image_values(torch.float64, (1, 1, *axes), 0).mul_(1 / 3)
    displacement = torch.full((1, 3, *axes), 0.3, dtype=torch.float64)
    for padding in PADDING_MODES.values():
        arguments = image, displacement, 2, padding
        output = emulated.warp_backward_input(*arguments, True)
        expected = torch.ops.tcwarp.warp_backward_input(*arguments, False)
        assert_close(output, expected, "gradient", atol=1e-13)
