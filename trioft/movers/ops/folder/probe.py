"""
The operations that find out whether a destination can be used, by using it. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from trioft.core.answers import KEEPS_NO_TIMES, Probed
from trioft.core.errors import FileTrouble, Remedy, Side, classify, trouble_of
from trioft.core.model import Identity, Root
from trioft.core.naming import PROBE, PROBE_CONTENT
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import fingerprint_of
from trioft.movers.ops.folder.partials import no_room
from trioft.movers.ops.mounts import _opened, _other_place, volumes_below, why_not_same

# What destinations keep of a modification time: ext4 and NFS all of it, SMB 100 ns, SFTP 1 s, FAT 2 s.
_RESOLUTIONS_NS = (1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)


def probe(path: bytes, was: Identity | None, marker: bytes | None, require_mount: bool) -> Probed:
    """
    Find out whether the destination *path* is usable, by using it: write, fsync, set times, remove.

    Nothing is written where the place is not the one it *was*, or does not have what is asked for. Never creates
    *path*. Raises ``FileTrouble`` with what does not work.
    """
    name = PROBE + b"%d-%d" % (os.getpid(), time.monotonic_ns())
    with _recognized(path, was, marker, require_mount) as (dst, root, identity):
        try:
            op = "stat"
            space = os.fstatvfs(dst)
            op = "create"
            fd = beneath.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dst)
            try:
                op = "write"
                free = space.f_bavail * space.f_frsize
                try:
                    try:
                        os.write(fd, PROBE_CONTENT)
                        op = "fsync"
                        os.fsync(fd)
                    except OSError as error:
                        if classify(trouble_of(error, Side.DESTINATION, op, b"")) != Remedy.SPACE:
                            raise
                        free = 0  # whatever the figures say
                    with contextlib.suppress(OSError):
                        os.fchmod(fd, 0o640)
                finally:
                    _close_probe(fd)
                op = "stat"
                resolution = measure_resolution(dst, name)
                mode = stat.S_IMODE(beneath.stat_of(name, dir_fd=dst).st_mode)
            except OSError:
                with contextlib.suppress(OSError):
                    beneath.unlink(name, dir_fd=dst)
                raise
            op = "unlink"
            beneath.unlink(name, dir_fd=dst)
        except OSError as error:
            raise FileTrouble(no_room(trouble_of(error, Side.DESTINATION, op, b""), dst)) from error
        total = space.f_blocks * space.f_frsize
        files, volumes = space.f_favail if space.f_files else None, volumes_below(path)
        largest, _ = linux.largest_file(dst)
        return Probed(root, identity, free, total, resolution, mode == 0o640, files, volumes, largest)


def recognize(path: bytes, was: Identity | None, marker: bytes | None, require_mount: bool) -> Root:
    """
    Find out whether the destination *path* is the place that it *was*, and has what is asked for. Writes nothing.

    Raises ``FileTrouble``.
    """
    with _recognized(path, was, marker, require_mount) as (_, root, _):
        return root


@contextlib.contextmanager
def _recognized(
    path: bytes, was: Identity | None, marker: bytes | None, require_mount: bool
) -> Iterator[tuple[Top, Root, Identity]]:
    with _opened(path, Side.DESTINATION) as (dst, root, identity):
        if was is not None and (why := why_not_same(was, identity)) is not None:
            raise _other_place(Side.DESTINATION, why)
        op = "stat"
        try:
            if require_mount and root.dev == os.stat("/").st_dev:
                text = "nothing is mounted at the destination folder, and destination.require_mount is set"
                raise _other_place(Side.DESTINATION, text)
            if marker is not None:
                op = "find the marker"
                beneath.stat_of(marker, dir_fd=dst)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, b"")) from error
        yield dst, root, identity


def time_as_kept(dst: int, mtime_ns: int) -> int:
    """Return what the destination makes of a modification time that it may not be able to hold, by setting it once."""
    name = PROBE + b"time-%d-%d" % (os.getpid(), time.monotonic_ns())
    try:
        fd = beneath.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dst)
        os.close(fd)
        try:
            beneath.utime(name, (mtime_ns, mtime_ns), dir_fd=dst)
            return fingerprint_of(beneath.stat_of(name, dir_fd=dst)).mtime_ns
        finally:
            beneath.unlink(name, dir_fd=dst)
    except OSError as error:
        trouble = trouble_of(error, Side.DESTINATION, "utimens", name)
        if classify(trouble) == Remedy.DESTINATION:
            raise FileTrouble(trouble) from error
        return mtime_ns


def _close_probe(fd: int) -> None:
    """Some servers keep what they have to say about space for the close."""
    try:
        os.close(fd)
    except OSError as error:
        if classify(trouble_of(error, Side.DESTINATION, "close", b"")) != Remedy.SPACE:
            raise


def measure_resolution(dst: int, name: bytes) -> int:
    """Return how exactly the modification time of the file *name*, in the folder *dst*, is kept."""
    # Odd down to the last digit, and not long ago: whoever sweeps old partials away must not take this for one.
    wanted = (int(time.time()) | 1) * 1_000_000_000 + 123_456_789
    try:
        beneath.utime(name, (wanted, wanted), dir_fd=dst)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # what `publish` takes for an answer, too
            raise
        return KEEPS_NO_TIMES
    off = abs(beneath.stat_of(name, dir_fd=dst).st_mtime_ns - wanted)
    return next((resolution for resolution in _RESOLUTIONS_NS if off < resolution), KEEPS_NO_TIMES)
