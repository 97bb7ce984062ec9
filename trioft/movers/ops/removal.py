"""
The operations that let delivered sources go: the last step of the one gate. Run in a mover.

A file goes in three steps. It is renamed aside, into a hidden folder of trioft's own beside it, where nobody opens it
by its name any more; it is asked then whether somebody has it open for writing, and whether it still is what was
delivered; and it is removed, or archived, or put back. What is killed in between is put back by the next scan.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

import xxhash

from trioft.core import answers
from trioft.core.errors import Side, show_path, trouble_of
from trioft.core.model import Fingerprint, Result, Root, Verdict
from trioft.core.naming import GOING, is_marker, numbered
from trioft.movers.ops import beneath, writers
from trioft.movers.ops.files import READ, close_quietly, opened
from trioft.movers.ops.identity import identify

_ATTEMPTS = 5  # to have the folder of one's own: somebody may be clearing it up


def remove_sources(
    source: Root, delivered: list[tuple[bytes, Fingerprint]], archive: bytes | None, marker: bytes = b""
) -> list[Result]:
    """
    Remove delivered sources, or move them below the folder *archive*. One Result for each, in order.

    An empty file that has a source's name and *marker* after it goes with it, as it speaks of a file that is there no
    more; one with content is a file of its own, and stays (UNMARKED) until its file has gone.

    A file goes only if it is still the version that was delivered (device, inode, size, mtime, ctime) and nobody
    has it open for writing: BUSY and CHANGED say that it stays, GONE that it was gone already; REMOVED
    means that it has gone now, and *writer* says on what proof that nobody was writing it. Where that cannot be
    proved, UNPROVEN, a file is not deleted; it may still be archived, since what somebody writes then is not lost.
    """
    results: dict[int, Result] = {}
    ours: dict[Fingerprint, Fingerprint] = {}
    with opened(source, Side.SOURCE) as src:
        for n in sorted(range(len(delivered)), key=lambda n: is_marker(delivered[n][0], marker)):
            path, fingerprint = delivered[n]
            try:
                results[n] = _Source(src, path, fingerprint, ours).remove(archive, marker)
            except OSError as error:
                results[n] = _why_not_removed(src, path, archive, error)
    return [results[n] for n in range(len(delivered))]


def _why_not_removed(src: int, path: bytes, archive: bytes | None, error: OSError) -> Result:
    if error.errno == errno.ELOOP:  # a link is in its place
        return Result(Verdict.CHANGED)
    beneath.look_anew(src)
    if isinstance(error, FileNotFoundError):  # the source, or the archive folder
        try:
            beneath.stat_of(path, dir_fd=src)
        except FileNotFoundError:
            return Result(Verdict.GONE)
        except OSError:
            pass
    op = "rename" if archive else "unlink"
    return Result(Verdict.TROUBLE, trouble=trouble_of(error, Side.SOURCE, op, path))


class _Source:
    """
    One source on its way out.

    *ours* says what has become of a version as another of its names was removed: that sets the ctime of the file.
    """

    def __init__(self, src: int, path: bytes, fingerprint: Fingerprint, ours: dict[Fingerprint, Fingerprint]) -> None:
        self._src, self._path, self._fingerprint, self._ours = src, path, fingerprint, ours
        self._expected = ours.get(fingerprint, fingerprint)
        self._going = going_for(path)
        self._aside = self._going + b"/" + path.rpartition(b"/")[2]

    def remove(self, archive: bytes | None, marker: bytes) -> Result:
        beneath.look_anew(self._src)
        if is_marker(self._path, marker) and _exists(self._src, self._path.removesuffix(marker)):
            return Result(Verdict.UNMARKED, note="it is the marker of a file that is still there")
        mark = _marker_of(self._src, self._path, marker)
        fd, is_aside = self._open()
        try:
            if not is_aside:
                # Nothing is moved that is going to stay.
                writer = self._ask(fd)
                beneath.look_anew(self._src)
                named = beneath.stat_of(self._path, dir_fd=self._src)
                if (verdict := self._why_not(fd, writer, [os.fstat(fd), named], archive, 5)) is not None:
                    return Result(verdict)
            with _folder_of_ones_own(self._src, self._going):
                if not is_aside:
                    self._take_aside()
                try:
                    writer = self._ask(fd)
                    named = beneath.stat_of(self._aside, dir_fd=self._src)
                    # The rename has set the ctime.
                    if (verdict := self._why_not(fd, writer, [os.fstat(fd), named], archive, 4)) is not None:
                        return Result(verdict, note=self._put_back())
                    archived = None
                    if archive is None:
                        beneath.unlink(self._aside, dir_fd=self._src)
                    else:
                        archived = _move_to_archive(self._src, self._aside, self._path, archive)
                except OSError:
                    with contextlib.suppress(FileNotFoundError):
                        self._put_back()
                    raise
            after = identify(os.fstat(fd), self._path, fd=fd)
            if after[:4] == self._expected[:4]:
                self._ours[self._fingerprint] = after
        finally:
            close_quietly(fd)
        note = self._remove_marker(mark, archive, archived, marker)
        where = os.path.join(archive, archived) if archive and archived not in (None, self._path) else b""
        return Result(Verdict.REMOVED, where, writer=writer, note=note)

    def _open(self) -> tuple[int, bool]:
        """Open the file; return whether an earlier try of this call, that was killed, has taken it aside already."""
        try:
            return beneath.open_file(self._path, READ, dir_fd=self._src), False
        except FileNotFoundError:
            fd = beneath.open_file(self._aside, READ, dir_fd=self._src)
            if identify(os.fstat(fd), self._path, fd=fd)[:4] != self._expected[:4]:
                close_quietly(fd)
                raise
            return fd, True

    def _ask(self, fd: int) -> str:
        writer = writers.ask_lease(fd, self._fingerprint.dev)
        if writer == answers.UNKNOWN and writers.has_writer(fd):
            writer = answers.BUSY
        return writer

    def _why_not(
        self, fd: int, writer: str, statuses: list[os.stat_result], archive: bytes | None, facts: int
    ) -> Verdict | None:
        """Say why the file stays: looked at by name and by descriptor, so many *facts* of its fingerprint count."""
        if writer == answers.BUSY:
            return Verdict.BUSY
        if any(identify(its, self._path, fd=fd)[:facts] != self._expected[:facts] for its in statuses):
            return Verdict.CHANGED
        return Verdict.UNPROVEN if writer == answers.UNKNOWN and archive is None else None

    def _take_aside(self) -> None:
        try:
            beneath.rename_noreplace(self._path, self._aside, dir_fd=self._src)
        except FileExistsError:  # what another run has left there
            self._put_back()
            beneath.rename_noreplace(self._path, self._aside, dir_fd=self._src)

    def _put_back(self) -> str:
        """Give a file that was taken aside its name again; return what is to be said of that."""
        name = _put_back(self._src, self._aside, self._path)
        return "" if name == self._path else f"it is called {show_path(name)} now, as another file has its name"

    def _remove_marker(
        self, mark: Fingerprint | None, archive: bytes | None, archived: bytes | None, marker: bytes
    ) -> str:
        """Remove the empty *mark*, if it is still the same; return what is to be said of one that stays."""
        if mark is None or mark.size:
            return ""
        name = self._path + marker
        try:
            # Not one that has been made since: it speaks of the next file of this name.
            if _marker_of(self._src, self._path, marker) == mark:
                if archive is None or archived is None:
                    beneath.unlink(name, dir_fd=self._src)
                else:
                    with beneath.below(archive) as top:
                        beneath.rename_noreplace(name, archived + marker, dir_fd=self._src, new_dir_fd=top)
        except OSError as error:
            return f"its marker stays: {error.strerror}"
        return ""


def going_for(path: bytes) -> bytes:
    """Return the hidden folder that a source is taken aside to."""
    folder, slash, _ = path.rpartition(b"/")
    return folder + slash + GOING + xxhash.xxh3_64_hexdigest(path)[:8].encode()


def fits(going: bytes, name: bytes) -> bool:
    """Can the file *name* in the folder *going* have been taken aside to that? What others put there does not fit."""
    folder, slash, _ = going.rpartition(b"/")
    return going == going_for(folder + slash + name)


@contextlib.contextmanager
def _folder_of_ones_own(src: int, going: bytes) -> Iterator[None]:
    """While inside, the hidden folder *going* is there, and nobody else clears it up."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileExistsError):
            beneath.mkdir(going, 0o700, dir_fd=src)
        beneath.look_anew(src)
        try:
            fd = beneath.open_folder(going, dir_fd=src)
        except FileNotFoundError:
            continue
        try:
            _lock(fd)
            try:
                if not os.path.samestat(os.fstat(fd), beneath.stat_of(going, dir_fd=src)):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # the next scan clears it up
                    beneath.rmdir(going, dir_fd=src)
                beneath.look_anew(src)
            return
        finally:
            close_quietly(fd)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _lock(fd: int) -> None:
    """Keep others from clearing up a folder, open as *fd*. Raises ``BlockingIOError`` if somebody works in it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # there are no such locks: who puts back what is on its way out keeps it


def put_back(source: Root, folders: list[bytes]) -> list[bytes]:
    """
    Put files back that a run, which was killed then, had taken aside in *folders*. Return their names.

    Where somebody is removing files there just now, nothing is done; nor with what trioft has not taken there.
    """
    names: list[bytes] = []
    with opened(source, Side.SOURCE) as src:
        for going in folders:
            beneath.look_anew(src)
            with contextlib.suppress(OSError):  # the next scan tries again
                fd = beneath.open_folder(going, dir_fd=src)
                try:
                    _lock(fd)
                    above, slash, _ = going.rpartition(b"/")
                    for name in os.listdir(fd):
                        raw = os.fsencode(name)
                        if fits(going, raw):
                            names.append(_put_back(src, going + b"/" + raw, above + slash + raw))
                    beneath.rmdir(going, dir_fd=src)
                finally:
                    close_quietly(fd)
    return names


def _put_back(src: int, aside: bytes, path: bytes) -> bytes:
    """Rename *aside* to *path*, or, if that is taken by now, to a numbered name; return which."""
    for candidate in numbered(path):
        with contextlib.suppress(FileExistsError):
            beneath.rename_noreplace(aside, candidate, dir_fd=src)
            return candidate
    raise AssertionError("numbered() does not end")


def _exists(src: int, path: bytes) -> bool:
    try:
        return stat.S_ISREG(beneath.stat_of(path, dir_fd=src).st_mode)
    except OSError:
        return False


def _marker_of(src: int, path: bytes, marker: bytes) -> Fingerprint | None:
    """Return which file is the marker of *path*, if there is one."""
    with contextlib.suppress(OSError):
        status = beneath.stat_of(path + marker, dir_fd=src)
        if marker and stat.S_ISREG(status.st_mode):
            return identify(status, path + marker, top=src)
    return None


def _move_to_archive(src: int, aside: bytes, path: bytes, archive: bytes) -> bytes:
    """Move the source *path*, which was taken *aside*, to the archive; return its path there."""
    os.makedirs(archive, exist_ok=True)
    with beneath.below(archive) as top:
        beneath.make_folders(os.path.dirname(path), dir_fd=top)
        for candidate in numbered(path):
            with contextlib.suppress(FileExistsError):
                beneath.rename_noreplace(aside, candidate, dir_fd=src, new_dir_fd=top)
                return candidate
    raise AssertionError("numbered() does not end")
