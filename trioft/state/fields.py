"""
A file, a trouble, a moment as fields of JSON lines, of the feed and of the history.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import trio

from trioft.core.errors import Trouble, classify, hint_for, show_path
from trioft.core.units import timestamp
from trioft.state.board import Entry


def describe(entry: Entry) -> dict[str, object]:
    """Return the fields of a file's JSON line. Unknown is null, never 0."""
    return {
        "job": entry.job,
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


def file_entry(entry: Entry, *, rate: float | None = None, finished_at: datetime | None = None) -> str:
    """Return a file as the feed and the hooks have it: JSON. *rate* is in bytes a second."""
    left = entry.size - entry.bytes_copied
    return json.dumps(
        {
            "id": entry.id,
            **describe(entry),
            "rate": None if rate is None else round(rate),
            "eta": round(left / rate) if rate and not entry.growing else None,
            "retry_at": moment(entry.retry_at),
            "found_at": timestamp(entry.found_at),
            "started_at": moment(entry.started_at),
            "finished_at": None if finished_at is None else timestamp(finished_at),
        }
    )


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
