"""
What copiers and strategies work with.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator

import attrs
import trio

from trioft.config.options import Config
from trioft.core.errors import FileTrouble, Side, Trouble, first_of
from trioft.core.model import Item, Manner, Result, Verdict
from trioft.movers.client import Destination, Source
from trioft.movers.events import Changes
from trioft.movers.pool import Starts, Stuck
from trioft.pipeline.shutdown import Shutdown
from trioft.pipeline.storage import Storage
from trioft.pipeline.throttle import Throttle
from trioft.state.board import Board, Entry
from trioft.state.claims import Claims
from trioft.state.ledger import Port


class Owners:
    """One owner per file, also where it has several names, or has got another one."""

    def __init__(self) -> None:
        self._locks: dict[tuple[int, int], trio.Lock] = {}

    @contextlib.asynccontextmanager
    async def owned(self, identity: tuple[int, int]) -> AsyncIterator[None]:
        """Own the file *identity* (device, inode) while inside; waits while somebody else does."""
        lock = self._locks.setdefault(identity, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            statistics = lock.statistics()
            if not statistics.locked and not statistics.tasks_waiting:
                self._locks.pop(identity, None)


@attrs.frozen(kw_only=True)
class Tools:
    """What copiers and strategies work with."""

    config: Config
    once: bool
    board: Board
    source: Source
    destination: Destination
    looking: Source  # in movers that never wait for the destination
    changes: Changes
    owners: Owners
    claims: Claims
    ledger: Port
    storage: Storage
    manner: Manner
    throttle: Throttle
    shutdown: Shutdown
    stuck: Stuck
    starts: Starts
    places: trio.CapacityLimiter | None = None  # for one transfer each, of all jobs together

    def entry(self, item: Item) -> Entry:
        return self.board.live[item.id]


@contextlib.asynccontextmanager
async def open_nursery_for_one_trouble() -> AsyncIterator[trio.Nursery]:
    """
    Open a nursery out of which the first ``FileTrouble``, or ``Stopped``, of its tasks comes as itself.

    Not in a group with its consequences: what the others met while they were being cancelled tells nobody anything.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        kinds = (FileTrouble, Stopped)
        first, (_, rest) = first_of(group, kinds), group.split(kinds)
        if first is None or rest is not None:
            raise
        raise first from None


class Stopped(Exception):
    """An operator wants a file to pause, or to be left. No failure: what is written of it is good."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.verdict)
        self.result = result


def why_stopped(entry: Entry, offset: int) -> Result | None:
    """Return PAUSED or LEFT if an operator wants that of a file that is copied up to *offset*, else None."""
    if entry.left:
        trouble = Trouble(Side.SOURCE, "copy", entry.path, offset, errno.ECANCELED, "left by an operator")
        return Result(Verdict.LEFT, trouble=trouble)
    return Result(Verdict.PAUSED) if entry.paused else None
