"""
When the scanner takes a file for ready or for growing, when it looks again, and what it leaves alone; and who hears of
events. On a clock that jumps.
"""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from support import found
from trioft.config.options import Config, Growing, Retry, Source
from trioft.core import answers
from trioft.core.answers import Folder, Listing, Look, Probed
from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.model import BUNDLE_FILE_SIZE, MIB, Ends, FileState, Found, Identity, Job, Manner, Root
from trioft.movers.events import Changes
from trioft.movers.ops.wire import MOST
from trioft.pipeline import backlog as backlog_module
from trioft.pipeline.backlog import Backlog
from trioft.pipeline.scanner import Scanner
from trioft.pipeline.storage import Storage
from trioft.state.board import Board, Entry
from trioft.state.ledger import Known, Port

S = FileState
ENDS = Ends(Root(b"/in", 1), Root(b"/out", 2))
HERE = Identity("ext4", "/dev/sda1", "", b"/", b"/")
PROBED = Probed(ENDS.destination, HERE, 10**15, 10**15, 1, True)
NEW = time.time() + 10**6  # a modification time that no clock calls old


class NoLedger(Port):
    """Answers what the ledger would; writes nothing, and needs no thread."""

    def __init__(self, known: dict[bytes, Known]) -> None:
        self.known = known
        self.asked: list[tuple[float, object]] = []  # when, and about what

    def __exit__(self, *_: object) -> None:
        pass

    async def call(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append((trio.current_time(), args[0]))
        return dict(self.known)


class World:
    """A source that exists in this class only, a scanner on it, and a copier for each lane that says what it got."""

    def __init__(self, *, once: bool = False, room: int = 4, growing_room: int = 4, **groups: Any) -> None:
        self.config = Config(**groups)
        self.board = Board()
        self.told: list[str] = []
        self.heard: list[tuple[bytes, str, str | None]] = []
        self.board.notices.append(lambda what, text: self.told.append(text))
        self.board.listeners.append(lambda entry: self.heard.append((entry.path, str(entry.state), entry.reason)))
        self.backlog = Backlog(self.board)
        self.storage = Storage(ENDS, dict.fromkeys(Side), self.config, self.board)
        self.changes = Changes(self.backlog.wake)
        self.known: dict[bytes, Known] = {}
        self.ledger = NoLedger(self.known)
        self.files: dict[bytes, Found] = {}
        self.writer: dict[bytes, str] = {}  # CLOSED where nothing is said
        self.listing = Listing([], [], [], 0, [], [], [], [], 0.0)  # what every scan tells beside the files
        self.unchanged: list[bytes] = []  # folders of the last scan in which nothing had changed
        self.troubles: list[Trouble] = []  # of the next calls
        self.calls: list[tuple[float, str, Any]] = []
        self.jobs: list[tuple[float, list[bytes], bool]] = []
        self.followed: list[tuple[float, bytes]] = []  # handed out in the lane of those that grow
        self.names: dict[tuple[int, int], bytes] = {}  # what files that have another name by now are called
        self.begun = trio.current_time()
        self.send, self.receive = trio.open_memory_channel[Job](room)
        self.send_growing, self.receive_growing = trio.open_memory_channel[Job](growing_room)
        self.scanner = Scanner(
            config=self.config,
            once=once,
            only=None,
            own=(),
            board=self.board,
            backlog=self.backlog,
            storage=self.storage,
            ledger=self.ledger,
            call=self.call,
            manner=Manner("readback", "overwrite", False, 1, True),
            changes=self.changes,
        )

    @property
    def now(self) -> float:
        return trio.current_time() - self.begun

    async def call(
        self,
        operation: str,
        *arguments: Any,
        **options: object,
    ) -> Any:
        self.calls.append((self.now, operation, arguments[1] if operation != "make_folders" else arguments[2]))
        await trio.lowlevel.checkpoint()
        if self.troubles:
            raise FileTrouble(self.troubles.pop(0))
        if operation == "scan":
            folders = arguments[1]
            read = [
                Folder(folder, [file for path, file in self.files.items() if path.rpartition(b"/")[0] == folder])
                for folder in folders
            ]
            stamps = arguments[2]
            if stamps is not None:
                read = [folder._replace(stamp=repr(folder.files).encode()) for folder in read]
                self.unchanged = [folder.path for folder in read if stamps.get(folder.path) == folder.stamp]
                read = [folder for folder in read if folder.path not in self.unchanged]
            return self.listing._replace(folders=read, unchanged=self.unchanged)
        if operation == "make_folders":
            return []
        if operation == "locate":
            return self.names.get(arguments[2])
        assert operation == "look"
        return [self.look(path) for path in arguments[1]]

    def answer_by(self, call: Any) -> None:
        """Have another one answer what the scanner asks movers."""
        self.scanner.call = self.scanner._walk.call = call

    def look(self, path: bytes) -> Look:
        if path not in self.files:
            below = any(name.startswith(path + b"/") for name in self.files)
            return Look(path, "folder" if below else "gone")
        return Look(path, "file", self.files[path], self.writer.get(path, answers.CLOSED))

    def put(self, path: bytes, size: int = 1, *, mtime: float = NEW, writer: str = answers.CLOSED) -> None:
        """The file is there, in a version that nobody has seen before."""
        self.files[path] = found(path, size, mtime=mtime, version=len(self.heard) + len(self.calls) + 1)
        self.writer[path] = writer

    async def copy(self) -> None:
        """Take every job, and deliver its files at once."""
        async for job in self.receive:
            assert not job.growing
            self.jobs.append((self.now, [item.path for item in job.items], all(item.settled for item in job.items)))
            self.deliver(job, S.READY)

    async def follow(self) -> None:
        """Take every job in the lane of the files that grow, and deliver them at once."""
        async for job in self.receive_growing:
            assert job.growing
            (item,) = job.items
            self.followed.append((self.now, item.path))
            self.deliver(job, S.GROWING)

    def deliver(self, job: Job, state: FileState) -> None:
        for item in job.items:
            if (pending := self.backlog.find(item.id)) is not None and pending.entry.state == state:
                self.board.move(pending.entry, S.COPYING)
                size, mtime_ns = item.fingerprint[2:4]
                self.known[item.path] = Known("delivered", "", size, mtime_ns, item.fingerprint.ctime_ns)
                self.backlog.finished(pending, S.DONE)

    async def run(self, seconds: float = 10_000, *, then: Callable[[], Awaitable[None]] | None = None) -> float:
        """Run the scanner, for some time or to its end; return when it ended, or infinity."""
        ended = math.inf
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.copy)
                nursery.start_soon(self.follow)
                if then is not None:
                    nursery.start_soon(then)
                await self.scanner.run(self.send, self.send_growing)
                ended = self.now
                nursery.cancel_scope.cancel()
        return ended

    def scans(self) -> list[float]:
        return [when for when, operation, _ in self.calls if operation == "scan"]

    def looks(self, path: bytes) -> list[float]:
        return [when for when, operation, paths in self.calls if operation == "look" and path in paths]


