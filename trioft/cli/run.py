"""
What a run says: JSON lines on stdout, talk on stderr, a summary, and the exit code.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import attrs
import trio

from trioft import __version__
from trioft.agent.agent import contain, run_agent
from trioft.agent.job import list_missing
from trioft.agent.reload import Read
from trioft.agent.signals import Stops
from trioft.cli.logs import LEVELS, Log, Waits, kind_of_wait, log_file_outlet
from trioft.cli.output import Outlet, write_to
from trioft.cli.progress import DRAWING, run_display
from trioft.config.options import Config
from trioft.core.errors import Side, TrioftError, first_of, hint_for, meaning_of, show_path
from trioft.core.model import FINAL, FileState, Found
from trioft.core.units import size_text
from trioft.serve.sections import describe, path_fields
from trioft.state.board import Board, Entry, Herald, named
from trioft.state.ledger import now
from trioft.state.overview import Overview

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from rich.console import Console

# Notices that are no warnings.
_NOTICES = {"feed": "info", "reload": "info", "config": "error"}

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

    def end(self, seconds: float | None) -> None:
        """Have everything said that is still to be said, for *seconds* at most (None: as long as it takes)."""
        if self._data is not None:
            self._data.drain(seconds)
            if self.lost:
                self.say("warning", f"{self.lost:,} JSON lines are lost: they were not read in time")
        if self._talk is not None:
            self._talk.drain(seconds)

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
                    level = "debug" if kind_of_wait(entry) == "destination" else "warning"
                    self.say(level, f"{path}: waiting: {entry.reason}")
            case FileState.SKIPPED:
                self.say("info", f"{path}: skipped: {entry.reason}")
            case FileState.DONE:
                closed = f", closed: {entry.closed}" if entry.closed else ""
                if entry.bytes_patched:
                    closed += f", {size_text(entry.bytes_patched)} copied again as its recorder had rewritten it"
                self.say("debug", f"{path}: {entry.reason or f'delivered, {entry.size:,} bytes{closed}'}")
            case _ if self._is_worth_a_line(entry):
                self.say("debug", f"{path}: {entry.state}" + (f": {entry.reason}" if entry.reason else ""))
        if self._data is not None and self._is_worth_a_line(entry):
            self.emit("file", **describe(entry))
        if entry.state in FINAL:
            self._waits.forget(entry)

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


def _print(text: str) -> None:
    """Print a line of data. If its reader has gone, or its disk is full, it is lost."""
    try:
        print(text, flush=True)  # noqa: T201 - this module prints
    except OSError:
        with contextlib.suppress(OSError):  # what is buffered must not fail again when Python flushes it at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_sync(
    settings: Config,
    read: Read | None,
    *,
    accept: Container[Side],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    progress: bool,
    dry_run: bool,
) -> int:
    """Run `trioft sync`; return its exit code. *read* reads the configuration again."""
    if dry_run:
        return _run(settings, None, None, accept, as_json, quiet, verbose, progress=False, dry_run=True)
    return _run(settings, read, True, accept, as_json, quiet, verbose, progress)


def run_watch(
    settings: Config,
    read: Read | None,
    *,
    accept: Container[Side],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    progress: bool,
) -> int:
    """Run `trioft watch`; return its exit code. *read* reads the configuration again."""
    return _run(settings, read, False, accept, as_json, quiet, verbose, progress)


def _run(
    settings: Config,
    read: Read | None,
    once: bool | None,
    accept: Container[Side],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    progress: bool,
    dry_run: bool = False,
) -> int:
    screen = terminal() if progress and not quiet else None
    fixed = "error" if quiet else "debug" if verbose else None

    def level() -> str:
        return fixed or settings.log.level

    stderr = to_stderr(screen)
    log = None if dry_run else _open_log(settings, stderr, level, watching=not once)
    is_talking = log is None or settings.log.file is not None
    voice = Voice(level, stderr if is_talking else None, as_json=as_json)
    boards: list[Board | Overview] = []
    stops = Stops()

    async def run() -> int | None:
        board = Overview(settings.jobs) if settings.jobs else Board()
        boards.append(board)
        voice.attach(board)
        state_dir = state_dir_of(settings)
        if dry_run:
            for one in board.boards:
                tell = functools.partial(_tell_missing, as_json, voice, one.job)
                look = functools.partial(list_missing, settings.of(one.job), tell, one, state_dir=state_dir)
                await (look() if one.job is None else contain(one, look))
            return None
        if log is not None:
            log.attach(board)
            board.record("info", "agent.started", **_describe_run(settings, bool(once)))
        display = None if screen is None else lambda: run_display(board, screen)
        return await run_agent(
            settings,
            board,
            once=bool(once),
            state_dir=state_dir,
            accept_new=accept,
            display=display,
            read=read,
            stops=stops,
        )

    began = _monotonic()
    gc.freeze()  # what was imported is no garbage: to look through it, the last time at the end, takes 50 ms
    try:
        with contextlib.nullcontext() if dry_run else stops.kept_safe():
            stopped_by = trio.run(run)
    except BaseException as error:
        known = _meaning_of(error)
        is_plain = is_talking or settings.log.format == "text"  # else all that is read there is JSON
        if log is not None and (is_talking or not is_plain):
            log.record("error", "agent.failed", {"reason": "; ".join(str(known).split("\n")), "hint": known.hint})
        _end_output(voice, log, 1)
        if is_plain:
            raise known from None
        return known.exit_code
    board = boards[0]
    seconds = _monotonic() - began
    was_stopped = stopped_by is not None and not once  # a watch, as is its way
    jobs = {"jobs": [_summary_of(one, was_stopped) for one in board.boards]} if settings.jobs else {}
    if log is not None:
        log.record("info", "agent.stopped", {**attrs.asdict(board.totals), "seconds": round(seconds, 3)})
    voice.emit("summary", **_totals_of(board), seconds=round(seconds, 3), **jobs)
    for one in board.boards:
        is_talkative = verbose or screen is not None
        _say_summary(voice, one, seconds, settings.of(one.job).copy.verify, talkative=is_talkative)
    if stopped_by is not None and once:
        voice.say("warning", "interrupted; start the same command again and it goes on where it stopped")
    # Whoever was told to end does not wait for a slow reader.
    _end_output(voice, log, None if stopped_by is None else 1)
    if stopped_by is not None and once:
        return 128 + stopped_by
    return min((_exit_code_of(one, was_stopped) for one in board.boards), key=_FROM_THE_WORST.index)


# The exit code of several jobs is that of the one that is worst off.
_FROM_THE_WORST = (2, 3, 1, 4, 0)


def _exit_code_of(board: Board, was_stopped: bool) -> int:
    """Return the exit code of one job; *was_stopped* says that it was a watch, ended by a signal."""
    if board.problem is not None:
        return board.problem.exit_code
    if was_stopped:
        return 0
    if board.totals.failed:
        return 1
    return 4 if board.totals.busy else 0


def _open_log(settings: Config, stderr: Outlet, level: Callable[[], str], *, watching: bool) -> Log | None:
    """Return the log of this run, if there is one. Raises ``ConfigError``."""
    log = settings.log
    if log.file is not None:
        outlet = log_file_outlet(log.file, log.max_size, log.keep, log.format)
        return Log(outlet, lambda: settings.log.level, log.format)
    return Log(stderr, level, log.format) if watching or log.format == "json" else None


def _describe_run(settings: Config, once: bool) -> dict[str, object]:
    return {
        "version": __version__,
        "pid": os.getpid(),
        "mode": "sync" if once else "watch",
        **({"jobs": ",".join(settings.jobs)} if settings.jobs else _describe_job(settings)),
    }


def _describe_job(settings: Config) -> dict[str, object]:
    return {
        **path_fields("source", os.fsencode(os.path.abspath(settings.source.path or ""))),
        **path_fields("destination", os.fsencode(os.path.abspath(settings.destination.path or ""))),
        "verify": settings.copy.verify,
        "on_success": str(settings.copy.on_success),
    }


def _end_output(voice: Voice, log: Log | None, seconds: float | None) -> None:
    """Have everything said that is still to be said, for *seconds* at most (None: as long as it takes)."""
    voice.end(seconds)
    if log is not None:
        if voice.lost:
            log.record("warning", "output.lost", {"lines": voice.lost})
        log.end(seconds)


def _summary_of(board: Board, was_stopped: bool) -> dict[str, object]:
    problem = None if board.problem is None else str(board.problem)
    code = _exit_code_of(board, was_stopped)
    return {"name": board.job, **_totals_of(board), "exit_code": code, "problem": problem}


def _totals_of(board: Board | Overview) -> dict[str, object]:
    totals = attrs.asdict(board.totals)
    del totals["bytes_patched"]  # each file's line has its own
    return totals


def _monotonic() -> float:
    import time

    return time.monotonic()


def terminal() -> Console | None:
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)


def state_dir_of(settings: Config) -> str:
    if settings.state.dir is not None:
        return os.path.abspath(os.path.expanduser(settings.state.dir))
    import platformdirs

    return platformdirs.user_state_dir("trioft")


def _tell_missing(as_json: bool, voice: Voice, job: str | None, found: Found) -> None:
    size = found.fingerprint.size
    if as_json:
        fields = {**path_fields("path", found.path), **path_fields("dest", found.target)}
        voice.emit("file", job=job, **fields, state="ready", reason="would be copied", size=size)
    else:
        to = f" -> {show_path(found.routed)}" if found.routed else ""
        _print(f"{size:>15,}  {named(job, show_path(found.path))}{to}")


def _say_summary(voice: Voice, board: Board, seconds: float, verify: str, *, talkative: bool) -> None:
    totals = board.totals
    resumed = f", {size_text(totals.bytes_resumed)} resumed" if totals.bytes_resumed else ""
    parts = [f"{totals.delivered:,} delivered and verified ({verify}): {size_text(totals.bytes)} copied{resumed}"]
    for count, word in (
        (totals.already, "already there"),
        (totals.skipped, "skipped"),
        (totals.busy, "not complete yet, left for the next run"),
        (totals.failed, "failed"),
    ):
        if count:
            parts.append(f"{count:,} {word}")
    text = named(board.job, f"{', '.join(parts)} in {seconds:.1f} s")
    if board.problem is not None:
        voice.say("error", f"{text}; then it ended: {board.problem}")
    elif totals.failed:
        voice.say("error", text)
    elif totals.busy:
        voice.say("warning", text)
    elif talkative:
        voice.say("info", text)


def translate(error: BaseException) -> NoReturn:
    """Raise what an ended run means to a person."""
    raise _meaning_of(error) from None


def _meaning_of(error: BaseException) -> TrioftError:
    """Return what an ended run means to a person. A bug is told with the whole story, and ends it here."""
    known = meaning_of(error)
    if known is not None:
        return known
    if first_of(BaseExceptionGroup("", [error]), KeyboardInterrupt) is not None:
        sys.exit(128 + signal.SIGINT)
    traceback.print_exception(error)
    print(  # noqa: T201
        "trioft: error: this is a bug in trioft. Nothing is lost: the ledger is closed, partials are resumable.",
        file=sys.stderr,
    )
    sys.exit(1)
