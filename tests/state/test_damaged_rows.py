"""Rows of the ledger that a bad disk has changed: not believed, and said."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from entries import checkpoint, do, entry
from trioft.core.model import BLOCK_SIZE
from trioft.state import claims, rowsums
from trioft.state.keeper import run_ledger
from trioft.state.ledger import Ledger, Removal, open_port
from trioft.state.reader import Filter, Records


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "pair.sqlite")


def execute(path: str, query: str, *values: Any) -> None:
    """Change the file, as a bad disk could."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        rowsums.teach(db)
        db.execute(query, values)


@pytest.mark.parametrize(
    "change",
    [
        "offset = offset | 8388608",
        "offset = offset + 1",
        "ino = ino + 1",
        "size = size - 1",
        "mtime_ns = mtime_ns + 1",
        "growing = 1",
        "partial = x'61'",
        "digests = zeroblob(32)",
        "sum = NULL",
        "sum = x'0000000000000000'",
    ],
)
def test_a_damaged_checkpoint_is_not_believed(change: str, path: str) -> None:
    """Whatever has changed in it: the transfer begins from what the partial and the source hold."""
    with contextlib.closing(Ledger(path)) as ledger:
        do(ledger, (Ledger.save_checkpoint, b"a", checkpoint(b"a", 2 * BLOCK_SIZE)))
        do(ledger, (Ledger.save_checkpoint, b"b", checkpoint(b"b", 3 * BLOCK_SIZE)))
        execute(path, f"UPDATE checkpoint SET {change} WHERE path = x'61'")
        assert ledger.checkpoint_of(b"a") is None
        assert ledger.transfer_of(b"a", 1, 2) is None
        assert ledger.transfers_into([b"a", checkpoint(b"a").partial]) == {}
        assert ledger.checkpoint_of(b"b") == checkpoint(b"b", 3 * BLOCK_SIZE)
        (said,) = ledger.doubts()
        assert "the row about a in the ledger is damaged" in said
        assert ledger.checkpoint_of(b"a") is None
        assert ledger.doubts() == []  # once


def test_an_offset_has_to_fit_its_digests_whoever_has_written_it(path: str) -> None:
    """A checkpoint that says more than its blocks' digests cover is none, even if it is as it was written."""
    with contextlib.closing(Ledger(path)) as ledger:
        do(ledger, (Ledger.save_checkpoint, b"a", checkpoint(b"a", BLOCK_SIZE)._replace(offset=3 * BLOCK_SIZE)))
        assert ledger.checkpoint_of(b"a") is None


def test_a_start_forgets_damaged_checkpoints(path: str) -> None:
    """Also such whose file nobody will ever ask for, as its name has changed."""
    with contextlib.closing(Ledger(path)) as ledger:
        do(ledger, (Ledger.save_checkpoint, b"a", checkpoint(b"a", BLOCK_SIZE)))
        execute(path, "UPDATE checkpoint SET path = x'63'")
        do(ledger, (Ledger.begin_run, b"/s", b"/d"))
        assert ledger.execute("SELECT count(*) FROM checkpoint").fetchone() == (0,)
        assert len(ledger.doubts()) == 1


@pytest.mark.parametrize(
    "change", ["outcome = 'already'", "size = 1", "mtime_ns = 0", "digest = NULL", "target = x'62'"]
)
def test_a_damaged_delivery_is_not_believed(change: str, path: str) -> None:
    """The file is looked at again; what is on record of it is not told for true."""
    with contextlib.closing(Ledger(path)) as ledger:
        do(ledger, (Ledger.record, [entry(b"a"), entry(b"b"), entry(b"x/c")]))
        execute(path, f"UPDATE file SET {change} WHERE name = x'61'")
        assert set(ledger.known_in([b"", b"x"])) == {b"b", b"x/c"}
        assert set(ledger.known([b"a", b"b"])) == {b"b"}
        assert len(ledger.doubts()) == 1
        do(ledger, (Ledger.record_removals, [Removal(b"a", b"at/a", 1, "removed", "{}")]))
        assert set(ledger.known([b"a"])) == set()  # it has not become sound
    with contextlib.closing(Records(path)) as records:
        assert records.file(b"a") is None
        assert records.file(b"b") is not None
        assert len(list(records.deliveries(Filter()))) >= 2


def test_what_trioft_itself_changes_stays_sound(path: str) -> None:
    """A removal, and a name that goes to another file, are changes of rows too."""
    with contextlib.closing(Ledger(path)) as ledger:
        do(ledger, (Ledger.record, [entry(b"a"), entry(b"b")]))
        do(ledger, (Ledger.record_removals, [Removal(b"a", b"at/a", 1, "removed", "{}")]))
        do(ledger, (claims.pass_on, [entry(b"z")._replace(target=b"at/b")]))
        known = ledger.known([b"a", b"b"])
        assert (known[b"a"].removal, known[b"b"].target) == ("removed", b"")
        assert ledger.doubts() == []


def test_rows_of_older_versions_are_believed_and_new_ones_are_not_without_a_digest(path: str) -> None:
    """Deliveries from before version 5 have none, and are what makes an update copy nothing again."""
    with contextlib.closing(Ledger(path)) as ledger:
        do(ledger, (Ledger.record, [entry(b"a")]))
        execute(path, "UPDATE file SET sum = NULL")
        assert set(ledger.known([b"a"])) == {b"a"}


def test_each_ledger_has_an_id_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    """Also one that somebody has taken it from gets another one, not that of all others."""
    ids = []
    for name in ("one", "two", "one"):
        with contextlib.closing(Ledger(str(tmp_path / name))) as ledger:
            ids.append(ledger.id)
    assert ids[0] == ids[2] != ids[1]
    assert {len(one) for one in ids} == {16}
    execute(str(tmp_path / "two"), "DELETE FROM about WHERE key = 'id'")
    with contextlib.closing(Ledger(str(tmp_path / "two"))) as ledger:
        assert len(ledger.id) == 16
        assert ledger.id not in ids


async def test_what_is_not_believed_is_told_while_an_agent_runs(path: str) -> None:
    """By the task that owns the ledger, once for each row."""
    ledger = Ledger(path)
    do(ledger, (Ledger.save_checkpoint, b"a", checkpoint(b"a", BLOCK_SIZE)))
    execute(path, "UPDATE checkpoint SET size = 1")
    told: list[str] = []
    port, requests = open_port(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_ledger, ledger, requests, None, told.append)
        with port:
            for _ in range(3):
                assert await port.call(Ledger.checkpoint_of, b"a") is None
    assert len(told) == 1