def source(**settings: Any) -> Source:
    return Source(**({"settle": 10.0, "settle_closed": 0.5, "scan_interval": 60.0} | settings))


# --- When a file is ready


async def test_old_file_is_ready_at_once(autojump_clock: MockClock) -> None:
    """What has been left alone for long need not settle again; its copier asks for the proof that it is closed."""
    world = World(source=source())
    world.put(b"old", mtime=time.time() - 3600)
    await world.run(1)
    assert world.jobs == [(0, [b"old"], False)]
    assert world.looks(b"old") == []


@pytest.mark.parametrize(
    ("writer", "settle_closed", "ready_at", "settled"),
    [
        (answers.CLOSED, 0.5, 0.5, False),
        (answers.CLOSED, 0.0, 0.0, False),
        (answers.CLOSED, 10.0, 10.0, True),
        (answers.UNKNOWN, 0.5, 10.0, True),
        (answers.UNKNOWN, 0.0, 10.0, True),
    ],
    ids=["closed", "closed-0s", "closed-as-long", "unknown", "unknown-0s"],
)
async def test_new_file_is_ready_when_it_was_quiet_for_long_enough(
    autojump_clock: MockClock, writer: str, settle_closed: float, ready_at: float, settled: bool
) -> None:
    """For ``settle_closed`` where it is proved that nobody has it open for writing, for ``settle`` where it is not."""
    world = World(source=source(settle_closed=settle_closed))
    world.put(b"new", writer=writer)
    await world.run(50)
    ((when, paths, was_settled),) = world.jobs
    assert (paths, was_settled) == ([b"new"], settled)
    assert when == pytest.approx(ready_at)


async def test_the_ledger_is_asked_about_a_folder_only_while_there_is_something_to_do_in_it(
    autojump_clock: MockClock,
) -> None:
    """Once all its files are known, a folder that did not change costs a rescan no more than a look at its files."""
    world = World(source=source(scan_interval=60.0))
    world.put(b"a", mtime=time.time() - 3600)

    async def later() -> None:
        await trio.sleep(200)
        world.put(b"a")

    await world.run(350, then=later)
    assert world.scans() == pytest.approx([0, 60, 120, 180, 240, 300], abs=1)
    # New, then delivered, then nothing; changed, then delivered.
    asked = [when - world.begun for when, folders in world.ledger.asked if folders == [b""]]
    assert asked == pytest.approx([0, 60, 240, 300], abs=1)
    assert [paths for _, paths, _ in world.jobs] == [[b"a"], [b"a"]]


@pytest.mark.parametrize("settle", [10.0, 0.5], ids=["default", "as-short-as-for-closed"])
async def test_old_large_file_about_which_nothing_is_known_is_quiet_here_first(
    autojump_clock: MockClock, settle: float
) -> None:
    """Times that another machine has set prove nothing: ``settle`` counts from the first look, on the own clock."""
    world = World(source=source(settle=settle))
    world.put(b"old", 16 * MIB, mtime=time.time() - 3600, writer=answers.UNKNOWN)
    await world.run(50)
    ((ready_at, _, settled),) = world.jobs
    assert ready_at == pytest.approx(settle)
    assert settled


async def test_old_large_file_that_is_closed_is_ready_at_once(autojump_clock: MockClock) -> None:
    """It is looked at first, as its writer may only pause; one look is all that it costs."""
    world = World(source=source())
    world.put(b"old", 16 * MIB, mtime=time.time() - 3600)
    await world.run(1)
    assert world.jobs == [(0, [b"old"], False)]
    assert world.looks(b"old") == [0]


async def test_age_is_taken_from_the_last_change_of_any_kind(autojump_clock: MockClock) -> None:
    """A copy that keeps an old modification time is as new as its attributes say: it may still be written."""
    world = World(source=source())
    old = found(b"copied", mtime=time.time() - 3600)
    world.files[b"copied"] = old._replace(fingerprint=old.fingerprint._replace(ctime_ns=time.time_ns()))
    await world.run(1)
    assert world.jobs == [(0.5, [b"copied"], False)]


async def test_file_that_somebody_writes_is_never_ready(autojump_clock: MockClock) -> None:
    """However long it is quiet: a pause of the writer is no end. It is ready soon after the writer has gone."""
    world = World(source=source())
    world.put(b"open", writer=answers.BUSY)

    async def close_it() -> None:
        await trio.sleep(1000)
        assert world.jobs == []
        world.writer[b"open"] = answers.CLOSED

    await world.run(1100, then=close_it)
    ((ready_at, paths, _),) = world.jobs
    assert paths == [b"open"]
    assert 1000 <= ready_at <= 1000.5
    assert (b"open", "settling", "somebody has it open for writing") in world.heard


async def test_writer_that_nobody_can_see_any_more_leaves_the_quiet_time(autojump_clock: MockClock) -> None:
    """Where a writer is seen only at times, ``settle`` counts from the last change, not from the last writer."""
    world = World(source=source())
    world.put(b"open", writer=answers.BUSY)

    async def vanish() -> None:
        await trio.sleep(3)
        world.writer[b"open"] = answers.UNKNOWN

    await world.run(50, then=vanish)
    ((ready_at, _, settled),) = world.jobs
    assert ready_at == pytest.approx(10)
    assert settled


@pytest.mark.parametrize(
    ("writer", "quiet"), [(answers.CLOSED, 0.5), (answers.UNKNOWN, 10.0)], ids=["closed", "unknown"]
)
async def test_every_change_restarts_the_quiet_time(autojump_clock: MockClock, writer: str, quiet: float) -> None:
    """A file that keeps changing is not ready, however old its name is."""
    world = World(source=source())
    world.put(b"a", writer=writer)

    async def change() -> None:
        for n in range(10):
            await trio.sleep(quiet * 0.9)
            assert world.jobs == []
            world.put(b"a", 10 + n, writer=writer)
            world.changes.add([b"a"])

    await world.run(500, then=change)
    ((ready_at, _, _),) = world.jobs
    assert ready_at == pytest.approx(10 * 0.9 * quiet + quiet)


