"""Gates on what nvcc makes of the CUDA kernels, for machines without a GPU.

Registers, accesses to memory and their width are what a kernel that is bound by memory depends on,
and what a harmless-looking change takes away in silence. Bounds stand a little above what was
measured; see benchmarks/results/cuda-compiled.md.
"""

import os
import re
import sys

import pytest
from checkout import ROOT
from processes import run

from benchmarks.cuda_compiled import Kernel, kernels, tool

pytestmark = pytest.mark.slow  # nvcc takes minutes, where `make cuda-compile` has not run before


@pytest.fixture(scope="module")
def compiled() -> list[Kernel]:
    """All kernels, compiled for 9.0; ninja does nothing where `make cuda-compile` has done it."""
    missing = [name for name in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if not tool(name)]
    if missing:
        pytest.skip(f"not found: {', '.join(missing)}")
    command = [sys.executable, "setup.py", "-q", "compile_only"]
    environment = {k: v for k, v in os.environ.items() if k != "TCWARP_TORCH_HEADERS"}
    result = run(command, cwd=ROOT, env=environment, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    return kernels(ROOT / "build" / "compile_only" / "installed")


def those(compiled: list[Kernel], pattern: str, count: int) -> list[Kernel]:
    """Return the kernels that match: as many as there should be, lest a gate guards nothing."""
    found = [kernel for kernel in compiled if re.fullmatch(pattern, kernel.name)]
    assert len(found) == count, [kernel.name for kernel in found]
    return found


def test_no_kernel_spills(compiled):
    assert len(compiled) > 300
    assert [kernel.name for kernel in compiled if kernel.spilled_bytes] == []


def test_arrays_are_in_registers(compiled):
    """But for the solver in 3-D, and sine and cosine of doubles in the compiler's library."""
    stack = {re.sub("<.*", "", kernel.name) for kernel in compiled if kernel.stack_bytes}
    assert stack <= {"align_kernel", "coefficients_kernel"}
    assert not [k for k in compiled if k.stack_bytes and re.match("align_kernel<2", k.name)]


# Kernel, instructions, registers, loads in flight, bits of each, bits of every store.
FORWARD = [
    ("warp_nearest_kernel<4, 2, unsigned char, float, int>", 1100, 51, 6, 8, 32),
    ("warp_nearest_kernel<4, 2, unsigned short, float, int>", 1100, 51, 12, 16, 64),
    ("warp_nearest_kernel<4, 2, unsigned int, float, int>", 1100, 64, 12, 32, 128),
    ("warp_nearest_kernel<2, 2, unsigned long, float, int>", 650, 51, 6, 64, 128),
    ("warp_nearest_kernel<1, 2, Bits128, float, int>", 430, 48, 2, 128, 128),
    ("warp_interpolated_kernel<1, 2, 1, float, float, float, int>", 600, 64, 8, 32, 32),
    ("warp_interpolated_kernel<1, 2, 1, Half, Half, float, int>", 620, 64, 6, 16, 16),
    ("warp_interpolated_kernel<1, 2, 2, float, float, float, int>", 620, 64, 4, 64, 64),
    ("warp_interpolated_kernel<1, 2, 4, float, float, float, int>", 640, 80, 4, 128, 128),
]


@pytest.mark.parametrize("name, instructions, registers, in_flight, load, store", FORWARD)
def test_forward(compiled, name, instructions, registers, in_flight, load, store):
    (kernel,) = those(compiled, re.escape(name), 1)
    assert kernel.instructions <= instructions
    assert kernel.registers <= registers
    assert kernel.loads_in_flight >= in_flight
    assert kernel.widths("LDG")[load] >= in_flight
    assert set(kernel.widths("STG")) == {store}, kernel.widths("STG")


@pytest.mark.parametrize("mode, dimensions, in_flight", [(1, 2, 5), (1, 3, 9), (2, 2, 17)])
def test_field_gradient(compiled, mode, dimensions, in_flight):
    """All taps of a channel, and its gradient."""
    name = f"backward_displacement_kernel<{mode}, {dimensions}, float, float, float, int>"
    (kernel,) = those(compiled, name, 1)
    assert kernel.loads_in_flight >= in_flight


def test_spline_filters_read_ahead(compiled):
    for kernel in those(compiled, r"filter_(rows|columns)_kernel<\w+, \w+>", 8):
        assert kernel.loads_in_flight >= 8, kernel.name


# Kernel, instructions, registers, width of a sum, sums that the merging of neighbours may take.
BACKWARD = [
    ("backward_nearest_kernel<2, 2, 1, float, float, int, Plain<float>>", 1000, 51, 32),
    ("backward_nearest_kernel<2, 1, 4, float, float, int, Plain<float>>", 680, 56, 128),
    ("backward_nearest_kernel<2, 1, 2, float, float, int, Plain<float>>", 680, 56, 64),
    ("backward_interpolated_kernel<1, 2, 1, float, float, int, Plain<float>>", 1200, 51, 32),
    ("backward_interpolated_kernel<1, 2, 4, float, float, int, Plain<float>>", 750, 51, 128),
    ("backward_interpolated_kernel<1, 2, 2, float, float, int, Plain<float>>", 750, 51, 64),
]


@pytest.mark.parametrize("name, instructions, registers, sums", BACKWARD)
def test_backward(compiled, name, instructions, registers, sums):
    (kernel,) = those(compiled, re.escape(name), 1)
    assert kernel.instructions <= instructions
    assert kernel.registers <= registers
    assert set(kernel.widths("REDG")) == {sums}, kernel.widths("REDG")
    assert kernel.widths("ATOMG") == {}  # a reduction waits for no answer
    assert kernel.widths("STG")[128] >= 1  # the zeros of the next samples


def test_neighbours_hand_on_their_sums(compiled):
    pattern = r"backward_interpolated_kernel<[12], [23], 1, \w+, \w+, int, Plain<\w+>>"
    for kernel in those(compiled, pattern, 32):
        assert kernel.widths("SHFL"), kernel.name


@pytest.mark.parametrize("modes, registers", [(8, 80), (12, 100), (24, 168)])
def test_fields(compiled, modes, registers):
    (kernel,) = those(compiled, f"sum_modes_kernel<{modes}, float, float>", 1)
    assert kernel.registers <= registers
    assert kernel.widths("STG")[128] == 1 and kernel.widths("LDS")[128] == modes // 4
