"""The pool of child processes, and the child: who starts, serves, dies, is replaced and ends, and what it holds."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import math
import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Never, TypeVar, TypeVarTuple

import pytest
import trio
import trio.testing

import odd_mover
from odd_mover import (
    CHATTER,
    COUNT,
    DIE,
    ECHO,
    ECHO_AT_DESTINATION,
    ECHO_AT_SOURCE,
    ECHO_BEHIND,
    HOLD,
    HOLD_AT,
    HOLD_AT_SOURCE,
    HOLD_BEHIND,
    REFUSE,
    REFUSE_BEHIND,
    STUMBLE,
    WHO,
    WHO_BEHIND,
)
from support import PATIENCE, TOOLS, TRIOFT, movers_of, wait_until
from trioft.core.bugs import MoverBug
from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, UnusableError, classify
from trioft.core.model import Place
from trioft.core.operations import BOTH, Operation
from trioft.movers import pool as pool_module
from trioft.movers.child import child_command
from trioft.movers.ops.wire import LENGTH
from trioft.movers.pool import MOST_STUCK, Movers, Starts, Stuck
from trioft.state.ledger import Ledger
from trioft.state.lock import Lock

SHORT = 1.5  # seconds without progress that these tests take for a stall


def pool(limit: int = 4, stall_timeout: float = PATIENCE) -> Movers:
    return Movers(limit, stall_timeout, odd_mover.command())


def mine() -> set[int]:
    """Return the movers that this process has."""
    return set(movers_of(os.getpid()))


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    with trio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - what other processes do sets no event
            await trio.sleep(0.005)


def exist(pids: set[int]) -> set[int]:
    """Return those of *pids* that are still in the process table, zombies included."""
    return {pid for pid in pids if os.path.exists(f"/proc/{pid}")}


async def busy(folder: Path, number: int = 1) -> set[int]:
    """Wait until *number* movers hold *folder*, and return their process ids."""

    def pids() -> set[int]:
        return {int(path.suffix[1:]) for path in folder.glob("busy.*")}

    await until(lambda: len(pids()) >= number)
    return pids()


Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


class Calls:
    """Calls in the background, and what they have returned, or raised."""

    def __init__(self, movers: Movers) -> None:
        self.answers: list[Any] = []
        self._movers = movers

    async def call(self, operation: Operation[Never, Answer, *Arguments], *arguments: *Arguments) -> None:
        try:
            self.answers.append(await self._movers.call(operation, *arguments))
        except FileTrouble as error:
            self.answers.append(error.trouble)


# --- start, limit, reuse, retirement ----------------------------------------------------------------------------------


async def test_the_first_call_starts_a_mover_and_the_next_ones_reuse_it() -> None:
    """Movers are started on demand and kept: a process for each operation would cost more than the operation."""
    async with pool() as movers:
        assert mine() == set()
        first = await movers.call(WHO)
        assert mine() == {first}
        assert [await movers.call(WHO) for _ in range(3)] == [first] * 3
        assert mine() == {first}
        assert movers.replaced == 0


async def test_no_more_movers_than_the_limit_and_calls_beyond_it_wait(tmp_path: Path) -> None:
    """The number of processes is bounded by configuration: a call beyond it waits for a free mover."""
    async with pool(limit=2) as movers:
        calls = Calls(movers)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(calls.call, HOLD, str(tmp_path))
            pids = await busy(tmp_path, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert mine() == pids
            (tmp_path / "go").touch()
        assert len(calls.answers) == 5
        assert set(calls.answers) == mine() == pids


async def test_calls_in_the_background_leave_one_mover_to_the_others(tmp_path: Path) -> None:
    """However many there are: who settles or compares never keeps what is written meanwhile from a mover."""
    async with pool(limit=3) as movers:
        calls = Calls(movers)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(functools.partial(calls.call, HOLD_BEHIND, str(tmp_path)))
            pids = await busy(tmp_path, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert await movers.call(WHO) not in pids
            assert len(mine()) == 3
            assert calls.answers == []
            assert await busy(tmp_path, 2) == pids
            (tmp_path / "go").touch()
        assert len(calls.answers) == 5


async def test_calls_in_the_background_may_wait_for_the_others(tmp_path: Path) -> None:
    """Their mover is none of their own: as many others as there are movers may be under way, and then they wait."""
    async with pool(limit=2) as movers:
        foreground, background = Calls(movers), Calls(movers)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(foreground.call, HOLD, str(tmp_path))
            pids = await busy(tmp_path, 2)
            nursery.start_soon(functools.partial(background.call, WHO_BEHIND))
            await trio.testing.wait_all_tasks_blocked()
            assert (mine(), background.answers) == (pids, [])
            (tmp_path / "go").touch()
        assert set(background.answers) <= pids == set(foreground.answers)


async def test_a_single_mover_serves_the_background_too() -> None:
    """Where there is only one, nothing is left for others, and nothing waits for ever."""
    async with pool(limit=1) as movers:
        with trio.fail_after(PATIENCE):
            assert await movers.call(ECHO_BEHIND, "well") == "well"


async def test_calls_in_the_background_that_are_cancelled_or_fail_make_room_for_the_next(tmp_path: Path) -> None:
    """However a call ends, those that wait behind it are served."""
    trouble = Trouble(Side.SOURCE, "read", b"a", 0, errno.EIO, "text")
    async with pool(limit=2) as movers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(movers.call, HOLD_BEHIND, str(tmp_path)))
            await busy(tmp_path)
            nursery.cancel_scope.cancel()
        for _ in range(3):
            with pytest.raises(FileTrouble):
                await movers.call(REFUSE_BEHIND, trouble)
        with trio.fail_after(PATIENCE):
            assert await movers.call(ECHO_BEHIND, "well") == "well"


async def test_movers_that_were_idle_for_long_are_retired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of work does not leave its processes behind for ever."""
    async with pool() as movers:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(movers.call, HOLD, str(tmp_path))
            pids = await busy(tmp_path, 3)
            (tmp_path / "go").touch()
        assert mine() == pids
        monkeypatch.setattr(pool_module, "_IDLE", 0)
        await movers.call(WHO)
        assert not mine() & pids
        assert movers.replaced == 0


