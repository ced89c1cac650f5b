"""Whatever the arguments are: a result, or a ValueError or TypeError of one line; never a crash.

`make sanitize` runs this, and the other tests of the operators, under AddressSanitizer and
UndefinedBehaviorSanitizer.
"""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    DISPLACEMENT_KINDS,
    EXTREME_VALUES,
    FLOATING_DTYPES,
    MODES,
    OTHER_DTYPES,
    PADDING_MODES,
    displacement_values,
    image_values,
)

import tcwarp

# Also outside the modes and paddings there are, now and then.
names = st.sampled_from([*MODES, *PADDING_MODES, *MODES, *PADDING_MODES, "spline", None])
lengths = st.integers(0, 9)


@st.composite
def tensors(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = FLOATING_DTYPES) -> torch.Tensor:
    """Draw a tensor of any shape and strides, overlapping and turned ones among them."""
    shape = tuple(draw(st.lists(lengths, min_size=1, max_size=6)))
    strides = tuple(draw(st.integers(0, 12)) for _ in shape)
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
    seed = draw(st.integers(0, 2**32 - 1))
    dtype = draw(st.sampled_from(dtypes))
    values = image_values(dtype, (extent + 3,), seed)
    if dtype.is_floating_point and draw(st.booleans()):
        extremes = np.random.default_rng(seed).choice(EXTREME_VALUES, size=extent + 3)
        values = torch.from_numpy(extremes).to(dtype)
    return values.as_strided(shape, strides, draw(st.integers(0, 2)))


