"""What is imported and said where only a part was installed, or nothing was built in place."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from checkout import ROOT
from click.testing import CliRunner

from tcwarp import _native

TRAINER = (
    *("scipy", "click", "rich", "PIL", "monai", "matplotlib", "safetensors", "msgspec"),
    *("jinja2", "tifffile"),
)
OPTIONAL = (
    *("pydicom", "highdicom", "nibabel", "tensorboard", "onnx", "onnxscript", "onnxruntime"),
    *("skimage", "kornia", "cv2"),
)


def python(code: str, *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return processes.python("-c", code, cwd=cwd, env=os.environ | environment)


# ------------------------------------------------------------------------------------- in a clone


@pytest.fixture
def clone(tmp_path):
    """A clone in which nothing was built; beside it `site`, with a package that was."""
    clone, site = tmp_path / "a clone", tmp_path / "site"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "tcwarp", clone / "tcwarp", ignore=ignored)
    shutil.copytree(ROOT / "csrc", clone / "csrc")
    (site / "tcwarp").mkdir(parents=True)
    shutil.copy(_native.LIBRARY, site / "tcwarp")
    return clone


def test_a_clone_uses_the_library_that_is_installed(clone):
    code = "import tcwarp; print(tcwarp.__file__, tcwarp._native.LIBRARY, sep=chr(10))"
    result = python(code, cwd=clone, PYTHONPATH=str(clone.parent / "site"))
    assert result.returncode == 0, result.stderr
    package, library = map(Path, result.stdout.splitlines())
    assert package.parent == clone / "tcwarp"
    assert library.parent == clone.parent / "site" / "tcwarp"


def test_a_library_of_other_sources_is_not_used(clone):
    (clone / "csrc" / "schemas.cpp").write_text("others")
    result = python("import tcwarp", cwd=clone, PYTHONPATH=str(clone.parent / "site"))
    last = result.stderr.splitlines()[-1]
    assert "was built from other sources than those in" in last
    assert last.endswith("run `pip install .` there again")


def test_what_to_run_where_nothing_is_built(monkeypatch):
    monkeypatch.setattr(_native, "PathFinder", importlib.util)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, path=None: None)
    with pytest.raises(ImportError, match=r"tcwarp is not built.*run `pip install .` in the"):
        _native._find_library()


def test_the_sources_are_those_of_the_library():
    assert _native._identity(ROOT / "csrc") == _native.build_info()["identity"]


# --------------------------------------------------------------------------------- without extras


def test_the_operator_needs_torch_and_numpy_only():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({TRAINER + OPTIONAL!r}))  # their import fails
import torch, tcwarp
assert "tcwarp.reference" not in sys.modules
image, field = torch.rand(1, 1, 8, 8), torch.zeros(1, 2, 8, 8)
tcwarp.warp(image, field, mode="linear")
assert tcwarp.reference.warp(image.numpy(), field.numpy(), "linear").shape == image.shape
from tcwarp import reference
assert reference is tcwarp.reference
try:
    import tcwarp.monai
except ImportError as error:
    print(error)
import tcseg
try:
    tcseg.load
except ImportError as error:
    print(error)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    monai, trainer = result.stdout.splitlines()
    assert monai == 'MONAI is not installed; run `pip install "tcwarp[monai]"`'
    assert trainer.endswith(' is not installed; run `pip install "tcwarp[tcseg]"`')


@pytest.mark.slow
def test_the_trainer_needs_none_of_what_only_some_commands_need():
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import tcseg
for module in pkgutil.walk_packages(tcseg.__path__, "tcseg."):
    importlib.import_module(module.name)
assert "torch._dynamo" not in sys.modules  # seconds, for who compiles
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_the_command_without_its_packages():
    code = "import sys; sys.modules['{}'] = None; from tcseg.__main__ import main; main()"
    result = python(code.format("click"))
    expected = 'Error: click is not installed; run `pip install "tcwarp[tcseg]"`\n'
    assert (result.returncode, result.stderr) == (1, expected)


def test_a_command_without_its_packages(monkeypatch):
    from tcseg.cli import main

    monkeypatch.delitem(sys.modules, "tcseg.cli.doctor", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    for name in [name for name in sys.modules if name.startswith("rich.")]:
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(main, ["doctor"])
    expected = 'Error: rich is not installed; run `pip install "tcwarp[tcseg]"`\n'
    assert (result.exit_code, result.stderr) == (1, expected)


@pytest.mark.parametrize(
    ("file", "package", "extra"),
    [
        ("a.nii", "nibabel", "nifti"),
        ("a.dcm", "pydicom", "dicom"),
        ("a.mha", "SimpleITK", "itk"),
    ],
)
def test_a_file_whose_reader_is_missing(monkeypatch, tmp_path, file, package, extra):
    from tcseg.errors import DataError
    from tcseg.io.images import read_pictures

    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / file
    path.write_bytes(bytes(200))
    with pytest.raises(DataError) as caught:
        list(read_pictures(path))
    advice = f'{package} is not installed; run `pip install "tcwarp[{extra}]"`'
    assert str(caught.value) == f"{path}: cannot be read, {advice}"


def test_onnx_without_its_packages(monkeypatch, tmp_path):
    from tcseg.extras import MissingPackageError
    from tcseg.use.export import export

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r'run `pip install "tcwarp\[export\]"`$'):
        export(None, tmp_path / "network.onnx", "onnx")


def test_a_run_without_tensorboard(monkeypatch, tmp_path):
    from tcseg.runs.config import Config
    from tcseg.runs.folder import RunFolder

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with RunFolder.create(tmp_path / "run", Config(), resume=False) as run:
        run.log({"step": 1, "loss": 0.5})
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "metrics.csv" in names and not any("tfevents" in name for name in names)


def test_another_missing_module_keeps_its_own_message():
    from tcseg.extras import needs

    with pytest.raises(ModuleNotFoundError, match=r"No module named 'tcseg\.no'"), needs("dicom"):
        importlib.import_module("tcseg.no")


def test_benchmarks_without_their_packages(monkeypatch):
    from benchmarks import conftest

    monkeypatch.setattr(conftest.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pytest.UsageError, match=r'run `pip install "tcwarp\[bench\]"`$'):
        conftest.pytest_configure(None)
