"""Work that any number of processes share, and that resumes where it was stopped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from tcseg.errors import RunError
from tcseg.io.files import open_lock

T = TypeVar("T")
Record = tuple[str, list[str]]
LOOK_EVERY = 0.2  # seconds between looks at what others still have in hand
BEGIN, IN_USE, FIRST_KEY = 0, 1, 2  # bytes of the file of locks


class Ledger:
    """What is done in a folder, and which process is working on what.

    Each process appends to a file of its own. A lock on a byte says that a process is working on
    that key; the system frees it when the process ends, however that happens.

    Parameters
    ----------
    out : Path
        The folder; it exists.
    kind : str
        What is done, in hexadecimal digits: records of another kind are forgotten.

    Attributes
    ----------
    records : dict of str to (str, list of str)
        What became of each key, here or elsewhere: rows of the table, and what went wrong.

    Raises
    ------
    RunError
        If other processes do something of another kind there.
    OSError
        If the folder cannot be written.
    """

    def __init__(self, out: Path, kind: str) -> None:
        self.records: dict[str, Record] = {}
        self._out, self._pattern = out, f".measurements.{kind}.*.jsonl"
        self._seen: dict[Path, int] = {}
        self._locks = open_lock(out / ".measurements.lock")
        self._lock(BEGIN, fcntl.LOCK_EX)
        others = {*out.glob(".measurements.*.jsonl")} - {*out.glob(self._pattern)}
        if others and not self._lock(IN_USE):
            os.close(self._locks)
            raise RunError(
                f"{out}: other processes write to it, with another network or other options; wait "
                "for them, or choose another `out`"
            )
        for path in others:
            path.unlink()
        self._lock(IN_USE, fcntl.LOCK_SH)
        self._look()
        # What failed is tried again.
        self.records = {key: record for key, record in self.records.items() if record[0]}
        own = out / self._pattern.replace("*", uuid.uuid4().hex)
        self._own = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._lock(BEGIN, fcntl.LOCK_UN)

    def take(self, work: Mapping[str, T]) -> Iterator[tuple[str, T]]:
        """Yield what nobody has done or begun, to be written, until all is done somewhere.

        The keys of `work` are 16 hexadecimal digits each.
        """
        while waiting := [key for key in work if key not in self.records]:
            idle = True
            for key in waiting:
                byte = FIRST_KEY + (int(key, 16) >> 2)
                if key not in self.records and self._lock(byte):
                    self._look()
                    if key not in self.records:
                        idle = False
                        yield key, work[key]
                    self._lock(byte, fcntl.LOCK_UN)
            if idle:
                time.sleep(LOOK_EVERY)
            self._look()

    def write(self, key: str, record: Record) -> None:
        """Keep what became of a file; OSError if the disk is full."""
        line = msgspec.json.encode((key, record)) + b"\n"
        if os.write(self._own, line) < len(line):  # a disk that fills up takes a part first
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.records[key] = record

    def close(self) -> None:
        """Release the locks."""
        os.close(self._own)
        os.close(self._locks)

    def _look(self) -> None:
        """Read what was added; a line without an end, which a kill left, is none."""
        for path in self._out.glob(self._pattern):
            with open(path, "rb") as file:
                file.seek(self._seen.get(path, 0))
                *lines, rest = file.read().split(b"\n")
                self._seen[path] = file.tell() - len(rest)
            for line in lines:
                with contextlib.suppress(msgspec.MsgspecError):
                    self.records.update([msgspec.json.decode(line, type=tuple[str, Record])])

    def _lock(self, byte: int, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> bool:
        """Lock a byte, alone and without waiting unless told otherwise; False if others have it."""
        try:
            fcntl.lockf(self._locks, how, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True
