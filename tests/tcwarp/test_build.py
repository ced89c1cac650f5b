"""What the build does with what it finds, and what is said of a CUDA library that does not fit."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from checkout import ROOT
from processes import python

import tcwarp
from tcwarp import _native

IDENTITY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def build(monkeypatch):
    """Setup.py as a module, on a machine without nvcc."""
    monkeypatch.setenv("PATH", os.environ["PATH"])  # setup.py changes it
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "TCWARP_CUDA", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    return module(ROOT / "setup.py", monkeypatch)


@pytest.fixture
def backend(monkeypatch):
    """The build backend as a module."""
    return module(ROOT / "build_backend.py", monkeypatch)


def module(path: Path, monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(f"tcwarp_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ------------------------------------------------------------------------------- what is built


def fake_torch(cuda: str | None) -> SimpleNamespace:
    return SimpleNamespace(version="2.13.0", cuda=cuda)


@pytest.mark.parametrize(
    ("cuda", "says", "expected"),
    [
        (None, "release 13.0", "which it was built with, has no CUDA"),
        ("13.0", None, "nvcc was not found; install the CUDA toolkit 13, or set CUDA_HOME"),
        ("13.0", "release 12.8", "nvcc is of CUDA 12.8, torch 2.13.0 of CUDA 13.0; set CUDA_HOME"),
        ("12.8", "release 13.0", "nvcc is of CUDA 13.0, torch 2.13.0 of CUDA 12.8; set CUDA_HOME"),
        ("13.0", "nonsense", "nvcc does not say its release, torch 2.13.0 of CUDA 13.0"),
        ("13.0", "release 13.2", ""),
    ],
)
def test_what_is_missing_for_cuda_is_said_in_one_line(
    build, monkeypatch, tmp_path, cuda, says, expected
):
    if says is None:
        monkeypatch.setattr(build, "find_nvcc", lambda: None)
    else:
        text = f'echo "Cuda compilation tools, {says}, V0"'
        nvcc = script(tmp_path / "cuda" / "bin" / "nvcc", text)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    found, why = build.plan_cuda(fake_torch(cuda))
    assert expected in why
    assert "\n" not in why and bool(found) != bool(why)
    if why:
        assert "run `pip install .` again" in why
    else:
        assert found == str(nvcc)


def test_cuda_can_be_left_out(build, monkeypatch):
    monkeypatch.setattr(build, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(build, "said", lambda *command: "release 13.0")
    assert build.plan_cuda(fake_torch("13.0")) == ("nvcc", "")
    monkeypatch.setenv("TCWARP_CUDA", "0")
    assert "left out by TCWARP_CUDA=0" in build.plan_cuda(fake_torch("13.0"))[1]


def test_architectures_are_those_asked_for(build, monkeypatch):
    monkeypatch.setattr(build, "said", lambda *command: "compute_80\ncompute_90\ncompute_120\n")
    assert build.cuda_architectures("nvcc") == ["8.0", "9.0", "12.0+PTX"]
    for asked, expected in {"9.0": ["9.0"], "8.0;9.0a+PTX": ["8.0", "9.0a+PTX"]}.items():
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
        assert build.cuda_architectures("nvcc") == expected
    assert build.gencode_flags(["9.0a+PTX"]) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match="has 'Hopper'; write compute capabilities"):
        build.cuda_architectures("nvcc")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "5.0 9.0")
    with pytest.raises(SystemExit, match=r"has '5.0'; nvcc compiles for 8\.0, 9\.0, 12\.0"):
        build.cuda_architectures("nvcc")


needs_ninja = pytest.mark.skipif(shutil.which("ninja") is None, reason="ninja is not on the path")
# Copies source to target, and notes that it reads header.h; fails where the source says so.
COMPILER = """
while [ $# -gt 1 ]; do
    case $1 in -MF) noted=$2;; -o) target=$2;; esac
    shift
