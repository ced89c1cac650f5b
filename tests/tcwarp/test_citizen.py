"""Good citizenship: the ABI, workers after fork, memory, vectorisation, tensors beyond 2^31."""

import itertools
import multiprocessing
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from assertions import assert_bits_equal, assert_close
from checkout import inductor
from processes import run
from strategies import FLOATING_DTYPES, MODES, displacement_values, image_values
from torch.profiler import ProfilerActivity, profile

import tcwarp
from tcwarp import _native

PACKAGE = Path(_native.LIBRARY).parent


def unstable(lines: list[str]) -> list[str]:
    """Return those of the undefined symbols that `nm` lists that are of torch's C++ interface.

    Whatever stands before the name: "typeinfo for c10::Error", "pybind11::cast<at::Tensor>()".
    """
    symbols = [line.split(maxsplit=1)[1] for line in lines]
    return [name for name in symbols if re.search(r"(?<![\w:])(at|c10|caffe2|torch)::", name)]


def test_unstable_symbols_are_recognised():
    bad = [
        *("at::Tensor::item() const", "c10::Error::what() const", "torch::jit::load()"),
        *("typeinfo for c10::Error", "vtable for at::TensorBase", "VTT for c10::Stream"),
        *("guard variable for at::a()::b", "void f<c10::Half>(c10::Half*)", "g(at::Tensor const&)"),
        *("vtable for torch::autograd::Node", "non-virtual thunk to c10::Storage::~Storage()"),
    ]
    good = [
        *("aoti_torch_empty_strided", "torch_call_dispatcher", "at_quick_exit@GLIBC_2.17"),
        *("std::vector<int>::at(unsigned long)", "typeinfo for std::exception", "PyList_New"),
        *("flat::map::find()", "my::torch::f()", "operator delete(void*)@GLIBCXX_3.4"),
    ]
    lines = [
        f"                 {kind} {name}" for kind, name in zip("UwvU" * 5, bad + good, strict=True)
    ]
    assert unstable(lines) == bad


@pytest.mark.parametrize("library", sorted(PACKAGE.glob("_c[pu]*.so")), ids=lambda path: path.name)
def test_only_stable_symbols_of_torch(library):
    """C++ symbols of torch change from release to release; the C shims do not."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    command = [nm, "--dynamic", "--undefined-only", "--demangle", str(library)]
    lines = run(command).stdout.splitlines()
    assert any(" aoti_torch_" in line for line in lines)
    assert unstable(lines) == []


def _warp_in_worker(index: int) -> torch.Tensor:
    image = torch.arange(4096.0).reshape(1, 1, 64, 64) + index
    generator = torch.Generator().manual_seed(index)
    field = tcwarp.random_displacement(1, (64, 64), sigma=9.0, generator=generator)
    return tcwarp.warp(image, field, mode="linear")


class _Warped(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return _warp_in_worker(index)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_works_in_workers_after_a_fork():
    # The threads of the parent are there when it forks, and gone in the child.
    expected = [_warp_in_worker(index) for index in range(6)]
    loader = torch.utils.data.DataLoader(
        _Warped(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for output, wanted in zip(loader, expected, strict=True):
        assert_bits_equal(output, wanted, "warp in a worker")


# ------------------------------------------------------------------------------------ memory


def allocations(function) -> list[int]:
    """Bytes that one call asks torch for (positive) and gives back (negative), in order."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = function()
    del kept
    events = profiler.profiler.kineto_results.events()
    memory = [event for event in events if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]


def allocated(function) -> int:
    """Bytes that one call asks torch for, in all."""
    return sum(max(0, size) for size in allocations(function))


def peak(function) -> int:
    """Most bytes that one call holds at a time, its result among them."""
    return max(itertools.accumulate(allocations(function)))


