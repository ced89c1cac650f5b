"""Whether the operators of this installation work: `python -m tcwarp.selftest`.

Small cases are compared with the plain NumPy reference, on the CPU and, where the CUDA operators
are loaded, on every CUDA device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

import tcwarp
from tcwarp import reference

__all__ = ["TESTS", "devices", "main"]

# What float32 leaves of displacements and values of size 1 to 10.
TOLERANCE = 1e-4


def devices() -> list[torch.device]:
    """Return the devices that the operators are for."""
    count = torch.cuda.device_count() if tcwarp.cuda_status() == "loaded" else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(count))]


def main() -> int:
    """Run and print every test; return 1 if one fails, else 0."""
    failed = 0
    for device in devices():
        for name, test in TESTS.items():
            try:
                result = test(device)
            except Exception as error:  # the other tests tell more
                result, failed = f"FAILED: {error}".splitlines()[0], 1
            print(f"{device}: {name}: {result}")
    print(f"CUDA operators: {tcwarp.cuda_status()}")
    return failed


def _fields(device: torch.device, count: int) -> list[torch.Tensor]:

    generator = torch.Generator().manual_seed(0)
    return [
        tcwarp.random_displacement(
            2, (24, 20), sigma=6.0, displacement_std=1.5, generator=generator, device=device
        )
        for _ in range(count)
    ]


def _agree(ours: torch.Tensor, reference: object) -> str:
    difference = np.abs(ours.detach().cpu().numpy() - np.asarray(reference)).max()
    if not difference <= TOLERANCE:  # so written that nan fails
        raise ArithmeticError(f"differs from the reference by {difference:.2g}")
    return f"equal to the reference to {difference:.1g}"


def _test_warp(device: torch.device, mode: tcwarp.Mode) -> str:
    (field,) = _fields(device, 1)
    image = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    image = image.to(device).requires_grad_()
    output = tcwarp.warp(image, field, mode=mode)
    weights = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), image)
    field_array = field.cpu().numpy()
    forward = reference.warp(image.detach().cpu().numpy(), field_array, mode)
    backward = reference.warp_backward(weights.cpu().numpy(), field_array, mode)
    _agree(gradient, backward)
    return _agree(output, forward) + ", gradient too"


def _test_align(device: torch.device) -> str:
    t1, t2 = _fields(device, 2)
    expected, _ = reference.align(t1.cpu().numpy(), t2.cpu().numpy())
    return _agree(tcwarp.align(t1, t2), expected)


def _test_fields(device: torch.device) -> str:
    # The seed that the generator of `_fields` gives first.
    seed = torch.empty(1, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0))
    expected = reference.random_displacement(
        int(seed), 2, (24, 20), sigma=6.0, displacement_std=1.5
    )
    return _agree(_fields(device, 1)[0], expected)


def _test_smoothing(device: torch.device) -> str:
    noise = torch.rand(1, 2, 24, 20, generator=torch.Generator().manual_seed(2))
    expected = reference.gaussian_smooth(noise.numpy(), 3.0)
    return _agree(tcwarp.gaussian_smooth(noise.to(device), 3.0), expected)


TESTS: dict[str, Callable[[torch.device], str]] = {
    "warp, nearest": lambda device: _test_warp(device, "nearest"),
    "warp, linear": lambda device: _test_warp(device, "linear"),
    "warp, cubic": lambda device: _test_warp(device, "cubic"),
    "align": _test_align,
    "random fields": _test_fields,
    "smoothing": _test_smoothing,
}

if __name__ == "__main__":
    sys.exit(main())
