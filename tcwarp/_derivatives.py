"""Derivatives of the operators, of every order, forwards and backwards.

Within a cell of pixels an interpolation is a polynomial in each component of the displacement, of
degree 1 (linear) or 3 (cubic). So its derivative by a component is, exactly, a combination of the
interpolations at 2 or 4 nodes of the cell along that component; that of a scatter likewise. What
the first derivative needs most, the gradient by the displacement, has a kernel of its own.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._native import NEAREST

ops = torch.ops.tcwarp
FORWARD = torch._C._functorch.TransformType.Jvp
LINEAR = 1, 1  # the codes of how a displacement is read: mode linear, padding border
NODES = {1: (0.0, 1.0), 2: (0.0, 1 / 3, 2 / 3, 1.0)}  # of a cell, by the code of the mode


# ------------------------------------------------------------------- derivatives of first order


def _save_for_warp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, displacement, ctx.mode, ctx.padding_mode = inputs[:4]
    ctx.image = input.shape[2:]
    # The image is needed for the gradient of the displacement only.
    needs_image = ctx.needs_input_grad[1] and ctx.mode != NEAREST
    ctx.save_for_backward(input if needs_image else None, displacement)


def _is_wanted(ctx: Any, argument: int) -> bool:
    """Whether the gradient by a tensor is used: `torch.autograd.grad(y, x)` uses that by x alone.

    ``needs_input_grad`` says only what required one in the forward pass.
    """
    if not ctx.needs_input_grad[argument]:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[argument][0]))
    except (AttributeError, RuntimeError, TypeError):  # not known of leaves: see `warp`
        return True


def _backward_warp(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, displacement = ctx.saved_tensors
    codes = ctx.mode, ctx.padding_mode
    grad_input = grad_displacement = None
    if _is_wanted(ctx, 0):
        grad_input = scatter(grad_output, displacement, *codes, _deterministic(), ctx.image)
    if _is_wanted(ctx, 1):
        if ctx.mode == NEAREST:  # a step function of the displacement
            grad_displacement = torch.zeros_like(displacement)
        else:
            grad_displacement = slope(grad_output, input, displacement, *codes)
    return grad_input, grad_displacement, None, None


def _save_for_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, displacement, ctx.mode, ctx.padding_mode = inputs[:4]
    ctx.image = output.shape[2:]
    needs_gradient = ctx.needs_input_grad[1] and ctx.mode != NEAREST
    ctx.save_for_backward(gradient if needs_gradient else None, displacement)


def _backward_scatter(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # <grad, scatter(g, u)> = <warp(grad, u), g>: the gradient by g is the gather again, and the
    # gradient by u is that of the warp.
    gradient, displacement = ctx.saved_tensors
    codes = ctx.mode, ctx.padding_mode
    grad_gradient = grad_displacement = None
    if _is_wanted(ctx, 0):
        grad_gradient = gather(grad, displacement, *codes)
    if _is_wanted(ctx, 1):
        if ctx.mode == NEAREST:
            grad_displacement = torch.zeros_like(displacement)
        else:
            grad_displacement = slope(gradient, grad, displacement, *codes)
    return grad_gradient, grad_displacement, None, None, None, None


def _save_for_slope(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.mode, ctx.padding_mode = inputs
    ctx.save_for_backward(*tensors)


def _backward_slope(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradient, input, displacement = ctx.saved_tensors
    codes = ctx.mode, ctx.padding_mode
    by_gradient = by_input = by_displacement = None
    if _is_wanted(ctx, 0):
        by_gradient = _along(input, displacement, grad, *codes)
    if _is_wanted(ctx, 1):
        by_input = _scattered_along(gradient, displacement, grad, *codes, input.shape[2:])
    if _is_wanted(ctx, 2):
        by_displacement = _second(gradient, input, displacement, grad, *codes)
    return by_gradient, by_input, by_displacement, None, None


# ------------------------------------------------------------ the solution of a + u(x + a) = t2


def _save_for_align(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0])
    ctx.has_second = inputs[1] is not None


def _backward_align(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    # The implicit function theorem: (I + grad u) da = dt2 - du(x + a).
    first, offset = ctx.saved_tensors
    rows = _jacobian(first, offset)
    columns = [
        torch.stack(column, dim=1) for column in zip(*(row.unbind(1) for row in rows), strict=True)
    ]
    by_second = _solved(columns, grad)
    by_first = None
    if _is_wanted(ctx, 0):
        by_first = -scatter(
            by_second.to(first.dtype), offset, *LINEAR, _deterministic(), first.shape[2:]
        )
        if first.shape[0] < offset.shape[0]:
            by_first = by_first.sum(dim=0, keepdim=True)
    return by_first, by_second if ctx.has_second else None, None, None


def _jacobian(first: Tensor, offset: Tensor) -> list[Tensor]:
    """Return the rows of the Jacobian of ``x + u(x)`` at ``x + a``, each (N, D, *spatial)."""
    wide = first.float() if first.element_size() < 4 else first
    wide = wide.expand(offset.shape[0], *wide.shape[1:])
    ones = torch.ones_like(offset[:, :1], dtype=wide.dtype)
    offset = offset.to(wide.dtype)
    rows = []
    for c, component in enumerate(wide.split(1, dim=1)):
        row = slope(ones, component, offset, *LINEAR)
        unit = torch.arange(first.shape[1], device=first.device) == c
        rows.append(row + unit.view(-1, *[1] * (first.dim() - 2)))
    return rows


def _solved(rows: list[Tensor], right: Tensor) -> Tensor:
    """Return what the matrices of these rows map to `right`, by Cramer's rule."""
    if len(rows) == 2:
        a, b = rows
        normals = [torch.stack([row[:, 1], -row[:, 0]], dim=1) for row in (b, -a)]
    else:
        a, b, c = rows
        pairs = ((b, c), (c, a), (a, b))
        normals = [torch.linalg.cross(*pair, dim=1) for pair in pairs]
    determinant = (rows[0] * normals[0]).sum(dim=1, keepdim=True)
    total: Any = sum(right[:, k : k + 1] * normal for k, normal in enumerate(normals))
    return (total / determinant).to(right.dtype)  # type: ignore[no-any-return]


