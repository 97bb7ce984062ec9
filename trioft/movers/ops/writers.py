"""
Writers of a source file: is anybody still writing it? Runs in a mover.

Asked in this order, each answer with its strength:

1. a **read lease** (``F_SETLEASE``): the kernel grants it only when nobody has the file open for writing,
   through any name, and no writable memory map of it is left. It takes microseconds and proves it either way, on
   filesystems where the kernel knows all writers. It is wrong elsewhere: CIFS grants it while another client writes,
   NFS refuses it to everybody, FUSE knows this machine only. So: an allow-list.
2. the **open-file table** (``/proc/*/fd``): finds writers on this machine, where trioft may look.
3. **unknown**: only quiet time is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterable

from trioft.core.answers import BUSY, CLOSED, LIKELY, MARKED, PROVED, TIMEOUT, UNKNOWN
from trioft.movers.ops import linux

# Where the kernel knows every writer (measured, memory maps and hard links included).
_LEASES_PROVE = {linux.EXT4, linux.XFS, linux.BTRFS, linux.TMPFS, linux.OVERLAYFS}

_magic_of_device: dict[int, int] = {}


def prepare_leases() -> None:
    """Once per process, before the first probe: SIGIO, sent when an opener meets our lease, kills by default."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def ask_lease(fd: int, device: int) -> str:
    """
    Ask the kernel whether the file open read-only as *fd* has a writer: CLOSED, BUSY or UNKNOWN.

    The lease is released at once, since whoever opens the file for writing meanwhile waits for that.
    """
    if _magic(fd, device) not in _LEASES_PROVE:
        return UNKNOWN
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return BUSY if error.errno == errno.EAGAIN else UNKNOWN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return CLOSED


def strength(fd: int, device: int, answer: str, marked: bool = False) -> str:
    """
    Say what it is worth that the file open as *fd* was found to have no writer: *answer* is CLOSED, or UNKNOWN.

    The latter means that ``find_writers`` found none, and that it has its marker, or was quiet: more than that only if
    this process may look into all others, and no other machine can write there.
    """
    if answer == CLOSED:
        return PROVED
    if marked:
        return MARKED
    return LIKELY if os.geteuid() == 0 and _magic(fd, device) not in linux.SHARED else TIMEOUT


def _magic(fd: int, device: int) -> int:
    magic = _magic_of_device.get(device)
    if magic is None:
        magic = _magic_of_device[device] = linux.filesystem_magic(fd)
    return magic


def find_writers(files: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """
    Return those of *files* (device, inode) that a process on this machine has open for writing.

    Reads the open-file table once for all of them, about a millisecond for a hundred processes. Sees only the
    processes that this user may look into, no writers on other machines, and no memory maps: finding one proves
    BUSY, finding none proves nothing.
    """
    wanted = set(files)
    inodes = {inode for _, inode in wanted}
    found: set[tuple[int, int]] = set()
    if not wanted:
        return found
    for process in _listed("/proc"):
        if not process.isdigit():
            continue
        for descriptor in _listed(f"/proc/{process}/fdinfo"):
            try:
                # Not a stat of the descriptor: that would hang if the other process has a file on a dead mount.
                with open(f"/proc/{process}/fdinfo/{descriptor}", "rb") as stream:
                    info = dict(line.split(b":", 1) for line in stream if b":" in line)
                if int(info[b"flags"], 8) & os.O_ACCMODE == os.O_RDONLY or int(info[b"ino"]) not in inodes:
                    continue
                status = os.stat(f"/proc/{process}/fd/{descriptor}")
            except (OSError, KeyError, ValueError):  # it has ended, or is not ours to look at
                continue
            if (status.st_dev, status.st_ino) in wanted:
                found.add((status.st_dev, status.st_ino))
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
