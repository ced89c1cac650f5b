"""The arithmetic that host and device share, reached through tcwarp._C."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import EXTREME_VALUES, PADDING_MODES

from tcwarp import _C, _native, reference

LARGEST, SMALLEST = 2**31 - 1, -(2**31)
words = st.integers(0, 2**32 - 1)
indices = st.one_of(
    st.integers(-50, 50),
    st.integers(SMALLEST, LARGEST),
    st.sampled_from([SMALLEST, SMALLEST + 1, -(2**30), -1, 0, 1, 2**30, LARGEST - 1, LARGEST]),
)
sizes = st.one_of(st.integers(1, 9), st.integers(1, 2**30), st.just(2**30))


@given(st.tuples(words, words, words, words), st.tuples(words, words))
@example((0, 0, 0, 0), (0, 0))
@example((2**32 - 1,) * 4, (2**32 - 1,) * 2)
@example((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
def test_philox(counter, key):
    assert tuple(_C.philox4x32(counter, key)) == reference.philox4x32(counter, key)


def long_pi() -> np.longdouble:
    return 4 * np.arctan(np.longdouble(1))


# The ends, where the logarithm is small and the sine is; the turns between octants; powers of two,
# between which the exponent changes; and anything.
WORDS = np.unique(
    np.concatenate(
        [
            *(np.arange(-300, 300) + k * 2**29 for k in range(9)),
            *((2.0 ** (np.arange(64) / 2)).astype(np.int64) + k for k in (-1, 0, 1)),
            np.random.default_rng(0).integers(0, 2**32, 20_000),
        ]
    ).clip(0, 2**32 - 1)
)


def test_normal_radius():
    radius = np.array([_C.normal_radius(int(word)) for word in WORDS])
    rest = (np.longdouble(2**32) - WORDS - np.longdouble(0.5)) / 2**32
    expected = np.sqrt(-2 * np.log1p(-rest))
    assert np.abs(radius / expected - 1).max() < 4e-16


def test_sine_of_turn():
    sine = np.array([_C.sine_of_turn(int(word)) for word in WORDS])
    # Mirrored into [-1/4, 1/4] of a turn, which is exact, so that small sines have all digits.
    turn = (WORDS + np.longdouble(0.5)) / 2**32
    turn = np.where(turn > 0.75, turn - 1, np.where(turn > 0.25, 0.5 - turn, turn))
    assert np.abs(sine / np.sin(2 * long_pi() * turn) - 1).max() < 4e-16


@pytest.mark.parametrize("code, padding_mode", list(enumerate(PADDING_MODES)))
@given(indices, sizes)
def test_pad_index(code, padding_mode, index, size):
    assert _C.pad_index(index, size, code) == reference.pad_index(index, size, padding_mode)


@given(st.integers(0, LARGEST), st.one_of(st.integers(1, 9), st.integers(1, LARGEST)))
@example(LARGEST, LARGEST)
@example(LARGEST, 1)
@example(2**30, 2**30 + 1)
def test_quotient(value, divisor):
    assert _C.quotient(value, divisor) == value // divisor
    multiple = value - value % divisor  # where a quotient that is off by one would show
    assert _C.quotient(multiple, divisor) == value // divisor
    if multiple:
        assert _C.quotient(multiple - 1, divisor) == value // divisor - 1


def test_pad_index_refuses_an_unknown_code():
    with pytest.raises(ValueError, match="padding_mode must be 0, 1 or 2"):
        _C.pad_index(0, 4, 3)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(0.5)
@example(-0.5)
@example(1.5)
@example(-1.5)
@example(float(np.float32(0.49999997)))
@example(float(np.float32(-0.49999997)))
@example(float(np.float32(-0.50000006)))
@example(8388607.5)
@example(-8388607.5)
@example(1e-45)
@example(-1e-45)
def test_nearest_offset(displacement):
    limit = reference.LARGEST_DISPLACEMENT
    clamped = min(max(displacement, -limit), limit)
    # Single precision as given: the specification rounds it without losing a digit.
    assert _C.nearest_offset(displacement) == reference.nearest_offset(clamped)


@pytest.mark.parametrize("displacement", EXTREME_VALUES)
def test_nearest_offset_fits_an_index(displacement):
    assert abs(_C.nearest_offset(displacement)) <= 2**30


def test_halves_round_up():
    halves = np.arange(-100, 100) + 0.5
    assert [_C.nearest_offset(u) for u in halves] == list(range(-99, 101))


def test_build_info_names_what_was_built():
    info = _native.build_info()
    assert info["torch_target"] == "0x020a000000000000"
    assert info["compiler"]
    assert {"cuda", "cuda_architectures", "torch_headers"} <= info.keys()
