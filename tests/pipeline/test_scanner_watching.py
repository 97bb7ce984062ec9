"""What the scanner does while it watches: when it looks again, what it tells, and who hears of events."""

from __future__ import annotations

import errno
import re
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from scanned import World, probing, source
from trioft.config.options import Source
from trioft.core.answers import Look
from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.model import Found
from trioft.movers.events import Changes
from trioft.movers.ops.wire import MOST
from trioft.pipeline import backlog as backlog_module
from trioft.state.ledger import Known

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
    world.changes.watching(everywhere=are_told)
    world.changes.take()
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
        (Known("delivered", "", 1, 10**18, 10**18 + 1), False),
        (Known("delivered", "", 1, 10**18, 7), True),
        (Known("failed", "", 1, 10**18, 10**18 + 1), False),
        (Known("failed", "", 1, 10**18, 7), True),
        (Known("delivered", "refused", 1, 10**18, 7), False),
        (Known("delivered", "", 2, 10**18, 7), True),
        (Known("delivered", "", 1, 10**18 + 1, 7), True),
        (Known("delivered", "pending", 1, 10**18, 7), True),
    ],
    ids=[
        "delivered",
        "other-permissions-or-content",
        "failed",
        "failed-before-its-permissions-changed",
        "not-removed",
        "other-size",
        "other-time",
        "removal-was-interrupted",
    ],
)
async def test_what_the_ledger_knows_decides(autojump_clock: MockClock, known: Known, again: bool) -> None:
    """A version that is known is taken up again only where a removal was cut short, or its ctime is another one."""
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


async def test_source_that_hangs_is_waited_for_each_time(autojump_clock: MockClock) -> None:
    """Each hang is told, and when the source is back; the file at hand is copied once."""
    world = World(source=source(scan_interval=10.0))
    world.put(b"a")
    stuck = Trouble(Side.SOURCE, "scan", b"", None, errno.ETIMEDOUT, "no progress for 30 s")
    world.troubles = [stuck]

    async def hang_again() -> None:
        await trio.sleep(10.2)
        world.troubles = [stuck]

    async def then() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_again)
            await probing(world, fails=0)

    await world.run(100, then=then)
    expected = f"source not usable since T: {stuck}"
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

    async def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        answer = await world.call(operation, *arguments, **options)
        if operation.name in ("scan", "compare"):
            world.files.update(files)
        return answer

    return call


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


# --- Whether events come


async def test_a_file_that_no_event_told_of_says_that_events_do_not_come(autojump_clock: MockClock) -> None:
    """Then scans become as frequent as without events, and that is said once."""
    world = World(source=source(scan_interval=1.0))
    world.changes.watching(everywhere=True)
    world.changes.take()
    world.listing = world.listing._replace(seconds=1.0)
    told: list[str] = []
    world.board.notices.append(lambda what, text: told.append(text))

    async def add() -> None:
        await trio.sleep(230)
        assert world.changes.are_told
        world.put(b"a", mtime=1e9)
        world.put(b"b", mtime=1e9)

    await world.run(370, then=add)
    scans = world.scans()
    assert scans[:4] == pytest.approx([0, 100, 200, 300], rel=0.01)
    assert scans[4:] == pytest.approx([320, 340, 360], rel=0.02)
    assert len(told) == 1
    assert re.fullmatch(r"file events are not reliable: none told of [ab], which a scan has found; .* instead", told[0])


@pytest.mark.parametrize("event", [b"folder/a", b"folder"])
@pytest.mark.parametrize("late", [0.0, 4.0])
async def test_a_file_that_a_scan_finds_before_its_event_says_nothing(
    autojump_clock: MockClock, event: bytes, late: float
) -> None:
    """Events are told in bundles, and of a folder that was moved in there is one alone."""
    world = World(source=source(scan_interval=1.0))
    world.changes.watching(everywhere=True)
    world.changes.take()
    world.listing = world.listing._replace(seconds=1.0)

    async def add() -> None:
        while len(world.scans()) < 3:
            world.files.clear()
            world.put(b"folder/a", mtime=1e9)
            await trio.sleep(0.01)
        await trio.sleep(late)
        world.changes.add([event])

    await world.run(400, then=add)
    assert world.changes.are_told
