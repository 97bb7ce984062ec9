"""
The operations that look: at the source's tree, at single files, for partials. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Sequence
from typing import NamedTuple

from trioft import writers
from trioft.errors import FileTrouble, Remedy, Side, Trouble, classify, trouble_of
from trioft.fileio import READ, close_quietly, fingerprint_of, is_same, make_folder, opened, sync_folder
from trioft.model import Found, Manner, Root
from trioft.naming import Wanted, is_partial


class Listing(NamedTuple):
    """A part of the source's tree."""

    folders: list[tuple[bytes, list[Found]]]  # each folder that was read, with its files that are of interest
    rest: list[bytes]  # folders still to be read
    already: int  # files that the destination has: only counted
    missing: list[bytes]  # folders that the destination does not have
    skipped: list[tuple[bytes, str]]
    troubles: list[Trouble]
    seconds: float  # processor time that it took


# A call returns after the folder in which it has seen this many names: a few tens of milliseconds.
_NAMES_A_CALL = 5_000

_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def scan(
    source: Root,
    folders: list[bytes],
    include: Sequence[str],
    exclude: Sequence[str],
    destination: Root | None,
    manner: Manner | None,
) -> Listing:
    """
    Read *folders* of the source and those below them, as far as one call goes.

    With a *destination*, files that are there with the same size and time are counted, not returned.
    A folder that has vanished is no trouble: it will be missed, if anybody misses it, by the next scan.
    """
    wanted = Wanted(include, exclude)
    listing = Listing([], folders[:], 0, [], [], [], 0.0)
    already, names, begun = 0, 0, time.process_time()
    with contextlib.ExitStack() as stack:
        src = stack.enter_context(opened(source, Side.SOURCE))
        dst = stack.enter_context(opened(destination, Side.DESTINATION)) if destination else None
        while listing.rest and names < _NAMES_A_CALL:
            folder = listing.rest.pop()
            try:
                fd = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=src)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "open", folder))
                continue
            try:
                there = _list_destination(dst, folder, listing) if dst is not None else {}
                count, same = _scan_folder(fd, folder, wanted, there, manner, listing)
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "read", folder))
                continue
            finally:
                close_quietly(fd)
            names += 1 + count
            already += same
    return listing._replace(already=already, seconds=time.process_time() - begun)


def _scan_folder(
    fd: int,
    folder: bytes,
    wanted: Wanted,
    there: dict[str, os.DirEntry[str]],
    manner: Manner | None,
    listing: Listing,
) -> tuple[int, int]:
    prefix = folder + b"/" if folder else b""
    files: list[Found] = []
    below: list[bytes] = []
    already = count = 0
    with os.scandir(fd) as entries:
        for entry in entries:
            count += 1
            path = prefix + os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if wanted.folder(path):
                    below.append(path)
                continue
            if not wanted.file(path):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "stat", path))
                continue
            if not stat.S_ISREG(status.st_mode):
                kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special file")
                listing.skipped.append((path, f"{kind}: trioft copies regular files only"))
                continue
            fingerprint = fingerprint_of(status)
            if manner is not None and (twin := there.get(entry.name)) is not None:
                with contextlib.suppress(FileNotFoundError):
                    if is_same(twin.stat(follow_symlinks=False), fingerprint, manner.resolution_ns):
                        already += 1
                        continue
            files.append(Found(path, stat.S_IMODE(status.st_mode), fingerprint))
    below.sort(reverse=True)  # the last is read next
    listing.rest.extend(below)
    listing.folders.append((folder, files))
    return count, already


def _list_destination(dst: int, folder: bytes, listing: Listing) -> dict[str, os.DirEntry[str]]:
    try:
        fd = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dst)
    except FileNotFoundError:
        listing.missing.append(folder)
        return {}
    except OSError as error:
        return _without_destination(trouble_of(error, Side.DESTINATION, "open", folder))
    found = {}
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it is not there any more
                    entry.stat(follow_symlinks=False)  # kept by the entry; asked later, the descriptor would be closed
                    found[entry.name] = entry
    except OSError as error:
        return _without_destination(trouble_of(error, Side.DESTINATION, "read", folder))
    finally:
        close_quietly(fd)
    return found


def _without_destination(trouble: Trouble) -> dict[str, os.DirEntry[str]]:
    """The destination cannot be looked at: that ends the scan if it is gone. Else each file will say what is wrong."""
    if classify(trouble) == Remedy.DESTINATION:
        raise FileTrouble(trouble)
    return {}


