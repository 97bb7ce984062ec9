"""
A mover that cuts the destination's power right after the Nth step of a transfer.

Steps are counted over all movers of a run together: at the destination, a folder that is made, a block that is begun,
what makes durable, a rename, a removal; at the source, a removal. A probe's do not count. What the steps were is in the
file ``steps``, and, once the power is cut, after which in ``cut``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import signal
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from trioft.core.model import BLOCK_SIZE
from trioft.movers.ops import linux
from trioft.movers.ops import main as mover

# The real ones: what this module does itself is not counted.
_open, _close, _fstat = os.open, os.close, os.fstat

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_NO_LOG_FLUSH = struct.pack("I", 2)  # what is not on the disk by now never gets there

PATHS = ("mkdir", "unlink", "rename")
DESCRIPTORS = ("pwrite", "fsync", "fdatasync")
AT_SOURCE = ("unlink", "rename")


def cut_power(folder: str) -> None:
    """Have the filesystem of *folder* lose all that is not on its disk; nothing works on it until it is remounted."""
    fd = _open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
    finally:
        _close(fd)


class Plan(NamedTuple):
    """What happens after which step; 0: after none."""

    at: int
    cuts: bool  # the power is cut
    kills: bool  # the agent dies
    folder: str  # of the notes
    dest: str
    devices: tuple[int, int]  # of source and destination


class Cutter:
    """Counts steps."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cut = os.path.join(plan.folder, "cut")
        self.steps = os.open(os.path.join(plan.folder, "steps"), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def install(self) -> None:
        """Put this between trioft and the system."""
        for name in PATHS:
            setattr(os, name, functools.partial(self.path_call, name, getattr(os, name)))
        for name in DESCRIPTORS:
            setattr(os, name, functools.partial(self.descriptor_call, name, getattr(os, name)))
        linux.syncfs = functools.partial(self.descriptor_call, "syncfs", linux.syncfs)
        real = linux.rename_noreplace

        def rename(old: bytes, new: bytes, dir_fd: int, new_dir_fd: int | None = None, **how: Any) -> None:
            real(old, new, dir_fd, new_dir_fd, **how)
            self.step("rename", dir_fd, os.fsdecode(old))

        linux.rename_noreplace = rename

    def path_call(self, call: str, real: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
        value = real(path, *args, **kwargs)
        folder = kwargs.get("dir_fd", kwargs.get("src_dir_fd"))
        if folder is not None:
            self.step(call, folder, os.fsdecode(path))
        return value

    def descriptor_call(self, call: str, real: Callable[..., Any], fd: int, *args: Any, **kwargs: Any) -> Any:
        value = real(fd, *args, **kwargs)
        if call != "pwrite" or args[1] % BLOCK_SIZE == 0:
            self.step(call, fd, "")
        return value

    def step(self, call: str, fd: int, name: str) -> None:
        try:
            side = self.plan.devices.index(_fstat(fd).st_dev)
            path = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), name).rstrip("/")
        except (OSError, ValueError):  # the power is cut; or it is neither of the two
            return
        if (side == 0 and call not in AT_SOURCE) or ".trioft-probe-" in path or os.path.exists(self.cut):
            return
        what = f"{call} {os.path.relpath(path, self.plan.dest) if side else 'source ' + name}"
        fcntl.flock(self.steps, fcntl.LOCK_EX)
        try:
            os.write(self.steps, what.encode("utf-8", "backslashreplace") + b"\n")
            count = os.pread(self.steps, 1 << 20, 0).count(b"\n")
            if count == self.plan.at:
                with contextlib.suppress(FileExistsError), open(self.cut, "x", encoding="utf-8") as file:
                    file.write(what)  # first: another mover may meet the cut at once
                if self.plan.cuts:
                    cut_power(self.plan.dest)
                if self.plan.kills:
                    os.kill(os.getppid(), signal.SIGKILL)
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            fcntl.flock(self.steps, fcntl.LOCK_UN)


def main(parent: int, plan: tuple[Any, ...]) -> None:
    """Serve as a mover, with *plan*."""
    Cutter(Plan(*plan)).install()
    mover.main(parent)
