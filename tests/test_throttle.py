"""The limit on throughput, on a clock that jumps."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from trioft.throttle import Throttle


async def elapsed(throttle: Throttle, *counts: int) -> float:
    """Take one after the other and return how long that took."""
    begun = trio.current_time()
    for count in counts:
        await throttle.take(count)
    return trio.current_time() - begun


async def test_without_a_rate_nobody_ever_waits(autojump_clock: Clock) -> None:
    """No limit is no limit."""
    assert await elapsed(Throttle(None), 10**15, 10**15, 0) == 0


async def test_the_first_bytes_go_at_once_and_those_after_them_wait_for_their_time(autojump_clock: Clock) -> None:
    """A single transfer starts without a wait, whatever its size; what comes next pays for it."""
    throttle = Throttle(100)
    assert await elapsed(throttle, 1_000) == 0
    assert await elapsed(throttle, 1) == pytest.approx(10)
    assert await elapsed(throttle, 1) == pytest.approx(0.01)


async def test_the_rate_is_kept_on_average(autojump_clock: Clock) -> None:
    """A hundred takes at 50 bytes a second: the last of them starts when all before it are paid for."""
    assert await elapsed(Throttle(50), *range(1, 101)) == pytest.approx(sum(range(1, 100)) / 50)


async def test_time_in_which_nothing_was_sent_is_not_saved_up(autojump_clock: Clock) -> None:
    """After a pause the limit holds from the first second on: no burst makes up for the pause."""
    throttle = Throttle(10)
    await throttle.take(10)
    await trio.sleep(3_600)
    assert await elapsed(throttle, 10, 10, 10) == pytest.approx(2)


async def test_all_transfers_share_one_limit_first_come_first_served(autojump_clock: Clock) -> None:
    """Four at a time are no faster than one, and nobody is overtaken."""
    throttle, passed = Throttle(1_000), list[tuple[int, float]]()

    async def transfer(number: int) -> None:
        await throttle.take(500)
        passed.append((number, trio.current_time() - begun))

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(transfer, number)
            await trio.testing.wait_all_tasks_blocked()
    assert [number for number, _ in passed] == [0, 1, 2, 3]
    assert [when for _, when in passed] == pytest.approx([0, 0.5, 1, 1.5])


async def test_what_is_cancelled_while_it_waits_counts_as_sent(autojump_clock: Clock) -> None:
    """A limit is never exceeded because somebody gave up."""
    throttle = Throttle(10)
    await throttle.take(10)
    with trio.move_on_after(0.5) as gave_up:
        await throttle.take(50)
    assert gave_up.cancelled_caught
    assert await elapsed(throttle, 1) == pytest.approx(5.5)


async def test_taking_lets_a_cancellation_in_even_when_there_is_nothing_to_wait_for(autojump_clock: Clock) -> None:
    """With a rate, every take is a point where a stop is noticed."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await Throttle(10**12).take(1)
    assert scope.cancelled_caught
