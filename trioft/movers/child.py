"""
A child process of ours: movers, and the one that reports file events.

Not ``trio.run_process``: Trio starts processes from a worker thread, and the kernel takes the end of *that thread*, a
few idle seconds later, for the death of the parent, for which a child asks to be killed (``linux.die_with_parent``).
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import trio

from trioft.movers.ops.slate import make_memory_file
from trioft.movers.ops.wire import LENGTH

_WORDS = 2000  # bytes
_DYING = 1.0  # seconds


def child_command(module: str, *arguments: object) -> list[str]:
    """
    Return the command that runs ``main`` of one of trioft's modules in a child process.

    This interpreter without ``site``, which takes longer than all the rest; the agent's path is handed on instead,
    so that the child finds what the agent found, installed or not.
    """
    call = ", ".join(repr(argument) for argument in (os.getpid(), *arguments))
    start = f"import sys; sys.path.extend({sys.path!r}); from trioft.{module} import main; main({call})"
    return [sys.executable, "-I", "-S", "-c", start]


class Child:
    """A running child with a pipe to and one from it. It inherits the descriptors *inherited*, and no others."""

    def __init__(self, command: Sequence[str], inherited: Sequence[int] = ()) -> None:
        # From this thread, and blocking, for some milliseconds. A session of its own keeps the terminal's Ctrl-C from
        # it, and it inherits nothing but its pipes: not the ledger, not the lock, and not our standard error, which
        # whoever reads it would not see the end of for as long as a child that does not die has it open.
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as its:
            self._errors = ours.enter_context(os.fdopen(make_memory_file("trioft-stderr"), "r+b", 0))
            stdin, requests = _pipe(its, ours)
            answers, stdout = _pipe(ours, its)
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,
                pass_fds=inherited,
            )
            ours.pop_all()
        self.requests = trio.lowlevel.FdStream(requests)
        self.answers = trio.lowlevel.FdStream(answers)
        self._received = bytearray()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def is_held(self) -> bool:
        """Has it still not died, some time after it was killed?"""
        try:
            return os.waitpid(self.pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:
            return False

    def last_words(self) -> str:
        """Return the last line that it wrote to its standard error: what a dying interpreter has to say."""
        size = os.fstat(self._errors.fileno()).st_size
        lines = os.pread(self._errors.fileno(), _WORDS, max(0, size - _WORDS)).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def send(self, message: object) -> None:
        """Send one message. Raises ``trio.BrokenResourceError`` if the child has ended."""
        body = pickle.dumps(message, protocol=5)
        await self.requests.send_all(LENGTH.pack(len(body)) + body)

    async def receive(self) -> Any:
        """Return the next message. Raises ``EOFError`` if the child has ended."""
        (size,) = LENGTH.unpack(await self._read(LENGTH.size))
        return pickle.loads(await self._read(size))

    async def _read(self, count: int) -> bytes:
        while len(self._received) < count:
            piece = await self.answers.receive_some()
            if not piece:
                raise EOFError
            self._received += piece
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    async def end(self) -> bool:
        """
        Close the pipes, kill the process, and wait a moment. It has nothing that it would have to put in order.

        Returns False if it does not even die: then the kernel holds it, on a dead mount. Not cancelled from outside,
        but who is cancelled waits for a shorter moment.
        """
        to_die = _DYING if trio.current_effective_deadline() > -math.inf else _DYING / 4
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self.requests)
            if self._process.poll() is None:
                self._process.kill()
                with trio.move_on_after(to_die):
                    await self._wait()
            await trio.aclose_forcefully(self.answers)
        self._errors.close()
        if self._process.poll() is not None:
            return True
        self._process.returncode = -9  # it will be, and nobody is to wait for it
        return False

    async def _wait(self) -> None:
        try:
            fd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux
            while self._process.poll() is None:  # noqa: ASYNC110 - there is nothing to be woken by
                await trio.sleep(0.01)
            return
        try:
            while self._process.poll() is None:
                await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """Return the ends of a new pipe, each of which is closed with one of the stacks."""
    ends = os.pipe()
    for stack, fd in zip((reader, writer), ends, strict=True):
        stack.callback(os.close, fd)
    return ends
