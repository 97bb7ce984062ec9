"""
The pool of child processes that touch the source and the destination, so that the agent never does.

An operation on a dead mount cannot be interrupted and its process cannot be killed. In a child that holds nothing but
its pipe this costs a process table entry; in the agent it would cost the ledger, the locks and the way out.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, TypeVar, TypeVarTuple, cast

import trio

from trioft.core.bugs import MoverBug
from trioft.core.errors import FileTrouble, Side, Trouble, UnusableError
from trioft.core.operations import Operation
from trioft.movers.child import Child, child_command
from trioft.movers.ops.mounts import mounts_at
from trioft.movers.ops.slate import Slate

Told = TypeVar("Told")
Answer = TypeVar("Answer")
Begun = TypeVar("Begun")
Arguments = TypeVarTuple("Arguments")

_IDLE = 60  # seconds after which an idle mover is retired

# Movers that are left behind at one end before no more are sent there: a dead mount does not fill the process table.
MOST_STUCK = 4

# Seconds between two attempts to start a process.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_HINTS = {
    errno.EMFILE: "this process has too few descriptors: raise the limit (ulimit -n, LimitNOFILE)",
    errno.ENFILE: "the machine has no more descriptors: see fs.file-max",
    errno.EAGAIN: "there are too many processes: raise the limit (ulimit -u, TasksMax, pids.max)",
    errno.ENOMEM: "there is not enough memory",
}

Owner = Sequence[tuple[int, int]]  # device and inode of the source files that an operation is about


class MoverDied(Exception):
    """The process ended in the middle of an operation. The text is the last that it said."""


class Held(Protocol):
    """A process that was killed and has not died yet."""

    @property
    def pid(self) -> int: ...

    @property
    def is_held(self) -> bool: ...


class _LeftBehind(NamedTuple):
    process: Held
    side: Side
    owner: Owner
    mounts: list[int]  # what was mounted at that end then
    place: bytes | None  # what it hangs on is mounted there, below the end; None: it is the end itself


class Stuck:
    """
    The movers that were killed and do not die, since the kernel waits for a dead mount in their name.

    They end when the mount answers, or is taken away. Until then each may still carry out the one operation that it is
    in. ``paths`` are those of the ends: whoever got stuck on what was mounted there before, counts no more.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.paths: Mapping[Side, bytes] = {}
        self.place_of: Callable[[bytes], bytes | None] = lambda path: None  # which mount below the source that is on
        self._tell = tell
        self._held: list[_LeftBehind] = []

    def add(self, process: Held, operation: str, side: Side, owner: Owner, path: bytes = b"") -> None:
        """A process is left behind, in *operation*, which was touching *side*, there *path* if that is not empty."""
        place = self.place_of(path) if path and side == Side.SOURCE else None
        self._held.append(_LeftBehind(process, side, owner, self._mounts_at(side), place))
        if self._tell is not None:
            self._tell(
                f"process {process.pid} cannot be killed, and does not come back from {operation}: it is left behind"
            )

    def _mounts_at(self, side: Side) -> list[int]:
        return mounts_at([self.paths[side]] if side in self.paths else [])

    @property
    def pids(self) -> list[int]:
        return [held.process.pid for held in self._alive()]

    def pids_at(self, side: Side) -> list[int]:
        return [held.process.pid for held in self._alive() if held.side == side]

    def is_held_in(self, place: bytes) -> bool:
        """Is one of them held by what is mounted at *place* below the source?"""
        return any(held.place == place for held in self._alive())

    def _alive(self) -> list[_LeftBehind]:
        self._held = [held for held in self._held if held.process.is_held]
        return self._held

    def too_many_at(self, sides: Sequence[Side]) -> Side | None:
        """Return the one of *sides* at which no more movers may be put to work, if there is one."""
        for side in sides:
            held = [one for one in self._alive() if one.side == side and one.place is None]
            if len(held) >= MOST_STUCK:
                mounts = self._mounts_at(side)
                if sum(one.mounts == mounts for one in held) >= MOST_STUCK:
                    return side
        return None

    def process_on(self, identity: tuple[int, int]) -> int | None:
        """Return the process that may still do something about a source file, if there is one."""
        return next((held.process.pid for held in self._alive() if identity in held.owner), None)


