"""
Proofs: what stands behind a delivery, and what is kept of it in the ledger.

The functions that take a ``Ledger`` are called within a transaction.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from trioft.core.model import Fingerprint, Found, Item
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


def with_former(known: Mapping[bytes, Known], item: Item) -> Item:
    """
    Return *item* with what is *known* of a version that was delivered before.

    If that is another one, what the destination has of it may be taken for a copy of this one.
    """
    former = known.get(item.path)
    if former is None or former.outcome not in ARRIVED:
        return item
    return item._replace(before=former.target, doubtful=not former.is_still(item.fingerprint))


def is_news(known: Known, fingerprint: Fingerprint) -> bool:
    """Is there anything to do about a source file of which something is *known*?"""
    # One whose removal is pending was delivered by a run that was killed then: its delivery is proved once more.
    if not known.is_alike(fingerprint) or known.removal == "pending":
        return True
    # That its ctime is another one may mean other content, or permission bits that its copy lacks; but a source that
    # was to be removed, and has its name again, has got it from us.
    return known.ctime_ns != fingerprint.ctime_ns and (known.outcome not in ARRIVED or not known.removal)


def changed_since(ledger: Ledger, found: Iterable[Found]) -> dict[bytes, Known]:
    """Return, of files that were *found*, those that the ledger knows in another version, with what it knows."""
    files = {file.path: file.fingerprint for file in found}
    known = ledger.known_in({os.path.dirname(path) for path in files})
    return {
        path: known[path]
        for path, fingerprint in files.items()
        if path in known and known[path].outcome in ARRIVED and is_news(known[path], fingerprint)
    }
