"""
``trioft explain``: all that is known about one file, in words or as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime

from trioft.cli.facts import Explanation, Now, explain, find, reason_of, why_not_remove
from trioft.cli.history import describe, local, words
from trioft.cli.output import print_all
from trioft.cli.pairs import ledgers_of
from trioft.cli.safe import Told, fields_of, inquire, lines_of
from trioft.config.options import Config
from trioft.core import answers
from trioft.core.answers import Seen
from trioft.core.errors import show_path
from trioft.core.naming import lies_at
from trioft.core.units import size_text, timestamp
from trioft.pipeline.inquiry import Area, archived_as
from trioft.pipeline.safety import Answer
from trioft.state.fields import path_fields
from trioft.state.reader import Recorded, Records

_YES = (
    "Yes: it is what was delivered, durable and verified; nobody has it open for writing; its copy is there, with the"
    " size and time that it had (`trioft safe --read` reads it again)."
)


def run_explain(config: Config, state_dir: str, text: str, *, as_json: bool) -> int:
    """Run ``trioft explain``; return its exit code. Raises ``TrioftError``."""
    ledger, path, area = _find(config, state_dir, text)
    with contextlib.closing(Records(ledger)) as records:
        x = explain(config, records, path, area)
        if x.is_folder:
            told = inquire(config, records, os.fsencode(text), Area(path, area.archive), read=False)
            print_all([json.dumps(_folder_fields(told))] if as_json else _folder_lines(path, told))
            return 0
    print_all([json.dumps(_fields(x))] if as_json else _lines(x))
    return 0


def _find(config: Config, state_dir: str, text: str) -> tuple[str, bytes, Area]:
    """Return the ledger, the path of the file that is meant, and where it lies, if that is an archive."""
    absolute = os.path.abspath(os.fsencode(text))
    for ledger in ledgers_of(config, state_dir):
        with contextlib.closing(Records(ledger)) as records:
            for archive in records.archives():
                if (below := lies_at(absolute, archive)) is not None:
                    known = archived_as(records, [archive], absolute, None)
                    is_known = known is not None and known[0] is not None
                    path = known[0].path if is_known and known is not None and known[0] is not None else below
                    return ledger, path, Area(below, archive)
    ledger, path = find(config, state_dir, text)
    return ledger, path, Area()


def _folder_fields(told: Told) -> dict[str, object]:
    """Return the fields of the JSON object about a folder."""
    fields = fields_of(told)
    reasons = told.total.reasons.values()
    why_not = "; ".join(f"{count.files:,} files: {reason.text}" for reason, count in reasons) or None
    return {**fields, "kind": "folder", "removable": told.total.answer == Answer.YES, "why_not": why_not}


def _folder_lines(path: bytes, told: Told) -> Iterator[str]:
    """Yield the lines for people about a folder."""
    yield show_path(path or told.source)
    yield f"  a folder below {show_path(told.source)}, for {show_path(told.destination)}"
    yield ""
    yield "May all that is in it be removed?"
    yield from lines_of(told)


def _fields(x: Explanation) -> dict[str, object]:
    """Return the fields of the JSON object."""
    why_not = why_not_remove(x)
    known, now = x.recorded, x.now
    found = now.source.found if now.source is not None else None
    return {
        **path_fields("path", x.path),
        **path_fields("dest", x.target),
        **path_fields("source", x.source),
        **path_fields("destination", x.destination),
        "removable": why_not is None,
        "safe": "yes" if (reason := reason_of(x)) is None else reason.answer,
        "why_not": why_not,
        "decision": {
            "wanted": x.decision.why_not is None,
            "why_not": x.decision.why_not,
            **path_fields("dest", x.decision.target),
            "rule": x.decision.rule,
            "while_growing": x.decision.growing,
        },
        "recorded": None
        if known is None
        else {
            "outcome": known.known.outcome,
            "removal": known.known.removal or None,
            **path_fields("dest", known.target),
            "size": known.known.size,
            "mtime": _moment(known.known.mtime_ns),
            "digest": known.digest.hex() if known.digest is not None else None,
            "closed": known.closed or None,
        },
        "checkpoint": None
        if x.checkpoint is None
        else {
            **path_fields("partial", x.checkpoint.partial),
            "offset": x.checkpoint.offset,
            "size": x.checkpoint.fingerprint.size,
            "growing": x.checkpoint.growing,
        },
        "verified": None
        if x.finding is None
        else {"verdict": x.finding.verdict, "time": x.finding.time, "detail": x.finding.detail or None},
        "now": {
            "source": {
                "kind": now.source.kind if now.source is not None else None,
                "size": found.fingerprint.size if found is not None else None,
                "mtime": _moment(found.fingerprint.mtime_ns) if found is not None else None,
                "writer": now.source.writer if now.source is not None and found is not None else None,
                "error": now.source_error,
            },
            "destination": {**_seen(now.there), "error": now.destination_error},
            "partial": _seen(now.partial),
        },
        "history": [describe(line) for line in x.history],
    }


def _seen(seen: Seen | None) -> dict[str, object]:
    is_there = seen is not None and seen.size is not None
    return {
        "there": None if seen is None or seen.trouble is not None else is_there,
        "size": seen.size if seen is not None else None,
        "mtime": _moment(seen.mtime_ns) if seen is not None and is_there else None,
    }


def _moment(time_ns: int) -> str | None:
    """Return a time of a file as RFC 3339; None for those that no calendar has."""
    try:
        return timestamp(datetime.fromtimestamp(time_ns / 1e9, UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _lines(x: Explanation) -> Iterator[str]:
    """Yield the lines for people."""
    decision = x.decision
    yield show_path(x.path)
    yield f"  below {show_path(x.source)}, for {show_path(x.destination)}"
    if x.archive:
        yield f"  moved to {show_path(x.archive)} when it had been delivered"
    yield ""
    yield "now"
    yield f"  source:        {_source_in_words(x.now)}"
    yield f"  destination:   {show_path(x.target)}: {_seen_in_words(x.now.there, x.now)}"
    if x.checkpoint is not None:
        done, size = x.checkpoint.offset, x.checkpoint.fingerprint.size
        share = f"{100 * done // size} %" if size else "all"
        growing = ", still being written when that was recorded" if x.checkpoint.growing else ""
        yield f"  on its way:    {share} durable and verified: {size_text(done)} of {size_text(size)}{growing}"
        yield f"  partial:       {show_path(x.checkpoint.partial)}: {_seen_in_words(x.now.partial, x.now)}"
    yield ""
    yield "configuration"
    yield f"  transferred:   {'yes' if decision.why_not is None else f'no: {decision.why_not}'}"
    yield f"  to:            {show_path(decision.target)} ({decision.rule})"
    yield f"  while written: {decision.growing}"
    yield ""
    yield "on record"
    yield f"  outcome:       {_recorded_in_words(x.recorded)}"
    if x.recorded is not None and x.recorded.digest is not None:
        yield f"  digest:        {x.recorded.digest.hex()}"
    if x.finding is not None:
        detail = f" ({x.finding.detail})" if x.finding.detail else ""
        yield f"  read again:    {local(x.finding.time)}: {x.finding.verdict}{detail}"
    yield ""
    yield "history" if x.history else "history: nothing"
    for line in x.history:
        detail = words(line)
        yield f"  {local(line.time)}  {line.event:<9}" + (f"  {detail}" if detail else "")
    yield ""
    reason = reason_of(x)
    answer = _YES if reason is None else f"{str(reason.answer).capitalize()}: {reason.text}."
    yield f"May the source be removed? {answer}"


def _source_in_words(now: Now) -> str:
    look = now.source
    if look is None:
        return f"cannot be looked at: {now.source_error}"
    if look.found is None:
        kinds = {"gone": "it is not there", "folder": "it is a folder", "other": "it is no regular file"}
        return kinds.get(look.kind, f"cannot be looked at: {look.trouble}")
    writing = {
        answers.CLOSED: "nobody has it open for writing",
        answers.BUSY: "somebody has it open for writing",
    }.get(look.writer, "nobody can tell whether it is being written")
    fingerprint = look.found.fingerprint
    marked = {True: "; its marker is there", False: "; it lacks its marker", None: ""}[look.found.marked]
    return f"{size_text(fingerprint.size)}, modified {_local(fingerprint.mtime_ns)}; {writing}{marked}"


def _seen_in_words(seen: Seen | None, now: Now) -> str:
    if seen is None:
        return f"cannot be looked at: {now.destination_error}"
    if seen.trouble is not None:
        return f"cannot be looked at: {seen.trouble}"
    if seen.size is None:
        return "it is not there"
    return f"{size_text(seen.size)}, modified {_local(seen.mtime_ns)}"


def _recorded_in_words(recorded: Recorded | None) -> str:
    if recorded is None:
        return "none"
    known = recorded.known
    if not recorded.is_delivered:
        return known.outcome
    closed = f", closed: {recorded.closed}" if recorded.closed else ""
    removal = f"; source: {known.removal}" if known.removal else ""
    return f"{known.outcome} as {show_path(recorded.target)}, {size_text(known.size)}{closed}{removal}"


def _local(time_ns: int) -> str:
    moment = _moment(time_ns)
    return local(moment) if moment is not None else "at a time that no calendar has"