async def test_changes_are_seen_without_events(autojump_clock: MockClock) -> None:
    """Where no event comes, as on a network source, a file that grows is found to have changed by looking."""
    world = World(source=source(settle_closed=10.0))
    world.put(b"a", 1)

    async def grow() -> None:
        await trio.sleep(4)
        world.put(b"a", 2)

    await world.run(50, then=grow)
    ((ready_at, _, _),) = world.jobs
    assert ready_at == pytest.approx(20)  # seen at 10, quiet for 10 from there


async def test_change_while_ready_is_noticed_before_the_job_is_taken(autojump_clock: MockClock) -> None:
    """A file that waits for a copier is not copied in a version that it does not have any more."""
    world = World(source=source(), room=1)
    world.put(b"first", mtime=1e9)
    world.put(b"second", mtime=1e9 + 1)
    world.put(b"third", 2 * BUNDLE_FILE_SIZE, mtime=1e9 + 2)
    taken: list[Found] = []

    async def change_then_take() -> None:
        await trio.sleep(1)
        world.put(b"third", 3 * BUNDLE_FILE_SIZE)
        world.changes.add([b"third"])
        for _ in range(2):
            await trio.sleep(1)
            job = await jobs.receive()
            taken.extend(Found(item.path, item.mode, item.fingerprint) for item in job.items)
            world.backlog.wake()  # as a copier does that is free again

    jobs, world.receive = world.receive, trio.open_memory_channel[Job](0)[1]
    await world.run(5, then=change_then_take)
    assert [file.path for file in taken] == [b"first", b"second", b"third"]
    assert taken[2] == world.files[b"third"]


async def test_file_that_vanished_is_gone(autojump_clock: MockClock) -> None:
    """It is no error that somebody deletes a file before it was copied."""
    world = World(source=source())
    world.put(b"a")

    async def remove() -> None:
        await trio.sleep(0.2)
        del world.files[b"a"]

    await world.run(5, then=remove)
    assert world.jobs == []
    assert world.heard == [(b"a", "gone", None)]
    assert len(world.backlog) == 0


async def test_unreadable_file_is_handed_to_a_copier(autojump_clock: MockClock) -> None:
    """The copier meets the same error, and knows what to do about it and how to tell it."""
    world = World(source=source())
    world.put(b"a")
    look = world.look
    world.look = lambda path: Look(path, "unreadable")  # type: ignore[method-assign]
    await world.run(5)
    assert look(b"a").kind == "file"
    assert [paths for _, paths, _ in world.jobs] == [[b"a"]]


# --- When a file is followed while it grows

BIG = 16 * MIB  # the least size that is followed, by default


@pytest.mark.parametrize("seen_by", ["scan", "event"])
@pytest.mark.parametrize(("age", "at"), [(-(10.0**6), 0.5), (3600, 0.0)], ids=["new", "left-alone-for-long"])
async def test_large_file_that_somebody_writes_is_followed(
    autojump_clock: MockClock, age: float, at: float, seen_by: str
) -> None:
    """At the first look that finds a writer, also where the writer has paused for long; an event makes it a look."""
    world = World(source=source())

    async def appear() -> None:
        await trio.sleep(5 if seen_by == "event" else 0)
        world.put(b"take.mxf", BIG, mtime=time.time() - age, writer=answers.BUSY)
        world.changes.add([b"take.mxf"])

    if seen_by == "scan":
        world.put(b"take.mxf", BIG, mtime=time.time() - age, writer=answers.BUSY)
    await world.run(50, then=appear if seen_by == "event" else None)
    assert world.followed == [(5 if seen_by == "event" else at, b"take.mxf")]
    assert world.jobs == []
    assert (b"take.mxf", "growing", "being written") in world.heard


@pytest.mark.parametrize("writer", [answers.CLOSED, answers.UNKNOWN])
@pytest.mark.parametrize("told", [True, False], ids=["event", "look"])
async def test_large_file_that_has_grown_is_followed(autojump_clock: MockClock, told: bool, writer: str) -> None:
    """Who writes need not have it open all the time, or be seen: that it is longer than before is enough."""
    world = World(source=source())
    world.put(b"take.mxf", BIG, writer=writer)

    async def grow() -> None:
        await trio.sleep(0.2)
        world.put(b"take.mxf", BIG + 1, writer=writer)
        if told:
            world.changes.add([b"take.mxf"])

    await world.run(50, then=grow)
    assert world.followed == [(0.2 if told else 0.5, b"take.mxf")]
    assert world.jobs == []


async def test_file_is_followed_once_it_is_large_enough(autojump_clock: MockClock) -> None:
    """Most files are closed before that, and are then copied like any other."""
    world = World(source=source(), growing=Growing(min_size=1000))
    world.put(b"a", 1, writer=answers.BUSY)
    sizes: list[int] = []

    async def grow() -> None:
        for size in range(100, 1100, 100):
            await trio.sleep(1)
            assert world.followed == []
            sizes.append(size)
            world.put(b"a", size, writer=answers.BUSY)
            world.changes.add([b"a"])

    await world.run(50, then=grow)
    assert (sizes[-1], world.followed, world.jobs) == (1000, [(10, b"a")], [])


async def test_large_file_that_somebody_rewrites_is_followed(autojump_clock: MockClock) -> None:
    """A writer is enough, also where the file is as long as before."""
    world = World(source=source())
    world.put(b"take.mxf", BIG)

    async def rewrite() -> None:
        await trio.sleep(0.2)
        world.put(b"take.mxf", BIG, writer=answers.BUSY)
        world.changes.add([b"take.mxf"])

    await world.run(50, then=rewrite)
    assert (world.followed, world.jobs) == ([(0.2, b"take.mxf")], [])


@pytest.mark.parametrize("change", ["shorter", "rewritten", "replaced"])
async def test_file_that_changed_without_growing_is_not_followed(autojump_clock: MockClock, change: str) -> None:
    """What is finished, and replaced or rewritten by another version, has nothing to be followed: it settles anew."""
    world = World(source=source())
    world.put(b"take.mxf", BIG + 9)

    async def rewrite() -> None:
        await trio.sleep(0.2)
        world.put(b"take.mxf", BIG + {"shorter": 0, "rewritten": 9, "replaced": 99}[change])
        if change == "replaced":
            replaced = world.files[b"take.mxf"]
            world.files[b"take.mxf"] = replaced._replace(fingerprint=replaced.fingerprint._replace(ino=7))
        world.changes.add([b"take.mxf"])

    await world.run(50, then=rewrite)
    assert world.followed == []
    ((when, paths, settled),) = world.jobs
    assert (paths, settled) == ([b"take.mxf"], False)
    assert when == pytest.approx(0.7)


