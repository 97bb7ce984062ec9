"""
Digests of rows: a bit that flips on the disk of the state directory is found, as SQLite itself has no checksums.

A row whose digest is another one than it should be is not believed: what it says of a file is as good as nothing.
"""

from __future__ import annotations

import sqlite3

import xxhash

Value = bytes | str | int | float | None  # as SQLite has them

# The columns that a digest covers, in the order in which they are digested.
CHECKPOINT = "path, partial, dev, ino, size, mtime_ns, ctime_ns, offset, digests, time, growing"
FILE = "folder, name, outcome, removal, target, size, mtime_ns, ctime_ns, digest, closed"
# Whether a row of the table `file` may be believed. Those of versions before the fifth have no digest.
IS_SOUND = f"(sum IS NULL OR sum = sum_of({FILE}))"


def sum_of(*values: Value) -> bytes:
    """Return the digest of a row with these values: 8 bytes."""
    parts = []
    for value in values:
        if value is None:
            parts.append(b"-")
            continue
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        parts.append(b"%d:" % len(data))
        parts.append(data)
    return xxhash.xxh3_64_digest(b"".join(parts))


def teach(db: sqlite3.Connection) -> None:
    """Let queries of *db* use ``sum_of``."""
    db.create_function("sum_of", -1, sum_of, deterministic=True)
