"""
An inquiry: all files of a source, or of a part of it, are looked at, to say whether they may be removed.

Movers look, at both ends, now. Memory is bounded: of each reason a count and some examples are kept.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import attrs
import trio
import xxhash

from trioft.config.options import Config
from trioft.core import operations as ask
from trioft.core.answers import Piece, Seen, Sight, Step
from trioft.core.digests import file_digest
from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.model import BLOCK_SIZE, BUNDLE_BYTES, BUNDLE_FILES, SPAN_SIZE, Fingerprint, Identity, Root
from trioft.core.naming import lies_at
from trioft.movers.pool import Call
from trioft.pipeline.safety import Content, Count, Facts, Reason, Tally, judge, needs_source, unknown, why_not_seen
from trioft.state.findings import last_findings
from trioft.state.proofs import Proof
from trioft.state.reader import Recorded, Records

T = TypeVar("T")

_PARTS = 200  # folders at the top of a source that are told apart


class Area(NamedTuple):
    """What an inquiry is about: something below a source, or below the folder that delivered sources are moved to."""

    path: bytes = b""  # below the source, or below *archive*; empty: all of it
    archive: bytes = b""  # absolute; empty: it is the source


@attrs.define(kw_only=True)
class Inquiry:
    """One look at a source, or at a part of it. With *read*, every copy is read again."""

    config: Config
    records: Records
    call: Call
    read: bool = False
    total: Tally = attrs.field(factory=Tally, init=False)
    parts: dict[bytes, Tally] = attrs.field(factory=dict, init=False)  # the same, by the first folder below
    bytes_read: int = attrs.field(default=0, init=False)
    _archives: list[bytes] = attrs.field(factory=list, init=False)
    _other_volume: bool = attrs.field(default=False, init=False)
    _source: Root = attrs.field(init=False)
    _destination: Root | None = attrs.field(default=None, init=False)
    _away: str | None = attrs.field(default=None, init=False)

    async def run(self, area: Area = Area()) -> Tally:  # noqa: B008 - a value
        """Look at everything in *area*, and return what was found. Troubles are a part of that."""
        try:
            area = await self._find_source(area)
        except FileTrouble as error:
            self._note(area.path, unknown("unseen", f"the source cannot be looked at: {error}"))
            return self._ended()
        self._archives = await self._ask(self.records.archives)
        marker = self.config.destination.marker
        try:
            self._destination = await self.call(
                ask.RECOGNIZE,
                self.records.destination,
                await self._ask(functools.partial(self.records.identity_of, "destination")),
                os.fsencode(marker) if marker else None,
                self.config.destination.require_mount,
            )
        except FileTrouble as error:
            self._away = str(error)
        version = await self._walk(area, judging=True)
        if self.read and version != await self._walk(area, judging=False):
            self._note(area.path, unknown("moving", "files came, went, or changed while it was looked at"))
        return self._ended()

    def _ended(self) -> Tally:
        for tally in (self.total, *self.parts.values()):
            tally.end()
        return self.total

    async def _find_source(self, area: Area) -> Area:
        """Find the folder that all is looked at in; return the area, of a source that is one file that one."""
        if area.archive:
            self._source, _ = await self.call(ask.PROBE_SOURCE, area.archive, None)
            return area
        was = await self._ask(functools.partial(self.records.identity_of, "source"))
        self._source, identity = await find_source(self.call, self.records, area.path)
        self._other_volume = is_other_volume(was, identity)
        if self._source.path != self.records.source and not area.path:
            return Area(os.path.basename(self.records.source))
        return area

    async def _walk(self, area: Area, *, judging: bool) -> int:
        """Go through all names; return a sum of what is there in which version, whatever the order."""
        version, rest = 0, [area.path]
        while rest:
            batch = [rest.pop() for _ in range(min(len(rest), BUNDLE_FILES))]
            try:
                survey = await self.call(ask.SURVEY, self._source, batch, tell=lambda _: None)
            except FileTrouble as error:
                if len(batch) > 1:  # one that hangs does not take the others with it
                    for path in batch:
                        version += await self._walk(area._replace(path=path), judging=judging)
                    continue
                self._note(batch[0], unknown("unseen", f"the source cannot be looked at: {error}"))
                continue
            rest += survey.rest
            for sight in survey.seen:
                if sight.fingerprint is not None:
                    version += xxhash.xxh3_128_intdigest(b"%s\0%r" % (sight.path, tuple(sight.fingerprint)))
            if judging:
                for start in range(0, len(survey.seen), BUNDLE_FILES):
                    await self._take_in(survey.seen[start : start + BUNDLE_FILES], area)
        return version % 2**128

    async def _take_in(self, seen: list[Sight], area: Area) -> None:
        """Judge what was seen."""
        files = []
        for sight in seen:
            if sight.kind == "file":
                files.append(sight)
            elif sight.kind == "unreadable" or (sight.kind == "gone" and sight.path == area.path):
                self._note(sight.path, why_not_seen(sight))
            elif sight.kind == "folder" or sight.kind == "gone":
                continue
            else:
                for tally in self._tallies(sight.path):
                    tally.others.setdefault(sight.kind, Count()).add(sight.path)
        if not files:
            return
        facts = await self._ask(functools.partial(self._look_up, files, area))
        facts = await self._look_at_copies(facts)
        if self.read:
            facts = await self._read_copies(facts)
        for sight, x in zip(files, facts, strict=True):
            assert sight.fingerprint is not None
            for tally in self._tallies(sight.path):
                tally.files += 1
                tally.size += sight.fingerprint.size
            if (reason := judge(x)) is not None:
                self._note(sight.path, reason)

    def _note(self, path: bytes, reason: Reason) -> None:
        for tally in self._tallies(path):
            tally.add(path, reason)

    def _tallies(self, path: bytes) -> Iterable[Tally]:
        top, slash, _ = path.partition(b"/")
        if not slash:
            return (self.total,)
        if top not in self.parts and len(self.parts) >= _PARTS:
            return (self.total,)
        return self.total, self.parts.setdefault(top, Tally())

    # --- facts

    def _look_up(self, files: list[Sight], area: Area) -> list[Facts]:
        """Find out what is on record of *files*."""
        folders: dict[bytes, dict[bytes, Recorded]] = {}
        found: list[tuple[Sight, Recorded | None, Fingerprint | None]] = []
        for sight in files:
            recorded = None
            if not area.archive:
                folder = os.path.dirname(sight.path)
                if len(files) == 1:
                    recorded = self.records.file(sight.path)
                else:
                    if folder not in folders:
                        folders[folder] = self.records.files_in(folder)
                    recorded = folders[folder].get(sight.path)
            moved = self._archived(sight) if recorded is None else None
            found.append((sight, *(moved or (recorded, None))))
        targets = [recorded.target for _, recorded, _ in found if recorded is not None]
        findings = last_findings(self.records.path, targets)
        return [
            Facts(
                recorded=recorded,
                proof=self.records.proof_of(recorded) if recorded is not None else Proof(),
                source=sight,
                copy=None,
                away=self._away,
                finding=findings.get(recorded.target) if recorded is not None else None,
                resolution_ns=self.records.resolution_ns,
                archived=archived,
                other_volume=self._other_volume,
            )
            for sight, recorded, archived in found
        ]

    def _archived(self, sight: Sight) -> tuple[Recorded | None, Fingerprint] | None:
        """Return what is on record of a source that was moved to an archive when it had been delivered."""
        path = os.path.join(self._source.path, sight.path)
        return archived_as(self.records, self._archives, path, sight.fingerprint)

    async def _look_at_copies(self, facts: list[Facts]) -> list[Facts]:
        wanted = [n for n, x in enumerate(facts) if x.recorded is not None and x.recorded.is_delivered]
        wanted = [n for n in wanted if _target(facts[n])]
        if self._destination is None or not wanted:
            return facts
        pieces = [Piece(_target(facts[n]), 0, 0) for n in wanted]
        seen = await self._read_pieces(pieces)
        facts = facts[:]
        for n, copy in zip(wanted, seen, strict=True):
            facts[n] = attrs.evolve(facts[n], copy=copy)
        return facts

    @property
    def _source_path(self) -> bytes:
        """The source, or the folder of the archive; of a source that is one file that one."""
        is_folder = self._source.path != os.path.dirname(self.records.source)
        return self._source.path if is_folder else self.records.source

    async def _read_pieces(self, pieces: list[Piece]) -> list[Seen]:
        assert self._destination is not None
        try:
            return await self.call(ask.READ_DELIVERED, self._destination, pieces, self._source_path, tell=self._count)
        except FileTrouble as error:
            if len(pieces) == 1:
                return [Seen(None, trouble=error.trouble)]
        return [seen for piece in pieces for seen in await self._read_pieces([piece])]

    def _count(self, step: Step) -> None:
        self.bytes_read += step.amount

    # --- reading

    async def _read_copies(self, facts: list[Facts]) -> list[Facts]:
        """Read the copies of those that may be safe otherwise; and look at their sources once more after it."""
        facts = facts[:]
        may_be = [n for n, x in enumerate(facts) if x.copy is not None and x.copy.size is not None and _may_be_safe(x)]
        small = [n for n in may_be if not needs_source(facts[n]) and _size(facts[n]) <= BLOCK_SIZE]
        while small:
            some, size = 0, 0
            while some < len(small) and (not some or size + _size(facts[small[some]]) <= BUNDLE_BYTES):
                size += _size(facts[small[some]])
                some += 1
            pieces = [Piece(_target(facts[n]), 0, _size(facts[n])) for n in small[:some]]
            for n, seen in zip(small[:some], await self._read_pieces(pieces), strict=True):
                facts[n] = attrs.evolve(facts[n], copy=seen, content=_content_of(facts[n], seen, seen.digests))
            small = small[some:]
        for n in may_be:
            if facts[n].content is None:
                facts[n] = await self._read_large(facts[n])
        return await self._look_again(facts, may_be)

    async def _read_large(self, x: Facts) -> Facts:
        assert x.copy is not None
        digests, seen, is_source = b"", x.copy, True if needs_source(x) else None
        for start in range(0, _size(x), SPAN_SIZE):
            end = min(start + SPAN_SIZE, _size(x))
            (seen,) = await self._read_pieces([Piece(_target(x), start, end)])
            if seen.trouble is not None or seen.size != _size(x):
                break
            digests += seen.digests
            if is_source:
                blocks = [(seen.digests[at : at + 16], b"") for at in range(0, len(seen.digests), 16)]
                try:
                    differences = await self.call(
                        ask.COMPARE_SPAN, self._source, x.source.path, start, end, blocks, tell=lambda _: None
                    )
                except FileTrouble as error:
                    sight = Sight(x.source.path, "unreadable", trouble=error.trouble)
                    return attrs.evolve(x, source=sight, content=Content(None))
                is_source = not differences
        return attrs.evolve(x, copy=seen, content=_content_of(x, seen, digests, is_source))

    async def _look_again(self, facts: list[Facts], read: list[int]) -> list[Facts]:
        """It may have taken hours: what are the sources now?"""
        paths = {facts[n].source.path: n for n in read}
        if not paths:
            return facts
        try:
            survey = await self.call(ask.SURVEY, self._source, list(paths), tell=lambda _: None)
            sights = {sight.path: sight for sight in survey.seen}
        except FileTrouble as error:
            sights = {path: Sight(path, "unreadable", trouble=error.trouble) for path in paths}
        for path, n in paths.items():
            if facts[n].source.kind != "unreadable":
                again = sights.get(path, Sight(path, "gone"))
                if again.fingerprint is not None and again.fingerprint != facts[n].source.fingerprint:
                    again = Sight(path, "unreadable", trouble=_changed(path))
                facts[n] = attrs.evolve(facts[n], source=again)
        return facts

    async def _ask(self, question: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(question)


def _changed(path: bytes) -> Trouble:
    return Trouble(Side.SOURCE, "look at", path, None, None, "it changed while its copy was read")


def _target(x: Facts) -> bytes:
    return x.recorded.target if x.recorded is not None else b""


def _size(x: Facts) -> int:
    return x.recorded.known.size if x.recorded is not None else 0


def _may_be_safe(x: Facts) -> bool:
    """Does nothing speak against it that reading would not change?"""
    proved = attrs.evolve(x, content=Content(_digest(x), True))
    return judge(proved) is None


def _digest(x: Facts) -> bytes:
    return (x.recorded.digest if x.recorded is not None else None) or b"?"


def _content_of(x: Facts, seen: Seen, digests: bytes, is_source: bool | None = None) -> Content:
    return Content(file_digest(digests) if seen.size == _size(x) else None, is_source)


def archived_as(
    records: Records, archives: Iterable[bytes], path: bytes, now: Fingerprint | None
) -> tuple[Recorded | None, Fingerprint] | None:
    """Return what is on record of the file *path*, below one of *archives*, and which file it was when it was moved."""
    for archive in archives:
        if inside := lies_at(path, archive):
            for name in original_names(inside):
                below, version = records.archive_of(name)
                if below == archive and version is not None and (now is None or version.ino == now.ino):
                    return records.file(name), version
    return None


def original_names(path: bytes) -> Iterable[bytes]:
    """Yield what a file may have been called before it was moved to an archive, where its name may have been taken."""
    yield path
    folder, slash, name = path.rpartition(b"/")
    stem, dot, extension = name.rpartition(b".")
    stem, extension = (stem, dot + extension) if stem else (name, b"")
    original, _, number = stem.rpartition(b"_")
    if original and number.isdigit():
        yield folder + slash + original + extension


def is_other_volume(was: Identity | None, identity: Identity) -> bool:
    """Is another volume there than when it was copied last? Cards of one make can agree in all that is on record."""
    return was is not None and identity.uuid != was.uuid


async def find_source(call: Call, records: Records, path: bytes) -> tuple[Root, Identity]:
    """Return the source's folder, which is not the source where that is one file. Raises ``FileTrouble``."""
    was = records.identity_of("source")
    try:
        return await call(ask.PROBE_SOURCE, records.source, was)
    except FileTrouble as error:
        alone = os.path.dirname(records.source)
        is_gone = error.trouble.errno in (errno.ENOTDIR, errno.ENOENT)
        if not is_gone or (path and os.path.join(alone, path) != records.source):
            raise
        if error.trouble.errno == errno.ENOENT and not path:
            raise
        return await call(ask.PROBE_SOURCE, alone, was)


