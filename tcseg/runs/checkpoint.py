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

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(buffer):
        raise TypeError(
            "save_checkpoint: state must be of tensors, numbers, strings and None, got "
            f"{', '.join(sorted(foreign))}"
        )
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
