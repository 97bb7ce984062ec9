"""
The endings of an agent: by itself, by a signal or two, by a bug, by a dead ledger.

However it ends: it does so in time, leaves no child behind, no wrong content under a final name, a ledger that tells
the truth, and a free lock, so that the next start goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

import odd_mover
from support import PATIENCE, Site, files_of, make_tree, movers_of, pattern, wait_until
from trioft.agent.agent import run_agent
from trioft.config.file import load_config
from trioft.config.options import Config
from trioft.core.bugs import MoverBug
from trioft.core.model import BLOCK_SIZE, MIB, FileState, Job, Result
from trioft.pipeline import strategies
from trioft.pipeline.context import Tools
from trioft.state.board import Board, Entry
from truth import check_promises, children_of, recorded

SIZE = 9 * BLOCK_SIZE + 12_345
CONTENTS = {b"large": pattern(SIZE), b"folder/small": b"small", b"folder/empty": b""}
SLOW = "40MiB/s"  # two blocks at once, then one in 0.2 s: two seconds in all
FAR = 4 * BLOCK_SIZE
IN_WORK = 2 * BLOCK_SIZE  # two are written at a time; what is not complete is not kept
# So that no checkpoint comes but the one at the end; and so that checkpoints come often.
NO_CHECKPOINTS = "copy: {checkpoint_size: 1GiB, checkpoint_time: 1h}\n"
CHECKPOINTS = "copy: {checkpoint_size: 16MiB}\n"


def settings(site: Site, text: str) -> Path:
    """Write a configuration file."""
    path = site.root / "trioft.yaml"
    path.write_text(text)
    return path


def size_of_partial(site: Site) -> int:
    return max((path.stat().st_size for path in site.dest.glob("large.*.trioft-partial")), default=0)


@pytest.fixture
def source(site: Site) -> Site:
    make_tree(site.source, dict(CONTENTS.items()))
    return site


@contextlib.contextmanager
def recording(site: Site, growing: bool = True) -> Iterator[Callable[[], None]]:
    """While inside, somebody has the large file open for writing, if it is to be a *growing* one; yields the close."""
    opened = [os.open(site.source / "large", os.O_WRONLY | os.O_CLOEXEC)] if growing else []

    def close() -> None:
        while opened:
            os.close(opened.pop())

    try:
        yield close
    finally:
        close()


def check_the_next_start(site: Site, resumed: int | None = None) -> None:
    """The next start works at once, goes on where the last one stopped, and completes."""
    done = site.sync()
    assert done.code == 0, done.err
    if resumed is not None:
        assert done.summary["bytes_resumed"] == resumed
    assert files_of(site.dest) == files_of(site.source) == CONTENTS
    assert recorded(site).checkpoints == {}


# --- by itself --------------------------------------------------------------------------------------------------------


def test_a_sync_that_is_done_leaves_nothing_but_the_files(source: Site) -> None:
    """No child, no partial, no checkpoint; and everything that the ledger calls delivered is there."""
    running = source.start("sync")
    pid = running.process.pid
    wait_until(lambda: movers_of(pid))
    assert running.end(0).code == 0
    assert children_of(pid) == set()
    assert check_promises(source, CONTENTS).delivered.keys() == CONTENTS.keys()
    check_the_next_start(source, 0)


# --- by signals -------------------------------------------------------------------------------------------------------

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
COMMANDS = pytest.mark.parametrize("command", ["sync", "watch"])


def exit_code(command: str, number: signal.Signals) -> int:
    return 128 + number if command == "sync" else 0


@pytest.mark.parametrize("growing", [False, True], ids=["finished", "growing"])
@SIGNALS
@COMMANDS
def test_the_first_signal_records_how_far_it_came_and_ends(
    command: str, number: signal.Signals, growing: bool, source: Site
) -> None:
    """What was written is made durable, verified and recorded before the agent ends, and is not copied again."""
    with recording(source, growing):
        running = source.start(command, "--bwlimit", SLOW, "-c", settings(source, NO_CHECKPOINTS))
        pid = running.process.pid
        wait_until(lambda: size_of_partial(source) > FAR)
        assert recorded(source, running=True).checkpoints == {}
        done = running.end(number, 10)
        assert done.code == exit_code(command, number), done.err
        assert children_of(pid) == set()
        says = check_promises(source, CONTENTS)
        settled = says.settled(b"large")
        assert FAR - IN_WORK <= settled < SIZE
        assert settled % BLOCK_SIZE == 0
        assert says.checkpoints[b"large"].growing == growing
    check_the_next_start(source, settled)


@COMMANDS
def test_the_second_signal_ends_it_now(command: str, source: Site) -> None:
    """Who does not want to wait for a destination that does not answer, does not have to; earlier checkpoints hold."""
    patient = "copy: {checkpoint_size: 16MiB, stall_timeout: 1h}\nstate: {shutdown_grace: 1h}\n"
    running = source.start(command, "--bwlimit", SLOW, "-c", settings(source, patient))
    pid = running.process.pid
    wait_until(lambda: recorded(source, running=True).settled(b"large") >= 2 * BLOCK_SIZE)
    wait_until(lambda: stop_busy_movers(pid))
    running.process.send_signal(signal.SIGINT)
    wait_until(lambda: not is_pending(pid, signal.SIGINT))  # the next one must not overtake it
    done = running.end(signal.SIGTERM, 5)
    assert done.code == exit_code(command, signal.SIGINT), done.err
    assert children_of(pid) == set()
    settled = check_promises(source, CONTENTS).settled(b"large")
    assert settled >= 2 * BLOCK_SIZE
    check_the_next_start(source, settled)


@pytest.mark.parametrize("begun", [False, True], ids=["from the start on", "at work"])
@COMMANDS
def test_however_many_signals_come_it_ends_in_order(command: str, begun: bool, source: Site) -> None:
    """One that comes before any is obeyed counts; those that come when all is over do not take the last words away."""
    running = source.start(command, "--bwlimit", SLOW, "--json")
    if begun:
        wait_until(lambda: size_of_partial(source) > FAR)
    else:
        wait_until(lambda: movers_of(running.process.pid))
    with contextlib.suppress(ProcessLookupError):
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.0005)  # else its handlers would only interrupt each other, until the stack is full
    done = running.end(0)
    assert done.code == exit_code(command, signal.SIGTERM), done.err
    assert done.summary["failed"] == 0
    check_promises(source, CONTENTS)


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Say whether a signal has been sent to a process and not been taken by any of its threads."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        (mask,) = [int(line.split()[1], 16) for line in file if line.startswith("ShdPnd:")]
    return bool(mask >> number - 1 & 1)


def stop_busy_movers(pid: int) -> bool:
    """Stop the movers of an agent that are in the middle of something; return whether there are any."""
    stopped = False
    for mover in movers_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if is_busy(mover):
                os.kill(mover, signal.SIGSTOP)
                wait_until(functools.partial(is_stopped, mover))
                if is_busy(mover):
                    stopped = True
                else:  # it was about to be done
                    os.kill(mover, signal.SIGCONT)
    return stopped


def is_busy(mover: int) -> bool:
    """Has it more open than its pipes?"""
    return len(os.listdir(f"/proc/{mover}/fd")) > 4


def is_stopped(pid: int) -> bool:
    """Has a process been stopped by a signal?"""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def test_a_watch_with_nothing_to_do_ends_at_once(site: Site) -> None:
    """An idle service stops within a moment, with the code of success."""
    running = site.watch()
    pid = running.process.pid
    make_tree(site.source, {"a": b"1"})
    running.wait_for_file("a", "done")
    begun = time.monotonic()
    assert running.end().code == 0
    assert time.monotonic() - begun < 5
    assert children_of(pid) == set()


# --- another one ------------------------------------------------------------------------------------------------------


def test_a_second_agent_on_the_same_pair_is_refused_until_the_first_has_ended(source: Site) -> None:
    """It names the process, changes nothing, and works as soon as the first is gone, even if that was killed."""
    running = source.start("sync", "--bwlimit", "10MiB/s")
    wait_until(lambda: size_of_partial(source))
    second = source.sync()
    assert second.code == 5
    assert f"process {running.process.pid}" in second.err
    assert "hint:" in second.err
    assert (second.summary["exit_code"], second.summary["delivered"]) == (5, 0)
    running.end(signal.SIGKILL)
    assert source.sync().code == 0
    assert files_of(source.dest) == CONTENTS


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def config(source: Site) -> Config:
    return load_config(
        f"{settings(source, CHECKPOINTS)}",
        {
            "source.path": ("SOURCE", f"{source.source}"),
            "destination.path": ("DEST", f"{source.dest}"),
            "source.settle": ("--settle", "100ms"),
            "copy.bwlimit": ("--bwlimit", SLOW),
        },
    )


class Agent:
    """An agent that runs in this process, and what it said."""

    def __init__(self, site: Site, config: Config, mover: list[str] | None = None, *, once: bool = True) -> None:
        self.board = Board()
        self.told: list[tuple[bytes, str]] = []
        self.notices: list[tuple[str, str]] = []
        self.board.listeners.append(self._listen)
        self.board.notices.append(lambda what, text: self.notices.append((what, text)))
        self._state_dir = str(site.state)
        self._config, self._mover, self._once = config, mover, once

    @property
    def stories(self) -> list[str]:
        """What was told of bugs."""
        return [text for what, text in self.notices if what == "bug"]

    def _listen(self, entry: Entry) -> None:
        self.told.append((entry.path, str(entry.state)))

    async def run(self) -> int | None:
        """Run it. However it ends, nobody is left then."""
        try:
            with trio.fail_after(PATIENCE):
                return await run_agent(
                    self._config, self.board, once=self._once, state_dir=self._state_dir, mover=self._mover
                )
        finally:
            assert children_of(os.getpid()) == set()


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - what other processes do sets no event
            await trio.sleep(0.005)


@pytest.mark.parametrize("command", ["sync", "watch"])
async def test_a_bug_in_a_copier_ends_its_file_and_no_other(
    command: str, source: Site, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, with the place where it happened, in a dozen lines; the agent goes on."""
    make_tree(source.source, {"bad": 2 * MIB})
    original = strategies.whole

    async def whole(job: Job, tools: Tools) -> list[Result]:
        if job.items[0].path != b"bad":
            return await original(job, tools)
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(strategies.STRATEGIES, "whole", whole)
    agent = Agent(source, config, once=command == "sync")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        await until(lambda: (b"bad", "failed") in agent.told and agent.board.totals.delivered == len(CONTENTS))
        os.kill(os.getpid(), signal.SIGTERM)
    (story,) = agent.stories
    assert story.startswith("this is a bug in trioft: ZeroDivisionError: a bug\n")
    assert "in whole" in story
    assert len(story.splitlines()) <= 12
    assert agent.board.totals.failed == 1
    assert files_of(source.dest) == CONTENTS
    monkeypatch.undo()
    assert await Agent(source, config).run() is None
    assert files_of(source.dest) == files_of(source.source)


