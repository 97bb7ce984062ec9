"""
Partials in a mounted folder: made with their folders, written, closed, removed. Shared by the operations here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify, trouble_of
from trioft.core.model import Item, Manner
from trioft.movers.ops import beneath, linux
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
        beneath.chmod(folder, mode & 0o777 | 0o700, dir_fd=dst)
    return [*changed, os.path.dirname(folder)]


@functools.cache
def _mode_of_new_folders() -> int:
    """Return the permission bits that the umask leaves a new folder. Asked in another way, it would have to be set."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return 0o777 & ~int(line.split()[1], 8)
    return 0o700


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


def write_all(fd: int, path: bytes, offset: int, view: memoryview) -> None:
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
                raise FileTrouble(trouble_of(other, Side.DESTINATION, "mkdir", folder)) from other
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial)) from error
    # It cannot be created because it is there, and not be removed because it is not: a server that waits for somebody.
    raise FileTrouble(Trouble(Side.DESTINATION, op, partial, None, errno.EBUSY, os.strerror(errno.EBUSY)))


def _mode_of_partial(mode: int) -> int:
    """The owner may read and write a partial whatever the source's bits are; ``publish`` takes away the rest."""
    return mode & 0o777 | 0o600


def copy_attributes(src_fd: int, dst_fd: int, item: Item, manner: Manner, mode: int | None = None) -> None:
    """
    Permission bits and user attributes, as far as the destination takes them: its probe says what it does not.

    *mode* is what the partial has, where that is known: a server need not be asked for what is there.
    """
    touch(Side.DESTINATION)
    if mode is None or stat.S_IMODE(mode) != _mode_of_partial(item.mode):
        with as_far_as_possible("chmod", item.path):
            os.fchmod(dst_fd, _mode_of_partial(item.mode))
    if manner.xattrs:
        with as_far_as_possible("setxattr", item.path):
            touch(Side.SOURCE)
            kept = {name: os.getxattr(src_fd, name) for name in os.listxattr(src_fd) if name.startswith("user.")}
            touch(Side.DESTINATION)
            for name, value in kept.items():
                os.setxattr(dst_fd, name, value)


@contextlib.contextmanager
def as_far_as_possible(op: str, path: bytes) -> Iterator[None]:
    """Do without what cannot be done. That the destination is gone is another matter: then it can be done later."""
    try:
        yield
    except OSError as error:
        trouble = trouble_of(error, Side.DESTINATION, op, path)
        if classify(trouble) == Remedy.DESTINATION:
            raise FileTrouble(trouble) from error


def close_written(fd: int, path: bytes) -> None:
    """Close a file that was written: network filesystems keep their errors for this moment."""
    touch(Side.DESTINATION)
    try:
        os.close(fd)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.DESTINATION, "close", path)) from error
