"""
The operations on one source file: open it if it may be copied, look at its write head, compare what was copied with
what it holds, find it again under another name, and, in the end, remove or archive it. Run in a mover.

None of them disturbs whoever records: a lease is held for no longer than the question takes, and what is read of the
source does not stay in the page cache.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from trioft.core import answers
from trioft.core.answers import PIECE_SIZE, Difference, Peek, Searched, Step
from trioft.core.digests import block_digest
from trioft.core.errors import IDENTIFY, FileTrouble, Side, Trouble, trouble_of
from trioft.core.model import BLOCK_SIZE, Fingerprint, Found, Item, Result, Root, Routes, Verdict
from trioft.core.naming import is_marker
from trioft.core.routes import route
from trioft.movers.ops import beneath, writers
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import (
    READ,
    Away,
    Progress,
    advise,
    close_quietly,
    opened,
    read_into,
    status_of,
)
from trioft.movers.ops.identity import goes_by_path, identify, number_of
from trioft.movers.ops.slate import look_at, touch

# What a folder answers in which nothing can be found: gone, a link by now, not ours to read, too deep for any path.
_NOTHING_THERE = {
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG
}  # fmt: skip
# A hole of this size, or this near to the end, is where nothing has been written yet; others are what some filesystems
# make of zeros.
_HOLE = BLOCK_SIZE


def peek(
    source: Root,
    path: bytes,
    identity: tuple[int, int],
    copied: int,
    marker: bytes = b"",
    routes: Routes | None = None,
) -> Peek:
    """
    Look at the file *identity* (device, inode) under the name *path*, of which *copied* bytes are not of interest; and
    for what has this name and *marker* after it.

    That nobody has it open for writing is asked first: whatever was written before the answer shows in the version
    that is looked at after it.
    """
    with opened(source, Side.SOURCE) as src:
        try:
            fd = beneath.open_file(path, READ, dir_fd=src)
        except (FileNotFoundError, NotADirectoryError):
            return Peek(Verdict.GONE)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link has its name now, or a socket
                return Peek(Verdict.CHANGED)
            raise FileTrouble(trouble_of(error, Side.SOURCE, "open", path)) from error
        try:
            writer = writers.ask_lease(fd, identity[0])
            if writer == answers.UNKNOWN and writers.has_writer(fd):
                writer = answers.BUSY
            status = os.fstat(fd)
            fingerprint = identify(status, path, fd=fd)
            if fingerprint[:2] != identity or not stat.S_ISREG(status.st_mode):
                return Peek(Verdict.CHANGED)
            marked = is_marked(src, path, marker, fingerprint)
            strength = "" if writer == answers.BUSY else writers.strength(fd, identity[0], writer, bool(marked))
            found = route(Found(path, stat.S_IMODE(status.st_mode), fingerprint), routes)
            return Peek(None, found, _write_head(fd, copied, status.st_size), writer, strength, marked)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.SOURCE, "stat", path)) from error
        finally:
            close_quietly(fd)


def _write_head(fd: int, copied: int, size: int) -> int:
    """Return up to where a file has been written: the end, or a hole that is no part of its content."""
    at = copied
    with contextlib.suppress(OSError):  # it cannot tell, or has become shorter just now
        while at < size and (hole := os.lseek(fd, at, os.SEEK_HOLE)) < size:
            try:
                at = os.lseek(fd, hole, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return hole  # nothing follows
            if at - hole >= _HOLE or hole >= size - _HOLE:
                return hole
    return size


def compare_span(
    source: Root, path: bytes, start: int, end: int, copied: list[tuple[bytes, bytes]], progress: Progress
) -> list[Difference]:
    """
    Read the source from *start*, a block's first, to *end*, and compare it with what was *copied*.

    That is the digest of each block, and those of its pieces, or nothing where they are not known. A source that ends
    before is a trouble.
    """
    differences: list[Difference] = []
    buffer = memoryview(bytearray(min(BLOCK_SIZE, end - start)))
    with opened(source, Side.SOURCE) as src:
        try:
            fd = beneath.open_file(path, READ, dir_fd=src)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.SOURCE, "open", path)) from error
        try:
            advise(fd, start, end - start, os.POSIX_FADV_SEQUENTIAL)
            for offset, (digest, pieces) in zip(range(start, end, BLOCK_SIZE), copied, strict=True):
                block = buffer[: min(BLOCK_SIZE, end - offset)]
                read_into(fd, Side.SOURCE, path, offset, block)
                if _pieces_of(block) == pieces if pieces else block_digest(block) == digest:
                    advise(fd, offset, len(block), os.POSIX_FADV_DONTNEED)
                else:  # it is soon read again
                    differences.append(Difference(offset // BLOCK_SIZE, block_digest(block), _pieces_of(block)))
                progress(Step("compared", len(block)))
        finally:
            close_quietly(fd)
    return differences


def _pieces_of(block: memoryview) -> bytes:
    return b"".join(block_digest(block[at : at + PIECE_SIZE]) for at in range(0, len(block), PIECE_SIZE))


# --- another name ----------------------------------------------------------------------------------------------------


def locate(
    source: Root,
    path: bytes,
    identity: tuple[int, int],
    everywhere: bool,
    was: Fingerprint | None,
    progress: Callable[[Searched], None],
) -> bytes | None:
    """
    Return what the file *identity*, that was called *path*, is called now, or None if the source has it no more.

    Its own folder is searched first, and then, if it is to be found *everywhere*, all of the source. If it is known
    what it *was*, the same version under the same name is taken for it also on another device: after a restart, or
    another mount, a filesystem may have any number.
    """
    with opened(source, Side.SOURCE) as src:
        if was is not None and _is_still(src, path, was):
            return path
        folders = list(dict.fromkeys([*([b""] if everywhere else []), os.path.dirname(path)]))
        while folders:
            folder = folders.pop()
            prefix = folder + b"/" if folder else b""
            try:
                name = _search(src, folder, prefix, identity, folders if everywhere else None)
            except OSError as error:
                name = None
                if error.errno in _NOTHING_THERE:
                    continue
                raise FileTrouble(trouble_of(error, Side.SOURCE, "read", folder)) from error
            if name is not None:
                return name
            progress(Searched(folder))
    return None


def _is_still(src: Top, path: bytes, was: Fingerprint) -> bool:
    """Is *path* the version of the file that it *was*, whatever number its device has now?"""
    try:
        return identify(beneath.stat_of(path, dir_fd=src), path, top=src)[1:] == was[1:]
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return False
        raise FileTrouble(trouble_of(error, Side.SOURCE, "stat", path)) from error


def _search(
    src: int, folder: bytes, prefix: bytes, identity: tuple[int, int], below: list[bytes] | None
) -> bytes | None:
    """Return the path of the file *identity* in *folder*, or None; the folders in it are added to *below*."""
    fd = beneath.open_folder(folder, dir_fd=src)
    try:
        by_path = goes_by_path(fd)
        with os.scandir(fd) as entries:
            for entry in entries:
                name = prefix + os.fsencode(entry.name)
                if (number_of(name) if by_path else entry.inode()) == identity[1]:
                    with contextlib.suppress(FileNotFoundError):  # renamed once more
                        if entry.stat(follow_symlinks=False).st_dev == identity[0]:
                            return name
                if below is not None and entry.is_dir(follow_symlinks=False):
                    below.append(name)
    finally:
        close_quietly(fd)
    return None


def open_source(src: int, item: Item) -> tuple[int, Result]:
    """
    Open a source file and see whether it is the version asked for and nobody writes it.

    Returns the descriptor, which the caller closes, and a Result: one that says why it must not be copied now (with
    the descriptor -1), or OPEN, with how sure it is that nobody writes it, for when it has been copied.
    """
    return _open_if(src, item, _why_not_now)


def open_growing(src: int, item: Item) -> tuple[int, Result]:
    """The same for a file that somebody may be writing: it only has to be the same file, in whatever version."""
    return _open_if(src, item, _why_not_ever)


def _open_if(src: int, item: Item, look: Callable[[int, Item], Result]) -> tuple[int, Result]:
    touch(Side.SOURCE)
    look_at(item.path)
    try:
        fd = beneath.open_file(item.path, READ, dir_fd=src)
    except FileNotFoundError:
        return -1, Result(Verdict.GONE)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "open", item.path)) from error
    try:
        result = look(fd, item)
    except BaseException:
        close_quietly(fd)
        raise
    if result.verdict == Verdict.OPEN:
        return fd, result
    close_quietly(fd)
    return -1, result


def _why_not_now(fd: int, item: Item) -> Result:
    if has_changed(fd, item):
        return Result(Verdict.CHANGED)
    answer = writers.ask_lease(fd, item.fingerprint.dev)
    if answer == answers.BUSY:
        return Result(Verdict.BUSY)
    if answer == answers.UNKNOWN and not item.settled:
        return Result(Verdict.UNPROVEN)
    return Result(Verdict.OPEN, closed=writers.strength(fd, item.fingerprint.dev, answer, item.marked))


def _why_not_ever(fd: int, item: Item) -> Result:
    same = current_fingerprint(fd, item.path)[:2] == item.fingerprint[:2]
    return Result(Verdict.OPEN if same else Verdict.CHANGED)


def has_changed(fd: int, item: Item) -> bool:
    """Is the source that is open as *fd* another version than the one asked for?"""
    return current_fingerprint(fd, item.path) != item.fingerprint


def check_unchanged(fd: int, item: Item, offset: int) -> None:
    """The source that is open as *fd* has been read from *offset*: was it the version asked for?"""
    now = current_fingerprint(fd, item.path)
    if now != item.fingerprint and now[1:] == item.fingerprint[1:]:
        # Mounted again under another device number since its job was made: that is no change of the file.
        text = "the source has been mounted again"
        raise Away(Trouble(Side.SOURCE, IDENTIFY, b"", None, errno.ENODEV, text))
    if now != item.fingerprint:
        text = "the file changed while it was copied"
        raise FileTrouble(Trouble(Side.SOURCE, "read", item.path, offset, None, text))


def current_fingerprint(fd: int, path: bytes) -> Fingerprint:
    """Return which version the source file *path*, open as *fd*, is now."""
    return identify(status_of(fd, Side.SOURCE, path), path, fd=fd)


def is_marked(src: int, path: bytes, suffix: bytes, fingerprint: Fingerprint) -> bool | None:
    """Has the source file *path* the marker that says that it is complete? The answer is that of ``Found.marked``."""
    if not suffix or is_marker(path, suffix):  # one with content is a file of its own, that has no marker
        return None
    try:
        marker = beneath.stat_of(path + suffix, dir_fd=src)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise
    return marker_says(marker, fingerprint)


def marker_says(marker: os.stat_result | None, fingerprint: Fingerprint) -> bool | None:
    """What *marker* says of a file: one that is older than it was made for another version of it."""
    if marker is None or not stat.S_ISREG(marker.st_mode):
        return False
    return True if marker.st_mtime_ns >= fingerprint.mtime_ns else None


def remove_emptied(source: Root, folders: list[bytes]) -> list[bytes]:
    """
    Remove those of *folders*, and of those above them, in which nothing is left; return which have gone.

    Never the source itself. What cannot be removed, for whatever reason, stays.
    """
    removed: list[bytes] = []
    with opened(source, Side.SOURCE) as src:
        for folder in sorted(folders, reverse=True):
            while folder:
                try:
                    beneath.rmdir(folder, dir_fd=src)
                except OSError:
                    break
                removed.append(folder)
                beneath.look_anew(src)
                folder = os.path.dirname(folder)
    return removed
