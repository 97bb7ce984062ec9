"""The limit on the throughput of all transfers together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import trio

_WINDOW = 10.0  # seconds over which a rate is measured


class Throttle:
    """
    Lets pass *rate* bytes a second (None: any) on average, first come, first served; and no more than *within* lets.

    Bytes are paid for before they are sent, and only by those that come after: a single transfer starts at once.
    The rate may change at any time, also for those who are waiting.
    """

    def __init__(self, rate: int | None, within: Throttle | None = None) -> None:
        self.rate = rate
        self._within = within
        self._taken = 0.0  # bytes, by all who came so far
        self._paid, self._since = 0.0, trio.current_time()  # of these, when the rate became what it is
        self._changed = trio.Event()
        self._running = trio.Event()
        self._running.set()

    def pause(self) -> None:
        """Let nothing pass until it is resumed."""
        if self._running.is_set():
            self._running = trio.Event()

    def resume(self) -> None:
        """Go on."""
        self._running.set()

    @property
    def lowest(self) -> int | None:
        """The rate that counts: this one's, or that of what this is within."""
        rates = (self.rate, None if self._within is None else self._within.lowest)
        return min((rate for rate in rates if rate is not None), default=None)

    def change(self, rate: int | None) -> None:
        """Have another rate from now on. Without one, nobody waits, and nothing is owed."""
        if rate == self.rate:
            return
        self._paid, self._since, self.rate = self._paid_by_now(), trio.current_time(), rate
        self._changed.set()
        self._changed = trio.Event()

    async def follow(self, rate: Callable[[], int | None]) -> None:
        """
        Have the rate that *rate* says, from each minute of the clock on. Runs until cancelled.

        Minute by minute, not until the next turn of a timetable: clocks are put forward and back, and machines sleep.
        """
        while True:
            self.change(rate())
            await trio.sleep(60 - time.time() % 60)

    async def take(self, count: int) -> None:
        """Return when *count* bytes may be sent. When cancelled, they count as sent."""
        while not self._running.is_set():
            await self._running.wait()
        if self.rate is not None:
            await self._wait_for(count)
        if self._within is not None:
            await self._within.take(count)

    async def _wait_for(self, count: int) -> None:
        place = max(self._taken, self._paid_by_now())
        self._taken = place + count
        while self.rate is not None:
            with trio.move_on_at(self._since + (place - self._paid) / self.rate) as waiting:
                await self._changed.wait()
            if waiting.cancelled_caught:
                return

    def _paid_by_now(self) -> float:
        """Return how many bytes are paid for; time in which nothing was sent pays for nothing that comes later."""
        return self._taken if self.rate is None else self._paid + (trio.current_time() - self._since) * self.rate


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
