"""The ledger: what it holds, when it is on disk, how it fails, and who may open it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from support import PATIENCE
from trioft.core.errors import LedgerError, LockedError, UnusableError
from trioft.core.model import Checkpoint, Fingerprint
from trioft.state import claims
from trioft.state import ledger as ledger_module
from trioft.state.ledger import Entry, Known, Ledger, Port, Removal, ledger_path, open_port, run_ledger
from trioft.state.lock import Lock

FINGERPRINT = Fingerprint(dev=2049, ino=131, size=20_000_000, mtime_ns=1_700_000_000_123_456_789, ctime_ns=-1)
# Every byte that a name may have, and names that SQL, UTF-8 or a path library could trip over.
ODD_PATHS = [
    b"plain.mov",
    b"folder/below/name.mov",
    bytes(range(1, 47)) + bytes(range(48, 256)),
    b"folder/\xff\xfe not UTF-8",
    b"a'; DROP TABLE file; --",
    "Ünïcödé/文件.mov".encode(),
    b"trailing space /new\nline",
    b"%s?/:name",
]


def entry(path: bytes, outcome: str = "delivered", *, removal: str = "", digest: bytes | None = b"d" * 16) -> Entry:
    return Entry(outcome, path, b"at/" + path, FINGERPRINT, digest, "a detail", removal, "proved")


def checkpoint(
    path: bytes, offset: int = 2**33, digests: bytes = bytes(range(32)), growing: bool = False
) -> Checkpoint:
    return Checkpoint(path + b".0123abcd.partial", FINGERPRINT, offset, digests, growing)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "pair.sqlite")


@pytest.fixture
def ledger(path: str) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(path)) as ledger:
        yield ledger


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


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_ledger_can_be_recognized_and_read_without_trioft(path: str, ledger: Ledger) -> None:
    """It is an SQLite file that says whose it is, which version of it, and which two ends it is about."""
    do(ledger, (Ledger.begin_run, b"/source", b"/destination"))
    assert rows(path, "PRAGMA application_id") == [(0x7472696F,)]
    assert rows(path, "PRAGMA user_version") == [(4,)]
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
    assert rows(path, "PRAGMA user_version") == [(4,)]


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
        "checkpoint": [(b"b", checkpoint(b"b").partial, *FINGERPRINT, 2**33, bytes(range(32)), time)],
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
    for _ in range(2):  # the second time, there is nothing left to do
        with contextlib.closing(Ledger(path)) as ledger:
            assert ledger.checkpoint_of(b"b") == checkpoint(b"b", growing=False)
            assert ledger.transfer_of(b"renamed", *FINGERPRINT[:2]) == (b"b", checkpoint(b"b"))
            assert set(ledger.known_in([b""])) == {b"a", b"\xff"}
            assert ledger.known([b"a"]) == {b"a": Known("delivered", "pending", *FINGERPRINT[2:], b"at/a")}
        assert rows(path, "PRAGMA user_version") == [(4,)]
        assert rows(path, "SELECT * FROM about ORDER BY key") == contents["about"]
        assert rows(path, "SELECT * FROM file ORDER BY name") == [(*row, "") for row in contents["file"]]
        assert rows(path, "SELECT * FROM checkpoint") == [(*row, 0) for row in contents["checkpoint"]]
        assert rows(path, "SELECT * FROM history") == contents["history"]
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
        broken = ledger_module._MIGRATIONS[1] + "no such statement;"
        patch.setattr(ledger_module, "_MIGRATIONS", {**ledger_module._MIGRATIONS, 1: broken})
        with pytest.raises(LedgerError, match=r"pair\.sqlite.*syntax error"):
            Ledger(path)
    assert (schema_of(path), rows(path, "PRAGMA user_version")) == (before, [(1,)])
    assert rows(path, "SELECT * FROM checkpoint") == contents["checkpoint"]
    Ledger(path).close()
    assert rows(path, "PRAGMA user_version") == [(4,)]


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
        db.execute("PRAGMA user_version = 5")


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
        (_newer, "written by a newer trioft (ledger version 5, this one knows 4)", "use the newer trioft"),
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


# --- what it knows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD_PATHS, ids=range(len(ODD_PATHS)))
def test_a_checkpoint_comes_back_as_it_was_saved(name: bytes, path: str, ledger: Ledger) -> None:
    """Names are bytes, offsets are large, digests are binary: none of it changes on the way through SQLite."""
    do(ledger, (Ledger.save_checkpoint, name, checkpoint(name)))
    ledger.close()
    with contextlib.closing(Ledger(path)) as again:
        assert again.checkpoint_of(name) == checkpoint(name)
        assert again.checkpoint_of(name + b"x") is None
        assert again.checkpoint_of(name[:-1]) is None


def test_that_a_file_was_growing_is_kept_with_its_checkpoint(path: str, ledger: Ledger) -> None:
    """What is below such a checkpoint may have been rewritten since: a restart that forgot that would believe it."""
    for growing in (True, False, True):
        saved = checkpoint(b"file", growing=growing)
        do(ledger, (Ledger.save_checkpoint, b"file", saved))
        again = ledger.checkpoint_of(b"file")
        assert again == saved
        assert again.growing is growing
        assert rows(path, "SELECT growing FROM checkpoint") == [(int(growing),)]


@pytest.mark.parametrize(
    "changes",
    [
        {"dev": 2**64 - 1, "ino": 2**64 - 1},
        {"dev": 2**63, "ino": 2**63},
        {"mtime_ns": -(2**63), "ctime_ns": 2**63 - 1},
        {"size": 2**63 - 1},
        dict.fromkeys(Fingerprint._fields, 0),
    ],
    ids=["largest-inode", "first-beyond-signed", "oldest-and-newest-time", "largest-size", "zeros"],
)
def test_a_checkpoint_holds_every_fingerprint_that_a_filesystem_can_give(
    changes: dict[str, int], ledger: Ledger
) -> None:
    """Some servers use all 64 bits of an inode number, and SQLite's integers have a sign."""
    saved = checkpoint(b"file")._replace(fingerprint=FINGERPRINT._replace(**changes))
    do(ledger, (Ledger.save_checkpoint, b"file", saved))
    assert ledger.checkpoint_of(b"file") == saved


