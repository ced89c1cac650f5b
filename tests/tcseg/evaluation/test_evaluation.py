"""Evaluation and pictures: the metrics by structure and image, with networks of known answers."""

import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from rich.console import Console

from tcseg.data import Dataset, load_dataset
from tcseg.evaluation.evaluate import evaluate, predict, results_table, validation_miou
from tcseg.evaluation.metrics import contour_distance, dice, iou
from tcseg.evaluation.pictures import save_panel


@pytest.fixture(scope="module")
def phantom(phantoms_made_once):
    return load_dataset("phantom", size=32)


class Thresholds(torch.nn.Module):
    """A network so simple that its answer is known: class c where the image exceeds level[c]."""

    def __init__(self, classes):
        super().__init__()
        self.level = torch.nn.Parameter(torch.linspace(0.2, 0.7, classes + 1))

    def forward(self, images):
        return (images > self.level.view(1, -1, 1, 1)).float()


def test_evaluation_is_that_of_the_metrics_image_by_image(phantom):
    network, indices = Thresholds(len(phantom.classes)), [5, 3, 8]
    results = evaluate(network, phantom, indices, batch_size=2)
    predicted = predict(network, phantom, indices, batch_size=2)
    assert predicted.dtype == torch.bool
    assert predicted.shape == (3, len(phantom.classes) + 1, 32, 32)
    truth = phantom.target_batch(indices)
    for c, name in enumerate(phantom.classes):
        overlaps = [iou(predicted[i, c], truth[i, c]) for i in range(3)]
        distances = [
            contour_distance(predicted[i, c], truth[i, c], phantom.spacing_of(0)) for i in range(3)
        ]
        assert results["iou"][name] == pytest.approx(np.mean(overlaps))
        assert results["iou_std"][name] == pytest.approx(np.std(overlaps))
        known = [d for d in distances if not np.isnan(d)]
        assert results["missed"][name] == 3 - len(known)
        wanted = np.mean(known) if known else np.nan
        assert results["macd_mm"][name] == pytest.approx(wanted, nan_ok=True)
    assert [row["id"] for row in results["images"]] == [phantom.ids[i] for i in indices]
    assert results["miou"] == pytest.approx(np.mean(list(results["iou"].values())))
    quick = validation_miou(network, phantom, indices, batch_size=2)
    assert quick == pytest.approx(results["miou"])


class Truth(torch.nn.Module):
    """Answers with given masks, in order."""

    def __init__(self, masks):
        super().__init__()
        self.masks, self.seen = masks, 0

    def forward(self, images):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.seen += len(images)
        return self.masks[self.seen - len(images) : self.seen].float()


def test_the_truth_is_perfect_and_the_network_keeps_its_mode(phantom):
    network = Truth(phantom.target_batch([0, 1, 2])).train()
    results = evaluate(network, phantom, [0, 1, 2], batch_size=2)
    assert network.training
    assert results["miou"] == 1
    assert set(results["macd_mm"].values()) == {0}
    assert not torch.is_inference_mode_enabled()


def test_a_structure_that_is_not_found_counts_as_missed(phantom):
    masks = phantom.target_batch([0, 1])
    masks[0, 2] = 0
    results = evaluate(Truth(masks), phantom, [0, 1])
    assert results["missed"]["heart"] == 1
    assert results["macd_mm"]["heart"] == 0  # of the image where it was found
    assert results["iou"]["heart"] == 0.5


def test_structures_that_exclude_each_other_are_measured_as_they_are_written(phantom):
    """As the likeliest above one half, whatever is said of the background, which learns last."""
    lungs = (phantom.target_batch(range(4))[:, :2] * torch.tensor([1, 2]).view(1, 2, 1, 1)).amax(1)
    masks, names = lungs[:, None].to(torch.uint8), ("left lung", "right lung")
    data = dataclasses.replace(phantom, classes=names, masks=masks, values=(1, 2))
    answers = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (predict(Truth(answers), data, range(4)).sum(dim=1) == 1).all()
    here = evaluate(Truth(answers), data, range(4))
    there = evaluate(Truth(answers), data, range(4), original_size=True)
    largest, best = answers[:, :2].max(dim=1)
    for c, name in enumerate(data.classes):
        overlaps = [iou((best == c)[i] & (largest > 0.5)[i], lungs[i] == c + 1) for i in range(4)]
        assert here["iou"][name] == pytest.approx(np.mean(overlaps))
        assert there["iou"][name] == pytest.approx(np.mean(overlaps))
    assert validation_miou(Truth(answers), data, range(4)) == pytest.approx(here["miou"])


