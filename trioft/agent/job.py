"""
A job: one source and one destination, from finding the ends to the last file. Everything that it has of its own.

``run_job`` is the diagram of the program. It never touches the source or the destination: movers do.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import AsyncIterator, Container, Sequence
from typing import NamedTuple

import attrs
import trio

from trioft.agent.control import Control
from trioft.agent.reload import Settings
from trioft.config.options import JOB_GROUPS, Config
from trioft.config.policy import how_to_copy
from trioft.core.errors import Side
from trioft.core.manifest import sum_length
from trioft.core.model import BUNDLE_BYTES, BUNDLE_FILE_SIZE, BUNDLE_FILES, Ends, Job
from trioft.movers.client import Destination, Source
from trioft.movers.events import Changes, run_events
from trioft.movers.pool import Call, Movers, Starts, Stuck
from trioft.movers.programs import check_programs
from trioft.pipeline.backlog import Backlog
from trioft.pipeline.claiming import Claiming
from trioft.pipeline.context import Owners, Tools
from trioft.pipeline.copier import run_copier
from trioft.pipeline.ends import Pair, check_ends, find_ends, with_patience
from trioft.pipeline.lanes import Copier, Lane
from trioft.pipeline.lister import Lister
from trioft.pipeline.scanner import Scanner
from trioft.pipeline.shutdown import Shutdown
from trioft.pipeline.storage import Storage
from trioft.pipeline.sweeper import clear_up, clear_up_once, sweep
from trioft.pipeline.throttle import Throttle
from trioft.pipeline.volumes import Volumes
from trioft.state import origins, proofs, unlisted
from trioft.state.board import Board
from trioft.state.claims import Claims, are_needed
from trioft.state.journal import Journal
from trioft.state.keeper import Patience, run_ledger
from trioft.state.ledger import Ledger, forget_old_history, ledger_path, open_port
from trioft.state.lock import Lock
from trioft.state.neighbours import Neighbours
from trioft.state.volumes import volumes_of

# Seconds that a sync waits for what the agent itself lacks: processes, its ledger. A watch waits as long as it takes.
_SYNC_PATIENCE = 60.0
# Seconds that a probe of the destination, which is under way at the end, has to finish.
_PROBE_ENDS = 0.5
# Requests that may wait for the ledger: one for each task that could send one, with as many copiers as there may be.
_REQUESTS = 260
# Seconds that a sync, whose files are all delivered, waits for the search for orphans; longer if it took longer.
_SWEEP_AT_LEAST = 5


class _Limits(NamedTuple):
    """How many movers each pool of a job may have."""

    looking: int
    probing: int
    copying: int
    following: int


def _mover_limits(config: Config) -> _Limits:
    return _Limits(
        looking=3,  # so that looking never waits for a copy: for scans, and for looks at files that grow
        probing=2,  # one for each end: what hangs at the one keeps nobody from finding out how the other is
        copying=config.copy.movers,
        # Recordings never wait behind a backlog. Two at least, so that none waits for another's barrier.
        following=max(2, config.copy.movers),
    )


def movers_of(config: Config) -> int:
    """Return how many movers a job may have."""
    return sum(_mover_limits(config))


class Shared:
    """What all jobs of an agent have in common: limits."""

    def __init__(self, config: Config) -> None:
        self.throttle = Throttle(config.agent.bwlimit.now())
        transfers = config.agent.transfers
        self.places = None if transfers is None else trio.CapacityLimiter(transfers)


class JobRun:
    """A job as it runs: what it is, and what others may see of it and ask of it."""

    def __init__(
        self, config: Config, board: Board, shared: Shared | None = None, accept_new: Container[Side] = ()
    ) -> None:
        self.config, self.board, self.accept_new = config, board, accept_new
        self.shared = shared or Shared(config)
        self.settings = Settings(config, JOB_GROUPS, board.job)
        self.shutdown = Shutdown(config.state.shutdown_grace)
        self.throttle = Throttle(config.copy.bwlimit.now(), self.shared.throttle)
        self.stuck = Stuck(lambda text: board.notice("mover", text, event="mover.abandoned"))
        self.control = Control(board, self.throttle, self.settings)
        self.journal = Journal(board)
        self.pools: tuple[Movers, ...] = ()
        self.changes: Changes | None = None
        self.storage: Storage | None = None  # there is none while the ends have not been found
        self.ledger: str | None = None  # its file, as soon as there is one

    @property
    def state(self) -> str:
        """Say how it goes, in a word: starting, running, failed, ended."""
        if self.board.problem is not None:
            return "failed"
        if self.control.is_at_work:
            return "running"
        return "starting" if self.storage is None else "ended"

    def found(self, storage: Storage, changes: Changes) -> None:
        """The ends have been found, and are usable."""
        had_ended = self.board.problem is not None
        self.storage, self.changes, self.board.problem = storage, changes, None
        if had_ended:
            self.board.notice("job", "the job is at work again", level="info", event="job.resumed")
        self.accept_new = ()  # it was meant for the start, not for what may be mounted there later

    def begin_again(self) -> None:
        """It has ended with an error, and is to be run once more."""
        self.shutdown = Shutdown(self.config.state.shutdown_grace)  # the period of grace of the other one is over
        self.storage = None


async def run_job(run: JobRun, *, once: bool, state_dir: str, mover: Sequence[str] | None = None) -> None:
    """
    Transfer everything, ``once`` or until stopped. *mover* is another command that starts a mover.

    An end that is elsewhere than in earlier runs is used only if ``accept_new`` says so.

    Raises ``TrioftError`` where the ends, the configuration or the ledger do not allow to work. A destination that is
    away, or not the right one, is waited for if not ``once``.
    """
    check_programs(run.config)
    config, board, shutdown, stuck = run.config, run.board, run.shutdown, run.stuck
    stall = config.copy.stall_timeout
    starts = Starts(lambda text: board.set_lack("processes", text), _SYNC_PATIENCE if once else math.inf)
    limits = _mover_limits(config)
    async with (
        Movers(limits.looking, stall, mover, stuck, starts) as looking,
        Movers(limits.probing, stall, mover, stuck, starts) as probing,
        Movers(limits.copying, stall, mover, stuck, starts) as copying,
        Movers(limits.following, stall, mover, stuck, starts) as following,
    ):
        run.pools = (looking, probing, copying, following)
        looking.warm_up(2)  # one for the ends; both, a moment later, for the scan and the sweeper
        with shutdown.until_stopped():
            pair = await with_patience(
                lambda: find_ends(config, looking.call, state_dir), config, board, patient=not once
            )
        if shutdown.stopped:
            return
        copying.warm_up(1)
        stuck.paths = {Side.SOURCE: pair.source.path, Side.DESTINATION: pair.destination.path}
        patience = Patience(
            lambda waited: not shutdown.is_over and (not once or waited < _SYNC_PATIENCE),
            lambda text: board.set_lack("ledger", text),
        )
        async with contextlib.AsyncExitStack() as held:
            ledger = await held.enter_async_context(_ledger_of(pair, config, state_dir, patience, shutdown))
            if ledger is None:
                return
            port, requests = open_port(_REQUESTS)
            run.ledger = ledger.path
            known = {side: None if side in run.accept_new else ledger.identity_of(side) for side in Side}
            storage = Storage(pair.ends, known, config, board)
            storage.hung.is_held, stuck.place_of = stuck.is_held_in, storage.hung.place_of
            if Side.DESTINATION not in run.accept_new:
                storage.volumes = Volumes(volumes_of(ledger))
            with shutdown.until_stopped():
                await with_patience(lambda: check_ends(storage, looking.call), config, board, patient=not once)
                claiming = Claiming(pair, ledger.id, storage, looking.call, board)
                held.push_async_callback(claiming.end)
                await with_patience(claiming.begin, config, board, patient=not once)
            if shutdown.stopped:
                return

            async def note_ends() -> None:
                with ledger.transaction():
                    if (volume := storage.identity[Side.SOURCE]) is not None:
                        origins.note_source(ledger, volume)  # before it is noted as the one that is there
                    for side, identity in storage.identity.items():
                        assert identity is not None
                        ledger.note_identity(side, identity)
                    proofs.note_resolution(ledger, storage.resolution_ns)
                    unlisted.begin(ledger, sum_length(config.copy.manifest))

            with shutdown.until_stopped():
                await patience.keep_trying(note_ends)
            if shutdown.stopped:
                return
            _record_ends(storage, board)
            # With a gate each goes by itself: no file waits for what is found out about another.
            backlog = Backlog(
                board,
                order=config.copy.order,
                bundle_bytes=lambda: bundle_bytes(run.throttle.lowest),
                bundle_files=BUNDLE_FILES if config.copy.gate is None else 1,
                mixed=storage.ends.destination.is_far,
                ledger=ledger.id,
            )
            backlog.name_max = storage.naming.name_max
            manner = how_to_copy(
                config,
                once,
                storage.resolution_ns,
                permissions=storage.keeps_permissions,
                name_max=storage.naming.name_max,
            )
            with ledger.transaction():
                sole = are_needed(ledger, manner, removing=config.copy.on_success.action != "keep")
            changes = Changes(backlog.wake, manner.markers.source)

            def ends() -> Ends:
                return storage.ends

            looking_at, looking_into = Source(looking.call, ends), Destination(looking.call, ends)
            tools = Tools(
                config=config,
                once=once,
                board=board,
                source=Source(copying.call, ends),
                destination=Destination(copying.call, ends),
                looking=looking_at,
                changes=changes,
                owners=Owners(),
                claims=Claims(
                    overwrites=manner.if_exists == "overwrite",
                    routed=manner.routes is not None,
                    sole=sole,
                    naming=lambda: storage.naming,
                    neighbours=Neighbours(
                        ledger.path, pair.destination.path, lambda: storage.identity[Side.DESTINATION]
                    ),
                    volume=lambda: storage.identity[Side.SOURCE],
                ),
                ledger=port,
                storage=storage,
                manner=manner,
                throttle=run.throttle,
                shutdown=shutdown,
                stuck=stuck,
                starts=starts,
            )
            # The ledger outlives all that may still have something to say to it: it ends when the last port closes.
            async with trio.open_nursery() as services:
                services.start_soon(run_ledger, ledger, requests, patience, functools.partial(_doubt, board))
                run.found(storage, changes)
                with port, run.control.of(backlog, changes, port.clone()):
                    async with trio.open_nursery() as helpers:
                        helpers.start_soon(storage.run, probing.call, backlog.offer_again)
                        helpers.start_soon(claiming.keep)
                        helpers.start_soon(run.throttle.follow, lambda: config.copy.bwlimit.now())
                        helpers.start_soon(forget_old_history, port.clone(), config.state.keep_history)
                        helpers.start_soon(run.journal.run, port.clone())
                        if not once:
                            helpers.start_soon(_watch_source, pair, storage, changes, starts, board)
                        swept = trio.Event()
                        helpers.start_soon(sweep, looking_at, looking_into, backlog, port.clone(), board, swept)
                        helpers.start_soon(clear_up, looking_at, looking_into, backlog, port.clone(), board)
                        lister = Lister(
                            config=config,
                            once=once,
                            board=board,
                            storage=storage,
                            ledger=port.clone(),
                            call=copying.call,
                            by_number=manner.if_exists == "rename",
                            shutdown=shutdown,
                        )
                        helpers.start_soon(lister.run)
                        with shutdown.until_stopped():
                            # Ends when the scanner has closed the jobs and the last is done, or by a signal.
                            async with trio.open_nursery() as pipeline:
                                send_jobs, jobs = trio.open_memory_channel[Job](config.copy.transfers)
                                send_growing, growing = trio.open_memory_channel[Job](0)
                                scanner = Scanner(
                                    config=config,
                                    once=once,
                                    only=pair.only,
                                    own=pair.own,
                                    board=board,
                                    backlog=backlog,
                                    storage=storage,
                                    ledger=port.clone(),
                                    source=looking_at,
                                    destination=looking_into,
                                    manner=manner,
                                    changes=changes,
                                )
                                pipeline.start_soon(scanner.run, send_jobs, send_growing)

                                def copier(call: Call, places: trio.CapacityLimiter | None) -> Copier:
                                    its_tools = attrs.evolve(
                                        tools,
                                        source=Source(call, ends),
                                        destination=Destination(call, ends),
                                        ledger=port.clone(),
                                        places=places,
                                    )
                                    return functools.partial(run_copier, backlog=backlog, tools=its_tools)

                                finished = Lane("copier", jobs, lambda: config.copy.transfers)
                                # Recordings wait for nobody, so they take no place that a file may be waiting for.
                                unfinished = Lane("follower", growing, lambda: config.growing.transfers)
                                pipeline.start_soon(
                                    finished.run, functools.partial(copier, copying.call, run.shared.places)
                                )
                                pipeline.start_soon(unfinished.run, functools.partial(copier, following.call, None))
                                run.settings.followers = [
                                    lambda: run.throttle.change(config.copy.bwlimit.now()),
                                    lambda: backlog.reorder(config.copy.order),
                                    finished.resize,
                                    unfinished.resize,
                                    storage.renew,
                                    scanner.renew,
                                ]
                            # It searches all of the destination: not for that long does anybody like to wait.
                            longest = max(_SWEEP_AT_LEAST, trio.current_time() - board.begun)
                            with trio.move_on_after(longest):
                                await swept.wait()
                        async with shutdown.shield():
                            await lister.finish()
                            await clear_up_once(looking_at, looking_into, backlog, port, board)
                        with trio.move_on_after(_PROBE_ENDS, shield=True):
                            await storage.rest()
                        helpers.cancel_scope.cancel()


def _doubt(board: Board, text: str) -> None:
    board.notice("ledger", text, event="ledger.damaged")


def _record_ends(storage: Storage, board: Board) -> None:
    for side, identity in storage.identity.items():
        assert identity is not None
        space = {"free": storage.free, "total": storage.total} if side == Side.DESTINATION else {}
        board.record("info", f"{side}.found", filesystem=identity.kind, device=identity.source, **space)


def bundle_bytes(rate: int | None) -> int:
    """How large a bundle may be: with a limited *rate* not much more than a second's worth, as it goes at once."""
    return BUNDLE_BYTES if rate is None else min(BUNDLE_BYTES, max(BUNDLE_FILE_SIZE, rate))


