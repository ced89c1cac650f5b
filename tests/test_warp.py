"""The warp against its specification: values, adjoint, gradients, layouts, dtypes, extremes."""

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

MODE_AND_PADDING = list(itertools.product(MODES, PADDING_MODES))


def warp(case: WarpCase) -> torch.Tensor:
    return tcwarp.warp(
        case.input, case.displacement, mode=case.mode, padding_mode=case.padding_mode
    )


def expected(case: WarpCase, image: np.ndarray) -> np.ndarray:
    return reference.warp(image, coordinates(case.displacement), case.mode, case.padding_mode)


def precision(case: WarpCase) -> float:
    """Weights are as precise as the displacement, sums and the result as the dtypes allow."""
    single = torch.finfo(torch.float32).eps
    weights = torch.finfo(case.displacement.dtype).eps
    return max(torch.finfo(case.input.dtype).eps, min(weights, single))


# ------------------------------------------------------------------------------------ values


@given(warp_cases("nearest", FLOATING_DTYPES + OTHER_DTYPES))
def test_nearest_equals_reference_bit_for_bit(device, case):
    output = warp(case.to(device))
    assert output.dtype == case.input.dtype
    assert output.shape == case.input.shape
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
    assert_close(output, reference_output, "warp", atol=factor * precision(case) * largest)


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
    case = WarpCase(image, displacement, mode, padding_mode, "contiguous")
    values = expected(case, image.double().numpy())
    assert_close(warp(case.to(device)), values, "warp", atol=4 * precision(case) * 5)


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
    assert_close(output, tcwarp.warp(image, displacement, mode=mode), "warp", atol=0)
    assert tcwarp.warp(image, displacement, mode=mode).is_contiguous()
    (grad,) = torch.autograd.grad(output, strided, output.detach())
    assert grad.is_contiguous(memory_format=last)


