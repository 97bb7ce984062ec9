"""Case: a ledger with ten million rows: look-ups, a start, what a row takes, and what happens to history."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rows import TIMES, Row, compared
from workbench import TRIOFT, Bench, Run, show

from trioft.core.units import format_size
from trioft.state import rowsums
from trioft.state.ledger import Ledger, ledger_path

A_FOLDER = 100  # files
KEEP = 14 * 24 * 3600  # seconds of history
LOOKUPS = 200  # of each kind
# What a year of work leaves, and what one night does: rows as `Ledger.record` writes them.
FILES = """
WITH RECURSIVE number(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :last)
INSERT INTO file SELECT
    CAST(printf('recordings/%07d', n / 100) AS BLOB), CAST(printf('recording-%09d.mxf', n) AS BLOB), 'delivered', '',
    CAST(printf('recordings/%07d/recording-%09d.mxf', n / 100, n) AS BLOB), 4096 + n, 1700000000000000000 + n,
    1700000000000000000 + n, randomblob(16), 'proved', NULL FROM number
"""
HISTORY = """
WITH RECURSIVE number(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :last)
INSERT INTO history (time, event, path, target, size, digest, detail) SELECT
    strftime('%Y-%m-%dT%H:%M:%f', 'now', :days || ' days', printf('+%f seconds', n / 1000.0)) || 'Z', 'delivered',
    CAST(printf('recordings/%07d/recording-%09d.mxf', n / 100, n) AS BLOB),
    CAST(printf('recordings/%07d/recording-%09d.mxf', n / 100, n) AS BLOB), 4096 + n, randomblob(16), '' FROM number
"""
CHECKPOINTS = """
WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < 1000)
INSERT INTO checkpoint SELECT
    CAST(printf('new/%09d.mxf', n) AS BLOB), CAST(printf('new/%09d.mxf.01234567.partial', n) AS BLOB),
    1, n, 0, 0, 0, 0, x'', '', 0, NULL FROM number
