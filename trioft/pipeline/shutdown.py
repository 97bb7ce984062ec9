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
        self._graced: set[trio.CancelScope] = set()

    @property
    def stopped(self) -> bool:
        return self.begun.is_set()

    @property
    def is_over(self) -> bool:
        """Has the period of grace ended?"""
        return trio.current_time() >= self._deadline

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
        with self.until_grace_ends() as section:
            section.shield = True
            yield
        await trio.lowlevel.checkpoint_if_cancelled()

    @contextlib.contextmanager
    def until_grace_ends(self) -> Iterator[trio.CancelScope]:
        """What is inside is cancelled when the grace period is over; then the block is left."""
        with trio.CancelScope(deadline=self._deadline) as section:
            self._graced.add(section)
            try:
                yield section
            finally:
                self._graced.discard(section)

    def stop(self) -> None:
        """Cancel the stoppable sections and begin the grace period."""
        self.begun.set()
        self._begin_grace()
        for section in self._stopping:
            section.cancel()

    def stop_now(self) -> None:
        """End the grace period as well."""
        self.stop()
        self._end_grace_at(-math.inf)

    def _begin_grace(self) -> None:
        if self._deadline == math.inf:
            self._end_grace_at(trio.current_time() + self._grace)

    def _end_grace_at(self, deadline: float) -> None:
        self._deadline = deadline
        for section in self._graced:
            section.deadline = deadline
