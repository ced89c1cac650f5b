"""Derivatives of every order, both modes and `torch.func`; through inverses and exponentials."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from assertions import assert_close, raises
from strategies import PADDING_MODES
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import tcwarp

# Image, displacement and number of fields: the same grid, another one, one field for all.
GRIDS = [((4, 5), (4, 5), 2), ((4, 5), (3, 6), 1), ((3, 3, 4), (2, 3, 2), 1)]


def arguments(size, grid, fields, device, samples=2):
    """Away from the pixels, where a linear interpolation has a kink."""
    rng = np.random.default_rng(5)
    image = torch.from_numpy(rng.normal(size=(samples, 2, *size))).to(device)
    shape = (fields, len(size), *grid)
    whole, part = rng.integers(-2, 2, size=shape), rng.uniform(0.1, 0.9, size=shape)
    field = torch.from_numpy(whole + part).to(device)
    return image.requires_grad_(), field.requires_grad_()


def field_of(size, std, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return tcwarp.random_displacement(
        *(2, size),
        sigma=2.0,
        displacement_std=std,
        generator=generator,
        dtype=torch.float64,
        device=device,
    )


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("size, grid, fields", GRIDS)
# Along random directions, or each derivative by itself, which takes minutes.
@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_warp_twice_and_both_ways(device, size, grid, fields, mode, padding_mode, fast):
    image, field = arguments(size, grid, fields, device)

    def function(image, field):
        return tcwarp.warp(image, field, mode=mode, padding_mode=padding_mode)

    ways = {"check_batched_grad": True, "check_forward_ad": True}
    assert gradcheck(function, (image, field), check_batched_forward_grad=True, **ways)
    ways = {"check_fwd_over_rev": True, "check_rev_over_rev": True, "check_batched_grad": True}
    assert gradgradcheck(function, (image, field), fast_mode=fast, **ways)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_splat_twice_and_both_ways(device, mode):
    image, field = arguments((4, 5), (4, 5), 2, device)
    weight = torch.rand(2, 1, 4, 5, dtype=torch.float64, device=device).requires_grad_()

    def function(image, field, weight):
        return tcwarp.splat(image, field, weight=weight, mode=mode, size=(3, 6))

    assert gradcheck(function, (image, field, weight), check_forward_ad=True)
    assert gradgradcheck(function, (image, field, weight))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 2)])
def test_inverses_twice_and_both_ways(device, size):
    a, b = (field_of(size, std, 1, device)[:1].requires_grad_() for std in (0.4, 0.6))
    ways = {"check_forward_ad": True, "check_batched_grad": True, "atol": 1e-5}
    for function, inputs in ((tcwarp.invert, (a,)), (tcwarp.align, (a, b))):
        assert gradcheck(function, inputs, **ways)
        assert gradgradcheck(function, inputs, check_fwd_over_rev=True, atol=1e-5)


def test_aligned_to_another_grid(device):
    """One field for all samples, read where the pixels of a smaller grid point."""
    first, second = field_of((6, 7), 0.4, 1, device)[:1], field_of((4, 5), 0.6, 2, device)
    first, second = first.requires_grad_(), second.requires_grad_()
    offset = tcwarp.align(first, second)
    assert offset.shape == second.shape
    left = offset + tcwarp.warp(
        first.expand(2, -1, -1, -1), offset, mode="linear", padding_mode="border"
    )
    assert_close(left, second, "align", atol=1e-9)
    assert gradcheck(tcwarp.align, (first, second), atol=1e-5, check_forward_ad=True)


def test_no_graph_of_the_iteration_is_kept():
    """Memory of the backward is a few fields, and the values are those without a gradient."""
    field = field_of((32, 32), 1.0, 3)
    plain = tcwarp.invert(field)
    leaf = field.clone().requires_grad_()
    inverse = tcwarp.invert(leaf)
    assert torch.equal(inverse, plain)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        tcwarp.invert(leaf)
    assert sum(t.numel() for t in saved) <= 2 * field.numel()


@pytest.mark.filterwarnings("error")
def test_a_registration_through_the_inverse(device):
    """Gradient descent finds the field whose inverse is wanted."""
    wanted = field_of((24, 24), 0.3, 4, device)
    found = torch.zeros_like(wanted, requires_grad=True)
    optimizer = torch.optim.Adam([found], lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        loss = (tcwarp.invert(found) - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-4 * wanted.square().mean()


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_torch_func(device, mode):
    image, field = (t.detach() for t in arguments((4, 5), (3, 4), 1, device))

    def read(field):
        return tcwarp.warp(image, field, mode=mode)

    def loss(image, field):
        return tcwarp.warp(image, field, mode=mode).square().sum()

    leaves = image.clone().requires_grad_(), field.clone().requires_grad_()
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for ours, theirs in zip(grad(loss, argnums=(0, 1))(image, field), expected, strict=True):
        assert_close(ours, theirs, "grad", atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(read, field)
    assert_close(jacrev(read)(field), jacobian, "jacrev", atol=1e-12)
    assert_close(jacfwd(read)(field), jacobian, "jacfwd", atol=1e-12)
    tangent = torch.randn_like(field)
    along = torch.tensordot(jacobian, tangent, field.dim())
    assert_close(jvp(read, (field,), (tangent,))[1], along, "jvp", atol=1e-12)
    (back,) = vjp(read, field)[1](torch.ones_like(image[..., :3, :4]))
    assert_close(back, jacobian.sum(dim=(0, 1, 2, 3)), "vjp", atol=1e-12)
    several = torch.stack([field, 2 * field, -field])
    each = torch.stack([grad(loss, argnums=1)(image, one) for one in several])
    both = vmap(grad(loss, argnums=1), in_dims=(None, 0))(image, several)
    assert_close(both, each, "vmap", atol=1e-12)
    second = torch.autograd.functional.hessian(lambda u: loss(image, u), field)
    assert_close(hessian(lambda u: loss(image, u))(field), second, "hessian", atol=1e-10)


def test_torch_func_through_inverses(device):
    field = field_of((6, 7), 0.4, 1, device)

    def size_of_inverse(field):
        return tcwarp.invert(field).square().sum()

    leaf = field.clone().requires_grad_()
    (expected,) = torch.autograd.grad(size_of_inverse(leaf), leaf)
    assert_close(grad(size_of_inverse)(field), expected, "grad", atol=1e-12)
    both = vmap(grad(size_of_inverse))(torch.stack([field, field]))
    assert_close(both, torch.stack([expected, expected]), "vmap", atol=1e-12)
    layer = tcwarp.Warp(mode="linear")
    image = torch.rand(2, 1, 6, 7, dtype=torch.float64, device=device)
    called = functional_call(layer, {}, (image, field))
    assert torch.equal(called, layer(image, field))


SECOND = {
    "image": lambda x: tcwarp.warp(x[:, :1], 0.3 + x.detach() * 0, mode="linear"),
    "field": lambda x: tcwarp.warp(x.detach(), x, mode="cubic"),
    "both": lambda x: tcwarp.warp(x, x, mode="linear"),
    "invert": lambda x: tcwarp.invert(0.3 * x),
    "exponential": lambda x: tcwarp.exponential(x, steps=2),
    "splat": lambda x: tcwarp.splat(x, x),
    "points": lambda x: tcwarp.warp_points(x[:, :, 0].mT + 1, 0.3 * x),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_by_every_nesting(device, name):
    """As `torch.autograd` has them; forward mode within itself is refused, not wrong."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.uniform(0.1, 0.9, size=(2, 2, 3, 4))).to(device)

    def loss(x):
        return SECOND[name](x).pow(3).sum()

    expected = torch.autograd.functional.hessian(loss, x)
    for outer, inner in ((jacrev, jacrev), (jacfwd, jacrev), (jacrev, jacfwd)):
        assert_close(outer(inner(loss))(x), expected, "second derivative", atol=1e-9)
    with pytest.raises(RuntimeError, match="forward-mode differentiation within itself"):
        jacfwd(jacfwd(loss))(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_double_backward_in_other_precisions(device, mode, dtype):
    image, field = arguments((6, 7), (6, 7), 2, device)

    def second(image, field):
        image, field = image.detach().requires_grad_(), field.detach().requires_grad_()
        output = tcwarp.warp(image, field, mode=mode).double()
        (first,) = torch.autograd.grad(output.square().sum(), field, create_graph=True)
        return torch.autograd.grad(first.double().square().sum(), (image, field))

    rounded = image.to(dtype).double(), field.to(dtype).double()
    for ours, exact in zip(second(image.to(dtype), field.to(dtype)), second(*rounded), strict=True):
        assert ours.dtype == dtype
        scale = exact.abs().max()
        assert (ours.double() - exact).abs().max() < 60 * torch.finfo(dtype).eps * scale


def test_derivatives_where_the_displacement_is_not_finite(device):
    image, field = (t.detach().clone() for t in arguments((4, 5), (4, 5), 2, device))
    field[0, 0, 1, 1] = torch.nan
    field[1, 1, 2, 2] = torch.inf
    image.requires_grad_()
    field.requires_grad_()
    output = tcwarp.warp(image, field, mode="linear")
    first = torch.autograd.grad(output.square().sum(), (image, field), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (image, field))
    assert all(g.isfinite().all() for g in (*first, *second))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(device, dynamic):
    torch._dynamo.reset()
    first, second = (field_of((6, 7), std, 1, device) for std in (0.4, 0.6))
    image = torch.rand(2, 3, 6, 7, dtype=torch.float64, device=device)
    points = 1 + 3 * torch.rand(2, 4, 2, dtype=torch.float64, device=device)

    def everything(image, first, second, points):
        small = tcwarp.affine_displacement(first.new_tensor([[1.5, 0, 0], [0, 1.5, 0]]), (4, 4))
        aligned = tcwarp.align(first, tcwarp.exponential(second, steps=2))
        read = tcwarp.warp(
            image, tcwarp.compose(aligned, small), mode="linear", padding_value=[1.0, 2.0, 3.0]
        )
        back = tcwarp.splat(image, tcwarp.invert(first), normalize=True)
        return read.square().sum() + back.square().sum() + tcwarp.warp_points(points, first).sum()

    results = []
    compiled = torch.compile(everything, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for function in everything, compiled:
        leaves = [t.detach().clone().requires_grad_() for t in (image, first, second, points)]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for plain, compiled in zip(*results, strict=True):
        assert_close(compiled, plain, "compiled", atol=1e-9)


# ---------------------------------------------------------------------------------- exponential


@pytest.mark.parametrize("size", [(33, 41), (15, 17, 13)])
def test_the_exponential_of_a_linear_velocity_is_that_of_its_matrix(device, size):
    """Where the flow does not leave the image: scipy.linalg.expm."""
    rng = np.random.default_rng(2)
    dimensions = len(size)
    matrix = rng.normal(scale=0.1, size=(dimensions, dimensions))
    matrix -= 0.5 * np.eye(dimensions)  # contracts
    middle = [(n - 1) / 2 for n in size]

    def field_by(matrix):
        rows = torch.from_numpy(np.column_stack([matrix, np.zeros(dimensions)])).to(device)
        return tcwarp.affine_displacement(rows, size, center=middle)

    flow = tcwarp.exponential(field_by(matrix + np.eye(dimensions)))
    expected = field_by(scipy.linalg.expm(matrix))
    assert (expected.abs().amax() > 3) and (flow - expected).abs().max() < 2e-3
    errors = [
        (tcwarp.exponential(field_by(matrix + np.eye(dimensions)), steps=n) - expected).abs().max()
        for n in (2, 4)
    ]
    assert errors[0] > 10 * errors[1]  # 4 by each squaring


def test_exponentials_do_not_fold(device):
    velocity = tcwarp.random_displacement(
        *(1, (64, 64)),
        sigma=6.0,
        displacement_std=8.0,
        generator=torch.Generator().manual_seed(8),
        dtype=torch.float64,
        device=device,
    )
    assert tcwarp.jacobian_determinant(velocity).min() < 0
    there, back = tcwarp.exponential(velocity), tcwarp.exponential(-velocity)
    inner = (..., slice(20, -20), slice(20, -20))
    assert tcwarp.jacobian_determinant(there)[0, 20:-20, 20:-20].min() > 0
    assert tcwarp.compose(there, back)[inner].abs().mean() < 0.1


def test_gradient_of_the_exponential(device):
    velocity = field_of((5, 6), 0.4, 6, device).requires_grad_()
    assert gradcheck(lambda v: tcwarp.exponential(v, steps=3), (velocity,), atol=1e-6)


@pytest.mark.parametrize(
    "steps, error, parts",
    [
        (1.5, TypeError, ("steps must be an int", "float")),
        (True, TypeError, ("steps must be an int", "bool")),
        (31, ValueError, ("steps must be from 0 to 30", "31")),
        (-1, ValueError, ("steps must be from 0 to 30", "-1")),
    ],
)
def test_wrong_steps(steps, error, parts):
    with raises(error, "exponential: ", *parts):
        tcwarp.exponential(torch.zeros(1, 2, 3, 3), steps=steps)


# ------------------------------------------------------------------------ padding value and splat


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size, grid, fields", GRIDS)
def test_padding_value_is_that_of_the_image_less_the_value(device, mode, size, grid, fields):
    image, field = arguments(size, grid, fields, device)
    value = torch.tensor([2.0, -3.0], dtype=torch.float64, device=device)
    column = value.view(1, 2, *[1] * len(size))
    output = tcwarp.warp(image, field, mode=mode, padding_value=value)
    expected = tcwarp.warp(image - column, field, mode=mode) + column
    assert_close(output, expected, "warp", atol=1e-12)
    assert torch.equal(output, tcwarp.warp(image, field, mode=mode, padding_value=[2.0, -3.0]))
    if mode != "nearest":
        leaves = [
            torch.autograd.grad(result.square().sum(), (image, field))
            for result in (output, expected)
        ]
        for ours, theirs in zip(*leaves, strict=True):
            assert_close(ours, theirs, "gradient", atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float16])
def test_padding_value_of_labels(device, dtype):
    image = torch.zeros(1, 2, 3, 4, dtype=dtype, device=device)
    field = torch.zeros(1, 2, 3, 4, device=device)
    field[:, 1, :, 2:] = 10
    field[:, 0, 0, 0] = torch.nan
    output = tcwarp.warp(image, field, padding_value=1)
    assert output.dtype == dtype
    expected = torch.zeros(3, 4)
    expected[:, 2:] = 1
    expected[0, 0] = 1  # nowhere
    assert torch.equal(output[0, 1].float().cpu(), expected)


def test_padding_value_may_mark_what_was_not_read(device):
    image = torch.rand(1, 1, 8, 8, device=device)
    field = tcwarp.random_displacement(
        1, (8, 8), sigma=3.0, displacement_std=2.0, generator=torch.Generator().manual_seed(0)
    ).to(device)
    for mode in ("nearest", "linear"):
        marked = tcwarp.warp(image, field, mode=mode, padding_value=torch.nan)
        inside = tcwarp.valid_mask(field, mode=mode)[:, None]
        assert torch.equal(marked.isnan(), ~inside)
        assert torch.equal(marked[inside], tcwarp.warp(image, field, mode=mode)[inside])


@pytest.mark.parametrize(
    "value, options, error, parts",
    [
        ("x", {}, TypeError, ("must be a number of 64 bits", "'x'")),
        (2**70, {"dtype": torch.int64}, TypeError, ("must be a number of 64 bits", "118059")),
        (1e10, {"dtype": torch.float16}, ValueError, ("a value that torch.float16 has", "1000000")),
        ([1.0, 2.0], {}, ValueError, ("one for each of the 3 channels", "(2,)")),
        (1.0, {"padding_mode": "border"}, ValueError, ("for padding_mode 'zeros'", "'border'")),
        (300, {"dtype": torch.uint8}, ValueError, ("a value that torch.uint8 has", "300")),
        (0.5, {"dtype": torch.int32}, ValueError, ("a value that torch.int32 has", "0.5")),
        (-1, {"dtype": torch.bool}, ValueError, ("a value that torch.bool has", "-1")),
        (1j, {}, ValueError, ("a value that torch.float32 has",)),
    ],
)
def test_wrong_padding_values(value, options, error, parts):
    image = torch.zeros(1, 3, 4, 5, dtype=options.pop("dtype", torch.float32))
    with raises(error, "warp: padding_value", *parts):
        tcwarp.warp(image, torch.zeros(1, 2, 4, 5), padding_value=value, **options)


def test_one_field_serves_a_batch_without_a_copy():
    """Peak memory, measured by what the allocator is asked for."""
    image = torch.rand(9, 1, 256, 256)
    field = torch.zeros(1, 2, 256, 256)
    with torch.profiler.profile(profile_memory=True) as profile:
        output = tcwarp.warp(image, field, mode="linear")
    asked = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert output.nbytes <= asked <= output.nbytes + 1000
    assert torch.equal(output, image)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_splat_is_the_adjoint_and_keeps_what_arrives(device, mode):
    image, field = (t.detach() for t in arguments((4, 5), (4, 5), 2, device))
    other = torch.rand(2, 2, 6, 3, dtype=torch.float64, device=device)
    there = tcwarp.splat(image, field, mode=mode, size=(6, 3))
    assert there.shape == other.shape
    left, right = (there * other).sum(), (image * tcwarp.warp(other, field, mode=mode)).sum()
    assert_close(left, right, "adjoint", atol=1e-12)


def test_a_mean_fits_half_precision_where_sums_do_not(device):
    a = torch.arange(8.0, device=device)
    field = torch.stack(torch.meshgrid(3 - a, 3 - a, indexing="ij"))[None]
    image = torch.full((1, 1, 8, 8), 2000.0, dtype=torch.float16, device=device)
    assert tcwarp.splat(image, field, weight=image, normalize=True).max() == 2000


def test_splat_normalized(device):
    """Two pixels that meet are their weighted mean; nobody arrives at the others."""
    image = torch.tensor([[[[1.0, 5.0, 7.0]]]], device=device)
    field = torch.zeros(1, 2, 1, 3, device=device)
    field[0, 1, 0] = torch.tensor([1.0, 0.0, 9.0])
    weight = torch.tensor([[[[1.0, 3.0, 1.0]]]], device=device)
    mean = tcwarp.splat(image, field, weight=weight, normalize=True)
    assert mean.flatten().tolist() == [0.0, 4.0, 0.0]


@pytest.mark.parametrize(
    "change, error, parts",
    [
        ({"input": torch.zeros(2, 1, 5, 4)}, ValueError, ("input must have the spatial", "5, 4")),
        ({"normalize": "no"}, TypeError, ("normalize must be a bool", "str")),
        ({"normalize": True, "mode": "cubic"}, ValueError, ("normalize must be False in mode",)),
        ({"weight": torch.ones(2, 1, 4, 5, device="meta")}, ValueError, ("weight must be on",)),
        ({"input": torch.zeros(2, 1, 4, 5).int()}, TypeError, ("a floating dtype", "int32")),
        ({"weight": torch.ones(2, 4, 5)}, ValueError, ("weight must have shape (2, 1, 4, 5)",)),
        ({"size": (3,)}, ValueError, ("size must be", "(3,)")),
        ({"size": (3, 4, 5)}, ValueError, ("size must be 2 lengths", "(3, 4, 5)")),
        ({"mode": "best"}, ValueError, ("mode must be one of", "'best'")),
    ],
)
def test_splat_refuses(change, error, parts):
    call = {"input": torch.zeros(2, 1, 4, 5), "displacement": torch.zeros(2, 2, 4, 5), **change}
    with raises(error, "splat: ", *parts):
        tcwarp.splat(call.pop("input"), call.pop("displacement"), **call)


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field = field_of((8, 8), 0.5, 9)
        tcwarp.warp_points(torch.rand(2, 3, 2, dtype=torch.float64) * 6, field)
