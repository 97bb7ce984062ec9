"""
The file of a ledger: what makes it one, which version it has, and how an older one is brought up to date.
"""

from __future__ import annotations

import importlib.resources
import secrets
import sqlite3

from trioft import __version__
from trioft.core.errors import LedgerError
from trioft.state import rowsums

_APPLICATION_ID = 0x7472696F
VERSION = 5
# Files that did not keep their path: what the index of them is asked with has to be written as in its making.
ELSEWHERE = "target <> x'' AND target <> CAST(iif(folder = x'', name, folder || '/' || name) AS BLOB)"
# What brings a ledger of one version to the next.
MIGRATIONS = {
    1: "ALTER TABLE file ADD COLUMN closed TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE checkpoint ADD COLUMN growing INTEGER NOT NULL DEFAULT 0;"
    "CREATE INDEX checkpoint_by_identity ON checkpoint (dev, ino);",
    2: "CREATE TABLE unlisted (target BLOB NOT NULL, state TEXT NOT NULL, size INTEGER NOT NULL,"
    " mtime_ns INTEGER NOT NULL, digest BLOB, sum BLOB, time TEXT NOT NULL, PRIMARY KEY (target, state))"
    " STRICT, WITHOUT ROWID; CREATE INDEX unlisted_to_read ON unlisted (time) WHERE sum IS NULL;",
    3: f"CREATE INDEX file_by_target ON file (target) WHERE {ELSEWHERE};",
    # Rows of files stay without: there may be millions of them, and none of them is a place to write at.
    4: "ALTER TABLE checkpoint ADD COLUMN sum BLOB; ALTER TABLE file ADD COLUMN sum BLOB;"
    f"UPDATE checkpoint SET sum = sum_of({rowsums.CHECKPOINT});",
}

# Errors of SQLite that pass by themselves, or when a person sees to it: it is locked, its disk is full, or away.
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}


def open_up(db: sqlite3.Connection, path: str) -> bytes:
    """
    Make the file *path*, open as *db*, a ledger of this version, unless it is one already; return the ledger's id.

    Raises ``LedgerError`` where it is none of trioft's. An update that is cut short has not begun.
    """
    version = version_of(db, path)
    rowsums.teach(db)
    for old in range(version, VERSION) if version else ():
        db.executescript(f"BEGIN; {MIGRATIONS[old]} PRAGMA user_version = {old + 1}; COMMIT")
    if not version:
        # Pages that are not used any more are given back; it has to be said before there is a table.
        db.execute("PRAGMA auto_vacuum = FULL")
        schema = importlib.resources.files("trioft.state").joinpath("ledger.sql").read_text("utf-8")
        db.executescript(
            f"BEGIN; {schema}"
            f"INSERT INTO about VALUES ('made_by', CAST('trioft {__version__}' AS BLOB));"
            f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    # Of several ledgers that write into one destination each knows its own partials by it.
    if (ledger := id_of(db)) == b"":
        ledger = secrets.token_bytes(16)
        db.execute("INSERT INTO about VALUES ('id', ?)", (ledger,))
    return ledger


def id_of(db: sqlite3.Connection) -> bytes:
    """Return what tells this ledger from all others; empty where it has not got that yet."""
    row = db.execute("SELECT value FROM about WHERE key = 'id'").fetchone()
    return bytes(row[0]) if row is not None else b""


def version_of(db: sqlite3.Connection, path: str) -> int:
    """Return the version of the ledger *path*, 0 if it is empty. Raises ``LedgerError`` if it is none that we know."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != _APPLICATION_ID:
        raise LedgerError(
            f"{path} is an SQLite file, but no ledger of trioft",
            hint="move it away, or choose another state directory with --state-dir",
        )
    if version > VERSION:
        raise LedgerError(
            f"{path} was written by a newer trioft (ledger version {version}, this one knows {VERSION})",
            hint="use the newer trioft for this pair",
        )
    return int(version) if tables else 0


def unusable(path: str, error: sqlite3.DatabaseError) -> LedgerError:
    """Return what an error of SQLite means to a person."""
    if isinstance(error, sqlite3.OperationalError):
        hint = "see to its disk and its permissions, then start trioft again"
    else:
        hint = (
            "move it away and start again: trioft then compares partials and files at the destination"
            " with the source before it uses them, and copies what is missing"
        )
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    return LedgerError(f"the ledger {path} cannot be used: {error}", hint=hint, passes=code in _PASSING)
