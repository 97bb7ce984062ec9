"""
The walk through the source: movers read folders, several at a time, and make those that the destination lacks.
"""

from __future__ import annotations

import itertools

import attrs
import trio

from trioft.config.options import Config
from trioft.core.answers import Listing
from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify
from trioft.core.model import Manner
from trioft.movers.client import Destination, Source
from trioft.pipeline.storage import Storage

_CALLS = 3  # at a time: a server that is slow to answer has more than one question to think about
_BATCH = 16, 500  # folders handed to one call: so many where there are few, and at most


@attrs.define(kw_only=True)
class Walk:
    """
    Reads the source for a scanner. Where it is ``once`` compared with the destination, files that are there are only
    counted.
    """

    config: Config
    once: bool
    own: tuple[str, ...]  # patterns of what is not to be transferred beside `source.exclude`
    storage: Storage
    source: Source
    destination: Destination
    manner: Manner
    left_out: dict[bytes, Trouble] = attrs.field(factory=dict, init=False)  # what does not answer, in this walk
    _given_up: set[bytes] = attrs.field(factory=set, init=False)  # such places of which a sync has told
    is_partial: bool = attrs.field(default=False, init=False)  # something was left out since somebody looked here
    unseen: dict[bytes, int] = attrs.field(factory=dict, init=False)  # what a sync could not look at, and how often
    _refused: int = attrs.field(default=0, init=False)  # looks at the destination that failed while its probes succeed

    @property
    def exclude(self) -> tuple[str, ...]:
        return (*self.config.source.excluded, *self.own)

    async def read(self, folders: list[bytes], idle: dict[bytes, bytes]) -> list[Listing] | None:
        """
        Read some of *folders*, which then holds those that are still to be read; of *idle* ones, with their stamps,
        only what has changed.

        None: the source cannot be read; let the next scan try again. Waits for a destination that is away; raises
        ``FileTrouble`` where that is well, and still fails.
        """
        fewest, most = _BATCH
        hung = self.storage.hung
        if hung:  # what does not answer waits for another scan, and holds nobody up
            folders[:], left = hung.sort_out(folders)
            self.is_partial = self.is_partial or bool(left)
            self._note_left_out(left)
            if not folders:
                return []
        size = min(most, max(fewest, -(-len(folders) // _CALLS)))
        batches = [folders[max(0, end - size) : end] for end in range(len(folders), 0, -size)[:_CALLS]]
        del folders[-sum(map(len, batches)) :]
        listings: list[Listing] = []
        troubles: list[Trouble] = []
        async with trio.open_nursery() as nursery:
            for batch in batches:
                nursery.start_soon(self._read_batch, batch, idle, folders, listings, troubles)
        self._note_left_out([place for trouble in troubles if (place := hung.note(trouble)) is not None])
        troubles = [trouble for trouble in troubles if not self._is_left_out(trouble)]
        return None if troubles and not await self._cope(troubles[0]) else listings

    def given_up(self) -> list[Trouble]:
        """Return what a sync leaves out for good: there is no other scan that would come back to it."""
        left_out, self.left_out = self.left_out, {}
        if not self.once:
            return []
        told, self._given_up = self._given_up, self._given_up | left_out.keys()
        return [trouble for place, trouble in left_out.items() if place not in told]

    def _note_left_out(self, paths: list[bytes]) -> None:
        """These are left out of this walk. What does not answer may have been found out before it, too."""
        hung = self.storage.hung
        for path in paths:
            if (place := hung.leaves_out(path)) is not None:
                self.left_out.setdefault(place, hung.trouble_at(place))

    def _is_left_out(self, trouble: Trouble) -> bool:
        return (
            bool(trouble.path)
            and trouble.side == Side.SOURCE
            and self.storage.hung.leaves_out(trouble.path) is not None
        )

    async def _read_batch(
        self,
        batch: list[bytes],
        idle: dict[bytes, bytes],
        folders: list[bytes],
        listings: list[Listing],
        troubles: list[Trouble],
    ) -> None:
        wanted, manner = (self.config.source.include, self.exclude), self.manner
        try:
            if self.once:
                twins = self.config.copy.on_success.action == "keep" and not self.config.copy.checksum
                listing = await self.source.compare(batch, *wanted, manner, twins=twins)
            else:
                stamps = {folder: idle[folder] for folder in batch if folder in idle}
                listing = await self.source.scan(batch, stamps, *wanted, manner.markers, manner.routes)
        except FileTrouble as error:
            folders += batch
            troubles.append(error.trouble)
        else:
            self._refused = 0
            if self.storage.hung:
                for folder in batch:
                    self.storage.hung.answered(folder)
            folders += listing.rest
            listings.append(listing)

    async def _cope(self, trouble: Trouble) -> bool:
        """A call failed as a whole. True: the end is back, go on. False: let the next scan try again."""
        outages, retry = self.storage.outages, self.config.retry
        self.storage.suspect(trouble)
        if trouble.side == Side.SOURCE and not self.once:
            is_well = await self.storage.gates[Side.SOURCE].is_well()
            await self.storage.gates[Side.SOURCE].usable()
            if is_well and self.storage.outages == outages and self.storage.hung.note(trouble, itself=True):
                return True  # one of its folders alone does not answer
            return self.storage.outages != outages
        await self.storage.usable()
        # If the probe succeeds, it is not the end, it is this folder there.
        self._refused = self._refused + 1 if self.storage.outages == outages else 0
        if self.once and self._refused > retry.retries:
            raise FileTrouble(trouble)
        await trio.sleep(min(retry.longest, retry.first * self._refused))
        return True

    async def look_again(self, troubles: dict[bytes, Trouble]) -> tuple[list[bytes], list[Trouble]]:
        """
        Wait until what a sync could not look at may be tried again, as there is no other scan that would find it.

        Returns what is to be looked at then, and the *troubles* of the rest, which is given up. As long as the source
        is away, no file is blamed.
        """
        retry, outages = self.config.retry, self.storage.outages
        await self.storage.gates[Side.SOURCE].usable()
        if self.storage.outages != outages:
            return list(troubles), []
        for path in troubles:
            self.unseen[path] = self.unseen.get(path, 0) + 1
        again = [path for path in troubles if self.unseen[path] <= retry.retries]
        if again:
            await trio.sleep(max(retry.pause(self.unseen[path]) for path in again))
        return again, [trouble for path, trouble in troubles.items() if self.unseen[path] > retry.retries]

    async def put_back(self, folders: list[bytes]) -> tuple[list[bytes], bool]:
        """
        Put back what killed runs had taken aside in *folders*. A later scan tries again.

        Returns the names it has now, and whether these are all: a mover may have died that had done it.
        """
        for attempt in range(self.config.retry.retries + 1):
            try:
                return await self.source.put_back(folders), attempt == 0
            except FileTrouble:
                await trio.sleep(self.config.retry.pause(attempt))
        return [], False

    async def make_folders(self, folders: list[bytes]) -> list[Trouble]:
        """
        Make folders that the destination does not have, empty ones too; return what could not be made.

        A file meets again what fails here.
        """
        retry = self.config.retry
        given_up: list[Trouble] = []
        for attempt in itertools.count(1):
            await self.storage.usable()
            try:
                troubles = await self.destination.make_folders(folders)
            except FileTrouble as error:
                if await self._cope(error.trouble):
                    continue
                break
            failed = set()
            for trouble in troubles:
                remedy = classify(trouble)
                if remedy == Remedy.DESTINATION:
                    self.storage.suspect(trouble)
                if remedy == Remedy.GIVE_UP or attempt > retry.retries:
                    given_up.append(trouble)
                else:
                    failed.add(trouble.path)
            folders = [folder for folder in folders if folder in failed]
            if not folders:
                break
            await trio.sleep(retry.pause(attempt))
        return given_up