@pytest.fixture
def lesion():
    """A volume of 20 planes, 2 of which show a lesion of 400 pixels; and a liver nowhere."""
    masks = torch.zeros(20, 1, 32, 32, dtype=torch.uint8)
    masks[7:9, 0, 4:24, 4:24] = 1
    ids = [f"ct/{k:02d}" for k in range(20)]
    images = torch.zeros(20, 1, 32, 32, dtype=torch.uint8)
    return Dataset("folder", ids, ("lesion", "liver"), images, masks, spacings=[(1.0, 1.0)] * 20)


def test_what_is_absent_from_truth_and_prediction_says_nothing(lesion):
    everything = lesion.target_batch(range(20))
    everything[:, 0, 30, :4] = 1  # and four stray pixels a plane
    nothing = torch.zeros_like(everything)
    found = 2 * 400 / 404 / 20
    for masks, by_plane, by_volume in ((nothing, 0, 0), (everything, found, 800 / 880)):
        results = evaluate(Truth(masks), lesion, range(20), batch_size=3)
        assert results["iou"]["lesion"] == results["miou"] == pytest.approx(by_plane)
        assert results["volumes"]["iou"]["lesion"] == pytest.approx(by_volume)
        assert results["volumes"]["miou"] == pytest.approx(by_volume)
        quick = validation_miou(Truth(masks), lesion, range(20), batch_size=3)
        assert quick == pytest.approx(by_volume)
        assert np.isnan(results["iou"]["liver"])
        assert np.isnan(results["dice"]["liver"])
        assert np.isnan(results["volumes"]["iou"]["liver"])
        assert results["missed"]["liver"] == 0
    twice = 2 * 800 / (800 + 880)
    assert results["volumes"]["dice"]["lesion"] == pytest.approx(twice)


def test_a_class_that_no_image_holds_has_no_figures_in_the_table(lesion):
    results = evaluate(Truth(lesion.target_batch(range(20))), lesion, range(20))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table({"run": results}))
    text = console.export_text()
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:-1]
        for line in text.splitlines()
        if "│" in line
    }
    assert [cell.strip() for cell in rows["liver"]] == ["-"] * 4
    figures = [cell.strip() for cell in rows["mean"]]
    assert figures == ["100.0 ± 0.0", "100.0 ± 0.0", "0.00", "0.00"]
    assert "planes of a volume taken together" in " ".join(text.split())


def test_distances_of_volumes_are_those_of_surfaces(lesion):
    """A cuboid found two planes too far: of spacing 3 x 1 x 1 mm, or in voxels."""
    masks = lesion.target_batch(range(20)).roll(2, dims=0)
    true, found = (m[:, 0].numpy() > 0 for m in (lesion.target_batch(range(20)), masks))
    order = [*range(10, 20), *range(10)]  # planes come in any order
    network = Truth(masks[order])
    unknown = evaluate(network, lesion, order, batch_size=3)["volumes"]
    assert unknown["macd_px"]["lesion"] == pytest.approx(contour_distance(true, found))
    assert np.isnan(unknown["macd_mm"]["lesion"])
    known = dataclasses.replace(lesion, slice_spacings=[3.0] * 20)
    measured = evaluate(Truth(masks[order]), known, order)["volumes"]
    expected = contour_distance(true, found, (3, 1, 1))
    assert measured["macd_mm"]["lesion"] == pytest.approx(expected)
    assert expected == 4.5  # from planes 7 and 8 to 9 and 10: 6, 3, 3 and 6 mm
    assert "macd_px" not in measured
    # Of every second plane no surface is known, the overlap is.
    part = list(range(0, 20, 2))
    sparse = evaluate(Truth(lesion.target_batch(part)), known, part)["volumes"]
    assert np.isnan(sparse["macd_mm"]["lesion"])
    assert sparse["iou"]["lesion"] == 1