def test_a_newer_checkpoint_replaces_the_older_one_and_a_dropped_one_is_gone(ledger: Ledger) -> None:
    """There is one checkpoint for a file, the last."""
    do(
        ledger,
        (Ledger.save_checkpoint, b"file", checkpoint(b"file", 8)),
        (Ledger.save_checkpoint, b"file", checkpoint(b"file", 16)),
        (Ledger.save_checkpoint, b"other", checkpoint(b"other", 24)),
    )
    assert ledger.checkpoint_of(b"file") == checkpoint(b"file", 16)
    do(ledger, (Ledger.drop_checkpoint, b"file"))
    assert ledger.checkpoint_of(b"file") is None
    assert ledger.checkpoint_of(b"other") == checkpoint(b"other", 24)


def test_partials_that_nobody_continues_are_told_from_those_that_somebody_does(ledger: Ledger) -> None:
    """Only what no checkpoint belongs to may ever be swept away, or what the checkpoint's file is gone of."""
    mine, orphan = checkpoint(b"\xff").partial, b"\xff.99999999.partial"
    do(ledger, (Ledger.save_checkpoint, b"\xff", checkpoint(b"\xff", growing=True)))
    assert ledger.transfers_into([orphan, mine]) == {mine: (b"\xff", checkpoint(b"\xff", growing=True))}
    assert ledger.transfers_into([]) == {}


OTHER = FINGERPRINT._replace(ino=99)


