"""Composition and inversion of displacement fields. Write phi = id + u."""

import warnings
from typing import Literal, cast, overload

import torch
from torch import Tensor, ops

from ._checks import check_displacement, check_same, lookup
from ._native import MODES, NEAREST, Mode
from .warping import warp

# Newton's method needs two or three steps on smooth fields; the rest is for the few pixels of
# fields near folding or leading far out of the image.
MAXIMUM_STEPS = 128
UNSOLVED = 1e-2  # pixels of residual that are reported


class FoldingWarning(UserWarning):
    """A field that was to be inverted folds, or its inverse was not found everywhere."""


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Return the displacement of both warps in one.

    ``warp(warp(I, first), second) = warp(I, compose(first, second))``, up to interpolation:
    ``second(x) + first(x + second(x))``, `first` interpolated linearly and continued at its
    border.

    Parameters
    ----------
    first, second : Tensor, shape (N, D, *spatial)
        Displacements in pixels; `first` is applied to the image first.

    Returns
    -------
    Tensor, shape (N, D, *spatial)
        Differentiable by both.

    Raises
    ------
    TypeError, ValueError
        Not displacements, or they do not agree in shape, dtype and device.
    """
    _check_pair("compose", "first", first, "second", second)
    return warp(first, second, mode="linear", padding_mode="border").add_(second)


@overload
def invert(displacement: Tensor, *, return_residual: Literal[False] = False) -> Tensor: ...
@overload
def invert(displacement: Tensor, *, return_residual: Literal[True]) -> tuple[Tensor, Tensor]: ...
@overload
def invert(displacement: Tensor, *, return_residual: bool) -> Tensor | tuple[Tensor, Tensor]: ...


def invert(
    displacement: Tensor, *, return_residual: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the inverse v of a displacement u: ``warp(warp(I, u), v) = I`` up to interpolation.

    Solves ``v(x) + u(x + v(x)) = 0`` for each pixel, u interpolated linearly and continued at
    its border; where there are several solutions, for one inside the image. Not differentiable.

    Parameters
    ----------
    displacement : Tensor, shape (N, D, *spatial)
        In pixels. A field that folds has no inverse everywhere: its `jacobian_determinant` is
        positive at some pixels and not at others. The residual shows where. Mirror images,
        whose determinant is negative everywhere, have one.
    return_residual : bool
        Return also how far from solved each pixel is.

    Returns
    -------
    inverse : Tensor, shape (N, D, *spatial)
    residual : Tensor, shape (N, *spatial)
        Largest component of ``|v + u(x + v)|`` in pixels; below 1e-4 for smooth float32 fields,
        the rounding of the result for half precision. NaN where no inverse exists because the
        field is not finite.

    Raises
    ------
    TypeError, ValueError
        Not a displacement.

    Warns
    -----
    FoldingWarning
        Where the field folds, or is not solved to 0.01 px; on the CPU and not in compiled code,
        as a look at the result would wait for a GPU and break a graph.

    Examples
    --------
    >>> field = tcwarp.random_displacement(1, (64, 64), sigma=16.0, displacement_std=2.0)
    >>> inverse, residual = tcwarp.invert(field, return_residual=True)
    >>> bool(residual.max() < 1e-3)
    True
    """
    check_displacement("invert", "displacement", displacement)
    if not isinstance(return_residual, bool):
        raise TypeError(
            f"invert: return_residual must be a bool, got {type(return_residual).__name__}"
        )
    inverse = _solve("invert", "displacement", displacement, None)
    if not return_residual:
        return inverse
    left = inverse + _read(displacement, inverse)
    return inverse, left.abs().amax(dim=1)


