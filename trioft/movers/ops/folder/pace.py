"""
The pace at which a mover writes to a destination behind a network: what is on its way is bounded by what gets through.

Such a destination takes a file at once, and sends it for minutes: whoever waits for that sees nothing move, and takes
it for dead. So what was written is made durable now and then, in pieces that take a few seconds each, however fast or
slow the link is, and each of them is told. Runs in a mover.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from trioft.core.answers import Step
from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.model import KIB, SPAN_SIZE
from trioft.movers.ops import linux
from trioft.movers.ops.files import status_of
from trioft.movers.ops.folder.partials import write_all
from trioft.movers.ops.slate import touch

if TYPE_CHECKING:
    from trioft.movers.ops.files import Progress

_SMALLEST = 64 * KIB
_FIRST = 128 * KIB  # of a destination that nothing is known of yet: 16 kB a second get it through in 8 s
_SHORT, _LONG = 0.5, 4.0  # seconds: pieces that take less become larger, those that take more become smaller

_sizes: dict[int, int] = {}  # of pieces, by device: what this mover has found out


class Pace:
    """Writes to the partial that is open as *fd*. Only behind a network anything but that is done."""

    def __init__(self, fd: int, partial: bytes, progress: Progress) -> None:
        self._fd, self._partial, self._progress = fd, partial, progress
        self._is_far = linux.filesystem_magic(fd) in linux.SHARED
        self._device = status_of(fd, Side.DESTINATION, partial).st_dev if self._is_far else 0
        self._waiting = 0  # bytes that were written and are not known to have arrived
        self._seconds = 0.0  # that this took

    def write(self, offset: int, view: memoryview) -> None:
        """Write *view*, and wait for what is on its way where that is enough. Raises ``FileTrouble``."""
        if not self._is_far:
            write_all(self._fd, self._partial, offset, view)
            return
        at = 0
        while at < len(view):
            step = min(len(view) - at, _sizes.get(self._device, _FIRST) - self._waiting)
            begun = time.monotonic()
            write_all(self._fd, self._partial, offset + at, view[at : at + step])
            self._seconds += time.monotonic() - begun
            self._waiting += step
            at += step
            if self._waiting >= _sizes.get(self._device, _FIRST):
                self._wait(offset + at)

    def _wait(self, offset: int) -> None:
        begun = time.monotonic()
        touch(Side.DESTINATION)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "fsync", self._partial, offset)) from error
        took = self._seconds + time.monotonic() - begun
        self._progress(Step("synced", self._waiting))
        size = self._waiting
        if took < _SHORT:
            size = min(SPAN_SIZE, size * 2)
        elif took > _LONG:
            size = max(_SMALLEST, round(size * _LONG / 2 / took))
        _sizes[self._device] = size
        self._waiting, self._seconds = 0, 0.0
