"""Files to be copied, many and large, and where their content is: in the page cache, or on the disk only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

A_FOLDER = 100  # files
AN_HOUR_AGO = 3600 * 10**9  # nanoseconds


def make_large(path: Path, size: int) -> None:
    """Make a file of incompressible bytes."""
    with open(path, "wb") as file:
        for start in range(0, size, 2**23):
            file.write(os.urandom(min(2**23, size - start)))


def make_small(folder: Path, count: int, size: int, first: int = 0) -> None:
    """Make *count* files of *size* incompressible bytes, a hundred in a folder, numbered from *first* on."""
    for start in range(first, first + count, A_FOLDER):
        path = f"{folder}/{start // A_FOLDER:05d}"
        os.makedirs(path)
        for number in range(start, min(start + A_FOLDER, first + count)):
            fd = os.open(f"{path}/{number:07d}.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, os.urandom(size))
            os.close(fd)


def make_empty(folders: list[Path], count: int, first: int, mtime_ns: int) -> None:
    """Make the same empty files in each of *folders*, a hundred in a folder."""
    times = (mtime_ns, mtime_ns)
    for folder in folders:
        for start in range(first, first + count, A_FOLDER):
            path = f"{folder}/{start // A_FOLDER:05d}"
            os.makedirs(path)
            for number in range(start, min(start + A_FOLDER, first + count)):
                fd = os.open(f"{path}/{number:07d}.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.utime(fd, ns=times)
                os.close(fd)


def files_below(folder: Path) -> Iterator[str]:
    for above, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(above, name)


def sizes_below(folder: Path) -> dict[str, int]:
    return {os.path.relpath(path, folder): os.lstat(path).st_size for path in files_below(folder)}


def place_in_cache(source: Path, cache: str, drop_caches: bool = False) -> None:
    """
    Have the content of *source*, a file or a folder, in the page cache (warm), or out of it (cold).

    Cold by dropping its own pages, or, told to, all that the machine has: then names and inodes are read anew too.
    """
    os.sync()  # nobody pays for what others left behind, and only what is clean can be dropped
    if cache == "cold" and drop_caches:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return
    buffer = bytearray(2**20)
    for path in [str(source)] if source.is_file() else files_below(source):
        fd = os.open(path, os.O_RDONLY)
        if cache == "cold":
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while os.readv(fd, [buffer]):
                pass
        os.close(fd)


def cached_part(path: Path) -> float | None:
    """Return which part of a file is in the page cache, if that can be known."""
    if not shutil.which("fincore"):
        return None
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout) / path.stat().st_size