# Less than a hundredth of the result: a few numbers, whatever the size of the image.
SMALL = 4096


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_a_warp_allocates_its_result_only(mode, dtype):
    image, field = torch.rand(2, 3, 128, 128), torch.randn(2, 2, 128, 128).to(dtype)
    # A cubic warp needs the coefficients of its spline as well.
    buffer = image.nbytes if mode == "cubic" else 0
    code = MODES.index(mode)
    forward = allocated(lambda: tcwarp.warp(image, field, mode=mode))
    assert image.nbytes <= forward <= image.nbytes + buffer + SMALL
    backward = allocated(lambda: torch.ops.tcwarp.warp_backward_input(image, field, code, 0, False))
    assert image.nbytes <= backward <= image.nbytes + SMALL
    if mode != "nearest":
        other = allocated(
            lambda: torch.ops.tcwarp.warp_backward_displacement(image, image, field, code, 0)
        )
        assert field.nbytes <= other <= field.nbytes + buffer + SMALL


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_channels_last_gradients_are_not_copied(mode):
    image = torch.rand(1, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    gradient, field = image.clone(), torch.rand(1, 2, 64, 64)
    code = tcwarp._native.MODES[mode]
    needed = allocated(
        lambda: torch.ops.tcwarp.warp_backward_displacement(gradient, image, field, code, 0)
    )
    coefficients = image.nbytes if mode == "cubic" else 0
    assert needed <= field.nbytes + coefficients + SMALL


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_cubic_warp_keeps_coefficients_of_few_samples(dtype):
    """Beside the result, whatever the batch; forward and both backwards."""

    def beside(batch):
        image = torch.rand(batch, 3, 256, 256).to(dtype).requires_grad_()
        field = torch.rand(batch, 2, 256, 256).requires_grad_()
        output = tcwarp.warp(image, field, mode="cubic")
        gradient = torch.ones_like(output)
        return (
            peak(lambda: tcwarp.warp(image.detach(), field.detach(), mode="cubic")) - output.nbytes,
            peak(lambda: torch.autograd.grad(output, image, gradient, retain_graph=True))
            - image.nbytes
            - field.nbytes,
        )

    # 2^20 pixels are 5 samples of 3 channels; the gradient by the field is computed as well.
    for few, many in zip(beside(6), beside(24), strict=True):
        assert many <= few + SMALL


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_the_algebra_allocates_its_result_only(dtype):
    field = tcwarp.random_displacement(2, (128, 128), sigma=30.0, dtype=dtype)
    for function in (
        lambda: tcwarp.align(field, field),
        lambda: tcwarp.invert(field),
        lambda: tcwarp.compose(field, field),
    ):
        assert field.nbytes <= allocated(function) <= field.nbytes + SMALL


def test_sampling_allocates_little_beside_the_field():
    def draw():
        return tcwarp.random_displacement(2, (256, 256), sigma=60.0)

    # Of the factors along one axis: modes times pixels.
    assert allocated(draw) < 1.2 * draw().nbytes


@pytest.mark.parametrize("sigma", [1.0, 4.0, (60.0, 1.0), (1.0, 60.0)])
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_sampling_many_modes_makes_a_few_planes_at_a_time(dtype, sigma):
    def draw():
        return tcwarp.random_displacement(8, (300, 400), sigma=sigma, dtype=dtype)

    # Two planes, each of float64 normals, and of fast transforms: the modes, their spectrum and
    # that padded, complex, and pixels of twice the length. 8 numbers a pixel.
    planes, pixels = 2, 300 * 400
    assert peak(draw) <= draw().nbytes + planes * pixels * (8 + 8 * max(4, dtype.itemsize)) + SMALL


def test_half_precision_fields_of_few_modes_are_made_in_parts():
    def draw():
        return tcwarp.random_displacement(8, (512, 512), sigma=60.0, dtype=torch.float16)

    assert peak(draw) < draw().nbytes + 1.2 * 512 * 512 * 4


@pytest.mark.parametrize("sigma", [1.0, 4.0, 60.0])
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_smoothing_allocates_little_beside_its_result(dtype, sigma):
    few, many = (torch.rand(batch, 2, 300, 400, dtype=dtype) for batch in (2, 8))
    needed = [peak(lambda: tcwarp.gaussian_smooth(image, sigma)) for image in (few, many)]  # noqa: B023
    # Its parts, then all of them together: what is beside does not grow with the batch.
    assert needed[1] - needed[0] <= 2 * (many.nbytes - few.nbytes) + SMALL


def test_fields_made_in_parts_are_those_made_at_once(monkeypatch):
    whole, parts = [], []
    for fields, at_once in ((whole, 2**40), (parts, 1)):
        monkeypatch.setattr("tcwarp._modes.AT_ONCE", {"cpu": at_once})
        for dtype, size in itertools.product(FLOATING_DTYPES, ((40, 50), (9, 8, 10))):
            seed = torch.Generator().manual_seed(1)
            options = {"sigma": 1.5, "identity_probability": 0.4, "displacement_std": 2.0}
            field = tcwarp.random_displacement(5, size, generator=seed, dtype=dtype, **options)
            fields += field, tcwarp.gaussian_smooth(field, 0.9)
    for one, other in zip(whole, parts, strict=True):
        # A product of matrices may add in another order for another number of rows.
        atol = 16 * torch.finfo(one.dtype).eps
        assert_close(other, one, "random_displacement", atol=atol)
        assert torch.equal(other.flatten(1).any(1), one.flatten(1).any(1))


def test_a_field_is_not_copied_for_points_of_many_samples():
    field = tcwarp.random_displacement(1, (128, 128), sigma=30.0, displacement_std=3.0)
    points = 20 + 80 * torch.rand(50, 4, 2)
    assert peak(lambda: tcwarp.warp_points(points, field)) < 3 * field.nbytes  # in float64 it is 2


# ------------------------------------------------------------------------------ vectorisation


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", MODES)
def test_vmap(device, mode):
    images = image_values(torch.float64, (3, 2, 2, 6, 5), 0).to(device)
    fields = displacement_values("rough", (12, 2, 6, 5), 1).to(device).reshape(3, 2, 2, 2, 6, 5)[0]

    def warp(image, field):
        return tcwarp.warp(image, field, mode=mode)

    both = torch.vmap(warp)(images[:2], fields)
    expected = torch.stack([warp(i, f) for i, f in zip(images, fields, strict=False)])
    assert_close(both, expected, "vmap of warp", atol=0)
    shared = torch.vmap(warp, in_dims=(1, None), out_dims=1)(images.movedim(0, 1), fields[0])
    expected = torch.stack([warp(image, fields[0]) for image in images], dim=1)
    assert_close(shared, expected, "vmap of warp", atol=0)


def test_vmap_over_nothing():
    field = torch.zeros(3, 2, 8, 8)
    images = torch.rand(0, 3, 2, 8, 8)
    assert torch.vmap(lambda image: tcwarp.warp(image, field))(images).shape == images.shape


def test_vmap_of_valid_mask(device):
    fields = displacement_values("rough", (6, 2, 6, 5), 1).to(device).reshape(3, 2, 2, 6, 5)
    for mode in MODES:
        masks = torch.vmap(lambda field: tcwarp.valid_mask(field, mode=mode))(fields)  # noqa: B023
        expected = torch.stack([tcwarp.valid_mask(field, mode=mode) for field in fields])
        assert torch.equal(masks, expected)


def test_vmap_of_align(device):
    fields = 0.2 * displacement_values("smooth", (6, 2, 6, 5), 1).to(device).reshape(3, 2, 2, 6, 5)
    together = torch.vmap(tcwarp.align)(fields, fields.flip(0))
    expected = torch.stack(
        [tcwarp.align(a, b) for a, b in zip(fields, fields.flip(0), strict=True)]
    )
    assert_close(together, expected, "vmap of align", atol=0)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_drawing(monkeypatch):
    for at_once in (2**18, 1):
        monkeypatch.setattr("tcwarp._modes.AT_ONCE", {"cpu": at_once})

        def draw(image):
            return image + tcwarp.random_displacement(2, (9, 8), sigma=1.0)

        fields = torch.vmap(draw, randomness="different")(torch.zeros(3, 1, 1, 1, 1))
        assert fields.shape == (3, 2, 2, 9, 8)
        assert not fields[0].equal(fields[1])


# -------------------------------------------------------------------------------- compilation


@pytest.mark.slow  # a minute; each function compiles in a test of its own
@pytest.mark.filterwarnings("error")
def test_everything_compiles_into_one_graph_of_any_size():
    def function(image):
        size = image.shape[2:]
        first, second = (
            tcwarp.random_displacement(image.shape[0], size, sigma=4.0, displacement_std=s)
            for s in (1.0, 1.5)
        )
        return (
            tcwarp.warp(tcwarp.warp(image, first, mode="cubic"), tcwarp.align(first, second)),
            tcwarp.warp(image, tcwarp.invert(tcwarp.compose(first, second)), mode="linear"),
            tcwarp.gaussian_smooth(image, 9.0),
            tcwarp.jacobian_determinant(first),
            tcwarp.valid_mask(second),
        )

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 1, 16, 20), (3, 2, 24, 18)):
        image = torch.rand(shape)
        outputs = []
        for version in (function, compiled):
            torch.manual_seed(7)
            outputs.append(version(image))
        for eager, other in zip(*outputs, strict=True):
            assert_close(other, eager, "compiled function", atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=inductor)])
