"""
The backlog: the files that are not delivered yet, which of them goes next, and when to look at each again. Bounded.

The scanner puts files in and hands out jobs; the copiers take jobs and say what came of them. All by plain calls.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
from collections.abc import Callable

import attrs
import trio

from trioft.core.model import (
    BUNDLE_BYTES,
    BUNDLE_FILE_SIZE,
    BUNDLE_FILES,
    FINAL,
    FileState,
    Found,
    Item,
    Job,
    Wait,
)
from trioft.core.naming import NAME_MAX, partial_for, waits_for
from trioft.state.board import Board, Entry
from trioft.state.ledger import Known, Ledger, Port

# Files that are looked after at a time. More stay where they are, in the source, until there is room.
LIMIT = 10_000
# A bundle has so many files before another one is begun: then all copiers have some.
_FEWEST = 32
# Of these, files that wait for their markers at most: others have to get past them.
UNMARKED = LIMIT // 2
# Seconds between two looks whether a file that waits for its marker is still there. That the marker has come is told by
# an event, or found by a scan.
_STILL_THERE = 60.0

# By ``copy.order`` the file with the smallest number comes first, and of several with the same the first by name.
_ORDERS: dict[str, Callable[[Found], int]] = {
    "oldest": lambda found: found.fingerprint.mtime_ns,
    "newest": lambda found: -found.fingerprint.mtime_ns,
    "smallest": lambda found: found.fingerprint.size,
    "largest": lambda found: -found.fingerprint.size,
    "name": lambda found: 0,
}
# Its place in the order, its turn, and itself.
_Heap = list[tuple[tuple[int, bytes], int, "Pending"]]


@attrs.define(eq=False, kw_only=True)
class Pending:
    """A file that is not delivered yet."""

    entry: Entry
    found: Found
    since: float  # when this version was first seen here, on trio's clock
    due: float = math.inf  # when to look at it again
    was_quiet: bool = False  # by the wall clock it had not changed for `settle` then: where it is closed, that will do
    settled: bool = False  # it was seen to be quiet for `settle`
    changes: int = 0  # times that it changed while it was copied
    growing: bool = False  # it is to be copied while it is being written
    closed_only: bool = False  # it is not: that failed, or it was delivered and only held open
    life: int = 0  # of its partial, see ``naming.partial_of``
    place: bytes = b""  # what its partial lies beside: where it was to go when it was first seen
    ledger: bytes = b""  # the id of the one that its partial belongs to
    name_max: int = NAME_MAX
    outages: int = -1  # of the destination, when this file last met an error of the destination's
    turn: int = -1  # its place among the ready; an older one in the heaps is void
    taken: bool = False  # a copier has it, from when it has looked at its job until it says what came of it
    alone: bool = False  # it travels in no bundle: something in one that it was in met a bug

    @property
    def in_work(self) -> bool:
        """A copier has it, or is about to take it: nobody else changes its state."""
        return self.taken or (self.due == math.inf and self.entry.state != FileState.READY)

    @property
    def is_paused(self) -> bool:
        """It is to be tried again later, whatever is written to it until then."""
        is_waiting = self.growing and self.entry.state == FileState.WAITING
        return is_waiting and self.due > trio.current_time()

    @property
    def partial(self) -> bytes:
        return partial_for(_item(self))

    def is_version_of(self, found: Found) -> bool:
        """Is *found* the same file, whatever has been written to it meanwhile?"""
        return self.found.fingerprint[:2] == found.fingerprint[:2]


class Backlog:
    """
    Jobs are made of the files that are ready in *order* (``copy.order``), those that grow as they were found. Small
    files travel together: neighbours in that order, up to *bundle_bytes* in all. If *mixed*, those that leave at the
    same time are dealt out, so that each bundle has files of many folders: behind a network a folder takes one new
    name, or other name, at a time, and it is the waiting for folders that is to go on side by side.

    ``changed`` is set whenever there may be something to do for the scanner.
    """

    def __init__(
        self,
        board: Board,
        *,
        order: str = "oldest",
        bundle_bytes: Callable[[], int] = lambda: BUNDLE_BYTES,
        bundle_files: int = BUNDLE_FILES,
        mixed: bool = False,
        ledger: bytes = b"",
    ) -> None:
        self.changed = trio.Event()
        self.name_max = NAME_MAX  # bytes of a name, at the destination
        self.ledger = ledger
        self._board = board
        self._order = order
        self._bundle_bytes, self._bundle_files, self._mixed = bundle_bytes, bundle_files, mixed
        self.orphaned = trio.Event()  # set when there is something for ``take_orphans``
        self._orphans: list[bytes] = []
        self._pending: dict[bytes, Pending] = {}
        self._by_id: dict[int, Pending] = {}
        self._due: list[tuple[float, int, Pending]] = []
        self._small: _Heap = []
        self._large: _Heap = []
        self._growing: _Heap = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._pending)

    def find(self, item_id: int) -> Pending | None:
        return self._by_id.get(item_id)

    def get(self, path: bytes) -> Pending | None:
        return self._pending.get(path)

    def owns_partial(self, partial: bytes) -> bool:
        """Does *partial* belong to a file at hand?"""
        return any(partial == pending.partial for pending in self._pending.values())

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= LIMIT

    def wake(self) -> None:
        """Tell the scanner that something changed."""
        self.changed.set()

    # --- the scanner's calls

    def add(self, found: Found, due: float) -> Pending:
        """Look after a file, and look at it again at *due*."""
        entry = self._board.add(found.path, found.fingerprint)
        pending = Pending(entry=entry, found=found, since=trio.current_time(), place=found.target)
        pending.ledger, pending.name_max = self.ledger, self.name_max
        self._pending[found.path] = pending
        self._by_id[entry.id] = pending
        self.look_again(pending, due)
        return pending

    def look_again(self, pending: Pending, due: float) -> None:
        pending.due = due
        heapq.heappush(self._due, (due, next(self._numbers), pending))

    def replace(self, pending: Pending, found: Found, due: float) -> None:
        """The file is another version now: it settles anew, and has a new life, unless it has only grown."""
        if pending.growing and pending.is_version_of(found):
            self._board.grow(pending.entry, found.fingerprint.size)
        else:
            pending.entry.attempt = pending.entry.furthest = 0
            pending.entry.trouble = None
            pending.closed_only = pending.closed_only and pending.is_version_of(found)
            self._board.resize(pending.entry, found.fingerprint.size)
        pending.growing = False
        if not pending.is_version_of(found):
            if pending.entry.strategy:  # something of the other file may have been written
                self.add_orphans([pending.partial])
            pending.place, pending.life = found.target, 0
        pending.found = found
        pending.since = trio.current_time()
        pending.was_quiet = pending.settled = False
        self._board.move(pending.entry, FileState.SETTLING)
        self.look_again(pending, due)

    def add_orphans(self, partials: list[bytes]) -> None:
        """Have somebody see to partials whose files have been replaced by others."""
        self._orphans += partials
        self.orphaned.set()

    def take_orphans(self) -> list[bytes]:
        """Return partials whose files have been replaced by others, once."""
        taken, self._orphans, self.orphaned = self._orphans, [], trio.Event()
        return taken

    async def ask(
        self, ledger: Port, question: Callable[..., dict[bytes, Known]], about: list[bytes], paths: list[bytes]
    ) -> dict[bytes, Known]:
        """
        Return what the ledger knows *about* folders or files, for files that were seen at *paths*.

        What becomes of one while that is asked, is asked for as well: else it would be taken for one that nobody knows.
        """
        known: dict[bytes, Known] = {}
        while True:
            in_hand = [path for path in paths if path in self._pending]
            if about:
                known |= await ledger.call(question, about)
            question, about = Ledger.known, [path for path in in_hand if path not in self._pending]
            if not about:
                return known

    def at_rest(self) -> list[Pending]:
        """Return the files that no copier has."""
        return [pending for pending in self._pending.values() if not pending.in_work]

    def make_growing(self, pending: Pending) -> None:
        """The file is copied while it is being written, as soon as one of the lanes for such files is free."""
        pending.due = math.inf
        pending.growing = pending.entry.growing = True
        self._board.move(pending.entry, FileState.GROWING, "being written")
        pending.turn = next(self._numbers)
        heapq.heappush(self._growing, ((0, b""), pending.turn, pending))

    def make_ready(self, pending: Pending) -> None:
        pending.due = math.inf
        pending.growing = pending.entry.growing = False
        self._board.move(pending.entry, FileState.READY)
        heap = self._small if pending.entry.size <= BUNDLE_FILE_SIZE else self._large
        pending.turn = next(self._numbers)
        heapq.heappush(heap, (self._place(pending), pending.turn, pending))

    def _place(self, pending: Pending) -> tuple[int, bytes]:
        return _ORDERS[self._order](pending.found), pending.found.path

    def reorder(self, order: str) -> None:
        """Have another order from now on, also for those that are ready."""
        if order != self._order:
            self._order = order
            for heap in self._small, self._large:
                heap[:] = [(self._place(pending), turn, pending) for _, turn, pending in heap if turn == pending.turn]
                heapq.heapify(heap)

    def pop_due(self, most: int) -> list[Pending]:
        """Return files whose next look is due, and forget when it was."""
        now = trio.current_time()
        due: list[Pending] = []
        while self._due and self._due[0][0] <= now and len(due) < most:
            when, _, pending = heapq.heappop(self._due)
            if pending.due == when:  # else it was looked at in another way meanwhile
                due.append(pending)
        return due

    def next_due(self) -> float:
        while self._due and self._due[0][2].due != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else math.inf

    def offer(self, jobs: trio.MemorySendChannel[Job], growing: trio.MemorySendChannel[Job]) -> None:
        """Hand out jobs, best first, as far as there is room for them in either lane."""
        for _ in range(_room_in(growing)):
            if not self._best(self._growing, FileState.GROWING):
                break
            growing.send_nowait(Job((_item(heapq.heappop(self._growing)[2]),), growing=True))
        leaving: list[list[Pending]] = []
        bundles: list[list[Pending]] = []  # of these
        for room in range(_room_in(jobs), 0, -1):
            small, large = self._best(self._small), self._best(self._large)
            if not (small or large):
                break
            if large and not (small and self._small < self._large):
                leaving.append([heapq.heappop(self._large)[2]])
            else:
                bundles.append(self._pop_bundle(max(_FEWEST, -(-len(self._small) // room))))
                leaving.append(bundles[-1])
        if self._mixed:
            for bundle, mixed in zip(bundles, _dealt_out(bundles), strict=True):
                bundle[:] = mixed
        for files in leaving:
            jobs.send_nowait(Job(tuple(map(_item, files))))

    def _best(self, heap: _Heap, state: FileState = FileState.READY) -> Pending | None:
        while heap and (heap[0][2].entry.state != state or heap[0][2].turn != heap[0][1]):
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def _pop_bundle(self, most: int) -> list[Pending]:
        chosen: list[Pending] = []
        size, most_bytes = 0, self._bundle_bytes()
        while (best := self._best(self._small)) and len(chosen) < min(most, self._bundle_files):
            size += best.entry.size
            if size > most_bytes or (best.alone and chosen):
                break
            chosen.append(heapq.heappop(self._small)[2])
            if best.alone:
                break
        return chosen

    def offer_again(self) -> None:
        """The destination has been looked at: what waits for space may find it now."""
        for pending in self._pending.values():
            if pending.entry.wait == Wait.SPACE and not pending.in_work:
                self.look_again(pending, trio.current_time())
        self.wake()

    # --- the copiers' calls

    def take(self, item: Item, *, growing: bool) -> Pending | None:
        """
        Take a file over from the scanner, unless it has changed, or gone, while its job was waiting.

        From now on the copier is its one owner, whatever it has to wait for, until it says what came of the file.
        """
        pending = self.find(item.id)
        if pending is None or pending.taken:
            return None
        if pending.entry.state != (FileState.GROWING if growing else FileState.READY):
            return None
        if not growing and pending.found.fingerprint != item.fingerprint:
            return None
        pending.taken = True
        return pending

    def finished(self, pending: Pending, state: FileState, reason: str | None = None) -> None:
        """The file has reached a final state."""
        assert state in FINAL
        self._board.move(pending.entry, state, reason)
        self._forget(pending)

    def leave(self, pending: Pending, reason: str) -> None:
        """The file is left for another run, as it is."""
        self._board.move(pending.entry, FileState.SETTLING, reason)
        self._board.drop(pending.entry)
        self._forget(pending)

    def lacks_marker(self, pending: Pending, suffix: bytes, *, once: bool) -> None:
        """Nobody has said that the file is complete: it waits for that, or, *once*, is left for another run."""
        reason = waits_for(pending.found.path, suffix)
        if once:
            self._board.totals.busy += 1
            self.leave(pending, f"{reason}: left for the next run")
        else:
            self.settle_again(pending, reason, _STILL_THERE)

    def _forget(self, pending: Pending) -> None:
        pending.due, pending.taken = math.inf, False
        del self._pending[pending.found.path]
        del self._by_id[pending.entry.id]
        self.wake()

    def hasten(self, item_id: int) -> bool:
        """What a file waits for has come: look at it now. Returns whether there is such a file that waits."""
        pending = self.find(item_id)
        if pending is None or pending.entry.state != FileState.WAITING or pending.in_work:
            return False
        self.look_again(pending, trio.current_time())
        self.wake()
        return True

    def postpone(self, pending: Pending, wait: Wait, reason: str, delay: float) -> None:
        """The file waits: look at it again in *delay* seconds."""
        self._again(pending, FileState.WAITING, reason, delay, wait)

    def settle_again(self, pending: Pending, reason: str, delay: float) -> None:
        """The file is not ready after all: look at it again in *delay* seconds."""
        self._again(pending, FileState.SETTLING, reason, delay)

    def _again(self, pending: Pending, state: FileState, reason: str, delay: float, wait: Wait | None = None) -> None:
        pending.taken = False
        self._board.move(pending.entry, state, reason, wait)
        self.look_again(pending, trio.current_time() + delay)
        self.wake()


def _dealt_out(bundles: list[list[Pending]]) -> list[list[Pending]]:
    """Return as many bundles of the same files: one of each folder in turn."""
    folders: dict[bytes, list[Pending]] = {}
    for pending in itertools.chain.from_iterable(bundles):
        folders.setdefault(os.path.dirname(pending.found.target), []).append(pending)
    rounds = itertools.zip_longest(*folders.values())
    in_turn = [pending for one_of_each in rounds for pending in one_of_each if pending is not None]
    files, count = len(in_turn), len(bundles)
    return [in_turn[n * files // count : (n + 1) * files // count] for n in range(count)]


def _room_in(jobs: trio.MemorySendChannel[Job]) -> int:
    """Return how many jobs can be sent without a wait: nobody else sends."""
    room = jobs.statistics()
    return int(room.max_buffer_size) - room.current_buffer_used + room.tasks_waiting_receive


def _item(pending: Pending) -> Item:
    found = pending.found
    return Item(
        pending.entry.id,
        found.path,
        found.mode,
        found.fingerprint,
        pending.settled,
        pending.life,
        bool(found.marked),
        found.routed,
        pending.place,
        ledger=pending.ledger,
        name_max=pending.name_max,
    )
