"""What is done in one folder, as the kernel tells it: also what is undone a moment later."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

IN_MODIFY, IN_ATTRIB, IN_OPEN, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x4, 0x20, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_ISDIR = 0x100, 0x200, 0x40000000
_HEAD = struct.Struct("iIII")


def watched(folder: Path) -> int:
    """Return a descriptor that tells what happens in *folder* itself, whatever is mounted there later."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    mask = IN_MODIFY | IN_ATTRIB | IN_OPEN | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(folder), ctypes.c_uint32(mask)) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return fd


def read_events(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield what has happened since the last time: a mask, and the name in the folder (empty: the folder itself)."""
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            _, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            yield mask, data[at - length : at].rstrip(b"\0")
