"""
Follow: copy a file while it is being written.

A *watch* task looks at the file several times a second, and says how far it may be copied, while a ``Transfer`` copies
it, durably and verified. Once nobody writes it any more, its end is copied, and then all of it is **reconciled**: read
again and compared with what was copied, since recorders rewrite headers, and indexes in the middle, when they close.
What differs is written again, until nothing does and the file has held still meanwhile. So what arrives is one version
of the file, never a mixture, whatever its writer did.
"""

from __future__ import annotations

import errno
import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator

import trio

from trioft.core import answers
from trioft.core.answers import PIECE_SIZE, Difference, Known, Peek, Prepared, Range
from trioft.core.errors import FileTrouble, Side, mismatch
from trioft.core.model import BLOCK_SIZE, MIB, VOID, Checkpoint, FileState, Found, Item, Job, Result, Verdict
from trioft.core.naming import waits_for
from trioft.movers.client import TellWriting
from trioft.pipeline.context import Tools, open_nursery_for_one_trouble
from trioft.pipeline.transfer import Block, Transfer, begin, kept_when_cancelled
from trioft.state.proofs import NOT_COMPARED

# Bytes at either end that are compared where `growing.reconcile` is `edges`.
EDGE = 64 * MIB
# Seconds between two looks at a file, however many events it has.
_AT_MOST_EVERY = 0.1
# The part of `settle_closed` after which a closed file is compared, while the rest of it passes. Not at once: who opens
# it again and again to append would have all of it read each time.
_EARLY = 0.25
# Reads of the source that are under way at a time while it is compared, so that a disk is never idle.
_COMPARING = 4
_COMPARED_AT_ONCE = 4 * BLOCK_SIZE
# Blocks that are written again before all that was written of them is made durable.
_PATCHED_AT_ONCE = 16
# What the source answers when somebody takes the file away from under a reader.
_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, None)


async def follow(job: Job, tools: Tools) -> list[Result]:
    """
    A file that is being written, or was when it was copied so far: until it is closed, and all of it has arrived.

    BUSY, if it is open for writing although *job* does not say that it is to be followed.
    """
    (item,) = job.items
    prepared = await begin(item, tools, growing=True)
    if isinstance(prepared, Result):
        return [prepared]
    first = await tools.looking.peek(
        item.path, item.fingerprint[:2], prepared.offset, tools.manner.markers.source, tools.manner.routes
    )
    if first.verdict is not None or first.found is None:
        return [Result(first.verdict or Verdict.GONE)]
    if first.writer == answers.BUSY and not job.growing:
        return [Result(Verdict.BUSY)]
    recording = _Recording(item, prepared, tools, first, first.found)
    with tools.changes.followed(item.path, recording.hear):
        async with kept_when_cancelled(recording):
            return [await recording.run()]


