"""What a process and all that it has started use: processor time and memory, looked at from outside."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

SAMPLE_EVERY = 0.02  # seconds between two looks at the memory


def family_of(pid: int) -> list[int]:
    """Return *pid* and all its descendants that live."""
    family = [pid]
    for member in family:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{member}/task"):
                children = Path(f"/proc/{member}/task/{thread}/children").read_text("ascii")
                family += [int(child) for child in children.split()]
    return family


def memory_of(pid: int) -> int:
    """Return the bytes that a process and its descendants have, pages that they share counted once."""
    return sum(map(own_memory_of, family_of(pid)))


def own_memory_of(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_of(pid: int) -> float:
    """Return the seconds that a process and its descendants have taken, with those that have ended."""
    return sum(map(_cpu_of, family_of(pid)))


def _cpu_of(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextlib.contextmanager
def weighed(pid: int) -> Iterator[list[int]]:
    """While inside, what is yielded collects what *pid* and its descendants have, in bytes."""
    seen, over = [0], threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_EVERY):
            seen.append(memory_of(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
