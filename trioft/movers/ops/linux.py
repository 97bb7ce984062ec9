"""
The few Linux calls that Python does not wrap, each with what stands in for it elsewhere.

Imported by movers only. ``ctypes`` costs 5 ms, so it is loaded at the first call that needs it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
from _thread import allocate_lock  # all of `threading` takes a millisecond to load
from typing import Any

# Filesystem magic numbers, from linux/magic.h.
EXT4 = 0xEF53  # ext2 and ext3 as well
XFS = 0x58465342
BTRFS = 0x9123683E
TMPFS = 0x01021994
OVERLAYFS = 0x794C7630
F2FS = 0xF2F52010
ZFS = 0x2FC12FC1
NFS = 0x6969
FAT = 0x4D44
EXFAT = 0x2011BAB0
FUSE = 0x65735546
CIFS = {0xFF534D42, 0xFE534D42}  # with SMB 1, and later
# On these other machines may write: NFS, CIFS, SMB, SMB2, FUSE (sshfs, virtiofs, …), 9p, Ceph, AFS.
SHARED = {0x6969, 0xFF534D42, 0x517B, 0xFE534D42, 0x65735546, 0x01021997, 0x00C36400, 0x5346414F}

# On these the ctime of a file tells of each change of it, and its inode lasts.
STEADY = {EXT4, XFS, BTRFS, TMPFS}
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_LARGEST_ON_FAT = 2**32 - 1

RENAME_NOREPLACE = 1
_looking = allocate_lock()
# What is answered where a file cannot have a second name, or this one cannot.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
_SYNC_FILE_RANGE = 1 | 2 | 4  # wait before, write, wait after
_SYNC_FILE_RANGE_WRITE = 2
_PR_SET_PDEATHSIG = 1
_OPENAT2 = 437  # on every architecture, as the next one
RESOLVE_NO_SYMLINKS = 4
RESOLVE_BENEATH = 8
_CACHESTAT = 451  # on every architecture that Python is built for
_FS_IOC_GETFSUUID = 0x80111500
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_MNT_ID_UNIQUE = 0x4000


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> int:
    """Call a C function of the type ``int f(…)``; -1 becomes an ``OSError``."""
    import ctypes

    try:
        function = getattr(_libc(), name)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    result: int = function(*args)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def filesystem_magic(fd: int) -> int:
    """Return the magic number of the filesystem that *fd* lives on; 0 where it cannot be told."""
    import ctypes

    # struct statfs begins with f_type, a machine word; 256 bytes are more than any of its layouts.
    buffer = (ctypes.c_ulong * 32)()
    try:
        _call("fstatfs", ctypes.c_int(fd), ctypes.byref(buffer))
    except OSError:
        return 0
    return int(buffer[0])


def largest_file(fd: int) -> tuple[int, str]:
    """Return how many bytes a file on the filesystem of *fd* can have, as far as that is known, and who says so."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if filesystem_magic(fd) == FAT and (limit == resource.RLIM_INFINITY or limit > _LARGEST_ON_FAT):
        return _LARGEST_ON_FAT, "the destination is a FAT, which holds"
    if limit != resource.RLIM_INFINITY:
        return limit, "this process may write (ulimit -f)"
    return 2**63 - 1, ""


def filesystem_uuid(fd: int) -> str:
    """Return the UUID, in hexadecimal, of the filesystem that *fd* lives on; empty where there is none to be had."""
    import fcntl

    answer = bytearray(17)  # struct fsuuid2: how long it is, and 16 bytes
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
    except OSError:  # before Linux 6.9; some have half of it for their statfs
        number = os.fstatvfs(fd).f_fsid if filesystem_magic(fd) in {EXT4, BTRFS} else 0
        return f"{number:016x}" if number else ""
    uuid = bytes(answer[1 : 1 + answer[0]])
    return uuid.hex() if any(uuid) else ""


@functools.cache
def _syncfs_reports_errors() -> bool:
    """syncfs returns write-back errors since Linux 5.8 only; before that its silence proves nothing."""
    try:
        major, minor = os.uname().release.split(".")[:2]
        return (int(major), int("".join(c for c in minor if c.isdigit()) or 0)) >= (5, 8)
    except ValueError:
        return False


def can_syncfs(fd: int) -> bool:
    """Is one ``syncfs`` known to make everything on the filesystem of *fd* durable, and to tell when it did not?"""
    return _syncfs_reports_errors() and filesystem_magic(fd) in {EXT4, XFS, BTRFS, TMPFS}


def syncfs(fd: int) -> None:
    """Make the whole filesystem of *fd* durable. Reports errors since *fd* was opened."""
    import ctypes

    _call("syncfs", ctypes.c_int(fd))


def begin_write_back(fd: int, offset: int, length: int) -> None:
    """Have the dirty pages of one range written from now on, and do not wait: whoever makes it durable waits less."""
    _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def write_back(fd: int, offset: int, length: int) -> None:
    """
    Write the dirty pages of one range and wait for them.

    Not a barrier (no disk cache flush, no metadata): it cuts a long ``fdatasync`` into pieces whose progress
    can be told. Errors are reported, and must be taken as seriously as those of ``fdatasync``.
    """
    _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE)


def _sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    import ctypes

    try:
        _call(
            "sync_file_range",
            ctypes.c_int(fd),
            ctypes.c_int64(offset),
            ctypes.c_int64(length),
            ctypes.c_uint(flags),
        )
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP):
            raise


