"""
Where lines of text leave, from a thread of their own: a reader that does not read stops nobody but itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from trioft.core.errors import UnusableError

# Lines that may wait for a slow reader: some tens of MB. Beyond that they are lost, and counted.
_MOST = 100_000


class Outlet:
    """
    Hands lines to *write*, in order. An ``OSError`` of *write* (its reader has gone, its disk is full) silences it for
    good, and is its ``error``.

    The thread is abandoned, not waited for, if *write* never returns.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.lost = 0
        self.error: OSError | None = None
        self._write = write
        self._lines: deque[str] = deque()
        self._silent = False
        self._busy = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="outlet", daemon=True).start()

    def put(self, line: str, *, always: bool = False) -> None:
        """Have *line* written. Never waits; *always* means even if too many wait already."""
        with self._changed:
            if self._silent:
                return
            if len(self._lines) >= _MOST and not always:
                self.lost += 1
                return
            self._lines.append(line)
            self._changed.notify_all()

    def drain(self, seconds: float | None = None) -> None:
        """Wait until everything is written, *seconds* at most (None: as long as it takes, or until interrupted)."""
        end = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while (self._lines or self._busy) and (end is None or time.monotonic() < end):
                self._changed.wait(1 if end is None else max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._lines:
                    self._changed.wait()
                line = self._lines.popleft()
                self._busy = True
            try:
                self._write(line)
            except OSError as error:
                with self._changed:
                    self.error, self._silent = error, True
                    self._lines.clear()


def print_all(lines: Iterable[str]) -> None:
    """
    Print *lines* of data.

    Raises ``UnusableError`` where they cannot be written; ``BrokenPipeError`` where their reader has gone.
    """
    try:
        for line in lines:
            print(line)  # noqa: T201 - this is its purpose
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):  # what is buffered must not fail again when Python flushes it at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UnusableError(f"cannot write to stdout: {error.strerror}") from error


def write_to(fd: int) -> Callable[[str], None]:
    """Return a function that writes lines to *fd*, past Python's buffers and their locks."""

    def write(line: str) -> None:
        write_all(fd, (line + "\n").encode("utf-8", "backslashreplace"))

    return write


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
