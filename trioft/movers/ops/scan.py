"""
The operations that look: at the source's tree, at single files, for partials. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import xxhash

from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify, trouble_of
from trioft.core.model import Found, Manner, Markers, Root, Routes
from trioft.core.naming import Wanted, is_marker, is_partial
from trioft.core.routes import route
from trioft.movers.ops import writers
from trioft.movers.ops.files import (
    READ,
    are_same,
    close_quietly,
    fingerprint_of,
    is_same,
    make_folder,
    opened,
    sync_folder,
)
from trioft.movers.ops.folder.markers import is_marked, marker_says


class Folder(NamedTuple):
    """A folder of the source, with those of its files that are of interest."""

    path: bytes
    files: list[Found]
    stamp: bytes = b""  # the same for the same files in the same versions; empty where nobody asked for it


class Listing(NamedTuple):
    """A part of the source's tree."""

    folders: list[Folder]  # that were read, but for those that have the stamp they had
    unchanged: list[bytes]  # these
    rest: list[bytes]  # folders still to be read: those below, and what one call did not get to
    already: int  # files that the destination has: only counted
    alike: list[Found]  # the same, where rules can give one name to several files: it has these, or others
    missing: list[bytes]  # folders that the destination does not have
    skipped: list[tuple[bytes, str]]
    troubles: list[Trouble]
    seconds: float  # processor time that it took


_NO_MARKERS = Markers()
# Why a source file is left alone whose name trioft gives a meaning of its own at the destination.
_RESERVED = "at the destination, this name says that another file is complete (copy.done_file)"

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
    stamps: dict[bytes, bytes] | None,
    include: Sequence[str],
    exclude: Sequence[str],
    destination: Root | None,
    manner: Manner | None,
    markers: Markers = _NO_MARKERS,
    routes: Routes | None = None,
) -> Listing:
    """
    Read *folders* of the source, as far as one call goes.

    With a *destination*, files that are there with the same size and time are counted, not returned, unless they lack
    the marker that they should have there; with *routes*, they are ``alike``, and no folder is ``missing``. With
    *stamps*, those that some of the folders had when they were read before, only what has changed since is returned.
    A folder that has vanished is no trouble: it will be missed, if anybody misses it, by the next scan.
    """
    wanted = Wanted(include, exclude)
    listing = Listing([], [], folders[:], 0, [], [], [], [], 0.0)
    below: list[bytes] = []
    already, names, begun = 0, 0, time.process_time()
    with contextlib.ExitStack() as stack:
        src = stack.enter_context(opened(source, Side.SOURCE))
        dst = stack.enter_context(opened(destination, Side.DESTINATION)) if destination else None
        while listing.rest and names < _NAMES_A_CALL:
            path = listing.rest.pop()
            try:
                fd = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=src)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "open", path))
                continue
            try:
                with _listed(None if routes else dst, path, listing) as there:
                    count, same = _scan_folder(fd, path, wanted, there, manner, stamps, markers, routes, listing, below)
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "read", path))
                continue
            finally:
                close_quietly(fd)
            names += 1 + count
            already += same
            if routes and dst is not None and manner is not None:
                listing.folders[-1] = _not_alike(dst, listing.folders[-1], manner, listing.alike)
    listing.rest.extend(below)
    return listing._replace(already=already, seconds=time.process_time() - begun)


def _scan_folder(
    fd: int,
    folder: bytes,
    wanted: Wanted,
    there: dict[str, os.DirEntry[str]],
    manner: Manner | None,
    stamps: dict[bytes, bytes] | None,
    markers: Markers,
    routes: Routes | None,
    listing: Listing,
    below: list[bytes],
) -> tuple[int, int]:
    """Read the folder that is open as *fd*; return how many names it has, and how many files that are *there* too."""
    prefix = folder + b"/" if folder else b""
    statuses: list[tuple[bytes, os.stat_result]] = []
    made: dict[bytes, os.stat_result] = {}  # markers, by the paths of their files
    bare: set[bytes] = set()  # files that are there, without their markers
    done = os.fsdecode(markers.destination)
    already = count = 0
    # This loop is what a scan of a million files costs: a microsecond for each stat, and not much more for the rest.
    with os.scandir(fd) as entries:
        for entry in entries:
            count += 1
            path = prefix + os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if wanted.folder(path):
                    below.append(path)
                continue
            if markers.source and is_marker(path, markers.source) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # then its file has none
                    made[path.removesuffix(markers.source)] = entry.stat(follow_symlinks=False)
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
            if done and is_marker(path, markers.destination):
                listing.skipped.append((path, _RESERVED))
                continue
            twin = there.get(entry.name)
            if twin is not None and manner is not None and _is_twin(twin, status, manner.resolution_ns, path):
                if not done or entry.name + done in there:
                    already += 1
                    continue
                bare.add(path)
            statuses.append((path, status))
    stamp = _stamp_of(statuses) if stamps is not None else b""
    if stamps and stamps.get(folder) == stamp:
        listing.unchanged.append(folder)
    else:
        files = [Found(path, stat.S_IMODE(status.st_mode), fingerprint_of(status)) for path, status in statuses]
        if markers.source:
            files = [found._replace(marked=marker_says(made.get(found.path), found.fingerprint)) for found in files]
        if bare:
            files = [found._replace(there=found.path in bare) for found in files]
        if routes:
            files = [route(found, routes) for found in files]
        listing.folders.append(Folder(folder, files, stamp))
    return count, already


