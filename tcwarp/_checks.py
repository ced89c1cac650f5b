"""Argument checks. Every message names function, argument, what was expected and what came."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ._native import cuda_status

Name = TypeVar("Name", bound=str)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_BATCH = 2**31
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
            f"float64), got {value.dtype}; "
            + ("take .real and .imag" if value.is_complex() else "convert it with .float()")
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


def check_batch(function: str, batch: Any) -> int:
    """Return the number of fields or images to make; raise unless it is one."""
    batch = _plain(batch)
    if not _is_int(batch):
        raise TypeError(f"{function}: batch must be an int, got {type(batch).__name__}")
    if batch < 0:
        raise ValueError(f"{function}: batch must not be negative, got {shown(batch)}")
    if batch > LARGEST_BATCH:
        raise ValueError(f"{function}: batch must be at most 2**31, got {shown(batch)}")
    return cast(int, batch)


def check_size(function: str, size: Any) -> tuple[int, ...]:
    """Return a spatial size; raise ValueError unless it is one of two or three axes."""
    given = size.tolist() if isinstance(size, np.ndarray) else size
    lengths = tuple(map(_plain, given)) if isinstance(given, Sequence) else ()
    if len(lengths) not in (2, 3) or not all(_is_int(n) and n >= 0 for n in lengths):
        raise ValueError(
            f"{function}: size must be 2 or 3 lengths (int) of at least 0, got {shown(size)}"
        )
    check_axes(function, "size", lengths)
    return lengths


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _plain(number: Any) -> Any:
    """Return an integer of NumPy as one of Python, anything else as it is."""
    return int(number) if isinstance(number, np.integer) else number


def check_axes(function: str, name: str, size: tuple[int, ...]) -> None:
    """Raise ValueError where an axis is longer than positions can be counted."""
    # In an export, a comparison would ask for a largest length of every dynamic axis.
    if not torch.compiler.is_compiling() and max(size, default=0) > LONGEST_AXIS:
        raise ValueError(
            f"{function}: no axis of {name} may be longer than {LONGEST_AXIS}, "
            f"got {shown(tuple(size))}"
        )


def check_same(
    function: str,
    name: str,
    value: Tensor,
    other_name: str,
    other: Tensor,
    *,
    spatial: bool = True,
) -> None:
    """Raise unless two displacements agree in shape, dtype and device.

    Without `spatial` their spatial sizes may differ, and one of them may have one sample.
    """
    if not spatial:
        samples = value.shape[0], other.shape[0]
        if value.dim() != other.dim() or (samples[0] != samples[1] and 1 not in samples):
            raise ValueError(
                f"{function}: {name} must have the axes of {other_name}, {tuple(other.shape)}, and "
                f"as many samples, or one of them one, got {tuple(value.shape)}"
            )
    elif value.shape != other.shape:
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


def check_finite(function: str, name: str, value: Any) -> float:
    """Return a finite number of either sign as float."""
    sign = -1 if isinstance(value, Real) and value < 0 else 1
    return sign * check_number(function, name, sign * value if sign < 0 else value)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products keep their precision; there is none on device meta."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def check_sigma(
    function: str, sigma: Any, *dimensions: int, positive: bool = True
) -> tuple[float, ...]:
    """Return one sigma per axis, of which there may be so many."""
    if isinstance(sigma, np.ndarray):
        sigma = sigma.tolist()
    values = tuple(sigma) if isinstance(sigma, (tuple, list)) else (sigma,) * dimensions[0]
    if len(values) not in dimensions:
        raise ValueError(
            f"{function}: sigma must be one number or one per spatial axis "
            f"({' or '.join(map(str, dimensions))}), got {len(values)}"
        )
    return tuple(check_number(function, "sigma", value, positive=positive) for value in values)


def check_probability(function: str, name: str, value: Any) -> None:
    """Raise unless value is a number between 0 and 1."""
    if not 0 <= check_number(function, name, value) <= 1:
        raise ValueError(f"{function}: {name} must be between 0 and 1, got {value}")


def check_generator(function: str, generator: Any) -> None:
    """Raise TypeError unless it is a generator, or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{function}: generator must be a torch.Generator, got {type(generator).__name__}"
        )


def check_dtype(function: str, dtype: Any) -> torch.dtype:
    """Return the dtype of a result; raise TypeError unless it is a floating one."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATING:
        raise TypeError(f"{function}: dtype must be a floating dtype, got {shown(dtype)}")
    return dtype


def check_device_name(function: str, device: Any) -> torch.device:
    """Return the device of a result; raise unless the operators run on it."""
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{function}: device must be one that torch has, got {shown(device)}"
        ) from error
    check_device(function, "device", device)
    return cast(torch.device, device)
