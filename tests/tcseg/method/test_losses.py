"""Losses against their formulas, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from tcseg.method import names
from tcseg.method.losses import (
    LOSSES,
    cross_entropy_loss,
    dice_loss,
    jaccard_metric_loss,
    over_batch,
    soft_iou_loss,
    squared_error_loss,
)
from tcseg.method.recipes import RECIPES


def literal(y, p):
    """1 - 1/C sum_c sum_i y p / sum_i (y + (1 - y) p), one pixel at a time, for (b, C, H, W)."""
    losses = []
    for target, prediction in zip(y, p, strict=True):
        ratios = []
        for target_c, prediction_c in zip(target, prediction, strict=True):
            above = below = 0.0
            for y_i, p_i in zip(target_c.flat, prediction_c.flat, strict=True):
                above += y_i * p_i
                below += y_i + (1 - y_i) * p_i
            ratios.append(above / below)
        losses.append(1 - sum(ratios) / len(ratios))
    return np.array(losses)


def probabilities(seed, shape=(3, 6, 7, 5)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("soft", [False, True], ids=["masks", "probabilities"])
def test_it_is_the_formula_of_the_paper(soft):
    target, prediction = probabilities(0), probabilities(1)
    if not soft:
        target = (target > 0.5).double()
    expected = literal(target.numpy(), prediction.numpy())
    # The thousandth of a pixel that settles 0 / 0 moves a union of some 20 pixels by 5e-5.
    np.testing.assert_allclose(soft_iou_loss(target, prediction), expected, rtol=0, atol=5e-5)


def test_each_image_has_its_own_loss():
    target, prediction = probabilities(0), probabilities(1)
    together = soft_iou_loss(target, prediction)
    alone = torch.cat([soft_iou_loss(target[i : i + 1], prediction[i : i + 1]) for i in range(3)])
    assert together.shape == (3,)
    assert torch.equal(together, alone)
    assert len(set(together.tolist())) == 3


def test_the_sides_may_be_swapped():
    a, b = probabilities(0), probabilities(1)
    assert torch.allclose(soft_iou_loss(a, b), soft_iou_loss(b, a), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_agreement_is_0_and_disagreement_1(dtype):
    mask = torch.zeros(1, 2, 8, 8)
    mask[:, 0, :3] = 1
    mask[:, 1] = 1 - mask[:, 0]
    assert soft_iou_loss(mask.to(dtype), mask).item() == 0
    assert soft_iou_loss(mask.to(dtype), 1 - mask).item() == pytest.approx(1, abs=1e-4)


def test_a_class_absent_from_both_sides_counts_as_agreement():
    target = torch.zeros(1, 2, 8, 8)
    prediction = target.clone()
    target[:, 0, :4] = prediction[:, 0, 2:6] = 1  # 16 of 48 pixels in common
    assert soft_iou_loss(target, prediction).item() == pytest.approx(1 - (1 / 3 + 1) / 2, abs=1e-4)
    prediction[:, 1] = 1  # seen where it is not: no agreement at all
    assert soft_iou_loss(target, prediction).item() == pytest.approx(1 - 1 / 6, abs=1e-4)


def test_gradient():
    target = (probabilities(0, (2, 3, 4, 4)) > 0.5).double()
    prediction = probabilities(1, (2, 3, 4, 4)).requires_grad_()
    other = probabilities(2, (2, 3, 4, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: soft_iou_loss(target, p), prediction)
    assert torch.autograd.gradcheck(soft_iou_loss, (other, prediction))


def test_gradient_stays_finite_where_nothing_is():
    prediction = torch.zeros(1, 2, 8, 8, requires_grad=True)
    soft_iou_loss(torch.zeros(1, 2, 8, 8, dtype=torch.uint8), prediction).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    # 300 * 300 pixels: past the largest half, 65504, and past where bfloat16 counts, 256.
    target = torch.ones(1, 1, 300, 300, dtype=torch.uint8)
    prediction = torch.full((1, 1, 300, 300), 0.75, dtype=dtype)
    for loss in (soft_iou_loss(target, prediction), soft_iou_loss(prediction, target)):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0.25, abs=1e-5)


def test_double_stays_double():
    a = probabilities(0)
    assert soft_iou_loss(a, a).dtype == torch.float64


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_shapes_that_do_not_fit_are_named(loss):
    message = rf"{loss.__name__}: .* \(b, C, H, W\).*, got \(2, 5, 8, 8\) and \(2, 6, 8, 8\)"
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(2, 5, 8, 8), torch.zeros(2, 6, 8, 8))
    mask = torch.zeros(6, 8, 8)
    with pytest.raises(ValueError, match=r"\(b, C, H, W\).*, got \(6, 8, 8\)"):
        loss(mask, mask)


# The others.


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_0_for_agreement_and_more_for_anything_else(loss):
    mask = (probabilities(0) > 0.5).float()
    assert torch.allclose(loss(mask, mask), torch.zeros(3), rtol=0, atol=1e-6)
    assert (loss(mask, probabilities(1).float()) > 0.05).all()
    assert loss(mask.to(torch.uint8), mask).dtype == torch.float32
    alone = torch.stack([loss(mask[i : i + 1], 1 - mask[i : i + 1])[0] for i in range(3)])
    assert torch.equal(loss(mask, 1 - mask), alone)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_has_its_gradient(loss):
    target, prediction = (probabilities(seed, (2, 3, 4, 4)).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(loss, (target, prediction))


def test_formulas():
    y, p = probabilities(0), probabilities(1)
    a, b = y.numpy(), p.numpy()
    axes = (2, 3)
    expected = {
        dice_loss: 1 - (2 * (a * b).sum(axes) / (a + b).sum(axes)).mean(1),
        jaccard_metric_loss: 1 - (np.minimum(a, b).sum(axes) / np.maximum(a, b).sum(axes)).mean(1),
        squared_error_loss: ((a - b) ** 2).mean((1, *axes)),
        cross_entropy_loss: -(a * np.log(b) + (1 - a) * np.log(1 - b)).mean((1, *axes)),
    }
    for loss, value in expected.items():
        np.testing.assert_allclose(loss(y, p), value, rtol=0, atol=5e-5, err_msg=loss.__name__)


def test_the_jaccard_metric_is_soft_iou_of_masks_and_least_where_probabilities_agree():
    mask, p = (probabilities(0) > 0.5).double(), probabilities(1)
    assert torch.allclose(jaccard_metric_loss(mask, p), soft_iou_loss(mask, p), rtol=0, atol=1e-12)
    assert torch.allclose(jaccard_metric_loss(p, p), torch.zeros(3, dtype=p.dtype))
    raised = (p * 1.02).clamp(max=1)
    assert (jaccard_metric_loss(p, raised) > 0).all()
    assert (soft_iou_loss(p, raised) < soft_iou_loss(p, p)).all()  # what the other one rewards


def test_cross_entropy_of_a_sure_error_is_finite():
    prediction = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss = cross_entropy_loss(torch.ones(1, 1, 2, 2), prediction)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-math.log(1e-7), abs=1e-3)
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


def test_options_name_what_there_is():
    """The names stand apart, as `--help` does not import torch."""
    assert (tuple(LOSSES), tuple(RECIPES)) == (names.LOSSES, names.RECIPES)


@pytest.mark.parametrize("name", LOSSES)
def test_over_the_batch_is_over_the_one_image_of_all_side_by_side(name):
    target, prediction = (probabilities(0) > 0.5).double(), probabilities(1)
    pooled = over_batch(LOSSES[name])(target, prediction)
    assert pooled.shape == (1,)
    beside = [torch.cat(list(x), dim=-1)[None] for x in (target, prediction)]
    assert torch.allclose(pooled, LOSSES[name](*beside), rtol=1e-12)
    if name in ("soft-iou", "jaccard-metric"):
        expected = literal(*(x.numpy() for x in beside))
        np.testing.assert_allclose(pooled, expected, rtol=0, atol=5e-5)


def test_over_the_batch_a_stray_pixel_of_an_empty_image_costs_a_pixel():
    target = torch.zeros(2, 1, 10, 10)
    target[0, :, :5] = 1
    prediction = target.clone()
    prediction[1, :, 0, 0] = 1
    assert soft_iou_loss(target, prediction)[1] > 0.99
    assert over_batch(soft_iou_loss)(target, prediction).item() == pytest.approx(1 / 51, abs=1e-4)
