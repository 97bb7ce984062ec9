"""
Versions: what the ledger knows of a source file that was delivered before, when it is to be delivered again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from trioft.state.ledger import ARRIVED, Entry, Ledger


def delivered_as(ledger: Ledger, paths: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the names at the destination under which earlier versions of *paths* were delivered."""
    known = ledger.known(paths)
    return {path: its.target for path, its in known.items() if its.outcome in ARRIVED and its.target}


def count_versions(ledger: Ledger, path: bytes, since: str) -> int:
    """Return under how many names at the destination *path* was delivered *since*."""
    query = "SELECT count(DISTINCT target) FROM history WHERE path = ? AND event = 'delivered' AND time >= ?"
    ((count,),) = ledger.execute(query, (path, since))
    return int(count)


def with_digests(ledger: Ledger, entries: Sequence[Entry]) -> list[Entry]:
    """Return *entries*, with what was proved of the very same versions before, where they were only found there."""
    return [
        _with_digest(ledger, entry) if entry.outcome == "already" and entry.digest is None else entry
        for entry in entries
    ]


def _with_digest(ledger: Ledger, entry: Entry) -> Entry:
    query = (
        "SELECT digest, closed FROM file WHERE folder = ? AND name = ? AND target = ? AND size = ? AND mtime_ns = ?"
        " AND outcome IN ('delivered', 'already')"
    )
    version = entry.target, entry.fingerprint.size, entry.fingerprint.mtime_ns
    for digest, closed in ledger.execute(query, (*os.path.split(entry.path), *version)):
        return entry._replace(digest=digest, closed=entry.closed or closed)
    return entry
