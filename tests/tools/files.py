"""Two folders, and what the operations of the movers need to work on them: for tests that call them directly."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support import make_tree
from trioft.core.model import Ends, Fingerprint, Item, Manner, Publication, Root
from trioft.core.naming import partial_for
from trioft.movers.ops import linux
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import fingerprint_of

T = TypeVar("T")

MANNER = Manner(verify="readback", if_exists="overwrite", prove_existing=False, resolution_ns=1, xattrs=True)


class Ground:
    """A source and a destination folder. Paths are relative to them, and bytes."""

    def __init__(self, root: Path) -> None:
        self.source, self.dest = root / "source", root / "dest"
        self.source.mkdir()
        self.dest.mkdir()
        self.told: list[Any] = []  # what operations have said on their way

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in open_files():
            number, name = opened.split(" ", 1)
            if name.startswith((f"{self.source}", f"{self.dest}")):
                os.close(int(number))

    def open(self, path: Path | bytes, flags: int = os.O_RDONLY) -> Top:
        """Return a descriptor; like all in these folders it is closed at the end of the test."""
        return Top(os.open(path, flags | os.O_CLOEXEC, 0o600), is_source=path == self.source)

    @property
    def ends(self) -> Ends:
        return Ends(root_of(self.source), root_of(self.dest))

    def at_source(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.source), path)

    def at_dest(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.dest), path)

    def add(self, path: bytes, content: bytes | int = 100, mode: int = 0o644) -> Item:
        """Make a source file."""
        make_tree(self.source, {path: content})
        os.chmod(self.at_source(path), mode)
        return self.item(path)

    def item(self, path: bytes, *, settled: bool = True) -> Item:
        """Return the source file as it is now, as an item of a job."""
        status = os.lstat(self.at_source(path))
        return Item(status.st_ino, path, stat.S_IMODE(status.st_mode), fingerprint_of(status), settled)

    def old(self, path: bytes, content: bytes | int = b"old") -> None:
        """Make a file at the destination that is there already, from long ago."""
        make_tree(self.dest, {path: content})
        os.utime(self.at_dest(path), (1_000_000_000, 1_000_000_000))

    def same_times(self, item: Item) -> None:
        """Give what the destination has under an item's final name the times of the source."""
        os.utime(self.at_dest(item.path), ns=(item.fingerprint.mtime_ns, item.fingerprint.mtime_ns))

    def partial(self, item: Item) -> bytes:
        """Return the full path of an item's partial."""
        return self.at_dest(partial_for(item))


def root_of(folder: Path) -> Root:
    return Root(os.fsencode(folder), folder.stat().st_dev)


def publication(item: Item, if_exists: str = MANNER.if_exists) -> Publication:
    return Publication(item.path, partial_for(item), item.mode, item.fingerprint, item.target, if_exists)


def fingerprint(path: Path | bytes) -> Fingerprint:
    return fingerprint_of(os.lstat(path))


def read(path: Path | bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def open_files() -> set[str]:
    """Return what this process has open: number and name of each descriptor of a file or folder."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            name = os.readlink(f"/proc/self/fd/{number}")
            if name.startswith("/") and not name.startswith(("/proc/", "/dev/")):
                found.add(f"{number} {name}")
    return found


def name_of(fd: int) -> str:
    """Return the name of the file that is open as *fd*."""
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


def need_leases(folder: Path) -> None:
    """Skip where the kernel cannot prove that nobody writes a file."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        magic = linux.filesystem_magic(fd)
    finally:
        os.close(fd)
    if magic not in {linux.EXT4, linux.XFS, linux.BTRFS, linux.TMPFS}:
        pytest.skip(f"leases prove nothing on the filesystem of {folder} (magic {magic:#x})")


def need_syncfs(folder: Path) -> None:
    """Skip where one syncfs is not relied on for a whole bundle."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        if not linux.can_syncfs(fd):
            pytest.skip(f"syncfs is not relied on for the filesystem of {folder}")
    finally:
        os.close(fd)


def need_xattrs(folder: Path) -> None:
    """Skip where files have no user attributes."""
    try:
        os.setxattr(folder, "user.trioft-test", b"1")
        os.removexattr(folder, "user.trioft-test")
    except OSError as error:
        pytest.skip(f"no user attributes on the filesystem of {folder}: {error}")


@contextlib.contextmanager
def other_filesystem(than: Path) -> Iterator[Path]:
    """Yield a new folder on another filesystem; skip where there is none."""
    import tempfile

    for candidate in ("/dev/shm", f"/run/user/{os.getuid()}", "/var/tmp", "/tmp"):
        if os.access(candidate, os.W_OK) and os.stat(candidate).st_dev != than.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=candidate) as folder:
                yield Path(folder)
            return
    pytest.skip("there is no second filesystem to write to")


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Inside, permission bits count, even for root: this thread gives its capabilities up for a while."""
    saved = _capabilities()
    _set_capabilities([0, saved[1], saved[2], 0, saved[4], saved[5]])
    try:
        yield
    finally:
        _set_capabilities(saved)


def without_privileges(function: Callable[[], T]) -> T:
    """Call *function* in a thread that has given its capabilities up for good, as ``access`` asks what it could get."""
    answer: list[T] = []

    def run() -> None:
        _set_capabilities([0] * 6)
        answer.append(function())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answer[0]


# Both calls are about the calling thread, version 3 of their structures: effective, permitted, inheritable; twice.
_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0)


def _capabilities() -> list[int]:
    data = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capget(_CAPABILITIES, data):
        raise OSError("capget failed")
    return list(data)


def _set_capabilities(values: list[int]) -> None:
    if ctypes.CDLL(None).capset(_CAPABILITIES, (ctypes.c_uint32 * 6)(*values)):
        raise OSError("capset failed")


_HOLDERS = {
    "writer": "file = open(path, 'ab')",
    "reader": "file = open(path, 'rb')",
    "reader and writer": "file = open(path, 'r+b')",
    "memory map": "file = open(path, 'r+b'); import mmap; kept = mmap.mmap(file.fileno(), 0); file.close()",
}


@contextlib.contextmanager
def held(path: Path | bytes, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """While inside, another process has *path* open: as a writer, a reader, or by a memory map alone."""
    script = f"import sys, os; path = os.fsencode(sys.argv[1]); {_HOLDERS[how]}; print('ready', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(b"\n")


def failing(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, when: Callable[..., bool] = lambda *_: True
) -> None:
    """Let a call of ``os`` fail with *number*, where *when* says so of its arguments; ``open`` of folders, too."""

    def failing_at_times(real: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            if when(*args):
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return maybe

    monkeypatch.setattr(os, call, failing_at_times(getattr(os, call)))
    if call == "open":
        monkeypatch.setattr(linux, "openat2", failing_at_times(linux.openat2))
