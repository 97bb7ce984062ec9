"""
Who works on a pair of source and destination: one trioft at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from trioft.core.errors import LedgerError, LockedError, UnusableError

# The disk is full, or does not answer, or this process has no descriptor left.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}


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
            raise LockedError(
                f"another trioft works on this source and destination: process {holder}",
                hint="wait for it, or stop it",
            ) from None
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
