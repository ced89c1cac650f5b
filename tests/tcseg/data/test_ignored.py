"""What masks say is to be ignored counts nowhere: in no target, loss or figure."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from folders import load, picture, save
from torch import nn

from tcseg.cli import main
from tcseg.data import pack_masks
from tcseg.evaluation.evaluate import evaluate, validation_miou
from tcseg.method.losses import soft_iou_loss
from tcseg.method.mixing import Boxes
from tcseg.method.objective import siamese_objective
from tcseg.method.transforms import SampledTransform


def corner(shape):
    """The left half of an image, over parts of both structures."""
    return np.indices(shape)[1] < shape[1] / 2


@pytest.fixture
def marked(by_class):
    for number in range(6):
        save(by_class / "masks" / "ignore" / f"scan{number}.png", corner(picture(number)[1].shape))
    return by_class


@pytest.fixture
def numbered(valued):
    for number in range(6):
        _, disc, square = picture(number)
        values = np.where(corner(disc.shape), 255, np.where(square, 5, disc)).astype("u1")
        save(valued / "masks" / f"scan{number}.png", values)
    (valued / "classes.txt").write_text("1 disc\n255 Ignore\n5 square\n")
    return valued


@pytest.fixture(params=["marked", "numbered"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_nothing_is_set_where_a_pixel_is_to_be_ignored(folder):
    data = load(folder)
    assert data.classes == ("disc", "square")
    assert data.ignores
    assert data.values in (None, (1, 5))
    target = data.target_batch([1])[0].bool()  # 64 x 64, as its file
    assert not target[:, :, :32].any()
    assert target.any(dim=0)[:, 32:].all()
    assert np.array_equal(target[1, :, 32:], picture(1)[2][:, 32:])
    whole, _ = data.original(1)
    assert len(whole) == 3
    assert np.array_equal(whole[2], corner((64, 64)))


def test_data_check_tells_how_much(folder):
    result = CliRunner().invoke(main, ["data", "check", "--data", "folder", "--root", str(folder)])
    assert "in 6 images" in result.output
    assert "Marked as ignored: " in result.output


class Wrong(nn.Module):
    """Answers with the truth, but marks all that is to be ignored."""

    def __init__(self, data, first):
        super().__init__()
        self.data, self.seen = data, first

    def forward(self, images):
        rows = range(self.seen, self.seen + len(images))
        self.seen += len(images)
        target = self.data.target_batch(rows)
        return (target | ~target.bool().any(dim=1, keepdim=True)).float()


@pytest.mark.parametrize("original_size", [False, True])
def test_no_figure_counts_it(folder, original_size):
    data = load(folder)
    data = dataclasses.replace(data, volumes=["ct"] * len(data))
    results = evaluate(Wrong(data, 1), data, [1], original_size=original_size)
    assert results["miou"] == results["volumes"]["miou"] == 1
    assert set(results["volumes"]["macd_px"].values()) == {0}
    assert validation_miou(Wrong(data, 0), data, range(6)) == 1
    counted = dataclasses.replace(data, ignores=False)
    # Where structures exclude each other, one of two that are equal is taken: 0.5001.
    most = 0.5002 if data.exclusive else 0.5
    assert validation_miou(Wrong(data, 0), counted, range(6)) < most


def test_post_processing_fills_no_part_of_it(marked):
    data = load(marked)
    assert evaluate(Wrong(data, 1), data, [1], postprocess=True)["miou"] == 1


class Net(nn.Module):
    def forward(self, images):
        self.answers = torch.cat([images, 1 - images, images**2], dim=1)
        return self.answers


class Still:
    def sample(self, batch, size, generator):
        return SampledTransform()


@pytest.mark.parametrize("exclusive", [False, True])
def test_no_loss_counts_it(exclusive):
    images = torch.rand(4, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 3, 6, 8, dtype=torch.bool)
    masks[0, 0, :3], masks[1, 1, 2:] = True, True
    masks[:, :2, :, :2] = False
    masks[:, 2, :, :2] = True
    network = Net()
    known = masks[:, :2, :, 2:].float()
    target = torch.cat([known, 1 - known.sum(1, keepdim=True)], dim=1)

    def terms(mix=None):
        return siamese_objective(
            network,
            images,
            pack_masks(masks, exclusive),
            Still(),
            torch.Generator().manual_seed(0),
            classes=2,
            exclusive=exclusive,
            ignores=True,
            stop_gradient=True,
            mix=mix,
        )

    found = terms()
    expected = soft_iou_loss(target, network.answers[:2, ..., 2:]).mean()
    assert torch.allclose(found.supervised, expected)
    everywhere = soft_iou_loss(network.answers[:4], network.answers[4:]).mean()
    assert torch.allclose(found.consistency, everywhere)  # which uses no label
    # Labels are the target of the consistency term where boxes are exchanged, here of no size.
    found = terms(Boxes(area=(1e-12, 1e-12), aspect=1.0))
    of_labelled = soft_iou_loss(target, network.answers[4:6, ..., 2:])
    of_others = soft_iou_loss(network.answers[2:4], network.answers[6:])
    assert torch.allclose(found.consistency, torch.cat([of_labelled, of_others]).mean())


def test_what_may_be_meant_so_is_told(numbered):
    (numbered / "classes.txt").unlink()
    done = CliRunner().invoke(main, ["data", "check", "--data", "folder", "--root", str(numbered)])
    assert "say so in classes.txt: 255 ignore" in done.output


def test_what_is_ignored_goes_to_nnunet_though_it_lies_over_structures(marked, tmp_path):
    shutil.rmtree(marked / "masks" / "square")  # which overlaps the disc
    out = tmp_path / "out"
    words = ["--root", str(marked), "--out", str(out), "--layout", "nnunet"]
    done = CliRunner().invoke(main, ["data", "convert", *words])
    assert done.exit_code == 0, done.output
    assert load(out).ignores
    target = load(out).target_batch([1])[0].bool()
    assert not target[:, :, :32].any()
