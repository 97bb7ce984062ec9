"""Ledgers with a past: made at once, and asked while an agent writes them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from support import Site, wait_until
from trioft.core.units import timestamp
from trioft.state.ledger import Ledger, Line, ledger_path


def filled(site: Site, lines: list[Line], *, at: str = "") -> str:
    """Make a ledger with these lines, for the site or for a folder *at* in the place of its source; return its file."""
    source, dest = os.fsencode(site.source) + os.fsencode(at), os.fsencode(site.dest)
    site.state.mkdir(exist_ok=True)
    path = ledger_path(str(site.state), source, dest)
    with contextlib.closing(Ledger(path)) as ledger, ledger.transaction():
        ledger.begin_run(source, dest)
        ledger.add_history(lines)
    return path


def line(event: str, path: bytes, ago: float = 0, size: int = 7, detail: str = "") -> Line:
    """Return a line of history that is *ago* seconds old."""
    time = timestamp(datetime.now(UTC) - timedelta(seconds=ago))
    return Line(time, event, path, path, size, b"d" * 16 if event == "delivered" else None, detail)


def ledgers_of(site: Site, count: int) -> list[Path]:
    """Return the ledgers' files, as soon as there are so many."""
    wait_until(lambda: len(list(site.state.glob("*.sqlite"))) == count)
    return list(site.state.glob("*.sqlite"))


def ask_ledger(ledger: Path, query: str) -> list[Any]:
    """Ask the file, as anybody could; an agent may be writing it."""
    try:
        with contextlib.closing(sqlite3.connect(ledger)) as db:
            return db.execute(query).fetchall()
    except sqlite3.OperationalError:  # it is just being made
        return []
