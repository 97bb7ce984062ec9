"""
Reading ledgers, as ``history``, ``explain`` and ``verify`` do: without the lock, while an agent goes on writing.

Whatever is long is read in pages, each a transaction of its own: while a reader stays in one, SQLite cannot take up
what is written meanwhile, and its log grows.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from trioft.core.errors import LedgerError
from trioft.core.model import Checkpoint, Fingerprint, Identity
from trioft.state import rowsums
from trioft.state.ledger import Known, Ledger, Line
from trioft.state.proofs import RESOLUTION, Proof, how_verified
from trioft.state.schema import VERSION, unusable, version_of

_PAGE = 1000  # rows
_LARGE_PAGE = 50_000  # where each page costs a look at everything
_DELIVERED = "('delivered', 'already')"
_PATH = "CAST(CASE folder WHEN x'' THEN name ELSE folder || x'2f' || name END AS BLOB)"


class Filter(NamedTuple):
    """Which lines of history are wanted."""

    since: str = ""  # times as the ledger has them
    until: str = "~"
    events: tuple[str, ...] = ()  # empty: all
    paths: re.Pattern[str] | None = None


class Recorded(NamedTuple):
    """The newest thing that a ledger knows about a source file."""

    path: bytes
    target: bytes
    digest: bytes | None
    closed: str
    known: Known

    @property
    def is_delivered(self) -> bool:
        return self.known.outcome in ("delivered", "already")


class Delivery(NamedTuple):
    """What should be at the destination."""

    path: bytes
    target: bytes
    size: int
    digest: bytes | None
    mtime_ns: int | None  # None: it was an earlier version of its source, of which only history tells,
    time: str  # that this is when it was delivered


class Records(Ledger):
    """A ledger that is only read, in no transaction. Raises ``LedgerError``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._doubts, self._told = {}, set()
        with self._translated():
            self._db = open_to_read(path)
            try:
                if version_of(self._db, path) != VERSION:
                    hint = "use `trioft sync` or `trioft watch` on this pair once: that brings it up to date"
                    raise LedgerError(f"{path} was written by an older trioft, or is empty", hint=hint)
                about = dict(self._db.execute("SELECT key, value FROM about"))
            except BaseException:
                self._db.close()
                raise
        rowsums.teach(self._db)
        self._db.create_function("folder_of", 1, os.path.dirname, deterministic=True)
        self._db.create_function("name_of", 1, os.path.basename, deterministic=True)
        self.source: bytes = about.get("source", b"")
        self.destination: bytes = about.get("destination", b"")
        # How exactly the destination was found to keep modification times; None where that was never noted.
        self.resolution_ns = int(about[RESOLUTION]) if RESOLUTION in about else None
        self.id = about.get("id", b"")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise unusable(self.path, error) from error

    def _ask(self, query: str, *values: object) -> list[Any]:
        with self._translated():
            return self._db.execute(query, values).fetchall()

    # --- history

    def history(self, wanted: Filter, newest: int | None = None) -> Iterator[Line]:
        """Yield what happened, in order; of the lines that are wanted only the *newest*, if that is given."""
        where, values = self._where(wanted)
        last = ("", 0)
        if newest is not None:
            query = f"SELECT time, id FROM history WHERE {where} ORDER BY time DESC, id DESC LIMIT 1 OFFSET ?"
            for time, number in self._ask(query, *values, newest - 1):
                last = time, number - 1
        query = f"""SELECT id, time, event, path, target, size, digest, detail FROM history
            WHERE (time, id) > (?, ?) AND {where} ORDER BY time, id LIMIT {_PAGE}"""
        while rows := self._ask(query, *last, *values):
            for _, *line in rows:
                yield Line(*line)
            last = rows[-1][1], rows[-1][0]

    def count(self, wanted: Filter) -> int:
        """Return how many lines are wanted."""
        where, values = self._where(wanted)
        ((count,),) = self._ask(f"SELECT count(*) FROM history WHERE {where}", *values)
        return int(count)

    def history_of(self, path: bytes) -> list[Line]:
        """Return what happened to one source file."""
        query = "SELECT time, event, path, target, size, digest, detail FROM history WHERE path = ? ORDER BY time, id"
        return [Line(*line) for line in self._ask(query, path)]

    def _where(self, wanted: Filter) -> tuple[str, list[object]]:
        where = "time >= ? AND time < ?"
        values: list[object] = [wanted.since, wanted.until, *wanted.events]
        if wanted.events:
            where += f" AND event IN ({', '.join('?' * len(wanted.events))})"
        if wanted.paths is not None:
            self._match(wanted.paths)
            where += " AND is_wanted(path)"
        return where, values

    def _match(self, paths: re.Pattern[str] | None) -> None:
        """Have ``is_wanted`` in queries say whether a path matches."""

        def is_wanted(path: bytes) -> bool:
            return paths is None or paths.fullmatch(path.decode("utf-8", "surrogateescape")) is not None

        self._db.create_function("is_wanted", 1, is_wanted, deterministic=True)

    # --- files

    def file(self, path: bytes) -> Recorded | None:
        """Return what is known about a source file."""
        rows = self._files("folder = ? AND name = ?", *os.path.split(path))
        return rows[0] if rows else None

    def files_in(self, folder: bytes) -> dict[bytes, Recorded]:
        """Return what is known about the source files in one folder, by path."""
        return {recorded.path: recorded for recorded in self._files("folder = ?", folder)}

    def has_files_below(self, folder: bytes) -> bool:
        """Is anything on record about a source file in this folder, or below it?"""
        after = folder + b"/"
        query = "SELECT 1 FROM file WHERE folder = ? OR (folder >= ? AND folder < ?) LIMIT 1"
        return bool(self._ask(query, folder, after, folder + b"0"))  # "0" comes after "/"

    def newest(self) -> int:
        """Return the number of the newest line of history: what comes later has a higher one, whatever clocks say."""
        ((number,),) = self._ask("SELECT ifnull(max(id), 0) FROM history")
        return int(number)

    def proof_of(self, recorded: Recorded) -> Proof:
        """Return what stands behind the delivery that is on record."""
        query = f"""SELECT id, event, detail FROM history WHERE path = ? AND target = ? AND size = ? AND digest IS ?
            AND event IN {_DELIVERED} ORDER BY id DESC LIMIT 1"""
        known = recorded.path, recorded.target, recorded.known.size, recorded.digest
        for number, event, detail in self._ask(query, *known):
            return Proof(how_verified(event, detail, recorded.digest), number)
        return Proof()

    def archives(self) -> list[bytes]:
        """Return the folders that delivered sources were moved to. Reads all of the history."""
        query = "SELECT DISTINCT json_extract(detail, '$.archived_below') FROM history WHERE event = 'removed'"
        return sorted(os.fsencode(folder) for (folder,) in self._ask(query) if folder)

    def archive_of(self, path: bytes) -> tuple[bytes, Fingerprint | None]:
        """Return the folder that a source was moved to when it had been delivered, and which file it was then."""
        query = "SELECT detail FROM history WHERE path = ? AND event = 'removed' ORDER BY id DESC LIMIT 1"
        for (detail,) in self._ask(query, path):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                proofs = json.loads(detail)
                return os.fsencode(proofs["archived_below"] or ""), Fingerprint(**proofs["source"])
        return b"", None

    def files_at(self, target: bytes) -> list[Recorded]:
        """Return the source files that were delivered under the final name *target*. Reads the whole table."""
        return self._files(f"target = ? AND outcome IN {_DELIVERED}", target)

    def _files(self, where: str, *values: object) -> list[Recorded]:
        columns = f"{_PATH}, target, digest, closed, {', '.join(Known._fields)}"
        rows = self._ask(f"SELECT {columns} FROM file WHERE {where} AND {rowsums.IS_SOUND}", *values)
        return [Recorded(path, target, digest, closed, Known(*known)) for path, target, digest, closed, *known in rows]

    def checkpoint_of(self, path: bytes) -> Checkpoint | None:
        with self._translated():
            return super().checkpoint_of(path)

    def identity_of(self, side: str) -> Identity | None:
        with self._translated():
            return super().identity_of(side)

    def knows(self, path: bytes) -> bool:
        """Is anything on record about a source file of this name?"""
        if self.file(path) is not None or self.checkpoint_of(path) is not None:
            return True
        return bool(self._ask("SELECT 1 FROM history WHERE path = ? LIMIT 1", path))

    def source_of(self, name: bytes) -> bytes | None:
        """Return the source file of what is called *name* at the destination. Reads whole tables."""
        for query in (
            f"SELECT {_PATH} FROM file WHERE target = ? AND outcome IN {_DELIVERED}",
            "SELECT path FROM checkpoint WHERE partial = ?",
            f"SELECT path FROM history WHERE target = ? AND event IN {_DELIVERED} ORDER BY id DESC LIMIT 1",
        ):
            if rows := self._ask(query, name):
                return bytes(rows[0][0])
        return None

    def deliveries(self, wanted: Filter) -> Iterator[Delivery]:
        """
        Yield what should be at the destination: first, of each source file, what was delivered last; then what was
        delivered of earlier versions under other names, as far as history tells.
        """
        self._match(wanted.paths)
        since = f"""EXISTS (SELECT 1 FROM history WHERE history.path = {_PATH} AND history.target = file.target
            AND event IN {_DELIVERED} AND time >= ? AND time < ?)"""
        is_all = (wanted.since, wanted.until) == (Filter().since, Filter().until)
        last = (b"", b"")
        query = f"""SELECT folder, name, {_PATH} AS path, target, size, digest, mtime_ns FROM file
            WHERE (folder, name) > (?, ?) AND outcome IN {_DELIVERED} AND target <> x'' AND is_wanted(path)
            AND {rowsums.IS_SOUND} AND (? OR {since}) ORDER BY folder, name LIMIT {_PAGE}"""
        while rows := self._ask(query, *last, is_all, wanted.since, wanted.until):
            for _, _, path, target, size, digest, mtime_ns in rows:
                yield Delivery(path, target, size, digest, mtime_ns, "")
            last = rows[-1][0], rows[-1][1]
        yield from self._earlier_deliveries(wanted)

    def _earlier_deliveries(self, wanted: Filter) -> Iterator[Delivery]:
        # Of all that was delivered under one final name the newest counts, whatever its source was called.
        last = 0
        query = f"""SELECT newest, path, target, size, digest, time FROM
            (SELECT max(id) AS newest, * FROM history WHERE event IN {_DELIVERED} GROUP BY target) AS old
            WHERE newest > ? AND time >= ? AND time < ? AND is_wanted(path) AND NOT EXISTS
            (SELECT 1 FROM file WHERE folder = folder_of(old.path) AND name = name_of(old.path)
            AND file.target = old.target AND outcome IN {_DELIVERED})
            ORDER BY newest LIMIT {_LARGE_PAGE}"""
        while rows := self._ask(query, last, wanted.since, wanted.until):
            for _, path, target, size, digest, time in rows:
                yield Delivery(path, target, size, digest, None, time)
            last = rows[-1][0]


def open_to_read(path: str) -> sqlite3.Connection:
    """Open an SQLite file that others may be writing. Raises SQLite's errors."""
    where = f"file:{quote(path)}?mode=ro"
    try:
        db = sqlite3.connect(where, uri=True, isolation_level=None, timeout=5, check_same_thread=False)
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            db.close()
            raise
        return db
    except sqlite3.OperationalError:
        # A log of writes is made even to read. Where that cannot be, and there is none: nobody is writing.
        if os.path.exists(f"{path}-wal") or not os.path.exists(path):
            raise
        return sqlite3.connect(f"{where}&immutable=1", uri=True, isolation_level=None, check_same_thread=False)


# --- which ledger -----------------------------------------------------------------------------------------------------
