"""
The overview: the boards of several jobs, read as one.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence

from trioft.state.board import Board, Entry, Herald, Totals, named


class Overview(Herald):
    """What a ``Board`` tells of one job, of all *jobs* together; and what is nobody's alone."""

    def __init__(self, jobs: Iterable[str]) -> None:
        super().__init__()
        ids = itertools.count(1)
        self.boards: Sequence[Board] = [Board(job, ids) for job in jobs]

    @property
    def heralds(self) -> Sequence[Herald]:
        """All that have something to tell."""
        return [self, *self.boards]

    @property
    def live(self) -> dict[int, Entry]:
        """The live files by id, which is unique among all jobs."""
        return dict(itertools.chain.from_iterable(board.live.items() for board in self.boards))

    @property
    def totals(self) -> Totals:
        return functools.reduce(operator.add, (board.totals for board in self.boards))

    @property
    def pending_files(self) -> int:
        return sum(board.pending_files for board in self.boards)

    @property
    def pending_bytes(self) -> int:
        return sum(board.pending_bytes for board in self.boards)

    @property
    def scanned(self) -> bool:
        return all(board.scanned for board in self.boards)

    @property
    def paused(self) -> bool:
        return all(board.paused for board in self.boards)

    @property
    def full_in(self) -> float | None:
        """Seconds until the first of the destinations will be full, if that is near."""
        return min((board.full_in for board in self.boards if board.full_in is not None), default=None)

    @property
    def waits_for(self) -> str | None:
        """Say of each job what it waits for, or why it has ended; None where there is nothing to say."""
        return "; ".join(named(board.job, board.waits_for) for board in self.boards if board.waits_for) or None
