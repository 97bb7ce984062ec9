"""What a service manager is told: real datagrams from a real process, and when a watchdog is left to bite."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator

import pytest
import trio

from support import Running, Site, found, make_tree
from trioft.agent.notify import Manager, describe
from trioft.agent.pulse import Pulse
from trioft.core.model import FileState
from trioft.state.board import Board

LONG = 600.0


class Listener:
    """A service manager's socket."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(30)
        self.socket.bind(name.replace("@", "\0"))
        self.seen: list[str] = []

    def wait_for(self, pattern: str) -> str:
        """Return the first message, of those not yet taken, that matches."""
        while True:
            message = self.socket.recv(4096).decode()
            self.seen.append(message)
            if re.search(pattern, message):
                return message


@contextlib.contextmanager
def listening(name: str) -> Iterator[Listener]:
    listener = Listener(name)
    try:
        yield listener
    finally:
        listener.socket.close()


def served(site: Site, monkeypatch: pytest.MonkeyPatch, name: str, *options: str, watchdog: float = 0) -> Running:
    """Start a watch as a service manager does."""
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    if watchdog:
        monkeypatch.setenv("WATCHDOG_USEC", str(int(watchdog * 1e6)))
    return site.watch(*options)


def test_a_service_manager_hears_of_start_work_life_and_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY when the ends are found, STATUS as it changes, WATCHDOG in time, STOPPING at the signal."""
    name = f"/tmp/trioft-{os.getpid()}"  # a name in tmp_path would be too long
    make_tree(site.source, {"a": b"1"})
    with listening(name) as manager:
        try:
            agent = served(site, monkeypatch, name, watchdog=1.0)
            manager.wait_for("^READY=1$")
            agent.wait_for_file("a", "done")
            manager.wait_for("^STATUS=0 waiting, 0 copying, .*1 delivered$")
            began = time.monotonic()
            for _ in range(4):
                manager.wait_for("^WATCHDOG=1$")
            assert 0.9 < time.monotonic() - began < 10  # twice as often as has to be
            agent.end()
            manager.wait_for("^STOPPING=1$")
        finally:
            os.unlink(name)


def test_a_service_that_waits_for_its_destination_is_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the destination is away the service is started, alive, and says what it waits for."""
    site.dest.rmdir()
    name = f"@trioft-away-{os.getpid()}"
    with listening(name) as manager:
        agent = served(site, monkeypatch, name, watchdog=1.0)
        manager.wait_for("^STATUS=waits: destination not usable: the destination is not there")
        for _ in range(3):
            manager.wait_for("^WATCHDOG=1$")
        assert "READY=1" in manager.seen
        site.dest.mkdir()
        manager.wait_for("^STATUS=0 waiting")
        agent.end()


def test_a_service_that_cannot_start_is_never_ready(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another trioft works on the pair already, the manager hears of an end, and of no beginning."""
    make_tree(site.source, {"a": b"1"})
    site.watch().wait_for_file("a", "done")
    name = f"@trioft-none-{os.getpid()}"
    with listening(name) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert site.run("watch", site.source, site.dest, "--state-dir", site.state).code == 5
        manager.wait_for("^STOPPING=1$")
        assert "READY=1" not in manager.seen


@pytest.mark.parametrize("name", ["/nowhere/at/all", "vsock:2:1"])
def test_a_manager_that_cannot_be_reached_does_not_matter(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the environment names, files arrive."""
    make_tree(site.source, {"a": b"1"})
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    done = site.sync()
    assert (done.code, done.err) == (0, "")


def test_commands_that_trioft_runs_do_not_speak_for_it() -> None:
    """The manager's socket is taken out of the environment, and a watchdog that is meant for another is none."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    manager = Manager(environ)
    assert (environ, manager.watchdog, manager.listens) == ({"HOME": "/"}, 1.0, True)
    manager.close()
    other = Manager({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"})
    assert (other.watchdog, other.listens) == (float("inf"), False)


async def test_a_status_is_one_line() -> None:
    """Whatever a reason holds, it cannot be taken for another message."""
    board = Board()
    board.set_destination("not usable: a\nREADY=1")
    assert describe(board, None) == r"waits: destination not usable: a\nREADY=1"
    board.set_destination(None)
    board.add(b"a", found().fingerprint)
    board.set_paused(True)
    assert describe(board, 2e6) == "paused: 1 waiting, 0 copying, 2 MB/s, 0 delivered"


# --- when a watchdog is left to bite ----------------------------------------------------------------------------------


async def test_a_scanner_that_does_not_come_back_is_not_alive(autojump_clock: object) -> None:
    """The loop turns, but the source is not looked at any more: a new start is better than that."""
    board = Board()
    pulse = Pulse(board, LONG)
    board.look_due = trio.current_time() + 10
    await trio.sleep(LONG)
    assert pulse.why_not_alive() is None
    await trio.sleep(20)
    assert pulse.why_not_alive() == "the source should have been looked at 10 min ago"
    board.set_source("not usable: away")
    assert pulse.why_not_alive() is None


async def test_files_that_are_ready_and_never_copied_are_no_life(autojump_clock: object) -> None:
    """Ready files of which none is copied, for long, with nothing that they could wait for: something is broken."""
    board = Board()
    pulse = Pulse(board, LONG)
    assert pulse.why_not_alive() is None
    await trio.sleep(2 * LONG)  # nothing to do: that is life, too
    assert pulse.why_not_alive() is None
    entry = board.add(b"a", found().fingerprint)
    board.move(entry, FileState.READY)
    assert pulse.why_not_alive() is None
    await trio.sleep(LONG + 1)
    assert pulse.why_not_alive() == "1 files are ready, and none is copied for 10 min"
    board.set_paused(True)
    assert pulse.why_not_alive() is None
    board.set_paused(False)
    assert pulse.why_not_alive() is None  # it has the same time again


async def test_a_large_file_may_take_its_time(autojump_clock: object) -> None:
    """Others may wait for hours behind a copy that goes on."""
    board = Board()
    pulse = Pulse(board, LONG)
    for path in (b"a", b"b"):
        board.move(board.add(path, found(size=10**12).fingerprint), FileState.READY)
    board.move(next(iter(board.live.values())), FileState.COPYING)
    await trio.sleep(10 * LONG)
    assert pulse.why_not_alive() is None
