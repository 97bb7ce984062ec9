"""Cases: how the cost of delivering grows, with the number of files, and with their size."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from rivals import READBACK, command_of
from rows import TIMES, Row, grown
from trees import make_small
from workbench import Bench, CannotRun, Run

from trioft.core.units import format_size

# What the last step may cost, where the start of a program and of its movers has no part in it any more.
LINEAR, FLAT = 1.2, 1.3


def growing_numbers(bench: Bench) -> Iterator[Row]:
    """1,000, 10,000, and 100,000 files of 4 KiB, delivered: time of each, and memory."""
    counts = bench.size([1_000, 10_000, 100_000], [500, 2_000])
    bench.need(2 * 4096 * counts[-1], 2 * counts[-1])
    with bench.folder("sources") as sources:
        contestants = {}
        for count in counts:
            source = sources / f"{count}"
            make_small(source, count, 4096)
            contestants[f"{count}"] = functools.partial(_deliver, bench, source)
        runs = bench.in_turns("numbers", contestants)
    for before, count in itertools.pairwise(counts):
        work, against = f"{count:,} files of 4 KiB, delivered", f"own {before:,}"
        ours, theirs, last = runs[f"{count}"], runs[f"{before}"], count == counts[-1]
        yield grown(work, against, ours, theirs, count / before, "file", LINEAR if last else None)
        yield _memory(work, against, ours, theirs, FLAT if last else None)


def growing_sizes(bench: Bench) -> Iterator[Row]:
    """One file of 1 MiB to 16 GiB (sparse; its copy is not), delivered: time of each byte, and memory."""
    sizes = [2**n for n in bench.size((20, 24, 28, 30, 32, 34), (20, 24, 28))]
    runs: dict[int, list[Run]] = {}
    for size in sizes:
        try:
            bench.need(size)
        except CannotRun as reason:
            yield Row(f"one file of {format_size(size)}: left out, {reason}", "", 0, "")
            break
        with bench.folder("source") as source:
            with open(source / "sparse", "wb") as file:
                file.truncate(size)
            runs[size] = [_deliver(bench, source, True)]  # once: the last one is large enough to be steady
    for before, size in itertools.pairwise(runs):
        work, against = f"one file of {format_size(size)}, delivered", f"own {format_size(before)}"
        last = size == sizes[-1]
        yield grown(work, against, runs[size], runs[before], size / before, "byte", LINEAR if last else None)
        yield _memory(work, against, runs[size], runs[before], FLAT if last else None)


def _deliver(bench: Bench, source: Path, weigh: bool) -> Run:
    with bench.folder("destination") as destination:
        command = command_of(bench, READBACK)(source, destination)
        os.sync()  # nobody pays for what others left behind
        return bench.run(command, weigh)


def _memory(work: str, against: str, ours: list[Run], theirs: list[Run], target: float | None) -> Row:
    return Row(f"{work}: memory", against, ours[0].memory / theirs[0].memory, TIMES, target)
