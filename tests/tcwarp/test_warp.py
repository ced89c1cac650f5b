"""The warp against its specification: values, layouts, dtypes, extremes, compilation."""

import itertools

import numpy as np
import pytest
import torch
from assertions import assert_bits_equal, assert_close, bits
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from strategies import (
    DISPLACEMENT_KINDS,
    FLOATING_DTYPES,
    LAYOUTS,
    MODE_AND_PADDING,
    MODES,
    OTHER_DTYPES,
    PADDING_MODES,
    WarpCase,
    coordinates,
    displacement_values,
    image_values,
    warp_cases,
    with_layout,
)

import tcwarp
from tcwarp import reference


def warp(case: WarpCase) -> torch.Tensor:
    return tcwarp.warp(
        case.input, case.displacement, mode=case.mode, padding_mode=case.padding_mode
    )


def expected(case: WarpCase, image: np.ndarray) -> np.ndarray:
    return reference.warp(image, coordinates(case.displacement), case.mode, case.padding_mode)


# ------------------------------------------------------------------------------------ values


@given(warp_cases("nearest", FLOATING_DTYPES + OTHER_DTYPES))
def test_nearest_equals_reference_bit_for_bit(device, case):
    output = warp(case.to(device))
    assert output.dtype == case.input.dtype
    assert output.shape == case.gradient.shape
    np.testing.assert_array_equal(bits(output), expected(case, bits(case.input)))


@pytest.mark.parametrize("mode, factor", [("linear", 4), ("cubic", 60)])
@given(data=st.data())
def test_interpolation_equals_reference(device, mode, factor, data):
    case = data.draw(warp_cases(mode))
    output = warp(case.to(device))
    assert output.dtype == case.input.dtype
    # Linear: up to eight taps, none of which is larger than the image. Cubic: coefficients are
    # up to three times as large for each axis.
    largest = float(case.input.double().abs().max()) if case.input.numel() else 0.0
    reference_output = expected(case, case.input.double().numpy())
    assert_close(output, reference_output, "warp", atol=factor * case.precision() * largest)


@pytest.mark.parametrize(
    "padding_mode, scipy_mode, atol",
    [("zeros", "grid-constant", 1e-6), ("border", "nearest", 1e-6), ("reflection", "reflect", 0)],
)
@pytest.mark.parametrize("size", [(29, 34), (17, 16, 19)])
def test_cubic_equals_scipy(device, size, padding_mode, scipy_mode, atol):
    image = image_values(torch.float64, (1, 1, *size), 0)
    displacement = 5 * image_values(torch.float64, (1, len(size), *size), 1)
    output = tcwarp.warp(
        image.to(device), displacement.to(device), mode="cubic", padding_mode=padding_mode
    )
    places = np.indices(size) + displacement[0].numpy()
    scipy_output = ndimage.map_coordinates(image[0, 0].numpy(), places, order=3, mode=scipy_mode)
    # SciPy continues the image by 12 pixels only: 0.268^12 is 1e-7.
    assert_close(output[0, 0], scipy_output, "warp", atol=atol + 1e-11)


@pytest.mark.parametrize("size", [(3, 1201), (2, 3, 700)])
@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
def test_rows_longer_than_one_chunk(device, size, mode, padding_mode):
    image = image_values(torch.float32, (1, 2, *size), 0)
    displacement = displacement_values("mixed", (1, len(size), *size), 1).float()
    case = WarpCase(image, displacement, image, mode, padding_mode, "contiguous")
    values = expected(case, image.double().numpy())
    assert_close(warp(case.to(device)), values, "warp", atol=4 * case.precision() * 5)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_exact_halves_round_up(device, padding_mode):
    image = torch.arange(1, 6, device=device).reshape(1, 1, 1, 5)
    displacement = torch.zeros(1, 2, 1, 5, device=device)
    displacement[0, 1, 0] = torch.tensor([0.5, -0.5, 1.5, -1.5, 0.49999997])
    output = tcwarp.warp(image, displacement, padding_mode=padding_mode)
    assert output.tolist() == [[[[2, 2, 5, 3, 5]]]]


