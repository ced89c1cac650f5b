"""What is installed and what works: the command `tcseg doctor`.

Every part is tried on its own, so that one that is broken does not hide the others.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

PACKAGES = (
    *("torch", "numpy", "scipy", "monai", "pillow", "matplotlib", "safetensors", "jinja2"),
    *("msgspec", "click", "rich"),
)
# By the extra that brings them; only some commands need them.
OPTIONAL = {
    "pydicom": "dicom",
    "highdicom": "dicom",
    "nibabel": "nifti",
    "tensorboard": "tensorboard",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
}


class Finding(NamedTuple):
    """One line of the report; `works` is None where nothing can fail."""

    name: str
    works: bool | None
    detail: str


def examine() -> bool:
    """Print what was found.

    Returns
    -------
    bool
        Whether everything that training needs works.
    """
    console = Console(highlight=False, soft_wrap=True)
    states = {None: "      ", True: "[green]ok    [/]", False: "[bold red]failed[/]"}
    healthy = True
    for finding in findings():
        console.print(f"{states[finding.works]}  {finding.name:<26} {escape(finding.detail)}")
        healthy = healthy and finding.works is not False
    return healthy


def findings() -> Iterator[Finding]:
    """Examine one part after the other, the operator last."""
    yield Finding("python", None, f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        yield _attempt(name, importlib.metadata.version, name)
    for name, extra in OPTIONAL.items():
        finding = _attempt(name, importlib.metadata.version, name)
        way = f'not installed; `pip install "tcwarp[{extra}]"`'
        yield finding if finding.works else Finding(name, None, way)
    yield _jsrt()
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        yield Finding("torch", False, _line(error))
        return
    yield Finding("threads", None, f"{torch.get_num_threads()} of {os.cpu_count()} processors")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
        yield Finding("devices", None, f"cpu; cuda: {names}")
    else:
        why = "finds none" if torch.version.cuda else "was built without CUDA"
        yield Finding("devices", None, f"cpu; no cuda: torch {torch.__version__} {why}")
    yield _attempt("bfloat16", _bfloat16, "auto")
    try:
        import tcwarp
        from tcwarp import _native, selftest
    except Exception as error:  # a library of another build fails in many ways
        yield Finding("tcwarp", False, _line(error))
        return
    yield Finding("tcwarp", True, tcwarp.__version__)
    for name, value in _native.build_info().items():
        yield Finding(f"build: {name.replace('_', ' ')}", None, str(value) or "none")
    status = tcwarp.cuda_status()
    # Without a GPU nobody misses it.
    yield Finding("CUDA library", status == "loaded" if torch.cuda.is_available() else None, status)
    for device in selftest.devices():
        for name, test in selftest.TESTS.items():
            yield _attempt(f"{name}, {device}", test, device)


def _attempt(name: str, action: Callable[[Any], str], argument: Any) -> Finding:
    try:
        return Finding(name, True, action(argument))
    except Exception as error:  # whatever it is, it belongs into the report
        return Finding(name, False, _line(error))


def _line(error: Exception) -> str:
    if isinstance(error, importlib.metadata.PackageNotFoundError):
        return "not installed"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _bfloat16(device: str) -> str:
    from tcseg.method.network import emulates_bfloat16
    from tcseg.runs.config import resolve_device

    emulated = emulates_bfloat16(resolve_device(device))
    return "emulated: --precision float32 is faster here" if emulated else "computed"


def _jsrt() -> Finding:
    root = os.environ.get("TCSEG_JSRT_ROOT")
    if not root:
        return Finding("JSRT", None, "TCSEG_JSRT_ROOT is not set (needed by --data jsrt only)")
    if not Path(root).is_dir():
        return Finding("JSRT", False, f"TCSEG_JSRT_ROOT={root}: there is no such folder")
    return Finding("JSRT", None, f"TCSEG_JSRT_ROOT={root}")
