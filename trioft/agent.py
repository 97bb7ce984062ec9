"""
The agent: opens the channels and the nurseries, owns the signals and the order of ending.

``run_agent`` is the diagram of the program. It never touches the source or the destination: movers do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import attrs
import trio

from trioft.backlog import Backlog
from trioft.board import Board
from trioft.config import Config
from trioft.copier import run_copier
from trioft.errors import ConfigError, FileTrouble, UnusableError, hint_for, show_path
from trioft.events import Changes, run_events
from trioft.ledger import Ledger, Lock, ledger_path, open_port, run_ledger
from trioft.model import BUNDLE_BYTES, BUNDLE_FILE_SIZE, Ends, Found, Job, Manner, Root
from trioft.movers import Call, Movers
from trioft.naming import compile_globs
from trioft.scanner import Scanner
from trioft.shutdown import Shutdown
from trioft.storage import Storage, why_not_usable
from trioft.surveyio import KEEPS_NO_TIMES, End, Listing, Look, Probed
from trioft.sweeper import sweep
from trioft.throttle import Throttle
from trioft.transfer import Owners, Tools

# Besides copy.movers: one that scans, one that looks at files that grow, one that probes the destination, so that none
# waits for a copy.
_LOOKING_MOVERS = 3
# Seconds that a sync, whose files are all delivered, waits for the search for orphans; longer if it took longer.
_SWEEP_AT_LEAST = 5


@attrs.frozen(kw_only=True)
class Pair:
    """The two ends, found out and found good."""

    source: End
    destination: End
    only: bytes | None  # SOURCE is this one file in its folder
    exclude: tuple[str, ...]
    probed: Probed

    @property
    def ends(self) -> Ends:
        return Ends(
            Root(self.source.path, self.source.dev),
            Root(self.destination.path, self.probed.dev),
        )

    @property
    def ledger_source(self) -> bytes:
        return os.path.join(self.source.path, self.only) if self.only else self.source.path


async def run_agent(
    config: Config,
    board: Board,
    *,
    once: bool,
    state_dir: str,
    display: Callable[[], Awaitable[None]] | None = None,
    mover: Sequence[str] | None = None,
) -> int | None:
    """
    Transfer everything, ``once`` or until stopped. Returns the number of the signal that stopped it, or None.

    What happens is told to *board*. *display* is a task that shows it; *mover* another command that starts a mover.
    Raises ``TrioftError`` where the ends, the configuration or the ledger do not allow to work.
    """
    shutdown = Shutdown(config.state.shutdown_grace)
    stall = config.copy.stall_timeout
    async with (
        _signals(shutdown) as received,
        Movers(_LOOKING_MOVERS, stall, mover) as looking,
        Movers(config.copy.movers, stall, mover) as copying,
        # A pool of their own: recordings never wait behind a backlog. Two at least, so that none waits for another's
        # barrier.
        Movers(max(2, config.copy.movers), stall, mover) as following,
    ):
        with shutdown.until_stopped():
            pair = await find_ends(config, looking.call, state_dir)
        if shutdown.stopped:
            return received[0]
        with _ledger_of(pair, config, state_dir) as ledger:
            port, requests = open_port(copying_capacity(config))
            storage = Storage(pair.ends, pair.probed, config, board)
            backlog = Backlog(board, oldest_first=not once, bundle_bytes=bundle_bytes(config))
            changes = Changes(backlog.wake)
            manner = how_to_copy(config, once, pair.probed.resolution_ns)
            tools = Tools(
                config=config,
                once=once,
                board=board,
                call=copying.call,
                looking=looking.call,
                changes=changes,
                owners=Owners(),
                ledger=port,
                storage=storage,
                manner=manner,
                throttle=Throttle(config.copy.bwlimit),
                shutdown=shutdown,
            )
            # The ledger outlives all that may still have something to say to it: it ends when the last port closes.
            async with trio.open_nursery() as services:
                services.start_soon(run_ledger, ledger, requests)
                with port:
                    async with trio.open_nursery() as helpers:
                        helpers.start_soon(storage.run, looking.call, backlog.offer_again)
                        if not once:
                            helpers.start_soon(_watch_source, pair, changes, board)
                        swept = trio.Event()
                        helpers.start_soon(sweep, looking.call, storage, backlog, port.clone(), board, swept)
                        if display is not None:
                            helpers.start_soon(display)
                        with shutdown.until_stopped():
                            # Ends when the scanner has closed the jobs and the last is done, or by a signal.
                            async with trio.open_nursery() as pipeline:
                                send_jobs, jobs = trio.open_memory_channel[Job](config.copy.transfers)
                                send_growing, growing = trio.open_memory_channel[Job](0)
                                scanner = Scanner(
                                    config=config,
                                    once=once,
                                    only=pair.only,
                                    exclude=pair.exclude,
                                    board=board,
                                    backlog=backlog,
                                    storage=storage,
                                    ledger=port.clone(),
                                    call=looking.call,
                                    manner=manner,
                                    changes=changes,
                                )
                                pipeline.start_soon(scanner.run, send_jobs, send_growing)
                                lanes = [(jobs, "copier", config.copy.transfers, copying.call)]
                                lanes += [(growing, "follower", config.growing.transfers, following.call)]
                                with jobs, growing:
                                    for lane, kind, count, call in lanes:
                                        for n in range(count):
                                            its_tools = attrs.evolve(tools, ledger=port.clone(), call=call)
                                            name = f"{kind}-{n + 1}"
                                            pipeline.start_soon(run_copier, lane.clone(), backlog, its_tools, name=name)
                            # It searches all of the destination: not for that long does anybody like to wait.
                            longest = max(_SWEEP_AT_LEAST, trio.current_time() - board.begun)
                            with trio.move_on_after(longest):
                                await swept.wait()
                        helpers.cancel_scope.cancel()
    return received[0] if received else None


def copying_capacity(config: Config) -> int:
    """How many requests may wait for the ledger: one for each task that could send one."""
    return 2 * (config.copy.transfers + config.growing.transfers) + 2


def bundle_bytes(config: Config) -> int:
    """How large a bundle may be: with a limited throughput not much more than a second's worth, as it goes at once."""
    rate = config.copy.bwlimit
    return BUNDLE_BYTES if rate is None else min(BUNDLE_BYTES, max(BUNDLE_FILE_SIZE, rate))


