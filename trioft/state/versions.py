"""
Versions: what the ledger knows of a source file that was delivered before, when it is to be delivered again.
"""

from __future__ import annotations

from trioft.state.ledger import Ledger


def count_versions(ledger: Ledger, path: bytes, since: str) -> int:
    """Return under how many names at the destination *path* was delivered *since*."""
    query = "SELECT count(DISTINCT target) FROM history WHERE path = ? AND event = 'delivered' AND time >= ?"
    ((count,),) = ledger.execute(query, (path, since))
    return int(count)
