"""
What is mounted below the destination, and was delivered to: where one of these is away, files that go there wait.

Each is known by where it is mounted, and what that is. What was never delivered to may come and go.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypeVar

from trioft.core.errors import show_path
from trioft.core.model import Volume

V = TypeVar("V")


class Volumes:
    """Those that have been *used*, in this run and in earlier ones, and what is mounted in their places now."""

    def __init__(self, used: Iterable[Volume] = ()) -> None:
        self._used = {volume.point: volume for volume in used}
        self._mounted: dict[bytes, Volume] = {}
        self._lost: dict[bytes, str] = {}  # where something else is, or nothing, and what is wrong

    @property
    def used(self) -> list[Volume]:
        return [*self._used.values()]

    @property
    def mounts(self) -> tuple[tuple[bytes, int], ...]:
        """Where which mount has to be, as a mover checks it; -1: none will do."""
        return tuple((point, -1 if point in self._lost else self._mounted[point].id) for point in self._used)

    def see(self, mounted: Iterable[Volume]) -> None:
        """These are mounted below the destination now."""
        self._mounted = {volume.point: volume for volume in mounted}
        self._lost = {
            point: why for point, was in self._used.items() if (why := _why_lost(was, self._mounted.get(point)))
        }

    def use(self, targets: Iterable[bytes]) -> bool:
        """Note that *targets* are about to be delivered; return whether one is the first on what is mounted there."""
        new = {volume.point: volume for target in targets if (volume := _above(target, self._mounted)) is not None}
        before = len(self._used)
        self._used = {**new, **self._used}
        return len(self._used) > before

    def why_not_there(self, target: bytes) -> str | None:
        """Say why nothing can be delivered to *target* now, as what was mounted there is not, or return None."""
        return _above(target, self._lost)


def _why_lost(was: Volume, now: Volume | None) -> str | None:
    place = f"{show_path(was.point)} below the destination"
    if now is None:
        return f"nothing is mounted at {place}, where {was.source} ({was.kind}) was"
    if was.is_same(now):
        return None
    return f"another filesystem is mounted at {place}: {now.source} ({now.kind}) instead of {was.source} ({was.kind})"


def _above(target: bytes, places: Mapping[bytes, V]) -> V | None:
    """Return what is in *places* for the nearest folder above *target*."""
    while places and (target := os.path.dirname(target)):
        if target in places:
            return places[target]
    return None
