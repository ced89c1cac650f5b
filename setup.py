"""Build of the native libraries; everything else is in pyproject.toml and build_backend.py.

`tcwarp/_cpu.so` holds the CPU operators, `tcwarp/_cuda.so` those of CUDA. They use nothing but
torch's stable ABI and know nothing of Python, so one build runs on every torch from 2.10 on and
under every Python. The CUDA library is built where torch has CUDA and nvcc is of the same major
version; where not, what was missing is printed and kept in the facts of the build, and the CPU
operators are built all the same. `tcwarp._C`, with pybind11, is for the tests.

`setup.py compile_only` compiles and links nothing, for which torch may lack CUDA: the CUDA files
against the headers of the torch that is installed, and all files against others.

Environment: CXX, CXXFLAGS, LDFLAGS, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, TCWARP_CUDA=0
(leave CUDA out), TCWARP_PORTABLE=1 (leave `tcwarp._C` out, so that the wheel serves every Python),
TCWARP_WERROR=1 (warnings are errors), TCWARP_SANITIZE=1 (AddressSanitizer and
UndefinedBehaviorSanitizer; see `make sanitize`), TCWARP_TORCH_HEADERS (for `compile_only`: folders
with headers of other releases, separated as in PATH).
"""

import hashlib
import json
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
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

from build_backend import Torch, check_tools

# The ninja that pip installs is beside python, which need not be on the path.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10
DEFINES = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
CPU_SOURCES = [  # the slowest to compile comes first
    *("csrc/cpu/warp_backward_displacement.cpp", "csrc/cpu/warp_backward_input.cpp"),
    *("csrc/cpu/warp.cpp", "csrc/cpu/align.cpp"),
    *("csrc/cpu/fields.cpp", "csrc/schemas.cpp", "csrc/build_info.cpp"),
]
MODULE_SOURCES = ["csrc/module.cpp"]
CUDA_SOURCES = [
    *("csrc/cuda/warp_backward.cu", "csrc/cuda/warp.cu", "csrc/cuda/fields.cu"),
    "csrc/cuda/align.cu",
]
# Compute capabilities built by default: those of 8.0 run on 8.6 and 8.9 as well; PTX of the last
# one serves newer devices.
CUDA_ARCHITECTURES = ["7.5", "8.0", "9.0"]
SANITIZE = os.environ.get("TCWARP_SANITIZE") == "1"
PORTABLE = os.environ.get("TCWARP_PORTABLE") == "1"


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


def plan_cuda(torch: Torch) -> tuple[str, str]:
    """Return nvcc and an empty text; or an empty one and why the CUDA operators are left out."""
    if SANITIZE or os.environ.get("TCWARP_CUDA") == "0":
        return "", "left out by TCWARP_CUDA=0 or TCWARP_SANITIZE=1"
    name, cuda, nvcc = f"torch {torch.version}", torch.cuda, find_nvcc()
    again = "and run `pip install .` again"
    if cuda is None:
        return "", f"{name}, which it was built with, has no CUDA; install one that has {again}"
    wanted = f"the CUDA toolkit {cuda.split('.')[0]}"
    if nvcc is None:
        return "", f"nvcc was not found; install {wanted}, or set CUDA_HOME to it, {again}"
    release = re.search(r"release (\d+)\.\d+", said(nvcc, "--version"))
    if release is None or release[1] != cuda.split(".")[0]:
        found = f"is of CUDA {release[0].split()[1]}" if release else "does not say its release"
        return "", f"{nvcc} {found}, {name} of CUDA {cuda}; set CUDA_HOME to {wanted} {again}"
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