def how_to_copy(config: Config, once: bool, resolution_ns: int) -> Manner:
    """Put together what the file operations need of the configuration."""
    return Manner(
        verify=config.copy.verify,
        if_exists=config.destination.if_exists or ("overwrite" if once else "rename"),
        # Also where a second recording of the same size would pass for the first.
        prove_existing=config.copy.on_success.action != "keep" or (not once and resolution_ns == KEEPS_NO_TIMES),
        resolution_ns=resolution_ns,
        xattrs=config.metadata.xattrs,
    )


@contextlib.asynccontextmanager
async def _signals(shutdown: Shutdown) -> AsyncIterator[list[int]]:
    """The first SIGINT or SIGTERM stops the pipeline, the second ends its grace. Yields the signals received so far."""
    received: list[int] = []

    async def watch() -> None:
        async for number in signals:
            received.append(number)
            if len(received) == 1:
                shutdown.stop()
            else:
                shutdown.stop_now()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield received
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def _ledger_of(pair: Pair, config: Config, state_dir: str) -> Iterator[Ledger]:
    path = ledger_path(state_dir, pair.ledger_source, pair.destination.path)
    lock = Lock(path.removesuffix(".sqlite") + ".lock")
    try:
        with contextlib.closing(Ledger(path)) as ledger:
            with ledger.transaction():
                ledger.begin_run(pair.ledger_source, pair.destination.path, config.state.keep_history)
            yield ledger
    finally:
        lock.release()


async def _watch_source(pair: Pair, changes: Changes, board: Board) -> None:
    if pair.source.remote:
        board.notice("events", f"no file events: the source is on {pair.source.mount[0]}; it is scanned instead")
    elif pair.only is None:
        await run_events(
            pair.source.path, changes, lambda text: board.notice("events", f"{text}; the source is scanned instead")
        )


# --- the ends --------------------------------------------------------------------------------------------------------


