"""Run every kernel on small cases and compare with the CPU: `python -m benchmarks.cuda_small`.

This is what compute-sanitizer is shown. It slows a program 10 to 100 times, so cases are small; a
few are just large enough for the kernels that take vectors of pixels. Values are small integers:
what nearest copies and adds up is exact in any order.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, ops

import tcwarp
from tcwarp._native import MODES, PADDING_MODES, Mode, PaddingMode

SMALL = {2: (2, (19, 21)), 3: (2, (7, 6, 9))}
# Vectors of four pixels begin where such a thread each fills a device: 4 * 132 * 2048 pixels.
LARGE = {2: (2, (768, 1024)), 3: (1, (96, 128, 128))}
# Channels last: vectors of four and of two channels, and none.
LAYOUTS = (("planes", 3), ("channels last", 4), ("channels last", 2), ("channels last", 3))
DTYPES = (
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
)
WIDTHS = (torch.uint8, torch.int16, torch.float32, torch.float64, torch.complex128)
# Of sums of weights that may be fused or not, as multiples of the rounding unit.
UNITS = {"nearest": 0.0, "linear": 1e3, "cubic": 1e4}


def seeded(number: int) -> torch.Generator:
    """Return a generator of the CPU: the same numbers for every device."""
    return torch.Generator().manual_seed(number)


def pictures(shape: Sequence[int], dtype: torch.dtype, layout: str = "planes") -> Tensor:
    """Return small integers in a layout."""
    values = torch.randint(0, 9, tuple(shape), generator=seeded(0)).to(dtype)
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return values.to(memory_format=last) if layout == "channels last" else values


def displacements(batch: int, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return smooth fields with some values that lead far away or nowhere."""
    field = tcwarp.random_displacement(
        batch, size, sigma=4.0, displacement_std=3.0, generator=seeded(1)
    )
    special = (float("nan"), float("inf"), -1e30, 2.0**31, 0.5, -0.5, 3.0, 0.0)
    field.flatten()[::11][: len(special)] = torch.tensor(special)
    return field.to(dtype)


def compare(
    function: Callable[..., Sequence[Any]],
    inputs: Sequence[Tensor],
    device: str,
    atol: float,
    rtol: float = 0.0,
) -> None:
    """Raise unless the function computes on the device what it does on the CPU."""
    results = function(*(tensor.to(device) for tensor in inputs))
    for own, expected in zip(results, function(*inputs), strict=True):
        torch.testing.assert_close(own.cpu(), expected, rtol=rtol, atol=atol, equal_nan=True)


def check_warp(
    image: Tensor,
    field: Tensor,
    mode: Mode,
    padding_mode: PaddingMode,
    deterministic: bool,
    device: str,
) -> None:
    """Compare a warp and all gradients that it has."""
    codes = MODES[mode], PADDING_MODES[padding_mode]

    def warp_and_gradients(image: Tensor, field: Tensor, gradient: Tensor) -> list[Tensor]:
        results = [
            ops.tcwarp.warp(image, field, *codes),
            ops.tcwarp.warp_backward_input(gradient, field, *codes, deterministic),
        ]
        if mode != "nearest":
            results.append(ops.tcwarp.warp_backward_displacement(gradient, image, field, *codes))
        return results

    both = image.dtype == field.dtype == torch.float64
    unit = torch.finfo(torch.float64 if both else torch.float32).eps
    # Half precision is summed in single and rounded once.
    stored = max(torch.finfo(image.dtype).eps, torch.finfo(field.dtype).eps)
    rtol = 0.0 if mode == "nearest" else max(100 * unit, 2 * stored)
    # Ten: the gradient by the field adds up products of slopes over the channels.
    compare(
        warp_and_gradients, (image, field, image.flip(-1)), device, 10 * UNITS[mode] * unit, rtol
    )


def check_warps(device: str) -> None:
    """Compare every mode, layout, number of axes and pair of dtypes; paddings take turns."""
    kinds = itertools.product(SMALL, LAYOUTS, DTYPES)
    for turn, (dimensions, (layout, channels), dtypes) in enumerate(kinds):
        batch, size = SMALL[dimensions]
        image = pictures((batch, channels, *size), dtypes[0], layout)
        field = displacements(batch, size, dtypes[1])
        for mode, deterministic in itertools.product(MODES, (False, True)):
            padding_mode = list(PADDING_MODES)[(turn + MODES[mode] + deterministic) % 3]
            check_warp(image, field, mode, padding_mode, deterministic, device)


def check_nearest(sizes: dict[int, tuple[int, tuple[int, ...]]], device: str) -> None:
    """Compare what nearest copies, for every width of an element."""
    for (batch, size), dtype in itertools.product(sizes.values(), WIDTHS):
        inputs = pictures((batch, 1, *size), dtype), displacements(batch, size, torch.float32)
        compare(lambda image, field: [tcwarp.warp(image, field)], inputs, device, 0.0)


def check_large(sizes: dict[int, tuple[int, tuple[int, ...]]], device: str) -> None:
    """Compare where there are pixels enough for vectors of them."""
    for dimensions, (batch, size) in sizes.items():
        field = displacements(batch, size, torch.float32)
        for layout, mode in itertools.product(("planes", "channels last"), MODES):
            if (dimensions, mode) == (3, "cubic"):
                continue  # 64 corners for each of so many pixels
            image = pictures((batch, 4, *size), torch.float32, layout)
            check_warp(image, field, mode, "reflection", layout == "planes", device)


def check_fields(device: str) -> None:
    """Compare random fields, in which a sample may be the identity."""
    for size, sigma, dtype in itertools.product(
        ((96, 128), (37, 53), (9, 12, 20)),
        (2.0, 30.0),
        (torch.float16, torch.float32, torch.float64),
    ):

        def draw(like: Tensor) -> list[Tensor]:
            return [
                tcwarp.random_displacement(
                    *(3, size),  # noqa: B023
                    sigma=sigma,  # noqa: B023
                    displacement_std=2.0,
                    identity_probability=0.5,
                    generator=seeded(2),
                    dtype=like.dtype,
                    device=like.device,
                )
            ]

        rounding = 4 * torch.finfo(dtype).eps
        compare(draw, [torch.empty(0, dtype=dtype)], device, max(1e-4, rounding), rounding)


def check_alignment(device: str) -> None:
    """Compare inversion and alignment."""
    for (batch, size), dtype in itertools.product(
        SMALL.values(), (torch.float16, torch.float32, torch.float64)
    ):
        fields = [
            tcwarp.random_displacement(
                batch, size, sigma=6.0, displacement_std=0.8, generator=seeded(number)
            ).to(dtype)
            for number in (3, 4)
        ]
        rounding = 4 * torch.finfo(dtype).eps
        compare(
            lambda first, second: (tcwarp.invert(first), tcwarp.align(first, second)),
            fields,
            device,
            max(1e-4, rounding),
            rounding,
        )


def main() -> None:
    """Compare everything; say so."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_small", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="the CPU in place of the GPU")
    rehearse = parser.parse_args().rehearse
    device = "cpu" if rehearse else "cuda"
    large = SMALL if rehearse else LARGE
    check_warps(device)
    check_nearest(SMALL, device)
    check_nearest(large, device)
    check_large(large, device)
    check_fields(device)
    check_alignment(device)
    print(f"{device}: the results are the CPU's")


if __name__ == "__main__":
    main()
