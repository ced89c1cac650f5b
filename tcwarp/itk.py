"""Displacement fields of ITK and SimpleITK: physical vectors on a grid with spacing and direction.

`pip install "tcwarp[itk]"` installs SimpleITK, which it needs.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import check_displacement


def from_itk(field: Any) -> Tensor:
    """Return the displacement of a SimpleITK displacement field, in pixels.

    For an image on the grid of the field, ``SimpleITK.Resample(image,
    SimpleITK.DisplacementFieldTransform(field))`` is ``tcwarp.warp(image, from_itk(field),
    mode="linear")`` wherever that reads from inside the image (`tcwarp.valid_mask`).

    Parameters
    ----------
    field : SimpleITK.Image
        Of vectors with as many components as axes, 2 or 3, in physical units. One that has become
        a `SimpleITK.DisplacementFieldTransform` is empty from then on.

    Returns
    -------
    Tensor, shape (1, D, *spatial)
        float64; array order, so the axes and components of ITK reversed.

    Raises
    ------
    ImportError
        SimpleITK is not installed.
    TypeError, ValueError
        Not such an image.
    """
    itk = _simpleitk()
    if not isinstance(field, itk.Image):
        is_transform = isinstance(field, itk.Transform)
        way = "; use SimpleITK.TransformToDisplacementField" if is_transform else ""
        raise TypeError(
            f"from_itk: field must be a SimpleITK.Image, got {type(field).__name__}{way}"
        )
    if not field.GetNumberOfPixels():
        raise ValueError(
            "from_itk: field must have pixels, got none: SimpleITK.DisplacementFieldTransform has "
            "taken them; its GetDisplacementField() returns them"
        )
    dimensions = field.GetDimension()
    if dimensions not in (2, 3) or field.GetNumberOfComponentsPerPixel() != dimensions:
        raise ValueError(
            "from_itk: field must have 2 or 3 axes and a vector of as many components, got "
            f"{dimensions} axes and {field.GetNumberOfComponentsPerPixel()} components"
        )
    vectors = itk.GetArrayFromImage(field).astype(np.float64)
    in_pixels = vectors @ np.linalg.inv(_axes(field)).T
    return torch.from_numpy(np.moveaxis(in_pixels, -1, 0)[::-1].copy())[None]


def to_itk(displacement: Tensor, reference: Any) -> Any:
    """Return a displacement as a SimpleITK displacement field on the grid of an image.

    Parameters
    ----------
    displacement : Tensor, shape (1, D, *spatial)
        In pixels.
    reference : SimpleITK.Image
        With the size of the displacement; gives spacing, direction and origin.

    Returns
    -------
    SimpleITK.Image
        Of float64 vectors in physical units, as `SimpleITK.DisplacementFieldTransform` takes it.

    Raises
    ------
    ImportError
        SimpleITK is not installed.
    TypeError, ValueError
        Not a displacement, or of another size than the reference.
    """
    itk = _simpleitk()
    check_displacement("to_itk", "displacement", displacement)
    if not isinstance(reference, itk.Image):
        raise TypeError(
            f"to_itk: reference must be a SimpleITK.Image, got {type(reference).__name__}"
        )
    size = tuple(reversed(reference.GetSize()))
    if tuple(displacement.shape) != (1, len(size), *size):
        raise ValueError(
            f"to_itk: displacement must have shape {(1, len(size), *size)} for reference, got "
            f"{tuple(displacement.shape)}"
        )
    in_pixels = np.moveaxis(displacement[0].detach().double().cpu().numpy()[::-1], 0, -1)
    field = itk.GetImageFromArray(in_pixels @ _axes(reference).T, isVector=True)
    field.CopyInformation(reference)
    return field


def _axes(image: Any) -> Any:
    """Return the matrix from pixels to physical vectors, both in the order of ITK."""
    direction = image.GetDirection()
    length = math.isqrt(len(direction))
    return np.array(direction).reshape(length, length) * np.array(image.GetSpacing())


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ModuleNotFoundError as error:
        raise ImportError('SimpleITK is not installed; run `pip install "tcwarp[itk]"`') from error
    return SimpleITK
