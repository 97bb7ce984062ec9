"""The limit on the throughput of all transfers together."""

from __future__ import annotations

import trio


class Throttle:
    """
    Lets pass *rate* bytes a second (None: any) on average, first come, first served.

    Bytes are paid for before they are sent, and only by those that come after: a single transfer starts at once.
    """

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._paid_until = 0.0

    async def take(self, count: int) -> None:
        """Return when *count* bytes may be sent. When cancelled, they count as sent."""
        if self.rate is None:
            return
        starts = max(self._paid_until, trio.current_time())
        self._paid_until = starts + count / self.rate
        await trio.sleep_until(starts)
