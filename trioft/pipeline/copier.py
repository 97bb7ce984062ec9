"""
The copier: one job at a time, from admission to report, and what happens on an error.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import AsyncIterable, AsyncIterator

import attrs
import trio

from trioft.core.errors import FileTrouble, Remedy, Side, Trouble, classify, may_concern_all, show_path
from trioft.core.model import Checkpoint, FileState, Item, Job, Result, Verdict
from trioft.core.naming import is_partial, partial_for
from trioft.pipeline.backlog import Backlog, Pending
from trioft.pipeline.finish import finish
from trioft.pipeline.strategies import STRATEGIES, choose_strategy
from trioft.pipeline.transfer import PAUSE, Tools, is_of, stopped
from trioft.state.claims import Take
from trioft.state.ledger import Entry, Ledger

# Operations that may rename a partial.
_RENAMING = ("rename", "publish")
# Seconds between two looks whether an operation that was left behind has ended.
_STUCK = 1.0
# Seconds between two looks at a file that an operator has paused.
_PAUSED = 3600.0


async def run_copier(jobs: AsyncIterable[Job], backlog: Backlog, tools: Tools) -> None:
    """
    Carry one job after the other to its end, or back to the backlog.

    Ends when there are no more *jobs*.
    """
    with tools.ledger:
        backlog.wake()  # there is room for one more
        async for job in jobs:
            if choose_strategy(job) == "bundle":
                await _take(job, backlog, tools)
            else:
                # A large file may get another name, and another job, before the one that copies it has noticed.
                async with tools.owners.owned(job.items[0].fingerprint[:2]):
                    await _take(job, backlog, tools)
            backlog.wake()


async def _take(job: Job, backlog: Backlog, tools: Tools) -> None:
    with tools.claims.open(backlog.hasten) as take:
        await _take_named(job, take, backlog, tools)


async def _take_named(job: Job, take: Take, backlog: Backlog, tools: Tools) -> None:
    checkpoint = await _begun(job, tools)
    named = zip(job.items, await take(job.items, tools.ledger), strict=True)
    started = [(item, its, p) for item, its in named if (p := _start(item, job.growing, backlog)) is not None]
    started = [(item, its, p) for item, its, p in started if not _has_to_wait(item, p, backlog, tools)]
    failed: list[Entry] = []
    items, pending = [], []
    for item, its, p in started:
        is_stopped = p.entry.left or p.entry.paused
        why_not = stopped(p.entry, p.entry.bytes_copied) if is_stopped else p.found.trouble
        if why_not is not None:
            if is_stopped:
                tools.board.move(p.entry, FileState.WAITING, why_not.text)
            _report(p, item, Result(Verdict.TROUBLE, trouble=why_not), backlog, tools, failed)
        elif isinstance(its, Trouble):  # what comes of the other file says what comes of this one
            pause = 0 if tools.claims.is_free(item.target) else tools.config.destination.check_interval
            backlog.again(p, FileState.WAITING, f"retry: {its.text}", pause)
        else:
            items.append(its)
            pending.append(p)
    if failed:
        await tools.ledger.call(Ledger.record, failed)
    job = job._replace(items=tuple(items))
    if pending:
        # Should a mover get stuck for good, everybody knows on which files.
        owner = tuple(item.fingerprint[:2] for item in job.items)
        tools = attrs.evolve(tools, call=functools.partial(tools.call, owner=owner))
        name = choose_strategy(job, checkpoint)
        partial = checkpoint.partial if checkpoint is not None else partial_for(job.items[0])
        async with _usable(pending, tools):
            if await _admit(name, pending, partial, backlog, tools):
                await _carry(name, job, pending, take, backlog, tools)


def _start(item: Item, growing: bool, backlog: Backlog) -> Pending | None:
    """Take a file over from the scanner, unless it has changed, or gone, while the job was waiting."""
    pending = backlog.find(item.id)
    if pending is None or pending.entry.state != (FileState.GROWING if growing else FileState.READY):
        return None
    return pending if growing or pending.found.fingerprint == item.fingerprint else None


def _has_to_wait(item: Item, pending: Pending, backlog: Backlog, tools: Tools) -> bool:
    """
    Put a file back that an operation of an earlier attempt, which got stuck, may still do something about.

    It writes, or renames, when the kernel lets it: after that, and not in the middle of another attempt.
    """
    pid = tools.stuck.process_on(item.fingerprint[:2])
    if pid is not None:
        reason = f"destination: an operation of an earlier attempt has not come back (process {pid})"
        backlog.again(pending, FileState.WAITING, reason, _STUCK)
    return pid is not None


async def _begun(job: Job, tools: Tools) -> Checkpoint | None:
    """Return what an earlier run has done of a large file, also under another name."""
    if choose_strategy(job) == "bundle":
        return None
    (item,) = job.items
    former = await tools.ledger.call(Ledger.transfer_of, item.path, *item.fingerprint[:2])
    if former is None:
        return None
    _, checkpoint = former
    return checkpoint if is_of(checkpoint, item) else None


@contextlib.asynccontextmanager
async def _usable(pending: list[Pending], tools: Tools) -> AsyncIterator[None]:
    """
    Wait until both ends are usable, and there is a place for one more transfer; have that while inside.

    Nobody has a place while he waits for the ends: other jobs, with other ends, may go on.
    """
    async with contextlib.AsyncExitStack() as held:
        while True:
            if not tools.storage.is_open:
                for p in pending:
                    tools.board.move(p.entry, FileState.WAITING, tools.board.waits_for)
                await tools.storage.usable()
            if tools.places is None:
                break
            await held.enter_async_context(tools.places)
            if tools.storage.is_open:
                break
            await held.aclose()
        yield


async def _admit(name: str, pending: list[Pending], partial: bytes, backlog: Backlog, tools: Tools) -> bool:
    """Return whether the destination has room for what *partial* does not hold already."""
    held = 0
    if name != "bundle":
        with contextlib.suppress(FileTrouble):  # whoever copies it meets it again, and says what it is
            held = await tools.call("size_of", tools.storage.ends.destination, partial)
    why_not = tools.storage.why_not_admit(sum(max(0, p.entry.size - max(p.entry.bytes_copied, held)) for p in pending))
    if why_not is None:
        for p in pending:
            p.entry.strategy = name
            tools.board.move(p.entry, FileState.COPYING)
        return True
    for p in pending:
        backlog.again(p, FileState.WAITING, why_not, tools.config.destination.check_interval)
    return False


async def _carry(name: str, job: Job, pending: list[Pending], take: Take, backlog: Backlog, tools: Tools) -> None:
    with tools.storage.reserved([p.entry for p in pending]):
        try:
            results = await STRATEGIES[name](job, tools)
        except FileTrouble as error:
            results = [Result(Verdict.TROUBLE, trouble=error.trouble)] * len(job.items)
        except BaseExceptionGroup as group:
            # Stopped, and in the same moment something went wrong: that tells nobody anything any more.
            _, rest = group.split(FileTrouble)
            if rest is None:
                raise
            raise rest from None
        # Shielded for the grace period: what has been finished is also told.
        async with tools.shutdown.shield():
            job, results = await _as_copied(job, results, take, tools)
            try:
                results = await finish(job, results, tools)
            except FileTrouble as error:
                results = [Result(Verdict.TROUBLE, trouble=error.trouble)] * len(job.items)
            await _report_all(name, job, results, pending, backlog, tools)


async def _as_copied(job: Job, results: list[Result], take: Take, tools: Tools) -> tuple[Job, list[Result]]:
    """What was followed has become another version: that is the one that is delivered, under the name it has now."""
    found = results[0].found
    if found is None:
        return job, results
    (item,) = job.items
    was, item = item, item._replace(mode=found.mode, fingerprint=found.fingerprint, routed=found.routed)
    trouble = found.trouble
    if item.target != was.target and trouble is None:
        (its,) = await take([item], tools.ledger)
        item, trouble = (its, None) if isinstance(its, Item) else (item, its)
    if trouble is not None:
        results = [Result(Verdict.TROUBLE, trouble=trouble)]
    return job._replace(items=(item,)), results


async def _report_all(
    name: str, job: Job, results: list[Result], pending: list[Pending], backlog: Backlog, tools: Tools
) -> None:
    failed: list[Entry] = []
    litter: list[bytes] = []
    if name != "bundle" and results[0].verdict == Verdict.GONE:
        try:
            if await _has_another_name(job.items[0], tools):
                _report(pending[0], job.items[0], results[0], backlog, tools, failed)
                # What is on record of it goes on under that.
                if await tools.ledger.call(Ledger.checkpoint_of, job.items[0].path) is None:
                    await _discard([partial_for(job.items[0])], tools)
                return
        except FileTrouble as error:
            results = [Result(Verdict.TROUBLE, trouble=error.trouble)]  # nobody knows: it is asked again
    if any(result.trouble is not None and _may_concern_all(result.trouble) for result in results):
        await tools.storage.gates[Side.DESTINATION].is_well()
    for p, item, result in zip(pending, job.items, results, strict=True):
        _report(p, item, result, backlog, tools, failed)
        # Some servers carry out what they were asked for long after it was given up.
        p.life += result.trouble is not None and result.trouble.op in _RENAMING and _is_outage(result.trouble)
        if p.entry.state in (FileState.GONE, FileState.SKIPPED, FileState.FAILED) and (
            name == "bundle" or p.entry.state != FileState.FAILED
        ):
            litter.append(partial_for(item))
    if failed:
        await tools.ledger.call(Ledger.record, failed)
    if litter:
        for item in job.items if name != "bundle" else ():
            await tools.ledger.call(Ledger.drop_checkpoint, item.path)
        await _discard(litter, tools)


async def _discard(partials: list[bytes], tools: Tools) -> None:
    with contextlib.suppress(FileTrouble):  # another start finds them
        await tools.call("discard", tools.storage.ends.destination, partials)


async def _has_another_name(item: Item, tools: Tools) -> bool:
    """Is the file still there, called something else? Then have the scanner look at it."""
    name = await tools.looking("locate", tools.storage.ends.source, item.path, item.fingerprint[:2], True)
    if name is not None:
        tools.changes.add([name])
    return name is not None


def _report(pending: Pending, item: Item, result: Result, backlog: Backlog, tools: Tools, failed: list[Entry]) -> None:
    """Say on the board what came of one file, or put it back."""
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
            if item.rival:
                there = show_path(result.target)
                reason = f"{show_path(item.rival)} has been delivered under the same name, {there}, and is not replaced"
            if tools.manner.if_exists == "skip":
                totals.skipped += 1
                backlog.finished(pending, FileState.SKIPPED, reason)
            else:
                totals.failed += 1
                backlog.finished(pending, FileState.FAILED, reason)
            failed.append(_outcome(pending, item, str(entry.state), reason))
        case Verdict.GONE:
            backlog.finished(pending, FileState.GONE)
        case Verdict.BUSY:
            backlog.again(pending, FileState.SETTLING, "somebody has it open for writing", settings.settle_closed)
        case Verdict.UNPROVEN:
            reason = "nobody can tell whether it is still being written"
            backlog.again(pending, FileState.SETTLING, reason, settings.settle)
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
            backlog.again(pending, FileState.SETTLING, "it changed while it was copied", 0)
        case Verdict.TROUBLE:
            assert result.trouble is not None
            if result.trouble.op == PAUSE:
                entry.trouble = None
                # He may have changed his mind while what was written settled.
                backlog.again(pending, FileState.WAITING, result.trouble.text, _PAUSED if entry.paused else 0)
            elif _cope(pending, result.trouble, backlog, tools):
                totals.failed += 1
                backlog.finished(pending, FileState.FAILED, str(result.trouble))
                failed.append(_outcome(pending, item, "failed", str(result.trouble)))
        case Verdict.WRITTEN:
            raise AssertionError("a file was left unfinished")


def _outcome(pending: Pending, item: Item, outcome: str, reason: str) -> Entry:
    return Entry(outcome, item.path, pending.entry.target or b"", item.fingerprint, None, reason)


def _cope(pending: Pending, trouble: Trouble, backlog: Backlog, tools: Tools) -> bool:
    """Put a file with a trouble back, as far as there is hope. Returns True if there is none."""
    entry = pending.entry
    match classify(trouble):
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
            backlog.again(pending, FileState.WAITING, f"{end}: {trouble}", _pause(entry.attempt, tools))
        case Remedy.SPACE:
            tools.storage.ran_out()
            backlog.again(pending, FileState.WAITING, f"space: {trouble}", tools.config.destination.check_interval)
        case Remedy.RETRY:
            entry.attempt += 1
            if entry.attempt > tools.config.retry.retries:
                return True
            pause = _pause(entry.attempt, tools)
            backlog.again(pending, FileState.WAITING, f"retry in {pause:.0f} s: {trouble}", pause)
            entry.retry_at = trio.current_time() + pause
        case Remedy.GIVE_UP:
            if tools.storage.is_open or not _may_concern_all(trouble):
                return True
            backlog.again(pending, FileState.WAITING, f"destination: {trouble}", 0)
    return False


def _is_outage(trouble: Trouble) -> bool:
    return classify(trouble) == Remedy.DESTINATION


def _may_concern_all(trouble: Trouble) -> bool:
    return classify(trouble) == Remedy.GIVE_UP and may_concern_all(trouble)


def _is_of_another(trouble: Trouble, pending: Pending) -> bool:
    return is_partial(trouble.path) and trouble.path != pending.partial


def _pause(attempt: int, tools: Tools) -> float:
    """Seconds before the next attempt: twice as long each time, and never quite the same for all."""
    return tools.config.retry.pause(attempt) * random.uniform(0.8, 1.0)
