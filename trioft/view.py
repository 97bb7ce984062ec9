"""
What the outside sees of a file: the fields that JSON lines, the feed and ``trioft status`` have in common.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import trio

from trioft.board import Entry
from trioft.errors import Trouble, classify, hint_for, show_path


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


def timestamp(at: datetime) -> str:
    """Return *at* as RFC 3339, UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
