"""The limit on throughput, on a clock that jumps."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from trioft.pipeline.throttle import Throttle


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


async def test_another_rate_holds_for_those_that_are_waiting(autojump_clock: Clock) -> None:
    """Who waits under a low limit does not wait under a high one: what is still owed is paid at the new rate."""
    throttle = Throttle(10)
    await throttle.take(100)
    begun, passed = trio.current_time(), list[float]()

    async def transfer() -> None:
        await throttle.take(100)
        passed.append(trio.current_time() - begun)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(transfer)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(5)  # half of what the first waits for is paid
        throttle.change(100)
        await trio.sleep(1)
        throttle.change(50)
    assert passed == pytest.approx([5.5, 6 + 0.5 * 2, 6 + 1.5 * 2])


async def test_without_a_limit_who_waits_goes_at_once_and_nothing_is_owed_later(autojump_clock: Clock) -> None:
    """A limit that is lifted is lifted for all; one that comes back begins anew."""
    throttle = Throttle(1)
    await throttle.take(1_000_000)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(throttle.take, 1)
        await trio.testing.wait_all_tasks_blocked()
        throttle.change(None)
    assert trio.current_time() == begun
    await trio.sleep(7)
    throttle.change(10)
    assert await elapsed(throttle, 10, 10) == pytest.approx(1)


async def test_a_limit_that_comes_holds_for_those_that_come_after(autojump_clock: Clock) -> None:
    """And those before it are paid."""
    throttle = Throttle(None)
    await throttle.take(10**15)
    throttle.change(10)
    assert await elapsed(throttle, 10, 10) == pytest.approx(1)


async def test_a_timetable_is_followed_minute_by_minute(autojump_clock: Clock) -> None:
    """Its turn comes while somebody waits, who need not wait for the rest."""
    begun = trio.current_time()
    throttle = Throttle(1)

    def rate() -> int | None:
        return 1 if trio.current_time() - begun < 3600 else None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(throttle.follow, rate)
        await throttle.take(10**9)
        await throttle.take(1)
        assert 3600 <= trio.current_time() - begun <= 3660
        nursery.cancel_scope.cancel()
