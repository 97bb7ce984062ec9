"""
The operations for files that are being written: look at the write head, copy behind it, compare what was copied with
what the file holds in the end, and find a file again that was renamed meanwhile. Run in a mover.

None of them disturbs whoever records: a lease is held for no longer than the question takes, and what is read of the
source does not stay in the page cache.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.model import BLOCK_SIZE, KIB, Ends, Found, Item, Manner, Root, Routes, Verdict
from trioft.core.routes import route
from trioft.movers.ops import writers
from trioft.movers.ops.files import (
    READ,
    Progress,
    advise,
    as_far_as_possible,
    block_digest,
    close_quietly,
    close_written,
    copy_attributes,
    current_fingerprint,
    digest_of_block,
    fingerprint_of,
    forget,
    make_folder,
    opened,
    read_exactly,
    read_into,
    sync_folder,
)
from trioft.movers.ops.folder.large import open_pair, write_block
from trioft.movers.ops.folder.markers import is_marked

# What is compared, and written again, of a block that has changed: recorders rewrite a few kilobytes here and there.
PIECE_SIZE = 256 * KIB
# What a folder answers in which nothing can be found: gone, a link by now, not ours to read, too deep for any path.
_NOTHING_THERE = {
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG
}  # fmt: skip
# A hole of this size, or this near to the end, is where nothing has been written yet; others are what some filesystems
# make of zeros.
_HOLE = BLOCK_SIZE


class Peek(NamedTuple):
    """What a file that may be growing is right now."""

    verdict: Verdict | None  # GONE or CHANGED: under this name there is none, or another one
    found: Found | None = None
    head: int = 0  # it has been written up to here; less than its size where it was preallocated
    writer: str = writers.UNKNOWN
    strength: str = ""  # what it would be worth to take it for closed
    marked: bool | None = None  # as in ``Found``


def peek(
    source: Root,
    path: bytes,
    identity: tuple[int, int],
    copied: int,
    marker: bytes = b"",
    routes: Routes | None = None,
) -> Peek:
    """
    Look at the file *identity* (device, inode) under the name *path*, of which *copied* bytes are not of interest; and
    for what has this name and *marker* after it.

    That nobody has it open for writing is asked first: whatever was written before the answer shows in the version
    that is looked at after it.
    """
    with opened(source, Side.SOURCE) as src:
        try:
            fd = os.open(path, READ, dir_fd=src)
        except (FileNotFoundError, NotADirectoryError):
            return Peek(Verdict.GONE)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link has its name now, or a socket
                return Peek(Verdict.CHANGED)
            raise FileTrouble(trouble_of(error, Side.SOURCE, "open", path)) from error
        try:
            writer = writers.ask_lease(fd, identity[0])
            if writer == writers.UNKNOWN and writers.find_writers([identity]):
                writer = writers.BUSY
            status = os.fstat(fd)
            fingerprint = fingerprint_of(status)
            if fingerprint[:2] != identity or not stat.S_ISREG(status.st_mode):
                return Peek(Verdict.CHANGED)
            marked = is_marked(src, path, marker, fingerprint)
            strength = "" if writer == writers.BUSY else writers.strength(fd, identity[0], writer, bool(marked))
            found = route(Found(path, stat.S_IMODE(status.st_mode), fingerprint), routes)
            return Peek(None, found, _write_head(fd, copied, status.st_size), writer, strength, marked)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.SOURCE, "stat", path)) from error
        finally:
            close_quietly(fd)


def _write_head(fd: int, copied: int, size: int) -> int:
    """Return up to where a file has been written: the end, or a hole that is no part of its content."""
    at = copied
    with contextlib.suppress(OSError):  # it cannot tell, or has become shorter just now
        while at < size and (hole := os.lseek(fd, at, os.SEEK_HOLE)) < size:
            try:
                at = os.lseek(fd, hole, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return hole  # nothing follows
            if at - hole >= _HOLE or hole >= size - _HOLE:
                return hole
    return size


class Known(NamedTuple):
    """What was copied of a block before: its first *length* bytes, of which each piece had these digests."""

    length: int
    pieces: bytes  # 16 bytes a piece


def copy_growing(
    ends: Ends, item: Item, partial: bytes, start: int, end: int, known: list[Known], final: bool, progress: Progress
) -> None:
    """
    Copy the bytes from *start*, a block's first, to *end*, or to where the file ends by now.

    *known* tells of each block what was copied of it before: what has not changed since is not written again. It is
    read again when the block is complete, or *final*, and is given its digest then. Tells ``("bytes", count)`` while it
    goes on, and ``("block", number, length, digest, pieces)`` after each block: the digest is empty while the block is
    neither; nothing is durable yet. A file that has another identity by now is a trouble; a version is not asked for.
    """
    buffer = memoryview(bytearray(BLOCK_SIZE))
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        src_fd, dst_fd = open_pair(src, dst, item.path, partial)
        try:
            if current_fingerprint(src_fd, item.path)[:2] != item.fingerprint[:2]:
                raise FileTrouble(trouble_of(FileNotFoundError(errno.ENOENT, ""), Side.SOURCE, "open", item.path))
            for offset, before in zip(range(start, end, BLOCK_SIZE), known, strict=True):
                stop = min(BLOCK_SIZE, end - offset)
                is_last = final or stop == BLOCK_SIZE
                begin = 0 if is_last else before.length // PIECE_SIZE * PIECE_SIZE
                length = begin + _read_up_to(src_fd, item.path, offset + begin, buffer[begin:stop])
                pieces, changed = _what_changed(buffer[:length], begin, before)
                for low, high in changed:
                    write_block(dst_fd, partial, offset + low, buffer[low:high], progress)
                digest = block_digest(buffer[:length]) if is_last else b""
                progress(("block", offset // BLOCK_SIZE, length, digest, pieces))
                if length < stop:
                    break
                if stop == BLOCK_SIZE:
                    # Only what is finished: the recorder's own pages of the block that grows stay, for the next time.
                    advise(src_fd, offset, BLOCK_SIZE, os.POSIX_FADV_DONTNEED)
        except BaseException:
            close_quietly(dst_fd)
            raise
        finally:
            close_quietly(src_fd)
        close_written(dst_fd, partial)


def _what_changed(block: memoryview, begin: int, before: Known) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the digests of a block's pieces, of which those from *begin* on were read, and what has to be written."""
    pieces = bytearray(before.pieces[: begin // PIECE_SIZE * 16])
    changed: list[tuple[int, int]] = []
    for at in range(begin, len(block), PIECE_SIZE):
        piece = block[at : at + PIECE_SIZE]
        old = before.pieces[at // PIECE_SIZE * 16 :][:16]
        copied = min(before.length - at, PIECE_SIZE)
        is_same = 0 < copied <= len(piece) and block_digest(piece[:copied]) == old
        low, high = at + (copied if is_same else 0), at + len(piece)
        pieces += old if low == high else block_digest(piece)
        if changed and changed[-1][1] == low:
            changed[-1] = (changed[-1][0], high)
        elif low < high:
            changed.append((low, high))
    return bytes(pieces), changed


def _read_up_to(fd: int, path: bytes, offset: int, view: memoryview) -> int:
    """Read until *view* is full or the file ends; return how many bytes that were."""
    done = 0
    try:
        while done < len(view) and (n := os.preadv(fd, [view[done:]], offset + done)):
            done += n
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "read", path, offset + done)) from error
    return done


class Difference(NamedTuple):
    """A block of the source that is not what was copied, as it is now."""

    number: int
    digest: bytes
    pieces: bytes


def compare_span(
    source: Root, path: bytes, start: int, end: int, copied: list[tuple[bytes, bytes]], progress: Progress
) -> list[Difference]:
    """
    Read the source from *start*, a block's first, to *end*, and compare it with what was *copied*.

    That is the digest of each block, and those of its pieces, or nothing where they are not known. A source that ends
    before is a trouble.
    """
    differences: list[Difference] = []
    buffer = memoryview(bytearray(min(BLOCK_SIZE, end - start)))
    with opened(source, Side.SOURCE) as src:
        try:
            fd = os.open(path, READ, dir_fd=src)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.SOURCE, "open", path)) from error
        try:
            advise(fd, start, end - start, os.POSIX_FADV_SEQUENTIAL)
            for offset, (digest, pieces) in zip(range(start, end, BLOCK_SIZE), copied, strict=True):
                block = buffer[: min(BLOCK_SIZE, end - offset)]
                read_into(fd, Side.SOURCE, path, offset, block)
                if _pieces_of(block) == pieces if pieces else block_digest(block) == digest:
                    advise(fd, offset, len(block), os.POSIX_FADV_DONTNEED)
                else:  # it is soon read again
                    differences.append(Difference(offset // BLOCK_SIZE, block_digest(block), _pieces_of(block)))
                progress(("compared", len(block)))
        finally:
            close_quietly(fd)
    return differences


def _pieces_of(block: memoryview) -> bytes:
    return b"".join(block_digest(block[at : at + PIECE_SIZE]) for at in range(0, len(block), PIECE_SIZE))


class Range(NamedTuple):
    """A part of a file, and what it holds."""

    offset: int
    length: int
    digest: bytes


def copy_ranges(ends: Ends, item: Item, partial: bytes, ranges: list[Range], progress: Progress) -> list[int]:
    """
    Copy *ranges* of the source into its partial; return the offsets of those that hold something else by now.

    Nothing is durable yet.
    """
    changed: list[int] = []
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        src_fd, dst_fd = open_pair(src, dst, item.path, partial)
        try:
            for offset, length, digest in ranges:
                data = memoryview(read_exactly(src_fd, Side.SOURCE, item.path, offset, length))
                if block_digest(data) == digest:
                    write_block(dst_fd, partial, offset, data, progress)
                else:
                    changed.append(offset)
                    progress(("changed", length))
                advise(src_fd, offset, length, os.POSIX_FADV_DONTNEED)
        except BaseException:
            close_quietly(dst_fd)
            raise
        finally:
            close_quietly(src_fd)
        close_written(dst_fd, partial)
    return changed


def settle_ranges(destination: Root, partial: bytes, ranges: list[Range], verify: str, progress: Progress) -> list[int]:
    """Make a partial durable, read back *ranges*; return the offsets of those that differ."""
    bad: list[int] = []
    offset, op = 0, "open"
    with opened(destination, Side.DESTINATION) as dst:
        try:
            fd = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dst)
            try:
                op = "fsync"
                os.fdatasync(fd)
                progress(("synced", 0))
                op = "read back"
                for offset, length, digest in ranges if verify == "readback" else ():
                    forget(fd, offset, length)
                    if digest_of_block(fd, Side.DESTINATION, partial, offset, length) != digest:
                        bad.append(offset)
                    progress(("verified", length))
            finally:
                os.close(fd)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial, offset)) from error
    return bad


