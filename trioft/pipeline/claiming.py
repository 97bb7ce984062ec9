"""
One agent for a pair, wherever its state lies: a lock on this machine, and a claim at the destination.

The claim tells a trioft on another machine, or in another container, that this one works here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket

import trio
import xxhash

from trioft.core import operations as ask
from trioft.core.answers import End
from trioft.core.claim import BEAT, CLAIM, Claimed, Holder
from trioft.core.errors import AwayError, FileTrouble, LockedError, Side, hint_for, show_path
from trioft.core.model import Identity
from trioft.core.naming import mark_of
from trioft.movers.pool import Call
from trioft.pipeline.ends import Pair
from trioft.pipeline.storage import Storage
from trioft.state.board import Board
from trioft.state.ledger import now
from trioft.state.lock import MachineLock

_ENDS = 2.0  # seconds that there are, at the end, to take the claim away


class Claiming:
    """A claim, from ``begin`` to ``end``; ``keep`` is the task that beats it meanwhile."""

    def __init__(self, pair: Pair, ledger: bytes, storage: Storage, call: Call, board: Board) -> None:
        self._pair, self._storage, self._call, self._board = pair, storage, call, board
        self._name = b""
        self._lock: MachineLock | None = None
        self._mine = this_process(mark_of(ledger).decode(), show_path(pair.ledger_source))
        self._has_begun = False

    async def begin(self) -> None:
        """
        Lock the pair on this machine, and leave the claim. If it cannot be written, that is said, and work goes on.

        Raises ``LockedError`` where somebody else has it, ``AwayError`` where the destination is away by now.
        """
        source, destination = (self._storage.identity[side] for side in Side)
        if self._lock is None:
            folders = _folder(self._pair.source, source), _folder(self._pair.destination, destination)
            self._lock = MachineLock(b"\0".join((*folders, self._pair.only or b"")))
        self._name = CLAIM + xxhash.xxh3_64_hexdigest(_source_of(self._pair, source)).encode()
        try:
            claimed = await self._call(ask.CLAIM, self._storage.ends.destination, self._name, self._mine)
        except FileTrouble as error:
            hint = hint_for(error.trouble)
            raise AwayError(str(error), side=error.trouble.side, hint=hint) from error
        self._judge(claimed)
        self._has_begun = True
        if claimed.instead_of is not None:
            was = claimed.instead_of
            text = f"took over from trioft on {was.host} (process {was.pid}), whose claim was still there"
            self._board.notice("claim", text, level="info", event="claim.taken_over", host=was.host, pid=was.pid)

    async def keep(self) -> None:
        """Beat the claim now and then. Runs until cancelled; raises ``LockedError`` once it is somebody else's."""
        while True:
            await trio.sleep(BEAT)
            if self._storage.gates[Side.DESTINATION].is_open:
                with contextlib.suppress(FileTrouble):  # the next probe says what is wrong
                    self._judge(await self._call(ask.BEAT, self._storage.ends.destination, self._name, self._mine))

    async def end(self) -> None:
        """
        Unlock the pair, and take the claim away, if there is time for that: else it is recognized as stale.

        A destination that cannot be used is not asked: nobody waits at the end for what does not answer.
        """
        if self._has_begun and self._storage.gates[Side.DESTINATION].is_open:
            with trio.move_on_after(_ENDS, shield=True), contextlib.suppress(FileTrouble):
                await self._call(ask.RELEASE, self._storage.ends.destination, self._name, self._mine)
        if self._lock is not None:
            self._lock.release()

    def _judge(self, claimed: Claimed) -> None:
        if claimed.holder is not None:
            raise LockedError(f"another {claimed.holder}", hint="wait for it, or stop it")
        if claimed.why_not:
            text = (
                f"the destination does not take the file that tells other machines of this trioft ({claimed.why_not}):"
                " see to it that no other one works on this pair"
            )
            self._board.notice_once("claim", text, event="claim.missing")


def this_process(mark: str, source: str) -> Holder:
    """Return this process as the holder of a claim."""
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        began=_began(),
        boot=_line_of("/proc/sys/kernel/random/boot_id"),
        pids=_pid_namespace(),
        machine=_line_of("/etc/machine-id"),
        mark=mark,
        source=source,
        since=now(),
        token=secrets.token_hex(8),
    )


def _source_of(pair: Pair, identity: Identity | None) -> bytes:
    """Return what is the same wherever the source of a pair is seen from, and different for different ones."""
    only = pair.only or b""
    if pair.source.remote and identity is not None and (identity.source.startswith("//") or ":/" in identity.source):
        # A server's share: other machines have it too.
        return b"share\0%s\0%s\0%s" % (os.fsencode(identity.source), identity.place, only)
    kernel = _line_of("/proc/sys/kernel/random/boot_id") or socket.gethostname()
    return b"local\0%s\0%s\0%s" % (kernel.encode(), _folder(pair.source, identity), only)


def _folder(end: End, identity: Identity | None) -> bytes:
    """Return what no other folder of this machine has, by whatever path it is reached."""
    # Device numbers alone say little: a card is taken out, and another one gets the same.
    device = () if identity is None else (identity.uuid, identity.source)
    return "\0".join(map(str, (end.dev, end.ino, *device))).encode("utf-8", "surrogateescape")


def _line_of(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        return file.readline().strip()
    return ""


def _began() -> int:
    """Return when this process began, in ticks since its machine was started; 0 where nobody knows."""
    with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])
    return 0


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""
