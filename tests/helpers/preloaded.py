"""What processes for training begin with, imported and made once: see `forkserver` in conftest.py.

A process that is forked where torch has computed gradients cannot train; the server has not.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.tensorboard

import tcseg.__main__
import tcseg.cli
import tcseg.training.session
from tcseg.data.phantom import population

population.load = functools.cache(population.load)
population.load(32, 2)


def call(threads: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in a process of its own, with as many threads as in the one of the test."""
    threading.Thread(target=end_with_tests, daemon=True).start()
    torch.set_num_threads(threads)
    function(*arguments)


def run_command(log: str, arguments: list[str]) -> None:
    """Run a command of tcseg as a process of its own would, what it prints going to a file."""
    # Also where tests run under nohup or in the background, which ignore them for all below.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["tcseg", *arguments]
    tcseg.__main__.main()


def end_with_tests() -> None:
    """End this process where that of the tests was killed: the server, its parent, lives on."""
    tests = multiprocessing.parent_process()
    assert tests is not None
    tests.join()
    os._exit(1)
