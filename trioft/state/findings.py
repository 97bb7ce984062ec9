"""
What ``trioft verify`` has found so far: an SQLite file beside the ledger, so that it can be interrupted and go on.

Not in the ledger, which has one writer: the agent, who must never wait for another.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from trioft.core.errors import UnusableError
from trioft.state.ledger import now
from trioft.state.reader import open_to_read

VERIFIED = "verified"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (     -- the one that is under way; none, once one has come to its end
    wish    TEXT NOT NULL,           -- what it was asked to verify
    begun   TEXT NOT NULL,
    id      TEXT NOT NULL DEFAULT '' -- no other one has it
) STRICT;
CREATE TABLE IF NOT EXISTS finding ( -- the newest about each file at the destination
    target  BLOB PRIMARY KEY,
    digest  BLOB,                    -- that it should have
    time    TEXT NOT NULL,           -- RFC 3339, UTC
    verdict TEXT NOT NULL,
    size    INTEGER NOT NULL,
    detail  TEXT NOT NULL,
    after   INTEGER,                 -- the newest line of the ledger's history when it was looked at
    run     TEXT NOT NULL DEFAULT '' -- the id of the verification that has found it
) STRICT, WITHOUT ROWID;
"""


class Finding(NamedTuple):
    """What was found about one file at the destination."""

    target: bytes
    digest: bytes | None
    time: str
    verdict: str
    size: int
    detail: str
    after: int | None = None  # the newest line of history then: later deliveries have higher numbers
    run: str = ""


# What files of earlier versions lack.
_ADDED = (
    ("run", "id", "TEXT NOT NULL DEFAULT ''"),
    ("finding", "after", "INTEGER"),
    ("finding", "run", "TEXT NOT NULL DEFAULT ''"),
)
_COLUMNS = "target, digest, time, verdict, size, detail"


def findings_path(ledger: str) -> str:
    """Return the file that belongs to a *ledger*."""
    return ledger.removesuffix(".sqlite") + ".verify"


def last_finding(ledger: str, target: bytes) -> Finding | None:
    """Return what the last verification found about *target*. Makes no file."""
    return last_findings(ledger, [target]).get(target)


def last_findings(ledger: str, targets: Iterable[bytes]) -> dict[bytes, Finding]:
    """Return what the last verification found about *targets*, by name. Makes no file."""
    path = findings_path(ledger)
    if not os.path.exists(path):
        return {}
    with _translated(path), contextlib.closing(open_to_read(path)) as db:
        found = ((target, _about(db, target)) for target in targets)
        return {target: finding for target, finding in found if finding is not None}


def _about(db: sqlite3.Connection, target: bytes) -> Finding | None:
    columns = _COLUMNS
    if any(row[1] == "after" for row in db.execute("PRAGMA table_info(finding)")):
        columns += ", after, run"
    row = db.execute(f"SELECT {columns} FROM finding WHERE target = ?", (target,)).fetchone()
    return None if row is None else Finding(*row)


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = f"what was verified so far cannot be kept, or read, in {path}: {error}"
        raise UnusableError(text, hint="see to its disk and its permissions, or remove it") from error


class Findings:
    """The file. Raises ``UnusableError``. Not for several threads at a time; any thread will do."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._run = ""
        with _translated(self._path):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            try:
                self._db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {_SCHEMA}")
                for table, column, kind in _ADDED:
                    if all(row[1] != column for row in self._db.execute(f"PRAGMA table_info({table})")):
                        self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()

    def begin(self, wish: str, *, again: bool) -> None:
        """Begin to verify, or, if not *again*, go on with what was interrupted, and had the same *wish*."""
        with _translated(self._path):
            row = self._db.execute("SELECT id FROM run WHERE wish = ? AND id <> ''", (wish,)).fetchone()
            goes_on = row is not None and not again
            self._run = row[0] if goes_on else uuid.uuid4().hex
            if not goes_on:
                self._db.executescript("DELETE FROM run")
                self._db.execute("INSERT INTO run VALUES (?, ?, ?)", (wish, now(), self._run))

    def end(self) -> None:
        """It has come to its end: the next one begins anew."""
        with _translated(self._path):
            self._db.execute("DELETE FROM run")

    def has(self, target: bytes, digest: bytes | None) -> bool:
        """Has this verification, before it was interrupted, found it well? What was not is looked at once more."""
        with _translated(self._path):
            last = _about(self._db, target)
        return last is not None and (last.digest, last.verdict) == (digest, VERIFIED) and last.run == self._run

    def add(self, findings: Iterable[Finding]) -> None:
        with _translated(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            query = f"INSERT OR REPLACE INTO finding ({_COLUMNS}, after, run) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            self._db.executemany(query, (finding._replace(run=self._run) for finding in findings))
            self._db.execute("COMMIT")
