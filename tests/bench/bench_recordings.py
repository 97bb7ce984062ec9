"""
How soon trioft has recordings that it follows while they are written. Run by hand; needs free disk space and a quiet
machine.

    python tests/bench/bench_recordings.py --cold      everything, some fifteen minutes
    python tests/bench/bench_recordings.py             without a cold page cache, some eight minutes
    python tests/bench/bench_recordings.py --quick     a look whether it works, a minute

**Close to final name**: a program records a file, rewrites its header and a few KiB every 10 MiB, and closes it, while
`trioft watch` follows it. Timed from the close to the final name, beside an rsync of the same finished file into an
empty folder, which could begin at the close only. Both find the source in the page cache; with --cold, both find it
dropped from there in other recordings (from this machine's: the storage may have a cache of its own).

**Streams at once**: eight programs record, one `trioft watch` follows. The lag is seen from outside: how long ago the
source was as long as the partial is now. It is up to one look (50 ms) more than the truth. It counts from one second
after the partial first came within a second of its source (a file is followed from 16 MiB on only, which it has after
2.7 s), until the close. A partial's length is what has been written, not what is durable.

What was delivered is compared, outside of the timed part. All of it lies in one temporary folder, which is removed at
the end; only the pages of its own files are dropped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench_transfers import SPARE, TRIOFT, Bench, family_of, machine, memory_of, show, versions

from trioft.notation import format_size

RECORDER = [sys.executable, str(Path(__file__).parent.parent / "recorder.py")]
RSYNC = "rsync -a --fsync"
MOST_SECONDS = 120  # that one wait may take
LOOK_EVERY = 0.001  # seconds between two looks for a final name
LOOK_EVERY_AT_ALL = 0.005  # the same, where there are several
SAMPLE_EVERY = 0.05  # seconds between two looks at the streams
WEIGH_EVERY = 4  # samples between two looks at the processes
CAUGHT_UP = 1.0  # seconds of lag at most, once, and a second later lags count
STREAMS, STREAM_RATE = 8, 6_250_000  # bytes a second: 50 Mbit/s

NOTES = """\
trioft's figures contain `settle_closed`, which it waits in case that the file is opened again; 500ms is the default.
Ratios and differences are medians over recordings. Behind: the most that the partial lacked when a second had passed
since all but the end was recorded. Written again: as trioft says itself, because it was changed at the end.
"""

# --- Recording and following


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


@contextlib.contextmanager
def watching(bench: Bench, folder: Path, settings: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """While inside, trioft follows what is recorded in one folder, to another, both new; it is at work already."""
    source, destination, config = folder / "source", folder / "destination", folder / "config.yaml"
    for path in (folder, source, destination):
        path.mkdir()
    config.write_text(settings, "utf-8")
    command = [*TRIOFT, "watch", str(source), str(destination), "-c", str(config), "--json"]
    command += ["--state-dir", str(folder / "state")]
    with open(folder / "events", "wb") as out, open(folder / "errors", "wb") as err:
        agent = subprocess.Popen(command, stdout=out, stderr=err, env=bench.environment, start_new_session=True)
    try:
        (source / "first").touch()
        await_name(agent, destination / "first", LOOK_EVERY_AT_ALL)
        (source / "first").unlink()
        yield agent
        agent.send_signal(signal.SIGTERM)
        if agent.wait(MOST_SECONDS) != 0:
            raise RuntimeError(f"trioft ended with {agent.returncode}")
    except RuntimeError:
        print(*(folder / "events").read_text("utf-8").splitlines()[-20:], sep="\n", file=sys.stderr)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
        if said := (folder / "errors").read_text("utf-8", "replace"):
            print(f"trioft said:\n{said}", file=sys.stderr)


def await_name(agent: subprocess.Popen[bytes], path: Path, every: float) -> float:
    """Return when *path* is there."""
    name, end = str(path), time.perf_counter() + MOST_SECONDS
    while not os.path.exists(name):
        if agent.poll() is not None or time.perf_counter() > end:
            raise RuntimeError(f"{path.name} has not arrived")
        time.sleep(every)
    return time.perf_counter()


def partial_of(final: Path) -> Path | None:
    return next(final.parent.glob(f"{final.name}.*.partial"), None)


# --- The page cache


def read_through(path: Path) -> float:
    """Read a file from beginning to end; return the seconds that it took."""
    buffer, begun = bytearray(2**20), time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begun


def place_in_cache(path: Path, cache: str) -> float | None:
    """Have a file in the page cache, or out of it; return which part of it is there then, if that can be known."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # nobody pays for what others left behind, and only what is clean can be dropped
    if cache == "cold":
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if cache == "warm":
        read_through(path)
    if not shutil.which("fincore"):
        return None
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout) / path.stat().st_size


