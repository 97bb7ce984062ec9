"""
The journal: what was decided about each file on its way becomes history, beside its outcome.

It listens to the board. A small file that is copied at the first attempt leaves nothing here: its outcome says it all.
What repeats itself without any progress is one line, however often it is looked at.
"""

from __future__ import annotations

import contextlib

import trio

from trioft.core.errors import LedgerError
from trioft.core.model import FINAL, FileState
from trioft.state.board import Board, Entry
from trioft.state.ledger import Ledger, Line, Port, now

# Lines that may wait for the ledger; beyond that they are lost, and counted.
_MOST = 10_000
# Lines about one file until its outcome: one that is never left alone does not fill the ledger.
_MOST_OF_ONE = 100
# Seconds between two transactions.
_PAUSE = 1.0


class Journal:
    """What is noted, and not yet in the ledger."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._lines: list[Line] = []
        self._lost = 0
        self._noted = trio.Event()
        self._said: dict[int, set[object]] = {}  # of each live file: what is noted about it
        board.listeners.append(self._changed)
        board.remarks.append(self._remarked)
        board.dropped.append(self._forget)

    async def run(self, ledger: Port) -> None:
        """Hand what is noted to the *ledger*. Runs until cancelled, and then hands over the rest."""
        with ledger:
            try:
                while True:
                    await self._noted.wait()
                    await trio.sleep(_PAUSE)
                    await self._hand_over(ledger)
            finally:
                await self._hand_over(ledger)

    async def _hand_over(self, ledger: Port) -> None:
        lines, self._lines, self._noted = self._lines, [], trio.Event()
        if self._lost:
            lines.append(Line(now(), "lost", b"", b"", 0, None, f"{self._lost:,} lines: the ledger is too slow"))
            self._lost = 0
        if lines:
            # If the ledger has failed, who owns it says so.
            with trio.CancelScope(shield=True), contextlib.suppress(LedgerError):
                await ledger.call(Ledger.add_history, lines)

    def _changed(self, entry: Entry) -> None:
        if entry.state in FINAL:
            # A file that came and went without being noticed is nobody's loss.
            if entry.state == FileState.GONE and (entry.strategy or entry.id in self._said):
                self._note(entry, entry.state, "")
            self._forget(entry)
        elif entry.state == FileState.WAITING and entry.reason is not None:
            # Not by the text: the figures in a reason may change at every look.
            text = entry.reason + (f" (failed attempts: {entry.attempt})" if entry.attempt else "")
            self._note(entry, entry.state, text, entry.wait, entry.attempt, entry.trouble, entry.bytes_verified)
        elif entry.reason is not None:
            self._note(entry, entry.state, entry.reason, entry.reason, entry.attempt)

    def _remarked(self, entry: Entry, event: str, text: str) -> None:
        self._note(entry, event, text, text)

    def _note(self, entry: Entry, event: str, text: str, *what: object) -> None:
        """Note something about a file, unless it is *what* was noted before."""
        said = self._said.setdefault(entry.id, set()) if entry.id in self._board.live else set()
        if (event, *what) in said or len(said) >= _MOST_OF_ONE:
            return
        said.add((event, *what))
        if len(self._lines) >= _MOST:
            self._lost += 1
            return
        self._lines.append(Line(now(), str(event), entry.path, entry.target or b"", entry.size, None, text))
        self._noted.set()

    def _forget(self, entry: Entry) -> None:
        self._said.pop(entry.id, None)
