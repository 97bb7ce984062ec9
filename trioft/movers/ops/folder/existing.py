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
from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify, trouble_of
from trioft.core.manifest import ASC_MHL
from trioft.core.model import BLOCK_SIZE, Ends, Former, Item, Manner, Result, Verdict, policy_for
from trioft.core.naming import numbered
from trioft.movers.ops import beneath
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import (
    READ,
    Progress,
    close_quietly,
    digest_of_block,
    fingerprint_of,
    is_same,
    opened,
    read_exactly,
    status_of,
)
from trioft.movers.ops.folder.names import spelled_otherwise, taken_as
from trioft.movers.ops.folder.partials import (
    as_far_as_possible,
    copy_attributes,
    permission_bits,
    set_times,
    sync_folder,
)
from trioft.movers.ops.folder.probe import time_as_kept
from trioft.movers.ops.folder.views import is_source_itself, refuse_itself, refuse_view
from trioft.movers.ops.slate import touch
from trioft.movers.ops.source import has_changed

# Times, in nanoseconds, that every filesystem can hold: FAT begins in 1980, and 32 bits end in 2038.
_SURELY_HELD = 315_619_200 * 10**9, 2**31 * 10**9


def look_for_existing(src: Top, src_fd: int, dst: Top, item: Item, manner: Manner, progress: Progress) -> Result | None:
    """
    Return ALREADY or EXISTS if the file needs no copying, else None.

    Raises ``FileTrouble`` where what is there is the source itself.
    """
    refuse_view(src, dst, item)
    if_exists = policy_for(item, manner)
    for target in numbered(item.target, manner.name_max):
        touch(Side.DESTINATION)
        if (there := _status_at(dst, target)) is None:
            return None
        if is_same(there, item.fingerprint, manner.resolution_ns) or _is_as_kept(dst, target, there, item, manner):
            if is_source_itself(src, src_fd, dst, item, target, there):
                raise refuse_itself(target)
            must_prove = manner.prove_existing or item.doubtful or spelled_otherwise(dst, target) is not None
            digest = _compare_contents(src_fd, dst, target, item, progress) if must_prove else None
            if digest is not None or not must_prove:
                note = ""
                if manner.permissions and (there.st_mode ^ item.mode) & 0o777:
                    set_bits(src_fd, dst, target, item)
                    note = f"its permission bits were set to {item.mode & 0o777:03o}"
                    there = _looked_at(dst, target)
                return Result(
                    Verdict.ALREADY, target, digest, note=note, seal=fingerprint_of(there) if digest else None
                )
        elif target == item.before and if_exists != "skip" and _is_file_of(there, item.fingerprint.size):
            digest = _compare_contents(src_fd, dst, target, item, progress)
            if digest is not None:
                if has_changed(src_fd, item):
                    return Result(Verdict.CHANGED)
                renew_attributes(src_fd, dst, target, item, manner)
                seal = fingerprint_of(_looked_at(dst, target))
                note = "the same content: only its time was set"
                return Result(Verdict.ALREADY, target, digest, note=note, seal=seal)
        if manner.manifest == ASC_MHL and ascmhl.is_chain(target) and _is_continued(src_fd, dst, target, item):
            return Result(Verdict.ALREADY, target)
        if if_exists in ("skip", "fail"):
            return Result(Verdict.EXISTS, target)
        if if_exists == "overwrite" and (real := spelled_otherwise(dst, target)) is not None:
            return Result(Verdict.EXISTS, target, note=taken_as(real))
        if if_exists == "overwrite":
            if stat.S_ISDIR(there.st_mode):
                raise FileTrouble(
                    Trouble(Side.DESTINATION, "rename", target, None, errno.EISDIR, os.strerror(errno.EISDIR))
                )
            return None
    raise AssertionError("numbered() does not end")


def _is_as_kept(dst: int, target: bytes, there: os.stat_result, item: Item, manner: Manner) -> bool:
    """Is this the file's own copy, with all that the destination can hold of its time: not before 1980, for one?"""
    if target != item.before or not _is_file_of(there, item.fingerprint.size):
        return False
    if _SURELY_HELD[0] <= item.fingerprint.mtime_ns < _SURELY_HELD[1]:
        return False
    kept = time_as_kept(dst, item.fingerprint.mtime_ns)
    return is_same(there, item.fingerprint._replace(mtime_ns=kept), manner.resolution_ns)


def _is_file_of(there: os.stat_result, size: int) -> bool:
    return stat.S_ISREG(there.st_mode) and there.st_size == size