def finish_attributes(ends: Ends, item: Item, partial: bytes, manner: Manner) -> None:
    """Give the partial the permission bits and attributes that the source has now that it is closed, durably."""
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        src_fd, dst_fd = open_pair(src, dst, item.path, partial)
        try:
            if manner.xattrs:  # one that there was when it began may be gone
                try:
                    kept = {*os.listxattr(src_fd)}
                except OSError as error:
                    if error.errno != errno.ENOTSUP:
                        raise FileTrouble(trouble_of(error, Side.SOURCE, "listxattr", item.path)) from error
                    kept = set()
                with as_far_as_possible("removexattr", item.path):
                    for name in {*os.listxattr(dst_fd)} - kept:
                        if name.startswith("user."):
                            os.removexattr(dst_fd, name)
            copy_attributes(src_fd, dst_fd, item, manner)
            try:
                os.fsync(dst_fd)
            except OSError as error:
                raise FileTrouble(trouble_of(error, Side.DESTINATION, "fsync", partial)) from error
        except BaseException:
            close_quietly(dst_fd)
            raise
        finally:
            close_quietly(src_fd)
        close_written(dst_fd, partial)


# --- another name ----------------------------------------------------------------------------------------------------


def locate(source: Root, path: bytes, identity: tuple[int, int], everywhere: bool, progress: Progress) -> bytes | None:
    """
    Return what the file *identity*, that was called *path*, is called now, or None if the source has it no more.

    Its own folder is searched first, and then, if it is to be found *everywhere*, all of the source.
    """
    with opened(source, Side.SOURCE) as src:
        folders = list(dict.fromkeys([*([b""] if everywhere else []), os.path.dirname(path)]))
        while folders:
            folder = folders.pop()
            prefix = folder + b"/" if folder else b""
            try:
                name = _search(src, folder, prefix, identity, folders if everywhere else None)
            except OSError as error:
                name = None
                if error.errno in _NOTHING_THERE:
                    continue
                raise FileTrouble(trouble_of(error, Side.SOURCE, "read", folder)) from error
            if name is not None:
                return name
            progress(("searched", folder))
    return None


