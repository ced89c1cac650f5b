"""Export of modules that warp to ONNX; needs onnxscript.

``torch.onnx.export(module, ..., dynamo=True, custom_translation_table=tcwarp.onnx.translations())``
"""

from collections.abc import Callable
from typing import Any

import torch

from ._native import MODES, PADDING_MODES

try:
    import onnxscript
    from onnxscript import opset20
except ModuleNotFoundError as error:
    raise ImportError(
        "onnxscript is not installed; run `pip install onnx onnxscript onnxruntime`"
    ) from error

op: Any = opset20
_PADDING = {code: name for name, code in PADDING_MODES.items()}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the table of `torch.onnx.export` that makes warps ``GridSample`` nodes.

    Of opset 20 or later, in two and three dimensions, modes ``"nearest"`` and ``"linear"``, every
    padding.
    Nearest rounds half up before the node, as `tcwarp.warp` does. Values and coordinates go
    through the node in float32: integers beyond 2**24 are rounded, and linear agrees to about 1e-6
    of the length of an axis in pixels. A displacement that is not finite has no defined result.

    Raises
    ------
    ValueError
        In the export: a warp in mode ``"cubic"``, whose spline ONNX has no operator for.

    Examples
    --------
    >>> table = tcwarp.onnx.translations()
    >>> module = tcwarp.Warp(mode="linear")
    >>> arguments = torch.rand(1, 1, 8, 8), torch.zeros(1, 2, 8, 8)
    >>> program = torch.onnx.export(
    ...     module, arguments, dynamo=True, opset_version=20, custom_translation_table=table,
    ...     verbose=False)
    """
    return {torch.ops.tcwarp.warp.default: _warp}


def _warp(input: Any, displacement: Any, mode: int, padding_mode: int) -> Any:
    if mode == MODES["cubic"]:
        raise ValueError(
            "warp: mode 'cubic' cannot be exported to ONNX, which has no such spline; "
            "use 'linear' or 'nearest'"
        )
    # Runtimes have the node for float32 alone, some for float64.
    single = onnxscript.ir.DataType.FLOAT
    sampled = op.GridSample(
        op.Cast(input, to=single),
        op.Cast(_grid(input, displacement, mode), to=single),
        align_corners=0,
        mode="nearest" if mode == MODES["nearest"] else "linear",
        padding_mode=_PADDING[padding_mode],
    )
    return op.CastLike(sampled, input)


def _grid(input: Any, displacement: Any, mode: int) -> Any:
    """Return where to read, (N, *spatial, D): last axis first, -1 to 1 from edge to edge."""
    double = onnxscript.ir.DataType.DOUBLE
    dimensions = len(displacement.shape) - 2
    field = op.Cast(displacement, to=double)
    if mode == MODES["nearest"]:
        field = op.Floor(op.Add(field, _number(0.5)))
    axes = []
    for k in range(dimensions):
        length = op.Cast(op.Shape(input, start=2 + k, end=3 + k), to=double)
        count = op.Squeeze(op.Shape(displacement, start=2 + k, end=3 + k))
        x = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
        form = [1] * (dimensions + 1)
        form[1 + k] = -1
        x = op.Reshape(op.Cast(x, to=double), op.Constant(value_ints=form))
        at = op.Add(op.Gather(field, op.Constant(value_int=k), axis=1), x)
        middle = op.Add(op.Mul(at, _number(2.0)), _number(1.0))
        axes.append(
            op.Unsqueeze(op.Sub(op.Div(middle, length), _number(1.0)), op.Constant(value_ints=[-1]))
        )
    grid = op.Concat(*reversed(axes), axis=-1)
    samples = op.Shape(input, start=0, end=1)
    ones = op.Constant(value_ints=[1] * (dimensions + 1))
    return op.Expand(grid, op.Concat(samples, ones, axis=0))


def _number(value: float) -> Any:
    return op.Cast(op.Constant(value_float=value), to=onnxscript.ir.DataType.DOUBLE)