def special_image(dtype: torch.dtype, size: tuple[int, ...]) -> torch.Tensor:
    """Every pixel has a neighbour that must not leak."""
    values = torch.tensor([1.5, float("inf"), -0.0, float("nan"), float("-inf"), 0.0, 1e-40, -7.25])
    count = int(np.prod(size))
    return values.repeat(count // len(values) + 1)[:count].reshape(1, 1, *size).to(dtype)


@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
@pytest.mark.parametrize("size", [(5, 7), (3, 5, 4), (1, 1)])
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_zero_displacement_is_the_identity_bit_for_bit(device, dtype, size, mode, padding_mode):
    image = special_image(dtype, size).to(device)
    displacement = torch.zeros(1, len(size), *size, device=device)
    for zero in (displacement, -displacement):
        output = tcwarp.warp(image, zero, mode=mode, padding_mode=padding_mode)
        np.testing.assert_array_equal(output.isnan().cpu(), image.isnan().cpu())
        assert_bits_equal(output.nan_to_num(3.0), image.nan_to_num(3.0), "warp")


@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
def test_whole_steps_read_no_neighbour(device, mode, padding_mode):
    image = special_image(torch.float32, (4, 6)).to(device)
    displacement = torch.zeros(1, 2, 4, 6, device=device)
    displacement[:, 1, :, :-1] = 1
    output = tcwarp.warp(image, displacement, mode=mode, padding_mode=padding_mode)
    assert_close(output[..., :-1], image[..., 1:], "warp", atol=0)


@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("component", [0, 1])
def test_displacement_that_is_not_finite(device, mode, padding_mode, value, component):
    image = torch.full((1, 2, 3, 3), 5.0, device=device, requires_grad=True)
    displacement = torch.zeros(1, 2, 3, 3, device=device)
    displacement[0, component, 1, 1] = value
    displacement.requires_grad_(mode != "nearest")
    output = tcwarp.warp(image, displacement, mode=mode, padding_mode=padding_mode)
    hole = torch.zeros(3, 3, dtype=torch.bool)
    hole[1, 1] = True
    assert output[0, 0].eq(0).cpu().equal(hole)
    output.sum().backward()
    assert image.grad[0, 1].eq(0).cpu().equal(hole)
    if mode != "nearest":
        assert displacement.grad.isfinite().all()
        assert displacement.grad[0, :, 1, 1].eq(0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [1e30, -1e30, 3e38, 2.0**31, -(2.0**31)])
def test_displacements_far_outside(device, mode, value):
    image = torch.arange(1.0, 10.0, device=device).reshape(1, 1, 3, 3)
    displacement = torch.zeros(1, 2, 3, 3, device=device)
    displacement[:, 1] = value
    assert not tcwarp.warp(image, displacement, mode=mode, padding_mode="zeros").any()
    edge = image[..., -1:] if value > 0 else image[..., :1]
    border = tcwarp.warp(image, displacement, mode=mode, padding_mode="border")
    assert_close(border, edge.expand_as(image), "warp", atol=0)
    # Clamped to 2**30 before it is reflected.
    step = 2**30 if value > 0 else -(2**30)
    columns = [reference.pad_index(x + step, 3, "reflection") for x in range(3)]
    reflection = tcwarp.warp(image, displacement, mode=mode, padding_mode="reflection")
    assert_close(reflection, image[..., columns], "warp", atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 1, 2, 3, 4), (1, 1, 2, 0, 3)],
)
def test_empty(device, mode, shape):
    image = torch.ones(shape, device=device, requires_grad=True)
    displacement = torch.zeros(shape[0], len(shape) - 2, *shape[2:], device=device)
    displacement.requires_grad_(mode != "nearest")
    output = tcwarp.warp(image, displacement, mode=mode)
    assert output.shape == shape
    output.sum().backward()
    assert image.grad.shape == shape
    if mode != "nearest":
        assert displacement.grad.shape == displacement.shape
        assert not displacement.grad.any()


