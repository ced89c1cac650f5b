"""Composition and inversion of displacement fields. Write phi = id + u."""

import warnings
from collections.abc import Sequence
from typing import Literal, cast, overload

import numpy as np
import torch
from torch import Tensor

from ._checks import (
    check_displacement,
    check_finite,
    check_floating,
    check_same,
    check_size,
    check_tensor,
    lookup,
    shown,
)
from ._derivatives import is_transformed, solve
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
    border. So the images in between need not be made: cropping, resizing and deforming are one
    interpolation.

    Parameters
    ----------
    first, second : Tensor, shape (N, D, *spatial)
        Displacements in pixels; `first` is applied to the image first. Their spatial sizes may
        differ, and one of them may have one sample for all.

    Returns
    -------
    Tensor, shape (N, D, *spatial)
        Of the spatial size of `second`. Differentiable by both.

    Raises
    ------
    TypeError, ValueError
        Not displacements, or they do not agree in shape, dtype and device.

    Examples
    --------
    Every second pixel of a deformed image, read once:

    >>> field = tcwarp.random_displacement(1, (64, 64), sigma=8.0, displacement_std=2.0)
    >>> half = tcwarp.affine_displacement(torch.diag(torch.tensor([2.0, 2.0, 1.0])), (32, 32))
    >>> tcwarp.warp(torch.rand(1, 1, 64, 64), tcwarp.compose(field, half)).shape
    torch.Size([1, 1, 32, 32])
    """
    check_displacement("compose", "first", first)
    check_displacement("compose", "second", second)
    check_same("compose", "second", second, "first", first, spatial=False)
    if 0 in first.shape[2:] and second.numel():
        raise ValueError(
            f"compose: first must have pixels for second to read, got {tuple(first.shape)}"
        )
    first = _of_samples(first, second.shape[0])
    moved = warp(first, second, mode="linear", padding_mode="border")
    # In place, unless a transform of `torch.func` adds dimensions to one of them.
    return moved + second if is_transformed() else moved.add_(second)


def exponential(velocity: Tensor, *, steps: int = 7) -> Tensor:
    """Return the displacement of flowing along a stationary velocity field for unit time.

    The flow itself never folds, and that of ``-velocity`` is its inverse; its displacement is
    read linearly between pixels, and so agrees with both as far as it is smooth: weaken or smooth
    the velocity where `jacobian_determinant` shows folds. Made by scaling and squaring: a small
    step, composed with itself `steps` times.

    Parameters
    ----------
    velocity : Tensor, shape (N, D, *spatial)
        In pixels per unit of time.
    steps : int
        Squarings; take more until ``velocity / 2 ** steps`` is less than a pixel. The error of the
        steps falls by about 4 with each, that of reading between pixels stays: 0.05 px for a
        velocity of sigma 8 that moves pixels by 14.

    Returns
    -------
    Tensor, shape (N, D, *spatial)
        In pixels. Differentiable.

    Raises
    ------
    TypeError, ValueError
        Not a displacement, or `steps` is no integer from 0 to 30.

    References
    ----------
    Arsigny, Commowick, Pennec, Ayache, "A log-Euclidean framework for statistics on
    diffeomorphisms", MICCAI 2006.

    Examples
    --------
    >>> velocity = tcwarp.random_displacement(1, (64, 64), sigma=8.0, displacement_std=4.0)
    >>> there, back = tcwarp.exponential(velocity), tcwarp.exponential(-velocity)
    >>> bool(tcwarp.compose(there, back)[..., 16:-16, 16:-16].abs().max() < 0.2)
    True
    """
    check_displacement("exponential", "velocity", velocity)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise TypeError(f"exponential: steps must be an int, got {type(steps).__name__}")
    if not 0 <= steps <= 30:
        raise ValueError(f"exponential: steps must be from 0 to 30, got {steps}")
    # The midpoint rule: the velocity half a step on.
    half = velocity / 2 ** (steps + 1)
    displacement = 2 * warp(half, half, mode="linear", padding_mode="border")
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def affine_displacement(
    matrix: Tensor, size: Sequence[int], *, center: Sequence[float] | None = None
) -> Tensor:
    """Return the displacement of an affine map: ``x + u(x) = A x + b``, as `matrix` is ``[A b]``.

    Composed with others (`compose`), an image is read once for all of them.

    Parameters
    ----------
    matrix : Tensor, shape (N, D, D + 1) or (N, D + 1, D + 1), or without N
        Floating. From pixels of the result to pixels of the image, in array order, as in
        `scipy.ndimage.affine_transform`. A last row, if there is one, must be 0 ... 0 1; on the
        CPU, outside compiled code, that is checked.
    size : sequence of int
        Spatial size of the result.
    center : sequence of float, optional
        The point, in pixels, that A leaves in place; the first pixel unless given. The middle of
        an image is ``[(n - 1) / 2 for n in size]``.

    Returns
    -------
    Tensor, shape (N, D, *size)
        In the dtype and on the device of the matrix. Differentiable.

    Raises
    ------
    TypeError, ValueError
        Not such a matrix, size or center.

    Examples
    --------
    >>> quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    >>> turn = tcwarp.affine_displacement(quarter, (5, 5), center=(2, 2))
    >>> tcwarp.warp(torch.eye(5)[None, None], turn)[0, 0, 0]
    tensor([0., 0., 0., 0., 1.])
    """
    size = check_size("affine_displacement", size)
    dimensions = len(size)
    check_tensor("affine_displacement", "matrix", matrix)
    check_floating("affine_displacement", "matrix", matrix)
    rows, columns = matrix.shape[-2:] if matrix.dim() in (2, 3) else (0, 0)
    if columns != dimensions + 1 or rows not in (dimensions, dimensions + 1):
        raise ValueError(
            f"affine_displacement: matrix must have shape (N, {dimensions}, {dimensions + 1}) or "
            f"(N, {dimensions + 1}, {dimensions + 1}) for size {size}, got {tuple(matrix.shape)}"
        )
    given = center.tolist() if isinstance(center, (Tensor, np.ndarray)) else center
    middle = [0.0] * dimensions if given is None else given
    if not isinstance(middle, (list, tuple)) or len(middle) != dimensions:
        raise ValueError(
            f"affine_displacement: center must be {dimensions} numbers, got {shown(center)}"
        )
    each = matrix[None] if matrix.dim() == 2 else matrix
    middle = [check_finite("affine_displacement", "center", value) for value in middle]
    if rows > dimensions:
        _check_last_row(each)
    # Summed axis by axis, in double precision: positions are larger than displacements.
    linear = each[:, :dimensions, :dimensions].double()
    linear = linear - torch.eye(dimensions, dtype=torch.float64, device=matrix.device)
    total = each[:, :dimensions, dimensions].double().reshape(-1, dimensions, *[1] * dimensions)
    for k, length in enumerate(size):
        x = torch.arange(length, dtype=torch.float64, device=matrix.device) - middle[k]
        axis = [1] * dimensions
        axis[k] = length
        column = linear[:, :, k].reshape(-1, dimensions, *[1] * dimensions)
        total = total + column * x.view(axis)
    return total.to(matrix.dtype)


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
    its border; where there are several solutions, for one inside the image. Differentiable, by
    the implicit function theorem: one small system for each pixel, whatever it took to solve.

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
    inverse = solve_field("invert", "displacement", displacement, None)
    if not return_residual:
        return inverse
    left = inverse + _read(displacement, inverse)
    return inverse, left.abs().amax(dim=1)


def align(t1: Tensor, t2: Tensor) -> Tensor:
    """Return the displacement of ``t2 o t1^-1``, which carries what t1 showed to what t2 shows.

    ``warp(warp(I, t1), align(t1, t2)) = warp(I, t2)`` up to interpolation. One fixed point per
    pixel gives it without building the inverse: ``a(x) = y - x`` with
    ``y + t1(y) = x + t2(x)``. Exact, and fast, for the samples whose t1 is zero.
    Differentiable by both, as `invert`.

    Parameters
    ----------
    t1, t2 : Tensor, shape (N, D, *spatial)
        Displacements in pixels. Where t1 folds there is no inverse: see `invert`. Their spatial
        sizes may differ, and one of them may have one sample for all.

    Returns
    -------
    Tensor, shape (N, D, *spatial)
        Of the spatial size of `t2`.

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
    check_displacement("align", "t1", t1)
    check_displacement("align", "t2", t2)
    check_same("align", "t2", t2, "t1", t1, spatial=False)
    if 0 in t1.shape[2:] and t2.numel():
        raise ValueError(f"align: t1 must have pixels for t2 to read, got {tuple(t1.shape)}")
    return solve_field("align", "t1", t1, _of_samples(t2, t1.shape[0]))


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Return the determinant of the Jacobian of ``x + u(x)``: the local change of volume.

    Central differences inside and one-sided ones at the border, as ``numpy.gradient``; 0 along
    an axis of one pixel. A field folds where its sign changes; it is negative everywhere for a
    mirror image.

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


