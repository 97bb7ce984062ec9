"""
Signals: stop, stop now, read the configuration again; and a terminal that has gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import trio

from trioft.board import Herald
from trioft.shutdown import Shutdown


@contextlib.asynccontextmanager
async def obeyed(
    shutdowns: Callable[[], Sequence[Shutdown]], board: Herald, reload: Callable[[], Awaitable[None]]
) -> AsyncIterator[list[int]]:
    """
    Obey signals while inside. Yields those received so far that told to stop.

    The first SIGINT or SIGTERM stops the pipelines, the second ends their grace. SIGHUP has the configuration read
    again; but where it comes since the terminal has gone in which all this was started, it stops as the others do.
    """
    received: list[int] = []
    terminals = [fd for fd in range(3) if os.isatty(fd)]

    def stop(number: int) -> None:
        received.append(number)
        board.record("info", "signal.received", signal=signal.Signals(number).name)
        for shutdown in shutdowns():
            if len(received) == 1:
                shutdown.stop()
            else:
                shutdown.stop_now()

    async def watch() -> None:
        async for number in signals:
            stop(number)

    async def watch_hangups() -> None:
        async for number in hangups:
            if any(map(_has_gone, terminals)):
                _write_nowhere(terminals)
                stop(number)
            else:
                await reload()

    with (
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch_hangups)
            yield received
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def ended_by(*numbers: int) -> AsyncIterator[list[int]]:
    """What is inside is cancelled by any of these signals, and then left. Yields those received so far."""
    received: list[int] = []

    async def watch() -> None:
        async for number in signals:
            received.append(number)
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(*numbers) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield received
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def spared_from_hangups() -> Iterator[None]:
    """While inside, and from then on, let a SIGHUP pass that nobody obeys (yet, or any more): by itself it kills."""
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # child processes would inherit that it is ignored
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # to the very end, when Python has no handlers any more


def _has_gone(terminal: int) -> bool:
    poll = select.poll()
    poll.register(terminal, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _write_nowhere(terminals: list[int]) -> None:
    """What is still to be said is said to nobody: to write it to where nothing is any more would be an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in terminals:
        os.dup2(nowhere, fd)
    os.close(nowhere)
