"""A `trioft sync` that was interrupted goes on where it stopped; what nobody goes on with is removed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
from contextlib import closing

import pytest

from support import Site, files_of, make_tree, pattern, wait_until
from synced import BLOCK, LARGE, interrupted, old, partials_of
from trioft.core.naming import partial_of
from trioft.state import rowsums
from trioft.state.ledger import Ledger

# --- Interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_sync_goes_on_where_it_stopped(site: Site, number: int) -> None:
    """A signal ends a sync with its exit code, no final name and a partial; the next run copies only the rest."""
    make_tree(site.source, {"a": LARGE})
    interrupted(site, number=number)
    (partial,) = partials_of(site.dest)
    assert re.fullmatch(r"a\.[0-9a-f]{16}\.trioft-partial", partial.name)
    assert os.listdir(site.dest) == [partial.name]
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= BLOCK
    assert done.summary["bytes"] + done.summary["bytes_resumed"] == LARGE
    assert files_of(site.dest) == files_of(site.source)


def test_a_source_that_has_another_device_number_goes_on_where_it_stopped(site: Site) -> None:
    """Shares and disks get another one with each mount: a file is still the same, and begins not from zero."""
    make_tree(site.source, {"a": LARGE})
    interrupted(site)
    (partial,) = partials_of(site.dest)
    status = (site.source / "a").stat()
    formerly = partial_of(b"a", status.st_dev + 1, status.st_ino)
    partial.rename(site.dest / os.fsdecode(formerly))
    (ledger,) = site.state.glob("*.sqlite")
    with closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE checkpoint SET dev = dev + 1, partial = ?", (formerly,))
        rowsums.teach(db)
        db.execute(f"UPDATE checkpoint SET sum = sum_of({rowsums.CHECKPOINT})")
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= BLOCK
    assert files_of(site.dest) == files_of(site.source)


def test_a_file_that_is_renamed_over_another_interrupted_one_goes_on_where_it_stopped(site: Site) -> None:
    """What had been copied of the one that it replaces is removed; what had been copied of it is not lost."""
    make_tree(site.source, {"a": LARGE, "b": pattern(LARGE, 5)})
    interrupted(site, "--exclude", "a")
    running = site.start("sync", "--bwlimit", "16MiB/s", "--exclude", "b")
    wait_until(lambda: any(path.stat().st_size > BLOCK for path in site.dest.glob("a.*.trioft-partial")))
    assert running.end(signal.SIGTERM).code == 143
    (site.source / "a").rename(site.source / "b")
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= BLOCK
    assert files_of(site.dest) == files_of(site.source)
    (ledger,) = site.state.glob("*.sqlite")
    with closing(sqlite3.connect(ledger)) as db:
        assert db.execute("SELECT path FROM checkpoint").fetchall() == []


def test_without_its_ledger_a_partial_is_nobodys_and_stays(site: Site) -> None:
    """With the state directory lost, nobody knows whose it is: the file is copied anew, `clean` tells of it."""
    make_tree(site.source, {"a": LARGE})
    interrupted(site, number=signal.SIGKILL)
    (partial,) = partials_of(site.dest)
    before = partial.read_bytes()
    shutil.rmtree(site.state)
    done = site.sync()
    assert (done.code, done.summary["bytes_resumed"]) == (0, 0)
    assert partial.read_bytes() == before
    assert (site.dest / "a").read_bytes() == (site.source / "a").read_bytes()
    assert partial.name in site.run("clean", site.dest, "--state-dir", site.state).out


@pytest.mark.parametrize("ledger", ["with the ledger", "without"])
@pytest.mark.parametrize("at", [5, BLOCK + 5], ids=["first block", "second block"])
def test_a_damaged_partial_never_becomes_a_file(site: Site, ledger: str, at: int) -> None:
    """Promise 1: what happened to a partial while trioft was away does not get into the final file."""
    make_tree(site.source, {"a": LARGE})
    interrupted(site, blocks=2)
    (partial,) = partials_of(site.dest)
    times = partial.stat().st_mtime_ns
    with open(partial, "r+b") as file:
        file.seek(at)
        file.write(b"damage")
    os.utime(partial, ns=(times, times))
    if ledger == "without":
        shutil.rmtree(site.state)
    assert site.sync().code == 0
    assert (site.dest / "a").read_bytes() == (site.source / "a").read_bytes()
    assert partial.exists() == (ledger == "without")


@pytest.mark.parametrize("how", ["another file", "rewritten", "longer", "shorter", "only touched"])
def test_two_versions_are_never_spliced(site: Site, how: str) -> None:
    """A source that was replaced or rewritten between two runs arrives as it is now, all of it."""
    make_tree(site.source, {"a": LARGE})
    interrupted(site)
    path = site.source / "a"
    match how:
        case "another file":
            make_tree(site.root, {"new": pattern(LARGE, 7)})
            (site.root / "new").rename(path)
        case "rewritten":
            path.write_bytes(pattern(LARGE, 7))
        case "longer":
            with path.open("ab") as file:
                file.write(b"more")
        case "shorter":
            os.truncate(path, 2 * BLOCK - 1)
        case "only touched":
            path.touch()
    done = site.sync()
    assert done.code == 0
    assert files_of(site.dest) == files_of(site.source)
    if how in ("longer", "only touched"):
        assert done.summary["bytes_resumed"] >= BLOCK


# --- Orphaned partials ------------------------------------------------------------------------------------------------


def test_orphaned_partials_are_removed(site: Site) -> None:
    """Partials of this ledger that nobody continues are removed after a day; younger ones, and all others', stay."""
    make_tree(site.source, {"a": b"1"})
    assert site.sync().code == 0
    (path,) = site.state.glob("*.sqlite")
    with closing(Ledger(str(path))) as ledger:
        mine = ledger.id
    orphans = [os.fsdecode(partial_of(name, 1, 2, ledger=mine)) for name in (b"x", b"not/in/source/y.mov")]
    young = os.fsdecode(partial_of(b"young", 1, 2, ledger=mine))
    foreign = os.fsdecode(partial_of(b"x", 1, 2, ledger=b"another"))
    others = ["movie.mkv.1a2b3c4d.partial", "no.trioft-partial", "folder.trioft-partial/file"]
    make_tree(site.dest, dict.fromkeys([*orphans, young, foreign, *others], b"?"))
    for name in [*orphans, foreign, *others]:
        old(site.dest / name, 1.1)
    old(site.dest / young, 0.9)
    done = site.sync()
    assert done.code == 0
    assert set(files_of(site.dest)) == {b"a", *(name.encode() for name in [young, foreign, *others])}
    told = [line["text"] for line in done.lines if line["event"] == "partial"]
    assert sorted(text.rpartition(": ")[2] for text in told) == sorted(orphans)
    assert all(name in done.err for name in orphans)


