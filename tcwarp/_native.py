"""Load the native libraries; register fake kernels and gradients of their operators.

The operators stand in ``csrc/schemas.cpp``, one line each; what torch must know of them beside
their kernels stands here, in the same order.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from . import _C  # noqa: F401  (registers torch.ops.tcwarp)
except ImportError as error:
    raise ImportError(
        "tcwarp: the native library cannot be loaded "
        f"({error}). Build it with `pip install .` from the source folder, "
        f"with torch >= 2.10 (installed here: {torch.__version__})."
    ) from error

NEAREST = 0
MODES = {"nearest": NEAREST, "linear": 1, "cubic": 2}
PADDING_MODES = {"zeros": 0, "border": 1, "reflection": 2}


def _load_cuda() -> str:
    """Load the CUDA operators where torch has CUDA; return what came of it."""
    if torch.version.cuda is None:
        return f"not used: torch {torch.__version__} has no CUDA"
    library = Path(__file__).parent / "_cuda.so"
    if not library.exists():
        return "not built: install nvcc (the CUDA toolkit) and run `pip install .` again"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"not loaded: {error}"
    return "loaded"


_CUDA_STATUS = _load_cuda()


def cuda_status() -> str:
    """Return ``"loaded"`` where the CUDA operators can be used, otherwise why not."""
    return _CUDA_STATUS


def _dense_like(tensor: Tensor) -> Tensor:
    # The layout rule of csrc/cpu/common.h: planes or channels last, anything else is copied.
    last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=last):
        return torch.empty_like(tensor)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@torch.library.register_fake("tcwarp::warp")
def _(input: Tensor, displacement: Tensor, mode: int, padding_mode: int) -> Tensor:
    return _dense_like(input)


@torch.library.register_fake("tcwarp::warp_backward_input")
def _(
    grad_output: Tensor, displacement: Tensor, mode: int, padding_mode: int, deterministic: bool
) -> Tensor:
    return _dense_like(grad_output)


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


@torch.library.register_fake("tcwarp::sum_modes")
def _(coefficients: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.new_empty((len(coefficients), len(rows), len(columns)), dtype=dtype)


@torch.library.register_fake("tcwarp::align")
def _(first: Tensor, second: Tensor | None, tolerance: float, steps: int) -> tuple[Tensor, Tensor]:
    output = torch.empty_like(first, memory_format=torch.contiguous_format)
    return output, first.new_empty(2, dtype=torch.float64)


def _save_for_warp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, displacement, ctx.mode, ctx.padding_mode = inputs[:4]
    # The image is needed for the gradient of the displacement only.
    needs_image = ctx.needs_input_grad[1] and ctx.mode != NEAREST
    ctx.save_for_backward(displacement, input if needs_image else None)


def _backward_warp(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    displacement, input = ctx.saved_tensors
    codes = ctx.mode, ctx.padding_mode
    ops = torch.ops.tcwarp
    grad_input = grad_displacement = None
    if ctx.needs_input_grad[0]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        grad_input = ops.warp_backward_input(grad_output, displacement, *codes, deterministic)
    if input is not None:
        grad_displacement = ops.warp_backward_displacement(grad_output, input, displacement, *codes)
    return grad_input, grad_displacement, None, None


def _backward_scatter(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # <grad, scatter(g, u)> = <warp(grad, u), g>: the gradient by g is the gather again, and the
    # gradient by u is that of the warp.
    displacement, grad_output = ctx.saved_tensors
    codes = ctx.mode, ctx.padding_mode
    ops = torch.ops.tcwarp
    grad_grad = grad_displacement = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.warp(grad, displacement, *codes)
    if grad_output is not None:
        grad_displacement = ops.warp_backward_displacement(grad_output, grad, displacement, *codes)
    return grad_grad, grad_displacement, None, None, None


def _backward_of_displacement_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError(
        "warp: the gradient by the displacement cannot be differentiated again; only the one by "
        "the input can"
    )


torch.library.register_autograd("tcwarp::warp", _backward_warp, setup_context=_save_for_warp)
torch.library.register_autograd(
    "tcwarp::warp_backward_input", _backward_scatter, setup_context=_save_for_warp
)
torch.library.register_autograd(
    "tcwarp::warp_backward_displacement", _backward_of_displacement_gradient
)


def _vmap_over_samples(operator: Any) -> Any:
    """Vectorise by one more dimension of samples: they are independent of each other."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        samples = 0  # of one of those that are merged

        def merged(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            nonlocal samples
            batched = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            samples = batched.shape[1]
            return batched.flatten(0, 1)

        flat = [merged(value, dim) for value, dim in zip(arguments, in_dims, strict=True)]
        output = operator(*flat)
        # What `align` reports is of all samples together.
        first = output[0] if isinstance(output, tuple) else output
        split = first.reshape(size, samples, *first.shape[1:])
        return ((split, output[1]), (0, None)) if isinstance(output, tuple) else (split, 0)

    return rule


for _name in ("warp", "warp_backward_input", "warp_backward_displacement", "align"):
    torch.library.register_vmap(
        f"tcwarp::{_name}", _vmap_over_samples(getattr(torch.ops.tcwarp, _name))
    )
