"""
Cases: how soon trioft has recordings that it follows while they are written.

**Close to final name**: a program records a file, rewrites its header and a few KiB every 10 MiB, and closes it, while
`trioft watch` follows it. Timed from the close to the final name, beside an rsync of the same finished file into an
empty folder, which could begin at the close only. Both find the source in the page cache, or both dropped from there.

**Streams at once**: eight programs record, one `trioft watch` follows. The lag is seen from outside: how long ago the
source was as long as the partial is now. It is up to one look (50 ms) more than the truth. It counts from one second
after the partial first came within a second of its source (a file is followed from 16 MiB on only, which it has after
2.7 s), until the close. A partial's length is what has been written, not what is durable.

What was delivered is compared, outside of the timed part.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from agents import LOOK_EVERY, LOOK_EVERY_AT_ALL, await_name, watching
from processes import cpu_of, memory_of
from rivals import RSYNC_FSYNC, present
from rows import Row, compared
from trees import cached_part, place_in_cache
from workbench import Bench, Run, show

from trioft.core.units import format_size

RECORDER = [sys.executable, str(Path(__file__).parent.parent / "tools" / "recorder.py")]
SAMPLE_EVERY = 0.05  # seconds between two looks at the streams
WEIGH_EVERY = 4  # samples between two looks at the processes
CAUGHT_UP = 1.0  # seconds of lag at most, once, and a second later lags count
STREAMS, STREAM_RATE = 8, 6_250_000  # bytes a second: 50 Mbit/s


@contextlib.contextmanager
def recording(profile: str, path: Path, size: int, rate: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """While inside, something records into *path*."""
    command = [*RECORDER, profile, str(path), "--size", str(size), "--rate", str(rate), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(recorder: subprocess.Popen[str], word: str) -> float:
    """Return when the recorder has told that: now, or as soon as it does."""
    assert recorder.stdout is not None
    for line in recorder.stdout:
        if line.split()[0] == word:
            return time.perf_counter()
    raise RuntimeError(f"the recorder ended without {word!r}")


def partial_of(final: Path) -> Path | None:
    return next(final.parent.glob(f"{final.name}.*.trioft-partial"), None)


# --- Close to final name


class Close(NamedTuple):
    """One recording."""

    ours: Run  # from the close to the final name
    theirs: Run | None  # what rsync took for the same file
    cached: list[float | None]  # which part of the source was in the cache, when it was closed, and before rsync
    behind: int  # bytes that the partial lacked when the recording was over, before the end was written
    again: int  # bytes that trioft says it wrote again, as they were changed at the end


def closes(bench: Bench) -> Iterator[Row]:
    """A recording that is followed, from its close to its final name, from a warm and a cold page cache."""
    size, seconds = bench.size(2**30, 2**27), bench.size(20, 3)
    bench.need(3 * size)
    taken: dict[str, list[Close]] = {"warm": [], "cold": []}
    for round_ in range(bench.rounds):
        for cache, found in taken.items():
            show(f"close: round {round_ + 1} of {bench.rounds}: {cache}")
            found.append(_time_close(bench, size, seconds, cache))
    show("")
    for cache, found in taken.items():
        work = f"close to final name: {format_size(size)} recorded in {seconds} s, {cache} cache"
        cached = [100 * part for close in found for part in close.cached if part is not None]
        note = "with `settle_closed`, 500 ms; at the close the partial lacked at most"
        note += f" {format_size(max(close.behind for close in found))}; "
        note += f"{statistics.median(close.again for close in found) / size:.0%} written again"
        note += f"; of the source {min(cached):.0f} to {max(cached):.0f} % cached" if cached else ""
        ours, theirs = [close.ours for close in found], [close.theirs for close in found if close.theirs]
        if theirs:
            yield compared(work, RSYNC_FSYNC, ours, theirs, note=note)
        else:
            yield Row(work, "", statistics.median(run.seconds for run in ours), "s", None, ours, note=note)


def _time_close(bench: Bench, size: int, seconds: float, cache: str) -> Close:
    with bench.folder("recording") as folder:
        source, final = folder / "source" / "take.mxf", folder / "destination" / "take.mxf"
        with (
            watching(bench, folder) as agent,
            recording("mxf", source, size, int(size / seconds), "--wait") as recorder,
        ):
            recorded = heard(recorder, "recorded")
            time.sleep(max(0, recorded + 1 - time.perf_counter()))
            partial = partial_of(final)
            behind = source.stat().st_size - (partial.stat().st_size if partial else 0)
            place_in_cache(source, cache, bench.drop_caches)
            cached = [cached_part(source)]
            assert recorder.stdin is not None
            recorder.stdin.write("\n")
            closed, used = heard(recorder, "closed"), cpu_of(agent.pid)
            arrived = await_name(agent, final, LOOK_EVERY)
            ours = Run(arrived - closed, cpu_of(agent.pid) - used)
        bench.run(["cmp", str(source), str(final)])
        events = map(json.loads, (folder / "events").read_text("utf-8").splitlines())
        again = max(event.get("bytes_patched") or 0 for event in events)
        theirs = None
        for command in present(bench, RSYNC_FSYNC).values():
            (folder / "rsync").mkdir()
            place_in_cache(source, cache, bench.drop_caches)
            cached.append(cached_part(source))
            theirs = bench.run(command(source.parent, folder / "rsync"))
        return Close(ours, theirs, cached, behind, again)


# --- Streams at once


class Stream:
    """One recording of several, and its partial, as they are seen from outside."""

    def __init__(self, folder: Path, number: int) -> None:
        self.source, self.final = (folder / side / f"stream{number}.ts" for side in ("source", "destination"))
        self.closed = self.arrived = 0.0
        self.lags: list[float] = []  # seconds, those that count
        self.counts_from = math.inf
        self._partial: Path | None = None
        self._sizes = deque([(time.perf_counter(), 0)])  # (at, of the source); the first: not longer than the partial

    def await_end(self, recorder: subprocess.Popen[str], agent: subprocess.Popen[bytes]) -> None:
        self.closed = heard(recorder, "closed")
        self.arrived = await_name(agent, self.final, LOOK_EVERY_AT_ALL)

    def look(self) -> None:
        now = time.perf_counter()
        self._partial = self._partial or partial_of(self.final)
        # Its own size first: what comes while this is done makes the lag greater, not smaller.
        with contextlib.suppress(FileNotFoundError):  # it has its final name now, or the source is not there yet
            copied = self._partial.stat().st_size if self._partial else 0
            self._sizes.append((now, self.source.stat().st_size))
            while len(self._sizes) > 1 and self._sizes[1][1] <= copied:
                self._sizes.popleft()
            lag = now - self._sizes[0][0]
            if copied and lag <= CAUGHT_UP:
                self.counts_from = min(self.counts_from, now + 1)
            if now >= self.counts_from and not self.closed:
                self.lags.append(lag)


def streams(bench: Bench) -> Iterator[Row]:
    """8 recordings of 50 Mbit/s at once: processor time, and how far behind they are."""
    seconds = bench.size(30, 8)
    bench.need(int(2 * STREAMS * STREAM_RATE * seconds))
    used: list[tuple[float, float]] = []  # (at, seconds of processor time until then)
    memory = looks = 0
    show("streams")
    # The threads are waited for last, when what they wait for has been ended.
    with (
        bench.folder("streams") as folder,
        ThreadPoolExecutor(STREAMS) as threads,
        watching(bench, folder) as agent,
        contextlib.ExitStack() as stack,
    ):
        begun = time.perf_counter()
        found = [Stream(folder, number) for number in range(STREAMS)]
        ends = []
        for stream in found:
            recorder = recording("ts", stream.source, int(STREAM_RATE * seconds), STREAM_RATE)
            ends.append(threads.submit(stream.await_end, stack.enter_context(recorder), agent))
        while not all(end.done() for end in ends):
            if looks % WEIGH_EVERY == 0:
                used.append((time.perf_counter(), cpu_of(agent.pid)))
                memory = max(memory, memory_of(agent.pid))
            for stream in found:
                stream.look()
            looks += 1
            time.sleep(max(0, begun + looks * SAMPLE_EVERY - time.perf_counter()))
        for stream, end in zip(found, ends, strict=True):
            end.result()
            bench.run(["cmp", str(stream.source), str(stream.final)])
    show("")
    first, last = max(stream.counts_from for stream in found), min(stream.closed for stream in found)
    window = [(at, cpu) for at, cpu in used if first <= at <= last]
    if len(window) < 2:
        raise RuntimeError("there was no time at which all streams were followed closely")
    taken, cpu = (window[-1][n] - window[0][n] for n in range(2))
    lags = sorted(lag for stream in found for lag in stream.lags)
    work = f"{STREAMS} recordings of {STREAM_RATE * 8 / 10**6:.0f} Mbit/s for {seconds} s"
    yield Row(f"{work}: processor time", "one core", 100 * cpu / taken, "%", 40, [Run(taken, cpu, memory)])
    yield Row(f"{work}: lag, highest", "", lags[-1], "s", 1)
    yield Row(f"{work}: lag, median", "", statistics.median(lags), "s")
    ends_ = [Run(stream.arrived - stream.closed) for stream in found]
    yield Row(f"{work}: close to final name", "", statistics.median(end.seconds for end in ends_), "s", None, ends_)
