"""
File operations: plain synchronous functions, run one at a time in a mover.

This module holds what the operations share; they are in the other modules called ``…io``. Together they are
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
import functools
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import xxhash

from trioft.core.errors import IDENTIFY, FileTrouble, Remedy, Side, Trouble, classify, trouble_of
from trioft.core.model import (
    KIB,
    Fingerprint,
    Item,
    Manner,
    Result,
    Root,
    Verdict,
)
from trioft.movers.ops import linux, writers

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[object], None]

# What is read, digested and written in one go: it stays in the cache of the processor, which a block does not, and then
# all of it comes from memory three times.
_PIECE = 256 * KIB
_AT_A_TIME = 8  # small files that one mover has on the way to a server

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO in a file's place must not block


class Away(FileTrouble):
    """A root is not there, or is another filesystem than it was."""


def block_digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the xxh3-128 of one block: 16 bytes."""
    return xxhash.xxh3_128_digest(data)


def digest_of_block(fd: int, side: Side, path: bytes, offset: int, length: int) -> bytes:
    """
    Return the digest of a block of what is open as *fd*: read, and nothing of it kept.

    Of the destination's nothing stays in the page cache either. Nobody is going to need it; and memory that is used
    over and over costs less than what has to be found for each page: 2 GiB are read back in half the time.
    """
    hasher = xxhash.xxh3_128()
    for _, piece in pieces(fd, side, path, offset, length):
        hasher.update(piece)
    if side == Side.DESTINATION:
        with contextlib.suppress(OSError):
            forget(fd, offset, length)
    return hasher.digest()


def file_digest(block_digests: bytes) -> bytes:
    """Return a file's digest: the xxh3-128 of its block digests in order."""
    return xxhash.xxh3_128_digest(block_digests)


def fingerprint_of(status: os.stat_result) -> Fingerprint:
    """Return which version of which file this is. Times are folded into 64 bits, as the ledger holds no others."""
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    if not (-(2**63) <= mtime < 2**63 and -(2**63) <= ctime < 2**63):  # beyond the year 2262, as broken clocks write
        mtime, ctime = ((time + 2**63) % 2**64 - 2**63 for time in (mtime, ctime))
    return Fingerprint(status.st_dev, status.st_ino, status.st_size, mtime, ctime)


@contextlib.contextmanager
def opened(root: Root, side: Side) -> Iterator[int]:
    """
    Open *root* and make sure that it is still the filesystem it was: everything else is reached through this
    descriptor.

    A share that is not mounted leaves an ordinary folder of the local disk in its place; its device gives it away, or,
    where it is a part of that disk, its inode.
    """
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
        yield fd
    finally:
        close_quietly(fd)


def status_of(fd: int, side: Side, path: bytes) -> os.stat_result:
    """Return the status of what is open as *fd*, and called *path*. Raises ``FileTrouble``."""
    try:
        return os.fstat(fd)
    except OSError as error:
        raise FileTrouble(trouble_of(error, side, "stat", path)) from error


def each(dst: int, work: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """
    Return what *work* returns for each of *things*: for several at a time where the destination is behind a network.

    There a small file mostly waits, a dozen times, for an answer. Elsewhere threads only take the interpreter from
    each other. *work* may tell of progress: messages as short as these do not get mixed up in the pipe.
    """
    if len(things) < 2 or linux.filesystem_magic(dst) not in linux.SHARED:
        return [work(thing) for thing in things]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(_AT_A_TIME, len(things))) as pool:
        return list(pool.map(work, things))


def close_quietly(fd: int) -> None:
    """Close a descriptor through which nothing was written, or nothing that will be used: its error means nothing."""
    with contextlib.suppress(OSError):
        os.close(fd)


