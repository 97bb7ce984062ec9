"""
File operations: plain synchronous functions, run one at a time in a mover.

This module holds what the operations share; they are in the other modules here, and in ``folder``. Together they are
the only code that touches the source and the destination. Every operation is

* stateless: it opens what it needs below the two roots, and leaves nothing open, so that a descriptor that has met
  an error is never used again;
* idempotent: a mover may die in the middle of it, and the operation is done again from the start;
* exact about its troubles: an ``OSError`` leaves as a ``FileTrouble`` with side, operation, path and offset.

*progress*, where an operation takes it, is called with what has been done; that also extends the call's deadline.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator

import xxhash

from trioft.core.answers import Sealed, Step, Written
from trioft.core.errors import IDENTIFY, FileTrouble, Side, Trouble, trouble_of
from trioft.core.model import (
    KIB,
    Fingerprint,
    Root,
)
from trioft.movers.ops import linux
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.mounting import mounting_of
from trioft.movers.ops.slate import touch

Progress = Callable[[Step], None]
# And of blocks that were written, and what the partial is then.
Writing = Callable[[Step | Written | Sealed], None]

# What is read, digested and written in one go: it stays in the cache of the processor, which a block does not, and then
# all of it comes from memory three times.
_PIECE = 256 * KIB

_TELL_EVERY = 1.0  # seconds

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO in a file's place must not block


class Away(FileTrouble):
    """A root is not there, or is another filesystem than it was."""


def digest_of_block(
    fd: int, side: Side, path: bytes, offset: int, length: int, progress: Progress | None = None
) -> bytes:
    """
    Return the digest of a block of what is open as *fd*: read, and nothing of it kept.

    A slow one is told piece by piece.

    Of the destination's nothing stays in the page cache either. Nobody is going to need it; and memory that is used
    over and over costs less than what has to be found for each page: 2 GiB are read back in half the time.
    """
    hasher = xxhash.xxh3_128()
    told = time.monotonic() if progress is not None else 0.0
    for at, piece in pieces(fd, side, path, offset, length):
        hasher.update(piece)
        if progress is not None and time.monotonic() - told > _TELL_EVERY:
            progress(Step("read", at + len(piece) - offset))
            told = time.monotonic()
    if side == Side.DESTINATION:
        with contextlib.suppress(OSError):
            forget(fd, offset, length)
    return hasher.digest()


def fingerprint_of(status: os.stat_result) -> Fingerprint:
    """Return which version of which file this is. Times are folded into 64 bits, as the ledger holds no others."""
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    if not (-(2**63) <= mtime < 2**63 and -(2**63) <= ctime < 2**63):  # beyond the year 2262, as broken clocks write
        mtime, ctime = ((time + 2**63) % 2**64 - 2**63 for time in (mtime, ctime))
    return Fingerprint(status.st_dev, status.st_ino, status.st_size, mtime, ctime)


@contextlib.contextmanager
def opened(root: Root, side: Side) -> Iterator[Top]:
    """
    Open *root* and make sure that it is still the filesystem it was: everything else is reached through this
    descriptor.

    A share that is not mounted leaves an ordinary folder of the local disk in its place; its device gives it away, or,
    where it is a part of that disk, its inode. What has been mounted there since has perhaps the same device, and is
    told by its mounting: whether it is the same filesystem once more, the next probe says.
    """
    touch(side)
    try:
        fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            text = f"the {side} folder is not there"
            raise Away(Trouble(side, "open", b"", None, errno.ENODEV, text)) from None
        raise FileTrouble(trouble_of(error, side, "open", b"")) from error
    try:
        status = status_of(fd, side, b"")
        same = status.st_dev == root.dev and root.ino in (0, status.st_ino)
        if not same or (root.uuid and linux.filesystem_uuid(fd) != root.uuid):
            text = f"another filesystem is mounted at the {side} folder, or none"
            raise Away(Trouble(side, IDENTIFY, b"", None, errno.ENODEV, text))
        if root.mounting and mounting_of(fd) != root.mounting:
            text = f"another filesystem has been mounted at the {side} folder meanwhile, or the same one once more"
            raise Away(Trouble(side, IDENTIFY, b"", None, errno.ENODEV, text))
        top = Top(fd, is_source=side == Side.SOURCE, mounts=root.mounts)
        try:
            yield top
        finally:
            top.close()
    finally:
        close_quietly(fd)


def status_of(fd: int, side: Side, path: bytes) -> os.stat_result:
    """Return the status of what is open as *fd*, and called *path*. Raises ``FileTrouble``."""
    touch(side)
    try:
        return os.fstat(fd)
    except OSError as error:
        raise FileTrouble(trouble_of(error, side, "stat", path)) from error


_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def kind_of(status: os.stat_result) -> str:
    """Return in words what something is that is neither a file nor a folder."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "special file")


def is_steady(fd: int) -> bool:
    """Does the filesystem of *fd* tell of each change of a file, by its ctime, and of none that was not made?"""
    return linux.filesystem_magic(fd) in linux.STEADY


def close_quietly(fd: int) -> None:
    """Close a descriptor through which nothing was written, or nothing that will be used: its error means nothing."""
    with contextlib.suppress(OSError):
        os.close(fd)


def is_same(there: os.stat_result, fingerprint: Fingerprint, resolution_ns: int) -> bool:
    """Same size and modification time, as far as the destination can hold the latter."""
    return (
        stat.S_ISREG(there.st_mode)
        and there.st_size == fingerprint.size
        and abs(fingerprint_of(there).mtime_ns - fingerprint.mtime_ns) < resolution_ns
    )


def advise(fd: int, offset: int, length: int, advice: int) -> None:
    """Tell the page cache what will be wanted, or not any more. Where it cannot be told, nothing is lost."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, length, advice)


def forget(fd: int, offset: int, length: int) -> None:
    """
    Drop a range from the page cache, so that the next to read it asks the disk, or the server.

    To the ends of its pages: of one that is asked for in part nothing would be dropped. Raises ``OSError``.
    """
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    end = -(-(offset + length) // mmap.PAGESIZE) * mmap.PAGESIZE
    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


def read_exactly(fd: int, side: Side, path: bytes, offset: int, length: int) -> bytearray:
    """Read *length* bytes from *offset*. A file that ends before that is a trouble."""
    buffer = bytearray(length)
    read_into(fd, side, path, offset, memoryview(buffer))
    return buffer


def pieces(fd: int, side: Side, path: bytes, offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """Read *length* bytes from *offset*; yield pieces of them with their offsets. A piece is gone with the next one."""
    buffer = memoryview(bytearray(min(_PIECE, length)))
    for at in range(offset, offset + length, _PIECE):
        piece = buffer[: min(_PIECE, offset + length - at)]
        read_into(fd, side, path, at, piece)
        yield at, piece


def read_into(fd: int, side: Side, path: bytes, offset: int, view: memoryview) -> None:
    touch(side)
    done = 0
    try:
        while done < len(view):
            n = os.preadv(fd, [view[done:]], offset + done)
            if n == 0:
                raise FileTrouble(Trouble(side, "read", path, offset + done, None, "the file is shorter than it was"))
            done += n
    except OSError as error:
        raise FileTrouble(trouble_of(error, side, "read", path, offset + done)) from error


# A call returns after the folder in which it has seen this many names: a few tens of milliseconds.
NAMES_A_CALL = 5_000