async def test_recording_never_waits_behind_finished_files(autojump_clock: MockClock) -> None:
    """However many of them wait, and however slowly they are taken, it is handed out at the look that finds it."""
    world = World(source=source(), room=1)
    world.receive = trio.open_memory_channel[Job](0)[1]  # nobody takes what is finished
    for n in range(5):
        world.put(b"%d" % n, 2 * BUNDLE_FILE_SIZE, mtime=1e9)
    world.put(b"take.mxf", BIG, writer=answers.BUSY)
    await world.run(50)
    assert world.followed == [(0.5, b"take.mxf")]
    assert world.jobs == []
    assert world.board.pending_files == 5


@pytest.mark.parametrize(
    ("path", "size", "settings"),
    [
        (b"take.mxf", BIG - 1, {}),
        (b"take.mxf", BIG, {"mode": "wait"}),
        (b"take.mxf", BIG, {"exclude": ("*.mxf",)}),
        (b"take.mxf", BIG, {"include": ("*.mov", "live/**")}),
        (b"take.mxf", BIG, {"include": ("*.mxf",), "exclude": ("take.*",)}),
        (b"take.mxf", BIG, {"min_size": BIG + 2}),
    ],
    ids=["small", "wait", "exclude", "not-in-include", "exclude-beats-include", "min-size"],
)
async def test_file_that_is_not_to_be_followed_waits_until_it_is_closed(
    autojump_clock: MockClock, path: bytes, size: int, settings: dict[str, Any]
) -> None:
    """Neither a writer nor growth makes it growing, whatever saw it; it is copied as soon as it is closed."""
    world = World(source=source(), growing=Growing(**settings))
    world.put(path, size - 1, writer=answers.BUSY)

    async def record() -> None:
        await trio.sleep(3)
        world.put(path, size, writer=answers.BUSY)
        world.changes.add([path])
        await trio.sleep(30)
        assert world.jobs == []
        world.writer[path] = answers.CLOSED

    await world.run(50, then=record)
    assert world.followed == []
    assert [paths for _, paths, _ in world.jobs] == [[path]]


async def test_only_files_that_match_are_followed(autojump_clock: MockClock) -> None:
    """``growing.include`` and ``growing.exclude`` choose as everywhere: an exclude beats an include."""
    world = World(source=source(), growing=Growing(include=("*.mxf", "live/**"), exclude=("draft*",)))
    for name in (b"a.mxf", b"live/cam", b"a.mov", b"draft.mxf"):
        world.put(name, BIG, writer=answers.BUSY)
    world.changes.add(list(world.files))
    await world.run(5)
    assert sorted(path for _, path in world.followed) == [b"a.mxf", b"live/cam"]


async def test_file_that_failed_is_not_followed(autojump_clock: MockClock) -> None:
    """It would only fail again, at each write: what was begun of it goes on when it is closed."""
    world = World(source=source())
    world.known[b"take.mxf"] = Known("failed", "", BIG, 10**18, 7)
    world.put(b"take.mxf", BIG + 1, writer=answers.BUSY)

    async def record() -> None:
        for n in range(2, 9):
            await trio.sleep(3)
            assert (world.followed, world.jobs) == ([], [])
            world.put(b"take.mxf", BIG + n, writer=answers.BUSY)
            world.changes.add([b"take.mxf"])
        world.writer[b"take.mxf"] = answers.CLOSED

    await world.run(50, then=record)
    assert world.followed == []
    assert [paths for _, paths, _ in world.jobs] == [[b"take.mxf"]]


async def test_file_that_was_delivered_and_waits_for_its_removal_is_not_followed(autojump_clock: MockClock) -> None:
    """Somebody only holds it open: nothing is new in it, and it can be removed when it is closed, not before."""
    world = World(source=source())
    world.put(b"take.mxf", BIG, writer=answers.BUSY)
    fingerprint = world.files[b"take.mxf"].fingerprint
    world.known[b"take.mxf"] = Known("delivered", "pending", BIG, fingerprint.mtime_ns, fingerprint.ctime_ns)

    async def close_it() -> None:
        await trio.sleep(30)
        assert (world.followed, world.jobs) == ([], [])
        world.writer[b"take.mxf"] = answers.CLOSED

    await world.run(50, then=close_it)
    assert world.followed == []
    assert [paths for _, paths, _ in world.jobs] == [[b"take.mxf"]]


async def test_file_that_was_delivered_and_is_continued_is_followed(autojump_clock: MockClock) -> None:
    """Another version of it is another file, also where it grows."""
    world = World(source=source())
    world.known[b"take.mxf"] = Known("delivered", "pending", BIG, 10**18, 7)
    world.put(b"take.mxf", BIG + 1, writer=answers.BUSY)
    await world.run(5)
    assert world.followed == [(0.5, b"take.mxf")]


async def test_growing_file_that_waits_for_its_lane_is_left_alone(autojump_clock: MockClock) -> None:
    """Promise 4: neither scans nor events change what is queued; it is handed out once, as soon as there is room."""
    world = World(source=source(scan_interval=1.0), growing_room=0)
    lane, world.receive_growing = world.receive_growing, trio.open_memory_channel[Job](0)[1]
    world.put(b"take.mxf", BIG, writer=answers.BUSY)
    got: list[Job] = []

    async def record_then_take() -> None:
        for n in range(20):
            await trio.sleep(1)
            world.put(b"take.mxf", BIG + n, writer=answers.BUSY if n % 2 else answers.CLOSED)
            world.changes.add([b"take.mxf"])
        del world.files[b"take.mxf"]
        world.changes.add([b"take.mxf"])
        with trio.move_on_after(20):
            async for job in lane:
                got.append(job)

    await world.run(60, then=record_then_take)
    assert [[item.path for item in job.items] for job in got] == [[b"take.mxf"]]
    assert [state for _, state, _ in world.heard] == ["growing"]
    assert world.jobs == []


async def test_growing_file_that_failed_for_now_is_not_tried_before_its_pause_is_over(
    autojump_clock: MockClock,
) -> None:
    """Every write to it is a change; if each of them made another attempt, the pauses would be none."""
    world = World(source=source(scan_interval=1.0))
    lane, world.receive_growing = world.receive_growing, trio.open_memory_channel[Job](0)[1]
    taken: list[float] = []
    world.put(b"take.mxf", BIG, writer=answers.BUSY)

    async def fail() -> None:
        async for job in lane:
            taken.append(world.now)
            pending = world.backlog.find(job.items[0].id)
            assert pending is not None
            world.board.move(pending.entry, S.COPYING)
            world.backlog.again(pending, S.WAITING, "retry in 20 s", 20)

    async def record() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            for n in range(300):
                await trio.sleep(0.1)
                world.put(b"take.mxf", BIG + n, writer=answers.BUSY)
                world.changes.add([b"take.mxf"])

    await world.run(30, then=record)
    assert taken == pytest.approx([0.1, 20.1], abs=0.11)