def openat2(path: bytes, flags: int, dir_fd: int, resolve: int) -> int:
    """Open *path*, which exists, below the folder *dir_fd*, with limits to the way there (since Linux 5.6)."""
    import ctypes

    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    how = (ctypes.c_uint64 * 3)(flags, 0, resolve)  # struct open_how: flags, mode, resolve
    arguments = ctypes.c_int(dir_fd), ctypes.c_char_p(path), ctypes.byref(how), ctypes.c_size_t(24)
    return _call("syscall", ctypes.c_long(_OPENAT2), *arguments)


def mount_id(fd: int) -> int:
    """Return the number of the mount that *fd* lies on; -1 where the system does not tell."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return -1


def unique_mount_id(fd: int) -> int:
    """Return the number of the mount that *fd* lies on, which no other ever gets; 0 before Linux 6.8, and elsewhere."""
    import ctypes

    if sys.platform != "linux":
        return 0
    buffer = (ctypes.c_uint64 * 32)()  # struct statx: stx_mask comes first, stx_mnt_id is at 144
    flags = ctypes.c_int(_AT_EMPTY_PATH | _AT_STATX_DONT_SYNC)
    arguments = ctypes.c_char_p(b""), flags, ctypes.c_uint(_STATX_MNT_ID_UNIQUE), ctypes.byref(buffer)
    try:
        _call("statx", ctypes.c_int(fd), *arguments)
    except OSError:
        return 0
    return int(buffer[18]) if ctypes.c_uint32.from_buffer(buffer).value & _STATX_MNT_ID_UNIQUE else 0


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Have a range of a file take no space any more, and read as zeros. Raises ``OSError`` where that is not known."""
    import ctypes

    arguments = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE), ctypes.c_int64(offset), ctypes.c_int64(length)
    _call("fallocate", ctypes.c_int(fd), *arguments)


def renameat2(old: bytes, new: bytes, dir_fd: int, flags: int, new_dir_fd: int | None = None) -> None:
    """Rename *old* in the folder *dir_fd* to *new*, there or in another folder, as *flags* say."""
    import ctypes

    here, there = ctypes.c_int(dir_fd), ctypes.c_int(dir_fd if new_dir_fd is None else new_dir_fd)
    _call("renameat2", here, ctypes.c_char_p(old), there, ctypes.c_char_p(new), ctypes.c_uint(flags))


def resident_share(fd: int, length: int) -> float:
    """Return which part of the first *length* bytes of a file that is open for writing is in the page cache."""
    import ctypes
    import mmap

    with mmap.mmap(fd, length) as memory:
        pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(memory)
        try:
            _call("mincore", ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(length), pages)
        finally:
            del start  # else the map could not be closed
    return sum(page & 1 for page in pages) / len(pages)


def bytes_in_cache(fd: int, offset: int, length: int) -> int | None:
    """Return how much of a range is in the page cache; None where nobody can tell (before Linux 6.5)."""
    import ctypes
    import mmap

    if sys.platform != "linux":  # where this number is that of another call
        return None
    wanted = (ctypes.c_uint64 * 2)(offset, length)
    found = (ctypes.c_uint64 * 5)()  # struct cachestat: nr_cache comes first
    arguments = ctypes.c_uint(fd), ctypes.byref(wanted), ctypes.byref(found), ctypes.c_uint(0)
    try:
        _call("syscall", ctypes.c_long(_CACHESTAT), *arguments)
    except OSError:
        return None
    return int(found[0]) * mmap.PAGESIZE


def rename_noreplace(
    old: bytes, new: bytes, dir_fd: int, new_dir_fd: int | None = None, *, lock: int | None = None
) -> None:
    """
    Rename *old* in the folder *dir_fd* to *new*, there or in another folder, unless that exists (``FileExistsError``).

    Where the filesystem has no such rename (NFS says EINVAL), the file gets a second name, which never replaces one
    either, and then loses the first. Where it has no links either, the name is looked at before: that leaves a
    moment in which another machine could create it; other processes of this one are kept away by a lock on *lock*, the
    folder if nothing is said.
    """
    there = dir_fd if new_dir_fd is None else new_dir_fd
    try:
        renameat2(old, new, dir_fd, RENAME_NOREPLACE, there)
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    try:
        os.link(old, new, src_dir_fd=dir_fd, dst_dir_fd=there, follow_symlinks=False)
    except FileExistsError:
        if not _are_names_of_one_file(old, new, dir_fd, there):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _look_and_rename(old, new, dir_fd, there, dir_fd if lock is None else lock)
        return
    os.unlink(old, dir_fd=dir_fd)


def _are_names_of_one_file(old: bytes, new: bytes, dir_fd: int, there: int) -> bool:
    """Has the link been made, by an earlier try, or by one whose answer was lost?"""
    one = os.stat(old, dir_fd=dir_fd, follow_symlinks=False)
    other = os.stat(new, dir_fd=there, follow_symlinks=False)
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) and one.st_nlink > 1


def _look_and_rename(old: bytes, new: bytes, dir_fd: int, there: int, lock: int) -> None:
    """Look at a name, and rename. Of the processes of this machine that do so, and their threads, one at a time."""
    import fcntl

    with _looking:  # threads share the descriptor: its lock keeps none of them away
        with contextlib.suppress(OSError):  # it has no locks either
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            try:
                os.stat(new, dir_fd=there, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=there)
            else:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)


def die_with_parent(parent: int) -> bool:
    """
    Have the kernel kill this process when its parent ends. Returns False if the parent has ended already.

    A mover that outlived a killed agent could otherwise still change a partial that the next agent works on.
    """
    import ctypes

    with contextlib.suppress(OSError):  # not Linux: then the closed pipe ends it
        _call("prctl", ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL))
    return os.getppid() == parent


def process_began(pid: int) -> int | None:
    """Return when a process began, in ticks since its machine was started; 0: nobody knows; None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):
        pass
    return 0