def _not_alike(dst: int, folder: Folder, manner: Manner, alike: list[Found]) -> Folder:
    """Return *folder* without the files that the destination has, as far as size and time tell: they are *alike*."""
    rest: list[Found] = []
    for found in folder.files:
        try:
            there = os.stat(found.target, dir_fd=dst, follow_symlinks=False) if found.trouble is None else None
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _without_destination(trouble_of(error, Side.DESTINATION, "stat", found.target))
            there = None
        is_alike = there is not None and is_same(there, found.fingerprint, manner.resolution_ns)
        (alike if is_alike else rest).append(found)
    return folder._replace(files=rest)


def _stamp_of(statuses: list[tuple[bytes, os.stat_result]]) -> bytes:
    """Return a digest of which files these are, and in which versions."""
    versions = [
        (path, status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for path, status in statuses
    ]
    # Version 2 of the format writes equal values equally: later ones tell of objects that are the same one.
    return xxhash.xxh3_128_digest(marshal.dumps(versions, 2))


def _is_twin(entry: os.DirEntry[str], status: os.stat_result, resolution_ns: int, path: bytes) -> bool:
    """Is what the destination has under this name, as far as size and time tell, the source file with *status*?"""
    try:
        there = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # it is not there any more
        return False
    except OSError as error:
        _without_destination(trouble_of(error, Side.DESTINATION, "stat", path))
        return False
    return are_same(there, status, resolution_ns)


@contextlib.contextmanager
def _listed(dst: int | None, folder: bytes, listing: Listing) -> Iterator[dict[str, os.DirEntry[str]]]:
    """List a folder of the destination. Its entries can be asked for their status while inside."""
    if dst is None:
        yield {}
        return
    try:
        fd = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dst)
    except FileNotFoundError:
        listing.missing.append(folder)
        yield {}
        return
    except OSError as error:
        _without_destination(trouble_of(error, Side.DESTINATION, "open", folder))
        yield {}
        return
    try:
        entries: dict[str, os.DirEntry[str]] = {}
        try:
            with os.scandir(fd) as found:
                entries = {entry.name: entry for entry in found}
        except OSError as error:
            _without_destination(trouble_of(error, Side.DESTINATION, "read", folder))
        yield entries
    finally:
        close_quietly(fd)


def _without_destination(trouble: Trouble) -> None:
    """The destination cannot be looked at: that ends the scan if it is gone. Else each file will say what is wrong."""
    if classify(trouble) == Remedy.DESTINATION:
        raise FileTrouble(trouble)


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


def look(
    source: Root,
    paths: list[bytes],
    include: Sequence[str],
    exclude: Sequence[str],
    markers: Markers = _NO_MARKERS,
    routes: Routes | None = None,
) -> list[Look]:
    """
    Look at *paths*, and whether somebody writes them: by lease, else by the open-file table.

    A marker is no file of its own.
    """
    wanted = Wanted(include, exclude)
    looks: list[Look] = []
    real_folders: dict[bytes, bool] = {b"": True}
    with opened(source, Side.SOURCE) as src:
        for path in paths:
            try:
                looks.append(_look_at(src, path, wanted, markers, routes, real_folders))
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


def _look_at(
    src: int, path: bytes, wanted: Wanted, markers: Markers, routes: Routes | None, real_folders: dict[bytes, bool]
) -> Look:
    if not _is_real(src, os.path.dirname(path), real_folders):
        return Look(path, "other")
    status = os.stat(path, dir_fd=src, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return Look(path, "folder" if wanted.folder(path) else "other")
    if not stat.S_ISREG(status.st_mode) or not wanted.file(path) or any(is_marker(path, end) for end in markers):
        return Look(path, "other")
    # Before the file itself is asked for a writer: whoever made it has closed the file by then.
    fingerprint = fingerprint_of(status)
    marked = is_marked(src, path, markers.source, fingerprint)
    found = route(Found(path, stat.S_IMODE(status.st_mode), fingerprint, marked), routes)
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