def make_folders(source: Root, destination: Root, folders: list[bytes]) -> list[Trouble]:
    """
    Make folders at the destination with the permission bits they have at the source; tell what did not work.

    They are durable then: the files that come into them rely on it.
    """
    troubles = []
    changed: set[bytes] = set()
    with opened(source, Side.SOURCE) as src, opened(destination, Side.DESTINATION) as dst:
        for folder in folders:
            try:
                changed.update(make_folder(src, dst, folder))
            except OSError as error:
                troubles.append(trouble_of(error, Side.DESTINATION, "mkdir", folder))
        for folder in changed:
            sync_folder(dst, folder)
    return troubles


class Look(NamedTuple):
    """What one path of the source is right now."""

    path: bytes
    kind: str  # file, folder, gone, unreadable, other (or not wanted)
    found: Found | None = None
    writer: str = writers.UNKNOWN
    trouble: Trouble | None = None  # why it is unreadable


def look(source: Root, paths: list[bytes], include: Sequence[str], exclude: Sequence[str]) -> list[Look]:
    """Look at *paths*, and whether somebody writes them: by lease, else by the open-file table."""
    wanted = Wanted(include, exclude)
    looks: list[Look] = []
    real_folders: dict[bytes, bool] = {b"": True}
    with opened(source, Side.SOURCE) as src:
        for path in paths:
            try:
                looks.append(_look_at(src, path, wanted, real_folders))
            except FileNotFoundError:
                looks.append(Look(path, "gone"))
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    looks.append(Look(path, "gone"))
                else:
                    trouble = trouble_of(error, Side.SOURCE, "stat", path)
                    looks.append(Look(path, "unreadable", trouble=trouble))
    unknown = {look.found.fingerprint[:2] for look in looks if look.found and look.writer == writers.UNKNOWN}
    busy = writers.find_writers(unknown)
    return [
        look._replace(writer=writers.BUSY) if look.found and look.found.fingerprint[:2] in busy else look
        for look in looks
    ]


def _look_at(src: int, path: bytes, wanted: Wanted, real_folders: dict[bytes, bool]) -> Look:
    if not _is_real(src, os.path.dirname(path), real_folders):
        return Look(path, "other")
    status = os.stat(path, dir_fd=src, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return Look(path, "folder" if wanted.folder(path) else "other")
    if not stat.S_ISREG(status.st_mode) or not wanted.file(path):
        return Look(path, "other")
    found = Found(path, stat.S_IMODE(status.st_mode), fingerprint_of(status))
    try:
        fd = os.open(path, READ, dir_fd=src)
    except FileNotFoundError:
        raise
    except OSError as error:
        # Somebody's lease keeps it from us; or it cannot be opened, then copying it will fail, and say why.
        return Look(path, "file", found, writers.BUSY if error.errno == errno.EAGAIN else writers.UNKNOWN)
    try:
        return Look(path, "file", found, writers.ask_lease(fd, status.st_dev))
    finally:
        close_quietly(fd)


def _is_real(src: int, folder: bytes, known: dict[bytes, bool]) -> bool:
    """Is every part of *folder* a real folder, no symbolic link? Events can come through links, files must not."""
    if folder not in known:
        known[folder] = _is_real(src, os.path.dirname(folder), known) and stat.S_ISDIR(
            os.stat(folder, dir_fd=src, follow_symlinks=False).st_mode
        )
    return known[folder]


class Orphans(NamedTuple):
    partials: list[tuple[bytes, float]]  # path, age in seconds
    rest: list[bytes]


def find_partials(destination: Root, folders: list[bytes]) -> Orphans:
    """Search *folders* of the destination and those below them for partials, as far as one call goes."""
    orphans = Orphans([], folders[:])
    names, now = 0, time.time()
    with opened(destination, Side.DESTINATION) as dst:
        while orphans.rest and names < _NAMES_A_CALL:
            folder = orphans.rest.pop()
            prefix = folder + b"/" if folder else b""
            try:
                fd = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dst)
            except OSError:
                continue  # not ours to read: then no partial of ours is in it
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        names += 1
                        if entry.is_dir(follow_symlinks=False):
                            orphans.rest.append(prefix + os.fsencode(entry.name))
                        elif is_partial(os.fsencode(entry.name)):
                            with contextlib.suppress(OSError):
                                status = entry.stat(follow_symlinks=False)
                                if stat.S_ISREG(status.st_mode):
                                    orphans.partials.append((prefix + os.fsencode(entry.name), now - status.st_mtime))
            except OSError:
                continue
            finally:
                close_quietly(fd)
    return orphans
