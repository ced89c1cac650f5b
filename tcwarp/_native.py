"""Load the native libraries; register fake kernels and gradients of their operators.

The operators stand in ``csrc/schemas.cpp``, one line each; what torch must know of them beside
their kernels stands here, in the same order.
"""

import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import struct
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

HERE = Path(__file__).parent


def _find_library() -> Path:
    """Return the library of the CPU operators: that of an installed tcwarp where this has none.

    This folder is that of a clone then, which hides the installed package from those who stand in
    it.
    """
    # No module of Python, but found as one.
    name, package = "tcwarp._cpu", sys.modules["tcwarp"]
    own = PathFinder.find_spec(name, package.__path__)
    if own and own.origin:
        return Path(own.origin)
    folders = [os.path.join(entry, "tcwarp") for entry in sys.path]
    # The latter knows of editable installs.
    found = PathFinder.find_spec(name, folders) or importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ImportError(
            f"tcwarp is not built: neither {HERE} nor a tcwarp installed for {sys.executable} has "
            "the native library; run `pip install .` in the source folder"
        )
    library, sources = Path(found.origin), HERE.parent / "csrc"
    is_clone = (sources / "schemas.cpp").exists()
    if is_clone and _identity(sources).encode() not in library.read_bytes():
        raise ImportError(
            f"tcwarp: {library} was built from other sources than those in {HERE.parent}; "
            "run `pip install .` there again"
        )
    package.__path__.append(str(library.parent))
    return library


