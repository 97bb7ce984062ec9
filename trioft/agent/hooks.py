"""
Hooks: programs that are told what has come of each file. They never hold up a copy, nor make one fail.

One runs at a time, in the order in which files finish. What cannot be told, as too many wait already or the run ends,
is counted and said.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import trio

from trioft.config.options import Config
from trioft.core.errors import show_path
from trioft.core.model import FileState
from trioft.movers.pool import Starts
from trioft.movers.programs import Running, run_command
from trioft.pipeline.shutdown import Shutdown
from trioft.state.board import Board, Entry
from trioft.state.fields import file_entry

# Files that wait to be told of.
WAITING = 1_000


@contextlib.asynccontextmanager
async def telling(config: Config, board: Board, shutdown: Shutdown) -> AsyncIterator[None]:
    """While inside, hooks are told of the files that finish. On leaving, waits until they are, or until grace ends."""
    async with trio.open_nursery() as nursery:
        hooks = Hooks(config, board)
        nursery.start_soon(hooks.run, shutdown)
        with contextlib.closing(hooks):
            yield


class Hooks:
    """What the hooks are to be told. Each file is told as it was when it finished."""

    def __init__(self, config: Config, board: Board) -> None:
        self._config, self._board = config.hooks, board
        self._starts = Starts(lambda text: board.set_lack("hooks", text), math.inf)
        self._words = {FileState.DONE: config.hooks.delivered, FileState.FAILED: config.hooks.failed}
        self._owed = self._lost = 0  # files to be told of still, and those for which there was no room
        self._send, self._waiting = trio.open_memory_channel[tuple[Entry, bytes]](WAITING)
        if any(self._words.values()):
            board.listeners.append(self._finished)

    def _finished(self, entry: Entry) -> None:
        if self._words.get(entry.state) is None:
            return
        try:
            self._send.send_nowait((entry, file_entry(entry, finished_at=datetime.now(UTC)).encode()))
            self._owed += 1
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._lost += 1

    def close(self) -> None:
        """No more files finish."""
        if self._finished in self._board.listeners:
            self._board.listeners.remove(self._finished)
        self._send.close()

    async def run(self, shutdown: Shutdown) -> None:
        """Tell of one file after the other. Ends when all is told and no more can come, or with the grace period."""
        with shutdown.until_grace_ends(), self._waiting:
            async for entry, text in self._waiting:
                await self._tell(entry, text)
                self._owed -= 1
                lost, self._lost = self._lost, 0
                self._say(lost, f"not run: {WAITING:,} files waited to be told of already")
        self._say(self._owed + self._lost, "not run to the end: the run ended before")

    def _say(self, count: int, what: str) -> None:
        if count:
            self._board.notice(
                "hooks", f"{count:,} {'hook was' if count == 1 else 'hooks were'} {what}", event="hook.dropped"
            )

    async def _tell(self, entry: Entry, text: bytes) -> None:
        words = self._words[entry.state]
        assert words is not None
        try:
            wrong = await run_command(
                words,
                told=text + b"\n",
                limit=self._config.timeout,
                left_behind=self._leave_behind,
                starts=self._starts,
            )
        except OSError as error:
            wrong = f"{words[0]} cannot be started: {error.strerror}"
        if wrong is not None:
            name = "delivered" if entry.state == FileState.DONE else "failed"
            self._board.notice("hooks", f"hooks.{name} of {show_path(entry.path)}: {wrong}", event="hook.failed")

    def _leave_behind(self, process: Running) -> None:
        text = f"process {process.pid} of a hook cannot be killed: it is left behind"
        self._board.notice("hooks", text, event="hook.abandoned")