def test_an_anisotropic_sigma_compiles(backend):
    def function(image):
        field = tcwarp.random_displacement(2, (16, 20), sigma=(3.0, 5.0), displacement_std=1.0)
        return tcwarp.gaussian_smooth(image, (3.0, 5.0)), tcwarp.gaussian_smooth(field, [2.0, 1.0])

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    image = torch.rand(2, 1, 16, 20)
    outputs = []
    for version in (function, compiled):
        torch.manual_seed(7)
        outputs.append(version(image))
    for eager, other in zip(*outputs, strict=True):
        assert_close(other, eager, "compiled function", atol=1e-5)


def test_a_fake_mode_leaves_nothing_behind():
    from torch._subclasses import FakeTensorMode

    def functions():
        yield tcwarp.gaussian_smooth(torch.zeros(1, 1, 33, 43), 9.0)
        yield tcwarp.random_displacement(1, (33, 43), sigma=9.0, displacement_std=1.0)

    for _ in range(2):  # before anything is kept, and after
        with FakeTensorMode():
            shapes = [tensor.shape for tensor in functions()]
        assert [tensor.shape for tensor in functions()] == shapes
    assert all(tensor.isfinite().all() for tensor in functions())


def test_meta_tensors_have_shapes():
    field = tcwarp.random_displacement(2, (8, 9), device="meta")
    assert (field.shape, field.device.type) == ((2, 2, 8, 9), "meta")
    assert tcwarp.gaussian_smooth(field, 2.0).shape == field.shape


