"""What a benchmark leaves behind: rows of figures, and where, when and with what they were made."""

import json
import os
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


@dataclass
class Row:
    """One comparison; times are medians over `rounds` alternating rounds."""

    work: str
    peer: str
    ours_ms: float
    peer_ms: float
    rounds: int
    at_least: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.peer_ms / self.ours_ms


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def version_of(package: str) -> str:
    """Return the installed version of a distribution, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def surroundings(command: str) -> dict[str, Any]:
    """Return hardware, versions, date and command of this run; tcwarp need not be built yet."""
    hardware: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        hardware["gpu"] = device.name
        hardware["gpu_memory_gib"] = round(device.total_memory / 2**30, 1)
    packages = (
        *("torch", "numpy", "scipy", "opencv-python-headless", "monai", "kornia"),
        *("albumentations", "elasticdeform", "tcwarp"),
    )
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            **{package: version_of(package) for package in packages},
        },
    }


def environment(command: str) -> dict[str, Any]:
    """Return the surroundings of this run and how the native library was built."""
    from tcwarp import _native

    return {**surroundings(command), "build": _native.build_info()}


def amend(path: Path, **entries: Any) -> None:
    """Add entries to a JSON file, whole or not at all: its writers may be ended at any time."""
    facts = json.loads(path.read_text()) if path.exists() else {}
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps({**facts, **entries}, indent=2) + "\n")
    draft.replace(path)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| work | ours | peer | peer's time | ratio | to reach |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        goal = "" if row.at_least is None else f"{row.at_least:g}x"
        lines.append(
            f"| {row.work} | {row.ours_ms:.3g} ms | {row.peer} | {row.peer_ms:.3g} ms "
            f"| {row.ratio:.2f}x | {goal} |"
        )
    return "\n".join(lines)


def write(path: Path, rows: Sequence[Row], command: str) -> None:
    """Write `path` (JSON) and, beside it, the same as Markdown."""
    facts = environment(command)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = [{**asdict(row), "ratio": row.ratio} for row in rows]
    path.write_text(json.dumps({**facts, "rows": figures}, indent=2) + "\n")
    hardware = ", ".join(f"{name} {value}" for name, value in facts["hardware"].items())
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items() if value)
    path.with_suffix(".md").write_text(
        f"`{command}`, {facts['date']}\n\n{hardware}; {versions}\n\n{table(rows)}\n"
    )


def figures_table(rows: Sequence[dict[str, Any]], latency: dict[str, float]) -> str:
    """Return the rows of `cuda_figures` as text 80 columns wide."""
    lines = [f"{'work':41}{'ms':>7}{'GB/s':>6}{'of it':>6}{'goal':>6}{'':>8}{'peer':>6}"]
    missed = []
    for row in rows:
        if "failed" in row:
            lines.append(f"{row['work']}: failed: {row['failed']}"[:80])
            continue
        ratios, goals = row["times_as_fast_as"], row["goals"]
        limit, *others = ratios
        peer = f"{ratios[others[0]]:.1f}x" if others else ""
        goal = f"{next(iter(goals.values())):.0%}" if goals else ""
        verdict = {True: "reached", False: "missed", None: ""}[row["reached"]]
        lines.append(
            f"{row['work']:41}{row['ms']:7.3f}{row['gb_per_s']:6.0f}"
            f"{ratios[limit]:6.0%}{goal:>6}{verdict:>8}{peer:>6}"
        )
        missed += [
            textwrap.fill(
                f"missed: {row['work']}: {ratios[name]:.2f} of {name}, to reach {least:.2f}",
                width=80,
                subsequent_indent="  ",
            )
            for name, least in goals.items()
            if ratios[name] < least
        ]
    lines += [
        "of it: of the speed of a device copy of the same bytes; for fields, of a fill",
        "goal: of that; for a deterministic backward, of the plain one, its peer here",
        *missed,
        *(f"one eager call, {name:34}{value:8.1f} us" for name, value in latency.items()),
    ]
    return "\n".join(lines)
