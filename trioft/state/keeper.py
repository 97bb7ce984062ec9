"""
The keeper: the task that owns the ledger while an agent runs, and what it does where that cannot be written.

Everything that piles up while one transaction is written goes into the next one. A disk that is full, or somebody who
has locked the file, is waited for: until then nothing that needs a record is reported, or removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trioft.core.errors import LedgerError
from trioft.state.ledger import Ledger, Request

T = TypeVar("T")

_BATCH = 256  # requests of one transaction at most
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between two attempts


class Patience:
    """
    How long a ledger that cannot be written is waited for.

    *may_wait* says whether it still is, after so many seconds; *tell* is called with what is wrong, and with None when
    it is well.
    """

    def __init__(
        self, may_wait: Callable[[float], bool] = lambda _: False, tell: Callable[[str | None], None] = lambda _: None
    ) -> None:
        self._may_wait, self._tell = may_wait, tell

    async def keep_trying(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns. Raises ``LedgerError`` if that does not pass, or has not passed in time."""
        since, pause, is_told = trio.current_time(), _FIRST_PAUSE, False
        while True:
            try:
                done = await work()
            except LedgerError as error:
                if not error.passes or not self._may_wait(trio.current_time() - since):
                    raise
                is_told = True
                self._tell(f"{error}; it is waited for, and nothing is removed meanwhile")
            else:
                if is_told:
                    self._tell(None)
                return done
            await trio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)


async def run_ledger(
    ledger: Ledger,
    requests: trio.MemoryReceiveChannel[Request],
    patience: Patience | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """
    Serve *requests*, many in one transaction. What is wrong with rows that are not believed is told, once for each.

    Shielded: a pipeline that ends, in whatever way, still gets its last rows committed. An error of SQLite that does
    not pass closes the ledger for good and leaves as ``LedgerError``, to all who wait and as this task's end.

    Ends when every port has been closed.
    """
    patience = patience or Patience()
    with trio.CancelScope(shield=True), requests, contextlib.closing(ledger):
        async for request in requests:
            batch = [request]
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                while len(batch) < _BATCH:
                    batch.append(requests.receive_nowait())

            async def commit(batch: list[Request] = batch) -> None:
                try:
                    await trio.to_thread.run_sync(_commit, ledger, batch)
                except RuntimeError as error:
                    if "can't start new thread" not in str(error):
                        raise
                    text = f"the ledger {ledger.path} cannot be used: there are too many processes"
                    raise LedgerError(text, passes=True) from error

            try:
                await patience.keep_trying(commit)
            except BaseException as error:
                with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                    while True:
                        batch.append(requests.receive_nowait())
                for failed in batch:
                    hint = error.hint if isinstance(error, LedgerError) else None
                    failed.error = LedgerError(f"the ledger has failed: {error}", hint=hint)
                    failed.done.set()
                raise
            for text in ledger.doubts():
                tell(text)
            for served in batch:
                served.done.set()


def _commit(ledger: Ledger, batch: list[Request]) -> None:
    with ledger.transaction():
        for request in batch:
            request.value = request.call(ledger)
