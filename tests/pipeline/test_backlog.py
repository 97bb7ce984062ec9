"""The backlog: which files make a job, in which order, when a file is looked at again, and who has it meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from support import found
from trioft.core.model import BUNDLE_BYTES, BUNDLE_FILE_SIZE, BUNDLE_FILES, MIB, FileState, Found, Item, Job, Wait
from trioft.core.naming import partial_of
from trioft.pipeline import backlog as backlog_module
from trioft.pipeline.backlog import Backlog, Pending
from trioft.state.board import Board
from trioft.state.ledger import Known, Ledger, Port

S = FileState
LARGE = BUNDLE_FILE_SIZE + 1


class Desk:
    """A backlog, its board, and both ends of the channels of jobs, one for files that are finished, one for others."""

    def __init__(self, *, order: str = "oldest", room: int = 64, growing_room: int = 64, mixed: bool = False) -> None:
        self.board = Board()
        self.bundle_bytes = BUNDLE_BYTES
        self.backlog = Backlog(self.board, order=order, bundle_bytes=lambda: self.bundle_bytes, mixed=mixed)
        self.send, self.receive = trio.open_memory_channel[Job](room)
        self.send_growing, self.receive_growing = trio.open_memory_channel[Job](growing_room)

    def ready(self, *files: Found) -> list[Pending]:
        made = [self.backlog.add(file, trio.current_time()) for file in files]
        for pending in made:
            self.backlog.make_ready(pending)
        return made

    def growing(self, *files: Found) -> list[Pending]:
        made = [self.backlog.add(file, trio.current_time()) for file in files]
        for pending in made:
            self.backlog.make_growing(pending)
        return made

    def change(self, pending: Pending, size: int = 1, version: int = 1) -> None:
        """Another version of the file is seen; it becomes ready when it has settled."""
        self.backlog.replace(pending, found(pending.found.path, size, version=version), trio.current_time())

    def offer(self) -> None:
        self.backlog.offer(self.send, self.send_growing)

    def offered(self) -> list[Job]:
        """Offer, and return what was handed out of the files that are finished."""
        self.offer()
        return taken(self.receive)

    def offered_growing(self) -> list[Job]:
        """Offer, and return what was handed out of the files that grow."""
        self.offer()
        return taken(self.receive_growing)


def taken(jobs: trio.MemoryReceiveChannel[Job]) -> list[Job]:
    """Take all jobs that lie ready."""
    return [jobs.receive_nowait() for _ in range(jobs.statistics().current_buffer_used)]


def paths(jobs: Sequence[Job]) -> list[list[bytes]]:
    return [[item.path for item in job.items] for job in jobs]


# --- Jobs


@pytest.mark.parametrize(
    ("sizes", "bundles"),
    [
        ([0], [1]),
        ([1] * BUNDLE_FILES, [BUNDLE_FILES]),
        ([1] * (BUNDLE_FILES + 1), [BUNDLE_FILES, 1]),
        ([1] * 700, [256, 256, 188]),
        ([MIB] * 32, [32]),
        ([MIB] * 33, [32, 1]),
        ([MIB] * 31 + [MIB - 1, 1], [33]),
        ([MIB] * 31 + [MIB - 1, 2], [32, 1]),
        ([LARGE], [1]),
        ([LARGE, LARGE], [1, 1]),
        ([1, LARGE, 1], [2, 1]),
        ([], []),
    ],
    ids=[
        "empty-file",
        "full",
        "one-more",
        "many",
        "bytes",
        "bytes+1",
        "exact",
        "exact+1",
        "large",
        "2",
        "mixed",
        "none",
    ],
)
async def test_small_files_travel_in_bundles_and_large_ones_alone(sizes: list[int], bundles: list[int]) -> None:
    """A bundle has at most 256 files and 32 MiB, and a job has either one large file or only small ones."""
    desk = Desk(room=1)
    desk.ready(*(found(b"%d" % n, size) for n, size in enumerate(sizes)))
    jobs: list[Job] = []
    while some := desk.offered():
        jobs += some
    assert [len(job.items) for job in jobs] == bundles
    assert sum(job.size for job in jobs) == sum(sizes)
    assert all(job.size <= BUNDLE_BYTES for job in jobs if len(job.items) > 1)


@pytest.mark.parametrize(
    ("files", "bundles"),
    [(40, [32, 8]), (128, [32] * 4), (400, [100] * 4), (2000, [256] * 4)],
    ids=["few", "32-each", "100-each", "more-than-fit"],
)
async def test_small_files_are_shared_out_among_all_who_are_free(files: int, bundles: list[int]) -> None:
    """A bundle is filled only as far as every copier gets one; where there are few files, it is not cut for that."""
    desk = Desk(room=4)
    desk.ready(*(found(b"%d" % n) for n in range(files)))
    assert [len(job.items) for job in desk.offered()] == bundles


async def test_behind_a_network_each_bundle_has_files_of_many_folders() -> None:
    """One of each folder in turn: a folder takes one new name at a time, and waiting goes on side by side."""
    desk = Desk(order="name", room=3, mixed=True)
    names = [b"%d/%02d" % (folder, number) for folder in range(3) for number in range(60)]
    desk.ready(*map(found, names))
    bundles = paths(desk.offered())
    assert sorted(path for bundle in bundles for path in bundle) == names
    assert [[path[:1] for path in bundle] for bundle in bundles] == [[b"0", b"1", b"2"] * 20] * 3


async def test_oldest_file_comes_first() -> None:
    """While watching, what has waited longest in the source is delivered first, large or small."""
    desk = Desk()
    desk.ready(
        found(b"large, third", LARGE, mtime=3),
        found(b"small, fourth", mtime=4),
        found(b"large, first", LARGE, mtime=1),
        found(b"small, second", mtime=2),
    )
    assert paths(desk.offered()) == [[b"large, first"], [b"small, second", b"small, fourth"], [b"large, third"]]


# b and d are large.
FILES = [
    found(b"c", 3, mtime=9),
    found(b"d", LARGE, mtime=1),
    found(b"a", 2, mtime=5),
    found(b"b", 2 * LARGE, mtime=7),
    found(b"e", 1, mtime=5),
]
ORDERS = {
    "oldest": [[b"d"], [b"a", b"e", b"c"], [b"b"]],
    "newest": [[b"c", b"a", b"e"], [b"b"], [b"d"]],
    "smallest": [[b"e", b"a", b"c"], [b"d"], [b"b"]],
    "largest": [[b"b"], [b"d"], [b"c", b"a", b"e"]],
    "name": [[b"a", b"c", b"e"], [b"b"], [b"d"]],
}


@pytest.mark.parametrize("order", ORDERS)
async def test_files_come_in_the_order_that_was_asked_for(order: str) -> None:
    """`copy.order` says which file is first; small ones take the next small ones along."""
    desk = Desk(order=order)
    desk.ready(*FILES)
    assert paths(desk.offered()) == ORDERS[order]


@given(st.permutations(FILES), st.sampled_from([*ORDERS]))
async def test_the_order_does_not_depend_on_how_files_were_found(files: list[Found], order: str) -> None:
    """The same files are copied in the same order, in whatever order a scan tells of them."""
    desk = Desk(order=order)
    desk.ready(*files)
    assert paths(desk.offered()) == ORDERS[order]


@pytest.mark.parametrize("order", ORDERS)
async def test_another_order_holds_for_those_that_are_ready_already(order: str) -> None:
    """The order may change while files wait; one that is handed out stays so, and one that changed comes when ready."""
    desk = Desk(order="oldest", room=1)
    *_, changed = desk.ready(*FILES, found(b"z", 1, mtime=0))
    desk.change(changed)
    assert paths(desk.offered()) == [[b"d"]]
    desk.backlog.reorder(order)
    rest = []
    while jobs := desk.offered():
        rest += paths(jobs)
    assert rest == [job for job in ORDERS[order] if job != [b"d"]]
    desk.backlog.make_ready(changed)
    assert paths(desk.offered()) == [[b"z"]]


async def test_a_bundle_is_no_larger_than_is_asked_for_at_the_time() -> None:
    """Where the throughput is limited, bundles are small: a bundle goes at once, and others wait for it."""
    desk = Desk(room=1)
    desk.ready(*(found(b"%d" % n, MIB) for n in range(9)))
    desk.bundle_bytes = 4 * MIB
    assert [len(job.items) for job in desk.offered()] == [4]
    desk.bundle_bytes = 2 * MIB
    assert [len(job.items) for job in desk.offered()] == [2]
    desk.bundle_bytes = BUNDLE_BYTES
    assert [len(job.items) for job in desk.offered()] == [3]


async def test_job_says_what_the_copier_has_to_know() -> None:
    """Identity, version, permission bits, and whether the file was quiet for long enough."""
    desk = Desk()
    (pending,) = desk.ready(found(b"a", 7))
    pending.settled = True
    ((item,),) = (job.items for job in desk.offered())
    assert item == Item(pending.entry.id, b"a", pending.found.mode, pending.found.fingerprint, True, place=b"a")


async def test_no_more_is_handed_out_than_there_is_room_for() -> None:
    """What does not fit stays ready, in its order, and is offered again: nothing is lost or handed out twice."""
    desk = Desk(room=1)
    desk.ready(*(found(b"%d" % n, LARGE, mtime=n) for n in range(3)))
    assert [paths(desk.offered()) for _ in range(4)] == [[[b"0"]], [[b"1"]], [[b"2"]], []]


async def test_waiting_copier_is_given_its_job_at_once() -> None:
    """A channel without a buffer takes one job for each copier that waits for one."""
    desk = Desk(room=0)
    desk.ready(found(b"a", LARGE, mtime=1), found(b"b", LARGE, mtime=2))
    desk.offer()
    got: list[Job] = []

    async def take() -> None:
        got.append(await desk.receive.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        desk.offer()
    assert paths(got) == [[b"a"]]


# --- Files that grow


async def test_growing_files_have_a_lane_of_their_own() -> None:
    """However many finished files wait, a recording need not wait for them, nor they for it."""
    desk = Desk(room=0)
    desk.ready(found(b"finished", LARGE))
    desk.growing(found(b"grows", LARGE))
    assert paths(desk.offered_growing()) == [[b"grows"]]
    desk = Desk(growing_room=0)
    desk.ready(found(b"finished", LARGE))
    desk.growing(found(b"grows", LARGE))
    assert paths(desk.offered()) == [[b"finished"]]


async def test_each_growing_file_is_a_job_that_says_so() -> None:
    """Whatever its size, it is in no bundle; whoever was seen to grow first is followed first."""
    desk = Desk()
    desk.growing(found(b"first", mtime=9), found(b"second", LARGE, mtime=1), found(b"third", 0, mtime=5))
    desk.ready(found(b"finished"))
    jobs = desk.offered_growing()
    assert paths(jobs) == [[b"first"], [b"second"], [b"third"]]
    assert [job.growing for job in jobs] == [True] * 3
    assert [(job.growing, job.items[0].path) for job in desk.offered()] == [(False, b"finished")]
    assert desk.offered_growing() == []


async def test_no_more_growing_files_are_handed_out_than_there_is_room_for() -> None:
    """What finds no free lane waits for one, in its order, and is handed out once."""
    desk = Desk(growing_room=1)
    desk.growing(*(found(b"%d" % n, LARGE) for n in range(3)))
    assert [paths(desk.offered_growing()) for _ in range(4)] == [[[b"0"]], [[b"1"]], [[b"2"]], []]


async def test_growing_file_that_is_queued_is_left_alone_by_the_scanner(autojump_clock: MockClock) -> None:
    """Promise 4: from the moment that it waits for its lane, only a copier changes it, and no look is due."""
    desk = Desk()
    (pending,) = desk.growing(found(b"grows", LARGE))
    for _ in range(2):
        await trio.sleep(9)
        assert pending.in_work
        assert (desk.backlog.pop_due(9), desk.backlog.next_due()) == ([], math.inf)
        assert (pending.entry.state, pending.entry.reason, pending.entry.growing) == (S.GROWING, "being written", True)
        desk.offered_growing()  # the second time, it is in a copier's hands


async def test_copier_takes_a_growing_file_in_whatever_version() -> None:
    """It is another one at each look; whoever follows it looks for himself."""
    desk = Desk()
    (pending,) = desk.growing(found(b"grows", LARGE))
    (job,) = desk.offered_growing()
    pending.found = found(b"grows", LARGE + 1, version=1)
    assert desk.backlog.take(job.items[0], growing=True) is pending


async def test_job_of_a_growing_file_is_none_of_a_finished_one() -> None:
    """A job that says wrongly whether its file is still written is void: another copier has the file, or will."""
    desk = Desk()
    (grows,) = desk.growing(found(b"grows", LARGE))
    (finished,) = desk.ready(found(b"finished", LARGE))
    (growing_job,), (job,) = desk.offered_growing(), taken(desk.receive)
    assert (desk.backlog.take(growing_job.items[0], growing=False), desk.backlog.take(job.items[0], growing=True)) == (
        None,
        None,
    )
    assert desk.backlog.take(growing_job.items[0], growing=True) is grows
    assert desk.backlog.take(job.items[0], growing=False) is finished


async def test_file_that_a_copier_gave_back_is_in_the_lane_that_suits_it_now() -> None:
    """One that was growing may be finished by the next look, or grow again; it is handed out once each time."""
    desk = Desk()
    (pending,) = desk.growing(found(b"a", LARGE))
    assert len(desk.offered_growing()) == 1
    desk.board.move(pending.entry, S.COPYING)
    desk.backlog.postpone(pending, Wait.RETRY, "retry in 1 s", 1)
    assert not pending.in_work
    desk.backlog.make_growing(pending)
    assert (len(desk.offered_growing()), desk.offered()) == (1, [])
    desk.board.move(pending.entry, S.COPYING)
    desk.backlog.settle_again(pending, "somebody has it open for writing", 1)
    desk.backlog.make_ready(pending)
    assert not pending.entry.growing
    assert (desk.offered_growing(), len(taken(desk.receive))) == ([], 1)


async def test_file_that_has_only_grown_goes_on_with_the_life_it_had() -> None:
    """What is copied of a recording stays copied, and its failures stay counted; another file begins a new life."""
    desk = Desk()
    for version, same, kept in ((1, True, 5), (2, False, 0)):
        (pending,) = desk.growing(found(b"a", LARGE))
        desk.board.move(pending.entry, S.COPYING)
        desk.board.copied(pending.entry, 5)
        pending.entry.attempt = 3
        desk.backlog.postpone(pending, Wait.RETRY, "retry in 1 s", 1)
        another = found(b"a" if same else b"another", LARGE + 9, version=version)._replace(path=b"a")
        assert pending.is_version_of(another) == same
        desk.backlog.replace(pending, another, 0)
        assert (pending.entry.size, pending.entry.bytes_copied) == (LARGE + 9, kept)
        assert pending.entry.attempt == (3 if same else 0)
        assert desk.board.pending_bytes == LARGE + 9 - kept
        desk.backlog.finished(pending, S.GONE)


async def test_file_that_is_copied_only_when_it_is_closed_stays_that_until_it_is_another() -> None:
    """What made a recording fail, or was delivered of it, is not mended by the next write to it."""
    desk = Desk()
    (pending,) = desk.ready(found(b"a", LARGE))
    pending.closed_only = True
    desk.change(pending, LARGE + 1)
    assert pending.closed_only
    desk.backlog.replace(pending, found(b"another", LARGE + 2)._replace(path=b"a"), 0)
    assert not pending.closed_only


async def test_growing_file_that_pauses_is_told_from_one_that_waits_for_a_look(autojump_clock: MockClock) -> None:
    """A recording that is to be tried again later changes at once; only the end of the pause makes it try."""
    desk = Desk()
    grows, finished = desk.growing(found(b"grows", LARGE)) + desk.ready(found(b"finished", LARGE))
    assert not grows.is_paused
    for pending in (grows, finished):
        desk.board.move(pending.entry, S.COPYING)
        desk.backlog.postpone(pending, Wait.RETRY, "retry in 3 s", 3)
    assert (grows.is_paused, finished.is_paused) == (True, False)
    await trio.sleep(3)
    assert desk.backlog.pop_due(9) == [grows, finished]
    assert not grows.is_paused


# --- Files that change while they are ready


@pytest.mark.parametrize("size", [1, LARGE])
async def test_file_that_became_ready_twice_is_handed_out_once(size: int) -> None:
    """Promise 4: a file that changed while it was waiting for room is in one job, in its newest version."""
    desk = Desk()
    (pending,) = desk.ready(found(b"a", size))
    desk.change(pending, size)
    desk.backlog.make_ready(pending)
    ((item,),) = (job.items for job in desk.offered())
    assert item.fingerprint == pending.found.fingerprint
    assert desk.offered() == []


async def test_file_that_grew_while_it_was_ready_is_no_longer_in_a_bundle() -> None:
    """A small file that has become a large one is copied like a large one."""
    desk = Desk()
    (pending, _) = desk.ready(found(b"grows"), found(b"stays"))
    desk.change(pending, 40 * MIB)
    desk.backlog.make_ready(pending)
    assert sorted(paths(desk.offered())) == [[b"grows"], [b"stays"]]


async def test_file_that_changed_while_ready_is_not_handed_out_before_it_settled() -> None:
    """Only what is still ready is handed out."""
    desk = Desk()
    (pending,) = desk.ready(found(b"a"))
    desk.change(pending)
    assert desk.offered() == []


# --- Files that change while their job is queued


async def queued(desk: Desk) -> tuple[Pending, Job]:
    (pending,) = desk.ready(found(b"a"))
    (job,) = desk.offered()
    return pending, job


async def test_copier_takes_a_file_that_is_as_it_was() -> None:
    """The ordinary case: what was handed out is what is taken."""
    desk = Desk()
    pending, job = await queued(desk)
    assert desk.backlog.take(job.items[0], growing=False) is pending


async def test_file_that_changed_while_its_job_was_queued_is_dropped() -> None:
    """The newest version is copied when it is ready; a job for an older one is void."""
    desk = Desk()
    pending, job = await queued(desk)
    desk.change(pending)
    assert desk.backlog.take(job.items[0], growing=False) is None
    desk.backlog.make_ready(pending)
    assert desk.backlog.take(job.items[0], growing=False) is None
    (newer,) = desk.offered()
    assert desk.backlog.take(newer.items[0], growing=False) is pending


async def test_file_that_vanished_while_its_job_was_queued_is_dropped() -> None:
    """A job for a file that is not there any more is void, also if another file has its name by then."""
    desk = Desk()
    pending, job = await queued(desk)
    desk.backlog.finished(pending, S.GONE)
    assert desk.backlog.take(job.items[0], growing=False) is None
    desk.ready(found(b"a"))
    assert desk.backlog.take(job.items[0], growing=False) is None


@pytest.mark.parametrize("state", [S.COPYING, S.WAITING])
async def test_file_that_another_copier_has_is_dropped(state: FileState) -> None:
    """Promise 4: at any moment one copier at most has a file."""
    desk = Desk()
    pending, job = await queued(desk)
    desk.board.move(pending.entry, state)
    assert desk.backlog.take(job.items[0], growing=False) is None


# --- When a file is looked at again


async def test_files_are_looked_at_when_their_time_has_come(autojump_clock: MockClock) -> None:
    """In the order of their times, not before, and not more than asked for at a time."""
    desk = Desk()
    start = trio.current_time()
    for name, due in ((b"c", 3.0), (b"a", 1.0), (b"b", 2.0), (b"z", 9.0)):
        desk.backlog.add(found(name), start + due)
    assert desk.backlog.pop_due(9) == []
    assert desk.backlog.next_due() == start + 1
    await trio.sleep(5)
    assert [pending.found.path for pending in desk.backlog.pop_due(2)] == [b"a", b"b"]
    assert [pending.found.path for pending in desk.backlog.pop_due(2)] == [b"c"]
    assert desk.backlog.pop_due(2) == []
    assert desk.backlog.next_due() == start + 9


async def test_only_the_newest_time_counts(autojump_clock: MockClock) -> None:
    """A file whose look was put off, or that is no longer waiting for one, is not looked at at its former time."""
    desk = Desk()
    start = trio.current_time()
    off, ready, gone, sooner = (
        desk.backlog.add(found(name), start + 1) for name in (b"off", b"ready", b"gone", b"now")
    )
    desk.backlog.look_again(off, start + 5)
    desk.backlog.look_again(sooner, start)
    desk.backlog.make_ready(ready)
    desk.backlog.finished(gone, S.GONE)
    assert desk.backlog.pop_due(9) == [sooner]
    await trio.sleep(2)
    assert desk.backlog.pop_due(9) == []
    assert desk.backlog.next_due() == start + 5
    await trio.sleep(5)
    assert desk.backlog.pop_due(9) == [off]
    assert desk.backlog.next_due() == math.inf


async def test_file_of_which_nothing_came_is_looked_at_after_the_pause(autojump_clock: MockClock) -> None:
    """A copier that gives a file back says why, for how long, and wakes the scanner."""
    desk = Desk()
    pending, _ = await queued(desk)
    desk.board.move(pending.entry, S.COPYING)
    desk.backlog.changed = trio.Event()
    assert pending.in_work
    desk.backlog.postpone(pending, Wait.RETRY, "retry in 3 s", 3)
    assert not pending.in_work
    assert (pending.entry.state, pending.entry.reason) == (S.WAITING, "retry in 3 s")
    assert desk.backlog.changed.is_set()
    assert desk.backlog.next_due() == trio.current_time() + 3
    await trio.sleep(3)
    assert desk.backlog.pop_due(9) == [pending]


async def test_changed_file_begins_a_new_life(autojump_clock: MockClock) -> None:
    """Another version settles anew, and former failures are not counted against it."""
    desk = Desk()
    (pending,) = desk.ready(found(b"a", 5))
    pending.settled, pending.entry.attempt = True, 4
    await trio.sleep(7)
    desk.change(pending, 9)
    assert (pending.entry.state, pending.entry.size, pending.entry.attempt) == (S.SETTLING, 9, 0)
    assert (pending.since, pending.settled) == (trio.current_time(), False)
    assert desk.board.pending_bytes == 9


async def test_file_is_in_work_from_the_copiers_hands_back_to_the_scanners() -> None:
    """Promise 4: the scanner does not touch what a copier has, not even while it waits at the gate."""
    desk = Desk()
    pending = desk.backlog.add(found(b"a"), 0)
    assert not pending.in_work
    desk.backlog.make_ready(pending)
    assert not pending.in_work
    for state in (S.WAITING, S.COPYING, S.VERIFYING):
        desk.board.move(pending.entry, state)
        assert pending.in_work
    desk.backlog.settle_again(pending, "it changed while it was copied", 0)
    assert not pending.in_work


# --- What it holds


async def test_backlog_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 7: it says when it is full, and there is room again when a file is finished or left."""
    monkeypatch.setattr(backlog_module, "LIMIT", 2)
    desk = Desk()
    first, second = desk.ready(found(b"a"), found(b"b"))
    assert desk.backlog.is_full
    desk.board.move(first.entry, S.COPYING)
    desk.backlog.changed = trio.Event()
    desk.backlog.finished(first, S.DONE)
    assert not desk.backlog.is_full
    assert desk.backlog.changed.is_set()
    desk.backlog.leave(second, "still being written")
    assert len(desk.backlog) == 0
    assert desk.board.live == {}


