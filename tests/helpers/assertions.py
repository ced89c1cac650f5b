"""Assertions that say which function and which argument they are about."""

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch


def bits(tensor: torch.Tensor) -> np.ndarray:
    """Return the bit patterns of a tensor: comparable where values are not (NaN, -0)."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().cpu().contiguous().view(integer[tensor.element_size()]).numpy()


def assert_bits_equal(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Assert equality bit for bit, dtype and shape included."""
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    np.testing.assert_array_equal(bits(actual), bits(expected), err_msg=what)


def assert_close(
    actual: torch.Tensor | np.ndarray,
    expected: torch.Tensor | np.ndarray,
    what: str,
    *,
    atol: float,
) -> None:
    """Assert that shapes agree and no value is further away than atol; NaN equals NaN."""
    actual, expected = (
        x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        for x in (actual, expected)
    )
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=what)


@contextlib.contextmanager
def raises(error: type[Exception], *parts: str) -> Iterator[None]:
    """Assert that an error is raised whose message holds all the parts, in this order."""
    with pytest.raises(error, match=".*".join(re.escape(part) for part in parts)):
        yield
