"""Argument checks. Every message names function, argument, what was expected and what came."""

import contextlib
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ._native import cuda_status

Name = TypeVar("Name", bound=str)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LONGEST_AXIS = 2**30 - 4  # position + displacement + tap fits 32 bits


def shown(value: Any) -> str:
    """Return what came, for a message: one line, and not a long one."""
    if isinstance(value, (Tensor, np.ndarray)):
        return type(value).__name__
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        return f"an {type(value).__name__} of very many digits"
    return text if len(text) <= 80 else text[:77] + "..."


def check_tensor(function: str, name: str, value: Any) -> None:
    """Raise TypeError unless value is a tensor on a device that has kernels."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        kind, way = str(value.layout).removeprefix("torch."), ".to_dense()"
        if value.is_nested:
            kind, way = "nested", ".to_padded_tensor(0.0)"
        elif value.is_quantized:
            kind, way = "quantized", ".dequantize()"
        raise TypeError(f"{function}: {name} must be a dense tensor, got {kind}; use {way}")
    check_device(function, name, value.device)


def check_device(function: str, name: str, device: torch.device) -> None:
    """Raise unless the operators run on this device."""
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{function}: {name} must be on a CPU or CUDA device, got {device}")
    if device.type == "cuda" and (status := cuda_status(device)) != "loaded":
        raise RuntimeError(
            f"{function}: {name} is on {device}, but the CUDA operators of tcwarp are "
            f"{status}. Use the CPU until they are loaded"
        )


def check_floating(function: str, name: str, value: Tensor) -> None:
    """Raise TypeError unless the dtype is one of the four floating ones."""
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{function}: {name} must have a floating dtype (float16, bfloat16, float32 or "
            f"float64), got {value.dtype}; convert it with .float()"
        )


def check_displacement(function: str, name: str, value: Any) -> None:
    """Raise unless value is a displacement (N, D, *spatial)."""
    check_tensor(function, name, value)
    check_floating(function, name, value)
    if value.dim() not in (4, 5) or value.shape[1] != value.dim() - 2:
        raise ValueError(
            f"{function}: {name} must have shape (N, 2, H, W) or (N, 3, D, H, W), "
            f"got {tuple(value.shape)}"
        )
    check_axes(function, name, value.shape[2:])


def check_axes(function: str, name: str, size: tuple[int, ...]) -> None:
    """Raise ValueError where an axis is longer than positions can be counted."""
    if any(length > LONGEST_AXIS for length in size):
        raise ValueError(
            f"{function}: no axis of {name} may be longer than {LONGEST_AXIS}, "
            f"got {shown(tuple(size))}"
        )


def check_same(function: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two displacements agree in shape, dtype and device."""
    if value.shape != other.shape:
        raise ValueError(
            f"{function}: {name} must have the shape of {other_name}, "
            f"{tuple(other.shape)}, got {tuple(value.shape)}"
        )
    if value.dtype != other.dtype:
        raise TypeError(
            f"{function}: {name} must have the dtype of {other_name}, {other.dtype}, "
            f"got {value.dtype}"
        )
    check_same_device(function, name, value, other_name, other)


def check_same_device(
    function: str, name: str, value: Tensor, other_name: str, other: Tensor
) -> None:
    """Raise ValueError unless two tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{function}: {name} must be on the device of {other_name}, {other.device}, "
            f"got {value.device}"
        )


def lookup(function: str, name: str, value: Any, table: Mapping[Name, int]) -> int:
    """Return the code of a name, or raise ValueError with the names there are."""
    if not isinstance(value, str) or value not in table:
        names = ", ".join(repr(key) for key in table)
        raise ValueError(f"{function}: {name} must be one of {names}, got {shown(value)}")
    return table[cast(Name, value)]


def check_number(
    function: str, name: str, value: Any, *, positive: bool = False, at_most: float = math.inf
) -> float:
    """Return a finite number as float; raise where it is none, or out of range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        number = value = math.inf
    low = "positive and finite" if positive else "finite and not negative"
    if not (number > 0 if positive else number >= 0) or number == math.inf:
        raise ValueError(f"{function}: {name} must be {low}, got {value}")
    if number > at_most:
        raise ValueError(f"{function}: {name} must be at most {at_most:g}, got {value}")
    return number


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products keep their precision; there is none on device meta."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def check_sigma(function: str, sigma: Any, dimensions: int) -> tuple[float, ...]:
    """Return one positive sigma per axis."""
    if isinstance(sigma, np.ndarray):
        sigma = sigma.tolist()
    values = tuple(sigma) if isinstance(sigma, (tuple, list)) else (sigma,) * dimensions
    if len(values) != dimensions:
        raise ValueError(
            f"{function}: sigma must be one number or one per spatial axis ({dimensions}), "
            f"got {len(values)}"
        )
    return tuple(check_number(function, "sigma", value, positive=True) for value in values)