def only_leaf(error: BaseException, kind: type[BaseException]) -> BaseException:
    """Return the only error in a group of groups."""
    leaves = [error]
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in leaves):
        leaves = [
            inner for leaf in leaves for inner in (leaf.exceptions if isinstance(leaf, BaseExceptionGroup) else (leaf,))
        ]
    assert [type(leaf) for leaf in leaves] == [kind]
    return leaves[0]


_BUGGY = """
original = mover.OPERATIONS[{operation!r}]
def buggy(*arguments):
    original(*arguments)
    raise ZeroDivisionError("a bug")
mover.OPERATIONS[{operation!r}] = buggy
"""


@pytest.mark.parametrize(
    ("operation", "failed"),
    [
        ("write_bundle", {b"folder/small", b"folder/empty"}),
        ("prepare", {b"large"}),
        ("copy_span", {b"large"}),
        ("settle", {b"large"}),
        ("publish", {b"large"}),  # the small ones, tried once more, are found at the destination
    ],
)
async def test_a_bug_in_an_operation_ends_its_file_and_is_told_with_the_traceback_of_the_mover(
    operation: str, failed: set[bytes], source: Site, config: Config
) -> None:
    """Whatever an operation had done by then, the next start makes it good; files of a bundle are tried one by one."""
    agent = Agent(source, config, odd_mover.changed(source.root, _BUGGY.format(operation=operation)))
    assert await agent.run() is None
    assert {path for path, state in agent.told if state == "failed"} == failed
    assert agent.board.totals.failed == len(failed)
    (story,) = agent.stories
    assert story.startswith("this is a bug in trioft: ZeroDivisionError: a bug\n")
    assert f"in a mover, at {operation}:" in story
    assert "in buggy" in story
    assert len(story.splitlines()) <= 12
    check_promises(source, CONTENTS)
    check_the_next_start(source)


