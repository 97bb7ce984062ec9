"""
What an operator may ask of a running agent: pause, resume, try a file again, leave one. Only with ``feed.control``.

None of it interrupts an operation: a pause lets no more bytes pass, and what has been written settles; a file that is
left fails at its next span. Partials stay, and are continued.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from trioft.backlog import Backlog
from trioft.board import Board, Entry
from trioft.errors import show_path
from trioft.events import Changes
from trioft.ledger import Ledger, Port
from trioft.model import FINAL, FileState
from trioft.throttle import Throttle


class Control:
    """Does what operators ask of one job."""

    def __init__(self, board: Board, throttle: Throttle) -> None:
        self._board, self._throttle = board, throttle
        self._work: tuple[Backlog, Changes, Port] | None = None

    @property
    def is_at_work(self) -> bool:
        """There are files at hand."""
        return self._work is not None

    @contextlib.contextmanager
    def of(self, backlog: Backlog, changes: Changes, ledger: Port) -> Iterator[None]:
        """While inside, there are files to control; a job can be paused at any time."""
        with ledger:
            self._work = backlog, changes, ledger
            try:
                yield
            finally:
                self._work = None

    async def obey(self, what: object, entry: Entry | None) -> tuple[bool, str]:
        """Do *what* (pause, resume; retry or cancel *entry*); return whether it was done, and in words."""
        match what:
            case "pause":
                self._throttle.pause()
                self._board.set_paused(True)
                return True, "paused: nothing more is copied until it is resumed"
            case "resume":
                self._throttle.resume()
                self._board.set_paused(False)
                return True, "resumed"
            case "retry" | "cancel":
                if entry is None:
                    return False, "there is no such file"
                if self._work is None:
                    return False, "there is nothing to control yet"
                return await self._retry(entry, *self._work) if what == "retry" else self._cancel(entry, self._work[0])
        return False, "this is none of pause, resume, retry, cancel"

    async def _retry(self, entry: Entry, backlog: Backlog, changes: Changes, ledger: Port) -> tuple[bool, str]:
        path = show_path(entry.path)
        pending = backlog.get(entry.path)
        if pending is not None:
            if pending.entry.state != FileState.WAITING or pending.in_work:
                return False, f"{path} is not waiting: it is {pending.entry.state}"
            self._board.remark(entry, "retried", "an operator has asked for it")
            backlog.look_again(pending, trio.current_time())
            backlog.wake()
            return True, f"{path} is tried again"
        if entry.state not in (FileState.FAILED, FileState.SKIPPED):
            return False, f"{path} is {entry.state}"
        # A failure is remembered, so that it is not tried again at each scan.
        await ledger.call(Ledger.forget_failure, entry.path)
        self._board.remark(entry, "retried", "an operator has asked for it")
        changes.add([entry.path])
        return True, f"{path} is tried again"

    def _cancel(self, entry: Entry, backlog: Backlog) -> tuple[bool, str]:
        path = show_path(entry.path)
        pending = backlog.find(entry.id)
        if pending is None or entry.state in FINAL:
            return False, f"{path} is {entry.state}"
        entry.left = True  # whoever works on it, or begins to, sees that before the next span
        if entry.state == FileState.WAITING and not pending.in_work:
            backlog.look_again(pending, trio.current_time())
            backlog.wake()
        return True, f"{path} is left; its partial stays, and goes on when it is tried again"
