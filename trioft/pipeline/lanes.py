"""
Lanes: as many copiers of a kind as the configuration says, more or fewer as soon as it says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from trioft.core.model import Job

# Copies what it takes from these jobs, until there are no more for it.
Copier = Callable[[AsyncIterator[Job]], Awaitable[None]]


class Lane(AsyncIterator[Job]):
    """
    The copiers of one kind, *most* at a time, and the jobs that each of them takes from here when it is free.

    Where there are more than *most*, there are no jobs any more for those who wait for one, and then for each who has
    done the one that it had.
    """

    def __init__(self, kind: str, jobs: trio.MemoryReceiveChannel[Job], most: Callable[[], int]) -> None:
        self._kind, self._jobs, self._most = kind, jobs, most
        self._copiers = 0
        self._waiting: list[trio.CancelScope] = []
        self._is_over = False
        self._changed = trio.Event()

    def resize(self) -> None:
        """There may have to be more copiers, or fewer."""
        self._changed.set()

    async def run(self, begin: Callable[[], Copier]) -> None:
        """
        Have as many copiers as there should be; *begin* makes one.

        Ends when the scanner has closed its end of the jobs and the last one is done.
        """
        number = 0
        with self._jobs:
            async with trio.open_nursery() as nursery:
                while not self._is_over:
                    for scope in self._waiting[: max(0, self._copiers - self._most())]:
                        scope.cancel()
                    while self._copiers < self._most():
                        number += 1
                        self._copiers += 1
                        nursery.start_soon(begin(), self, name=f"{self._kind}-{number}")
                    await self._changed.wait()
                    self._changed = trio.Event()

    async def __anext__(self) -> Job:
        while self._copiers <= self._most():
            with trio.CancelScope() as scope:
                self._waiting.append(scope)
                try:
                    return await self._jobs.receive()
                except trio.EndOfChannel:
                    self._is_over = True
                    self._changed.set()
                    break
                finally:
                    self._waiting.remove(scope)
        self._copiers -= 1
        raise StopAsyncIteration
