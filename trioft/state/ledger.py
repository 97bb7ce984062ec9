"""
The ledger: what was delivered, what failed, and from where each transfer can be continued. SQLite, one file for each
pair.

``Ledger`` is the file: plain methods, one transaction at a time. ``Port`` is how tasks reach the one that owns it while
an agent runs (``keeper``).

It is written with ``synchronous=FULL``: a source may be removed because of a row, so the row must survive a power cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import trio

from trioft.core.errors import LedgerError, show_path
from trioft.core.model import Checkpoint, Fingerprint, Identity
from trioft.core.units import timestamp
from trioft.state import rowsums, schema

P = ParamSpec("P")
T = TypeVar("T")

ARRIVED = ("delivered", "already")  # outcomes of a file that the destination has
# Old history goes in pieces, so that no checkpoint waits long for one, and as often as this, in seconds.
_FORGOTTEN_AT_A_TIME = 2_000
_FORGET_EVERY = 3600.0
_64_BITS = 2**64 - 1
_DOUBTS = 1000  # damaged rows of which it is remembered that they have been told of


class Known(NamedTuple):
    """What the ledger knows about a source file."""

    outcome: str
    removal: str
    size: int
    mtime_ns: int
    ctime_ns: int
    target: bytes = b""  # where it was delivered

    def is_still(self, fingerprint: Fingerprint) -> bool:
        """Is a source file with *fingerprint* the version that this is known about, as far as all its times tell?"""
        return self.is_alike(fingerprint) and self.ctime_ns == fingerprint.ctime_ns

    def is_alike(self, fingerprint: Fingerprint) -> bool:
        """Is it so as far as size and modification time tell? Other content may be given these."""
        return (self.size, self.mtime_ns) == (fingerprint.size, fingerprint.mtime_ns)


class Entry(NamedTuple):
    """An outcome, to be recorded."""

    outcome: str
    path: bytes
    target: bytes
    fingerprint: Fingerprint
    digest: bytes | None
    detail: str
    removal: str = ""
    closed: str = ""


class Removal(NamedTuple):
    """What came of removing a delivered source."""

    path: bytes
    target: bytes
    size: int
    outcome: str  # removed or refused
    detail: str


class Line(NamedTuple):
    """One line of history."""

    time: str
    event: str
    path: bytes
    target: bytes
    size: int
    digest: bytes | None
    detail: str


def now() -> str:
    """Return this moment as the ledger has it."""
    return timestamp(datetime.now(UTC))


def _signed(number: int) -> int:
    """Return a 64-bit number, such as the inode of some servers, as SQLite holds it."""
    return number - 2**64 if number >= 2**63 else number


def ledger_path(state_dir: str, source: bytes, destination: bytes) -> str:
    """Return the ledger's file for a pair of absolute paths without symbolic links."""
    name = hashlib.blake2b(source + b"\0" + destination, digest_size=8).hexdigest()
    return os.path.join(state_dir, f"{name}.sqlite")


def identity_in(value: bytes | None) -> Identity | None:
    """Return the identity that the table `about` has as *value*."""
    if value is None:
        return None
    fields = json.loads(value)
    place, point = (os.fsencode(fields[key]) for key in ("place", "point"))
    return Identity(fields["kind"], fields["source"], fields["uuid"], place, point)