def test_what_is_kept_for_later_is_bounded():
    from tcwarp._modes import factors

    noise = torch.rand(1, 1, 1024, 1024)
    for k in range(12):  # each of some 8 MiB and more
        tcwarp.gaussian_smooth(noise, 7.5 + k / 100)
    assert sum(t.nbytes for pair in factors.kept.values() for t in pair) == factors.bytes
    assert 0 < factors.bytes <= 64 * 2**20


def test_what_graphs_hold_is_kept_once(monkeypatch):
    from tcwarp import _modes

    monkeypatch.setattr(_modes, "is_capturing", lambda device: True)
    cache, value = _modes.Cache(1000), (torch.ones(1), torch.ones(1))
    for _ in range(3):
        cache._guard(("factor", 1), value)
    cache._guard(("factor", 2), value)
    assert len(cache.captured) == 2


def test_what_a_graph_holds_is_what_the_next_one_takes():
    """Another in its place would leave the first graph with memory that is given away."""
    from tcwarp import _modes

    def factor():
        return torch.ones(1), torch.ones(1)

    cache = _modes.Cache(1000)
    first = cache.get(factor)
    cache.captured[(factor,)] = first
    cache.kept.clear()  # driven out by others
    assert cache.get(factor) is first


def test_threads_with_small_stacks(small=128 * 1024):
    def work():
        field = torch.rand(1, 3, 24, 24, 24, dtype=torch.float64)
        for mode in ("nearest", "linear", "cubic"):
            image = torch.rand(1, 2, 24, 24, 24, dtype=torch.float64, requires_grad=True)
            moving = field.clone().requires_grad_(mode != "nearest")
            tcwarp.warp(image, moving, mode=mode).sum().backward()
        done.append(True)

    done: list[bool] = []
    before, threads = threading.stack_size(small), torch.get_num_threads()
    torch.set_num_threads(1)  # so that this very thread does the work
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
        torch.set_num_threads(threads)
    assert done


