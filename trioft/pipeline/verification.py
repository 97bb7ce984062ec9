"""
Verification: delivered files are read back, and compared with the digests on record.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple, TypeVar

import attrs
import trio

from trioft.config.options import Config
from trioft.core import operations as ask
from trioft.core.answers import Piece, Seen, Step
from trioft.core.digests import file_digest
from trioft.core.errors import AwayError, FileTrouble, Remedy, Trouble, classify, hint_for, show_path
from trioft.core.model import BUNDLE_BYTES, BUNDLE_FILES, SPAN_SIZE, Root
from trioft.movers.pool import Movers
from trioft.pipeline.throttle import Throttle
from trioft.state.findings import VERIFIED, Finding, Findings
from trioft.state.ledger import now
from trioft.state.reader import Delivery, Filter, Records

T = TypeVar("T")

MISSING = "missing"  # there is no regular file of this name

MISMATCH = "mismatch"  # it has other bytes than were delivered, and nobody seems to have replaced it

CHANGED = "changed"  # somebody has replaced it since

NO_DIGEST = "no_digest"  # it has the size that it had: more is not on record

UNREADABLE = "unreadable"

VERDICTS = (VERIFIED, MISSING, MISMATCH, CHANGED, NO_DIGEST, UNREADABLE)

FAILURES = (MISSING, MISMATCH, UNREADABLE)

# Modification times that differ by less are the same: some destinations keep them in steps of two seconds.
SAME_NS = 2_000_000_000

# Times that a file is read before it is taken for unreadable.
_ATTEMPTS = 3


class Judgement(NamedTuple):
    """What is to be said about one file."""

    delivery: Delivery
    verdict: str
    detail: str
    digest: bytes | None = None  # what it has, where that was found out


@attrs.define(kw_only=True)
class Tally:
    """How far it is."""

    files: int = 0  # that were looked at
    bytes: int = 0  # that were read
    skipped: int = 0  # files that were verified before it was interrupted
    skipped_bytes: int = 0
    all_files: int = 0
    all_bytes: int = 0
    counts: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(VERDICTS, 0))


def judge(delivery: Delivery, seen: Seen, digest: bytes | None) -> Judgement:
    """Say what it means that this was *seen* of a file, and that what it holds has this *digest*."""
    if seen.trouble is not None:
        return Judgement(delivery, UNREADABLE, str(seen.trouble))
    if seen.size is None:
        return Judgement(delivery, MISSING, "there is no regular file of this name")
    if seen.in_source:
        return Judgement(delivery, MISSING, "its folder at the destination lies in the source itself: there is no copy")
    if seen.size != delivery.size:
        what = f"{seen.size:,} bytes instead of {delivery.size:,}"
    elif delivery.digest is None:
        return Judgement(delivery, NO_DIGEST, "the ledger has no digest of it, only its size")
    elif digest == delivery.digest:
        return Judgement(delivery, VERIFIED, "")
    else:
        what = "other bytes than were delivered"
    if delivery.mtime_ns is not None:
        is_replaced = abs(seen.mtime_ns - delivery.mtime_ns) >= SAME_NS
    else:  # all that is known is when it was delivered: whoever writes later leaves a later time
        is_replaced = seen.mtime_ns > _ns_of(delivery.time) + SAME_NS
    return Judgement(delivery, CHANGED if is_replaced else MISMATCH, what, digest)


def _ns_of(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1e9)


@attrs.define(kw_only=True)
class Verification:
    """The state of one that is under way."""

    config: Config
    records: Records
    findings: Findings
    wanted: Filter
    movers: Movers
    throttle: Throttle
    tally: Tally
    tell: Callable[[Judgement], None]  # called with what was found of each file
    _root: Root = attrs.field(init=False)
    # SQLite's objects are for one thread at a time.
    _turn: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    async def run(self) -> None:
        """Return when all is verified. Raises ``AwayError`` where the destination is not there."""
        self._root = await self._recognize()
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[list[Delivery]](0)
            nursery.start_soon(self._find, send)
            with receive:
                for _ in range(self.config.copy.transfers):
                    nursery.start_soon(self._verify, receive.clone())

    async def _recognize(self) -> Root:
        """Make sure that the destination is what it was: in a bare mount point everything would be missing."""
        settings = self.config.destination
        marker = settings.marker.encode("utf-8", "surrogateescape") if settings.marker else None
        path, was = self.records.destination, self.records.identity_of("destination")
        try:
            root = await self.movers.call(ask.RECOGNIZE, path, was, marker, settings.require_mount)
        except FileTrouble as error:
            text = f"the destination cannot be read: {error}"
            raise AwayError(text, side=error.trouble.side, hint=hint_for(error.trouble)) from error
        return root

    async def _find(self, jobs: trio.MemorySendChannel[list[Delivery]]) -> None:
        """Hand out what is to be read: one large file, or some small ones. Ends when the ledger is at its end."""
        deliveries = self.records.deliveries(self.wanted)
        with jobs:
            bundle: list[Delivery] = []
            while found := await self._ask(lambda: list(itertools.islice(deliveries, BUNDLE_FILES))):
                for delivery in await self._ask(functools.partial(self._new, found)):
                    full = bundle and sum(d.size for d in bundle) + delivery.size > BUNDLE_BYTES
                    if full or len(bundle) >= BUNDLE_FILES:
                        await jobs.send(bundle)
                        bundle = []
                    bundle.append(delivery)
            if bundle:
                await jobs.send(bundle)

    def _new(self, found: Iterable[Delivery]) -> list[Delivery]:
        """Return those that have not been verified yet."""
        new = []
        for delivery in found:
            if self.findings.has(delivery.target, delivery.digest):
                self.tally.skipped += 1
                self.tally.skipped_bytes += delivery.size
            else:
                new.append(delivery)
        return new

    async def _verify(self, jobs: trio.MemoryReceiveChannel[list[Delivery]]) -> None:
        """Verify what is handed out. Ends when there is no more."""
        with jobs:
            async for deliveries in jobs:
                # What is delivered while it is read comes after that, by the ledger's own count.
                after = await self._ask(self.records.newest)
                judgements = [await self._reconsider(judged) for judged in await self._judge(deliveries)]
                findings = [
                    Finding(d.target, d.digest, now(), verdict, d.size, detail, after)
                    for d, verdict, detail, _ in judgements
                ]
                await self._ask(functools.partial(self.findings.add, findings))
                for judgement in judgements:
                    self.tally.files += 1
                    self.tally.counts[judgement.verdict] += 1
                    self.tell(judgement)

    async def _judge(self, deliveries: list[Delivery]) -> list[Judgement]:
        if sum(delivery.size for delivery in deliveries) > SPAN_SIZE:
            return [await self._judge_large(delivery) for delivery in deliveries]
        pieces = [Piece(d.target, 0, d.size if d.digest is not None else 0) for d in deliveries]
        return [
            judge(delivery, seen, file_digest(seen.digests))
            for delivery, seen in zip(deliveries, await self._read(pieces), strict=True)
        ]

    async def _judge_large(self, delivery: Delivery) -> Judgement:
        """Span by span: so it can be throttled, and another file's turn comes."""
        digests, seen = b"", Seen(None)
        for start in range(0, delivery.size if delivery.digest is not None else 1, SPAN_SIZE):
            end = min(start + SPAN_SIZE, delivery.size) if delivery.digest is not None else 0
            (seen,) = await self._read([Piece(delivery.target, start, end)])
            if seen.size != delivery.size or seen.in_source:
                break
            digests += seen.digests
        return judge(delivery, seen, file_digest(digests))

    async def _read(self, pieces: list[Piece]) -> list[Seen]:
        """Have *pieces* read. What fails is tried again, as long as the destination itself is well."""
        await self.throttle.take(sum(piece.end - piece.start for piece in pieces))
        seen: dict[int, Seen] = {}
        left = list(range(len(pieces)))
        for attempt in range(_ATTEMPTS):
            await trio.sleep(self.config.retry.pause(attempt))
            # First all together; then one by one, so that one that hangs does not take the others with it.
            for together in [left] if attempt == 0 else [[n] for n in left]:
                seen.update(zip(together, await self._call([pieces[n] for n in together]), strict=True))
            left = [n for n in left if _may_pass(seen[n].trouble)]
            if not left:
                break
            self._root = await self._recognize()  # the same share, mounted again, is another root
        return [seen[n] for n in range(len(pieces))]

    async def _call(self, pieces: list[Piece]) -> list[Seen]:
        try:
            return await self.movers.call(ask.READ_DELIVERED, self._root, pieces, self.records.source, tell=self._count)
        except FileTrouble as error:
            return [Seen(None, trouble=error.trouble._replace(op="read", path=piece.target)) for piece in pieces]

    def _count(self, step: Step) -> None:
        self.tally.bytes += step.amount

    async def _reconsider(self, judged: Judgement) -> Judgement:
        """An agent may have delivered another version meanwhile, or another file under this name."""
        delivery = judged.delivery
        if judged.verdict not in (MISSING, MISMATCH, CHANGED):
            return judged
        newest = await self._ask(functools.partial(self.records.file, delivery.path))
        if newest is not None and newest.is_delivered and newest.target == delivery.target:
            known = newest.known
            if (newest.digest, known.size, known.mtime_ns) != (delivery.digest, delivery.size, delivery.mtime_ns):
                newer = delivery._replace(digest=newest.digest, size=known.size, mtime_ns=known.mtime_ns)
                return (await self._judge([newer]))[0]
        if judged.verdict == MISMATCH:
            for other in await self._ask(functools.partial(self.records.files_at, delivery.target)):
                if other.path != delivery.path and other.digest is not None and other.digest == judged.digest:
                    detail = f"it is what was delivered of {show_path(other.path)}, under the same name"
                    return judged._replace(verdict=CHANGED, detail=detail)
        return judged

    async def _ask(self, question: Callable[[], T]) -> T:
        """Have the ledger, or what was found so far, asked in a thread."""
        async with self._turn:
            return await trio.to_thread.run_sync(question)

    async def measure(self) -> None:
        """Find out how much there is to verify, for who looks on."""

        def measure() -> None:
            for delivery in self.records.deliveries(self.wanted):
                self.tally.all_files += 1
                self.tally.all_bytes += delivery.size

        await self._ask(measure)


def _may_pass(trouble: Trouble | None) -> bool:
    return trouble is not None and classify(trouble) != Remedy.GIVE_UP
