"""Where the voxels of volumes lie in the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tcseg.io.arrays import ITK, itk_affine, itk_orientation
from tcseg.io.images import NIFTI, suffix
from tcseg.io.nifti import load_nifti

__all__ = ["affine_of", "orientation"]


def orientation(path: Path) -> str | None:
    """Return which way in the patient the axes of a volume run, as "RAS"; None of other files."""
    if suffix(path) not in (*NIFTI, *ITK):
        return None
    try:
        if suffix(path) in ITK:
            return itk_orientation(path)
        import nibabel

        affine = load_nifti(path).affine
    except Exception:  # what is wrong is told on reading it
        return None
    return "".join(code or "?" for code in nibabel.aff2axcodes(affine))


def affine_of(path: Path) -> NDArray[np.float64] | None:
    """Return where the voxels of a file lie in the patient, (4, 4) from their numbers to mm.

    None if the file does not say it, as of one that was made from an array alone.
    """
    if suffix(path) not in (*NIFTI, *ITK):
        return None
    try:
        if suffix(path) in ITK:
            affine, nothing = itk_affine(path), np.diag([-1.0, -1, 1, 1])
        else:
            image = load_nifti(path)
            said = image.header["sform_code"] or image.header["qform_code"]
            affine, nothing = image.affine, np.eye(4) if said else image.affine
    except Exception:  # what is wrong is told on reading it
        return None
    return None if np.allclose(affine, nothing) or not np.linalg.det(affine) else affine