# --- Close to final name


class Close(NamedTuple):
    """One recording."""

    trioft: float  # seconds from the close to the final name
    rsync: float | None  # seconds that it took for the same file
    read: float | None  # seconds that it takes to read it once, where that is not from memory
    cached: list[float | None]  # which part of the source was, when it was closed, and before rsync
    behind: int  # bytes that the partial lacked when the recording was over, before the end was written
    again: int  # bytes that trioft says it wrote again, as they were changed at the end


def time_close(bench: Bench, size: int, seconds: float, cache: str, settle_closed: str, rsync: bool) -> Close:
    folder = bench.place / "recording"
    source, final = folder / "source" / "take.mxf", folder / "destination" / "take.mxf"
    watch = watching(bench, folder, f"source: {{settle_closed: {settle_closed}}}\n")
    with watch as agent, recording("mxf", source, size, int(size / seconds), "--wait") as recorder:
        recorded = heard(recorder, "recorded")
        time.sleep(max(0, recorded + 1 - time.perf_counter()))
        partial = partial_of(final)
        behind = source.stat().st_size - (partial.stat().st_size if partial else 0)
        cached = [place_in_cache(source, cache)]
        assert recorder.stdin is not None
        recorder.stdin.write("\n")
        closed = heard(recorder, "closed")
        ours = await_name(agent, final, LOOK_EVERY) - closed
    bench.run(["cmp", str(source), str(final)])
    events = map(json.loads, (folder / "events").read_text("utf-8").splitlines())
    again = max(event.get("bytes_patched") or 0 for event in events)
    theirs = read = None
    if rsync:
        copy = folder / "rsync"
        copy.mkdir()
        os.sync()
        cached.append(place_in_cache(source, cache))
        theirs = bench.run([*RSYNC.split(), f"{source.parent}/", str(copy)]).seconds
        bench.run(["cmp", str(source), str(copy / source.name)])
    if cache == "cold":
        place_in_cache(source, cache)
        read = read_through(source)
    shutil.rmtree(folder)
    return Close(ours, theirs, read, cached, behind, again)


def table_of_closes(size: int, seconds: int, taken: dict[tuple[str, str], list[Close]]) -> str:
    title = f"Close to final name: {format_size(size)} recorded in {seconds} s"
    head = ["page cache", "`settle_closed`", "trioft", RSYNC, "trioft ÷ rsync", "reading once", "trioft less reading"]
    head += ["source cached", "behind", "written again"]
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for (cache, settle_closed), closes in taken.items():
        rsyncs = [close.rsync for close in closes if close.rsync is not None]
        ratios = [close.trioft / close.rsync for close in closes if close.rsync is not None]
        reads = [close.read for close in closes if close.read is not None]
        rests = [close.trioft - close.read for close in closes if close.read is not None]
        cached = [100 * part for close in closes for part in close.cached if part is not None]
        cells = [
            cache,
            settle_closed,
            spread([close.trioft for close in closes]),
            spread(rsyncs),
            f"{statistics.median(ratios):.2f}" if ratios else "",
            spread(reads),
            spread(rests),
            f"{min(cached):.0f} to {max(cached):.0f} %" if cached else "",
            format_size(max(close.behind for close in closes)),
            f"{statistics.median(close.again for close in closes) / size:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", NOTES])


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})" if seconds else ""


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


