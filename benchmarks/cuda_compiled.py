"""What the compiler made of the CUDA kernels: `python -m benchmarks.cuda_compiled FOLDER`.

FOLDER holds objects and nvcc's logs beside them, as `make cuda-compile` leaves them in
build/compile_only/installed. Needs cuobjdump and nvdisasm (of the CUDA toolkit, or
`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`), and no GPU.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Bits that an access moves, by what stands in its name; 32 if nothing does.
WIDTHS = {"128": 128, "F32x4": 128, "64": 64, "F32x2": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}


@dataclass
class Kernel:
    """One kernel; accesses are counted as (instruction, bits), e.g. ``("STG", 128)``."""

    name: str  # without namespaces and arguments
    registers: int = 0
    spilled_bytes: int = 0
    stack_bytes: int = 0
    instructions: int = 0
    accesses: Counter[tuple[str, int]] = field(default_factory=Counter)
    loads_in_flight: int = 0  # the most from memory before the first result is used

    def widths(self, instruction: str) -> dict[int, int]:
        """Return how often an instruction moves how many bits, the widest first."""
        found = {bits: n for (name, bits), n in self.accesses.items() if name == instruction}
        return dict(sorted(found.items(), reverse=True))


def tool(name: str) -> str | None:
    """Return the path of a program of the toolkit, or None."""
    wheels = Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin")
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, wheels)))


def disassembly(file: Path) -> str:
    """Return the machine code of an object or library as text."""
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        raise FileNotFoundError(
            "cuobjdump and nvdisasm were not found; run "
            "`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`"
        )
    path = os.pathsep.join([str(Path(nvdisasm).parent), os.environ.get("PATH", os.defpath)])
    result = subprocess.run(
        [cuobjdump, "-sass", str(file)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    return result.stdout


def plain_names(mangled: list[str]) -> list[str]:
    """Return names without namespaces and arguments."""
    result = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True)
    noise = r"\(tcwarp::Mode\)|\(anonymous namespace\)::|tcwarp::|cuda::|^void |c10::"
    names = [re.sub(noise, "", line) for line in result.stdout.splitlines()]
    # Up to the bracket that opens the arguments.
    return [re.sub(r"\(.*", "", name).replace("> >", ">>") for name in names]


def read_log(text: str) -> dict[str, tuple[int, int, int]]:
    """Return (registers, spilled bytes, stack bytes) of each mangled name in a log of ptxas."""
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers"
    )
    return {
        name: (int(registers), int(spilled), int(stack))
        for name, stack, spilled, registers in re.findall(pattern, text, re.DOTALL)
    }


class InFlight:
    """Counts loads that wait together: until a result of one is used, or code may branch."""

    def __init__(self) -> None:
        self.pending: set[int] = set()
        self.count = self.most = 0

    def see(self, op: str, bits: int, operands: str) -> None:
        """Take account of one instruction."""
        registers = {
            int(number) + k
            for number, wide in re.findall(r"\bR(\d+)(\.64)?", operands)
            for k in range(2 if wide else 1)
        }
        if op in ("BRA", "EXIT", "BSYNC", "BAR", "WARPSYNC"):
            self.pending, self.count = set(), 0
        if op != "LDG":
            if registers & self.pending:
                self.pending, self.count = set(), 0
            return
        target = int((re.match(r"\s*R(\d+)", operands) or [0, -1])[1])
        if (registers - {target}) & self.pending:  # its address waits for another
            self.pending, self.count = set(), 0
        self.pending |= set(range(target, target + max(1, bits // 32)))
        self.count += 1
        self.most = max(self.most, self.count)


def read_code(text: str) -> Iterator[tuple[str, Kernel]]:
    """Yield each function of a disassembly by its mangled name."""
    for part in re.split(r"\n\s*Function : ", text)[1:]:
        kernel = Kernel("")
        name = part.split("\n", 1)[0].strip()
        flight = InFlight()
        line = r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);"
        for op, operands in re.findall(line, part):
            words = op.split(".")
            kernel.instructions += words[0] != "NOP"
            bits = next((WIDTHS[word] for word in words if word in WIDTHS), 32)
            if words[0] in ("LDG", "STG", "LDS", "STS", "LDL", "STL", "REDG", "ATOMG", "SHFL"):
                kernel.accesses[words[0], bits] += 1
            flight.see(words[0], bits, operands)
        kernel.loads_in_flight = flight.most
        yield name, kernel


def kernels(folder: Path) -> list[Kernel]:
    """Return all kernels of the objects in a folder."""
    found: dict[str, Kernel] = {}
    for log in sorted(folder.glob("*.log")):
        usage = read_log(log.read_text())
        for name, kernel in read_code(disassembly(log.with_suffix(".o"))):
            facts = usage.get(name, (0, 0, 0))
            kernel.registers, kernel.spilled_bytes, kernel.stack_bytes = facts
            found[name] = kernel
    for kernel, name in zip(found.values(), plain_names(list(found)), strict=True):
        kernel.name = name
    return sorted(found.values(), key=lambda kernel: kernel.name)


def table(rows: list[Kernel]) -> str:
    """Return the kernels as a Markdown table."""
    lines = [
        "| kernel | instructions | registers | stack | in flight | loads | stores | sums |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- | --- |",
    ]
    for kernel in rows:
        shown = (
            ", ".join(f"{n} x {bits}" for bits, n in kernel.widths(name).items())
            for name in ("LDG", "STG", "REDG")
        )
        lines.append(
            f"| `{kernel.name}` | {kernel.instructions} | {kernel.registers} "
            f"| {kernel.stack_bytes} | {kernel.loads_in_flight} | {' | '.join(shown)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_compiled", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", metavar="REGEX", default="", help="kernels whose name matches")
    arguments = parser.parse_args()
    try:
        found = kernels(arguments.folder)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"cuda_compiled: {getattr(error, 'stderr', None) or error}")
    if not found:
        sys.exit(
            f"cuda_compiled: no objects with logs beside them in {arguments.folder}; run "
            "`make cuda-compile` first"
        )
    print(table([kernel for kernel in found if re.search(arguments.only, kernel.name)]))
    print(
        f"\n{len(found)} kernels; most registers {max(k.registers for k in found)}, "
        f"{sum(k.spilled_bytes > 0 for k in found)} spill, "
        f"{sum(k.stack_bytes > 0 for k in found)} have a stack"
    )


if __name__ == "__main__":
    main()
