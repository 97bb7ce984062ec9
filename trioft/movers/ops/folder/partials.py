"""
Partials in a mounted folder: made with their folders, written, closed, removed. Shared by the operations here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from trioft.core.errors import SEAL, FileTrouble, Remedy, Side, Trouble, classify, trouble_of
from trioft.core.model import MIB, Fingerprint, Item, Manner
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.files import fingerprint_of, status_of
from trioft.movers.ops.slate import begin_thread, clear, touch

T = TypeVar("T")

R = TypeVar("R")

_AT_A_TIME = 8  # small files that one mover has on the way to a server


def each(dst: int, work: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """
    Return what *work* returns for each of *things*: for several at a time where the destination is behind a network.

    There a small file mostly waits, a dozen times, for an answer. Elsewhere threads only take the interpreter from
    each other. *work* may tell of progress: messages as short as these do not get mixed up in the pipe.
    """
    if len(things) < 2 or linux.filesystem_magic(dst) not in linux.SHARED:
        return [work(thing) for thing in things]
    from concurrent.futures import ThreadPoolExecutor

    def do(thing: T) -> R:
        try:
            return work(thing)
        finally:
            clear()

    threads = iter(range(_AT_A_TIME))
    with ThreadPoolExecutor(min(_AT_A_TIME, len(things)), initializer=lambda: begin_thread(next(threads))) as pool:
        return list(pool.map(do, things))


def make_folder(src: int, dst: int, folder: bytes, *, made_up: bool = False) -> list[bytes]:
    """
    Make *folder* and its parents at the destination, with the permission bits they have at the source.

    One that the source does not have is private; but if a rule has *made up* these folders, as any new folder is here.

    Returns the folders that got a new entry, which have to be made durable. Never makes the root.
    """
    if not folder:
        return []
    changed: list[bytes] = []
    touch(Side.DESTINATION)
    try:
        try:
            beneath.mkdir(folder, 0o700, dir_fd=dst)
        except FileNotFoundError:
            beneath.look_anew(dst)  # the folder above may be another one by now
            changed = make_folder(src, dst, os.path.dirname(folder), made_up=made_up)
            beneath.mkdir(folder, 0o700, dir_fd=dst)
    except FileExistsError:
        return changed  # another mover may have been faster
    with contextlib.suppress(OSError):  # a destination without permission bits is said once, by the probe
        touch(Side.SOURCE)
        try:
            mode = beneath.stat_of(folder, dir_fd=src).st_mode
            if not stat.S_ISDIR(mode):
                raise FileNotFoundError
        except FileNotFoundError:
            mode = _mode_of_new_folders() if made_up else 0
        touch(Side.DESTINATION)
        # A folder of a group gives its set-group-ID bit to those below it: what lies deeper belongs to the same group.
        bits = mode | beneath.stat_of(folder, dir_fd=dst).st_mode
        beneath.chmod(folder, mode & 0o777 | 0o700 | bits & stat.S_ISGID, dir_fd=dst)
    return [*changed, os.path.dirname(folder)]


@functools.cache
def _mode_of_new_folders() -> int:
    """Return the permission bits that the umask leaves a new folder. Asked in another way, it would have to be set."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return 0o777 & ~int(line.split()[1], 8)
    return 0o700


def no_room(trouble: Trouble, dst: int) -> Trouble:
    """
    Say what there is none of, where that is not space: what may be made at *dst* can be counted in other ways too.

    An inode is used up by each file, whatever its size; and a root folder of FAT has so many names, and no more.
    """
    if trouble.errno != errno.ENOSPC or trouble.op not in ("create", "mkdir"):
        return trouble
    try:
        space = os.fstatvfs(dst)
    except OSError:
        return trouble
    free = space.f_bavail * space.f_frsize
    if space.f_files and not space.f_favail:
        text = f"no inodes are left there ({space.f_files} are in use), so no more files can be made"
    elif free >= MIB:
        text = "no more names fit in there (the root folder of a FAT, for one, has a fixed number of them)"
    else:
        return trouble
    from trioft.core.units import size_text  # slow to load, and rarely needed

    return trouble._replace(text=f"{text}, although {size_text(free)} are free")


