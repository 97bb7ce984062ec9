"""
Health and metrics: is the agent able to work (``/healthz``), and what has it done (``/metrics``)?
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trio

from trioft import __version__
from trioft.agent.job import JobRun
from trioft.core.errors import Side, classify
from trioft.core.model import ACTIVE, FINAL, FileState
from trioft.state.board import Entry, named

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_WAITING = (FileState.READY, FileState.GROWING, FileState.WAITING)


class Health:
    """Counts what the board of a job does not keep, and says whether all is well with it."""

    def __init__(self, run: JobRun) -> None:
        self.errors: Counter[str] = Counter()  # by class
        self.mismatches = 0  # blocks that did not read back
        self._run = run
        self._bytes_verified = 0
        self._finished_at = trio.current_time()
        run.board.listeners.append(self._changed)

    def _changed(self, entry: Entry) -> None:
        if entry.state in FINAL:
            self._finished_at = trio.current_time()
            self._bytes_verified += entry.bytes_verified
        if entry.state in (FileState.WAITING, FileState.FAILED) and entry.trouble is not None:
            self.errors[classify(entry.trouble)] += 1
            self.mismatches += entry.trouble.op == "read back" and entry.trouble.errno is None

    def reasons(self) -> list[str]:
        """Say why the job cannot go on; nothing where it can."""
        board = self._run.board
        reasons = board.outages
        states = Counter(entry.state for entry in board.live.values())
        waiting = sum(states[state] for state in _WAITING)
        idle = trio.current_time() - self._finished_at
        if waiting and not any(states[state] for state in ACTIVE) and idle > self._run.config.feed.stalled_after:
            reasons.append(f"nothing was finished for {idle / 60:.0f} min, and {waiting:,} files wait")
        return [named(board.job, reason) for reason in reasons]

    def fill(self, metrics: Metrics) -> None:
        """Add what there is to measure of the job. No file's name is in it."""
        run, board, totals, storage = self._run, self._run.board, self._run.board.totals, self._run.storage
        labels = {} if board.job is None else {"transfer_job": board.job}
        gauge, counter = functools.partial(metrics.gauge, labels), functools.partial(metrics.counter, labels)
        live = list(board.live.values())
        counter("copied_bytes", "Bytes written to the destination.", totals.bytes)
        counter("resumed_bytes", "Bytes that an earlier run had written.", totals.bytes_resumed)
        counter("patched_bytes", "Bytes written again as a recorder had rewritten them.", totals.bytes_patched)
        verified = self._bytes_verified + sum(entry.bytes_verified for entry in live)
        gauge("verified_bytes", "Bytes of this run's files that are durable and verified.", verified)
        for outcome in ("delivered", "already", "failed", "skipped", "busy"):
            counter("files", "Files by outcome.", getattr(totals, outcome), outcome=outcome)
        for remedy, count in self.errors.items():
            counter("errors", "Errors by what is done about them.", count, **{"class": remedy})
        counter("verify_mismatches", "Blocks that did not read back as they were written.", self.mismatches)
        states = Counter(entry.state for entry in live)
        for state in FileState:
            if state not in FINAL:
                gauge("live_files", "Files at hand by state.", states[state], state=state)
        gauge("pending_files", "Files that are not finished.", board.pending_files)
        gauge("pending_bytes", "Bytes that are still to be copied.", board.pending_bytes)
        waiting = [entry.found_at for entry in live if entry.state in _WAITING]
        oldest = (datetime.now(UTC) - min(waiting)).total_seconds() if waiting else 0.0
        gauge("oldest_waiting_seconds", "Since the first of the files that wait was found.", oldest)
        lags = [entry.lag_seconds for entry in live if entry.lag_seconds is not None]
        behind = max(lags, default=0.0)
        gauge("growing_lag_seconds", "How far the copy that is farthest behind its recorder is.", behind)
        for side in Side:
            is_up = board.wrong_with(side) is None and board.problem is None
            gauge(f"{side}_up", f"1 while the {side} can be used.", float(is_up))
        if storage is not None:
            gauge("destination_free_bytes", "What the destination says is free.", storage.free)
            gauge("destination_total_bytes", "How large it is.", storage.total)
            gauge("destination_reserved_bytes", "What files under way still need.", storage.reserved_bytes)
        if board.full_in is not None:
            gauge("destination_full_seconds", "Until the recordings will have filled it.", board.full_in)
        gauge("movers", "Processes for file operations.", sum(pool.alive for pool in run.pools))
        counter("movers_replaced", "Those that died, or were killed.", sum(pool.replaced for pool in run.pools))
        gauge("movers_left_behind", "Those that cannot be killed.", len(run.stuck.pids))
        if board.scan_seconds is not None:
            gauge("scan_seconds", "What the last look through the whole source took.", board.scan_seconds)
        overflows = 0 if run.changes is None else run.changes.overflows
        counter("event_overflows", "Times that events got lost, and the source was scanned.", overflows)


class Metrics:
    """Figures with names and labels, in Prometheus' text format."""

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}

    def gauge(self, labels: Mapping[str, str], name: str, text: str, value: float, /, **more: str) -> None:
        """Add what goes up and down."""
        from prometheus_client.core import GaugeMetricFamily

        self._add(GaugeMetricFamily, name, text, value, {**labels, **more})

    def counter(self, labels: Mapping[str, str], name: str, text: str, value: float, /, **more: str) -> None:
        """Add what only grows."""
        from prometheus_client.core import CounterMetricFamily

        self._add(CounterMetricFamily, name, text, value, {**labels, **more})

    def _add(self, kind: Any, name: str, text: str, value: float, labels: Mapping[str, str]) -> None:
        if name not in self._families:
            self._families[name] = kind(f"trioft_{name}", text, labels=list(labels))
        self._families[name].add_metric(list(labels.values()), value)

    def render(self) -> bytes:
        """Return them all."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        return self._families.values()


def metrics(jobs: Iterable[Health], clients: int) -> bytes:
    """Return all metrics of an agent. Those of a job have a label that says so, where there are several."""
    everything = Metrics()
    everything.gauge({}, "build_info", "What runs.", 1, version=__version__)
    for job in jobs:
        job.fill(everything)
    everything.gauge({}, "feed_clients", "Who reads the feed.", clients)
    return everything.render()
