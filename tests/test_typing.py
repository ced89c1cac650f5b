"""The types that users see."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tcseg
import tcwarp

HERE = Path(__file__).parent


@pytest.mark.parametrize("package", [tcwarp, tcseg])
def test_packages_say_that_they_have_types(package):
    assert (Path(package.__file__).parent / "py.typed").exists()


def test_a_file_of_a_user_is_right_to_mypy():
    pytest.importorskip("mypy")
    cache = HERE.parent / ".mypy_cache" / "user"  # that of `make lint` is of other options
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}"]
    result = subprocess.run(
        [*command, "--follow-imports=silent", "typing_user.py"],
        capture_output=True,
        text=True,
        cwd=HERE,
        env={"MYPYPATH": str(HERE.parent), "PATH": ""},
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_file_of_a_user_is_right_to_pyright(tmp_path):
    pytest.importorskip("basedpyright")
    settings = {
        "include": [str(HERE / "typing_user.py")],
        "extraPaths": [str(HERE.parent)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",  # mistakes must be found
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    result = subprocess.run([*command, "-p", str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
