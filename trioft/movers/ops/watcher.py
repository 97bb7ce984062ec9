"""
The child process behind ``events``: watches the folders of the source, and reports paths, until its parent ends.

Messages are as a mover's, each ``(kind, value)``: ``paths`` that may have changed, relative to the source; ``lost``,
anything may have changed; ``watching``, how many folders cannot be watched, and why: 0 says that all are; ``failed``,
why there are no (more) events.

With inotify itself: only who has set each watch knows which folders have none. What is mounted below the source is
watched too, and found by the kernel's table of mounts, which says when it changes; a mount that does not answer keeps
only its own thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import struct
import threading
import time
from collections.abc import Iterable

from trioft.movers.ops import linux
from trioft.movers.ops.mounts import mounts_below
from trioft.movers.ops.wire import MOST, send

_CREATE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x400, 0x800
_MOVED_FROM, _MOVED_TO, _DELETE, _IS_FOLDER = 0x40, 0x80, 0x200, 0x40000000
_UNMOUNT, _OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_MODIFY, _ATTRIBUTES, _CLOSE_WRITE = 0x2, 0x4, 0x8
_FOLDERS_ONLY, _NO_LINKS, _NOT_UNLINKED = 0x01000000, 0x02000000, 0x04000000
_MASK = (
    _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _MOVED_FROM | _MOVED_TO | _MODIFY | _ATTRIBUTES | _CLOSE_WRITE
) | (_FOLDERS_ONLY | _NO_LINKS | _NOT_UNLINKED)
_EVENT = struct.Struct("iIII")
_BUFFER = 1 << 18

# Seconds: changes are collected until nothing more comes for the first, and for the second at most.
_QUIET, _LONGEST = 0.01, 0.05
# What could not be watched is tried again after this many seconds, and after many times as long as that took.
_AGAIN, _SHARE = 30.0, 20

Mounts = dict[bytes, tuple[int, bytes, bytes]]

_libc = ctypes.CDLL(None, use_errno=True)


class _Tree:
    """The watches on all folders below the source. Several threads set them, one reads."""

    def __init__(self, source: bytes) -> None:
        self.fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._source = source
        self._paths: dict[int, bytes] = {}  # by watch
        self._watches: dict[bytes, int] = {}
        self.unwatched: dict[bytes, int] = {}  # folders that have no watch, and why

    def watch(self, folder: bytes, elsewhere: Iterable[bytes] = ()) -> None:
        """Watch *folder* and those below it, but not what is mounted *elsewhere*."""
        others, rest = set(elsewhere), [folder]
        while rest:
            path = rest.pop()
            number = self._add(path)
            if number in (errno.ENOSPC, errno.ENOMEM):
                self.unwatched[path] = number
            elif number:  # it has gone, or nobody can look into it: then the scans say so
                continue
            else:
                self.unwatched.pop(path, None)
            # After the watch: what comes into it from now on has an event, and what was there is found here.
            prefix = path + b"/" if path else b""
            with contextlib.suppress(OSError), os.scandir(self._full(path)) as entries:
                rest += [
                    below
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and (below := prefix + entry.name) not in others
                ]

    def _full(self, path: bytes) -> bytes:
        return os.path.join(self._source, path) if path else self._source

    def _add(self, path: bytes) -> int:
        watch = _libc.inotify_add_watch(self.fd, self._full(path), _MASK)
        if watch < 0:
            return ctypes.get_errno()
        self._paths[watch] = path
        self._watches[path] = watch
        return 0

    def forget(self, folder: bytes) -> None:
        """What was called *folder*, and all below it, is not watched any more."""
        prefix = folder + b"/"
        gone = [path for path in [*self._watches] if not folder or path == folder or path.startswith(prefix)]
        for path in gone:
            watch = self._watches.pop(path)
            if self._paths.get(watch) == path:
                del self._paths[watch]
                _libc.inotify_rm_watch(self.fd, watch)
        for path in [*self.unwatched]:
            if not folder or path == folder or path.startswith(prefix):
                del self.unwatched[path]

    def read(self) -> tuple[dict[bytes, None], list[bytes], bool]:
        """Return the paths that events tell of, those of new folders, and whether anything got lost."""
        paths: dict[bytes, None] = {}
        folders: list[bytes] = []
        lost = False
        try:
            data = os.read(self.fd, _BUFFER)
        except BlockingIOError:
            return paths, folders, lost
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if mask & _OVERFLOW:
                lost = True
                continue
            folder = self._paths.get(watch)
            if folder is None:
                continue
            if mask & (_IGNORED | _UNMOUNT):
                self._paths.pop(watch, None)
                if self._watches.get(folder) == watch:
                    del self._watches[folder]
                lost = lost or bool(mask & _UNMOUNT)
                continue
            path = (folder + b"/" + name if folder else name) if name else folder
            if mask & _IS_FOLDER and mask & (_MOVED_FROM | _DELETE):
                self.forget(path)
            if mask & _IS_FOLDER and mask & (_MOVED_TO | _CREATE):
                folders.append(path)
            if path:
                paths[path] = None
        return paths, folders, lost


def main(parent: int, source: bytes) -> None:
    """Report changes below *source* to standard output."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not linux.die_with_parent(parent):
        return
    try:
        with contextlib.suppress(BrokenPipeError):
            _Watcher(source).run()
    except (OSError, AttributeError) as error:  # AttributeError: this C library has no inotify
        text = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            text += ": raise fs.inotify.max_user_instances, or the limit of descriptors"
        with contextlib.suppress(OSError):
            send(1, ("failed", f"no file events: {text}"))