def _search(
    src: int, folder: bytes, prefix: bytes, identity: tuple[int, int], below: list[bytes] | None
) -> bytes | None:
    """Return the path of the file *identity* in *folder*, or None; the folders in it are added to *below*."""
    fd = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=src)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = prefix + os.fsencode(entry.name)
                if entry.inode() == identity[1]:
                    with contextlib.suppress(FileNotFoundError):  # renamed once more
                        if entry.stat(follow_symlinks=False).st_dev == identity[0]:
                            return name
                if below is not None and entry.is_dir(follow_symlinks=False):
                    below.append(name)
    finally:
        close_quietly(fd)
    return None


def adopt(
    ends: Ends,
    old: bytes | None,
    identity: tuple[int, int],
    partial: bytes,
    new_partial: bytes,
    routed: bool = False,
) -> bool | None:
    """
    Have the partial of the file *identity* go on under another name, durably.

    Changes nothing, and returns False, if the file is still called *old* (it has several names then), or None, if the
    partial is not there, or cannot go there.
    """
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        try:
            if old is not None:
                status = os.stat(old, dir_fd=src, follow_symlinks=False)
                if (status.st_dev, status.st_ino) == identity:
                    return False
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.SOURCE, "stat", old or b"")) from error
        op, at = "stat", partial
        try:
            os.stat(partial, dir_fd=dst, follow_symlinks=False)
            op, at = "mkdir", os.path.dirname(new_partial)
            folders = {
                os.path.dirname(partial),
                os.path.dirname(new_partial),
                *make_folder(src, dst, at, made_up=routed),
            }
            op, at = "rename", partial
            os.rename(partial, new_partial, src_dir_fd=dst, dst_dir_fd=dst)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EXDEV:  # it is to lie on another filesystem below the destination now: begun anew
                return None
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, at)) from error
        for folder in folders:
            sync_folder(dst, folder)
    return True
