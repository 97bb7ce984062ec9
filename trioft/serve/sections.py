"""
What the outside sees: of a file, the fields that JSON lines and the feed have in common; of agent and jobs, the rest.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import trio

from trioft import __version__
from trioft.agent.job import JobRun
from trioft.config.options import Config
from trioft.core.errors import Side
from trioft.core.units import timestamp
from trioft.pipeline.throttle import Rate
from trioft.state.board import Board
from trioft.state.fields import path_fields
from trioft.state.overview import Overview

# From the weakest on.
_LEVELS = ("size", "transfer", "readback")


class View:
    """An agent as the feed tells it, beside its files: what it is, the ends, totals; and each of several jobs."""

    def __init__(self, config: Config, board: Board | Overview, runs: Sequence[JobRun], *, once: bool) -> None:
        self._config, self._board, self._runs = config, board, runs
        self._jobs = [_JobView(run) for run in runs]
        policies = {str(run.config.copy.on_success) for run in runs}
        self._agent: dict[str, object] = {
            "version": __version__,
            "pid": os.getpid(),
            "host": platform.node(),
            "mode": "sync" if once else "watch",
            # What can be said of the files of all jobs.
            "verify": min((run.config.copy.verify for run in runs), key=_LEVELS.index),
            "on_success": policies.pop() if len(policies) == 1 else "various",
            "started_at": timestamp(datetime.now(UTC)),
        }

    def sections(self) -> dict[str, object]:
        """Return the sections by name. With several jobs, the ends are those that are worst off."""
        board, jobs = self._board, [job.fields() for job in self._jobs]
        rates = [job.rate for job in self._jobs if job.rate is not None]
        sections: dict[str, object] = {
            "agent": {**self._agent, "scanned": board.scanned, "paused": board.paused, **self._limits()},
            "source": min((job["source"] for job in jobs), key=_how_well),
            "destination": min((job["destination"] for job in jobs), key=_how_well),
            "totals": _totals(board, sum(rates) if rates else None),
        }
        return sections if self._jobs[0].name is None else sections | {"jobs": jobs}

    def _limits(self) -> dict[str, object]:
        """What an operator may change: of the one job, or what holds for all together."""
        config, run = self._config, self._runs[0]
        is_one = run.board.job is None
        return {
            "bwlimit": run.throttle.lowest if is_one else config.agent.bwlimit.now(),
            "transfers": config.copy.transfers if is_one else config.agent.transfers,
            "control": config.feed.control,
        }


class _JobView:
    """One job as the feed tells it."""

    def __init__(self, run: JobRun) -> None:
        self.name = run.board.job
        self.rate: float | None = None
        self._run = run
        self._measured = Rate()

    def fields(self) -> dict[str, Any]:
        run, board, storage, copy = self._run, self._run.board, self._run.storage, self._run.config.copy
        self.rate = self._measured.add(trio.current_time(), board.totals.bytes)
        space = {
            "free": storage.free if storage else None,
            "total": storage.total if storage else None,
            "reserved": storage.reserved_bytes if storage else None,
            "full_in": None if board.full_in is None else round(board.full_in),
        }
        return {
            "name": self.name,
            "state": run.state,
            "reason": None if board.problem is None else str(board.problem),
            "verify": copy.verify,
            "on_success": str(copy.on_success),
            "scanned": board.scanned,
            "paused": board.paused,
            "source": self._end(Side.SOURCE, run.config.source.path),
            "destination": self._end(Side.DESTINATION, run.config.destination.path) | space,
            "totals": _totals(board, self.rate),
        }

    def _end(self, side: Side, path: str | None) -> dict[str, object]:
        storage, board = self._run.storage, self._run.board
        identity = storage.identity[side] if storage is not None else None
        wrong = board.wrong_with(side) if board.problem is None else str(board.problem)
        return {
            **path_fields("path", os.fsencode(os.path.abspath(path or ""))),
            "state": "ok" if wrong is None and storage is not None else "away",
            "reason": wrong,
            "filesystem": f"{identity.source} ({identity.kind})" if identity is not None else None,
        }


def _totals(board: Board | Overview, rate: float | None) -> dict[str, object]:
    return {
        **attrs.asdict(board.totals),
        "pending_files": board.pending_files,
        "pending_bytes": board.pending_bytes,
        "rate": None if rate is None else round(rate),
        "eta": round(board.pending_bytes / rate) if rate and board.scanned else None,
    }


def _how_well(end: dict[str, Any]) -> tuple[bool, float, float]:
    """Compare ends: first one that cannot be used, then one that will be full, then one that has little space."""
    full_in, free, total = end.get("full_in"), end.get("free"), end.get("total")
    share = free / total if total and free is not None else 1.0
    return end["state"] == "ok", math.inf if full_in is None else full_in, share
