"""When the scanner takes a file for ready, and what it leaves alone; the destination, as a sync looks at it."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from scanned import EIO, NEW, S, World, probing, source
from support import found
from trioft.config.options import Growing, Retry
from trioft.core import answers
from trioft.core.answers import Look
from trioft.core.errors import FileTrouble
from trioft.core.model import BUNDLE_FILE_SIZE, MIB, Found, Job
from trioft.pipeline import backlog as backlog_module
from trioft.state.board import Entry

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
    world.listing = world.listing._replace(twins=[found(b"%d" % n) for n in range(7)])
    await world.run()
    assert world.board.totals.already == 7


# --- The destination, as a sync looks at it


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
        operation: Any,
        *arguments: Any,
        **options: Any,
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
        operation: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        if operation.name == "make_folders" and failures:
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