def cpu_of(pid: int) -> float:
    """Return the seconds that a process has taken, with those of its children that have ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Streams(NamedTuple):
    """What was seen of several recordings."""

    lags: list[list[float]]  # seconds, of each
    closes: list[float]  # seconds from the close to the final name, of each
    window: float  # seconds, while all of them were followed, and none was over
    cpu: float  # seconds of processor time in these
    cpu_in_all: float  # from the first byte to the last name
    memory: int  # bytes: the most, shared pages counted once


def record_streams(bench: Bench, seconds: float) -> Streams:
    folder = bench.place / "streams"
    used: list[tuple[float, float]] = []  # (at, seconds of processor time until then)
    memory = looks = 0
    # The threads are waited for last, when what they wait for has been ended.
    with ThreadPoolExecutor(STREAMS) as threads, watching(bench, folder) as agent, contextlib.ExitStack() as stack:
        begun = time.perf_counter()
        streams = [Stream(folder, number) for number in range(STREAMS)]
        ends = []
        for stream in streams:
            recorder = recording("ts", stream.source, int(STREAM_RATE * seconds), STREAM_RATE)
            ends.append(threads.submit(stream.await_end, stack.enter_context(recorder), agent))
        while not all(end.done() for end in ends):
            if looks % WEIGH_EVERY == 0:
                used.append((time.perf_counter(), sum(map(cpu_of, family := family_of(agent.pid)))))
                memory = max(memory, sum(map(memory_of, family)))
            for stream in streams:
                stream.look()
            looks += 1
            time.sleep(max(0, begun + looks * SAMPLE_EVERY - time.perf_counter()))
        used.append((time.perf_counter(), sum(map(cpu_of, family_of(agent.pid)))))
        for end in ends:
            end.result()
    for stream in streams:
        bench.run(["cmp", str(stream.source), str(stream.final)])
    shutil.rmtree(folder)
    first, last = max(stream.counts_from for stream in streams), min(stream.closed for stream in streams)
    window = [(at, cpu) for at, cpu in used if first <= at <= last]
    if len(window) < 2:
        sys.exit("there was no time at which all streams were followed closely")
    seconds, cpu = (window[-1][n] - window[0][n] for n in range(2))
    closes = [stream.arrived - stream.closed for stream in streams]
    return Streams([stream.lags for stream in streams], closes, seconds, cpu, used[-1][1] - used[0][1], memory)


def table_of_streams(seconds: int, seen: Streams) -> str:
    lags = sorted(lag for lags in seen.lags for lag in lags)
    rows = {
        "lag, median": f"{statistics.median(lags):.2f} s",
        "lag, 99th percentile": f"{lags[int(len(lags) * 0.99)]:.2f} s",
        "lag, highest": f"{lags[-1]:.2f} s",
        "lag, highest of each": ", ".join(f"{max(lags):.2f}" for lags in seen.lags),
        "close to final name": spread(seen.closes),
        f"processor time in {seen.window:.0f} s of recording, of one core": f"{seen.cpu / seen.window:.0%}",
        "processor time from the first byte to the last name": f"{seen.cpu_in_all:.1f} s",
        "memory, at most": f"{seen.memory / 2**20:.0f} MiB",
    }
    title = f"### {STREAMS} streams of {STREAM_RATE * 8 / 10**6:.0f} Mbit/s at once, for {seconds} s"
    lines = [title, "", f"| trioft, {len(lags):,} looks | figure |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {text} |" for name, text in rows.items()), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time trioft with recordings that it follows.")
    parser.add_argument("--quick", action="store_true", help="small and short: whether it works, not how fast it is")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single figure to FILE, too")
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()), help="for the temporary folder")
    parser.add_argument("--rounds", type=int, help="of closes (5; quick: 1)")
    parser.add_argument("--cold", action="store_true", help="closes with the source dropped from the page cache, too")
    given = parser.parse_args()
    rounds: int = given.rounds or (1 if given.quick else 5)
    size, seconds, stream_seconds = (2**27, 3, 8) if given.quick else (2**30, 20, 30)
    needed = max(3 * size, 2 * STREAMS * STREAM_RATE * stream_seconds) + SPARE
    free = shutil.disk_usage(given.where).free
    if free < needed:
        sys.exit(f"{given.where} has {free / 2**30:.1f} GiB free, this needs {needed / 2**30:.1f} GiB")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(prefix="trioft-bench-", dir=given.where) as place:
        bench = Bench(Path(place), rounds)
        lines = [line for line in versions() if not line.startswith(("cp ", "rclone "))]
        lines += [] if (rsync := shutil.which("rsync") is not None) else ["no rsync here to compare with"]
        print("\n".join(f"* {line}" for line in [*lines, machine(bench.place)]), end="\n\n", flush=True)

        caches = ("warm", "cold") if given.cold else ("warm",)
        cases = [(cache, settle_closed) for cache in caches for settle_closed in ("500ms", "50ms")]
        closes: dict[tuple[str, str], list[Close]] = {case: [] for case in cases}
        for round_ in range(rounds):
            for case in cases:
                show(f"close: round {round_ + 1} of {rounds}: {' '.join(case)}")
                closes[case].append(time_close(bench, size, seconds, *case, rsync))
        show("streams")
        streams = record_streams(bench, stream_seconds)
        show("")
    print(table_of_closes(size, seconds, closes))
    print(table_of_streams(stream_seconds, streams))
    if given.json is not None:
        figures = {"closes": {" ".join(case): [close._asdict() for close in closes[case]] for case in cases}}
        given.json.write_text(json.dumps({**figures, "streams": streams._asdict()}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