# --- deaths -----------------------------------------------------------------------------------------------------------


async def test_an_operation_whose_mover_is_killed_is_done_again_by_another(tmp_path: Path) -> None:
    """A mover that dies in the middle of an operation costs the operation nothing but time."""
    async with pool() as movers:
        calls = Calls(movers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.call, HOLD, str(tmp_path))
            (killed,) = await busy(tmp_path)
            os.kill(killed, signal.SIGKILL)
            (other,) = await busy(tmp_path, 2) - {killed}
            (tmp_path / "go").touch()
        assert calls.answers == [other]
        assert movers.replaced == 1
        assert mine() == {other}


async def test_an_operation_that_kills_two_movers_is_a_trouble_and_the_next_one_is_not(tmp_path: Path) -> None:
    """A file that crashes its mover every time fails alone, and is tried again a limited number of times."""
    async with pool(limit=1) as movers:
        with pytest.raises(FileTrouble, match="died, twice") as caught:
            await movers.call(DIE, str(tmp_path), 2)
        assert caught.value.trouble.op == "die"
        assert classify(caught.value.trouble) == Remedy.RETRY
        assert await movers.call(DIE, str(tmp_path), 2) == 2
        assert movers.replaced == 2


async def test_an_operation_that_kills_one_mover_is_no_trouble(tmp_path: Path) -> None:
    """The second attempt counts."""
    async with pool(limit=1) as movers:
        assert await movers.call(DIE, str(tmp_path), 1) == 1
        assert movers.replaced == 1


async def test_movers_that_died_while_they_were_idle_do_not_fail_the_next_operations(tmp_path: Path) -> None:
    """Whoever kills idle movers, such as the kernel when memory is short, harms no file."""
    async with pool() as movers:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(movers.call, HOLD, str(tmp_path))
            pids = await busy(tmp_path, 4)
            (tmp_path / "go").touch()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not mine() & pids)
        pid = await movers.call(WHO)
        assert mine() == {pid}
        assert exist(pids) == set()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOENT])
