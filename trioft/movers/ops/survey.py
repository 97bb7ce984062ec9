"""
The operation that looks at everything in the source, whatever the configuration leaves out. Runs in a mover.
"""

from __future__ import annotations

import errno
import os
import stat

from trioft.core import answers
from trioft.core.answers import Sight, Step, Survey
from trioft.core.errors import Side, trouble_of
from trioft.core.model import Root
from trioft.core.naming import is_view_probe
from trioft.movers.ops import beneath, writers
from trioft.movers.ops.files import READ, Progress, close_quietly, fingerprint_of, kind_of, opened

# A call returns after the folder in which it has looked at so many names.
_NAMES_A_CALL = 1_000
# After so many it says that it is not stuck: each is opened, and asked for a writer.
_TOLD = 50


def survey(source: Root, paths: list[bytes], progress: Progress) -> Survey:
    """
    Look at *paths* of the source, and at all names in those that are folders, as far as one call goes.

    Of a file is asked first whether somebody has it open for writing, and only then which version it is: what was
    written before the answer shows in that. No symbolic link is followed.
    """
    seen: list[Sight] = []
    rest, below = paths[:], list[bytes]()
    with opened(source, Side.SOURCE) as src:
        while rest and len(seen) < _NAMES_A_CALL:
            path = rest.pop()
            try:
                _look_into(src, path, seen, below, progress)
            except OSError as error:
                seen.append(_missed(path, error))
    unknown = {sight.fingerprint[:2] for sight in seen if sight.fingerprint and sight.writer == answers.UNKNOWN}
    busy = writers.find_writers(unknown)
    seen = [
        sight._replace(writer=answers.BUSY) if sight.fingerprint and sight.fingerprint[:2] in busy else sight
        for sight in seen
    ]
    return Survey(seen, rest + below)


def _missed(path: bytes, error: OSError) -> Sight:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Sight(path, "gone")
    if error.errno == errno.ELOOP:
        return Sight(path, "symbolic link")
    return Sight(path, "unreadable", trouble=trouble_of(error, Side.SOURCE, "look at", path))


def _look_into(src: int, path: bytes, seen: list[Sight], below: list[bytes], progress: Progress) -> None:
    """Add to *seen* what *path* is, or, of a folder, what is in it; the folders in it to *below*."""
    if path and not stat.S_ISDIR(beneath.stat_of(path, dir_fd=src).st_mode):
        seen.append(_look_at(src, path, path))
        return
    fd = beneath.open_folder(path, dir_fd=src)
    try:
        prefix = path + b"/" if path else b""
        with os.scandir(fd) as entries:
            for number, entry in enumerate(entries):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    below.append(prefix + name)
                    continue
                try:
                    sight = _look_at(fd, name, prefix + name)
                    # What a look for views has left, that was killed, is nobody's.
                    if sight.fingerprint is None or not is_view_probe(name, sight.fingerprint.size):
                        seen.append(sight)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    seen.append(_missed(prefix + name, error))
                if number % _TOLD == 0:
                    progress(Step("looked", 0))
    finally:
        close_quietly(fd)


def _look_at(folder: int, name: bytes, path: bytes) -> Sight:
    status = beneath.stat_of(name, dir_fd=folder)
    if not stat.S_ISREG(status.st_mode):
        return Sight(path, kind_of(status))
    try:
        fd = beneath.open_file(name, READ, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.EAGAIN:  # somebody's lease keeps it from us
            return Sight(path, "file", fingerprint_of(status), answers.BUSY)
        if error.errno in (errno.EACCES, errno.EPERM):
            return Sight(path, "file", fingerprint_of(status))
        raise
    try:
        writer = writers.ask_lease(fd, status.st_dev)
        return Sight(path, "file", fingerprint_of(os.fstat(fd)), writer)
    finally:
        close_quietly(fd)
