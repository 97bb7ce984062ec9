"""
Proofs: what stands behind a delivery, and what is kept of it in the ledger.

The functions that take a ``Ledger`` are called within a transaction.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trioft.state.ledger import Ledger

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
