"""
The strategies: how the bytes of a job get under their partial names, durable and verified. ``STRATEGIES`` names them.

Each is a Trio function of one signature. It returns one ``Result`` for each item, WRITTEN where the file is ready to
get its final name, and raises ``FileTrouble`` if the job as a whole failed. When cancelled it makes durable, verifies
and records what has been written, for as long as the grace period lasts, and then lets the cancellation through.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from trioft.board import Board, Entry
from trioft.config import Config
from trioft.copyio import Prepared
from trioft.errors import FileTrouble
from trioft.fileio import file_digest, mismatch
from trioft.ledger import Ledger, Port
from trioft.model import (
    BLOCK_SIZE,
    BUNDLE_FILE_SIZE,
    SPAN_SIZE,
    Checkpoint,
    FileState,
    Item,
    Job,
    Manner,
    Result,
    Verdict,
)
from trioft.movers import Call
from trioft.naming import partial_of
from trioft.shutdown import Shutdown
from trioft.storage import Storage
from trioft.throttle import Throttle

_WRITERS = (
    2  # spans of one file that are written at a time; with the settling beside them this fills a full-duplex link
)
_SPAN_SECONDS = 1.0  # what a span should take: others wait that long for the mover

# Operations that end in one barrier, whose progress nobody can tell, get this many stall timeouts.
PATIENCE = 10


@attrs.frozen(kw_only=True)
class Tools:
    """What copiers and strategies work with."""

    config: Config
    once: bool
    board: Board
    call: Call
    ledger: Port
    storage: Storage
    manner: Manner
    throttle: Throttle
    shutdown: Shutdown

    def entry(self, item: Item) -> Entry:
        return self.board.live[item.id]


Strategy = Callable[[Job, Tools], Awaitable[list[Result]]]


def choose_strategy(job: Job) -> str:
    """Name the strategy for *job*."""
    return "bundle" if all(item.fingerprint.size <= BUNDLE_FILE_SIZE for item in job.items) else "whole"


async def bundle(job: Job, tools: Tools) -> list[Result]:
    """Many small files: one call, one durability barrier, one read-back."""
    await tools.throttle.take(job.size)
    async with tools.shutdown.shield():  # it is short: better finished than littered about
        results: list[Result] = await tools.call(
            "write_bundle", tools.storage.ends, list(job.items), tools.manner, patience=PATIENCE
        )
    for item, result in zip(job.items, results, strict=True):
        if result.verdict == Verdict.WRITTEN:
            tools.board.copied(tools.entry(item), item.fingerprint.size)
            tools.board.verified(tools.entry(item), item.fingerprint.size)
    return results


async def whole(job: Job, tools: Tools) -> list[Result]:
    """One large file, from its last checkpoint on: spans are written side by side while what is written settles."""
    (item,) = job.items
    partial = partial_of(item.path, *item.fingerprint[:2])
    checkpoint = await tools.ledger.call(Ledger.checkpoint_of, item.path)
    if checkpoint is not None and checkpoint.partial != partial:
        # The same name, but another file: what was copied of the former is of no use any more.
        await tools.call("discard", tools.storage.ends.destination, [checkpoint.partial])
        await tools.ledger.call(Ledger.drop_checkpoint, item.path)
        checkpoint = None
    prepared: Prepared | Result = await tools.call(
        "prepare", tools.storage.ends, item, checkpoint, tools.manner, patience=PATIENCE
    )
    if isinstance(prepared, Result):
        return [prepared]
    if checkpoint is not None and prepared.offset < checkpoint.offset:
        # The partial is not what it was. Forgotten before anything is written: once the new one had grown as long, a
        # restart would believe a checkpoint that nothing of it was settled for.
        await tools.ledger.call(Ledger.drop_checkpoint, item.path)
    transfer = _Transfer(item, partial, prepared, tools)
    tools.board.resumed(transfer.entry, prepared.offset)
    await transfer.run()
    digest = file_digest(transfer.digests_between(0, item.fingerprint.size)) if tools.manner.verify != "size" else None
    return [Result(Verdict.WRITTEN, digest=digest)]


STRATEGIES: dict[str, Strategy] = {"bundle": bundle, "whole": whole}


class _Transfer:
    """One large file on its way: write tasks and a settle task around the set of blocks that have been written."""

    def __init__(self, item: Item, partial: bytes, prepared: Prepared, tools: Tools) -> None:
        self.item = item
        self.partial = partial
        self.tools = tools
        self.entry = tools.entry(item)
        self.size = item.fingerprint.size
        self.settled = prepared.offset  # durable, verified and checkpointed below this
        self.digests = {n: prepared.digests[16 * n : 16 * n + 16] for n in range(_blocks(prepared.offset))}
        self.written = prepared.offset  # without a gap below this
        self.span = BLOCK_SIZE
        # Never more than this is written and not settled: what a crash can cost. Settling begins at half of it, so
        # that writing goes on meanwhile.
        self.unsettled_most = max(2, tools.config.copy.checkpoint_size // BLOCK_SIZE) * BLOCK_SIZE
        self.progressed = trio.Event()  # something was written
        self.advanced = trio.Event()  # something was settled
        self.trouble: FileTrouble | None = None

    def digests_between(self, start: int, end: int) -> bytes:
        return b"".join(self.digests[n] for n in range(start // BLOCK_SIZE, _blocks(end)))

    async def run(self) -> None:
        """Return when all is settled; raise the first trouble of any task."""
        try:
            async with trio.open_nursery() as nursery:
                # No capacity: the plan is made when a writer is free, with the span that suits the speed by then.
                send_spans, spans = trio.open_memory_channel[tuple[int, int]](0)
                nursery.start_soon(self._guard, nursery, self._plan, send_spans)
                with spans:
                    for _ in range(_WRITERS):
                        nursery.start_soon(self._guard, nursery, self._write, spans.clone())
                nursery.start_soon(self._guard, nursery, self._settle)
        finally:
            if self.trouble is None and trio.current_effective_deadline() == -math.inf and self.written > self.settled:
                async with self.tools.shutdown.shield():
                    await self._settle_to(self.written)
        if self.trouble is not None:
            raise self.trouble

    async def _guard(self, nursery: trio.Nursery, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """The first trouble ends all tasks, and is what leaves ``run``: not a group of it and its consequences."""
        try:
            await task(*args)
        except FileTrouble as error:
            self.trouble = self.trouble or error
            nursery.cancel_scope.cancel()

    async def _plan(self, spans: trio.MemorySendChannel[tuple[int, int]]) -> None:
        """Cut what is missing into spans, not too far ahead of what is settled. Ends when the last has been taken."""
        start = self.settled
        with spans:
            while start < self.size:
                end = min(start + self.span, self.size, self.settled + self.unsettled_most)
                if end <= start:
                    self.advanced = trio.Event()
                    await self.advanced.wait()
                    continue
                await spans.send((start, end))
                start = end

    async def _write(self, spans: trio.MemoryReceiveChannel[tuple[int, int]]) -> None:
        """Have spans written, one after the other. Ends when the plan does."""
        tools = self.tools
        with spans:
            async for start, end in spans:
                await tools.throttle.take(end - start)
                begun = trio.current_time()
                told: dict[int, bytes] = {}
                await tools.call(
                    "copy_span",
                    tools.storage.ends,
                    self.item,
                    self.partial,
                    start,
                    end,
                    tools.manner,
                    tell=functools.partial(self._told, told),
                )
                self._advance(told)
                if tools.throttle.rate is None:
                    rate = (end - start) / max(trio.current_time() - begun, 1e-6)
                    blocks = round(rate * _SPAN_SECONDS / BLOCK_SIZE)
                    self.span = min(SPAN_SIZE, max(1, blocks) * BLOCK_SIZE)

    def _told(self, blocks: dict[int, bytes], message: tuple[Any, ...]) -> None:
        match message:
            case ("bytes", count):
                self.tools.board.copied(self.entry, count)
            case ("block", number, digest):
                blocks[number] = digest

    def _advance(self, blocks: dict[int, bytes]) -> None:
        """
        Count the blocks of a span as written.

        Not one by one as they are told: the close may still say that some of them are lost, and where a mover dies
        its successor writes the whole span again, which must not happen to blocks that have been settled meanwhile.
        """
        self.digests.update(blocks)
        while self.written < self.size and self.written // BLOCK_SIZE in self.digests:
            self.written = min(self.written + BLOCK_SIZE, self.size)
        self.progressed.set()

    async def _settle(self) -> None:
        """Settle what is written, whenever there is enough of it. Ends when everything is."""
        last = trio.current_time()
        while self.settled < self.size:
            self.progressed = trio.Event()
            waiting = self.written - self.settled
            due = last + self.tools.config.copy.checkpoint_time if waiting else math.inf
            if self.written < self.size and waiting < self.unsettled_most // 2 and trio.current_time() < due:
                with trio.move_on_at(due):
                    await self.progressed.wait()
                continue
            await self._settle_to(self.written)
            last = trio.current_time()

    async def _settle_to(self, end: int) -> None:
        """Make all below *end* durable, read it back, and record the checkpoint. A block that differs is a trouble."""
        tools, start = self.tools, self.settled
        if end == self.size:
            tools.board.move(self.entry, FileState.VERIFYING)
        bad: list[int] = await tools.call(
            "settle",
            tools.storage.ends.destination,
            self.partial,
            start,
            end,
            self.digests_between(start, end),
            tools.manner.verify,
        )
        good = min(bad) * BLOCK_SIZE if bad else end
        # A file that settles at once needs no checkpoint: its final name comes next.
        if good > start and not (start == 0 and good == self.size):
            digests = self.digests_between(0, good) if tools.manner.verify != "size" else b""
            checkpoint = Checkpoint(self.partial, self.item.fingerprint, good, digests)
            await tools.ledger.call(Ledger.save_checkpoint, self.item.path, checkpoint)
        if good > start:
            self.settled = good
            self.advanced.set()
            tools.board.verified(self.entry, good)
            self.entry.attempt = 0  # it gets somewhere
        if bad:
            raise FileTrouble(mismatch(self.partial, good))


def _blocks(size: int) -> int:
    return -(-size // BLOCK_SIZE)
