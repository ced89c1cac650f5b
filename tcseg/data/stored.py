"""Tensors in files, for data that exceed memory, and what writes them image by image."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, of which only what is asked for is read.

    The file is mapped while it is read, and no longer: what was read takes no memory afterwards.

    Attributes
    ----------
    path
        The file, nothing but numbers in the order of C.
    shape
        Of the tensor (n, ...).
    dtype
        One that NumPy has under the same name.
    """

    path: Path
    shape: torch.Size
    dtype: torch.dtype
    device = torch.device("cpu")

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.shape.numel() * self.itemsize

    def view(self, dtype: torch.dtype) -> Stored:
        """Take the same bytes for numbers of another kind, as many bytes each."""
        return replace(self, dtype=dtype)

    def to(self, device: torch.device) -> Tensor | Stored:
        """Return a copy on a GPU; on a CPU nothing is read."""
        if device.type == "cpu":
            return self
        copy = torch.empty(self.shape, dtype=self.dtype, device=device)
        for index in range(len(copy)):  # of which few are in memory at a time
            copy[index] = self[index]
        return copy

    def __getitem__(self, key: Any) -> Tensor:
        """Return a copy of a part, which `key` names as for tensors."""
        parts = key if isinstance(key, tuple) else (key,)
        places = tuple(part.numpy() if isinstance(part, Tensor) else part for part in parts)
        # Read-only: of other mappings the system wants to know that memory could hold them.
        mapped = np.memmap(self.path, str(self.dtype)[len("torch.") :], "r", shape=self.shape)
        taken = np.asarray(mapped)[places]
        return torch.from_numpy(np.require(taken, requirements="W"))


class Source(NamedTuple):
    """Where a plane comes from, as a `Picture` without its pixels; the file within the folder."""

    name: str
    path: str
    plane: int | None
    shape: tuple[int, ...]
    spacing: tuple[float, float] | None
    slice_spacing: float | None


class Rows:
    """Arrays (C, ...), written one after the other, which `finish` makes one tensor (n, C, ...).

    Parameters
    ----------
    file
        An empty file to write to, and read from; if not given they are kept in memory.

    Attributes
    ----------
    shapes : list of tuple of int
        Those of the arrays.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = io.BytesIO() if file is None else file
        self.shapes: list[tuple[int, ...]] = []
        self._dtypes: list[np.dtype[Any]] = []

    def append(self, row: NDArray[np.unsignedinteger]) -> None:
        """Add an array, of any shape with so many axes."""
        self.shapes.append(row.shape)
        self._dtypes.append(row.dtype)
        if row.any():
            self._file.write(np.ascontiguousarray(row).data)
        else:  # a hole, which takes no room on most disks
            self._file.seek(row.nbytes, os.SEEK_CUR)

    def finish(self) -> Tensor | Stored:
        """Join them in the most channels, pixels along each axis and bits that one has.

        Beyond its own pixels an image is 0, of one channel all are the same, and the largest number
        stays the largest.
        """
        shape = [max(sides) for sides in zip(*self.shapes, strict=True)]
        dtype = max(self._dtypes, key=lambda dtype: dtype.itemsize)
        size, end = math.prod(shape) * dtype.itemsize, self._file.tell()
        if self._file.seek(0, os.SEEK_END) < end:  # the last is a hole
            self._file.seek(end - 1)
            self._file.write(b"\0")
        # From the last one on each moves up, if at all, to where no other is any more.
        for index in reversed(range(len(self.shapes))):
            if end == (index + 1) * size:  # so all before have the largest shape
                break
            own, kind = self.shapes[index], self._dtypes[index]
            begin = end - math.prod(own) * kind.itemsize
            self._file.seek(begin)
            row = np.frombuffer(self._file.read(end - begin), kind).reshape(own)
            joined = np.zeros(shape, dtype)
            joined[:, *map(slice, own[1:])] = row
            if kind != dtype:
                joined *= 257  # from 8 bits to 16
            self._file.seek(index * size)
            self._file.write(joined.data)
            end = begin
        whole = torch.Size([len(self.shapes), *shape])
        if isinstance(self._file, io.BytesIO):
            return torch.from_numpy(np.frombuffer(self._file.getbuffer(), dtype).reshape(whole))
        self._file.flush()
        return Stored(Path(self._file.name), whole, getattr(torch, dtype.name))
