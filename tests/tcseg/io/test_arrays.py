"""Arrays of NumPy, NRRD and MetaImage, as images and as masks."""

import gzip
import re

import numpy as np
import pytest
import SimpleITK
from processes import python

from tcseg.data import load_dataset
from tcseg.errors import DataError
from tcseg.io.grids import orientation
from tcseg.io.images import is_image, read_pictures
from tcseg.io.planes import read_planes

VOLUME = np.random.default_rng(0).integers(0, 4000, (3, 20, 30)).astype(np.int16)


def save(path, values, direction=None):
    if path.suffix == ".npy":
        np.save(path, values)
        return
    image = SimpleITK.GetImageFromArray(values, isVector=values.shape[-1] == 3)
    image.SetSpacing((0.5, 2.0, 3.0)[: image.GetDimension()])
    if direction is not None:
        image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path))


@pytest.mark.parametrize("suffix", [".npy", ".nrrd", ".mha"])
def test_a_volume_is_read_plane_by_plane_on_one_scale(tmp_path, suffix):
    path = tmp_path / f"ct{suffix}"
    save(path, VOLUME)
    assert is_image(path)
    pictures = list(read_pictures(path))
    assert [p.name for p in pictures] == ["ct/000", "ct/001", "ct/002"]
    assert {p.spacing for p in pictures} == {None if suffix == ".npy" else (2.0, 0.5)}
    low, high = np.percentile(VOLUME, (0.1, 99.9))
    expected = ((VOLUME - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(np.concatenate([p.pixels for p in pictures]), expected, atol=1e-6)
    assert np.array_equal(read_planes(path), VOLUME)


@pytest.mark.parametrize("suffix", [".npy", ".nrrd", ".mha"])
def test_colour(tmp_path, suffix):
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    save(tmp_path / f"a{suffix}", colour)
    (picture,) = read_pictures(tmp_path / f"a{suffix}")
    assert (picture.name, picture.bits) == ("a", 8)
    assert np.array_equal(picture.pixels, colour.transpose(2, 0, 1) / np.float32(255))
    with pytest.raises(DataError, match="has 3 channels; a mask must have one value"):
        read_planes(tmp_path / f"a{suffix}")


def test_what_a_file_must_not_do(tmp_path):
    """Run code, promise memory, or name another file."""
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    save(tmp_path / "b.npy", VOLUME)
    content = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(content.replace(b"(3, 20, 30)", b"(3, 1e9, 9)"[:11]))
    (tmp_path / "c.npy").write_bytes(content.replace(b"(3, 20, 30)", b"(999999,99)"))
    np.save(tmp_path / "d.npy", VOLUME[:, 0, 0])
    np.save(tmp_path / "e.npy", VOLUME.astype("c8"))
    save(tmp_path / "f.mha", VOLUME)
    content = (tmp_path / "f.mha").read_bytes()
    (tmp_path / "f.mha").write_bytes(content.replace(b"= LOCAL", b"= /etc/passwd"))
    header = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 4\nencoding: raw\ndata file: f.mha\n\n"
    (tmp_path / "g.nrrd").write_bytes(header)
    (tmp_path / "h.nrrd").write_bytes(b"hello")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError) as error:
            list(read_pictures(path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        lies_elsewhere = "its values lie in a file of their own" in str(error.value)
        assert lies_elsewhere == (path.stem in "fg")


def test_masks_of_a_folder(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(2):
        for part, values in (("images", VOLUME), ("masks", (VOLUME > 2000).astype(np.uint8))):
            save(tmp_path / part / f"{number}.nrrd", values)
    data = load_dataset("folder", root=tmp_path, size=32)
    assert (len(data), data.classes) == (6, ("class 1",))
    assert orientation(tmp_path / "masks" / "0.nrrd") == "LPS"
    save(
        tmp_path / "masks" / "0.nrrd",
        (VOLUME > 2000).astype(np.uint8),
        [1, 0, 0, 0, -1, 0, 0, 0, 1],
    )
    assert orientation(tmp_path / "masks" / "0.nrrd") == "LAS"
    with pytest.raises(DataError, match=r"run LAS in the patient, those of its image 0\.nrrd LPS"):
        load_dataset("folder", root=tmp_path, size=32)


READ = """
import sys
from pathlib import Path
from tcseg.errors import DataError
from tcseg.io.images import read_pictures
try:
    list(read_pictures(Path(sys.argv[1])))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("line", "depth", "told"),
    [
        (b"[" * 1000, 0, "a line of its header is too long"),
        (b"kinds: " + b"d" * 1000 + b" domain", 0, "a line of its header is too long"),
        (b"no field", 8, "its path is too long"),
        (b"no field", 0, "no field"),
        (b"name:=" + b"v" * 20_000, 0, ""),
        (b"# " + b"c" * 20_000, 0, ""),
    ],
    ids=["word", "field", "path", "short", "value", "comment"],
)
def test_long_lines_and_paths_do_not_end_the_process(tmp_path, line, depth, told):
    """ITK quotes them into buffers of fixed length."""
    folder = tmp_path.joinpath(*["d" * 200] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    save(tmp_path / "a.nrrd", VOLUME)
    header, values = (tmp_path / "a.nrrd").read_bytes().split(b"\n\n", 1)
    (folder / "b.nrrd").write_bytes(header + b"\n" + line + b"\n\n" + values)
    result = python("-c", READ, folder / "b.nrrd")
    assert result.returncode == 0, result.stderr
    assert told in result.stdout
    assert bool(told) == bool(result.stdout)


@pytest.mark.parametrize("axes", ["-1", "-3", "4294967295", "9" * 20, "x", ""])
def test_axes_that_cannot_be_do_not_end_the_process(tmp_path, axes):
    save(tmp_path / "a.mha", VOLUME)
    content = (tmp_path / "a.mha").read_bytes()
    assert content.count(b"NDims = 3\n") == 1
    (tmp_path / "a.mha").write_bytes(content.replace(b"NDims = 3", f"NDims = {axes}".encode()))
    result = python("-c", READ, tmp_path / "a.mha")
    assert result.returncode == 0, result.stderr
    assert "a.mha: cannot be read (its header says 'NDims" in result.stdout


@pytest.mark.parametrize("skip", [b"byte skip", b"byteskip"])
def test_what_a_header_leaves_out_has_a_limit(tmp_path, skip):
    """It would be read byte by byte, of what a file of a thousandth of the size was made from."""
    path, header = tmp_path / "a.nrrd", b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 40 30\n"
    values = gzip.compress(b"\n" * 2**17)
    path.write_bytes(header + skip + b": 1\nencoding: gzip\n\n" + values)
    assert (read_planes(path) == 10).all()
    path.write_bytes(header + skip + b": 100000\nencoding: gzip\n\n" + values)
    with pytest.raises(DataError, match="its header leaves out more than the file has"):
        read_planes(path)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_a_compressed_file_with_a_wrong_bit_is_named(tmp_path, ending):
    values = np.random.default_rng(0).integers(0, 1000, (6, 7, 8)).astype(np.int16)
    path = tmp_path / f"ct.{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path), useCompression=True)
    whole = path.read_bytes()
    expected = np.stack([picture.pixels for picture in read_pictures(path)])
    begin = 20 if ending == "nii.gz" else len(whole) - 500  # in what is compressed
    for at in range(begin, len(whole), len(whole[begin:]) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        try:
            found = np.stack([picture.pixels for picture in read_pictures(path)])
        except DataError as error:
            assert str(path) in str(error)
        else:
            np.testing.assert_array_equal(found, expected)
    path.write_bytes(whole[:-40])
    with pytest.raises(DataError, match=re.escape(str(path))):
        list(read_pictures(path))