async def count_unrecorded(call: Call, records: Records, paths: re.Pattern[str] | None) -> int:
    """
    Return how many files of the source are not on record as delivered in the version that they have now.

    Of those whose path matches *paths*, if that is given. Raises ``FileTrouble`` where not all could be looked at.
    """
    source, _ = await find_source(call, records, b"")
    is_one = source.path != records.source
    count, rest = 0, [os.path.basename(records.source) if is_one else b""]
    while rest:
        batch = [rest.pop() for _ in range(min(len(rest), BUNDLE_FILES))]
        survey = await call(ask.SURVEY, source, batch, tell=lambda _: None)
        rest += survey.rest
        count += await trio.to_thread.run_sync(_count_unrecorded, records, survey.seen, paths)
    return count


def _count_unrecorded(records: Records, seen: list[Sight], paths: re.Pattern[str] | None) -> int:
    folders: dict[bytes, dict[bytes, Recorded]] = {}
    count = 0
    for sight in seen:
        if sight.trouble is not None:
            raise FileTrouble(sight.trouble)
        if sight.fingerprint is None or (paths and not paths.fullmatch(os.fsdecode(sight.path))):
            continue
        folder = os.path.dirname(sight.path)
        if folder not in folders:
            folders[folder] = records.files_in(folder)
        recorded = folders[folder].get(sight.path)
        count += recorded is None or not recorded.is_delivered or not recorded.known.is_still(sight.fingerprint)
    return count
