"""
The pool of child processes that touch the source and the destination, so that the agent never does.

An operation on a dead mount cannot be interrupted and its process cannot be killed. In a child that holds nothing but
its pipe this costs a process table entry; in the agent it would cost the ledger, the locks and the way out.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

import trio

from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.movers.child import Child, child_command
from trioft.movers.ops.mounts import mounts_at

Listener = Callable[[Any], None]

_IDLE = 60  # seconds after which an idle mover is retired


# These touch nothing but the source; where another one gets stuck, it is more likely at the destination.
_AT_SOURCE = {"probe_source", "look", "remove_sources", "peek", "compare_span", "locate", "plant", "uproot"}


# Movers that are left behind before no more are started: a dead mount does not fill the process table.
MOST_STUCK = 4

Owner = Sequence[tuple[int, int]]  # device and inode of the source files that an operation is about


class MoverDied(Exception):
    """The process ended in the middle of an operation. The text is the last that it said."""


class MoverBug(Exception):
    """An operation raised what no operation should raise: a bug in trioft. The text is its traceback."""


class Held(Protocol):
    """A process that was killed and has not died yet."""

    @property
    def pid(self) -> int: ...

    @property
    def is_held(self) -> bool: ...


class Stuck:
    """
    The movers that were killed and do not die, since the kernel waits for a dead mount in their name.

    They end when the mount answers, or is taken away. Until then each may still carry out the one operation that it is
    in. ``paths`` are those of the ends: whoever got stuck on what was mounted there before, counts no more.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.paths: tuple[bytes, ...] = ()
        self._tell = tell
        self._held: list[tuple[Held, Owner, list[int]]] = []

    def add(self, child: Held, operation: str, owner: Owner) -> None:
        """A process is left behind, in *operation*."""
        self._held.append((child, owner, mounts_at(self.paths)))
        if self._tell is not None:
            self._tell(
                f"process {child.pid} cannot be killed, and does not come back from {operation}: it is left behind"
            )

    @property
    def pids(self) -> list[int]:
        self._held = [held for held in self._held if held[0].is_held]
        return [child.pid for child, *_ in self._held]

    @property
    def are_too_many(self) -> bool:
        """No more movers may be started."""
        if len(self.pids) < MOST_STUCK:
            return False
        mounts = mounts_at(self.paths)
        return sum(mounted == mounts for *_, mounted in self._held) >= MOST_STUCK

    def process_on(self, identity: tuple[int, int]) -> int | None:
        """Return the process that may still do something about a source file, if there is one."""
        pids = self.pids
        return next((child.pid for child, owner, _ in self._held if identity in owner and child.pid in pids), None)