@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_layout_does_not_matter_to_gradients(device, layout, mode, padding_mode):
    image = image_values(torch.float64, (2, 3, 5, 6), 0).to(device)
    displacement = displacement_values("rough", (2, 2, 5, 6), 1).to(device)
    gradient = image_values(torch.float64, (2, 3, 5, 6), 2).to(device)

    def gradients(place):
        inputs = [image.clone(), displacement.clone()]
        leaves = [x.requires_grad_(mode != "nearest" or i == 0) for i, x in enumerate(inputs)]
        # `place` is differentiable, so the gradient arrives through the other strides.
        output = tcwarp.warp(*map(place, leaves), mode=mode, padding_mode=padding_mode)
        wanted = leaves if mode != "nearest" else leaves[:1]
        return torch.autograd.grad(output, wanted, place(gradient))

    plain = gradients(lambda x: x)
    other = gradients(lambda x: with_layout(x, layout))
    for a, b in zip(plain, other, strict=True):
        assert_close(b, a, f"gradient through {layout}", atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_expanded_gradient(device, mode):
    # `sum().backward()` sends a gradient with all strides zero.
    image = image_values(torch.float64, (1, 2, 4, 5), 0).to(device).requires_grad_()
    displacement = displacement_values("smooth", (1, 2, 4, 5), 1).to(device)
    tcwarp.warp(image, displacement, mode=mode).sum().backward()
    ones = np.ones((1, 2, 4, 5))
    expected_grad = reference.warp_backward(ones, displacement.cpu().numpy(), mode)
    assert_close(image.grad, expected_grad, "gradient", atol=1e-12)


# --------------------------------------------------------------------------------- gradients


@given(warp_cases(input_dtypes=(torch.float64,), kinds=("zero", "halves", "extreme", "smooth")))
def test_adjoint_identity(device, case):
    case = case.to(device)
    image = case.input.round().requires_grad_()
    output = tcwarp.warp(image, case.displacement, mode=case.mode, padding_mode=case.padding_mode)
    gradient = (3 * output.detach() + 1).round()
    (back,) = torch.autograd.grad(output, image, gradient)
    left, right = (output * gradient).sum().item(), (image * back).sum().item()
    # Sums of integers in nearest mode: exact.
    size = 0.0 if case.mode == "nearest" else precision(case) * image.numel() * 50
    assert left == pytest.approx(right, rel=0, abs=size)


@given(warp_cases(input_dtypes=(torch.float32, torch.float64)))
def test_backward_equals_reference(device, case):
    # Small integers: sums are exact in nearest mode, whatever their order.
    gradient = (4 * case.input).round()
    case_on_device = case.to(device)
    image = torch.zeros_like(case_on_device.input, requires_grad=True)
    output = tcwarp.warp(
        image, case_on_device.displacement, mode=case.mode, padding_mode=case.padding_mode
    )
    (back,) = torch.autograd.grad(output, image, gradient.to(device))
    expected_back = reference.warp_backward(
        gradient.double().numpy(), coordinates(case.displacement), case.mode, case.padding_mode
    )
    # At worst all pixels meet in one.
    worst = (
        float(gradient.double().abs().sum(dim=tuple(range(2, gradient.dim()))).amax())
        if (gradient.numel())
        else 0.0
    )
    atol = 0.0 if case.mode == "nearest" else 8 * precision(case) * worst
    assert_close(back, expected_back, "gradient of warp by input", atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("channels", [2, 11])  # within a group that is summed at once, and beyond
def test_backward_in_half_precision(device, dtype, mode, layout, channels):
    image = with_layout(image_values(dtype, (1, channels, 6, 7), 0).to(device), layout)
    image.requires_grad_()
    displacement = displacement_values("smooth", (1, 2, 6, 7), 1).float().to(device)
    gradient = image_values(dtype, (1, channels, 6, 7), 2)
    output = tcwarp.warp(image, displacement, mode=mode)
    (back,) = torch.autograd.grad(output, image, gradient.to(device))
    assert back.dtype == dtype
    expected_back = reference.warp_backward(
        gradient.double().numpy(), displacement.cpu().numpy(), mode
    )
    # A few terms meet in a pixel of a smooth field; each sum is rounded to the dtype.
    atol = 8 * torch.finfo(dtype).eps * float(gradient.abs().max())
    assert_close(back, expected_back, "gradient of warp by input", atol=atol)


def away_from_kinks(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Displacements whose fractions keep clear of 0 and 1, where linear has kinks."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(-4, 4, size=shape) + rng.uniform(0.2, 0.8, size=shape))


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
def test_gradcheck(device, size, mode, padding_mode):
    image = image_values(torch.float64, (2, 2, *size), 0).to(device).requires_grad_()
    displacement = away_from_kinks((2, len(size), *size), 1).to(device)
    displacement.requires_grad_(mode != "nearest")

    def function(image, displacement):
        return tcwarp.warp(image, displacement, mode=mode, padding_mode=padding_mode)

    assert torch.autograd.gradcheck(function, (image, displacement))


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
def test_double_backward_of_the_image_gradient(device, size, mode, padding_mode):
    image = image_values(torch.float64, (1, 2, *size), 0).to(device).requires_grad_()
    displacement = away_from_kinks((1, len(size), *size), 1).to(device)

    def function(image):
        # The cube makes the gradient depend on the image, so that there is something to check.
        return tcwarp.warp(image**3, displacement, mode=mode, padding_mode=padding_mode)

    assert torch.autograd.gradgradcheck(function, (image,))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_image_gradient_is_differentiable_by_the_displacement(device, padding_mode):
    gradient = image_values(torch.float64, (1, 2, 3, 4), 0).to(device).requires_grad_()
    displacement = away_from_kinks((1, 2, 3, 4), 1).to(device).requires_grad_()
    padding_code = PADDING_MODES.index(padding_mode)

    def scatter(gradient, displacement):
        return torch.ops.tcwarp.warp_backward_input(gradient, displacement, 1, padding_code, False)

    assert torch.autograd.gradcheck(scatter, (gradient, displacement))


def test_second_derivative_by_the_displacement_is_an_error(device):
    image = torch.rand(1, 1, 4, 4, device=device, requires_grad=True)
    displacement = torch.rand(1, 2, 4, 4, device=device, requires_grad=True)
    output = tcwarp.warp(image, displacement, mode="linear").square().sum()
    (grad,) = torch.autograd.grad(output, displacement, create_graph=True)
    # Not wrong zeros in silence.
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.square().sum(), image, allow_unused=True)


def test_nearest_has_no_gradient_by_the_displacement(device):
    image = torch.rand(1, 1, 4, 4, device=device, requires_grad=True)
    displacement = torch.rand(1, 2, 4, 4, device=device, requires_grad=True)
    tcwarp.warp(image, displacement).sum().backward()
    assert image.grad is not None
    assert displacement.grad is None


def test_integer_image_has_no_gradient(device):
    displacement = torch.rand(1, 2, 4, 4, device=device, requires_grad=True)
    assert not tcwarp.warp(
        torch.ones(1, 1, 4, 4, dtype=torch.uint8, device=device), displacement
    ).requires_grad


# ------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("mode, padding_mode", MODE_AND_PADDING)
def test_result_does_not_depend_on_the_number_of_threads(threads, mode, padding_mode):
    shape = (2, 3, 70, 130)
    image = image_values(torch.float32, shape, 0).requires_grad_()
    displacement = displacement_values("mixed", (2, 2, 70, 130), 1).float()
    displacement = (displacement / 40).requires_grad_(mode != "nearest")  # many meet in one pixel
    gradient = image_values(torch.float32, shape, 2)
    wanted = (image, displacement) if mode != "nearest" else (image,)
    results = []
    for count in threads:
        torch.set_num_threads(count)
        output = tcwarp.warp(image, displacement, mode=mode, padding_mode=padding_mode)
        results.append((output.detach(), *torch.autograd.grad(output, wanted, gradient)))
    for other, what in itertools.product(results[1:], range(len(results[0]))):
        assert_bits_equal(other[what], results[0][what], f"result {what} of warp")


@pytest.mark.parametrize("mode", MODES)
def test_deterministic_algorithms_are_no_error(device, mode):
    image = torch.rand(1, 1, 5, 5, device=device, requires_grad=True)
    displacement = torch.rand(1, 2, 5, 5, device=device)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        tcwarp.warp(image, displacement, mode=mode).sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert image.grad.isfinite().all()


# ------------------------------------------------------------------------- a citizen of torch


def operator_samples() -> list[tuple[str, tuple]]:
    """One line for each operator and situation that opcheck looks at."""
    samples: list[tuple[str, tuple]] = []
    for size, layout in itertools.product([(4, 5), (2, 3, 4)], LAYOUTS):
        image = with_layout(image_values(torch.float32, (2, 3, *size), 0), layout)
        displacement = displacement_values("smooth", (2, len(size), *size), 1).float()
        strided = with_layout(displacement, layout if layout != "expanded" else "sliced")
        for mode, padding in itertools.product((0, 1, 2), (0, 2)):
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
    for modes in ((3, 2), (2, 3, 1)):
        samples.append(("field_coefficients", (torch.tensor([5]), 1, 5, list(modes), 0.5)))
    return samples


SAMPLES = operator_samples()


def test_opcheck_covers_every_operator():
    every = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tcwarp::")}
    assert every == {f"tcwarp::{name}" for name, _ in SAMPLES}


@pytest.mark.parametrize("name, arguments", SAMPLES, ids=[name for name, _ in SAMPLES])
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


def test_arguments_are_not_changed(device):
    image = torch.rand(1, 2, 6, 6, device=device)
    displacement = torch.randn(1, 2, 6, 6, device=device)
    copies = image.clone(), displacement.clone()
    for mode, padding_mode in MODE_AND_PADDING:
        tcwarp.warp(image, displacement, mode=mode, padding_mode=padding_mode)
    assert_bits_equal(image, copies[0], "input")
    assert_bits_equal(displacement, copies[1], "displacement")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_scattered_in_float32(dtype, mode, layout):
    """4096 ones into one pixel: summed in half precision they would stop at 2048 or 256."""
    image = torch.zeros(1, 2, 64, 64, dtype=dtype).to(memory_format=layout).requires_grad_()
    displacement = torch.full((1, 2, 64, 64), -1e6)
    output = tcwarp.warp(image, displacement, mode=mode, padding_mode="border")
    (gradient,) = torch.autograd.grad(output, image, torch.ones_like(output))
    assert gradient[0, :, 0, 0].tolist() == [4096, 4096]
    assert gradient.sum() == 8192


def test_complex_images_have_a_gradient():
    image = torch.randn(1, 2, 6, 7, dtype=torch.complex64, requires_grad=True)
    displacement = 3 * torch.randn(1, 2, 6, 7)
    output = tcwarp.warp(image, displacement)
    assert torch.equal(output, tcwarp.warp(image.detach(), displacement))
    grad_output = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, image, grad_output)
    for part in (torch.real, torch.imag):
        real = part(image).detach().requires_grad_()
        (expected,) = torch.autograd.grad(
            tcwarp.warp(real, displacement), real, part(grad_output).contiguous()
        )
        assert torch.equal(part(gradient), expected)