# ------------------------------------------------------------------ derivatives along a direction


def _along(input: Tensor, displacement: Tensor, direction: Tensor, mode: int, pad: int) -> Tensor:
    """Return the derivative of a warp along a change of its displacement."""
    if mode == NEAREST:
        return torch.zeros_like(gather(input, displacement, mode, pad))
    total: Any = 0
    for k, node, factor, _ in _nodes(displacement, mode):
        total = total + gather(input, node, mode, pad) * (factor * direction[:, k : k + 1])
    return total.to(input.dtype)  # type: ignore[no-any-return]


def _scattered_along(
    gradient: Tensor, displacement: Tensor, direction: Tensor, mode: int, pad: int, image: Any
) -> Tensor:
    """Return the derivative of a scatter along a change of its displacement."""
    if mode == NEAREST:
        return gradient.new_zeros((*gradient.shape[:2], *image))
    total: Any = 0
    for k, node, factor, _ in _nodes(displacement, mode):
        weighted = (gradient * (factor * direction[:, k : k + 1])).to(gradient.dtype)
        total = total + scatter(weighted, node, mode, pad, _deterministic(), image)
    return total  # type: ignore[no-any-return]


def _second(
    gradient: Tensor, input: Tensor, displacement: Tensor, direction: Tensor, mode: int, pad: int
) -> Tensor:
    """Return the second derivative by the displacement, along a change of it once."""
    total = torch.zeros_like(displacement)
    for k, node, factor, second in _nodes(displacement, mode):
        along = direction[:, k : k + 1]
        weighted = (gradient * (factor * along)).to(gradient.dtype)
        others = slope(weighted, input, node, mode, pad).clone()
        # Along k itself the node stays where it is, and its factor changes.
        read = gather(input, node, mode, pad) * gradient
        own = read.sum(dim=1, keepdim=True) * second * along
        if displacement.shape[0] < gradient.shape[0]:
            own = own.sum(dim=0, keepdim=True)
        axes = torch.arange(displacement.shape[1], device=displacement.device) == k
        total = total + torch.where(axes.view(-1, *[1] * (input.dim() - 2)), own, others)
    return total.to(displacement.dtype)