async def test_sync_ends_when_what_grows_is_delivered(autojump_clock: MockClock) -> None:
    """With ``growing.mode: follow`` it waits for whoever follows the last file, and for nothing else."""
    world = World(source=source(), once=True)
    lane, world.receive_growing = world.receive_growing, trio.open_memory_channel[Job](0)[1]
    world.put(b"take.mxf", BIG, writer=answers.BUSY)

    async def follow_for_long() -> None:
        job = await lane.receive()
        await trio.sleep(500)
        world.deliver(job, S.GROWING)

    assert await world.run(then=follow_for_long) == pytest.approx(500.5)
    assert world.board.totals.busy == 0


@pytest.mark.parametrize(("size", "looked_for"), [(BUNDLE_FILE_SIZE, False), (BUNDLE_FILE_SIZE + 1, True)])
async def test_large_file_that_vanished_is_looked_for_under_another_name(
    autojump_clock: MockClock, size: int, looked_for: bool
) -> None:
    """A recording that is renamed at its end is found at once, also where no event tells of it."""
    world = World(source=source(settle_closed=2.0))
    world.put(b"take.part", size)

    async def rename() -> None:
        await trio.sleep(1)
        renamed = world.files.pop(b"take.part")._replace(path=b"take.mxf")
        world.files[b"take.mxf"] = renamed
        world.names[renamed.fingerprint[:2]] = b"take.mxf"
        world.changes.add([b"take.part"])

    await world.run(50, then=rename)
    assert (b"take.part", "gone", None) in world.heard
    assert [(when, paths) for when, paths, _ in world.jobs] == ([(3, [b"take.mxf"])] if looked_for else [])


@pytest.mark.parametrize("size", [1, BIG], ids=["small", "large"])
async def test_sync_that_cannot_find_out_whether_a_file_was_renamed_asks_again(
    autojump_clock: MockClock, size: int
) -> None:
    """It hears of no other name: if it took the file for gone, it would end as if everything had arrived."""
    world = World(source=source(), once=True)
    world.put(b"take.part", size)
    call, failures = world.call, 3

    async def fail_to_locate(
        operation: str,
        *arguments: Any,
        **options: object,
    ) -> Any:
        nonlocal failures
        if operation == "locate" and failures:
            failures -= 1
            raise FileTrouble(Trouble(Side.SOURCE, "read", b"", None, errno.EIO, "Input/output error"))
        return await call(operation, *arguments)

    async def rename() -> None:
        await trio.sleep(0.2)
        renamed = world.files.pop(b"take.part")._replace(path=b"take.mxf")
        world.files[b"take.mxf"] = renamed
        world.names[renamed.fingerprint[:2]] = b"take.mxf"

    world.answer_by(fail_to_locate)
    assert await world.run(then=rename) < math.inf
    assert failures == 0
    assert [paths for _, paths, _ in world.jobs] == [[b"take.mxf"]]
    assert [text.partition(":")[0] for text in world.told] == ["cannot find out whether a file was renamed"]


# --- Once


async def test_sync_ends_when_everything_has_come_to_its_end(autojump_clock: MockClock) -> None:
    """One scan, no other; the jobs are closed, so that the copiers end too."""
    world = World(source=source(), once=True)
    world.put(b"old", mtime=1e9)
    world.put(b"new")
    assert await world.run() == pytest.approx(0.5)
    assert [paths for _, paths, _ in world.jobs] == [[b"old"], [b"new"]]
    assert world.scans() == [0]
    for lane in (world.send, world.send_growing):
        with pytest.raises(trio.ClosedResourceError):
            lane.send_nowait(Job(()))


async def test_sync_of_an_empty_source_ends_at_once(autojump_clock: MockClock) -> None:
    """Nothing to do is done."""
    assert await World(once=True).run() == 0


async def test_sync_stays_until_files_are_closed(autojump_clock: MockClock) -> None:
    """With ``growing.mode: follow`` a sync that exits 0 has left nothing behind."""
    world = World(source=source(), once=True)
    world.put(b"open", writer=answers.BUSY)

    async def close_it() -> None:
        await trio.sleep(300)
        world.put(b"open", 99)
        world.changes.add([b"open"])

    assert 300 < await world.run(then=close_it) < 302
    assert [paths for _, paths, _ in world.jobs] == [[b"open"]]
    assert world.board.totals.busy == 0


@pytest.mark.parametrize("growing", ["open", "changing"])
async def test_sync_that_does_not_wait_leaves_growing_files(autojump_clock: MockClock, growing: str) -> None:
    """With ``growing.mode: wait`` they are counted, told, and left for the next run."""
    world = World(source=source(), once=True, growing=Growing(mode="wait"))
    world.put(b"closed")
    world.put(b"growing", writer=answers.BUSY if growing == "open" else answers.UNKNOWN)

    async def change() -> None:
        await trio.sleep(0.2)
        if growing == "changing":
            world.put(b"growing", 99, writer=answers.UNKNOWN)

    assert await world.run(then=change) < 11
    assert [paths for _, paths, _ in world.jobs] == [[b"closed"]]
    assert world.board.totals.busy == 1
    assert (b"growing", "settling", "still being written: left for the next run") in world.heard
    assert world.board.live == {}


