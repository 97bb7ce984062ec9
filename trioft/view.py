"""
What the outside sees: of a file, the fields that JSON lines and the feed have in common; of the run, all the rest.
"""

from __future__ import annotations

import base64
import os
import platform
from datetime import UTC, datetime, timedelta

import attrs
import trio

from trioft import __version__
from trioft.board import Entry
from trioft.errors import Side, Trouble, classify, hint_for, show_path
from trioft.job import JobRun
from trioft.notation import timestamp
from trioft.throttle import Rate


class Run:
    """One run as the feed tells it, beside its files: what it is, both ends, totals."""

    def __init__(self, run: JobRun, *, once: bool) -> None:
        self._run = run
        config = run.config
        self._rate = Rate()
        self._agent: dict[str, object] = {
            "version": __version__,
            "pid": os.getpid(),
            "host": platform.node(),
            "mode": "sync" if once else "watch",
            "verify": config.copy.verify,
            "on_success": str(config.copy.on_success),
            "started_at": timestamp(datetime.now(UTC)),
        }

    def sections(self) -> dict[str, dict[str, object]]:
        """Return the sections by name."""
        board, storage, config = self._run.board, self._run.storage, self._run.config
        source = self._end(Side.SOURCE, config.source.path)
        destination = {
            **self._end(Side.DESTINATION, config.destination.path),
            "free": storage.free if storage else None,
            "total": storage.total if storage else None,
            "reserved": storage.reserved_bytes if storage else None,
            "full_in": None if board.full_in is None else round(board.full_in),
        }
        rate = self._rate.add(trio.current_time(), board.totals.bytes)
        totals = {
            **attrs.asdict(board.totals),
            "pending_files": board.pending_files,
            "pending_bytes": board.pending_bytes,
            "rate": None if rate is None else round(rate),
            "eta": round(board.pending_bytes / rate) if rate and board.scanned else None,
        }
        return {
            "agent": {
                **self._agent,
                "scanned": board.scanned,
                "paused": board.paused,
                "bwlimit": config.copy.bwlimit.now(),
                "transfers": config.copy.transfers,
                "control": config.feed.control,
            },
            "source": source,
            "destination": destination,
            "totals": totals,
        }

    def _end(self, side: Side, path: str | None) -> dict[str, object]:
        storage = self._run.storage
        identity = storage.identity[side] if storage is not None else None
        wrong = self._run.board.wrong_with(side)
        return {
            **path_fields("path", os.fsencode(os.path.abspath(path or ""))),
            "state": "ok" if wrong is None and storage is not None else "away",
            "reason": wrong,
            "filesystem": f"{identity.source} ({identity.kind})" if identity is not None else None,
        }


def describe(entry: Entry) -> dict[str, object]:
    """Return the fields of a file's JSON line. Unknown is null, never 0."""
    return {
        **path_fields("path", entry.path),
        "state": entry.state,
        "reason": entry.reason,
        "size": entry.size,
        **(path_fields("dest", entry.target) if entry.target is not None else {"dest": None}),
        "strategy": entry.strategy,
        "bytes_copied": entry.bytes_copied,
        "bytes_verified": entry.bytes_verified,
        "bytes_patched": entry.bytes_patched,
        "growing": entry.growing,
        "lag_bytes": entry.lag_bytes,
        "lag_seconds": round(entry.lag_seconds, 3) if entry.lag_seconds is not None else None,
        "closed": entry.closed,
        "attempt": entry.attempt,
        "digest": entry.digest.hex() if entry.digest is not None else None,
        "error": describe_trouble(entry.trouble) if entry.trouble is not None else None,
    }


def describe_trouble(trouble: Trouble) -> dict[str, object]:
    """Return the fields of an error."""
    return {
        "class": classify(trouble),
        "op": trouble.op,
        "side": trouble.side,
        "errno": trouble.errno,
        **path_fields("path", trouble.path),
        "offset": trouble.offset,
        "text": str(trouble),
        "hint": hint_for(trouble),
    }


def path_fields(key: str, path: bytes) -> dict[str, object]:
    """Return *path* as readable text, and, where that is not the exact name, its bytes in base64 too."""
    try:
        return {key: path.decode("utf-8")}
    except UnicodeDecodeError:
        return {key: show_path(path), f"{key}_b64": base64.b64encode(path).decode("ascii")}


def moment(at: float | None) -> str | None:
    """Return a time on trio's clock as RFC 3339, UTC, to the millisecond."""
    return None if at is None else timestamp(datetime.now(UTC) + timedelta(seconds=at - trio.current_time()))
