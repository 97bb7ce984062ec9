"""
The agent: the composition root of a run. Opens the nurseries that all have in common.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence

import trio

from trioft import signals
from trioft.board import Board
from trioft.config import Config
from trioft.errors import Side
from trioft.job import JobRun, run_job
from trioft.memory import stay_small
from trioft.notify import notifying
from trioft.settings import Read


async def run_agent(
    config: Config,
    board: Board,
    *,
    once: bool,
    state_dir: str,
    accept_new: Container[Side] = (),
    display: Callable[[], Awaitable[None]] | None = None,
    read: Read | None = None,
    mover: Sequence[str] | None = None,
) -> int | None:
    """
    Transfer everything, ``once`` or until stopped. Returns the number of the signal that stopped it, or None.

    What happens is told to *board*. *display* is a task that shows it; *read* reads the configuration again, which a
    SIGHUP asks for, and which changes *config*. The rest is for ``run_job``, and it raises what that raises.
    """
    run = JobRun(config, board, read)
    async with (
        signals.obeyed(run.shutdown, run.settings, run.board) as received,
        notifying([run]),
        _alongside(display),
        _served(run, once, state_dir),
        _alongside(stay_small),
    ):
        await run_job(run, once=once, state_dir=state_dir, accept_new=accept_new, mover=mover)
    return received[0] if received else None


@contextlib.asynccontextmanager
async def _served(run: JobRun, once: bool, state_dir: str) -> AsyncIterator[None]:
    """Serve the feed while inside, if there is to be one; also while the ends are still waited for."""
    if run.config.feed.listen is None:
        yield
        return
    from trioft.server import serving

    async with serving(run, once, state_dir):
        yield


@contextlib.asynccontextmanager
async def _alongside(task: Callable[[], Awaitable[None]] | None) -> AsyncIterator[None]:
    """Run *task*, if there is one, while inside."""
    async with trio.open_nursery() as nursery:
        if task is not None:
            nursery.start_soon(task)
        yield
        nursery.cancel_scope.cancel()