# -------------------------------------------------------------------------------- large tensors


def available_gib() -> float:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0.0
    return int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)) / 2**20


@pytest.mark.slow  # of some GiB
@pytest.mark.skipif(available_gib() < 8, reason="needs 8 GiB of free memory")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_more_than_2_to_the_31_elements(layout):
    channels, size = 2**13 + 1, (512, 512)
    image = torch.empty((1, channels, *size), dtype=torch.uint8, memory_format=layout).zero_()
    assert image.numel() > 2**31
    image[0, -1] = torch.arange(size[1], dtype=torch.uint8)
    image[0, :, 100, 7] = 3
    field = torch.zeros(1, 2, *size)
    field[:, 1] = 2.0
    output = tcwarp.warp(image, field)
    assert output[0, :, 100, 5].eq(3).all()
    assert output[0, -1, 511, :253].tolist() == list(range(2, 255))
    assert output[0, 0].sum() == 3


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_exports_with_axes_of_any_length(mode):
    class Warped(torch.nn.Module):
        def forward(self, image, displacement):
            return tcwarp.warp(image, displacement, mode=mode)

    def inputs(*size):
        return torch.rand(1, 1, *size), 3 * torch.rand(1, 2, *size)

    height, width = torch.export.Dim("height"), torch.export.Dim("width")
    axes = {2: height, 3: width}
    program = torch.export.export(Warped(), inputs(20, 24), dynamic_shapes=(axes, axes))
    image, displacement = inputs(31, 9)
    expected = tcwarp.warp(image, displacement, mode=mode)
    assert_bits_equal(program.module()(image, displacement), expected, "warp")


def test_exports_for_images_of_any_size_and_a_field_of_one():
    class Warped(torch.nn.Module):
        def forward(self, image, displacement):
            return tcwarp.warp(image, displacement, mode="linear")

    image, field = torch.rand(1, 1, 12, 14), torch.rand(1, 2, 12, 14)
    axes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(Warped(), (image, field), dynamic_shapes=(axes, None))
    other = torch.rand(1, 1, 31, 9)
    expected = tcwarp.warp(other, field, mode="linear")
    assert_bits_equal(program.module()(other, field), expected, "warp")


@pytest.mark.parametrize(
    "function, inputs",
    [
        (tcwarp.compose, "field field"),
        (tcwarp.align, "field field"),
        (tcwarp.exponential, "field"),
        (tcwarp.jacobian_determinant, "field"),
        (tcwarp.warp_points, "points field"),
        (tcwarp.warp_boxes, "boxes field"),
        (tcwarp.warp_points, "points shared"),
    ],
)
def test_exports_for_any_number_of_samples(function, inputs):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    def given(samples):
        rows = {"points": 4 + torch.rand(samples, 3, 2), "boxes": 4 + torch.rand(samples, 3, 4)}
        for name, count in (("field", samples), ("shared", 1)):
            rows[name] = tcwarp.random_displacement(
                count, (12, 14), sigma=4.0, displacement_std=0.5
            )
        return tuple(rows[name] for name in inputs.split())

    batch = torch.export.Dim("batch")
    axes = tuple(None if name == "shared" else {0: batch} for name in inputs.split())
    program = torch.export.export(Module(), given(2), dynamic_shapes=(axes,))
    others = given(5)
    assert_close(program.module()(*others), function(*others), function.__name__, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_one_compiled_gradient_serves_any_number_of_samples():
    def loss(first, second):
        return tcwarp.align(first, second).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, dynamic=True, backend="aot_eager")
    for samples, stance in ((3, "default"), (4, "default"), (5, "fail_on_recompile")):
        fields = tcwarp.random_displacement(2 * samples, (9, 8), sigma=4.0, displacement_std=0.3)
        fields = fields.requires_grad_()
        with torch.compiler.set_stance(stance):
            (gradient,) = torch.autograd.grad(compiled(*fields.split(samples)), fields)
        (expected,) = torch.autograd.grad(loss(*fields.split(samples)), fields)
        assert_close(gradient, expected, "align", atol=1e-4)
