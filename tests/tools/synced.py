"""Sizes, ages and interruptions, for tests of whole syncs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from support import Site, wait_until

BLOCK = 8 << 20
LARGE = 3 * BLOCK  # a file that travels in spans, with checkpoints
SMALL, SPANS = 10, 2_000_000  # sizes of files that travel in a bundle, and alone
DAY = 24 * 60 * 60


def partials_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.trioft-partial") if not path.name.startswith(".trioft-probe"))


def old(path: Path, days: float) -> None:
    """Make a file look as if nobody had touched it for days."""
    os.utime(path, (time.time() - days * DAY,) * 2)


def snapshot(*roots: Path) -> list[tuple[object, ...]]:
    """Return all that a write to one of these trees would change, times of folders included."""
    entries: list[tuple[object, ...]] = []
    for root in roots:
        for path in (root, *sorted(root.rglob("*"))):
            status = path.lstat()
            entries.append(
                (path, status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            )
    return entries


def interrupted(site: Site, *options: str, blocks: int = 1, number: int = signal.SIGTERM) -> None:
    """
    Start a sync that copies a block every half second; stop it when some blocks of a file have been written.

    That the last byte of a block is there does not do: it counts once its mover has closed the file. When the next
    block begins, that was half a second ago.
    """
    running = site.start("sync", "--bwlimit", "16MiB/s", *options)
    running.wait_for(lambda line: line.get("state") == "copying")
    wait_until(lambda: any(path.stat().st_size > blocks * BLOCK for path in partials_of(site.dest)))
    done = running.end(number)
    assert done.code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
