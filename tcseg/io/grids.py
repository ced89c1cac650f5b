"""Where the voxels of volumes lie in the patient, and whether a mask lies on its image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcseg.errors import DataError
from tcseg.io.arrays import ITK, itk_affine, itk_orientation
from tcseg.io.dicom import headers_of, read_dataset
from tcseg.io.images import NIFTI, exif_orientation, is_dicom, suffix
from tcseg.io.nifti import load_nifti
from tcseg.io.sizes import mm_written

NEAR = 0.5  # voxels that a mask may be off its image
TOWARDS = "SPR"  # where depth, height and width of volumes run: to head, back and right
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


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


def turned(volume: NDArray[Any], path: Path, back: bool = False) -> NDArray[Any]:
    """Turn a volume (C, D, H, W), as read from a file, to run as `TOWARDS`; or turn it back.

    One whose file (of a series any) does not say how it runs stays as it is.
    """
    code = _axes_as_read(path)
    order = _order(code)
    turns = tuple(n for n, k in enumerate(order, 1) if code and code[k] != TOWARDS[n - 1])
    axes = (0, *(k + 1 for k in order))
    if back:
        return np.ascontiguousarray(np.flip(volume, turns).transpose(np.argsort(axes)))
    return np.ascontiguousarray(np.flip(volume.transpose(axes), turns))


def turned_axes(path: Path) -> list[int]:
    """Return which of depth, height and width, as read from a file, `turned` makes them."""
    return _order(_axes_as_read(path))


def _order(code: str) -> list[int]:
    return [code.index(c if c in code else OPPOSITE[c]) for c in TOWARDS] if code else [0, 1, 2]


def _axes_as_read(path: Path) -> str:
    """Return which way in the patient depth, height and width run, as "SPR"; nothing if unknown."""
    if is_dicom(path):
        known = _frame_axes(path)
        signs = [] if known is None else zip(known, abs(known).argmax(axis=1), strict=True)
        code = "".join("RAILPS"[k + 3 * (axis[k] > 0)] for axis, k in signs)
        return code if len({min(c, OPPOSITE[c]) for c in code}) == 3 else ""  # none, or halfway
    code = orientation(path) or "?"
    if "?" in code or (suffix(path) in NIFTI and not _said(load_nifti(path))):
        return ""
    height = OPPOSITE[code[1]] if suffix(path) in NIFTI else code[1]
    return code[2] + height + code[0]


def _frame_axes(path: Path) -> NDArray[np.float64] | None:
    """Return which way in the patient depth, height and width run, (3, 3) of unit vectors.

    To the left, the back and the head count. The depth of a file of one frame is that of its
    series. None if the file does not say it.
    """
    try:
        data = read_dataset(path, stop_before_pixels=True)
        ends = headers_of(data)[:: max(1, int(data.get("NumberOfFrames") or 1) - 1)]
        across, down = np.array(ends[0].ImageOrientationPatient, float).reshape(2, 3)
        depth = np.cross(across, down)
        places = [depth @ np.array(end.ImagePositionPatient, float) for end in ends]
    except Exception:  # what is wrong is told on reading it
        return None
    if len(places) > 1 and places[0] == places[1]:  # frames of an older file
        return None
    return np.array([-depth if places[-1] < places[0] else depth, down, across])


def _said(image: Any) -> bool:
    """Whether a NIfTI file says where its voxels lie."""
    return bool(image.header["sform_code"] or image.header["qform_code"])


def _affine_of(path: Path) -> NDArray[np.float64] | None:
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
            affine, nothing = image.affine, np.eye(4) if _said(image) else image.affine
    except Exception:  # what is wrong is told on reading it
        return None
    return None if np.allclose(affine, nothing) or not np.linalg.det(affine) else affine


def check_grid(mask: Path, image: Path, counts: Sequence[int]) -> None:
    """Check that the corner voxels of a mask are those of its image, as far as both say so."""
    ours, its = _affine_of(mask), _affine_of(image)
    if ours is None or its is None:
        return
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in counts))]).T
    apart = float(np.abs(np.linalg.inv(its) @ ours @ corners - corners).max())
    if apart > NEAR:
        sides, others = (
            mm_written(np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist())
            for affine in (ours, its)
        )
        raise DataError(
            f"folder: {mask}, of {sides} mm, lies on another grid than its image {image.name}, of "
            f"{others} mm: corners of the volume are up to {apart:.3g} voxels apart; resample it "
            "to the grid of its image (SimpleITK.Resample)"
        )


def check_orientation(mask: Path, image: Path, settled: bool) -> None:
    """Check that a mask is turned, and runs in the patient, as its image.

    It is `settled` by the sides of both how a mask without EXIF orientation is turned.
    """
    turns = {exif_orientation(path): path for path in (mask, image)}
    # Turned by a quarter, one fits only if it was made for the image as it is seen.
    if 1 in turns and len(turns) == 2 and not (settled and max(turns) > 4):
        raise DataError(
            f"folder: {turns.pop(1)} has no EXIF orientation, {turns.popitem()[1].name} has, so "
            "how image and mask lie on each other is not known; save both upright without one "
            "(mogrify -auto-orient)"
        )
    ours, its = orientation(mask), orientation(image)
    if ours != its and None not in (ours, its):
        raise DataError(
            f"folder: the axes of {mask} run {ours} in the patient, those of its image "
            f"{image.name} {its}, so they do not lie on each other pixel by pixel; save "
            "both in one orientation (nibabel.as_closest_canonical)"
        )
