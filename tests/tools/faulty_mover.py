"""
A mover in which the Nth call that touches the source or the destination goes wrong.

N counts the calls of all movers of a run together, in a file that they share. What is done is also written down, so
that it can be judged: at each rename to a final name and at each removal of a source this mover checks, on its own and
from what really lies on the disk, that trioft keeps its promises. What it finds is in the file ``violations``.

Kinds of faults:

error   the call does not happen and raises
late    the call happens and raises: its answer was lost
lost    a call that makes durable (or closes) raises, and what was written since the last good one is gone: the size
        stays as it is, and the next such call says that all is well. So do disks, and servers that run full
short   a read or write does half of what it was asked to, and says so
kill    the mover dies
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import os
import pickle
import signal
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from trioft.core.model import MIB
from trioft.core.naming import GOING, is_going, is_own, numbered
from trioft.movers.ops import files, linux
from trioft.movers.ops import main as mover

# The real ones: what this module does itself is not counted.
_open, _close, _read, _write = os.open, os.close, os.read, os.write
_pread, _pwrite, _ftruncate, _fstat = os.pread, os.pwrite, os.ftruncate, os.fstat
_stat, _kill, _scandir = os.stat, os.kill, os.scandir

# By what they work on: a path below a descriptor, or a descriptor.
PATHS = ("open", "unlink", "mkdir", "stat", "utime", "chmod", "rename")
DESCRIPTORS = (
    *("fstat", "fstatvfs", "preadv", "pwrite", "write", "ftruncate", "fchmod", "fsync", "fdatasync", "close"),
    *("posix_fadvise", "listxattr", "getxattr", "setxattr", "scandir", "lseek"),
)
DURABLE = ("fsync", "fdatasync", "syncfs", "write_back")
TRANSFERRING = ("preadv", "pwrite")


class Plan(NamedTuple):
    """What goes wrong. *at* 0: nothing."""

    kind: str
    number: int  # the errno that is raised
    at: int
    folder: bytes  # of the counter, the trace and the violations
    source: bytes
    dest: bytes
    expected: bytes  # a copy of the source, to be compared with
    old: bytes  # a copy of what was at the destination before
    ledgers: bytes  # the folder of the ledger


class Did(NamedTuple):
    """A call that touched the source or the destination, successfully."""

    call: str
    path: bytes
    start: int = 0
    end: int = 0
    other: bytes = b""


class Recorder:
    """Counts calls, lets one of them go wrong, and writes down and judges what is done."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.paths: dict[int, bytes] = {}  # of open descriptors
        self.written: set[int] = set()  # descriptors that were written through
        self.counter = _open(os.path.join(plan.folder, b"count"), os.O_RDWR | os.O_CREAT, 0o600)
        self.trace = _open(os.path.join(plan.folder, b"trace"), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    # --- counting

    def touches(self, path: bytes | None) -> bool:
        """Is *path* the source, the destination, or something below them?"""
        ends = (self.plan.source, self.plan.dest)
        return path is not None and (path in ends or path.startswith(tuple(end + b"/" for end in ends)))

    def is_due(self, call: str, fd: int | None) -> bool:
        """Count this call, if it is one of those that can go wrong in this run, and say whether it does."""
        kind = self.plan.kind
        if kind == "short" and call not in TRANSFERRING:
            return False
        if kind == "lost" and call not in DURABLE and not (call == "close" and fd in self.written):
            return False
        with self.locked():
            count = int(_pread(self.counter, 20, 0) or b"0") + 1
            _pwrite(self.counter, b"%020d" % count, 0)
        return count == self.plan.at

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While inside, no other mover counts, or writes down what it did."""
        fcntl.flock(self.counter, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.counter, fcntl.LOCK_UN)

    def run(
        self, call: str, path: bytes, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Do a call, or what goes wrong in its place."""
        fd = args[0] if args and isinstance(args[0], int) else None
        due = self.is_due(call, fd)
        kind = self.plan.kind if due else ""
        if due:
            with open(os.path.join(self.plan.folder, b"fired"), "ab") as file:
                file.write(b"%s %s\n" % (call.encode(), path))
        if kind == "kill":
            _kill(os.getpid(), signal.SIGKILL)
        if kind == "short":
            view = args[1][0] if call == "preadv" else args[1]
            half = view[: max(1, len(view) // 2)]
            args = (args[0], [half] if call == "preadv" else half, *args[2:])
        if kind == "lost":
            self.lose(call, path)
        if kind in ("error", "lost") and call != "close":
            self.fail()
        value = real(*args, **kwargs)
        if kind in ("error", "late", "lost"):
            if call == "open":
                _close(value)
            elif call == "scandir":
                value.close()
            self.fail()
        return value

    def fail(self) -> None:
        raise OSError(self.plan.number, os.strerror(self.plan.number))

    # --- what was done

    def did(self, *facts: Any) -> None:
        with self.locked():
            _write(self.trace, pickle.dumps(Did(*facts)))

    def all_done(self) -> Iterator[Did]:
        """Yield what all movers of this run have done so far, in order."""
        with self.locked():
            trace = io.BytesIO(_pread(self.trace, 1 << 30, 0))
        with contextlib.suppress(EOFError):
            while True:
                yield pickle.load(trace)

    def not_durable(self) -> dict[bytes, list[tuple[int, int]]]:
        """Return, by the name that each file has now, the ranges that were written since it was last made durable."""
        ranges: dict[bytes, list[tuple[int, int]]] = {}
        for done in self.all_done():
            if done.call == "syncfs":
                ranges.clear()
            elif done.call in ("fsync", "fdatasync", "create"):
                ranges.pop(done.path, None)
            elif done.call == "rename":
                ranges[done.other] = ranges.pop(done.path, [])
            elif done.call == "pwrite":
                ranges.setdefault(done.path, []).append((done.start, done.end))
        return ranges

    def lose(self, call: str, path: bytes) -> None:
        """Take away what was written and is not durable."""
        for lost, ranges in self.not_durable().items():
            if call != "syncfs" and lost != path:
                continue
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                fd = _open(lost, os.O_RDWR)
                size = _fstat(fd).st_size
                for start, end in ranges:
                    _pwrite(fd, bytes(max(0, min(end, size) - start)), start)
                _close(fd)

    # --- judging

    def violation(self, text: str) -> None:
        with open(os.path.join(self.plan.folder, b"violations"), "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def is_final(self, path: bytes) -> bool:
        return path.startswith(self.plan.dest + b"/") and not is_own(path)

    def judge_rename(self, old: bytes, new: bytes) -> None:
        """A final name has been given: to the right content, which is durable?"""
        if not self.is_final(new):
            return
        relative = new[len(self.plan.dest) + 1 :]
        if b".trioft-replaced-" in old:
            if content(new) != content(os.path.join(self.plan.old, relative)):
                self.violation(f"{new!r} was not given back as it was")
            return
        # NAME.<16 hex>.trioft-partial: the final name may have got a number.
        source = old[len(self.plan.dest) + 1 : -len(b".0123456789abcdef.trioft-partial")]
        if content(new) != content(os.path.join(self.plan.expected, source)):
            self.violation(f"{new!r} got its final name with wrong content")
        if ranges := self.not_durable().get(new):
            self.violation(f"{new!r} got its final name while {ranges} were not durable")

    def judge_removal(self, path: bytes) -> None:
        """A source is going to be removed: is it at the destination, durable, renamed, and recorded?"""
        relative = b"/".join(part for part in path[len(self.plan.source) + 1 :].split(b"/") if not is_going(part))
        if is_own(relative):  # trioft has made it for itself
            return
        wanted = content(os.path.join(self.plan.expected, relative))
        for _, name in zip(range(3), numbered(relative), strict=False):
            target = os.path.join(self.plan.dest, name)
            if content(target) == wanted:
                break
        else:
            self.violation(f"{path!r} was removed, and is not at the destination")
            return
        folder_is_durable = False
        for done in self.all_done():
            if done.call == "rename" and done.other == target:
                folder_is_durable = False
            elif (done.call == "fsync" and done.path == os.path.dirname(target)) or done.call == "syncfs":
                folder_is_durable = True
        if not folder_is_durable:
            self.violation(f"{path!r} was removed, and the name at the destination is not durable")
        if self.outcome(relative) not in ("delivered", "already"):
            self.violation(f"{path!r} was removed, and the ledger does not know")

    def outcome(self, path: bytes) -> str | None:
        import sqlite3  # rarely needed, and slow to load

        (ledger,) = (entry.path for entry in _scandir(self.plan.ledgers) if entry.name.endswith(b".sqlite"))
        with contextlib.closing(sqlite3.connect(os.fsdecode(ledger))) as database:
            query = "SELECT outcome FROM file WHERE folder = ? AND name = ?"
            row: tuple[str] | None = database.execute(query, os.path.split(path)).fetchone()
        return None if row is None else row[0]

    # --- the calls

    def install(self) -> None:
        """Put this recorder between trioft and the system."""
        for name in PATHS:
            setattr(os, name, functools.partial(self.path_call, name, getattr(os, name)))
        for name in DESCRIPTORS:
            setattr(os, name, functools.partial(self.descriptor_call, name, getattr(os, name)))
        for name in ("syncfs", "write_back"):
            setattr(linux, name, functools.partial(self.descriptor_call, name, getattr(linux, name)))
        real_rename, real_open = linux.rename_noreplace, linux.openat2

        def rename(old: bytes, new: bytes, dir_fd: int, new_dir_fd: int | None = None, **how: Any) -> None:
            there = dir_fd if new_dir_fd is None else new_dir_fd
            absolute = self.absolute(old, dir_fd), self.absolute(new, there) or _path_below(there, new)
            self.rename(real_rename, (old, new, dir_fd, there), how, *absolute)

        def openat2(path: bytes, flags: int, dir_fd: int, resolve: int) -> int:
            def real(path: bytes, flags: int, *, dir_fd: int) -> int:
                return real_open(path, flags, dir_fd, resolve)

            fd: int = self.path_call("open", real, path, flags, dir_fd=dir_fd)
            return fd

        linux.rename_noreplace, linux.openat2 = rename, openat2

    def absolute(self, path: Any, dir_fd: int | None) -> bytes | None:
        """Return the whole path, or None where it is nothing of ours."""
        if isinstance(path, int):
            return self.paths.get(path)
        name: bytes = os.fsencode(path)
        base = b"/" if dir_fd is None else self.paths.get(dir_fd)
        return None if base is None else os.path.normpath(os.path.join(base, name))

    def path_call(self, call: str, real: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
        if call == "rename":
            olds, news = kwargs.get("src_dir_fd"), kwargs.get("dst_dir_fd")
            return self.rename(real, (path, *args), kwargs, self.absolute(path, olds), self.absolute(args[0], news))
        whole = self.absolute(path, kwargs.get("dir_fd"))
        if whole is None or not self.touches(whole):
            return real(path, *args, **kwargs)
        if call == "unlink" and whole.startswith(self.plan.source + b"/"):
            self.judge_removal(whole)
        if call == "unlink" and self.is_final(whole):
            self.violation(f"{whole!r} was removed from the destination")
        value = self.run(call, whole, real, (path, *args), kwargs)
        if call == "open":
            flags = args[0]
            if self.is_final(whole) and flags & (os.O_CREAT | os.O_TRUNC):
                self.violation(f"{whole!r} was opened to be written")
            self.paths[value] = whole
            if flags & os.O_CREAT:
                self.did("create", whole)
        return value

    def rename(
        self,
        real: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        old: bytes | None,
        new: bytes | None,
    ) -> Any:
        assert old is not None
        assert new is not None

        def judged(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            self.did("rename", old, 0, 0, new)
            if not old.startswith(self.plan.source + b"/"):
                self.judge_rename(old, new)

        # Moved aside it is not removed yet, and may be put back.
        is_at_source = new.startswith(self.plan.source + b"/") and (b"/" + GOING in old or b"/" + GOING in new)
        if old.startswith(self.plan.source + b"/") and not is_at_source:
            self.judge_removal(old)
        return self.run("rename", old, judged, args, kwargs)

    def descriptor_call(self, call: str, real: Callable[..., Any], fd: Any, *args: Any, **kwargs: Any) -> Any:
        path = self.paths.get(fd) if isinstance(fd, int) else None
        if path is None:
            return real(fd, *args, **kwargs)
        is_change = call in ("pwrite", "ftruncate", "setxattr", "fchmod")
        if is_change and self.is_final(path) and not stat.S_ISDIR(_fstat(fd).st_mode):
            self.violation(f"{call} of {path!r}, which has its final name")
        try:
            value = self.run(call, path, real, (fd, *args), kwargs)
        finally:
            if call == "close":
                del self.paths[fd]
                self.written.discard(fd)
        if call == "pwrite":
            self.written.add(fd)
            self.did(call, path, args[1], args[1] + value)
        elif call in DURABLE:
            self.did(call, path)
        return value


def _path_below(folder: int, name: bytes) -> bytes:
    """Return the whole path of a name in a folder that is none of ours, such as the archive."""
    return os.path.join(os.fsencode(os.readlink(f"/proc/self/fd/{folder}")), name)


def content(path: bytes) -> bytes | None:
    """Return what is really in a file; None where there is none."""
    try:
        fd = _open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        size = _fstat(fd).st_size
        return _pread(fd, size, 0) if stat.S_ISREG(_fstat(fd).st_mode) else None
    finally:
        _close(fd)


def main(parent: int, plan: tuple[Any, ...]) -> None:
    """Serve as a mover, with *plan*."""
    Recorder(Plan(*plan)).install()
    files._PIECE = 4 * MIB  # each call is one more run of a sweep: fewer of those that are all the same
    mover.main(parent)
