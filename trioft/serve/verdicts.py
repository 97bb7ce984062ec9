"""
Verdicts: whether the sources may be removed, for the page and ``/api/v1/safe``.

From the ledgers and both ends, as ``trioft safe`` has them: they know what earlier runs have delivered, too. It is
looked at while somebody asks, for a small share of the time, by a mover of its own. The newest verdicts are kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import trio

from trioft.agent.job import JobRun
from trioft.core.errors import FileTrouble, TrioftError
from trioft.core.units import timestamp
from trioft.movers.pool import Movers
from trioft.pipeline.inquiry import Inquiry
from trioft.pipeline.safety import Tally, tally_fields
from trioft.state.fields import path_fields
from trioft.state.reader import Records

_AT_LEAST = 1.0  # seconds between two looks
_OLD = 60.0  # seconds after which it is looked at again, although nothing has come of any file here
_SHARE = 0.05  # of the time that looking may take
_ASKED = 60.0  # seconds for which it goes on after somebody has asked


@attrs.define
class _Verdict:
    """The newest verdict on one job, and what had become of its files until then."""

    fields: dict[str, Any]
    totals: tuple[int, ...]
    at: float  # on trio's clock


class Verdicts:
    """The verdicts on the jobs of an agent."""

    def __init__(self, runs: Sequence[JobRun]) -> None:
        self._runs = runs
        self._known: dict[str | None, _Verdict] = {}
        self._asked = trio.Event()
        self._asked_at = -math.inf

    def fields(self) -> dict[str, object]:
        """Return what is known, as JSON has it; and have it looked at, soon, whether it is still so."""
        self._asked_at = trio.current_time()
        self._asked.set()
        return {"jobs": [self._fields_of(run) for run in self._runs]}

    def _fields_of(self, run: JobRun) -> dict[str, object]:
        verdict = self._known.get(run.board.job)
        fields: dict[str, object] = {"job": run.board.job, "known": verdict is not None, "current": False}
        if verdict is not None:
            fields |= verdict.fields | {"current": verdict.totals == _totals_of(run)}
        return fields

    async def run(self) -> None:
        """Look, while somebody asks. Runs until cancelled."""
        while True:
            await self._asked.wait()
            begun = trio.current_time()
            for run in self._runs:
                if self._is_due(run):
                    await self._look(run)
            cost = trio.current_time() - begun
            await trio.sleep(max(_AT_LEAST, cost / _SHARE))
            if trio.current_time() - self._asked_at > _ASKED:
                self._asked = trio.Event()

    def _is_due(self, run: JobRun) -> bool:
        verdict = self._known.get(run.board.job)
        if verdict is None or verdict.totals != _totals_of(run):
            return True
        return trio.current_time() - verdict.at > _OLD

    async def _look(self, run: JobRun) -> None:
        """Look at one job. Where that cannot be, nothing is known any more."""
        totals = _totals_of(run)
        if run.ledger is None:
            self._known.pop(run.board.job, None)
            return
        try:
            fields = await _ask(run, run.ledger)
        except (TrioftError, FileTrouble, OSError):
            self._known.pop(run.board.job, None)
        else:
            self._known[run.board.job] = _Verdict(fields, totals, trio.current_time())


async def _ask(run: JobRun, ledger: str) -> dict[str, Any]:
    time = timestamp(datetime.now(UTC))
    records = await trio.to_thread.run_sync(Records, ledger)
    with contextlib.closing(records):
        async with Movers(1, run.config.copy.stall_timeout) as movers:
            inquiry = Inquiry(config=run.config, records=records, call=movers.call)
            total: Tally = await inquiry.run()
    parts = [{**path_fields("path", path), **tally_fields(part)} for path, part in sorted(inquiry.parts.items())]
    return {**tally_fields(total), "read": False, "time": time, "folders": parts}


def _totals_of(run: JobRun) -> tuple[int, ...]:
    """Return what changes when something becomes of a file."""
    board = run.board
    totals = board.totals
    return totals.delivered, totals.already, totals.failed, totals.skipped, totals.busy, board.pending_files