def test_a_transfer_in_progress_is_found_by_the_file_or_else_by_its_name(ledger: Ledger) -> None:
    """A recording that was renamed goes on where it was, also if another one had its present name before."""
    here, there = checkpoint(b"here"), checkpoint(b"there")._replace(fingerprint=OTHER)
    do(ledger, (Ledger.save_checkpoint, b"here", here), (Ledger.save_checkpoint, b"there", there))
    dev, ino = FINGERPRINT[:2]
    assert ledger.transfer_of(b"here", dev, ino) == (b"here", here)
    assert ledger.transfer_of(b"renamed", dev, ino) == (b"here", here)
    assert ledger.transfer_of(b"renamed", dev, OTHER.ino) == (b"there", there)
    assert ledger.transfer_of(b"there", dev, ino) == (b"here", here)
    # The same name, and another file; neither; the same number on another device.
    assert ledger.transfer_of(b"here", dev, 1) == (b"here", here)
    assert ledger.transfer_of(b"renamed", dev, 1) is None
    assert ledger.transfer_of(b"renamed", dev + 1, ino) is None


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1])
def test_a_renamed_file_is_found_by_every_number_that_a_filesystem_can_give(number: int, ledger: Ledger) -> None:
    """Some servers use all 64 bits of an inode number, and SQLite's integers have a sign."""
    saved = checkpoint(b"file")._replace(fingerprint=FINGERPRINT._replace(dev=number, ino=number))
    do(ledger, (Ledger.save_checkpoint, b"file", saved))
    assert ledger.transfer_of(b"renamed", number, number) == (b"file", saved)


def test_a_checkpoint_moves_to_the_new_name_in_one_step(path: str, ledger: Ledger) -> None:
    """At every moment one of the two names has it: a crash loses no transfer, and leaves none twice."""
    do(ledger, (Ledger.save_checkpoint, b"old", checkpoint(b"old", 8)))
    moved = checkpoint(b"new", 8, growing=True)
    with pytest.raises(ZeroDivisionError):
        do(ledger, (Ledger.move_checkpoint, b"old", b"new", moved), (lambda _: 1 / 0,))
    assert rows(path, "SELECT path FROM checkpoint") == [(b"old",)]
    with ledger.transaction():
        ledger.move_checkpoint(b"old", b"new", moved)
        assert rows(path, "SELECT path FROM checkpoint") == [(b"old",)]  # as anybody else sees it
    assert rows(path, "SELECT path FROM checkpoint") == [(b"new",)]
    assert (ledger.checkpoint_of(b"old"), ledger.checkpoint_of(b"new")) == (None, moved)


def test_a_checkpoint_that_moves_replaces_what_its_new_name_had(ledger: Ledger) -> None:
    """There is one checkpoint for a file, also where another one had its name before."""
    do(
        ledger,
        (Ledger.save_checkpoint, b"old", checkpoint(b"old", 8)),
        (Ledger.save_checkpoint, b"new", checkpoint(b"new", 16)),
        (Ledger.move_checkpoint, b"old", b"new", checkpoint(b"new", 8)),
    )
    assert (ledger.checkpoint_of(b"old"), ledger.checkpoint_of(b"new")) == (None, checkpoint(b"new", 8))


@pytest.mark.parametrize("name", ODD_PATHS, ids=range(len(ODD_PATHS)))
def test_what_is_known_about_a_file_is_found_by_path_and_by_folder(name: bytes, path: str, ledger: Ledger) -> None:
    """A restart copies nothing twice: it asks for one folder at a time, or for single files."""
    expected = {name: Known("delivered", "", *FINGERPRINT[2:], entry(name).target)}
    do(ledger, (Ledger.record, [entry(name), entry(name + b".d/below"), entry(b"elsewhere/x")]))
    ledger.close()
    with contextlib.closing(Ledger(path)) as again:
        folder = os.path.dirname(name)
        assert again.known_in([folder]) == expected
        assert again.known([name, b"no such file"]) == expected
        assert set(again.known_in([folder, name + b".d", b"no such folder"])) == {name, name + b".d/below"}


