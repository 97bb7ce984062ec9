"""
The operations that look at the source: at its tree, folder by folder, and at single files. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import stat
import time
from collections.abc import Sequence

import xxhash

from trioft.core import answers
from trioft.core.answers import Folder, Listing, Look
from trioft.core.errors import Side, trouble_of
from trioft.core.model import Found, Manner, Markers, Root, Routes
from trioft.core.naming import GOING, OWN, Wanted, is_going_folder, is_marker, is_view_probe
from trioft.core.routes import route
from trioft.movers.ops import beneath, writers
from trioft.movers.ops.files import NAMES_A_CALL, READ, close_quietly, kind_of, opened
from trioft.movers.ops.folder.listing import is_twin, listed, not_alike
from trioft.movers.ops.identity import identify
from trioft.movers.ops.removal import fits
from trioft.movers.ops.slate import look_at, touch
from trioft.movers.ops.source import is_marked, marker_says

_GOING = os.fsdecode(GOING)
_NO_MARKERS = Markers()
# Why a source file is left alone whose name trioft gives a meaning of its own at the destination.
_RESERVED = "at the destination, this name says that another file is complete (copy.done_file)"


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

    With a *destination*, files that are there with the same size and time are ``twins``, unless they lack the marker
    that they should have there; with *routes*, they are ``alike``, and no folder is ``missing``. With
    *stamps*, those that some of the folders had when they were read before, only what has changed since is returned.
    A folder that has vanished is no trouble: it will be missed, if anybody misses it, by the next scan.
    """
    wanted = Wanted(include, exclude)
    going: list[bytes] = []
    listing = Listing([], [], folders[:], [], [], [], [], [], 0.0, going)
    below: list[bytes] = []
    names, begun = 0, time.process_time()
    with contextlib.ExitStack() as stack:
        src = stack.enter_context(opened(source, Side.SOURCE))
        dst = stack.enter_context(opened(destination, Side.DESTINATION)) if destination else None
        while listing.rest and names < NAMES_A_CALL:
            path = listing.rest.pop()
            touch(Side.SOURCE)
            look_at(path)
            try:
                fd = beneath.open_folder(path, dir_fd=src)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "open", path))
                continue
            try:
                with listed(None if routes else dst, path, listing) as there:
                    rules = manner, stamps, markers, routes
                    count = _scan_folder(fd, path, wanted, there, *rules, listing, below, going)
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "read", path))
                continue
            finally:
                close_quietly(fd)
            names += 1 + count
            if routes and dst is not None and manner is not None:
                listing.folders[-1] = not_alike(dst, listing.folders[-1], manner, listing.alike)
    listing.rest.extend(below)
    return listing._replace(seconds=time.process_time() - begun)


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
    going: list[bytes],
) -> int:
    """Read the folder that is open as *fd*; return how many names it has. Files that are *there* too are *twins*."""
    prefix = folder + b"/" if folder else b""
    statuses: list[tuple[bytes, os.stat_result]] = []
    made: dict[bytes, os.stat_result] = {}  # markers, by the paths of their files
    bare: set[bytes] = set()  # files that are there, without their markers
    done = os.fsdecode(markers.destination)
    count = 0
    # This loop is what a scan of a million files costs: a microsecond for each stat, and not much more for the rest.
    touch(Side.SOURCE)
    with os.scandir(fd) as entries:
        for entry in entries:
            count += 1
            path = prefix + os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if wanted.folder(path):
                    below.append(path)
                elif entry.name.startswith(_GOING):
                    ours, others = _taken_aside(fd, entry.name, path)
                    if ours:
                        going.append(path)
                    if others and not wanted.excludes(path):
                        listing.skipped.append((path, OWN))
                elif (why := wanted.why_skipped(path)) is not None:
                    listing.skipped.append((path, why))
                continue
            if markers.source and is_marker(path, markers.source) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # then its file has none
                    status = entry.stat(follow_symlinks=False)
                    made[path.removesuffix(markers.source)] = status
                    if status.st_size == 0:
                        continue
            if not wanted.file(path):
                if (why := wanted.why_skipped(path)) is not None and not _is_left_by_us(entry, path):
                    listing.skipped.append((path, why))
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                listing.troubles.append(trouble_of(error, Side.SOURCE, "stat", path))
                continue
            if not stat.S_ISREG(status.st_mode):
                kind = kind_of(status)
                listing.skipped.append((path, f"{kind}: trioft copies regular files only"))
                continue
            if done and is_marker(path, markers.destination):
                listing.skipped.append((path, _RESERVED))
                continue
            twin = there.get(entry.name)
            if twin is not None and manner is not None and is_twin(twin, status, manner, path):
                if not done or entry.name + done in there:
                    listing.twins.append(Found(path, stat.S_IMODE(status.st_mode), identify(status, path, fd=fd)))
                    continue
                bare.add(path)
            statuses.append((path, status))
    stamp = _stamp_of(statuses) if stamps is not None else b""
    if stamps and stamps.get(folder) == stamp:
        listing.unchanged.append(folder)
    else:
        files = [Found(path, stat.S_IMODE(status.st_mode), identify(status, path, fd=fd)) for path, status in statuses]
        if markers.source:
            files = [
                found._replace(marked=marker_says(made.get(found.path), found.fingerprint))
                if not is_marker(found.path, markers.source)
                else found  # one with content is a file of its own, that has no marker
                for found in files
            ]
        if bare:
            files = [found._replace(there=found.path in bare) for found in files]
        if routes:
            files = [route(found, routes) for found in files]
        listing.folders.append(Folder(folder, files, stamp))
    return count