async def find_ends(config: Config, call: Call, state_dir: str, *, probe: bool = True) -> Pair:
    """
    Find out what source and destination are. Without *probe* nothing is written to the destination.

    Raises ``UnusableError`` or ``ConfigError`` if they are not what trioft can work with.
    """
    archive = config.copy.on_success.folder
    paths = [_absolute(path) for path in (config.source.path, config.destination.path, state_dir, archive) if path]
    try:
        source, destination, state, *rest = await call("inspect", paths)
        only = None
        if source.kind == "file":
            path, only = os.path.split(source.path)
            source = (await call("inspect", [path]))[0]._replace(mount=source.mount)
        _check_end(source, "source")
        _check_end(destination, "destination")
        if only is None:
            await _refuse_overlap(call, source, destination)
        elif os.path.join(source.path, only) == os.path.join(destination.path, only):
            raise ConfigError(["source and destination are the same file"])
        exclude = config.source.exclude
        for folder, what in [(state, "state directory"), *((folder, "archive folder") for folder in rest)]:
            if only is None and await call("contains", source.path, folder.path):
                relative = folder.path[len(source.path) + 1 :]
                if what == "state directory" or not relative:
                    raise ConfigError([f"the {what} must not be inside the source: {show_path(folder.path)}"])
                exclude = (*exclude, _literal_glob(relative))
        root = Root(destination.path, destination.dev)
        if probe:
            marker = config.destination.marker
            probed: Probed = await call("probe", root.path, marker and os.fsencode(marker))
            if why := why_not_usable(probed, config):
                raise UnusableError(f"the destination cannot be used: {why}")
        else:
            probed = Probed(destination.dev, 0, 0, destination.mount, False, 2_000_000_000, True)
    except FileTrouble as error:
        trouble = error.trouble
        raise UnusableError(f"cannot use the {trouble.side}: {trouble}", hint=hint_for(trouble)) from error
    for pattern in (*config.source.include, *exclude):
        try:
            compile_globs((pattern,))
        except re.error as error:
            raise ConfigError([f"{pattern!r} is no pattern: {error}"]) from error
    return Pair(source=source, destination=destination, only=only, exclude=tuple(exclude), probed=probed)


def _absolute(path: str) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _check_end(end: End, side: str) -> None:
    path = show_path(end.path)
    if end.kind == "missing":
        hint = "trioft never creates it: mount it, or make the folder yourself" if side == "destination" else None
        raise UnusableError(f"the {side} is not there: {path}", hint=hint)
    if end.error:
        raise UnusableError(f"the {side} cannot be used: {path}: {end.error}")
    if end.kind != "folder":
        raise UnusableError(f"the {side} is not a folder: {path}")


async def _refuse_overlap(call: Call, source: End, destination: End) -> None:
    if (source.dev, source.ino) == (destination.dev, destination.ino):
        raise ConfigError(["source and destination are the same folder"])
    if await call("contains", source.path, destination.path):
        raise ConfigError(["the destination is inside the source: it would be copied into itself for ever"])
    if await call("contains", destination.path, source.path):
        raise ConfigError(["the source is inside the destination"])


def _literal_glob(path: bytes) -> str:
    """Return a pattern for exactly this folder at the root of the source."""
    return "/" + re.sub(r"([\[*?])", r"[\1]", os.fsdecode(path))


# --- dry run ---------------------------------------------------------------------------------------------------------


async def list_missing(config: Config, tell: Callable[[Found], None], board: Board, *, state_dir: str) -> None:
    """Call *tell* with each file that a sync would copy. Writes nothing anywhere, not even the ledger."""
    async with Movers(1, config.copy.stall_timeout) as movers:
        pair = await find_ends(config, movers.call, state_dir, probe=False)
        manner = how_to_copy(config, True, pair.probed.resolution_ns)
        scan = functools.partial(movers.call, "scan", pair.ends.source)
        if pair.only is not None:
            looks: list[Look] = await movers.call(
                "look", pair.ends.source, [pair.only], config.source.include, pair.exclude
            )
            wanted = [look.found for look in looks if look.found is not None]
            there = await scan([b""], config.source.include, pair.exclude, pair.ends.destination, manner)
            missing = [found for folder, files in there.folders if not folder for found in files if found in wanted]
            for found in missing:
                tell(found)
            board.totals.already += len(wanted) - len(missing)
            return
        folders = [b""]
        while folders:
            batch, folders = folders[-500:], folders[:-500]
            listing: Listing = await scan(batch, config.source.include, pair.exclude, pair.ends.destination, manner)
            folders += listing.rest
            board.totals.already += listing.already
            for path, reason in listing.skipped:
                board.skip(path, reason)
            for trouble in listing.troubles:
                board.fail_folder(trouble)
            for _, files in listing.folders:
                for found in files:
                    tell(found)