async def test_a_mover_that_cannot_be_started_is_waited_for(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A machine that is short of memory or processes for a moment is no file's trouble: the call is late."""
    told: list[str | None] = []
    start, failures = subprocess.Popen, iter(range(3))

    def begin(*words: Any, **options: Any) -> Any:
        if next(failures, None) is not None:
            raise OSError(number, os.strerror(number))
        return start(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", begin)
    descriptors = len(os.listdir("/proc/self/fd"))
    async with Movers(1, PATIENCE, odd_mover.command(), starts=Starts(told.append, math.inf)) as movers:
        assert await movers.call(WHO)
    assert told[-1] is None
    assert set(told[:-1]) == {
        f"cannot start a process: {os.strerror(number)}; it is tried again and again, and no file is blamed for it"
    }
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_mover_that_can_never_be_started_ends_a_command() -> None:
    """Who waits for an answer is told in the end."""
    async with Movers(1, PATIENCE, ["/no/such/program"], starts=Starts(patience=0.2)) as movers:
        movers.warm_up(1)
        assert movers.alive == 0
        for _ in range(2):
            with pytest.raises(UnusableError, match="cannot start a process: No such file"):
                await movers.call(WHO)


async def test_movers_that_have_nothing_to_do_make_room_for_those_of_another_pool() -> None:
    """With few descriptors, what one pool keeps for later is what another one needs now."""
    starts = Starts(patience=PATIENCE)
    async with (
        Movers(4, PATIENCE, odd_mover.command(), starts=starts) as idle,
        Movers(1, PATIENCE, odd_mover.command(), starts=starts) as needy,
    ):
        idle.warm_up(4)
        usual = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), usual[1]))
        with contextlib.ExitStack() as taken:
            taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, usual)
            with contextlib.suppress(OSError):
                while True:
                    taken.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            assert await needy.call(WHO)
        assert idle.alive == 0


# --- stalls, progress, cancellation -----------------------------------------------------------------------------------


async def test_a_stopped_mover_is_killed_after_the_stall_timeout_and_the_others_go_on(tmp_path: Path) -> None:
    """An operation that makes no progress has failed, as a destination does that is gone; nobody else waits for it."""
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    async with pool(stall_timeout=SHORT) as movers:
        stalled, others = Calls(movers), Calls(movers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stalled.call, HOLD, str(tmp_path))
            (stopped,) = await busy(tmp_path)
            os.kill(stopped, signal.SIGSTOP)
            begun = time.monotonic()
            for _ in range(20):
                await others.call(ECHO, "well")
            assert others.answers == ["well"] * 20
            assert stalled.answers == []
        assert SHORT / 2 < time.monotonic() - begun < SHORT + PATIENCE / 4
        (trouble,) = stalled.answers
        assert (trouble.side, trouble.op, trouble.errno) == (Side.DESTINATION, "hold", errno.ETIMEDOUT)
        assert f"no progress for {SHORT:g} s" in str(trouble)
        assert classify(trouble) == Remedy.DESTINATION
        assert stopped not in mine()
        assert movers.replaced == 1
        assert movers.stuck.pids == []


