"""
What a service manager is told (sd_notify): that trioft is up, what it is doing, that it is alive, that it ends.

The protocol is a datagram with some lines to a socket that the environment names: too little for a dependency.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, MutableMapping, Sequence

import trio

from trioft.agent.job import JobRun
from trioft.agent.pulse import Pulse
from trioft.core.model import FileState
from trioft.core.units import size_text, visible
from trioft.pipeline.throttle import Rate
from trioft.state.board import Board, named
from trioft.state.overview import Overview

_INTERVAL = 2.0  # seconds between two looks at what there is to tell
_FIRST_INTERVAL = 0.1  # the same, while somebody waits for the start


class Manager:
    """
    The service manager that has started this process, if one has.

    What it left in the environment is taken out: commands that trioft runs do not speak for it.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        name = environ.pop("NOTIFY_SOCKET", "")
        period, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_for_us = period.isdecimal() and pid in ("", str(os.getpid()))
        # How often it has to be told that we are alive, in seconds; half of what it asks for, as it kills after that.
        self.watchdog = int(period) / 2e6 if is_for_us and int(period) else math.inf
        self._address = b"\0" + os.fsencode(name[1:]) if name.startswith("@") else os.fsencode(name)
        self._socket = None
        if name.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.is_ready = False

    @property
    def listens(self) -> bool:
        return self._socket is not None

    def tell(self, **lines: object) -> None:
        """Send some lines. Never waits; a manager that cannot be reached misses them."""
        if self._socket is not None:
            text = "\n".join(f"{key}={value}" for key, value in lines.items())
            with contextlib.suppress(OSError):
                self._socket.sendto(os.fsencode(text), self._address)

    def ready(self) -> None:
        """The service is up: it works, or knows what it waits for."""
        if not self.is_ready:
            self.is_ready = True
            self.tell(READY=1)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


@contextlib.asynccontextmanager
async def notifying(runs: Sequence[JobRun], board: Board | Overview) -> AsyncIterator[None]:
    """Keep the service manager informed while inside; on leaving, it is told that the service ends."""
    manager = Manager(os.environ)
    try:
        async with trio.open_nursery() as nursery:
            if manager.listens:
                nursery.start_soon(_notify, manager, runs, board)
            yield
            nursery.cancel_scope.cancel()
    finally:
        manager.tell(STOPPING=1)
        manager.close()


async def _notify(manager: Manager, runs: Sequence[JobRun], board: Board | Overview) -> None:
    """Runs until cancelled."""
    rates = [Rate() for _ in runs]
    pulses = [Pulse(run.board, run.config.feed.stalled_after) for run in runs]
    told, next_sign, stalled = "", -math.inf, False
    while True:
        if all(run.storage is not None or run.board.waits_for is not None for run in runs):
            manager.ready()
        now = trio.current_time()
        text = "; ".join(
            named(run.board.job, describe(run.board, rate.add(now, run.board.totals.bytes)))
            for run, rate in zip(runs, rates, strict=True)
        )
        if text != told:
            manager.tell(STATUS=text)
            told = text
        reasons = [why for pulse in pulses if (why := pulse.why_not_alive()) is not None]
        if not reasons and now >= next_sign:
            manager.tell(WATCHDOG=1)
            next_sign = now + manager.watchdog
        if reasons and not stalled:
            board.record("error", "agent.stalled", reason="; ".join(reasons))
        stalled = bool(reasons)
        with trio.move_on_after(min(_INTERVAL if manager.is_ready else _FIRST_INTERVAL, manager.watchdog)):
            if runs[0].shutdown.stopped:
                await trio.sleep_forever()
            await runs[0].shutdown.begun.wait()
            manager.tell(STOPPING=1)


def describe(board: Board, rate: float | None) -> str:
    """Say in one line what is going on."""
    if board.waits_for is not None:
        return visible(f"waits: {board.waits_for}")
    states = Counter(entry.state for entry in board.live.values())
    copying = states[FileState.COPYING] + states[FileState.VERIFYING]
    parts = [f"{board.pending_files - copying:,} waiting", f"{copying:,} copying"]
    if rate:
        parts.append(f"{size_text(round(rate))}/s")
    parts.append(f"{board.totals.delivered:,} delivered")
    if board.totals.failed:
        parts.append(f"{board.totals.failed:,} failed")
    return ("paused: " if board.paused else "") + ", ".join(parts)
