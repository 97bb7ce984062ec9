"""
Proofs: what stands behind a delivery, and what is kept of it in the ledger.

The functions that take a ``Ledger`` are called within a transaction.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trioft.core.model import Item
from trioft.state.ledger import ARRIVED, Entry, Known, Ledger, Line, now

# What history says of a file that was not wholly compared with its source once that was closed.
NOT_COMPARED = "not compared with the closed file"

# Under this key of the table `about`: how exactly the destination keeps modification times, in nanoseconds.
RESOLUTION = "destination_resolution"


class Proof(NamedTuple):
    """How the content of a delivery was verified, as history tells."""

    how: str = ""  # readback, transfer, size, compared, or edges (not all of it); empty where nothing tells any more
    number: int = 0  # of its line in history


def how_verified(event: str, detail: str, digest: bytes | None) -> str:
    """Return how a delivery was verified, of which history has this *event* and *detail*."""
    if NOT_COMPARED in detail:
        return "edges"
    if event == "already" and digest is not None:
        return "compared"
    level = re.search(r"verified: (\w+)", detail)
    return level[1] if level else ""


def note_resolution(ledger: Ledger, resolution_ns: int) -> None:
    """The destination keeps modification times as exactly as this."""
    ledger.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (RESOLUTION, b"%d" % resolution_ns))


def without_known(ledger: Ledger, entries: list[Entry]) -> list[Entry]:
    """
    Note those of *entries* that are known better already, and return the others, which are still to be recorded.

    A file that was delivered a moment ago may be found once more: that it looks as if it were there is no reason to
    forget what is on record of its content.
    """
    rest = []
    looked_at = [entry for entry in entries if entry.outcome == "already" and entry.digest is None]
    known = ledger.known(entry.path for entry in looked_at)
    for entry in entries:
        before = known.get(entry.path) if entry.digest is None else None
        is_known = before is not None and before.outcome in ARRIVED and before.target == entry.target
        if before is not None and is_known and before.is_still(entry.fingerprint):
            ledger.drop_checkpoint(entry.path)
            size = entry.fingerprint.size
            ledger.add_history([Line(now(), "already", entry.path, entry.target, size, None, entry.detail)])
        else:
            rest.append(entry)
    return rest


def is_doubtful(known: Known | None, item: Item) -> bool:
    """Has another version of a file been delivered, for which what the destination has of it may be taken?"""
    return known is not None and known.outcome in ARRIVED and not known.is_still(item.fingerprint)
