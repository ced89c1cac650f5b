"""That `make sanitize` tests the library it built, and that its sanitizers bite."""

import os
from pathlib import Path

import pytest
from processes import python

import tcwarp

EXPECTED = os.environ.get("TCWARP_EXPECTED")
pytestmark = pytest.mark.skipif(EXPECTED is None, reason="only under make sanitize")


def test_the_sanitized_library_is_the_one_under_test():
    assert EXPECTED is not None
    assert Path(EXPECTED).resolve() in Path(tcwarp._native.LIBRARY).resolve().parents


def test_an_error_would_be_found():
    """A displacement of fewer samples than its image, past the checks: reads beyond its end."""
    script = (
        "import torch, tcwarp\n"
        "image, field = torch.zeros(64, 1, 64, 64), torch.zeros(2, 2, 64, 64)\n"
        "torch.ops.tcwarp.warp_backward_input(image, field, 0, 0, False, None)\n"
    )
    result = python("-c", script)
    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr
