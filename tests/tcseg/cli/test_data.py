"""The commands below `tcseg data`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from made_up import mask_file
from PIL import Image

from tcseg.cli import main

pytestmark = pytest.mark.usefixtures("phantoms_made_once")


def tcseg(*arguments):
    wide = {"COLUMNS": "200"}  # so that no line of a table is wrapped
    return CliRunner(env=wide).invoke(main, [str(a) for a in arguments])


def test_a_phantom_is_described_and_drawn(tmp_path):
    sheet = tmp_path / "sheet.png"
    result = tcseg("data", "check", "--size", 32, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert "160 grey images read at 32 x 32 pixels of 11.2 mm: 160 with masks" in result.output
    assert "right clavicle" in result.output
    assert "No problem found." in result.output
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_every_problem_of_a_folder_is_named(tree, tmp_path):
    mask_file(tree, "JPCLN001").unlink()
    (tree / "images" / "JPCLN002.png").write_bytes(b"hello")
    (tree / "images" / "JPCNN002.png").rename(tmp_path / "lost.png")
    splits = tmp_path / "splits.json"
    splits.write_text("{}")
    sheet = tmp_path / "sheet.png"
    command = ("data", "check", "--data", "jsrt", "--root", tree, "--size", 32, "--sheet", sheet)
    result = tcseg(*command, "--split-file", splits)
    assert result.exit_code == 1
    problems = [line for line in result.output.splitlines() if line.startswith("Problem: ")]
    for problem, words in zip(
        problems,
        ("JPCLN001 (heart)", "1 image missing", "JPCLN002.png: ", "it has no 'splits'"),
        strict=True,
    ):
        assert words in problem
    assert "images: 2 of PNG, 64 x 64, 8 bit; 1 of cannot be read" in result.output
    assert "1 grey image read" in result.output
    assert sheet.exists()
    # Training with the same folder stops at the first one.
    assert (
        tcseg("train", "--data", "jsrt", "--root", tree, "--out", tmp_path / "run").exit_code == 1
    )


def test_a_folder_without_anything_is_one_clear_line(tmp_path):
    result = tcseg("data", "check", "--data", "jsrt", "--root", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: jsrt: no images JPCLN001")


def test_splits_are_written_once_and_used(tmp_path):
    out = tmp_path / "splits.json"
    assert tcseg("data", "splits", "--out", out).exit_code == 0
    content = json.loads(out.read_text())
    assert [len(split["train"]) for split in content["splits"]] == [100] * 5
    again = tcseg("data", "splits", "--out", out)
    assert again.exit_code == 1
    assert f"{out} exists; choose another --out" in again.stderr
    assert tcseg("data", "check", "--size", 32, "--split-file", out).exit_code == 0


def test_masks_none_of_which_can_be_used_are_each_named(tmp_path):
    """What is wrong with them comes before the line that says that nothing is left."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[5:15, 5:15] = 200, 30, 30
    smooth = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))
    for name, mask in (("a", colours), ("b", smooth)):
        Image.fromarray(colours[..., 0]).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    result = tcseg("data", "check", "--data", "folder", "--root", tmp_path)
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert "a.png is a colour picture (#000000, #c81e1e)" in first
    assert "b.png has 29 values beside 0" in second
    assert result.stderr == f"Error: folder: no mask in {tmp_path / 'masks'} can be used\n"


def test_values_and_their_structures_are_told(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    mask = np.zeros((40, 40), np.uint8)
    mask[5:15, 5:15], mask[20:30, 20:30] = 1, 200
    for name in "abc":
        for part, values in (("images", mask), ("masks", mask)):
            Image.fromarray(values).save(tmp_path / part / f"{name}.png")
    (tmp_path / "classes.txt").write_text("1 nucleus [a]\n200 cell\n")
    result = tcseg("data", "check", "--data", "folder", "--root", tmp_path, "--size", 32)
    assert "a value for each structure: 1 is nucleus [a], 200 is cell\n" in result.stdout
    assert result.exit_code == 0