# ----------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 3, 4, 3, 5)])
def test_channels_last_stays_channels_last(device, mode, shape):
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    image = image_values(torch.float32, shape, 0).to(device)
    displacement = displacement_values("rough", (2, len(shape) - 2, *shape[2:]), 1)
    displacement = displacement.float().to(device)
    strided = image.to(memory_format=last).requires_grad_()
    output = tcwarp.warp(strided, displacement, mode=mode)
    assert output.is_contiguous(memory_format=last)
    # A spline is summed in another order: row by row.
    atol = 1e-6 if mode == "cubic" else 0
    assert_close(output, tcwarp.warp(image, displacement, mode=mode), "warp", atol=atol)
    assert tcwarp.warp(image, displacement, mode=mode).is_contiguous()
    (grad,) = torch.autograd.grad(output, strided, output.detach())
    assert grad.is_contiguous(memory_format=last)


# ------------------------------------------------------------------------- a citizen of torch


def operator_samples() -> list[tuple[str, tuple]]:
    """One line for each operator and situation that opcheck looks at."""
    samples: list[tuple[str, tuple]] = []
    for size, layout in itertools.product([(4, 5), (2, 3, 4)], LAYOUTS):
        image = with_layout(image_values(torch.float32, (2, 3, *size), 0), layout)
        displacement = displacement_values("smooth", (2, len(size), *size), 1).float()
        strided = with_layout(displacement, layout if layout != "expanded" else "sliced")
        for mode, padding in ((0, 2), (1, 0), (2, 2)):
            leaf, moving = image.detach(), strided.detach()
            samples.append(("warp", (leaf, moving, mode, padding)))
            samples.append(("warp_backward_input", (leaf, moving, mode, padding, False)))
        samples.append(("warp_backward_displacement", (image, image, strided, 1, 1)))
        samples.append(("align", (strided, None, 1e-5, 32)))
        samples.append(("align", (strided, displacement, 1e-5, 32)))
    samples.append(
        ("warp", (torch.ones(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, 2, 3, 3), 0, 0))
    )
    samples.append(("warp", (torch.ones(0, 1, 3, 3), torch.zeros(0, 2, 3, 3), 1, 0)))
    image = image_values(torch.float32, (2, 3, 4, 5), 0)
    shared = displacement_values("smooth", (1, 2, 3, 6), 1).float()
    for mode in (0, 1, 2):  # another grid, one displacement for all samples
        samples.append(("warp", (image, shared, mode, 0)))
        gradient = image_values(torch.float32, (2, 3, 3, 6), 2)
        samples.append(("warp_backward_input", (gradient, shared, mode, 0, False, (4, 5))))
    samples.append(("warp_backward_displacement", (gradient, image, shared, 2, 0)))
    samples.append(
        ("align", (shared, displacement_values("smooth", (2, 2, 4, 5), 3).float(), 1e-5, 32))
    )
    half = torch.zeros(2, 2, 4, 5, dtype=torch.float16)
    image = torch.ones(2, 3, 4, 5)
    samples.append(("warp", (image, half, 1, 0)))
    samples.append(("warp_backward_input", (image, half, 1, 0, False)))
    samples.append(("warp_backward_displacement", (image, image, half, 2, 0)))
    samples.append(("align", (half, half, 1e-5, 32)))
    for modes in ((3, 2), (2, 3, 1)):
        samples.append(("field_coefficients", (torch.tensor([5]), 1, 5, list(modes), 0.5)))
    factors = image_values(torch.float64, (5, 3, 2), 0), torch.ones(6, 3), torch.ones(2, 7)
    samples += [("sum_modes", (*factors, 2.0, dtype)) for dtype in (torch.float32, torch.float16)]
    return samples


SAMPLES = operator_samples()


def test_opcheck_covers_every_operator():
    every = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tcwarp::")}
    assert every == {f"tcwarp::{name}" for name, _ in SAMPLES}


