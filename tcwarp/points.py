"""Points and boxes that move with their image."""

import torch
from torch import Tensor

from ._checks import check_displacement, check_floating, check_same_device, check_tensor
from .algebra import UNSOLVED, solve_field
from .warping import warp

ALONG = 9  # points along each axis of a box


def warp_points(points: Tensor, displacement: Tensor) -> Tensor:
    """Return where points of an image are in ``warp(image, displacement)``.

    The warp pulls, so points move by the inverse: ``y`` with ``y + u(y) = point``. A landmark
    stays on its structure.

    Parameters
    ----------
    points : Tensor, shape (N, P, D)
        Floating, in pixels and array order, from 0 at the centre of the first pixel.
    displacement : Tensor, shape (N, D, *spatial) or (1, D, *spatial)
        In pixels; interpolated linearly and continued at its border.

    Returns
    -------
    Tensor, shape (N, P, D)
        In the dtype of the points. May lie outside the image. NaN where a point is not finite or
        no solution was found to 0.01 px, as where the field folds. Differentiable by both.

    Raises
    ------
    TypeError, ValueError
        Not such tensors.

    Examples
    --------
    >>> shift = torch.zeros(1, 2, 8, 8)
    >>> shift[:, 1] = 3  # reads three pixels to the right: what it shows moves to the left
    >>> tcwarp.warp_points(torch.tensor([[[4.0, 5.0]]]), shift)
    tensor([[[4., 2.]]])
    """
    _check("warp_points", "points", points, displacement, 1)
    if points.numel() == 0 or displacement.numel() == 0:
        return torch.full_like(points, torch.nan)
    goal, here = _as_grid(points, displacement)
    field = displacement.double()
    target = goal - here
    offset = solve_field("warp_points", "displacement", field, target)
    read = warp(field.detach(), offset.detach(), mode="linear", padding_mode="border")
    left = (offset + read - target).abs()
    solved = (left.detach() <= UNSOLVED).all(dim=1, keepdim=True)
    return _as_points(torch.where(solved, here + offset, torch.nan), points)


def displaced(points: Tensor, displacement: Tensor) -> Tensor:
    """Return ``q + u(q)``: where the points of a warped image are in the image."""
    grid, here = _as_grid(points, displacement)
    read = warp(displacement.double(), grid - here, mode="linear", padding_mode="border")
    return _as_points(grid + read, points)


def _as_grid(points: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Return points as pixels of a grid of their own, (P, 1) or (P, 1, 1), and their place in it.

    That is far from what they read: in double precision. Points of all samples are in one grid
    where they share a displacement, which would be copied for each.
    """
    samples, dimensions = displacement.shape[:2]
    grid = points.double().reshape(samples, -1, dimensions).movedim(2, 1)
    grid = grid.reshape(*grid.shape, *[1] * (dimensions - 1))
    here = torch.zeros_like(grid)
    place = torch.arange(grid.shape[2], device=points.device)
    here[:, 0] += place.view(-1, *[1] * (dimensions - 1))
    return grid, here


def _as_points(grid: Tensor, like: Tensor) -> Tensor:
    """Return the points of a grid, in the shape and the dtype of others."""
    return grid.flatten(2).movedim(1, 2).reshape(like.shape).to(like.dtype)


def warp_boxes(boxes: Tensor, displacement: Tensor) -> Tensor:
    """Return boxes around what the boxes of an image hold, in ``warp(image, displacement)``.

    Each is the smallest around a lattice of points of the box, 9 along each axis from edge to
    edge, that `warp_points` has moved.

    Parameters
    ----------
    boxes : Tensor, shape (N, B, 2 D)
        Floating, in pixels and array order: the first corner, then the last.
    displacement : Tensor, shape (N, D, *spatial) or (1, D, *spatial)
        In pixels.

    Returns
    -------
    Tensor, shape (N, B, 2 D)
        In the dtype of the boxes. Points of the lattice without a solution are left out; NaN where
        there is no other.
        Differentiable by both.

    Raises
    ------
    TypeError, ValueError
        Not such tensors.

    Examples
    --------
    >>> tcwarp.warp_boxes(torch.tensor([[[1.0, 2.0, 3.0, 5.0]]]), torch.zeros(1, 2, 8, 8))
    tensor([[[1., 2., 3., 5.]]])
    """
    _check("warp_boxes", "boxes", boxes, displacement, 2)
    dimensions = displacement.shape[1]
    low, high = boxes.unflatten(2, (2, dimensions)).unbind(2)
    part = torch.linspace(0, 1, ALONG, dtype=torch.float64, device=boxes.device)
    lattice = torch.cartesian_prod(*[part] * dimensions)
    points = low[:, :, None] + (high - low)[:, :, None] * lattice
    moved = warp_points(points.flatten(1, 2), displacement).unflatten(1, points.shape[1:3])
    known = moved.isfinite().all(dim=3, keepdim=True)
    first = torch.where(known, moved, torch.inf).amin(dim=2)
    last = torch.where(known, moved, -torch.inf).amax(dim=2)
    around = torch.cat([first, last], dim=2)
    return torch.where(around.isfinite(), around, torch.nan).to(boxes.dtype)


def _check(function: str, name: str, value: Tensor, displacement: Tensor, corners: int) -> None:
    check_displacement(function, "displacement", displacement)
    columns = corners * displacement.shape[1]
    check_tensor(function, name, value)
    check_floating(function, name, value)
    fits = value.dim() == 3 and value.shape[2] == columns
    if not fits or displacement.shape[0] not in (1, value.shape[0]):
        raise ValueError(
            f"{function}: {name} must have shape (N, number, {columns}) for displacement "
            f"{tuple(displacement.shape)}, whose N is the same or 1, got {tuple(value.shape)}"
        )
    check_same_device(function, "displacement", displacement, name, value)
