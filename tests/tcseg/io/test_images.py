"""Reading images of every kind, and fitting them into a square and back."""

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from made_up import write_dicom
from PIL import Image
from pydicom import Dataset

from tcseg.errors import DataError
from tcseg.io.grey import as_pixels
from tcseg.io.images import is_image, read_pictures, stem
from tcseg.io.placement import Placement, as_masks
from tcseg.io.planes import read_planes
from tcseg.io.sizes import shape_of

GREY = (np.add.outer(np.arange(30) * 5, np.arange(40)) + 3).astype(np.uint8)


def only(path):
    (picture,) = read_pictures(path)
    return picture


@pytest.mark.parametrize("suffix", ["png", "tif", "TIFF", "bmp"])
def test_grey_levels_of_8_bits_are_kept(tmp_path, suffix):
    path = tmp_path / f"scan.one.{suffix}"
    Image.fromarray(GREY).save(path)
    picture = only(path)
    assert (picture.name, picture.spacing, picture.plane) == ("scan.one", None, None)
    assert picture.pixels.dtype == np.float32
    np.testing.assert_array_equal(picture.pixels, GREY[None] / np.float32(255))


def test_jpeg_is_read_and_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = only(tmp_path / "a.jpg").pixels
    assert pixels.shape == (1, 40, 30)
    assert np.abs(pixels[0] - np.rot90(GREY, -1) / 255).max() < 0.05


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<f4"])
def test_wider_values_are_stretched_between_their_tails(tmp_path, dtype):
    values = (GREY.astype(np.float64) * 100 + 1000).astype(dtype)
    values[0, 0] = 30000  # one hot pixel among 1200
    Image.fromarray(values).save(tmp_path / "a.tif")
    pixels = only(tmp_path / "a.tif").pixels[0]
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert np.corrcoef(pixels[1:].ravel(), GREY[1:].ravel())[0, 1] > 0.999
    assert pixels[-1, -1] > 0.95


def test_colour_is_kept_unless_it_is_grey(tmp_path):
    colour = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(np.stack([GREY] * 3, -1)).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([colour, GREY])).save(tmp_path / "alpha.png")
    for name in ("colour", "alpha"):
        pixels = only(tmp_path / f"{name}.png").pixels
        np.testing.assert_array_equal(pixels, colour.transpose(2, 0, 1) / np.float32(255))
    assert only(tmp_path / "grey.png").pixels.shape == (1, 30, 40)


def test_pages_are_planes(tmp_path):
    pages = [Image.fromarray(np.roll(GREY, k, 0)) for k in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pictures = list(read_pictures(tmp_path / "stack.tif"))
    assert [(p.name, p.plane) for p in pictures] == [(f"stack/{k:03d}", k) for k in range(3)]
    assert np.array_equal(pictures[2].pixels[0] * 255, np.roll(GREY, 2, 0))


@pytest.mark.parametrize(
    ("description", "spacing"),
    [
        ("ImageJ=1.54\nunit=micron\n", (0.0005, 0.00025)),
        ("ImageJ=1.54\nunit=\\u00B5m\nloop=false", (0.0005, 0.00025)),
        ("ImageJ=1.54\nunit=pixel\n", None),
        ('<OME><Pixels PhysicalSizeX="0.25" PhysicalSizeY="0.5"/></OME>', (0.0005, 0.00025)),
        (
            '<OME><Pixels PhysicalSizeX="25" PhysicalSizeXUnit="nm" PhysicalSizeY="x"/></OME>',
            None,
        ),
        ("a picture to be printed", None),
    ],
)
def test_microscopes_say_how_large_a_pixel_is(tmp_path, description, spacing):
    tags = {270: description, 282: 4.0, 283: 2.0}
    Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo=tags)
    picture = only(tmp_path / "a.tif")
    assert picture.spacing == (None if spacing is None else pytest.approx(spacing))


# ---- DICOM ----------------------------------------------------------------------------------


def test_dicom(tmp_path):
    write_dicom(tmp_path / "a.dcm", GREY.astype(np.uint16) * 10, PixelSpacing=[0.5, 0.25])
    picture = only(tmp_path / "a.dcm")
    assert picture.spacing == (0.5, 0.25)
    assert np.corrcoef(picture.pixels.ravel(), GREY.ravel())[0, 1] > 0.999
    assert (picture.pixels.min(), picture.pixels.max()) == (0, 1)
    (tmp_path / "a.dcm").rename(tmp_path / "IM0001")
    assert is_image(tmp_path / "IM0001")
    assert only(tmp_path / "IM0001").name == "IM0001"