class Starts:
    """
    Starts processes for the agent. Where that cannot be, it is the agent's trouble: it is waited for, and told once.

    *tell* is called with what is wrong, and with None when it is well. After *patience* seconds it is given up.
    """

    def __init__(self, tell: Callable[[str | None], None] | None = None, patience: float = 10.0) -> None:
        self._tell = tell or (lambda text: None)
        self._patience = patience
        self.idle: list[Callable[[], Awaitable[None]]] = []  # end processes that have nothing to do just now
        self._waiting = 0
        self._since: float | None = None
        self._pause = 0.0

    async def start(self, begin: Callable[[], Begun]) -> Begun:
        """Return what *begin* returns. Raises ``UnusableError`` if no process could be started for too long."""
        while True:
            try:
                begun = begin()
            except OSError as error:
                await self.pause(error)
                continue
            self.succeeded()
            return begun

    def succeeded(self) -> None:
        """A process could be started."""
        self._since = None
        if self._pause and not self._waiting:
            self._pause = 0.0
            self._tell(None)

    async def pause(self, error: OSError) -> None:
        """Return when to try again what failed with *error*. Raises ``UnusableError`` where it fails for too long."""
        text, now = f"cannot start a process: {error.strerror}", trio.current_time()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._patience:
            raise UnusableError(text, hint=_HINTS.get(error.errno or 0)) from error
        self._tell(f"{text}; it is tried again and again, and no file is blamed for it")
        for retire in self.idle:
            await retire()
        self._pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, self._pause * 1.5))
        self._waiting += 1
        try:
            await trio.sleep(self._pause)
        finally:
            self._waiting -= 1


