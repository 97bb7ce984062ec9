"""
The destination's health, identity and free space: the one authority that says whether copiers may go on.

A copier that meets a destination's error reports it here. The gate then closes for all of them, the destination is
probed with growing pauses, and the gate opens when a probe, which writes, has succeeded.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Callable, Iterator

import trio

from trioft.board import Board, Entry
from trioft.config import Config
from trioft.errors import FileTrouble, Remedy, Side, Trouble, classify, show_path
from trioft.model import Ends, Root
from trioft.movers import Call
from trioft.notation import format_size
from trioft.surveyio import KEEPS_NO_TIMES, Probed


class Storage:
    """What is known about the destination, and the gate."""

    def __init__(self, ends: Ends, first: Probed, config: Config, board: Board) -> None:
        self.ends = ends
        self.resolution_ns = first.resolution_ns
        self._mount, self._place = first.mount, first.place
        self._config = config
        self._board = board
        self._active: set[Entry] = set()
        self._open = trio.Event()
        self._open.set()
        self._suspected = trio.Event()
        self.outages = 0  # probes that failed
        self._take(first)
        if first.resolution_ns == KEEPS_NO_TIMES:
            board.notice("storage", "the destination keeps no modification times: files are compared by size alone")
        if not first.keeps_permissions:
            board.notice("storage", "the destination keeps no permission bits")

    def _take(self, probed: Probed) -> None:
        self._free, self._total = probed.free, probed.total
        self._copied_before = self._board.totals.bytes

    async def usable(self) -> None:
        """Return when the gate is open."""
        await self._open.wait()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def suspect(self, trouble: Trouble) -> None:
        """An operation failed with a destination's error: close the gate and have a probe made."""
        self._close(str(trouble))
        self._suspected.set()

    def _close(self, text: str) -> None:
        if self._open.is_set():
            self._open = trio.Event()
            self._closed_since = time.strftime("%H:%M:%S")
        self._board.set_destination(f"destination not usable since {self._closed_since}: {text}")

    def why_not_admit(self, size: int) -> str | None:
        """Say why there is no room for *size* more bytes, or None if there is."""
        written = self._board.totals.bytes - self._copied_before  # since the free space was looked at
        promised = sum(entry.size - entry.bytes_copied for entry in self._active)
        floor = self._config.destination.min_free.floor(self._total)
        room = self._free - written - promised - floor
        if size <= room:
            return None
        return (
            f"space: needs {format_size(size)}, the destination has {format_size(max(0, self._free - written))} free,"
            f" of which {format_size(promised)} are promised to others and {format_size(floor)} are kept free"
        )

    @contextlib.contextmanager
    def reserved(self, entries: list[Entry]) -> Iterator[None]:
        """While inside, what these files still need is not given to others."""
        self._active.update(entries)
        try:
            yield
        finally:
            self._active.difference_update(entries)

    def ran_out(self) -> None:
        """A write said that there is no space, whatever the figures say: believe it until the next look."""
        self._free = 0

    async def check(self, call: Call) -> None:
        """Probe the destination and open the gate. Raises ``FileTrouble`` if it is not usable."""
        root = self.ends.destination
        settings = self._config.destination
        marker = settings.marker.encode("utf-8", "surrogateescape") if settings.marker else None
        try:
            probed: Probed = await call("probe", root.path, marker)
        except FileTrouble as error:
            if classify(error.trouble) != Remedy.SPACE:
                raise
            self.ran_out()
        else:
            why = why_not_usable(probed, self._config)
            if why is None and probed.dev != root.dev and probed.mount != self._mount:
                was, found = (f"{source} ({kind})" for kind, source in (self._mount, probed.mount))
                why = f"another filesystem is mounted there: {found} instead of {was}"
            elif why is None and probed.place and probed.place != self._place:
                # Below a mount of the same kind and name: tmpfs, a part of the same disk, a bind mount.
                was, found = show_path(self._place), show_path(probed.place)
                why = f"another folder is mounted there, or none: {found} of {self._mount[1]} instead of {was}"
            if why is not None:
                raise FileTrouble(Trouble(Side.DESTINATION, "open", b"", None, errno.ENODEV, why))
            # The same share, mounted again, may have another device number.
            self.ends = self.ends._replace(destination=Root(root.path, probed.dev))
            self._take(probed)
        self._open.set()
        self._board.set_destination(None)

    async def run(self, call: Call, looked: Callable[[], None]) -> None:
        """
        Look after the destination: every ``check_interval``, and at once when it is suspected. Runs until cancelled.

        *looked* is called after each look, so that what waits for space is offered again.
        """
        pause = 0.0
        while True:
            if pause:
                await trio.sleep(pause)
            else:
                with trio.move_on_after(self._config.destination.check_interval):
                    await self._suspected.wait()
            self._suspected = trio.Event()
            try:
                await self.check(call)
            except FileTrouble as error:
                longest, first = self._config.retry.longest, self._config.retry.first
                pause = min(longest, max(first, pause * 2)) * random.uniform(0.8, 1.0)
                self.outages += 1
                self._close(str(error))
            else:
                pause = 0.0
            looked()


def why_not_usable(probed: Probed, config: Config) -> str | None:
    """Say what the configuration asks of a destination that this one does not have."""
    if config.destination.require_mount and not probed.mounted:
        return "nothing is mounted at the destination folder, and destination.require_mount is set"
    return None
