"""
A simulator of programs that record media files: each profile writes and ends a file as one kind of them does.

    python tests/tools/recorder.py PROFILE PATH [--size 64MiB] [--rate 20MiB/s] [--wait] ...

``--help`` lists the profiles and all options. What happens is told on standard output, one line each: ``opened PATH``,
``paused``, ``resumed``, ``truncated N``, ``renamed PATH``; ``recorded N`` when all but the end has been written;
``closed PATH`` right after the last close, with the name that the file has then; and finally ``done PATH``.

With ``--wait`` the end begins when a line comes on standard input: after ``recorded`` was told, before anything of the
end (footers, rewritten headers, the last close, a final rename) is done. The end of standard input counts as a line.

A finished file holds the bytes of ``Content(seed)``, whatever its profile (in ``mp4`` the heads of the boxes lie over
them). What is later rewritten, truncated or replaced has first the bytes of ``Content(seed, draft=True)``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import re
import signal
import struct
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from mmap import MAP_SHARED, PROT_READ, PROT_WRITE

KIB, MIB = 2**10, 2**20
UNITS = {None: 1, "KiB": KIB, "MiB": MIB, "GiB": 2**30}
PIECE = 64 * KIB
WINDOW = 4 * MIB  # of the profile that writes out of order
SMALLEST = 4 * KIB  # has room for every header


class Content:
    """Pseudo-random bytes, in which each piece of 64 KiB is different and can be had without those before it."""

    def __init__(self, seed: int, draft: bool = False) -> None:
        numbers = random.Random(f"{seed} {draft}")
        self.pool = numbers.randbytes(MIB + PIECE)
        self.key = numbers.getrandbits(128)

    def piece(self, index: int) -> bytes:
        # The odd factor takes each of 2^20 pieces from another place of the pool; those after them differ by their key.
        place = index * 40503 % MIB
        return (self.key ^ index).to_bytes(16, "big") + self.pool[place : place + PIECE - 16]

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from *start* to *end*."""
        first = start // PIECE
        data = b"".join(map(self.piece, range(first, -(-end // PIECE))))
        return data[start - first * PIECE : end - first * PIECE]


class Recording:
    """A file that is being recorded: content comes at the wanted rate, and what happens is told."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.path: str = options.path
        self.size: int = options.size
        self.final, self.draft = Content(options.seed), Content(options.seed, draft=True)
        self.began: float | None = None
        self.produced = 0  # since then

    # --- the file

    def open(self, name: str) -> None:
        """Create the file, or empty an old one."""
        self.name = name
        self.fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        tell("opened", name)

    def put(self, position: int, data: bytes) -> None:
        """Write at a position, without regard to the rate."""
        while data:
            written = os.pwrite(self.fd, data, position)
            position, data = position + written, data[written:]

    def fill(self, start: int, end: int, content: Content | None = None) -> None:
        """Write one after the other what is recorded from *start* to *end*."""
        os.lseek(self.fd, start, os.SEEK_SET)
        for _, data in self.produce(start, end, content):
            while data:
                data = data[os.write(self.fd, data) :]

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)
        tell("truncated", size)

    def rename(self, name: str) -> None:
        os.rename(self.name, name)
        self.name = name
        tell("renamed", name)

    def close(self, last: bool = True) -> None:
        if self.options.fsync:
            os.fsync(self.fd)
        os.close(self.fd)
        if last:
            tell("closed", self.name)

    def recorded(self, size: int) -> None:
        """Tell that all but the end has been written; with --wait, begin the end only when a line comes."""
        tell("recorded", size)
        if self.options.wait:
            sys.stdin.readline()

    def finish(self, start: int) -> None:
        """Write the rest from *start* on, and close: the end of what has no other end."""
        self.fill(start, self.size)
        self.recorded(self.size)
        self.close()

    # --- time

    def produce(self, start: int, end: int, content: Content | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield positions and bytes as they become due, at most 1 MiB at once."""
        while start < end:
            due = self.due(1, min(end - start, MIB))
            yield start, (content or self.final).read(start, start + due)
            start += due

    def due(self, least: int, most: int) -> int:
        """Wait for the tick at which *least* bytes are due, and return how many are, up to *most*."""
        rate, tick = self.options.rate, self.options.tick
        if rate is None:
            return most
        if self.began is None:
            self.began, self.produced = time.monotonic(), 0
        # Counted from the beginning, so that a late tick is made up for by what is due at it.
        while True:
            now = time.monotonic()
            ticks = int((now - self.began) / tick)
            due = min(int(ticks * tick * rate) - self.produced, most)
            if due >= least:
                self.produced += due
                return due
            time.sleep(max(0, self.began + (ticks + 1) * tick - now))

    def pause(self, ends_by_line: bool = False) -> None:
        """Record nothing for a while: until a line comes, if it *ends_by_line*."""
        tell("paused")
        if ends_by_line:
            sys.stdin.readline()
        else:
            time.sleep(self.options.pause)
        self.began = None  # what was not recorded in the pause is not due after it
        tell("resumed")


def tell(*words: str | int) -> None:
    os.write(sys.stdout.fileno(), os.fsencode(" ".join(map(str, words)) + "\n"))  # a path may hold any byte


# --- the profiles


def ts(rec: Recording) -> None:
    """Appends only, like an MPEG transport stream."""
    rec.open(rec.path)
    rec.finish(0)


def mxf(rec: Recording) -> None:
    """Has a header and many partition packs, all rewritten in place just before the close, and a footer."""
    header, pack, step = min(64 * KIB, rec.size // 10), min(4 * KIB, rec.size // 100), min(10 * MIB, rec.size // 10)
    footer = rec.size - pack
    packs = [(start, min(start + pack, footer)) for start in range(header, footer, step)]
    rec.open(rec.path)
    position = 0
    for start, end in [(0, header), *packs]:
        rec.fill(position, start)
        rec.fill(start, end, rec.draft)
        position = end
    rec.fill(position, footer)
    rec.recorded(footer)
    rec.put(footer, rec.final.read(footer, rec.size))
    for start, end in [(0, header), *packs]:
        rec.put(start, rec.final.read(start, end))
    rec.close()


def mp4(rec: Recording) -> None:
    """Appends an index at the end, and patches the size of the data into the beginning."""
    ftyp = struct.pack(">I4s4sI16s", 32, b"ftyp", b"isom", 512, b"isomiso2avc1mp41")
    moov = min(200 * KIB, rec.size // 10)
    end = rec.size - moov
    rec.open(rec.path)
    rec.put(0, ftyp + struct.pack(">I4sQ", 1, b"mdat", 0))
    rec.fill(len(ftyp) + 16, end)
    rec.recorded(end)
    rec.put(end, struct.pack(">I4s", moov, b"moov") + rec.final.read(end + 8, rec.size))
    rec.put(len(ftyp), struct.pack(">I4sQ", 1, b"mdat", end - len(ftyp)))
    rec.close()


def preallocated(rec: Recording) -> None:
    """Allocates the whole file first, fills it from the beginning, and rewrites its header of 4 KiB at the end."""
    rec.open(rec.path)
    os.posix_fallocate(rec.fd, 0, rec.size)
    rec.fill(0, 4 * KIB, rec.draft)
    rec.fill(4 * KIB, rec.size)
    rec.recorded(rec.size)
    rec.put(0, rec.final.read(0, 4 * KIB))
    rec.close()


def trimmed(rec: Recording) -> None:
    """Allocates 25 % more than it needs, and truncates to the real size at the end."""
    rec.open(rec.path)
    os.posix_fallocate(rec.fd, 0, rec.size + rec.size // 4)
    rec.fill(0, rec.size)
    rec.recorded(rec.size)
    rec.truncate(rec.size)
    rec.close()


def zeros(rec: Recording) -> None:
    """Writes the whole file as zeros in one go, then fills it."""
    rec.open(rec.path)
    for start in range(0, rec.size, MIB):
        rec.put(start, bytes(min(MIB, rec.size - start)))
    rec.finish(0)


def mmap(rec: Recording) -> None:
    """Writes through a shared mapping, without an open descriptor, and changes its header of 4 KiB at the end."""
    # Not the module of this name: its maps keep a descriptor of their own open.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    rec.open(rec.path)
    os.ftruncate(rec.fd, rec.size)
    size = ctypes.c_size_t(rec.size)
    address = libc.mmap(None, size, PROT_READ | PROT_WRITE, MAP_SHARED, rec.fd, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    rec.close(last=False)
    ctypes.memmove(address, rec.draft.read(0, 4 * KIB), 4 * KIB)
    for position, data in rec.produce(4 * KIB, rec.size):
        ctypes.memmove(address + position, data, len(data))
    rec.recorded(rec.size)
    ctypes.memmove(address, rec.final.read(0, 4 * KIB), 4 * KIB)
    if rec.options.fsync:
        libc.msync(ctypes.c_void_p(address), size, 4)  # MS_SYNC
    libc.munmap(ctypes.c_void_p(address), size)
    tell("closed", rec.name)


def pausing(rec: Recording) -> None:
    """Stops for a while in the middle and keeps the file open; with --wait, until a line comes."""
    rec.open(rec.path)
    rec.fill(0, rec.size // 2)
    rec.pause(ends_by_line=rec.options.wait)
    rec.finish(rec.size // 2)


def reopening(rec: Recording) -> None:
    """Writes in four parts, with the file closed between them for a while."""
    rec.open(rec.path)
    for part in range(3):
        rec.fill(rec.size * part // 4, rec.size * (part + 1) // 4)
        rec.close(last=False)
        rec.pause()
        rec.fd = os.open(rec.path, os.O_RDWR | os.O_APPEND)
    rec.finish(rec.size * 3 // 4)


def renaming(rec: Recording) -> None:
    """Records under another name, and gives the file its own in the middle of the recording."""
    rec.open(rec.path + ".tmp")
    rec.fill(0, rec.size // 2)
    rec.rename(rec.path)
    rec.finish(rec.size // 2)


def renamed_after(rec: Recording) -> None:
    """Records under another name, and gives the file its own after the close."""
    rec.open(rec.path + ".tmp")
    rec.finish(0)
    rec.rename(rec.path)


def truncating(rec: Recording) -> None:
    """Writes a third, truncates the open file to nothing, and starts over with other content."""
    rec.open(rec.path)
    rec.fill(0, rec.size // 3, rec.draft)
    rec.truncate(0)
    rec.finish(0)


def replaced(rec: Recording) -> None:
    """Writes a third, removes the file, and starts over with other content in a new file of the same name."""
    rec.open(rec.path)
    rec.fill(0, rec.size // 3, rec.draft)
    rec.close(last=False)
    os.unlink(rec.path)
    rec.open(rec.path)
    rec.finish(0)


def scattered(rec: Recording) -> None:
    """Writes its pieces of 64 KiB out of order inside a moving window, as asynchronous I/O does."""
    numbers = random.Random(rec.options.seed)
    missing = list(range(0, rec.size, PIECE))
    rec.open(rec.path)
    while missing:
        start = missing.pop(numbers.randrange(bisect_left(missing, missing[0] + WINDOW)))
        data = rec.final.read(start, min(start + PIECE, rec.size))
        rec.due(len(data), len(data))
        rec.put(start, data)
    rec.finish(rec.size)


def killed(rec: Recording) -> None:
    """Is killed after two thirds of the recording, and never closes."""
    rec.open(rec.path)
    rec.fill(0, rec.size * 2 // 3)
    rec.recorded(rec.size * 2 // 3)
    os.kill(os.getpid(), signal.SIGKILL)


PROFILES: dict[str, Callable[[Recording], None]] = {
    profile.__name__.replace("_", "-"): profile
    for profile in (
        *(ts, mxf, mp4, preallocated, trimmed, zeros, mmap, pausing, reopening),
        *(renaming, renamed_after, truncating, replaced, scattered, killed),
    )
}


# --- the command line


def size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)([KMG]iB)?", text)
    if match is None:
        raise ValueError
    return int(match[1]) * UNITS[match[2]]


def rate(text: str) -> int:
    return size(text.removesuffix("/s"))


def main() -> None:
    """Record a file as the command line says."""
    profiles = "\n".join(f"  {name:15}{profile.__doc__}" for name, profile in PROFILES.items())
    parser = argparse.ArgumentParser(
        description="Record a file as one kind of program does, and tell what happens on standard output.",
        epilog=f"profiles:\n{profiles}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", choices=PROFILES, metavar="PROFILE")
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--size", type=size, default=64 * MIB, help="of the finished file, such as 64MiB (default)")
    parser.add_argument("--rate", type=rate, help="bytes a second, such as 20MiB/s; default: as fast as it goes")
    parser.add_argument("--pause", type=float, default=1.0, metavar="SECONDS", help="of profiles that pause; default 1")
    parser.add_argument("--seed", type=int, default=0, help="of the content; default 0")
    parser.add_argument("--tick", type=float, default=0.02, metavar="SECONDS", help="between writes; default 0.02")
    parser.add_argument("--wait", action="store_true", help="begin the end only when a line comes on standard input")
    parser.add_argument("--fsync", action="store_true", help="make the file durable before it is closed")
    options = parser.parse_args()
    if options.size < SMALLEST or options.rate == 0 or options.tick <= 0:
        parser.error(f"--size is at least {SMALLEST}, and --rate and --tick are more than 0")
    PROFILES[options.profile](Recording(options))
    tell("done", options.path)


if __name__ == "__main__":
    main()
