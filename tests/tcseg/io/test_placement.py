"""Volumes fitted into frames, or resampled to a spacing, and brought back."""

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from tcseg.io.placement import Placement, as_masks, resize

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 40), st.integers(1, 40))


def linear(values, count, axis):
    """Linear interpolation along an axis, half pixels at the ends, the border repeated."""
    n = values.shape[axis]
    places = (np.arange(count) + 0.5) * n / count - 0.5
    low = np.floor(places).astype(int)
    part = np.expand_dims(places - low, tuple(range(1, values.ndim - axis)))
    first, second = (np.take(values, np.clip(k, 0, n - 1), axis) for k in (low, low + 1))
    return first * (1 - part) + second * part


@pytest.mark.parametrize("shape", [(8, 9, 11), (5, 18, 20), (12, 9, 10), (5, 9, 10)])
def test_each_axis_grows_linearly(shape):
    volume = np.random.default_rng(0).random((5, 9, 10), np.float32)
    expected = volume.astype(float)
    for axis, count in enumerate(shape):
        expected = linear(expected, count, axis)
    assert resize(volume, shape) == pytest.approx(expected, abs=1e-6)


def averages(values, count, axis):
    """Averages over equal parts of an axis, from what has summed up to where each part ends."""
    n = values.shape[axis]
    ends = np.linspace(0, n, count + 1)
    summed = np.insert(values.cumsum(axis), 0, 0, axis)
    upto = np.apply_along_axis(lambda line: np.interp(ends, np.arange(n + 1), line), axis, summed)
    return np.diff(upto, axis=axis) * count / n


def test_each_axis_shrinks_by_averages():
    volume = np.random.default_rng(0).random((6, 8, 9), np.float32)
    expected = volume.reshape(3, 2, 4, 2, 3, 3).mean(axis=(1, 3, 5))
    assert resize(volume, (3, 4, 3)) == pytest.approx(expected, abs=1e-6)


@given(SHAPES, SHAPES)
def test_axes_that_shrink_and_axes_that_grow_are_each_done_their_way(shape, wanted):
    volume = np.random.default_rng(0).random(shape, np.float32)
    expected = volume.astype(float)
    for axis, count in enumerate(wanted):
        done = averages if count < shape[axis] else linear
        expected = done(expected, count, axis)
    assert resize(volume, wanted) == pytest.approx(expected, abs=1e-5)
    assert resize(volume[0], wanted[1:]) == pytest.approx(resize(volume[:1], (1, *wanted[1:]))[0])


@given(SHAPES, SHAPES, st.integers(0, 5), st.integers(1, 6))
def test_some_planes_are_those_of_the_whole(shape, wanted, first, count):
    volume = np.random.default_rng(0).random(shape, np.float32)
    rows = slice(min(first, wanted[0] - 1), min(first + count, wanted[0]))
    assert resize(volume, wanted, rows) == pytest.approx(resize(volume, wanted)[rows], abs=1e-5)


@given(SHAPES, st.sampled_from([16, "16x48x32", "original"]))
def test_a_volume_fills_one_side_and_comes_back(shape, size):
    place = Placement.of(shape, size)
    assert any(np.equal(place.inner, place.size))
    assert (np.array(place.inner) <= place.size).all()
    fitted = place.fit(np.ones((2, *shape), np.float32))
    assert fitted.shape == (2, *place.size)
    assert fitted.sum() == pytest.approx(2 * np.prod(place.inner))
    assert fitted[:, *place.window].min() == pytest.approx(1)
    restored = place.restore(fitted)
    assert restored.shape == (2, *shape)
    assert restored.min() == pytest.approx(1)


def test_a_spacing_makes_as_many_voxels_as_it_takes():
    place = Placement.of((10, 200, 160), "original", (10, 1.5, 1.5), (5, 2, 2))
    assert place.inner == place.size == (20, 150, 120)
    assert place.corner == (0, 0, 0)
    assert place.spacing((10, 1.5, 1.5)) == (5, 2, 2)
    # No whole number of voxels: they are a little larger or smaller than wanted.
    place = Placement.of((3, 10, 10), "original", (1, 1, 1), (2, 3, 30))
    assert place.size == (2, 3, 1)
    assert place.spacing((1, 1, 1)) == pytest.approx((1.5, 10 / 3, 10))


