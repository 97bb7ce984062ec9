"""
A large file on its way: how ``whole`` and ``follow`` move bytes.

A transfer is a set of tasks around the blocks that have been written. The *plan* cuts what may be copied into spans,
two *write* tasks have movers copy them, and a *settle* task has what is written without a gap made durable, read back
and recorded. Writing and settling overlap.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import AsyncIterator
from typing import NamedTuple

import trio

from trioft.core.answers import Prepared, Sealed, Step, Written
from trioft.core.digests import file_digest
from trioft.core.errors import FileTrouble, first_of, mismatch, show_path
from trioft.core.manifest import BLOCK_SUMS
from trioft.core.model import BLOCK_SIZE, SPAN_SIZE, Checkpoint, FileState, Fingerprint, Item, Result
from trioft.core.naming import former_partial_for, partial_for
from trioft.movers.client import TellWriting
from trioft.pipeline.context import Stopped, Tools, open_nursery_for_one_trouble, why_stopped
from trioft.state.ledger import Ledger

# Spans of one file that are written at a time: with the settling beside them two fill a full-duplex link. On a disk of
# this machine they would only wait for each other, as the kernel lets one at a time write to a file.
_WRITERS, _WRITERS_FAR = 1, 2
_SPAN_SECONDS = 1.0  # what a span should take: others wait that long for the mover


async def begin(item: Item, tools: Tools, *, growing: bool) -> Prepared | Result:
    """
    Have the partial of a large file ready to be written, and the ledger say no more of it than is true.

    What was copied of it under another name, or from another device number, goes on under the new one.
    """
    ledger, partial = tools.ledger, partial_for(item)
    former = await ledger.call(Ledger.transfer_of, item.path, *item.fingerprint[:2])
    name, checkpoint = former if former is not None else (item.path, None)
    other = checkpoint
    if name != item.path:
        other = await ledger.call(Ledger.checkpoint_of, item.path)
    if other is not None and not is_of(other, item):
        # The same name, but another file: what was copied of that is of no use any more.
        await tools.destination.discard([other.partial])
        await ledger.call(Ledger.drop_checkpoint, item.path)
        checkpoint = None if other is checkpoint else checkpoint
    held = former_partial_for(item)
    if checkpoint is not None:
        held = checkpoint.partial
    if held != partial:
        identity = checkpoint.fingerprint[:2] if checkpoint is not None else item.fingerprint[:2]
        old = name if name != item.path else None
        moved = await tools.destination.adopt(old, identity, held, partial, routed=item.is_routed)
        if checkpoint is not None and moved:
            is_other = name != item.path or is_remounted(checkpoint, item)
            checkpoint = checkpoint._replace(partial=partial, growing=checkpoint.growing or is_other)
            await ledger.call(Ledger.move_checkpoint, name, item.path, checkpoint)
            if name != item.path:
                tools.board.remark(tools.entry(item), "renamed", f"it was called {show_path(name)}")
        elif checkpoint is not None:
            checkpoint = None
            if moved is None:
                await ledger.call(Ledger.drop_checkpoint, name)
    prepared = await tools.destination.prepare(item, checkpoint, tools.manner, growing=growing)
    if isinstance(prepared, Prepared):
        kept = Checkpoint(partial, item.fingerprint, prepared.offset, prepared.digests, growing)
        # The partial may not be what it was. Forgotten before anything is written: once the new one had grown as long,
        # a restart would believe a checkpoint that nothing of it was settled for.
        if kept.offset == 0 or (not growing and prepared.void):
            if checkpoint is not None:
                await ledger.call(Ledger.drop_checkpoint, item.path)
        elif kept != checkpoint:
            await ledger.call(Ledger.save_checkpoint, item.path, kept)
    return prepared


def is_of(checkpoint: Checkpoint, item: Item) -> bool:
    """Is *checkpoint* one of this file, in whatever version?"""
    return checkpoint.fingerprint[:2] == item.fingerprint[:2] or is_remounted(checkpoint, item)


def is_remounted(checkpoint: Checkpoint, item: Item) -> bool:
    """Is *item* what was copied so far, on a filesystem that has got another device number since?"""
    was, now = checkpoint.fingerprint, item.fingerprint
    return was.dev != now.dev and was[1:] == now[1:]


class Block(NamedTuple):
    """What has been written of one block: a whole one, or, at the end, the beginning of one."""

    length: int
    digest: bytes
    pieces: bytes = b""  # digests of its pieces, of a file that grows


class Transfer:
    """
    One large file on its way.

    ``target`` is how many bytes may be copied; it is final once ``ended``. Blocks of the partial that are VOID are
    written again at once, unless *keep_void* says that somebody will see to that.
    """

    def __init__(
        self, item: Item, prepared: Prepared, tools: Tools, *, target: int, ended: bool, keep_void: bool = False
    ) -> None:
        self.item = item
        self.partial = partial_for(item)
        self.tools = tools
        self.entry = tools.entry(item)
        self.target, self.ended = target, ended
        # What the partial is; None where only the end is sealed: where two write to it at a time, or nothing tells.
        is_far = tools.storage.ends.destination.is_far
        self.seal = None if is_far else prepared.seal
        self.last_seal: Fingerprint | None = None  # what it was before the last read-back, where it is not watched
        self.settled = prepared.offset  # durable and verified below this
        self.written = prepared.offset  # without a gap below this
        self.blocks = {
            n: Block(min(BLOCK_SIZE, prepared.offset - n * BLOCK_SIZE), prepared.digests[16 * n : 16 * n + 16])
            for n in range(_blocks(prepared.offset))
        }
        if not keep_void and prepared.void:
            for n in prepared.void:
                del self.blocks[n]
            self.settled = self.written = prepared.void[0] * BLOCK_SIZE
        self._span = BLOCK_SIZE
        # Never more than this is written and not settled: what a crash can cost. Settling begins at half of it, so
        # that writing goes on meanwhile.
        self._unsettled_most = max(2, tools.config.copy.checkpoint_size // BLOCK_SIZE) * BLOCK_SIZE
        self._stirred = trio.Event()
        tools.board.resumed(self.entry, sum(block.length for block in self.blocks.values()))
        closed = f"; closed: {prepared.closed}" if prepared.closed else ""
        tools.board.remark(self.entry, "copying", f"{self.entry.strategy}, from byte {self.settled}{closed}")

    def digests_between(self, start: int, end: int) -> bytes:
        return b"".join(self.blocks[n].digest for n in range(start // BLOCK_SIZE, _blocks(end)))

    def digest(self) -> bytes:
        """Return the digest of the whole file."""
        return file_digest(self.digests_between(0, self.written))

    def sum(self) -> bytes | None:
        """Return what a manifest says of the file, if that is the digest of its only block."""
        is_known = self.tools.manner.manifest in BLOCK_SUMS and self.tools.manner.verify != "size"
        return self.digests_between(0, self.written) if is_known and 0 < self.written <= BLOCK_SIZE else None

    def stir(self) -> None:
        """Something has happened: whoever waits for anything looks again whether that was it."""
        self._stirred.set()
        self._stirred = trio.Event()

    async def wait(self, until: float = math.inf) -> None:
        """Return at the next stir, or at *until*."""
        with trio.move_on_at(until):
            await self._stirred.wait()

    async def copy(self) -> None:
        """Return when the target is final and all is settled; raise the first trouble of any task."""
        async with open_nursery_for_one_trouble() as nursery:
            # No capacity: the plan is made when a writer is free, with the span that suits the speed by then.
            send_spans, spans = trio.open_memory_channel[tuple[int, int]](0)
            nursery.start_soon(self._plan, send_spans)
            with spans:
                for _ in range(_WRITERS_FAR if self.tools.storage.ends.destination.is_far else _WRITERS):
                    nursery.start_soon(self._write, spans.clone())
            nursery.start_soon(self._settle)

    async def keep(self) -> None:
        """Settle what has been written so far, so that nothing of it is copied again."""
        if (end := self._may_be_settled()) > self.settled:
            await self._settle_to(end)

    async def _plan(self, spans: trio.MemorySendChannel[tuple[int, int]]) -> None:
        """Cut what is missing into spans, not too far ahead of what is settled. Ends when the last has been taken."""
        start = self.written
        with spans:
            while not (self.ended and start >= self.target):
                first = start // BLOCK_SIZE * BLOCK_SIZE
                if start == first and (kept := self.blocks.get(start // BLOCK_SIZE)) is not None:
                    start += kept.length  # an earlier attempt's
                    continue
                # A limit may have come since the speed was measured.
                most = self._span if self.tools.throttle.rate is None else BLOCK_SIZE
                end = min(first + most, self.target, self.settled + self._unsettled_most)
                if not self.ended and end - first > BLOCK_SIZE:
                    end = end // BLOCK_SIZE * BLOCK_SIZE
                end = next(
                    (n * BLOCK_SIZE for n in range(first // BLOCK_SIZE + 1, _blocks(end)) if n in self.blocks), end
                )
                # A block that has begun is continued by one writer after the other.
                if end <= start or (start > first and self.written < start):
                    await self.wait()
                    continue
                try:
                    await spans.send((first, end))
                except trio.BrokenResourceError:
                    return  # no writer is left: the last has met a trouble, and ends us all
                start = end
            while self.written < self.target:
                await self.wait()
            while (span := self.unfinished()) is not None:
                await spans.send(span)
                await self.wait()

    def unfinished(self) -> tuple[int, int] | None:
        """Return what has to be copied once more although all has been."""
        return None

    async def _write(self, spans: trio.MemoryReceiveChannel[tuple[int, int]]) -> None:
        """Have spans written, one after the other. Ends when the plan does."""
        with spans:
            async for start, end in spans:
                begun = trio.current_time()
                self.advance(await self.write_span(start, end))
                if self.tools.throttle.rate is None and end - start >= self._span:
                    rate = (end - start) / max(trio.current_time() - begun, 1e-6)
                    blocks = round(rate * _SPAN_SECONDS / BLOCK_SIZE)
                    self._span = min(SPAN_SIZE, max(1, blocks) * BLOCK_SIZE)

    async def write_span(self, start: int, end: int) -> dict[int, Block]:
        """
        Have one span written and return its blocks.

        They do not count as written one by one as they are told: the close may still say that some of them are lost,
        and where a mover dies its successor writes the whole span again, which must not happen to blocks that have
        been settled meanwhile.
        """
        await self.tools.throttle.take(max(0, end - max(start, self.written)))
        self.check_wanted()
        blocks: dict[int, Block] = {}
        await self.copy_span(start, end, functools.partial(self._told, blocks))
        return blocks

    def check_wanted(self) -> None:
        """Raise ``Stopped`` if an operator wants it to be left, or to pause."""
        if (result := why_stopped(self.entry, self.written)) is not None:
            raise Stopped(result)

    async def copy_span(self, start: int, end: int, tell: TellWriting) -> None:
        """Call the operation that copies a span of a finished file."""
        tools = self.tools
        await tools.destination.copy_span(self.watched, self.partial, start, end, tools.manner, tell)

    def _told(self, blocks: dict[int, Block], message: Step | Written | Sealed) -> None:
        match message:
            case Step("bytes", count):
                self.tools.board.copied(self.entry, count)
            case Sealed(seal):
                self.seal = seal
            case Step("holes", count):
                self.tools.storage.left_out(count)
            case Step():
                self.tools.storage.stirs(message)
            case Written(number, length, digest, pieces):
                blocks[number] = Block(length, digest, pieces)

    def advance(self, blocks: dict[int, Block]) -> None:
        """Count the blocks of a span as written."""
        self.blocks.update(blocks)
        while (block := self.blocks.get(self.written // BLOCK_SIZE)) is not None:
            before, self.written = self.written, self.written // BLOCK_SIZE * BLOCK_SIZE + block.length
            if block.length < BLOCK_SIZE or self.written == before:
                break
        self.stir()

    @property
    def is_written(self) -> bool:
        """Nothing is left to be written."""
        return self.ended and self.written == self.target and self.unfinished() is None

    def _may_be_settled(self) -> int:
        """A block that still grows is written again and again: it settles when it is full, or the end."""
        return self.written if self.is_written else self.written // BLOCK_SIZE * BLOCK_SIZE

    async def _settle(self) -> None:
        """Settle what is written, whenever there is enough of it. Ends when everything is, and is sealed."""
        last = trio.current_time()
        while not (self.ended and self.settled == self.target and self._is_sealed):
            if self.ended and self.settled == self.target:
                # All of it had settled before this was known to be its end, or in an earlier run: it has no seal yet.
                self.settled = max(0, self.target - 1) // BLOCK_SIZE * BLOCK_SIZE
            end = self._may_be_settled()
            waiting = end - self.settled
            due = last + self.tools.config.copy.checkpoint_time if waiting else math.inf
            is_last = self.ended and end == self.target
            if not is_last and waiting < self._unsettled_most // 2 and trio.current_time() < due:
                await self.wait(due)
                continue
            await self._settle_to(end)
            last = trio.current_time()

    async def _settle_to(self, end: int) -> None:
        """Make all below *end* durable, read it back, and record the checkpoint. A block that differs is a trouble."""
        start = self.settled
        if self.ended and end == self.target and self.entry.state != FileState.VERIFYING:
            self.tools.board.move(self.entry, FileState.VERIFYING)
        if self.ended and end == self.target:
            await self.set_seal()
        bad = await self.settle_span(start, end)
        good = min(bad) * BLOCK_SIZE if bad else end
        if good > start:
            await self.record(good)
            self.settled = good
            self.tools.board.verified(self.entry, good)
            if good > self.entry.furthest:
                self.entry.furthest, self.entry.attempt = good, 0  # it gets somewhere
            self.stir()
        if bad:
            raise FileTrouble(mismatch(self.partial, good))

    @property
    def mtime_ns(self) -> int:
        """The time of the version that is to arrive."""
        return self.item.fingerprint.mtime_ns

    @property
    def watched(self) -> Item:
        """The file, with what its partial is where that is watched."""
        return self.item._replace(seal=self.seal)

    @property
    def _is_sealed(self) -> bool:
        return self.seal is not None or self.last_seal is not None

    async def set_seal(self) -> None:
        """Before the last read-back: where writes are not watched, whoever writes from now on is found out."""
        if self.seal is None:
            self.last_seal = await self.tools.destination.seal(self.partial, self.mtime_ns)

    async def settle_span(self, start: int, end: int) -> list[int]:
        """Make a range durable and read it back; return the numbers of the blocks that differ."""
        tools, digests = self.tools, self.digests_between(start, end)
        return await tools.destination.settle(self.partial, start, end, digests, tools.manner.verify)

    async def record(self, offset: int) -> None:
        """Record that all below *offset* is durable and verified."""
        # A file that settles at once needs no checkpoint: its final name comes next.
        if self.settled == 0 and self.ended and offset == self.target:
            return
        digests = self.digests_between(0, offset) if self.tools.manner.verify != "size" else b""
        await self.save(Checkpoint(self.partial, self.item.fingerprint, offset, digests))

    async def save(self, checkpoint: Checkpoint) -> None:
        await self.tools.ledger.call(Ledger.save_checkpoint, self.item.path, checkpoint)


@contextlib.asynccontextmanager
async def kept_when_cancelled(transfer: Transfer) -> AsyncIterator[None]:
    """
    Where what is inside is cancelled, or stopped by an operator, what it has written is settled: on a shutdown, for as
    long as the grace period lasts.
    """
    try:
        yield
    except BaseException as error:
        # After a trouble nothing that was written since the last checkpoint can be relied on.
        group = BaseExceptionGroup("", [error])
        is_stopped = first_of(group, Stopped) is not None or trio.current_effective_deadline() == -math.inf
        if is_stopped and first_of(group, FileTrouble) is None:
            async with transfer.tools.shutdown.shield():
                await transfer.keep()
        raise


def _blocks(size: int) -> int:
    return -(-size // BLOCK_SIZE)
