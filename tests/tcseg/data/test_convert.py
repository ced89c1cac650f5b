"""`tcseg data convert`: what was understood is written so that it is read again as the same."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK
from click.testing import CliRunner
from folders import save
from PIL import Image

from tcseg.cli import main
from tcseg.data import load_dataset

SIZE = 32
RNG = np.random.default_rng(0)


def convert(root, out, *options):
    arguments = ["data", "convert", "--root", str(root), "--out", str(out), *options]
    return CliRunner().invoke(main, arguments)


def grey(kind=np.uint8, *shape):
    return RNG.integers(0, np.iinfo(kind).max, shape or (40, 30)).astype(kind)


def labels(*shape, values=(0, 3, 7)):
    return RNG.choice(np.array(values, np.uint8), shape or (40, 30))


def by_patients(root):
    """Side by side, with a palette, a legend and names to be found."""
    for name in ("P1", "P1-b", "P2"):
        save(root / name / "image.png", grey())
        mask = Image.fromarray(labels(), "L")
        mask.putpalette([n for k in range(256) for n in (k, 0, 255 - k)])
        if name != "P2":
            mask.save(root / name / "mask.png")
    (root / "classes.txt").write_text("3 2nd liver\n7 spleen # not a comment\n")


def sixteen_bits(root):
    for name in "abc":
        save(root / "images" / f"{name}.png", grey(np.uint16))
    for name in ("a/1", "a/2", "b/1"):
        save(root / "masks" / "GTV (1)" / f"{name}.png", labels(values=(0, 255)))
    save(root / "masks" / "heart" / "a.png", labels(values=(0, 1)))


def coco(root):
    save(root / "images" / "a.jpg", grey(np.uint8, 40, 30, 3))
    save(root / "images" / "sub.jpg", grey())
    polygon = [2.0, 2.0, 20.0, 2.0, 20.0, 30.0]
    shapes = [(1, [polygon]), (2, [[x + 5 for x in polygon]])]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "Lung/L"}, {"id": 2, "name": "b"}],
        "annotations": [{"image_id": 1, "category_id": c, "segmentation": s} for c, s in shapes],
    }
    (root / "x.json").write_text(json.dumps(content))


def volumes(root):
    for name in "ab":
        for part, numbers in (
            ("images", grey(np.int16, 40, 30, 3)),
            ("masks", labels(40, 30, 3)),
        ):
            (root / part).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(numbers, np.diag([-0.5, 2, 3, 1]))
            nibabel.save(image, root / part / f"{name}.nii{'.gz' if name == 'a' else ''}")


def arrays(root):
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for part, numbers in (("images", grey(np.int16, 3, 40, 30)), ("masks", labels(3, 40, 30))):
        np.save(root / part / "a.npy", numbers)
        image = SimpleITK.GetImageFromArray(numbers)
        image.SetSpacing((0.5, 2.0, 3.0))
        SimpleITK.WriteImage(image, root / part / "b.mha")


def frames(root):
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for part, pages in (("images", [grey() for _ in "12"]), ("masks", [labels(), labels()])):
        first, second = map(Image.fromarray, pages)
        first.save(root / part / "a.tif", save_all=True, append_images=[second])


FORMS = [by_patients, sixteen_bits, coco, volumes, arrays, frames]


@pytest.mark.parametrize("write", FORMS)
def test_what_is_written_is_read_as_the_same(tmp_path, write):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    result = convert(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    before, after = (
        load_dataset("folder", root=tmp_path / part, size=48) for part in ("in", "out")
    )
    order = [after.ids.index(name) for name in before.ids]
    for name in ("ids", "spacings", "slice_spacings", "volumes", "groups"):
        assert [getattr(after, name)[i] for i in order] == getattr(before, name)
    assert sorted(after.annotated) == sorted(order[i] for i in before.annotated)
    assert after.values == before.values
    classes = [name.replace("/", "_") for name in before.classes]
    assert sorted(after.classes) == sorted(classes)
    channels = [*(after.classes.index(name) for name in classes), -1]
    assert np.array_equal(after.images.numpy()[order], before.images.numpy())
    found = after.target_batch(order).numpy()[:, channels]
    assert np.array_equal(found, before.target_batch(range(len(before))).numpy())


@pytest.mark.parametrize("write", [sixteen_bits, volumes, frames, by_patients, arrays])
def test_nnunet(tmp_path, write):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    result = convert(tmp_path / "in", tmp_path / "out", "--layout", "nnunet")
    if write in (sixteen_bits, frames, arrays):
        words = "overlap" if write is sixteen_bits else "nnU-Net"
        assert result.exit_code == 1
        assert words in result.output
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        return
    assert result.exit_code == 0, result.output
    before, after = (
        load_dataset("folder", root=tmp_path / part, size=48) for part in ("in", "out")
    )
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["numTraining"] == 2
    assert list(description["labels"].values()) == [0, 1, 2]
    assert after.classes == before.classes
    assert after.values == (1, 2)
    order = [after.ids.index(before.ids[i]) for i in before.annotated]
    assert len(after) == len(order)
    assert np.array_equal(after.images.numpy()[order], before.images.numpy()[before.annotated])
    found = after.target_batch(order).numpy()
    assert np.array_equal(found, before.target_batch(before.annotated).numpy())


def test_nothing_is_written_over_or_left_half(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    by_patients(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    result = convert(tmp_path / "in", tmp_path / "out")
    assert (result.exit_code, "not an empty folder; choose another --out" in result.output) == (
        1,
        True,
    )
    (tmp_path / "out" / "x").unlink()
    (tmp_path / "in" / "P2" / "image.png").write_bytes(b"\x89PNG")
    assert convert(tmp_path / "in", tmp_path / "out").exit_code == 1
    assert list((tmp_path / "out").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
