"""A network sees in use the grey levels that it was trained on."""

import json

import numpy as np
import pytest
import torch
from made_up import write_dicom
from PIL import Image
from rich.console import Console
from torch import nn

import tcseg
from tcseg.data import load_dataset
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model
from tcseg.training.session import train
from tcseg.use.predict import predict
from tcseg.use.segmenter import Segmenter

QUIET = Console(quiet=True)
SIZE = 32


class Seen(nn.Module):
    """Keeps the images that it is shown."""

    def __init__(self):
        super().__init__()
        self.images = []

    def forward(self, images):
        self.images += list(images)
        return torch.full((len(images), 2, *images.shape[2:]), 0.4)


@pytest.fixture
def slices(tmp_path):
    """Two patients of three slices of 12 bits, whose range grows, at the size of the network."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(6):
        patient, k = divmod(number, 3)
        values = rng.integers(0, 4096 >> (2 - k), (SIZE, SIZE)).astype(np.uint16)
        place = {"ImagePositionPatient": [0, 0, k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        identity = {"PatientID": f"p{patient}", "SeriesInstanceUID": f"1.2.{patient}"}
        slope = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "BitsStored": 12, "HighBit": 11}
        slope |= {"PixelSpacing": [0.5, 0.5], "SliceThickness": "1"}
        path = tmp_path / "images" / f"{number}.dcm"
        write_dicom(path, values, **place, **identity, **slope)
        mask = Image.fromarray((values > 500).astype(np.uint8) * 255)
        (tmp_path / "masks" / "one").mkdir(exist_ok=True)
        mask.save(tmp_path / "masks" / "one" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("window", [None, "abdomen"])
@pytest.mark.parametrize("scale", ["volume", "image"])
def test_predict_shows_what_training_showed(slices, window, scale):
    data = load_dataset("folder", root=slices, size=SIZE, window=window, scale=scale)
    model = Model.of(Config(data="folder", size=SIZE, window=window), data)
    assert (model.scale, model.bits) == (scale, 16 if scale == "volume" else 8)
    seen = Seen()
    segmenter = Segmenter(seen, model, torch.device("cpu"))
    problems = predict(
        segmenter, [slices / "images"], slices / "out", consistency=False, console=QUIET
    )
    assert problems == []
    shown = torch.stack(seen.images)
    assert torch.equal(shown, data.image_batch(range(6)))


def test_12_bits_reach_the_network(slices):
    data = load_dataset("folder", root=slices, size=SIZE)
    stored = np.stack([_values(slices / "images" / f"{n}.dcm") for n in range(3)])
    low, high = np.percentile(stored, (0.1, 99.9))
    expected = ((stored - low) / (high - low)).clip(0, 1)
    found = data.image_batch([0, 1, 2])[:, 0].numpy()
    assert np.abs(found - expected).max() < 1 / 65535
    assert len(np.unique(found)) == len(np.unique(expected)) > 1000


def _values(path):
    import pydicom

    return pydicom.dcmread(path).pixel_array.astype(float)


def test_8_bits_stay_8_bits_unless_a_file_has_more(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    grey = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) % 256
    for number in range(2):
        for part in ("images", "masks"):
            values = grey if part == "images" else grey > 99
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / part / f"{number}.png")
    before = load_dataset("folder", root=tmp_path, size=SIZE)
    assert before.images.dtype == torch.uint8
    Image.fromarray(grey * 200).save(tmp_path / "images" / "wide.png")
    after = load_dataset("folder", root=tmp_path, size=SIZE)
    assert after.images.dtype == torch.uint16
    torch.testing.assert_close(after.image_batch([0, 1]), before.image_batch([0, 1]))
    again = after.image_batch(torch.tensor([2]))
    assert len(again.unique()) == len(np.unique(np.clip(grey, *np.percentile(grey, (0.1, 99.9)))))


def test_a_window_belongs_to_the_run_and_old_runs_keep_their_scale(slices, tmp_path):
    config = Config(
        data="folder", root=str(slices), size=SIZE, window="-600,1500", batch_size=2,
        pretrain_steps=1, steps=1, device="cpu",
    )  # fmt: skip
    run = tmp_path / "run"
    train(config, run, False, show_results=False)
    record = json.loads((run / "model.json").read_text())
    assert (record["window"], record["scale"], record["bits"]) == ("-600,1500", "volume", 16)
    values = np.random.default_rng(0).integers(-1000, 500, (SIZE, SIZE)).astype(np.int16)
    tcseg.load(run).predict(values)
    with pytest.raises(ValueError, match="trained in the window -600,1500: give it the values"):
        tcseg.load(run).predict(values.astype(np.uint8))
    for name in ("window", "scale", "bits"):
        del record[name]
    (run / "model.json").write_text(json.dumps(record))
    model = tcseg.load(run).model
    assert (model.window, model.scale, model.bits) == (None, "image", 8)


def test_an_unfinished_run_of_an_earlier_version_goes_on_as_it_began(slices, tmp_path):
    config = Config(
        data="folder", root=str(slices), size=SIZE, batch_size=2, pretrain_steps=1, steps=1,
        device="cpu",
    )  # fmt: skip
    from tcseg.data import make_split, split_record

    old = load_dataset("folder", root=slices, size=SIZE, scale="image")
    run = RunFolder.create(tmp_path / "run", config, resume=False)
    record = split_record(old, make_split(old, 0))
    assert "scale" not in record
    run.record_split(record, resume=False)
    run.close()
    train(config, tmp_path / "run", True, show_results=False)
    assert Model.load(tmp_path / "run").scale == "image"