done
escaped() { echo "$1" | sed 's/ /\\\\ /g'; }
echo "$(escaped "$target"): $(escaped "$1") $(escaped HEADER)" > "$noted"
basename "$1" >> LOG
cp "$1" "$target"
grep -q wrong "$1" && echo "$1: this is wrong" && exit 2
exit 0
"""


@needs_ninja
def test_only_what_changed_is_compiled_again(build, tmp_path):
    header, log, folder = tmp_path / "header.h", tmp_path / "log", tmp_path / "to $ here"
    compiler = script(
        tmp_path / "compiler", COMPILER.replace("HEADER", f"'{header}'").replace("LOG", f"'{log}'")
    )
    sources = [tmp_path / "one.cu", tmp_path / "two.cu"]
    for path in (header, *sources):
        path.write_text("fine")

    def compiled(*flags):
        log.write_text("")
        steps = build.Steps(folder)
        for source in sources:
            steps.compile(folder / f"{source.stem}.o", [str(compiler), *flags], source)
        steps.run()
        return sorted(Path(line.split()[-1]).name for line in log.read_text().splitlines())

    assert compiled() == ["one.cu", "two.cu"]
    assert compiled() == []
    assert compiled("-another") == ["one.cu", "two.cu"]
    sources[1].write_text("other")
    assert compiled("-another") == ["two.cu"]
    header.write_text("other")
    assert compiled("-another") == ["one.cu", "two.cu"]
    sources[0].write_text("wrong")
    with pytest.raises(SystemExit, match=r"tcwarp: a compiler failed:\n(.|\n)*this is wrong"):
        compiled("-another")
    sources[0].write_text("right")
    assert compiled("-another") == ["one.cu"]


# ------------------------------------------------------------------- what the build asks for


def install_torch(site: Path, version: str, cuda: str | None = None) -> None:
    (site / "torch" / "include").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}")


@pytest.fixture
def isolated(backend, monkeypatch, tmp_path):
    """The folder of the environment to install into, hidden from the one of the build."""
    site = tmp_path / "site-packages"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda name: str(site))
    monkeypatch.setattr(
        backend.build_meta, "get_requires_for_build_wheel", lambda settings: ["others"]
    )
    return site


@pytest.mark.parametrize(
    ("installed", "needed"),
    [
        (None, ["torch>=2.10"]),
        ("2.9.1", ["torch>=2.10"]),
        ("2.10.0", []),
        ("2.13.0+cpu", []),
        ("3.0.0a0+git1", []),
    ],
)
def test_torch_is_fetched_only_where_none_is_installed(backend, isolated, installed, needed):
    if installed:
        install_torch(isolated, installed, "13.0")
    assert backend.get_requires_for_build_wheel() == ["others", *needed]
    assert backend.get_requires_for_build_editable() == ["others", *needed]
    if not needed:
        assert backend.find_torch() == (isolated / "torch", installed, "13.0")


def test_the_torch_that_can_be_imported_comes_first(backend, monkeypatch, tmp_path):
    for name, version in (("overlay", "2.12.0"), ("behind", "2.11.0")):
        install_torch(tmp_path / name, version)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path / "overlay")
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda name: str(tmp_path / "behind"))
    assert backend.find_torch().version == "2.12.0"


HOOKS = ("get_requires_for_build_wheel", "get_requires_for_build_editable")
METADATA = ("prepare_metadata_for_build_wheel", "prepare_metadata_for_build_editable")


@pytest.mark.parametrize("hook", [*HOOKS, *METADATA])
def test_what_will_fail_fails_first(backend, monkeypatch, tmp_path, hook):
    arguments = [str(tmp_path)] if hook in METADATA else []
    monkeypatch.setattr(backend.sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"^tcwarp: needs Python 3\.11 or newer; .* is 3\.10\.4$"):
        getattr(backend, hook)(*arguments)
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(SystemExit, match=r"^tcwarp: no C\+\+ compiler found \(no-such-compiler is"):
        getattr(backend, hook)(*arguments)


@pytest.mark.parametrize("hook", METADATA)
def test_tools_of_the_build_that_are_missing_without_isolation(backend, isolated, hook, tmp_path):
    prepare = getattr(backend, hook)
    with pytest.raises(SystemExit, match=r"needs torch 2\.10 or newer, there is none; either run"):
        prepare(str(tmp_path))
    install_torch(isolated, "2.9.1")
    with pytest.raises(SystemExit, match=r"needs torch 2\.10 or newer, 2\.9\.1 is installed"):
        prepare(str(tmp_path))
    (isolated / "torch" / "version.py").write_text("__version__ = '2.10.0'")
    with pytest.raises(SystemExit, match=r"run `pip install pybind11 ninja` first$"):
        prepare(str(tmp_path))


# --------------------------------------------------------------------------------- what is loaded


@pytest.fixture
def built(monkeypatch):
    """Torch with CUDA, and the facts of a build with it."""
    facts = _native.build_info()
    facts.update(cuda="13.0", cuda_left_out="", cuda_architectures="8.0 9.0", identity=IDENTITY)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(_native, "build_info", lambda: facts)
    return facts


def library(path: Path, identity: str = IDENTITY) -> Path:
    compiler = shutil.which("cc") or shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no compiler of shared libraries for Linux")
    source = path.with_suffix(".c")
    source.write_text("int filled[40000] = {1};\n")
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-Wl,--build-id=0x{identity}", "-o", path, source],
        check=True,
    )
    return path


def status_of(path: Path) -> str:
    status = _native._load_cuda(path)
    assert "\n" not in status
    image = torch.rand(1, 1, 4, 4)
    assert torch.equal(tcwarp.warp(image, torch.zeros(1, 2, 4, 4)), image)
    return status


AGAIN = "run `pip install .` in the source folder"


def test_why_nothing_was_built_is_told(built, tmp_path):
    built["cuda_left_out"] = "nvcc was not found"
    assert status_of(tmp_path / "_cuda.so") == "not built: nvcc was not found"


def test_a_library_for_another_cuda_is_not_loaded(built, tmp_path):
    built["cuda"] = "12.8"
    status = status_of(library(tmp_path / "_cuda.so"))
    assert status.startswith("not loaded: built for CUDA 12.8, torch ")
    assert AGAIN in status


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF", b"something else"])
def test_a_library_that_is_missing_or_something_else_is_not_loaded(built, tmp_path, content):
    path = tmp_path / "_cuda.so"
    if content is not None:
        path.write_bytes(content)
    status = status_of(path)
    assert status.startswith("not loaded: ") and "_cuda.so" in status and AGAIN in status


def test_a_library_of_another_build_is_not_loaded(built, tmp_path):
    status = status_of(library(tmp_path / "_cuda.so", identity=IDENTITY[::-1]))
    assert status.startswith("not loaded: _cuda.so is of another build than _cpu.so; ")


def test_a_truncated_library_is_not_loaded(built, tmp_path):
    path = library(tmp_path / "_cuda.so")
    whole = path.read_bytes()
    for size in (len(whole) - 1, *(int(part * len(whole)) for part in (0.9, 0.5, 0.1, 0.03))):
        path.write_bytes(whole[:size])
        assert status_of(path).startswith("not loaded: _cuda.so is truncated; ")
    path.write_bytes(whole[:100])
    assert status_of(path).startswith("not loaded: _cuda.so is of another build ")


@pytest.mark.skipif(_native._CUDA_STATUS == "loaded", reason="the operators are there already")
def test_a_library_that_lacks_operators_is_not_used(built, tmp_path):
    status = status_of(library(tmp_path / "_cuda.so"))
    assert status.startswith("not loaded: _cuda.so lacks tcwarp::align, tcwarp::field_coefficients")


@pytest.mark.parametrize(
    ("architectures", "runs", "not_on"),
    [
        ("7.5 8.0 9.0", [(7, 5), (8, 0), (8, 9), (9, 0)], [(7, 0), (6, 1), (10, 0)]),
        ("8.6+PTX", [(8, 6), (8, 9), (9, 0), (12, 0)], [(8, 0), (7, 5)]),
        ("9.0a", [(9, 0)], [(8, 9), (10, 0)]),
        ("", [], [(9, 0)]),
    ],
)
def test_which_devices_a_build_is_for(architectures, runs, not_on):
    assert all(_native._runs_on(capability, architectures) for capability in runs)
    assert not any(_native._runs_on(capability, architectures) for capability in not_on)


@pytest.fixture
def devices(built, monkeypatch):
    """Two devices; the first is older than what was built."""
    capabilities = [(7, 0), (9, 0)]
    monkeypatch.setattr(_native, "_CUDA_STATUS", "loaded")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    questions = (_native._status_of, _native._status_of_any)
    for question in questions:
        question.cache_clear()
    yield capabilities
    for question in questions:
        question.cache_clear()


def test_a_device_older_than_what_was_built(devices):
    assert tcwarp.cuda_status() == "loaded"  # on the other one
    assert tcwarp.cuda_status(torch.device("cuda", 1)) == "loaded"
    old = tcwarp.cuda_status(torch.device("cuda"))
    assert old == (
        "not usable on Card 0: built for compute capabilities 8.0 9.0, it has 7.0; run "
        "`TORCH_CUDA_ARCH_LIST=7.0 pip install .` in the source folder"
    )
    with pytest.raises(RuntimeError, match="are not usable on Card 0: built for"):
        tcwarp.random_displacement(1, (4, 4), device="cuda:0")
    del devices[1]
    _native._status_of_any.cache_clear()
    assert tcwarp.cuda_status() == old


def test_a_device_that_cannot_be_asked(devices, monkeypatch):
    def fail(index):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nMore")

    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    assert tcwarp.cuda_status() == "not usable: Cannot re-initialize CUDA in forked subprocess."


def test_importing_starts_no_cuda():
    code = "import torch, tcwarp; assert not torch.cuda.is_initialized(); print(tcwarp.__file__)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