@pytest.fixture
def undying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no child be killed, as the kernel does not while a dead mount has it: only its operation ends it."""
    monkeypatch.setattr(subprocess.Popen, "kill", lambda self: None)
    monkeypatch.setattr("trioft.movers.child._DYING", 0.05)


async def test_a_mover_that_cannot_be_killed_is_left_behind_and_told_until_it_comes_back(
    tmp_path: Path, undying: None
) -> None:
    """The pool goes on without it; who asks learns on which files it may still do something, and when no more."""
    told: list[str] = []
    async with Movers(4, 0.2, odd_mover.command(), Stuck(told.append)) as movers:
        with pytest.raises(FileTrouble, match="no progress"):
            await movers.call(HOLD, str(tmp_path), owner=((7, 8), (7, 9)))
        (pid,) = movers.stuck.pids
        assert told == [f"process {pid} cannot be killed, and does not come back from hold: it is left behind"]
        assert [movers.stuck.process_on(identity) for identity in ((7, 8), (7, 9), (8, 7))] == [pid, pid, None]
        assert await movers.call(ECHO.with_patience(100), "well") == "well"
        (tmp_path / "go").touch()
        await until(lambda: not movers.stuck.pids)
        assert movers.stuck.process_on((7, 8)) is None
        assert exist({pid}) == set(), "nobody has asked for how it ended"


async def test_when_too_many_are_left_behind_no_more_are_started(tmp_path: Path, undying: None) -> None:
    """A mount that stays dead does not fill the process table; when one comes back, the next is tried."""
    async with pool(2 * MOST_STUCK, stall_timeout=0.2) as movers:
        for _ in range(MOST_STUCK):
            with pytest.raises(FileTrouble, match="no progress"):
                await movers.call(HOLD, str(tmp_path))
        pids = set(movers.stuck.pids)
        assert len(pids) == MOST_STUCK
        with pytest.raises(FileTrouble, match="have not come back from it; no more are started") as caught:
            await movers.call(ECHO.with_patience(100), "well")
        assert classify(caught.value.trouble) == Remedy.DESTINATION
        assert mine() == pids
        (tmp_path / "go").touch()
        await until(lambda: not movers.stuck.pids)
        assert await movers.call(ECHO.with_patience(100), "well") == "well"


async def test_those_left_behind_do_not_count_once_something_else_is_mounted(
    tmp_path: Path, undying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead mount that was taken away, and replaced by a living one, may never let its processes go."""
    async with pool(2 * MOST_STUCK, stall_timeout=0.2) as movers:
        for _ in range(MOST_STUCK):
            with pytest.raises(FileTrouble, match="no progress"):
                await movers.call(HOLD, str(tmp_path))
        monkeypatch.setattr(pool_module, "mounts_at", lambda paths: [1, 2])
        assert await movers.call(ECHO.with_patience(100), "well") == "well"
        (tmp_path / "go").touch()
        await until(lambda: not movers.stuck.pids)


async def test_those_left_behind_at_one_end_leave_the_other_to_work(tmp_path: Path, undying: None) -> None:
    """Four movers stuck at a dead source keep nobody from finding out how the destination is, and the reverse."""
    async with pool(2 * MOST_STUCK, stall_timeout=0.2) as movers:
        for _ in range(MOST_STUCK):
            with pytest.raises(FileTrouble, match="no progress"):
                await movers.call(HOLD_AT_SOURCE, str(tmp_path))
        assert await movers.call(ECHO_AT_DESTINATION.with_patience(100), "well") == "well"
        for operation in (ECHO_AT_SOURCE, ECHO):
            with pytest.raises(FileTrouble, match="no more are started") as caught:
                await movers.call(operation.with_patience(100), "well")
            assert caught.value.trouble.side == Side.SOURCE
        (tmp_path / "go").touch()
        await until(lambda: not movers.stuck.pids)
        assert await movers.call(ECHO_AT_SOURCE.with_patience(100), "well") == "well"


@pytest.mark.parametrize("sides", [[Side.SOURCE], [Side.DESTINATION, Side.SOURCE], [Side.SOURCE, Side.DESTINATION]])
async def test_a_hang_is_blamed_on_the_end_that_was_touched_last(sides: list[Side], tmp_path: Path) -> None:
    """An operation on both ends says which one it touches while it does: it cannot say so when it hangs there."""
    async with pool(stall_timeout=1) as movers:
        await movers.call(WHO.with_patience(100))  # it has been started by then
        with pytest.raises(FileTrouble, match="no progress") as caught:
            await movers.call(HOLD_AT, str(tmp_path), sides)
        assert caught.value.trouble.side == sides[-1]


async def test_progress_extends_the_deadline() -> None:
    """An operation may take as long as it likes, while it tells that it gets somewhere."""
    told: list[object] = []
    async with pool(stall_timeout=SHORT) as movers:
        begun = time.monotonic()
        assert await movers.call(COUNT, 10, SHORT / 5, 10, tell=told.append) == 10
        assert time.monotonic() - begun > SHORT
        assert movers.replaced == 0
    assert told == list(range(10))