def valid_mask(
    displacement: Tensor, *, mode: Mode = "nearest", size: Sequence[int] | None = None
) -> Tensor:
    """Return where a warp reads from inside the image only, so that no padding shows.

    Parameters
    ----------
    displacement : Tensor, shape (N, D, *spatial)
        In pixels.
    mode : {"nearest", "linear", "cubic"}
        Nearest rounds: up to half a pixel beyond the centres of the border pixels is inside. For
        the others inside ends at those centres; a spline feels what is beyond them a few pixels
        further in, by a factor of -0.27 each.
    size : sequence of int, optional
        Spatial size of the image, that of the displacement unless given.

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
    batch, dimensions, *grid = displacement.shape
    image = tuple(grid) if size is None else check_size("valid_mask", size)
    if len(image) != dimensions:
        raise ValueError(f"valid_mask: size must be {dimensions} lengths, got {image}")
    if 0 in image and displacement.numel():
        raise ValueError(f"valid_mask: size must have pixels to read, got {image}")
    if lookup("valid_mask", "mode", mode, MODES) == NEAREST:
        inside = torch.ones((batch, 1, *image), dtype=torch.bool, device=displacement.device)
        return warp(inside, displacement)[:, 0]
    valid: Tensor | None = None
    for k, (length, count) in enumerate(zip(image, grid, strict=True)):
        # The displacement is compared, never the position, and in double precision, which has
        # every position: exact for any image size.
        x = torch.arange(count, device=displacement.device)
        x = x.view(-1, *(1 for _ in range(dimensions - 1 - k)))
        component = displacement[:, k].double()
        inside = (component >= -x) & (component <= length - 1 - x)
        valid = inside if valid is None else valid & inside
    return cast(Tensor, valid)


def _difference(component: Tensor, axis: int) -> Tensor:
    # Not torch.gradient, of which a compiler makes a program for one size alone.
    inner = component.shape[axis] - 2
    if inner < 0:
        return torch.zeros_like(component)
    first, last = (
        component.narrow(axis, at + 1, 1) - component.narrow(axis, at, 1) for at in (0, inner)
    )
    central = component.narrow(axis, 2, inner) - component.narrow(axis, 0, inner)
    return torch.cat([first, central / 2, last], axis)


def _check_last_row(matrix: Tensor) -> None:
    if matrix.device.type != "cpu" or torch.compiler.is_compiling() or is_transformed():
        return
    last = matrix[:, -1].detach()
    if not torch.equal(last, torch.eye(last.shape[1], dtype=last.dtype)[-1].expand_as(last)):
        raise ValueError(
            "affine_displacement: matrix must have the last row 0 ... 0 1, got "
            f"{shown(last.tolist())}; leave the row out, or transpose the matrix"
        )


def _of_samples(displacement: Tensor, samples: int) -> Tensor:
    more = displacement.shape[0] == 1 and samples != 1
    return displacement.expand(samples, *displacement.shape[1:]) if more else displacement


def solve_field(function: str, name: str, first: Tensor, second: Tensor | None) -> Tensor:
    """Return the solution a of ``a + first(x + a) = second(x)``; warn in the name of a function."""
    # Displacements are relative to their pixel, so precision does not depend on the image size.
    tolerance = 1e-10 if first.dtype == torch.float64 else 1e-5
    offset, report = solve(first, second, tolerance, MAXIMUM_STEPS)
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
        else "could not be inverted everywhere: it nearly folds, or folds between pixels, or leads "
        "far out of the image"
    )
    where = "invert(..., return_residual=True) shows which"
    off = f". Pixels are off by up to {residual:.2g} px; {where}" if residual > UNSOLVED else ""
    warnings.warn(f"{function}: {name} {what}{off}", FoldingWarning, stacklevel=4)


def _determinants(displacement: Tensor) -> str:
    determinant = jacobian_determinant(displacement)
    determinant = determinant[determinant.isfinite()]
    low, high = determinant.aminmax()
    return f"its Jacobian's determinant goes from {low:.3g} to {high:.3g}"


def _read(field: Tensor, displacement: Tensor) -> Tensor:
    # A displacement that is not finite has no image: NaN, not the 0 of a warp.
    values = warp(field, displacement, mode="linear", padding_mode="border")
    return torch.where(displacement.isfinite().all(dim=1, keepdim=True), values, torch.nan)
