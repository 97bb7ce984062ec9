"""Where everything is measured: a temporary folder, commands that run in it to their end, and who takes turns."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from processes import weighed

from trioft.core.units import format_size

TRIOFT = [sys.executable, "-m", "trioft"]
MOST_SECONDS = 1800  # that one run may take
SPARE = 2 * 2**30  # bytes that must stay free

T = TypeVar("T")


class CannotRun(Exception):
    """A case needs what is not here; the text says what."""


class Run(NamedTuple):
    """What something took once."""

    seconds: float
    cpu: float = 0.0  # seconds of processor time, user and system, of all its processes
    memory: int = 0  # bytes: the most that all its processes together had, shared pages counted once; 0: not looked at


class Bench:
    """The temporary folder, and what is done in it."""

    def __init__(self, place: Path, rounds: int, quick: bool, drop_caches: bool) -> None:
        self.place = place
        self.rounds = rounds
        self.quick = quick
        self.drop_caches = drop_caches
        # Tools that keep settings or caches of their own find an empty home.
        # An installed program does not compile itself at each start.
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("XDG_") and key != "PYTHONDONTWRITEBYTECODE"
        }
        self.environment |= {"HOME": str(place / "home"), "RCLONE_CONFIG": str(place / "home" / "rclone.conf")}
        (place / "home").mkdir()
        (place / "home" / "rclone.conf").touch()

    def size(self, full: T, quick: T) -> T:
        """Choose how much is done."""
        return quick if self.quick else full

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Have a folder while inside; all that is in it is removed."""
        path = self.place / name
        path.mkdir()
        try:
            yield path
        finally:
            remove(path)

    def need(self, size: int, files: int = 0) -> None:
        """Raise ``CannotRun`` if there is not so much room on the disk."""
        free, names = shutil.disk_usage(self.place).free, os.statvfs(self.place).f_favail
        if free < size + SPARE:
            raise CannotRun(f"{format_size(free)} free, but {format_size(size + SPARE)} needed")
        if names < files:
            raise CannotRun(f"{names:,} inodes free, but {files:,} needed")

    def run(self, command: list[str], weigh: bool = False) -> Run:
        """Run *command* to its end, which has to be a good one; look at its memory if told to."""
        with open(self.place / "output", "wb") as output:
            begun = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
            )
            with ended(process), _deadline(process):
                with weighed(process.pid) if weigh else contextlib.nullcontext([0]) as memory:
                    _, status, usage = os.wait4(process.pid, 0)
                    seconds = time.perf_counter() - begun
                    process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            text = (self.place / "output").read_text("utf-8", "replace")
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
        return Run(seconds, usage.ru_utime + usage.ru_stime, max(memory))

    def in_turns(
        self, what: str, contestants: Mapping[str, Callable[[bool], Run]], cold: Container[str] = ()
    ) -> dict[str, list[Run]]:
        """
        Let *contestants* run in turns, and every other round in the opposite order; return their runs, round by round.

        Before the rounds that count, each runs once, to warm up and, as only then it is told to, to be weighed; those
        called *cold* do not.
        """
        weights = {}
        for name, contestant in contestants.items():
            if name in cold:
                continue
            show(f"{what}: warming up: {name}")
            weights[name] = contestant(True).memory
        runs: dict[str, list[Run]] = {name: [] for name in contestants}
        for round_ in range(self.rounds):
            for name in list(contestants)[:: -1 if round_ % 2 else 1]:
                show(f"{what}: round {round_ + 1} of {self.rounds}: {name}")
                run = contestants[name](False)
                runs[name].append(run._replace(memory=weights.get(name, run.memory)))
        show("")
        return runs


def show(text: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r{text:.99}\x1b[K\r", end="", file=sys.stderr, flush=True)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, which may be a million files."""
    subprocess.run(["rm", "-rf", str(path)], check=True)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While inside, *process*, which leads a session of its own, may run; afterwards nothing of it does."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.wait()


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End *process*, which is waited for in another way, if it takes for ever."""
    timer = threading.Timer(MOST_SECONDS, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
