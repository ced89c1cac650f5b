"""Build of the native libraries; everything else is in pyproject.toml.

`tcwarp._C` holds the CPU operators and is built by torch's build extension with ninja.
`tcwarp/_cuda.so` holds the CUDA operators and is built by nvcc, with ninja too and at the same
time, where torch has CUDA and nvcc is of the same major version; where not, what was missing is
printed and kept in the facts of the build, and the CPU operators are built all the same. Both use
nothing but torch's stable ABI, so one build runs on every torch from 2.10 on.

`setup.py compile_only` compiles and links nothing, for which torch may lack CUDA: the CUDA files
against the headers of the torch that is installed, and all files against others.

Environment: CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, TCWARP_CUDA=0 (leave CUDA out),
TCWARP_WERROR=1 (warnings are errors), TCWARP_SANITIZE=1 (AddressSanitizer and
UndefinedBehaviorSanitizer; see `make sanitize`), TCWARP_TORCH_HEADERS (for `compile_only`: folders
with headers of other releases, separated as in PATH).
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup

try:
    import pybind11
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(
        f"tcwarp: building needs torch and pybind11, but {error.name} is not installed here.\n"
        "Either build with isolation (plain `pip install .`), or first run\n"
        "    pip install 'torch>=2.10' pybind11 ninja setuptools"
    )

# The ninja that pip installs is beside python, which need not be on the path.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10
DEFINES = [("TORCH_TARGET_VERSION", TORCH_TARGET)]
CPP_SOURCES = [  # the slowest to compile comes first
    *("csrc/cpu/warp_backward.cpp", "csrc/cpu/warp.cpp", "csrc/cpu/align.cpp"),
    *("csrc/cpu/fields.cpp", "csrc/schemas.cpp", "csrc/module.cpp"),
]
CUDA_SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"), key=lambda path: -path.stat().st_size)
# Compute capabilities built by default: those of 8.0 run on 8.6 and 8.9 as well; PTX of the last
# one serves newer devices.
CUDA_ARCHITECTURES = ["7.5", "8.0", "9.0"]
SANITIZE = os.environ.get("TCWARP_SANITIZE") == "1"


def find_nvcc() -> str | None:
    """Return the path of nvcc, or None where it is missing."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def said(*command: str) -> str:
    """Return what a command prints; nothing where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""


def plan_cuda() -> tuple[str, str]:
    """Return nvcc and an empty text; or an empty one and why the CUDA operators are left out."""
    if SANITIZE or os.environ.get("TCWARP_CUDA") == "0":
        return "", "left out by TCWARP_CUDA=0 or TCWARP_SANITIZE=1"
    name, cuda, nvcc = f"torch {torch.__version__}", torch.version.cuda, find_nvcc()
    again = "and run `pip install --no-build-isolation .` again"
    if cuda is None:
        return "", f"{name}, which it was built with, has no CUDA; install one that has {again}"
    wanted = f"the CUDA toolkit {cuda.split('.')[0]}"
    if nvcc is None:
        return "", f"nvcc was not found; install {wanted}, or set CUDA_HOME to it, {again}"
    release = re.search(r"release (\d+)\.\d+", said(nvcc, "--version"))
    if release is None or release[1] != cuda.split(".")[0]:
        found = f"is of CUDA {release[0].split()[1]}" if release else "does not say its release"
        return "", f"{nvcc} {found}, {name} of CUDA {cuda}; set CUDA_HOME to {wanted} {again}"
    if shutil.which("ninja") is None:
        return "", f"ninja was not found; run `pip install ninja` {again}"
    return nvcc, ""


def cuda_architectures(nvcc: str) -> list[str]:
    """Return the capabilities to build, from TORCH_CUDA_ARCH_LIST or the default list."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for architecture in asked:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", architecture):
            sys.exit(
                f"tcwarp: TORCH_CUDA_ARCH_LIST has {architecture!r}; write compute capabilities, "
                'such as "8.6;9.0+PTX"'
            )
    supported = set(re.findall(r"compute_(\d+)\b", said(nvcc, "--list-gpu-arch")))
    for architecture in asked if supported else []:
        if re.sub(r"\D", "", architecture.removesuffix("+PTX")) not in supported:
            known = ", ".join(f"{a[:-1]}.{a[-1]}" for a in sorted(supported, key=int))
            sys.exit(
                f"tcwarp: TORCH_CUDA_ARCH_LIST has {architecture!r}; {nvcc} compiles for {known}"
            )
    if asked:
        return asked
    newer = [f"{a[:-1]}.{a[-1]}" for a in ("100", "120") if a in supported]
    wanted = [a for a in CUDA_ARCHITECTURES if a.replace(".", "") in supported or not supported]
    wanted += newer
    return [*wanted[:-1], wanted[-1] + "+PTX"]


def gencode_flags(architectures: list[str]) -> list[str]:
    """Translate compute capabilities into nvcc flags."""
    flags = []
    for architecture in architectures:
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def includes(torch_paths: Iterable[str]) -> list[str]:
    """Return folders of headers; their warnings are not ours.

    The pybind11 that torch bundles comes later: that of torch 2.11 refuses the stable ABI.
    """
    return [pybind11.get_include(), *torch_paths]