def test_monochrome1_is_turned_around(tmp_path):
    values = GREY.astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", values, PhotometricInterpretation="MONOCHROME1")
    pixels = only(tmp_path / "a.dcm").pixels
    assert np.corrcoef(pixels.ravel(), GREY.ravel())[0, 1] < -0.999


def test_the_window_of_a_dicom_file_is_applied(tmp_path):
    values = GREY.astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", values, WindowCenter=100, WindowWidth=40)
    pixels = only(tmp_path / "a.dcm").pixels[0]
    assert (pixels[values < 78] == 0).all()
    assert (pixels[values > 122] == 1).all()
    assert abs(pixels[values == 100].mean() - 0.5) < 0.03


def test_frames_are_planes_on_one_scale(tmp_path):
    frames = np.stack([GREY, GREY // 2, GREY // 4]).astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3)
    pictures = list(read_pictures(tmp_path / "a.dcm"))
    assert [p.name for p in pictures] == ["a/000", "a/001", "a/002"]
    first, second, _ = (p.pixels for p in pictures)
    assert second.mean() == pytest.approx(first.mean() / 2, rel=0.05)


def test_a_narrow_image_in_a_wide_window_stays_narrow(tmp_path):
    values = np.full((20, 30), 2000, np.uint16)
    values[:10] = 2100
    write_dicom(tmp_path / "a.dcm", values, WindowCenter=2048, WindowWidth=4096)
    assert np.ptp(only(tmp_path / "a.dcm").pixels) == pytest.approx(100 / 4095, abs=0.005)


def test_dicom_is_known_by_its_content_or_its_name(tmp_path):
    write_dicom(tmp_path / "1.2.840.5", GREY.astype(np.uint16))
    assert is_image(tmp_path / "1.2.840.5")
    assert only(tmp_path / "1.2.840.5").name == "1.2.840.5"
    (tmp_path / "bad.dcm").write_bytes(b"hello")
    assert is_image(tmp_path / "bad.dcm")  # to be named as one that cannot be read


@pytest.mark.parametrize(
    ("attributes", "spacing", "at_detector"),
    [
        ({"ImagerPixelSpacing": [0.2, 0.2]}, 0.2, True),
        ({"NominalScannedPixelSpacing": [0.2, 0.2]}, 0.2, True),
        ({"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.2, 0.2]}, 0.2, True),
        ({"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.16, 0.16]}, 0.16, False),
        (
            {
                "ImagerPixelSpacing": [0.2, 0.2],
                "EstimatedRadiographicMagnificationFactor": "1.25",
            },
            0.16,
            False,
        ),
    ],
)
def test_the_spacing_of_projection_radiographs(tmp_path, attributes, spacing, at_detector):
    write_dicom(tmp_path / "a.dcm", GREY.astype(np.uint16), **attributes)
    picture = only(tmp_path / "a.dcm")
    assert picture.spacing == pytest.approx((spacing, spacing))
    assert picture.at_detector == at_detector


def item(**attributes):
    data = Dataset()
    for name, value in attributes.items():
        setattr(data, name, value)
    return [data]


def test_an_enhanced_file_says_by_frame(tmp_path):
    """Spacing for all frames together, window and slope for each."""
    frames = np.stack([GREY, GREY]).astype(np.uint16)
    measures = item(PixelSpacing=[0.5, 0.25])
    groups = [
        item(
            PixelValueTransformationSequence=item(RescaleSlope="2", RescaleIntercept=intercept),
            FrameVOILUTSequence=item(WindowCenter="200", WindowWidth="80"),
        )[0]
        for intercept in ("0", "100")
    ]
    write_dicom(
        tmp_path / "a.dcm",
        frames,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=item(PixelMeasuresSequence=measures),
        PerFrameFunctionalGroupsSequence=groups,
    )
    pictures = list(read_pictures(tmp_path / "a.dcm"))
    assert [picture.spacing for picture in pictures] == [(0.5, 0.25)] * 2
    for picture, centre in zip(pictures, (100, 50), strict=True):
        pixels = picture.pixels[0]
        assert (pixels[centre - 21 > GREY] == 0).all()
        assert (pixels[centre + 21 < GREY] == 1).all()
        assert abs(pixels[centre == GREY].mean() - 0.5) < 0.03


def test_the_distance_of_planes_is_read(tmp_path):
    frames = np.stack([GREY] * 3).astype(np.uint16)
    axes = [0, 1, 0, 0, 0, -1]  # sagittal planes

    def distance(positions, **attributes):
        groups = [
            item(PlanePositionSequence=item(ImagePositionPatient=[x, 7, 9]))[0] for x in positions
        ]
        shared = item(PlaneOrientationSequence=item(ImageOrientationPatient=axes))
        attributes |= {"NumberOfFrames": 3, "SharedFunctionalGroupsSequence": shared}
        write_dicom(
            tmp_path / "a.dcm", frames, **attributes, PerFrameFunctionalGroupsSequence=groups
        )
        return {picture.slice_spacing for picture in read_pictures(tmp_path / "a.dcm")}

    assert distance([30, 26.5, 23]) == {3.5}
    assert distance([30, 26.5, 20]) == {None}  # not even
    write_dicom(tmp_path / "b.dcm", frames, NumberOfFrames=3, SpacingBetweenSlices="2.5")
    assert {picture.slice_spacing for picture in read_pictures(tmp_path / "b.dcm")} == {2.5}
    write_dicom(tmp_path / "c.dcm", frames, NumberOfFrames=3, SliceThickness="2.5")
    assert {picture.slice_spacing for picture in read_pictures(tmp_path / "c.dcm")} == {None}
    image = nibabel.Nifti1Image(np.zeros((4, 5, 3), np.int16), np.diag([0.5, 0.25, 1.5, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "d.nii")
    (found,) = {(p.spacing, p.slice_spacing) for p in read_pictures(tmp_path / "d.nii")}
    np.testing.assert_allclose([*found[0], found[1]], [0.00025, 0.0005, 0.0015])


def test_frames_without_windows_are_on_one_scale_also_if_enhanced(tmp_path):
    frames = np.stack([GREY, GREY]).astype(np.uint16)
    groups = [
        item(PixelValueTransformationSequence=item(RescaleSlope=slope, RescaleIntercept="0"))[0]
        for slope in ("1", "3")
    ]
    write_dicom(
        tmp_path / "a.dcm", frames, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups
    )
    first, second = (picture.pixels.ravel() for picture in read_pictures(tmp_path / "a.dcm"))
    assert np.polyfit(first, second, 1)[0] == pytest.approx(3, rel=0.02)


def test_palettes_of_dicom_are_colours(tmp_path):
    tables = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tables[:, 0], tables[:, 255] = 0, 255
    attributes = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables * 257, strict=True):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        attributes[f"{name}PaletteColorLookupTableData"] = table.astype("<u2").tobytes()
    write_dicom(tmp_path / "a.dcm", GREY.astype(np.uint16), **attributes)
    pixels = only(tmp_path / "a.dcm").pixels
    np.testing.assert_allclose(pixels, tables[:, GREY] / 255, atol=1e-6)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", ["old.dcm", "IM0001"])
def test_dicom_without_a_preamble(tmp_path, name, implicit):
    write_dicom(tmp_path / "a.dcm", GREY.astype(np.uint16), PixelSpacing=[0.5, 0.25])
    data = pydicom.dcmread(tmp_path / "a.dcm")
    content = pydicom.filebase.DicomBytesIO()
    content.is_little_endian, content.is_implicit_VR = True, implicit
    pydicom.filewriter.write_dataset(content, data)
    (tmp_path / name).write_bytes(content.getvalue())
    assert is_image(tmp_path / name)
    picture = only(tmp_path / name)
    assert picture.spacing == (0.5, 0.25)
    assert np.corrcoef(picture.pixels.ravel(), GREY.ravel())[0, 1] > 0.999


# ---- NIfTI ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_slices_stand_upright_on_one_scale(tmp_path, suffix):
    volume = np.zeros((40, 30, 3), np.float32)
    for k in range(3):
        volume[..., k] = GREY[::-1].T.astype(np.float32) * (k + 1)
    image = nibabel.Nifti1Image(volume, np.diag([2.0, 0.5, 3.0, 1]))
    nibabel.save(image, tmp_path / f"ct{suffix}")
    pictures = list(read_pictures(tmp_path / f"ct{suffix}"))
    assert [p.name for p in pictures] == ["ct/000", "ct/001", "ct/002"]
    assert {p.spacing for p in pictures} == {(0.5, 2.0)}
    assert stem(tmp_path / f"ct{suffix}") == "ct"
    first, last = pictures[0].pixels[0], pictures[2].pixels[0]
    assert first.shape == GREY.shape
    assert np.corrcoef(last.ravel(), GREY.ravel())[0, 1] > 0.999
    slope, _ = np.polyfit(first.ravel(), last.ravel(), 1)
    assert slope == pytest.approx(3, rel=0.02)


# ---- what cannot be read --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "dcm", "nii", "nii.gz"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = tmp_path / f"bad.{suffix}"
    if suffix == "dcm":
        write_dicom(path, GREY.astype(np.uint16))
    elif suffix.startswith("nii"):
        nibabel.save(nibabel.Nifti1Image(GREY.astype(np.int16), np.eye(4)), path)
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "cut": content[: len(content) // 2]}[damage])
    with pytest.raises(DataError) as error:
        list(read_pictures(path))
    assert str(error.value).startswith(f"{path}: cannot be read")
    assert "\n" not in str(error.value).strip()


def too_large(folder, kind):
    """Write a small file of an image of 30 x 40 in some form; return it and its pixels."""
    path = folder / f"a.{kind}"
    if kind == "nii.gz":
        nibabel.save(nibabel.Nifti1Image(np.zeros((30, 40, 5), np.int16), np.eye(4)), path)
    elif kind == "npy":
        np.save(path, np.zeros((5, 30, 40), np.uint8))
    elif kind == "mha":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((5, 30, 40), np.uint8)), path)
    elif kind == "dcm":
        write_dicom(path, np.zeros((5, 30, 40), np.uint16), NumberOfFrames=5)
    else:
        pages = [Image.fromarray(GREY) for _ in range(5)]
        options = {"save_all": True, "append_images": pages[1:]} if kind == "tif" else {}
        pages[0].save(path, **options)
    return path, GREY.size * (1 if kind == "png" else 5)


@pytest.mark.parametrize("kind", ["png", "tif", "dcm", "nii.gz", "npy", "mha"])
def test_a_file_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch, kind):
    path, pixels = too_large(tmp_path, kind)
    monkeypatch.setenv("TCSEG_MAX_PIXELS", str(pixels))
    assert list(read_pictures(path))
    monkeypatch.setenv("TCSEG_MAX_PIXELS", str(pixels - 1))
    with pytest.raises(DataError, match=f"million pixels.*TCSEG_MAX_PIXELS={pixels}"):
        list(read_pictures(path))


@pytest.mark.parametrize("read", [lambda p: list(read_pictures(p)), read_planes])
@pytest.mark.parametrize("sizes", [((4, 4), (30, 40)), ((30, 40), (4, 4)), ((4, 4),) * 77])
def test_each_page_counts_by_its_own_size(tmp_path, monkeypatch, read, sizes):
    pages = [Image.new("L", size) for size in sizes]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    total = sum(height * width for height, width in sizes)
    monkeypatch.setenv("TCSEG_MAX_PIXELS", str(total - 1))
    with pytest.raises(DataError, match=f"TCSEG_MAX_PIXELS={total}"):
        read(tmp_path / "a.tif")
    monkeypatch.setenv("TCSEG_MAX_PIXELS", str(total))
    assert len(list(read_pictures(tmp_path / "a.tif"))) == len(sizes)


def test_frames_of_a_mask_count(tmp_path, monkeypatch):
    frames = [Image.new("L", (10, 10), 50 * k) for k in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setenv("TCSEG_MAX_PIXELS", "399")
    with pytest.raises(DataError, match="TCSEG_MAX_PIXELS=400"):
        read_planes(tmp_path / "a.gif")


def test_the_limit_of_pixels_is_ours_alone(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert only(tmp_path / "a.png").pixels.shape == (1, 30, 40)
    assert Image.MAX_IMAGE_PIXELS == 500
    monkeypatch.setenv("TCSEG_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="TCSEG_MAX_PIXELS must be a number"):
        only(tmp_path / "a.png")


def test_a_volume_without_a_number_is_named(tmp_path):
    # Such as what a failed registration leaves; a plane of it, as beyond the field of view, may be.
    volume = np.full((4, 5, 3), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "lost.nii")
    with pytest.raises(DataError, match=r"lost\.nii: cannot be read \(none of its values is a fin"):
        list(read_pictures(tmp_path / "lost.nii"))
    volume[..., 1] = np.arange(20).reshape(4, 5)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "lost.nii")
    planes = [picture.pixels for picture in read_pictures(tmp_path / "lost.nii")]
    assert [plane.max() for plane in planes] == [0, 1, 0]


def test_nifti_that_is_no_grey_volume_says_what_to_do(tmp_path):
    rgb = np.zeros((4, 5, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 2, 3)), np.eye(4)), tmp_path / "times.nii")
    for name, words in (("rgb", "holds colours.*convert it"), ("times", "of its own")):
        with pytest.raises(DataError, match=words):
            only(tmp_path / f"{name}.nii")


def test_other_files_are_no_images(tmp_path):
    for name in ("notes.txt", ".hidden.png", "README", "folder"):
        (tmp_path / name).write_text("x") if name != "folder" else (tmp_path / name).mkdir()
        assert not is_image(tmp_path / name)
    with pytest.raises(DataError, match="not a known image format"):
        list(read_pictures(tmp_path / "notes.txt"))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 65), (2, 3, 4, 5), (0, 4)])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"shape \(H, W\) or \(H, W, C\) of at most 64 channels, got"
    ):
        as_pixels(np.zeros(shape))


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_flat_and_broken_arrays_give_levels(value):
    flat = np.full((4, 5), value)
    if np.isfinite(value):
        levels = as_pixels(flat)
        assert levels.shape == (1, 4, 5)
        assert np.isfinite(levels).all()
    else:
        with pytest.raises(ValueError, match="none of its values is a finite number"):
            as_pixels(flat)
    # Such a plane of a volume has the limits of the others.
    assert np.isfinite(as_pixels(flat, (0, 7))).all()
    mixed = np.arange(20.0).reshape(4, 5)
    mixed[0, 0], mixed[3, 4] = np.nan, value
    assert np.isfinite(as_pixels(mixed)).all()
    assert as_pixels(mixed).max() <= 1


def test_booleans_are_0_and_1():
    assert set(np.unique(as_pixels(GREY > 50))) == {0, 1}


# ---- fitting --------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([32, 64]))
def test_a_placement_fills_one_side_and_comes_back(height, width, size):
    place = Placement.of((height, width), size)
    assert max(place.inner) == size
    assert min(place.inner) >= 1
    fitted = place.fit(np.ones((2, height, width), np.float32))
    assert fitted.shape == (2, size, size)
    assert fitted.sum() == pytest.approx(2 * place.inner[0] * place.inner[1])
    assert fitted[:, *place.window].min() == pytest.approx(1)
    restored = place.restore(fitted)
    assert restored.shape == (2, height, width)
    assert restored.min() == pytest.approx(1)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["32x64", (64, 48)]))
