"""The types that users see."""

import json
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from processes import python

import tcseg
import tcwarp

HERE = Path(__file__).parent


@pytest.mark.parametrize("package", [tcwarp, tcseg])
def test_packages_say_that_they_have_types(package):
    assert (Path(package.__file__).parent / "py.typed").exists()


@pytest.mark.slow
def test_a_file_of_a_user_is_right_to_mypy():
    pytest.importorskip("mypy")
    cache = ROOT / ".mypy_cache" / "user"  # that of `make lint` was run with other options
    options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--follow-imports=silent"]
    environment = {"MYPYPATH": str(ROOT), "PATH": ""}
    result = python("-m", "mypy", *options, "typing_user.py", cwd=HERE, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_a_file_of_a_user_is_right_to_pyright(tmp_path):
    pytest.importorskip("basedpyright")
    settings = {
        "include": [str(HERE / "typing_user.py")],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",  # mistakes must be found
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    options = ["--pythonpath", sys.executable, "-p", str(tmp_path)]
    result = python("-m", "basedpyright", *options)
    assert result.returncode == 0, result.stdout + result.stderr
