"""Compiles the emulation of the kernels (`emulation/`) and runs it, under ThreadSanitizer too."""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkout import ROOT, TESTS
from processes import run
from torch.utils import cpp_extension

EMULATION = TESTS / "emulation"
KEPT = ROOT / "build" / "emulation"
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


def compile_library(source: str, *flags: str) -> Path:
    """Compile one source of `emulation/` for a small device; it is kept for the next time.

    Few threads fill it, its cache holds a sample or two, and offsets of some samples fit 32 bits.
    """
    command = [
        *(compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"),
        *("-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
        *("-DTCWARP_ENOUGH=64", "-DTCWARP_CHUNK=6000", "-DTCWARP_MOST_32=6000"),
        *(*flags, f"-I{EMULATION}"),
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        str(EMULATION / f"{source}.cpp"),
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        "-ltorch_cpu",
    ]
    with only_process(folder_of_libraries() / f"{source}.lock") as folder:
        library = folder / f"{source}-{identity(command)}.so"
        if not library.exists():
            unfinished = library.with_suffix(".tmp")
            result = run([*command, "-o", unfinished])
            assert result.returncode == 0, result.stderr
            unfinished.replace(library)
    return library


def folder_of_libraries() -> Path:
    """Return where libraries are kept: not among sources that cannot be written to."""
    folder = KEPT if os.access(ROOT, os.W_OK) else Path(tempfile.gettempdir(), "tcwarp-emulation")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def identity(command: list[str]) -> str:
    """Return a digest of all that the result of a compilation depends on."""
    digest = hashlib.sha256(repr((command, torch.__version__)).encode())
    digest.update(run([command[0], "--version"]).stdout.encode())
    for folder in EMULATION, ROOT / "csrc":
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def only_process(lock: Path) -> Iterator[Path]:
    """Keep other processes, which run other tests, waiting; give the folder of the lock."""
    import fcntl

    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lock.parent


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
    runtime = run(command).stdout.strip()
    # One thread in torch: its own threads are not compiled for the sanitizer.
    environment = {**os.environ, "LD_PRELOAD": runtime, "OMP_NUM_THREADS": "1"}
    probe = "import ctypes; ctypes.CDLL(None).__tsan_acquire"
    # The sanitizer does not know all layouts of memory that a kernel may choose at random.
    for prefix in [], ["setarch", "-R"]:
        python = [*prefix, sys.executable]
        with contextlib.suppress(FileNotFoundError):
            result = run([*python, "-c", probe], env=environment)
            if result.returncode == 0:
                return python, environment
    pytest.skip(f"no ThreadSanitizer: {result.stderr.strip()[-300:]}")