def test_an_outcome_ends_the_checkpoint_and_is_a_line_of_history(ledger: Ledger) -> None:
    """What is delivered has nothing left to continue."""
    do(
        ledger,
        (Ledger.save_checkpoint, b"file", checkpoint(b"file")),
        (Ledger.save_checkpoint, b"other", checkpoint(b"other")),
        (Ledger.record, [entry(b"file")]),
    )
    assert ledger.checkpoint_of(b"file") is None
    assert ledger.checkpoint_of(b"other") is not None
    ((time, *line),) = history(ledger)
    assert line == ["delivered", b"file", b"at/file", FINGERPRINT.size, b"d" * 16, "a detail"]
    assert rows(ledger.path, "SELECT closed FROM file") == [("proved",)]
    assert abs(datetime.fromisoformat(time) - datetime.now(UTC)) < timedelta(seconds=PATIENCE)


def test_a_newer_outcome_replaces_what_is_known_but_not_the_history(ledger: Ledger) -> None:
    """The newest knowledge about a file counts; history is only ever added to."""
    do(
        ledger,
        (Ledger.record, [entry(b"file", "failed")]),
        (Ledger.record, [entry(b"file", "delivered", removal="pending")]),
    )
    assert ledger.known([b"file"])[b"file"][:2] == ("delivered", "pending")
    assert [line[1] for line in history(ledger)] == ["failed", "delivered"]


@pytest.mark.parametrize("name", ODD_PATHS, ids=range(len(ODD_PATHS)))
def test_who_was_delivered_under_a_name_is_known(name: bytes, path: str, ledger: Ledger) -> None:
    """No file replaces another one's: whether that has the name as its own, or a rule gave it."""
    other = b"other/" + name
    do(
        ledger,
        (Ledger.record, [entry(name)._replace(target=name), entry(b"x")._replace(target=other)]),
        (Ledger.record, [entry(other)._replace(outcome="failed", target=b"")]),
        (Ledger.record, [entry(b"z" + name)._replace(outcome="failed", target=name)]),  # as it is another one's
    )
    names = [(name, b"new"), (other, b"new"), (name, name), (other, b"x"), (b"free", b"new"), (b"", b"new")]
    assert claims.owners_of(ledger, names) == {name: name, other: b"x"}


def test_who_lost_a_name_to_another_file_is_not_there_any_more(ledger: Ledger) -> None:
    """Somebody took it away at the destination, and another file has come to its place."""

    def deliver(entries: list[Entry]) -> None:
        do(ledger, (claims.pass_on, entries), (Ledger.record, entries))

    deliver([entry(b"a")._replace(target=b"at/x"), entry(b"at/x")._replace(target=b"at/y")])
    deliver([entry(b"at/y")._replace(target=b"at/y")])
    deliver([entry(b"b")._replace(target=b"at/x")])
    assert {path: known.target for path, known in ledger.known([b"a", b"b", b"at/x", b"at/y"]).items()} == {
        b"a": b"", b"b": b"at/x", b"at/x": b"", b"at/y": b"at/y"
    }  # fmt: skip
    # What was found there already, and is equal, takes nothing away.
    deliver([entry(b"c")._replace(target=b"at/x", outcome="already")])
    assert ledger.known([b"b"])[b"b"].target == b"at/x"


@pytest.mark.parametrize("outcome", ["removed", "refused"])
def test_a_removal_is_recorded_with_its_proofs(outcome: str, ledger: Ledger) -> None:
    """Every removal of a source, and every refusal, can be looked up afterwards."""
    do(
        ledger,
        (Ledger.record, [entry(b"a/file", removal="pending"), entry(b"a/other", removal="pending")]),
        (Ledger.record_removals, [Removal(b"a/file", b"at/a/file", 7, outcome, "the proofs")]),
    )
    assert {path: known.removal for path, known in ledger.known_in([b"a"]).items()} == {
        b"a/file": outcome,
        b"a/other": "pending",
    }
    assert history(ledger)[-1][1:] == (outcome, b"a/file", b"at/a/file", 7, None, "the proofs")


