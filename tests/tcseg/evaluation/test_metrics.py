"""Metrics: known shapes, an independent implementation, and the corner cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tcseg.evaluation.metrics import cardiothoracic_ratio, contour_distance, dice, iou, postprocess

masks = arrays(bool, (9, 11))


def square(top, left, side=20, shape=(64, 64)):
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def disc(radius, shape=(201, 201)):
    y, x = np.indices(shape) - np.array(shape).reshape(2, 1, 1) // 2
    return y**2 + x**2 <= radius**2


def test_iou_of_known_shapes():
    assert iou(square(10, 10), square(10, 10)) == 1
    assert iou(square(10, 10), square(40, 40)) == 0
    assert iou(square(10, 10), square(10, 20)) == pytest.approx(1 / 3)
    assert iou(disc(40), disc(80)) == pytest.approx(1 / 4, abs=0.01)


def test_iou_of_empty_masks():
    empty = np.zeros((4, 4), bool)
    assert math.isnan(iou(empty, empty))
    assert iou(empty, ~empty) == 0
    assert math.isnan(iou(np.zeros((0, 4)), np.zeros((0, 4))))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_iou_takes_tensors_of_any_shape_and_dtype(dtype):
    a = torch.zeros(2, 3, 4, 5)
    b = a.clone()
    a[0], b[:] = 1, 1
    assert iou(a.to(dtype), b.to(dtype)) == 0.5
    assert iou(a.to(dtype).requires_grad_(dtype.is_floating_point), b.numpy()) == 0.5


@given(masks, masks)
def test_iou_is_that_of_sets_of_pixels(a, b):
    first = set(map(tuple, np.argwhere(a)))
    second = set(map(tuple, np.argwhere(b)))
    expected = len(first & second) / len(first | second) if first | second else math.nan
    assert iou(a, b) == pytest.approx(expected, abs=0, rel=0, nan_ok=True)
    assert iou(b, a) == pytest.approx(expected, abs=0, rel=0, nan_ok=True)


@pytest.mark.parametrize("function", [iou, lambda a, b: contour_distance(a, b, 1.0)])
def test_shapes_must_agree(function):
    with pytest.raises(ValueError, match=r"one shape, got \(4, 4\) and \(4, 5\)"):
        function(np.ones((4, 4)), np.ones((4, 5)))


def test_contour_distance_of_shifted_points_and_lines():
    a, b = np.zeros((2, 10, 30), bool)
    a[3, 2], b[3, 9] = True, True
    assert contour_distance(a, b, 0.35) == pytest.approx(7 * 0.35)
    a[:], b[:] = False, False
    a[2, :], b[6, :] = True, True
    assert contour_distance(a, b, (2.0, 1.0)) == pytest.approx(8)


def test_contour_distance_of_shifted_squares():
    # A square of side s moved right by d. Its trailing side (s pixels) is d away from the other's
    # contour; of top and bottom only the pixels left behind are off it, by d - 1, ..., 1; the
    # leading side lies inside, its ends nearer to the other's top and bottom: 0, 1, ..., d - 1.
    side, shift = 20, 4
    trailing, left_behind = side * shift, 2 * sum(range(1, shift))
    leading = side * shift - 2 * sum(range(1, shift + 1))
    pixels = 4 * side - 4
    moved = contour_distance(square(10, 10), square(10, 10 + shift), 1.0)
    assert moved == pytest.approx((trailing + left_behind + leading) / pixels)


@pytest.mark.parametrize("radii", [(30, 35), (40, 80), (50, 51)])
def test_contour_distance_of_concentric_discs(radii):
    inner, outer = radii
    distance = contour_distance(disc(inner), disc(outer), 1.0)
    assert distance == pytest.approx(outer - inner, abs=0.5)
    assert contour_distance(disc(inner), disc(outer), 0.7) == pytest.approx(0.7 * distance)


def box(*sides, shape=(13, 17, 21)):
    """A box of odd sides in the middle."""
    offsets = np.indices(shape) - np.array(shape).reshape(-1, 1, 1, 1) // 2
    return (abs(offsets) <= np.array(sides).reshape(-1, 1, 1, 1) // 2).all(axis=0)


def test_surface_distance_of_a_box_in_a_box():
    spacing, inner, outer = np.array([2.5, 0.8, 1.1]), np.array([3, 5, 9]), np.array([7, 11, 15])
    surfaces = []
    for sides in (inner, outer):
        offsets = np.argwhere(box(*sides)) - np.array([6, 8, 10])
        surfaces.append(offsets[(abs(offsets) == sides // 2).any(axis=1)])
    outwards = ((outer // 2 - abs(surfaces[0])) * spacing).min(axis=1)
    beyond = np.maximum(abs(surfaces[1]) - inner // 2, 0)
    inwards = np.linalg.norm(beyond * spacing, axis=1)
    expected = np.concatenate([outwards, inwards]).mean()
    assert contour_distance(box(*inner), box(*outer), spacing) == pytest.approx(expected)


def test_surface_distance_of_shifted_slabs_is_the_distance_of_planes():
    slabs = np.zeros((2, 12, 9, 8), bool)
    slabs[0, 3], slabs[1, 8] = True, True
    assert contour_distance(*slabs, (3.0, 0.7, 0.7)) == pytest.approx(15)
    # Whole blocks, shifted along the planes: all but the sides agree.
    blocks = np.zeros((2, 12, 30, 8), bool)
    blocks[0, :, 5:15], blocks[1, :, 7:17] = True, True
    planar = contour_distance(blocks[0, 0], blocks[1, 0], (0.7, 0.7))
    assert 0 < contour_distance(*blocks, (3.0, 0.7, 0.7)) < planar


@settings(max_examples=20)
@given(
    arrays(bool, (4, 6, 7)),
    arrays(bool, (4, 6, 7)),
    st.tuples(st.floats(0.5, 5), st.floats(0.1, 3), st.floats(0.1, 3)),
)
def test_surface_distance_against_distance_transforms(a, b, spacing):
    if not (a.any() and b.any()):
        return
    # A frame of outside: the edge of the volume counts as surface.
    a, b = np.pad(a, 1), np.pad(b, 1)
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    distances = [
        ndimage.distance_transform_edt(~other, sampling=spacing)[surface]
        for surface, other in (surfaces, surfaces[::-1])
    ]
    expected = np.concatenate(distances).mean()
    assert contour_distance(a, b, spacing) == pytest.approx(expected, abs=1e-9)


def test_contour_distance_counts_the_edge_of_the_image_as_contour():
    whole = np.ones((11, 11), bool)
    point = np.zeros((11, 11), bool)
    point[5, 5] = True
    ring = np.argwhere(np.pad(np.zeros((9, 9)), 1, constant_values=1)) - 5
    distances = np.hypot(*ring.T)
    expected = (distances.sum() + 5) / (len(distances) + 1)
    assert contour_distance(whole, point, 1.0) == pytest.approx(expected)


def test_contour_distance_of_empty_masks():
    empty = np.zeros((8, 8), bool)
    assert math.isnan(contour_distance(empty, empty, 1.0))
    assert math.isnan(contour_distance(empty, ~empty, 1.0))
    assert math.isnan(contour_distance(~empty, empty, 1.0))


@pytest.mark.parametrize("spacing", [0, -1, math.nan, math.inf, (1, 0)])
def test_contour_distance_refuses_a_senseless_spacing(spacing):
    with pytest.raises(ValueError, match="spacing must be positive and finite"):
        contour_distance(np.ones((4, 4)), np.ones((4, 4)), spacing)


@settings(max_examples=50)
@given(masks, masks, st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)))
def test_contour_distance_against_plain_loops(a, b, spacing):
    def contour(mask):
        padded = np.pad(mask, 1)
        return [
            np.multiply((y, x), spacing)
            for y, x in np.argwhere(mask)
            if not all(
                padded[y + 1 + dy, x + 1 + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))
            )
        ]

    if not (a.any() and b.any()):
        return
    first, second = contour(a), contour(b)
    nearest = [min(math.dist(p, q) for q in second) for p in first]
    nearest += [min(math.dist(p, q) for q in first) for p in second]
    assert contour_distance(a, b, spacing) == pytest.approx(np.mean(nearest), abs=1e-9)


def test_contour_distance_against_monai():
    metrics = pytest.importorskip("monai.metrics")
    random = np.random.default_rng(0)
    for _ in range(5):
        a, b = np.zeros((2, 48, 40), bool)
        for mask in (a, b):
            for _ in range(3):
                top, left = random.integers(0, 30, 2)
                mask[top : top + random.integers(3, 20), left : left + random.integers(3, 20)] = (
                    True
                )
        expected = metrics.compute_average_surface_distance(
            torch.from_numpy(a)[None, None],
            torch.from_numpy(b)[None, None],
            include_background=True,
            symmetric=True,
            spacing=(0.5, 0.8),
        )
        assert contour_distance(a, b, (0.5, 0.8)) == pytest.approx(float(expected), rel=1e-5)


def test_postprocess_keeps_the_largest_component_and_fills_it():
    mask = square(5, 5, 20)
    wanted = mask.copy()
    mask[10:13, 10:13] = False  # a hole
    mask[40:45, 40:45] = True  # something smaller elsewhere
    result = postprocess(torch.from_numpy(mask))
    assert result.dtype == bool
    np.testing.assert_array_equal(result, wanted)


def test_postprocess_connects_over_corners_and_leaves_bays_open():
    mask = np.zeros((8, 8), bool)
    mask[1, 1] = mask[2, 2] = True  # connected over a corner: larger than the single pixel
    mask[6, 6] = True
    assert postprocess(mask).sum() == 2
    bay = square(1, 1, 6, (8, 8))
    bay[3, 3:] = False
    np.testing.assert_array_equal(postprocess(bay), bay)


def test_postprocess_of_an_empty_mask_is_empty():
    assert not postprocess(np.zeros((5, 5), bool)).any()


@given(masks)
def test_postprocess_is_idempotent(mask):
    once = postprocess(mask)
    np.testing.assert_array_equal(postprocess(once), once)


def test_dice_of_known_shapes():
    assert dice([1, 1, 1, 0], [0, 1, 1, 1]) == pytest.approx(4 / 6)
    assert math.isnan(dice([0, 0], [0, 0]))
    assert dice([1, 0], [0, 1]) == 0
    with pytest.raises(ValueError, match=r"dice: masks must have one shape"):
        dice([1], [1, 0])


@given(masks, masks)
def test_dice_and_iou_say_the_same(a, b):
    overlap = iou(a, b)
    assert dice(a, b) == pytest.approx(2 * overlap / (1 + overlap), nan_ok=True)


def test_cardiothoracic_ratio_of_known_shapes():
    heart, lungs = np.zeros((20, 100)), np.zeros((20, 100))
    heart[10:15, 40:70] = heart[12, 75] = 1
    lungs[2:18, 10:40] = lungs[5:9, 60:90] = 1
    assert cardiothoracic_ratio(heart, lungs) == pytest.approx(36 / 80)
    assert np.isnan(cardiothoracic_ratio(heart, 0 * lungs))
    assert np.isnan(cardiothoracic_ratio(0 * heart, lungs))
    with pytest.raises(ValueError, match=r"cardiothoracic_ratio: masks must have shape \(H, W\)"):
        cardiothoracic_ratio([1, 1], [1, 1])
