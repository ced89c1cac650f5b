"""Data sets that are decoded into files once, and trained on from there: nothing else differs."""

import dataclasses
import errno
import io
import itertools
import os
import threading
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from folders import load, picture, save
from tiny import TINY

import tcseg.data.decoded
import tcseg.data.folder
from tcseg.cli import main
from tcseg.data import Dataset
from tcseg.data.stored import Rows, Stored
from tcseg.errors import DataError
from tcseg.runs.folder import RunFolder
from tcseg.training.batches import MARKED, Patches
from tcseg.training.session import train

TENSORS = ("images", "masks")


def assert_same(found, expected):
    for field in dataclasses.fields(Dataset):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name in TENSORS:
            assert (one.shape, one.dtype, one.nbytes) == (other.shape, other.dtype, other.nbytes)
            assert torch.equal(one[:].int(), other[:].int())
        elif isinstance(other, torch.Tensor):
            assert torch.equal(one, other)
        elif field.name != "originals":
            assert one == other, field.name
    for index in expected.annotated:
        for one, other in zip(found.original(index), expected.original(index), strict=True):
            assert np.array_equal(one, other)


def files(cache):
    (folder,) = cache.iterdir()
    return {path.name: path for path in folder.iterdir() if path.name != ".lock"}


def no_reading(monkeypatch):
    """Let nothing open an image or a mask."""

    def refuse(*arguments, **options):
        raise AssertionError("read again")

    monkeypatch.setattr(tcseg.data.folder, "find", refuse)
    monkeypatch.setattr("PIL.Image.open", refuse)


# ---- tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("kinds", [["u1"] * 4, ["u1", "u2", "u1", "u2"]])
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 5, 7)] * 4,
        [(1, 5, 7), (3, 2, 9), (1, 8, 1), (3, 8, 9)],
        [(2, 3, 4, 5), (2, 5, 2, 1)] * 2,
    ],
)
@pytest.mark.parametrize("empty", [(), (0,), (1, 3), (0, 1, 2, 3)])
def test_arrays_are_joined_in_the_largest_shape(tmp_path, in_file, kinds, shapes, empty):
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 256, s).astype(k) for s, k in zip(shapes, kinds, strict=True)]
    for index in empty:
        rows[index][:] = 0
    most, wide = np.max(shapes, axis=0), max(kinds)
    expected = np.zeros((len(rows), *most), wide)
    for index, row in enumerate(rows):
        own = tuple(map(slice, row.shape[1:]))
        expected[index][:, *own] = row if row.dtype == wide else row * 257.0
    with open(tmp_path / "rows", "w+b") if in_file else io.BytesIO() as file:
        writer = Rows(file) if in_file else Rows()
        for row in rows:
            writer.append(row)
        tensor = writer.finish()
    assert isinstance(tensor, Stored) == in_file
    assert tensor.shape == expected.shape
    assert np.array_equal(tensor[:].numpy(), expected)


def test_parts_of_a_stored_tensor_are_those_of_the_tensor(tmp_path):
    values = torch.randint(0, 256, (6, 2, 9, 11), dtype=torch.uint8)
    values.numpy().tofile(tmp_path / "values")
    stored = Stored(tmp_path / "values", values.shape, torch.uint8)
    rows, columns = torch.randint(9, (3, 4)), torch.randint(11, (3, 5))
    index = torch.tensor([4, 0, 4])
    for key in (
        2,
        slice(1, 3),
        index,
        (index[:, None, None], ..., rows[:, :, None], columns[:, None]),
    ):
        assert torch.equal(stored[key], values[key])
    taken = stored[index]
    taken += 1  # a copy, which may be written to
    assert torch.equal(stored[:], values)
    wide = Stored(tmp_path / "values", torch.Size([6, 9, 11]), torch.uint16)
    assert torch.equal(wide.view(torch.int16)[index].view(torch.uint16), wide[index])
    assert stored.to(torch.device("cpu")) is stored
    assert stored.to(torch.device("meta")).shape == values.shape