async def test_progress_that_ends_does_not_extend_the_deadline_any_more() -> None:
    """What was told before a stall is kept; the stall is a trouble all the same."""
    told: list[object] = []
    async with pool(stall_timeout=SHORT) as movers:
        with pytest.raises(FileTrouble, match="no progress"):
            await movers.call(COUNT, 1000, SHORT / 5, 3, tell=told.append)
        assert told == [0, 1, 2]
        assert mine() == set()


async def test_an_operation_that_cannot_tell_its_progress_is_given_more_patience() -> None:
    """A barrier for many files takes longer than a write: the caller says by how much."""
    async with pool(stall_timeout=SHORT / 5) as movers:
        await movers.call(WHO.with_patience(20))  # the start of a process takes its time too
        assert await movers.call(COUNT.with_patience(20), 2, SHORT / 5, 0) == 2


async def test_cancellation_kills_the_mover(tmp_path: Path) -> None:
    """Nothing goes on changing files behind the back of a task that has been told to stop."""
    async with pool() as movers:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(movers.call, HOLD, str(tmp_path))
                (pid,) = await busy(tmp_path)
                scope.cancel()
        assert pid not in mine()
        assert await movers.call(WHO) != pid


async def test_a_call_that_is_cancelled_while_it_waits_for_a_mover_takes_none(tmp_path: Path) -> None:
    """Waiting costs nothing, and giving up does not either."""
    async with pool(limit=1) as movers:
        calls = Calls(movers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.call, HOLD, str(tmp_path))
            pids = await busy(tmp_path)
            with trio.move_on_after(0.01):
                await movers.call(WHO)
                raise AssertionError("the only mover was busy")
            (tmp_path / "go").touch()
        assert {await movers.call(WHO)} == pids == set(calls.answers)


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["normal", "cancelled", "error"])
async def test_leaving_the_pool_ends_every_mover(ending: str, tmp_path: Path) -> None:
    """However the pool is left, idle and busy movers are gone then, and no zombie is left of them."""
    pids: set[int] = set()
    with trio.CancelScope() as scope, contextlib.suppress(ExceptionGroup):
        async with pool() as movers, trio.open_nursery() as nursery:
            pids.add(await movers.call(WHO))
            nursery.start_soon(movers.call, HOLD, str(tmp_path))
            nursery.start_soon(movers.call, HOLD, str(tmp_path))
            pids |= await busy(tmp_path, 2)
            await movers.call(WHO)
            pids |= mine()
            assert len(pids) == 3
            if ending == "normal":
                (tmp_path / "go").touch()
            elif ending == "cancelled":
                scope.cancel()
            else:
                raise ValueError
    assert exist(pids) == set()


async def test_leaving_the_pool_ends_a_mover_that_hangs() -> None:
    """Nobody waits for an idle mover to end by itself."""
    async with pool() as movers:
        pid = await movers.call(WHO)
        os.kill(pid, signal.SIGSTOP)
    assert exist({pid}) == set()
    assert movers.stuck.pids == []


async def test_movers_get_ready_before_they_are_needed() -> None:
    """Those that were started ahead are the ones that calls get; no more are, when there are enough."""
    async with pool(3) as movers:
        movers.warm_up(2)
        ahead = mine()
        assert len(ahead) == movers.alive == 2
        movers.warm_up(2)
        assert await movers.call(WHO) in ahead
        assert mine() == ahead
    assert exist(ahead) == set()


# --- what is said -----------------------------------------------------------------------------------------------------


async def test_a_bug_in_an_operation_is_told_with_its_traceback_and_the_mover_stays() -> None:
    """A bug is no trouble with a file: it leaves as what it is, and says where it was."""
    async with pool() as movers:
        pid = await movers.call(WHO)
        with pytest.raises(MoverBug, match=r"(?s)Traceback.*in stumble.*ZeroDivisionError: no operation should"):
            await movers.call(STUMBLE)
        assert await movers.call(WHO) == pid
        assert movers.replaced == 0


