"""
Pace: when the scanner looks through the whole source again, and what it does not say each time.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import trio

# Of a core, what scanning may take at most: where nothing but scans tells of new files, and where events do.
_SHARE, _SHARE_WITH_EVENTS = 0.05, 0.01
_RETOLD = 10_000  # paths that are remembered


class Pace:
    """When the next scan is due. A sync makes one only: *once*."""

    def __init__(self, *, once: bool) -> None:
        self.due = -math.inf
        self._once = once
        self._rested = -math.inf
        self._ended = self._cost = 0.0

    def scanned(self, cost: float) -> None:
        """A scan has ended, which has taken *cost* seconds of processor time."""
        self._ended, self._cost, self.due = trio.current_time(), cost, math.inf

    def hurry(self) -> None:
        """Something may have changed that nobody told of: scan as soon as the share of a core allows it."""
        self.due = min(self.due, self._rested)

    def at_once(self) -> None:
        """Scan now."""
        self.due = -math.inf

    def keep(self, interval: float, *, are_told: bool) -> None:
        """Scan in an *interval*, or as the share allows it by now: events, that *are_told*, may have come to an end."""
        if not self._once:
            self._rested = self._ended + self._cost / (_SHARE_WITH_EVENTS if are_told else _SHARE)
            self.due = min(self.due, max(self._rested, self._ended + interval))


class Told:
    """Paths of which something has been said, which is not said at each scan. Bounded: the oldest may be said again."""

    def __init__(self) -> None:
        self._paths: OrderedDict[bytes, None] = OrderedDict()

    def is_new(self, path: bytes) -> bool:
        """Return whether nothing has been said of *path*, and remember that from now on something has."""
        if path in self._paths:
            return False
        self._paths[path] = None
        if len(self._paths) > _RETOLD:
            self._paths.popitem(last=False)
        return True
