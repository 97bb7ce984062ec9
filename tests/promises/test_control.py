"""Pause, resume, retry, cancel, other limits: what an operator asks a running agent for, over its feed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from operators import Operator, url_of
from support import Running, Site, files_of, found, make_tree, pattern, wait_until
from trioft.config.options import Config
from trioft.core.model import BLOCK_SIZE, MIB, FileState, Item
from trioft.pipeline.backlog import Backlog
from trioft.pipeline.context import Tools, why_stopped
from trioft.pipeline.outcomes import report
from trioft.state.board import Board

CONFIG = "feed: {listen: '127.0.0.1:0', control: true}\n"
NONE = "this is none of pause, resume, retry, cancel, bwlimit, transfers"


@contextmanager
def controlled(site: Site, *options: str, config: str = CONFIG) -> Iterator[tuple[Running, Operator]]:
    """An agent that may be controlled, and an operator."""
    file = site.root / "trioft.yaml"
    file.write_text(config)
    agent = site.watch("-c", str(file), *options)
    operator = Operator(int(url_of(agent).rstrip("/").rpartition(":")[2]))
    wait_until(lambda: operator.sections.get("source", {}).get("state") == "ok")
    try:
        yield agent, operator
    finally:
        operator.leave()


def test_a_pause_keeps_what_there_is_and_copies_nothing_more(site: Site) -> None:
    """The network is needed for something else: it is given up within a span, and taken again without a loss."""
    make_tree(site.source, {"large": 6 * BLOCK_SIZE})
    with controlled(site, "--bwlimit", "16MiB/s") as (agent, operator):
        operator.file("large", lambda file: file["bytes_copied"] > 0)
        assert operator.ask("pause")[0]
        wait_until(lambda: operator.sections["agent"]["paused"])

        def copied() -> int:
            return int(operator.file("large", lambda file: True)["bytes_copied"])

        def quiet() -> bool:
            before = copied()
            threading.Event().wait(1.5)
            return copied() == before

        wait_until(quiet)
        make_tree(site.source, {"small": b"1"})
        operator.file("small", lambda file: file["state"] == "copying")
        assert not (site.dest / "small").exists()
        assert operator.ask("resume") == (True, "resumed")
        agent.wait_for_file("small", "done")
        agent.wait_for_file("large", "done")
        assert files_of(site.dest) == files_of(site.source)
        done = agent.end()
        assert done.summary["bytes_resumed"] == 0, "nothing was copied again"


def test_a_paused_agent_ends_when_it_is_told_to(site: Site) -> None:
    """And what was copied by then is not copied again."""
    make_tree(site.source, {"large": 6 * BLOCK_SIZE})
    with controlled(site, "--bwlimit", "16MiB/s") as (agent, operator):
        operator.file("large", lambda file: file["bytes_copied"] > BLOCK_SIZE)
        operator.ask("pause")
        assert agent.end().code == 0
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= BLOCK_SIZE


def test_a_file_is_left_and_taken_up_again(site: Site) -> None:
    """A cancelled file fails with that reason; its partial stays, and a retry goes on from it."""
    make_tree(site.source, {"large": pattern(6 * BLOCK_SIZE, 3)})
    with controlled(site, "--bwlimit", "16MiB/s") as (agent, operator):
        file = operator.file("large", lambda file: file["bytes_verified"] > 0 or file["bytes_copied"] > 2 * BLOCK_SIZE)
        assert operator.ask("cancel", file["id"])[0]
        failed = operator.file("large", lambda file: file["state"] == "failed")
        assert "left by an operator" in failed["reason"]
        assert failed["error"]["class"] == "permanent"
        assert [name for name in os.listdir(site.dest) if name.endswith("partial")]
        assert operator.ask("cancel", file["id"]) == (False, "large is failed")
        assert operator.ask("retry", file["id"]) == (True, "large is tried again")
        agent.wait_for_file("large", "done")
        assert files_of(site.dest) == files_of(site.source)
        wait_until(lambda: file["id"] not in operator.files)


def test_a_failed_file_is_tried_again_when_somebody_has_seen_to_it(site: Site) -> None:
    """Without touching the file, and without a restart."""
    make_tree(site.source, {"a": b"mine"})
    make_tree(site.dest, {"a": b"another"})
    with controlled(site, "--if-exists", "fail") as (agent, operator):
        failed = operator.file("a", lambda file: file["state"] == "failed")
        (site.dest / "a").unlink()
        assert operator.ask("retry", failed["id"])[0]
        agent.wait_for_file("a", "done")
        assert files_of(site.dest) == {b"a": b"mine"}


def test_a_recording_that_pauses_can_be_left_too(site: Site) -> None:
    """It need not grow for that."""
    with controlled(site) as (_, operator), open(site.source / "take.mxf", "wb", buffering=0) as recording:
        recording.write(bytes(17 * MIB))
        file = operator.file("take.mxf", lambda file: file["state"] == "copying")
        assert operator.ask("cancel", file["id"])[0]
        operator.file("take.mxf", lambda file: file["state"] == "failed")


def test_a_single_file_pauses_and_goes_on_where_it_was(site: Site) -> None:
    """Others go on meanwhile, in its place; when it is resumed, what was copied of it is not copied again."""
    make_tree(site.source, {"large": 8 * BLOCK_SIZE})
    config = CONFIG + "copy: {checkpoint_time: 500ms, bwlimit: 16MiB/s, transfers: 1}\n"
    with controlled(site, config=config) as (agent, operator):
        file = operator.file("large", lambda file: file["bytes_copied"] > file["bytes_verified"] > 0)
        assert operator.ask("resume", file["id"]) == (False, "large is not paused: it is copying")
        text = "large is paused: its partial stays, and goes on when it is resumed"
        assert operator.ask("pause", file["id"]) == (True, text)
        paused = operator.file("large", lambda file: file["state"] == "waiting")
        assert (paused["reason"], paused["error"]) == ("paused by an operator", None)
        make_tree(site.source, {"other": b"1"})
        agent.wait_for_file("other", "done")
        operator.ask("bwlimit", value="off")
        assert operator.ask("resume", file["id"]) == (True, "large is resumed")
        agent.wait_for_file("large", "done")
        assert operator.ask("pause", file["id"]) == (False, "large is done")
        assert files_of(site.dest) == files_of(site.source)
        done = agent.end()
        assert done.summary["bytes"] == 8 * BLOCK_SIZE + 1, "nothing was copied again"
        assert done.summary["failed"] == 0


def test_a_file_that_is_paused_stays_so_whatever_happens_to_it(site: Site) -> None:
    """Before it is begun, and when it changes; it is copied when it is tried again, as it is then."""
    make_tree(site.source, {"first": 3 * BLOCK_SIZE})
    with controlled(site, "--bwlimit", "16MiB/s", "--transfers", "1") as (agent, operator):
        operator.file("first", lambda file: file["state"] == "copying")
        make_tree(site.source, {"second": b"old"})
        file = operator.file("second", lambda file: file["state"] == "ready")
        assert operator.ask("pause", file["id"])[0]
        operator.file("second", lambda file: file["state"] == "waiting")
        make_tree(site.source, {"second": b"new", "third": b"3"})
        agent.wait_for_file("third", "done")
        operator.file("second", lambda file: file["state"] == "waiting")
        assert not (site.dest / "second").exists()
        assert operator.ask("retry", file["id"]) == (True, "second is tried again")
        agent.wait_for_file("second", "done")
        assert files_of(site.dest) == files_of(site.source)


def test_a_recording_that_is_paused_goes_on_as_a_recording(site: Site) -> None:
    """It is followed again, from where it was, also if it has grown meanwhile."""
    with controlled(site) as (agent, operator), open(site.source / "take.mxf", "wb", buffering=0) as recording:
        recording.write(pattern(17 * MIB, 1))
        file = operator.file("take.mxf", lambda file: file["state"] == "copying" and file["bytes_copied"] > 16 * MIB)
        operator.ask("pause", file["id"])
        operator.file("take.mxf", lambda file: file["state"] == "waiting")
        recording.write(pattern(5 * MIB, 2))
        make_tree(site.source, {"other": b"1"})
        agent.wait_for_file("other", "done")
        operator.file("take.mxf", lambda file: file["state"] == "waiting")
        operator.ask("resume", file["id"])
        operator.file("take.mxf", lambda file: file["state"] == "copying")
        recording.close()
        agent.wait_for_file("take.mxf", "done")
        assert files_of(site.dest) == files_of(site.source)
        assert agent.end().summary["failed"] == 0


def test_a_file_that_is_paused_can_be_left_and_an_agent_with_one_ends(site: Site) -> None:
    """Neither waits for the other."""
    make_tree(site.source, {"a": 3 * BLOCK_SIZE, "b": 3 * BLOCK_SIZE})
    with controlled(site, "--bwlimit", "16MiB/s") as (agent, operator):
        files = {path: operator.file(path, lambda file: file["state"] == "copying") for path in "ab"}
        for file in files.values():
            operator.ask("pause", file["id"])
        for path in files:
            operator.file(path, lambda file: file["state"] == "waiting")
        assert operator.ask("cancel", files["a"]["id"])[0]
        operator.file("a", lambda file: file["state"] == "failed")
        assert agent.end().code == 0


def test_limits_are_changed_until_the_configuration_is_read_again(site: Site) -> None:
    """An operator gives the network away, or takes it, without a file; the feed says what holds."""
    make_tree(site.source, {"large": 6 * BLOCK_SIZE})
    with controlled(site, "--transfers", "2") as (agent, operator):

        def holds() -> tuple[object, object]:
            return operator.sections["agent"]["bwlimit"], operator.sections["agent"]["transfers"]

        wait_until(lambda: holds() == (None, 2))
        assert operator.ask("bwlimit", value="1MB/s") == (True, "bwlimit is 1MB/s")
        assert operator.ask("transfers", value=7) == (True, "transfers is 7")
        wait_until(lambda: holds() == (1_000_000, 7))
        agent.wait_for(lambda line: line.get("text") == "copy.bwlimit is 1MB/s, until the configuration is read again")
        table = "00:00,20MB/s Sat-12:00,20MB/s"
        assert operator.ask("bwlimit", value=table) == (True, f"bwlimit is {table}")
        wait_until(lambda: holds() == (20_000_000, 7))
        agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: holds() == (None, 2))
        agent.wait_for_file("large", "done")


def test_impossible_limits_are_refused(site: Site) -> None:
    """In the words in which the configuration is refused; nothing changes."""
    with controlled(site) as (_, operator):
        for what, value, text in (
            ("bwlimit", None, "found null, expected a rate with its unit, such as 20MiB/s, or off"),
            ("bwlimit", "20", 'found "20", expected a rate with its unit, such as 20MiB/s, or off'),
            ("bwlimit", {"a": 1}, "found a mapping, expected a rate with its unit, such as 20MiB/s, or off"),
            (
                "bwlimit",
                "8:00,off",
                'found "8:00,off", expected a time and a rate, such as 18:00,off or Mon-08:00,20MiB/s',
            ),
            ("transfers", 0, "found 0, expected a whole number from 1 to 64"),
            ("transfers", "4", 'found "4", expected a whole number from 1 to 64'),
            ("transfers", True, "found true, expected a whole number from 1 to 64"),
        ):
            assert operator.ask(what, value=value) == (False, f"{what}: {text}")
        assert (operator.sections["agent"]["bwlimit"], operator.sections["agent"]["transfers"]) == (None, 4)


@pytest.mark.parametrize(("is_paused", "pause"), [(True, 3600.0), (False, 0.0)])
async def test_a_file_that_was_resumed_before_it_had_stopped_goes_on(
    is_paused: bool, pause: float, autojump_clock: MockClock
) -> None:
    """Settling what is written takes a moment, in which an operator may change his mind."""
    board = Board()
    backlog = Backlog(board)
    pending = backlog.add(found(b"a", 9), 0)
    backlog.make_ready(pending)
    board.move(pending.entry, FileState.COPYING)
    item = Item(pending.entry.id, b"a", 0o644, pending.found.fingerprint, True)
    pending.entry.paused = True
    stopped = why_stopped(pending.entry, 4)
    assert stopped is not None
    pending.entry.paused = is_paused
    tools = cast(Tools, SimpleNamespace(board=board, config=Config()))
    report(pending, item, stopped, backlog, tools, [])
    assert (pending.entry.state, pending.entry.reason) == (FileState.WAITING, "paused by an operator")
    assert pending.due == trio.current_time() + pause


@pytest.mark.parametrize(
    ("what", "number", "text"),
    [
        ("dance", None, NONE),
        (None, None, NONE),
        (["pause"], None, NONE),
        ("retry", None, "there is no such file"),
        ("cancel", 10**9, "there is no such file"),
        ("cancel", "1", "there is no such file"),
        ("retry", True, "there is no such file"),
        ("pause", 10**9, "there is no such file"),
        ("pause", "1", "there is no such file"),
        ("resume", 0, "there is no such file"),
    ],
)
def test_what_cannot_be_done_is_answered(what: object, number: object, text: str, site: Site) -> None:
    """Each request has its answer, and none is taken for another."""
    with controlled(site) as (_, operator):
        assert operator.ask(what, number) == (False, text)
