"""Lanes: how many copiers there are, and that a change of mind interrupts none of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
import trio.testing

from trioft.core.model import Job
from trioft.pipeline.lanes import Lane


class Hall:
    """A lane whose copiers work on each job until they are told that it is done."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.send, jobs = trio.open_memory_channel[Job](0)
        self.lane = Lane("copier", jobs, lambda: self.most)
        self.busy: list[trio.Event] = []
        self.there = 0

    async def copier(self, jobs: AsyncIterator[Job]) -> None:
        self.there += 1
        async for _ in jobs:
            done = trio.Event()
            self.busy.append(done)
            await done.wait()
        self.there -= 1

    async def run(self) -> None:
        await self.lane.run(lambda: self.copier)

    async def resize(self, most: int) -> None:
        self.most = most
        self.lane.resize()
        await trio.testing.wait_all_tasks_blocked()

    async def hand_out(self) -> int:
        """Hand out as many jobs as are taken, and return how many copiers work now."""
        while self.send.statistics().tasks_waiting_receive:
            self.send.send_nowait(Job(()))
            await trio.testing.wait_all_tasks_blocked()
        return len(self.busy)

    async def finish(self, count: int) -> None:
        for _ in range(count):
            self.busy.pop(0).set()
        await trio.testing.wait_all_tasks_blocked()


async def test_there_are_as_many_copiers_as_there_should_be() -> None:
    """More begin at once, and those that wait for a job end at once."""
    hall = Hall(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.run)
        await trio.testing.wait_all_tasks_blocked()
        for most in (2, 5, 1, 64, 3):
            await hall.resize(most)
            assert hall.there == most
            assert hall.send.statistics().tasks_waiting_receive == most
        hall.send.close()
    assert hall.there == 0


async def test_surplus_copiers_end_after_their_job() -> None:
    """None is interrupted, none takes another, and no more are at work than should be as soon as that is possible."""
    hall = Hall(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.run)
        await trio.testing.wait_all_tasks_blocked()
        assert await hall.hand_out() == 4
        await hall.finish(1)
        await hall.resize(2)  # one waits, three work
        assert hall.there == 3
        assert await hall.hand_out() == 3
        await hall.finish(1)
        assert hall.there == 2
        assert await hall.hand_out() == 2
        await hall.finish(1)
        assert hall.there == 2
        assert await hall.hand_out() == 2
        hall.send.close()
        await hall.finish(2)
    assert hall.there == 0


async def test_a_change_of_mind_costs_nothing() -> None:
    """Who was told to end, and is needed after all before it has, stays; and there are never too many."""
    hall = Hall(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.run)
        await trio.testing.wait_all_tasks_blocked()
        hall.most = 1
        hall.lane.resize()
        await trio.lowlevel.checkpoint()
        await hall.resize(3)
        assert hall.there == 3
        assert await hall.hand_out() == 3
        hall.send.close()
        await hall.finish(3)
    assert hall.there == 0


async def test_a_lane_ends_with_its_last_job() -> None:
    """Whoever changes the number then changes nothing."""
    hall = Hall(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.run)
        await trio.testing.wait_all_tasks_blocked()
        await hall.hand_out()
        hall.send.close()
        await hall.finish(1)
        await hall.resize(8)
        assert hall.there == 1
        await hall.finish(1)
    await hall.resize(8)
    assert hall.there == 0