def sync_folder(dst: int, folder: bytes) -> None:
    """Make the entries of *folder* durable."""
    touch(Side.DESTINATION)
    try:
        fd = beneath.open_folder(folder, dir_fd=dst)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # Some servers cannot; the rename is then as durable as they make it.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "fsync", folder)) from error


class Watched:
    """
    A partial that is open for writing, and whether anybody else changes it.

    *seal* is what it was when trioft had written to it last; None: it is not watched. Each of our own writes sets its
    ctime, so that is looked at before and after each of them. Raises ``FileTrouble`` where it is another one.
    """

    def __init__(self, fd: int, partial: bytes, seal: Fingerprint | None) -> None:
        self._fd, self._partial, self.seal = fd, partial, seal

    def __enter__(self) -> Watched:
        if self.seal is not None:
            self.check()
            _watched[self._fd] = self
        return self

    def __exit__(self, *_: object) -> None:
        _watched.pop(self._fd, None)

    def check(self) -> None:
        """Raise ``FileTrouble`` if anybody else has changed the partial."""
        if fingerprint_of(status_of(self._fd, Side.DESTINATION, self._partial)) != self.seal:
            raise FileTrouble(touched(self._partial))

    def note(self) -> Fingerprint | None:
        """What has been done by now, was done by us. Return what the partial is, where it is watched."""
        if self.seal is not None:
            self.seal = fingerprint_of(status_of(self._fd, Side.DESTINATION, self._partial))
        return self.seal


_watched: dict[int, Watched] = {}  # by descriptor


def touched(partial: bytes) -> Trouble:
    """Return the trouble that somebody else has changed a partial."""
    text = "somebody else has changed this partial since it was verified: it is compared anew"
    return Trouble(Side.DESTINATION, SEAL, partial, None, None, text)


@contextlib.contextmanager
def own_change(fd: int) -> Iterator[None]:
    """What is done inside to the partial that is open as *fd* is done by us alone, where it is watched."""
    watched = _watched.get(fd)
    if watched is None:
        yield
        return
    with alone(fd):
        watched.check()
        yield
        watched.note()


@contextlib.contextmanager
def alone(fd: int) -> Iterator[None]:
    """
    While inside, nobody else opens the file that is open for writing as *fd*: who wants to waits until it is over.

    That is a write lease. There is none where somebody has the file open already, if only for reading.
    """
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def write_all(fd: int, path: bytes, offset: int, view: memoryview) -> None:
    with own_change(fd):
        _write_all(fd, path, offset, view)


def _write_all(fd: int, path: bytes, offset: int, view: memoryview) -> None:
    touch(Side.DESTINATION)
    done = 0
    try:
        while done < len(view):
            n = os.pwrite(fd, view[done:], offset + done)
            if n == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            done += n
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "write", path, offset + done)) from error


def remove_partial(dst: int, partial: bytes) -> None:
    """Remove a partial. One that is not there is fine."""
    touch(Side.DESTINATION)
    try:
        beneath.unlink(partial, dir_fd=dst)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "unlink", partial)) from error


def create_partial(
    src: int, dst: int, partial: bytes, mode: int = 0, *, routed: bool = False
) -> tuple[int, list[bytes]]:
    """
    Create a partial with the permission bits of *mode*, as far as the umask lets them, and its folder; return its
    descriptor and the folders that have a new entry.

    If the file is *routed*, its folder need not have one at the source that it could be like.

    A leftover is unlinked, never truncated: whoever still has it open, writes into nothing.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    folders: list[bytes] = []
    op = "create"
    touch(Side.DESTINATION)
    for _ in range(10):
        try:
            return beneath.open_file(partial, flags, _mode_of_partial(mode), dir_fd=dst), folders
        except FileExistsError:
            remove_partial(dst, partial)
        except FileNotFoundError as error:
            if folders:
                raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial)) from error
            folder = os.path.dirname(partial)
            try:
                folders = make_folder(src, dst, folder, made_up=routed) or [folder]
            except OSError as other:
                raise FileTrouble(no_room(trouble_of(other, Side.DESTINATION, "mkdir", folder), dst)) from other
        except OSError as error:
            raise FileTrouble(no_room(trouble_of(error, Side.DESTINATION, op, partial), dst)) from error
    # It cannot be created because it is there, and not be removed because it is not: a server that waits for somebody.
    raise FileTrouble(Trouble(Side.DESTINATION, op, partial, None, errno.EBUSY, os.strerror(errno.EBUSY)))


def _mode_of_partial(mode: int) -> int:
    """The owner may read and write a partial whatever the source's bits are; ``publish`` takes away the rest."""
    return mode & 0o777 | 0o600


