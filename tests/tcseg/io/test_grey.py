"""One grey scale for all planes of a volume, windows of CT, and more than 8 bits."""

import nibabel
import numpy as np
import pytest
from made_up import write_dicom
from PIL import Image

from tcseg.errors import DataError
from tcseg.io.grey import as_pixels, tails
from tcseg.io.images import read_pictures
from tcseg.io.series import Collection
from tcseg.io.windows import WINDOWS, window_limits

RNG = np.random.default_rng(0)
# Values whose range grows from plane to plane.
VOLUME = np.stack([RNG.integers(0, 1000 * (k + 1), (20, 30)) for k in range(4)]).astype(np.uint16)


def write_series(folder, planes, windows=None, **attributes):
    files = []
    for k, values in enumerate(planes):
        files.append(folder / f"{k}.dcm")
        place = {"ImagePositionPatient": [0, 0, k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        if windows is not None:
            place |= dict(zip(("WindowCenter", "WindowWidth"), windows[k], strict=True))
        write_dicom(files[-1], values, SeriesInstanceUID="1.2.3", **place, **attributes)
    return files


def stretched(values):
    low, high = np.percentile(values, (0.1, 99.9))
    return ((values - low) / (high - low)).clip(0, 1)


def pixels_of(files, **options):
    collection = Collection({path.stem: path for path in files}, **options)
    return np.concatenate([p.pixels for f in collection.files for p in collection.read(f)])


def test_files_of_one_series_have_one_scale(tmp_path):
    files = write_series(tmp_path, VOLUME)
    np.testing.assert_allclose(pixels_of(files), stretched(VOLUME), atol=1e-6)
    each = np.stack([stretched(plane) for plane in VOLUME])
    np.testing.assert_allclose(pixels_of(files, scale="image"), each, atol=1e-6)


def test_pages_of_tiff_have_one_scale(tmp_path):
    pages = [Image.fromarray(plane) for plane in VOLUME]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(pixels_of([tmp_path / "a.tif"]), stretched(VOLUME), atol=1e-6)


def test_windows_that_differ_from_slice_to_slice_are_one(tmp_path):
    """The median of them."""
    windows = [(500, 1001), (500, 1001), (500, 1001), (60000, 3)]
    files = write_series(tmp_path, VOLUME, windows)
    expected = ((VOLUME - (500 - 0.5)) / 1000 + 0.5).clip(0, 1)  # DICOM PS3.3 C.11.2.1.2
    np.testing.assert_allclose(pixels_of(files), expected, atol=1e-6)


def test_a_damaged_slice_spoils_no_others(tmp_path):
    files = write_series(tmp_path, VOLUME)
    files[3].write_bytes(files[3].read_bytes()[:600])
    collection = Collection({path.stem: path for path in files})
    (picture,) = collection.read(files[1])
    np.testing.assert_allclose(picture.pixels[0], stretched(VOLUME[:3])[1], atol=1e-6)
    with pytest.raises(DataError, match=r"3\.dcm: cannot be read"):
        list(collection.read(files[3]))


@pytest.mark.parametrize("window", ["-600,1500", "-600 1500", "lung"])
def test_a_window_is_in_hounsfield_units(tmp_path, window):
    """Black at -1350 HU, white at 150 HU, whatever window the file has and however it is kept."""
    stored = np.array([[0, 424, 1024, 1174, 4000]], np.uint16).repeat(4, axis=0)
    hounsfield = stored - 1024.0
    expected = ((hounsfield + 1350) / 1500).clip(0, 1)
    slope = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    files = write_series(tmp_path, [stored], [(40, 80)], **slope)
    np.testing.assert_allclose(pixels_of(files, window=window)[0], expected, atol=1e-6)
    image = nibabel.Nifti1Image(hounsfield[::-1].T.astype(np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(
        pixels_of([tmp_path / "a.nii"], window=window)[0], expected, atol=1e-6
    )


def test_a_window_of_8_bits_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="8 bits are no values that `window`"):
        pixels_of([tmp_path / "a.png"], window="lung")


@pytest.mark.parametrize("window", ["", "lungs", "40", "40,0", "40,-1", "nan,3", "1,2,3", "0,inf"])
def test_windows_that_are_none(window):
    with pytest.raises(ValueError, match="must be centre and width, such as"):
        window_limits(window)


def test_names_of_windows():
    assert {name: window_limits(name) for name in WINDOWS}["brain"] == (0, 80)
    assert window_limits("bone") == (-500, 1300)


def test_tails_of_parts_are_those_of_the_whole():
    parts = [RNG.normal(size=(50, 40)).astype(np.float32), RNG.normal(3, 2, (30, 20))]
    whole = np.concatenate([part.ravel() for part in parts])
    assert tails(parts) == pytest.approx(tuple(np.percentile(whole, (0.1, 99.9))))
    parts[0][0, 0] = np.nan
    assert np.isfinite(tails(parts)).all()
    assert tails([np.full((3, 3), 7)]) == (7, 7)
    np.testing.assert_allclose(as_pixels(np.array([[0, 5, 10, 20]]), (0, 10))[0], [[0, 0.5, 1, 1]])


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16)])
def test_pictures_say_how_many_bits_their_file_has(tmp_path, dtype, bits):
    Image.fromarray(VOLUME[0].astype(dtype)).save(tmp_path / "a.png")
    (picture,) = read_pictures(tmp_path / "a.png")
    assert picture.bits == bits
