"""Build of the native libraries; everything else is in pyproject.toml.

`tcwarp._C` holds the CPU operators and is built by torch's build extension with ninja.
`tcwarp/_cuda.so` holds the CUDA operators and is compiled with plain nvcc: where nvcc and a
CUDA build of torch are found it is linked, where only nvcc is found it is compiled and not
linked, and where nvcc is missing it is skipped. Both use nothing but torch's stable ABI, so
one build runs on every torch from 2.10 on.

Environment: CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, TCWARP_CUDA=0 (leave CUDA out),
TCWARP_WERROR=1 (warnings are errors), TCWARP_SANITIZE=1 (AddressSanitizer and
UndefinedBehaviorSanitizer; see `make sanitize`).
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup

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

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10
DEFINES = [("TORCH_TARGET_VERSION", TORCH_TARGET)]
# Compute capabilities built by default; PTX of the last one serves newer devices.
CUDA_ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0"]


def find_nvcc() -> str | None:
    """Return the path of nvcc, or None where it is missing or not wanted."""
    if os.environ.get("TCWARP_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def cuda_architectures(nvcc: str) -> list[str]:
    """Return the capabilities to build, from TORCH_CUDA_ARCH_LIST or the default list."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked:
        return asked.replace(";", " ").split()
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    supported = {match for match in re.findall(r"compute_(\d+)\b", known)}
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


class BuildNative(cpp_extension.BuildExtension):
    """Torch's build extension, then the CUDA library with plain nvcc."""

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
        super().build_extensions()
        if NVCC is None:
            print("tcwarp: nvcc not found, the CUDA library is skipped (CPU operators only)")
        else:
            self.build_cuda(NVCC)

    def build_cuda(self, nvcc: str) -> None:
        """Compile csrc/cuda; link it where torch has CUDA."""
        linked = torch.version.cuda is not None
        architectures = cuda_architectures(nvcc)
        if not linked:  # only a check that the sources compile: one architecture will do
            architectures = architectures[-1:]
        objects = Path(self.build_temp).resolve() / "cuda"
        objects.mkdir(parents=True, exist_ok=True)
        flags = [
            *("-std=c++17", "-O3", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
            *("--expt-relaxed-constexpr", "--extended-lambda", "-Xptxas", "-v"),
            *(f"-D{name}={value}" for name, value in DEFINES),
            *(f"-isystem={path}" for path in cpp_extension.include_paths()),
            *gencode_flags(architectures),
        ]

        def compile_one(source: Path) -> str:
            target = objects / f"{source.stem}.o"
            command = [nvcc, *flags, "-c", str(source), "-o", str(target)]
            result = subprocess.run(command, capture_output=True, text=True)
            (objects / f"{source.stem}.log").write_text(result.stdout + result.stderr)
            if result.returncode:
                sys.exit(f"tcwarp: nvcc failed on {source.name}:\n{result.stdout}{result.stderr}")
            return str(target)

        sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_one, sources))
        if not linked:
            print(
                f"tcwarp: {len(compiled)} CUDA files compiled with nvcc and not linked: "
                f"torch {torch.__version__} has no CUDA"
            )
            return
        library = Path(self.get_ext_fullpath("tcwarp._C")).parent / "_cuda.so"
        torch_libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        command = [nvcc, "-shared", "-o", str(library), *compiled, *torch_libraries]
        subprocess.check_call([*command, "-ltorch_cuda", "-ltorch_cpu", "-lc10"])
        print(f"tcwarp: CUDA library built for {', '.join(architectures)}")


def compiler_version() -> str:
    """Return the first line of what the C++ compiler says of itself."""
    command = os.environ.get("CXX", "c++").split()[0]
    try:
        result = subprocess.run([command, "--version"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return (result.stdout.splitlines() or ["unknown"])[0].replace('"', "")


def write_build_info(nvcc: str | None) -> Path:
    """Write the header with the facts of this build; return the folder it is in."""
    cuda = torch.version.cuda if nvcc and torch.version.cuda else ""
    facts = {
        "TCWARP_COMPILER": compiler_version(),
        "TCWARP_TORCH_VERSION": torch.__version__,
        "TCWARP_TORCH_TARGET": TORCH_TARGET,
        "TCWARP_CUDA": cuda,
        "TCWARP_CUDA_ARCHITECTURES": " ".join(cuda_architectures(nvcc)) if nvcc and cuda else "",
    }
    text = "".join(f'#define {name} "{value}"\n' for name, value in facts.items())
    header = ROOT / "build" / "generated" / "build_info.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:  # an untouched file rebuilds nothing
        header.write_text(text)
    return header.parent


SANITIZE = os.environ.get("TCWARP_SANITIZE") == "1"
NVCC = None if SANITIZE else find_nvcc()
GENERATED = write_build_info(NVCC)
STRICT = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("TCWARP_WERROR") == "1" else [])
# A single version of each function: the loader picks versions before the sanitizers are ready.
SANITIZERS = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTCWARP_SINGLE_VERSION"]
    if SANITIZE
    else []
)
OPTIMIZE = ["-O1", "-g", "-fno-omit-frame-pointer"] if SANITIZE else ["-O3", "-g0"]

setup(
    ext_modules=[
        Extension(
            "tcwarp._C",
            # The slowest file to compile comes first.
            [
                "csrc/cpu/warp_backward.cpp",
                "csrc/cpu/warp.cpp",
                "csrc/cpu/align.cpp",
                "csrc/cpu/fields.cpp",
                "csrc/schemas.cpp",
                "csrc/module.cpp",
            ],
            depends=[str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")],
            include_dirs=[str(GENERATED)],
            define_macros=DEFINES,
            library_dirs=cpp_extension.library_paths(),
            libraries=["torch_cpu"],
            language="c++",
            extra_link_args=SANITIZERS,
            extra_compile_args={
                "cxx": [
                    *("-std=c++17", "-fvisibility=hidden", *OPTIMIZE, *STRICT, *SANITIZERS),
                    # floor() and comparisons become vector instructions; NaN keeps its meaning.
                    *("-fno-math-errno", "-fno-trapping-math"),
                    # As system headers: their warnings are not ours.
                    *(f"-isystem{path}" for path in cpp_extension.include_paths()),
                    f"-isystem{pybind11.get_include()}",
                ]
            },
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
