"""Who is stopped by the first signal, and what may be finished then, on a clock that jumps."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from trioft.pipeline.shutdown import Shutdown

GRACE = 10.0


async def after(seconds: float, do: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    do()


async def measured(nursery_body: Callable[[trio.Nursery], Awaitable[None]]) -> float:
    """Run tasks and return how long they took."""
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery_body(nursery)
    return trio.current_time() - begun


async def test_a_stop_cancels_the_stoppable_sections_and_nothing_else(autojump_clock: Clock) -> None:
    """The pipeline ends, the services that it needs for its last words go on."""
    shutdown, ended = Shutdown(GRACE), list[str]()

    async def pipeline(name: str) -> None:
        with shutdown.until_stopped():
            await trio.sleep(60)
            raise AssertionError("it was to be stopped")
        ended.append(name)

    async def service() -> None:
        await trio.sleep(60)
        ended.append("service")

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(pipeline, "a")
        nursery.start_soon(service)
        nursery.start_soon(pipeline, "b")
        nursery.start_soon(after, 1, shutdown.stop)
        await trio.sleep(2)
        assert sorted(ended) == ["a", "b"]

    assert not shutdown.stopped
    assert await measured(body) == 60
    assert shutdown.stopped
    assert ended[2:] == ["service"]


async def test_a_section_that_is_entered_after_the_stop_is_left_at_its_first_wait(autojump_clock: Clock) -> None:
    """A signal that comes early is not forgotten."""
    shutdown, steps = Shutdown(GRACE), list[str]()
    shutdown.stop()
    with shutdown.until_stopped():
        steps.append("entered")
        await trio.sleep(1)
        steps.append("went on")
    assert steps == ["entered"]
    assert trio.current_effective_deadline() == math.inf


async def test_a_section_that_has_been_left_is_not_cancelled_by_a_later_stop(autojump_clock: Clock) -> None:
    """A stop reaches those who are inside."""
    shutdown = Shutdown(GRACE)
    with shutdown.until_stopped():
        pass
    shutdown.stop()
    await trio.sleep(1)


async def test_without_a_stop_a_shield_changes_nothing(autojump_clock: Clock) -> None:
    """What is inside may take longer than the grace period, as long as nobody stops it."""
    shutdown = Shutdown(GRACE)

    async def body(_: trio.Nursery) -> None:
        async with shutdown.shield():
            await trio.sleep(10 * GRACE)

    assert await measured(body) == 10 * GRACE


@pytest.mark.parametrize("needs", [0.1, 1.0, GRACE - 0.1], ids=["little", "some-of-it", "nearly-all-of-it"])
async def test_what_is_shielded_outlives_a_stop_if_it_ends_within_the_grace_period(
    needs: float, autojump_clock: Clock
) -> None:
    """A checkpoint is recorded, a final name is recorded; then the cancellation that waited outside is let in."""
    shutdown, steps = Shutdown(GRACE), list[str]()

    async def task() -> None:
        with shutdown.until_stopped():
            async with shutdown.shield():
                await trio.sleep(5 + needs)
                steps.append("finished")
            steps.append("went on")

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(task)
        nursery.start_soon(after, 5, shutdown.stop)
        await trio.testing.wait_all_tasks_blocked()

    assert await measured(body) == pytest.approx(5 + needs)
    assert steps == ["finished"]


async def test_what_is_shielded_is_cancelled_when_the_grace_period_is_over(autojump_clock: Clock) -> None:
    """A stop comes to an end, even if a destination never answers."""
    shutdown = Shutdown(GRACE)

    async def task(begins: float) -> None:
        with shutdown.until_stopped():
            async with shutdown.shield():
                await trio.sleep(begins)
                await trio.sleep_forever()

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(task, 0)
        nursery.start_soon(task, 7)
        nursery.start_soon(after, 5, shutdown.stop)

    assert await measured(body) == pytest.approx(5 + GRACE)


async def test_a_shield_that_is_entered_during_the_grace_period_has_what_is_left_of_it(autojump_clock: Clock) -> None:
    """Several steps share one grace period: it does not begin anew with each."""
    shutdown, steps, begun = Shutdown(GRACE), list[float](), trio.current_time()

    async def step(number: int) -> None:
        try:
            async with shutdown.shield():
                await trio.sleep(4)
                steps.append(trio.current_time() - begun)
        finally:
            if number > 1:
                await step(number - 1)

    async def task() -> None:
        with shutdown.until_stopped():
            try:
                await trio.sleep_forever()
            finally:
                await step(5)

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(task)
        nursery.start_soon(after, 1, shutdown.stop)

    assert await measured(body) == pytest.approx(1 + GRACE)
    assert steps == pytest.approx([5, 9])


async def test_a_second_stop_ends_the_grace_period_at_once(autojump_clock: Clock) -> None:
    """The second signal means now, for the shields that are there and for those that come."""
    shutdown, steps = Shutdown(GRACE), list[str]()

    async def task() -> None:
        with shutdown.until_stopped():
            try:
                async with shutdown.shield():
                    await trio.sleep_forever()
            finally:
                steps.append("first")
                async with shutdown.shield():
                    await trio.sleep(1)
                    steps.append("never")

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(task)
        nursery.start_soon(after, 5, shutdown.stop)
        nursery.start_soon(after, 7, shutdown.stop_now)

    assert await measured(body) == pytest.approx(7)
    assert steps == ["first"]


async def test_a_second_stop_without_a_first_one_stops_as_well(autojump_clock: Clock) -> None:
    """Now includes what the first signal would have done."""
    shutdown = Shutdown(GRACE)

    async def task() -> None:
        with shutdown.until_stopped():
            await trio.sleep_forever()

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(task)
        nursery.start_soon(after, 1, shutdown.stop_now)

    assert await measured(body) == pytest.approx(1)
    assert shutdown.stopped


async def test_a_stop_that_is_repeated_does_not_prolong_the_grace_period(autojump_clock: Clock) -> None:
    """The period begins once."""
    shutdown = Shutdown(GRACE)

    async def task() -> None:
        with shutdown.until_stopped():
            async with shutdown.shield():
                await trio.sleep_forever()

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(task)
        nursery.start_soon(after, 1, shutdown.stop)
        nursery.start_soon(after, 9, shutdown.stop)

    assert await measured(body) == pytest.approx(1 + GRACE)


async def test_a_task_that_is_cancelled_for_another_reason_has_a_grace_period_too(autojump_clock: Clock) -> None:
    """When a bug ends one copier, the others still record how far they came, but not for ever."""
    shutdown, steps = Shutdown(GRACE), list[str]()

    async def neighbour() -> None:
        try:
            await trio.sleep_forever()
        finally:
            async with shutdown.shield():
                await trio.sleep(1)
                steps.append("recorded")
                await trio.sleep_forever()

    async def body(nursery: trio.Nursery) -> None:
        nursery.start_soon(neighbour)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()

    assert await measured(body) == pytest.approx(3 + GRACE)
    assert steps == ["recorded"]
    assert not shutdown.stopped


async def test_an_error_inside_a_shield_leaves_as_it_is(autojump_clock: Clock) -> None:
    """A trouble of a file is told, stop or not; it is not lost to the cancellation that waits."""
    shutdown = Shutdown(GRACE)
    with shutdown.until_stopped():
        shutdown.stop()
        with pytest.raises(ZeroDivisionError):
            async with shutdown.shield():
                raise ZeroDivisionError
