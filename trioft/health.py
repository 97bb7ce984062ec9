"""
Is the agent able to work, and what has it done? What monitoring asks for: reasons and metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from trioft import __version__
from trioft.board import Board, Entry
from trioft.errors import Side, classify
from trioft.job import JobRun
from trioft.model import FINAL, FileState

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

_WAITING = (FileState.READY, FileState.GROWING, FileState.WAITING)
_LEAST_PATIENCE = 120.0  # seconds: several times what a stuck operation takes
_ACTIVE = (FileState.COPYING, FileState.VERIFYING)


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
        has_work = states[FileState.READY] > 0 and not any(states[state] for state in _ACTIVE)
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


class Health:
    """Counts what the board does not keep, and says whether all is well."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self.errors: Counter[str] = Counter()  # by class
        self.mismatches = 0  # blocks that did not read back
        self.bytes_verified = 0
        self.clients: Callable[[], int] = lambda: 0
        self._finished_at = trio.current_time()
        run.board.listeners.append(self._changed)

    def _changed(self, entry: Entry) -> None:
        if entry.state in FINAL:
            self._finished_at = trio.current_time()
            self.bytes_verified += entry.bytes_verified
        if entry.state in (FileState.WAITING, FileState.FAILED) and entry.trouble is not None:
            self.errors[classify(entry.trouble)] += 1
            self.mismatches += entry.trouble.op == "read back" and entry.trouble.errno is None

    def reasons(self) -> list[str]:
        """Say why the agent cannot work; nothing where it can."""
        board = self._run.board
        reasons = board.outages
        states = Counter(entry.state for entry in board.live.values())
        waiting = sum(states[state] for state in _WAITING)
        idle = trio.current_time() - self._finished_at
        if waiting and not any(states[state] for state in _ACTIVE) and idle > self._run.config.feed.stalled_after:
            reasons.append(f"nothing was finished for {idle / 60:.0f} min, and {waiting:,} files wait")
        return reasons

    # --- metrics

    def metrics(self) -> bytes:
        """Return all metrics in Prometheus' text format. No file's name is in them."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        self._fill(registry)
        return generate_latest(registry)

    def _fill(self, registry: CollectorRegistry) -> None:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

        families: list[Metric] = []

        def gauge(name: str, text: str, value: float | None) -> None:
            if value is not None:
                families.append(GaugeMetricFamily(f"trioft_{name}", text, value=value))

        def counter(name: str, text: str, value: float) -> None:
            families.append(CounterMetricFamily(f"trioft_{name}", text, value=value))

        def by(name: str, text: str, label: str, values: Iterable[tuple[str, float]], *, counts: bool) -> None:
            kind = CounterMetricFamily if counts else GaugeMetricFamily
            family = kind(f"trioft_{name}", text, labels=[label])
            for key, value in values:
                family.add_metric([key], value)
            families.append(family)

        run, board, totals, storage = self._run, self._run.board, self._run.board.totals, self._run.storage
        live = list(board.live.values())
        by("build_info", "What runs.", "version", [(__version__, 1)], counts=False)
        counter("copied_bytes", "Bytes written to the destination.", totals.bytes)
        counter("resumed_bytes", "Bytes that an earlier run had written.", totals.bytes_resumed)
        counter("patched_bytes", "Bytes written again as a recorder had rewritten them.", totals.bytes_patched)
        verified = self.bytes_verified + sum(entry.bytes_verified for entry in live)
        gauge("verified_bytes", "Bytes of this run's files that are durable and verified.", verified)
        outcomes = ("delivered", "already", "failed", "skipped", "busy")
        by("files", "Files by outcome.", "outcome", [(n, getattr(totals, n)) for n in outcomes], counts=True)
        by("errors", "Errors by what is done about them.", "class", self.errors.items(), counts=True)
        counter("verify_mismatches", "Blocks that did not read back as they were written.", self.mismatches)
        states = Counter(entry.state for entry in live)
        by(
            "live_files",
            "Files at hand by state.",
            "state",
            [(s, states[s]) for s in FileState if s not in FINAL],
            counts=False,
        )
        gauge("pending_files", "Files that are not finished.", board.pending_files)
        gauge("pending_bytes", "Bytes that are still to be copied.", board.pending_bytes)
        waiting = [entry.found_at for entry in live if entry.state in _WAITING]
        oldest = (datetime.now(UTC) - min(waiting)).total_seconds() if waiting else 0.0
        gauge("oldest_waiting_seconds", "Since the first of the files that wait was found.", oldest)
        lags = [entry.lag_seconds for entry in live if entry.lag_seconds is not None]
        gauge(
            "growing_lag_seconds", "How far the copy that is farthest behind its recorder is.", max(lags, default=0.0)
        )
        for side in Side:
            gauge(f"{side}_up", f"1 while the {side} can be used.", float(board.wrong_with(side) is None))
        if storage is not None:
            gauge("destination_free_bytes", "What the destination says is free.", storage.free)
            gauge("destination_total_bytes", "How large it is.", storage.total)
            gauge("destination_reserved_bytes", "What files under way still need.", storage.reserved_bytes)
        gauge("destination_full_seconds", "Until the recordings will have filled it.", board.full_in)
        gauge("movers", "Processes for file operations.", sum(pool.alive for pool in run.pools))
        counter("movers_replaced", "Those that died, or were killed.", sum(pool.replaced for pool in run.pools))
        gauge("movers_left_behind", "Those that cannot be killed.", len(run.stuck.pids))
        gauge("scan_seconds", "What the last look through the whole source took.", board.scan_seconds)
        counter(
            "event_overflows",
            "Times that events got lost, and the source was scanned.",
            run.changes.overflows if run.changes else 0,
        )
        gauge("feed_clients", "Who reads the feed.", self.clients())

        class Collected:
            def collect(self) -> Iterable[Metric]:
                return families

        registry.register(Collected())
