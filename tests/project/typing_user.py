"""What a type checker shows users: `tests/test_typing.py` runs mypy and pyright, both strict."""

from typing import assert_type

import torch
from torch import Tensor

import tcseg
import tcwarp
from tcwarp import reference

image, field = torch.rand(1, 1, 8, 8), torch.zeros(1, 2, 8, 8)
assert_type(tcwarp.warp(image, field, mode="linear", padding_mode="border"), Tensor)
tcwarp.warp(image, field, mode="linaer")  # type: ignore[arg-type]
tcwarp.warp(image, field, padding_mode="zero")  # type: ignore[arg-type]
tcwarp.valid_mask(field, mode="bilinear")  # type: ignore[arg-type]
tcwarp.gaussian_smooth(image, 2.0, boundary="mirror")  # type: ignore[arg-type]


def either(residual: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Return what a flag asks for."""
    return tcwarp.invert(field, return_residual=residual)


assert_type(tcwarp.invert(field), Tensor)
assert_type(tcwarp.invert(field, return_residual=False), Tensor)
assert_type(tcwarp.invert(field, return_residual=True), tuple[Tensor, Tensor])

assert_type(tcwarp.Warp(mode="cubic")(image, field), Tensor)
deform = tcwarp.RandomElastic(sigma=8.0)
assert_type(deform(image), Tensor)
assert_type(deform(image, image, generator=torch.Generator()), tuple[Tensor, ...])
tcwarp.Warp(mode="bicubic")  # type: ignore[arg-type]

reference.warp(image.numpy(), field.numpy(), "nearest")
tcwarp.reference.warp(image.numpy(), field.numpy(), "nearest")
segmenter: tcseg.Segmenter = tcseg.load("run")
