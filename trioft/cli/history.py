"""
``trioft history``: what happened, from the ledgers; as lines for people, or as JSON lines.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from trioft.cli.output import print_all
from trioft.cli.pairs import ledgers_of
from trioft.config.options import Config
from trioft.core import answers
from trioft.core.errors import ConfigError, show_path
from trioft.core.naming import compile_globs
from trioft.core.units import parse_moment, size_text, timestamp, visible
from trioft.state.fields import path_fields
from trioft.state.ledger import Line
from trioft.state.reader import Filter, Records

# What can have happened to a file; outcomes first.
EVENTS = (
    *("delivered", "already", "failed", "skipped", "removed", "refused"),
    *("growing", "copying", "verifying", "settling", "waiting", "renamed", "retried", "gone", "lost"),
)
FAILURES = ("failed", "refused")


class Wish(NamedTuple):
    """Which lines a person asks for, as the command line has it."""

    since: str | None = None
    until: str | None = None
    events: tuple[str, ...] = ()
    failed: bool = False
    path: str | None = None


def parse_wish(wish: Wish) -> Filter:
    """Return what *wish* means. Raises ``ConfigError`` with everything that is wrong with it."""
    problems: list[str] = []
    now = datetime.now(UTC)
    times = [Filter().since, Filter().until]
    for n, (option, text) in enumerate((("--since", wish.since), ("--until", wish.until))):
        if text is not None:
            try:
                times[n] = timestamp(parse_moment(text, now))
            except ValueError as error:
                problems.append(f"{option}: {error}")
    unknown = [event for event in wish.events if event not in EVENTS]
    problems += [f'--event: found "{event}", expected one of {", ".join(EVENTS)}' for event in unknown]
    paths = None
    if wish.path is not None:
        try:
            paths = compile_globs((wish.path,))
        except re.error as error:
            problems.append(f"--path: {wish.path!r} is no pattern: {error}")
    if problems:
        raise ConfigError(problems)
    events = tuple(dict.fromkeys((*wish.events, *(FAILURES if wish.failed else ()))))
    return Filter(times[0], times[1], events, paths)


def run_history(config: Config, state_dir: str, wish: Wish, *, limit: int | None, as_json: bool) -> int:
    """Run ``trioft history``; return its exit code. Raises ``TrioftError``."""
    wanted = parse_wish(wish)
    with contextlib.ExitStack() as stack:
        ledgers = [stack.enter_context(contextlib.closing(Records(path))) for path in ledgers_of(config, state_dir)]
        lines = _merged(ledgers, wanted, limit)
        several = len(ledgers) > 1
        print_all(_as_json(records, line) if as_json else _as_text(records, line, several) for line, records in lines)
        if not ledgers:
            print(f"nothing is on record in {state_dir} yet", file=sys.stderr)  # noqa: T201
    return 0


def _merged(ledgers: list[Records], wanted: Filter, limit: int | None) -> Iterable[tuple[Line, Records]]:
    """Return the lines of all *ledgers* in the order of time: the newest *limit*, if that is given."""
    streams = [_lines(records, wanted, limit) for records in ledgers]
    merged = heapq.merge(*streams, key=lambda found: found[0].time)
    if limit is None or len(ledgers) < 2:
        return merged
    there = sum(min(limit, records.count(wanted)) for records in ledgers)
    return itertools.islice(merged, max(0, there - limit), None)


def _lines(records: Records, wanted: Filter, limit: int | None) -> Iterator[tuple[Line, Records]]:
    return ((line, records) for line in records.history(wanted, limit))


def describe(line: Line) -> dict[str, object]:
    """Return the fields of a line's JSON object."""
    return {
        "event": line.event,
        "time": line.time,
        **path_fields("path", line.path),
        **(path_fields("dest", line.target) if line.target else {"dest": None}),
        "size": line.size,
        "digest": line.digest.hex() if line.digest is not None else None,
        "detail": words(line),
        "proofs": json.loads(line.detail) if line.event == "removed" else None,
    }


# What was found out about who might have been writing a source when it went.
_WRITERS = {
    answers.CLOSED: "the kernel said that nobody had it open for writing",
    answers.UNKNOWN: "nobody could prove that it was not open for writing",
}


def words(line: Line) -> str:
    """Return a line's detail for people: of a removal, its proofs in words."""
    if line.event != "removed":
        return visible(line.detail)
    proofs = json.loads(line.detail)
    done = f"moved below {proofs['archived_below']}" if proofs.get("archived_below") else "deleted"
    return visible(
        f"{done}, after its copy was durable and verified ({proofs['durable_and_verified']}), renamed and on record;"
        f" {_WRITERS.get(proofs['no_writer'], proofs['no_writer'])}"
    )


def local(time: str) -> str:
    """Return a time of the ledger by this machine's clock."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _as_json(records: Records, line: Line) -> str:
    ends = {**path_fields("source", records.source), **path_fields("destination", records.destination)}
    return json.dumps({**describe(line), **ends})


def _as_text(records: Records, line: Line, several: bool) -> str:
    path = (f"{show_path(records.source)}: " if several else "") + show_path(line.path)
    target = f" -> {show_path(line.target)}" if line.target not in (b"", line.path) else ""
    detail = words(line)
    text = f"{local(line.time)}  {line.event:<9}  {size_text(line.size):>8}  {path}{target}"
    return f"{text}  ({detail})" if detail else text
