"""Case: how long it takes until a command says something."""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trio
from rows import Row
from workbench import TRIOFT, Bench, Run

from trioft.core.errors import Side
from trioft.core.model import Place
from trioft.core.operations import INSPECT
from trioft.movers.pool import Movers


def starting(bench: Bench) -> Iterator[Row]:
    """``trioft --version`` and ``--help``, over a Python that does nothing; a mover's first answer."""
    script = Path(sys.executable).parent / "trioft"
    trioft = [str(script)] if script.exists() else TRIOFT
    bare = [sys.executable, "-c", "pass"]
    commands = {option: [*trioft, option] for option in ("--version", "--help")}
    taken: dict[str, list[Run]] = {name: [] for name in ("pass", *commands, "first", "next")}
    for _ in range(bench.size(4, 1) * bench.rounds + 1):
        for name, command in {"pass": bare, **commands}.items():
            taken[name].append(bench.run(command))
        for name, seconds in zip(("first", "next"), trio.run(_ask_a_mover, os.fsencode(bench.place)), strict=True):
            taken[name].append(Run(seconds))
    taken = {name: runs[1:] for name, runs in taken.items()}  # the first warmed up
    for option in commands:
        pairs = zip(taken[option], taken["pass"], strict=True)
        more = 1000 * statistics.median(ours.seconds - theirs.seconds for ours, theirs in pairs)
        yield Row(f"`trioft {option}`", "`python -c pass`", more, "ms more", 120, taken[option], taken["pass"])
    for name, work in (("first", "a mover, to its first answer"), ("next", "its next answer")):
        yield Row(work, "", 1000 * statistics.median(run.seconds for run in taken[name]), "ms", None, taken[name])


async def _ask_a_mover(folder: bytes) -> list[float]:
    async with Movers(1, 30) as movers:
        times = [time.perf_counter()]
        for _ in range(2):
            await movers.call(INSPECT, [Place(Side.SOURCE, folder)])
            times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]
