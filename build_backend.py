"""The build backend: that of setuptools, and what would fail later fails before any download.

The build reads headers of torch and links to it, but does not import it. Where the environment to
install into has a torch, the build uses that one, under build isolation too; only elsewhere is
torch, whose wheels are of gigabytes, a requirement of the build.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

OLDEST_PYTHON = "3.11"
OLDEST_TORCH = "2.10"


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


class Torch(NamedTuple):
    """The torch to build with."""

    folder: Path
    version: str
    cuda: str | None

    @property
    def fits(self) -> bool:
        """Whether its stable ABI is recent enough."""
        return release(self.version) >= release(OLDEST_TORCH)

    @property
    def includes(self) -> list[str]:
        """Folders of headers."""
        folder = self.folder / "include"
        return [str(folder), str(folder / "torch" / "csrc" / "api" / "include")]


def find_torch() -> Torch | None:
    """Return the torch that can be imported, else that of the environment behind the isolation."""
    spec = importlib.util.find_spec("torch")
    folders = list(spec.submodule_search_locations or []) if spec else []
    folders += [os.path.join(sysconfig.get_path(name), "torch") for name in ("purelib", "platlib")]
    for folder in map(Path, folders):
        if (folder / "version.py").exists() and (folder / "include").is_dir():
            facts = runpy.run_path(str(folder / "version.py"))
            return Torch(folder, str(facts["__version__"]), facts.get("cuda"))
    return None


def check_machine() -> None:
    """End with one line where Python is too old, with some where there is no C++ compiler."""
    if sys.version_info < release(OLDEST_PYTHON):
        sys.exit(
            f"tcwarp: needs Python {OLDEST_PYTHON} or newer; {sys.executable} "
            f"is {'.'.join(map(str, sys.version_info[:3]))}"
        )
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        sys.exit(
            f"tcwarp: no C++ compiler found ({compiler} is not on the path). Install one:\n"
            "    Debian, Ubuntu: sudo apt-get install g++\n"
            "    Fedora:         sudo dnf install gcc-c++\n"
            "    macOS:          xcode-select --install\n"
            "or set CXX to the compiler to use, and try again."
        )


def check_tools() -> Torch:
    """Return the torch to build with; end where it or another tool of the build is missing."""
    check_machine()
    torch = find_torch()
    if torch is None or not torch.fits:
        found = f"{torch.version} is installed" if torch else "there is none"
        sys.exit(
            f"tcwarp: building needs torch {OLDEST_TORCH} or newer, {found}; "
            "either run plain `pip install .`, or install it first"
        )
    missing = [name for name in ("pybind11", "ninja") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"tcwarp: building needs more; run `pip install {' '.join(missing)}` first")
    return torch


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what the build needs beyond `requires` of pyproject.toml."""
    check_machine()
    torch = find_torch()
    # As the requirement of the package itself, so that one download serves both.
    needed = [] if torch and torch.fits else [f"torch>={OLDEST_TORCH}"]
    return [*build_meta.get_requires_for_build_wheel(config_settings), *needed]


def prepare_metadata_for_build_wheel(folder: str, config_settings: Any = None) -> str:
    """Prepare the metadata; without isolation, this is the first that is called."""
    check_tools()
    return str(build_meta.prepare_metadata_for_build_wheel(folder, config_settings))


get_requires_for_build_editable = get_requires_for_build_wheel


def prepare_metadata_for_build_editable(folder: str, config_settings: Any = None) -> str:
    """Prepare the metadata of an editable installation."""
    check_tools()
    return str(build_meta.prepare_metadata_for_build_editable(folder, config_settings))
