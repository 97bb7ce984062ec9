"""
The operations that copy a file that grows: behind its writer, again where it was rewritten, under another name.

They run in a mover.
"""

from __future__ import annotations

import errno
import os

from trioft.core.answers import PIECE_SIZE, Known, Range, Sealed, Step, Written
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.model import BLOCK_SIZE, Ends, Item, Manner, Root
from trioft.movers.ops import beneath
from trioft.movers.ops.files import (
    Progress,
    Writing,
    advise,
    close_quietly,
    digest_of_block,
    forget,
    opened,
    read_exactly,
)
from trioft.movers.ops.folder.large import open_pair, tell_seal, write_block
from trioft.movers.ops.folder.partials import (
    Watched,
    as_far_as_possible,
    close_written,
    copy_attributes,
    make_folder,
    sync_folder,
)
from trioft.movers.ops.folder.sparse import Holes
from trioft.movers.ops.identity import identify
from trioft.movers.ops.slate import touch
from trioft.movers.ops.source import current_fingerprint


def copy_growing(
    ends: Ends, item: Item, partial: bytes, start: int, end: int, known: list[Known], final: bool, progress: Writing
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
            with Watched(dst_fd, partial, item.seal) as watched:
                holes = Holes(src_fd, dst_fd, partial)
                for offset, before in zip(range(start, end, BLOCK_SIZE), known, strict=True):
                    stop = min(BLOCK_SIZE, end - offset)
                    is_last = final or stop == BLOCK_SIZE
                    begin = 0 if is_last else before.length // PIECE_SIZE * PIECE_SIZE
                    length = begin + _read_up_to(src_fd, item.path, offset + begin, buffer[begin:stop])
                    pieces, changed = _what_changed(buffer[:length], begin, before)
                    for low, high in changed:
                        write_block(dst_fd, partial, offset + low, buffer[low:high], progress, holes)
                    holes.extend(offset + length)
                    digest = block_digest(buffer[:length]) if is_last else b""
                    progress(Written(offset // BLOCK_SIZE, length, digest, pieces))
                    if length < stop:
                        break
                    if stop == BLOCK_SIZE:
                        # Only what is finished: its recorder's pages of the block that grows stay, for the next time.
                        advise(src_fd, offset, BLOCK_SIZE, os.POSIX_FADV_DONTNEED)
            tell_seal(watched, progress)
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
    touch(Side.SOURCE)
    try:
        while done < len(view) and (n := os.preadv(fd, [view[done:]], offset + done)):
            done += n
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "read", path, offset + done)) from error
    return done


def copy_ranges(ends: Ends, item: Item, partial: bytes, ranges: list[Range], progress: Writing) -> list[int]:
    """
    Copy *ranges* of the source into its partial; return the offsets of those that hold something else by now.

    Nothing is durable yet.
    """
    changed: list[int] = []
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        src_fd, dst_fd = open_pair(src, dst, item.path, partial)
        try:
            with Watched(dst_fd, partial, item.seal) as watched:
                for offset, length, digest in ranges:
                    data = memoryview(read_exactly(src_fd, Side.SOURCE, item.path, offset, length))
                    if block_digest(data) == digest:
                        write_block(dst_fd, partial, offset, data, progress)
                    else:
                        changed.append(offset)
                        progress(Step("changed", length))
                    advise(src_fd, offset, length, os.POSIX_FADV_DONTNEED)
            tell_seal(watched, progress)
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
            fd = beneath.open_file(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dst)
            try:
                op = "fsync"
                os.fdatasync(fd)
                progress(Step("synced", 0))
                op = "read back"
                for offset, length, digest in ranges if verify == "readback" else ():
                    forget(fd, offset, length)
                    if digest_of_block(fd, Side.DESTINATION, partial, offset, length, progress) != digest:
                        bad.append(offset)
                    progress(Step("verified", length))
            finally:
                os.close(fd)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial, offset)) from error
    return bad


def finish_attributes(
    ends: Ends, item: Item, partial: bytes, manner: Manner, progress: Writing = lambda message: None
) -> list[str]:
    """
    Give the partial the permission bits and attributes that the source has now that it is closed, durably.

    Returns the names of the attributes that the destination does not take. What the partial is then is told, if it is
    known what it was.
    """
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        src_fd, dst_fd = open_pair(src, dst, item.path, partial)
        try:
            watched = Watched(dst_fd, partial, item.seal)
            if item.seal is not None:
                watched.check()
            touch(Side.SOURCE)
            if manner.xattrs:  # one that there was when it began may be gone
                try:
                    kept = {*os.listxattr(src_fd)}
                except OSError as error:
                    if error.errno != errno.ENOTSUP:
                        raise FileTrouble(trouble_of(error, Side.SOURCE, "listxattr", item.path)) from error
                    kept = set()
                touch(Side.DESTINATION)
                with as_far_as_possible("removexattr", item.path):
                    for name in {*os.listxattr(dst_fd)} - kept:
                        if name.startswith("user."):
                            os.removexattr(dst_fd, name)
            lost = copy_attributes(src_fd, dst_fd, item, manner)
            try:
                os.fsync(dst_fd)
            except OSError as error:
                raise FileTrouble(trouble_of(error, Side.DESTINATION, "fsync", partial)) from error
            seal = watched.note()
        except BaseException:
            close_quietly(dst_fd)
            raise
        finally:
            close_quietly(src_fd)
        close_written(dst_fd, partial)
    if seal is not None:
        progress(Sealed(seal))
    return lost


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
        touch(Side.SOURCE)
        try:
            if old is not None:
                status = beneath.stat_of(old, dir_fd=src)
                if identify(status, old, top=src)[:2] == identity:
                    return False
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.SOURCE, "stat", old or b"")) from error
        op, at = "stat", partial
        touch(Side.DESTINATION)
        try:
            beneath.stat_of(partial, dir_fd=dst)
            op, at = "mkdir", os.path.dirname(new_partial)
            folders = {
                os.path.dirname(partial),
                os.path.dirname(new_partial),
                *make_folder(src, dst, at, made_up=routed),
            }
            op, at = "rename", partial
            beneath.rename(partial, new_partial, dir_fd=dst)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EXDEV:  # it is to lie on another filesystem below the destination now: begun anew
                return None
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, at)) from error
        for folder in folders:
            sync_folder(dst, folder)
    return True
