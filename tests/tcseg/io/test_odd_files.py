"""Files that Pillow or pydicom would misread: read rightly, or refused in a line that says why."""

import gzip
import os
import struct

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from made_up import write_dicom
from PIL import Image
from processes import python
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from tcseg.errors import DataError
from tcseg.io.dicom import text_of
from tcseg.io.images import read_pictures
from tcseg.io.planes import read_planes

GREY = (np.add.outer(np.arange(30) * 5, np.arange(40)) + 3).astype(np.uint8)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4"])
def test_numbers_of_either_byte_order(tmp_path, order, kind):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY.astype(kind), byteorder=order)
    assert np.array_equal(read_planes(path)[0], GREY)
    (picture,) = read_pictures(path)
    assert np.corrcoef(picture.pixels.ravel(), GREY.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (GREY.astype("f8"), "1 channel of 64-bit floating-point numbers"),
        (GREY.astype("f2"), "1 channel of 16-bit floating-point numbers"),
        (GREY.astype("i1"), "1 channel of 8-bit integers with a sign"),
        (GREY.astype("u8"), "1 channel of 64-bit integers"),
        (np.stack([GREY] * 2, -1), "2 channels of 8-bit integers"),
        (np.stack([GREY] * 5, -1), "5 channels of 8-bit integers"),
        (np.stack([GREY] * 7, -1).astype("u2"), "7 channels of 16-bit integers"),
    ],
)
def test_tiff_that_would_be_misread_is_named(tmp_path, values, words):
    """Of several channels as masks only."""
    path = tmp_path / "a.tif"
    for photometric in ("minisblack", "rgb")[: 1 + (values.ndim == 3 and values.shape[2] == 5)]:
        options = {"planarconfig": "contig"} if values.ndim == 3 else {}
        tifffile.imwrite(path, values, photometric=photometric, **options)
        for read in (lambda file: list(read_pictures(file)), read_planes)[values.ndim - 2 :]:
            with pytest.raises(DataError) as error:
                read(path)
            assert str(error.value).startswith(f"{path}: cannot be read (it has {words}")
            assert "save 1 or 3 channels" in str(error.value)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_nifti_file_of_nothing_but_extensions_is_named(tmp_path, kind, order, ending):
    path = tmp_path / f"a.{ending}"
    image = kind(GREY, np.eye(4))
    header = image.header.as_byteswapped({"<": "little", ">": "big"}[order])
    nibabel.save(kind(GREY, np.eye(4), header), path)
    assert len(list(read_pictures(path))) == 1
    content = bytearray((gzip.decompress if ending == "nii.gz" else bytes)(path.read_bytes()))
    at = 108 if kind is nibabel.Nifti1Image else 168
    struct.pack_into(order + ("f" if at == 108 else "q"), content, at, 2**31)
    path.write_bytes((gzip.compress if ending == "nii.gz" else bytes)(bytes(content)))
    with pytest.raises(DataError, match=r"its voxels begin after 2147\.48 MB of other data"):
        list(read_pictures(path))


@pytest.mark.parametrize("back_to", [0, 110])
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True), (">", True)])
def test_pages_in_a_circle_have_an_end(tmp_path, order, big, back_to):
    path = tmp_path / "a.tif"
    pages = np.zeros((120, 3, 5), np.uint16)
    tifffile.imwrite(path, pages, byteorder=order, bigtiff=big, metadata=None)
    with tifffile.TiffFile(path) as file:
        offsets, last = [page.offset for page in file.pages], file.pages._nextpageoffset
    content = bytearray(path.read_bytes())
    struct.pack_into(order + ("Q" if big else "L"), content, last, offsets[back_to])
    path.write_bytes(content)
    with pytest.raises(DataError, match="its pages run in a circle"):
        list(read_pictures(path))


OME = """<?xml version="1.0"?><OME>{}<Image><Pixels DimensionOrder="XYZTC" SizeX="40" SizeY="30"
SizeC="2" SizeZ="{}" SizeT="1"><TiffData IFD="0"{}</Pixels></Image></OME>"""
MODULO = """<StructuredAnnotations><A ID="a" Namespace="modulo"><V><M><ModuloAlongT Type="lifetime"
Start="0" End="1e6"/></M></V></A></StructuredAnnotations>"""


