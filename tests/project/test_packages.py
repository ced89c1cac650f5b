"""The source distribution and the wheel that are made of this checkout."""

import ast
import os
import re
import shutil
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from checkout import ROOT
from processes import python, run

import tcwarp

# What setuptools adds.
GENERATED = re.compile(r"PKG-INFO|setup\.cfg|tcwarp\.egg-info/.*")
# The folder with packages made of these sources; without, they are made here.
MADE = os.environ.get("TCWARP_DIST")


def tracked() -> set[str]:
    """Return the files that git holds."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no clone, or no git")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = run(command, cwd=ROOT)
    assert listed.returncode == 0, listed.stderr
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def build(kind: str, source: Path, target: Path) -> Path:
    """Make a package with the tools that are installed."""
    command = ["-m", "build", "--no-isolation", f"--{kind}", "-o", target, source]
    result = python(*command, env=os.environ | {"TCWARP_PORTABLE": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    (package,) = target.iterdir()
    return package


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    pytest.importorskip("build")
    # A copy, as setuptools writes beside the sources; with files that git does not hold.
    source = tmp_path_factory.mktemp("sources") / "a checkout"
    large = {".venv", ".git", "build", "runs", ".mypy_cache", ".hypothesis"}
    shutil.copytree(ROOT, source, ignore=lambda folder, _: large if Path(folder) == ROOT else ())
    (source / "tests" / "__pycache__").mkdir(exist_ok=True)
    for name in ("tcwarp/_cpu.so", "tests/__pycache__/a.pyc", "runs.pt", "private.txt"):
        (source / name).touch()
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


def test_the_source_distribution_holds_what_git_holds(sdist):
    with tarfile.open(sdist) as archive:
        names = [member.name.split("/", 1)[1] for member in archive if member.isfile()]
    assert {name for name in names if not GENERATED.fullmatch(name)} == tracked()


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    if MADE:
        (made,) = (ROOT / MADE).glob("*.whl")
        return made
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow  # compiles, where no wheel is at hand
def test_the_wheel_serves_every_python_and_works_elsewhere(wheel, tmp_path):
    assert re.fullmatch(rf"tcwarp-{tcwarp.__version__}-py3-none-\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        text = archive.read(metadata).decode()
    packages = {name for name in tracked() if name.startswith(("tcwarp/", "tcseg/"))}
    libraries = {name for name in names if name.endswith(".so")}
    assert names - libraries == packages
    assert libraries - {"tcwarp/_cuda.so"} == {"tcwarp/_cpu.so"}
    requirements = re.findall(r"^Requires-Dist: ([^;\n]+)$", text, re.M)
    assert sorted(requirements) == ["numpy", "torch>=2.10"]

    site = tmp_path / "a site"
    pip = python("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    assert pip.returncode == 0, pip.stderr
    code = "import tcwarp.selftest as test; print(test.__file__); raise SystemExit(test.main())"
    result = python("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)})
    assert result.returncode == 0, result.stdout + result.stderr
    assert Path(result.stdout.splitlines()[0]).parent == site / "tcwarp"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tcwarp.__version__"}
    # What has to repeat it.
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tcwarp.__version__
    heading = rf"^## \[{re.escape(tcwarp.__version__)}\] - {citation['date-released']}$"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert project["project"]["requires-python"] == f">={oldest_python()}"


def oldest_python() -> str:
    """Return the Python that the build backend asks for."""
    for node in ast.parse((ROOT / "build_backend.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OLDEST_PYTHON":
            return ast.literal_eval(node.value)
    raise AssertionError("OLDEST_PYTHON is missing")


def test_the_workflow_builds_for_every_python_that_is_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    prefix = "Programming Language :: Python :: 3."
    promised = [c.removeprefix(prefix) for c in project["project"]["classifiers"] if prefix in c]
    wheels = project["tool"]["cibuildwheel"]["build"]
    assert wheels == [f"cp3{minor}-manylinux_x86_64" for minor in promised]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "packages.yml").read_text())
    assert {"test", "sdist", "wheels", "publish"} <= workflow["jobs"].keys()
