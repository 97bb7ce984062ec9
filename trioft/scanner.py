"""
The scanner: finds the files of the source, and decides when each is ready to be copied.

Events are hints, scans are the truth: an event only makes it look earlier. What it looks at, it looks at through a
mover.

A file is **ready** when nobody has it open for writing and it has been quiet here, on our own clock, for
``settle_closed`` where the former is proved, for ``settle`` where it is not. An old file is ready at once: the mover
that opens it to copy it asks for the proof, and the file comes back if there is none.

A file is **growing** when somebody has it open for writing, or it was seen to have grown, and it is large enough: it is
copied while it is being written, in a lane of its own.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Iterable

import attrs
import trio

from trioft import writers
from trioft.backlog import Backlog, Pending
from trioft.board import Board
from trioft.config import Config, Source
from trioft.errors import FileTrouble, Remedy, Side, Trouble, classify
from trioft.events import Changes
from trioft.ledger import Known, Ledger, Port
from trioft.model import BUNDLE_FILE_SIZE, FileState, Fingerprint, Found, Job, Manner
from trioft.movers import Call
from trioft.naming import Wanted
from trioft.storage import Storage
from trioft.surveyio import Listing, Look

# Of a core, what scanning may take at most: where nothing but scans tells of new files, and where events do.
_SHARE, _SHARE_WITH_EVENTS = 0.05, 0.01
_SCANS = 3  # calls at a time: a server that is slow to answer has more than one question to think about
_BATCH = 16, 500  # folders handed to one call: so many where there are few, and at most; the rest waits here
_STAMPS = 50_000  # folders of which is remembered that there is nothing to do
_LOOKS = 256  # files looked at in one call
_RETOLD = 10_000  # skipped files and unreadable folders that are remembered, so that each is told once

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
    call: Call
    manner: Manner
    changes: Changes
    # Folders in which there was nothing to do, with their stamps: while these hold, the ledger is not asked again.
    _idle: dict[bytes, bytes] = attrs.field(factory=dict, init=False)
    _told: OrderedDict[bytes, None] = attrs.field(factory=OrderedDict, init=False)
    _incomplete: bool = attrs.field(default=False, init=False)  # the last scan found more than there was room for
    _jobs: trio.MemorySendChannel[Job] = attrs.field(init=False)
    _growing: trio.MemorySendChannel[Job] = attrs.field(init=False)
    _scanned_for: Source = attrs.field(init=False)  # the settings that the last scan was made with
    _unseen: dict[bytes, int] = attrs.field(factory=dict, init=False)  # what a sync could not look at, and how often
    _refused: int = attrs.field(default=0, init=False)  # looks at the destination that failed while its probes succeed

    @property
    def exclude(self) -> tuple[str, ...]:
        return (*self.config.source.exclude, *self.own)

    def renew(self) -> None:
        """Other settings hold: let go of files that are not wanted any more; what a copier has is copied."""
        wanted = Wanted(self.config.source.include, self.exclude)
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
            next_scan = rested = -math.inf
            while True:
                self._note_progress()
                if trio.current_time() >= next_scan:
                    self._incomplete, begun, self._scanned_for = False, trio.current_time(), self.config.source
                    cost = await self._scan_all()
                    self.board.scanned, self.board.scan_seconds = True, trio.current_time() - begun
                    share = _SHARE_WITH_EVENTS if self.changes.are_told else _SHARE
                    rested = trio.current_time() + cost / share
                    pause = self.config.source.scan_interval
                    next_scan = math.inf if self.once else max(rested, trio.current_time() + pause)
                if await self._look_at_changes():
                    next_scan = min(next_scan, rested)
                if self._scanned_for is not self.config.source and not self.once:  # a sync would count files twice
                    next_scan = -math.inf
                await self._serve()
                if self.once and not self.backlog and not self.changes:
                    return
                if self._incomplete and len(self.backlog) == 0:
                    next_scan = -math.inf
                    continue
                if not self.changes:
                    await self._rest_until(min(next_scan, self.backlog.next_due()))
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
        return await self._scan([b""], former)

    async def _scan(self, folders: list[bytes], idle: dict[bytes, bytes]) -> float:
        """Scan *folders* and those below them, but for files of *idle* ones; return the processor time it took."""
        cost = 0.0
        while folders:
            self._note_progress()
            fewest, most = _BATCH
            size = min(most, max(fewest, -(-len(folders) // _SCANS)))
            batches = [folders[max(0, end - size) : end] for end in range(len(folders), 0, -size)[:_SCANS]]
            del folders[-sum(map(len, batches)) :]
            listings: list[Listing] = []
            troubles: list[Trouble] = []
            async with trio.open_nursery() as nursery:
                for batch in batches:
                    nursery.start_soon(self._read, batch, idle, folders, listings, troubles)
            if troubles and not await self._cope(troubles[0]):
                return cost
            for listing in listings:
                begun = time.process_time()
                self.board.totals.already += listing.already
                await self._take_in(listing, idle)
                cost += listing.seconds + time.process_time() - begun
                await self._serve()
        return cost

    async def _read(
        self,
        batch: list[bytes],
        idle: dict[bytes, bytes],
        folders: list[bytes],
        listings: list[Listing],
        troubles: list[Trouble],
    ) -> None:
        """Have a mover read a *batch* of folders. Those that are still to be read are added to *folders*."""
        ends, compared = self.storage.ends, self.once
        try:
            listing: Listing = await self.call(
                "scan",
                ends.source,
                batch,
                None if compared else {folder: idle[folder] for folder in batch if folder in idle},
                self.config.source.include,
                self.exclude,
                ends.destination if compared else None,
                None if self.manner.prove_existing else self.manner,
            )
        except FileTrouble as error:
            folders += batch
            # A mover that got stuck cannot say on which side: without a comparison there is only one.
            troubles.append(error.trouble if compared else error.trouble._replace(side=Side.SOURCE))
        else:
            self._refused = 0
            folders += listing.rest
            listings.append(listing)

    async def _cope(self, trouble: Trouble) -> bool:
        """A scan failed as a whole. True: the end is back, go on. False: let the next scan try again."""
        outages, retry = self.storage.outages, self.config.retry
        self.storage.suspect(trouble)
        if trouble.side == Side.SOURCE and not self.once:
            await self.storage.gates[Side.SOURCE].usable()
            return self.storage.outages != outages
        await self.storage.usable()
        # If the probe succeeds, it is not the end, it is this folder there.
        self._refused = self._refused + 1 if self.storage.outages == outages else 0
        if self.once and self._refused > retry.retries:
            raise FileTrouble(trouble)
        await trio.sleep(min(retry.longest, retry.first * self._refused))
        return True

    async def _take_in(self, listing: Listing, idle: dict[bytes, bytes]) -> None:
        for path, reason in listing.skipped:
            if self._tell_once(path, reason):
                self.board.skip(path, reason)
        for trouble in listing.troubles:
            if self._tell_once(trouble.path, str(trouble)):
                self.board.fail_folder(trouble)
        if listing.missing and not self.config.source.include:
            await self._make_folders(listing.missing)
        self._remember((folder, idle[folder]) for folder in listing.unchanged)
        known: dict[bytes, Known] = {}
        filled = [folder.path for folder in listing.folders if folder.files]
        if filled and not self.once:
            known = await self.ledger.call(Ledger.known_in, filled)
        for folder in listing.folders:
            is_idle = True
            for found in folder.files:
                while self.once and self.backlog.is_full:  # there is no other scan that would find the rest
                    await self._serve()
                    await self._rest_until(self.backlog.next_due())
                    self.backlog.changed = trio.Event()
                is_idle = not self._consider(found, known.get(found.path)) and is_idle
            if is_idle and folder.stamp:
                self._remember([(folder.path, folder.stamp)])

    def _remember(self, idle: Iterable[tuple[bytes, bytes]]) -> None:
        if len(self._idle) < _STAMPS:
            self._idle.update(idle)

    async def _make_folders(self, folders: list[bytes]) -> None:
        """Make folders that the destination does not have, empty ones too. A file meets again what fails here."""
        retry = self.config.retry
        for attempt in itertools.count(1):
            await self.storage.usable()
            ends = self.storage.ends
            try:
                troubles = await self.call("make_folders", ends.source, ends.destination, folders)
            except FileTrouble as error:
                if await self._cope(error.trouble):
                    continue
                return
            for trouble in troubles:
                remedy = classify(trouble)
                if remedy == Remedy.DESTINATION:
                    self.storage.suspect(trouble)
                if remedy == Remedy.GIVE_UP or attempt > retry.retries:
                    folders = [folder for folder in folders if folder != trouble.path]
                    if self._tell_once(trouble.path, str(trouble)):
                        self.board.fail_folder(trouble)
            failed = {trouble.path for trouble in troubles}
            folders = [folder for folder in folders if folder in failed]
            if not folders:
                return
            await trio.sleep(retry.pause(attempt))

    def _tell_once(self, path: bytes, text: str) -> bool:
        if path in self._told:
            return False
        self._told[path] = None
        if len(self._told) > _RETOLD:
            self._told.popitem(last=False)
        return True

    # --- deciding

    def _consider(self, found: Found, known: Known | None, writer: str = writers.UNKNOWN) -> bool:
        """A regular file was seen: is there anything to do about it?"""
        pending = self.backlog.get(found.path)
        if pending is not None:
            if pending.found.fingerprint != found.fingerprint and not pending.in_work and not pending.is_paused:
                self._note_change(pending, found)
            return True
        # One whose removal is pending was delivered by a run that was killed then: its delivery is proved once more.
        if known is not None and known.is_still(found.fingerprint) and known.removal != "pending":
            return False
        if self.backlog.is_full:
            self._incomplete = True
            return True
        now = trio.current_time()
        pending = self.backlog.add(found, now + self.config.source.settle_closed)
        # One that failed would only fail again, at each write; one that was delivered has to be closed to be removed.
        pending.closed_only = known is not None and (known.outcome == "failed" or known.is_still(found.fingerprint))
        if writer == writers.BUSY and self._may_be_followed(pending):
            self.backlog.make_growing(pending)
        elif self._is_old(found.fingerprint):
            if self._may_be_followed(pending):
                # Its writer may only pause: asked before it waits behind others, who would find out late.
                pending.was_quiet = True
                self.backlog.look_again(pending, now)
            else:
                self.backlog.make_ready(pending)
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

    def _note_change(self, pending: Pending, found: Found, writer: str = writers.UNKNOWN) -> None:
        has_grown = pending.is_version_of(found) and found.fingerprint.size > pending.found.fingerprint.size
        self.backlog.replace(pending, found, trio.current_time() + self.config.source.settle_closed)
        if self.once and self.config.growing.mode == "wait":
            self._leave(pending)
        elif (has_grown or writer == writers.BUSY) and self._may_be_followed(pending):
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
        looks: list[Look]
        source = self.config.source
        try:
            looks = await self.call("look", self.storage.ends.source, paths, source.include, self.exclude)
        except FileTrouble as error:
            if self.once and not self.backlog:
                raise  # the one file to transfer: nothing would be left to wait for, as if it had arrived
            self.storage.suspect(error.trouble._replace(side=Side.SOURCE))
            for path in paths:
                if (pending := self.backlog.get(path)) is not None and not pending.in_work:
                    self.backlog.look_again(pending, trio.current_time() + source.scan_interval)
            return []
        known: dict[bytes, Known] = {}
        new = [look.path for look in looks if look.found and self.backlog.get(look.path) is None]
        if new and not self.once:
            known = await self.ledger.call(Ledger.known, new)
        for look in looks:
            pending = self.backlog.get(look.path)
            if pending is None:
                if look.found is not None:
                    self._unseen.pop(look.path, None)
                    self._consider(look.found, known.get(look.path), look.writer)
                elif look.trouble is not None and self.once:
                    await self._see_later(look.path, look.trouble)
            elif pending.in_work or pending.is_paused:
                continue  # its copier will notice by itself
            elif look.kind == "unreadable":
                self.backlog.make_ready(pending)  # the copier meets the same error, and knows what to do about it
            elif look.found is None:
                await self._lose(pending)
            elif look.found.fingerprint != pending.found.fingerprint:
                self._note_change(pending, look.found, look.writer)
            elif pending.entry.state != FileState.READY:
                self._decide(pending, look.writer)
        return [look.path for look in looks if look.kind == "folder"]

    async def _see_later(self, path: bytes, trouble: Trouble) -> None:
        """A sync was told of a file that cannot be looked at, and there is no other scan that would find it."""
        retry = self.config.retry
        self._unseen[path] = self._unseen.get(path, 0) + 1
        if self._unseen[path] <= retry.retries:
            await trio.sleep(retry.pause(self._unseen[path]))
            self.changes.add([path])
        else:
            self.board.fail_folder(trouble)

    def _decide(self, pending: Pending, writer: str) -> None:
        """A file is unchanged since the last look: is it ready?"""
        source, now = self.config.source, trio.current_time()
        # As sums, not differences: what is due by now must not, for a rounding error, be due at once for ever.
        closed_at = pending.since + (0 if pending.was_quiet else source.settle_closed)
        settled_at = pending.since + source.settle
        pending.settled = now >= settled_at
        if writer == writers.BUSY:
            if self.once and self.config.growing.mode == "wait":
                self._leave(pending)
                return
            if self._may_be_followed(pending):
                self.backlog.make_growing(pending)
                return
            self.board.move(pending.entry, FileState.SETTLING, _HELD)
            self.backlog.look_again(pending, now + max(source.settle_closed, 0.1))
        elif pending.settled or (writer == writers.CLOSED and now >= closed_at):
            self.backlog.make_ready(pending)
        else:
            self.backlog.look_again(pending, closed_at if writer == writers.CLOSED else settled_at)

    async def _lose(self, pending: Pending) -> None:
        """A file is gone. It may have got another name, which a sync would not hear of, and be continued under that."""
        is_large = pending.entry.size > BUNDLE_FILE_SIZE
        if is_large or self.once:
            source, found = self.storage.ends.source, pending.found
            try:
                name = await self.call("locate", source, found.path, found.fingerprint[:2], is_large)
            except FileTrouble as error:
                self.board.notice_once("source", f"cannot find out whether a file was renamed: {error}")
                pending.entry.attempt += 1
                if pending.entry.attempt <= self.config.retry.retries:
                    self.backlog.look_again(pending, trio.current_time() + self.config.retry.first)
                else:
                    self.backlog.make_ready(pending)  # a copier meets the same error, and gives it up
                return
            if name is not None:
                self.changes.add([name])
        if pending.entry.strategy:
            self.backlog.make_ready(pending)  # it has been begun: a copier finds it gone, and clears up what it wrote
        else:
            self.backlog.finished(pending, FileState.GONE)

    def _leave(self, pending: Pending) -> None:
        self.board.totals.busy += 1
        self.backlog.leave(pending, "still being written: left for the next run")