async def test_an_unknown_operation_is_a_bug_too() -> None:
    """A misspelt name does not hang, and does not look like a trouble of the destination."""
    async with pool() as movers:
        with pytest.raises(MoverBug, match="KeyError"):
            await movers.call(Operation("no such operation", BOTH))


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(Side.SOURCE, "read", b"odd \xff\n name", 2**40, errno.EIO, "Input/output error"),
        Trouble(Side.DESTINATION, "fsync", b"", None, None, "found by trioft itself"),
    ],
    ids=["all-fields", "fewest-fields"],
)
async def test_a_trouble_arrives_as_it_was_raised(trouble: Trouble) -> None:
    """Operation, path, offset and errno of an error survive the way from the mover to a person."""
    async with pool() as movers:
        pid = await movers.call(WHO)
        with pytest.raises(FileTrouble) as caught:
            await movers.call(REFUSE, trouble)
        assert caught.value.trouble == trouble
        assert await movers.call(WHO) == pid


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000], ids=["empty", "one", "a-pipe-full", "many-pipes-full"])
async def test_requests_and_answers_may_be_larger_than_a_pipe(size: int) -> None:
    """Neither side waits for the other to read what it has not sent yet."""
    value = {"bytes": os.urandom(size), "none": None}
    async with pool() as movers:
        assert await movers.call(ECHO, value) == value
        assert await movers.call(ECHO, "next") == "next"


async def test_what_an_operation_prints_does_not_get_into_the_answers(capfd: pytest.CaptureFixture[str]) -> None:
    """A library that writes to standard output cannot break the conversation; what it says is kept for the worst."""
    async with pool() as movers:
        assert await movers.call(CHATTER) == "answer"
        (mover,) = movers._idle
        assert mover.last_words() == "nobody asked for this"
    assert capfd.readouterr() == ("", "")


async def test_a_mover_that_dies_leaves_its_last_words() -> None:
    """Whoever finds the trouble in a log learns from it why the process died."""
    start = "import sys; sys.exit('no module called xxhash')"
    async with Movers(1, PATIENCE, [sys.executable, "-c", start]) as movers:
        with pytest.raises(FileTrouble, match="died, twice: no module called xxhash"):
            await movers.call(WHO)


# --- what a mover is --------------------------------------------------------------------------------------------------


