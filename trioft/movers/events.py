"""
File events: a child process that runs watchfiles and reports which paths of the source may have changed.

In a child, since setting up the watches walks the source. Events are hints: where they cannot come, or fail, that is
said once, and the scanner's rescans find everything a little later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from trioft.core.naming import is_marker
from trioft.movers.child import Child, child_command
from trioft.movers.ops.wire import MOST
from trioft.movers.pool import Starts


class Changes:
    """
    The paths that events told of since the scanner last took them. Bounded.

    What happens to a marker, a name with *marker* at its end, is told of its file too: it may be complete now.
    Who follows a file hears of it directly, and the scanner, who would only find that somebody does, does not.
    """

    def __init__(self, wake: Callable[[], None], marker: bytes = b"") -> None:
        self._paths: dict[bytes, None] = {}
        self._everything = False
        self._wake = wake
        self.are_told = False  # events come: scans are only for those that get lost
        self._marker = marker
        self.overflows = 0  # times that so much changed that a scan has to find out what
        self._followed: dict[bytes, Callable[[], None]] = {}

    @contextlib.contextmanager
    def followed(self, path: bytes, stir: Callable[[], None]) -> Iterator[None]:
        """While inside, *stir* is called when *path* may have changed."""
        self._followed[path] = stir
        try:
            yield
        finally:
            del self._followed[path]

    def add(self, paths: list[bytes] | None) -> None:
        """*paths* may have changed, or, if None, anything."""
        if paths is None or len(self._paths) + len(paths) > MOST:
            self._everything = True
            self._paths.clear()
            self.overflows += 1
        else:
            marked = [path.removesuffix(self._marker) for path in paths if is_marker(path, self._marker)]
            for path in [*paths, *marked]:
                if (stir := self._followed.get(path)) is not None:
                    stir()
                else:
                    self._paths[path] = None
        if self:
            self._wake()

    def __bool__(self) -> bool:
        return bool(self._paths) or self._everything

    def take(self) -> tuple[list[bytes], bool]:
        """Return the paths, and whether anything else may have changed too; forget them."""
        taken = list(self._paths), self._everything
        self._paths, self._everything = {}, False
        return taken


async def run_events(source: bytes, changes: Changes, starts: Starts, tell: Callable[[str], None]) -> None:
    """
    Report changes below *source* to *changes*. *tell* is called with the reason if there will be no (more) events.

    Ends when the child ends, which is when events fail; else runs until cancelled.
    """
    child = await starts.start(lambda: Child(child_command("movers.ops.watcher", source)))
    try:
        while True:
            message = await child.receive()
            if isinstance(message, str):
                tell(message)
                return
            changes.are_told = True
            changes.add(message)
    except EOFError:
        tell("no more file events: the process that reports them ended")
    finally:
        changes.are_told = False
        await child.end()
