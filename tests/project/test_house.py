"""The floors of tcseg: imports run downwards only, and in no circle."""

import os
import shutil
import sys

import pytest
from checkout import ROOT
from processes import run


def test_imports_run_downwards():
    pytest.importorskip("importlinter")
    command = shutil.which("lint-imports", path=os.path.dirname(sys.executable))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = run([command, "--no-cache", "--no-logo"], cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stdout
    assert "Contracts: 2 kept, 0 broken." in result.stdout