@st.composite
def fitting(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an image of any dtype and a displacement that fits it, most often."""
    size = tuple(draw(st.lists(lengths, min_size=2, max_size=3)))
    grid = draw(st.one_of(st.just(size), st.tuples(*[lengths] * len(size))))
    batch, seed = draw(st.integers(0, 3)), draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(DISPLACEMENT_KINDS))
    fields = draw(st.sampled_from((batch, 1)))
    field = displacement_values(kind, (fields, len(size), *grid), seed)
    field = field.to(draw(st.sampled_from(FLOATING_DTYPES)))
    dtype = draw(st.sampled_from(FLOATING_DTYPES + OTHER_DTYPES))
    image = image_values(dtype, (batch, draw(st.integers(0, 9)), *size), seed)
    axes = draw(st.permutations(range(image.dim())))
    turned = image.permute(*axes).contiguous().permute(*(axes.index(k) for k in range(len(axes))))
    return turned, field


def keeps_shape(function, field, *others):
    """Call with a field that fits, or does not; a result is a field like the last."""
    result = survives(function, field, *others)
    if result is not None:
        shape = (max(len(field), len(others[-1])), *others[-1].shape[1:]) if others else field.shape
        assert (result.shape, result.dtype) == (shape, field.dtype)
    return result


def survives(function, *arguments, **options):
    """Call; an error must name the function."""
    try:
        return function(*arguments, **options)
    except (ValueError, TypeError) as error:
        assert str(error).startswith(f"{function.__name__}: "), error
        assert "\n" not in str(error)
        return None


values = st.one_of(
    *(st.just(0.0), st.floats(), st.integers(), st.lists(st.floats(), max_size=4)),
    *(st.just("x"), st.none(), st.just(1j), st.just(torch.ones(1, 2)), st.just([[1.0]])),
)


@given(st.one_of(fitting(), st.tuples(tensors(), tensors())), names, names, values)
def test_warp_and_its_gradients(pair, mode, padding_mode, value):
    image, field = pair
    options = {"mode": mode, "padding_mode": padding_mode, "padding_value": value}
    output = survives(tcwarp.warp, image, field, **options)
    if output is None:
        return
    assert output.shape == (*image.shape[:2], *field.shape[2:])
    if image.is_floating_point():
        leaves = image.detach().requires_grad_(), field.detach().requires_grad_(mode != "nearest")
        output = tcwarp.warp(*leaves, **options)
        torch.autograd.grad(output, [x for x in leaves if x.requires_grad], torch.ones_like(output))


@given(
    st.one_of(fitting(), st.tuples(tensors(), tensors())),
    *(names, names, st.booleans()),
    st.one_of(st.none(), st.lists(st.integers(-1, 9), max_size=4)),
)
def test_splat(pair, mode, padding_mode, normalize, size):
    image, field = pair
    options = {"mode": mode, "padding_mode": padding_mode, "normalize": normalize, "size": size}
    output = survives(tcwarp.splat, image, field, **options)
    if output is not None:
        spatial = image.shape[2:] if size is None else size
        assert tuple(output.shape) == (*image.shape[:2], *spatial)


@given(fitting(), tensors(), st.integers(0, 4), st.booleans())
def test_points_and_boxes(pair, odd, count, is_odd):
    _, field = pair
    for function, columns in ((tcwarp.warp_points, 1), (tcwarp.warp_boxes, 2)):
        points = odd if is_odd else torch.rand(2, count, columns * field.shape[1]) * 8
        moved = survives(function, points, field)
        assert moved is None or (moved.shape, moved.dtype) == (points.shape, points.dtype)


@given(tensors(), st.lists(st.integers(-1, 9), max_size=4), st.integers(-1, 6))
def test_affine_maps_and_exponentials(tensor, size, steps):
    survives(tcwarp.affine_displacement, tensor, size)
    corner = tensor[..., :3, :4] if tensor.dim() > 1 else tensor
    survives(tcwarp.affine_displacement, corner, size, center=size)
    flow = survives(tcwarp.exponential, tensor, steps=steps)
    assert flow is None or (flow.shape, flow.dtype) == (tensor.shape, tensor.dtype)


@given(tensors(), tensors())
def test_the_algebra(first, second):
    for function in (tcwarp.compose, tcwarp.align):
        keeps_shape(function, first, second)
        keeps_shape(function, first, first)
    keeps_shape(tcwarp.invert, first)
    for function in (tcwarp.jacobian_determinant, tcwarp.valid_mask):
        survives(function, first)


@given(st.sampled_from(DISPLACEMENT_KINDS), st.lists(lengths, min_size=2, max_size=3), st.data())
def test_the_algebra_of_fields(kind, size, data):
    shape = (data.draw(st.integers(0, 2)), len(size), *size)
    fields = [
        displacement_values(kind, shape, data.draw(st.integers(0, 2**32 - 1))).to(
            data.draw(st.sampled_from(FLOATING_DTYPES))
        )
        for _ in range(2)
    ]
    one, other = fields
    for function in (tcwarp.compose, tcwarp.align):
        fit = keeps_shape(function, one, other) is not None
        assert fit == (one.dtype == other.dtype)
        assert keeps_shape(function, one, one) is not None
    assert keeps_shape(tcwarp.invert, one) is not None
    for function in (tcwarp.jacobian_determinant, tcwarp.valid_mask):
        assert survives(function, one).shape[-len(size) :] == one.shape[2:]


numbers = st.one_of(
    st.floats(1e-3, 1e3), st.sampled_from([0.0, -1.0, 1e-300, 1e30, 1e300, float("nan"), 2, "x"])
)


@given(tensors(), st.one_of(numbers, st.lists(numbers, max_size=3)), names)
def test_smoothing(tensor, sigma, boundary):
    boundary = {"zeros": "constant", "reflection": "reflect"}.get(boundary, boundary)
    survives(tcwarp.gaussian_smooth, tensor, sigma, boundary=boundary)


@given(st.integers(-1, 3), st.lists(st.integers(-1, 40), max_size=4), numbers, numbers, numbers)
def test_drawing(batch, size, sigma, magnitude, probability):
    for option in ("magnitude", "displacement_std"):
        field = survives(
            tcwarp.random_displacement,
            *(batch, size),
            sigma=sigma,
            identity_probability=probability,
            **{option: magnitude},
        )
        assert field is None or field.isfinite().all()


# What stands where something else is wanted. Integers are beyond what memory holds.
FIELD = torch.zeros(1, 2, 4, 5)
ODDITIES = [
    *(None, True, "x", b"x", "", 1j, -1, 2.5, float("nan"), float("inf"), float("-inf")),
    *(2**63, -(2**63), 2**64, 10**400, -(10**400), 10**5000),
    *(np.int64(2**63 - 1), np.uint64(2**64 - 1), np.float32("nan"), np.float64(1e300)),
    *(np.bool_(True), np.array(3), np.array([2**63 - 1] * 2), np.array([[1]]), FIELD.numpy()),
    *([], (), {}, [1, 2, 3, 4], [10**400, 1], ["a", "b"], [None] * 3, [1.5, 2], [True, True]),
    *([[1, 2], [3]], {1: 2}, range(2), torch.Size([2, 3]), object(), int, len),
    *(torch.float32, torch.int32, np.float32, np.dtype("f4"), torch.contiguous_format),
    *(torch.device("meta"), torch.device("xpu"), torch.Generator(), torch.nn.Identity()),
    *(FIELD.to("meta"), FIELD.to_sparse(), FIELD.to(torch.complex128), FIELD.bool()),
    *(FIELD.to(torch.float8_e4m3fn), torch.tensor(3), torch.tensor([4, 5]), torch.zeros(0)),
    *(torch.quantize_per_tensor(FIELD, 1.0, 0, torch.quint8),),
    *(torch.nested.nested_tensor([FIELD[0]]), torch._efficientzerotensor(1, 2, 4, 5)),
]
CALLS = [
    (tcwarp.warp, {"input": FIELD, "displacement": FIELD, "mode": "linear"}),
    (tcwarp.warp, {"input": FIELD, "displacement": FIELD, "padding_mode": "zeros"}),
    (tcwarp.compose, {"first": FIELD, "second": FIELD}),
    (tcwarp.align, {"t1": FIELD, "t2": FIELD}),
    (tcwarp.invert, {"displacement": FIELD, "return_residual": True}),
    (tcwarp.jacobian_determinant, {"displacement": FIELD}),
    (tcwarp.valid_mask, {"displacement": FIELD, "mode": "linear"}),
    (tcwarp.gaussian_smooth, {"input": FIELD, "sigma": 2.0, "boundary": "constant"}),
    (
        tcwarp.random_displacement,
        {
            **{"batch": 2, "size": (4, 5), "magnitude": 1.0, "sigma": 2.0, "device": "cpu"},
            **{"displacement_std": 1.0, "identity_probability": 0.5, "generator": None},
            "dtype": torch.float32,
        },
    ),
    (tcwarp.Warp, {"mode": "linear", "padding_mode": "zeros"}),
    (tcwarp.RandomElastic, {"mode": "linear", "padding_mode": "zeros", "magnitude": 1.0}),
    (tcwarp.RandomElastic, {"sigma": 2.0, "displacement_std": 1.0, "identity_probability": 0.5}),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about some of its kinds of tensors
@pytest.mark.parametrize(
    "function, arguments, name",
    [(function, arguments, name) for function, arguments in CALLS for name in arguments],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_anything_in_the_place_of_an_argument(function, arguments, name):
    for value in ODDITIES:
        result = survives(function, **{**arguments, name: value})
        if isinstance(result, torch.nn.Module):
            repr(result)
            survives(functools.update_wrapper(functools.partial(run, result), function))


def run(module):
    """Call a module; what its arguments are wrong for may be known only here."""
    try:
        return module(FIELD, *([FIELD] if isinstance(module, tcwarp.Warp) else []))
    except (ValueError, TypeError) as error:
        inner = "random_displacement: "
        raise type(error)(str(error).replace(inner, f"{type(module).__name__}: ")) from error
