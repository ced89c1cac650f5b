"""Agreement of two masks: overlap and distance of contours; and what is measured on masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

if TYPE_CHECKING:
    import torch

    Mask = npt.ArrayLike | torch.Tensor

__all__ = [
    "cardiothoracic_ratio",
    "contour_distance",
    "contour_distances",
    "dice",
    "hausdorff95",
    "iou",
    "postprocess",
    "postprocess_all",
]


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union (Jaccard index) of two masks.

    Parameters
    ----------
    a, b
        Masks of one shape, any number of axes; nonzero is inside. Arrays or tensors.

    Returns
    -------
    float
        Between 0 and 1; nan if both masks are empty, as there is nothing to agree on.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> iou([1, 1, 1, 0], [0, 1, 1, 1])
    0.5
    """
    first, second = _masks("iou", a, b)
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else float("nan")


def dice(a: Mask, b: Mask) -> float:
    """Dice coefficient of two masks: twice what they share by the sum of their sizes.

    Parameters, result and errors are those of `iou`.

    Examples
    --------
    >>> dice([1, 1, 1, 0], [0, 1, 1, 1]) == 4 / 6
    True
    """
    first, second = _masks("dice", a, b)
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / total if total else float("nan")


def cardiothoracic_ratio(heart: Mask, lungs: Mask) -> float:
    """Width of the heart by that of the thorax; above one half the heart counts as enlarged.

    Widths are those of the smallest upright boxes around the heart and around both lungs, so the
    thorax is measured between the outermost lung pixels, inside the ribs.

    Parameters
    ----------
    heart, lungs
        Masks (H, W) of one frontal radiograph; nonzero is inside. Arrays or tensors.

    Returns
    -------
    float
        nan if one of the masks is empty.

    Raises
    ------
    ValueError
        If the masks are not of one shape (H, W).

    Examples
    --------
    >>> cardiothoracic_ratio([[0, 0, 1, 1, 0, 0, 0, 0]], [[1, 1, 0, 0, 0, 1, 1, 1]])
    0.25
    """
    masks = _masks("cardiothoracic_ratio", heart, lungs)
    if masks[0].ndim != 2:
        raise ValueError(
            f"cardiothoracic_ratio: masks must have shape (H, W), got {masks[0].shape}"
        )
    columns = [np.flatnonzero(mask.any(axis=0)) for mask in masks]
    if not all(map(len, columns)):
        return float("nan")
    heart_width, thorax_width = (int(c[-1] - c[0]) + 1 for c in columns)
    return heart_width / thorax_width


def contour_distance(a: Mask, b: Mask, spacing: float | Sequence[float] = 1.0) -> float:
    """Mean absolute contour distance: the average surface distance, symmetric.

    The contour of a mask is its pixels with a neighbour (sharing an edge) outside the mask or
    outside the image; the surface of a volume is its voxels with a neighbour (sharing a face)
    outside. For every pixel of either contour the distance to the nearest pixel of the other one
    is taken, between pixel centres; the result is the mean of them all.

    Parameters
    ----------
    a, b
        Masks of one shape, with one or more axes; nonzero is inside. Arrays or tensors.
    spacing
        Size of a pixel in mm, one number or one for each axis.

    Returns
    -------
    float
        In mm; nan if a mask is empty, since there is no contour to measure to (count the cases
        where only one is, as `evaluate` does, lest they vanish).

    Raises
    ------
    ValueError
        If the shapes differ, or a spacing is not a positive finite number.

    Examples
    --------
    >>> contour_distance([[0, 1, 0, 0]], [[0, 0, 0, 1]], spacing=0.5)
    1.0
    """
    distances = contour_distances(a, b, spacing)
    return float(distances.mean()) if distances.size else float("nan")


def hausdorff95(a: Mask, b: Mask, spacing: float | Sequence[float] = 1.0) -> float:
    """Distance of two contours that 95 % of their points do not exceed (HD95).

    The distances are those of `contour_distance`, of both contours taken together; parameters and
    errors are its too.

    Examples
    --------
    >>> hausdorff95([[0, 1, 0, 0]], [[0, 0, 0, 1]], spacing=0.5)
    1.0
    """
    distances = contour_distances(a, b, spacing)
    return float(np.percentile(distances, 95)) if distances.size else float("nan")


def contour_distances(
    a: Mask, b: Mask, spacing: float | Sequence[float] = 1.0
) -> npt.NDArray[np.float64]:
    """Return the distances that `contour_distance` is the mean of; none if a mask is empty."""
    first, second = _masks("contour_distance", a, b)
    sampling = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (first.ndim,))
    if not (np.isfinite(sampling).all() and (sampling > 0).all()):
        raise ValueError(f"contour_distance: spacing must be positive and finite, got {spacing}")
    if not (first.any() and second.any()):
        return np.zeros(0)
    # The smallest box around both masks holds all contours. A tree of their points takes a
    # hundredth of the memory that distance transforms of a volume do.
    box = ndimage.find_objects((first | second).astype(np.uint8))[0]
    contours = [
        np.argwhere(mask[box] & ~ndimage.binary_erosion(mask[box])) * sampling
        for mask in (first, second)
    ]
    distances = [KDTree(other).query(contour)[0] for contour, other in (contours, contours[::-1])]
    return np.concatenate(distances)


def postprocess(mask: Mask) -> npt.NDArray[np.bool_]:
    """Keep the largest connected component of a mask and fill its holes.

    Pixels that share a corner are connected; a hole is background that no path over edges leads
    out of. Of components of the same size the first in array order stays.

    Parameters
    ----------
    mask
        One mask with any number of axes; nonzero is inside. An array or a tensor.

    Returns
    -------
    numpy.ndarray
        Boolean, of the mask's shape; empty if the mask is.
    """
    inside = _array(mask)
    everywhere = np.ones((3,) * inside.ndim, dtype=bool)
    components, count = ndimage.label(inside, structure=everywhere)
    if count > 1:
        sizes = np.bincount(components.ravel())[1:]
        inside = components == 1 + sizes.argmax()
    return np.asarray(ndimage.binary_fill_holes(inside))


def postprocess_all(masks: npt.NDArray[np.bool_], disjoint: bool = False) -> npt.NDArray[np.bool_]:
    """Post-process each of the masks (C, H, W) of an image; disjoint ones stay so."""
    processed = np.stack([postprocess(mask) for mask in masks])
    if disjoint:  # the hole of one may be another
        processed &= masks | ~masks.any(axis=0)
        processed &= np.cumsum(processed, axis=0) == 1
    return processed


def _array(mask: Mask) -> npt.NDArray[np.bool_]:
    # A tensor on a GPU has to be fetched; torch itself is not needed to know one.
    values = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
    return values.astype(bool)


def _masks(function: str, a: Mask, b: Mask) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    first, second = _array(a), _array(b)
    if first.shape != second.shape:
        raise ValueError(
            f"{function}: masks must have one shape, got {first.shape} and {second.shape}"
        )
    return first, second
