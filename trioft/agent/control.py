"""
What an operator may ask of a running agent: pause, resume, also single files; try one again, leave one; other limits.
Only with ``feed.control``.

None of it interrupts an operation: a pause lets no more bytes pass, and what has been written settles; a file that is
to pause, or to be left, is put aside at its next span. Partials stay, and are continued.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import trio

from trioft.agent.reload import Settings, as_text
from trioft.config.options import Copy
from trioft.core.errors import show_path
from trioft.core.model import FINAL, FileState
from trioft.movers.events import Changes
from trioft.pipeline.backlog import Backlog, Pending
from trioft.pipeline.throttle import Throttle
from trioft.state.board import Board, Entry
from trioft.state.ledger import Ledger, Port

# Options of ``copy`` that an operator may change, until the configuration is read again.
_OPTIONS = {
    field.name: field.metadata["kind"] for field in attrs.fields(Copy) if field.name in ("bwlimit", "transfers")
}


class Control:
    """Does what operators ask of one job."""

    def __init__(self, board: Board, throttle: Throttle, settings: Settings) -> None:
        self._board, self._throttle, self._settings = board, throttle, settings
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

    async def obey(self, what: object, number: object, value: object, entry: Entry | None) -> tuple[bool, str]:
        """
        Do *what*, with the file *entry* where a *number* was given, or with a *value*.

        Returns whether it was done, and in words.
        """
        match what:
            case "pause" | "resume" if number is None:
                return self._pause_all() if what == "pause" else self._resume_all()
            case "pause" | "resume" | "retry" | "cancel":
                if entry is None:
                    return False, "there is no such file"
                if self._work is None:
                    return False, "there is nothing to control yet"
                backlog, changes, ledger = self._work
                if what == "retry":
                    return await self._retry(entry, backlog, changes, ledger)
                return {"pause": self._pause, "resume": self._resume, "cancel": self._cancel}[what](entry, backlog)
            case "bwlimit" | "transfers":
                return self._set(what, value)
        return False, "this is none of pause, resume, retry, cancel, bwlimit, transfers"

    def _pause_all(self) -> tuple[bool, str]:
        self._throttle.pause()
        self._board.set_paused(True)
        return True, "paused: nothing more is copied until it is resumed"

    def _resume_all(self) -> tuple[bool, str]:
        self._throttle.resume()
        self._board.set_paused(False)
        return True, "resumed"

    def _set(self, name: str, value: object) -> tuple[bool, str]:
        kind = _OPTIONS[name]
        try:
            self._settings.change("copy", **{name: kind.read(value)})
        except ValueError as error:
            return False, f"{name}: {error}"
        text = f"{name} is {as_text(kind, kind.read(value))}"
        told = f"copy.{text}, until the configuration is read again"
        self._board.notice("control", told, level="info", event="agent.limited")
        return True, text

    def _pause(self, entry: Entry, backlog: Backlog) -> tuple[bool, str]:
        path = show_path(entry.path)
        if entry.state in FINAL:
            return False, f"{path} is {entry.state}"
        entry.paused = True  # whoever works on it, or begins to, sees that before the next span
        if (pending := backlog.find(entry.id)) is not None:
            _look_at(pending, backlog)
        return True, f"{path} is paused: its partial stays, and goes on when it is resumed"

    def _resume(self, entry: Entry, backlog: Backlog) -> tuple[bool, str]:
        path = show_path(entry.path)
        if not entry.paused:
            return False, f"{path} is not paused: it is {entry.state}"
        entry.paused = False
        if (pending := backlog.find(entry.id)) is not None:
            _look_at(pending, backlog)
        return True, f"{path} is resumed"

    async def _retry(self, entry: Entry, backlog: Backlog, changes: Changes, ledger: Port) -> tuple[bool, str]:
        path = show_path(entry.path)
        pending = backlog.get(entry.path)
        if pending is not None:
            if pending.entry.state != FileState.WAITING or pending.in_work:
                return False, f"{path} is not waiting: it is {pending.entry.state}"
            self._board.remark(entry, "retried", "an operator has asked for it")
            entry.paused = False
            _look_at(pending, backlog)
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
        entry.left, entry.paused = True, False  # whoever works on it, or begins to, sees that before the next span
        _look_at(pending, backlog)
        return True, f"{path} is left; its partial stays, and goes on when it is tried again"


def _look_at(pending: Pending, backlog: Backlog) -> None:
    """Have a file that waits looked at now."""
    if pending.entry.state == FileState.WAITING and not pending.in_work:
        backlog.look_again(pending, trio.current_time())
        backlog.wake()