def test_distances_are_in_pixels_where_their_size_is_not_known(phantom):
    masks, unknown = phantom.target_batch([0]), dataclasses.replace(phantom, spacings=None)
    masks[0, 2] = masks[0, 2].roll(1, dims=0)
    in_mm = evaluate(Truth(masks), phantom, [0])["macd_mm"]["heart"]
    results = evaluate(Truth(masks), unknown, [0])
    assert results["macd_px"]["heart"] == pytest.approx(in_mm / phantom.spacing_of(0)[0])
    assert np.isnan(results["macd_mm"]["heart"])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table({"run": results}))
    text = console.export_text()
    assert "MACD px" in text
    assert "MACD mm" not in text
    assert "where files do not say theirs in mm" in " ".join(text.split())


def test_what_vanished_by_resizing_is_not_taken_for_nothing(lesion):
    lost = dataclasses.replace(
        lesion, ids=[f"a{k}" for k in range(20)], vanished={3: ["lesion"], 4: ["lesion"]}
    )
    masks = lost.target_batch(range(20))
    masks[4, 0, 5, 5] = 1  # found where it may be
    results = evaluate(Truth(masks), lost, range(20))
    assert results["vanished"] == {"lesion": 2, "liver": 0}
    assert results["missed"]["lesion"] == 0
    assert results["iou"]["lesion"] == validation_miou(Truth(masks), lost, range(20)) == 1
    masks[5, 0, 5, 5] = 1  # here there is nothing
    results = evaluate(Truth(masks), lost, range(20))
    assert results["missed"]["lesion"] == 1
    assert results["iou"]["lesion"] == pytest.approx(2 / 3)
    assert validation_miou(Truth(masks), lost, range(20)) == pytest.approx(2 / 3)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table({"run": results}))
    assert "vanished" in console.export_text()
    # A volume that shows it elsewhere is measured.
    whole = dataclasses.replace(lost, ids=lesion.ids)
    volumes = evaluate(Truth(masks), whole, range(20))["volumes"]
    assert volumes["iou"]["lesion"] == pytest.approx(800 / 802)
    assert validation_miou(Truth(masks), whole, range(20)) == pytest.approx(800 / 802)
    assert volumes["vanished"]["lesion"] == 0
    remark = lost.size_remark(range(10), "test")
    wanted = "Too small for 32 x 32 pixels: nothing is left of lesion in 2 of 10 test images."
    assert remark == wanted
    assert lost.size_remark([7, 8], "test") is None


def test_nothing_anywhere_is_no_figure(lesion):
    empty = dataclasses.replace(lesion, masks=torch.zeros_like(lesion.masks))
    masks = empty.target_batch(range(20))
    assert np.isnan(validation_miou(Truth(masks), empty, range(20)))
    assert np.isnan(evaluate(Truth(masks), empty, range(20))["miou"])


def test_postprocessing_is_applied(phantom):
    masks = phantom.target_batch([0])
    specks = masks.clone()
    specks[:, 2, 0, 0] = 1 - specks[:, 2, 0, 0]
    assert evaluate(Truth(specks), phantom, [0])["iou"]["heart"] < 1
    assert evaluate(Truth(specks), phantom, [0], postprocess=True)["iou"]["heart"] == 1


def test_lungs_and_clavicles_are_joined(phantom):
    masks = phantom.target_batch([0, 1])
    masks[0, 0] = 0  # one lung of one image is not found
    results = evaluate(Truth(masks), phantom, [0, 1])
    joined, truth = results["joined"], phantom.target_batch([0])[0]
    assert set(joined["iou"]) == {"lungs", "clavicles"}
    assert set(results["iou"]) == set(phantom.classes)
    lungs = iou(truth[1], truth[0] | truth[1])
    assert joined["iou"]["lungs"] == pytest.approx((lungs + 1) / 2)
    assert joined["iou_std"]["lungs"] == pytest.approx((1 - lungs) / 2)
    assert joined["dice"]["lungs"] == pytest.approx((dice(truth[1], truth[0] | truth[1]) + 1) / 2)
    assert joined["missed"] == {"lungs": 0, "clavicles": 0}
    distance = contour_distance(truth[1], truth[0] | truth[1], phantom.spacing_of(0))
    assert joined["macd_mm"]["lungs"] == pytest.approx(distance / 2)
    assert joined["macd_mm_std"]["lungs"] == pytest.approx(distance / 2)


