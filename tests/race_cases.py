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
def emulated():
    for name in "kernels", "planted":
        torch.ops.load_library(str(FOLDER / f"{name}.so"))
    with poison():
        yield torch.ops.tcwarp_emulated


def check(name: str, *arguments: object, exact: bool, atol: float) -> None:
    """Run an operator twice; see that nothing raced and the result is the CPU's."""
    operator = getattr(torch.ops.tcwarp_emulated, name)
    first, second = operator(*arguments), operator(*arguments)
    reports = new_reports()
    assert not reports, reports
    if exact:
        assert_bits_equal(second, first, "another order of the blocks")
    assert_close(first, getattr(torch.ops.tcwarp, name)(*arguments), name, atol=atol)


def inputs(dimensions: int, dtype: torch.dtype, layout: str) -> tuple[torch.Tensor, ...]:
    """Return an image and a field of several blocks, also of those that take vectors of pixels."""
    size = (12, 14) if dimensions == 2 else (4, 6, 8)
    channels = 4 if layout == "channels_last" else 3
    image = with_layout(image_values(dtype, (2, channels, *size), 0), layout)
    field = displacement_values("rough", (2, dimensions, *size), 1)
    return image, field.to(torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dimensions, dtype", CASES)
def test_warp_and_its_gradients(dimensions, dtype, mode, padding, layout):
    image, field = inputs(dimensions, dtype, layout)
    codes = MODES[mode], PADDING_MODES[padding]
    sums = float(image.double().abs().sum(dim=tuple(range(2, image.dim()))).max())
    atol = 60 * torch.finfo(dtype).eps * sums
    nearest = mode == "nearest"
    check("warp", image, field, *codes, exact=True, atol=0 if nearest else atol)
    for deterministic in False, True:
        arguments = image, field, *codes, deterministic
        check("warp_backward_input", *arguments, exact=deterministic, atol=atol)
    if not nearest:
        arguments = image, image, field, *codes
        check("warp_backward_displacement", *arguments, exact=True, atol=atol)


@pytest.mark.parametrize("size", [(40, 70), (33, 2), (6, 5, 34)])
def test_spline_filter_over_many_tiles(size):
    image = image_values(torch.float64, (1, 1, *size), 0)
    field = torch.full((1, len(size), *size), 0.25, dtype=torch.float64)
    check("warp", image, field, 2, 1, exact=True, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(12, 14), (4, 6, 8)])
def test_align(emulated, size, dtype):
    field = 0.3 * displacement_values("smooth", (2, len(size), *size), 1).to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    results = [emulated.align(field, other, tolerance, 32) for other in (field, None, None)]
    reports = new_reports()
    assert not reports, reports
    for second, first in zip(*results[1:], strict=True):
        assert_bits_equal(second, first, "another order of the blocks")


def test_field_coefficients():
    arguments = torch.tensor([-5]), 7, 60, [5, 7], 0.3
    check("field_coefficients", *arguments, exact=True, atol=1e-13)


@pytest.mark.parametrize("fault", ["no barrier", "no warp barrier", "plain sum", "plain read"])
def test_a_race_would_be_found(fault):
    planted("none")
    assert not new_reports()
    planted(fault)
    assert "WARNING: ThreadSanitizer: data race" in new_reports()
