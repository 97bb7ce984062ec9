"""
The ends' health and identity, and the destination's space: the one authority that says whether copiers may go on.

Who meets an error of a whole end reports it here. That end's gate then closes for all, it is probed with growing
pauses, and the gate opens when a probe has succeeded; at the destination, a probe writes. No file is blamed meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

import trio

from trioft.config.options import Config
from trioft.core import operations as ask
from trioft.core.answers import KEEPS_NO_TIMES, Probed, Step
from trioft.core.errors import IDENTIFY, ConfigError, FileTrouble, Remedy, Side, Trouble, classify
from trioft.core.folding import Naming
from trioft.core.model import Ends, Identity
from trioft.core.units import size_text, span_text
from trioft.movers.hung import HungFolders
from trioft.movers.pool import Call
from trioft.pipeline.volumes import Volumes
from trioft.state.board import Board, Entry

# Recordings are given room for what they will write in this many seconds.
_AHEAD = 60.0
# Seconds over which it is measured how fast recordings grow.
_MEASURED = 10.0
# When the space will be used up is shown from this many seconds before on, and a warning given this many before.
_FORESEEN = 24 * 60 * 60
_WARNED = 60 * 60
# Inodes that are not given away: a probe makes a file, and folders need some.
_KEPT_FILES = 2


class Gate:
    """Open while one end can be used. *tell* is called with what is wrong with it, and with None when it is well."""

    def __init__(self, tell: Callable[[str | None], None]) -> None:
        self.outages = 0  # probes that failed
        self._tell = tell
        self._open = trio.Event()
        self._open.set()
        self._asked, self._answered = trio.Event(), trio.Event()
        self._begun = self._ended = 0  # probes

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    async def usable(self) -> None:
        """Return when the gate is open."""
        await self._open.wait()

    def suspect(self, trouble: Trouble) -> None:
        """An operation failed with an error of the whole end: close the gate, and have a probe made."""
        if self.is_open:  # else it is the last probe that says what is wrong
            self._close(str(trouble))
        self._asked.set()

    def look(self) -> None:
        """Have a probe made."""
        self._asked.set()

    async def is_well(self) -> bool:
        """Have a probe made that begins now, and return whether it succeeds. The gate stays open meanwhile."""
        wanted = self._begun + 1
        self._asked.set()
        while self.is_open and self._ended < wanted:
            await self._answered.wait()
        return self.is_open

    async def look_after(
        self, probe: Callable[[], Awaitable[None]], config: Config, looked: Callable[[], None]
    ) -> None:
        """
        Probe every ``check_interval``, and at once when asked; with growing pauses while the gate is closed.

        *looked* is called after each probe. Runs until cancelled.
        """
        pause = 0.0
        while True:
            if pause:
                await trio.sleep(pause)
            else:
                with trio.move_on_after(config.destination.check_interval):
                    await self._asked.wait()
            self._asked = trio.Event()
            try:
                await self._try_to_open(probe)
            except FileTrouble:
                pause = config.retry.longer(pause)
            else:
                pause = 0.0
            self._answered.set()
            self._answered = trio.Event()
            looked()

    async def _try_to_open(self, probe: Callable[[], Awaitable[None]]) -> None:
        """Open the gate if *probe* succeeds. Closes it and raises ``FileTrouble`` if not."""
        self._begun += 1
        try:
            await probe()
        except FileTrouble as error:
            self.outages += 1
            self._close(str(error))
            raise
        else:
            self._open.set()
            self._tell(None)
        finally:
            self._ended = self._begun

    def _close(self, text: str) -> None:
        if self._open.is_set():
            self._open = trio.Event()
            self._closed_since = time.strftime("%H:%M:%S")
        self._tell(f"not usable since {self._closed_since}: {text}")


class Storage:
    """What is known about the ends. ``begin`` has to succeed before anything else is asked."""

    def __init__(self, ends: Ends, known: dict[Side, Identity | None], config: Config, board: Board) -> None:
        self.ends = ends
        self.identity = known  # of each side: what it was when it was used last
        self.resolution_ns = KEEPS_NO_TIMES
        self.keeps_permissions = False
        self.naming = Naming()  # of the destination
        self.volumes = Volumes()  # what is mounted below it
        self.source_mounted = trio.Event()  # set, and replaced, when the source may be another filesystem than before
        self.gates = {Side.SOURCE: Gate(board.set_source), Side.DESTINATION: Gate(board.set_destination)}
        self.hung = HungFolders(ends.source.path, self._tell_of_folder)
        self._config = config
        self._looked_for = config.destination
        self._board = board
        self._active: set[Entry] = set()
        self._grown: dict[Entry, tuple[float, int, float]] = {}  # recordings: seen when, how long, growing how fast
        self._free = self._total = self._copied_before = 0
        self.largest = 2**63 - 1  # bytes that one file there may have
        self._files: int | None = None  # that may still be made there, whatever their size
        self._why_out: str | None = None  # what a probe met that could not even make its own file
        self._has_begun = self._is_warned = False
        self._stirred = 0
        # These are known not to be two views of the same files, but for folders of the source that did not answer.
        self._told_apart: tuple[Ends, frozenset[bytes]] | None = None
        self._unique = os.urandom(12).hex().encode()  # in the names of the files that tell them apart
        self._probing = trio.Lock()

    # --- health and identity

    @property
    def is_open(self) -> bool:
        return all(gate.is_open for gate in self.gates.values())

    @property
    def outages(self) -> int:
        return sum(gate.outages for gate in self.gates.values())

    async def usable(self) -> None:
        """Return when both ends can be used."""
        while not self.is_open:
            for gate in self.gates.values():
                await gate.usable()

    def suspect(self, trouble: Trouble) -> None:
        """An operation failed with an error of a whole end: close its gate, and have a probe made."""
        self.gates[Side(trouble.side)].suspect(trouble)

    def renew(self) -> None:
        """Other settings hold: look at both ends now, and then in the new interval; what waits for space is offered."""
        if self._looked_for is not self._config.destination:
            self._looked_for = self._config.destination
            for gate in self.gates.values():
                gate.look()

    async def run(self, call: Call, looked: Callable[[], None]) -> None:
        """
        Look after both ends, each in its own time. Runs until cancelled.

        *looked* is called after each look at the destination, so that what waits for space is offered again.
        """
        source, destination = self.gates[Side.SOURCE], self.gates[Side.DESTINATION]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.look_after, lambda: self._probe_source(call), self._config, lambda: None)
            nursery.start_soon(destination.look_after, lambda: self._probe(call), self._config, looked)

    async def rest(self) -> None:
        """Return when no probe of the destination is under way, and let none begin: cut short, it leaves its file."""
        await self._probing.acquire()

    async def begin(self, call: Call) -> None:
        """Probe both ends for the first time. Raises ``FileTrouble`` if one is not usable."""
        await self._probe_source(call)
        await self._probe(call)
        self.naming = await call(ask.FIND_NAMING, self.ends.destination)
        if (why := await self._find_view(call)) is not None:
            raise ConfigError([f"source and destination are two views of the same files: {why}"])

    async def _probe_source(self, call: Call) -> None:
        gate, was = self.gates[Side.SOURCE], self.identity[Side.SOURCE]
        root, identity = await call(ask.PROBE_SOURCE, self.ends.source.path, was)
        if root != self.ends.source or not gate.is_open:
            self.source_mounted.set()
            self.source_mounted = trio.Event()
        self.ends = self.ends._replace(source=root)
        self.identity[Side.SOURCE] = identity

    async def _probe(self, call: Call) -> None:
        settings, was = self._config.destination, self.identity[Side.DESTINATION]
        marker = settings.marker.encode("utf-8", "surrogateescape") if settings.marker else None
        moved = self._moved()
        try:
            async with self._probing:
                path, must_be_mounted = self.ends.destination.path, settings.require_mount
                probed = await call(ask.PROBE, path, was, marker, must_be_mounted)
        except FileTrouble as error:
            gate = self.gates[Side.DESTINATION]
            if error.trouble.errno == errno.ETIMEDOUT and self._has_begun and gate.is_open and self._has_moved(moved):
                return  # it waits behind what is being sent: the link is slow, not dead
            if classify(error.trouble) != Remedy.SPACE or not self._has_begun:
                raise
            self.ran_out(str(error))
            return
        # The same share, mounted again, may have another device number.
        self.volumes.see(probed.volumes)
        self.ends = self.ends._replace(destination=probed.root._replace(mounts=self.volumes.mounts))
        self.identity[Side.DESTINATION] = probed.identity
        is_back = not self.gates[Side.DESTINATION].is_open
        if self._has_begun and (is_back or not self._are_told_apart):
            async with self._probing:
                self.naming, why = await call(ask.FIND_NAMING, probed.root), None
                try:
                    why = await self._find_view(call)
                except FileTrouble as error:
                    if error.trouble.side != Side.SOURCE:
                        raise  # else the source has a gate of its own; and without it nothing is copied
            if why is not None:
                raise FileTrouble(
                    Trouble(Side.DESTINATION, IDENTIFY, b"", None, errno.ENODEV, f"it is the source: {why}")
                )
        self._take(probed)

    def use(self, targets: Iterable[bytes]) -> bool:
        """Note that *targets* are about to be delivered; return whether one is the first on what is mounted there."""
        is_new = self.volumes.use(targets)
        if is_new:
            self.ends = self.ends._replace(destination=self.ends.destination._replace(mounts=self.volumes.mounts))
        return is_new

    async def _find_view(self, call: Call) -> str | None:
        """
        Say why the ends are two views of the same files, or return None. Another mount is looked at anew.

        What is mounted below the source and does not answer is left out, as in a scan, until it does.
        """
        by_source = self._config.copy.on_success.action != "keep"
        while True:
            ends, left_out = self.ends, self.hung.places
            try:
                why = await call(ask.FIND_VIEW, ends, by_source, self._unique, sorted(left_out))
            except FileTrouble as error:
                if self.hung.note(error.trouble) is None or self.hung.places == left_out:
                    raise
            else:
                self._told_apart = ends, left_out
                return why

    @property
    def _are_told_apart(self) -> bool:
        """Has nothing come, or come back, since they were found not to be two views of the same files?"""
        if self._told_apart is None:
            return False
        ends, left_out = self._told_apart
        return ends == self.ends and left_out <= self.hung.places

    def _tell_of_folder(self, level: str, event: str, text: str) -> None:
        self._board.notice("source", text, level=level, event=event)
        if event == "source.folder_returned" and not self._are_told_apart:  # it has been left out so far
            self.gates[Side.DESTINATION].look()

    def stirs(self, _: Step) -> None:
        """A mover has told that something arrives at the destination."""
        self._stirred += 1

    def _moved(self) -> tuple[int, int, int]:
        """Return what grows when bytes arrive at the destination, or come back from it."""
        return self._stirred, self._board.totals.bytes, sum(entry.bytes_verified for entry in self._active)

    def _has_moved(self, before: tuple[int, int, int]) -> bool:
        # A file that is given up takes its bytes with it: less is no movement.
        return any(now > then for now, then in zip(self._moved(), before, strict=True))

    def _take(self, probed: Probed) -> None:
        self._free, self._total = probed.free, probed.total
        self._files, self._why_out, self.largest = probed.files, None, probed.largest
        self._copied_before = self._board.totals.bytes
        if not self._has_begun:
            self._has_begun = True
            self.resolution_ns = probed.resolution_ns
            self.keeps_permissions = probed.keeps_permissions
            if probed.resolution_ns == KEEPS_NO_TIMES:
                text = "the destination keeps no modification times: files are compared by size alone"
                self._board.notice("storage", text, event="destination.limited")
            if not probed.keeps_permissions:
                self._board.notice("storage", "the destination keeps no permission bits", event="destination.limited")
        self._foresee()

    # --- space

    @property
    def free(self) -> int:
        """Bytes that the destination said are free when it was probed last; 0 if it ran out since."""
        return self._free

    @property
    def total(self) -> int:
        """The destination's size, in bytes."""
        return self._total

    @property
    def reserved_bytes(self) -> int:
        """What files under way still need, and recordings will in the next minute."""
        return self._promised() + self._will_grow()

    def why_not_admit(self, size: int, files: int = 0) -> str | None:
        """Say why there is no room for *size* more bytes in so many new *files*, or None if there is."""
        if self._why_out is not None:
            return f"space: {self._why_out}"
        if self._files is not None and files > self._files - _KEPT_FILES:
            free = size_text(max(0, self._left()))
            return (
                f"space: the destination has no inode for one more file ({self._files} are left, and needed by others),"
                f" although {free} are free: remove files there, or make it anew with more inodes"
            )
        floor, promised = self._floor(), self.reserved_bytes
        if size <= self._left() - promised - floor:
            return None
        return (
            f"space: needs {size_text(size)}, the destination has {size_text(max(0, self._left()))} free,"
            f" of which {size_text(promised)} are promised to others and {size_text(floor)} are kept free"
        )

    def _left(self) -> int:
        """Return how many bytes are free: what was written since they were counted is not."""
        return self._free - (self._board.totals.bytes - self._copied_before)

    def _floor(self) -> int:
        return self._config.destination.min_free.floor(self._total)

    def _promised(self) -> int:
        return sum(max(0, min(entry.size - entry.holes, entry.size - entry.bytes_copied)) for entry in self._active)

    def _will_grow(self) -> int:
        """Return what the recordings that are followed will write in the next minute."""
        return round(_AHEAD * self._growth())

    def _growth(self) -> float:
        """Return how fast the recordings that are followed grow, in bytes a second."""
        now = trio.current_time()
        for entry in self._active:
            if entry.growing:
                since, size, rate = self._grown.get(entry, (now, entry.size, 0.0))
                if now - since >= _MEASURED:
                    since, size, rate = now, entry.size, max(0.0, (entry.size - size) / (now - since))
                self._grown[entry] = since, size, rate
        return sum(rate for _, _, rate in self._grown.values())

    def _foresee(self) -> None:
        """Tell when the recordings will have used up the space, if that is near."""
        rate = self._growth()
        seconds = max(0, self._left() - self._promised() - self._floor()) / rate if rate else math.inf
        self._board.full_in = seconds if seconds < _FORESEEN else None
        is_near = seconds < _WARNED
        if is_near and not self._is_warned:
            text = f"the destination will be full in {span_text(seconds)}, as fast as the recordings grow now"
            self._board.notice("storage", text, event="space.foreseen", seconds=round(seconds))
        self._is_warned = is_near

    @contextlib.contextmanager
    def reserved(self, entries: list[Entry]) -> Iterator[None]:
        """While inside, what these files still need is not given to others."""
        self._active.update(entries)
        try:
            yield
        finally:
            self._active.difference_update(entries)
            for entry in entries:
                self._grown.pop(entry, None)

    def left_out(self, count: int) -> None:
        """So many of the bytes that count as written were a hole, and take no room."""
        self._copied_before += count

    def makes(self, files: int) -> None:
        """So many files are about to be made: until the next look they are taken off the number that may be."""
        if self._files is not None:
            self._files = max(0, self._files - files)

    def ran_out(self, why: str | None = None) -> None:
        """A write said that there is no space, whatever the figures say: believe it until the next look."""
        self._free, self._why_out = 0, why