async def test_sync_copies_more_files_than_it_can_look_after_at_a_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 7 costs no file: a folder with more files than the backlog holds is still transferred completely."""
    monkeypatch.setattr(backlog_module, "LIMIT", 3)
    world = World(source=source(), once=True, room=1)
    for n in range(20):
        world.put(b"%d" % n, mtime=1e9 if n % 2 else NEW)
    assert await world.run() < math.inf
    assert sorted(path for _, paths, _ in world.jobs for path in paths) == sorted(world.files)
    assert world.scans() == [0]


async def test_sync_counts_what_the_destination_has(autojump_clock: MockClock) -> None:
    """Files that are there with the same size and time are counted, not copied."""
    world = World(once=True)
    world.listing = world.listing._replace(already=7)
    await world.run()
    assert world.board.totals.already == 7


# --- Watching


async def test_a_scanner_that_rests_is_never_overdue(autojump_clock: MockClock) -> None:
    """However long it rests, it says when it will be back, and is: who asks whether it is alive is not alarmed."""
    world = World(source=Source(scan_interval=5000))
    overdue: list[float] = []

    async def ask() -> None:
        while True:
            await trio.sleep(60)
            overdue.append(trio.current_time() - world.board.look_due)

    await world.run(20_000, then=ask)
    assert len(overdue) > 300
    assert max(overdue) <= 0


async def test_watching_rescans_in_intervals(autojump_clock: MockClock) -> None:
    """Events can get lost: what they did not tell of is found by the next scan."""
    world = World(source=source(scan_interval=60.0))

    async def add() -> None:
        await trio.sleep(70)
        world.put(b"a", mtime=1e9)

    await world.run(200, then=add)
    assert world.scans() == [0, 60, 120, 180]
    assert world.jobs == [(120, [b"a"], False)]


async def test_scans_that_cost_much_are_made_less_often(autojump_clock: MockClock) -> None:
    """Looking for files takes a twentieth of a core at most, however large the tree is."""
    world = World(source=source(scan_interval=10.0))
    world.listing = world.listing._replace(seconds=5.0)
    await world.run(350)
    assert world.scans() == pytest.approx([0, 100, 200, 300], rel=0.01)


@pytest.mark.parametrize(("once", "scans"), [(False, [0, 5, 25]), (True, [0])], ids=["watch", "sync"])
async def test_other_settings_of_the_source_are_looked_at_at_once(
    autojump_clock: MockClock, once: bool, scans: list[float]
) -> None:
    """However long the interval was, and whatever a scan costs: somebody waits for it; but a sync scans once only."""
    world = World(once=once, source=source(scan_interval=1000.0))
    world.listing = world.listing._replace(seconds=1.0)
    world.put(b"a")

    async def change() -> None:
        await trio.sleep(5)
        world.config.source = source(scan_interval=20.0)
        world.scanner.renew()
        await trio.sleep(2)
        world.config.copy = attrs.evolve(world.config.copy, transfers=1)
        world.scanner.renew()

    await world.run(40, then=change)
    assert world.scans() == pytest.approx(scans, rel=0.01)


@pytest.mark.parametrize("once", [False, True], ids=["watch", "sync"])
async def test_what_is_not_wanted_any_more_is_let_go(autojump_clock: MockClock, once: bool) -> None:
    """Whatever it waits for, as long as no copier has it; it is neither copied nor said to be gone."""
    world = World(once=once, source=source())
    world.put(b"a.mov")
    world.put(b"a.wav")

    async def change() -> None:
        await trio.sleep(0.2)
        del world.files[b"a.wav"]  # a mover would not tell of it either
        world.config.source = source(exclude=("*.wav",))
        world.scanner.renew()

    await world.run(40, then=change)
    assert [paths for _, paths, _ in world.jobs] == [[b"a.mov"]]
    assert [state for path, state, _ in world.heard if path == b"a.wav"] == ["settling"]
    assert (world.board.pending_files, world.board.live) == (0, {})


async def test_event_makes_it_look_at_once(autojump_clock: MockClock) -> None:
    """An event saves the wait for the next scan, no more: what is decided is decided by looking."""
    world = World(source=source())

    async def add() -> None:
        await trio.sleep(5)
        world.put(b"a")
        world.changes.add([b"a", b"gone already"])

    await world.run(50, then=add)
    assert world.jobs == [(5.5, [b"a"], False)]
    assert world.scans() == [0]


async def test_folder_that_appears_is_scanned(autojump_clock: MockClock) -> None:
    """A folder that was moved in brings files of which no event tells."""
    world = World(source=source())

    async def add() -> None:
        await trio.sleep(5)
        world.put(b"folder/a", mtime=1e9)
        world.changes.add([b"folder"])

    await world.run(50, then=add)
    assert world.jobs == [(5, [b"folder/a"], False)]


@pytest.mark.parametrize(("are_told", "rest"), [(False, 20), (True, 100)], ids=["polling", "events"])
async def test_when_events_were_lost_everything_is_scanned(
    autojump_clock: MockClock, are_told: bool, rest: float
) -> None:
    """More events than can be told mean one scan, as soon as the last one's share of the core allows it."""
    world = World(source=source(scan_interval=1000.0))
    world.changes.are_told = are_told
    world.listing = world.listing._replace(seconds=1.0)

    async def add() -> None:
        await trio.sleep(5)
        world.put(b"a", mtime=1e9)
        world.changes.add(None)

    await world.run(150, then=add)
    assert world.scans() == pytest.approx([0, rest], rel=0.01)
    assert [paths for _, paths, _ in world.jobs] == [[b"a"]]


async def test_delivered_version_is_not_delivered_again(autojump_clock: MockClock) -> None:
    """What the ledger knows is left alone at every scan; another version of it is another file."""
    world = World(source=source(scan_interval=60.0))
    world.put(b"a", 5, mtime=1e9)

    async def change() -> None:
        await trio.sleep(150)
        world.put(b"a", 6, mtime=1e9)

    await world.run(300, then=change)
    assert [(when, paths) for when, paths, _ in world.jobs] == [(0, [b"a"]), (180, [b"a"])]


@pytest.mark.parametrize(
    ("known", "again"),
    [
        (Known("delivered", "", 1, 10**18, 7), False),
        (Known("failed", "", 1, 10**18, 10**18 + 1), False),
        (Known("failed", "", 1, 10**18, 7), True),
        (Known("delivered", "refused", 1, 10**18, 7), False),
        (Known("delivered", "", 2, 10**18, 7), True),
        (Known("delivered", "", 1, 10**18 + 1, 7), True),
        (Known("delivered", "pending", 1, 10**18, 7), True),
    ],
    ids=[
        "delivered",
        "failed",
        "failed-before-its-permissions-changed",
        "not-removed",
        "other-size",
        "other-time",
        "removal-was-interrupted",
    ],
)
async def test_what_the_ledger_knows_decides(autojump_clock: MockClock, known: Known, again: bool) -> None:
    """The same version is taken up again only where a removal was cut short, or what made it fail may be mended."""
    world = World(source=source())
    world.known[b"a"] = known
    world.put(b"a", mtime=1e9)
    await world.run(1)
    assert bool(world.jobs) == again


