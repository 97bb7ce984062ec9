"""
The agent: the composition root of a run. Opens what all jobs have in common, and keeps them apart.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence

import trio

from trioft.agent import signals
from trioft.agent.hooks import telling
from trioft.agent.job import JobRun, Shared, run_job
from trioft.agent.memory import stay_small
from trioft.agent.notify import notifying
from trioft.agent.reload import Read, Settings, reload
from trioft.config.options import AGENT_GROUPS, Config
from trioft.core.bugs import name_bug, tell_bug
from trioft.core.errors import Side, TrioftError, UnusableError, meaning_of
from trioft.state.board import Board
from trioft.state.overview import Overview


async def run_agent(
    config: Config,
    board: Board | Overview,
    *,
    once: bool,
    state_dir: str,
    accept_new: Container[Side] = (),
    display: Callable[[], Awaitable[None]] | None = None,
    served: Callable[[Sequence[JobRun]], contextlib.AbstractAsyncContextManager[object]] | None = None,
    read: Read | None = None,
    mover: Sequence[str] | None = None,
    stops: signals.Stops | None = None,
) -> int | None:
    """
    Transfer everything, ``once`` or until stopped. Returns the number of the signal that stopped it, or None.
    *stops* is where signals are kept that come too early.

    What happens is told to *board*: an overview of the jobs, where *config* has several. *display* is a task that
    shows it; *served* serves a port for the jobs while inside; *read* reads the configuration again, which a SIGHUP
    asks for, and which changes *config*. The rest is for ``JobRun`` and ``run_job``. What that raises is raised; of
    one of several jobs, it becomes the ``problem`` of its board.
    """
    shared = Shared(config)
    runs = [JobRun(config.of(one.job), one, shared, accept_new) for one in board.boards]
    common = Settings(config, AGENT_GROUPS)
    common.followers = [lambda: shared.throttle.change(config.agent.bwlimit.now())]
    everything = [*(run.settings for run in runs), common]
    stops = stops or signals.Stops()
    async with (
        signals.obeyed(stops, lambda: [run.shutdown for run in runs], board, lambda: reload(everything, read, board)),
        notifying(runs, board),
        _alongside(lambda: shared.throttle.follow(lambda: config.agent.bwlimit.now())),
        _alongside(display),
        served(runs) if served is not None else contextlib.nullcontext(),
        _alongside(stay_small),
        trio.open_nursery() as jobs,
    ):
        for run in runs:
            work = functools.partial(_work, run, once=once, state_dir=state_dir, mover=mover)
            jobs.start_soon(functools.partial(_run_with_patience, run, work, patient=not once), name=run.board.job)
    return stops.received[0] if stops.received else None


async def _work(run: JobRun, *, once: bool, state_dir: str, mover: Sequence[str] | None) -> None:
    try:
        async with telling(run.config, run.board, run.shutdown):
            await run_job(run, once=once, state_dir=state_dir, mover=mover)
    finally:
        run.settings.followers = []  # the files that these had at hand are on no board any more


async def _run_with_patience(run: JobRun, work: Callable[[], Awaitable[None]], *, patient: bool) -> None:
    """
    Do the *work* of a job. If *patient*, it is begun again after a bug, and where it is one of several also after an
    error that may pass, with growing pauses.

    Ends with the job. What ends the only job, and may not be tried again, is raised.
    """
    is_alone = run.board.job is None
    pause, longest = 0.0, run.config.retry.longest
    while True:
        began = trio.current_time()
        try:
            await work()
            return
        except Exception as error:
            meaning = meaning_of(error)
            if is_alone and (meaning is not None or not patient):
                raise
            tell_end(run.board, error)
            if not patient or not (meaning is None or isinstance(meaning, UnusableError)):
                return
        pause = run.config.retry.longer(0.0 if trio.current_time() - began > longest else pause)
        with run.shutdown.until_stopped():
            await trio.sleep(pause)
        if run.shutdown.stopped:
            return
        run.begin_again()


def tell_end(board: Board, error: Exception) -> None:
    """Say on the *board* of a job that *error* has ended it; once, as long as that stays the same."""
    meaning = meaning_of(error)
    problem = meaning or TrioftError(f"this is a bug in trioft: {name_bug(error)}")
    is_news = board.problem is None or str(board.problem) != str(problem)
    board.fail(problem)
    if is_news:
        text = "; ".join(str(problem).splitlines()) + (f" ({problem.hint})" if problem.hint else "")
        story = "" if meaning is not None else "".join(f"\n  {line}" for line in tell_bug(error))
        told = f"the job has ended: {text}{story}"
        board.notice("job", told, level="error", event="job.failed", reason=text + story)


async def contain(board: Board, work: Callable[[], Awaitable[None]]) -> None:
    """Do the *work* of one of several jobs. An error that ends it ends no other: it is told on its *board*."""
    try:
        await work()
    except Exception as error:
        tell_end(board, error)


@contextlib.asynccontextmanager
async def _alongside(task: Callable[[], Awaitable[None]] | None) -> AsyncIterator[None]:
    """Run *task*, if there is one, while inside."""
    async with trio.open_nursery() as nursery:
        if task is not None:
            nursery.start_soon(task)
        yield
        nursery.cancel_scope.cancel()
