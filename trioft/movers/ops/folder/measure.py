"""
The operations of `trioft doctor`: what an end can do, found out by doing it. Run in a mover.

Everything happens in a folder of its own at the destination. What is measured is returned as it is; ``diagnosis`` says
what it means.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator

from trioft.core.errors import FileTrouble, Side, trouble_of
from trioft.core.measured import (
    Attributes,
    Fsync,
    Measured,
    Names,
    Planted,
    ReadBack,
    Rename,
    Sizes,
    SmallFiles,
    Space,
    Throughput,
    Times,
)
from trioft.core.model import KIB, MIB, Root
from trioft.movers.ops import beneath, linux, writers
from trioft.movers.ops.files import READ, close_quietly, opened
from trioft.movers.ops.folder.partials import write_all
from trioft.movers.ops.folder.probe import measure_resolution

_BLOCK = 8 * MIB
_MOST = 64 * MIB
_LONGEST = 4.0  # seconds for each way of the throughput
_SMALL_FILES = 100

# What names may be called that some destination does not take, or calls otherwise.
ODD_NAMES = {
    "255 bytes": b"n" * 255,
    "255 bytes of UTF-8": "ä".encode() * 127 + b"n",
    "no UTF-8": b"byte \xff",
    "a dot at the end": b"dot.",
    "a blank at the end": b"blank ",
    "a colon": b"colon:colon",
    'one of <>|?*"': b'odd <>|?*"',
    "a backslash": b"back\\slash",
    "a line break": b"line\nbreak",
    "a control character": b"control \x01",
    "a device of DOS": b"CON",
}
_YEARS = {1902: -2_145_916_800, 1970: 0, 2039: 2_177_452_800, 2107: 4_323_369_600, 2200: 7_258_118_400}
_SIZES = (4 << 30, 1 << 40, 8 << 40)  # FAT ends below the first, ext3 below the second


def begin_measuring(root: Root, folder: bytes) -> None:
    """Make the folder in which everything happens. Raises ``FileTrouble``."""
    with opened(root, Side.DESTINATION) as dst:
        try:
            beneath.mkdir(folder, 0o700, dir_fd=dst)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "mkdir", folder)) from error


def end_measuring(root: Root, folder: bytes) -> None:
    """Remove it, with all files in it, as far as that is possible; if it is not there, that is fine."""
    with opened(root, Side.DESTINATION) as dst:
        try:
            fd = beneath.open_folder(folder, dir_fd=dst)
            try:
                for name in os.listdir(fd):
                    with contextlib.suppress(OSError):  # if it stays, so does the folder, and that is told
                        beneath.unlink(os.fsencode(name), dir_fd=fd)
            finally:
                os.close(fd)
            beneath.rmdir(folder, dir_fd=dst)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, "rmdir", folder)) from error


def measure(root: Root, folder: bytes, what: str) -> Measured:
    """Find out one thing about the destination, in *folder*. Raises ``FileTrouble``."""
    with opened(root, Side.DESTINATION) as dst:
        op = "open"
        try:
            fd = beneath.open_folder(folder, dir_fd=dst)
            try:
                op = f"measure {what} of"
                return _MEASUREMENTS[what](fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise FileTrouble(trouble_of(error, Side.DESTINATION, op, folder)) from error


# --- what is measured -------------------------------------------------------------------------------------------------


def _space(folder: int) -> Space:
    numbers = os.fstatvfs(folder)
    return Space(
        free=numbers.f_bavail * numbers.f_frsize,
        total=numbers.f_blocks * numbers.f_frsize,
        free_inodes=numbers.f_favail if numbers.f_files else None,
    )


def _fsync(folder: int) -> Fsync:
    """How long an fsync of a little takes, and whether a folder can be made durable, too."""
    with _made(folder, b"durable") as fd:
        times = []
        for n in range(10):
            write_all(fd, b"durable", n * 4 * KIB, memoryview(b"x" * 4 * KIB))
            begun = time.perf_counter()
            os.fsync(fd)
            times.append(time.perf_counter() - begun)
    return Fsync(seconds=sorted(times)[len(times) // 2], folder_error=_error_of(lambda: os.fsync(folder)))


def _rename(folder: int) -> Rename:
    """Whether a new file replaces an old one in one step, also one that is open, and whether that can be forbidden."""
    _write(folder, b"new", b"new")
    if (refused := _error_of(lambda: _move(folder, b"new", b"free"))) is not None:
        return Rename(refused=refused)
    _write(folder, b"new", b"new")
    _write(folder, b"old", b"old")
    replace = _error_of(lambda: _move(folder, b"new", b"old")) or _wrong(folder, b"old", b"new")
    _write(folder, b"new", b"new")
    _write(folder, b"open", b"old")
    fd = beneath.open_file(b"open", READ, dir_fd=folder)
    try:
        replace_open = _error_of(lambda: _move(folder, b"new", b"open"))
    finally:
        os.close(fd)
    if replace_open is not None:  # some servers take the old one away at its last close
        replace_open += "" if _exists(folder, b"open") else ", and the old one vanished"
    else:
        replace_open = _wrong(folder, b"open", b"new")
    # To a free name: where there is one, the kernel says so before it asks the filesystem whether it can do this.
    _write(folder, b"new", b"new")
    noreplace = _error_of(lambda: linux.renameat2(b"new", b"still free", folder, linux.RENAME_NOREPLACE))
    return Rename(refused=None, replace=replace, replace_open=replace_open, noreplace=noreplace)


def _times(folder: int) -> Times:
    before = time.time()
    with _made(folder, b"time") as fd:
        write_all(fd, b"time", 0, memoryview(b"x"))
        os.fsync(fd)
        after, there = time.time(), beneath.stat_of(b"time", dir_fd=folder).st_mtime
        resolution = measure_resolution(folder, b"time")
        lost = []
        for year, seconds in _YEARS.items():
            with contextlib.suppress(OSError):
                beneath.utime(b"time", (seconds * 10**9, seconds * 10**9), dir_fd=folder)
                if abs(beneath.stat_of(b"time", dir_fd=folder).st_mtime - seconds) <= 2:
                    continue
            lost.append(year)
    ahead = there - after if there > after else min(0.0, there - before)
    return Times(resolution_ns=resolution, lost_years=lost, clock_ahead=ahead)


def _names(folder: int) -> Names:
    """Which odd names are refused, or called otherwise; whether names that differ are one."""
    refused: dict[str, str] = {}
    for what, name in ODD_NAMES.items():
        try:
            _write(folder, name, b"")
        except OSError as error:
            refused[what] = _name(error)
            continue
        if name not in _listed(folder):
            refused[what] = "it gets another name"
        with contextlib.suppress(OSError):
            beneath.unlink(name, dir_fd=folder)
    _write(folder, b"Case", b"")
    composed, decomposed = "caf\u00e9".encode(), "cafe\u0301".encode()
    _write(folder, composed, b"")
    return Names(
        refused=refused,
        folds_case=_exists(folder, b"cASE"),
        normalises=_exists(folder, decomposed) or composed not in _listed(folder),
    )


def _sizes(folder: int) -> Sizes:
    """Which size is too large for a file; asked by holes."""
    with _made(folder, b"large") as fd:
        os.truncate(fd, 64 * MIB)
        takes_none = os.fstat(fd).st_blocks * 512 < 32 * MIB
        os.truncate(fd, 0)
        magic = linux.filesystem_magic(fd)
        sparse = None if magic == linux.FUSE else takes_none  # a program makes up how much a file takes
        # Where a hole takes space, or nobody knows, asking could write all of it. But FAT, where it matters most,
        # refuses at once.
        may_ask = sparse or magic == linux.FAT
        refused = None
        for size in _SIZES if may_ask else ():
            if (error := _error_of(functools.partial(os.truncate, fd, size))) is not None:
                refused = size, error
                break
            os.truncate(fd, 0)
    return Sizes(asked=may_ask, refused=refused, sparse=sparse)


def _attributes(folder: int) -> Attributes:
    with _made(folder, b"attributes") as fd:
        xattrs = _error_of(lambda: os.setxattr(fd, "user.trioft", b"1"))
        if xattrs is None and os.getxattr(fd, "user.trioft") != b"1":
            xattrs = "it is not kept"
        modes = []
        for mode in (0o640, 0o755, 0o444):
            with contextlib.suppress(OSError):
                os.fchmod(fd, mode)
            if stat.S_IMODE(beneath.stat_of(b"attributes", dir_fd=folder).st_mode) != mode:
                modes.append(f"{mode:o}")
    return Attributes(xattrs=xattrs, lost_modes=modes)


def _readback(folder: int) -> ReadBack:
    """How much of a file stays in the page cache after it was made durable and dropped from there."""
    size = 4 * MIB
    with _made(folder, b"readback") as fd:
        write_all(fd, b"readback", 0, memoryview(os.urandom(size)))
        os.fsync(fd)
        before = linux.resident_share(fd, size)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return ReadBack(cached_before=before, cached_after=linux.resident_share(fd, size))


def _throughput(folder: int) -> Throughput:
    """Bytes a second, durable, and read back from behind the page cache; for some seconds at most."""
    block = memoryview(os.urandom(_BLOCK))
    with _made(folder, b"throughput") as fd:
        written, begun = 0, time.perf_counter()
        while written < _MOST and (written == 0 or time.perf_counter() - begun < _LONGEST):
            # All the rest in one go, where the first block says that there is time for it.
            is_slow = written and (time.perf_counter() - begun) * _MOST / written > _LONGEST
            end = written + _BLOCK if not written or is_slow else _MOST
            while written < end:
                write_all(fd, b"throughput", written, block)
                written += _BLOCK
            os.fsync(fd)
        write_seconds = time.perf_counter() - begun
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        count, begun = 0, time.perf_counter()
        while count < written and time.perf_counter() - begun < _LONGEST:
            piece = os.pread(fd, _BLOCK, count)
            if piece != block[: len(piece)] or not piece:
                return Throughput(mismatch=count)
            count += len(piece)
        read_seconds = time.perf_counter() - begun
    return Throughput(mismatch=None, write=written / write_seconds, read=count / read_seconds, bytes=written)


def _small_files(folder: int) -> SmallFiles:
    """Small files a second, as a bundle has them: written, made durable together, renamed, the folder made durable."""
    begun = time.perf_counter()
    names = [b"small %d" % n for n in range(_SMALL_FILES)]
    can_syncfs = linux.can_syncfs(folder)
    for name in names:
        _write(folder, name + b".partial", b"x" * 4 * KIB)
    if can_syncfs:
        linux.syncfs(folder)
    else:
        for name in names:
            fd = beneath.open_file(name + b".partial", os.O_RDWR | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    for name in names:
        _move(folder, name + b".partial", name)
    with contextlib.suppress(OSError):
        os.fsync(folder)
    return SmallFiles(rate=_SMALL_FILES / (time.perf_counter() - begun), one_barrier=can_syncfs)


_MEASUREMENTS: dict[str, Callable[[int], Measured]] = {
    "space": _space,
    "fsync": _fsync,
    "rename": _rename,
    "times": _times,
    "names": _names,
    "large files": _sizes,
    "attributes": _attributes,
    "read-back": _readback,
    "throughput": _throughput,
    "small files": _small_files,
}


# --- the source -------------------------------------------------------------------------------------------------------


def plant(source: bytes, name: bytes) -> Planted | None:
    """
    Make a small hidden file in the folder *source*; find out what the kernel says of its writer. None: not allowed to.

    The caller has it taken away by ``uproot``.
    """
    path = os.path.join(source, name)
    try:
        writer = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None
        raise FileTrouble(trouble_of(error, Side.SOURCE, "create", name)) from error
    try:
        reader = os.open(path, READ)
        try:
            device = os.fstat(reader).st_dev
            while_written = writers.ask_lease(reader, device)
            os.close(writer)
            writer = -1
            after = writers.ask_lease(reader, device)
            strength = writers.strength(reader, device, after)
            return Planted(while_written, after, strength)
        finally:
            os.close(reader)
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "open", name)) from error
    finally:
        if writer >= 0:
            close_quietly(writer)


def uproot(source: bytes, name: bytes) -> None:
    """Remove the hidden file. Raises ``FileTrouble``."""
    try:
        os.unlink(os.path.join(source, name))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FileTrouble(trouble_of(error, Side.SOURCE, "unlink", name)) from error


# --- small things -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _made(folder: int, name: bytes) -> Iterator[int]:
    """Make a file while inside; it is taken away again, so that it is in nobody's way."""
    fd = _create(folder, name)
    try:
        yield fd
    finally:
        os.close(fd)
        beneath.unlink(name, dir_fd=folder)


def _write(folder: int, name: bytes, content: bytes) -> None:
    fd = _create(folder, name)
    try:
        write_all(fd, name, 0, memoryview(content))
    finally:
        os.close(fd)


def _create(folder: int, name: bytes) -> int:
    return beneath.open_file(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=folder)


def _move(folder: int, old: bytes, new: bytes) -> None:
    beneath.rename(old, new, dir_fd=folder)


def _wrong(folder: int, name: bytes, content: bytes) -> str | None:
    fd = beneath.open_file(name, READ, dir_fd=folder)
    try:
        return None if os.read(fd, 100) == content else "the old content is still there"
    finally:
        os.close(fd)


def _listed(folder: int) -> list[bytes]:
    """Return the names in *folder*, as they are now: what is open may still show those of the time of its opening."""
    fd = beneath.open_folder(b"", dir_fd=folder)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _exists(folder: int, name: bytes) -> bool:
    try:
        beneath.stat_of(name, dir_fd=folder)
    except OSError:
        return False
    return True


def _error_of(do: Callable[[], object]) -> str | None:
    try:
        do()
    except OSError as error:
        return _name(error)
    return None


def _name(error: OSError) -> str:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    return f"{os.strerror(error.errno or 0)} ({code})"
