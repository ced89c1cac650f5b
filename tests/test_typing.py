"""The types that users see."""

from pathlib import Path

import pytest
from processes import python

import tcseg
import tcwarp

HERE = Path(__file__).parent


@pytest.mark.parametrize("package", [tcwarp, tcseg])
def test_packages_say_that_they_have_types(package):
    assert (Path(package.__file__).parent / "py.typed").exists()


def test_a_file_of_a_user_is_right_to_mypy():
    pytest.importorskip("mypy")
    cache = HERE.parent / ".mypy_cache" / "user"  # that of `make lint` is of other options
    options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--follow-imports=silent"]
    environment = {"MYPYPATH": str(HERE.parent), "PATH": ""}
    result = python("-m", "mypy", *options, "typing_user.py", cwd=HERE, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
