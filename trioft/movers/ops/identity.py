"""
Which file of the source is this? Run in a mover.

A file is known by its device and inode, where these last. On FAT, exFAT and FUSE they do not: inodes are numbered anew
at each mount, or at each look. There a file is known by its path, and its size and times say which version it is. That
two different files cannot be told apart so, as on two cards of one camera, is for the digests to find out: what was
copied before is compared with the source before it is used.
"""

from __future__ import annotations

import os

import xxhash

from trioft.core.model import Fingerprint
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.files import close_quietly, fingerprint_of

# Where inodes are made up by whoever mounts. 0: a mount, most likely of FUSE, that cannot say what it is.
_BY_PATH = {0, linux.FAT, linux.EXFAT, linux.FUSE}
# Where an inode and the time of its last change tell versions of files apart, from one mount to the next.
_LASTING = {linux.EXT4, linux.XFS, linux.BTRFS, linux.TMPFS, linux.OVERLAYFS, linux.F2FS, linux.ZFS, linux.NFS}

_magic_of: dict[int, int] = {}  # by device, for the time of one operation


def begin_operation() -> None:
    """Believe nothing that was found out about devices before: another filesystem may have their numbers by now."""
    _magic_of.clear()


def identify(status: os.stat_result, path: bytes, *, fd: int | None = None, top: int | None = None) -> Fingerprint:
    """
    Return which version of which source file this is, with *status* and called *path*.

    *fd* is open on the file itself, or on a folder that it most likely lies in; or *top* is the root of the source.
    """
    its = fingerprint_of(status)
    magic = _magic_of.get(its.dev)
    if magic is None:
        magic = _magic_of[its.dev] = _find_magic(its.dev, path, fd, top)
    return its._replace(ino=number_of(path)) if magic in _BY_PATH else its


def number_of(path: bytes) -> int:
    """Return what stands for the inode of a file that has none that lasts."""
    return xxhash.xxh3_64_intdigest(path) >> 1 | 1


def goes_by_path(fd: int) -> bool:
    """Are the files on the filesystem of *fd* known by their paths?"""
    return linux.filesystem_magic(fd) in _BY_PATH


def is_lasting(fd: int) -> bool:
    """Is a file with the same fingerprint as before, on the filesystem of *fd*, the same version of the same file?"""
    return linux.filesystem_magic(fd) in _LASTING


def _find_magic(device: int, path: bytes, fd: int | None, top: int | None) -> int:
    for known in (fd, top):
        if known is not None and os.fstat(known).st_dev == device:
            return linux.filesystem_magic(known)
    # Something else is mounted there.
    try:
        if top is not None:
            its = beneath.open_file(path, os.O_PATH, dir_fd=top)
        elif fd is not None:
            its = beneath.open_file(path.rpartition(b"/")[2], os.O_PATH, dir_fd=fd)
        else:
            return 0
    except OSError:
        return 0  # it is not there any more
    try:
        return linux.filesystem_magic(its)
    finally:
        close_quietly(its)