def make_folder(src: int, dst: int, folder: bytes, *, made_up: bool = False) -> list[bytes]:
    """
    Make *folder* and its parents at the destination, with the permission bits they have at the source.

    One that the source does not have is private; but if a rule has *made up* these folders, as any new folder is here.

    Returns the folders that got a new entry, which have to be made durable. Never makes the root.
    """
    if not folder:
        return []
    changed: list[bytes] = []
    try:
        try:
            os.mkdir(folder, 0o700, dir_fd=dst)
        except FileNotFoundError:
            changed = make_folder(src, dst, os.path.dirname(folder), made_up=made_up)
            os.mkdir(folder, 0o700, dir_fd=dst)
    except FileExistsError:
        return changed  # another mover may have been faster
    with contextlib.suppress(OSError):  # a destination without permission bits is said once, by the probe
        try:
            mode = os.stat(folder, dir_fd=src).st_mode
        except FileNotFoundError:
            mode = _mode_of_new_folders() if made_up else 0
        os.chmod(folder, mode & 0o777 | 0o700, dir_fd=dst)
    return [*changed, os.path.dirname(folder)]


@functools.cache
def _mode_of_new_folders() -> int:
    """Return the permission bits that the umask leaves a new folder. Asked in another way, it would have to be set."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return 0o777 & ~int(line.split()[1], 8)
    return 0o700


def sync_folder(dst: int, folder: bytes) -> None:
    """Make the entries of *folder* durable."""
    try:
        fd = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dst)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # Some servers cannot; the rename is then as durable as they make it.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "fsync", folder)) from error


def open_source(src: int, item: Item) -> tuple[int, Result]:
    """
    Open a source file and see whether it is the version asked for and nobody writes it.

    Returns the descriptor, which the caller closes, and a Result: one that says why it must not be copied now (with
    the descriptor -1), or WRITTEN, with how sure it is that nobody writes it, for when it has been copied.
    """
    return _open_if(src, item, _why_not_now)


def open_growing(src: int, item: Item) -> tuple[int, Result]:
    """The same for a file that somebody may be writing: it only has to be the same file, in whatever version."""
    return _open_if(src, item, _why_not_ever)


def _open_if(src: int, item: Item, look: Callable[[int, Item], Result]) -> tuple[int, Result]:
    try:
        fd = os.open(item.path, READ, dir_fd=src)
    except FileNotFoundError:
        return -1, Result(Verdict.GONE)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "open", item.path)) from error
    try:
        result = look(fd, item)
    except BaseException:
        close_quietly(fd)
        raise
    if result.verdict == Verdict.WRITTEN:
        return fd, result
    close_quietly(fd)
    return -1, result


def _why_not_now(fd: int, item: Item) -> Result:
    if has_changed(fd, item):
        return Result(Verdict.CHANGED)
    answer = writers.ask_lease(fd, item.fingerprint.dev)
    if answer == writers.BUSY:
        return Result(Verdict.BUSY)
    if answer == writers.UNKNOWN and not item.settled:
        return Result(Verdict.UNPROVEN)
    return Result(Verdict.WRITTEN, closed=writers.strength(fd, item.fingerprint.dev, answer, item.marked))


def _why_not_ever(fd: int, item: Item) -> Result:
    same = current_fingerprint(fd, item.path)[:2] == item.fingerprint[:2]
    return Result(Verdict.WRITTEN if same else Verdict.CHANGED)


def has_changed(fd: int, item: Item) -> bool:
    """Is the source that is open as *fd* another version than the one asked for?"""
    return current_fingerprint(fd, item.path) != item.fingerprint


def check_unchanged(fd: int, item: Item, offset: int) -> None:
    """The source that is open as *fd* has been read from *offset*: was it the version asked for?"""
    now = current_fingerprint(fd, item.path)
    if now != item.fingerprint and now[1:] == item.fingerprint[1:]:
        # Mounted again under another device number since its job was made: that is no change of the file.
        text = "the source has been mounted again"
        raise Away(Trouble(Side.SOURCE, IDENTIFY, b"", None, errno.ENODEV, text))
    if now != item.fingerprint:
        text = "the file changed while it was copied"
        raise FileTrouble(Trouble(Side.SOURCE, "read", item.path, offset, None, text))


def current_fingerprint(fd: int, path: bytes) -> Fingerprint:
    """Return which version the source file *path*, open as *fd*, is now."""
    return fingerprint_of(status_of(fd, Side.SOURCE, path))


def is_same(there: os.stat_result, fingerprint: Fingerprint, resolution_ns: int) -> bool:
    """Same size and modification time, as far as the destination can hold the latter."""
    return (
        stat.S_ISREG(there.st_mode)
        and there.st_size == fingerprint.size
        and abs(fingerprint_of(there).mtime_ns - fingerprint.mtime_ns) < resolution_ns
    )


def are_same(there: os.stat_result, here: os.stat_result, resolution_ns: int) -> bool:
    """The same for two files that were just looked at; here it is asked a million times, and makes nothing."""
    return (
        there.st_size == here.st_size
        and abs(there.st_mtime_ns - here.st_mtime_ns) < resolution_ns
        and stat.S_ISREG(there.st_mode)
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
    done = 0
    try:
        while done < len(view):
            n = os.preadv(fd, [view[done:]], offset + done)
            if n == 0:
                raise FileTrouble(Trouble(side, "read", path, offset + done, None, "the file is shorter than it was"))
            done += n
    except OSError as error:
        raise FileTrouble(trouble_of(error, side, "read", path, offset + done)) from error


def write_all(fd: int, path: bytes, offset: int, view: memoryview) -> None:
    done = 0
    try:
        while done < len(view):
            n = os.pwrite(fd, view[done:], offset + done)
            if n == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            done += n
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "write", path, offset + done)) from error


def remove_partial(dst: int, partial: bytes) -> None:
    """Remove a partial. One that is not there is fine."""
    try:
        os.unlink(partial, dir_fd=dst)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "unlink", partial)) from error


def create_partial(
    src: int, dst: int, partial: bytes, mode: int = 0, *, routed: bool = False
) -> tuple[int, list[bytes]]:
    """
    Create a partial with the permission bits of *mode*, as far as the umask lets them, and its folder; return its
    descriptor and the folders that have a new entry.

    If the file is *routed*, its folder need not have one at the source that it could be like.

    A leftover is unlinked, never truncated: whoever still has it open, writes into nothing.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    folders: list[bytes] = []
    op = "create"
    for _ in range(10):
        try:
            return os.open(partial, flags, _mode_of_partial(mode), dir_fd=dst), folders
        except FileExistsError:
            remove_partial(dst, partial)
        except FileNotFoundError as error:
            if folders:
                raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial)) from error
            folder = os.path.dirname(partial)
            try:
                folders = make_folder(src, dst, folder, made_up=routed) or [folder]
            except OSError as other:
                raise FileTrouble(trouble_of(other, Side.DESTINATION, "mkdir", folder)) from other
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial)) from error
    # It cannot be created because it is there, and not be removed because it is not: a server that waits for somebody.
    raise FileTrouble(Trouble(Side.DESTINATION, op, partial, None, errno.EBUSY, os.strerror(errno.EBUSY)))


