"""What `test_cuda_races.py` runs under ThreadSanitizer: every kernel, blocks and threads at once.

Each call runs twice, its blocks in another order each time, and is compared with the CPU operator.
"""

import os
from pathlib import Path

import pytest
import torch
from assertions import assert_bits_equal, assert_close
from emulator import planted, poison
from strategies import displacement_values, image_values, with_layout

from tcwarp._native import MODES, PADDING_MODES

pytestmark = pytest.mark.skipif("TCWARP_RACES" not in os.environ, reason="see test_cuda_races.py")
FOLDER = Path(os.environ.get("TCWARP_RACES", "."))
CASES = [(2, torch.float32), (2, torch.float16), (2, torch.float64), (3, torch.float32)]


def new_reports() -> str:
    """Return what the sanitizer has written since the last call."""
    text = "".join(path.read_text() for path in FOLDER.glob("report.*"))
    found = text[new_reports.read :]
    new_reports.read = len(text)
    return found


new_reports.read = 0


@pytest.fixture(scope="module", autouse=True)
def libraries():
    for name in "kernels", "planted":
        torch.ops.load_library(str(FOLDER / f"{name}.so"))
    with poison():
        yield


def run(name: str, *arguments: object, exact: bool = True) -> tuple[torch.Tensor, ...]:
    """Run an operator twice; see that nothing raced and, if exact, no bit depends on the order."""
    operator = getattr(torch.ops.tcwarp_emulated, name)
    first, second = (
        (result,) if isinstance(result, torch.Tensor) else result
        for result in (operator(*arguments), operator(*arguments))
    )
    reports = new_reports()
    assert not reports, reports
    for one, other in zip(first, second, strict=True) if exact else ():
        assert_bits_equal(other, one, "another order of the blocks")
    return first


def check(name: str, *arguments: object, exact: bool = True, atol: float) -> None:
    """Run an operator twice and compare it with the CPU's."""
    (output,) = run(name, *arguments, exact=exact)
    assert_close(output, getattr(torch.ops.tcwarp, name)(*arguments), name, atol=atol)


def inputs(dimensions: int, dtype: torch.dtype, layout: str) -> tuple[torch.Tensor, ...]:
    """Return an image and a field of several blocks."""
    size = (12, 14) if dimensions == 2 else (4, 6, 8)
    channels = 4 if layout == "channels_last" else 2
    image = with_layout(image_values(dtype, (2, channels, *size), 0), layout)
    field = displacement_values("rough", (2, dimensions, *size), 1)
    return image, field.to(torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("padding", ["zeros", "border"])  # little and much that meets in one place
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dimensions, dtype", CASES)
def test_warp_and_its_gradients(dimensions, dtype, mode, padding, layout):
    image, field = inputs(dimensions, dtype, layout)
    codes = MODES[mode], PADDING_MODES[padding]
    sums = float(image.double().abs().sum(dim=tuple(range(2, image.dim()))).max())
    atol = 60 * torch.finfo(dtype).eps * sums
    nearest = mode == "nearest"
    check("warp", image, field, *codes, atol=0 if nearest else atol)
    for deterministic in False, True:
        arguments = image, field, *codes, deterministic
        check("warp_backward_input", *arguments, exact=deterministic, atol=atol)
    if not nearest:
        arguments = image, image, field, *codes
        check("warp_backward_displacement", *arguments, atol=atol)


def test_vectors_of_pixels():
    image = image_values(torch.float32, (1, 2, 64, 64), 0)
    field = displacement_values("rough", (1, 2, 64, 64), 1).float()
    for mode in MODES.values():
        atol = 0 if mode == 0 else 1e-4
        check("warp", image, field, mode, 1, atol=atol)
        arguments = image, field, mode, 1, False
        check("warp_backward_input", *arguments, exact=False, atol=1e-2)


@pytest.mark.parametrize("size", [(40, 70), (33, 2), (6, 5, 34)])
def test_spline_filter_over_many_tiles(size):
    image = image_values(torch.float64, (1, 1, *size), 0)
    field = torch.full((1, len(size), *size), 0.25, dtype=torch.float64)
    check("warp", image, field, 2, 1, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(12, 14), (4, 6, 8)])
def test_align(size, dtype):
    field = 0.3 * displacement_values("smooth", (2, len(size), *size), 1).to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for second in field, None:
        arguments = field, second, tolerance, 32
        output, report = run("align", *arguments)
        expected, _ = torch.ops.tcwarp.align(*arguments)
        atol = 10 * tolerance + float(expected.abs().max()) * torch.finfo(dtype).eps
        assert_close(output, expected, "align", atol=atol)
        assert report.isfinite().all()


def test_field_coefficients():
    arguments = torch.tensor([-5]), 7, 60, [5, 7], 0.3
    check("field_coefficients", *arguments, atol=1e-13)


def test_sum_modes():
    shapes = (3, 8, 12), (70, 8), (12, 45)
    values = [image_values(torch.float64, shape, seed) for seed, shape in enumerate(shapes)]
    (output,) = run("sum_modes", values[0], *(v.float() for v in values[1:]), 1.0, torch.float32)
    expected = values[1] @ values[0] @ values[2]
    assert_close(output, expected, "sum", atol=1e-4)


@pytest.mark.parametrize("fault", ["no barrier", "no warp barrier", "plain sum", "plain read"])
def test_a_race_would_be_found(fault):
    planted("none")
    assert not new_reports()
    planted(fault)
    assert "WARNING: ThreadSanitizer: data race" in new_reports()
