"""What tests are made of: trees, the command line as a child process, and ways to wait for what it says."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from trioft.core.model import Fingerprint, Found
from trioft.movers.pool import Call

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).resolve().parent  # support, and what else is no test
TRIOFT = [sys.executable, "-m", "trioft"]
# Events of history that say what came of a file; the others say how.
OUTCOMES = ("delivered", "already", "failed", "skipped", "removed", "refused")
PATIENCE = 60.0  # seconds that any single thing may take on a loaded machine


def make_tree(root: Path, tree: Mapping[str | bytes, bytes | int | None]) -> None:
    """Make files (content, or a size filled with pseudo-random bytes) and folders (None) below *root*."""
    for name, content in tree.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        if content is None:
            os.makedirs(path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(pattern(content, seed=len(path)) if isinstance(content, int) else content)


def pattern(size: int, seed: int = 0) -> bytes:
    """Return *size* bytes in which no two blocks are the same."""
    import random

    return random.Random(seed).randbytes(size)


def read_tree(root: Path) -> dict[bytes, bytes | None]:
    """
    Return what is below *root*: relative path to content, None for folders.

    Partials are among it; the claim that a running agent has there is not.
    """
    base = os.fsencode(root)
    tree: dict[bytes, bytes | None] = {}
    for folder, folders, files in os.walk(base):
        for name in folders:
            tree[os.path.relpath(os.path.join(folder, name), base)] = None
        for name in files:
            path = os.path.join(folder, name)
            if name.startswith(b".trioft-claim"):
                continue
            with contextlib.suppress(FileNotFoundError):  # a partial gets its final name meanwhile
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as file:
                        tree[os.path.relpath(path, base)] = file.read()
    return tree


@contextlib.contextmanager
def unnoticed(path: Path) -> Iterator[None]:
    """What is done inside to *path* leaves its modification time as it was: so does a disk that forgets."""
    status = path.stat()
    yield
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def files_of(root: Path) -> dict[bytes, bytes]:
    """Return the files below *root*: relative path to content."""
    return {path: content for path, content in read_tree(root).items() if content is not None}


class Done:
    """A command that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        assert self.lines, self.err
        assert self.lines[-1]["event"] == "summary"
        return self.lines[-1]

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr, but not those of a log that tell what went well."""
        return [line for line in self.err.splitlines() if not re.match(r"\S+Z (debug|info) ", line)]

    def files(self, state: str) -> dict[str, dict[str, Any]]:
        """The file lines of *state*, by path."""
        return {line["path"]: line for line in self.lines if line["event"] == "file" and line["state"] == state}


class Running:
    """A command that goes on: its JSON lines arrive while the test waits for them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.errors = ""
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._readers = [threading.Thread(target=self._read_out), threading.Thread(target=self._read_err)]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE) -> dict[str, Any]:
        """Return the first JSON line, from the beginning on, that is *wanted*."""
        for line in self.lines:
            if wanted(line):
                return line
        end = time.monotonic() + seconds
        while True:
            try:
                line_or_end = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing like that in {seconds} s; seen: {self.lines}\n{self.errors}") from None
            if line_or_end is None:
                raise AssertionError(f"it ended before; seen: {self.lines}\n{self.errors}")
            self.lines.append(line_or_end)
            if wanted(line_or_end):
                return line_or_end

    def wait_for_file(self, path: str, state: str, seconds: float = PATIENCE) -> dict[str, Any]:
        return self.wait_for(lambda line: line.get("path") == path and line.get("state") == state, seconds)

    def end(self, number: int = signal.SIGTERM, seconds: float = PATIENCE) -> Done:
        """Send a signal (0: none), and wait for the end."""
        if number and self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return Done(self.process.returncode, "\n".join(json.dumps(line) for line in self.lines), self.errors)


class Site:
    """A source, a destination, a state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source, self.dest, self.state = root / "source", root / "dest", root / "state"
        self.source.mkdir()
        self.dest.mkdir()
        self._running: list[Running] = []

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
        """Run ``trioft`` with these arguments and nothing else."""
        done = subprocess.run(
            [*TRIOFT, *map(os.fsencode, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            env={**os.environ, **(env or {})},
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "backslashreplace"))

    def _arguments(self, command: str, options: tuple[str | Path, ...]) -> list[str | Path]:
        # Files of a test are new; with a settle time this short they are ready soon.
        short = [] if "--settle" in options else ["--settle", "100ms"]
        return [command, self.source, self.dest, "--state-dir", self.state, "--json", *short, *options]

    def sync(self, *options: str | Path) -> Done:
        """Run ``trioft sync`` on this site, with JSON lines."""
        return self.run(*self._arguments("sync", options))

    def start(self, command: str, *options: str | Path) -> Running:
        """Start ``trioft sync`` or ``trioft watch`` on this site, with JSON lines."""
        return self.begin(*self._arguments(command, options))

    def begin(self, *arguments: str | Path) -> Running:
        """Start ``trioft`` with these arguments and nothing else; it writes JSON lines."""
        process = subprocess.Popen(
            [*TRIOFT, *map(os.fsencode, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )
        self._running.append(Running(process))
        return self._running[-1]

    def watch(self, *options: str | Path) -> Running:
        return self.start("watch", *options)

    def stop_all(self) -> None:
        """Kill what a failed test left running."""
        for running in self._running:
            if running.process.poll() is None:
                running.end(signal.SIGKILL)


def movers_of(pid: int) -> list[int]:
    """Return the process ids of the movers of an agent, busy or idle."""
    movers = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    command = file.read()
            except (OSError, ValueError):
                continue
            if parent == pid and b"trioft.movers.ops.main" in command:
                movers.append(int(name))
    return movers


def watcher_of(pid: int) -> int | None:
    """Return the process id of the child that reports file events."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            if parent == pid and b"trioft.movers.ops.watcher" in (process / "cmdline").read_bytes():
                return int(process.name)
        except (OSError, ValueError):
            continue
    return None


def found(path: bytes = b"a", size: int = 1, *, mtime: float = 1e9, version: int = 0) -> Found:
    """Return a file of a source as a scan finds it; *version* tells one content from another. No file is made."""
    time_ns = int(mtime * 1e9)
    return Found(path, 0o644, Fingerprint(1, zlib.crc32(path), size, time_ns, time_ns + version))


_WITHOUT_PRIVILEGE = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root read and write anything
    if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
        sys.exit("cannot give up capabilities")
os.execv(sys.argv[1], sys.argv[1:])
"""


def run_without_privilege(*arguments: str | Path) -> Done:
    """Run ``trioft`` as somebody to whom permission bits apply, also where the tests run as root."""
    prefix = [sys.executable, "-c", _WITHOUT_PRIVILEGE] if os.geteuid() == 0 else []
    command: list[str | bytes] = [*prefix, *TRIOFT, *map(os.fsencode, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def mounted(what: str | Path, where: Path, *options: str) -> Iterator[None]:
    """Mount *what* at the folder *where* while inside; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    command = ["mount", *options, os.fspath(what), os.fspath(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def wait_until(happened: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Return as soon as *happened* says so; fail after *seconds*."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(0.01)


def as_call(answer: Callable[..., Awaitable[Any]]) -> Call:
    """Take a function that answers whatever it is asked for the way to a mover."""
    return cast("Call", answer)
