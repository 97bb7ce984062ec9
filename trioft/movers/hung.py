"""
Folders of the source that do not answer: what is mounted below it may hang while all else is well.

Such a folder is left out, and tried again with growing pauses; not while a process of ours is still held there.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable

import trio

from trioft.core.errors import Side, Trouble, show_path
from trioft.core.naming import lies_at
from trioft.movers.ops.mounts import mounts_below

_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds until a folder is tried again


class HungFolders:
    """*tell* is called when a folder is left out, and when it answers again; *is_held* says whether we hang there."""

    def __init__(self, source: bytes, tell: Callable[[str, str, str], None] = lambda level, event, text: None) -> None:
        self.is_held: Callable[[bytes], bool] = lambda place: False
        self._source, self._tell = source, tell
        self._places: dict[bytes, tuple[float, float, Trouble]] = {}  # until when each is left out, how long, and why

    def place_of(self, path: bytes) -> bytes | None:
        """Return which mount below the source *path* is on; None for the source's own filesystem. Touches no mount."""
        places = [place for place in mounts_below(self._source) if place and lies_at(path, place) is not None]
        return max(places, key=len, default=None)

    def note(self, trouble: Trouble, *, itself: bool = False) -> bytes | None:
        """
        Return the folder that is left out from now on, because of *trouble*; None where the source hangs as a whole.

        Where the source is known to be well, it is the folder of the trouble *itself*, wherever that is.
        """
        if trouble.side != Side.SOURCE or trouble.errno != errno.ETIMEDOUT or not trouble.path:
            return None
        place = self.place_of(trouble.path) or (trouble.path if itself else None)
        if place is not None and not self.leaves_out(place):
            _, pause, _ = self._places.get(place, (0.0, _FIRST_PAUSE / 2, trouble))
            pause = min(_LONGEST_PAUSE, pause * 2)
            if place not in self._places:
                text = f"the source is left out below {show_path(place)}, which does not answer; the rest goes on"
                self._tell("warning", "source.folder_lost", text)
            self._places[place] = trio.current_time() + pause, pause, trouble._replace(path=place)
        return place

    def leaves_out(self, path: bytes) -> bytes | None:
        """Return the folder with which *path* is left out now, or None."""
        now = trio.current_time()
        return next(
            (
                place
                for place, (until, *_) in self._places.items()
                if lies_at(path, place) is not None and (now < until or self.is_held(place))
            ),
            None,
        )

    @property
    def places(self) -> frozenset[bytes]:
        """The folders that have not answered since they were found to hang."""
        return frozenset(self._places)

    def trouble_at(self, place: bytes) -> Trouble:
        """Return what was met there last."""
        return self._places[place][2]

    def sort_out(self, paths: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return those of *paths* that may be looked at, and those that are left out."""
        left = {path for path in paths if self.leaves_out(path) is not None}
        return [path for path in paths if path not in left], [path for path in paths if path in left]

    def answered(self, path: bytes) -> None:
        """What lies at *path* could be read."""
        for place in [place for place in self._places if lies_at(path, place) is not None]:
            del self._places[place]
            text = f"the source answers again below {show_path(place)}"
            self._tell("info", "source.folder_returned", text)

    @property
    def due(self) -> float:
        """When the first of them is to be tried again."""
        return min((until for until, *_ in self._places.values()), default=math.inf)

    def __bool__(self) -> bool:
        return bool(self._places)
