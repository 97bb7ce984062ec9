"""
The lister: has manifests written of what was delivered, and reads at the destination what that needs.

It lists files that the ledger says are delivered, and the ledger forgets them once they are listed: what a run has not
got round to, whatever the reason, the next one does.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from datetime import datetime
from typing import TypeVar, TypeVarTuple

import attrs
import trio

from trioft import __version__
from trioft.config.options import Config
from trioft.core import operations as ask
from trioft.core.ascmhl import Creator, name_in_xml
from trioft.core.errors import FileTrouble, Remedy, Side, classify, show_path
from trioft.core.manifest import ASC_MHL, NONE, manifest_of
from trioft.core.model import Root, Unlisted, Verdict
from trioft.core.operations import Operation
from trioft.core.units import size_text
from trioft.movers.pool import Call
from trioft.pipeline.shutdown import Shutdown
from trioft.pipeline.storage import Storage
from trioft.state import unlisted
from trioft.state.board import Board
from trioft.state.ledger import Port

Told = TypeVar("Told")
Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")

_LOOK = 1.0  # seconds between two looks whether anything was delivered
# A watch lists what it has delivered when nothing has arrived for so many seconds, and not later than after so many.
_QUIET = 3.0
_LONGEST = 60.0
_SILENT = 5.0  # seconds that the end of a sync may take before it says what it waits for
_MOST_GIVEN_UP = 1_000  # files that cannot be read; after that many the destination is no place to read from
_PAGE = 50_000  # files that are listed at a time, so that memory is bounded


@attrs.define(kw_only=True)
class Lister:
    """The state of the task. ``once`` is sync: everything is listed at its end."""

    config: Config
    once: bool
    board: Board
    storage: Storage
    ledger: Port
    call: Call
    by_number: bool  # where a name is taken, another is given
    shutdown: Shutdown
    _ending: trio.Event = attrs.field(factory=trio.Event, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _given_up: set[bytes] = attrs.field(factory=set, init=False)  # what this run cannot read
    _delivered: int = attrs.field(default=-1, init=False)  # files, when it was looked last
    _waits_since: float | None = attrs.field(default=None, init=False)  # the first file that can be listed
    _changed: float = attrs.field(default=0.0, init=False)

    async def run(self) -> None:
        """Read what has no sum yet, and list what has one, now and then. Ends after ``finish``."""
        with self.ledger:
            if self.config.copy.manifest != NONE:
                await self._go_on()
        self._ended.set()

    async def finish(self) -> None:
        """Nothing more will be delivered. Returns when all is listed; after a stop, all that has its sum."""
        self._ending.set()
        with trio.move_on_after(_SILENT):
            await self._ended.wait()
        if not self._ended.is_set() and not self.shutdown.stopped:
            files, size = await self.ledger.call(unlisted.left_to_read)
            text = f"still to be read at the destination, to be listed: {size_text(size)} in {files} files"
            self.board.notice("manifest", text, level="info", event="manifest.awaited", files=files, size=size)
        await self._ended.wait()

    async def _go_on(self) -> None:
        while not self.shutdown.stopped:
            is_last, has_read = self._ending.is_set(), False
            with self.shutdown.until_stopped():
                has_read = await self._read_one()
            if is_last and not has_read:
                break
            if self._is_due(more_to_come=has_read):
                await self._list_all()
            if not has_read:
                with trio.move_on_after(_LOOK), self.shutdown.until_stopped():
                    await self._ending.wait()
        await self._ending.wait()  # after a stop, what is being finished is listed too
        await self._list_all()

    # --- reading

    async def _read_one(self) -> bool:
        """Read the file that has waited longest for its sum. Returns whether there was one."""
        file = None
        if len(self._given_up) < _MOST_GIVEN_UP:
            file = await self.ledger.call(unlisted.next_to_read, self._given_up)
        if file is None:
            return False
        result = await self._persist(
            ask.SUM_DELIVERED, file, self.config.copy.manifest, self.storage.resolution_ns, self.by_number
        )
        if result is None:
            self._given_up.add(file.target)
        elif result.verdict == Verdict.SUMMED:
            assert result.sum is not None
            await self.ledger.call(unlisted.was_read, file, result.target, result.sum)
            self._waits_since = self._waits_since or trio.current_time()
        else:
            await self.ledger.call(unlisted.forget, [file])
            if not file.doubtful:
                how = "is not there any more" if result.verdict == Verdict.GONE else "has changed"
                self._tell(file.target, "file.unlisted", f"not listed: since it was delivered, it {how}")
        return True

    async def _persist(
        self, operation: Operation[Told, Answer, Root, *Arguments], *arguments: *Arguments
    ) -> Answer | None:
        """Have an operation done at the destination, again after a trouble. None: it is told, there is no hope."""
        retry, gate = self.config.retry, self.storage.gates[Side.DESTINATION]
        attempt = 0
        while True:
            await gate.usable()
            outages = gate.outages
            try:
                destination = self.storage.ends.destination
                return await self.call(operation, destination, *arguments)
            except FileTrouble as error:
                trouble = error.trouble
            remedy = classify(trouble)
            if remedy == Remedy.DESTINATION:
                gate.suspect(trouble)
                await gate.usable()
            attempt += gate.outages == outages  # else it was the destination as a whole
            if remedy == Remedy.GIVE_UP or attempt > retry.retries:
                self.board.fail_folder(trouble)
                return None
            await trio.sleep(retry.pause(attempt))

    # --- listing

    def _is_due(self, more_to_come: bool) -> bool:
        now, totals = trio.current_time(), self.board.totals
        if totals.delivered + totals.already != self._delivered:  # at the start too: an earlier run may have left some
            self._delivered, self._changed = totals.delivered + totals.already, now
            self._waits_since = now if self._waits_since is None else self._waits_since
        if self.once or self._waits_since is None:
            return False
        is_quiet = not more_to_come and now - self._changed >= _QUIET
        return is_quiet or now - self._waits_since >= _LONGEST

    async def _list_all(self) -> None:
        self._waits_since, last = None, b""
        while files := await self.ledger.call(unlisted.to_list, last, _PAGE):
            last = files[-1].target
            if self.config.copy.manifest == ASC_MHL:
                await self._append_generations(files)
            else:
                await self._write_sums(files)

    async def _write_sums(self, files: list[Unlisted]) -> None:
        copy = self.config.copy
        manifests: dict[bytes, dict[bytes, Unlisted]] = defaultdict(dict)
        for file in files:
            path, name = manifest_of(copy.manifest, copy.manifest_per, file.target, _day(file))
            manifests[path][name] = file
        for path, listed in manifests.items():
            sums = {name: file.sum for name, file in listed.items() if file.sum is not None}
            if await self._persist(ask.WRITE_SUMS, path, sums) is not None:
                await self.ledger.call(unlisted.forget, list(listed.values()))
                self._wrote(path, list(listed.values()))

    async def _append_generations(self, files: list[Unlisted]) -> None:
        per = self.config.copy.manifest_per
        by_folder: dict[bytes, list[Unlisted]] = defaultdict(list)
        for file in files:
            if name_in_xml(file.target) is not None:
                by_folder[file.target.rpartition(b"/")[0]].append(file)
            else:
                self._tell(file.target, "file.unlisted", "not listed: an ASC MHL has no way to write this name")
                await self.ledger.call(unlisted.forget, [file])
        places = await self._persist(ask.FIND_HISTORIES, list(by_folder), per)
        if places is None:
            return
        histories: dict[bytes, list[Unlisted]] = defaultdict(list)
        for place, here in zip(places, by_folder.values(), strict=True):
            histories[place] += here
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        creator = Creator(time, socket.gethostname(), __version__)
        for place, here in histories.items():
            differ = await self._persist(ask.APPEND_GENERATION, place, here, creator)
            if differ is not None:
                await self.ledger.call(unlisted.forget, here)
                self._wrote(place + b"/ascmhl" if place else b"ascmhl", here)
                for target in differ:
                    text = "the ASC MHL history there has another hash of it: recorded as failed"
                    self._tell(target, "file.differs", text)

    def _wrote(self, path: bytes, files: list[Unlisted]) -> None:
        self.board.record("info", "manifest.written", path=show_path(path), files=len(files))

    def _tell(self, target: bytes, event: str, text: str) -> None:
        path = show_path(target)
        self.board.notice("manifest", f"{path}: {text}", event=event, path=path, reason=text)


def _day(file: Unlisted) -> str:
    """The day of a file's delivery, by this machine's calendar."""
    return datetime.fromisoformat(file.time).astimezone().date().isoformat()
