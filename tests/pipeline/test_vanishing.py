"""
Files vanish, return and change at every await of the scanner and of the copiers: no file has two owners, none is lost.

The scanner, the backlog, the copiers and the strategies are the real ones, and so is the ledger. Both ends exist here
only, and change whenever they are asked.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from support import as_call, found
from trioft.config.options import Config, Growing, Retry, Source
from trioft.core import answers
from trioft.core.answers import Folder, Listing, Look, Peek, Prepared, Probed, Step, Written
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.folding import Naming
from trioft.core.model import (
    MIB,
    Ends,
    Fingerprint,
    Found,
    Identity,
    Item,
    Job,
    Manner,
    Publication,
    Result,
    Root,
    Verdict,
)
from trioft.movers import client
from trioft.movers.events import Changes
from trioft.movers.pool import Starts, Stuck
from trioft.pipeline.backlog import Backlog
from trioft.pipeline.context import Owners, Tools
from trioft.pipeline.copier import run_copier
from trioft.pipeline.scanner import Scanner
from trioft.pipeline.shutdown import Shutdown
from trioft.pipeline.storage import Storage
from trioft.pipeline.throttle import Throttle
from trioft.state.board import Board
from trioft.state.claims import Claims
from trioft.state.ledger import Ledger, Port

ENDS = Ends(Root(b"/in", 1), Root(b"/out", 2))
HERE = Identity("ext4", "/dev/sda1", "", b"/", b"/")
PROBED = Probed(ENDS.destination, HERE, 10**15, 10**15, 1, True)
NAMES = [b"a", b"b", b"c"]
SIZES = [1, 2 * MIB]  # in a bundle, and by itself
GONE = Trouble(Side.SOURCE, "open", b"", None, 2, "No such file or directory")


class Direct(Port):
    """The way to a ledger that needs no thread; something may happen before it answers, and after."""

    def __init__(self, ledger: Ledger, world: World) -> None:
        self._its, self._world = ledger, world

    def clone(self) -> Direct:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def call(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        await self._world.happen()
        with self._its.transaction():
            answer = method(self._its, *args, **kwargs)
        await self._world.happen()
        return answer


class World:
    """A source whose files come, go and change as *steps* say, each of them at some await."""

    def __init__(self, ledger: Ledger, steps: list[tuple[int, str, int, int, bool]], times: random.Random) -> None:
        self.steps, self.times = steps, times
        self.version = 0
        self.waits = 0
        self.files: dict[bytes, Found] = {}
        self.written: set[bytes] = set()  # that somebody has open for writing
        self.copied: dict[bytes, Fingerprint] = {}  # by their final names: which version has arrived
        self.config = Config(
            source=Source(settle=1.0, settle_closed=0.5, scan_interval=5.0),
            growing=Growing(min_size=MIB),
            retry=Retry(retries=2, first=1, longest=2),
        )
        self.board = Board()
        self.bugs: list[str] = []
        self.board.notices.append(lambda what, text: self.bugs.append(text) if what == "bug" else None)
        self.backlog = Backlog(self.board)
        self.storage = Storage(ENDS, dict.fromkeys(Side), self.config, self.board)
        self.changes = Changes(self.backlog.wake)
        self.manner = Manner("readback", "overwrite", False, 1, True)
        self.port = Direct(ledger, self)
        call = as_call(self.call)
        source, destination = client.Source(call, lambda: ENDS), client.Destination(call, lambda: ENDS)
        self.scanner = Scanner(
            config=self.config,
            once=False,
            only=None,
            own=(),
            board=self.board,
            backlog=self.backlog,
            storage=self.storage,
            ledger=self.port,
            source=source,
            destination=destination,
            manner=self.manner,
            changes=self.changes,
        )
        self.tools = Tools(
            config=self.config,
            once=False,
            board=self.board,
            source=source,
            destination=destination,
            looking=source,
            changes=self.changes,
            owners=Owners(),
            claims=Claims(overwrites=False, routed=False),
            ledger=self.port,
            storage=self.storage,
            manner=self.manner,
            throttle=Throttle(None),
            shutdown=Shutdown(10),
            stuck=Stuck(),
            starts=Starts(),
        )

    async def happen(self) -> None:
        """Let time pass, and what is to happen at this await happen."""
        await trio.sleep(self.times.choice([0.0, 0.01, 0.1, 1.0]))
        self.waits += 1
        while self.steps and self.steps[0][0] <= 0:
            self.do(*self.steps.pop(0)[1:])
        if self.steps:
            wait, *rest = self.steps[0]
            self.steps[0] = (wait - 1, *rest)  # type: ignore[assignment]

    def do(self, what: str, name: int, size: int, told: bool) -> None:
        path = NAMES[name]
        before = self.files.get(path)
        self.version += 1
        match what:
            case "vanish":
                self.files.pop(path, None)
                self.written.discard(path)
            case "appear":
                self.files[path] = found(path, SIZES[size], mtime=self.version, version=self.version)
            case "write":  # somebody opens it, and adds to it
                grown = (before.fingerprint.size if before else 0) + MIB
                its = found(path, grown, mtime=self.version, version=self.version)
                if before is not None:
                    its = its._replace(fingerprint=its.fingerprint._replace(ino=before.fingerprint.ino))
                self.files[path] = its
                self.written.add(path)
            case "close":
                self.written.discard(path)
            case "rename" if before is not None:
                del self.files[path]
                other = NAMES[(name + 1) % len(NAMES)]
                self.files[other] = before._replace(path=other)
                self.written.discard(path)
        if told:
            self.changes.add([path])

    async def call(self, operation: Any, *arguments: Any, **options: Any) -> Any:
        await self.happen()
        answer = getattr(self, operation.name)(*arguments, tell=options.get("tell"))
        await self.happen()
        return answer

    # --- the operations

    def scan(self, source: Root, folders: list[bytes], *_: Any, **__: Any) -> Listing:
        return Listing([Folder(b"", list(self.files.values()))], [], [], [], [], [], [], [], 0.0)

    def look(self, source: Root, paths: list[bytes], *_: Any, **__: Any) -> list[Look]:
        return [
            Look(path, "file", self.files[path], answers.BUSY if path in self.written else answers.CLOSED)
            if path in self.files
            else Look(path, "gone")
            for path in paths
        ]

    def peek(self, source: Root, path: bytes, identity: tuple[int, int], *_: Any, **__: Any) -> Peek:
        its = self.files.get(path)
        if its is None:
            return Peek(Verdict.GONE)
        if its.fingerprint[:2] != identity:
            return Peek(Verdict.CHANGED)
        writer = answers.BUSY if path in self.written else answers.CLOSED
        return Peek(None, its, its.fingerprint.size, writer, answers.PROVED)

    def locate(self, source: Root, path: bytes, identity: tuple[int, int], *_: Any, **__: Any) -> bytes | None:
        return next((its.path for its in self.files.values() if its.fingerprint[:2] == identity), None)

    def why_not(self, item: Item, *, growing: bool = False) -> Result | None:
        its = self.files.get(item.path)
        if its is None:
            return Result(Verdict.GONE)
        same = its.fingerprint[:2] == item.fingerprint[:2] if growing else its.fingerprint == item.fingerprint
        if not same:
            return Result(Verdict.CHANGED)
        return Result(Verdict.BUSY) if item.path in self.written and not growing else None

    def write_bundle(self, ends: Ends, items: list[Item], *_: Any, **__: Any) -> list[Result]:
        return [self.why_not(item) or Result(Verdict.WRITTEN, digest=bytes(16)) for item in items]

    def prepare(
        self, ends: Ends, item: Item, checkpoint: object, manner: Manner, growing: bool, **_: Any
    ) -> Result | Prepared:
        return self.why_not(item, growing=growing) or Prepared(0, b"")

    def copy_span(self, ends: Ends, item: Item, partial: bytes, start: int, end: int, *_: Any, tell: Any) -> None:
        if self.why_not(item) is not None:
            raise FileTrouble(GONE._replace(path=item.path))
        tell(Step("bytes", end - start))
        tell(Written(0, end - start, block_digest(b"%d" % end)))

    def copy_growing(
        self, ends: Ends, item: Item, partial: bytes, start: int, end: int, known: object, final: bool, tell: Any
    ) -> None:
        its = self.files.get(item.path)
        if its is None or its.fingerprint[:2] != item.fingerprint[:2]:
            raise FileTrouble(GONE._replace(path=item.path))
        end = min(end, its.fingerprint.size)
        tell(Step("bytes", max(0, end - start)))
        tell(Written(0, max(0, end - start), block_digest(b"%d" % end) if final else b"", bytes(16)))

    def compare_span(self, source: Root, path: bytes, *_: Any, **__: Any) -> list[object]:
        if path not in self.files:
            raise FileTrouble(GONE._replace(path=path))
        return []

    def publish(self, ends: Ends, publications: list[Publication], *_: Any, **__: Any) -> list[Result]:
        results = []
        for what in publications:
            its = self.files.get(what.path)
            if its is None:
                results.append(Result(Verdict.GONE))
            elif its.fingerprint != what.fingerprint:
                results.append(Result(Verdict.CHANGED))
            else:
                self.copied[what.target] = what.fingerprint
                results.append(Result(Verdict.PUBLISHED, what.target))
        return results

    def settle(self, *_: Any, **__: Any) -> list[int]:
        return []

    def settle_ranges(self, *_: Any, **__: Any) -> list[int]:
        return []

    def copy_ranges(self, *_: Any, **__: Any) -> list[int]:
        return []

    def finish_attributes(self, *_: Any, **__: Any) -> list[str]:
        return []

    def seal(self, root: Root, partial: bytes, mtime_ns: int, **_: Any) -> Fingerprint:
        return Fingerprint(1, 1, 1, mtime_ns, 0)

    def are_sealed(self, root: Root, copies: list[object], **_: Any) -> list[bool]:
        return [True] * len(copies)

    def holes_of(self, *_: Any, **__: Any) -> int:
        return 0

    def find_former(self, ends: Ends, items: list[Item], **_: Any) -> list[None]:
        return [None] * len(items)

    def adopt(self, *_: Any, **__: Any) -> bool:
        return True

    def size_of(self, *_: Any, **__: Any) -> int:
        return 0

    def discard(self, *_: Any, **__: Any) -> None:
        pass

    def probe_source(self, *_: Any, **__: Any) -> tuple[Root, Identity]:
        return ENDS.source, HERE

    def find_view(self, *_: Any, **__: Any) -> None:
        return None

    def find_naming(self, *_: Any, **__: Any) -> Naming:
        return Naming()

    def probe(self, *_: Any, **__: Any) -> Probed:
        return PROBED

    # --- the run

    async def run(self) -> None:
        """Watch, until all has happened and nothing is left to do."""
        send, jobs = trio.open_memory_channel[Job](2)
        send_growing, growing = trio.open_memory_channel[Job](0)
        await self.storage.begin(as_call(self.call))
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.storage.run, as_call(self.call), self.backlog.offer_again)
                nursery.start_soon(self.scanner.run, send, send_growing)
                for channel in (jobs, jobs.clone(), growing, growing.clone()):
                    nursery.start_soon(run_copier, channel, self.backlog, self.tools)
                while self.steps:  # noqa: ASYNC110 - awaits do them, and some are a scan's
                    await trio.sleep(1)
                self.written.clear()
                quiet = 0
                while quiet < 3:  # for longer than a scan and its file take
                    await trio.sleep(10)
                    quiet = 0 if len(self.backlog) else quiet + 1
                nursery.cancel_scope.cancel()


@contextlib.contextmanager
def opened(path: str) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(path)) as ledger:
        yield ledger


STEPS = st.lists(
    st.tuples(
        st.integers(0, 12),  # awaits before it happens
        st.sampled_from(["vanish", "vanish", "appear", "appear", "write", "write", "close", "rename"]),
        st.integers(0, len(NAMES) - 1),
        st.integers(0, len(SIZES) - 1),
        st.booleans(),  # an event tells of it
    ),
    max_size=40,
)


@pytest.mark.parametrize("scale", [1, 8])
@given(steps=STEPS, seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_files_may_vanish_return_and_change_at_every_await(
    tmp_path_factory: pytest.TempPathFactory, scale: int, steps: list[tuple[int, str, int, int, bool]], seed: int
) -> None:
    """Nothing of it is a bug, and what is there in the end has arrived, in the version that it has."""
    path = str(tmp_path_factory.mktemp("state") / "ledger.sqlite")

    async def run() -> None:
        with opened(path) as ledger:
            world = World(ledger, [(step[0] * scale, *step[1:]) for step in steps], random.Random(seed))
            await world.run()
            assert world.bugs == []
            assert math.isclose(world.board.pending_bytes, 0)
            arrived = {path: world.copied.get(path) for path in world.files}
            there = {path: its.fingerprint for path, its in world.files.items()}
            assert arrived == there

    trio.run(run, clock=MockClock(autojump_threshold=0))