async def test_what_there_is_no_room_for_is_found_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 7: files beyond the limit stay where they are; they are looked for as soon as the others are done."""
    monkeypatch.setattr(backlog_module, "LIMIT", 3)
    world = World(source=source(scan_interval=1000.0))
    for n in range(10):
        world.put(b"%d" % n, mtime=1e9)
    await world.run(100)
    assert sorted(path for _, paths, _ in world.jobs for path in paths) == sorted(world.files)


# --- What is told


async def test_what_is_no_file_is_told_once(autojump_clock: MockClock) -> None:
    """Links and unreadable folders are told at the first scan, and not again at every other."""
    world = World(source=source(scan_interval=10.0))
    trouble = Trouble(Side.SOURCE, "open", b"locked", None, errno.EACCES, "Permission denied")
    world.listing = world.listing._replace(skipped=[(b"link", "symbolic link")], troubles=[trouble])
    await world.run(100)
    assert world.heard == [(b"link", "skipped", "symbolic link"), (b"locked", "failed", str(trouble))]
    assert (world.board.totals.skipped, world.board.totals.failed) == (1, 1)


async def test_source_that_is_away_is_told_and_waited_for(autojump_clock: MockClock) -> None:
    """Promise 8: a watch whose source has gone says so, goes on at once when it is back, and says that too."""
    world = World(source=source(scan_interval=10.0))
    away = Trouble(Side.SOURCE, "open", b"", None, errno.ENODEV, "the source folder is not there")
    world.troubles = [away]
    world.put(b"a", mtime=1e9)
    await world.run(100, then=lambda: probing(world, fails=3, side=Side.SOURCE))
    assert "the source folder is not there" in world.told[0]
    assert [text.partition(" since ")[0] for text in world.told] == [
        "source not usable",
        "source not usable",  # for another reason
        "the source is usable again",
    ]
    ((when, paths, _),) = world.jobs
    assert paths == [b"a"]
    assert 4 < when < 7.1  # pauses of 1, 2 and 4 seconds, almost


async def test_folder_of_the_source_that_does_not_answer_holds_up_nobody(autojump_clock: MockClock) -> None:
    """Where the source as a whole is well, a watch goes on with what it has, and the next scan tries again."""
    world = World(source=source(scan_interval=10.0))
    world.put(b"a", mtime=1e9)
    world.troubles = [Trouble(Side.SOURCE, "scan", b"", None, errno.ETIMEDOUT, "no progress for 30 s")]
    await world.run(100, then=lambda: probing(world, fails=0))
    assert world.jobs == [(10, [b"a"], False)]


async def test_source_that_hangs_is_not_taken_for_a_destination_that_hangs(autojump_clock: MockClock) -> None:
    """A mover that had to be killed cannot say where it was stuck; a watch looks at the source only."""
    world = World(source=source(scan_interval=10.0))
    world.put(b"a")
    stuck = Trouble(Side.DESTINATION, "scan", b"", None, errno.ETIMEDOUT, "no progress for 30 s")
    world.troubles = [stuck]

    async def hang_again() -> None:
        await trio.sleep(10.2)
        world.troubles = [stuck]

    async def then() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_again)
            await probing(world, fails=0)

    await world.run(100, then=then)
    expected = f"source not usable since T: {stuck._replace(side=Side.SOURCE)}"
    told = [re.sub(r"\d\d:\d\d:\d\d", "T", text) for text in world.told]
    assert told == 2 * [expected, "the source is usable again"]
    assert [paths for _, paths, _ in world.jobs] == [[b"a"]]


async def test_sync_waits_for_a_source_that_is_away(autojump_clock: MockClock) -> None:
    """A disk that comes loose in the middle costs a sync time, and no file."""
    world = World(once=True, source=source())
    world.put(b"a", mtime=1e9)
    world.troubles = [Trouble(Side.SOURCE, "open", b"", None, errno.ENODEV, "the source folder is not there")]
    await world.run(then=lambda: probing(world, fails=2, side=Side.SOURCE))
    assert [paths for _, paths, _ in world.jobs] == [[b"a"]]


async def test_sync_that_cannot_read_a_source_that_is_there_ends(autojump_clock: MockClock) -> None:
    """Where every probe finds the source well, a sync gives up after some tries, and says why."""
    world = World(once=True, source=source())
    world.troubles = 10 * [Trouble(Side.SOURCE, "open", b"", None, errno.EACCES, "Permission denied")]
    with pytest.RaisesGroup(FileTrouble):
        await world.run(then=lambda: probing(world, fails=0))
    assert len(world.troubles) == 10 - (1 + world.config.retry.retries)


async def test_file_that_could_not_be_looked_at_is_looked_at_again(autojump_clock: MockClock) -> None:
    """A source that is away for a moment loses no file."""
    world = World(source=source(scan_interval=10.0))
    world.put(b"a")

    async def fail_once() -> None:
        await trio.sleep(0.1)
        world.troubles = [Trouble(Side.SOURCE, "open", b"", None, errno.EIO, "Input/output error")]
        await probing(world, fails=0)

    await world.run(50, then=fail_once)
    assert [paths for _, paths, _ in world.jobs] == [[b"a"]]
    assert [text.partition(" since ")[0] for text in world.told] == ["source not usable", "the source is usable again"]


@pytest.mark.parametrize("times", [1, 3, 100])
async def test_file_with_another_name_that_cannot_be_looked_at_is_not_forgotten(
    autojump_clock: MockClock, times: int
) -> None:
    """A sync has no other scan that would find it: it looks again, and says so if that helps nothing."""
    world = World(once=True, source=source())
    world.put(b"elsewhere", mtime=1e9)
    see = world.look
    failures = times

    def look(path: bytes) -> Look:
        nonlocal failures
        if path == b"elsewhere" and failures:
            failures -= 1
            trouble = Trouble(Side.SOURCE, "stat", path, None, errno.EIO, "Input/output error")
            return Look(path, "unreadable", trouble=trouble)
        return see(path)

    world.look = look  # type: ignore[method-assign]
    found, world.files = world.files, {}
    world.changes.add([b"elsewhere"])
    world.answer_by(_after_first_scan(world, found))
    await world.run()
    delivered = [paths for _, paths, _ in world.jobs]
    assert delivered == ([[b"elsewhere"]] if times < 100 else [])
    assert world.board.totals.failed == (times == 100)


def _after_first_scan(world: World, files: dict[bytes, Found]) -> Any:
    """Have the files appear behind the scan."""

    async def call(operation: str, *arguments: Any, **options: object) -> Any:
        answer = await world.call(operation, *arguments, **options)
        if operation == "scan":
            world.files.update(files)
        return answer

    return call


# --- The destination, as a sync looks at it


EIO = Trouble(Side.DESTINATION, "open", b"folder", None, errno.EIO, "Input/output error")


async def probing(world: World, *, fails: int, side: Side = Side.DESTINATION) -> None:
    """Stand in for the agent: look after the ends; the first probes of one *side* fail."""
    failed = 0

    async def call(operation: str, *arguments: Any, **options: object) -> Any:
        nonlocal failed
        if (operation == "probe_source") == (side == Side.SOURCE) and failed < fails:
            failed += 1
            raise FileTrouble(EIO._replace(side=side))
        return (ENDS.source, HERE) if operation == "probe_source" else PROBED

    await world.storage.run(call, world.backlog.offer_again)


async def test_scan_goes_on_when_the_destination_is_back(autojump_clock: MockClock) -> None:
    """A destination that goes away while a sync compares costs time, and no file."""
    world = World(once=True, source=source())
    world.troubles = [EIO]
    world.put(b"a", mtime=1e9)
    await world.run(then=lambda: probing(world, fails=3))
    assert [paths for _, paths, _ in world.jobs] == [[b"a"]]
    assert "Input/output error" in world.told[0]
    assert world.told[-1] == "the destination is usable again"


async def test_folder_that_the_destination_refuses_for_ever_ends_a_sync(autojump_clock: MockClock) -> None:
    """Where every probe succeeds it is not the destination: this is tried ``retries`` times, with pauses, and told."""
    world = World(once=True, source=source(), retry=Retry(retries=3, first=1, longest=60))
    world.troubles = [EIO] * 100
    with pytest.RaisesGroup(FileTrouble, flatten_subgroups=True):
        await world.run(then=lambda: probing(world, fails=0))
    assert len(world.scans()) == 4
    assert world.now >= 3


async def test_hiccups_between_folders_are_not_added_up(autojump_clock: MockClock) -> None:
    """A long scan on a shaky destination goes on as long as it gets somewhere."""
    world = World(once=True, source=source(), retry=Retry(retries=1, first=1, longest=1))
    tries = 0

    async def fail_every_other_time(
        operation: str,
        *arguments: Any,
        **options: object,
    ) -> Any:
        nonlocal tries
        await trio.lowlevel.checkpoint()
        tries += 1
        if tries % 2:
            raise FileTrouble(EIO)
        return world.listing._replace(rest=[b"%d" % tries] if tries < 20 else [])

    world.answer_by(fail_every_other_time)
    assert await world.run(then=lambda: probing(world, fails=0)) < math.inf
    assert tries == 20


async def test_missing_folders_are_made_also_empty_ones(autojump_clock: MockClock) -> None:
    """The destination's tree is the source's tree, however long the destination is away in between."""
    world = World(once=True, source=source())
    world.listing = world.listing._replace(missing=[b"empty"])
    call = world.call
    failures = [EIO]

    async def fail_to_make(
        operation: str,
        *arguments: Any,
        **options: object,
    ) -> Any:
        if operation == "make_folders" and failures:
            raise FileTrouble(failures.pop())
        return await call(operation, *arguments)

    world.answer_by(fail_to_make)
    await world.run(then=lambda: probing(world, fails=2))
    assert [(operation, what) for _, operation, what in world.calls if operation == "make_folders"] == [
        ("make_folders", [b"empty"])
    ]


# --- Whose turn it is


async def test_scanner_leaves_alone_what_a_copier_has(autojump_clock: MockClock) -> None:
    """Promise 4: while a file is being copied, neither scans nor events change its state."""
    world = World(source=source(scan_interval=10.0))
    world.put(b"a", mtime=1e9)
    held: list[Entry] = []

    async def hold() -> None:
        job = await jobs.receive()
        pending = world.backlog.find(job.items[0].id)
        assert pending is not None
        world.board.move(pending.entry, S.COPYING)
        held.append(pending.entry)
        world.put(b"a", 2)
        world.changes.add([b"a"])
        await trio.sleep(50)
        del world.files[b"a"]
        world.changes.add([b"a"])

    jobs, world.receive = world.receive, trio.open_memory_channel[Job](0)[1]
    await world.run(100, then=hold)
    assert [(entry.state, entry.size) for entry in held] == [(S.COPYING, 1)]


# --- What events tell


class Heard:
    """What came of events: how often the scanner was woken, and who follows a file stirred."""

    def __init__(self) -> None:
        self.woken = self.stirred = 0
        self.changes = Changes(self.wake)

    def wake(self) -> None:
        self.woken += 1

    def stir(self) -> None:
        self.stirred += 1


def test_who_follows_a_file_hears_of_its_changes_and_the_scanner_does_not() -> None:
    """A recording has an event for every write: the scanner, who leaves it alone, is not woken by any of them."""
    heard = Heard()
    with heard.changes.followed(b"take.mxf", heard.stir):
        for _ in range(3):
            heard.changes.add([b"take.mxf"])
        assert (heard.woken, heard.stirred, heard.changes.take()) == (0, 3, ([], False))
        heard.changes.add([b"a", b"take.mxf", b"take.mxf2", b"b"])
        assert (heard.woken, heard.stirred) == (1, 4)
        assert heard.changes.take() == ([b"a", b"take.mxf2", b"b"], False)


def test_each_who_follows_hears_of_his_own_file() -> None:
    """Several recordings go on at the same time."""
    one, other = Heard(), Heard()
    with one.changes.followed(b"one", one.stir), one.changes.followed(b"other", other.stir):
        one.changes.add([b"one", b"other", b"other"])
    assert (one.stirred, other.stirred, one.woken) == (1, 2, 0)


def test_when_nobody_follows_a_file_any_more_the_scanner_hears_of_it_again() -> None:
    """However the following ended: the next version is found at its first event."""
    heard = Heard()
    with pytest.raises(ZeroDivisionError), heard.changes.followed(b"take.mxf", heard.stir):
        raise ZeroDivisionError
    heard.changes.add([b"take.mxf"])
    assert (heard.woken, heard.stirred, heard.changes.take()) == (1, 0, ([b"take.mxf"], False))


@pytest.mark.parametrize("paths", [None, [b"%d" % n for n in range(MOST + 1)]], ids=["unknown", "too-many"])
def test_when_it_is_not_known_what_changed_the_scanner_looks_at_everything(paths: list[bytes] | None) -> None:
    """Promise 7: also while a file is followed, no more paths are held than a scan is worth."""
    heard = Heard()
    with heard.changes.followed(b"take.mxf", heard.stir):
        heard.changes.add([b"a"])
        heard.changes.add(paths)
    assert (heard.woken, heard.changes.take()) == (2, ([], True))
    assert heard.changes.take() == ([], False)
