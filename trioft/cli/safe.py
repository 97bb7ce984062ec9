"""
``trioft safe``: may these files be removed from the source? Looked at now, at both ends; in words or as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import trio

from trioft.cli.output import print_all
from trioft.cli.pairs import all_ledgers, ledgers_of, resolved
from trioft.cli.voice import translate
from trioft.config.options import Config
from trioft.core.errors import show_path
from trioft.core.naming import lies_at
from trioft.core.units import size_text, timestamp
from trioft.movers.pool import Movers
from trioft.pipeline.inquiry import Area, Inquiry
from trioft.pipeline.safety import Answer, Count, Reason, Tally, tally_fields
from trioft.state.fields import path_fields
from trioft.state.reader import Records

_RESOLVING = 10.0  # seconds to find out what a path leads to

_CODES = {Answer.YES: 0, Answer.NO: 1, Answer.UNKNOWN: 4}


class Told(NamedTuple):
    """The answer about one path, and one destination."""

    path: bytes  # as it was asked for
    source: bytes
    destination: bytes
    total: Tally
    parts: dict[bytes, Tally]
    read: bool
    time: str  # that it was looked at


def run_safe(config: Config, state_dir: str, paths: list[str], *, read: bool, as_json: bool) -> int:
    """Run ``trioft safe``; return its exit code. Raises ``TrioftError``."""
    told = [answer for text in paths for answer in ask_about(config, state_dir, os.fsencode(text), read=read)]
    print_all(
        (json.dumps(fields_of(one)) for one in told) if as_json else (line for one in told for line in lines_of(one))
    )
    found = {one.total.answer for one in told}
    return _CODES[next(answer for answer in (Answer.NO, Answer.UNKNOWN, Answer.YES) if answer in found)]


def ask_about(config: Config, state_dir: str, name: bytes, *, read: bool) -> list[Told]:
    """Return the answers about what a person calls *name*: one for each destination that its source has."""
    told = []
    for ledger, area in areas_of(config, state_dir, name):
        with contextlib.closing(Records(ledger)) as records:
            told.append(inquire(config, records, name, area, read=read))
    if not told:
        tally = Tally()
        text = f"nothing is on record of it in {state_dir}"
        tally.add(name, Reason(Answer.NO, "not_on_record", text))
        told.append(Told(name, b"", b"", tally, {}, read, timestamp(datetime.now(UTC))))
    return told


def inquire(config: Config, records: Records, name: bytes, area: Area, *, read: bool) -> Told:
    """Look at everything in *area*, now. Raises ``TrioftError``."""
    time = timestamp(datetime.now(UTC))

    async def look() -> Inquiry:
        async with Movers(2, config.copy.stall_timeout) as movers:
            inquiry = Inquiry(config=config, records=records, call=movers.call, read=read)
            await inquiry.run(area)
            return inquiry

    try:
        inquiry = trio.run(look)
    except BaseException as error:
        translate(error)
    return Told(name, records.source, records.destination, inquiry.total, inquiry.parts, read, time)


# --- what is meant ----------------------------------------------------------------------------------------------------


def areas_of(config: Config, state_dir: str, name: bytes) -> list[tuple[str, Area]]:
    """
    Return what a person calls *name*, in each ledger whose source has it: that path, or one below SOURCE.

    Where nothing has it under this name, it may be called so by way of a link. Raises ``TrioftError``.
    """
    ledgers = ledgers_of(config, state_dir) if all_ledgers(state_dir) or config.source.path else []
    absolute = os.path.abspath(name)
    found = _find(ledgers, absolute)
    if not found and not os.path.isabs(name):
        relative = os.path.normpath(name)
        for ledger in ledgers:
            with contextlib.closing(Records(ledger)) as records:
                if records.knows(relative) or records.has_files_below(relative):
                    found.append((ledger, Area(relative)))
    if not found and ledgers:
        (folder,) = trio.run(resolved, [os.path.dirname(absolute)], _RESOLVING)
        found = _find(ledgers, os.path.join(folder, os.path.basename(absolute)))
    return found


def _find(ledgers: list[str], absolute: bytes) -> list[tuple[str, Area]]:
    found = []
    for ledger in ledgers:
        with contextlib.closing(Records(ledger)) as records:
            if (area := area_of(records, absolute)) is not None:
                found.append((ledger, area))
    return found


def area_of(records: Records, absolute: bytes) -> Area | None:
    """Return where an *absolute* path lies in a ledger's source, or in where that is moved to; None: in neither."""
    if (below := lies_at(absolute, records.source)) is not None:
        return Area(below)
    for archive in records.archives():
        if (below := lies_at(absolute, archive)) is not None:
            return Area(below, archive)
    return None


# --- what is said -----------------------------------------------------------------------------------------------------


def fields_of(told: Told) -> dict[str, object]:
    """Return the fields of the JSON object."""
    total = told.total
    return {
        **path_fields("path", told.path),
        **(path_fields("source", told.source) if told.source else {"source": None}),
        **(path_fields("destination", told.destination) if told.destination else {"destination": None}),
        **tally_fields(total),
        "read": told.read,
        "time": told.time,
        "folders": [{**path_fields("path", path), **tally_fields(part)} for path, part in sorted(told.parts.items())],
    }


def lines_of(told: Told) -> Iterator[str]:
    """Yield the lines for people."""
    total = told.total
    at = f" at {show_path(told.destination)}" if told.destination else ""
    if total.answer == Answer.YES:
        files = "1 file" if total.files == 1 else f"each of {total.files:,} files"
        copy = "was read again, and holds that" if told.read else "has that size and time (--read reads it again)"
        yield (
            f"{show_path(told.path)}: yes: {files}, {size_text(total.size)}, is what was delivered and verified wholly;"
            f" nobody is writing it; its copy{at} is there, and {copy}"
        )
    else:
        yield f"{show_path(told.path)}: {total.answer}{f', for what is{at}' if at else ''}"
    for reason, count in sorted(total.reasons.values(), key=lambda found: found[0].answer):
        yield f"  {reason.answer}: {_counted(count, total)}{reason.text}{_examples(count)}"
    if total.answer != Answer.YES:
        safe = [path for path, part in sorted(told.parts.items()) if part.answer == Answer.YES]
        if safe:
            yield f"  yes, by themselves: {', '.join(map(show_path, safe))}"
    for kind, count in total.others.items():
        yield f"  not copied, and not asked about: {kind}: {count.files:,}{_examples(count)}"


def _counted(count: Count, total: Tally) -> str:
    return f"{count.files:,} of {total.files:,} files: " if count.files > 1 or total.files > 1 else ""


def _examples(count: Count) -> str:
    if not count.examples:
        return ""
    more = ", …" if count.files > len(count.examples) else ""
    return f" ({', '.join(map(show_path, count.examples))}{more})"
