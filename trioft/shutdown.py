"""Shutdown: who is stopped by the first signal, and what may still be finished then."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Iterator

import trio


class Shutdown:
    """
    Two kinds of sections: those that a stop cancels, and those that outlive it, but not the grace period.

    The period begins with the stop, or, where a task is cancelled for another reason, as it enters a shielded section.
    """

    def __init__(self, grace: float) -> None:
        self.begun = trio.Event()
        self._grace = grace
        self._deadline = math.inf
        self._stopping: set[trio.CancelScope] = set()
        self._shielded: set[trio.CancelScope] = set()

    @property
    def stopped(self) -> bool:
        return self.begun.is_set()

    @contextlib.contextmanager
    def until_stopped(self) -> Iterator[None]:
        """What is inside is cancelled by a stop; then the block is left."""
        with trio.CancelScope() as section:
            self._stopping.add(section)
            if self.stopped:
                section.cancel()
            try:
                yield
            finally:
                self._stopping.discard(section)

    @contextlib.asynccontextmanager
    async def shield(self) -> AsyncIterator[None]:
        """
        What is inside is not cancelled from outside while the grace period lasts, then it is.

        On leaving, a cancellation that was waiting outside is let in.
        """
        if trio.current_effective_deadline() == -math.inf:
            self._begin_grace()
        with trio.CancelScope(shield=True, deadline=self._deadline) as section:
            self._shielded.add(section)
            try:
                yield
            finally:
                self._shielded.discard(section)
        await trio.lowlevel.checkpoint_if_cancelled()

    def stop(self) -> None:
        """Cancel the stoppable sections and begin the grace period."""
        self.begun.set()
        self._begin_grace()
        for section in self._stopping:
            section.cancel()

    def stop_now(self) -> None:
        """End the grace period as well."""
        self.stop()
        self._end_shields_at(-math.inf)

    def _begin_grace(self) -> None:
        if self._deadline == math.inf:
            self._end_shields_at(trio.current_time() + self._grace)

    def _end_shields_at(self, deadline: float) -> None:
        self._deadline = deadline
        for section in self._shielded:
            section.deadline = deadline
