"""Signals that ask a training to stop: it does between two steps, after a checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler's, a closed terminal's
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
SET_PARENT_DEATH_SIGNAL = 1  # of prctl


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Take signals as requests to stop; gives what returns the number of the first one, or 0.

    The same signal again, a second or more later, does what it did before: Ctrl-C twice ends the
    process at once. (One request may come as two signals: from a scheduler to the group and to
    the process, from each thread of a parent that is killed.) A signal that is ignored, as SIGINT
    and SIGHUP are under nohup, stays ignored.
    """
    received: dict[int, float] = {}
    before: dict[int, Any] = {}

    def request(number: int, frame: object) -> None:
        if number not in received:
            received[number] = time.monotonic()
            os.write(2, b"\nStopping after this step; the same signal again stops at once.\n")
        elif time.monotonic() > received[number] + 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    # Python lets no other thread set handlers.
    here = threading.current_thread() is threading.main_thread()
    for number in (getattr(signal, name) for name in SIGNALS if here and hasattr(signal, name)):
        before[number] = signal.getsignal(number)
        if before[number] != signal.SIG_IGN:
            signal.signal(number, request)
    try:
        yield lambda: next(iter(received), 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """Ask for SIGTERM when the process that started this one ends, even if it is killed; Linux."""
    if LIBC is not None:
        LIBC.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
