"""Reading masks of any format value by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tcseg.errors import DataError, mask_file
from tcseg.io.arrays import ARRAYS, read_array
from tcseg.io.dicom import read_dataset
from tcseg.io.images import NIFTI, PLAIN, is_dicom, read_volume, suffix
from tcseg.io.limits import check_pixels
from tcseg.io.plain import open_plain

FEW_COLOURS = 9  # so many are listed
WHOLE_TO = 1e-3

Planes = NDArray[np.integer]


def read_planes(
    path: Path, as_seen: bool = False, colours: Mapping[int, int] | None = None
) -> Planes:
    """Read a mask value by value, (planes, H, W).

    Parameters
    ----------
    path
        The file.
    as_seen
        Whether values of palettes are the greys that they look like, not their numbers.
    colours
        Values of colours, of 24 bits. Files without colours hold the values themselves.

    Raises
    ------
    DataError
        If it cannot be read, or holds something else.
    """
    with mask_file(path):
        if suffix(path) in (*NIFTI, *ARRAYS):
            planes = (read_volume if suffix(path) in NIFTI else read_array)(path)[0]
            if planes.ndim > 3:
                raise DataError(
                    f"folder: {path} has {planes.shape[3]} channels; a mask must have one value"
                )
            return _whole(planes, path)
        if is_dicom(path):
            values = read_dataset(path).pixel_array
            return _whole(values if values.ndim == 3 else values[None], path)
        pages = _plain_planes(path, as_seen, colours or {})
        return np.stack([_whole(plane, path) for plane in pages])


def greys_of_palette(path: Path) -> dict[int, int] | None:
    """Return what the indices in a file look like, if its palette is one of greys.

    So is one of colours of which only black and white are used, and black and white itself.
    """
    if suffix(path) not in PLAIN:
        return None
    with mask_file(path), open_plain(path) as file:
        if file.mode == "1":
            return {0: 0, 1: 255}
        if file.mode != "P":
            return None
        file.apply_transparency()
        palette = np.array(file.getpalette("RGBA")).reshape(-1, 4)
        palette[palette[:, 3] == 0] = 0
        used = np.unique(np.asarray(file))
        greys = dict(zip(used.tolist(), palette[used, 0].tolist(), strict=True))
        grey = (palette[:, :3] == palette[:, :1]).all(axis=1)
        black_and_white = set(greys.values()) <= {0, 255} and grey[used].all()
        return greys if grey.all() or black_and_white else None


def is_smoothed(planes: Planes) -> bool:
    """Whether a mask is black and white, perhaps with smoothed edges or the noise of JPEG.

    Structures and objects have areas of values between: pixels whose neighbours have the same.
    """
    most = int(planes.max())
    middle = planes[:, 1:-1, 1:-1]
    between = (middle > (most / 64 if most > 128 else 0)) & (middle < most * 7 / 8)
    flat = between.copy()
    for neighbour in (planes[:, :-2, 1:-1], planes[:, 2:, 1:-1], planes[:, 1:-1, :-2]):
        flat &= middle == neighbour
    return bool(flat.sum() <= 0.1 * between.sum())


def _plain_planes(
    path: Path, as_seen: bool, known: Mapping[int, int]
) -> Iterator[NDArray[np.generic]]:
    with open_plain(path) as file:
        count = getattr(file, "n_frames", 1)
        check_pixels(path, (*file.size, count))
        for number in range(count):
            file.seek(number)
            page: Image.Image = ImageOps.exif_transpose(file)
            palette, plain = page.mode in ("P", "1"), page.mode[0] in "IF"
            if plain or (not known and (page.mode == "L" or (palette and not as_seen))):
                yield np.asarray(page)
                continue
            values = np.asarray(page.convert("RGBA"))
            if known:
                yield _values_of_colours(page, values, known, path)
                continue
            colours, alpha = values[..., :3].copy(), values[..., 3]
            if alpha.min() < 255 and (colours == colours[0, 0]).all():
                yield alpha  # of one colour all over: what is opaque is marked
                continue
            colours[alpha == 0] = 0
            if palette:
                yield np.asarray(Image.fromarray(colours).convert("L"))
            elif (colours == colours[..., :1]).all():
                yield colours[..., 0]
            else:
                raise DataError(
                    f"folder: {path} is a colour picture{_colours(colours)}; name its "
                    "colours in classes.txt, as in 'liver #ff0000', or use a folder for each "
                    "class with masks in black and white"
                )


def _values_of_colours(
    page: Image.Image, values: NDArray[np.uint8], known: Mapping[int, int], path: Path
) -> NDArray[np.generic]:
    """Return what colours stand for; greys, and palettes of other colours, may be the values."""
    opaque = np.where(values[..., 3:] > 0, values[..., :3], 0).astype(np.int64)
    colours, where = np.unique(opaque @ [1 << 16, 1 << 8, 1], return_inverse=True)
    strange = [f"#{colour:06x}" for colour in colours.tolist() if colour not in known]
    numbers = np.asarray(page)
    one_channel = numbers.ndim == 2 and (strange or page.mode != "P")
    if one_channel and set(np.unique(numbers).tolist()) <= {0, *known.values()}:
        return numbers
    if strange:
        listed = ", ".join(strange[:FEW_COLOURS])
        raise DataError(
            f"folder: {path} has {len(strange)} colours that classes.txt does not name ({listed}); "
            "add a line for each, as in 'liver #ff0000' or 'background #000000'"
        )
    return np.array([known[colour] for colour in colours.tolist()])[where].reshape(opaque.shape[:2])


def _colours(values: NDArray[np.generic]) -> str:
    """Say the colours of a picture, if they are few."""
    colours = np.unique(values.reshape(-1, 3), axis=0)
    if len(colours) > FEW_COLOURS:
        return f" of {len(colours)} colours"
    return f" ({', '.join('#{:02x}{:02x}{:02x}'.format(*colour) for colour in colours)})"


def _whole(values: NDArray[Any], path: Path) -> Planes:
    # Scaled on the way, as by the slope of a NIfTI, a number may be a little off.
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    with np.errstate(invalid="ignore"):  # nan, found below
        whole: Planes = rounded.astype(np.int64 if values.dtype.itemsize > 1 else np.uint8)
    near = rounded is values or (np.abs(rounded - values) < WHOLE_TO).all()
    if not near or not (whole == rounded).all() or (whole < 0).any():
        raise DataError(f"folder: {path} has values that are not whole numbers from 0 on")
    return whole
