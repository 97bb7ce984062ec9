"""
File events: a child process that watches the source and reports which paths of it may have changed.

In a child, since setting up the watches walks the source. Events are hints: where they cannot come, or fail, that is
said once, and the scanner's rescans find everything a little later. Whether they do come is not believed: what a scan
finds and no event told of, says that they do not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import trio

from trioft.core.errors import show_path
from trioft.core.naming import is_marker
from trioft.movers.child import Child, child_command
from trioft.movers.ops.wire import MOST
from trioft.movers.pool import Starts

# Paths that are remembered as told of; files of a scan that are waited for; and for how many seconds.
_TOLD, _EXPECTED, _LATE = 4 * MOST, 100, 5.0
# Seconds before the process that reports events is started again.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0


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
        self._are_complete = False  # there is a watch on every folder
        self._are_missed = False  # something changed, and no event told of it
        self._told: dict[bytes, None] | None = {}  # since the scan before the last began; None: too many
        self._told_before: dict[bytes, None] | None = None
        self._expected: dict[bytes, None] = {}  # what the scan has found, and an event should tell of
        self._expected_until = math.inf
        self._marker = marker
        self.overflows = 0  # times that so much changed that a scan has to find out what
        self._followed: dict[bytes, Callable[[], None]] = {}

    @property
    def are_told(self) -> bool:
        """Events come from everywhere: scans are only for those that get lost."""
        return self._are_complete and not self._are_missed

    def watching(self, *, everywhere: bool) -> None:
        """Folders are watched by now, all of them or not. What had no watch before may have changed."""
        self._are_complete = everywhere
        self._told = self._told_before = None  # what comes before the next scan has begun proves nothing
        self.look_everywhere()

    def look_everywhere(self) -> None:
        """Anything may have changed, although no event got lost."""
        self._everything = True
        self._wake()

    def stopped(self) -> None:
        """There are no more events, or those of other watches: what was missed says nothing of these."""
        self._are_complete = self._are_missed = False
        self._told = self._told_before = None
        self._expected.clear()

    # --- whether they come

    def scan_begins(self, *, after_all: bool) -> None:
        """
        A scan begins. What it finds was told of since the last one began, if that has found everything, *after_all*.
        """
        self._told_before, self._told = self._told if after_all else None, {}

    def found(self, path: bytes) -> None:
        """A scan has found a new file: has an event told of it, or will one in a moment?"""
        if (
            not self._are_complete
            or self._told_before is None
            or self._told is None
            or len(self._expected) >= _EXPECTED
        ):
            return
        if not self._expected:
            self._expected_until = trio.current_time() + _LATE
        self._expected[path] = None

    @property
    def judged_at(self) -> float:
        """When to ask ``missed``."""
        return self._expected_until if self._expected else math.inf

    def missed(self) -> str | None:
        """Say what no event has told of, if there is anything; only the first time."""
        if trio.current_time() < self.judged_at:
            return None
        expected, self._expected = self._expected, {}
        if self._told is None or self._are_missed or not self._are_complete:
            return None
        told = {**(self._told_before or {}), **self._told}
        path = next((path for path in expected if not any(part in told for part in _parts(path))), None)
        if path is None:
            return None
        self._are_missed = True
        return f"file events are not reliable: none told of {show_path(path)}, which a scan has found"

    def _note(self, paths: list[bytes]) -> None:
        if self._told is not None:
            self._told.update(dict.fromkeys(paths))
            if len(self._told) > _TOLD:
                self._told = None

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
            self._told = None
        else:
            self._note(paths)
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

    A child that ends is started again, after a pause. Runs until cancelled.
    """
    pause = 0.0
    while True:
        child = await starts.start(lambda: Child(child_command("movers.ops.watcher", source)))
        begun = trio.current_time()
        try:
            await _listen(child, changes, tell)
        except EOFError:
            tell("no more file events for the moment: the process that reports them ended")
        finally:
            changes.stopped()
            await child.end()
        pause = _FIRST_PAUSE if trio.current_time() - begun > _LONGEST_PAUSE else min(_LONGEST_PAUSE, pause * 2 + 1)
        await trio.sleep(pause)


async def _listen(child: Child, changes: Changes, tell: Callable[[str], None]) -> None:
    """Take in what *child* reports. Ends when it says that there are no events; raises ``EOFError`` if it ends."""
    while True:
        kind, value = await child.receive()
        if kind == "failed":
            tell(value)
            return
        if kind == "watching":
            count, why = value
            changes.watching(everywhere=not count)
            if count:
                tell(f"no file events from some folders, {why}")
        else:
            changes.add(value if kind == "paths" else None)


def _parts(path: bytes) -> list[bytes]:
    """Return *path* and the folders above it: an event of one of those told of everything in it."""
    parts = path.split(b"/")
    return [b"/".join(parts[:length]) for length in range(len(parts), 0, -1)]