def test_thick_planes_are_not_squeezed_into_a_cube():
    # 100 x 384 x 384 mm in 48 voxels a side: 8 mm each.
    place = Placement.of((10, 256, 256), 48, (10, 1.5, 1.5), (1, 1, 1))
    assert place.inner == (12, 48, 48)
    assert place.spacing((10, 1.5, 1.5)) == pytest.approx((100 / 12, 8, 8))
    # Voxels as they are would leave two planes.
    assert Placement.of((10, 256, 256), 48).inner == (2, 48, 48)
    # Other proportions of voxels on request.
    assert Placement.of((10, 256, 256), 48, (10, 1.5, 1.5), (4, 1, 1)).inner == (3, 48, 48)


@given(SHAPES, st.floats(0.3, 4), st.floats(0.3, 4), st.sampled_from([16, "original"]))
def test_a_placement_is_known_by_the_voxels_that_it_makes(shape, depth, width, size):
    """As evaluation does, which does not know what spacing was asked for."""
    own = (2.5, 0.7, 0.9)
    place = Placement.of(shape, size, own, (depth, 1.1, width))
    again = Placement.of(shape, place.size, own, place.spacing(own))
    assert again == place


def test_a_ball_comes_back_where_it_was():
    z, y, x = np.indices((12, 50, 40))
    ball = ((z - 6) / 4) ** 2 + ((y - 30) / 15) ** 2 + ((x - 18) / 12) ** 2 < 1
    for place in (
        Placement.of(ball.shape, "original", (5, 1, 1), (2, 1.7, 1.7)),
        Placement.of(ball.shape, 32, (5, 1, 1), (1, 1, 1)),
    ):
        fitted = place.fit_masks(ball[None], disjoint=False)
        centre = np.array(scipy.ndimage.center_of_mass(fitted[0, *place.window]))
        own = scipy.ndimage.center_of_mass(ball)
        scale = np.array(place.inner) / ball.shape
        assert centre == pytest.approx((np.array(own) + 0.5) * scale - 0.5, abs=0.15)
        shares = np.concatenate([fitted, ~fitted]).astype(np.float32)
        back = place.restore_masks(shares, disjoint=False)[0]
        assert (back & ball).sum() / (back | ball).sum() > 0.85


@pytest.mark.parametrize("voxel, least", [(1.03, 0.98), (1.1, 0.96), (0.97, 0.98)])
def test_a_small_ball_keeps_its_shape_where_voxels_hardly_change(voxel, least):
    places = np.indices((30, 30, 30)) - 14.3
    ball = (places**2).sum(axis=0) < 36
    place = Placement.of(ball.shape, "original", (1.0, 1.0, 1.0), (voxel,) * 3)
    fitted = place.fit_masks(ball[None], disjoint=False)
    back = place.restore_masks(np.concatenate([fitted, ~fitted]).astype(np.float32), False)[0]
    # With voxels taken whole or not at all: 0.75, 0.93 and 0.76.
    assert (back & ball).sum() / (back | ball).sum() >= least


@pytest.mark.parametrize("shape", [(5, 30, 20), (12, 9, 9), (1, 16, 16), (20, 3, 40)])
@pytest.mark.parametrize("disjoint", [False, True])
def test_bands_of_a_large_volume_are_those_of_the_whole(monkeypatch, shape, disjoint):
    place = Placement.of(shape, 16)
    cube = np.random.default_rng(0).random((4, 16, 16, 16), np.float32)
    whole = as_masks(place.restore(cube), disjoint)
    for band in (1, 100, 2000):
        monkeypatch.setattr("tcseg.io.placement.BAND", band)
        found = place.restore_masks(cube, disjoint)
        assert found.shape == whole.shape
        assert (found != whole).mean() < 1e-3  # but for shares that are equal to rounding


def test_masks_that_touch_leave_no_gap_in_volumes():
    labels = np.random.default_rng(0).integers(1, 4, (3, 4, 5))
    labels = labels.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    masks = labels == np.arange(1, 4).reshape(-1, 1, 1, 1)
    place = Placement.of(labels.shape, "original", (1, 1, 1), (1.3, 0.7, 1.9))
    fitted = place.fit_masks(masks, disjoint=True)
    assert (fitted.sum(axis=0) == 1).all()
    shares = place.fit(masks)
    shares = np.concatenate([shares, 1 - shares.sum(axis=0, keepdims=True)])
    assert np.array_equal(fitted, as_masks(shares, disjoint=True))