async def test_a_mover_inherits_no_ledger_no_lock_and_no_socket(tmp_path: Path) -> None:
    """
    A mover that hangs on a dead mount keeps nothing locked: it has its pipes, a file for its last words, and its
    slate.

    Not our standard error: who reads that, waits until the last that has it is gone.
    """
    lock = Lock(str(tmp_path / "pair.lock"))
    ledger = Ledger(str(tmp_path / "pair.sqlite"))
    with contextlib.closing(ledger), socket.create_server(("127.0.0.1", 0)) as server, ledger.transaction():
        server.set_inheritable(True)
        async with pool() as movers:
            first, second = await movers.call(WHO), 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(movers.call, HOLD, str(tmp_path))
                await busy(tmp_path)
                second = await movers.call(WHO)  # it could have inherited the pipes of the first
                (tmp_path / "go").touch()
            for pid in {first, second}:
                held = {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
                slates = [number for number, name in held.items() if name.startswith("/memfd:trioft-slate")]
                assert len(slates) == 1
                (answers,) = held.keys() - slates - {0, 1, 2}
                assert held[0].startswith("pipe:")
                assert held[1] == held[2] != os.readlink("/proc/self/fd/2")
                assert held[2].endswith(" (deleted)")
                assert held[answers].startswith("pipe:")
                assert held[0] != held[answers]
    lock.release()


def children_of_the_main_thread() -> set[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return set(map(int, file.read().split()))
    except FileNotFoundError:
        pytest.skip("this kernel does not tell the children of a thread")


async def test_a_mover_is_the_child_of_the_main_thread() -> None:
    """
    The kernel kills a mover with the *thread* that started it, so that must be one that lives as long as the agent.

    A worker thread ends after some idle seconds, and every mover that it started would die in the middle of its work.
    """
    async with pool() as movers:
        assert await movers.call(WHO) in children_of_the_main_thread()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
async def test_a_mover_has_a_session_of_its_own_and_ignores_the_signals_meant_for_the_agent(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C and a service manager's signal reach the agent, which lets a mover finish what a checkpoint needs."""
    async with pool() as movers:
        calls = Calls(movers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.call, HOLD, str(tmp_path))
            (pid,) = await busy(tmp_path)
            assert os.getsid(pid) == os.getpgid(pid) == pid
            os.kill(pid, number)
            (tmp_path / "go").touch()
        assert calls.answers == [pid]
        assert movers.replaced == 0


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a mover by hand."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("moment", ["at-once", "after-a-call", "in-the-middle-of-a-request"])
def test_a_mover_ends_when_its_pipe_closes(moment: str) -> None:
    """An agent that ends in whatever way takes its movers along, without a word of complaint."""
    request = pickle.dumps(("contains", (Place(Side.SOURCE, b"/"), Place(Side.SOURCE, b"/tmp"))), protocol=5)
    with started(child_command("movers.ops.main")) as mover:
        assert mover.stdin is not None
        assert mover.stdout is not None
        assert mover.stderr is not None
        if moment == "after-a-call":
            mover.stdin.write(LENGTH.pack(len(request)) + request)
            (size,) = LENGTH.unpack(mover.stdout.read(LENGTH.size))
            assert pickle.loads(mover.stdout.read(size)) == ("done", True)
        elif moment == "in-the-middle-of-a-request":
            mover.stdin.write(LENGTH.pack(len(request)) + request[:-1])
        mover.stdin.close()
        assert mover.wait(PATIENCE) == 0
        assert mover.stdout.read() == b""
        assert mover.stderr.read() == b""


def test_a_mover_whose_agent_is_gone_already_does_nothing() -> None:
    """An agent that dies while it starts a mover leaves no mover behind."""
    with started([part.replace(f"main({os.getpid()}", "main(1") for part in child_command("movers.ops.main")]) as mover:
        assert mover.wait(PATIENCE) == 0  # although its pipe is open


_AGENT = """
import os, sys, trio
sys.path.insert(0, sys.argv[1])
import odd_mover
from trioft.movers.pool import Movers

async def main():
    async with Movers(3, 60, odd_mover.command()) as movers, trio.open_nursery() as nursery:
        nursery.start_soon(movers.call, odd_mover.HOLD, sys.argv[2])
        nursery.start_soon(movers.call, odd_mover.COUNT, 1_000_000, 0.001, 1_000_000)
        await movers.call(odd_mover.WHO)
        await trio.sleep_forever()

trio.run(main)
"""


def test_movers_busy_or_idle_die_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    """After a kill -9 of the agent no mover goes on: it could change a partial that the next agent works on."""
    arguments = [sys.executable, "-c", _AGENT, str(TOOLS), str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL) as agent:
        try:
            wait_until(lambda: len(movers_of(agent.pid)) == 3 and any(tmp_path.glob("busy.*")))
            pids = set(movers_of(agent.pid))
        finally:
            agent.kill()
    wait_until(lambda: not exist(pids))


def imported(command: list[str]) -> tuple[set[str], str]:
    """Run a Python command; return the modules that it imports, and what it prints."""
    done = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
        timeout=PATIENCE,
    )
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE)), done.stdout


def test_a_mover_imports_only_what_its_operations_need() -> None:
    """Movers start within some tens of milliseconds: what only the agent needs is not in them."""
    modules, _ = imported(child_command("movers.ops.main"))
    assert {"trioft.movers.ops.main", "trioft.movers.ops.folder.large", "xxhash"} <= modules
    assert not modules & {
        "asyncio",
        "attr",
        "attrs",
        "cattrs",
        "json",
        "logging",
        "multiprocessing",
        "platformdirs",
        "rich",
        "site",
        "sqlite3",
        "ssl",
        "subprocess",
        "trio",
        "typer",
        "watchfiles",
        "yaml",
    }


def test_the_version_is_told_without_loading_the_agent() -> None:
    """The command line answers at once where there is nothing to transfer."""
    modules, out = imported([*TRIOFT, "--version"])
    assert out.startswith("trioft ")
    assert "typer" in modules
    assert not modules & {"trio", "rich", "attrs", "cattrs", "yaml", "sqlite3", "xxhash", "watchfiles"}