@pytest.mark.parametrize("operation", ["peek", "copy_growing", "compare_span", "finish_attributes"])
async def test_a_bug_in_an_operation_on_a_growing_file_ends_that_file(
    operation: str, source: Site, config: Config
) -> None:
    """A recording suffers no more than any other file: the next start goes on with it."""
    agent = Agent(source, config, odd_mover.changed(source.root, _BUGGY.format(operation=operation)))

    async def close_soon() -> None:
        await until(lambda: size_of_partial(source) > BLOCK_SIZE)
        close()

    with recording(source) as close:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_soon)
            await agent.run()
            nursery.cancel_scope.cancel()
        assert [path for path, state in agent.told if state == "failed"] == [b"large"]
        (story,) = agent.stories
        assert "in buggy" in story
        check_promises(source, CONTENTS)
    check_the_next_start(source)


async def test_a_sync_that_meets_a_bug_while_it_looks_at_the_source_ends_with_it(source: Site, config: Config) -> None:
    """Nobody knows then which files there are: it must not look like a success."""
    agent = Agent(source, config, odd_mover.changed(source.root, _BUGGY.format(operation="compare")))
    with pytest.raises(BaseExceptionGroup) as caught:
        await agent.run()
    assert "in buggy" in str(only_leaf(caught.value, MoverBug))
    check_promises(source, CONTENTS)
    check_the_next_start(source)


