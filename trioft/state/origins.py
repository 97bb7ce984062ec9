"""
Origins: which volume the source was on when a file was delivered. Cards come and go in one reader, with the same names.

What was delivered from another volume than the present one is no earlier version of the file that has its path now.
The functions that take a ``Ledger`` are called within a transaction. While there has been one volume, nothing is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence

from trioft.core.errors import show_path
from trioft.core.model import Identity
from trioft.state.ledger import ARRIVED, Entry, Ledger

# Keys of the table `about`: all volumes that the source was on, in the order in which they were met, and the number of
# the present one, which is there once there have been two.
_VOLUMES, _PRESENT = "source_volumes", "source_volume"
# What is not in it was delivered from the first volume.
_TABLE = """CREATE TABLE IF NOT EXISTS origin
    (path BLOB NOT NULL, target BLOB NOT NULL, volume INTEGER NOT NULL, PRIMARY KEY (path, target))
    STRICT, WITHOUT ROWID"""


def note_source(ledger: Ledger, identity: Identity) -> bool:
    """From now on, the source is on this volume. Return whether it has been on several."""
    row = ledger.execute("SELECT value FROM about WHERE key = ?", (_VOLUMES,)).fetchone()
    former = ledger.identity_of("source")
    before = [_read(fields) for fields in json.loads(row[0])] if row is not None else [former] if former else []
    number = next((n for n, volume in enumerate(before) if _is_same(volume, identity)), len(before))
    # It may tell more of itself than before.
    volumes = [*before[:number], identity._replace(point=b""), *before[number + 1 :]]
    if volumes != before or row is None:
        value = json.dumps([_written(volume) for volume in volumes]).encode("ascii")
        ledger.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (_VOLUMES, value))
    if len(volumes) > 1:
        ledger.execute(_TABLE)
        ledger.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (_PRESENT, b"%d" % number))
    return len(volumes) > 1


def note_delivered(ledger: Ledger, entries: Sequence[Entry]) -> None:
    """These are about to be recorded, of the present volume. What has been compared is as good as delivered."""
    present = _present(ledger)
    for entry in entries if present is not None else ():
        if entry.outcome in ARRIVED:
            is_its = entry.outcome == "delivered" or entry.digest is not None
            how = "REPLACE" if is_its else "IGNORE"
            ledger.execute(f"INSERT OR {how} INTO origin VALUES (?, ?, ?)", (entry.path, entry.target, present))


def strangers_of(ledger: Ledger, names: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """
    Return, of *names* (target, source file), those that were delivered from another volume, and why they stay.

    What is on record of the first volume is kept for good: history forgets, and other files are recorded.
    """
    present = _present(ledger)
    if present is None:
        return {}
    known = f"SELECT target FROM file WHERE folder = ? AND name = ? AND outcome IN {ARRIVED} AND target <> x''"
    lines = f"SELECT DISTINCT target FROM history WHERE path = ? AND event IN {ARRIVED}"
    reasons = {}
    for target, path in names:
        targets = ledger.execute(f"{known} UNION {lines}", (*os.path.split(path), path)).fetchall()
        for (its,) in targets:
            ledger.execute("INSERT OR IGNORE INTO origin VALUES (?, ?, 0)", (path, its))
        row = ledger.execute("SELECT volume FROM origin WHERE path = ? AND target = ?", (path, target)).fetchone()
        if row is not None and row[0] != present:
            reasons[target] = (
                f"{show_path(target)} was delivered from a file of this name on another volume than the one that the"
                " source is on now: what may be all that is left of that is not replaced; --if-exists rename keeps both"
            )
    return reasons


def _present(ledger: Ledger) -> int | None:
    """Return the number of the present volume; None while there has been no other one."""
    row = ledger.execute("SELECT value FROM about WHERE key = ?", (_PRESENT,)).fetchone()
    return None if row is None else int(row[0])


def _is_same(was: Identity, now: Identity) -> bool:
    """Is it the same folder of the same volume, which may be mounted elsewhere, or called otherwise, since?"""
    return was.is_filesystem_of(now) and (was.kind, was.place) == (now.kind, now.place)


def _read(fields: list[str]) -> Identity:
    kind, source, uuid, place = fields
    return Identity(kind, source, uuid, os.fsencode(place), b"")


def _written(volume: Identity) -> list[str]:
    return [volume.kind, volume.source, volume.uuid, os.fsdecode(volume.place)]
