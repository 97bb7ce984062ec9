"""
The log: what happens, one line an event, for whoever looks into it later; as text (logfmt), or as JSON.

An event is called ``noun.past_participle``; all else is in its fields, and what is not known is left out. Its file is
rotated by whoever writes it: the thread of an ``Outlet``, so that a disk that hangs stops no copy.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable

import trio

from trioft.cli.output import Outlet, write_all
from trioft.core.errors import ConfigError, show_path
from trioft.core.model import FINAL, FileState, Wait
from trioft.state.board import Board, Entry
from trioft.state.fields import describe, describe_trouble, moment, path_fields
from trioft.state.ledger import now
from trioft.state.overview import Overview

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}

# What an error has in the log; its text is the file's reason.
_OF_AN_ERROR = ("side", "op", "errno", "offset", "hint")


class Waits:
    """What each file that waits was last said to wait for: the figures in a reason may change at every look."""

    def __init__(self) -> None:
        self._kinds: dict[int, Wait | None] = {}

    def is_new(self, entry: Entry) -> bool:
        """Has it not been said yet that this file waits for such a reason?"""
        is_new = entry.id not in self._kinds or self._kinds[entry.id] != entry.wait
        self._kinds[entry.id] = entry.wait
        return is_new

    def forget(self, entry: Entry) -> None:
        self._kinds.pop(entry.id, None)


class Log:
    """
    Writes the events of a run to *outlet*, as *form* (``text`` or ``json``).

    *level* says what they have to weigh at least; it is asked each time.
    """

    def __init__(self, outlet: Outlet, level: Callable[[], str], form: str) -> None:
        self._level = level
        self._outlet = outlet
        self._render = _as_json if form == "json" else _as_text
        self._waits = Waits()

    def attach(self, board: Board | Overview) -> None:
        for herald in board.heralds:
            herald.records.append(self.record)
        for one in board.boards:
            one.listeners.append(self.file_changed)

    def record(self, level: str, event: str, fields: dict[str, object]) -> None:
        """Write one event."""
        if self._weighs_enough(level):
            self._outlet.put(self._render(level, event, fields))

    def file_changed(self, entry: Entry) -> None:
        told = _level_and_event(entry)
        is_told_again = entry.state == FileState.WAITING and not self._waits.is_new(entry)
        if told is not None and not is_told_again and self._weighs_enough(told[0]):
            self.record(*told, _fields_of(entry))
        if entry.state in FINAL:
            self._waits.forget(entry)

    def _weighs_enough(self, level: str) -> bool:
        return LEVELS[level] >= LEVELS[self._level()]

    def end(self, seconds: float | None) -> None:
        """Have everything written that is still to be written, for *seconds* at most."""
        self._outlet.drain(seconds)


def _level_and_event(entry: Entry) -> tuple[str, str] | None:
    match entry.state:
        case FileState.COPYING if entry.strategy == "follow":
            return "info", "file.followed"
        case FileState.COPYING if entry.strategy != "bundle":  # small ones are begun and done in a moment
            return "debug", "file.begun"
        case FileState.DONE:
            return ("info", "file.delivered") if entry.reason is None else ("debug", "file.found_delivered")
        case FileState.FAILED:
            return "error", "file.failed"
        case FileState.WAITING:  # what concerns all files is told once for all
            return "debug" if entry.wait in (Wait.DESTINATION, Wait.SOURCE) else "warning", "file.postponed"
        case FileState.SKIPPED:
            return "info", "file.skipped"
        case FileState.GONE:
            return "debug", "file.vanished"
        case FileState.SETTLING if entry.reason is not None:
            return "debug", "file.held"
    return None


def _fields_of(entry: Entry) -> dict[str, object]:
    known = describe(entry)
    fields = {"job": entry.job, **path_fields("path", entry.path)}
    if entry.target not in (None, entry.path):
        fields |= {key: known[key] for key in ("dest", "dest_b64") if key in known}
    if entry.state != FileState.DONE:
        fields["reason"] = entry.reason
    fields |= {key: known[key] for key in ("size", "strategy", "closed", "digest")}
    if entry.state == FileState.SKIPPED:
        fields["size"] = entry.size or None  # nobody looked at what is no regular file
    fields["patched"] = entry.bytes_patched or None
    if entry.state in FINAL and entry.started_at is not None:
        fields["seconds"] = round(trio.current_time() - entry.started_at, 3)
    if entry.state in (FileState.WAITING, FileState.FAILED):
        fields |= {"attempt": entry.attempt or None, "retry_at": moment(entry.retry_at)}
        if entry.trouble is not None:
            trouble = describe_trouble(entry.trouble)
            fields |= {key: trouble[key] for key in _OF_AN_ERROR}
    return fields


# --- lines ------------------------------------------------------------------------------------------------------------


def _as_json(level: str, event: str, fields: dict[str, object]) -> str:
    known = {key: value for key, value in fields.items() if value is not None}
    return json.dumps({"time": now(), "level": level, "event": event, **known})


def _as_text(level: str, event: str, fields: dict[str, object]) -> str:
    words = [now(), level, event]
    words += [f"{key}={_value(value)}" for key, value in fields.items() if value is not None]
    return " ".join(words)


def _value(value: object) -> str:
    """Return *value* as one word that cannot be taken for two, and plays no tricks with a terminal."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = str(value)
    is_plain = text.isprintable() and text and not set(text) & set(' "=\\')
    return text if is_plain else json.dumps(text, ensure_ascii=not text.isprintable())


# --- the file ---------------------------------------------------------------------------------------------------------


class LogFile:
    """
    The lines of a log in a file: at *max_size* bytes it becomes ``PATH.1``, that one ``PATH.2``, up to *keep*.

    What cannot be written is lost, but counted, and told once writing works again. Others may move the file, too.

    Raises ``ConfigError`` if it cannot be written at the start.
    """

    def __init__(self, path: str, max_size: int, keep: int, form: str) -> None:
        self._path, self._max_size, self._keep = os.path.abspath(path), max_size, keep
        self._render = _as_json if form == "json" else _as_text
        self._fd = -1
        self._lost = 0
        try:
            self._open()
        except OSError as error:
            where = show_path(os.fsencode(path))
            raise ConfigError([f"log.file: cannot write {where}: {error.strerror}"], hint=_HINT) from None

    def write(self, line: str) -> None:
        """Write one line."""
        if self._lost:  # the last attempt may have left half a line
            line = "\n" + self._render("warning", "log.interrupted", {"lines": self._lost}) + "\n" + line
        data = (line + "\n").encode("utf-8", "backslashreplace")
        try:
            self._make_room(len(data))
            write_all(self._fd, data)
        except OSError:
            self._lost += 1
        else:
            self._lost = 0

    def _make_room(self, count: int) -> None:
        try:
            is_ours = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:  # moved by somebody else, such as logrotate
            self._open()
        size = os.fstat(self._fd).st_size
        if size and size + count > self._max_size:
            for number in range(self._keep - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.replace(self._path, f"{self._path}.1")
            self._open()

    def _open(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd


_HINT = "its folder must exist, and be writable for trioft's user"


def log_file_outlet(path: str, max_size: int, keep: int, form: str) -> Outlet:
    """Return what writes lines to the file *path*."""
    write: Callable[[str], None] = LogFile(path, max_size, keep, form).write
    return Outlet(write)
