"""
What comes of a result, or of a trouble: on the board, in the ledger, and back in the backlog.
"""

from __future__ import annotations

import contextlib
import random
from typing import NamedTuple

import trio

from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify, may_concern_all, show_path
from trioft.core.model import FileState, Item, Job, Result, Verdict, Wait
from trioft.core.naming import is_own, partial_for
from trioft.pipeline.backlog import Backlog, Pending
from trioft.pipeline.context import Tools
from trioft.state.ledger import Entry, Ledger

# Operations that may rename a partial.
_RENAMING = ("rename", "publish")

# Seconds between two looks at a file that an operator has paused.
_PAUSED = 3600.0


async def report_all(
    name: str, job: Job, results: list[Result], pending: list[Pending], backlog: Backlog, tools: Tools
) -> None:
    ended: list[Ending] = []
    litter: list[bytes] = []
    if name != "bundle" and results[0].verdict == Verdict.GONE:
        try:
            if await _has_another_name(job.items[0], tools):
                report(pending[0], job.items[0], results[0], backlog, tools, ended)
                # What is on record of it goes on under that.
                if await tools.ledger.call(Ledger.checkpoint_of, job.items[0].path) is None:
                    await _discard([partial_for(job.items[0])], tools)
                return
        except FileTrouble as error:
            results = [Result(Verdict.TROUBLE, trouble=error.trouble)]  # nobody knows: it is asked again
    if any(result.trouble is not None and _may_concern_all(result.trouble) for result in results):
        await tools.storage.gates[Side.DESTINATION].is_well()
    for p, item, result in zip(pending, job.items, results, strict=True):
        report(p, item, result, backlog, tools, ended)
        # Some servers carry out what they were asked for long after it was given up.
        p.life += result.trouble is not None and result.trouble.op in _RENAMING and _is_outage(result.trouble)
    await conclude(ended, backlog, tools)
    for p, item in zip(pending, job.items, strict=True):
        if p.entry.state in (FileState.GONE, FileState.SKIPPED, FileState.FAILED) and (
            name == "bundle" or p.entry.state != FileState.FAILED
        ):
            litter.append(partial_for(item))
    if litter:
        for item in job.items if name != "bundle" else ():
            await tools.ledger.call(Ledger.drop_checkpoint, item.path)
        await _discard(litter, tools)


async def conclude(ended: list[Ending], backlog: Backlog, tools: Tools) -> None:
    """Record what has ended, and then be done with it: a scan that came in between would take it in once more."""
    if ended:
        await tools.ledger.call(Ledger.record, [ending.entry for ending in ended])
        for ending in ended:
            backlog.finished(ending.pending, ending.state, ending.entry.detail)


async def _discard(partials: list[bytes], tools: Tools) -> None:
    with contextlib.suppress(FileTrouble):  # another start finds them
        await tools.destination.discard(partials)


async def _has_another_name(item: Item, tools: Tools) -> bool:
    """Is the file still there, called something else? Then have the scanner look at it."""
    name = await tools.looking.locate(item.path, item.fingerprint[:2], everywhere=True)
    if name is not None:
        tools.changes.add([name])
    return name is not None


class Ending(NamedTuple):
    """A file that has failed, or was skipped: over when that is on record."""

    pending: Pending
    state: FileState
    entry: Entry


