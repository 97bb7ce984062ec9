"""
What the destination has under a file's final name already: is it the same file? Runs in a mover.
"""

from __future__ import annotations

import errno
import os
import stat

from trioft.core import ascmhl
from trioft.core.answers import Step
from trioft.core.digests import file_digest
from trioft.core.errors import FileTrouble, Side, Trouble, trouble_of
from trioft.core.manifest import ASC_MHL
from trioft.core.model import BLOCK_SIZE, Item, Manner, Result, Verdict, policy_for
from trioft.core.naming import numbered
from trioft.movers.ops import beneath
from trioft.movers.ops.files import READ, Progress, close_quietly, digest_of_block, is_same, read_exactly, status_of
from trioft.movers.ops.folder.partials import sync_folder
from trioft.movers.ops.slate import touch


def look_for_existing(src_fd: int, dst: int, item: Item, manner: Manner, progress: Progress) -> Result | None:
    """Return ALREADY or EXISTS if the file needs no copying, else None."""
    if_exists = policy_for(item, manner)
    for target in numbered(item.target):
        touch(Side.DESTINATION)
        try:
            there = beneath.stat_of(target, dir_fd=dst)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "stat", target)) from error
        if is_same(there, item.fingerprint, manner.resolution_ns):
            if not manner.prove_existing:
                return Result(Verdict.ALREADY, target)
            digest = _compare_contents(src_fd, dst, target, item, progress)
            if digest is not None:
                return Result(Verdict.ALREADY, target, digest)
        if manner.manifest == ASC_MHL and ascmhl.is_chain(target) and _is_continued(src_fd, dst, target, item):
            return Result(Verdict.ALREADY, target)
        if if_exists in ("skip", "fail"):
            return Result(Verdict.EXISTS, target)
        if if_exists == "overwrite":
            if stat.S_ISDIR(there.st_mode):
                raise FileTrouble(
                    Trouble(Side.DESTINATION, "rename", target, None, errno.EISDIR, os.strerror(errno.EISDIR))
                )
            return None
    raise AssertionError("numbered() does not end")


def _is_continued(src_fd: int, dst: int, target: bytes, item: Item) -> bool:
    """Is what the destination has the chain of the source, with generations that trioft has added to it?"""
    touch(Side.DESTINATION)
    try:
        there = beneath.open_file(target, READ, dir_fd=dst)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "open", target)) from error
    try:
        size, its_size = status_of(there, Side.DESTINATION, target).st_size, item.fingerprint.size
        return max(size, its_size) <= BLOCK_SIZE and ascmhl.continues(
            read_exactly(there, Side.DESTINATION, target, 0, size),
            read_exactly(src_fd, Side.SOURCE, item.path, 0, its_size),
        )
    finally:
        close_quietly(there)


def _compare_contents(src_fd: int, dst: int, target: bytes, item: Item, progress: Progress) -> bytes | None:
    """
    Compare a source with what is there under its final name, byte for byte; return the digest if they are equal.

    The destination's bytes are made durable and read from behind the page cache, so that this proves as much as a copy.
    """
    offset = 0
    digests = bytearray()
    touch(Side.DESTINATION)
    try:
        there = _open_to_sync(target, dst)
        try:
            os.fsync(there)
            os.posix_fadvise(there, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, item.fingerprint.size, BLOCK_SIZE):
                length = min(BLOCK_SIZE, item.fingerprint.size - offset)
                mine = digest_of_block(src_fd, Side.SOURCE, item.path, offset, length)
                if mine != digest_of_block(there, Side.DESTINATION, target, offset, length):
                    return None
                digests += mine
                progress(Step("compared", length))
        finally:
            os.close(there)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "compare", target, offset)) from error
    sync_folder(dst, os.path.dirname(target))
    return file_digest(bytes(digests))


def _open_to_sync(target: bytes, dst: int) -> int:
    """Open a delivered file for reading, and for writing where it is allowed: some servers sync for writers only."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return beneath.open_file(target, os.O_RDWR | flags, dir_fd=dst)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ETXTBSY):
            raise
        return beneath.open_file(target, os.O_RDONLY | flags, dir_fd=dst)