@contextlib.asynccontextmanager
async def _ledger_of(
    pair: Pair, config: Config, state_dir: str, patience: Patience, shutdown: Shutdown
) -> AsyncIterator[Ledger | None]:
    """Open the ledger of a pair, and lock that; yield None where it was stopped before that could be."""
    path = ledger_path(state_dir, pair.ledger_source, pair.destination.path)

    async def lock() -> Lock:
        return Lock(path.removesuffix(".sqlite") + ".lock")

    async def begin() -> Ledger:
        with contextlib.ExitStack() as stack:
            ledger = stack.enter_context(contextlib.closing(Ledger(path)))
            with ledger.transaction():
                ledger.begin_run(pair.ledger_source, pair.destination.path)
            stack.pop_all()
        return ledger

    with contextlib.ExitStack() as held:
        ledger = None
        with shutdown.until_stopped():
            held.callback((await patience.keep_trying(lock)).release)
            ledger = held.enter_context(contextlib.closing(await patience.keep_trying(begin)))
        yield None if shutdown.stopped else ledger


async def _watch_source(pair: Pair, storage: Storage, changes: Changes, starts: Starts, board: Board) -> None:
    """Have events reported, also of what is mounted there after the source was away."""
    if pair.source.remote:
        text = f"no file events: the source is on {pair.source.mount[0]}; it is scanned instead"
        board.notice("events", text, level="info", event="events.missed")
    elif pair.only is None:
        while True:
            mounted = storage.source_mounted
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_events, pair.source.path, changes, starts, lambda text: _no_events(text, board))
                await mounted.wait()
                nursery.cancel_scope.cancel()
            changes.look_everywhere()


def _no_events(text: str, board: Board) -> None:
    board.notice_once("events", f"{text}; the source is scanned instead", event="events.missed")


# --- dry run ---------------------------------------------------------------------------------------------------------
