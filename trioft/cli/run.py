"""
``trioft sync`` and ``trioft watch``: a configuration becomes a run, its summary, and its exit code.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
from typing import TYPE_CHECKING

import attrs
import trio

from trioft import __version__
from trioft.agent.agent import contain, run_agent
from trioft.agent.dryrun import list_missing
from trioft.agent.reload import Read
from trioft.agent.signals import Stops
from trioft.cli.logs import Log, log_file_outlet
from trioft.cli.output import Outlet
from trioft.cli.pairs import state_dir_of
from trioft.cli.progress import run_display
from trioft.cli.voice import Voice, meaning_to_people, terminal, to_stderr
from trioft.config.options import Config
from trioft.core.errors import LockedError, Side, TrioftError, UnusableError, show_path
from trioft.core.model import Found
from trioft.core.units import size_text
from trioft.movers import descriptors
from trioft.state.board import Board, Totals, named
from trioft.state.fields import path_fields
from trioft.state.ledger import now
from trioft.state.overview import Overview

if TYPE_CHECKING:
    from collections.abc import Callable, Container


def _print(voice: Voice, text: str) -> None:
    """Print a line of data. If its reader has gone, or its disk is full, it is lost, and *voice* knows."""
    try:
        print(text, flush=True)  # noqa: T201 - this module prints
    except OSError as error:
        voice.printing = error
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
        served = None
        if settings.feed.listen is not None:
            from trioft.serve.server import serving

            served = functools.partial(serving, settings, board, once=bool(once), state_dir=state_dir)
        return await run_agent(
            settings,
            board,
            once=bool(once),
            state_dir=state_dir,
            accept_new=accept,
            display=display,
            served=served,
            read=read,
            stops=stops,
        )

    began = _monotonic()
    descriptors.raise_limit()
    gc.freeze()  # what was imported is no garbage: to look through it, the last time at the end, takes 50 ms
    try:
        with contextlib.nullcontext() if dry_run else stops.kept_safe():
            stopped_by = trio.run(run)
    except BaseException as error:
        known = meaning_to_people(error)
        seconds = _monotonic() - began
        voice.emit("summary", **_failure_of(known, boards[0].totals if boards else Totals(), seconds))
        is_plain = is_talking or settings.log.format == "text"  # else all that is read there is JSON
        if log is not None and (is_talking or not is_plain):
            log.record("error", "agent.failed", {"reason": "; ".join(str(known).split("\n")), "hint": known.hint})
        _end_output(voice, log, 1)
        # A second one by cron has nothing to say: the first one is at work.
        if is_plain and not (quiet and isinstance(known, LockedError)):
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
    code = min((_exit_code_of(one, was_stopped) for one in board.boards), key=_FROM_THE_WORST.index)
    return code if code or voice.torn is None else UnusableError.exit_code


# The exit code of several jobs is that of the one that is worst off.
_FROM_THE_WORST = (2, 3, 5, 1, 4, 0)


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
        if voice.torn is not None:
            log.record("error", "output.torn", {"reason": voice.torn})
        log.end(seconds)


def _summary_of(board: Board, was_stopped: bool) -> dict[str, object]:
    problem = None if board.problem is None else str(board.problem)
    code = _exit_code_of(board, was_stopped)
    return {"name": board.job, **_totals_of(board), "exit_code": code, "problem": problem}


def _totals_of(board: Board | Overview) -> dict[str, object]:
    return _fields_of(board.totals)


def _fields_of(totals: Totals) -> dict[str, object]:
    fields = attrs.asdict(totals)
    del fields["bytes_patched"]  # each file's line has its own
    return fields


def _failure_of(error: TrioftError, totals: Totals, seconds: float) -> dict[str, object]:
    """Return the fields of the summary of a run that *error* has ended."""
    ended = {"exit_code": error.exit_code, "problem": str(error)}
    return {**_fields_of(totals), "seconds": round(seconds, 3), **ended}


def print_failure(error: TrioftError) -> None:
    """Print the summary of a run that *error* has not let begin."""
    voice = Voice(lambda: "error", None, as_json=False)
    _print(voice, json.dumps({"event": "summary", "time": now(), **_failure_of(error, Totals(), 0.0)}))


def _monotonic() -> float:
    import time

    return time.monotonic()


def _tell_missing(as_json: bool, voice: Voice, job: str | None, found: Found) -> None:
    size = found.fingerprint.size
    if as_json:
        fields = {**path_fields("path", found.path), **path_fields("dest", found.target)}
        voice.emit("file", job=job, **fields, state="ready", reason="would be copied", size=size)
    else:
        to = f" -> {show_path(found.routed)}" if found.routed else ""
        _print(voice, f"{size:>15,}  {named(job, show_path(found.path))}{to}")


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
