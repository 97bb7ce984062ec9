"""
Neighbours: the other ledgers of a state directory that have the same destination, or one inside the other.

What one of them has on record as delivered is another source's, whatever this ledger knows. They are only read, each
for a moment; who writes them goes on.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import trio

from trioft.core.errors import LedgerError, show_path
from trioft.core.model import Identity
from trioft.state.ledger import ARRIVED, identity_in
from trioft.state.reader import open_to_read
from trioft.state.schema import ELSEWHERE, version_of

_Stamp = tuple[int, ...]


class Owner(NamedTuple):
    """Who has a name at the destination."""

    rival: bytes  # an absolute path: of the source file, or of the ledger that cannot be asked
    why: str  # why the name is not given to another one


class _Way(NamedTuple):
    """How names below one destination are those below another one."""

    added: bytes = b""
    taken_off: bytes = b""

    def lead(self, target: bytes) -> bytes | None:
        return self.added + target[len(self.taken_off) :] if target.startswith(self.taken_off) else None


class Neighbours:
    """The neighbours of the ledger in the file *ledger*, which is about *destination*: now what *identity* says."""

    def __init__(self, ledger: str, destination: bytes, identity: Callable[[], Identity | None]) -> None:
        self._ledger, self._destination, self._identity = ledger, destination, identity
        self._strangers: dict[str, _Stamp] = {}  # ledgers of other destinations, as they were when that was found
        self._asking = trio.Lock()

    async def owners_of(self, targets: Iterable[bytes]) -> dict[bytes, Owner]:
        """Return those of *targets* that are another source's, or may be, as far as can be known."""
        async with self._asking:
            names = [*targets]
            try:
                return await trio.to_thread.run_sync(self._ask_all, names)
            except RuntimeError as error:
                if "can't start new thread" not in str(error):
                    raise
                return self._ask_all(names)

    def _ask_all(self, targets: Sequence[bytes]) -> dict[bytes, Owner]:
        folder, own = os.path.split(self._ledger)
        owners: dict[bytes, Owner] = {}
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".sqlite") and name != own)
        except OSError as error:
            return _unknown(targets, folder, f"the state directory {folder} cannot be read: {error.strerror}")
        for path in (os.path.join(folder, name) for name in names):
            stamp = _stamp_of(path)
            if self._strangers.get(path) == stamp:
                continue
            try:
                with contextlib.closing(open_to_read(path)) as db:
                    found = self._ask(db, path, targets)
            except (sqlite3.Error, LedgerError, ValueError, KeyError, TypeError) as error:
                if not os.path.lexists(path):
                    continue
                found = _unknown(targets, path, f"the ledger {path} cannot be read ({error})")
            if found is None:
                self._strangers[path] = stamp
            else:
                owners = {**found, **owners}
        return owners

    def _ask(self, db: sqlite3.Connection, path: str, targets: Sequence[bytes]) -> dict[bytes, Owner] | None:
        """Return who has *targets* by one ledger; None if that has another destination."""
        if not version_of(db, path):
            return {}  # it is being made
        about = dict(db.execute("SELECT key, value FROM about"))
        if "destination" not in about:
            return {}
        way = self._way_to(about["destination"], identity_in(about.get("destination_filesystem")))
        if way is None:
            return None if "destination_filesystem" in about else {}
        owners = {}
        for target in targets:
            there = way.lead(target)
            if there and (its := _source_of(db, there)) is not None:
                source = about.get("source", b"")
                rival = source if os.path.basename(source) == its else os.path.join(source, its)
                text = (
                    f"{show_path(rival)}, of another source, has been delivered under the same name,"
                    f" {show_path(target)}, and is not replaced; --if-exists rename keeps both"
                )
                owners[target] = Owner(rival, text)
        return owners

    def _way_to(self, path: bytes, other: Identity | None) -> _Way | None:
        own = self._identity()
        if own is not None and other is not None and _are_on_one(own, other):
            way = _way_between(own.place, other.place)
            if way is not None:
                return way
        return _way_between(self._destination, path)


def _are_on_one(own: Identity, other: Identity) -> bool:
    """Are two folders on the same filesystem, by whatever paths they are reached?"""
    if own.has_such_uuid(other):
        return own.uuid == other.uuid
    # What lies in memory, for one, is called the same wherever it is mounted.
    says_which = "/" in own.source or ":" in own.source
    return (own.kind, own.source) == (other.kind, other.source) and (says_which or own.point == other.point)


def _way_between(own: bytes, other: bytes) -> _Way | None:
    """Return how names below the folder *own* are called below *other*; None if neither lies in the other one."""
    own, other = own.rstrip(b"/") + b"/", other.rstrip(b"/") + b"/"
    if own.startswith(other):
        return _Way(added=own[len(other) :])
    return _Way(taken_off=other[len(own) :]) if other.startswith(own) else None


def _source_of(db: sqlite3.Connection, target: bytes) -> bytes | None:
    """Return what was delivered as *target*, as far as that is on record, in whatever version since."""
    query = (
        f"SELECT folder, name FROM file WHERE target = ?1 AND {ELSEWHERE} AND outcome IN {ARRIVED} UNION ALL"
        f" SELECT folder, name FROM file WHERE folder = ?2 AND name = ?3 AND target = ?1 AND outcome IN {ARRIVED}"
    )
    for folder, name in db.execute(query, (target, *os.path.split(target))):
        return bytes(os.path.join(folder, name))
    events = (*ARRIVED, "removed")
    query = f"SELECT 1 FROM history WHERE path = ? AND target = ? AND event IN {events} LIMIT 1"
    return target if db.execute(query, (target, target)).fetchone() is not None else None


def _unknown(targets: Iterable[bytes], path: str, why: str) -> dict[bytes, Owner]:
    text = f"{why}: what has this name may be all that is left of another source, and is not replaced"
    return {target: Owner(os.fsencode(path), text) for target in targets}


def _stamp_of(path: str) -> _Stamp:
    """Return what is another one once a ledger has been written to, or is another file."""
    stamp: list[int] = []
    for name in (path, f"{path}-wal"):
        with contextlib.suppress(OSError):
            its = os.stat(name)
            stamp += its.st_dev, its.st_ino, its.st_size, its.st_mtime_ns
    return tuple(stamp)
