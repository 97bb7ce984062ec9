"""Cases: nothing to do, for a sync that compares both sides, and for a watch that has delivered everything."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trio
from agents import watching
from processes import cpu_of, memory_of
from rivals import READBACK, RSYNC, Command, command_of, present
from rows import TIMES, Row, compared
from trees import AN_HOUR_AGO, files_below, make_empty
from workbench import TRIOFT, Bench, CannotRun, Run, show

from trioft.config.options import Config, Destination, Source
from trioft.core.model import Fingerprint
from trioft.core.operations import FIND_LEFTOVERS
from trioft.movers.pool import Movers
from trioft.pipeline.ends import find_ends
from trioft.state.ledger import Entry, Ledger, ledger_path

# Settings of a user namespace of its own: there are no watches to be had, so events fail, and it polls.
WITHOUT_EVENTS = ["unshare", "--user", "--map-root-user", "sh", "-c"]
WITHOUT_EVENTS += ['echo 1 > /proc/sys/user/max_inotify_watches && exec "$@"', "sh"]


def nothing_to_do(bench: Bench) -> Iterator[Row]:
    """200,000 files that the destination has already; the search for orphaned partials by itself."""
    count = bench.size(200_000, 5_000)
    bench.need(0, 2 * count)
    work = f"{count:,} files, nothing to do"
    with _twins(bench, [count]) as (source, destination):
        contestants: dict[str, Callable[[bool], Run]] = {
            tool: functools.partial(_sync, bench, command, source, destination)
            for tool, command in present(bench, READBACK, RSYNC).items()
        }
        contestants["search"] = lambda _: Run(trio.run(_search, source, destination, bench.place / "state"))
        runs = bench.in_turns(work, contestants)
        if RSYNC in runs:
            yield compared(work, RSYNC, runs[READBACK], runs[RSYNC], 1.5)
        alone = "the search for orphaned partials by itself"
        yield compared(f"{work}: {alone}", "all of it", runs["search"], runs[READBACK])


def a_million(bench: Bench) -> Iterator[Row]:
    """1,000, 10,000, 100,000, and 1,000,000 files, nothing to do: how the cost grows."""
    counts = bench.size([1_000, 10_000, 100_000, 1_000_000], [1_000, 10_000])
    bench.need(0, 2 * counts[-1])
    with _twins(bench, counts) as (source, destination):
        command = command_of(bench, READBACK)
        names = {count: "/".join(["inner"] * (len(counts) - 1 - n)) for n, count in enumerate(counts)}
        contestants = {
            f"{count:,}": functools.partial(_sync, bench, command, source / name, destination / name)
            for count, name in names.items()
        }
        runs = bench.in_turns("nothing to do", contestants)
    for before, count in itertools.pairwise(counts):
        ours, theirs = runs[f"{count:,}"], runs[f"{before:,}"]
        last = count == 1_000_000
        work, against = f"{count:,} files, nothing to do", f"own {before:,}"
        yield compared(work, against, ours, theirs, 11 if last else None)
        memories = [runs[0].memory for runs in (ours, theirs)]
        yield Row(f"{work}: memory", against, memories[0] / memories[1], TIMES, 1.3 if last else None)
        yield Row(f"{work}: memory", "", memories[0] / 2**20, "MiB", 120 if last else None)


@contextlib.contextmanager
def _twins(bench: Bench, counts: list[int]) -> Iterator[tuple[Path, Path]]:
    """Have two folders with the same files while inside: the last of *counts*, of which each before is one folder's."""
    mtime = time.time_ns() - AN_HOUR_AGO
    with bench.folder("twins") as folder:
        sides = [folder / "source", folder / "destination"]
        for n, count in enumerate(counts):
            show(f"making {count:,} files, twice")
            inner = "/".join(["inner"] * (len(counts) - 1 - n))
            before = counts[n - 1] if n else 0
            make_empty([side / inner for side in sides], count - before, before, mtime)
        os.sync()
        yield sides[0], sides[1]


def _sync(bench: Bench, command: Command, source: Path, destination: Path, weigh: bool) -> Run:
    return bench.run(command(source, destination), weigh)


async def _search(source: Path, destination: Path, state: Path) -> float:
    """Return the seconds that the search for partials takes in a mover."""
    config = Config(source=Source(path=str(source)), destination=Destination(path=str(destination)))
    async with Movers(1, 60) as movers:
        pair = await find_ends(config, movers.call, str(state))
        begun, folders = time.perf_counter(), [b""]
        while folders:
            found = await movers.call(FIND_LEFTOVERS, pair.ends.destination, folders[-500:])
            folders = folders[:-500] + found.rest
        return time.perf_counter() - begun


# --- Watching what is delivered


def idle(bench: Bench) -> Iterator[Row]:
    """A watch of 200,000 delivered files, idle, told by events or polling: its share of a core."""
    count, seconds = bench.size(200_000, 5_000), bench.size(60, 6)
    bench.need(0, count)
    for name, target in (("with events", 1.0), ("polling", 5.0)):
        with bench.folder("idle") as folder:
            source = folder / "source"
            make_empty([source], count, 0, time.time_ns() - AN_HOUR_AGO)
            (folder / "destination").mkdir()
            _say_delivered(source, folder / "destination", folder / "state")
            command = [*WITHOUT_EVENTS, *TRIOFT] if name == "polling" else TRIOFT
            with watching(bench, folder, command) as agent:
                if ("no file events" in (folder / "errors").read_text("utf-8")) != (name == "polling"):
                    raise CannotRun("no user namespaces here, to have no events in")
                show(f"idle, {name}")
                time.sleep(bench.size(10, 2))
                begun, before = time.perf_counter(), cpu_of(agent.pid)
                time.sleep(seconds)
                taken, used = time.perf_counter() - begun, cpu_of(agent.pid) - before
                run = Run(taken, used, memory_of(agent.pid))
            work = f"watch, {count:,} delivered files, idle {name}"
            yield Row(work, "one core", 100 * used / taken, "%", target, [run])


def _say_delivered(source: Path, destination: Path, state: Path) -> None:
    """Write a ledger that knows all files of *source* as delivered."""
    state.mkdir()
    with contextlib.closing(Ledger(ledger_path(str(state), os.fsencode(source), os.fsencode(destination)))) as ledger:
        with ledger.transaction():
            ledger.record(_delivered(source))


def _delivered(source: Path) -> Iterator[Entry]:
    for name in files_below(source):
        status, path = os.stat(name), os.fsencode(os.path.relpath(name, source))
        fingerprint = Fingerprint(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        yield Entry("delivered", path, path, fingerprint, None, "")
