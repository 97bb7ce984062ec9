"""
The copier: one job at a time, from admission to report, and what happens on an error.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import AsyncIterable, AsyncIterator

import attrs

from trioft.core.bugs import name_bug, tell_bug
from trioft.core.errors import IDENTIFY, SEAL, FileTrouble, Side, Trouble, meaning_of, show_path
from trioft.core.model import Checkpoint, FileState, Item, Job, Result, Verdict, Wait
from trioft.core.naming import partial_for
from trioft.pipeline.backlog import Backlog, Pending
from trioft.pipeline.context import Stopped, Tools, why_stopped
from trioft.pipeline.finish import finish
from trioft.pipeline.outcomes import Ending, conclude, report, report_all
from trioft.pipeline.strategies import STRATEGIES, choose_strategy
from trioft.pipeline.transfer import is_of
from trioft.state import proofs
from trioft.state.claims import Take
from trioft.state.ledger import ARRIVED, Entry, Ledger
from trioft.state.volumes import note_volumes

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
            try:
                if choose_strategy(job) == "bundle":
                    await _take(job, backlog, tools)
                else:
                    # A large file may get another name, and another job, before the one that copies it has noticed.
                    async with tools.owners.owned(job.items[0].fingerprint[:2]):
                        await _take(job, backlog, tools)
            except Exception as error:
                if meaning_of(error) is not None:
                    raise  # it concerns all: the ledger, for one, cannot be written
                await _contain(error, job, backlog, tools)
            backlog.wake()


async def _contain(error: Exception, job: Job, backlog: Backlog, tools: Tools) -> None:
    """Have a bug that was met with *job* end one file, not the agent: those of a bundle are tried one by one."""
    reason = f"this is a bug in trioft: {name_bug(error)}"
    story = "\n".join([reason, *(f"  {line}" for line in tell_bug(error))])
    tools.board.notice_once("bug", story, event="bug.met")
    known = await tools.ledger.call(Ledger.known, [item.path for item in job.items])
    for item in job.items:
        pending = backlog.find(item.id)
        if pending is not None and not pending.taken:
            pending = backlog.take(item, growing=job.growing)  # it was met before that
        if pending is None:
            continue  # what came of it had been told before
        if len(job.items) > 1:
            pending.alone = True
            backlog.postpone(pending, Wait.RETRY, f"retry: {reason}", 0)
            continue
        tools.board.totals.failed += 1
        # What is on record of a delivery stays so: it may have been met after that.
        before = known.get(item.path)
        if before is None or before.outcome not in ARRIVED or not before.is_still(item.fingerprint):
            entry = Entry("failed", item.path, pending.entry.target or b"", item.fingerprint, None, reason)
            await tools.ledger.call(Ledger.record, [entry])
        backlog.finished(pending, FileState.FAILED, reason)


async def _take(job: Job, backlog: Backlog, tools: Tools) -> None:
    with tools.claims.open(backlog.hasten) as take:
        await _take_named(job, take, backlog, tools)


async def _take_named(job: Job, take: Take, backlog: Backlog, tools: Tools) -> None:
    checkpoint = await _begun(job, tools)
    # Asked now: when a file was found, the ledger may not have known yet what came of an earlier version.
    known = await tools.ledger.call(Ledger.known, [item.path for item in job.items])
    job = job._replace(items=tuple(proofs.with_former(known, item) for item in job.items))
    named = zip(job.items, await take(job.items, tools.ledger), strict=True)
    started = [(item, its, p) for item, its in named if (p := backlog.take(item, growing=job.growing)) is not None]
    started = [(item, its, p) for item, its, p in started if not _has_to_wait(item, p, backlog, tools)]
    ended: list[Ending] = []
    items, pending = [], []
    for item, its, p in started:
        if (stopped := why_stopped(p.entry, p.entry.bytes_copied)) is not None:
            tools.board.move(p.entry, FileState.WAITING, f"{stopped.verdict} by an operator", Wait.PAUSED)
            report(p, item, stopped, backlog, tools, ended)
        elif p.found.trouble is not None:
            report(p, item, Result(Verdict.TROUBLE, trouble=p.found.trouble), backlog, tools, ended)
        elif (why := tools.storage.volumes.why_not_there(item.target)) is not None:
            if tools.once:
                trouble = Trouble(Side.DESTINATION, IDENTIFY, item.target, None, None, why)
                report(p, item, Result(Verdict.TROUBLE, trouble=trouble), backlog, tools, ended)
            else:
                pause = tools.config.destination.check_interval
                backlog.postpone(p, Wait.DESTINATION, f"destination: {why}", pause)
        elif isinstance(its, Trouble):  # what comes of the other file says what comes of this one
            pause = 0 if tools.claims.is_free(item.target) else tools.config.destination.check_interval
            backlog.postpone(p, Wait.RETRY, f"retry: {its.text}", pause)
        else:
            items.append(its)
            pending.append(p)
    await conclude(ended, backlog, tools)
    if tools.storage.use([item.target for item in items]):
        await tools.ledger.call(note_volumes, tools.storage.volumes.used)
    job = job._replace(items=tuple(items))
    if pending:
        # Should a mover get stuck for good, everybody knows on which files.
        owner = tuple(item.fingerprint[:2] for item in job.items)
        tools = attrs.evolve(tools, destination=tools.destination.of(owner))
        name = choose_strategy(job, checkpoint)
        partial = checkpoint.partial if checkpoint is not None else partial_for(job.items[0])
        async with _usable(pending, tools):
            admitted = await _admit(name, pending, partial, backlog, tools)
            if admitted:
                job = job._replace(items=job.items[:admitted])
                await _carry(name, job, pending[:admitted], take, backlog, tools)


def _has_to_wait(item: Item, pending: Pending, backlog: Backlog, tools: Tools) -> bool:
    """
    Put a file back that an operation of an earlier attempt, which got stuck, may still do something about.

    It writes, or renames, when the kernel lets it: after that, and not in the middle of another attempt.
    """
    if tools.storage.hung and (place := tools.storage.hung.leaves_out(item.path)) is not None:
        reason = f"source: {show_path(place)} does not answer"
        backlog.postpone(pending, Wait.SOURCE, reason, tools.config.source.scan_interval)
        return True
    pid = tools.stuck.process_on(item.fingerprint[:2])
    if pid is not None:
        reason = f"destination: an operation of an earlier attempt has not come back (process {pid})"
        backlog.postpone(pending, Wait.DESTINATION, reason, _STUCK)
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
                    tools.board.move(p.entry, FileState.WAITING, tools.board.waits_for, tools.board.wait)
                await tools.storage.usable()
            if tools.places is None:
                break
            await held.enter_async_context(tools.places)
            if tools.storage.is_open:
                break
            await held.aclose()
        yield


async def _admit(name: str, pending: list[Pending], partial: bytes, backlog: Backlog, tools: Tools) -> int:
    """
    Return how many of the files, from the first on, the destination has room for; the others wait.

    What *partial* holds already of a large one needs none.
    """
    held = 0
    if name != "bundle":
        with contextlib.suppress(FileTrouble):  # whoever copies it meets it again, and says what it is
            held = await tools.destination.size_of(partial)
    needed = [max(0, p.entry.size - max(p.entry.bytes_copied, held)) for p in pending]

    def why_not(count: int) -> str | None:
        if pending[0].entry.size > tools.storage.largest:
            return None  # no room would do: whoever is to copy it says so
        return tools.storage.why_not_admit(sum(needed[:count]), count - bool(held))

    reason, count = why_not(len(pending)), len(pending)
    if reason is not None and name != "bundle":
        # Holes are looked for only then: they need no room.
        (p,) = pending
        with contextlib.suppress(FileTrouble):
            p.entry.holes = await tools.destination.holes_of(p.found.path)
        needed = [max(0, min(needed[0], p.entry.size - p.entry.holes))]
        reason = why_not(1)
    if reason is not None:
        # Each look adds up what all others still need: not one look for each file.
        count = bisect.bisect_left(range(1, len(pending) + 1), True, key=lambda n: why_not(n) is not None)
        reason = why_not(count + 1)
    admitted = pending[:count]
    tools.storage.makes(len(admitted) if not held else 0)
    for p in admitted:
        p.entry.strategy = name
        tools.board.move(p.entry, FileState.COPYING)
    for p in pending[count:]:
        assert reason is not None
        backlog.postpone(p, Wait.SPACE, reason, tools.config.destination.check_interval)
    return len(admitted)


async def _carry(name: str, job: Job, pending: list[Pending], take: Take, backlog: Backlog, tools: Tools) -> None:
    with tools.storage.reserved([p.entry for p in pending]):
        try:
            results = await STRATEGIES[name](job, tools)
        except FileTrouble as error:
            results = [Result(Verdict.TROUBLE, trouble=error.trouble)] * len(job.items)
        except Stopped as error:
            results = [error.result]
        except BaseExceptionGroup as group:
            # Cancelled, and in the same moment something went wrong: that tells nobody anything any more.
            _, rest = group.split((FileTrouble, Stopped))
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
            if name != "bundle" and (trouble := results[0].trouble) is not None and trouble.op == SEAL:
                # Nobody knows what was changed: what was settled is compared with the source, whatever the level.
                await tools.ledger.call(Ledger.drop_checkpoint, job.items[0].path)
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