def test_a_partial_of_trioft_01_is_continued_by_the_ledger_that_knows_it(site: Site) -> None:
    """Who updates trioft in the middle of a large file copies nothing of it again; what was another's stays."""
    make_tree(site.source, {"a": LARGE})
    interrupted(site)
    (partial,) = partials_of(site.dest)
    partial.rename(site.dest / "a.0123abcd.partial")
    make_tree(site.dest, {"a.76543210.partial": b"another's"})
    (ledger,) = site.state.glob("*.sqlite")
    with closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE checkpoint SET partial = ?", (b"a.0123abcd.partial",))
        db.executescript(
            "ALTER TABLE checkpoint DROP COLUMN sum; ALTER TABLE file DROP COLUMN sum;"
            "DELETE FROM about WHERE key = 'id'; PRAGMA user_version = 4"
        )
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= BLOCK
    assert files_of(site.dest) == {**files_of(site.source), b"a.76543210.partial": b"another's"}


def test_partials_that_can_be_continued_are_kept(site: Site) -> None:
    """A partial with a checkpoint in the ledger is nobody's orphan, however old."""
    make_tree(site.source, {"a": LARGE, "b": b"1"})
    interrupted(site, "--exclude", "b")
    (partial,) = partials_of(site.dest)
    old(partial, 400)
    done = site.sync("--exclude", "a")
    assert done.code == 0
    assert set(os.listdir(site.dest)) == {partial.name, "b"}
    assert site.sync().summary["bytes_resumed"] >= BLOCK
    assert files_of(site.dest) == files_of(site.source)