def report(pending: Pending, item: Item, result: Result, backlog: Backlog, tools: Tools, ended: list[Ending]) -> None:
    """Say on the board what came of one file, or put it back; what has failed is added to *ended*."""
    entry, totals, settings = pending.entry, tools.board.totals, tools.config.source
    entry.target, entry.digest, entry.trouble = result.target or None, result.digest, result.trouble
    entry.closed = result.closed or None
    match result.verdict:
        case Verdict.PUBLISHED | Verdict.ALREADY if result.trouble is not None:
            totals.failed += 1
            backlog.finished(pending, FileState.FAILED, f"delivered, but not removed from the source: {result.trouble}")
        case Verdict.PUBLISHED:
            totals.delivered += 1
            backlog.finished(pending, FileState.DONE)
        case Verdict.ALREADY:
            totals.already += 1
            backlog.finished(pending, FileState.DONE, "already there")
        case Verdict.EXISTS:
            reason = "another file has this name at the destination"
            if result.note:
                reason = result.note
            elif item.kept:
                reason = item.kept
            elif item.rival:
                there = show_path(result.target)
                reason = f"{show_path(item.rival)} has been delivered under the same name, {there}, and is not replaced"
                if item.rival == item.path:
                    reason = (
                        f"{there} was delivered from an earlier file of this name, which was removed then: all that is"
                        " left of that is not replaced; --if-exists rename keeps both"
                    )
            if tools.manner.if_exists == "skip":
                totals.skipped += 1
                ended.append(_ending(pending, item, FileState.SKIPPED, reason))
            else:
                totals.failed += 1
                ended.append(_ending(pending, item, FileState.FAILED, reason))
        case Verdict.GONE:
            backlog.finished(pending, FileState.GONE)
        case Verdict.BUSY:
            backlog.settle_again(pending, "somebody has it open for writing", settings.settle_closed)
        case Verdict.UNPROVEN:
            reason = "nobody can tell whether it is still being written"
            backlog.settle_again(pending, reason, settings.settle)
        case Verdict.UNMARKED:
            assert result.found is not None
            pending.found = result.found._replace(marked=False)  # what it is when its marker comes
            backlog.lacks_marker(pending, tools.manner.markers.source, once=tools.once)
        case Verdict.CHANGED:
            pending.changes += not pending.growing  # who records may change it as often as he likes
            if tools.once and pending.changes > tools.config.retry.retries:
                totals.busy += 1
                backlog.leave(pending, "it changes faster than it can be copied: left for the next run")
                return
            backlog.settle_again(pending, "it changed while it was copied", 0)
        case Verdict.TROUBLE:
            assert result.trouble is not None
            if _cope(pending, result.trouble, backlog, tools):
                totals.failed += 1
                ended.append(_ending(pending, item, FileState.FAILED, str(result.trouble)))
        case Verdict.PAUSED:
            # The operator may have resumed it while what was written settled.
            backlog.postpone(pending, Wait.PAUSED, "paused by an operator", _PAUSED if entry.paused else 0)
        case Verdict.LEFT:
            totals.failed += 1
            ended.append(_ending(pending, item, FileState.FAILED, str(result.trouble)))
        case Verdict.OPEN | Verdict.WRITTEN | Verdict.REMOVED | Verdict.SUMMED:
            raise AssertionError(f"a file was left unfinished: {result.verdict}")


def _ending(pending: Pending, item: Item, state: FileState, reason: str) -> Ending:
    entry = Entry(str(state), item.path, pending.entry.target or b"", item.fingerprint, None, reason)
    return Ending(pending, state, entry)


def _cope(pending: Pending, trouble: Trouble, backlog: Backlog, tools: Tools) -> bool:
    """Put a file with a trouble back, as far as there is hope. Returns True if there is none."""
    entry = pending.entry
    match classify(trouble):
        case Remedy.SOURCE if tools.storage.hung.note(trouble) is not None:
            pending.alone = True  # what shares a bundle with it would wait with it
            entry.attempt += tools.once
            if entry.attempt > tools.config.retry.retries:
                return True
            backlog.postpone(pending, Wait.SOURCE, f"source: {trouble}", _pause(entry.attempt, tools))
        case Remedy.DESTINATION | Remedy.SOURCE as end:
            tools.storage.suspect(trouble)
            # If every probe has succeeded since the last time, it is not the end, it is this file there; unless it is
            # another one of its bundle.
            if not _is_of_another(trouble, pending):
                if pending.outages == tools.storage.outages:
                    entry.attempt += 1
                    if (tools.once or end == Remedy.SOURCE) and entry.attempt > tools.config.retry.retries:
                        return True
                pending.outages = tools.storage.outages
            wait = Wait.DESTINATION if end == Remedy.DESTINATION else Wait.SOURCE
            backlog.postpone(pending, wait, f"{end}: {trouble}", _pause(entry.attempt, tools))
        case Remedy.SPACE:
            if trouble.op not in ("create", "mkdir"):  # there, names may be what there are none of: a probe finds out
                tools.storage.ran_out()
            backlog.postpone(pending, Wait.SPACE, f"space: {trouble}", tools.config.destination.check_interval)
        case Remedy.RETRY:
            entry.attempt += 1
            if entry.attempt > tools.config.retry.retries:
                return True
            pause = _pause(entry.attempt, tools)
            backlog.postpone(pending, Wait.RETRY, f"retry in {pause:.0f} s: {trouble}", pause)
            entry.retry_at = trio.current_time() + pause
        case Remedy.GIVE_UP:
            if tools.storage.is_open or not _may_concern_all(trouble):
                return True
            backlog.postpone(pending, Wait.DESTINATION, f"destination: {trouble}", 0)
    return False


def _is_outage(trouble: Trouble) -> bool:
    return classify(trouble) == Remedy.DESTINATION


def _may_concern_all(trouble: Trouble) -> bool:
    return classify(trouble) == Remedy.GIVE_UP and may_concern_all(trouble)


def _is_of_another(trouble: Trouble, pending: Pending) -> bool:
    return is_own(trouble.path) and trouble.path != pending.partial


def _pause(attempt: int, tools: Tools) -> float:
    """Seconds before the next attempt: twice as long each time, and never quite the same for all."""
    return tools.config.retry.pause(attempt) * random.uniform(0.8, 1.0)
