"""
Whether the destination is another view of the source, or leads back into it. Runs in a mover.

An overlay, a FUSE filesystem or a share that is mounted twice shows the source's own files under other device and inode
numbers; a link or a bind mount below the destination shows them under the same. There every file is "already there",
and removing its source removes the only copy. What is written at one end and appears at the other gives it away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from trioft.core.errors import FileTrouble, Side, Trouble, show_path, trouble_of
from trioft.core.model import Ends, Item
from trioft.core.naming import VIEW_PROBE, is_view_probe
from trioft.movers.ops import beneath
from trioft.movers.ops.beneath import Top, VolumeLost
from trioft.movers.ops.files import close_quietly, opened
from trioft.movers.ops.mounts import lies_within
from trioft.movers.ops.slate import look_at, touch

_FOLDERS = 1_000  # below a root that are looked into
_OLD = 24 * 60 * 60  # seconds: what is younger may be what somebody is looking for just now
# Where a marker cannot be made, that proves nothing.
_CANNOT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT}


def find_view(ends: Ends, by_source: bool, unique: bytes, left_out: list[bytes]) -> str | None:
    """
    Say how the destination and the source show the same files, or return None.

    A file that is made at the destination for a moment must not appear at the source, nor in one of its folders; and,
    if *by_source*, the other way round, as what is written to an overlay does not appear below it. Its name is made of
    what is *unique* to the caller: what an attempt leaves that is cut short, the next one removes. Folders of the
    source that do not answer are *left out*.
    """
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        pairs = [(dst, src), (src, dst)] if by_source else [(dst, src)]
        if by_source:
            _clear_up(src)
        for one, other in pairs:
            where = _where_it_appears(one, other, b"%s-%s" % (unique, side_of(one).encode()), left_out)
            if where is not None:
                here, there = side_of(one), side_of(other)
                place = f"in its folder {show_path(where)}" if where else "there"
                return f"what is written at the {here} appears at the {there}, {place}"
    return None


def _clear_up(src: Top) -> None:
    """Remove what looks that were killed have left in the source; at the destination the sweeper does that."""
    with contextlib.suppress(OSError):
        fd = beneath.open_folder(b"", dir_fd=src)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if name.startswith(VIEW_PROBE) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        if is_view_probe(name, status.st_size) and time.time() - status.st_mtime > _OLD:
                            beneath.unlink(name, dir_fd=src)
        finally:
            close_quietly(fd)


def side_of(top: Top) -> Side:
    return Side.SOURCE if top.is_source else Side.DESTINATION


def _where_it_appears(one: Top, other: Top, unique: bytes, left_out: list[bytes]) -> bytes | None:
    """Return in which folder of the *other* end something appears that is made at the *one*; empty: at its root."""
    with _marker(one, b"", unique) as name:
        if name is None:
            return None
        side = side_of(other)
        touch(side)
        try:
            if _is_there(other, name):
                return b""
            for folder in _folders(other, left_out if other.is_source else []):
                if other.is_source:
                    look_at(folder)
                try:
                    if _is_there(other, os.path.join(folder, name)):
                        return folder
                except OSError:
                    if not other.is_source:
                        raise
                    # What is mounted there is dead: nothing is copied from it, and the scan tells of it.
        except OSError as error:
            raise FileTrouble(trouble_of(error, side, "stat", b"")) from error
        finally:
            look_at(b"")
    return None


def _folders(top: Top, left_out: list[bytes]) -> list[bytes]:
    names: list[bytes] = []
    fd = beneath.open_folder(b"", dir_fd=top)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if name in left_out:
                    continue
                if top.is_source:
                    look_at(name)  # some filesystems have to be asked what it is
                if entry.is_dir(follow_symlinks=False):
                    names.append(name)
    finally:
        look_at(b"")
        close_quietly(fd)
    return names[:_FOLDERS]


def _is_there(top: Top, path: bytes) -> bool:
    try:
        beneath.stat_of(path, dir_fd=top)
    except VolumeLost:
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP):
            return False
        raise
    return True


@contextlib.contextmanager
def _marker(top: Top, folder: bytes, unique: bytes = b"") -> Iterator[bytes | None]:
    """While inside, there is a file in *folder* that nobody else has made; yields its name, or None if it cannot be."""
    name = VIEW_PROBE + (unique or os.urandom(12).hex().encode())
    path = os.path.join(folder, name)
    side = side_of(top)
    touch(side)
    try:
        with contextlib.suppress(FileExistsError):  # what is *unique* can only be there from an earlier attempt
            close_quietly(beneath.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=top))
    except OSError as error:
        if error.errno not in _CANNOT:
            raise FileTrouble(trouble_of(error, side, "create", path)) from error
        yield None
        return
    try:
        yield name
    finally:
        touch(side)
        for _ in range(2):  # what stays is cleared up as what a killed probe leaves
            with contextlib.suppress(OSError):
                beneath.unlink(path, dir_fd=top)
                break


# --- single folders and files ----------------------------------------------------------------------------------------


def refuse_view(src: Top, dst: Top, item: Item) -> None:
    """Raise ``FileTrouble`` if the folder that *item* goes to is one of the source's, by a link or a bind mount."""
    here, there = os.path.dirname(item.path), os.path.dirname(item.target)
    if not there or (here, there) in dst.separate:
        return
    is_there, folder = True, there
    while folder:
        try:
            its = dst.parent(folder)
            if lies_within(its, os.readlink(b"/proc/self/fd/%d" % src), dst):
                raise _own(item.target)
            if is_there and os.path.samestat(os.fstat(its), os.fstat(_folder(src, here))):
                raise _own(item.target)
            break
        except FileNotFoundError:  # there is no such folder yet: it is going to be made in the one above
            is_there, folder = False, os.path.dirname(folder)
        except OSError:
            return  # whoever uses it next will meet the same
    if is_there:
        dst.separate.add((here, there))