def test_a_start_forgets_failures_and_keeps_what_was_delivered(ledger: Ledger) -> None:
    """A new start tries again what failed or was skipped, and nothing that has arrived; checkpoints stay."""
    outcomes = ["delivered", "already", "skipped", "failed"]
    do(
        ledger,
        (Ledger.record, [entry(outcome.encode(), outcome) for outcome in outcomes]),
        (Ledger.save_checkpoint, b"on its way", checkpoint(b"on its way")),
        (Ledger.begin_run, b"/source", b"/destination"),
    )
    assert set(ledger.known_in([b""])) == {b"delivered", b"already"}
    assert [line[1] for line in history(ledger)] == outcomes
    assert ledger.checkpoint_of(b"on its way") is not None


def test_history_that_is_older_than_wanted_is_forgotten(
    path: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, and not at a start only: it does not grow for ever. What is known about files stays, however old."""
    monkeypatch.setattr("trioft.state.ledger._FORGOTTEN_AT_A_TIME", 2)
    ages = {b"%d" % n: 3601 + n for n in range(5)} | {b"new": 3500}
    do(ledger, (Ledger.record, [entry(name) for name in ages]))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for name, seconds in ages.items():
            then = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
            db.execute("UPDATE history SET time = ? WHERE path = ?", (then.replace("+00:00", "Z"), name))
    with ledger.transaction():
        assert [ledger.forget_history(3600) for _ in range(4)] == [2, 2, 1, 0]
    assert [line[2] for line in history(ledger)] == [b"new"]
    assert set(ledger.known_in([b""])) == set(ages)


def test_what_was_forgotten_leaves_no_empty_pages(path: str, ledger: Ledger) -> None:
    """The file of a ledger gets smaller with what is in it."""
    do(ledger, (Ledger.record, [entry(b"file %d" % n)._replace(detail="x" * 1000) for n in range(1000)]))
    (before,) = rows(path, "PRAGMA page_count")[0]
    with ledger.transaction():
        assert ledger.forget_history(-60) == 1000
    assert rows(path, "PRAGMA freelist_count") == [(0,)]
    assert rows(path, "PRAGMA page_count")[0][0] < before / 4


def test_a_history_of_a_hundred_years_can_be_asked_for(ledger: Ledger) -> None:
    """The longest duration that the configuration takes is no date that a calendar does not have."""
    do(ledger, (Ledger.record, [entry(b"file")]))
    with ledger.transaction():
        assert ledger.forget_history(36_500 * 86_400) == 0
    assert len(history(ledger)) == 1


def test_a_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    """All or nothing, for a bug as well: half a delivery is never on record."""
    with pytest.raises(ZeroDivisionError):
        do(ledger, (Ledger.record, [entry(b"file")]), (lambda _: 1 / 0,))
    assert history(ledger) == []
    do(ledger, (Ledger.record, [entry(b"file")]))
    assert len(history(ledger)) == 1


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small filesystem")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert place.stat().st_dev != tmp_path.stat().st_dev
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("together", [100, 20_000], ids=["met-at-the-commit", "met-before-the-commit"])
def test_a_full_disk_is_told_as_such_and_loses_nothing_that_was_committed(together: int, small_disk: Path) -> None:
    """The error names the ledger and the reason; when there is space again, everything committed is there."""
    path = str(small_disk / "pair.sqlite")
    with contextlib.closing(Ledger(path)) as ledger:
        committed: list[bytes] = []

        def fill() -> None:
            while True:
                names = [b"%d" % number + b"x" * 100 for number in range(len(committed), len(committed) + together)]
                do(ledger, (Ledger.record, [entry(name) for name in names]))
                committed.extend(names)

        with pytest.raises(LedgerError, match=r"pair\.sqlite.*full") as caught:
            fill()
        assert caught.value.hint is not None
        assert "disk" in caught.value.hint
    assert bool(committed) == (together == 100)
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    with contextlib.closing(Ledger(path)) as ledger:
        assert ledger.known_in([b""]).keys() == set(committed)
        do(ledger, (Ledger.record, [entry(b"another")]))


# --- the task ---------------------------------------------------------------------------------------------------------


class Held:
    """A request that keeps the ledger busy until it is let go, so that others pile up behind it."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, ledger: Ledger) -> None:
        self.began.set()
        assert self.let_go.wait(PATIENCE)


async def began(held: Held) -> None:
    assert await trio.to_thread.run_sync(held.began.wait, PATIENCE)


async def test_a_call_returns_what_the_method_returns_once_that_is_committed(path: str, ledger: Ledger) -> None:
    """Who has been answered can rely on the row: anybody who opens the file finds it."""
    port, requests = open_port(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_ledger, ledger, requests)
        with port:
            await port.call(Ledger.record, [entry(b"file")])
            assert rows(path, "SELECT name FROM file") == [(b"file",)]
            assert await port.call(Ledger.known, [b"file"]) == {
                b"file": Known("delivered", "", *FINGERPRINT[2:], entry(b"file").target)
            }


async def test_what_piles_up_meanwhile_is_committed_together(path: str, ledger: Ledger) -> None:
    """Many files cost few syncs: requests that wait for a transaction to end share the next one."""
    held, seen = Held(), list[int]()

    def look_from_outside(_: Ledger) -> None:
        seen.extend(count for (count,) in rows(path, "SELECT count(*) FROM file"))

    port, requests = open_port(50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_ledger, ledger, requests)
        with port:
            async with trio.open_nursery() as callers:
                callers.start_soon(port.call, held)
                await began(held)
                for number in range(20):
                    callers.start_soon(port.call, Ledger.record, [entry(b"%d" % number)])
                    await trio.testing.wait_all_tasks_blocked()
                callers.start_soon(port.call, look_from_outside)
                await trio.testing.wait_all_tasks_blocked()
                held.let_go.set()
    assert seen == [0]  # it ran after the twenty, in the same transaction
    assert rows(path, "SELECT count(*) FROM file") == [(20,)]


async def test_the_ledger_outlives_a_cancellation_until_the_last_port_is_closed(path: str, ledger: Ledger) -> None:
    """A pipeline that is cancelled still gets its last rows committed."""
    port, requests = open_port(4)
    first, second = port.clone(), port.clone()
    ended = trio.Event()

    async def serve() -> None:
        await run_ledger(ledger, requests)
        ended.set()

    async def last_words(port: Port, name: bytes) -> None:
        with port:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await port.call(Ledger.record, [entry(name)])
                    assert not ended.is_set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(last_words, first, b"first")
        nursery.start_soon(last_words, second, b"second")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(PATIENCE):
            with port:
                await trio.testing.wait_all_tasks_blocked()
                await port.call(Ledger.record, [entry(b"third")])
                assert not ended.is_set()
            await ended.wait()
    assert rows(path, "SELECT name FROM file ORDER BY name") == [(b"first",), (b"second",), (b"third",)]


async def test_a_caller_that_gives_up_waiting_harms_nobody(path: str, ledger: Ledger) -> None:
    """A cancelled call may have happened or not; the next ones are served."""
    held = Held()
    port, requests = open_port(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_ledger, ledger, requests)
        with port:
            async with trio.open_nursery() as callers:
                callers.start_soon(port.call, held)
                await began(held)
                callers.start_soon(port.call, Ledger.record, [entry(b"given up")])
                await trio.testing.wait_all_tasks_blocked()
                callers.cancel_scope.cancel()
            held.let_go.set()
            await port.call(Ledger.record, [entry(b"file")])
    assert (b"file",) in rows(path, "SELECT name FROM file")


async def test_an_error_of_sqlite_fails_all_who_wait_and_ends_the_ledger(path: str, ledger: Ledger) -> None:
    """Nobody waits for ever for a ledger that has failed, and nobody hears that something was recorded that was not."""
    held, errors = Held(), list[str]()
    port, requests = open_port(3)  # of the ten that wait, three are in the channel, the others before it
    do(ledger, (Ledger.record, [entry(b"before")]))

    async def call(number: int) -> None:
        with pytest.raises(LedgerError) as caught:
            await port.call(Ledger.record, [entry(b"%d" % number)])
        errors.append(str(caught.value))

    async def break_it() -> None:
        await began(held)
        for number in range(10):
            callers.start_soon(call, number)
        await trio.testing.wait_all_tasks_blocked()
        held.let_go.set()

    def drop_a_table(broken: Ledger) -> None:
        held(broken)
        broken._db.execute("COMMIT")  # what another program could do meanwhile
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE history")
        broken._db.execute("BEGIN IMMEDIATE")

    with pytest.RaisesGroup(pytest.RaisesExc(LedgerError, match=r"pair\.sqlite.*no such table: history")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_ledger, ledger, requests)
            with trio.CancelScope(shield=True), port:
                async with trio.open_nursery() as callers:
                    callers.start_soon(port.call, drop_a_table)
                    callers.start_soon(break_it)
                with pytest.raises(LedgerError, match="the ledger has failed"):
                    await port.call(Ledger.known, [b"before"])
    assert len(errors) == 10
    assert all("the ledger has failed" in text for text in errors)
    assert rows(path, "SELECT name FROM file") == [(b"before",)]
    with pytest.raises(LedgerError, match="closed"):
        do(ledger, (Ledger.known, [b"before"]))


async def test_requests_of_a_failed_transaction_are_not_kept_in_part(path: str, ledger: Ledger) -> None:
    """One bad request takes those of its transaction with it: what was answered with an error is not on record."""
    held = Held()
    port, requests = open_port(10)

    async def call(name: bytes, outcome: str) -> None:
        with pytest.raises(LedgerError, match="CHECK constraint failed"):
            await port.call(Ledger.record, [entry(name, outcome)])

    with pytest.RaisesGroup(LedgerError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_ledger, ledger, requests)
            with trio.CancelScope(shield=True), port:
                async with trio.open_nursery() as callers:
                    callers.start_soon(port.call, held)
                    await began(held)
                    for name, outcome in ((b"good", "delivered"), (b"bad", "no such outcome")):
                        callers.start_soon(call, name, outcome)
                        await trio.testing.wait_all_tasks_blocked()
                    held.let_go.set()
    assert rows(path, "SELECT name FROM file") == []


# --- the lock ---------------------------------------------------------------------------------------------------------

_HOLDER = """
import sys, time
from trioft.state.lock import Lock

lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the lock."""
    command = [sys.executable, "-c", _HOLDER, path]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    """Two agents never work on one pair, and a person learns which process to look at."""
    path = str(tmp_path / "state" / "pair.lock")
    with holder(path) as process:
        with pytest.raises(LockedError, match=rf"process {process.pid}\b") as caught:
            Lock(path)
        assert caught.value.hint is not None
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_a_lock_is_free_again_when_its_process_ends(number: signal.Signals, tmp_path: Path) -> None:
    """The kernel releases it: nobody ever has to remove a lock file by hand."""
    path = str(tmp_path / "pair.lock")
    with holder(path) as process:
        process.send_signal(number)
        process.wait(PATIENCE)
        Lock(path).release()


def test_a_released_lock_can_be_taken_and_names_its_new_holder(tmp_path: Path) -> None:
    """What a former holder left in the file is not told of the next one."""
    path = str(tmp_path / "pair.lock")
    Path(path).write_text("123456789012345\n")
    Lock(path).release()
    lock = Lock(path)
    with pytest.raises(LockedError, match=rf"process {os.getpid()}$"):
        Lock(path)
    lock.release()


def test_a_state_directory_that_cannot_be_made_is_an_error_with_a_hint(tmp_path: Path) -> None:
    """A file in the way of the state directory is not a bug in trioft."""
    (tmp_path / "file").touch()
    with pytest.raises(UnusableError, match="cannot use the state directory") as caught:
        Lock(str(tmp_path / "file" / "pair.lock"))
    assert caught.value.hint is not None
    assert "--state-dir" in caught.value.hint


def test_the_state_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Names of files can be as confidential as the files."""
    lock = Lock(str(tmp_path / "state" / "pair.lock"))
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    lock.release()
