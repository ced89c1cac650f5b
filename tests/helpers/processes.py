"""Processes that tests start: none outlives its test, however that ends."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
SET_PARENT_DEATH_SIGNAL = 1  # of prctl


@contextlib.contextmanager
def started(
    command: Sequence[object], *, ctrl_c: bool = True, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a process group of its own; at the end, kill what is left of the group.

    Whether Ctrl-C reaches it does not depend on where the tests run: under nohup SIGHUP is ignored,
    in the background of a script SIGINT, which processes inherit.
    """

    def begin() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL if ctrl_c else signal.SIG_IGN)
        if LIBC is not None:  # also if the tests themselves are killed
            LIBC.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)

    words = [str(word) for word in command]
    options = {"text": True, "start_new_session": True, "preexec_fn": begin} | options
    with subprocess.Popen(words, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(
    command: Sequence[object], *, timeout: float = 600, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return its status and what it printed."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with started(command, **options) as process:
        output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python to its end."""
    return run([sys.executable, *arguments], **options)


def wait_until(condition: Callable[[], bool], alive: Callable[[], bool]) -> None:
    """Wait for what a process does; fail where it ends before, or does nothing for minutes."""
    deadline = time.monotonic() + 300
    while not condition():
        assert alive(), "the process has ended"
        assert time.monotonic() < deadline, "nothing happened for minutes"
        time.sleep(0.05)
