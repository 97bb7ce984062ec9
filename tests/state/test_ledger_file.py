"""The ledger's file: how it is made, brought up to date, and refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entries import FINGERPRINT, checkpoint, do, entry, history, rows
from trioft.core.errors import LedgerError
from trioft.state import rowsums
from trioft.state import schema as schema_module
from trioft.state.ledger import Known, Ledger, ledger_path


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "pair.sqlite")


@pytest.fixture
def ledger(path: str) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(path)) as ledger:
        yield ledger


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_ledger_can_be_recognized_and_read_without_trioft(path: str, ledger: Ledger) -> None:
    """It is an SQLite file that says whose it is, which version of it, and which two ends it is about."""
    do(ledger, (Ledger.begin_run, b"/source", b"/destination"))
    assert rows(path, "PRAGMA application_id") == [(0x7472696F,)]
    assert rows(path, "PRAGMA user_version") == [(5,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    about = dict(rows(path, "SELECT key, value FROM about"))
    assert about["source"] == b"/source"
    assert about["destination"] == b"/destination"
    assert about["made_by"].startswith(b"trioft ")
    tables = dict(rows(path, "SELECT name, sql FROM sqlite_schema WHERE type = 'table'"))
    assert set(tables) == {"about", "file", "checkpoint", "history", "unlisted"}
    assert all(sql.rstrip().rpartition(")")[2].strip().startswith("STRICT") for sql in tables.values())


def test_what_a_ledger_commits_survives_a_power_cut(ledger: Ledger) -> None:
    """A source may be removed because of a row: every commit is synced to the disk."""
    full = 2
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (full,)


def test_a_ledger_is_opened_again_with_all_it_knew(path: str) -> None:
    """Closing and opening changes nothing."""
    for number in range(3):
        with contextlib.closing(Ledger(path)) as ledger:
            do(ledger, (Ledger.record, [entry(b"file-%d" % number)]))
            assert len(history(ledger)) == number + 1
    assert rows(path, "SELECT count(*) FROM about WHERE key = 'made_by'") == [(1,)]


def test_an_empty_file_becomes_a_ledger(path: str) -> None:
    """What a crash leaves of a ledger that was never written is no reason to refuse work."""
    Path(path).touch()
    Ledger(path).close()
    assert rows(path, "PRAGMA user_version") == [(5,)]


def test_each_pair_has_its_own_file() -> None:
    """The same pair always finds its ledger; another pair never does, however similar its paths are."""
    pairs = [(b"/a", b"/b"), (b"/b", b"/a"), (b"/a/b", b""), (b"/a", b"/b/"), (b"/a\xff", b"/b"), (b"/", b"a/b")]
    paths = {ledger_path("/state", *pair) for pair in pairs}
    assert len(paths) == len(pairs)
    assert paths == {ledger_path("/state", *pair) for pair in pairs}
    assert {os.path.dirname(path) for path in paths} == {"/state"}
    assert {os.path.splitext(path)[1] for path in paths} == {".sqlite"}


# --- older ones -------------------------------------------------------------------------------------------------------

# The schema of version 1. There are ledgers of it, and this is what they are like: it is never changed.
_VERSION_1 = """
CREATE TABLE about (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE file (
    folder    BLOB NOT NULL,
    name      BLOB NOT NULL,
    outcome   TEXT NOT NULL CHECK (outcome IN ('delivered', 'already', 'skipped', 'failed')),
    removal   TEXT NOT NULL DEFAULT '' CHECK (removal IN ('', 'pending', 'removed', 'refused')),
    target    BLOB NOT NULL,
    size      INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,
    digest    BLOB,
    PRIMARY KEY (folder, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX file_to_try_again ON file (outcome) WHERE outcome IN ('failed', 'skipped');
CREATE TABLE checkpoint (
    path      BLOB PRIMARY KEY,
    partial   BLOB NOT NULL,
    dev       INTEGER NOT NULL,
    ino       INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,
    offset    INTEGER NOT NULL,
    digests   BLOB NOT NULL,
    time      TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX checkpoint_by_partial ON checkpoint (partial);
CREATE TABLE history (
    id        INTEGER PRIMARY KEY,
    time      TEXT NOT NULL,
    event     TEXT NOT NULL,
    path      BLOB NOT NULL,
    target    BLOB NOT NULL,
    size      INTEGER NOT NULL,
    digest    BLOB,
    detail    TEXT NOT NULL
) STRICT;
CREATE INDEX history_by_path ON history (path);
CREATE INDEX history_by_time ON history (time);
PRAGMA application_id = 0x7472696F;
PRAGMA user_version = 1;
"""


def made_by_version_1(path: str) -> dict[str, list[Any]]:
    """Make a ledger as version 1 wrote it; return its rows, by table."""
    time = "2026-01-02T03:04:05.678Z"
    contents: dict[str, list[Any]] = {
        "about": [("destination", b"/destination"), ("made_by", b"trioft 0"), ("source", b"/source")],
        "file": [
            (b"", name, "delivered", "pending", b"at/" + name, *FINGERPRINT[2:], b"d" * 16) for name in (b"a", b"\xff")
        ],
        "checkpoint": [(b"b", checkpoint(b"b").partial, *FINGERPRINT, 2**33, bytes(range(32)) * 512, time)],
        "history": [(7, time, "delivered", b"a", b"at/a", FINGERPRINT.size, b"d" * 16, "a detail")],
    }
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(_VERSION_1)
        db.execute("PRAGMA journal_mode = WAL")
        for table, its_rows in contents.items():
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(its_rows[0]))})", its_rows)
    return contents


def schema_of(path: str) -> dict[str, list[Any]]:
    """Return the columns of every table, and the indexes with their columns."""
    schema = {
        name: rows(path, f"PRAGMA {'table_xinfo' if kind == 'table' else 'index_xinfo'}({name})")
        for kind, name in rows(path, "SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")
    }
    schema["strict"] = sorted(rows(path, "SELECT name, strict, wr FROM pragma_table_list WHERE schema = 'main'"))
    return schema


def test_a_ledger_of_version_1_is_brought_up_to_date_with_all_it_knew(path: str, tmp_path: Path) -> None:
    """Who updates trioft copies nothing again, and loses no history: what an older one did not know is empty."""
    contents = made_by_version_1(path)
    ids: set[bytes] = set()
    for _ in range(2):  # the second time, there is nothing left to do
        with contextlib.closing(Ledger(path)) as ledger:
            assert ledger.checkpoint_of(b"b") == checkpoint(b"b", growing=False)
            assert ledger.transfer_of(b"renamed", *FINGERPRINT[:2]) == (b"b", checkpoint(b"b"))
            assert set(ledger.known_in([b""])) == {b"a", b"\xff"}
            assert ledger.known([b"a"]) == {b"a": Known("delivered", "pending", *FINGERPRINT[2:], b"at/a")}
            ids.add(ledger.id)
        assert rows(path, "PRAGMA user_version") == [(5,)]
        assert rows(path, "SELECT * FROM about WHERE key <> 'id' ORDER BY key") == contents["about"]
        assert rows(path, "SELECT * FROM file ORDER BY name") == [(*row, "", None) for row in contents["file"]]
        (row,) = contents["checkpoint"]
        assert rows(path, "SELECT * FROM checkpoint") == [(*row, 0, rowsums.sum_of(*row, 0))]
        assert rows(path, "SELECT * FROM history") == contents["history"]
    assert [len(one) for one in ids] == [16]  # it has got one, and keeps it
    new = str(tmp_path / "new.sqlite")
    Ledger(new).close()
    assert schema_of(path) == schema_of(new)


def test_a_ledger_of_version_1_works_like_a_new_one(path: str) -> None:
    """What is written to it once it has been brought up to date is what a new one would hold."""
    made_by_version_1(path)
    with contextlib.closing(Ledger(path)) as ledger:
        do(
            ledger,
            (Ledger.begin_run, b"/source", b"/destination"),
            (Ledger.move_checkpoint, b"b", b"c", checkpoint(b"c", growing=True)),
            (Ledger.record, [entry(b"a")]),
        )
    with contextlib.closing(Ledger(path)) as ledger:
        assert (ledger.checkpoint_of(b"b"), ledger.checkpoint_of(b"c")) == (None, checkpoint(b"c", growing=True))
    assert rows(path, "SELECT closed FROM file WHERE name = x'61'") == [("proved",)]


def test_an_update_that_is_cut_short_has_not_begun(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, or a full disk, in the middle leaves the ledger as it was; the next start does it."""
    contents = made_by_version_1(path)
    before = schema_of(path)
    with monkeypatch.context() as patch:
        broken = schema_module.MIGRATIONS[1] + "no such statement;"
        patch.setattr(schema_module, "MIGRATIONS", {**schema_module.MIGRATIONS, 1: broken})
        with pytest.raises(LedgerError, match=r"pair\.sqlite.*syntax error"):
            Ledger(path)
    assert (schema_of(path), rows(path, "PRAGMA user_version")) == (before, [(1,)])
    assert rows(path, "SELECT * FROM checkpoint") == contents["checkpoint"]
    Ledger(path).close()
    assert rows(path, "PRAGMA user_version") == [(5,)]


# --- refusals ---------------------------------------------------------------------------------------------------------


def _foreign(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")


def _foreign_in_wal_mode(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA journal_mode = WAL; PRAGMA user_version = 1; CREATE TABLE file (x)")


def _newer(path: str) -> None:
    Ledger(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 6")


def _text(path: str) -> None:
    Path(path).write_text("Somebody's notes, which happen to lie where a ledger would be.\n" * 100)


def _damaged_head(path: str) -> None:
    Ledger(path).close()
    with open(path, "r+b") as file:
        file.write(b"\0" * 16)


def _cut(path: str) -> None:
    Ledger(path).close()
    os.truncate(path, 5000)


def _overwritten(path: str) -> None:
    Ledger(path).close()
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * (size - 100))


@pytest.mark.parametrize(
    ("make", "text", "hint"),
    [
        (_foreign, "no ledger of trioft", "move it away"),
        (_foreign_in_wal_mode, "no ledger of trioft", "move it away"),
        (_newer, "written by a newer trioft (ledger version 6, this one knows 5)", "use the newer trioft"),
        (_text, "file is not a database", "move it away"),
        (_damaged_head, "file is not a database", "move it away"),
        (_cut, "malformed", "move it away"),
        (_overwritten, "malformed", "move it away"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_file_that_is_no_ledger_of_ours_is_refused_and_left_as_it_is(
    make: Any, text: str, hint: str, path: str, tmp_path: Path
) -> None:
    """It may be all that somebody has: it is named, a hint says what to do, and nothing is written."""
    make(path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(LedgerError, match=r"pair\.sqlite") as caught:
        Ledger(path)
    assert text in str(caught.value)
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_ledger_that_cannot_be_opened_is_named_with_a_hint(path: str) -> None:
    """A folder in its place is not a bug in trioft."""
    os.mkdir(path)
    with pytest.raises(LedgerError, match=r"pair\.sqlite.*unable to open") as caught:
        Ledger(path)
    assert caught.value.hint is not None
    assert caught.value.exit_code == 3