def test_what_was_read_takes_no_memory_afterwards(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with open(tmp_path / "values", "wb") as file:
        file.truncate(2**28)
    stored = Stored(tmp_path / "values", torch.Size([256, 2**20]), torch.uint8)
    before = resident()
    for index in range(256):
        assert not stored[[index]].any()
    assert resident() - before < 2**25


def test_decoding_takes_the_memory_of_the_data_once(tmp_path):
    for number in range(40):
        image, disc, _ = picture(1)
        save(tmp_path / "images" / f"{number:02d}.png", image)
        save(tmp_path / "masks" / f"{number:02d}.png", disc.astype("u1"))
    load(tmp_path, 256)  # what is imported late
    tracemalloc.start()
    data = load(tmp_path, 256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * (data.images.nbytes + data.masks.nbytes)  # 2^20 is for one image


# ---- data sets ------------------------------------------------------------------------------


@pytest.fixture
def many_kinds(by_class):
    """Colour, 16 bits, and many sizes."""
    image, *_ = picture(4)
    save(by_class / "images" / "scan4.png", np.stack([image, image // 2, image // 3], -1))
    save(by_class / "images" / "scan5.png", picture(5)[0].astype("u2") * 300)
    return by_class


@pytest.mark.parametrize("size", [64, "32x48", "original"])
def test_a_data_set_of_files_is_that_in_memory(many_kinds, tmp_path_factory, size, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    expected = load(many_kinds, size)
    assert_same(load(many_kinds, size, cache=cache), expected)
    with monkeypatch.context() as patch:
        no_reading(patch)
        found = load(many_kinds, size, cache=str(cache))
        assert found.shown(3) == [0] and found.absent_from([3, 7]) == ["square"]
        batch = torch.tensor([5, 1, 4])
        assert torch.equal(found.image_batch(batch), expected.image_batch(batch))
        assert torch.equal(found.target_batch([0, 6]), expected.target_batch([0, 6]))
        assert found.device == torch.device("cpu") and found.to("cpu").images is found.images
    assert_same(found, expected)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_volumes_too(tmp_path, dimensions):
    root, rng = tmp_path / "set", np.random.default_rng(0)
    for name, depth in (("a", 20), ("b", 18), ("c", 22)):
        volume = rng.integers(0, 900, (24, 20, depth)).astype("i2")
        for part, values in (("images", volume), ("masks", (volume > 400).astype("u1"))):
            (root / part).mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Image(values, np.diag([0.7, 0.8, 2.5, 1.0]))
            if part == "images" or name != "c":
                nibabel.save(image, root / part / f"{name}.nii.gz")
    size = 32 if dimensions == 2 else "original"
    for _ in range(2):
        found = load(root, size, dimensions=dimensions, cache=tmp_path / "cache")
        assert_same(found, load(root, size, dimensions=dimensions))


@pytest.mark.parametrize("layout", ["by_class", "valued"])
def test_what_images_show_was_noted_when_they_were_read(layout, request):
    data = load(request.getfixturevalue(layout))
    looked_for = dataclasses.replace(data, marked=None)
    shown = [data.shown(index) for index in range(len(data))]
    assert shown[3] == ([0] if layout == "by_class" else [0, 1])
    assert shown == [looked_for.shown(index) for index in range(len(data))]


def test_places_are_kept_of_labelled_images_only(by_class):
    data = load(by_class)
    patches = Patches(data, [4, 1], [0, 2, 3, 5, 6, 7], 32)
    assert patches.marked.shape == (2, MARKED, 2)
    for row, index in enumerate([4, 1]):
        rows, columns = patches.marked[row].long().T
        assert data.target_batch([index])[0, :-1].any(dim=0)[rows, columns].all()
    assert patches.rows[[4, 1]].tolist() == [0, 1]


# ---- the cache ------------------------------------------------------------------------------


def test_other_files_or_options_are_another_data_set(by_class, tmp_path_factory, monkeypatch):
    cache, mask = tmp_path_factory.mktemp("cache"), by_class / "masks" / "disc" / "scan0.png"
    numbers = itertools.count(1)

    def is_new(*arguments, **options):
        load(by_class, *arguments, cache=cache, **options)
        return len(list(cache.iterdir())) == next(numbers)

    assert is_new()
    assert is_new(32)
    assert is_new(group=r"scan(\d)")
    os.utime(mask, ns=(5, 5))
    assert is_new()
    (by_class / "images" / "scan7.png").unlink()
    assert is_new()
    save(mask, ~picture(0)[1])
    assert is_new()
    assert not load(by_class, cache=cache).target_batch([0])[0, 0].all()
    # What is no part of the data is none of the key either.
    (by_class / "notes.txt").write_text("mine")
    save(by_class / "runs" / "test.png", picture(0)[0])
    no_reading(monkeypatch)
    load(by_class, cache=cache)


def test_it_may_lie_among_the_images(tmp_path, monkeypatch):
    for number in range(4):
        image, disc, _ = picture(number)
        save(tmp_path / "set" / f"{number}.png", image)
        save(tmp_path / "set" / f"{number}_mask.png", disc.astype("u1"))
    expected = load(tmp_path / "set")
    assert_same(load(tmp_path / "set", cache=tmp_path / "set" / "cache"), expected)
    no_reading(monkeypatch)
    assert load(tmp_path / "set", cache=tmp_path / "set" / "cache").ids == expected.ids


@pytest.mark.parametrize("name", ["facts.json", "images.bin", "masks.bin"])
@pytest.mark.parametrize("how", ["gone", "shorter", "longer", "other"])
def test_what_was_damaged_is_made_again(valued, tmp_path_factory, name, how):
    cache = tmp_path_factory.mktemp("cache")
    load(valued, cache=cache)
    path = files(cache)[name]
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        other = bytes(255 - byte for byte in content)
        path.write_bytes({"shorter": content[:-1], "longer": content + b"1", "other": other}[how])
    assert_same(load(valued, cache=cache), load(valued))
    assert path.read_bytes()[-50:] == content[-50:] or name == "facts.json"


@pytest.mark.parametrize(
    "old, new",
    [
        ('"ids":["scan0",', '"ids":['),
        ('"annotated":[0,', '"annotated":[8,'),
        ('"marked":[[0,', '"marked":[[7,'),
        ('"shape":[8,1,64,64]', '"shape":[8,1,32,128]'),
        ('"shape":[8,1,64,64]', '"shape":[8,64,64]'),
        ('"dtype":"uint8"', '"dtype":"object"'),
        ('"classes":["class 1",', '"classes":[5,'),
        ('"spacings":[null,', '"spacings":['),
    ],
)
def test_facts_that_do_not_fit_are_made_again(valued, tmp_path_factory, old, new):
    cache = tmp_path_factory.mktemp("cache")
    load(valued, cache=cache)
    path = files(cache)["facts.json"]
    facts = path.read_text()
    assert old in facts
    path.write_text(facts.replace(old, new, 1))
    assert_same(load(valued, cache=cache), load(valued))


def test_a_stop_in_the_middle_leaves_nothing_behind(by_class, tmp_path_factory, monkeypatch):
    cache, append = tmp_path_factory.mktemp("cache"), Rows.append

    def stop(self, row):
        append(self, row)
        if len(self.shapes) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            load(by_class, cache=cache)
    assert not files(cache)
    assert_same(load(by_class, cache=cache), load(by_class))
    save(by_class / "images" / "scan3.png", np.zeros((9, 9), "u1"))  # not as its masks
    with pytest.raises(DataError, match=r"scan3.png has 47 x 33 pixels, its image scan3.png 9 x 9"):
        load(by_class, cache=cache)


def test_of_several_at_once_one_decodes(by_class, tmp_path_factory, monkeypatch, capfd):
    cache, began, go = tmp_path_factory.mktemp("cache"), threading.Event(), threading.Event()
    read, reads, found = tcseg.data.folder.load, [], []

    def slow(*arguments, **options):
        reads.append(arguments)
        began.set()
        assert go.wait(60)
        return read(*arguments, **options)

    monkeypatch.setattr(tcseg.data.folder, "load", slow)
    threads = [
        threading.Thread(target=lambda: found.append(load(by_class, cache=cache))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
        assert began.wait(60)
    told = ""
    while "another process decodes the images" not in told:
        told += capfd.readouterr().err
    go.set()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len(found) == 2
    assert_same(*found)


def test_a_full_disk_is_one_line(by_class, tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Rows, "append", full)
    options = ["--data", "folder", "--root", by_class, "--size", "32", "--pretrain-steps", "1"]
    options += ["--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    result = CliRunner().invoke(main, ["train", *map(str, options)])
    assert result.exit_code == 1
    folder = next((tmp_path / "cache").iterdir())
    message = f"Error: {folder}: No space left on device; make room and try again"
    assert message in result.output.splitlines()
    assert not files(tmp_path / "cache")


def test_where_nothing_can_be_written_what_is_there_is_read(by_class, tmp_path, monkeypatch):
    load(by_class, cache=tmp_path / "cache")
    monkeypatch.setattr(Path, "mkdir", None)
    monkeypatch.setattr(tcseg.data.decoded, "_locked", None)
    load(by_class, cache=tmp_path / "cache")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        load(by_class, cache=tmp_path / "file")


@pytest.mark.slow
@pytest.mark.parametrize("patch", [None, 32])
def test_a_training_does_not_depend_on_it(by_class, tmp_path, tmp_path_factory, patch):
    out, cache = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("cache")
    config = dataclasses.replace(
        TINY, data="folder", root=str(by_class), labelled=2, size=48, patch=patch, pretrain_steps=2
    )
    train(config, out / "memory", False, show_results=False)
    stored = dataclasses.replace(config, cache=str(cache))
    asked = itertools.count(1)
    with pytest.raises(Exception, match="stopped at step 5"):
        train(stored, out / "files", False, show_results=False, stop=lambda: next(asked) // 5)
    train(stored, out / "files", True, show_results=False)
    one, other = (RunFolder(out / name).load_checkpoint() for name in ("memory", "files"))
    for name, weights in one["network"].items():
        assert torch.equal(weights, other["network"][name])
    assert RunFolder(out / "memory").summary()["test"] == RunFolder(out / "files").summary()["test"]
    moved = ["evaluate", out / "memory", "--cache", cache, "--original-size", "--device", "cpu"]
    result = CliRunner().invoke(main, [*map(str, moved)])
    assert result.exit_code == 0, result.output
    assert len(list(cache.iterdir())) == 1
