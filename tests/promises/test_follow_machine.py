"""
Recordings as Hypothesis makes them up: writes anywhere, cuts, pauses, closes, memory maps, and deaths of trioft.

The oracle is the file itself: under the final name there is never anything that the source did not hold while nobody
had it open, and in the end there is what it holds.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from support import Running, Site, movers_of, pattern, wait_until
from trioft.core.naming import is_own

MIB = 1 << 20
BLOCK = 8 * MIB
MOST = 4 * BLOCK
CONFIG = """
source: {settle_closed: 150ms, scan_interval: 500ms}
copy: {checkpoint_size: 8MiB, checkpoint_time: 1ms}
growing: {min_size: 0B, poll: 50ms}
destination: {if_exists: overwrite}
"""

places = st.one_of(st.sampled_from([0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 3]), st.integers(0, MOST))
lengths = st.one_of(st.sampled_from([1, 4096, MIB, BLOCK, BLOCK + 1]), st.integers(1, 2 * BLOCK))
seeds = st.integers(0, 99)
pauses = st.sampled_from([0.0, 0.05, 0.12, 0.3, 0.6])
steps = st.one_of(
    st.tuples(st.just("append"), lengths, seeds),
    st.tuples(st.just("append"), lengths, seeds),
    st.tuples(st.just("write"), places, lengths, seeds),
    st.tuples(st.just("map"), places, st.integers(1, MIB), seeds),
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("preallocate"), places),
    st.tuples(st.just("pause"), pauses),
    st.tuples(st.just("pause"), pauses),
    st.tuples(st.just("close"), pauses),
    st.tuples(st.just("rename"), st.sampled_from(["a", "b", "folder/c"])),
    st.tuples(st.just("die"), st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])),
)


class Take:
    """A file that is being recorded, and trioft, which follows it."""

    def __init__(self, root: Path) -> None:
        self.site = Site(root)
        self.config = root / "trioft.yaml"
        self.config.write_text(CONFIG)
        (self.site.source / "folder").mkdir()
        self.path = self.site.source / "a"
        self.closed: set[bytes] = set()  # digests of what it held while nobody had it open
        self.fd: int | None = None
        self.agent = self.start()

    def start(self) -> Running:
        agent = self.site.watch("-c", self.config, "--settle", "2s")
        wait_until(lambda: movers_of(agent.process.pid))
        return agent

    def open(self) -> int:
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        return self.fd

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        if self.path.exists():
            self.closed.add(xxhash.xxh3_128_digest(self.path.read_bytes()))

    def do(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("append", length, seed) if self.size + length <= MOST:
                os.pwrite(self.open(), pattern(length, seed), self.size)
            case ("write", place, length, seed):
                os.pwrite(self.open(), pattern(min(length, MOST - place), seed), place)
            case ("map", place, length, seed) if place + length <= self.size:
                with mmap.mmap(self.open(), self.size) as view:
                    view[place : place + length] = pattern(length, seed)
            case ("cut", place) if place < self.size:
                os.ftruncate(self.open(), place)
            case ("preallocate", place) if place > self.size:
                os.posix_fallocate(self.open(), 0, place)
            case ("pause", seconds):
                time.sleep(seconds)  # any pause will do
            case ("close", seconds):
                self.close()
                time.sleep(seconds)
            case ("rename", name) if self.path.exists() and not (new := self.site.source / name).exists():
                self.path.rename(new)
                self.path = new
                if self.fd is None:
                    self.close()
            case ("die", number):
                self.agent.end(number)
                self.check()
                self.agent = self.start()

    @property
    def size(self) -> int:
        return os.fstat(self.open()).st_size

    def final(self) -> dict[str, bytes]:
        """Digests of what has a final name at the destination."""
        found = {}
        for path in self.site.dest.rglob("*"):
            if path.is_file() and not is_own(os.fsencode(path.name)):
                with contextlib.suppress(FileNotFoundError):
                    found[str(path.relative_to(self.site.dest))] = xxhash.xxh3_128_digest(path.read_bytes())
        return found

    def check(self) -> None:
        """Promise 1: what has a final name is what the source was, whole, at a moment when nobody wrote it."""
        for name, digest in self.final().items():
            assert digest in self.closed, f"{name} is nothing that the recorder left"

    def end(self) -> None:
        self.close()
        name = str(self.path.relative_to(self.site.source))
        if self.path.exists():
            content = xxhash.xxh3_128_digest(self.path.read_bytes())
            wait_until(lambda: self.final().get(name) == content)
        done = self.agent.end()
        assert (done.code, done.summary["failed"]) == (0, 0), done.err
        self.check()


@contextlib.contextmanager
def take() -> Iterator[Take]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="trioft-take-", dir=memory))
    made = Take(root)
    try:
        yield made
    finally:
        if made.fd is not None:
            os.close(made.fd)
        made.site.stop_all()
        shutil.rmtree(root)


@pytest.mark.timeout(900)  # a failure is made as small as possible before it is shown
@settings(max_examples=int(os.environ.get("TRIOFT_TEST_TAKES", "15")), derandomize="CI" in os.environ, print_blob=True)
@given(st.lists(steps, min_size=3, max_size=14))
def test_whatever_a_recorder_does_what_arrives_is_what_it_left(steps: list[tuple[Any, ...]]) -> None:
    """Writes, cuts, pauses, closes, names and deaths of trioft in any order: what is delivered is the source."""
    with take() as recording:
        for step in steps:
            recording.do(step)
        recording.end()
