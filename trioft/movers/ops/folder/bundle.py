"""
The operation that copies a bundle of small files: one after the other, made durable by one barrier, read back together.

Run in a mover.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from trioft.core import manifest
from trioft.core.answers import Step
from trioft.core.digests import block_digest, file_digest
from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify, mismatch, trouble_of
from trioft.core.model import Ends, Fingerprint, Item, Manner, Result, Verdict
from trioft.core.naming import former_partial_for, partial_for
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import (
    Progress,
    advise,
    close_quietly,
    fingerprint_of,
    is_steady,
    opened,
    read_exactly,
    status_of,
)
from trioft.movers.ops.folder.existing import look_for_existing
from trioft.movers.ops.folder.pace import Pace
from trioft.movers.ops.folder.partials import (
    close_written,
    copy_attributes,
    create_partial,
    each,
    remove_partial,
    sync_folder,
)
from trioft.movers.ops.slate import touch
from trioft.movers.ops.source import has_changed, open_source

_TELL_EVERY = 1.0  # seconds
_OPEN = 64  # files that are open at a time, to be read one after the other: a disk, or a server, answers many at a time
_SYNCFS_FROM = 4  # below this many files, one fsync each is cheaper than making the whole filesystem durable


def write_bundle(ends: Ends, items: list[Item], manner: Manner, progress: Progress) -> list[Result]:
    """
    Write small files under their partial names, make them durable with one barrier, and read them back.

    One Result for each item, in order. A file that fails does so alone, except when the destination is gone.
    """
    with opened(ends.source, Side.SOURCE) as src, opened(ends.destination, Side.DESTINATION) as dst:
        bundle = _Bundle(src, dst, ends.destination.dev, items, manner, progress)
        bundle.write()
        progress(Step("written", len(items)))
        bundle.settle()
    return bundle.results


class _Bundle:
    """A bundle on its way: what is open of it, and what has come of each of its files."""

    def __init__(self, src: Top, dst: Top, device: int, items: list[Item], manner: Manner, progress: Progress) -> None:
        self.results = [Result(Verdict.CHANGED)] * len(items)
        self._src, self._dst, self._device = src, dst, device
        self._items, self._manner, self._progress = items, manner, progress
        self._open: dict[int, int] = {}  # by the number of the file: its source, later its partial
        self._openings: dict[int, Result] = {}  # what is known of the sources that are open
        self._folders: set[bytes] = set()  # that have new entries
        self._strays: set[bytes] = set()  # partials on another filesystem than the root's: below a mount, or a link
        self._steady = is_steady(dst)
        self._seals: dict[int, Fingerprint] = {}  # by the number of the file: what its partial is
        self._when = time.monotonic()  # something was told last
        self._gone: Trouble | None = None  # that the destination is: then no other file is tried

    def write(self) -> None:
        """Write all partials."""
        for some in _groups(range(len(self._items))):
            self._do(some, self._open_source, self._write)

    def settle(self) -> None:
        """Make the partials durable, and compare what the destination has with what was written."""
        written = [n for n, result in enumerate(self.results) if result.verdict == Verdict.WRITTEN]
        self._gone = None  # for those that are written it may be there again
        touch(Side.DESTINATION)
        self._whole_filesystem = len(written) >= _SYNCFS_FROM and linux.can_syncfs(self._dst)
        try:
            if self._whole_filesystem:
                linux.syncfs(self._dst)
            if not self._whole_filesystem or self._strays:
                for folder in self._folders:
                    sync_folder(self._dst, folder)
        except OSError as error:
            self._gone = trouble_of(error, Side.DESTINATION, "syncfs", b"")
        except FileTrouble as error:
            self._gone = error.trouble
        for some in _groups(written):
            self._do(some, self._open_partial, self._compare)

    def _do(self, numbers: Sequence[int], begin: Callable[[int], None], finish: Callable[[int], None]) -> None:
        """*begin* with some files, each of which it opens if it can, and *finish* them."""

        def unless_it_fails(work: Callable[[int], None]) -> Callable[[int], None]:
            def do(n: int) -> None:
                try:
                    if self._gone is not None:
                        raise FileTrouble(self._gone)
                    work(n)
                except FileTrouble as error:
                    self.results[n] = Result(Verdict.TROUBLE, trouble=error.trouble)
                    if classify(error.trouble) == Remedy.DESTINATION:
                        self._gone = error.trouble

            return do

        try:
            each(self._dst, unless_it_fails(begin), numbers)
            each(self._dst, unless_it_fails(finish), [n for n in numbers if n in self._open])
        finally:
            for fd in self._open.values():
                close_quietly(fd)
            self._open.clear()

    def _open_source(self, n: int) -> None:
        fd, opening = open_source(self._src, self._items[n])
        if opening.verdict == Verdict.OPEN:
            self._open[n], self._openings[n] = fd, opening
            advise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        else:
            self.results[n] = opening

    def _write(self, n: int) -> None:
        src_fd, item, manner = self._open[n], self._items[n], self._manner
        if existing := look_for_existing(self._src, src_fd, self._dst, item, manner, self._progress):
            self.results[n] = existing
            return
        data = _read(src_fd, item)
        if data is None or has_changed(src_fd, item):
            self.results[n] = Result(Verdict.CHANGED)
            return
        partial = partial_for(item)
        if item.life:
            remove_partial(self._dst, former_partial_for(item))
        dst_fd, changed = create_partial(self._src, self._dst, partial, item.mode, routed=item.is_routed)
        self._folders.update(changed)
        try:
            made = status_of(dst_fd, Side.DESTINATION, partial)
            if made.st_dev != self._device:
                self._strays.add(partial)
            Pace(dst_fd, partial, self._progress).write(0, data)
            lost = copy_attributes(src_fd, dst_fd, item, manner, made.st_mode)
            if self._steady:
                self._seals[n] = fingerprint_of(status_of(dst_fd, Side.DESTINATION, partial))
        except BaseException:
            close_quietly(dst_fd)
            raise
        close_written(dst_fd, partial)
        self._told()
        digest = _digest(data) if manner.verify != "size" else None
        its_sum = manifest.sum_of(manner.manifest, data) if manner.manifest != manifest.NONE else None
        self.results[n] = self._openings[n]._replace(
            verdict=Verdict.WRITTEN, digest=digest, sum=its_sum, lost=tuple(lost)
        )

    def _open_partial(self, n: int) -> None:
        """Open a partial, make it durable, and have it read from behind the page cache."""
        partial, op = partial_for(self._items[n]), "open"
        touch(Side.DESTINATION)
        try:
            fd = beneath.open_file(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dst)
            try:
                if not self._whole_filesystem or partial in self._strays:
                    op = "fsync"
                    os.fsync(fd)
                if n not in self._seals:
                    self._seals[n] = fingerprint_of(os.fstat(fd))
                if self._manner.verify == "readback":
                    op = "read back"
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    advise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            except BaseException:
                close_quietly(fd)
                raise
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, partial)) from error
        self._open[n] = fd
        self._told()

    def _told(self) -> None:
        """Say now and then that something moves: behind a slow link a bundle takes minutes."""
        if time.monotonic() - self._when > _TELL_EVERY:
            self._when = time.monotonic()
            self._progress(Step("synced", 0))

    def _compare(self, n: int) -> None:
        item, fd = self._items[n], self._open.pop(n)
        partial, size = partial_for(item), item.fingerprint.size
        touch(Side.DESTINATION)
        try:
            try:
                same = True
                if self._manner.verify == "readback":
                    same = _digest(read_exactly(fd, Side.DESTINATION, partial, 0, size)) == self.results[n].digest
                same = same and os.fstat(fd).st_size == size
            finally:
                os.close(fd)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "read back", partial)) from error
        self._told()
        if not same:
            raise FileTrouble(mismatch(partial, 0))
        self.results[n] = self.results[n]._replace(seal=self._seals[n])


def _groups(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), _OPEN):
        yield numbers[start : start + _OPEN]


def _read(fd: int, item: Item) -> memoryview | None:
    """Return what a source file has, or None if that is not as much as it should."""
    size = item.fingerprint.size
    buffer = memoryview(bytearray(size + 1))
    count = 0
    touch(Side.SOURCE)
    try:
        while count <= size and (n := os.preadv(fd, [buffer[count : size + 1]], count)):
            count += n
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "read", item.path, count)) from error
    return buffer[:size] if count == size else None


def _digest(data: memoryview | bytearray) -> bytes:
    return file_digest(block_digest(data) if len(data) else b"")
