"""Checkpoints as files: tensors and plain values, read without running code from them."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcseg.errors import RunError
from tcseg.io.files import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint in one step.

    Parameters
    ----------
    path
        The file.
    state
        Dictionaries, lists and tuples, nested, of tensors, numbers, strings, None, with at
        least the key ``"step"``: no NumPy scalar and no object of another class.

    Raises
    ------
    TypeError
        If a value could not be read back with ``weights_only=True``.
    """
    import torch

    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of any run, to the CPU, without running code from it.

    Raises
    ------
    RunError
        If the file is missing, broken, or not a checkpoint of this package.
    """
    import torch

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # `torch.save` compresses nothing; what others compressed may be of any size.
            if sum(part.file_size for part in archive.infolist()) > len(content):
                raise ValueError
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch.load raises almost anything
        message = (
            f"{path}: broken or not a checkpoint of tcseg; put a good copy there, or delete it"
        )
        raise RunError(message) from error
    if not (isinstance(state, dict) and type(state.get("step")) is int):
        raise RunError(f"{path}: not a checkpoint of tcseg (it has no step number)")
    return state


def _check_plain(value: Any, where: str) -> None:
    """Refuse what `torch.load` would not take with ``weights_only=True``."""
    import torch

    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_plain(item, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    # By exact type: numpy.float64 is a float, but is stored as an object of NumPy.
    elif type(value) not in (bool, int, float, str, type(None)) and not torch.is_tensor(value):
        raise TypeError(
            f"save_checkpoint: {where} must be a tensor, number, string or None, "
            f"got {type(value).__name__}"
        )
