"""
The operations that copy a large file: prepared, copied span by span, settled. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

import xxhash

from trioft.core.answers import Prepared, Sealed, Step, Written
from trioft.core.errors import FileTrouble, Side, Trouble, mismatch, trouble_of
from trioft.core.model import (
    BLOCK_SIZE,
    MIB,
    Checkpoint,
    Ends,
    Fingerprint,
    Item,
    Manner,
    Result,
    Root,
    Verdict,
)
from trioft.core.naming import partial_for
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.files import (
    READ,
    Progress,
    Writing,
    advise,
    close_quietly,
    digest_of_block,
    fingerprint_of,
    forget,
    is_steady,
    opened,
    status_of,
)
from trioft.movers.ops.folder.existing import look_for_existing
from trioft.movers.ops.folder.pace import Pace
from trioft.movers.ops.folder.partials import (
    Watched,
    close_written,
    copy_attributes,
    create_partial,
    sync_folder,
    touched,
)
from trioft.movers.ops.folder.resume import plan_resume, plan_resume_growing
from trioft.movers.ops.folder.sparse import Holes
from trioft.movers.ops.slate import touch
from trioft.movers.ops.source import check_unchanged, current_fingerprint, open_growing, open_source

# What one pwrite is given: small enough that a slow destination shows progress long before a call is taken for stalled.
_SLICE = 1 * MIB
_TELL_EVERY = 0.25  # seconds between two reports of bytes


def prepare(
    ends: Ends, item: Item, checkpoint: Checkpoint | None, manner: Manner, growing: bool, progress: Writing
) -> Result | Prepared:
    """
    Open or create the partial of a large file, and find out from which byte on it has to be written.

    With a checkpoint of the same source version, what is below it is kept as far as it is still there. With
    none, the partial's blocks are compared with the source's and kept as far as they match: never a splice.
    A *growing* file, which will be compared as a whole in the end, may be of any version: what is below its
    checkpoint is kept as far as the file is that long.
    Returns a Result instead if the file is not to be copied now, or at all.
    """
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        src_fd, opening = (open_growing if growing else open_source)(src, item)
        if opening.verdict != Verdict.OPEN:
            return opening
        try:
            if growing:
                # What is to become of its earlier version is decided once it is complete.
                item = item._replace(fingerprint=current_fingerprint(src_fd, item.path), before=b"")
            if existing := look_for_existing(src, src_fd, dst, item, manner, progress):
                return existing
            partial = partial_for(item)
            check_size(dst, item, partial)
            folders: set[bytes] = set()  # that have a new entry
            try:
                fd = _open_partial(dst, partial)
            except FileNotFoundError:
                fd, changed = create_partial(src, dst, partial, routed=item.is_routed)
                folders.update(changed, [os.path.dirname(partial)])
            except OSError as error:
                raise FileTrouble(trouble_of(error, Side.DESTINATION, "open", partial)) from error
            try:
                for folder in folders:
                    sync_folder(dst, folder)
                steady = is_steady(fd)
                prepared = Prepared(0, b"")
                before: list[Fingerprint] = []  # what the partial is while its blocks are read

                def watch(step: Step, its: int = fd, before: list[Fingerprint] = before) -> None:
                    if not before:
                        before.append(fingerprint_of(status_of(its, Side.DESTINATION, partial)))
                    progress(step)

                if not folders:
                    plan = plan_resume_growing if growing else plan_resume
                    prepared = plan(src_fd, fd, item, partial, checkpoint, manner, watch if steady else progress)
                    if prepared.offset == 0:
                        # Nothing of it is of use: whoever still has it open, a server included, writes into nothing.
                        close_quietly(fd)
                        fd, _ = create_partial(src, dst, partial)
                        sync_folder(dst, os.path.dirname(partial))
                    elif before and fingerprint_of(status_of(fd, Side.DESTINATION, partial)) != before[0]:
                        raise FileTrouble(touched(partial))
                    elif status_of(fd, Side.DESTINATION, partial).st_size != prepared.offset:
                        _truncate(fd, partial, prepared.offset)
                lost = copy_attributes(src_fd, fd, item, manner)
                seal = fingerprint_of(status_of(fd, Side.DESTINATION, partial)) if steady else None
            except BaseException:
                close_quietly(fd)
                raise
            close_written(fd, partial)
            if seal is not None:
                progress(Sealed(seal))
            return prepared._replace(closed=opening.closed, lost=tuple(lost))
        finally:
            close_quietly(src_fd)


def check_size(dst: int, item: Item, partial: bytes) -> None:
    """Refuse a file that is larger than any that can be there, before anything of it is copied."""
    touch(Side.DESTINATION)
    most, why = linux.largest_file(dst)
    if item.fingerprint.size > most:
        text = f"{why} no file of more than {most:,} bytes, and this one has {item.fingerprint.size:,}"
        raise FileTrouble(Trouble(Side.DESTINATION, "create", partial, None, errno.EFBIG, text))


def _open_partial(dst: int, partial: bytes) -> int:
    """Open a partial that is to be continued. One that has a final name already, see ``rename_noreplace``, is none."""
    touch(Side.DESTINATION)
    fd = beneath.open_file(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dst)
    try:
        if os.fstat(fd).st_nlink > 1:
            raise FileNotFoundError
    except OSError:
        close_quietly(fd)
        raise
    return fd


def _truncate(fd: int, partial: bytes, offset: int) -> None:
    touch(Side.DESTINATION)
    try:
        os.ftruncate(fd, offset)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "truncate", partial, offset)) from error


def copy_span(ends: Ends, item: Item, partial: bytes, start: int, end: int, manner: Manner, progress: Writing) -> None:
    """
    Copy the bytes from *start*, a block's first, to *end*.

    Tells ``("bytes", count)`` while it goes on, and ``("block", number, length, digest)`` after each block is
    written; nothing is durable yet. A source that changed is a trouble, and so is a partial that is not what *item*
    says it was. What it is in the end is told.
    """
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        src_fd, dst_fd = open_pair(src, dst, item.path, partial)
        try:
            touch(Side.SOURCE)
            advise(src_fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            # What was not in the page cache does not stay there: terabytes would only drive out what others have there.
            # Of the half that may be there, some was read ahead by the span before.
            there = linux.bytes_in_cache(src_fd, start, end - start)
            passes = there is not None and there < (end - start) // 2
            with Watched(dst_fd, partial, item.seal) as watched:
                holes, pace = Holes(src_fd, dst_fd, partial), Pace(dst_fd, partial, progress)
                for offset in range(start, end, BLOCK_SIZE):
                    length = min(BLOCK_SIZE, end - offset)
                    hasher = xxhash.xxh3_128() if manner.verify != "size" else None
                    told, when = offset, time.monotonic()
                    for at, piece in holes.pieces(item.path, offset, length):
                        if hasher is not None:
                            hasher.update(piece)
                        if holes.leaves_out(at, piece):
                            progress(Step("holes", len(piece)))
                        else:
                            pace.write(at, piece)
                        if time.monotonic() - when > _TELL_EVERY:
                            progress(Step("bytes", at + len(piece) - told))
                            told, when = at + len(piece), time.monotonic()
                    progress(Step("bytes", offset + length - told))
                    _begin_write_back(dst_fd, partial, offset, length)
                    digest = hasher.digest() if hasher is not None else b""
                    if passes:
                        with contextlib.suppress(OSError):
                            forget(src_fd, offset, length)
                    progress(Written(offset // BLOCK_SIZE, length, digest))
                holes.extend(end)
            tell_seal(watched, progress)
            check_unchanged(src_fd, item, start)
        except BaseException:
            close_quietly(dst_fd)
            raise
        finally:
            close_quietly(src_fd)
        close_written(dst_fd, partial)


def tell_seal(watched: Watched, progress: Writing) -> None:
    """Tell what a partial is, now that it was written to, where it is watched."""
    if watched.seal is not None:
        progress(Sealed(watched.seal))


def _begin_write_back(fd: int, partial: bytes, offset: int, length: int) -> None:
    touch(Side.DESTINATION)
    try:
        linux.begin_write_back(fd, offset, length)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "write", partial, offset)) from error


def write_block(
    fd: int, partial: bytes, offset: int, data: memoryview, progress: Progress, holes: Holes | None = None
) -> None:
    """Write *data*, but for *holes*, at *offset*, telling ``("bytes", count)`` now and then and at the end."""
    told, when = 0, time.monotonic()
    pace = Pace(fd, partial, progress)
    for at in range(0, len(data), _SLICE):
        if holes is not None and holes.leaves_out(offset + at, data[at : at + _SLICE]):
            progress(Step("holes", len(data[at : at + _SLICE])))
        else:
            pace.write(offset + at, data[at : at + _SLICE])
        if time.monotonic() - when > _TELL_EVERY:
            done = min(at + _SLICE, len(data))
            progress(Step("bytes", done - told))
            told, when = done, time.monotonic()
    progress(Step("bytes", len(data) - told))


def open_pair(src: int, dst: int, path: bytes, partial: bytes) -> tuple[int, int]:
    """Open a source file for reading and its partial for writing; the caller closes both."""
    side, op = Side.SOURCE, "open"
    touch(side)
    try:
        src_fd = beneath.open_file(path, READ, dir_fd=src)
        try:
            side, path = Side.DESTINATION, partial
            touch(side)
            return src_fd, beneath.open_file(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dst)
        except BaseException:
            close_quietly(src_fd)
            raise
    except OSError as error:
        raise FileTrouble(trouble_of(error, side, op, path)) from error


def settle(
    destination: Root, partial: bytes, start: int, end: int, digests: bytes, verify: str, progress: Progress
) -> list[int]:
    """
    Make the bytes from *start*, a block's first, to *end* durable and read them back.

    *digests* are those of the blocks in this range. Returns the numbers of the blocks that differ: they have to be
    written again. Any error means that nothing since the last checkpoint can be relied on.
    """
    bad: list[int] = []
    offset, op = start, "fsync"
    with opened(destination, Side.DESTINATION) as dst:
        try:
            fd = beneath.open_file(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dst)
            try:
                for offset in range(start, end, BLOCK_SIZE):
                    linux.write_back(fd, offset, min(BLOCK_SIZE, end - offset))
                    progress(Step("synced", offset))
                os.fdatasync(fd)
                offset, op = end, "stat"
                if os.fstat(fd).st_size < end:
                    raise FileTrouble(mismatch(partial, os.fstat(fd).st_size))
                if verify == "readback":
                    op = "read back"
                    forget(fd, start, end - start)
                    advise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                    for number, offset in enumerate(range(start, end, BLOCK_SIZE)):
                        length = min(BLOCK_SIZE, end - offset)
                        digest = digest_of_block(fd, Side.DESTINATION, partial, offset, length, progress)
                        if digest != digests[16 * number : 16 * number + 16]:
                            bad.append(offset // BLOCK_SIZE)
                        progress(Step("verified", length))
            finally:
                os.close(fd)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial, offset)) from error
    return bad