class _Watcher:
    def __init__(self, source: bytes) -> None:
        self._source = source
        self._tree = _Tree(source)
        self._told: tuple[int, int] | None = None
        self._answer = threading.Lock()  # messages of several threads stay whole
        self._busy: dict[bytes, threading.Thread] = {}  # who sets the watches of what is mounted, by its place
        self._took = 0.0
        self._again = 0.0

    def run(self) -> None:
        """Watch, and report. Ends, with ``BrokenPipeError``, when nobody reads any more."""
        # The table can be asked whether it has changed; it is always readable.
        with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as table:
            poll = select.poll()
            poll.register(self._tree.fd, select.POLLIN)
            poll.register(table.fileno(), select.POLLPRI)
            poll.register(1, 0)  # when nobody reads it any more, it has an error
            mounts = mounts_below(self._source)
            self._watch_all(mounts)
            while True:
                seconds = max(0.1, self._again - time.monotonic()) if self._tree.unwatched else None
                ready = dict(poll.poll(None if seconds is None else seconds * 1000))
                if 1 in ready:
                    return
                if table.fileno() in ready:
                    now = mounts_below(self._source)
                    if now != mounts:
                        self._follow_mounts(mounts, now)
                        mounts = now
                if self._tree.fd in ready:
                    self._read(mounts)
                if self._tree.unwatched and time.monotonic() >= self._again:
                    self._watch_all(mounts, again=True)

    def _send(self, kind: str, value: object) -> None:
        with self._answer:
            send(1, (kind, value))

    def _watch_all(self, mounts: Mounts, *, again: bool = False) -> None:
        """Set all watches that can be set: here those of the source's own filesystem, of others in their threads."""
        began = time.monotonic()
        inside = [place for place in mounts if place]
        before = len(self._tree.unwatched)
        self._tree.watch(b"", inside)
        self._took = time.monotonic() - began
        self._again = time.monotonic() + max(_AGAIN, _SHARE * self._took)
        self._tell_watching()
        if again and len(self._tree.unwatched) < before:
            self._send("lost", None)  # what had no watch may have changed
        for place in inside:
            self._watch_mount(place, inside)

    def _watch_mount(self, place: bytes, places: list[bytes]) -> None:
        if place in self._busy and self._busy[place].is_alive():
            return

        def work() -> None:
            self._tree.watch(place, [other for other in places if other != place])
            with contextlib.suppress(BrokenPipeError):
                self._tell_watching()
                self._send("paths", [place])  # what is there now may be new

        self._busy[place] = thread = threading.Thread(target=work, daemon=True)
        thread.start()

    def _follow_mounts(self, before: Mounts, now: Mounts) -> None:
        """Something was mounted, or unmounted: watch what is there now."""
        changed = [place for place in {*before, *now} if before.get(place) != now.get(place)]
        for place in changed:
            self._tree.forget(place)
        if b"" in changed:
            self._watch_all(now)
        else:
            inside = [place for place in now if place]
            for place in changed:
                if place in now:
                    self._watch_mount(place, inside)
                else:
                    self._tree.watch(place, [other for other in inside if other != place])
        self._tell_watching()
        self._send("lost", None)

    def _read(self, mounts: Mounts) -> None:
        """Report what has changed, as soon as it is quiet for a moment."""
        paths: dict[bytes, None] = {}
        lost, end = False, time.monotonic() + _LONGEST
        others = [place for place in mounts if place]
        while True:
            new, folders, overflow = self._tree.read()
            for folder in folders:
                self._tree.watch(folder, others)
            paths.update(new)
            lost = lost or overflow
            if time.monotonic() >= end or not select.select([self._tree.fd], [], [], _QUIET)[0]:
                break
            time.sleep(_QUIET)  # changes of the same file become one
        if lost:
            self._watch_all(mounts)  # folders may have come, too
        self._tell_watching()
        if lost or len(paths) > MOST:
            self._send("lost", None)
        elif paths:
            self._send("paths", list(paths))

    def _tell_watching(self) -> None:
        """Say how many folders cannot be watched, where that has changed between none and some."""
        unwatched = self._tree.unwatched
        state = (len(unwatched), next(iter(unwatched.values()), 0))
        if self._told is None or bool(self._told[0]) != bool(state[0]):
            self._told = state
            count, number = state
            if number == errno.ENOSPC:
                why = "there are no more watches: raise fs.inotify.max_user_watches"
            else:
                why = os.strerror(number) if number else ""
            self._send("watching", (count, why))