@pytest.mark.parametrize(
    ("before", "planes", "data"),
    [("", 10**6, "/>"), ("", 1, ' PlaneCount="1000000"/>'), (MODULO, 1, "/>")],
)
def test_more_planes_than_a_file_can_hold_are_not_counted(tmp_path, before, planes, data):
    path, description = tmp_path / "a.tif", OME.format(before, planes, data)
    tifffile.imwrite(path, GREY, description=description, metadata=None)
    with pytest.raises(DataError, match="it promises more planes than it has bytes"):
        list(read_pictures(path))


def test_no_other_file_is_read_for_one(tmp_path):
    """A pipe of the name that it gives would never open; of a missing file, zeros were read."""
    path, other = tmp_path / "a.tif", '><UUID FileName="b.tif">urn:uuid:1</UUID></TiffData>'
    second = f'<TiffData IFD="0" FirstC="1" PlaneCount="1"{other}'
    description = OME.format("", 1, ' PlaneCount="1"/>' + second)
    tifffile.imwrite(path, GREY, description=description, metadata=None)
    (picture,) = read_pictures(path)
    assert np.array_equal(picture.pixels, GREY[None] / np.float32(255))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_postscript_is_not_run(tmp_path, name):
    path = tmp_path / name
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n{} loop\n")
    for read in (lambda file: list(read_pictures(file)), read_planes):
        with pytest.raises(DataError, match="it is not an image, despite its name"):
            read(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_12_bits_is_named(tmp_path, progressive):
    path = tmp_path / "a.jpg"
    Image.fromarray(GREY).save(path, progressive=progressive)
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 4] = 12
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.jpg: .* is a JPEG of 12 bits; save it as PNG or TIFF"):
        list(read_pictures(path))


def test_palettes_of_big_endian_dicom(tmp_path):
    tables = np.random.default_rng(0).integers(0, 2**16, (3, 256)).astype(">u2")
    write_dicom(tmp_path / "a.dcm", GREY, PhotometricInterpretation="PALETTE COLOR")
    data = pydicom.Dataset()
    for element in pydicom.dcmread(tmp_path / "a.dcm"):
        data.add(element)
    data.file_meta = pydicom.dcmread(tmp_path / "a.dcm").file_meta
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{name}PaletteColorLookupTableData", table.tobytes())
    data.PixelData = GREY.astype(">u2").tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (picture,) = read_pictures(tmp_path / "a.dcm")
    np.testing.assert_allclose(picture.pixels, (tables[:, GREY] >> 8) / 255, atol=1e-6)


def test_what_is_deflated_has_a_limit(tmp_path, monkeypatch):
    """A file may hold a thousandth of it, and its values are few."""
    for megabytes, name in enumerate(("a.dcm", "b.dcm")):
        write_dicom(tmp_path / name, GREY.astype(np.uint16))
        data = pydicom.dcmread(tmp_path / name)
        data.add_new(0x00091001, "OB", bytes(megabytes * 2**20))
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.save_as(tmp_path / name)
    monkeypatch.setenv("TCSEG_MAX_PIXELS", "10000")
    assert np.array_equal(read_planes(tmp_path / "a.dcm")[0], GREY)
    for read in (lambda file: list(read_pictures(file)), read_planes):
        with pytest.raises(
            DataError, match=r"b.dcm: holds more than 0.04 MB, deflated; .* set TCSEG"
        ):
            read(tmp_path / "b.dcm")
    assert text_of(tmp_path / "b.dcm", "PatientID") == ""


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / os.fsdecode(b"Br\xe4u.png")
    Image.fromarray(GREY).save(path)
    with pytest.raises(DataError, match=r"'.*Br\\udce4u.png': its name is not UTF-8; rename it"):
        list(read_pictures(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "status", "words"),
    [
        ({"PYTHONIOENCODING": "ascii"}, 0, "Gef??"),
        ({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 1, "set PYTHONUTF8=1"),
        ({}, 0, "Gefäß"),
    ],
)
def test_names_with_umlauts_where_the_locale_has_none(tmp_path, setting, status, words):
    for part in ("images", "masks/Gefäß"):
        (tmp_path / part).mkdir(parents=True)
        for name in "Bräu", "Kölsch":
            Image.fromarray(GREY).save(tmp_path / part / f"{name}.png")
    command = ["-m", "tcseg", "data", "check", "--data", "folder", "--root"]
    environment = {**os.environ, "LC_ALL": "C", **setting}
    result = python(*command, tmp_path, env=environment, encoding="utf-8", errors="replace")
    output = result.stdout + result.stderr
    assert (result.returncode, words in output, "Traceback" in output) == (status, True, False)
