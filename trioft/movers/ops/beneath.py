"""
Operations by path below a root, which never lead where somebody else has laid a symbolic link. Run in a mover.

Every path is relative to a root. The folder that it lies in is opened without following links, and the operation
itself works on that folder's descriptor and the last name, which is never followed either: whatever others exchange
meanwhile, nothing is read, changed or removed elsewhere.

* At a source no link is followed: what lies behind one is not there (``FileNotFoundError``).
* At a destination a link may be followed that belongs to root or to trioft's user, as an administrator may spread a
  destination over several disks. Any other is refused (``LinkRefused``, ELOOP).
* Below a plain descriptor every link is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from _thread import get_ident  # all of `threading` takes a millisecond to load
from collections.abc import Iterator

from trioft.core.errors import show_path
from trioft.movers.ops import linux

_KEPT = 4  # folders that a root keeps open for each thread: files come folder by folder
_LINKS = 40  # as many as the kernel follows
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC  # enough to go on from, and asks for no right to read

_NO_NAMES = {b"", b".", b".."}


class LinkRefused(OSError):
    """A symbolic link is in the way that may not be followed."""


class VolumeLost(OSError):
    """What was mounted in a folder is not there any more, or something else is."""


class Top(int):
    """
    The descriptor of a root, which knows whose links may be followed below it.

    It keeps the folders open that were used last: one that is renamed meanwhile is still the one that was meant. Who
    makes something durable asks for the folder anew, see ``open_folder``.
    """

    is_source: bool
    separate: set[tuple[bytes, bytes]]  # folders of both ends that are known to be two, see ``folder.views``
    names: dict[bytes, set[bytes]]  # what is in folders where capitals make no difference, see ``folder.names``
    _mounts: tuple[tuple[bytes, int], ...]
    _folders: dict[int, dict[bytes, int]]
    _last: tuple[bytes, int, int]

    def __new__(cls, fd: int, *, is_source: bool, mounts: tuple[tuple[bytes, int], ...] = ()) -> Top:
        top = super().__new__(cls, fd)
        top.is_source, top.separate, top.names = is_source, set(), {}
        top._mounts, top._folders, top._last = mounts, {}, (b"", 0, -1)
        return top

    def parent(self, path: bytes) -> int:
        """Return the descriptor of the folder *path*, good for two more calls of this thread."""
        thread = get_ident()
        last = self._last  # of whichever thread: that one keeps it open until it has used others
        if last[0] == path and last[1] == thread:
            return last[2]
        kept = self._folders.setdefault(thread, {})
        if (fd := kept.pop(path, None)) is None:
            fd = _walk(self, path, _SEARCH | os.O_DIRECTORY)
            if len(kept) >= _KEPT:
                _close(kept.pop(next(iter(kept))))
        kept[path] = fd  # the last one is the one that was used last
        self._last = path, thread, fd
        return fd

    def check_mount(self, path: bytes, fd: int) -> None:
        """Raise ``VolumeLost`` if the folder *path*, open as *fd*, is not on the mount that it has to be on."""
        inside = [mount for mount in self._mounts if (path + b"/").startswith(mount[0] + b"/")]
        if inside:
            point, number = max(inside, key=lambda mount: len(mount[0]))
            if linux.mount_id(fd) != number:
                text = f"what was mounted at {show_path(point)} below the destination is not there any more"
                raise VolumeLost(errno.ENODEV, text)

    def forget(self) -> None:
        """Close the folders of this thread: from now on paths lead to what they lead to now."""
        self._last = b"", 0, -1
        kept = self._folders.get(get_ident(), {})
        while kept:
            _close(kept.popitem()[1])

    def close(self) -> None:
        """Close all folders, when no thread works below this root any more."""
        self._last = b"", 0, -1
        for kept in self._folders.values():
            while kept:
                _close(kept.popitem()[1])

    def kept(self, path: bytes) -> int | None:
        """Return the descriptor of the folder *path* where this thread has it open."""
        return self._folders.get(get_ident(), {}).get(path)


def open_folder(path: bytes, *, dir_fd: int) -> int:
    """
    Open the folder *path* for reading; empty: the root.

    Raises ``FileNotFoundError`` if what was done there in this operation was done in another folder: that has been
    renamed meanwhile.
    """
    if not path:
        return os.open(b".", _FOLDER, dir_fd=dir_fd)
    fd = _walk(dir_fd, path, _FOLDER)
    if isinstance(dir_fd, Top) and (kept := dir_fd.kept(path)) is not None:
        try:
            if not os.path.samestat(os.fstat(fd), os.fstat(kept)):
                dir_fd.forget()
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except BaseException:
            _close(fd)
            raise
    return fd


def open_file(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int) -> int:
    """Open a file, which is no link. Folders are opened by ``open_folder``."""
    at, name = _split(path, dir_fd)
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)


def stat_of(path: bytes, *, dir_fd: int) -> os.stat_result:
    """Return the status of what has this name: of the link, if it is one."""
    at, name = _split(path, dir_fd)
    return os.stat(name, dir_fd=at, follow_symlinks=False)


def mkdir(path: bytes, mode: int = 0o777, *, dir_fd: int) -> None:
    at, name = _split(path, dir_fd)
    os.mkdir(name, mode, dir_fd=at)


def make_folders(path: bytes, mode: int = 0o777, *, dir_fd: int) -> None:
    """Make the folder *path* and those above it, as far as they are not there. Never makes the root."""
    if not path:
        return
    try:
        mkdir(path, mode, dir_fd=dir_fd)
    except FileNotFoundError:
        make_folders(path.rpartition(b"/")[0], mode, dir_fd=dir_fd)
        mkdir(path, mode, dir_fd=dir_fd)
    except FileExistsError:
        pass


def rmdir(path: bytes, *, dir_fd: int) -> None:
    at, name = _split(path, dir_fd)
    os.rmdir(name, dir_fd=at)


def unlink(path: bytes, *, dir_fd: int) -> None:
    at, name = _split(path, dir_fd)
    os.unlink(name, dir_fd=at)


def utime(path: bytes, ns: tuple[int, int], *, dir_fd: int) -> None:
    at, name = _split(path, dir_fd)
    os.utime(name, ns=ns, dir_fd=at, follow_symlinks=False)


def chmod(path: bytes, mode: int, *, dir_fd: int) -> None:
    """Set the permission bits of a file or folder that its owner may read: through its descriptor, so of no link."""
    at, name = _split(path, dir_fd)
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    try:
        os.fchmod(fd, mode)
    finally:
        _close(fd)


def rename(old: bytes, new: bytes, *, dir_fd: int) -> None:
    """Rename, replacing *new* if there is one."""
    (old_at, old_name), (new_at, new_name) = _split(old, dir_fd), _split(new, dir_fd)
    os.rename(old_name, new_name, src_dir_fd=old_at, dst_dir_fd=new_at)


def rename_noreplace(old: bytes, new: bytes, *, dir_fd: int, new_dir_fd: int | None = None) -> None:
    """Rename *old* to *new*, which may lie below another root, unless *new* exists (``FileExistsError``)."""
    there = dir_fd if new_dir_fd is None else new_dir_fd
    (old_at, old_name), (new_at, new_name) = _split(old, dir_fd), _split(new, there)
    linux.rename_noreplace(old_name, new_name, old_at, new_at, lock=int(there))


@contextlib.contextmanager
def below(path: bytes) -> Iterator[Top]:
    """Open the folder *path*, an absolute one that the user has named, as a root where trusted links are followed."""
    top = Top(os.open(path, _FOLDER), is_source=False)
    try:
        yield top
    finally:
        top.close()
        _close(top)


def look_anew(dir_fd: int) -> None:
    """From now on paths below *dir_fd* lead, in this thread, to what they lead to now."""
    if isinstance(dir_fd, Top):
        dir_fd.forget()


# --- the way to a folder ---------------------------------------------------------------------------------------------


def _split(path: bytes, dir_fd: int) -> tuple[int, bytes]:
    """Return the descriptor of the folder that *path* lies in, and its name in it."""
    at = path.rfind(b"/")
    if at < 0:
        return dir_fd, path
    name = path[at + 1 :]
    if name in _NO_NAMES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if isinstance(dir_fd, Top):
        return dir_fd.parent(path[:at]), name
    raise ValueError("a path with folders in it needs a root that keeps them open")


def _walk(top: int, path: bytes, flags: int) -> int:
    """Open the folder *path* below *top*; the flags say for what."""
    if b".." in path.split(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    try:
        try:
            fd = linux.openat2(path, flags, top, linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOSYS, errno.EPERM, errno.E2BIG, errno.EAGAIN, errno.EXDEV):
                raise
            fd = _walk_slowly(top, path, flags)
    except LinkRefused:
        if isinstance(top, Top) and top.is_source:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        raise
    if isinstance(top, Top):
        try:
            top.check_mount(path, fd)
        except BaseException:
            _close(fd)
            raise
    return fd


def _walk_slowly(top: int, path: bytes, flags: int) -> int:
    """The same, name by name: where there is no ``openat2``, and where links may be followed."""
    names = [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]
    at, links = os.open(b".", _SEARCH | os.O_DIRECTORY, dir_fd=top), 0
    try:
        while names:
            name = names.pop()
            fd = os.open(name, _SEARCH | os.O_NOFOLLOW, dir_fd=at)
            try:
                its = os.fstat(fd)
                if stat.S_ISLNK(its.st_mode):
                    links += 1
                    why = ", one of too many" if links > _LINKS else _why_not_followed(top, its, at)
                    if why is not None:
                        raise LinkRefused(errno.ELOOP, f"{show_path(name)} is a symbolic link{why}")
                    # An empty path reads the very link that was looked at.
                    target = os.readlink(b"", dir_fd=fd)
                    names += [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
                    if target.startswith(b"/"):
                        at, above = os.open(b"/", _SEARCH | os.O_DIRECTORY), at
                        _close(above)
                    continue
                if not stat.S_ISDIR(its.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                at, fd = fd, at
            finally:
                _close(fd)
        return os.open(b".", flags, dir_fd=at)
    finally:
        _close(at)


def _why_not_followed(top: int, link: os.stat_result, at: int) -> str | None:
    """Say of a link in the folder *at* why it is not followed, in words that follow its name; or None."""
    if not isinstance(top, Top) or top.is_source:
        return ""
    if linux.filesystem_magic(at) in linux.CIFS:
        return " on an SMB share, where nobody knows who made it"
    if link.st_uid in (0, os.geteuid()):
        return None
    return f" of another user (uid {link.st_uid}): only those of root and of trioft's own user are followed"


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
