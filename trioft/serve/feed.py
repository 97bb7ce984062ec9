"""
The feed: the state of the agent as *changes since a cursor*. Pure: it knows no socket, and never waits for anybody.

Every change of a file gives it the next revision and moves it to the end of one ordered map. What a client at revision
R has not seen is what lies behind R there; a snapshot is what lies behind 0. So a change costs the same for no client
and for a thousand, a client is two integers, and one that reads slowly gets fewer, fresher messages: nothing is queued
for it. A file is rendered once per change, and a message once for all clients at the same cursor.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import operator
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import attrs
import trio

from trioft.core.model import FINAL, FileState
from trioft.core.units import timestamp
from trioft.pipeline.throttle import Rate
from trioft.state.board import Board, Entry
from trioft.state.fields import file_entry
from trioft.state.overview import Overview

# Bytes after which a message is cut; what is left comes in the next one.
MESSAGE = 64 * 1024
# The newest finished files that are kept, and the newest removals that are remembered.
FINISHED = 1_000
REMOVED = 1_000

_MOVING = (FileState.COPYING, FileState.VERIFYING)
Sections = Callable[[], Mapping[str, object]]


class Cursor(NamedTuple):
    """
    What a client has: everything up to revision *rev*.

    *floor* is the newest forgotten removal when it began from nothing: what had been removed before that, it never had.
    Without it, a snapshot in several parts would begin again for ever, as its oldest parts are older than that.
    """

    rev: int
    floor: int


@attrs.define(eq=False)
class _Record:
    """A file in the feed."""

    rev: int
    entry: Entry
    text: str | None = None  # rendered when it is first asked for
    shown: tuple[object, ...] = ()  # what of a file on its way is not told by its state
    rate: Rate = attrs.field(factory=Rate)
    rate_now: float | None = None
    finished_at: datetime | None = None


class Feed:
    """
    The state of one run.

    *sections* returns what there is to be told beside the files: ``agent``, ``source``, ``destination``, ``totals``,
    and ``jobs`` where there are several.
    """

    def __init__(self, board: Board | Overview, sections: Sections) -> None:
        self.epoch = str(time.time_ns())  # revisions of one process mean nothing to another
        self.head = 0
        self._board = board
        self._read_sections = sections
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._finished: deque[int] = deque()
        self._removed: deque[tuple[int, int]] = deque()  # revision, id
        self._floor = 0  # the newest removal that is forgotten
        self._sections: dict[str, tuple[int, object]] = {}
        self._messages: dict[Cursor, tuple[str, Cursor]] = {}  # of this head
        for one in board.boards:
            one.listeners.append(self.changed)
            one.dropped.append(self.remove)
            for entry in one.live.values():
                self.changed(entry)

    def changed(self, entry: Entry) -> None:
        """*entry* has another state, or anything else that is told of it."""
        self._bump()
        record = self._records.get(entry.id)
        if record is None:
            record = self._records[entry.id] = _Record(self.head, entry)
        record.rev, record.text = self.head, None
        self._records.move_to_end(entry.id)
        if entry.state in FINAL and record.finished_at is None:
            record.finished_at = datetime.now(UTC)
            self._finished.append(entry.id)
            if len(self._finished) > FINISHED:
                self._forget(self._finished.popleft())

    def remove(self, entry: Entry) -> None:
        """*entry* is none of the agent's business any more."""
        if entry.id in self._records:
            with contextlib.suppress(ValueError):
                self._finished.remove(entry.id)
            self._forget(entry.id)

    def _forget(self, number: int) -> None:
        self._bump()
        del self._records[number]
        self._removed.append((self.head, number))
        if len(self._removed) > REMOVED:
            self._floor, _ = self._removed.popleft()

    def _bump(self) -> None:
        self.head += 1
        self._messages.clear()

    def tick(self) -> None:
        """Notice what changes without an event: progress, rates, sections. To be called a few times a second."""
        now = trio.current_time()
        for entry in itertools.chain.from_iterable(one.live.values() for one in self._board.boards):
            if entry.id not in self._records:  # it was found, and is in its first state still
                self.changed(entry)
            if entry.state in _MOVING or entry.growing:
                record = self._records[entry.id]
                record.rate_now = record.rate.add(now, entry.bytes_copied) if entry.state in _MOVING else None
                shown = (entry.size, entry.bytes_copied, entry.bytes_verified, entry.bytes_compared, entry.lag_bytes)
                if shown != record.shown:
                    record.shown = shown
                    self.changed(entry)
        for name, fields in self._read_sections().items():
            if name not in self._sections or self._sections[name][1] != fields:
                self._bump()
                self._sections[name] = self.head, fields

    def entry_of(self, number: int) -> Entry | None:
        """Return the file with this id, live or finished lately."""
        record = self._records.get(number)
        return None if record is None else record.entry

    # --- for clients

    def begin(self, epoch: str | None = None, since: int = 0) -> Cursor:
        """Return the cursor of a client that has all up to *since* of *epoch*; if that does not help, of a new one."""
        if epoch == self.epoch and self._floor <= since <= self.head:
            return Cursor(since, self._floor)
        return Cursor(0, self._floor)

    def is_complete(self, cursor: Cursor) -> bool:
        return cursor.rev >= self.head

    def message(self, cursor: Cursor) -> tuple[str, Cursor]:
        """Return what a client at *cursor* has not seen, or the first part of it, and where that brings the client."""
        if (known := self._messages.get(cursor)) is None:
            known = self._messages[cursor] = self._make(cursor)
        return known

    def snapshot(self) -> str:
        """Return everything as one message."""
        text, _ = self._make(Cursor(0, self._floor), most=sys.maxsize)
        return text

    def _make(self, cursor: Cursor, most: int | None = None) -> tuple[str, Cursor]:
        most = MESSAGE if most is None else most
        if cursor.rev < self._floor and cursor.floor < self._floor:
            cursor = Cursor(0, self._floor)  # it may have files of which nobody knows any more that they are gone
        reset = cursor.rev == 0
        removed = [] if reset else [(rev, number, None) for rev, number in self._removed if rev > cursor.rev]
        files: list[str] = []
        gone: list[int] = []
        rev, size = self.head, 0
        for at, number, record in heapq.merge(self._after(cursor.rev), removed, key=operator.itemgetter(0)):
            text = str(number) if record is None else self._text(record)
            if size + len(text) > most and size:
                break
            size += len(text) + 2
            rev = at
            if record is None:
                gone.append(number)
            else:
                files.append(text)
        else:
            rev = self.head
        fields: dict[str, object] = {
            "type": "state",
            "v": 1,
            "epoch": self.epoch,
            "rev": rev,
            "head": self.head,
            "reset": reset,
            "time": timestamp(datetime.now(UTC)),
        }
        fields |= {name: section for name, (at, section) in self._sections.items() if reset or at > cursor.rev}
        text = f'{json.dumps(fields)[:-1]}, "files": [{", ".join(files)}], "gone": {json.dumps(gone)}}}'
        return text, Cursor(rev, cursor.floor)

    def _after(self, rev: int) -> Iterable[tuple[int, int, _Record | None]]:
        """Return revision, id and record of the files behind *rev*, oldest first."""
        records = itertools.takewhile(lambda record: record.rev > rev, reversed(self._records.values()))
        return [(record.rev, record.entry.id, record) for record in records][::-1]

    def _text(self, record: _Record) -> str:
        if record.text is None:
            record.text = file_entry(record.entry, rate=record.rate_now, finished_at=record.finished_at)
        return record.text
