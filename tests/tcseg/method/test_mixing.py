"""Boxes that are exchanged: where they lie, how large they are, what comes with them."""

import pytest
import torch

from tcseg.method.mixing import MIXES, Boxes

SIZE = (40, 60)


def draw(name, batch, seed=0, size=SIZE):
    return MIXES[name].sample(batch, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MIXES)
def test_each_image_has_one_box_within_it(name):
    for box in draw(name, 200).box[:, 0]:
        rows, columns = box.any(1), box.any(0)
        assert rows.any()
        assert torch.equal(box, rows[:, None] & columns[None])
        for line in (rows, columns):  # in one piece
            assert line.byte().diff(prepend=line.new_zeros(1).byte()).eq(1).sum() == 1


@pytest.mark.slow
def test_areas_are_2_to_40_percent_and_sides_differ_by_a_factor_of_3_at_most():
    size = (1000, 1500)
    box = draw("boxes", 300, size=size).box
    area = box.float().mean(dim=(1, 2, 3))
    assert 0.0195 < area.min() < 0.03
    assert 0.38 < area.max() < 0.4005
    assert area.mean().item() == pytest.approx(0.21, abs=0.02)
    height, width = (box[:, 0].any(axis).float().mean(1) for axis in (2, 1))
    ratio = height / width
    assert 2.5 < ratio.max() < 3.4
    assert 2.5 < (1 / ratio).max() < 3.4
    assert (ratio > 1).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_box_as_large_as_the_image_is_the_image():
    box = Boxes(area=(1.0, 1.0), aspect=3.0).sample(5, SIZE, torch.Generator()).box
    assert box.all()


def test_boxes_lie_anywhere():
    reached = draw("boxes", 300).box[:, 0]
    assert reached.any(2).any(0).all()
    assert reached.any(1).any(0).all()
    in_the_middle, at_the_edge = reached[:, 20, 30].sum(), reached[:, 20, 0].sum()
    assert in_the_middle > 60 > at_the_edge


def test_partners_are_any_image_of_the_batch_each_once():
    drawn = [draw("boxes", 6, seed).partner for seed in range(40)]
    assert all(torch.equal(partner.sort().values, torch.arange(6)) for partner in drawn)
    assert len(torch.stack(drawn)[:, 0].unique()) == 6


def test_labelled_and_unlabelled_are_partners():
    mixture = draw("labelled", 6)
    assert mixture.partner.tolist() == [3, 4, 5, 0, 1, 2]
    # Two thirds of each side, up to the rounding to pixels.
    assert mixture.box[:, 0].any(2).sum(1).sub(SIZE[0] * 2 / 3).abs().max() < 1
    assert mixture.box[:, 0].any(1).sum(1).sub(SIZE[1] * 2 / 3).abs().max() < 1


def test_what_is_in_the_box_comes_from_the_partner():
    mixture = draw("boxes", 4)
    values = torch.rand(4, 3, *SIZE)
    mixed = mixture(values)
    for n in range(4):
        inside = mixture.box[n, 0]
        assert torch.equal(mixed[n][:, inside], values[mixture.partner[n]][:, inside])
        assert torch.equal(mixed[n][:, ~inside], values[n][:, ~inside])