def _mode_of_partial(mode: int) -> int:
    """The owner may read and write a partial whatever the source's bits are; ``publish`` takes away the rest."""
    return mode & 0o777 | 0o600


def copy_attributes(src_fd: int, dst_fd: int, item: Item, manner: Manner, mode: int | None = None) -> None:
    """
    Permission bits and user attributes, as far as the destination takes them: its probe says what it does not.

    *mode* is what the partial has, where that is known: a server need not be asked for what is there.
    """
    if mode is None or stat.S_IMODE(mode) != _mode_of_partial(item.mode):
        with as_far_as_possible("chmod", item.path):
            os.fchmod(dst_fd, _mode_of_partial(item.mode))
    if manner.xattrs:
        with as_far_as_possible("setxattr", item.path):
            for name in os.listxattr(src_fd):
                if name.startswith("user."):
                    os.setxattr(dst_fd, name, os.getxattr(src_fd, name))


@contextlib.contextmanager
def as_far_as_possible(op: str, path: bytes) -> Iterator[None]:
    """Do without what cannot be done. That the destination is gone is another matter: then it can be done later."""
    try:
        yield
    except OSError as error:
        trouble = trouble_of(error, Side.DESTINATION, op, path)
        if classify(trouble) == Remedy.DESTINATION:
            raise FileTrouble(trouble) from error


def close_written(fd: int, path: bytes) -> None:
    """Close a file that was written: network filesystems keep their errors for this moment."""
    try:
        os.close(fd)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "close", path)) from error


def mismatch(partial: bytes, offset: int) -> Trouble:
    return Trouble(
        Side.DESTINATION,
        "read back",
        partial,
        offset,
        None,
        "the destination holds other bytes than were written",
    )