async def test_finished_file_is_forgotten() -> None:
    """What comes back under the name of a finished file is another file."""
    desk = Desk()
    (pending,) = desk.ready(found(b"a"))
    desk.board.move(pending.entry, S.COPYING)
    assert desk.backlog.get(b"a") is pending
    assert desk.backlog.find(pending.entry.id) is pending
    desk.backlog.finished(pending, S.FAILED, "reason")
    assert desk.backlog.get(b"a") is None
    assert desk.backlog.find(pending.entry.id) is None
    (again,) = desk.ready(found(b"a"))
    assert again.entry.id != pending.entry.id


async def test_partial_of_a_file_at_hand_is_known() -> None:
    """The sweeper removes no partial that somebody is going to continue."""
    desk = Desk()
    file = found(b"folder/a")
    desk.backlog.add(file, 0)
    partial = partial_of(file.path, file.fingerprint.dev, file.fingerprint.ino)
    assert desk.backlog.owns_partial(partial)
    assert not desk.backlog.owns_partial(b"folder/b" + partial[len(b"folder/a") :])
    assert not desk.backlog.owns_partial(b"folder/a.00000000.partial")


# --- Everything together


class Traffic:
    """Files that appear, change, grow and become ready in any order, and copiers that take jobs and give files back."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        rooms = st.integers(1, 3)
        self.desk = Desk(
            order=data.draw(st.sampled_from([*ORDERS])), room=data.draw(rooms), growing_room=data.draw(rooms)
        )
        self.settling: list[Pending] = []
        self.waiting: list[Pending] = []  # ready, or in a queued job
        self.growing: list[Pending] = []  # or in a queued job: nobody else touches them
        self.held: list[list[Pending]] = []  # one list for each copier at work
        self.versions = 0

    def size(self) -> int:
        return self.data.draw(st.sampled_from([0, 1, MIB // 2, MIB, LARGE, 33 * MIB]))

    def appear(self) -> None:
        self.versions += 1
        name = b"%d" % self.versions
        file = found(name, self.size(), mtime=self.data.draw(st.integers(0, 5)), version=self.versions)
        self.settling.append(self.desk.backlog.add(file, 0))

    def change(self) -> None:
        around = self.settling + self.waiting
        if around:
            pending = self.data.draw(st.sampled_from(around))
            self.versions += 1
            self.desk.change(pending, self.size(), self.versions)
            if pending in self.waiting:
                self.waiting.remove(pending)
                self.settling.append(pending)

    def settle(self) -> None:
        if self.settling:
            pending = self.settling.pop(self.data.draw(st.integers(0, len(self.settling) - 1)))
            self.desk.backlog.make_ready(pending)
            self.waiting.append(pending)

    def grow(self) -> None:
        if self.settling:
            pending = self.settling.pop(self.data.draw(st.integers(0, len(self.settling) - 1)))
            self.desk.backlog.make_growing(pending)
            self.growing.append(pending)

    def offer(self) -> None:
        self.desk.offer()

    def follow(self) -> None:
        if not self.desk.receive_growing.statistics().current_buffer_used:
            return
        job = self.desk.receive_growing.receive_nowait()
        (item,) = job.items
        pending = self.desk.backlog.take(item, growing=job.growing)
        assert job.growing
        assert pending is not None
        self.growing.remove(pending)  # nobody else has it
        self.desk.board.move(pending.entry, S.COPYING)
        self.held.append([pending])

    def take(self) -> None:
        if not self.desk.receive.statistics().current_buffer_used:
            return
        job = self.desk.receive.receive_nowait()
        assert not job.growing
        assert 1 <= len(job.items) <= BUNDLE_FILES
        assert len(job.items) == 1 or job.size <= BUNDLE_BYTES
        assert len(job.items) == 1 or all(item.fingerprint.size <= BUNDLE_FILE_SIZE for item in job.items)
        started = [p for item in job.items if (p := self.desk.backlog.take(item, growing=job.growing)) is not None]
        assert len({id(p) for p in started}) == len(started), "twice in one job"
        for pending in started:
            self.waiting.remove(pending)  # nobody else has it
            self.desk.board.move(pending.entry, S.COPYING)
        self.held.append(started)

    def give_back(self) -> None:
        if self.held:
            for pending in self.held.pop(self.data.draw(st.integers(0, len(self.held) - 1))):
                if self.data.draw(st.booleans()):
                    self.desk.backlog.finished(pending, S.DONE)
                else:
                    self.desk.backlog.postpone(pending, Wait.RETRY, "retry", 1)
                    self.settling.append(pending)

    def finish(self) -> None:
        """Let everything settle, and have it copied; nothing may be left."""
        for _ in range(len(self.desk.backlog) * 10 + 10):
            while self.settling:
                self.settle()
            self.offer()
            self.take()
            self.follow()
            for held in self.held:
                for pending in held:
                    self.desk.backlog.finished(pending, S.DONE)
            self.held.clear()
        assert len(self.desk.backlog) == 0
        assert (self.desk.board.pending_files, self.desk.board.pending_bytes) == (0, 0)


async def test_what_ends_while_the_ledger_is_asked_is_asked_for_again() -> None:
    """Else a file that fails in that moment would be taken for one that nobody knows, and be tried once more."""
    desk = Desk()
    (pending,) = desk.ready(found(b"a"))
    (job,) = desk.offered()
    desk.backlog.take(job.items[0], growing=False)
    failed = Known("failed", "", 1, 1, 1)

    class Answering(Port):
        def __init__(self) -> None:
            self.asked: list[object] = []

        async def call(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.asked.append((method, *args))
            if len(self.asked) == 1:
                desk.board.move(pending.entry, S.COPYING)
                desk.backlog.finished(pending, S.FAILED)
                return {}
            return {b"a": failed}

    ledger = Answering()
    assert await desk.backlog.ask(ledger, Ledger.known_in, [b""], [b"a", b"b"]) == {b"a": failed}
    assert ledger.asked == [(Ledger.known_in, [b""]), (Ledger.known, [b"a"])]


@given(st.data())
async def test_every_file_has_one_owner_and_none_is_lost(data: st.DataObject) -> None:
    """Promise 4: whatever happens in whatever order, no file is in two hands, and every file comes to its end."""
    traffic = Traffic(data)
    steps = [traffic.appear, traffic.change, traffic.settle, traffic.grow, traffic.offer]
    steps += [traffic.take, traffic.follow, traffic.give_back]
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=40)):
        step()
    traffic.finish()
