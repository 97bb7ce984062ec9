"""
The operation that reads back what was delivered earlier. Runs in a mover.
"""

from __future__ import annotations

import errno
import os
import stat

from trioft.core.answers import Piece, Seen, Step
from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.model import BLOCK_SIZE, Root
from trioft.movers.ops import beneath
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import READ, Progress, close_quietly, digest_of_block, fingerprint_of, forget, opened
from trioft.movers.ops.mounts import lies_within


def read_delivered(destination: Root, pieces: list[Piece], source: bytes, progress: Progress) -> list[Seen]:
    """
    Read *pieces*, from behind the page cache, and return what was seen of each, in order.

    What lies in a folder of the *source*, by a link or a mount below the destination, is said to; it is not read.

    Tells ``("read", count)`` after each block. A file that cannot be read says why; the others are read.
    """
    seen = []
    with opened(destination, Side.DESTINATION) as dst:
        for piece in pieces:
            try:
                seen.append(_read(dst, piece, source, progress))
            except FileTrouble as error:
                seen.append(Seen(None, trouble=error.trouble))
    return seen


def _read(dst: Top, piece: Piece, source: bytes, progress: Progress) -> Seen:
    op, offset = "stat", None
    try:
        status = beneath.stat_of(piece.target, dir_fd=dst)
        if not stat.S_ISREG(status.st_mode):
            return Seen(None)
        folder = os.path.dirname(piece.target)
        if folder and _leads_back(dst, folder, source):
            return Seen(status.st_size, file=(status.st_dev, status.st_ino), in_source=True)
        digests, end = b"", min(piece.end, status.st_size)
        if piece.start < end:
            op, offset = "open", piece.start
            fd = beneath.open_file(piece.target, READ, dir_fd=dst)
            try:
                digests = _digests(fd, piece.target, piece.start, end, progress)
                status = os.fstat(fd)
            finally:
                close_quietly(fd)
        return Seen(status.st_size, fingerprint_of(status).mtime_ns, digests, file=(status.st_dev, status.st_ino))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return Seen(None)
        raise FileTrouble(trouble_of(error, Side.DESTINATION, op, piece.target, offset)) from error


def _leads_back(dst: Top, folder: bytes, source: bytes) -> bool:
    if (source, folder) in dst.separate:
        return False
    if lies_within(dst.parent(folder), source, dst):
        return True
    dst.separate.add((source, folder))
    return False


def _digests(fd: int, target: bytes, start: int, end: int, progress: Progress) -> bytes:
    digests = bytearray()
    forget(fd, start, end - start)
    for offset in range(start, end, BLOCK_SIZE):
        length = min(BLOCK_SIZE, end - offset)
        digests += digest_of_block(fd, Side.DESTINATION, target, offset, length)
        progress(Step("read", length))
    return bytes(digests)