class _Recording(Transfer):
    """One file that is being followed."""

    def __init__(self, item: Item, prepared: Prepared, tools: Tools, first: Peek, found: Found) -> None:
        # What is VOID differs from the source, and is found when all of it is compared.
        super().__init__(item, prepared, tools, target=prepared.offset, ended=False, keep_void=True)
        self.settings = tools.config.growing
        self.doubtful = prepared.doubtful
        self.recorded = prepared.offset  # up to here the ledger's checkpoint reaches
        self.version = found  # what is to arrive, once it has ended
        self.current = found  # what it is
        self.lost: list[str] = []  # attributes that the destination does not take
        self.over: Verdict | None = None  # why there is nothing more to be copied here
        self._head = first
        self._looked = self._since = trio.current_time()  # the last look, and the last change, seen here
        self._look_begun = self._looked
        self._marks: deque[tuple[float, int]] = deque()  # (at, head): not written below head, known since then
        self._heard = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._take(first)

    async def run(self) -> Result:
        """Return when the file is closed and all of it is at the destination, or when there is no such file."""
        result: Result | None = None
        try:
            async with open_nursery_for_one_trouble() as nursery:
                self._scope = nursery.cancel_scope
                if self.over is None:
                    nursery.start_soon(self._watch)
                    result = await self._carry()
                nursery.cancel_scope.cancel()
        except FileTrouble as error:
            # A reader may meet it before the watch does.
            if error.trouble.side != Side.SOURCE or error.trouble.errno not in _VANISHED:
                raise
            await self._look()
            if self.over is None:
                raise
        finally:
            self.tools.board.lag(self.entry, None, None)
        if self.over is None:
            assert result is not None
            return result
        await self.keep()
        return Result(self.over, found=self.version if self.over == Verdict.UNMARKED else None)

    async def _carry(self) -> Result:
        while True:
            async with open_nursery_for_one_trouble() as nursery:
                nursery.start_soon(self.copy)
                while not self.is_written:
                    await self.wait()
                # The end settles while all is compared: two different disks are at work.
                differences = await self._compare_all()
            await self._finish_attributes()
            if await self._reconcile(differences) and await self._is_still():
                break
            # Somebody went on writing: the last block may become longer, and what is above the last whole one is
            # settled again.
            self.settled -= self.settled % BLOCK_SIZE
            self.ended = False
            self.tools.board.move(self.entry, FileState.COPYING)
            self._take(self._head)
        digest = self.digest() if self.tools.manner.verify != "size" else None
        note = self._what_was_not_compared()
        closed = self._head.strength
        lost = tuple(self.lost)
        written = Result(Verdict.WRITTEN, digest=digest, closed=closed, found=self.version, note=note, lost=lost)
        return written._replace(sum=self.sum(), seal=self.seal or self.last_seal)

    @property
    def mtime_ns(self) -> int:
        return self.version.fingerprint.mtime_ns

    # --- the write head

    def hear(self) -> None:
        """An event tells that the file may have changed."""
        self._heard.set()

    async def _watch(self) -> None:
        """Look at the file, at each event and now and then without one. Ends when there is nothing more to copy."""
        while self.over is None:
            earliest = trio.current_time() + min(_AT_MOST_EVERY, self.settings.poll)
            pause = self.settings.poll
            if self._head.writer != answers.BUSY:
                pause = min(pause, max(self.tools.config.source.settle_closed * _EARLY, _AT_MOST_EVERY))
            with trio.move_on_after(pause):
                await self._heard.wait()
            await trio.sleep_until(earliest)
            self._heard = trio.Event()
            self.check_wanted()
            await self._look()

    async def _look(self) -> None:
        """Look at the file, and take note of what it is; unless a later look was faster."""
        identity, begun = self.item.fingerprint[:2], trio.current_time()
        marker, routes = self.tools.manner.markers.source, self.tools.manner.routes
        peek = await self.tools.looking.peek(self.item.path, identity, self.written, marker, routes)
        if begun >= self._look_begun:
            self._look_begun = begun
            self._take(peek)

    def _take(self, peek: Peek) -> None:
        """Take note of what the file is now."""
        if peek.verdict is not None or peek.found is None:
            self._end_with(peek.verdict or Verdict.GONE)
            return
        if peek.found.fingerprint != self.current.fingerprint:
            self._since = trio.current_time()
        self._head, self.current = peek, peek.found
        size = peek.found.fingerprint.size
        if size < self.written:
            self._end_with(Verdict.CHANGED)  # another attempt begins where it was cut off
            return
        self.tools.board.grow(self.entry, size)
        head = max(0, min(peek.head, size) - self.settings.headroom)
        if not self.ended:
            self.target = max(self.target, self.written, head)
            if trio.current_time() >= self._closed_at(self.tools.config.source.settle_closed * _EARLY):
                self.version, self.target, self.ended = peek.found, size, True
        self._measure_lag(head)
        self.stir()

    def _end_with(self, verdict: Verdict) -> None:
        self.over = verdict
        if self._scope is not None:
            self._scope.cancel()

    def _closed_at(self, quiet: float) -> float:
        """
        Return when it may be taken for closed, if nothing changes until then.

        Where the kernel proves that nobody has it open for writing, *quiet* seconds are enough; none are needed where
        its writer has said that it is complete.
        """
        if self._head.writer == answers.BUSY:
            return math.inf
        if self._head.marked:
            return self._since
        is_proved = self._head.writer == answers.CLOSED
        return self._since + (quiet if is_proved else self.tools.config.source.settle)

    def _measure_lag(self, head: int) -> None:
        """
        Tell how far behind the write head the copy is, in bytes and in seconds.

        What is new was written after the last look: its age is counted from then on, so that this is never too good.
        """
        while self._marks and self._marks[0][1] <= self.written:
            self._marks.popleft()
        if head > max(self.written, self._marks[-1][1] if self._marks else 0):
            self._marks.append((self._looked, head))
        self._looked = now = trio.current_time()
        seconds = now - self._marks[0][0] if self._marks else 0.0
        self.tools.board.lag(self.entry, max(0, head - self.written), seconds)

    # --- copying

    async def write_span(self, start: int, end: int) -> dict[int, Block]:
        blocks = await super().write_span(start, end)
        if sum(block.length for block in blocks.values()) < end - start:
            self._end_with(Verdict.CHANGED)  # it has become shorter
        return blocks

    async def copy_span(self, start: int, end: int, tell: TellWriting) -> None:
        known = [self._known(n) for n in range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE))]
        destination, final = self.tools.destination, self.ended
        await destination.copy_growing(self.watched, self.partial, start, end, known, tell, final=final)

    def _known(self, number: int) -> Known:
        """Return what is written of a block. Nothing, if its pieces are not known: an earlier run has written it."""
        block = self.blocks.get(number)
        return Known(block.length, block.pieces) if block is not None and block.pieces else Known(0, b"")

    def unfinished(self) -> tuple[int, int] | None:
        """The last block may be complete, for all that it is not whole, only now that the file is closed."""
        first = self.target // BLOCK_SIZE * BLOCK_SIZE
        block = self.blocks.get(first // BLOCK_SIZE)
        is_begun = self.ended and block is not None and not block.digest and self.target > first
        return (first, self.target) if is_begun else None

    async def record(self, offset: int) -> None:
        """Only whole blocks: the last one may go on."""
        offset -= offset % BLOCK_SIZE
        if offset > self.recorded:
            await self._record(offset)

    async def _record(self, offset: int, void: Iterable[int] = ()) -> None:
        digests = bytearray(self.digests_between(0, offset))
        for number in void:
            if number * BLOCK_SIZE < offset:
                digests[16 * number : 16 * number + 16] = VOID
        await self.save(Checkpoint(self.partial, self.current.fingerprint, offset, bytes(digests), growing=True))
        self.recorded = offset

    # --- the end

    async def _finish_attributes(self) -> None:
        tools, item = self.tools, self.watched._replace(mode=self.version.mode)
        tell = functools.partial(self._told, {})
        self.lost = await tools.destination.finish_attributes(item, self.partial, tools.manner, tell)

    async def _compare_all(self) -> list[Difference]:
        """Return the blocks that are not what the file holds now that it is closed."""
        self.tools.board.move(self.entry, FileState.VERIFYING, "comparing the whole file with its source")
        self.tools.board.compared(self.entry, None)
        return await self._compare(self._to_compare())

    async def _reconcile(self, differences: list[Difference]) -> bool:
        """
        Write again what differs from what the file holds now, until nothing differs.

        Returns False as soon as the file is another version than the one that is compared.
        """
        while differences and self.current == self.version:
            differences = await self._compare(await self._patch(differences))
        return self.current == self.version

    def _to_compare(self) -> list[int]:
        """Return the numbers of the blocks to be compared."""
        count = -(-self.target // BLOCK_SIZE)
        low, high = self._edges()
        return [n for n in range(count) if not low <= n < high or self.blocks[n].digest == VOID]

    def _edges(self) -> tuple[int, int]:
        """Return from which block to which nothing is compared."""
        if self.settings.reconcile == "full" or self.doubtful:
            return 0, 0
        low, high = EDGE // BLOCK_SIZE, max(0, self.target - EDGE) // BLOCK_SIZE
        return (low, high) if low < high else (0, 0)

    def _what_was_not_compared(self) -> str:
        low, high = self._edges()
        if low == high:
            return ""
        between = f"bytes {low * BLOCK_SIZE} to {high * BLOCK_SIZE}"
        return f"{NOT_COMPARED}: {between} (growing.reconcile: edges)"

    async def _compare(self, numbers: list[int]) -> list[Difference]:
        """Return those of the blocks *numbers* for which the file has other bytes than were copied."""
        differences: list[Difference] = []
        spans = _spans(numbers, _COMPARED_AT_ONCE)

        async def compare() -> None:
            for start, end in spans:
                if self.current != self.version:
                    return
                blocks = [self.blocks[n] for n in range(start // BLOCK_SIZE, end // BLOCK_SIZE)]
                differences.extend(
                    await self.tools.source.compare_span(
                        self.item.path,
                        start,
                        min(end, self.target),
                        [(block.digest, block.pieces) for block in blocks],
                        lambda step: self.tools.board.compared(self.entry, step.amount),
                    )
                )

        async with open_nursery_for_one_trouble() as nursery:
            for _ in range(_COMPARING):
                nursery.start_soon(compare)
        return sorted(differences)

    async def _patch(self, differences: list[Difference]) -> list[int]:
        """
        Write again what differs, durably and verified; return the numbers of the blocks that have changed once more.

        The ledger never takes what is being written again for good.
        """
        changed: list[int] = []
        numbers = [difference.number for difference in differences]
        if numbers[0] * BLOCK_SIZE < self.recorded:
            await self._record(self.recorded, numbers)
        for at in range(0, len(differences), _PATCHED_AT_ONCE):
            changed += await self._patch_some(differences[at : at + _PATCHED_AT_ONCE])
        if numbers[0] * BLOCK_SIZE < self.recorded:
            await self._record(self.recorded, changed)
        return changed

    async def _patch_some(self, differences: list[Difference]) -> list[int]:
        tools = self.tools
        ranges = [piece for difference in differences for piece in self._ranges_of(difference)]
        tell = functools.partial(self._told, {})
        changed = await tools.destination.copy_ranges(self.watched, self.partial, ranges, tell)
        written = [piece for piece in ranges if piece.offset not in changed]
        await self.set_seal()
        bad = await tools.destination.settle_ranges(self.partial, written, tools.manner.verify)
        if bad:
            raise FileTrouble(mismatch(self.partial, bad[0]))
        tools.board.patched(self.entry, sum(piece.length for piece in written))
        again = {offset // BLOCK_SIZE for offset in changed}
        for number, digest, pieces in differences:
            length = self.blocks[number].length
            self.blocks[number] = Block(length, VOID) if number in again else Block(length, digest, pieces)
        return sorted(again)

    def _ranges_of(self, difference: Difference) -> Iterator[Range]:
        """Yield the pieces of a block that have changed: all, where nobody knows what they were."""
        block = self.blocks[difference.number]
        for at in range(0, block.length, PIECE_SIZE):
            digest = slice(at // PIECE_SIZE * 16, at // PIECE_SIZE * 16 + 16)
            if block.pieces[digest] != difference.pieces[digest]:
                length = min(PIECE_SIZE, block.length - at)
                yield Range(difference.number * BLOCK_SIZE + at, length, difference.pieces[digest])

    async def _is_still(self) -> bool:
        """
        Return whether the file has stayed as it was compared for long enough to be taken for closed.

        One that lacks its marker keeps its lane for no longer than ``settle``: it goes on when the marker has come.
        """
        source, marker = self.tools.config.source, self.tools.manner.markers.source
        while True:
            await self._look()
            if self.current != self.version:
                return False
            closed_at = self._closed_at(source.settle_closed)
            if self._head.marked is False and closed_at < math.inf:
                self.tools.board.move(self.entry, FileState.VERIFYING, waits_for(self.item.path, marker))
                closed_at = self._since + source.settle
                if trio.current_time() >= closed_at:
                    self._end_with(Verdict.UNMARKED)
            elif trio.current_time() >= closed_at:
                return True
            await self.wait(closed_at)


def _spans(numbers: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield the spans, of *most* bytes at most, that blocks of these ascending *numbers* make up."""
    at = 0
    while at < len(numbers):
        count = 1
        while at + count < len(numbers) and numbers[at + count] == numbers[at] + count and count * BLOCK_SIZE < most:
            count += 1
        yield numbers[at] * BLOCK_SIZE, (numbers[at] + count) * BLOCK_SIZE
        at += count