def _taken_aside(folder: int, name: str, path: bytes) -> tuple[bool, bool]:
    """Does a hidden folder have files that trioft has taken aside, or nothing any more? And does it have others?"""
    if not is_going_folder(path):
        return False, True
    try:
        fd = beneath.open_folder(os.fsencode(name), dir_fd=folder)
    except FileNotFoundError:
        return False, False
    except OSError:
        return False, True
    try:
        known = [fits(path, os.fsencode(inside)) for inside in os.listdir(fd)]
        return any(known) or not known, not all(known)
    finally:
        close_quietly(fd)


def _is_left_by_us(entry: os.DirEntry[str], path: bytes) -> bool:
    """Is this what a look for views, that was killed, has left? Nobody misses it."""
    try:
        return entry.is_file(follow_symlinks=False) and is_view_probe(path, entry.stat(follow_symlinks=False).st_size)
    except OSError:
        return False


def _stamp_of(statuses: list[tuple[bytes, os.stat_result]]) -> bytes:
    """Return a digest of which files these are, and in which versions."""
    versions = [
        (path, status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for path, status in statuses
    ]
    # Version 2 of the format writes equal values equally: later ones tell of objects that are the same one.
    return xxhash.xxh3_128_digest(marshal.dumps(versions, 2))


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

    An empty marker is no file of its own.
    """
    wanted = Wanted(include, exclude)
    looks: list[Look] = []
    its: dict[bytes, tuple[int, int]] = {}  # device and inode, as the kernel has them just now
    real_folders: dict[bytes, bool] = {b"": True}
    with opened(source, Side.SOURCE) as src:
        for path in paths:
            look_at(path)
            try:
                looks.append(_look_at(src, path, wanted, markers, routes, real_folders, its))
            except FileNotFoundError:
                looks.append(Look(path, "gone"))
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    looks.append(Look(path, "gone"))
                else:
                    trouble = trouble_of(error, Side.SOURCE, "stat", path)
                    looks.append(Look(path, "unreadable", trouble=trouble))
    unknown = {its[look.path] for look in looks if look.found and look.writer == answers.UNKNOWN}
    busy = writers.find_writers(unknown)
    return [look._replace(writer=answers.BUSY) if its.get(look.path) in busy else look for look in looks]


def _look_at(
    src: int,
    path: bytes,
    wanted: Wanted,
    markers: Markers,
    routes: Routes | None,
    real_folders: dict[bytes, bool],
    its: dict[bytes, tuple[int, int]],
) -> Look:
    if not _is_real(src, os.path.dirname(path), real_folders):
        return Look(path, "other")
    status = beneath.stat_of(path, dir_fd=src)
    if stat.S_ISDIR(status.st_mode):
        return Look(path, "folder" if wanted.folder(path) else "other")
    is_mark = is_marker(path, markers.destination) or (is_marker(path, markers.source) and not status.st_size)
    if not stat.S_ISREG(status.st_mode) or not wanted.file(path) or is_mark:
        return Look(path, "other")
    # Before the file itself is asked for a writer: whoever made it has closed the file by then.
    its[path] = status.st_dev, status.st_ino
    fingerprint = identify(status, path, top=src)
    marked = is_marked(src, path, markers.source, fingerprint)
    found = route(Found(path, stat.S_IMODE(status.st_mode), fingerprint, marked), routes)
    try:
        fd = beneath.open_file(path, READ, dir_fd=src)
    except FileNotFoundError:
        raise
    except OSError as error:
        # Somebody's lease keeps it from us; or it cannot be opened, then copying it will fail, and say why.
        return Look(path, "file", found, answers.BUSY if error.errno == errno.EAGAIN else answers.UNKNOWN)
    try:
        return Look(path, "file", found, writers.ask_lease(fd, status.st_dev))
    finally:
        close_quietly(fd)


def _is_real(src: int, folder: bytes, known: dict[bytes, bool]) -> bool:
    """Is every part of *folder* a real folder, no symbolic link? Events can come through links, files must not."""
    if folder not in known:
        known[folder] = _is_real(src, os.path.dirname(folder), known) and stat.S_ISDIR(
            beneath.stat_of(folder, dir_fd=src).st_mode
        )
    return known[folder]
