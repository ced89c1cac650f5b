"""Where the files of this checkout lie."""

from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

# It passes paths to a linker without quoting them.
inductor = pytest.mark.skipif(
    " " in torch.__file__, reason="torch's compiler fails where torch lies on a path with a space"
)
