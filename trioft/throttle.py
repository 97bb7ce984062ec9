"""The limit on the throughput of all transfers together."""

from __future__ import annotations

from collections import deque

import trio

_WINDOW = 10.0  # seconds over which a rate is measured


class Throttle:
    """
    Lets pass *rate* bytes a second (None: any) on average, first come, first served; and no more than *within* lets.

    Bytes are paid for before they are sent, and only by those that come after: a single transfer starts at once.
    """

    def __init__(self, rate: int | None, within: Throttle | None = None) -> None:
        self.rate = rate
        self._within = within
        self._paid_until = 0.0
        self._running = trio.Event()
        self._running.set()

    def pause(self) -> None:
        """Let nothing pass until it is resumed."""
        if self._running.is_set():
            self._running = trio.Event()

    def resume(self) -> None:
        """Go on."""
        self._running.set()

    async def take(self, count: int) -> None:
        """Return when *count* bytes may be sent. When cancelled, they count as sent."""
        while not self._running.is_set():
            await self._running.wait()
        if self.rate is not None:
            starts = max(self._paid_until, trio.current_time())
            self._paid_until = starts + count / self.rate
            await trio.sleep_until(starts)
        if self._within is not None:
            await self._within.take(count)


class Rate:
    """Bytes a second over the last ten seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int) -> float | None:
        """Return the rate after *total* bytes at *now*, None while there is nothing to measure it by."""
        self._samples.append((now, total))
        while now - self._samples[0][0] > _WINDOW:
            self._samples.popleft()
        began, first = self._samples[0]
        return (total - first) / (now - began) if now > began else None