def test_the_cardiothoracic_ratio_is_compared_with_that_of_the_truth(phantom):
    masks = phantom.target_batch([0, 1, 2])
    columns = masks[0, 2].any(dim=0).nonzero()
    masks[0, 2, :, columns[-1]] = 0  # a heart one pixel narrower
    masks[2, 2] = 0
    truth = phantom.target_batch([0])[0]
    width = (truth[0] | truth[1]).any(dim=0).nonzero()
    thorax = int(width[-1] - width[0]) + 1
    ratio = evaluate(Truth(masks), phantom, [0, 1, 2])["cardiothoracic_ratio"]
    assert ratio["error"] == pytest.approx(0.5 / thorax)  # the mean of one pixel and none
    assert ratio["bias"] == pytest.approx(-0.5 / thorax)
    assert ratio["missed"] == 1


def test_other_structures_are_measured_without_joining(phantom):
    other = dataclasses.replace(phantom, classes=("liver", "spleen"))
    results = evaluate(Truth(other.target_batch([0])), other, [0])
    assert set(results["iou"]) == {"liver", "spleen"}
    assert results["joined"]["iou"] == {}
    assert "cardiothoracic_ratio" not in results


@pytest.mark.parametrize("measure", [evaluate, validation_miou])
def test_nothing_to_evaluate_is_an_error(phantom, measure):
    with pytest.raises(ValueError, match="indices must name at least one image"):
        measure(Truth(None), phantom, [])


def test_predict_of_nothing_is_empty(phantom):
    assert predict(Truth(None), phantom, []).shape == (0, len(phantom.classes) + 1, 32, 32)


def test_the_table_has_a_row_for_each_structure_and_the_mean(phantom):
    masks = phantom.target_batch([0])
    perfect = evaluate(Truth(masks), phantom, [0])
    empty = evaluate(Truth(masks * 0), phantom, [0])
    console = Console(width=120, record=True, file=io.StringIO())
    # As read back from a file: nan has become null there.
    empty["macd_mm"] = dict.fromkeys(empty["macd_mm"])
    console.print(results_table({"best": perfect, "worst": empty}, "test"))
    lines = console.export_text().splitlines()
    for name in (*phantom.classes, "mean"):
        (row,) = (line for line in lines if f"│ {name} " in line)
        expected = ["100.0 ± 0.0", "0.0 ± 0.0", "0.00", "-", "0", "1"]
        assert [cell.strip() for cell in row.split("│")[2:-1]] == expected


# Pictures.


def test_a_panel_is_a_picture_of_every_case(phantom, tmp_path):
    from PIL import Image

    heights = []
    for indices in ([0], [0, 1, 2]):
        predictions = {"prediction": phantom.target_batch(indices) > 0}
        save_panel(tmp_path / "p.png", phantom, indices, predictions, "title")
        with Image.open(tmp_path / "p.png") as picture:
            heights.append(picture.height)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert np.ptp(pixels, axis=2).max() > 50  # colours, not grey alone
    assert heights[1] > 2 * heights[0]
    assert os.listdir(tmp_path) == ["p.png"]


def test_a_panel_of_empty_and_full_masks(phantom, tmp_path):
    predictions = phantom.target_batch([0]) > 0
    predictions[:, 0], predictions[:, 1] = True, False
    save_panel(tmp_path / "p.png", phantom, [0], {"a": predictions, "b": predictions}, "")
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize("indices", [[], [0, 1]])
def test_a_panel_needs_a_prediction_for_each_case(phantom, tmp_path, indices):
    with pytest.raises(ValueError, match="save_panel: predictions must be one"):
        predictions = {"prediction": phantom.target_batch([0]) > 0}
        save_panel(tmp_path / "p.png", phantom, indices, predictions, "")