def opcheck_case(name, arguments):
    """One line of `SAMPLES`; what differs from others in the layout of volumes alone is slow."""
    first = arguments[0]
    slow = first.dim() == 5 and not first.is_contiguous()
    return pytest.param(name, arguments, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("name, arguments", itertools.starmap(opcheck_case, SAMPLES))
def test_opcheck(device, name, arguments):
    moved = tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments)
    torch.library.opcheck(getattr(torch.ops.tcwarp, name).default, moved)
    if name in ("warp", "warp_backward_input") and moved[0].is_floating_point():
        leaves = (moved[0].clone().requires_grad_(), moved[1].clone().requires_grad_(moved[2] == 1))
        torch.library.opcheck(getattr(torch.ops.tcwarp, name).default, (*leaves, *moved[2:]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_break(device, mode, dynamic):
    torch._dynamo.reset()  # every case is a new version of one function, of which few are kept

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(image, displacement):
        return tcwarp.warp(image * 2, displacement, mode=mode, padding_mode="reflection").sin()

    for size in ((5, 6), (7, 4)):
        image = image_values(torch.float32, (2, 3, *size), 0).to(device).requires_grad_()
        displacement = displacement_values("smooth", (2, 2, *size), 1).float().to(device)
        output = compiled(image, displacement)
        eager = tcwarp.warp(image * 2, displacement, mode=mode, padding_mode="reflection").sin()
        assert_close(output, eager, "compiled warp", atol=0)
        (grad,) = torch.autograd.grad(output.sum(), image)
        (eager_grad,) = torch.autograd.grad(eager.sum(), image)
        assert_close(grad, eager_grad, "gradient of compiled warp", atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_changes_nothing(device, mode):
    image = torch.rand(1, 2, 6, 6, device=device)
    displacement = torch.randn(1, 2, 6, 6, device=device)
    expected_output = tcwarp.warp(image, displacement, mode=mode)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = tcwarp.warp(image, displacement, mode=mode)
        # What a network under autocast hands over.
        half = tcwarp.warp(image.bfloat16(), displacement, mode=mode)
    assert_bits_equal(output, expected_output, "warp under autocast")
    assert half.dtype == torch.bfloat16


@given(st.sampled_from(DISPLACEMENT_KINDS), st.integers(0, 2**32 - 1))
def test_half_displacement_is_that_of_its_float32_value(device, kind, seed):
    image = image_values(torch.float32, (1, 1, 5, 6), seed).to(device)
    for dtype in (torch.float16, torch.bfloat16):
        half = displacement_values(kind, (1, 2, 5, 6), seed).to(dtype).to(device)
        for mode in MODES:
            results = []
            for displacement in (half, half.float()):
                leaf = displacement.requires_grad_(mode != "nearest")
                output = tcwarp.warp(image, leaf, mode=mode)
                gradients = torch.autograd.grad(output.sum(), leaf) if mode != "nearest" else ()
                results.append([output.detach(), *(gradient.to(dtype) for gradient in gradients)])
            for own, single in zip(*results, strict=True):
                assert_bits_equal(own, single, f"{dtype} {mode}")


@pytest.mark.parametrize("mode", MODES)
def test_module_is_the_function(device, mode):
    image = torch.rand(1, 2, 6, 6, device=device)
    displacement = torch.randn(1, 2, 6, 6, device=device)
    module = tcwarp.Warp(mode=mode, padding_mode="border")
    expected_output = tcwarp.warp(image, displacement, mode=mode, padding_mode="border")
    assert_bits_equal(module(image, displacement), expected_output, "Warp")
    assert mode in repr(module)


def test_views_that_are_conjugate_or_negative(device):
    """Such a view has the bits of its base; an operator must see what it stands for."""
    image = torch.randn(1, 2, 6, 7, dtype=torch.complex64, device=device)
    displacement = torch.randn(1, 2, 6, 7, device=device)
    conjugate = tcwarp.warp(image.conj(), displacement)
    assert torch.equal(conjugate, tcwarp.warp(image, displacement).conj().resolve_conj())
    negative = image.conj().imag
    assert negative.is_neg()
    for mode in MODES:
        output = tcwarp.warp(negative, displacement, mode=mode)
        assert_bits_equal(output, tcwarp.warp(-image.imag, displacement, mode=mode), "warp")


def test_arguments_are_not_changed(device):
    image = torch.rand(1, 2, 6, 6, device=device)
    displacement = torch.randn(1, 2, 6, 6, device=device)
    copies = image.clone(), displacement.clone()
    for mode, padding_mode in MODE_AND_PADDING:
        tcwarp.warp(image, displacement, mode=mode, padding_mode=padding_mode)
    assert_bits_equal(image, copies[0], "input")
    assert_bits_equal(displacement, copies[1], "displacement")