def find_former(ends: Ends, items: list[Item], progress: Progress) -> list[Former | None]:
    """
    Find the copies of earlier versions of *items* of which all is still the beginning of the source: nothing of them is
    lost where the present version replaces them. One answer for each item, in order.

    Both are read, the copy from behind the page cache. That a copy cannot be read says that it must stay.
    """
    answers: list[Former | None] = []
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        for item in items:
            try:
                answers.append(_find_former_of(src, dst, item, progress))
            except FileTrouble as error:
                if classify(error.trouble) in (Remedy.DESTINATION, Remedy.SOURCE):
                    raise
                answers.append(None)
    return answers


def _find_former_of(src: int, dst: int, item: Item, progress: Progress) -> Former | None:
    touch(Side.DESTINATION)
    for target in numbered(item.target):
        if (there := _status_at(dst, target)) is None:
            return None
        if target == item.before:
            return _as_former(src, dst, target, there, item, progress)
    raise AssertionError("numbered() does not end")


def _as_former(
    src: int, dst: int, target: bytes, there: os.stat_result, item: Item, progress: Progress
) -> Former | None:
    """Return the copy *target* of an earlier version if all of it is still the beginning of the source."""
    if not stat.S_ISREG(there.st_mode) or there.st_size > item.fingerprint.size:
        return None
    touch(Side.SOURCE)
    try:
        src_fd = beneath.open_file(item.path, READ, dir_fd=src)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "open", item.path)) from error
    try:
        begins = item._replace(fingerprint=item.fingerprint._replace(size=there.st_size))
        if _compare_contents(src_fd, dst, target, begins, progress) is None:
            return None
    finally:
        close_quietly(src_fd)
    return Former(target, fingerprint_of(there))


def set_bits(src_fd: int, dst: int, target: bytes, item: Item) -> None:
    """Give a delivered file the permission bits of its source. That it is another user's keeps it as it is."""
    op = "open"
    touch(Side.DESTINATION)
    try:
        fd = beneath.open_file(target, READ, dir_fd=dst)
        try:
            op = "chmod"
            with as_far_as_possible(op, target):
                os.fchmod(fd, permission_bits(src_fd, fd, item.mode))
        finally:
            close_quietly(fd)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, target)) from error


def renew_attributes(src_fd: int, dst: int, target: bytes, item: Item, manner: Manner) -> None:
    """Give a delivered file, whose content is that of the source, the attributes and times that the source has now."""
    op = "open"
    touch(Side.DESTINATION)
    try:
        fd = beneath.open_file(target, READ, dir_fd=dst)
        try:
            copy_attributes(src_fd, fd, item, manner, whole=True)
            touch(Side.SOURCE)
            source = os.fstat(src_fd)
            touch(Side.DESTINATION)
            op = "fsync"
            os.fsync(fd)
        finally:
            close_quietly(fd)
        op = "utimens"
        # By its name, after the close: a CIFS mount, asked through a descriptor, does not tell the truth for a second.
        set_times(dst, target, (source.st_atime_ns, source.st_mtime_ns))
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, op, target)) from error


def _status_at(dst: int, target: bytes) -> os.stat_result | None:
    """Return what has this name at the destination, if anything has. Raises ``FileTrouble``."""
    try:
        return beneath.stat_of(target, dir_fd=dst)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "stat", target)) from error


def _looked_at(dst: int, target: bytes) -> os.stat_result:
    try:
        return beneath.stat_of(target, dir_fd=dst)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "stat", target)) from error


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
        there = open_to_sync(target, dst)
        try:
            os.fsync(there)
            os.posix_fadvise(there, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, item.fingerprint.size, BLOCK_SIZE):
                length = min(BLOCK_SIZE, item.fingerprint.size - offset)
                mine = digest_of_block(src_fd, Side.SOURCE, item.path, offset, length, progress)
                if mine != digest_of_block(there, Side.DESTINATION, target, offset, length, progress):
                    return None
                digests += mine
                progress(Step("compared", length))
        finally:
            os.close(there)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "compare", target, offset)) from error
    sync_folder(dst, os.path.dirname(target))
    return file_digest(bytes(digests))


def open_to_sync(target: bytes, dst: int) -> int:
    """Open a delivered file for reading, and for writing where it is allowed: some servers sync for writers only."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return beneath.open_file(target, os.O_RDWR | flags, dir_fd=dst)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ETXTBSY):
            raise
        return beneath.open_file(target, os.O_RDONLY | flags, dir_fd=dst)
