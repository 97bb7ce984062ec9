"""
The board: what is going on right now. The single source of truth in memory, read by display, JSON lines and summary.

Tasks change it by plain calls; it needs no locks, since there is one thread. It holds live files only: what is finished
leaves it, and stays in the totals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import attrs
import trio

from trioft.core.errors import Side, TrioftError, Trouble
from trioft.core.model import FINAL, TRANSITIONS, FileState, Fingerprint, Wait


@attrs.define(eq=False, kw_only=True)
class Entry:
    """One file that trioft knows and is not done with. Unknown is None, never 0."""

    id: int
    path: bytes
    size: int
    job: str | None = None  # whose it is, where there are several
    state: FileState = FileState.SETTLING
    reason: str | None = None  # why it is in this state, in words
    wait: Wait | None = None  # what it waits for, where it does
    strategy: str | None = None
    target: bytes | None = None  # its final name at the destination
    holes: int = 0  # bytes that need no room at the destination, where that was asked for
    bytes_copied: int = 0  # resumed ones included
    bytes_verified: int = 0
    bytes_compared: int | None = None  # with the source, once a file that grew is closed
    bytes_patched: int = 0  # written again since that found them changed
    growing: bool = False  # it is copied while it is being written
    lag_bytes: int | None = None  # behind the write head
    lag_seconds: float | None = None
    closed: str | None = None  # how sure it is that nobody writes it any more
    attempt: int = 0  # failed ones so far, since it got further than ever before
    furthest: int = 0  # so many bytes were settled in any attempt
    trouble: Trouble | None = None
    retry_at: float | None = None  # on trio's clock
    digest: bytes | None = None
    left: bool = False  # an operator does not want it to be transferred now
    paused: bool = False  # nor that it is begun, or goes on, before he says so
    found_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    started_at: float | None = None  # on trio's clock


@attrs.define(kw_only=True)
class Totals:
    """
    What has come of everything. ``bytes`` were written in this run, ``bytes_resumed`` needed no writing again;
    ``bytes_patched``, written again since a recorder had rewritten them, are a part of ``bytes``.
    """

    delivered: int = 0
    already: int = 0
    failed: int = 0
    skipped: int = 0
    busy: int = 0
    bytes: int = 0
    bytes_resumed: int = 0
    bytes_patched: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: getattr(other, name) + count for name, count in attrs.asdict(self).items()})


Listener = Callable[[Entry], None]


class Herald:
    """Tells what is worth a person's attention and belongs to no file; *job* is whose business it is, if not all's."""

    def __init__(self, job: str | None = None) -> None:
        self.job = job
        self.notices: list[Callable[[str, str], None]] = []  # (what, text): told once each
        self.records: list[Callable[[str, str, dict[str, object]], None]] = []  # (level, event, fields): for the log
        self._said: set[str] = set()

    def notice_once(self, what: str, text: str, *, event: str | None = None) -> None:
        """Say something only the first time."""
        if text not in self._said:
            self._said.add(text)
            self.notice(what, text, event=event)

    def notice(
        self, what: str, text: str, *, level: str = "warning", event: str | None = None, **fields: object
    ) -> None:
        """
        Say something that is worth a person's attention and belongs to no file.

        The log calls it *event*, of weight *level*, with *fields*; where there are none, the text is its reason.
        """
        for listener in self.notices:
            listener(what, text)
        self.record(level, event or f"{what}.noticed", **(fields or {"reason": text}))

    def record(self, level: str, event: str, **fields: object) -> None:
        """Have something written to the log, and nowhere else."""
        fields = fields if self.job is None else {"job": self.job, **fields}
        for write in self.records:
            write(level, event, fields)


def named(job: str | None, text: str) -> str:
    """Say whose *text* is, where there are several jobs."""
    return text if job is None else f"{job}: {text}"


class Board(Herald):
    """
    Live files, totals and the state of the ends of one job. ``revision`` grows by one with every change.

    Boards that are to be read as one (``Overview``) get their *ids* from the same source.
    """

    def __init__(self, job: str | None = None, ids: Iterator[int] | None = None) -> None:
        super().__init__(job)
        self.live: dict[int, Entry] = {}
        self.totals = Totals()
        self.revision = 0
        self.problem: TrioftError | None = None  # that ended the job, or keeps it from beginning
        self.source: str | None = None  # None: well; else what is wrong, in words
        self.destination: str | None = None
        self.lacks: dict[str, str] = {}  # what the agent itself cannot have now, and waits for: told in words
        self.paused = False
        self.full_in: float | None = None  # seconds until the recordings will have used up the destination's space
        self.scan_seconds: float | None = None  # that the last look through the whole source took
        self.look_due = math.inf  # when the scanner is to do something next, on trio's clock
        self.scanned = False  # the whole tree has been looked at once: totals and ETA mean something
        self.pending_files = 0
        self.pending_bytes = 0  # of the live files, still to be copied
        self.begun = trio.current_time()
        self.listeners: list[Listener] = []  # called at each change of a file's state, synchronously
        self.remarks: list[Callable[[Entry, str, str], None]] = []  # (file, event, text): see ``remark``
        self.dropped: list[Listener] = []  # called when a file is taken off in the middle
        self._ids = itertools.count(1) if ids is None else ids

    def add(self, path: bytes, fingerprint: Fingerprint) -> Entry:
        entry = Entry(id=next(self._ids), path=path, size=fingerprint.size, job=self.job)
        self.live[entry.id] = entry
        self.pending_files += 1
        self.pending_bytes += entry.size
        self.revision += 1
        return entry

    def resize(self, entry: Entry, size: int) -> None:
        """The file has another size now, and nothing of it is copied."""
        self._forget_bytes(entry)
        entry.size = size
        entry.bytes_copied = entry.bytes_verified = 0
        self.pending_bytes += size
        self.revision += 1

    def grow(self, entry: Entry, size: int) -> None:
        """The file has another size now; what is copied of it stays so."""
        if size != entry.size:
            self._forget_bytes(entry)
            entry.size, entry.bytes_copied = size, min(entry.bytes_copied, size)
            entry.bytes_verified = min(entry.bytes_verified, size)
            self.pending_bytes += size - entry.bytes_copied
            self.revision += 1

    def lag(self, entry: Entry, count: int | None, seconds: float | None) -> None:
        """The copy of a growing file is *count* bytes behind the write head, and some *seconds*."""
        entry.lag_bytes, entry.lag_seconds = count, seconds
        self.revision += 1

    def compared(self, entry: Entry, count: int | None) -> None:
        """*count* more bytes were compared with the source; None: it begins."""
        entry.bytes_compared = 0 if count is None else (entry.bytes_compared or 0) + count
        self.revision += 1

    def patched(self, entry: Entry, count: int) -> None:
        """*count* bytes of a file that was copied while it grew had changed, and were written again."""
        entry.bytes_patched += count
        self.totals.bytes_patched += count
        self.revision += 1

    def move(self, entry: Entry, state: FileState, reason: str | None = None, wait: Wait | None = None) -> None:
        """
        Put *entry* into *state*; where it waits, *wait* says for what.

        Raises ``ValueError`` for a transition that must not happen.

        A final state takes it off the board.
        """
        if state != entry.state and state not in TRANSITIONS[entry.state]:
            raise ValueError(f"{entry.path!r} cannot go from {entry.state} to {state}")
        if (state, reason) == (entry.state, entry.reason):
            return
        entry.state, entry.reason, entry.wait = state, reason, wait
        if state == FileState.COPYING and entry.started_at is None:
            entry.started_at = trio.current_time()
        if state in FINAL:
            self._take_off(entry)
        self.revision += 1
        for listener in self.listeners:
            listener(entry)

    def drop(self, entry: Entry) -> None:
        """Take *entry* off the board, in whatever state it is."""
        self._take_off(entry)
        self.revision += 1
        for listener in self.dropped:
            listener(entry)

    def fail(self, problem: TrioftError) -> None:
        """The job has ended, as *problem* says: none of its files is at hand any more."""
        for entry in list(self.live.values()):
            self.drop(entry)
        self.problem = problem
        self.scanned, self.full_in, self.look_due = False, None, math.inf
        self.revision += 1

    def _take_off(self, entry: Entry) -> None:
        del self.live[entry.id]
        self.pending_files -= 1
        self._forget_bytes(entry)

    def _forget_bytes(self, entry: Entry) -> None:
        self.pending_bytes -= max(0, entry.size - entry.bytes_copied)

    def resumed(self, entry: Entry, offset: int) -> None:
        """The bytes below *offset* are at the destination already, and verified."""
        # After a failed attempt they are this run's own, and counted.
        self.totals.bytes_resumed += max(0, offset - entry.bytes_copied)
        self.pending_bytes += entry.bytes_copied - offset
        entry.bytes_copied = entry.bytes_verified = offset
        self.revision += 1

    def copied(self, entry: Entry, count: int) -> None:
        """*count* more bytes were written."""
        count_new = min(count, entry.size - entry.bytes_copied)
        entry.bytes_copied += count_new
        self.pending_bytes -= count_new
        self.totals.bytes += count
        self.revision += 1

    def verified(self, entry: Entry, offset: int) -> None:
        """All below *offset* is durable and verified."""
        entry.bytes_verified = offset
        self.revision += 1

    def skip(self, path: bytes, reason: str) -> None:
        """Something that is no regular file was found, and is left where it is."""
        self._end_at_once(path, FileState.SKIPPED, reason, None)
        self.totals.skipped += 1

    def fail_folder(self, trouble: Trouble) -> None:
        """A folder cannot be read, or made: what is below it is not transferred."""
        entry = self._end_at_once(trouble.path, FileState.FAILED, str(trouble), trouble)
        self.remark(entry, FileState.FAILED, str(trouble))  # it has no outcome in the ledger
        self.totals.failed += 1

    def _end_at_once(self, path: bytes, state: FileState, reason: str, trouble: Trouble | None) -> Entry:
        number = next(self._ids)
        entry = Entry(id=number, path=path, size=0, job=self.job, state=state, reason=reason, trouble=trouble)
        self.revision += 1
        for listener in self.listeners:
            listener(entry)
        return entry

    def remark(self, entry: Entry, event: str, text: str) -> None:
        """Say something about a file that is no change of its state, for who asks about it later."""
        for listener in self.remarks:
            listener(entry, event, text)

    def set_source(self, text: str | None) -> None:
        """The source is well (None), or what is wrong with it."""
        if text != self.source:
            self.source = text
            self.revision += 1
            self._tell_of_end(Side.SOURCE, "source", text)

    def set_destination(self, text: str | None) -> None:
        """The destination is well (None), or what is wrong with it."""
        if text != self.destination:
            self.destination = text
            self.revision += 1
            self._tell_of_end(Side.DESTINATION, "storage", text)

    def _tell_of_end(self, side: Side, what: str, text: str | None) -> None:
        if text is None:
            self.notice(what, f"the {side} is usable again", level="info", event=f"{side}.returned")
        else:
            self.notice(what, f"{side} {text}", event=f"{side}.lost", reason=text)

    def set_lack(self, what: str, text: str | None) -> None:
        """The agent itself waits for *what*: a process, its ledger. None: it has it again."""
        if text != self.lacks.get(what):
            if text is None:
                del self.lacks[what]
                self.notice("agent", f"{what}: it works again", level="info", event="agent.recovered", lack=what)
            else:
                if what not in self.lacks:
                    self.notice("agent", f"{what}: {text}", event="agent.hindered", lack=what, reason=text)
                self.lacks[what] = text
            self.revision += 1

    def set_paused(self, paused: bool) -> None:
        """An operator has stopped all copying for a while, or lets it go on."""
        if paused != self.paused:
            self.paused = paused
            self.revision += 1
            done = "paused" if paused else "resumed"
            self.notice("control", done, level="info", event=f"agent.{done}")

    @property
    def waits_for(self) -> str | None:
        """Say what all files wait for, and why; None where they need not wait."""
        return "; ".join(self.outages) or None

    @property
    def wait(self) -> Wait:
        """The end that all files wait for: the source first, as nothing can be read."""
        return Wait.DESTINATION if self.source is None else Wait.SOURCE

    @property
    def outages(self) -> list[str]:
        """Say what ended the job; or what is wrong with each end that cannot be used, and with the agent itself."""
        if self.problem is not None:
            return [str(self.problem)]
        ends = [f"{side} {text}" for side in Side if (text := self.wrong_with(side)) is not None]
        return [*ends, *(f"{what}: {text}" for what, text in self.lacks.items())]

    def wrong_with(self, side: Side) -> str | None:
        """Say what is wrong with one end, or None."""
        return self.source if side == Side.SOURCE else self.destination

    @property
    def boards(self) -> Sequence[Board]:
        """Those of all jobs: this one."""
        return (self,)

    @property
    def heralds(self) -> Sequence[Herald]:
        """All that have something to tell: this one."""
        return (self,)
