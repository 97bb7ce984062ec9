"""
What a command says: JSON lines on standard output, sentences on standard error, and what an error means.
"""

from __future__ import annotations

import collections
import functools
import json
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from trioft import __version__
from trioft.cli.logs import LEVELS, Waits
from trioft.cli.output import Outlet, write_to
from trioft.cli.progress import DRAWING
from trioft.core.bugs import name_bug, tell_bug
from trioft.core.errors import TrioftError, first_of, hint_for, meaning_of, show_path
from trioft.core.model import FINAL, FileState, Wait
from trioft.core.units import size_text
from trioft.state.board import Board, Entry, Herald, named
from trioft.state.fields import describe
from trioft.state.ledger import now
from trioft.state.overview import Overview

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

# Notices that are no warnings.
_NOTICES = {"feed": "info", "reload": "info", "config": "error", "bug": "error"}

# States that a person wants to hear of; the others are steps on the way.
_WORTH_A_LINE = {
    FileState.GROWING,
    FileState.WAITING,
    FileState.DONE,
    FileState.FAILED,
    FileState.SKIPPED,
    FileState.GONE,
}


class Voice:
    """Says what happens: as JSON on stdout, and to *talk*, if that is no log, in sentences."""

    def __init__(self, level: Callable[[], str], talk: Outlet | None, *, as_json: bool) -> None:
        self._level = level  # asked at each message, as it may change
        self._data = Outlet(write_to(1)) if as_json else None
        self._talk = talk
        self._waits = Waits()
        self._short: dict[int, str] = {}  # files that wait for space, and as what that was said of them
        self._alike: collections.Counter[str] = collections.Counter()  # how many of them for each reason
        self.printing: OSError | None = None  # what ended a listing

    def end(self, seconds: float | None) -> None:
        """Have everything said that is still to be said, for *seconds* at most (None: as long as it takes)."""
        if self._data is not None:
            self._data.drain(seconds)
            if self.lost:
                self.say("warning", f"{self.lost:,} JSON lines are lost: they were not read in time")
        if (torn := self.torn) is not None:
            self.say("error", torn)
        if self._talk is not None:
            self._talk.drain(seconds)

    @property
    def torn(self) -> str | None:
        """Why what was said on standard output is not complete; None where it is, or its reader has gone."""
        error = self.printing or (None if self._data is None else self._data.error)
        if error is None or isinstance(error, BrokenPipeError):
            return None
        return f"what was written to stdout is not complete: {error.strerror}"

    @property
    def lost(self) -> int:
        """JSON lines that were not read in time."""
        return 0 if self._data is None else self._data.lost

    def attach(self, board: Board | Overview) -> None:
        for herald in board.heralds:
            herald.notices.append(functools.partial(self.notice, herald))
        for one in board.boards:
            one.listeners.append(self.file_changed)

    def say(self, level: str, text: str) -> None:
        if self._talk is None or LEVELS[level] < LEVELS[self._level()]:
            return
        prefix = f"trioft: {level}: " if level in ("warning", "error") else ""
        self._talk.put(prefix + text)

    def emit(self, event: str, **fields: object) -> None:
        if self._data is not None:
            self._data.put(json.dumps({"event": event, "time": now(), **fields}), always=event == "summary")

    def notice(self, herald: Herald, what: str, text: str) -> None:
        has_ended = what == "job" and isinstance(herald, Board) and herald.problem is not None
        self.say("error" if has_ended else _NOTICES.get(what, "warning"), named(herald.job, text))
        self.emit(what, **({} if herald.job is None else {"job": herald.job}), text=text)

    def file_changed(self, entry: Entry) -> None:
        path = named(entry.job, show_path(entry.path))
        match entry.state:
            case FileState.FAILED:
                self.say("error", f"{path}: {entry.reason}")
                if entry.trouble is not None and (hint := hint_for(entry.trouble)):
                    self.say("error", f"hint: {hint}")
            case FileState.WAITING:
                if self._waits.is_new(entry):
                    # What concerns all files is told once for all.
                    alike = self._count_alike(entry)
                    level = "debug" if entry.wait == Wait.DESTINATION or alike else "warning"
                    self.say(level, f"{path}: waiting: {entry.reason}")
                    if alike == 1:
                        self.say("warning", named(entry.job, f"other files wait for the same: {entry.reason}"))
            case FileState.SKIPPED:
                self.say("info", f"{path}: skipped: {entry.reason}")
            case FileState.DONE:
                closed = f", closed: {entry.closed}" if entry.closed else ""
                if entry.bytes_patched:
                    closed += f", {size_text(entry.bytes_patched)} copied again as its recorder had rewritten it"
                name = "" if entry.target in (None, entry.path) else f" as {show_path(entry.target)}"
                self.say("debug", f"{path}: {entry.reason or f'delivered{name}, {entry.size:,} bytes{closed}'}")
            case _ if self._is_worth_a_line(entry):
                self.say("debug", f"{path}: {entry.state}" + (f": {entry.reason}" if entry.reason else ""))
        if self._data is not None and self._is_worth_a_line(entry):
            self.emit("file", **describe(entry))
        if entry.state in FINAL:
            self._waits.forget(entry)
        if entry.state != FileState.WAITING and (reason := self._short.pop(entry.id, None)) is not None:
            self._alike[reason] -= 1

    def _count_alike(self, entry: Entry) -> int:
        """Return how many other files wait for space for the very same reason."""
        if entry.wait != Wait.SPACE or entry.id in self._short:
            return 0
        reason = self._short[entry.id] = named(entry.job, entry.reason or "")
        self._alike[reason] += 1
        return self._alike[reason] - 1

    @staticmethod
    def _is_worth_a_line(entry: Entry) -> bool:
        if entry.state == FileState.COPYING:
            return entry.strategy != "bundle"  # the files of a bundle are copied and done in a moment
        return entry.state in _WORTH_A_LINE or (entry.state == FileState.SETTLING and entry.reason is not None)


def to_stderr(screen: Console | None) -> Outlet:
    """Return what takes lines to standard error, above the progress on *screen* where there is one."""
    return Outlet(write_to(2) if screen is None else functools.partial(_print_above, screen))


def _print_above(screen: Console, text: str) -> None:
    with DRAWING:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)


def terminal() -> Console | None:
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)


def translate(error: BaseException) -> NoReturn:
    """Raise what an ended run means to a person."""
    raise meaning_to_people(error) from None


def meaning_to_people(error: BaseException) -> TrioftError:
    """Return what an ended run means to a person. A bug is told with the whole story, and ends it here."""
    known = meaning_of(error)
    if known is not None:
        return known
    if first_of(BaseExceptionGroup("", [error]), KeyboardInterrupt) is not None:
        sys.exit(128 + signal.SIGINT)
    lines = [
        f"trioft: error: this is a bug in trioft: {name_bug(error)}",
        *(f"  {line}" for line in tell_bug(error)),
        f"hint: please report it, with these lines and the version, {__version__}",
    ]
    print("\n".join(lines), file=sys.stderr)  # noqa: T201
    sys.exit(1)
