"""The ledger: what it holds, when it is on disk, and how it fails."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from entries import FINGERPRINT, checkpoint, do, entry, history, rows
from support import PATIENCE
from trioft.core.errors import LedgerError
from trioft.core.model import Fingerprint
from trioft.state import claims
from trioft.state.keeper import run_ledger
from trioft.state.ledger import Entry, Known, Ledger, Port, Removal, open_port

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


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "pair.sqlite")


@pytest.fixture
def ledger(path: str) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(path)) as ledger:
        yield ledger


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
