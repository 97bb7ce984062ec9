"""
The scanner: finds the files of the source, and decides when each is ready to be copied.

Events are hints, scans are the truth: an event only makes it look earlier. What it looks at, it looks at through a
mover.

A file is **ready** when nobody has it open for writing and it has been quiet here, on our own clock, for
``settle_closed`` where the former is proved, for ``settle`` where it is not. An old file is ready at once: the mover
that opens it to copy it asks for the proof, and the file comes back if there is none. Where files have markers, one
whose marker is there needs no quiet time, and one without is not ready.

A file is **growing** when somebody has it open for writing, or it was seen to have grown, and it is large enough: it is
copied while it is being written, in a lane of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import attrs
import trio

from trioft.config import options
from trioft.config.options import Config
from trioft.core import answers
from trioft.core.answers import Folder, Listing
from trioft.core.errors import FileTrouble, Trouble, show_path
from trioft.core.model import BUNDLE_FILE_SIZE, FileState, Fingerprint, Found, Job, Manner
from trioft.core.naming import Wanted
from trioft.movers.client import Destination, Source
from trioft.movers.events import Changes
from trioft.pipeline.backlog import UNMARKED, Backlog, Pending
from trioft.pipeline.pace import Pace, Told
from trioft.pipeline.storage import Storage
from trioft.pipeline.walk import Walk
from trioft.state import proofs
from trioft.state.board import Board
from trioft.state.ledger import ARRIVED, Known, Ledger, Port

_STAMPS = 50_000  # folders of which is remembered that there is nothing to do
_LOOKS = 256  # files looked at in one call

_HELD = "somebody has it open for writing"


@attrs.define(kw_only=True)
class Scanner:
    """The state of one scanner task. ``once`` is sync: one scan, then the rest of the work."""

    config: Config
    once: bool
    only: bytes | None  # the one file to transfer
    own: tuple[str, ...]  # patterns of what is not to be transferred beside `source.exclude`
    board: Board
    backlog: Backlog
    storage: Storage
    ledger: Port
    source: Source
    destination: Destination
    manner: Manner
    changes: Changes
    # Folders in which there was nothing to do, with their stamps: while these hold, the ledger is not asked again.
    _idle: dict[bytes, bytes] = attrs.field(factory=dict, init=False)
    _told: Told = attrs.field(factory=Told, init=False)  # skipped files and unreadable folders
    _incomplete: bool = attrs.field(default=False, init=False)  # the last scan found more than there was room for
    _is_cut: bool = attrs.field(default=False, init=False)  # it ended before it had looked at everything
    _jobs: trio.MemorySendChannel[Job] = attrs.field(init=False)
    _growing: trio.MemorySendChannel[Job] = attrs.field(init=False)
    # The settings that the last scan was made with.
    _scanned_for: options.Source | None = attrs.field(default=None, init=False)
    _walk: Walk = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._walk = Walk(
            config=self.config,
            once=self.once,
            own=self.own,
            storage=self.storage,
            source=self.source,
            destination=self.destination,
            manner=self.manner,
        )

    def renew(self) -> None:
        """Other settings hold: let go of files that are not wanted any more; what a copier has is copied."""
        wanted = Wanted(self.config.source.include, self._walk.exclude)
        for pending in self.backlog.at_rest():
            if self.only is None and not wanted.file(pending.found.path):
                self.backlog.leave(pending, "it is not to be transferred any more")
        self.backlog.wake()

    async def run(self, jobs: trio.MemorySendChannel[Job], growing: trio.MemorySendChannel[Job]) -> None:
        """
        Scan, wait, look, and hand out *jobs*, those of *growing* files in a lane of their own.

        Ends, once, when everything that was found has come to its end. Else runs until cancelled.
        """
        self._jobs, self._growing = jobs, growing
        with jobs, growing, self.ledger:
            pace = Pace(once=self.once)
            while True:
                self._note_progress()
                if trio.current_time() >= pace.due:
                    begun, is_same = trio.current_time(), self._scanned_for is self.config.source
                    self.changes.scan_begins(after_all=is_same and not (self._incomplete or self._is_cut))
                    self._incomplete = self._is_cut = False
                    self._scanned_for = self.config.source
                    cost = await self._scan_all()
                    self.board.scanned, self.board.scan_seconds = True, trio.current_time() - begun
                    pace.scanned(cost)
                if await self._look_at_changes():
                    pace.hurry()
                if (text := self.changes.missed()) is not None:
                    self.board.notice_once("events", f"{text}; the source is scanned instead", event="events.missed")
                pace.keep(self.config.source.scan_interval, are_told=self.changes.are_told)
                if self._scanned_for is not self.config.source and not self.once:  # a sync would count files twice
                    pace.at_once()
                await self._serve()
                if self.once and not self.backlog and not self.changes:
                    return
                if self._incomplete and len(self.backlog) == 0:
                    pace.at_once()
                    continue
                if not self.changes:
                    await self._rest_until(min(pace.due, self.backlog.next_due(), self.changes.judged_at))
                self.backlog.changed = trio.Event()

    async def _rest_until(self, time: float) -> None:
        """Return at *time*, or when the backlog changes."""
        self.board.look_due = time
        with trio.move_on_at(time):
            await self.backlog.changed.wait()
        self._note_progress()

    def _note_progress(self) -> None:
        self.board.look_due = trio.current_time()

    # --- scanning

    async def _scan_all(self) -> float:
        """Scan the whole source; return the processor time it took, in seconds."""
        if self.only is not None:
            await self._look_at([self.only])
            return 0.0
        former, self._idle = self._idle, {}
        self._walk.is_partial = False
        cost = await self._scan([b""], former, is_all=True)
        self._is_cut = self._is_cut or self._walk.is_partial
        return cost

    async def _scan(self, folders: list[bytes], idle: dict[bytes, bytes], *, is_all: bool = False) -> float:
        """Scan *folders* and those below them, but for files of *idle* ones; return the processor time it took."""
        cost = 0.0
        while folders:
            self._note_progress()
            listings = await self._walk.read(folders, idle)
            if listings is None:
                self._is_cut = True
                return cost
            for trouble in self._walk.given_up():
                self.board.fail_folder(trouble)
            for listing in listings:
                begun = time.process_time()
                await self._take_in(listing, idle, is_all=is_all)
                await self._take_in_twins(listing.twins)
                cost += listing.seconds + time.process_time() - begun
                await self._serve()
        return cost

    async def _take_in(self, listing: Listing, idle: dict[bytes, bytes], *, is_all: bool) -> None:
        if listing.going:
            await self._put_back(listing)
        for path, reason in listing.skipped:
            if self._told.is_new(path):
                self.board.skip(path, reason)
        troubles = listing.troubles
        if listing.missing and not self.config.source.include:
            troubles = troubles + await self._walk.make_folders(listing.missing)
        for trouble in troubles:
            if self._told.is_new(trouble.path):
                self.board.fail_folder(trouble)
        if listing.alike:
            await self._take_in_alike(listing)
        self._remember((folder, idle[folder]) for folder in listing.unchanged)
        known: dict[bytes, Known] = {}
        filled = [folder.path for folder in listing.folders if folder.files]
        if filled and (not self.once or any(found.there for folder in listing.folders for found in folder.files)):
            paths = [found.path for folder in listing.folders for found in folder.files]
            known = await self.backlog.ask(self.ledger, Ledger.known_in, filled, paths)
        for folder in listing.folders:
            is_idle = True
            for found in folder.files:
                before = known.get(found.path)
                if found.there and before is not None and before.is_still(found.fingerprint):
                    self.board.totals.already += 1  # it had its marker: who waited for that has taken it away
                    continue
                await self._wait_for_room()
                is_new = before is None and found.marked is not False and self.backlog.get(found.path) is None
                if is_new and not self.once and is_all:
                    self.changes.found(found.path)
                is_idle = not self._consider(found, None if self.once else before) and is_idle
            if is_idle and folder.stamp:
                self._remember([(folder.path, folder.stamp)])

    async def _take_in_twins(self, twins: Sequence[Found]) -> None:
        """The destination has these, as far as size and time tell. Does the ledger know of another version?"""
        changed = await self.ledger.call(proofs.changed_since, twins) if twins else {}
        for found in twins:
            if found.path in changed:
                await self._wait_for_room()
                self._consider(found, changed[found.path])
            else:
                self.board.totals.already += 1

    async def _wait_for_room(self) -> None:
        """Return when the backlog takes another file: in a sync there is no other scan that would find the rest."""
        while self.once and self.backlog.is_full:
            await self._serve()
            await self._rest_until(self.backlog.next_due())
            self.backlog.changed = trio.Event()

    async def _put_back(self, listing: Listing) -> None:
        """What a run that was killed had taken aside, to be removed, gets its name again, and is looked at."""
        names, are_all = await self._walk.put_back(list(listing.going))
        for name in names:
            text = f"{show_path(name)}: put back: a run that was to remove it was killed"
            self.board.notice("source", text, level="info", event="source.kept", path=show_path(name))
        self.changes.add(names)
        if not are_all:
            await self._scan(list({folder.rpartition(b"/")[0] for folder in listing.going}), {})

    async def _take_in_alike(self, listing: Listing) -> None:
        """Something like these files is at the destination. Is it them? The ledger knows, or else a copier compares."""
        known = await self.ledger.call(Ledger.known, [found.path for found in listing.alike])
        others = []
        for found in listing.alike:
            its = known.get(found.path)
            is_known = its is not None and its.outcome in ARRIVED and its.is_still(found.fingerprint)
            if its is not None and is_known and its.target == found.target:
                self.board.totals.already += 1
            else:
                others.append(found)
        listing.folders.append(Folder(b"", others))

    def _remember(self, idle: Iterable[tuple[bytes, bytes]]) -> None:
        if len(self._idle) < _STAMPS:
            self._idle.update(idle)

    # --- deciding

    def _consider(self, found: Found, known: Known | None, writer: str = answers.UNKNOWN) -> bool:
        """A regular file was seen: is there anything to do about it?"""
        pending = self.backlog.get(found.path)
        if pending is not None:
            if pending.in_work or pending.is_paused:
                return True
            if pending.found.fingerprint != found.fingerprint:
                self._note_change(pending, found)
            elif pending.found.marked != found.marked and pending.entry.state != FileState.READY:
                self.backlog.look_again(pending, trio.current_time())
            return True
        if known is not None and not proofs.is_news(known, found.fingerprint):
            return False
        if self.backlog.is_full:
            self._incomplete = True
            return True
        if found.marked is False and len(self.backlog) >= UNMARKED:
            return True  # another scan takes it in, if nobody needs the room then
        now = trio.current_time()
        pending = self.backlog.add(found, now + self.config.source.settle_closed)
        # One that failed would only fail again, at each write; one that was delivered has to be closed to be removed.
        pending.closed_only = known is not None and (known.outcome == "failed" or known.is_alike(found.fingerprint))
        if writer == answers.BUSY and self._may_be_followed(pending):
            self.backlog.make_growing(pending)
        elif found.marked:
            self.backlog.look_again(pending, now)
        elif self._is_old(found.fingerprint):
            if self._may_be_followed(pending):
                # Its writer may only pause: asked before it waits behind others, who would find out late.
                pending.was_quiet = True
                self.backlog.look_again(pending, now)
            elif found.marked is False:
                self.backlog.lacks_marker(pending, self.manner.markers.source, once=self.once)
            else:
                self.backlog.make_ready(pending)
        elif found.marked is False and not (self.once or self._may_be_followed(pending)):
            self.backlog.lacks_marker(pending, self.manner.markers.source, once=False)
        return True

    def _may_be_followed(self, pending: Pending) -> bool:
        growing, found = self.config.growing, pending.found
        is_large = found.fingerprint.size >= growing.min_size
        if growing.mode != "follow" or not is_large or pending.closed_only:
            return False
        return Wanted(growing.include, growing.exclude).file(found.path)

    def _is_old(self, fingerprint: Fingerprint) -> bool:
        """Is its last change, by the wall clock, longer ago than ``settle``? A proof says whether to believe it."""
        return time.time() - fingerprint.changed_ns / 1e9 > self.config.source.settle

    def _note_change(self, pending: Pending, found: Found, writer: str = answers.UNKNOWN) -> None:
        has_grown = pending.is_version_of(found) and found.fingerprint.size > pending.found.fingerprint.size
        quiet = 0 if found.marked else self.config.source.settle_closed
        self.backlog.replace(pending, found, trio.current_time() + quiet)
        if self.once and self.config.growing.mode == "wait":
            self._leave(pending)
        elif (has_grown or writer == answers.BUSY) and self._may_be_followed(pending):
            self.backlog.make_growing(pending)

    async def _serve(self) -> None:
        """Look at the files whose time has come, and hand out what is ready."""
        while due := self.backlog.pop_due(_LOOKS):
            await self._look_at([pending.found.path for pending in due])
        self.backlog.offer(self._jobs, self._growing)

    async def _look_at_changes(self) -> bool:
        """
        Look at what events told of, and return whether anything else may have changed too.

        Folders are scanned: what lies in one that was moved in has no events.
        """
        paths, everything = self.changes.take()
        for start in range(0, len(paths), _LOOKS):
            if folders := await self._look_at(paths[start : start + _LOOKS]):
                await self._scan(folders, {})
        return everything

    async def _look_at(self, paths: list[bytes]) -> list[bytes]:
        """Look at *paths*, and return those of them that are folders."""
        source, hung = self.config.source, self.storage.hung
        if hung:
            paths, left = hung.sort_out(paths)
            for path in left:
                self._look_later(path)
            if not paths:
                return []
        try:
            markers, routes = self.manner.markers, self.manner.routes
            looks = await self.source.look(paths, source.include, self._walk.exclude, markers, routes)
        except FileTrouble as error:
            if self.once and self.only is not None and not self.backlog:
                raise  # the one file to transfer: nothing would be left to wait for, as if it had arrived
            if hung.note(error.trouble) is not None:
                return await self._look_at(paths)
            self.storage.suspect(error.trouble)
            new = [path for path in paths if not self._look_later(path)]
            if self.once and new:
                await self._see_later({path: error.trouble._replace(path=path) for path in new})
            return []
        known: dict[bytes, Known] = {}
        seen = [look.path for look in looks if look.found]
        if not self.once:
            new = [path for path in seen if self.backlog.get(path) is None]
            known = await self.backlog.ask(self.ledger, Ledger.known, new, seen)
        for look in looks:
            pending = self.backlog.get(look.path)
            if pending is None:
                if look.found is not None:
                    self._walk.unseen.pop(look.path, None)
                    self._consider(look.found, known.get(look.path), look.writer)
                elif look.trouble is not None and self.once:
                    await self._see_later({look.path: look.trouble})
            elif pending.in_work or pending.is_paused:
                continue  # its copier will notice by itself
            elif look.kind == "unreadable":
                self.backlog.make_ready(pending)  # the copier meets the same error, and knows what to do about it
            elif look.found is None:
                await self._lose(pending)
            elif look.found.fingerprint != pending.found.fingerprint:
                self._note_change(pending, look.found, look.writer)
            elif pending.entry.state != FileState.READY:
                pending.found = look.found
                self._decide(pending, look.writer)
        return [look.path for look in looks if look.kind == "folder"]

    def _look_later(self, path: bytes) -> bool:
        """A file cannot be looked at now: do so in a while, if it was known before. Return whether it was."""
        if (pending := self.backlog.get(path)) is not None and not pending.in_work:
            self.backlog.look_again(pending, trio.current_time() + self.config.source.scan_interval)
        return pending is not None

    async def _see_later(self, troubles: dict[bytes, Trouble]) -> None:
        """A sync was told of files that cannot be looked at: have that tried again, as far as there is hope."""
        again, given_up = await self._walk.look_again(troubles)
        self.changes.add(again)
        for trouble in given_up:
            self.board.fail_folder(trouble)

    def _decide(self, pending: Pending, writer: str) -> None:
        """A file is unchanged since the last look: is it ready?"""
        source, now = self.config.source, trio.current_time()
        # As sums, not differences: what is due by now must not, for a rounding error, be due at once for ever.
        marked = pending.found.marked
        closed_at = pending.since + (0 if pending.was_quiet or marked else source.settle_closed)
        settled_at = pending.since + (0 if marked else source.settle)
        pending.settled = now >= settled_at
        if writer == answers.BUSY:
            if self.once and self.config.growing.mode == "wait":
                self._leave(pending)
                return
            if self._may_be_followed(pending):
                self.backlog.make_growing(pending)
                return
            self.board.move(pending.entry, FileState.SETTLING, _HELD)
            self.backlog.look_again(pending, now + max(source.settle_closed, 0.1))
        elif marked is False:
            # A marker comes a moment after its file: a sync, which would not find it later, waits for as long.
            if self.once and now < settled_at and not pending.was_quiet:
                self.backlog.look_again(pending, settled_at)
            else:
                self.backlog.lacks_marker(pending, self.manner.markers.source, once=self.once)
        elif pending.settled or (writer == answers.CLOSED and now >= closed_at):
            self.backlog.make_ready(pending)
        else:
            self.backlog.look_again(pending, closed_at if writer == answers.CLOSED else settled_at)

    async def _lose(self, pending: Pending) -> None:
        """A file is gone. It may have got another name, which a sync would not hear of, and be continued under that."""
        is_large = pending.entry.size > BUNDLE_FILE_SIZE
        if is_large or self.once:
            found = pending.found
            try:
                name = await self.source.locate(found.path, found.fingerprint[:2], everywhere=is_large)
            except FileTrouble as error:
                if not self._has(pending):
                    return
                self.board.notice_once("source", f"cannot find out whether a file was renamed: {error}")
                pending.entry.attempt += 1
                if pending.entry.attempt <= self.config.retry.retries:
                    self.backlog.look_again(pending, trio.current_time() + self.config.retry.first)
                else:
                    self.backlog.make_ready(pending)  # a copier meets the same error, and gives it up
                return
            if name is not None:
                self.changes.add([name])
            if not self._has(pending):
                return
        if pending.entry.strategy:
            self.backlog.make_ready(pending)  # it has been begun: a copier finds it gone, and clears up what it wrote
        else:
            self.backlog.finished(pending, FileState.GONE)

    def _has(self, pending: Pending) -> bool:
        """Is a file still the scanner's? While it waited for an answer, a copier may have taken it, or ended it."""
        return self.backlog.find(pending.entry.id) is pending and not pending.in_work

    def _leave(self, pending: Pending) -> None:
        self.board.totals.busy += 1
        self.backlog.leave(pending, "still being written: left for the next run")
