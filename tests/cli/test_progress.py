"""What the terminal shows, and that a terminal can neither stop nor slow anything."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
from collections.abc import Callable

import pytest
import trio
from rich.console import Console

from support import PATIENCE, found
from trioft.cli.progress import render, run_display
from trioft.core.model import FileState
from trioft.core.units import size_text, span_text
from trioft.pipeline.throttle import Rate
from trioft.state.board import Board, Entry

S = FileState
MB = 10**6
HIDE_CURSOR, SHOW_CURSOR, ERASE_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"


def text(board: Board, rate: float | None = None) -> str:
    """Return what a terminal without colours shows."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(render(board, rate))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def head(board: Board, rate: float | None = None) -> str:
    return text(board, rate).splitlines()[0].strip()


def copying(board: Board, path: bytes, size: int, copied: int = 0) -> Entry:
    entry = board.add(path, found(path, size).fingerprint)
    for state in (S.READY, S.COPYING):
        board.move(entry, state)
    board.copied(entry, copied)
    return entry


async def test_a_recording_shows_how_far_behind_its_recorder_the_copy_is() -> None:
    """While it is followed the lag in seconds is shown; then, how much of it has been compared."""
    board = Board()
    entry = copying(board, b"take.mxf", 100 * MB, 40 * MB)
    entry.growing = True
    assert "following" in text(board)
    board.lag(entry, 3 * MB, 0.44)
    assert "following, 0.4 s behind" in text(board)
    board.move(entry, S.VERIFYING)
    board.compared(entry, None)
    board.compared(entry, 25 * MB)
    assert "comparing, 25 %" in text(board)


# --- The line for everything


async def test_while_the_scan_goes_on_the_figures_say_that_there_is_more() -> None:
    """A total that is still growing is not shown as if it were the total."""
    board = Board()
    board.add(b"a", found(size=5 * MB).fingerprint)
    assert head(board) == "0 delivered; 1+ to go (5 MB+)"
    board.scanned = True
    assert head(board) == "0 delivered; 1 to go (5 MB)"


async def test_delivered_already_there_and_failed_files_are_counted() -> None:
    """What did not work is in the first line; what did not happen is not."""
    board = Board()
    board.scanned = True
    board.totals.delivered = 1234
    assert head(board) == "1,234 delivered; 0 to go (0 B)"
    board.totals.already, board.totals.failed = 56, 7
    assert head(board) == "1,234 delivered, 56 already there, 7 failed; 0 to go (0 B)"


@pytest.mark.parametrize(
    ("rate", "scanned", "shown"),
    [
        (None, True, ""),
        (2e6, False, "; 2 MB/s"),
        (2e6, True, "; 2 MB/s, 0:50 left"),
        (1e5, True, "; 100 kB/s, 16:40 left"),
        (1e4, True, "; 10 kB/s, 2:46:40 left"),
        (0.0, True, "; 0 B/s"),
    ],
    ids=["unknown", "scanning", "seconds", "minutes", "hours", "stalled"],
)
async def test_time_that_is_left_is_shown_when_it_means_something(
    rate: float | None, scanned: bool, shown: str
) -> None:
    """Not before everything has been found, and not while nothing moves."""
    board = Board()
    board.add(b"a", found(size=100 * MB).fingerprint)
    board.scanned = scanned
    assert head(board, rate).partition(")")[2] == shown


async def test_when_all_is_done_no_time_is_left() -> None:
    """Nothing to go takes no time."""
    board = Board()
    board.scanned = True
    assert "left" not in text(board, 5.0)


# --- The files


async def test_each_file_at_work_has_a_line() -> None:
    """Name, how far it is, how large it is, and what is being done; files that wait have none."""
    board = Board()
    copying(board, b"day 1/camera.mxf", 200 * MB, 99 * MB)
    board.move(copying(board, b"sound.wav", 8 * MB, 8 * MB), S.VERIFYING)
    board.add(b"later", found(b"later").fingerprint)
    _, _, *lines = (line.split() for line in text(board).splitlines())
    (first, second) = lines
    assert (first[:2], first[-5:]) == (["day", "1/camera.mxf"], ["49", "%", "200", "MB", "copying"])
    assert (second[:1], second[-5:]) == (["sound.wav"], ["100", "%", "8", "MB", "verifying"])


@pytest.mark.parametrize(("size", "copied", "percent"), [(0, 0, "100 %"), (3, 0, "0 %"), (1000, 999, "99 %")])
async def test_a_file_is_not_complete_before_its_last_byte(size: int, copied: int, percent: str) -> None:
    """Percentages are rounded down; an empty file has nothing to copy."""
    board = Board()
    copying(board, b"a", size, copied)
    assert f" {percent} " in text(board)


async def test_more_files_than_there_is_place_for_are_counted() -> None:
    """The display does not grow with the number of transfers."""
    board = Board()
    for n in range(20):
        copying(board, b"file %d" % n, 1)
    assert text(board).count("copying") == 8
    assert "and 12 more" in text(board)


