"""
The slate: a few bytes of memory, shared with the agent, on which a mover has written which end it is touching just now.

An operation that hangs cannot say where. These bytes say it for it, and cost nothing to write, as often as a loop turns
from one end to the other. The first is for an operation's own thread, the others for threads that work for it.
"""

from __future__ import annotations

import mmap
import os
from contextvars import ContextVar

from trioft.core.errors import Side

THREADS = 15
_LENGTH = 1 + THREADS  # two bytes: how long the path is that follows
_PATH = _LENGTH + 2
_LONGEST = 4096
_SIZE = _PATH + _LONGEST
_SIDES = (None, Side.SOURCE, Side.DESTINATION)
_NUMBERS = {Side.SOURCE: 1, Side.DESTINATION: 2}


class Slate:
    """The agent's side: what a mover is touching. ``fd`` is for the mover to inherit."""

    def __init__(self) -> None:
        self.fd = make_memory_file("trioft-slate")
        try:
            os.truncate(self.fd, _SIZE)
            self._memory = mmap.mmap(self.fd, _SIZE)
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def side(self) -> Side | None:
        """The end that the mover is touching, or touched last; None: neither, since its operation began."""
        own, *threads = self._memory[:_LENGTH]
        at_work = sorted(number for number in threads if number)
        return _SIDES[at_work[len(at_work) // 2] if at_work else own]  # where most of the threads are

    @property
    def path(self) -> bytes:
        """What of the source the operation looks at; empty where it has not said."""
        length = int.from_bytes(self._memory[_LENGTH:_PATH], "little")
        return self._memory[_PATH : _PATH + length]

    def close(self) -> None:
        self._memory.close()


# What this process writes on. Where no agent has made one, nobody reads it.
_memory: mmap.mmap | bytearray = bytearray(_SIZE)
_place: ContextVar[int] = ContextVar("place", default=0)


def attach(fd: int) -> None:
    """Write on the slate that the agent has made, from now on."""
    global _memory
    _memory = mmap.mmap(fd, _SIZE)
    os.close(fd)


def touch(side: Side) -> None:
    """Say that *side* is touched from now on, until the other one is."""
    _memory[_place.get()] = _NUMBERS[side]


def look_at(path: bytes) -> None:
    """Say that this operation looks at *path* of the source from now on: where it hangs, that is what hangs."""
    if not _place.get():
        path = path[:_LONGEST]
        _memory[_LENGTH : _PATH + len(path)] = len(path).to_bytes(2, "little") + path


def clear() -> None:
    """Say that this thread touches neither end."""
    _memory[_place.get()] = 0
    look_at(b"")


def begin_thread(number: int) -> None:
    """Have this thread write in a place of its own: *number* is from 0 to THREADS - 1."""
    _place.set(1 + number)


def make_memory_file(name: str) -> int:
    """Return the descriptor of a new file in memory. Where there is no such thing, it has no name and lies on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