def copy_attributes(
    src_fd: int, dst_fd: int, item: Item, manner: Manner, mode: int | None = None, *, whole: bool = False
) -> list[str]:
    """
    Permission bits and user attributes, as far as the destination takes them: its probe says what it does not.

    *mode* is what the partial has, where that is known: a server need not be asked for what is there. A *whole* file is
    no partial any more: it gets the very bits of the source, and loses the attributes that the source has not.
    Returns the names of the attributes that the destination does not take, although it takes others.
    """
    touch(Side.DESTINATION)
    wanted = permission_bits(src_fd, dst_fd, item.mode) | (0 if whole else 0o600)
    if mode is None or stat.S_IMODE(mode) != wanted:
        with as_far_as_possible("chmod", item.path):
            os.fchmod(dst_fd, wanted)
    return copy_xattrs(src_fd, dst_fd, item.path, remove=whole) if manner.xattrs else []


def permission_bits(src_fd: int, dst_fd: int, mode: int) -> int:
    """
    Return the permission bits that a copy gets of a source with *mode*.

    Set-group-ID only where both belong to the same group: it lends the rights of the group. Set-user-ID never.
    """
    bits = mode & 0o777
    if mode & stat.S_ISGID:
        with contextlib.suppress(OSError):
            bits |= stat.S_ISGID if os.fstat(src_fd).st_gid == os.fstat(dst_fd).st_gid else 0
    return bits


def copy_xattrs(src_fd: int, dst_fd: int, path: bytes, *, remove: bool = False) -> list[str]:
    """
    Copy the user attributes; *remove* those that the source has not. Returns the names of those that are not taken.

    None are missed where the destination has no attributes at all: its filesystem, or its mount, does not know them.
    """
    kept: dict[str, bytes] = {}
    touch(Side.SOURCE)
    with as_far_as_possible("listxattr", path, Side.SOURCE):
        for name in os.listxattr(src_fd):
            if name.startswith("user."):
                with as_far_as_possible("getxattr", path, Side.SOURCE):
                    kept[name] = os.getxattr(src_fd, name)
    touch(Side.DESTINATION)
    if remove:
        with as_far_as_possible("removexattr", path):
            for name in {*os.listxattr(dst_fd)} - kept.keys():
                if name.startswith("user."):
                    os.removexattr(dst_fd, name)
    refused: list[str] = []
    # The small ones first: what a large one uses up is not missing for them then.
    for name, value in sorted(kept.items(), key=lambda one: len(one[1])):
        try:
            os.setxattr(dst_fd, name, value)
        except OSError as error:
            trouble = trouble_of(error, Side.DESTINATION, "setxattr", path)
            if classify(trouble) == Remedy.DESTINATION:
                raise FileTrouble(trouble) from error
            if error.errno == errno.EOPNOTSUPP:  # this filesystem has none
                return []
            refused.append(name)
    return refused


@contextlib.contextmanager
def as_far_as_possible(op: str, path: bytes, side: Side = Side.DESTINATION) -> Iterator[None]:
    """Do without what cannot be done. That the end is gone is another matter: then it can be done later."""
    try:
        yield
    except OSError as error:
        trouble = trouble_of(error, side, op, path)
        if classify(trouble) in (Remedy.DESTINATION, Remedy.SOURCE):
            raise FileTrouble(trouble) from error


def set_times(dst: int, partial: bytes, times: tuple[int, int]) -> None:
    """
    Give a partial, or a delivered file, its times, access and modification, in ns. Raises ``OSError``.

    A server that never sets them, or not for us, is done without. Any other error is none of the filesystem's kind: it
    passes, or is to be told.
    """
    try:
        beneath.utime(partial, times, dir_fd=dst)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise


def close_written(fd: int, path: bytes) -> None:
    """Close a file that was written: network filesystems keep their errors for this moment."""
    touch(Side.DESTINATION)
    try:
        os.close(fd)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "close", path)) from error
