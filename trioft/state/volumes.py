"""
What is mounted below the destination and was delivered to, as the ledger keeps it from one run to the next.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from trioft.core.model import Volume
from trioft.state.ledger import Ledger

_KEY = "destination_mounts"


def volumes_of(ledger: Ledger) -> list[Volume]:
    """Return what has to be mounted below the destination where files go there."""
    (value,) = next(iter(ledger.execute("SELECT value FROM about WHERE key = ?", (_KEY,))), ("[]",))
    return [
        Volume(os.fsencode(point), 0, kind, source, os.fsencode(place))
        for point, kind, source, place in json.loads(value)
    ]


def note_volumes(ledger: Ledger, volumes: Iterable[Volume]) -> None:
    """Keep *volumes* in place of those before."""
    rows = [(os.fsdecode(its.point), its.kind, its.source, os.fsdecode(its.place)) for its in volumes]
    ledger.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (_KEY, json.dumps(rows).encode("ascii")))
