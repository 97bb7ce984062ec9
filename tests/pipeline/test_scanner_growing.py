"""When the scanner has a file followed while it grows."""

from __future__ import annotations

import errno
import math
import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from scanned import S, World, source
from trioft.config.options import Growing
from trioft.core import answers
from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.model import BUNDLE_FILE_SIZE, MIB, Job, Wait
from trioft.state.ledger import Known

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
            world.backlog.postpone(pending, Wait.RETRY, "retry in 20 s", 20)

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
        operation: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        nonlocal failures
        if operation.name == "locate" and failures:
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
