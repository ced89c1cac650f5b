"""Gates on what nvcc makes of the CUDA kernels, for machines without a GPU.

Registers, accesses to memory and their width are what a kernel that is bound by memory depends on,
and what a harmless-looking change takes away in silence. Bounds stand a little above what was
measured; see benchmarks/results/cuda-compiled.md.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cuda_compiled import Kernel, kernels, tool

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compiled() -> list[Kernel]:
    """All kernels, compiled for 9.0; ninja does nothing where `make cuda-compile` has done it."""
    missing = [name for name in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if not tool(name)]
    if missing:
        pytest.skip(f"not found: {', '.join(missing)}")
    command = [sys.executable, "setup.py", "-q", "compile_only"]
    environment = {k: v for k, v in os.environ.items() if k != "TCWARP_TORCH_HEADERS"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
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


# Kernel, how many, instructions, registers, loads in flight by width, width of every store.
NEAREST = {"char": 8, "short": 16, "int": 32, "long": 64}
FORWARD = [
    *(
        (name.format(kind), 1150, 64, {bits: 12, 128: 2}, min(4 * bits, 128))
        for name in ("warp_nearest_kernel<4, 2, unsigned {}, float, int>",)
        for kind, bits in NEAREST.items()
    ),
    ("warp_interpolated_kernel<1, 2, 2, 1, float, float, float, int>", 1050, 80, {32: 16}, 64),
    ("warp_interpolated_kernel<1, 2, 2, 1, Half, Half, float, int>", 1100, 80, {16: 16}, 32),
    ("warp_interpolated_kernel<1, 2, 1, 4, float, float, float, int>", 680, 64, {128: 8}, 128),
    ("warp_interpolated_kernel<1, 2, 1, 2, float, float, float, int>", 640, 56, {64: 8}, 64),
    ("warp_nearest_kernel<1, 2, Bits128, float, int>", 430, 48, {128: 3}, 128),
]


@pytest.mark.parametrize("name, instructions, registers, loads, store", FORWARD)
def test_forward(compiled, name, instructions, registers, loads, store):
    (kernel,) = those(compiled, re.escape(name), 1)
    assert kernel.instructions <= instructions
    assert kernel.registers <= registers
    for bits, count in loads.items():
        assert kernel.widths("LDG")[bits] >= count, kernel.widths("LDG")
    assert set(kernel.widths("STG")) == {store}, kernel.widths("STG")


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


@pytest.mark.parametrize("modes, registers", [(8, 80), (16, 128), (24, 168)])
def test_fields(compiled, modes, registers):
    (kernel,) = those(compiled, f"sum_modes_kernel<{modes}, float, float>", 1)
    assert kernel.registers <= registers
    assert kernel.widths("STG")[128] == 1 and kernel.widths("LDS")[128] == modes // 4
