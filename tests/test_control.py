"""Pause, resume, retry, cancel: what an operator asks a running agent for, over its feed."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio_websocket

from support import Running, Site, files_of, make_tree, pattern, wait_until
from test_status import url_of
from trioft.model import BLOCK_SIZE, MIB


class Operator:
    """Somebody at the page: sees the files, and asks."""

    def __init__(self, port: int) -> None:
        self.files: dict[int, dict[str, Any]] = {}
        self.sections: dict[str, Any] = {}
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._port = port
        self._asked: list[dict[str, Any]] = []
        self._end = False
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()

    async def _run(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream, trio.open_nursery() as nursery:
            socket = await trio_websocket.wrap_client_stream(nursery, stream, f"127.0.0.1:{self._port}", "/feed")
            nursery.start_soon(self._read, socket)
            while not self._end:
                while self._asked:
                    await socket.send_message(json.dumps(self._asked.pop(0)))
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    async def _read(self, socket: trio_websocket.WebSocketConnection) -> None:
        try:
            while True:
                message = json.loads(await socket.get_message())
                if message["type"] == "answer":
                    self.answers.put(message)
                    continue
                self.files |= {file["id"]: file for file in message["files"]}
                for number in message["gone"]:
                    self.files.pop(number, None)
                sections = {name: fields for name, fields in message.items() if isinstance(fields, dict)}
                self.sections |= sections | {"jobs": message.get("jobs", self.sections.get("jobs"))}
        except trio_websocket.ConnectionClosed:
            self._end = True

    def ask(self, what: object, number: object = None, job: object = None) -> tuple[bool, str]:
        """Ask for something, and return what is answered to that."""
        self._asked.append({"do": what, "id": number, "job": job, "ref": what})
        answer = self.answers.get(timeout=30)
        assert answer["ref"] == what
        return answer["ok"], answer["text"]

    def file(self, path: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until a file is as *wanted*."""

        def found() -> dict[str, Any] | None:
            return next((file for file in [*self.files.values()] if file["path"] == path and wanted(file)), None)

        wait_until(found)
        file = found()
        assert file is not None
        return file

    def leave(self) -> None:
        self._end = True
        self._thread.join()


@contextmanager
def controlled(site: Site, *options: str) -> Iterator[tuple[Running, Operator]]:
    """An agent that may be controlled, and an operator."""
    config = site.root / "trioft.yaml"
    config.write_text("feed: {listen: '127.0.0.1:0', control: true}\n")
    agent = site.watch("-c", str(config), *options)
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
        assert [name for name in os.listdir(site.dest) if name.endswith(".partial")]
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


@pytest.mark.parametrize(
    ("what", "number", "text"),
    [
        ("dance", None, "this is none of pause, resume, retry, cancel"),
        (None, None, "this is none of pause, resume, retry, cancel"),
        (["pause"], None, "this is none of pause, resume, retry, cancel"),
        ("retry", None, "there is no such file"),
        ("cancel", 10**9, "there is no such file"),
        ("cancel", "1", "there is no such file"),
        ("retry", True, "there is no such file"),
    ],
)
def test_what_cannot_be_done_is_answered(what: object, number: object, text: str, site: Site) -> None:
    """Each request has its answer, and none is taken for another."""
    with controlled(site) as (_, operator):
        assert operator.ask(what, number) == (False, text)