def nvcc_command(nvcc: str, torch_paths: Iterable[str], architectures: list[str]) -> list[str]:
    """Return how a CUDA file is compiled."""
    return [
        *(nvcc, "-std=c++17", "-O3", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        *("--expt-relaxed-constexpr", "--extended-lambda", "-Xptxas", "-v", "--threads=0"),
        *(f"-D{name}={value}" for name, value in DEFINES),
        *(f"-isystem={path}" for path in includes(torch_paths)),
        *gencode_flags(architectures),
    ]


class Steps:
    """Commands for ninja, which repeats only those that themselves or whose files changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What a compiler prints stays beside its output.
        self.text = (
            "rule run\n"
            "  command = $run > $log 2>&1 && touch $out || { cat $log; exit 1; }\n"
            "  depfile = $out.d\n"
            "  deps = gcc\n"
        )

    def add(self, target: Path, command: list[str], inputs: Iterable[Path]) -> Path:
        """Add the command that makes `target`; it is given the inputs."""
        target.parent.mkdir(parents=True, exist_ok=True)
        escaped = [re.sub(r"([$ :])", r"$\1", str(path)) for path in (target, *inputs)]
        run = shlex.join([*command, *map(str, inputs)]).replace("$", "$$")
        log = shlex.quote(str(target.with_suffix(".log"))).replace("$", "$$")
        self.text += f"build {escaped[0]}: run {' '.join(escaped[1:])}\n"
        self.text += f"  run = {run}\n  log = {log}\n"
        return target

    def compile(self, target: Path, command: list[str], source: Path) -> Path:
        """Add a compiler; the headers that it reads are noted."""
        noted = ["-MD", "-MF", f"{target}.d", "-MT", str(target)]
        return self.add(target, [*command, *noted, "-c", "-o", str(target)], [source])

    def start(self) -> subprocess.Popen[bytes]:
        """Start ninja; what it says goes into a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text(self.text)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        with (self.folder / "said.txt").open("wb") as log:
            return subprocess.Popen(
                ["ninja", "-C", str(self.folder), "-j", jobs], stdout=log, stderr=log
            )

    def finish(self, ninja: subprocess.Popen[bytes]) -> None:
        """Wait; stop with the compiler's words where one failed."""
        if ninja.wait():
            text = (self.folder / "said.txt").read_text(errors="replace")
            sys.exit(f"tcwarp: a compiler failed:\n{text[max(0, text.find('FAILED')) :]}")


class BuildNative(cpp_extension.BuildExtension):
    """Torch's build extension, and ninja with nvcc beside it."""

    def get_ext_filename(self, ext_name: str) -> str:
        """Return the file of an extension; the one of CUDA is no module of Python."""
        if ext_name.endswith("_cuda"):
            return str(Path(*ext_name.split("."))) + ".so"
        return str(super().get_ext_filename(ext_name))

    def build_extensions(self) -> None:
        """Build everything that this machine can build."""
        compiler = os.environ.get("CXX", "c++").split()[0]
        if not any(shutil.which(name) for name in (compiler, "c++", "g++", "clang++")):
            sys.exit(
                "tcwarp: no C++ compiler found. Install one and try again:\n"
                "    Debian, Ubuntu: sudo apt-get install g++\n"
                "    Fedora:         sudo dnf install gcc-c++\n"
                "    macOS:          xcode-select --install\n"
                "or set CXX to the compiler to use."
            )
        write_build_info(GENERATED)
        if not NVCC:
            print(f"tcwarp: CPU operators only, CUDA is NOT built: {LEFT_OUT}", flush=True)
            return super().build_extensions()
        self.steps = self.cuda_steps()
        self.ninja = self.steps.start()
        try:
            super().build_extensions()
        finally:
            self.ninja.terminate()  # with all that it started, where the C++ files failed
            self.ninja.wait()

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; that of CUDA is on its way."""
        if ext.name != "tcwarp._cuda":
            return super().build_extension(ext)
        self.steps.finish(self.ninja)
        print(f"tcwarp: CUDA library built for {', '.join(cuda_architectures(NVCC))}")

    def cuda_steps(self) -> Steps:
        """Return how csrc/cuda is compiled and linked."""
        folder = Path(self.build_temp).resolve() / "cuda"
        steps = Steps(folder)
        command = nvcc_command(NVCC, cpp_extension.include_paths(), cuda_architectures(NVCC))
        objects = [steps.compile(folder / f"{s.stem}.o", command, s) for s in CUDA_SOURCES]
        library = Path(self.get_ext_fullpath("tcwarp._cuda")).resolve()
        link = [NVCC, "-shared", "-o", str(library), "-Xlinker", f"--build-id=0x{identity()}"]
        link += [f"-L{path}" for path in cpp_extension.library_paths()]
        steps.add(library, [*link, "-ltorch_cuda", "-ltorch_cpu", "-lc10"], objects)
        return steps


class CompileOnly(Command):
    """Compile without linking, against the headers of several releases of torch."""

    description = "compile, against the headers of several releases of torch; link nothing"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        """Do nothing: there are no options."""

    def finalize_options(self) -> None:
        """Do nothing: there are no options."""

    def run(self) -> None:
        """Compile for one architecture; other releases, where the syntax must do, twice as fast."""
        nvcc = find_nvcc() or sys.exit("tcwarp: nvcc was not found; put it on the path")
        folder = ROOT / "build" / "compile_only"
        write_build_info(folder)
        steps = Steps(folder)
        # The capability whose machine code the tests look at.
        architectures = ["9.0"]
        command = nvcc_command(nvcc, cpp_extension.include_paths(), architectures)
        for source in CUDA_SOURCES:
            steps.compile(folder / "installed" / f"{source.stem}.o", command, source)
        others = os.environ.get("TCWARP_TORCH_HEADERS", "").split(os.pathsep)
        for headers in map(Path, filter(None, others)):
            paths = [str(headers), str(headers / "torch/csrc/api/include")]
            cuda = nvcc_command(nvcc, paths, architectures)
            cuda += ["-fdevice-syntax-only", "-Xcompiler", "-fsyntax-only"]
            cpp = [*os.environ.get("CXX", "c++").split(), "-fsyntax-only", *cxx_flags(paths)]
            cpp += [f"-D{name}={value}" for name, value in DEFINES]
            cpp += [f"-I{folder}", f"-isystem{sysconfig.get_path('include')}"]
            for source in [*CUDA_SOURCES, *(ROOT / name for name in CPP_SOURCES)]:
                target = folder / headers.parent.name / f"{source.parent.name}_{source.stem}.o"
                steps.compile(target, cuda if source.suffix == ".cu" else cpp, source)
        steps.finish(steps.start())
        tried = ", ".join(Path(path).parent.name for path in others if path) or "none"
        print(f"tcwarp: compiled, torch {torch.__version__}; headers alone: {tried}")


def cxx_flags(torch_paths: Iterable[str]) -> list[str]:
    """Return how a C++ file is compiled."""
    return [
        *("-std=c++17", "-fvisibility=hidden", *OPTIMIZE, *STRICT, *SANITIZERS),
        # floor() and comparisons become vector instructions; NaN keeps its meaning.
        *("-fno-math-errno", "-fno-trapping-math"),
        *(f"-isystem{path}" for path in includes(torch_paths)),
    ]


def identity() -> str:
    """Return a digest of what both libraries must agree on: schemas and shared headers."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in [ROOT / "csrc/schemas.cpp", *sorted((ROOT / "csrc/shared").glob("*.h"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_build_info(folder: Path) -> None:
    """Write the header with the facts of this build."""
    compiler = said(os.environ.get("CXX", "c++").split()[0], "--version").splitlines()
    facts = {
        "TCWARP_COMPILER": (compiler or ["unknown"])[0],
        "TCWARP_TORCH_VERSION": torch.__version__,
        "TCWARP_TORCH_TARGET": TORCH_TARGET,
        "TCWARP_CUDA": torch.version.cuda if NVCC else "",
        "TCWARP_CUDA_ARCHITECTURES": " ".join(cuda_architectures(NVCC)) if NVCC else "",
        "TCWARP_CUDA_LEFT_OUT": LEFT_OUT,
        "TCWARP_IDENTITY": identity(),
    }
    text = "".join(f"#define {name} {quoted(value)}\n" for name, value in facts.items())
    header = folder / "build_info.h"
    folder.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:  # an untouched file rebuilds nothing
        header.write_text(text)


def quoted(text: str) -> str:
    """Return a string literal of C++."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


NVCC, LEFT_OUT = plan_cuda()
GENERATED = ROOT / "build" / "generated"
STRICT = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("TCWARP_WERROR") == "1" else [])
# A single version of each function: the loader picks versions before the sanitizers are ready.
SANITIZERS = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTCWARP_SINGLE_VERSION"]
    if SANITIZE
    else []
)
OPTIMIZE = ["-O1", "-g", "-fno-omit-frame-pointer"] if SANITIZE else ["-O3", "-g0"]
CPU_LIBRARY = Extension(
    "tcwarp._C",
    CPP_SOURCES,
    depends=[
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cuh", ".cu")  # the CUDA files for a source distribution
    ],
    include_dirs=[str(GENERATED)],
    define_macros=DEFINES,
    library_dirs=cpp_extension.library_paths(),
    libraries=["torch_cpu"],
    language="c++",
    extra_link_args=SANITIZERS,
    extra_compile_args={"cxx": cxx_flags(cpp_extension.include_paths())},
)

setup(
    ext_modules=[CPU_LIBRARY, *([Extension("tcwarp._cuda", [])] if NVCC else [])],
    cmdclass={"build_ext": BuildNative, "compile_only": CompileOnly},
)
