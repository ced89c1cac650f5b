"""The gradients of the warp: adjoint, reference, derivatives of both orders, determinism."""

import itertools

import numpy as np
import pytest
import torch
from assertions import assert_bits_equal, assert_close
from hypothesis import given
from strategies import (
    LAYOUTS,
    MODE_AND_PADDING,
    MODES,
    PADDING_MODES,
    coordinates,
    displacement_values,
    image_values,
    warp_cases,
    with_layout,
)

import tcwarp
from tcwarp import reference


@given(warp_cases(input_dtypes=(torch.float64,), kinds=("zero", "halves", "extreme", "smooth")))
def test_adjoint_identity(device, case):
    case = case.to(device)
    image = case.input.round().requires_grad_()
    output = tcwarp.warp(image, case.displacement, mode=case.mode, padding_mode=case.padding_mode)
    gradient = (3 * output.detach() + 1).round()
    (back,) = torch.autograd.grad(output, image, gradient)
    left, right = (output * gradient).sum().item(), (image * back).sum().item()
    # Sums of integers in nearest mode: exact.
    size = (
        0.0
        if case.mode == "nearest"
        else case.precision() * max(image.numel(), output.numel()) * 50
    )
    assert left == pytest.approx(right, rel=0, abs=size)


@given(warp_cases(input_dtypes=(torch.float32, torch.float64)))
def test_backward_equals_reference(device, case):
    # Small integers: sums are exact in nearest mode, whatever their order.
    gradient = (4 * case.gradient).round()
    case_on_device = case.to(device)
    image = torch.zeros_like(case_on_device.input, requires_grad=True)
    output = tcwarp.warp(
        image, case_on_device.displacement, mode=case.mode, padding_mode=case.padding_mode
    )
    (back,) = torch.autograd.grad(output, image, gradient.to(device))
    expected_back = reference.warp_backward(
        gradient.double().numpy(),
        coordinates(case.displacement),
        case.mode,
        case.padding_mode,
        case.image_size,
    )
    # At worst all pixels meet in one.
    worst = (
        float(gradient.double().abs().sum(dim=tuple(range(2, gradient.dim()))).amax())
        if (gradient.numel())
        else 0.0
    )
    atol = 0.0 if case.mode == "nearest" else 8 * case.precision() * worst
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
@pytest.mark.parametrize("mode", [1, 2])
def test_image_gradient_is_differentiable_by_the_displacement(device, mode, padding_mode):
    gradient = image_values(torch.float64, (1, 2, 3, 4), 0).to(device).requires_grad_()
    displacement = away_from_kinks((1, 2, 3, 4), 1).to(device).requires_grad_()
    padding_code = PADDING_MODES.index(padding_mode)

    def scatter(gradient, displacement):
        return torch.ops.tcwarp.warp_backward_input(
            gradient, displacement, mode, padding_code, False
        )

    assert torch.autograd.gradcheck(scatter, (gradient, displacement))


@pytest.mark.parametrize("image_too", [False, True])
def test_the_gradient_of_nearest_by_the_displacement_is_zero(device, image_too):
    """As `grid_sample` has it: the output is a step function of the displacement."""
    image = torch.rand(1, 1, 4, 4, device=device, requires_grad=image_too)
    displacement = torch.rand(1, 2, 4, 4, device=device, requires_grad=True)
    tcwarp.warp(image, displacement).sum().backward()
    assert (image.grad is not None) == image_too
    assert torch.equal(displacement.grad, torch.zeros_like(displacement))


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_only_the_gradient_asked_for_is_computed(device, mode, wanted):
    inputs = [torch.rand(1, c, 9, 9, device=device, requires_grad=True) for c in (1, 2)]
    whole = torch.autograd.grad(tcwarp.warp(*inputs, mode=mode).square().sum(), inputs)
    output = tcwarp.warp(*inputs, mode=mode).square().sum()
    with torch.profiler.profile() as profile:
        (gradient,) = torch.autograd.grad(output, inputs[wanted])
    ran = {event.key for event in profile.key_averages()}
    names = ("tcwarp::warp_backward_input", "tcwarp::warp_backward_displacement")
    assert [name in ran for name in names] == [wanted == 0, wanted == 1]
    assert torch.equal(gradient, whole[wanted])


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