class Ledger:
    """
    The SQLite file. Every error of SQLite leaves as ``LedgerError``; none is repaired by starting a new file.

    Not for several threads at a time; any thread will do.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.id = b""
        self._doubts: dict[tuple[str, bytes], None] = {}  # rows that are not believed, and have not been told of
        self._told: set[tuple[str, bytes]] = set()
        try:
            # Not there, or there and ours; a file that is neither is refused, not overwritten.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2)
            try:
                self.id = schema.open_up(self._db, path)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.DatabaseError as error:
            raise schema.unusable(self.path, error) from error

    def doubts(self) -> list[str]:
        """Return, once, what has to be said about rows that are not believed."""
        new, self._doubts = self._doubts, {}
        self._told.update(new)
        return [
            f"the row about {show_path(path)} in the ledger is damaged ({table}, {self.path}): it is not believed,"
            " and what it said is found out anew"
            for table, path in new
        ]

    def _doubt(self, table: str, path: bytes) -> None:
        if (table, path) not in self._told and len(self._told) < _DOUBTS:
            self._doubts[table, path] = None

    @contextlib.contextmanager
    def transaction(self) -> Any:
        """All or nothing. Raises ``LedgerError``."""
        try:
            if self._db.in_transaction:  # not even the end of the last one could be written
                self._db.execute("ROLLBACK")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk, for one, has rolled it back already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise schema.unusable(self.path, error) from error

    def close(self) -> None:
        self._db.close()

    # What follows is called within a transaction.

    def execute(self, query: str, values: Iterable[object] = ()) -> sqlite3.Cursor:
        """Run a statement of a module that has a table of its own here."""
        return self._db.execute(query, tuple(values))

    def begin_run(self, source: bytes, destination: bytes) -> None:
        """Note the ends, and forget failures: a new start tries again."""
        for key, value in (("source", source), ("destination", destination)):
            self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))
        self._db.execute("DELETE FROM file WHERE outcome IN ('failed', 'skipped')")
        for (path,) in self._db.execute("SELECT path FROM checkpoint").fetchall():
            if self.checkpoint_of(path) is None:  # its partial is compared with the source, block by block
                self.drop_checkpoint(path)

    def forget_history(self, keep: float) -> int:
        """Forget some of the history that is older than *keep* seconds; return how many rows: 0 if none is left."""
        oldest = timestamp(datetime.now(UTC) - timedelta(seconds=keep))
        query = "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE time < ? ORDER BY time LIMIT ?)"
        return self._db.execute(query, (oldest, _FORGOTTEN_AT_A_TIME)).rowcount

    def identity_of(self, side: str) -> Identity | None:
        """Return which filesystem the *side* was on when it was used last, or None if it never was."""
        row = self._db.execute("SELECT value FROM about WHERE key = ?", (f"{side}_filesystem",)).fetchone()
        return identity_in(row and row[0])

    def note_identity(self, side: str, identity: Identity) -> None:
        """From now on, this is the filesystem that the *side* is on."""
        fields = identity._asdict() | {key: os.fsdecode(getattr(identity, key)) for key in ("place", "point")}
        value = json.dumps(fields).encode("ascii")
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (f"{side}_filesystem", value))

    def known_in(self, folders: Iterable[bytes]) -> dict[bytes, Known]:
        """Return what is known about the files of *folders*, by path."""
        known = {}
        query = f"SELECT name, {rowsums.IS_SOUND}, {', '.join(Known._fields)} FROM file WHERE folder = ?"
        for folder in folders:
            prefix = folder + b"/" if folder else b""
            for name, is_sound, *rest in self._db.execute(query, (folder,)):
                if is_sound:
                    known[prefix + name] = Known(*rest)
                else:
                    self._doubt("file", prefix + name)
        return known

    def known(self, paths: Iterable[bytes]) -> dict[bytes, Known]:
        """Return what is known about *paths*."""
        known = {}
        query = f"SELECT {rowsums.IS_SOUND}, {', '.join(Known._fields)} FROM file WHERE folder = ? AND name = ?"
        for path in paths:
            row = self._db.execute(query, os.path.split(path)).fetchone()
            if row is not None and row[0]:
                known[path] = Known(*row[1:])
            elif row is not None:
                self._doubt("file", path)
        return known

    def checkpoint_of(self, path: bytes) -> Checkpoint | None:
        """Return where the transfer of *path* can be continued; None where nothing is known, or nothing sound."""
        row = self._db.execute(
            f"SELECT sum = sum_of({rowsums.CHECKPOINT}),"
            " partial, dev, ino, size, mtime_ns, ctime_ns, offset, digests, growing FROM checkpoint WHERE path = ?",
            (path,),
        ).fetchone()
        if row is None:
            return None
        is_sound, partial, dev, ino, *rest, offset, digests, growing = row
        if is_sound:
            fingerprint = Fingerprint(dev & _64_BITS, ino & _64_BITS, *rest)
            checkpoint = Checkpoint(partial, fingerprint, offset, digests, bool(growing))
            if checkpoint.is_coherent():
                return checkpoint
        self._doubt("checkpoint", path)
        return None

    def transfer_of(self, path: bytes, dev: int, ino: int) -> tuple[bytes, Checkpoint] | None:
        """
        Return the transfer in progress of this file, and the name that it had then; of several its present one.

        If there is none, that of what was called *path* before.
        """
        query = "SELECT path FROM checkpoint WHERE dev = ? AND ino = ? ORDER BY path <> ?"
        names = [name for (name,) in self._db.execute(query, (_signed(dev), _signed(ino), path))]
        return next(((name, row) for name in [*names, path] if (row := self.checkpoint_of(name)) is not None), None)

    def move_checkpoint(self, old: bytes, new: bytes, checkpoint: Checkpoint) -> None:
        """What was called *old* is called *new*, and goes on at *checkpoint*."""
        self.drop_checkpoint(old)
        self.save_checkpoint(new, checkpoint)

    def save_checkpoint(self, path: bytes, checkpoint: Checkpoint) -> None:
        dev, ino, *rest = checkpoint.fingerprint
        row: list[rowsums.Value] = [path, checkpoint.partial, _signed(dev), _signed(ino), *rest]
        row += [checkpoint.offset, checkpoint.digests, now(), int(checkpoint.growing)]
        self._db.execute(
            "INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, rowsums.sum_of(*row)),
        )

    def drop_checkpoint(self, path: bytes) -> None:
        self._db.execute("DELETE FROM checkpoint WHERE path = ?", (path,))

    def drop_checkpoints_into(self, partials: Iterable[bytes]) -> None:
        """Forget the transfers that write *partials*."""
        self._db.executemany("DELETE FROM checkpoint WHERE partial = ?", ((partial,) for partial in partials))

    def transfers_into(self, partials: Iterable[bytes]) -> dict[bytes, tuple[bytes, Checkpoint]]:
        """Return, for those of *partials* that a transfer in progress writes, its file and its checkpoint."""
        transfers = {}
        for partial in partials:
            row = self._db.execute("SELECT path FROM checkpoint WHERE partial = ?", (partial,)).fetchone()
            if row is not None and (checkpoint := self.checkpoint_of(row[0])) is not None:
                transfers[partial] = row[0], checkpoint
        return transfers

    def record(self, entries: Iterable[Entry]) -> None:
        """Record outcomes: the newest knowledge about each file, and one line of history."""
        time = now()
        entries = list(entries)
        rows = (
            (
                *os.path.split(e.path),
                e.outcome,
                e.removal,
                e.target,
                e.fingerprint.size,
                e.fingerprint.mtime_ns,
                e.fingerprint.ctime_ns,
                e.digest,
                e.closed,
            )
            for e in entries
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((*row, rowsums.sum_of(*row)) for row in rows),
        )
        self._db.executemany("DELETE FROM checkpoint WHERE path = ?", ((e.path,) for e in entries))
        self.add_history(
            Line(time, e.outcome, e.path, e.target, e.fingerprint.size, e.digest, e.detail) for e in entries
        )

    def forget_failure(self, path: bytes) -> None:
        """Let a file that failed, or was skipped, be tried again by this run."""
        query = "DELETE FROM file WHERE folder = ? AND name = ? AND outcome IN ('failed', 'skipped')"
        self._db.execute(query, os.path.split(path))

    def record_removals(self, removals: Iterable[Removal]) -> None:
        """Record which sources were removed, with the proofs, or why they were not."""
        removals = list(removals)
        sum_of = rowsums.FILE.replace("removal", "?1")
        self._db.executemany(
            f"UPDATE file SET removal = ?1, sum = sum_of({sum_of}) WHERE folder = ?2 AND name = ?3"
            f" AND {rowsums.IS_SOUND}",  # what is damaged does not become sound
            ((r.outcome, *os.path.split(r.path)) for r in removals),
        )
        time = now()
        self.add_history(Line(time, r.outcome, r.path, r.target, r.size, None, r.detail) for r in removals)

    def add_history(self, lines: Iterable[Line]) -> None:
        """Record what has happened, beside the outcomes."""
        self._db.executemany(
            "INSERT INTO history (time, event, path, target, size, digest, detail) VALUES (?, ?, ?, ?, ?, ?, ?)", lines
        )


class Request:
    """One call of a ``Ledger`` method, and where its answer goes."""

    def __init__(self, call: Callable[[Ledger], Any]) -> None:
        self.call = call
        self.done = trio.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class Port:
    """How tasks reach the ledger task. Each task holds a clone; the ledger task ends when all are closed."""

    def __init__(self, requests: trio.MemorySendChannel[Request]) -> None:
        self._requests = requests

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()

    def clone(self) -> Port:
        return Port(self._requests.clone())

    async def call(self, method: Callable[Concatenate[Ledger, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Run *method* in a transaction and return its value once that is committed.

        Raises ``LedgerError`` if the ledger has failed. When cancelled, the method may have run or not.
        """
        request = Request(lambda ledger: method(ledger, *args, **kwargs))
        try:
            await self._requests.send(request)
        except trio.BrokenResourceError:
            raise LedgerError("the ledger has failed") from None
        await request.done.wait()
        if request.error is not None:
            raise request.error
        value: T = request.value
        return value


def open_port(capacity: int) -> tuple[Port, trio.MemoryReceiveChannel[Request]]:
    """Return the two ends of the way to the ledger task."""
    send, receive = trio.open_memory_channel[Request](capacity)
    return Port(send), receive


async def forget_old_history(ledger: Port, keep: float) -> None:
    """Have history older than *keep* seconds forgotten, now and then, in pieces. Runs until cancelled."""
    with ledger:
        while True:
            while await ledger.call(Ledger.forget_history, keep):
                pass
            await trio.sleep(_FORGET_EVERY)