def is_source_itself(src: Top, src_fd: int, dst: Top, item: Item, target: bytes, there: os.stat_result) -> bool:
    """Return whether *target*, which looks like the source file that is open as *src_fd*, is that very file."""
    touch(Side.SOURCE)
    its = os.fstat(src_fd)
    here, folder = os.path.dirname(item.path), os.path.dirname(target)
    if os.path.samestat(its, there):
        # Another name of it keeps what it holds. Is it the same name?
        return its.st_nlink < 2 or os.path.samestat(os.fstat(_folder(src, here)), os.fstat(_folder(dst, folder)))
    # No copy has the change time of its source, unless a filesystem makes that up from the modification time.
    is_alike = its.st_ctime_ns == there.st_ctime_ns
    if not is_alike and there.st_dev == os.fstat(dst).st_dev:
        return False
    pair = b"/" + here, b"/" + folder
    if pair not in dst.separate:
        if (answer := _appears_beside(src, here, dst, folder)) is not False:
            return answer or (is_alike and its.st_ctime_ns != its.st_mtime_ns)
        dst.separate.add(pair)
    return False


def looks_like_itself(there: os.stat_result, dev: int, ino: int, ctime_ns: int) -> bool:
    """Return whether *there* may be the source itself: then somebody has to look more closely than at size and time."""
    if (there.st_dev, there.st_ino) == (dev, ino):
        return True
    return there.st_ctime_ns == ctime_ns and there.st_ctime_ns != there.st_mtime_ns and not stat.S_ISDIR(there.st_mode)


def refuse_itself(target: bytes) -> FileTrouble:
    text = "what the destination has under this name is the source file itself, seen through a link or a mount"
    return FileTrouble(Trouble(Side.DESTINATION, "compare", target, None, errno.EINVAL, text))


def _own(target: bytes) -> FileTrouble:
    text = "this folder of the destination lies in the source itself: a link or a mount leads back there"
    return FileTrouble(Trouble(Side.DESTINATION, "compare", target, None, errno.EINVAL, text))


def _appears_beside(src: Top, here: bytes, dst: Top, folder: bytes) -> bool | None:
    """Return whether what is made in one of two folders appears in the other; None where it cannot be tried."""
    answer: bool | None = False
    for one, its, other, its_other in ((dst, folder, src, here), (src, here, dst, folder)):
        with _marker(one, its) as name:
            if name is None:
                answer = None
            elif _is_there(other, os.path.join(its_other, name)):
                return True
    return answer


def _folder(top: Top, path: bytes) -> int:
    return top.parent(path) if path else top
