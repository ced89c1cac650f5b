"""The options: checks, files, and the way back from a file."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tcseg.runs.config import Config, resolve_device


def test_the_defaults_are_valid():
    Config().validate()


def test_every_option_has_a_help_text():
    assert all(field.metadata["help"] for field in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("data", "jrst", "one of phantom, jsrt"),
        ("method", "semtic", "one of baseline, suptc, semitc, semitc+, stopgrad"),
        ("recipe", "weak", "one of strong, paper"),
        ("size", 16, "a multiple of 16, at least 32"),
        ("size", 100, "a multiple of 16, at least 32"),
        ("size", "64x100", "a multiple of 16, at least 32, or two: 256x512"),
        ("size", "64x", "or two: 256x512"),
        ("size", "wide", "or two: 256x512"),
        ("size", "original", "original: of a folder, with `patch`"),
        ("patch", 40, "a multiple of 16"),
        ("patch", "528x256", "within `size`"),
        ("patch", "original", "or two: 256x512"),
        ("labelled", 0, "at least 1"),
        ("split", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("seed", 2**63, "less than 2**63"),
        ("pretrain_steps", -1, "at least 0"),
        ("steps", -1, "at least 0"),
        ("loss", "iou", "one of soft-iou, jaccard-metric"),
        ("consistency_rampup", -1, "at least 0"),
        ("validation_images", 0, "at least 1"),
        ("displacement_std", math.nan, "at least 0 and finite"),
        ("teacher_decay", 1.0, "less than 1"),
        ("batch_size", 1, "at least 2"),
        ("batch_size", 7, "even for method 'semitc'"),
        ("validate_every", 0, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("consistency_weight", -0.1, "at least 0"),
        ("consistency_weight", math.nan, "at least 0"),
        ("learning_rate", 0.0, "greater than 0"),
        ("learning_rate", math.inf, "finite"),
        ("device", "gpu", "auto, cpu, cuda or cuda:N"),
        ("network", "UNet", "a dotted path"),
        ("network", "monai..UNet", "a dotted path"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(option, value, expected):
    with pytest.raises(ValueError) as error:
        replace(Config(), **{option: value}).validate()
    message = str(error.value)
    assert message.startswith(f"`{option}` must be ")
    assert expected in message
    assert message.endswith(f"got {value!r}")


def test_each_wrong_value_gets_a_line():
    with pytest.raises(ValueError) as error:
        Config(size=1, steps=-1).validate()
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("method", ["baseline", "suptc"])
def test_supervised_methods_take_odd_batches(method):
    Config(method=method, batch_size=7).validate()


def test_a_network_may_be_a_dotted_path():
    Config(network="package.module.Network").validate()


# Everything TOML can hold: no lone surrogates, which no UTF-8 file has.
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    root=st.none() | texts,
    network=texts,
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(allow_nan=False),
)
def test_a_saved_config_is_read_back_the_same(tmp_path_factory, root, network, seed, rate):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    saved = Config(root=root, network=network, seed=seed, learning_rate=rate)
    saved.save(path)
    assert Config.load(path) == saved


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("'64'", 64), ("'64x64'", "64x64"), ("'32x64'", "32x64")]
)
def test_a_size_is_one_number_or_height_and_width(tmp_path, text, size):
    path = tmp_path / "some.toml"
    path.write_text(f"size = {text}\n")
    loaded = Config.load(path)
    loaded.validate()
    assert loaded == Config(size=size)
    loaded.save(path)
    assert Config.load(path) == loaded


def test_options_left_out_have_their_default(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text("steps = 7\nlearning_rate = 2\n")
    loaded = Config.load(path)
    assert loaded == Config(steps=7, learning_rate=2.0)
    assert isinstance(loaded.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step = 1", "unknown option 'step'; the nearest valid one is 'steps'"),
        ("batchsize = 1", "the nearest valid one is 'batch_size'"),
        ("steps = '7'", "steps must be an integer, got '7'"),
        ("steps = 7.5", "steps must be an integer, got 7.5"),
        ("size = 64.0", "size must be such as 256 or '256x512', got 64.0"),
        ("steps = true", "steps must be an integer, got True"),
        ("learning_rate = 'fast'", "learning_rate must be a number, got 'fast'"),
        ("root = 3", "root must be a string, got 3"),
        ("[train]\nsteps = 1", "unknown option 'train'"),
        ("steps 7", "not a TOML file"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, text, expected):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        Config.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)


def test_a_file_of_bytes_is_no_config(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a TOML file"):
        Config.load(path)


def test_differences_name_what_changes_the_result():
    same = Config(device="cpu", root="elsewhere", checkpoint_every=7)
    assert Config().differences(same) == []
    other = Config(steps=7, batch_size=4)
    assert Config().differences(other) == [
        "`steps`: 1000 here, 7 there",
        "`batch_size`: 8 here, 4 there",
    ]


def test_auto_takes_a_gpu_if_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"`device` cuda:77: .* CUDA devices; use `device` cpu"):
        resolve_device("cuda:77")
