"""
Pulse: is a job alive, or does something that should go on stand still?
"""

from __future__ import annotations

from collections import Counter

import trio

from trioft.core.model import ACTIVE, FileState
from trioft.state.board import Board

_LEAST_PATIENCE = 120.0  # seconds: several times what a stuck operation takes


class Pulse:
    """
    Says whether the agent is alive, as far as it is up to the agent: one that waits for an end, or is paused, is.

    To be asked every few seconds. Not alive is who should have looked at the source *stalled_after* seconds ago and has
    not, or has files that are ready, copies none, and gets nothing done for as long.
    """

    def __init__(self, board: Board, stalled_after: float) -> None:
        self._board = board
        self._longest = max(stalled_after, _LEAST_PATIENCE)
        self._done: tuple[int, ...] = ()
        self._since = trio.current_time()

    def why_not_alive(self) -> str | None:
        """Say what does not go on, or None."""
        board, now = self._board, trio.current_time()
        states = Counter(entry.state for entry in board.live.values())
        totals = board.totals
        done = (totals.delivered, totals.already, totals.failed, totals.skipped, totals.bytes)
        has_work = states[FileState.READY] > 0 and not any(states[state] for state in ACTIVE)
        may_wait = board.paused or board.waits_for is not None
        if may_wait or done != self._done or not has_work:
            self._since, self._done = now, done
        if may_wait:
            return None
        if now - board.look_due > self._longest:
            return f"the source should have been looked at {(now - board.look_due) / 60:.0f} min ago"
        if (idle := now - self._since) > self._longest:
            return f"{states[FileState.READY]:,} files are ready, and none is copied for {idle / 60:.0f} min"
        return None
