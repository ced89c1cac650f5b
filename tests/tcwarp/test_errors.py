"""Each wrong argument is one line: the function, the argument, what was expected, what came."""

import sys

import pytest
import torch
from assertions import raises
from processes import python
from strategies import MODES

import tcwarp

IMAGE = torch.zeros(2, 3, 4, 5)
FIELD = torch.zeros(2, 2, 4, 5)


# -------------------------------------------------------------------------------------- warp


@pytest.mark.parametrize(
    "image, field, error, parts",
    [
        ([[1.0]], FIELD, TypeError, ("warp: input must be a torch.Tensor", "got list")),
        (IMAGE, None, TypeError, ("warp: displacement must be a torch.Tensor", "got NoneType")),
        (
            *(IMAGE, FIELD.int(), TypeError),
            ("warp: displacement must have a floating dtype", "got torch.int32"),
        ),
        (
            *(IMAGE, FIELD.to(torch.complex64), TypeError),
            ("warp: displacement must have a floating dtype", "got torch.complex64"),
        ),
        (
            *(IMAGE, FIELD[0], ValueError),
            ("warp: displacement must have shape", "(N, 2, H, W)", "got (2, 4, 5)"),
        ),
        (
            *(IMAGE, torch.zeros(2, 3, 4, 5), ValueError),
            ("warp: displacement must have shape", "got (2, 3, 4, 5)"),
        ),
        (
            *(IMAGE, torch.zeros(3, 2, 4, 5), ValueError),
            ("warp: displacement must have as many samples as input", "got (3, 2, 4, 5)"),
        ),
        (
            *(torch.zeros(2, 3, 0, 4), FIELD, ValueError),
            ("warp: input must have pixels for displacement (2, 2, 4, 5)", "got (2, 3, 0, 4)"),
        ),
        (
            *(IMAGE[0], FIELD, ValueError),
            ("warp: input must have shape (N, C, H, W)", "got (3, 4, 5)"),
        ),
        (
            *(IMAGE, torch.zeros(2, 3, 1, 4, 5), ValueError),
            ("warp: input must have shape (N, C, D, H, W)", "got (2, 3, 4, 5)"),
        ),
        (
            *(IMAGE, FIELD.to("meta"), ValueError),
            ("warp: displacement must be on the device of input", "cpu", "got meta"),
        ),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_warp_refuses_wrong_tensors(image, field, error, parts, mode):
    with raises(error, *parts):
        tcwarp.warp(image, field, mode=mode)


@pytest.mark.parametrize(
    "image, field, message",
    [
        (IMAGE, FIELD[0], "input must have shape"),
        (IMAGE, FIELD[:, :1], "input must have shape"),
        (IMAGE, torch.zeros(2, 3, 1, 4, 5), "input must have shape"),
        (IMAGE[0], FIELD, "input must have shape"),
        (IMAGE[0, 0, 0], FIELD[0, 0, 0], "input must have shape"),
        (IMAGE[:, None, None], torch.zeros(2, 4, 1, 3, 4, 5), "input must have shape"),
        (IMAGE, torch.zeros(3, 2, 4, 5), "samples"),
        (IMAGE, torch.zeros(0, 2, 4, 5), "samples"),
        (IMAGE[:, :, :0], FIELD, "must have pixels"),
        (IMAGE, FIELD.int(), "must be floating"),
        (IMAGE.int(), FIELD, "must be floating"),
        (IMAGE[:0].int(), FIELD[:0], "must be floating"),
        (IMAGE[:0], torch.zeros(0, 2, 2**30, 1), "no axis may be longer than"),
    ],
)
def test_the_operator_refuses_what_no_check_has_seen(image, field, message):
    """As a program that was exported may be called."""
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tcwarp.warp(image, field, 1, 0)


def test_what_the_operator_refuses_is_explained():
    for image, field in (
        *((IMAGE.int(), FIELD), (IMAGE.to_sparse(), FIELD), (IMAGE.numpy(), FIELD.numpy())),
        *((IMAGE, FIELD.int()), (IMAGE, FIELD[:, :1]), (IMAGE, FIELD.to("meta"))),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^warp: (input|displacement) .*must"):
            tcwarp.warp(image, field, mode="linear")


def test_a_refusal_is_not_shown_beside_its_explanation():
    with pytest.raises(ValueError, match=r"^warp: displacement must have as many") as caught:
        tcwarp.warp(IMAGE, FIELD[:0])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_tensors_without_values_are_checked():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        pairs = [(torch.zeros(2, 3, 4, 5), torch.zeros(3, 2, 4, 5))]
    pairs += [(image.to("meta"), field.to("meta")) for image, field in [(IMAGE, FIELD[:0])]]
    for image, field in pairs:
        with raises(ValueError, "warp: displacement must have as many samples as input"):
            tcwarp.warp(image, field)


def test_samples_are_checked_under_vmap():
    with raises(ValueError, "warp: displacement must have as many samples as input"):
        torch.vmap(tcwarp.warp)(torch.zeros(2, 1, 3, 4, 5), torch.zeros(2, 3, 2, 4, 5))


@pytest.mark.parametrize("value", ["bilinear", "", None, 0, "Nearest", [], {}])
def test_warp_names_the_modes(value):
    with raises(ValueError, "warp: mode must be one of", "'nearest', 'linear'", f"got {value!r}"):
        tcwarp.warp(IMAGE, FIELD, mode=value)


@pytest.mark.parametrize("value", ["reflect", None, 1])
def test_warp_names_the_padding_modes(value):
    with raises(
        *(ValueError, "warp: padding_mode must be one of"),
        *("'zeros', 'border', 'reflection'", f"got {value!r}"),
    ):
        tcwarp.warp(IMAGE, FIELD, padding_mode=value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.complex64])
def test_linear_warp_refuses_what_it_cannot_interpolate(dtype):
    with raises(TypeError, "warp: input", "'linear'", "floating dtype", f"got {dtype}"):
        tcwarp.warp(IMAGE.to(dtype), FIELD, mode="linear")


@pytest.mark.parametrize("function", [tcwarp.warp, tcwarp.gaussian_smooth, tcwarp.invert])
def test_tensors_must_be_dense(function):
    name = function.__name__
    arguments = {"warp": (FIELD,), "gaussian_smooth": (1.0,), "invert": ()}[name]
    with raises(TypeError, f"{name}: ", "must be a dense tensor, got sparse_coo", ".to_dense()"):
        function(IMAGE[:, :2].to_sparse(), *arguments)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
def test_quantized_tensors_are_refused():
    quantized = torch.quantize_per_tensor(IMAGE, 0.1, 0, torch.quint8)
    with raises(TypeError, "warp: input must be a dense tensor, got quantized", ".dequantize()"):
        tcwarp.warp(quantized, FIELD)


def test_random_elastic_checks_early():
    with raises(TypeError, "RandomElastic: sigma must be a number", "got str"):
        tcwarp.RandomElastic(sigma="3")
    with raises(ValueError, "RandomElastic: every argument must have shape", "got (4, 5)"):
        tcwarp.RandomElastic()(torch.zeros(4, 5))


def test_devices_have_names():
    with raises(ValueError, "random_displacement: device must be one that torch has", "got 'gpu'"):
        tcwarp.random_displacement(1, (4, 5), device="gpu")


def test_a_gradient_needs_a_dtype_that_can_be_summed():
    image = IMAGE.to(torch.float8_e4m3fn)
    assert tcwarp.warp(image, FIELD).dtype == torch.float8_e4m3fn
    parts = "warp: input (that requires a gradient)", "floating dtype", "float8_e4m3fn", ".float()"
    with raises(TypeError, *parts):
        tcwarp.warp(image.requires_grad_(), FIELD)


@pytest.mark.parametrize("option", ["magnitude", "displacement_std"])
def test_displacements_stay_finite(option):
    with raises(ValueError, f"random_displacement: {option} must be at most 1e+30", "got 1e+31"):
        tcwarp.random_displacement(1, (8, 8), **{option: 1e31})
    field = tcwarp.random_displacement(1, (8, 8), sigma=2.0, **{option: 1e30})
    assert field.isfinite().all()


def test_module_refuses_like_the_function():
    with raises(ValueError, "Warp: mode must be one of", "got 'quadratic'"):
        tcwarp.Warp(mode="quadratic")
    with raises(ValueError, "RandomElastic: padding_mode must be one of", "got 'wrap'"):
        tcwarp.RandomElastic(padding_mode="wrap")
    with raises(TypeError, "RandomElastic: field arguments must be among", "got device"):
        tcwarp.RandomElastic(device="cpu")


def test_a_generator_is_one():
    with raises(TypeError, "random_displacement: generator must be a torch.Generator", "got int"):
        tcwarp.random_displacement(1, (8, 8), generator=5)


# -------------------------------------------------------------------------------- the algebra


@pytest.mark.parametrize(
    "name, arguments", [("compose", ("first", "second")), ("align", ("t1", "t2"))]
)
def test_pairs_of_fields_must_agree(name, arguments):
    function = getattr(tcwarp, name)
    first, second = (f"{name}: {argument}" for argument in arguments)
    with raises(TypeError, f"{first} must be a torch.Tensor", "got list"):
        function([], FIELD)
    with raises(TypeError, f"{second} must be a torch.Tensor", "got float"):
        function(FIELD, 1.0)
    with raises(ValueError, f"{first} must have shape", "got (2, 3, 4, 5)"):
        function(IMAGE, FIELD)
    with raises(TypeError, f"{second} must have a floating dtype", "got torch.int64"):
        function(FIELD, FIELD.long())
    with raises(ValueError, f"{second} must have the axes of {arguments[0]}", "got (3, 2, 4, 5)"):
        function(FIELD, torch.zeros(3, 2, 4, 5))
    with raises(TypeError, f"{second} must have the dtype of {arguments[0]}", "got torch.float64"):
        function(FIELD, FIELD.double())
    with raises(ValueError, f"{second} must be on the device of {arguments[0]}", "got meta"):
        function(FIELD, FIELD.to("meta"))


def test_valid_mask_names_the_modes():
    with raises(ValueError, "valid_mask: mode must be one of", "'nearest'", "got 'bilinear'"):
        tcwarp.valid_mask(FIELD, mode="bilinear")


@pytest.mark.parametrize("name", ["invert", "jacobian_determinant", "valid_mask"])
def test_single_fields(name):
    function = getattr(tcwarp, name)
    with raises(TypeError, f"{name}: displacement must be a torch.Tensor", "got str"):
        function("field")
    with raises(TypeError, f"{name}: displacement must have a floating dtype", "got torch.uint8"):
        function(FIELD.byte())
    with raises(ValueError, f"{name}: displacement must have shape", "got (2, 3, 4, 5)"):
        function(IMAGE)


# ---------------------------------------------------------------------- smoothing and drawing


def test_gaussian_smooth_refuses_wrong_input():
    name = "gaussian_smooth"
    with raises(TypeError, f"{name}: input must be a torch.Tensor", "got int"):
        tcwarp.gaussian_smooth(3, 1.0)
    with raises(TypeError, f"{name}: input must have a floating dtype", "got torch.int32"):
        tcwarp.gaussian_smooth(IMAGE.int(), 1.0)
    with raises(ValueError, f"{name}: input must have shape (N, C, *spatial)", "got (4, 5)"):
        tcwarp.gaussian_smooth(IMAGE[0, 0], 1.0)
    with raises(ValueError, f"{name}: boundary must be one of", "'reflect'", "got 'mirror'"):
        tcwarp.gaussian_smooth(IMAGE, 1.0, boundary="mirror")


def smooth(sigma):
    return tcwarp.gaussian_smooth(IMAGE, sigma)


def draw(sigma):
    return tcwarp.random_displacement(1, (4, 5), sigma=sigma)


@pytest.mark.parametrize(
    "function, name, low, too_low",
    [
        (smooth, "gaussian_smooth", "finite and not negative", (-1e-9, (1.0, -1.0))),
        (draw, "random_displacement", "positive and finite", (0, 0.0, (1.0, 0.0))),
    ],
)
def test_sigma(function, name, low, too_low):
    for value in (*too_low, -1.0, float("nan"), float("inf")):
        with raises(ValueError, f"{name}: sigma must be {low}", "got"):
            function(value)
    for value in ("wide", None, True, (1.0, "wide")):
        with raises(TypeError, f"{name}: sigma must be a number", "got"):
            function(value)
    with raises(
        ValueError, f"{name}: sigma must be one number or one per spatial axis (2)", "got 3"
    ):
        function((1.0, 2.0, 3.0))


@pytest.mark.parametrize("argument", ["magnitude", "displacement_std"])
def test_size_of_the_displacement(argument):
    for value in (-1.0, float("nan"), float("inf")):
        with raises(ValueError, f"random_displacement: {argument} must be", f"got {value}"):
            tcwarp.random_displacement(1, (4, 5), **{argument: value})
    with raises(TypeError, f"random_displacement: {argument} must be a number", "got str"):
        tcwarp.random_displacement(1, (4, 5), **{argument: "large"})


def test_identity_probability_of_the_module():
    with raises(ValueError, "RandomElastic: identity_probability must be at most 1, got 3"):
        tcwarp.RandomElastic(identity_probability=3.0)


def test_identity_probability():
    for value in (-0.1, 1.1, float("nan")):
        with raises(
            ValueError, "random_displacement: identity_probability must be", f"got {value}"
        ):
            tcwarp.random_displacement(1, (4, 5), identity_probability=value)


def test_batch_and_size():
    name = "random_displacement"
    for value in (1.0, True, None, "2"):
        with raises(TypeError, f"{name}: batch must be an int", "got"):
            tcwarp.random_displacement(value, (4, 5))
    with raises(ValueError, f"{name}: batch must not be negative", "got -1"):
        tcwarp.random_displacement(-1, (4, 5))
    for value in (2**62, 10**30):
        with raises(ValueError, f"{name}: batch must be at most 2**31", "got"):
            tcwarp.random_displacement(value, (4, 5))
    for value in (4, (4,), (1, 2, 3, 4), (4, -5)):
        with raises(ValueError, f"{name}: size must be 2 or 3 lengths", "got"):
            tcwarp.random_displacement(1, value)
    with raises(ValueError, f"{name}: no axis of size may be longer than 1073741820", "got"):
        tcwarp.random_displacement(1, (4, 2**30 + 1))
    for value in ((4, 5.0), (4, None), "45"):
        with raises((TypeError, ValueError), f"{name}: size must be", "got"):
            tcwarp.random_displacement(1, value)


def test_numbers_beyond_all_floats():
    for option in ("sigma", "magnitude", "displacement_std"):
        with raises(ValueError, f"random_displacement: {option} must be", "finite", "got inf"):
            tcwarp.random_displacement(1, (4, 5), **{option: 10**400})


def test_dtype_and_device_of_a_field():
    for value in (3.5, [1], "gpu"):
        with raises(ValueError, "random_displacement: device must be one that torch has", "got"):
            tcwarp.random_displacement(1, (4, 5), device=value)
    with raises(TypeError, "random_displacement: dtype must be a floating dtype", "got 0"):
        tcwarp.random_displacement(1, (4, 5), dtype=0)
    with raises(TypeError, "random_displacement: dtype must be a floating dtype", "torch.int32"):
        tcwarp.random_displacement(1, (4, 5), dtype=torch.int32)
    if not torch.cuda.is_available():
        with raises(RuntimeError, "random_displacement: device", "CUDA operators"):
            tcwarp.random_displacement(1, (4, 5), device="cuda")


def test_random_elastic_names_itself():
    for option, value in (("magnitude", -1), ("displacement_std", -1), ("sigma", (1, 2, 3, 4))):
        with raises(ValueError, f"RandomElastic: {option} must be", "got"):
            tcwarp.RandomElastic(**{option: value})
    with raises(ValueError, "RandomElastic: all arguments must have the batch and the spatial"):
        tcwarp.RandomElastic(sigma=2.0)(IMAGE, torch.zeros(2, 1, 3, 3))


def test_random_elastic_refuses_what_is_no_tensor():
    elastic = tcwarp.RandomElastic(sigma=2.0)
    with raises(TypeError, "RandomElastic: at least one tensor", "got none"):
        elastic()
    with raises(TypeError, "RandomElastic:", "torch.Tensor", "got list"):
        elastic(IMAGE, [1])


@pytest.mark.parametrize("argument", ["input", "displacement"])
def test_devices_without_kernels(argument):
    # FakeTensor of another backend: the check comes before any kernel is asked.
    class Elsewhere(torch.Tensor):
        device = torch.device("mps")

    odd = torch.zeros(2, 2, 4, 5).as_subclass(Elsewhere)
    arguments = (odd, FIELD) if argument == "input" else (IMAGE, odd)
    with raises(ValueError, f"warp: {argument} must be on a CPU or CUDA device", "got mps"):
        tcwarp.warp(*arguments)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own memory")
@pytest.mark.parametrize("call", ["warp(image, field)", "invert(field)", "warp(bytes_, field)"])
def test_out_of_memory_has_the_message_of_torch(call):
    result = python(
        "-c",
        "import resource, torch, tcwarp\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))\n"
        "image = torch.zeros(1, 1, 1, 1).expand(1, 1, 200_000, 200_000)\n"
        "field = torch.zeros(1, 2, 1, 1).expand(1, 2, 200_000, 200_000)\n"
        "bytes_ = torch.zeros(1, 1, 1, 1).byte().expand_as(image)\n"
        f"tcwarp.{call}",
    )
    assert result.returncode == 1
    old = torch.__version__ < (2, 13)
    message = "out of memory most likely" if old else "you tried to allocate"
    assert message in result.stderr.splitlines()[-1]
