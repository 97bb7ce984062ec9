"""
Who works on a pair of source and destination: one trioft at a time.

``Lock`` is for those that share a state folder, ``MachineLock`` for those of one machine, whoever has started them and
wherever their state lies. Those of other machines are told by a claim at the destination.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys

import xxhash

from trioft.core.errors import LedgerError, LockedError, UnusableError

# The disk is full, or does not answer, or this process has no descriptor left.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}

_WAITING = 128  # connections that nobody ever accepts
_SHARED_FOLDER = "/tmp/trioft-locks"


class Lock:
    """
    Keeps a second trioft away from the same pair: a locked file beside the ledger that holds the process id.

    The kernel releases it when the process ends, however it ends. Movers do not inherit it.
    """

    def __init__(self, path: str) -> None:
        """Raises ``LockedError`` naming the process that has it, ``UnusableError`` if the file cannot be made."""
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(
                f"cannot use the state directory {os.path.dirname(path)}: {error.strerror}",
                hint="choose another one with --state-dir",
                passes=error.errno in _PASSING,
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise locked_by(holder) from None
        except OSError as error:  # some network filesystems have no locks, or no server that grants them
            os.close(self._fd)
            raise UnusableError(
                f"cannot lock {path}: {error.strerror}", hint="choose a local folder with --state-dir"
            ) from error
        with contextlib.suppress(OSError):  # on a full disk nobody can read who it is
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        os.close(self._fd)


class MachineLock:
    """
    Keeps away a second trioft of this machine that has its state elsewhere: another user's, a service's, a container's.

    The kernel releases it when the process ends. Movers do not inherit it.
    """

    def __init__(self, pair: bytes) -> None:
        """
        *pair* is what both ends are, the same for whoever works on them, by whatever path.

        Raises ``LockedError`` naming the process that has it. Where there can be no such lock, there is none.
        """
        name = xxhash.xxh3_128_hexdigest(pair)
        self._held: socket.socket | int | None = None
        with contextlib.suppress(OSError):
            if sys.platform == "linux":
                self._held = _bind(f"\0trioft-{name}")
            else:
                self._held = _lock_file(os.path.join(_SHARED_FOLDER, name))

    def release(self) -> None:
        match self._held:
            case socket.socket() as held:
                held.close()
            case int(fd):
                os.close(fd)


def locked_by(holder: str) -> LockedError:
    """Return the error that says who works on the pair already."""
    return LockedError(
        f"another trioft works on this source and destination: process {holder}", hint="wait for it, or stop it"
    )


def _bind(name: str) -> socket.socket:
    """Return a socket with a name that no file has: of all processes on this network one can have it."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(name)
        held.listen(_WAITING)  # it is never accepted: to connect is enough to learn whose it is
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise locked_by(_who_listens(name)) from None
    return held


def _who_listens(name: str) -> str:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        asking.connect(name)
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, user, _ = struct.unpack("3i", credentials)
        if pid:  # else it is in another container
            return f"{pid}, of user {user}"
    return "unknown"


def _lock_file(path: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(path))
        os.chmod(os.path.dirname(path), 0o1777)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise locked_by("unknown") from None
    except OSError:
        os.close(fd)
        raise
    return fd
