"""Hypothesis profiles and fixtures that all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# `benchmarks`, also under plain `pytest`, behind the installed packages.
sys.path.append(str(Path(__file__).parents[1]))

# No deadline: the first example of a test may load a library, and machines differ in speed.
hypothesis.settings.register_profile(
    "quick", max_examples=40, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that the operators run on; `-m cuda` selects the GPU's tests."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def threads() -> Iterator[list[int]]:
    """Thread counts to compare; the count in force comes back afterwards."""
    before = torch.get_num_threads()
    yield [1, 2, 3, 5]
    torch.set_num_threads(before)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of made-up radiographs laid out as JSRT."""
    from made_up import write_tree  # here: the operators' tests run without what it imports

    write_tree(tmp_path)
    return tmp_path
