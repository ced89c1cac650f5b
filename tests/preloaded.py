"""What processes for training begin with, imported and made once: see `forkserver` in conftest.py.

A process that is forked where torch has computed gradients cannot train; the server has not.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.tensorboard

import tcseg.paper.reproduce  # noqa: F401 (with it all that trains)
from tcseg.data.phantom import population

population.load = functools.cache(population.load)
population.load(32)


def call(threads: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in a process of its own, with as many threads as in the one of the test."""
    torch.set_num_threads(threads)
    function(*arguments)