def _nodes(displacement: Tensor, mode: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield component, displacement to a node, and two derivatives of the node's weight by it.

    The weights are Lagrange's polynomials through the nodes; derivatives by the displacement go
    on through them, the nodes stay.
    """
    nodes = NODES[mode]
    for k in range(displacement.shape[1]):
        component = displacement[:, k : k + 1]
        low = component.detach().floor()
        fraction = torch.where(component.isfinite(), component - low, 0)
        for node in nodes:
            others = [other for other in nodes if other != node]
            scale = math.prod(node - other for other in others)
            moved = [
                component if j != k else low + node
                for j, component in enumerate(displacement.split(1, dim=1))
            ]
            first, second = (_product_rule(fraction, others, order) / scale for order in (1, 2))
            yield k, torch.cat(moved, dim=1), first, second


def _product_rule(x: Tensor, roots: list[float], order: int) -> Tensor:
    """Return a derivative of the product of ``x - root``."""
    if order == 0:
        product = torch.ones_like(x)
        for root in roots:
            product = product * (x - root)
        return product
    total = torch.zeros_like(x)
    for i in range(len(roots)):
        total = total + _product_rule(x, roots[:i] + roots[i + 1 :], order - 1)
    return total


# ------------------------------------------------------------------------- all ways into torch

torch.library.register_autograd("tcwarp::warp", _backward_warp, setup_context=_save_for_warp)
torch.library.register_autograd(
    "tcwarp::warp_backward_input", _backward_scatter, setup_context=_save_for_scatter
)
torch.library.register_autograd(
    "tcwarp::warp_backward_displacement", _backward_slope, setup_context=_save_for_slope
)
torch.library.register_autograd("tcwarp::align", _backward_align, setup_context=_save_for_align)


class _Operator(torch.autograd.Function):
    """An operator as forward mode and `torch.func` want it: they do not know registered ones."""

    generate_vmap_rule = True


def _save_both_ways(ctx: Any, *tensors: Tensor) -> None:
    # The same tensors, in one order: `vmap` remembers one list of dimensions for both.
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


class _Gather(_Operator):
    backward = staticmethod(_backward_warp)

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return ops.warp(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_for_warp(ctx, inputs, output)
        _save_both_ways(ctx, *inputs[:2])

    @staticmethod
    def jvp(ctx: Any, by_input: Tensor | None, by_field: Tensor | None, *_: None) -> Any:
        input, displacement = ctx.saved_tensors
        codes = ctx.mode, ctx.padding_mode
        return _sum(
            by_input is not None and gather(by_input, displacement, *codes),
            by_field is not None and _along(input, displacement, by_field, *codes),
        )


class _Scatter(_Operator):
    backward = staticmethod(_backward_scatter)

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        *others, image = arguments
        return ops.warp_backward_input(*others, image and image.lengths)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_for_scatter(ctx, inputs, output)
        _save_both_ways(ctx, *inputs[:2])

    @staticmethod
    def jvp(ctx: Any, by_gradient: Tensor | None, by_field: Tensor | None, *_: None) -> Any:
        gradient, displacement = ctx.saved_tensors
        codes = ctx.mode, ctx.padding_mode
        rest = _deterministic(), ctx.image
        return _sum(
            by_gradient is not None and scatter(by_gradient, displacement, *codes, *rest),
            by_field is not None
            and _scattered_along(gradient, displacement, by_field, *codes, ctx.image),
        )


class _Slope(_Operator):
    backward = staticmethod(_backward_slope)

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return ops.warp_backward_displacement(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_for_slope(ctx, inputs, output)
        _save_both_ways(ctx, *inputs[:3])

    @staticmethod
    def jvp(
        ctx: Any, by_gradient: Tensor | None, by_input: Tensor | None, by_field: Any, *_: None
    ) -> Any:
        gradient, input, displacement = ctx.saved_tensors
        codes = ctx.mode, ctx.padding_mode
        return _sum(
            by_gradient is not None and slope(by_gradient, input, displacement, *codes),
            by_input is not None and slope(gradient, by_input, displacement, *codes),
            by_field is not None and _second(gradient, input, displacement, by_field, *codes),
        )


class _Align(_Operator):
    backward = staticmethod(_backward_align)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return ops.align(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _save_for_align(ctx, inputs, output)
        _save_both_ways(ctx, inputs[0], output[0])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def jvp(ctx: Any, by_first: Tensor | None, by_second: Tensor | None, *_: None) -> Any:
        first, offset = ctx.saved_tensors
        change = _sum(
            by_first is not None
            and -gather(by_first.expand(offset.shape[0], *first.shape[1:]), offset, *LINEAR),
            by_second is not None and by_second,
        )
        return _solved(_jacobian(first, offset), change), None


class _Size:
    """A size as one argument: `torch.func` takes a tuple for several."""

    def __init__(self, lengths: Any) -> None:
        self.lengths = lengths


def _sum(*terms: Any) -> Any:
    return sum(term for term in terms if term is not False)


def _way(name: str, operator: Any, function: type[_Operator]) -> Callable[..., Any]:
    direct = operator._op  # what the operator calls, and no more

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        if not is_transformed():
            if torch.is_grad_enabled():
                for value in arguments:  # a generator would take as long as the operator's call
                    if isinstance(value, Tensor) and value.requires_grad:
                        return operator(*arguments)
            # What was registered in Python is called for nothing: half of the cost of a small warp.
            with torch._C._AutoDispatchBelowAutograd():
                return direct(*arguments)
        if (
            sum(
                level.key() == FORWARD
                for level in torch._C._functorch.get_interpreter_stack() or ()
            )
            > 1
        ):
            raise RuntimeError(
                f"{name}: forward-mode differentiation within itself is not supported; use "
                "torch.func.hessian or jacfwd(jacrev(...))"
            )
        return function.apply(
            *(_Size(value) if isinstance(value, tuple) else value for value in arguments)
        )

    return call


def is_transformed() -> bool:
    """Return whether forward mode or a transform of `torch.func` is at work."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


#: The operators, differentiable every way: ``warp``, ``warp_backward_input``,
#: ``warp_backward_displacement`` and ``align`` of ``csrc/schemas.cpp``, with their arguments.
gather: Callable[..., Tensor] = _way("warp", ops.warp.default, _Gather)
scatter: Callable[..., Tensor] = _way("splat", ops.warp_backward_input.default, _Scatter)
slope: Callable[..., Tensor] = _way("warp", ops.warp_backward_displacement.default, _Slope)
solve: Callable[..., tuple[Tensor, Tensor]] = _way("align", ops.align.default, _Align)
