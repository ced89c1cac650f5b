"""Compiles the emulation of the kernels (`emulation/`) and runs it, under ThreadSanitizer too."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
# In the order of emulation/planted.cpp.
FAULTS = (
    *("none", "no barrier", "no warp barrier", "plain sum", "plain read", "unwritten"),
    *("unwritten shared", "last block wins", "returned lane", "diverged lanes"),
    *("other barrier", "misaligned"),
)


def compiler() -> str:
    """Return the C++ compiler; without one the test is skipped."""
    found = shutil.which("c++") or shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def compile_library(source: str, folder: Path, *flags: str) -> Path:
    """Compile one source of `emulation/` for a small device.

    Few threads fill it, its cache holds a sample or two, and offsets of some samples fit 32 bits.
    """
    library = folder / f"{source}.so"
    command = [
        *(compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"),
        *("-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
        *("-DTCWARP_ENOUGH=64", "-DTCWARP_CHUNK=6000", "-DTCWARP_MOST_32=6000"),
        *(*flags, f"-I{HERE / 'emulation'}"),
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        *(str(HERE / "emulation" / f"{source}.cpp"), "-o", str(library)),
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        "-ltorch_cpu",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return library


@contextlib.contextmanager
def poison() -> Iterator[None]:
    """Fill what operators allocate with NaN, or the largest integer: torch's own guard."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def planted(fault: str) -> tuple[torch.Tensor, ...]:
    """Return how far values and sums of the planted kernel are off, and the block that was last."""
    input = 1 + torch.arange(6 * 64, dtype=torch.float64)
    output, report = torch.ops.tcwarp_planted.run(input, FAULTS.index(fault))
    warps = input.view(-1, 32).sum(dim=1)
    expected = torch.stack([warps.sum(), warps.max()])
    return output - input.view(6, 64).flip(1).flatten(), report[:2] - expected, report[2]


def watching() -> tuple[list[str], dict[str, str]]:
    """Return a Python that ThreadSanitizer watches, and its environment."""
    command = [compiler(), "-print-file-name=libtsan.so"]
    runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    # One thread in torch: its own threads are not compiled for the sanitizer.
    environment = {**os.environ, "LD_PRELOAD": runtime, "OMP_NUM_THREADS": "1"}
    probe = "import ctypes; ctypes.CDLL(None).__tsan_acquire"
    # The sanitizer does not know all layouts of memory that a kernel may choose at random.
    for prefix in [], ["setarch", "-R"]:
        python = [*prefix, sys.executable]
        with contextlib.suppress(FileNotFoundError):
            result = subprocess.run(
                [*python, "-c", probe], env=environment, capture_output=True, text=True
            )
            if result.returncode == 0:
                return python, environment
    pytest.skip(f"no ThreadSanitizer: {result.stderr.strip()[-300:]}")