class _Mover(Child):
    """One mover. Used by one task at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(command)
        self.idle_since = trio.current_time()

    async def run(self, request: object, tell: Listener | None, deadline: trio.CancelScope, patience: float) -> Any:
        """Run one operation; each progress that it tells moves *deadline* to *patience* seconds from then."""
        try:
            await self.send(request)
            while True:
                kind, value = await self.receive()
                if kind != "progress":
                    break
                deadline.deadline = trio.current_time() + patience
                if tell is not None:
                    tell(value)
        except (trio.BrokenResourceError, EOFError) as error:
            raise MoverDied(self.last_words()) from error
        if kind == "trouble":
            raise FileTrouble(value)
        if kind == "bug":
            raise MoverBug(value)
        return value


class Call(Protocol):
    """How tasks reach a mover. See ``Movers.call``."""

    async def __call__(
        self,
        operation: str,
        *arguments: object,
        tell: Listener | None = None,
        patience: float = 1,
        background: bool = False,
        owner: Owner = (),
    ) -> Any: ...


class Movers:
    """
    At most *limit* movers, started on demand and retired when idle.

    Use as an async context manager: on leaving, every mover is ended, killed, or left behind.
    """

    def __init__(
        self, limit: int, stall_timeout: float, command: Sequence[str] | None = None, stuck: Stuck | None = None
    ) -> None:
        self.stall_timeout = stall_timeout
        self.replaced = 0  # died or were killed in the middle of an operation
        self.stuck = stuck or Stuck()
        self._command = command or child_command("movers.ops.main")
        self._free = trio.Semaphore(limit)
        self._background = trio.Semaphore(max(1, limit - 1))
        self._idle: list[_Mover] = []
        self._busy = 0

    async def __aenter__(self) -> Movers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        idle, self._idle = self._idle, []
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for mover in idle:
                    nursery.start_soon(mover.end)

    def warm_up(self, count: int) -> None:
        """
        Start movers until there are *count*, which get ready beside whatever the agent does meanwhile.

        Where one cannot be started, the call that needs it says so.
        """
        with contextlib.suppress(OSError):
            while self.alive < count and not self.stuck.are_too_many:
                self._idle.append(_Mover(self._command))

    async def call(
        self,
        operation: str,
        *arguments: object,
        tell: Listener | None = None,
        patience: float = 1,
        background: bool = False,
        owner: Owner = (),
    ) -> Any:
        """
        Have a mover run *operation* and return what it returns.

        Operations in the *background* leave one mover to the others, where there are several.

        *tell* is called with what the operation reports on its way. An operation that makes no progress for
        ``stall_timeout`` × *patience* seconds is taken for stuck: its mover is killed, and a ``FileTrouble`` with
        ETIMEDOUT says so. A mover that dies is replaced and the operation, which is idempotent, done once
        more.

        A mover that cannot even be killed is left behind, and *owner*, the source files that this is about, noted in
        ``stuck``.

        Raises ``FileTrouble``. When cancelled, the mover is killed: what it was doing may have happened, or in part.
        """
        request = (operation, arguments)
        async with self._background if background else contextlib.nullcontext(), self._free:
            for attempt in itertools.count(1):
                try:
                    return await self._try(request, tell, self.stall_timeout * patience, operation, owner)
                except MoverDied as death:
                    self.replaced += 1
                    if attempt == 2:
                        text = "the process that did this died, twice" + (f": {death}" if str(death) else "")
                        raise FileTrouble(Trouble(_side_of(operation), operation, b"", None, None, text)) from None
        raise AssertionError("unreachable")

    async def _try(self, request: object, tell: Listener | None, patience: float, operation: str, owner: Owner) -> Any:
        await self._retire_idle()
        if self.stuck.are_too_many:
            text = f"processes {', '.join(map(str, self.stuck.pids))} have not come back from it; no more are started"
            raise FileTrouble(Trouble(_side_of(operation), operation, b"", None, errno.ETIMEDOUT, text))
        try:
            mover = self._idle.pop() if self._idle else _Mover(self._command)
        except OSError as error:  # no memory, or too many processes or descriptors: may be over in a moment
            text = f"cannot start a process: {error.strerror}"
            raise FileTrouble(Trouble(_side_of(operation), operation, b"", None, None, text)) from error
        broken = True
        self._busy += 1
        try:
            with trio.move_on_after(patience) as deadline:
                try:
                    value = await mover.run(request, tell, deadline, patience)
                except (FileTrouble, MoverBug):
                    broken = False
                    raise
                broken = False
                return value
        finally:
            self._busy -= 1
            if broken:
                if not await mover.end():
                    self.stuck.add(mover, operation, owner)
            else:
                mover.idle_since = trio.current_time()
                self._idle.append(mover)
        self.replaced += 1
        text = f"no progress for {patience:.3g} s"
        raise FileTrouble(Trouble(_side_of(operation), operation, b"", None, errno.ETIMEDOUT, text))

    async def _retire_idle(self) -> None:
        longest = trio.current_time() - _IDLE
        retired = [mover for mover in self._idle if mover.idle_since < longest or mover.has_ended]
        self._idle = [mover for mover in self._idle if mover not in retired]
        for mover in retired:
            await mover.end()

    @property
    def alive(self) -> int:
        """How many there are, busy and idle."""
        return self._busy + len(self._idle)


def _side_of(operation: str) -> Side:
    return Side.SOURCE if operation in _AT_SOURCE else Side.DESTINATION
