"""Cases: one large file, and many small ones, from disk to disk and over a slow link, beside cp, rsync and rclone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from link import mounted
from rivals import CP, RCLONE, RCLONE_8, READBACK, RSYNC, RSYNC_FSYNC, TRANSFER, Command, present
from rows import Row, compared
from trees import make_large, make_small, place_in_cache, sizes_below
from workbench import Bench, Run, remove

from trioft.core.units import format_size

ROUND_TRIP = 0.005  # seconds, of the slow link
ROUND_TRIPS = 50  # that are timed

Goal = tuple[str, str, float | None]  # ours, the other's, and the target of the ratio


def one_large_file(bench: Bench) -> Iterator[Row]:
    """One file of 2 GiB, with and without read-back, from a warm and a cold page cache."""
    size = bench.size(2**31, 2**27)
    bench.need(2 * size)
    with bench.folder("large") as source:
        make_large(source / "recording.mxf", size)
        goals = [(READBACK, RSYNC_FSYNC, 0.8), (TRANSFER, CP, 1.10), (READBACK, CP, 1.5), (READBACK, RCLONE, None)]
        yield from _copies(bench, f"one file of {format_size(size)}", source, goals)


def many_small_files(bench: Bench) -> Iterator[Row]:
    """20,000 files of 4 KiB, durable and read back or not, from a warm and a cold page cache."""
    count = bench.size(20_000, 1_000)
    bench.need(40 * count * 4096, 40 * count)  # all that is copied is kept for a while
    with bench.folder("small") as source:
        make_small(source, count, 4096)
        goals = [(READBACK, RSYNC_FSYNC, 0.40), (TRANSFER, RSYNC, 2.0), (READBACK, RCLONE, None)]
        yield from _copies(bench, f"{count:,} files of 4 KiB", source, goals)


def slow_link(bench: Bench) -> Iterator[Row]:
    """One large file and many small ones onto sshfs, over a link on which a round trip takes 5 ms."""
    size, count = bench.size(2**28, 2**23), bench.size(500, 20)
    goals: list[Goal] = [(READBACK, RSYNC, 0.7), (READBACK, RCLONE_8, 0.7)]
    with bench.folder("link") as folder, mounted(folder, ROUND_TRIP) as (point, behind):
        begun = time.perf_counter()
        for number in range(ROUND_TRIPS):
            (point / f"{number}").exists()
        note = f"a look at a name there takes {1000 * (time.perf_counter() - begun) / ROUND_TRIPS:.1f} ms"
        for name, work in (("large", f"one file of {format_size(size)}"), ("small", f"{count:,} files of 4 KiB")):
            with bench.folder(name) as source:
                if name == "large":
                    make_large(source / "recording.mxf", size)
                else:
                    make_small(source, count, 4096)
                yield from _copies(bench, f"{work}, link with 5 ms", source, goals, ("warm",), point, behind, note)


def _copies(
    bench: Bench,
    work: str,
    source: Path,
    goals: list[Goal],
    caches: tuple[str, ...] = ("warm", "cold"),
    into: Path | None = None,
    behind: Path | None = None,
    note: str = "",
) -> Iterator[Row]:
    """Compare copies of *source* into a new folder in *into*; what arrived is looked at *behind* it."""
    time.sleep(0.2)  # older than the settle time
    into = into or bench.place
    tools = present(bench, *dict.fromkeys(tool for goal in goals for tool in goal[:2]))
    arrived: list[Path] = []
    contestants = _contestants(bench, source, tools, caches, into, behind or into, arrived)
    try:
        runs = bench.in_turns(work, contestants, cold=[name for name in contestants if name.endswith(", cold")])
    finally:
        for path in arrived:
            remove(path)
    for cache in caches:
        for ours, theirs, target in goals:
            if theirs in tools:
                level = ", not read back" if ours == TRANSFER else ""
                pair = runs[f"{ours}, {cache}"], runs[f"{theirs}, {cache}"]
                yield compared(f"{work}{level}, {cache} cache", theirs, *pair, target, note)


def _contestants(
    bench: Bench,
    source: Path,
    tools: Mapping[str, Command],
    caches: tuple[str, ...],
    into: Path,
    behind: Path,
    kept: list[Path],
) -> dict[str, Callable[[bool], Run]]:
    """Return what copies with each tool. What was copied is removed at once, or, if there is not much of it, *kept*."""
    wanted = sizes_below(source)
    # Where files have just been removed, ext4 is slow to make others, for minutes: it avoids their inodes.
    keeps = len(wanted) > 1
    # A mount remembers names for a while: each destination has one that it has not seen.
    names = (f"destination-{source.name}-{number}" for number in itertools.count())

    def contestant(tool: str, cache: str) -> Callable[[bool], Run]:
        def copy(weigh: bool) -> Run:
            name = next(names)
            destination, arrived = into / name, behind / name
            destination.mkdir()
            arguments = tools[tool](source, destination)
            place_in_cache(source, cache, bench.drop_caches)
            run = bench.run(arguments, weigh)
            if sizes_below(arrived) != wanted:
                raise RuntimeError(f"{tool} did not copy everything")
            if keeps:
                kept.append(arrived)
            else:
                remove(arrived)
            return run

        return copy

    return {f"{tool}, {cache}": contestant(tool, cache) for cache in caches for tool in tools}
