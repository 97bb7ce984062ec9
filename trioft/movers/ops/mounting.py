"""
Which mounting of a filesystem is this? Run in a mover.

The number of a device does not say. Where none is behind it (NFS, SMB, FUSE, tmpfs), the kernel makes one up, and gives
that of a filesystem that has gone to the next one that comes.
"""

from __future__ import annotations

import contextlib
import os

from trioft.movers.ops import linux

_TMPFS = b" - tmpfs "  # in the kernel's table


def mounting_of(fd: int) -> str:
    """
    Return what stands for the mounting that *fd* lies on, and for no other; empty where the system does not tell.

    No server is asked. Kernels before Linux 6.8 give the number of a mount that has gone to the next one, too: there
    it is the whole line of their table, which names what is mounted, and of a tmpfs its own number as well.
    """
    if number := linux.unique_mount_id(fd):
        return str(number)
    line = _table.line_of(linux.mount_id(fd))
    with contextlib.suppress(OSError):
        if _TMPFS in line:
            line += b" %x" % os.fstatvfs(fd).f_fsid
    return os.fsdecode(line)


class _Table:
    """The kernel's table of mounts, kept open: it says when it has changed, and is read anew only then."""

    def __init__(self) -> None:
        self._fd = -1
        self._lines: dict[int, bytes] = {}

    def line_of(self, number: int) -> bytes:
        """Return the line of the mount with this number, of those that are there now; empty if there is none."""
        try:
            if self._has_changed():
                lines = self._read().splitlines()
                self._lines = {int(line.partition(b" ")[0]): line for line in lines}
        except OSError:
            return b""
        return self._lines.get(number, b"")

    def _has_changed(self) -> bool:
        import select

        if self._fd < 0:
            self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLPRI)
        return bool(poll.poll(0))

    def _read(self) -> bytes:
        self._lines = {}
        try:
            os.lseek(self._fd, 0, os.SEEK_SET)
            return b"".join(iter(lambda: os.read(self._fd, 1 << 16), b""))
        except OSError:  # what it had to say is lost: begin again
            os.close(self._fd)
            self._fd = -1
            raise


_table = _Table()
