"""
The copier: one job at a time, from admission to report, and what happens on an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator

import attrs

from trioft.core.errors import FileTrouble, Trouble
from trioft.core.model import Checkpoint, FileState, Item, Job, Result, Verdict
from trioft.core.naming import partial_for
from trioft.pipeline.backlog import Backlog, Pending
from trioft.pipeline.context import Tools, stopped
from trioft.pipeline.finish import finish
from trioft.pipeline.outcomes import report, report_all
from trioft.pipeline.strategies import STRATEGIES, choose_strategy
from trioft.pipeline.transfer import is_of
from trioft.state.claims import Take
from trioft.state.ledger import Entry, Ledger

# Seconds between two looks whether an operation that was left behind has ended.
_STUCK = 1.0


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
            report(p, item, Result(Verdict.TROUBLE, trouble=why_not), backlog, tools, failed)
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
        tools = attrs.evolve(tools, destination=tools.destination.of(owner))
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
            held = await tools.destination.size_of(partial)
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
            await report_all(name, job, results, pending, backlog, tools)


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