def align(t1: Tensor, t2: Tensor) -> Tensor:
    """Return the displacement of ``t2 o t1^-1``, which carries what t1 showed to what t2 shows.

    ``warp(warp(I, t1), align(t1, t2)) = warp(I, t2)`` up to interpolation. One fixed point per
    pixel gives it without building the inverse: ``a(x) = y - x`` with
    ``y + t1(y) = x + t2(x)``. Exact, and fast, where a member of the batch is the identity.
    Not differentiable.

    Parameters
    ----------
    t1, t2 : Tensor, shape (N, D, *spatial)
        Displacements in pixels. Where t1 folds there is no inverse: see `invert`.

    Returns
    -------
    Tensor, shape (N, D, *spatial)

    Raises
    ------
    TypeError, ValueError
        Not displacements, or they do not agree in shape, dtype and device.

    Warns
    -----
    FoldingWarning
        As `invert`, for t1.

    References
    ----------
    Equation 1 of Bortsova et al., MICCAI 2019, aligns the two branches by this field.
    """
    _check_pair("align", "t1", t1, "t2", t2)
    return _solve("align", "t1", t1, t2)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Return the determinant of the Jacobian of ``x + u(x)``: the local change of volume.

    Central differences inside and one-sided ones at the border, as ``numpy.gradient``; 0 along
    an axis of one pixel. Where it is not positive, the field folds.

    Parameters
    ----------
    displacement : Tensor, shape (N, D, *spatial)
        In pixels.

    Returns
    -------
    Tensor, shape (N, *spatial)
        1 where the field is constant. Differentiable.

    Raises
    ------
    TypeError, ValueError
        Not a displacement.
    """
    check_displacement("jacobian_determinant", "displacement", displacement)
    dimensions = displacement.shape[1]
    rows = []
    for k in range(dimensions):
        component = displacement[:, k]
        row = [_difference(component, axis) for axis in range(1, dimensions + 1)]
        row[k] = row[k] + 1
        rows.append(row)
    if dimensions == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def valid_mask(displacement: Tensor, *, mode: Mode = "nearest") -> Tensor:
    """Return where a warp reads from inside the image only, so that no padding shows.

    Parameters
    ----------
    displacement : Tensor, shape (N, D, *spatial)
        In pixels.
    mode : {"nearest", "linear", "cubic"}
        Nearest rounds: up to half a pixel beyond the centres of the border pixels is inside. For
        the others inside ends at those centres.

    Returns
    -------
    Tensor, shape (N, *spatial)
        bool; False where the displacement is not finite.

    Raises
    ------
    TypeError, ValueError
        Not a displacement, or an unknown mode.

    Examples
    --------
    >>> displacement = torch.zeros(1, 2, 1, 4)
    >>> displacement[:, 1] = 1.6
    >>> tcwarp.valid_mask(displacement)
    tensor([[[ True,  True, False, False]]])
    """
    check_displacement("valid_mask", "displacement", displacement)
    batch, dimensions, *size = displacement.shape
    if lookup("valid_mask", "mode", mode, MODES) == NEAREST:
        inside = torch.ones((batch, 1, *size), dtype=torch.bool, device=displacement.device)
        return warp(inside, displacement)[:, 0]
    valid: Tensor | None = None
    for k, length in enumerate(size):
        # The displacement is compared, never the position, and in double precision, which has
        # every position: exact for any image size.
        x = torch.arange(length, device=displacement.device)
        x = x.view(-1, *(1 for _ in range(dimensions - 1 - k)))
        component = displacement[:, k].double()
        inside = (component >= -x) & (component <= length - 1 - x)
        valid = inside if valid is None else valid & inside
    return cast(Tensor, valid)


def _difference(component: Tensor, axis: int) -> Tensor:
    if component.numel() == 0 or component.shape[axis] == 1:
        return torch.zeros_like(component)
    return torch.gradient(component, dim=axis)[0]


def _check_pair(function: str, name: str, first: Tensor, other_name: str, second: Tensor) -> None:
    check_displacement(function, name, first)
    check_displacement(function, other_name, second)
    check_same(function, other_name, second, name, first)


def _solve(function: str, name: str, first: Tensor, second: Tensor | None) -> Tensor:
    # Displacements are relative to their pixel, so precision does not depend on the image size.
    tolerance = 1e-10 if first.dtype == torch.float64 else 1e-5
    target = None if second is None else second.detach()
    offset: Tensor
    offset, report = ops.tcwarp.align(first.detach(), target, tolerance, MAXIMUM_STEPS)
    # Elsewhere a look at the report would wait for the device, or break a graph.
    if report.device.type == "cpu" and not torch.compiler.is_compiling():
        _warn_of_folds(function, name, first.detach(), report)
    return offset


def _warn_of_folds(function: str, name: str, displacement: Tensor, report: Tensor) -> None:
    try:
        residual, fold = report.tolist()
    except RuntimeError:  # under vmap or in a fake mode there are no values
        return
    if fold < 1 and residual <= UNSOLVED:
        return
    what = (
        f"folds ({_determinants(displacement)}), so it has no inverse everywhere; "
        "jacobian_determinant shows where, a weaker or smoother field does not"
        if fold >= 1
        else "could not be inverted everywhere, as it nearly folds or leads far out of the image"
    )
    warnings.warn(
        f"{function}: {name} {what}. Pixels are off by up to {residual:.2g} px; invert(..., "
        "return_residual=True) shows which",
        FoldingWarning,
        stacklevel=4,
    )


def _determinants(displacement: Tensor) -> str:
    determinant = jacobian_determinant(displacement)
    determinant = determinant[determinant.isfinite()]
    low, high = determinant.aminmax()
    return f"its Jacobian's determinant goes from {low:.3g} to {high:.3g}"


def _read(field: Tensor, displacement: Tensor) -> Tensor:
    # A displacement that is not finite has no image: NaN, not the 0 of a warp.
    values = warp(field, displacement, mode="linear", padding_mode="border")
    return torch.where(displacement.isfinite().all(dim=1, keepdim=True), values, torch.nan)
