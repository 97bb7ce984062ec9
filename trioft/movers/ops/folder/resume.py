"""
What of a partial is still good: how a transfer that was interrupted goes on. Runs in a mover.

Three cases. A checkpoint of the very version of the source that is to be copied: what it covers is kept as far as the
partial still holds it. A checkpoint of a file that was growing, or has changed since: all of it is kept, as every block
will be compared with the source in the end. None, since the ledger was lost: the partial's blocks are compared with
the source's now, and those that match are kept.
"""

from __future__ import annotations

import os

from trioft.core.answers import Prepared, Step, void_blocks
from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.model import BLOCK_SIZE, VOID, Checkpoint, Item, Manner
from trioft.movers.ops.files import Progress, digest_of_block
from trioft.movers.ops.identity import is_lasting


def plan_resume(
    src_fd: int,
    fd: int,
    item: Item,
    partial: bytes,
    checkpoint: Checkpoint | None,
    manner: Manner,
    progress: Progress,
) -> Prepared:
    """Find out what is left of the partial, open as *fd*, of a finished file, open as *src_fd*."""
    try:
        size = min(os.fstat(fd).st_size, item.fingerprint.size)
        if (
            checkpoint
            and checkpoint.is_coherent(BLOCK_SIZE)
            and checkpoint.partial == partial
            and checkpoint.fingerprint == item.fingerprint
            and not checkpoint.growing  # what was copied while it grew may have been written again since
            and checkpoint.offset <= size
            # Not made at a lower level than is asked for now, and with something to compare the source with.
            and (checkpoint.digests or (manner.verify == "size" and is_lasting(src_fd)))
        ):
            digests = _check(fd, partial, checkpoint, manner, progress)
            if not is_lasting(src_fd):
                digests = _check_source(src_fd, item, checkpoint.offset, digests, progress)
            if not (bad := void_blocks(digests)):
                return Prepared(checkpoint.offset, digests)
            if bad[0] and manner.verify == "readback":
                return Prepared(bad[0] * BLOCK_SIZE, digests[: 16 * bad[0]])
        return _compare(src_fd, fd, item, partial, size, progress)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "fsync", partial)) from error


def plan_resume_growing(
    src_fd: int,
    fd: int,
    item: Item,
    partial: bytes,
    checkpoint: Checkpoint | None,
    manner: Manner,
    progress: Progress,
) -> Prepared:
    """The same for a file that is, or was, growing: a block that is no longer what it was becomes VOID."""
    try:
        size = min(os.fstat(fd).st_size, item.fingerprint.size)
        is_of_use = checkpoint is not None and checkpoint.is_coherent(BLOCK_SIZE) and checkpoint.partial == partial
        if checkpoint is None or not is_of_use or not checkpoint.digests:
            return _compare(src_fd, fd, item, partial, size, progress)
        # It may have become shorter; and the last block, if it is none yet, will be read again as it grows.
        offset = min(checkpoint.offset, size) // BLOCK_SIZE * BLOCK_SIZE
        if offset == 0:
            return Prepared(0, b"")
        held = checkpoint._replace(offset=offset, digests=checkpoint.digests[: offset // BLOCK_SIZE * 16])
        digests = _check(fd, partial, held, manner, progress)
        last = digest_of_block(src_fd, Side.SOURCE, item.path, offset - BLOCK_SIZE, BLOCK_SIZE, progress)
        return Prepared(offset, digests, doubtful=last != digests[-16:] or not is_lasting(src_fd))
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "fsync", partial)) from error


def _check(fd: int, partial: bytes, checkpoint: Checkpoint, manner: Manner, progress: Progress) -> bytes:
    """
    Return the checkpoint's digests, VOID for what the partial does not hold any more: nobody knows what happened to it.

    At level `readback` every block is read again; below that the last one has to do.
    """
    digests = bytearray(checkpoint.digests)
    count = len(digests) // 16
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for number in range(0 if manner.verify == "readback" else max(0, count - 1), count):
        at, start = slice(16 * number, 16 * number + 16), number * BLOCK_SIZE
        if digests[at] == VOID:
            continue
        length = min(BLOCK_SIZE, checkpoint.offset - start)
        if digest_of_block(fd, Side.DESTINATION, partial, start, length, progress) != digests[at]:
            digests[at] = VOID
        progress(Step("compared", length))
    return bytes(digests)


def _check_source(src_fd: int, item: Item, offset: int, digests: bytes, progress: Progress) -> bytes:
    """
    Return *digests*, VOID for what the source does not hold below *offset*: it is another file with the same name.

    Reading is cheap, and a splice of two files, as of two cards of one camera, is not.
    """
    checked = bytearray(digests)
    for number in range(len(digests) // 16):
        at, start = slice(16 * number, 16 * number + 16), number * BLOCK_SIZE
        if checked[at] == VOID:
            continue
        length = min(BLOCK_SIZE, offset - start)
        if digest_of_block(src_fd, Side.SOURCE, item.path, start, length, progress) != digests[at]:
            checked[at] = VOID
        progress(Step("compared", length))
    return bytes(checked)


def _compare(src_fd: int, fd: int, item: Item, partial: bytes, size: int, progress: Progress) -> Prepared:
    """Keep the blocks that match the source's, up to the last that does."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    digests = bytearray()
    kept = 0
    # Whole blocks only: the last, shorter one is cheap to write again.
    for offset in range(0, size // BLOCK_SIZE * BLOCK_SIZE, BLOCK_SIZE):
        there = digest_of_block(fd, Side.DESTINATION, partial, offset, BLOCK_SIZE, progress)
        if there == digest_of_block(src_fd, Side.SOURCE, item.path, offset, BLOCK_SIZE, progress):
            kept = offset + BLOCK_SIZE
        else:
            there = VOID
        digests += there
        progress(Step("compared", BLOCK_SIZE))
    return Prepared(kept, bytes(digests[: kept // BLOCK_SIZE * 16]))
