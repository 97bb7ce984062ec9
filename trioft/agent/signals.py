"""
Signals: stop, stop now, read the configuration again; and a terminal that has gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import trio

from trioft.pipeline.shutdown import Shutdown
from trioft.state.board import Herald

_STOP = (signal.SIGINT, signal.SIGTERM)


class Stops:
    """The signals that told a run to stop: ``received``, and obeyed, or ``kept`` until somebody obeys them."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.kept: list[int] = []
        self._usual: dict[int, Any] = {}

    @contextlib.contextmanager
    def kept_safe(self) -> Iterator[None]:
        """
        While inside, no signal ends the process, also where nobody obeys any yet, or any more. SIGHUP does not from
        then on, either.
        """
        # Not ignored: child processes would inherit that.
        signal.signal(signal.SIGHUP, lambda number, frame: None)
        self._usual = {number: signal.signal(number, self._keep) for number in _STOP}
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if not self.received:
                for number in _STOP:
                    signal.signal(number, self._usual[number])

    def _keep(self, number: int, frame: object) -> None:
        self.kept.append(number)

    def ignore_more(self) -> None:
        """A run that was stopped has ended: others have no effect, as what is still to be said is said in a moment."""
        for number in self._usual if self.received else ():
            signal.signal(number, signal.SIG_IGN)


@contextlib.asynccontextmanager
async def obeyed(
    stops: Stops,
    shutdowns: Callable[[], Sequence[Shutdown]],
    board: Herald,
    reload: Callable[[], Awaitable[None]],
) -> AsyncIterator[None]:
    """
    Obey signals while inside; *stops* has those that tell to stop.

    The first SIGINT or SIGTERM stops the pipelines, the second ends their grace. SIGHUP has the configuration read
    again; but where it comes since the terminal has gone in which all this was started, it stops as the others do.
    """
    terminals = [fd for fd in range(3) if os.isatty(fd)]

    def stop(number: int) -> None:
        if len(stops.received) == 2:
            return  # it cannot be ended any sooner
        stops.received.append(number)
        board.record("info", "signal.received", signal=signal.Signals(number).name)
        for shutdown in shutdowns():
            if len(stops.received) == 1:
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

    try:
        with (
            trio.open_signal_receiver(*_STOP) as signals,
            trio.open_signal_receiver(signal.SIGHUP) as hangups,
        ):
            async with trio.open_nursery() as nursery:
                for number in stops.kept:
                    stop(number)
                stops.kept.clear()
                nursery.start_soon(watch)
                nursery.start_soon(watch_hangups)
                yield
                nursery.cancel_scope.cancel()
    finally:
        stops.ignore_more()


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
