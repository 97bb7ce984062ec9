"""
Verdicts: whether the sources may be removed, for the page and ``/api/v1/safe``.

From the ledgers and both ends, as ``trioft safe`` has them: they know what earlier runs have delivered, too. Whoever
asks has it looked at anew, unless that was done a moment ago: one look at a time, by a mover of its own, for a small
share of the time. The newest verdicts are kept; how old they are is said with them.
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

_AT_LEAST = 2.0  # seconds between two looks
_PAUSE = 10.0  # times as long as the last look took, nobody has another one begun
_FRESH = 5.0  # seconds for which what was found counts as being so: from when that look was begun
_WAIT = 2.0  # seconds for which an answer waits for a look


@attrs.frozen
class _Verdict:
    """What the newest look at one job has found, and which state of its board that was."""

    fields: dict[str, Any] | None  # None: it could not be looked at
    revision: int
    at: float  # when that look was begun, on trio's clock


class Verdicts:
    """The verdicts on the jobs of an agent."""

    def __init__(self, runs: Sequence[JobRun]) -> None:
        self._runs = runs
        self._found: dict[str | None, _Verdict] = {}
        self._asked = trio.Event()
        self._looked = trio.Event()
        self._next = -math.inf  # the earliest time of the next look

    async def fields(self) -> dict[str, object]:
        """
        Return what is known, as JSON has it. What is old is looked at anew.

        Where that is a matter of a moment, it is waited for.
        """
        with trio.move_on_after(_WAIT):
            while not all(self._is_current(run) for run in self._runs):
                self._asked.set()
                if self._next > trio.current_time() + _WAIT:
                    break
                await self._looked.wait()
        return {"jobs": [self._fields_of(run) for run in self._runs]}

    def _fields_of(self, run: JobRun) -> dict[str, object]:
        found = self._found.get(run.board.job)
        fields: dict[str, object] = {"job": run.board.job, "known": False, "current": False}
        if found is not None and found.fields is not None:
            fields |= found.fields | {"known": True, "current": self._is_current(run)}
        return fields

    def _is_current(self, run: JobRun) -> bool:
        """Was the job looked at a moment ago, and nothing has become known of it since?"""
        found = self._found.get(run.board.job)
        if found is None or found.revision != run.board.revision:
            return False
        return trio.current_time() - found.at <= _FRESH

    async def run(self) -> None:
        """Look, whenever somebody asks. Runs until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            begun = trio.current_time()
            for run in self._runs:
                if not self._is_current(run):
                    await self._look(run)
            now = trio.current_time()
            self._next = now + max(_AT_LEAST, (now - begun) * _PAUSE)
            self._looked.set()
            self._looked = trio.Event()
            await trio.sleep_until(self._next)

    async def _look(self, run: JobRun) -> None:
        """Look at one job. Where that cannot be, nothing is known any more."""
        revision, at = run.board.revision, trio.current_time()
        fields = None
        if run.ledger is not None:
            with contextlib.suppress(TrioftError, FileTrouble, OSError):
                fields = await _ask(run, run.ledger)
        self._found[run.board.job] = _Verdict(fields, revision, at)


async def _ask(run: JobRun, ledger: str) -> dict[str, Any]:
    time = timestamp(datetime.now(UTC))
    records = await trio.to_thread.run_sync(Records, ledger)
    with contextlib.closing(records):
        async with Movers(1, run.config.copy.stall_timeout) as movers:
            inquiry = Inquiry(config=run.config, records=records, call=movers.call)
            total: Tally = await inquiry.run()
    parts = [{**path_fields("path", path), **tally_fields(part)} for path, part in sorted(inquiry.parts.items())]
    return {**tally_fields(total), "read": False, "time": time, "folders": parts}