"""


def large_ledger(bench: Bench) -> Iterator[Row]:
    """A ledger with 10,000,000 rows beside one with 100,000: look-ups, starts, bytes, history that is too old."""
    few, many = bench.size(100_000, 10_000), bench.size(8_000_000, 100_000)
    old = many // 8  # rows of history, too old, and as many that are not
    bench.need(500 * (many + 2 * old))
    ends = {}
    with bench.folder("ledger") as folder:
        for name, files, history in (("few", few, few // 8), ("many", many, old)):
            show(f"making a ledger with {files + 2 * history:,} rows")
            ends[name] = _make(folder / name, files, history)
        with contextlib.ExitStack() as stack:
            pair = {name: stack.enter_context(contextlib.closing(Ledger(path))) for name, path in ends.items()}
            work, against = f"ledger with {many + 2 * old:,} rows", f"one with {few + few // 8 * 2:,}"
            for name, look in _lookups().items():
                times: dict[str, list[Run]] = {"many": [], "few": []}
                for _ in range(bench.rounds):
                    for which, files in (("many", many), ("few", few)):
                        times[which].append(_time(pair[which], look, files))
                yield compared(f"{work}: {name}", against, times["many"], times["few"])
            yield from _sizes(work, ends["many"], many, 2 * old)
            yield from _history(bench, work, pair["many"], old)
        yield from _starts(bench, work, against, folder, ends)


def _make(folder: Path, files: int, history: int) -> str:
    """Write a ledger for the source and destination in *folder*, with *history* rows too old and as many new ones."""
    source, destination, state = (folder / name for name in ("source", "destination", "state"))
    for path in (source, destination, state):
        path.mkdir(parents=True)
    ledger = ledger_path(str(state), os.fsencode(source), os.fsencode(destination))
    Ledger(ledger).close()
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -500000")
        db.execute("BEGIN")
        db.execute(FILES, {"first": 0, "last": files})
        db.execute(HISTORY, {"first": 0, "last": history, "days": "-30"})
        db.execute(HISTORY, {"first": history, "last": 2 * history, "days": "-3"})
        db.execute(CHECKPOINTS)
        rowsums.teach(db)
        for table, columns in (("file", rowsums.FILE), ("checkpoint", rowsums.CHECKPOINT)):
            db.execute(f"UPDATE {table} SET sum = sum_of({columns})")
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return ledger


def _lookups() -> dict[str, Callable[[Ledger, int], Any]]:
    """Return what is looked up, by *number* of a file."""

    def folder(number: int) -> bytes:
        return b"recordings/%07d" % (number // A_FOLDER)

    def path(number: int) -> bytes:
        return folder(number) + b"/recording-%09d.mxf" % number

    def partial(number: int) -> bytes:
        return b"new/%09d.mxf.01234567.partial" % number

    return {
        "what is known in a folder of 100 files": lambda ledger, n: ledger.known_in([folder(n)]),
        "what is known about a file": lambda ledger, n: ledger.known([path(n)]),
        "a transfer by device and inode": lambda ledger, n: ledger.transfer_of(path(n), 1, n % 1000),
        "a transfer by its partial": lambda ledger, n: ledger.transfers_into([partial(n % 1000)]),
    }


def _time(ledger: Ledger, look: Callable[[Ledger, int], Any], files: int) -> Run:
    """Return what one look-up takes, in places all over the ledger: the median, as others may use the processor too."""
    seconds, used = [], time.process_time()
    for step in range(LOOKUPS):
        begun = time.perf_counter()
        with ledger.transaction():
            found = look(ledger, step * 7_919_993 % files)
        seconds.append(time.perf_counter() - begun)
        if not found:
            raise RuntimeError("a row is missing")
    return Run(statistics.median(seconds), (time.process_time() - used) / LOOKUPS)


def _sizes(work: str, path: str, files: int, history: int) -> Iterator[Row]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        query = "SELECT sum(pgsize) FROM dbstat WHERE name = ? OR name LIKE ?"
        try:
            sizes = [db.execute(query, (name, f"{name}_by%")).fetchone()[0] for name in ("file", "history")]
        except sqlite3.OperationalError:  # not built in
            yield Row(f"{work}: its size", "", os.path.getsize(path) / (files + history), "B a row")
            return
    yield Row(f"{work}: a row of `file`", "", sizes[0] / files, "B")
    yield Row(f"{work}: a row of `history`", "", sizes[1] / history, "B")


def _history(bench: Bench, work: str, ledger: Ledger, old: int) -> Iterator[Row]:
    """What happens to history that is too old, in pieces, while an agent runs."""
    sizes, pieces, used, gone = [os.path.getsize(ledger.path)], [], time.process_time(), -1
    while gone:
        begun = time.perf_counter()
        with ledger.transaction():
            gone = ledger.forget_history(KEEP)
        pieces.append(Run(time.perf_counter() - begun))
    run = Run(sum(piece.seconds for piece in pieces), time.process_time() - used)
    log = os.path.getsize(f"{ledger.path}-wal") / 2**20
    ledger.close()
    yield Row(f"{work}: forgetting {old:,} rows of history", "", run.seconds, "s", None, [run])
    yield Row(f"{work}: the longest piece of that", "", 1000 * max(pieces).seconds, "ms", None, pieces)
    yield Row(f"{work}: its write-ahead log then", "", log, "MiB")
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as db:
        sizes.append(os.path.getsize(ledger.path))
        (left,) = db.execute("SELECT count(*) FROM history").fetchone()
        if left != old:
            raise RuntimeError(f"{left:,} rows of history are left, not {old:,}")
        db.execute("BEGIN")
        db.execute(HISTORY, {"first": 0, "last": old, "days": "-1"})
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(os.path.getsize(ledger.path))
    note = f"{' → '.join(format_size(size) for size in sizes)}: before, after the deletion, and with as many new rows"
    yield Row(f"{work}: its size after the deletion", "before", sizes[1] / sizes[0], TIMES, None, note=note)
    yield Row(f"{work}: with as many new rows as were deleted", "before", sizes[2] / sizes[0], TIMES, None, note=note)


def _starts(bench: Bench, work: str, against: str, folder: Path, ends: dict[str, str]) -> Iterator[Row]:
    """A sync of nothing at all."""

    def sync(name: str) -> Callable[[bool], Run]:
        source, destination, state = (str(folder / name / end) for end in ("source", "destination", "state"))
        return lambda weigh: bench.run([*TRIOFT, "sync", source, destination, "--state-dir", state, "-q"], weigh)

    runs = bench.in_turns("starts", {name: sync(name) for name in ends})
    yield compared(f"{work}: a sync of an empty folder", against, runs["many"], runs["few"])
