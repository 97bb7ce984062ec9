"""An operator who talks to an agent through its port: where that is, what is said there, what is asked for."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
import trio_websocket

from support import Running, wait_until
from trioft.serve import server

SCHEMA = json.loads((Path(server.__file__).parent / "page" / "feed.schema.json").read_text("utf-8"))


def url_of(agent: Running) -> str:
    """Return where an agent says that its feed is."""
    text: str = agent.wait_for(lambda line: line["event"] == "feed")["text"]
    return text.rpartition(" ")[2]


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

    def ask(self, what: object, number: object = None, value: object = None, *, job: object = None) -> tuple[bool, str]:
        """Ask for something, and return what is answered to that."""
        self._asked.append({"do": what, "id": number, "value": value, "job": job, "ref": what})
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
