"""What is installed and what works: the command `tcseg doctor`.

Every part is tried on its own, so that one that is broken does not hide the others.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import torch

    from tcwarp._native import Mode

__all__ = ["Finding", "examine", "findings"]

PACKAGES = (
    *("torch", "numpy", "scipy", "monai", "pillow", "matplotlib", "safetensors", "jinja2"),
    *("click", "rich"),
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
# What float32 leaves of displacements and values of size 1 to 10 in the self-test.
TOLERANCE = 1e-4


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
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    states = {None: "", True: "[green]ok[/]", False: "[bold red]failed[/]"}
    healthy = True
    for finding in findings():
        table.add_row(finding.name, states[finding.works], escape(finding.detail))
        healthy = healthy and finding.works is not False
    Console().print(table)
    return healthy


def findings() -> Iterator[Finding]:
    """Examine one part after the other, the operator last."""
    yield Finding("python", None, f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        yield _attempt(name, lambda name=name: importlib.metadata.version(name))  # type: ignore[misc]
    for name, extra in OPTIONAL.items():
        finding = _attempt(name, lambda name=name: importlib.metadata.version(name))  # type: ignore[misc]
        way = f'not installed; `pip install "tcwarp[{extra}]"`'
        yield finding if finding.works else Finding(name, None, way)
    yield _jsrt()
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        yield Finding("torch", False, _line(error))
        return
    yield Finding("threads", None, f"{torch.get_num_threads()} of {os.cpu_count()} processors")
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        names = ", ".join(torch.cuda.get_device_name(device) for device in devices[1:])
        yield Finding("devices", None, f"cpu; cuda: {names}")
    else:
        why = "finds none" if torch.version.cuda else "was built without CUDA"
        yield Finding("devices", None, f"cpu; no cuda: torch {torch.__version__} {why}")
    try:
        import tcwarp
        from tcwarp import _C
    except Exception as error:  # a library of another build fails in many ways
        yield Finding("tcwarp", False, _line(error))
        return
    yield Finding("tcwarp", True, tcwarp.__version__)
    for name, value in _C.build_info().items():
        yield Finding(f"build: {name.replace('_', ' ')}", None, str(value) or "none")
    status = tcwarp.cuda_status()
    loaded = status == "loaded"
    # Without a GPU nobody misses it.
    yield Finding("CUDA library", loaded if len(devices) > 1 else None, status)
    for device in devices if loaded else devices[:1]:
        for name, test in SELF_TESTS.items():
            yield _attempt(f"{name}, {device}", lambda t=test, d=device: t(d))  # type: ignore[misc]


def _attempt(name: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, action())
    except Exception as error:  # whatever it is, it belongs into the report
        return Finding(name, False, _line(error))


def _line(error: Exception) -> str:
    if isinstance(error, importlib.metadata.PackageNotFoundError):
        return "not installed"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _jsrt() -> Finding:
    root = os.environ.get("TCSEG_JSRT_ROOT")
    if not root:
        return Finding("JSRT", None, "TCSEG_JSRT_ROOT is not set (needed by --data jsrt only)")
    if not Path(root).is_dir():
        return Finding("JSRT", False, f"TCSEG_JSRT_ROOT={root}: there is no such folder")
    return Finding("JSRT", None, f"TCSEG_JSRT_ROOT={root}")


# The self-test: small cases against the plain NumPy reference, on one device each.


def _fields(device: torch.device, count: int) -> list[torch.Tensor]:
    import torch

    import tcwarp

    generator = torch.Generator().manual_seed(0)
    return [
        tcwarp.random_displacement(
            2, (24, 20), sigma=6.0, displacement_std=1.5, generator=generator, device=device
        )
        for _ in range(count)
    ]


def _agree(ours: torch.Tensor, reference: object) -> str:
    import numpy as np

    difference = np.abs(ours.detach().cpu().numpy() - np.asarray(reference)).max()
    if not difference <= TOLERANCE:  # so written that nan fails
        raise ArithmeticError(f"differs from the reference by {difference:.2g}")
    return f"equal to the reference to {difference:.1g}"


def _test_warp(device: torch.device, mode: Mode) -> str:
    import torch

    import tcwarp

    (field,) = _fields(device, 1)
    image = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    image = image.to(device).requires_grad_()
    output = tcwarp.warp(image, field, mode=mode)
    weights = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), image)
    field_array = field.cpu().numpy()
    forward = tcwarp.reference.warp(image.detach().cpu().numpy(), field_array, mode)
    backward = tcwarp.reference.warp_backward(weights.cpu().numpy(), field_array, mode)
    _agree(gradient, backward)
    return _agree(output, forward) + ", gradient too"


def _test_align(device: torch.device) -> str:
    import tcwarp

    t1, t2 = _fields(device, 2)
    expected, _ = tcwarp.reference.align(t1.cpu().numpy(), t2.cpu().numpy())
    return _agree(tcwarp.align(t1, t2), expected)


def _test_fields(device: torch.device) -> str:
    import torch

    import tcwarp

    # The seed that the generator of `_fields` gives first.
    seed = torch.empty(1, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0))
    expected = tcwarp.reference.random_displacement(
        int(seed), 2, (24, 20), sigma=6.0, displacement_std=1.5
    )
    return _agree(_fields(device, 1)[0], expected)


def _test_smoothing(device: torch.device) -> str:
    import torch

    import tcwarp

    noise = torch.rand(1, 2, 24, 20, generator=torch.Generator().manual_seed(2))
    expected = tcwarp.reference.gaussian_smooth(noise.numpy(), 3.0)
    return _agree(tcwarp.gaussian_smooth(noise.to(device), 3.0), expected)


SELF_TESTS: dict[str, Callable[[torch.device], str]] = {
    "warp, nearest": lambda device: _test_warp(device, "nearest"),
    "warp, linear": lambda device: _test_warp(device, "linear"),
    "warp, cubic": lambda device: _test_warp(device, "cubic"),
    "align": _test_align,
    "random fields": _test_fields,
    "smoothing": _test_smoothing,
}
