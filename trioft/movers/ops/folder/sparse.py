"""
Holes: what a sparse source does not hold is not written at the destination either. Run in a mover.

A hole reads as zeros, and has the digest of zeros: what is verified is the same as for any other file. Where it is not
certain that the source has a hole, it is read; where it is not certain that the destination has one, zeros are written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.model import Ends
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.files import READ, close_quietly, opened, pieces
from trioft.movers.ops.folder.partials import own_change
from trioft.movers.ops.slate import touch

# Where a map of data and holes can be believed, of files that nobody writes.
_TELLS = {linux.EXT4, linux.XFS, linux.BTRFS, linux.TMPFS}
# Where a hole takes no space. On others (FAT, some servers) it is filled with zeros.
_KEEPS = {linux.EXT4, linux.XFS, linux.BTRFS, linux.TMPFS, linux.OVERLAYFS, linux.F2FS, linux.ZFS, linux.NFS}
_ZEROS = bytes(1 << 20)


class Holes:
    """The holes of the source that is open as *src_fd*, and what becomes of them in the partial, open as *dst_fd*."""

    def __init__(self, src_fd: int, dst_fd: int, partial: bytes) -> None:
        self._src, self._dst, self._partial = src_fd, dst_fd, partial
        touch(Side.SOURCE)
        self.any = _is_sparse(src_fd)
        self._told = self.any and linux.filesystem_magic(src_fd) in _TELLS
        self._at, self._data = 0, 0  # from the one to the other nothing but a hole is at the source
        if self.any:
            touch(Side.DESTINATION)
            self.any = linux.filesystem_magic(dst_fd) in _KEEPS

    def pieces(self, path: bytes, offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
        """Read as ``files.pieces`` does; holes are not read where the filesystem can tell of them."""
        if not (self.any and self._told):
            yield from pieces(self._src, Side.SOURCE, path, offset, length)
            return
        at, end = offset, offset + length
        while at < end:
            data = min(self._next_data(path, at), end)
            while at < data:
                step = min(data - at, len(_ZEROS))
                yield at, memoryview(_ZEROS)[:step]
                at += step
            if at < end:
                stop = min(self._next_hole(path, at), end)
                yield from pieces(self._src, Side.SOURCE, path, at, stop - at)
                at = stop

    def leaves_out(self, at: int, piece: memoryview) -> bool:
        """Have *piece* not be written, if it is all zeros, and the partial has a hole there, or gets one."""
        return self.any and is_zeros(piece) and self._has_hole(at, len(piece))

    def extend(self, end: int) -> None:
        """Have the partial be at least as long as *end*: a hole at its end was not written."""
        if not self.any:
            return
        touch(Side.DESTINATION)
        try:
            # Not by truncating: another mover may have written beyond that meanwhile.
            if os.fstat(self._dst).st_size < end:
                with own_change(self._dst):
                    os.pwrite(self._dst, b"\0", end - 1)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "write", self._partial, end - 1)) from error

    def _next_data(self, path: bytes, at: int) -> int:
        touch(Side.SOURCE)
        if not self._at <= at < self._data:
            try:
                self._at, self._data = at, os.lseek(self._src, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise FileTrouble(trouble_of(error, Side.SOURCE, "seek", path, at)) from error
                self._data = os.fstat(self._src).st_size  # nothing but a hole up to the end
        return self._data

    def _next_hole(self, path: bytes, at: int) -> int:
        touch(Side.SOURCE)
        try:
            return os.lseek(self._src, at, os.SEEK_HOLE)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.SOURCE, "seek", path, at)) from error

    def _has_hole(self, at: int, length: int) -> bool:
        touch(Side.DESTINATION)
        try:
            if at >= os.fstat(self._dst).st_size:
                return True
            try:
                if os.lseek(self._dst, at, os.SEEK_DATA) >= at + length:
                    return True
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return True
            with own_change(self._dst):
                linux.punch_hole(self._dst, at, length)
        except OSError:
            return False  # then zeros are written
        return True


def is_zeros(piece: memoryview) -> bool:
    """Is there nothing but zeros in *piece*?"""
    if len(piece) == 0 or piece[0] or piece[-1]:
        return False
    return all(bytes(piece[at : at + len(_ZEROS)]) == _ZEROS[: len(piece) - at] for at in range(0, len(piece), 1 << 20))


def _is_sparse(fd: int) -> bool:
    try:
        status = os.fstat(fd)
    except OSError:
        return False  # then all of it is read
    return status.st_blocks * 512 < status.st_size


def holes_of(ends: Ends, path: bytes) -> int:
    """Return how many bytes of a source file need no room at the destination; 0 where that cannot be told."""
    with opened(ends.destination, Side.DESTINATION) as dst:
        touch(Side.DESTINATION)
        if linux.filesystem_magic(dst) not in _KEEPS:
            return 0
    with opened(ends.source, Side.SOURCE) as src:
        try:
            fd = beneath.open_file(path, READ, dir_fd=src)
        except OSError:
            return 0  # whoever copies it meets it again, and says what it is
        try:
            return _holes_in(fd) if _is_sparse(fd) else 0
        except OSError:
            return 0
        finally:
            close_quietly(fd)


def _holes_in(fd: int) -> int:
    size = os.fstat(fd).st_size
    holes = at = 0
    while at < size:
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        try:
            at = os.lseek(fd, hole, os.SEEK_DATA) if hole < size else size
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            at = size
        holes += at - hole
    return holes
