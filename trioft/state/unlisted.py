"""
What no manifest lists yet: the ledger's table ``unlisted``.

A file is noted before it gets its final name, and again, with what came of it, in the transaction that records its
delivery. So whatever moment a run is cut short in, the next one knows what is left to list.

These functions are called with a ``Ledger``, within a transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

from trioft.core.model import Unlisted
from trioft.state.ledger import Entry, Ledger, now

_COLUMNS = "target, size, mtime_ns, digest, sum, time, state = 'doubtful'"


def begin(ledger: Ledger, length: int) -> None:
    """A run begins, whose manifests have sums of *length* bytes."""
    ledger.execute("UPDATE OR REPLACE unlisted SET state = 'doubtful', sum = NULL WHERE state = 'publishing'")
    ledger.execute("UPDATE unlisted SET sum = NULL WHERE length(sum) <> ?", (length,))


def announce(ledger: Ledger, files: Iterable[Unlisted]) -> None:
    """These are about to get their final names."""
    for file in files:
        _insert(ledger, file, "publishing")


def record(ledger: Ledger, entries: list[Entry], published: Iterable[tuple[bytes, Unlisted]]) -> None:
    """Record outcomes, and of those that are to be listed, each with the name that was announced, what they are."""
    ledger.record(entries)
    for announced, file in published:
        ledger.execute("DELETE FROM unlisted WHERE target = ? AND state = 'publishing'", (announced,))
        _insert(ledger, file, "delivered")


def _insert(ledger: Ledger, file: Unlisted, state: str) -> None:
    ledger.execute(
        "INSERT OR REPLACE INTO unlisted VALUES (?, ?, ?, ?, ?, ?, ?)",
        (file.target, state, file.size, file.mtime_ns, file.digest, file.sum, file.time or now()),
    )


def next_to_read(ledger: Ledger, passed: Iterable[bytes]) -> Unlisted | None:
    """Return the file that has waited longest for its sum to be read, but for those *passed* over."""
    names = list(passed)
    row = ledger.execute(
        f"SELECT {_COLUMNS} FROM unlisted WHERE sum IS NULL AND state <> 'publishing'"
        f" AND target NOT IN ({', '.join('?' * len(names))}) ORDER BY time LIMIT 1",
        names,
    ).fetchone()
    return None if row is None else Unlisted._make(row)


def left_to_read(ledger: Ledger) -> tuple[int, int]:
    """Return how many files are still to be read, and how many bytes these have."""
    query = "SELECT count(*), ifnull(sum(size), 0) FROM unlisted WHERE sum IS NULL AND state <> 'publishing'"
    files, size = ledger.execute(query).fetchone()
    return files, size


def was_read(ledger: Ledger, file: Unlisted, target: bytes, sum: bytes) -> None:
    """*file* is there, under the name *target*, and this is its sum."""
    if forget(ledger, [file]):
        _insert(ledger, file._replace(target=target, sum=sum), "delivered")


def to_list(ledger: Ledger, after: bytes, most: int) -> list[Unlisted]:
    """Return files that can be listed, *most* at a time, whose names come after that one."""
    query = (
        f"SELECT {_COLUMNS} FROM unlisted WHERE target > ? AND state = 'delivered' AND sum IS NOT NULL"
        " ORDER BY target LIMIT ?"
    )
    return [Unlisted._make(row) for row in ledger.execute(query, (after, most))]


def forget(ledger: Ledger, files: Iterable[Unlisted]) -> int:
    """These are listed, or never will be, unless they were delivered anew meanwhile. Returns how many there were."""
    query = "DELETE FROM unlisted WHERE target = ? AND state = ? AND size = ? AND mtime_ns = ? AND time = ?"
    return sum(
        ledger.execute(
            query, (file.target, "doubtful" if file.doubtful else "delivered", file.size, file.mtime_ns, file.time)
        ).rowcount
        for file in files
    )