class _Mover(Child):
    """One mover. Used by one task at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._slate = Slate()
        try:
            super().__init__([*command, str(self._slate.fd)], [self._slate.fd])
        finally:
            os.close(self._slate.fd)  # the memory stays
        self.idle_since = trio.current_time()

    @property
    def side(self) -> Side | None:
        """The end that it is touching, or touched last; None: neither, in this operation."""
        return self._slate.side

    @property
    def path(self) -> bytes:
        """What of the source it is looking at."""
        return self._slate.path

    async def run(
        self,
        request: tuple[str, tuple[object, ...]],
        tell: Callable[[object], None] | None,
        deadline: trio.CancelScope,
        patience: float,
    ) -> object:
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
        if kind == "short":
            raise OSError(errno.EAGAIN, value)
        if kind == "bug":
            raise MoverBug(request[0], value)
        return value


class Call(Protocol):
    """How tasks reach a mover. See ``Movers.call``."""

    async def __call__(
        self,
        operation: Operation[Told, Answer, *Arguments],
        *arguments: *Arguments,
        tell: Callable[[Told], None] | None = None,
        owner: Owner = (),
    ) -> Answer: ...


class Movers:
    """
    At most *limit* movers, started on demand and retired when idle.

    Use as an async context manager: on leaving, every mover is ended, killed, or left behind.
    """

    def __init__(
        self,
        limit: int,
        stall_timeout: float,
        command: Sequence[str] | None = None,
        stuck: Stuck | None = None,
        starts: Starts | None = None,
    ) -> None:
        self.stall_timeout = stall_timeout
        self.replaced = 0  # died or were killed in the middle of an operation
        self.stuck = stuck or Stuck()
        self._starts = starts or Starts()
        self._command = command or child_command("movers.ops.main")
        self._free = trio.Semaphore(limit)
        self._background = trio.Semaphore(max(1, limit - 1))
        self._idle: list[_Mover] = []
        self._busy = 0
        self._starts.idle.append(self._retire_all)

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

        Where one cannot be started, the call that needs it waits for it.
        """
        with contextlib.suppress(OSError):
            while self.alive < count and self.stuck.too_many_at(tuple(Side)) is None:
                self._idle.append(_Mover(self._command))

    async def call(
        self,
        operation: Operation[Told, Answer, *Arguments],
        *arguments: *Arguments,
        tell: Callable[[Told], None] | None = None,
        owner: Owner = (),
    ) -> Answer:
        """
        Have a mover do *operation* and return its answer.

        *tell* is called with what the operation reports on its way. An operation that makes no progress for
        ``stall_timeout`` × its patience is taken for stuck: its mover is killed, and a ``FileTrouble`` with ETIMEDOUT
        says so, and at which end. A mover that dies is replaced and the operation, which is idempotent, done once more.

        A mover that cannot even be killed is left behind, and *owner*, the source files that this is about, noted in
        ``stuck``.

        Raises ``FileTrouble``; ``UnusableError`` if no process can be started. When cancelled, the mover is killed:
        what it was doing may have happened, or in part.
        """
        # What crosses the pipe has no types; the operation says what they are at both of its ends.
        listener = cast("Callable[[object], None] | None", tell)
        request = (operation.name, cast("tuple[object, ...]", arguments))
        async with self._background if operation.background else contextlib.nullcontext(), self._free:
            deaths = 0
            while True:
                try:
                    answer = await self._try(
                        request, listener, self.stall_timeout * operation.patience, operation.sides, owner
                    )
                    return cast("Answer", answer)
                except OSError as error:  # the mover has got no memory, or no threads: as if it had not been started
                    await self._starts.pause(error)
                except MoverDied as death:
                    self.replaced += 1
                    deaths += 1
                    if deaths == 2:
                        text = "the process that did this died, twice" + (f": {death}" if str(death) else "")
                        raise _trouble(operation.name, operation.sides[-1], None, text) from None

    async def _try(
        self,
        request: tuple[str, tuple[object, ...]],
        tell: Callable[[object], None] | None,
        patience: float,
        sides: Sequence[Side],
        owner: Owner,
    ) -> object:
        await self._retire_idle()
        name = request[0]
        if (side := self.stuck.too_many_at(sides)) is not None:
            pids = ", ".join(map(str, self.stuck.pids_at(side)))
            text = f"processes {pids} have not come back from it; no more are started"
            raise _trouble(name, side, errno.ETIMEDOUT, text)
        mover = await self._starts.start(lambda: self._idle.pop() if self._idle else _Mover(self._command))
        broken, side, path = True, sides[-1], b""
        self._busy += 1
        try:
            with trio.move_on_after(patience) as deadline:
                try:
                    value = await mover.run(request, tell, deadline, patience)
                except (FileTrouble, MoverBug, OSError):
                    broken = False
                    raise
                broken = False
                return value
        finally:
            self._busy -= 1
            if broken:
                side = mover.side or side
                path = mover.path if side == Side.SOURCE else b""
                if not await mover.end():
                    self.stuck.add(mover, name, side, owner, path)
            else:
                mover.idle_since = trio.current_time()
                self._idle.append(mover)
        self.replaced += 1
        raise _trouble(name, side, errno.ETIMEDOUT, f"no progress for {patience:.3g} s", path)

    async def _retire_all(self) -> None:
        await self._retire_idle(0)

    async def _retire_idle(self, seconds: float | None = None) -> None:
        longest = trio.current_time() - (_IDLE if seconds is None else seconds)
        retired = [mover for mover in self._idle if mover.idle_since <= longest or mover.has_ended]
        self._idle = [mover for mover in self._idle if mover not in retired]
        for mover in retired:
            await mover.end()

    @property
    def alive(self) -> int:
        """How many there are, busy and idle."""
        return self._busy + len(self._idle)


def _trouble(operation: str, side: Side, number: int | None, text: str, path: bytes = b"") -> FileTrouble:
    return FileTrouble(Trouble(side, operation, path, None, number, text))