def nvcc_command(nvcc: str, includes: Iterable[str], architectures: list[str]) -> list[str]:
    """Return how a CUDA file is compiled; warnings of torch's headers are not ours."""
    return [
        *(nvcc, "-std=c++17", "-O3", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        *("--expt-relaxed-constexpr", "--extended-lambda", "-Xptxas", "-v", "--threads=0"),
        *DEFINES,
        *(f"-isystem={path}" for path in includes),
        *gencode_flags(architectures),
    ]


def cxx_command(includes: Iterable[str]) -> list[str]:
    """Return how a C++ file is compiled."""
    return [
        *os.environ.get("CXX", "c++").split(),
        *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-fwrapv"),
        *(*OPTIMIZE, *STRICT, *SANITIZERS, *DEFINES),
        # floor() and comparisons become vector instructions; NaN keeps its meaning.
        *("-fno-math-errno", "-fno-trapping-math"),
        *(f"-isystem{path}" for path in includes),
        *os.environ.get("CXXFLAGS", "").split(),
    ]


def link_command() -> list[str]:
    """Return how objects of C++ become a library."""
    darwin = sys.platform == "darwin"
    return [
        *os.environ.get("CXX", "c++").split(),
        "-shared",
        *(["-undefined", "dynamic_lookup"] if darwin else [] if SANITIZE else ["-Wl,--strip-all"]),
        *SANITIZERS,
        *os.environ.get("LDFLAGS", "").split(),
    ]


class Steps:
    """Commands for ninja, which repeats only those that themselves or whose files changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What a compiler prints stays beside its objects.
        self.text = (
            "rule run\n"
            "  command = $run > $log 2>&1 && touch $out || { cat $log; exit 1; }\n"
            "  depfile = $out.d\n"
            "  deps = gcc\n"
        )

    def add(
        self, target: Path, command: list[str], inputs: Iterable[Path], last: Iterable[str] = ()
    ) -> Path:
        """Add the command that makes `target`; it is given the inputs, and what must come last."""
        target.parent.mkdir(parents=True, exist_ok=True)
        escaped = [re.sub(r"([$ :])", r"$\1", str(path)) for path in (target, *inputs)]
        run = shlex.join([*command, *map(str, inputs), *last]).replace("$", "$$")
        kept = target if target.is_relative_to(self.folder) else self.folder / target.name
        log = shlex.quote(str(kept.with_suffix(".log"))).replace("$", "$$")
        self.text += f"build {escaped[0]}: run {' '.join(escaped[1:])}\n"
        self.text += f"  run = {run}\n  log = {log}\n"
        return target

    def compile(self, target: Path, command: list[str], source: Path) -> Path:
        """Add a compiler; the headers that it reads are noted."""
        noted = ["-MD", "-MF", f"{target}.d", "-MT", str(target)]
        return self.add(target, [*command, *noted, "-c", "-o", str(target)], [source])

    def run(self) -> None:
        """Do what is left to do; stop with the compiler's words where one fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text(self.text)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        ninja = ["ninja", "-C", str(self.folder), "-j", jobs]
        result = subprocess.run(ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if result.returncode:
            text = result.stdout.decode(errors="replace")
            sys.exit(f"tcwarp: a compiler failed:\n{text[max(0, text.find('FAILED')) :]}")


class BuildNative(build_ext):
    """Compile and link all libraries at once, with ninja."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the file of a library; only `_C` is a module of Python."""
        if fullname.endswith("_C"):
            return str(super().get_ext_filename(fullname))
        return str(Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        """Build everything that this machine can build."""
        self.torch = check_tools()
        self.nvcc, self.left_out = plan_cuda(self.torch)
        if not self.nvcc:
            print(f"tcwarp: CPU operators only, CUDA is NOT built: {self.left_out}", flush=True)
        without = {"tcwarp._C"} if PORTABLE else set()
        without |= set() if self.nvcc else {"tcwarp._cuda"}
        self.extensions = [ext for ext in self.extensions if ext.name not in without]
        super().run()

    def build_extensions(self) -> None:
        """Build the libraries that were chosen."""
        folder = Path(self.build_temp).resolve()
        write_build_info(folder, self.torch, self.nvcc, self.left_out)
        steps = Steps(folder)
        commands = {
            "tcwarp._cpu": self.cpu_commands,
            "tcwarp._cuda": self.cuda_commands,
            "tcwarp._C": self.module_commands,
        }
        for ext in self.extensions:
            compiler, linker, libraries = commands[ext.name]()
            objects = [
                steps.compile(folder / Path(source).with_suffix(".o"), compiler, ROOT / source)
                for source in ext.sources
            ]
            target = Path(self.get_ext_fullpath(ext.name)).resolve()
            steps.add(target, [*linker, "-o", str(target)], objects, libraries)
        steps.run()

    def cpu_commands(self) -> tuple[list[str], list[str], list[str]]:
        """Return compiler, linker and libraries."""
        compiler = [*cxx_command(self.torch.includes), f"-I{Path(self.build_temp).resolve()}"]
        return compiler, link_command(), [f"-L{self.torch.folder / 'lib'}", "-ltorch_cpu"]

    def cuda_commands(self) -> tuple[list[str], list[str], list[str]]:
        """Return compiler, linker and libraries."""
        compiler = nvcc_command(self.nvcc, self.torch.includes, cuda_architectures(self.nvcc))
        linker = [self.nvcc, "-shared", "-Xlinker", f"--strip-all,--build-id=0x{identity()}"]
        libraries = ["-ltorch_cuda", "-ltorch_cpu", "-lc10"]
        return compiler, linker, [f"-L{self.torch.folder / 'lib'}", *libraries]

    def module_commands(self) -> tuple[list[str], list[str], list[str]]:
        """Return compiler, linker and libraries."""
        import pybind11

        includes = [pybind11.get_include(), sysconfig.get_path("include")]
        return cxx_command(includes), link_command(), []


class PortableWheel(bdist_wheel):
    """A wheel that says which Pythons it is for."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags: every Python 3 where no module of Python is in it."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if PORTABLE else (python, abi, platform)


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
        folder, torch = ROOT / "build" / "compile_only", check_tools()
        write_build_info(folder, torch, nvcc, "")
        steps = Steps(folder)
        # The capability whose machine code the tests look at.
        architectures = ["9.0"]
        command = nvcc_command(nvcc, torch.includes, architectures)
        for source in CUDA_SOURCES:
            steps.compile(folder / "installed" / f"{Path(source).stem}.o", command, ROOT / source)
        others = os.environ.get("TCWARP_TORCH_HEADERS", "").split(os.pathsep)
        for headers in map(Path, filter(None, others)):
            includes = [str(headers), str(headers / "torch/csrc/api/include")]
            cuda = nvcc_command(nvcc, includes, architectures)
            cuda += ["-fdevice-syntax-only", "-Xcompiler", "-fsyntax-only"]
            cpp = [*cxx_command(includes), "-fsyntax-only", f"-I{folder}"]
            for source in [*CUDA_SOURCES, *CPU_SOURCES]:
                target = folder / headers.parent.name / Path(source).with_suffix(".o")
                steps.compile(target, cuda if source.endswith(".cu") else cpp, ROOT / source)
        steps.run()
        tried = ", ".join(Path(path).parent.name for path in others if path) or "none"
        print(f"tcwarp: compiled, torch {torch.version}; headers alone: {tried}")


def identity() -> str:
    """Return a digest of the sources; all that is loaded together must be of the same ones."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted((ROOT / "csrc").rglob("*.[ch]*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_build_info(folder: Path, torch: Torch, nvcc: str, left_out: str) -> None:
    """Write the header with the facts of this build."""
    compiler = said(os.environ.get("CXX", "c++").split()[0], "--version").splitlines()
    facts = {
        "compiler": (compiler or ["unknown"])[0],
        "torch_headers": torch.version,
        "torch_target": TORCH_TARGET,
        "cuda": (torch.cuda or "") if nvcc else "",
        "cuda_architectures": " ".join(cuda_architectures(nvcc)) if nvcc else "",
        "cuda_left_out": left_out,
        "identity": identity(),
    }
    literal = json.dumps(json.dumps(facts))  # a JSON string is a string literal of C++ too
    text = f"#define TCWARP_BUILD_INFO {literal}\n"
    header = folder / "build_info.h"
    folder.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:  # else all that includes it is built anew
        header.write_text(text)


STRICT = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("TCWARP_WERROR") == "1" else [])
# A single version of each function: the loader picks versions before the sanitizers are ready.
SANITIZERS = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTCWARP_SINGLE_VERSION"]
    if SANITIZE
    else []
)
OPTIMIZE = ["-O1", "-g", "-fno-omit-frame-pointer"] if SANITIZE else ["-O3", "-g0"]

if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension("tcwarp._cpu", CPU_SOURCES),
            Extension("tcwarp._cuda", CUDA_SOURCES),
            Extension("tcwarp._C", MODULE_SOURCES),
        ],
        cmdclass={
            "build_ext": BuildNative,
            "bdist_wheel": PortableWheel,
            "compile_only": CompileOnly,
        },
    )
