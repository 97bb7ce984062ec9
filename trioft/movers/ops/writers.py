"""
Writers of a source file: is anybody still writing it? Runs in a mover.

Asked in this order, each answer with its strength:

1. a **read lease** (``F_SETLEASE``): the kernel grants it only when nobody has the file open for writing,
   through any name, and no writable memory map of it is left. It takes microseconds and proves it either way, on
   filesystems where the kernel knows all writers. It is wrong elsewhere: CIFS grants it while another client writes,
   NFS refuses it to everybody, FUSE knows this machine only, an overlay does not know who writes to the layer below.
   So: an allow-list. What this machine exports by NFS is not on it either: the server opens a file for each write
   only, and closes it when somebody asks for a lease. That somebody has it open is believed wherever it is said.
2. the **open-file table** (``/proc/*/fd``): finds writers on this machine, where trioft may look.
3. **unknown**: only quiet time is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterable

from trioft.core.answers import BUSY, CLOSED, LIKELY, MARKED, PROVED, TIMEOUT, UNKNOWN
from trioft.core.errors import Side
from trioft.core.model import Place
from trioft.movers.ops import linux
from trioft.movers.ops.mounts import contains

# Where the kernel knows every writer (measured, memory maps and hard links included).
_LEASES_PROVE = {linux.EXT4, linux.XFS, linux.BTRFS, linux.TMPFS}
# Where a writer that it knows of can be told, though others may be unknown to it.
_LEASES_TELL = _LEASES_PROVE | {linux.OVERLAYFS}

# Where the NFS server of this machine says what it exports: the kernel's own table, and that of its daemons.
_EXPORTS = ("/proc/fs/nfsd/exports", "/proc/fs/nfs/exports", "/var/lib/nfs/etab")
_SERVERS = "/proc/fs/nfsd/threads"
_EXPORTS_LAST = 5.0  # seconds for which what was read of them is believed

_CAP_SYS_PTRACE = 19
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO: the kernel gives it this inode on every machine

_magic_of_device: dict[int, int] = {}


def prepare_leases() -> None:
    """Once per process, before the first probe: SIGIO, sent when an opener meets our lease, kills by default."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def ask_lease(fd: int, device: int) -> str:
    """
    Ask the kernel whether the file open read-only as *fd* has a writer: CLOSED, BUSY or UNKNOWN.

    The lease is released at once, since whoever opens the file for writing meanwhile waits for that.
    """
    magic = _magic(fd, device)
    if magic not in _LEASES_TELL:
        return UNKNOWN
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return BUSY if error.errno == errno.EAGAIN else UNKNOWN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return CLOSED if magic in _LEASES_PROVE and not is_exported(fd) else UNKNOWN


def strength(fd: int, device: int, answer: str, marked: bool = False) -> str:
    """
    Say what it is worth that the file open as *fd* was found to have no writer: *answer* is CLOSED, or UNKNOWN.

    The latter means that ``find_writers`` found none, and that it has its marker, or was quiet: more than that only if
    this process may look into all others, and nobody can write there past this machine's open-file table.
    """
    if answer == CLOSED:
        return PROVED
    if marked:
        return MARKED
    is_alone = _magic(fd, device) not in linux.SHARED | {linux.OVERLAYFS} and not is_exported(fd)
    return LIKELY if is_alone and sees_all_processes() else TIMEOUT


def sees_all_processes() -> bool:
    """
    May this process look into every other one of this machine?

    With CAP_SYS_PTRACE, in the first user and process namespaces: a container's table shows the container alone.
    """
    try:
        with open("/proc/thread-self/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if b":" in line)
        capabilities = int(fields[b"CapEff"], 16)
        if len(fields[b"NSpid"].split()) > 1 or not capabilities >> _CAP_SYS_PTRACE & 1:
            return False
        with open("/proc/self/uid_map", "rb") as file:
            if [*map(int, file.read().split())] != [0, 0, 2**32 - 1]:
                return False
        # In a container with a /proc of its own there is one number, too.
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except (OSError, KeyError, ValueError):
        return False


def is_exported(fd: int) -> bool:
    """
    Does this machine let others write, by NFS, to the folder of the file that is open as *fd*?

    Where a table of what is exported cannot be read, the answer is yes.
    """
    exports = _exports.now()
    if not exports.folders:
        return exports.folders is None
    try:
        folder = os.fsencode(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")))
    except OSError:
        return True
    answer = exports.answers.get(folder)
    if answer is None:
        its = Place(Side.SOURCE, folder)
        answer = any(contains(Place(Side.SOURCE, exported), its) for exported in exports.folders)
        exports.answers[folder] = answer
    return answer


class _Exports:
    """What this machine exports by NFS, read anew every few seconds."""

    folders: list[bytes] | None = None  # None: unknown

    def __init__(self) -> None:
        self.answers: dict[bytes, bool] = {}  # by folder: is it below one of them?
        self._read_at = -_EXPORTS_LAST

    def now(self) -> _Exports:
        if time.monotonic() - self._read_at >= _EXPORTS_LAST:
            self._read_at, self.answers = time.monotonic(), {}
            self.folders = _read_exports()
        return self


_exports = _Exports()


def _read_exports() -> list[bytes] | None:
    try:
        with open(_SERVERS, "rb") as file:
            if file.read().strip() == b"0":
                return []  # no server runs
    except OSError:
        pass  # it says so nowhere: what the tables have counts
    folders: list[bytes] = []
    for table in _EXPORTS:
        try:
            with open(table, "rb") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            continue
        except OSError:
            return None
        folders += [_unescaped(line.split()[0]) for line in lines if line.strip() and not line.startswith(b"#")]
    return folders


def _unescaped(word: bytes) -> bytes:
    """Return a path of one of those tables: octal stands for blanks and backslashes."""
    parts = word.split(b"\\")
    return parts[0] + b"".join(
        bytes([int(part[:3], 8)]) + part[3:] if part[:3].isdigit() else b"\\" + part for part in parts[1:]
    )


def _magic(fd: int, device: int) -> int:
    magic = _magic_of_device.get(device)
    if magic is None:
        magic = _magic_of_device[device] = linux.filesystem_magic(fd)
    return magic


def has_writer(fd: int) -> bool:
    """Does a process of this machine have the file that is open as *fd* open for writing? See ``find_writers``."""
    status = os.fstat(fd)
    return bool(find_writers([(status.st_dev, status.st_ino)]))


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
