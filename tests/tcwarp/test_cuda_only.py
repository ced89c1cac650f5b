"""What only a GPU can show: graphs, streams, devices, one result on every run."""

import pytest
import torch
from assertions import assert_bits_equal, assert_close
from strategies import MODES

import tcwarp

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPE = (2, 3, 64, 48)


def inputs(device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    field = tcwarp.random_displacement(
        2, SHAPE[2:], sigma=9.0, displacement_std=3.0, generator=torch.Generator().manual_seed(1)
    )
    return image.to(device), field.to(device)


def step(image: torch.Tensor, field: torch.Tensor, mode: str) -> tuple[torch.Tensor, ...]:
    """A warp, its gradient, an alignment."""
    leaf = image.detach().requires_grad_()
    output = tcwarp.warp(leaf, tcwarp.align(field, field.flip(0)), mode=mode)
    (gradient,) = torch.autograd.grad(output, leaf, image)
    return output.detach(), gradient


@pytest.mark.parametrize("mode", MODES)
def test_graph(mode):
    image, field = inputs()
    expected = step(image, field, mode)
    for _ in range(2):  # warm up on a side stream, as capture wants it
        with torch.cuda.stream(torch.cuda.Stream()):
            step(image, field, mode)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(image, field, mode)
    image.mul_(2)
    graph.replay()
    for result, wanted in zip(results, expected, strict=True):
        assert_close(result, 2 * wanted, "replayed graph", atol=1e-5)


def test_graph_draws_anew_at_each_replay():
    generator = torch.Generator("cuda").manual_seed(3)

    def draw() -> torch.Tensor:
        return tcwarp.random_displacement(1, (32, 32), sigma=5.0, generator=generator)

    draw()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        field = draw()
    graph.replay()
    first = field.clone()
    graph.replay()
    assert not torch.equal(first, field)
    assert first.isfinite().all()


def test_a_graph_needs_a_generator_of_the_gpu():
    with (
        pytest.raises(RuntimeError, match="generator must be one of the GPU"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        tcwarp.random_displacement(1, (32, 32), sigma=5.0, device="cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_the_current_device_is_where_fields_are_drawn():
    for index in (0, 1, 0):
        with torch.cuda.device(index):
            field = tcwarp.random_displacement(1, (48, 40), sigma=7.0, device="cuda")
        assert field.device.index == index


@pytest.mark.parametrize("mode", MODES)
def test_side_stream(mode):
    image, field = inputs()
    expected = step(image, field, mode)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work that a kernel on the default stream would overtake.
        torch.cuda._sleep(10_000_000)
        late = image.clone()
        results = step(late, field, mode)
    stream.synchronize()
    for result, wanted in zip(results, expected, strict=True):
        assert_close(result, wanted, "side stream", atol=1e-5)


def test_factors_that_the_cache_drops_are_read_to_the_end_on_another_stream():
    from tcwarp._modes import factors

    image = torch.rand(1, 1, 512, 512, device="cuda")
    expected = tcwarp.gaussian_smooth(image, 20.0)  # made and kept on this stream
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        output = tcwarp.gaussian_smooth(image, 20.0)
    sizes = [t.shape for pair in factors.kept.values() for t in pair if t.is_cuda]
    factors.kept.clear()
    factors.bytes = 0
    # Without a record of the other stream these would be given the memory that it still reads.
    spoiled = [torch.full(size, torch.nan, device="cuda") for size in sizes]
    stream.synchronize()
    assert spoiled and torch.equal(output, expected)


def test_products_are_exact_where_others_may_be_rounded():
    """TF32, which the caller may choose for networks, has ten bits."""
    image = torch.rand(1, 1, 256, 256)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        output = tcwarp.gaussian_smooth(image.cuda(), 9.0)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_close(output, tcwarp.gaussian_smooth(image, 9.0), "smoothed", atol=1e-5)


def test_a_field_of_many_rows():
    size = (4_300_000, 4)  # more blocks along an axis than a grid has along y
    fields = [
        tcwarp.random_displacement(
            *(1, size),
            sigma=1e6,
            displacement_std=1.0,
            generator=torch.Generator().manual_seed(0),
            device=device,
        )
        for device in ("cpu", "cuda")
    ]
    assert_close(fields[1], fields[0], "field", atol=1e-4)


def test_gradients_of_many_samples():
    """More than the zeros of one launch: each zeroes for the next, samples of uneven length."""
    image = torch.rand(9, 5, 511, 509, device="cuda", requires_grad=True)
    field = torch.randn(9, 2, 511, 509, device="cuda").mul_(3)
    for mode in MODES:
        output = tcwarp.warp(image, field, mode=mode)
        (together,) = torch.autograd.grad(output, image, output.detach())
        for n in range(9):
            one = image[n : n + 1].detach().requires_grad_()
            alone = tcwarp.warp(one, field[n : n + 1], mode=mode)
            (expected,) = torch.autograd.grad(alone, one, alone.detach())
            assert_close(together[n : n + 1], expected, "gradient", atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("mode", MODES)
def test_second_device(mode):
    results = step(*inputs("cuda:1"), mode)
    assert {result.device.index for result in results} == {1}
    for result, wanted in zip(results, step(*inputs(), mode), strict=True):
        assert_close(result, wanted, "second device", atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_deterministic_backward(mode, dtype):
    """Thousands of values meet in one pixel: atomics on floats would differ from run to run."""
    image = torch.rand(2, 3, 256, 256, device="cuda").sub(0.5).to(dtype).requires_grad_()
    field = torch.full((2, 2, 256, 256), -300.3, device="cuda")
    field[:, :, 100:] = 0.4
    torch.use_deterministic_algorithms(True)
    try:
        gradients = [
            torch.autograd.grad(
                tcwarp.warp(image, field, mode=mode, padding_mode="border"), image, image.detach()
            )[0]
            for _ in range(5)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in gradients[1:]:
        assert_bits_equal(other, gradients[0], "gradient")


@pytest.mark.parametrize("method", ["semitc", "mean-teacher"])
def test_a_training_step_never_waits_for_the_device(tmp_path, method):
    pytest.importorskip("tcseg.training.trainer")  # and with it all that training needs
    from tcseg.runs.config import Config
    from tcseg.runs.folder import RunFolder
    from tcseg.training.trainer import Trainer

    config = Config(size=64, method=method, device="cuda", precision="bfloat16", pretrain_steps=0)
    trainer = Trainer(config, RunFolder(tmp_path))
    trainer.make_teacher()
    for _ in range(2):
        trainer.step(trainer.method)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(trainer.method)
    finally:
        torch.cuda.set_sync_debug_mode("default")
