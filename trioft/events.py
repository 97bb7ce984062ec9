"""
File events: a child process that runs watchfiles and reports which paths of the source may have changed.

In a child, since setting up the watches walks the source. Events are hints: where they cannot come, or fail, that is
said once, and the scanner's rescans find everything a little later.
"""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable

import trio

from trioft.mover import LENGTH
from trioft.movers import child_command
from trioft.watcher import MOST


class Changes:
    """The paths that events told of since the scanner last took them. Bounded."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._paths: dict[bytes, None] = {}
        self._everything = False
        self._wake = wake

    def add(self, paths: list[bytes] | None) -> None:
        """*paths* may have changed, or, if None, anything."""
        if paths is None or len(self._paths) + len(paths) > MOST:
            self._everything = True
            self._paths.clear()
        else:
            self._paths.update(dict.fromkeys(paths))
        self._wake()

    def take(self) -> tuple[list[bytes], bool]:
        """Return the paths, and whether anything else may have changed too; forget them."""
        taken = list(self._paths), self._everything
        self._paths, self._everything = {}, False
        return taken


async def run_events(source: bytes, changes: Changes, tell: Callable[[str], None]) -> None:
    """
    Report changes below *source* to *changes*. *tell* is called with the reason if there will be no (more) events.

    Ends when the child ends, which is when events fail; else runs until cancelled.
    """
    with trio.CancelScope(shield=True):
        process = await trio.lowlevel.open_process(
            child_command("watcher", source),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        received = bytearray()
        async for piece in process.stdout:
            received += piece
            while len(received) >= LENGTH.size:
                (size,) = LENGTH.unpack_from(received)
                if len(received) < LENGTH.size + size:
                    break
                message = pickle.loads(received[LENGTH.size : LENGTH.size + size])
                del received[: LENGTH.size + size]
                if isinstance(message, str):
                    tell(message)
                else:
                    changes.add(message)
        tell("no more file events: the process that reports them ended")
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()
            await process.stdin.aclose()
