"""
The operations that look at the whole destination: what is there already, folders, partials that nobody continues.

They run in a mover.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from trioft.core.answers import Folder, Leftover, Leftovers, Listing
from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify, trouble_of
from trioft.core.model import Found, Manner, Root
from trioft.core.naming import is_former, is_own
from trioft.movers.ops import beneath
from trioft.movers.ops.files import NAMES_A_CALL, close_quietly, is_same, opened
from trioft.movers.ops.folder.partials import make_folder, no_room, sync_folder
from trioft.movers.ops.folder.views import looks_like_itself
from trioft.movers.ops.slate import touch


def are_same(there: os.stat_result, here: os.stat_result, resolution_ns: int) -> bool:
    """The same for two files that were just looked at; here it is asked a million times, and makes nothing."""
    return (
        there.st_size == here.st_size
        and abs(there.st_mtime_ns - here.st_mtime_ns) < resolution_ns
        and stat.S_ISREG(there.st_mode)
        and not looks_like_itself(there, here.st_dev, here.st_ino, here.st_ctime_ns)
    )


def has_bits(there: os.stat_result, mode: int, manner: Manner) -> bool:
    """Does what the destination has have the permission bits of *mode*, if it can have any?"""
    return not manner.permissions or (there.st_mode ^ mode) & 0o777 == 0


def not_alike(dst: int, folder: Folder, manner: Manner, alike: list[Found]) -> Folder:
    """Return *folder* without the files that the destination has, as far as size and time tell: they are *alike*."""
    rest: list[Found] = []
    touch(Side.DESTINATION)
    for found in folder.files:
        try:
            there = beneath.stat_of(found.target, dir_fd=dst) if found.trouble is None else None
        except OSError as error:
            if not isinstance(error, FileNotFoundError | beneath.VolumeLost):
                _without_destination(trouble_of(error, Side.DESTINATION, "stat", found.target))
            there = None
        version = found.fingerprint
        is_alike = (
            there is not None
            and is_same(there, version, manner.resolution_ns)
            and has_bits(there, found.mode, manner)
            and not looks_like_itself(there, version.dev, version.ino, version.ctime_ns)
        )
        (alike if is_alike else rest).append(found)
    return folder._replace(files=rest)


def is_twin(entry: os.DirEntry[str], status: os.stat_result, manner: Manner, path: bytes) -> bool:
    """
    Is what the destination has under this name, as far as size and time tell, the source file with *status*? Where it
    keeps permission bits, these are a part of it: a copier sets them then.
    """
    touch(Side.DESTINATION)
    try:
        there = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # it is not there any more
        return False
    except OSError as error:
        _without_destination(trouble_of(error, Side.DESTINATION, "stat", path))
        return False
    finally:
        touch(Side.SOURCE)  # the scan goes on there
    return are_same(there, status, manner.resolution_ns) and has_bits(there, status.st_mode, manner)


@contextlib.contextmanager
def listed(dst: int | None, folder: bytes, listing: Listing) -> Iterator[dict[str, os.DirEntry[str]]]:
    """List a folder of the destination. Its entries can be asked for their status while inside."""
    if dst is None:
        yield {}
        return
    touch(Side.DESTINATION)
    try:
        fd = beneath.open_folder(folder, dir_fd=dst)
    except FileNotFoundError:
        listing.missing.append(folder)
        yield {}
        return
    except beneath.VolumeLost:  # each file that goes there will wait for it
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
            except beneath.VolumeLost:
                continue  # each file that goes there will wait for it
            except OSError as error:
                troubles.append(no_room(trouble_of(error, Side.DESTINATION, "mkdir", folder), dst))
        for folder in changed:
            sync_folder(dst, folder)
    return troubles


def find_leftovers(destination: Root, folders: list[bytes]) -> Leftovers:
    """
    Search *folders* of the destination and those below them for names that are trioft's own, as far as one call goes.

    Those that trioft 0.1 gave are among them, and with these such as other programs have too.
    """
    leftovers = Leftovers([], folders[:])
    names, now = 0, time.time()
    with opened(destination, Side.DESTINATION) as dst:
        while leftovers.rest and names < NAMES_A_CALL:
            folder = leftovers.rest.pop()
            prefix = folder + b"/" if folder else b""
            try:
                fd = beneath.open_folder(folder, dir_fd=dst)
            except OSError:
                continue  # not ours to read: then nothing of ours is in it
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        names += 1
                        name = os.fsencode(entry.name)
                        is_ours, is_folder = is_own(name), entry.is_dir(follow_symlinks=False)
                        if is_folder and not is_ours:
                            leftovers.rest.append(prefix + name)
                        elif is_ours or is_former(name):
                            with contextlib.suppress(OSError):
                                status = entry.stat(follow_symlinks=False)
                                if is_folder or stat.S_ISREG(status.st_mode):
                                    size, age = 0 if is_folder else status.st_size, now - status.st_mtime
                                    leftovers.found.append(Leftover(prefix + name, size, age, is_folder))
            except OSError:
                continue
            finally:
                close_quietly(fd)
    return leftovers
