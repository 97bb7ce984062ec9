"""
Seals: what a partial, or a delivered copy, was when it was verified; has anybody changed it since? Run in a mover.

Where the filesystem tells of each change, a look at inode, size and times says so. Elsewhere inodes may be made up, and
times set by a server: what is in doubt is read again as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

from trioft.core.answers import Step
from trioft.core.digests import file_digest
from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.model import BLOCK_SIZE, Fingerprint, Root
from trioft.movers.ops import beneath
from trioft.movers.ops.files import (
    READ,
    Progress,
    close_quietly,
    digest_of_block,
    fingerprint_of,
    is_steady,
    opened,
)
from trioft.movers.ops.folder.existing import open_to_sync
from trioft.movers.ops.folder.partials import set_times
from trioft.movers.ops.slate import touch


def seal(destination: Root, partial: bytes, mtime_ns: int) -> Fingerprint:
    """
    Give a partial this modification time, and return what it is.

    Whoever writes to it from now on is found out: that sets the time anew.
    """
    with opened(destination, Side.DESTINATION) as dst:
        try:
            set_times(dst, partial, (mtime_ns, mtime_ns))
            return fingerprint_of(beneath.stat_of(partial, dir_fd=dst))
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "utimens", partial)) from error


def is_sealed(destination: Root, partial: bytes, seal: Fingerprint, digest: bytes | None, progress: Progress) -> bool:
    """
    Does the partial still hold what it did when it was sealed?

    Some servers give a file other times by themselves: where they are in doubt, all of it is read again, and has to
    have *digest*.
    """
    with opened(destination, Side.DESTINATION) as dst:
        try:
            status = beneath.stat_of(partial, dir_fd=dst)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "compare", partial)) from error
        return fingerprint_of(status) == seal or _holds(dst, partial, status, seal.size, digest, progress)


def are_sealed(
    destination: Root, copies: list[tuple[bytes, Fingerprint, bytes | None]], progress: Progress
) -> list[bool]:
    """Return of each of *copies* (name, seal, digest of the whole file) whether it is there and holds what it did."""
    with opened(destination, Side.DESTINATION) as dst:
        return [bool(is_untouched(dst, name, seal, digest, progress)) for name, seal, digest in copies]


def is_untouched(
    dst: int, name: bytes, seal: Fingerprint, digest: bytes | None, progress: Progress, *, held: bool = False
) -> bool | None:
    """
    Is what is called *name* what it was when it was sealed, as far as its filesystem can tell?

    Where that says that it may not be, all of it is read again, and has to have *digest*. None: there is no such file.
    One that is *held* still is not opened for writing.
    """
    touch(Side.DESTINATION)
    try:
        status = beneath.stat_of(name, dir_fd=dst)
        now = fingerprint_of(status)
        if now == seal:
            return True
        if (now.size, now.mtime_ns) == (seal.size, seal.mtime_ns) and stat.S_ISREG(status.st_mode):
            fd = beneath.open_folder(os.path.dirname(name), dir_fd=dst)
            try:
                if not is_steady(fd):
                    return True
            finally:
                close_quietly(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "stat", name)) from error
    return _holds(dst, name, status, seal.size, digest, progress, held=held)


@contextlib.contextmanager
def held_still(dst: int, name: bytes) -> Iterator[None]:
    """
    While inside, nobody begins to write to the file *name*: who opens it for that waits until it is over.

    That is a read lease, where there are such, and nobody has the file open for writing already. Elsewhere its times
    have to tell. It is not opened for writing inside, or this process would wait for itself.
    """
    fd = -1
    try:
        with contextlib.suppress(OSError):
            fd = beneath.open_file(name, READ, dir_fd=dst)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        yield
    finally:
        if fd >= 0:
            close_quietly(fd)


def _holds(
    dst: int,
    name: bytes,
    status: os.stat_result,
    size: int,
    digest: bytes | None,
    progress: Progress,
    *,
    held: bool = False,
) -> bool:
    """Read what is called *name*, from behind the page cache: has it *size* bytes, and *digest*?"""
    if digest is None or status.st_size != size or not stat.S_ISREG(status.st_mode):
        return False
    digests = bytearray()
    try:
        fd = beneath.open_file(name, READ, dir_fd=dst) if held else open_to_sync(name, dst)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, size, BLOCK_SIZE):
                length = min(BLOCK_SIZE, size - offset)
                digests += digest_of_block(fd, Side.DESTINATION, name, offset, length, progress)
                progress(Step("compared", length))
        finally:
            os.close(fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "compare", name)) from error
    return file_digest(bytes(digests)) == digest
