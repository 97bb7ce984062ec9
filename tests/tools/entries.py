"""What the tests write into a ledger, and how they ask it."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

from trioft.core.model import BLOCK_SIZE, Checkpoint, Fingerprint
from trioft.state.ledger import Entry, Ledger

FINGERPRINT = Fingerprint(dev=2049, ino=131, size=20_000_000, mtime_ns=1_700_000_000_123_456_789, ctime_ns=-1)


def entry(path: bytes, outcome: str = "delivered", *, removal: str = "", digest: bytes | None = b"d" * 16) -> Entry:
    return Entry(outcome, path, b"at/" + path, FINGERPRINT, digest, "a detail", removal, "proved")


def checkpoint(path: bytes, offset: int = 2**33, growing: bool = False) -> Checkpoint:
    digests = (bytes(range(32)) * 512)[: -(-offset // BLOCK_SIZE) * 16]
    return Checkpoint(path + b".0123abcd.partial", FINGERPRINT, offset, digests, growing)


def do(ledger: Ledger, *calls: Any) -> None:
    """Run *calls*, each a method and its arguments, in one transaction."""
    with ledger.transaction():
        for method, *arguments in calls:
            method(ledger, *arguments)


def rows(path: str, query: str) -> list[Any]:
    """Ask the file, as anybody could."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def history(ledger: Ledger) -> list[Any]:
    """Return all of history, oldest first: time, event, path, target, size, digest, detail."""
    return rows(ledger.path, "SELECT time, event, path, target, size, digest, detail FROM history ORDER BY id")