_BUGGY_AT_FIRST = """
original = mover.OPERATIONS["scan"]
def buggy(*arguments):
    if not os.path.exists({once!r}):
        open({once!r}, "w").close()
        raise ZeroDivisionError("a bug")
    return original(*arguments)
mover.OPERATIONS["scan"] = buggy
"""


async def test_a_watch_that_meets_a_bug_while_it_looks_at_the_source_begins_again(source: Site, config: Config) -> None:
    """A service does not stay dead because of a moment: its job is begun again after a pause, and both are told."""
    config = attrs.evolve(config, retry=attrs.evolve(config.retry, first=0.1))
    code = _BUGGY_AT_FIRST.format(once=str(source.root / "once"))
    agent = Agent(source, config, odd_mover.changed(source.root, code), once=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        await until(lambda: agent.board.totals.delivered == len(CONTENTS))
        os.kill(os.getpid(), signal.SIGTERM)
    told = [text for what, text in agent.notices if what == "job"]
    assert told[0].startswith("the job has ended: this is a bug in trioft: ZeroDivisionError: a bug\n")
    assert "in buggy" in told[0]
    assert told[1:] == ["the job is at work again"]
    assert files_of(source.dest) == CONTENTS


# --- a dead ledger ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def broken_ledger(site: Site) -> Iterator[None]:
    """Inside, the ledger cannot save checkpoints."""
    (path,) = site.state.glob("*.sqlite")

    def change(sql: str) -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as db:
            db.execute(sql)

    change("ALTER TABLE checkpoint RENAME TO taken_away")
    yield
    change("ALTER TABLE taken_away RENAME TO checkpoint")


@COMMANDS
def test_a_ledger_that_fails_ends_the_agent_and_says_why(command: str, source: Site) -> None:
    """Without a ledger nothing goes on: nobody could say any more what is delivered. What it said before stays true."""
    running = source.start(command, "--bwlimit", SLOW, "-c", settings(source, CHECKPOINTS))
    pid = running.process.pid
    wait_until(lambda: recorded(source, running=True).settled(b"large") >= 2 * BLOCK_SIZE)
    with broken_ledger(source):
        done = running.end(0, 20)
        assert done.code == 3
        assert "trioft: error: the ledger" in done.err
        assert "no such table: checkpoint" in done.err
        assert "hint:" in done.err
        assert "Traceback" not in done.err
        assert children_of(pid) == set()
    settled = check_promises(source, CONTENTS).settled(b"large")
    assert settled >= 2 * BLOCK_SIZE
    check_the_next_start(source, settled)


# --- a signal at special moments --------------------------------------------------------------------------------------

_HELD = """
original = mover.OPERATIONS[{operation!r}]
def held(*arguments):
    before = {before!r}
    result = None if before else original(*arguments)
    open({folder!r} + "/held", "w").close()
    while not os.path.exists({folder!r} + "/go"):
        time.sleep(0.005)
    return original(*arguments) if before else result
mover.OPERATIONS[{operation!r}] = held
"""


@contextlib.asynccontextmanager
async def held(source: Site, config: Config, operation: str, *, before: bool = True) -> AsyncIterator[dict[str, Any]]:
    """Run an agent until *operation* is reached; inside, it is held there. Afterwards, there is a result."""
    code = _HELD.format(operation=operation, before=before, folder=f"{source.root}")
    agent = Agent(source, config, odd_mover.changed(source.root, code))
    outcome: dict[str, Any] = {"agent": agent}

    async def run() -> None:
        outcome["result"] = await agent.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until((source.root / "held").exists)
        yield outcome


async def test_a_destination_that_does_not_answer_delays_the_end_no_longer_than_the_grace_period(
    source: Site, config: Config
) -> None:
    """One signal is enough, also when everything hangs; what was recorded before holds."""
    config = attrs.evolve(config, state=attrs.evolve(config.state, shutdown_grace=1.0))
    async with held(source, config, "settle"):
        begun = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
    assert 1 <= time.monotonic() - begun < 4
    check_promises(source, CONTENTS)
    check_the_next_start(source)


async def test_a_signal_while_the_ends_are_looked_at_ends_the_agent(source: Site, config: Config) -> None:
    """A destination that hangs at the start does not keep anybody from giving up."""
    async with held(source, config, "inspect") as outcome:
        os.kill(os.getpid(), signal.SIGTERM)
    assert outcome["result"] == signal.SIGTERM
    assert outcome["agent"].told == []
    assert files_of(source.dest) == {}


@pytest.mark.parametrize("action", ["keep", "delete"])
async def test_what_is_finished_after_the_signal_is_recorded_and_told(
    action: str, source: Site, config: Config
) -> None:
    """A file that gets its final name during the grace period is delivered like any other: nobody is left in doubt."""
    config = load_config(
        f"{settings(source, CHECKPOINTS)}",
        {
            "source.path": ("SOURCE", f"{source.source}"),
            "destination.path": ("DEST", f"{source.dest}"),
            "source.settle": ("--settle", "100ms"),
            "copy.on_success": ("--on-success", action),
            "source.include": ("--include", ["folder/small"]),
        },
    )
    async with held(source, config, "publish", before=False) as outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked(0.05)  # the signal has done its work
        (source.root / "go").touch()
    assert outcome["result"] == signal.SIGTERM
    says = check_promises(source, CONTENTS)
    assert says.delivered == {b"folder/small": b"folder/small"}
    assert (b"folder/small" in files_of(source.source)) == (action == "keep")
    assert outcome["agent"].told[-1] == (b"folder/small", FileState.DONE)
    assert outcome["agent"].board.totals.delivered == 1


# --- what must not be an ending ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3 * BLOCK_SIZE], ids=["small", "large"])
@COMMANDS
def test_a_file_with_an_impossible_time_does_not_end_the_agent(command: str, size: int, site: Site) -> None:
    """A broken clock writes times that a ledger cannot hold as they are: the file is delivered, once, with its time."""
    make_tree(site.source, {"odd": size})
    year_2400 = 13_569_465_600 * 10**9 + 1
    os.utime(site.source / "odd", ns=(0, year_2400))
    for already in (0, 1):
        running = site.start(command)
        if command == "watch":
            wait_until(lambda: b"odd" in recorded(site, running=True).delivered)
            make_tree(site.source, {f"newer-{already}": 1})
            running.wait_for_file(f"newer-{already}", "done")
        done = running.end(signal.SIGTERM if command == "watch" else 0)
        assert done.code == 0, done.err
        assert done.files("done").keys() & {"odd"} == (set() if already else {"odd"})
    assert files_of(site.dest) == files_of(site.source)
    assert (site.dest / "odd").stat().st_mtime_ns == (site.source / "odd").stat().st_mtime_ns