async def test_long_name_shows_its_end() -> None:
    """Takes differ in their last letters."""
    board = Board()
    copying(board, b"a folder with a rather long name/recording of the day, take 12.mxf", 1)
    assert "…" in text(board)
    assert "recording of the day, take 12.mxf" in text(board)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"[bold]x[/bold].mov", "[bold]x[/bold].mov"),
        (b"a\nb", "a\\nb"),
        (b"\x1b[2Jcls", "\\x1b[2Jcls"),
        (b"\xff.mov", "\\xff.mov"),
        (b":smile:.mov", ":smile:.mov"),
    ],
    ids=["markup", "newline", "escape", "no-utf8", "emoji-code"],
)
async def test_no_name_can_disturb_the_screen(path: bytes, shown: str) -> None:
    """A file's name is shown, never obeyed."""
    board = Board()
    copying(board, path, 1)
    assert shown in text(board)
    assert "\x1b" not in text(board)


async def test_reason_for_waiting_is_shown() -> None:
    """Promise 8: where everything waits for the destination, a person reads why."""
    board = Board()
    board.set_destination("not usable since 12:04:00: Host is down [EHOSTDOWN]")
    assert "waiting: destination not usable since 12:04:00: Host is down [EHOSTDOWN]" in text(board)
    board.set_destination(None)
    assert "waiting" not in text(board)


async def test_when_the_destination_will_be_full_is_shown() -> None:
    """An operator who glances at the screen knows whether the take will fit."""
    board = Board()
    assert "full" not in text(board)
    board.full_in = 41 * 60 + 20
    assert "destination full in 41 min" in text(board)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (41 * 60, "41 min"), (3600, "1 h 0 min"), (12_010, "3 h 20 min")],
)
def test_spans_are_read_at_a_glance(seconds: float, shown: str) -> None:
    """Two units at most: nobody asks for the seconds of an hour."""
    assert span_text(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1500, "1.5 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (999_999, "1 MB"),
        (25_000_000_000, "25 GB"),
        (1_234_567_890, "1.23 GB"),
        (999_600_000_000, "1 TB"),
        (1_234_567_000_000_000, "1,235 TB"),
    ],
)
def test_sizes_are_told_in_three_digits(count: int, shown: str) -> None:
    """As a person reads them, and never in powers of ten."""
    assert size_text(count) == shown


# --- The rate


def test_rate_is_that_of_the_last_ten_seconds() -> None:
    """Unknown at first; then what was copied lately counts, not what was copied an hour ago."""
    rate = Rate()
    assert rate.add(100.0, 500) is None
    assert rate.add(100.0, 500) is None
    assert rate.add(102.0, 900) == 200
    assert rate.add(110.0, 1500) == 100
    assert rate.add(120.0, 1500) == 0


def test_rate_remembers_no_more_than_its_window() -> None:
    """Promise 7: a display that runs for weeks holds ten seconds."""
    rate = Rate()
    for n in range(10_000):
        rate.add(n * 0.25, n)
    assert len(rate._samples) <= 41


# --- The task that draws


async def until(happened: Callable[[], object]) -> None:
    """Wait for what a thread does: it has no event to set."""
    with trio.fail_after(PATIENCE):
        while not happened():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_display_draws_and_leaves_the_screen_tidy() -> None:
    """It shows what happens while it happens; in the end the cursor is back and the lines are gone."""
    board = Board()
    screen = io.StringIO()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_display, board, Console(file=screen, force_terminal=True, width=100))
        await until(lambda: "0 delivered" in screen.getvalue())
        board.totals.delivered = 42
        await until(lambda: "42 delivered" in screen.getvalue())
        nursery.cancel_scope.cancel()
    before, _, after = screen.getvalue().rpartition(SHOW_CURSOR)
    assert before.count(HIDE_CURSOR) == 1
    assert "delivered" not in after
    assert ERASE_LINE in after


async def test_terminal_that_nobody_reads_stops_nothing() -> None:
    """Promise 6: a stopped terminal blocks a thread; the agent works on, and can end."""
    board = Board()
    limiter = trio.to_thread.current_default_thread_limiter()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    filling = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    shown = bytearray()

    def read() -> bool:
        with contextlib.suppress(BlockingIOError):
            shown.extend(os.read(reading, 1 << 20))
        return b"delivered" in shown

    with os.fdopen(writing, "w", encoding="utf-8") as screen, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_display, board, Console(file=screen, force_terminal=True, width=100))
            await until(read)
            with contextlib.suppress(BlockingIOError):
                while os.write(filling, b"\0" * 4096):
                    pass
            blocked_since = math.inf
            while trio.current_time() < blocked_since + 0.5:  # two drawings would have been made meanwhile
                await trio.sleep(0.01)
                if not limiter.borrowed_tokens:
                    blocked_since = math.inf
                elif blocked_since == math.inf:
                    blocked_since = trio.current_time()
            nursery.cancel_scope.cancel()
            cancelled = trio.current_time()
        assert trio.current_time() - cancelled < 10
        assert limiter.borrowed_tokens, "the thread still waits for the terminal"
        await until(lambda: read() and not limiter.borrowed_tokens)
    os.close(reading)
    os.close(filling)


async def test_a_display_whose_terminal_has_gone_ends_alone() -> None:
    """Nothing that can be drawn any more is a reason to copy nothing any more."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with trio.fail_after(30):
        await run_display(Board(), Console(file=Gone(), force_terminal=True))
