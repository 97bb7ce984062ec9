"""
A read-only FUSE mount of a folder whose inode numbers are others at each look: ``shifting_fs.py FOLDER POINT``.

Some libraries for such mounts do so by default. It ends when it is unmounted.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pyfuse3
import trio


class Shifting(pyfuse3.Operations):
    """Files lie in one folder; an inode of the kernel's is a place in the list of their names."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.names = sorted(os.listdir(folder))

    def _attributes(self, inode: int, *, shift: bool) -> Any:
        path = self.folder if inode == pyfuse3.ROOT_INODE else os.path.join(self.folder, self.names[inode - 2])
        status, entry = os.lstat(path), pyfuse3.EntryAttributes()
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(entry, name, getattr(status, name))
        entry.st_ino = inode + (1000 + time.monotonic_ns() // 1_000_000 % 1_000_000_000 if shift else 0)
        entry.attr_timeout = 0
        entry.entry_timeout = 0
        return entry

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        return self._attributes(inode, shift=inode != pyfuse3.ROOT_INODE)

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        if os.fsdecode(name) not in self.names:
            raise pyfuse3.FUSEError(2)
        return self._attributes(2 + self.names.index(os.fsdecode(name)), shift=False)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, handle: int, start: int, token: Any) -> None:
        for number, name in enumerate(self.names[start:], start):
            entry = self._attributes(2 + number, shift=False)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number + 1):
                break

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=os.open(os.path.join(self.folder, self.names[inode - 2]), os.O_RDONLY))

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(handle, size, offset)

    async def release(self, handle: int) -> None:
        os.close(handle)


def main() -> None:
    pyfuse3.init(Shifting(sys.argv[1]), sys.argv[2], {"fsname=shifting", "ro"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
