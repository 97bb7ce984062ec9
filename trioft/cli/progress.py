"""
Progress in a terminal: one line for everything, one for each file being copied. Drawn with Rich, from the board.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import trio

from trioft.core.errors import show_path
from trioft.core.model import FileState
from trioft.core.units import size_text, span_text
from trioft.pipeline.throttle import Rate
from trioft.state.board import named

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from trioft.state.board import Board, Entry
    from trioft.state.overview import Overview

_INTERVAL = 0.25  # seconds between two drawings
# Whoever writes to the terminal holds this: where a line is printed between the moment at which Rich finds out what is
# on the screen and the moment at which it draws over that, remains of the old drawing stay.
DRAWING = threading.Lock()
_FILES = 8  # active files shown; the rest is counted


async def run_display(board: Board | Overview, console: Console) -> None:
    """Draw the board on *console*. Runs until cancelled."""
    rate = Rate()
    await draw(lambda: render(board, rate.add(trio.current_time(), board.totals.bytes)), console)


async def draw(picture: Callable[[], RenderableType], console: Console) -> None:
    """
    Draw a *picture* of what is going on four times a second on *console*.

    A terminal that is not read blocks a thread, never the agent. Runs until cancelled, then leaves the screen tidy; or
    until the terminal has gone.
    """
    from rich.live import Live

    live = Live(console=console, auto_refresh=False, transient=True)
    try:
        await trio.to_thread.run_sync(_draw, live.start, abandon_on_cancel=True)
        while True:
            live.update(picture())
            await trio.to_thread.run_sync(_draw, live.refresh, abandon_on_cancel=True)
            await trio.sleep(_INTERVAL)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError), trio.move_on_after(1, shield=True):
            await trio.to_thread.run_sync(_draw, live.stop, abandon_on_cancel=True)


def _draw(draw: Callable[[], None]) -> None:
    with DRAWING:
        draw()


def render(board: Board | Overview, rate: float | None) -> RenderableType:
    """Return what the terminal shows: pure, so that a test can read it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    totals = board.totals
    done = totals.bytes + totals.bytes_resumed
    everything = done + board.pending_bytes
    head = Text()
    head.append(f"{totals.delivered:,} delivered", style="bold")
    if totals.already:
        head.append(f", {totals.already:,} already there")
    if totals.failed:
        head.append(f", {totals.failed:,} failed", style="bold red")
    more = "" if board.scanned else "+"  # the scan is still finding more
    head.append(f"; {board.pending_files:,}{more} to go ({size_text(board.pending_bytes)}{more})")
    if rate is not None:
        head.append(f"; {size_text(round(rate))}/s")
        if board.scanned and rate > 0 and board.pending_bytes:
            head.append(f", {clock(board.pending_bytes / rate)} left")
    active = [e for e in board.live.values() if e.state in (FileState.COPYING, FileState.VERIFYING)]
    table = Table.grid(padding=(0, 1))
    for entry in active[:_FILES]:
        table.add_row(
            Text(_shorten(named(entry.job, show_path(entry.path))), no_wrap=True),
            ProgressBar(total=max(1, entry.size), completed=entry.bytes_copied, width=24),
            f"{_percent(entry)}",
            f"{size_text(entry.size)}",
            _doing(entry),
        )
    lines: list[RenderableType] = [head, table]
    if everything:
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=everything, completed=done, width=60))
        lines.insert(1, bar)
    if len(active) > _FILES:
        lines.append(Text(f"and {len(active) - _FILES} more"))
    if board.paused:
        lines.append(Text("paused", style="yellow"))
    if board.waits_for:
        lines.append(Text(f"waiting: {board.waits_for}", style="yellow"))
    if board.full_in is not None:
        lines.append(Text(f"destination full in {span_text(board.full_in)}", style="yellow"))
    return Group(*lines)


def _percent(entry: Entry) -> str:
    return f"{100 * entry.bytes_copied // entry.size if entry.size else 100:3d} %"


def _doing(entry: Entry) -> str:
    """Say what is being done with a file; how far behind its recorder one is that grows."""
    if entry.state == FileState.VERIFYING and entry.bytes_compared is not None:
        return f"comparing, {100 * entry.bytes_compared // max(1, entry.size)} %"
    if entry.growing and entry.state == FileState.COPYING:
        behind = "" if entry.lag_seconds is None else f", {entry.lag_seconds:.1f} s behind"
        return f"following{behind}"
    return str(entry.state)


def _shorten(text: str, width: int = 40) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