def test_a_placement_fits_a_frame_of_any_shape(height, width, size):
    frame = np.array(shape_of(size))
    place = Placement.of((height, width), size)
    assert (place.inner == frame).any()
    assert (place.inner <= frame).all()
    fitted = place.fit(np.ones((2, height, width), np.float32))
    assert fitted.shape == (2, *frame)
    assert fitted[:, *place.window].min() == pytest.approx(1)
    assert place.restore(fitted).min() == pytest.approx(1)


def test_proportions_and_spacing_are_kept():
    place = Placement.of((200, 100), 64)
    assert place.inner == (64, 32)
    assert place.corner == (0, 16)
    assert place.spacing((0.5, 0.5)) == (200 * 0.5 / 64, 100 * 0.5 / 32)
    assert place.spacing(None) is None


def test_a_mask_comes_back_where_it_was():
    mask = np.zeros((1, 150, 90), np.float32)
    mask[0, 30:110, 20:60] = 1
    place = Placement.of((150, 90), 64)
    back = place.restore(place.fit(mask)) > 0.5
    assert (back != (mask > 0.5)).mean() < 0.02


@pytest.mark.parametrize("shape", [(50, 30), (7, 90), (64, 64), (301, 200), (1, 9)])
@pytest.mark.parametrize("disjoint", [False, True])
def test_bands_of_a_large_image_are_those_of_the_whole(monkeypatch, shape, disjoint):
    place = Placement.of(shape, 64)
    square = np.random.default_rng(0).random((4, 64, 64), np.float32)
    whole = as_masks(place.restore(square), disjoint)
    for band in (1, 100, 2000):
        monkeypatch.setattr("tcseg.io.placement.BAND", band)
        found = place.restore_masks(square, disjoint)
        assert found.shape == whole.shape
        assert (found != whole).mean() < 1e-3  # but for shares that are equal to rounding
