"""Warp images and volumes by dense displacement fields in torch, on CPU and CUDA.

Conventions: a displacement is a floating tensor ``(N, D, *spatial)``, D = 2 or 3, in pixels of
the grid, component k along spatial axis k (``(dy, dx)``, ``(dz, dy, dx)``). Warps pull:
``warp(I, u)(x) = I(x + u(x))``.
"""

import importlib
from typing import TYPE_CHECKING

from ._native import Mode, PaddingMode, cuda_status
from .algebra import (
    FoldingWarning,
    affine_displacement,
    align,
    compose,
    exponential,
    invert,
    jacobian_determinant,
    valid_mask,
)
from .fields import random_displacement
from .modules import RandomElastic, Warp
from .points import warp_boxes, warp_points
from .smoothing import gaussian_smooth
from .warping import splat, warp

if TYPE_CHECKING:
    from types import ModuleType

    from . import itk as itk
    from . import monai as monai
    from . import onnx as onnx
    from . import reference

__version__ = "0.1.0"

__all__ = [
    "FoldingWarning",
    "Mode",
    "PaddingMode",
    "RandomElastic",
    "Warp",
    "affine_displacement",
    "align",
    "compose",
    "cuda_status",
    "exponential",
    "gaussian_smooth",
    "invert",
    "jacobian_determinant",
    "random_displacement",
    "reference",
    "splat",
    "valid_mask",
    "warp",
    "warp_boxes",
    "warp_points",
]


def __getattr__(name: str) -> "ModuleType":
    # Late: they need more packages, or few need them.
    if name in ("reference", "itk", "monai", "onnx"):
        return importlib.import_module(f"tcwarp.{name}")
    raise AttributeError(f"module 'tcwarp' has no attribute {name!r}")