def _identity(sources: Path) -> str:
    """Return the digest of the sources that the build writes into its libraries."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(sources.rglob("*.[ch]*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


LIBRARY = _find_library()
try:
    torch.ops.load_library(str(LIBRARY))
except OSError as error:
    raise ImportError(
        f"tcwarp: the native library cannot be loaded ({error}); run `pip install .` in the source "
        f"folder again, with torch >= 2.10 (installed here: {torch.__version__})"
    ) from error


def build_info() -> dict[str, str]:
    """Return what the native library was built with and from."""
    library = ctypes.CDLL(str(LIBRARY))
    library.tcwarp_build_info.restype = ctypes.c_char_p
    return dict(json.loads(library.tcwarp_build_info()))


Mode = Literal["nearest", "linear", "cubic"]
PaddingMode = Literal["zeros", "border", "reflection"]
NEAREST = 0
MODES: dict[Mode, int] = {"nearest": NEAREST, "linear": 1, "cubic": 2}
PADDING_MODES: dict[PaddingMode, int] = {"zeros": 0, "border": 1, "reflection": 2}


def _load_cuda(library: Path) -> str:
    """Load the CUDA operators where torch has CUDA; return, in one line, what came of it.

    CUDA itself is left alone: a process that has started it cannot fork.
    """
    cuda, built = torch.version.cuda, build_info()
    name = f"torch {torch.__version__}"
    again = "run `pip install .` in the source folder"
    if cuda is None:
        return f"not used: {name} has no CUDA"
    if built["cuda_left_out"]:
        return f"not built: {built['cuda_left_out']}"
    if built["cuda"].split(".")[0] != cuda.split(".")[0]:
        return f"not loaded: built for CUDA {built['cuda']}, {name} has CUDA {cuda}; {again}"
    try:
        with library.open("rb") as file:
            start = file.read(2**16)  # the linker writes what the library is of near it
        if bytes.fromhex(built["identity"]) not in start:
            return f"not loaded: {library.name} is of another build than {LIBRARY.name}; {again}"
        if library.stat().st_size < _elf_size(start):
            return f"not loaded: {library.name} is truncated; {again}"
        torch.ops.load_library(str(library))
    except FileNotFoundError:
        return f"not loaded: {library.name} is missing beside {LIBRARY.name}; {again}"
    except (OSError, struct.error) as error:  # no library, or one that it needs is missing
        return f"not loaded: {str(error).splitlines()[0]}; {again}"
    lacking = [
        operator
        for operator in torch._C._dispatch_get_all_op_names()
        if operator.startswith("tcwarp::")
        and not torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
    ]
    if lacking:
        return f"not loaded: {library.name} lacks {', '.join(sorted(lacking))}; {again}"
    return "loaded"


def _elf_size(start: bytes) -> int:
    # The table of sections comes last. Loading a truncated library ends the process.
    (offset,) = struct.unpack_from("<Q", start, 0x28)
    entry, count = struct.unpack_from("<HH", start, 0x3A)
    return int(offset + entry * count)


_CUDA_STATUS = _load_cuda(LIBRARY.with_name("_cuda.so"))


def cuda_status(device: torch.device | None = None) -> str:
    """Return ``"loaded"`` where the CUDA operators can be used, otherwise why not.

    Parameters
    ----------
    device : torch.device, optional
        The one to be used. Without, it is enough that one of the devices can be. Where torch
        sees devices, the question starts CUDA in this process.
    """
    if _CUDA_STATUS != "loaded" or torch.compiler.is_compiling():
        return _CUDA_STATUS
    if device is None:
        return _status_of_any()
    return _status_of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _status_of_any() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every = [_status_of(index) for index in range(count)]
    return "loaded" if not every or "loaded" in every else every[0]


@functools.cache
def _status_of(index: int) -> str:
    if not torch.cuda.is_available():  # tensors without memory, as exporters use them
        return "loaded"
    try:
        capability = torch.cuda.get_device_capability(index)
    except RuntimeError as error:  # in a fork of a process that uses CUDA, for one
        return f"not usable: {str(error).splitlines()[0]}"
    built = build_info()["cuda_architectures"]
    if _runs_on(capability, built):
        return "loaded"
    version = ".".join(map(str, capability))
    return (
        f"not usable on {torch.cuda.get_device_name(index)}: built for compute capabilities "
        f"{built}, it has {version}; run `TORCH_CUDA_ARCH_LIST={version} pip install .` "
        "in the source folder"
    )


def _runs_on(capability: tuple[int, int], architectures: str) -> bool:
    # A binary runs on newer devices of the same major version, PTX on all newer ones.
    for architecture in architectures.split():
        major, minor = map(int, architecture.removesuffix("+PTX").rstrip("af").split("."))
        same = capability[0] == major or architecture.endswith("+PTX")
        if same and capability >= (major, minor):
            return True
    return False


def _on_grid(tensor: Tensor, size: Sequence[int]) -> Tensor:
    # The layout rule of csrc/shared/tensors.h: planes or channels last, anything else is copied.
    # Sizes are not compared: the answer would be part of a compiled or exported program.
    last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    kept = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last)
    memory_format = last if kept else torch.contiguous_format
    shape = (*tensor.shape[:2], *size)
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)


@torch.library.register_fake("tcwarp::warp")
def _(input: Tensor, displacement: Tensor, mode: int, padding_mode: int) -> Tensor:
    return _on_grid(input, displacement.shape[2:])


@torch.library.register_fake("tcwarp::warp_backward_input")
def _(
    grad_output: Tensor,
    displacement: Tensor,
    mode: int,
    padding_mode: int,
    deterministic: bool,
    image: Sequence[int] | None = None,
) -> Tensor:
    return _on_grid(grad_output, grad_output.shape[2:] if image is None else image)


@torch.library.register_fake("tcwarp::warp_backward_displacement")
def _(
    grad_output: Tensor, input: Tensor, displacement: Tensor, mode: int, padding_mode: int
) -> Tensor:
    return torch.empty_like(displacement, memory_format=torch.contiguous_format)


@torch.library.register_fake("tcwarp::field_coefficients")
def _(
    seed: Tensor, first: int, planes: int, modes: list[int], identity_probability: float
) -> Tensor:
    return seed.new_empty((planes, *modes), dtype=torch.float64)


@torch.library.impl("tcwarp::sum_modes", "cpu")
def _(
    coefficients: Tensor, rows: Tensor, columns: Tensor, scale: float, dtype: torch.dtype
) -> Tensor:
    return (rows @ (coefficients * scale).to(rows.dtype) @ columns).to(dtype)


@torch.library.register_fake("tcwarp::sum_modes")
def _(
    coefficients: Tensor, rows: Tensor, columns: Tensor, scale: float, dtype: torch.dtype
) -> Tensor:
    return rows.new_empty((len(coefficients), len(rows), columns.shape[1]), dtype=dtype)


@torch.library.register_fake("tcwarp::align")
def _(first: Tensor, second: Tensor | None, tolerance: float, steps: int) -> tuple[Tensor, Tensor]:
    grid = first if second is None else second
    output = torch.empty_like(grid, memory_format=torch.contiguous_format)
    return output, first.new_empty(2, dtype=torch.float64)


def _vmap_over_samples(operator: Any) -> Any:
    """Vectorise by one more dimension of samples: they are independent of each other."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        each = [
            value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip(arguments, in_dims, strict=True)
            if isinstance(value, Tensor)
        ]
        # One displacement for all samples is one for those of each.
        samples = next((value.shape[1] for value in each if value.shape[1] != 1), 1)
        flat = iter([value.expand(size, samples, *value.shape[2:]).flatten(0, 1) for value in each])
        output = operator(*(next(flat) if isinstance(x, Tensor) else x for x in arguments))
        first = output[0] if isinstance(output, tuple) else output
        split = first.reshape(size, samples, *first.shape[1:])
        if isinstance(output, tuple):  # what `align` reports is of all samples together
            return (split, output[1]), (0, None)
        if operator is torch.ops.tcwarp.warp_backward_displacement and each[2].shape[1] < samples:
            split = split.sum(dim=1, keepdim=True)
        return split, 0

    return rule


for _name in ("warp", "warp_backward_input", "warp_backward_displacement", "align"):
    torch.library.register_vmap(
        f"tcwarp::{_name}", _vmap_over_samples(getattr(torch.ops.tcwarp, _name))
    )
