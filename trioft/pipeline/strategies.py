"""
The strategies: how the bytes of a job get under their partial names, durable and verified. ``STRATEGIES`` names them.

Each is a Trio function of one signature. It returns one ``Result`` for each item, WRITTEN where the file is ready to
get its final name, and raises ``FileTrouble`` if the job as a whole failed. When cancelled it makes durable, verifies
and records what has been written, for as long as the grace period lasts, and then lets the cancellation through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from trioft.core.model import BUNDLE_FILE_SIZE, Checkpoint, Job, Result, Verdict
from trioft.pipeline.context import Tools
from trioft.pipeline.follow import follow
from trioft.pipeline.transfer import Transfer, begin, kept_when_cancelled

Strategy = Callable[[Job, Tools], Awaitable[list[Result]]]


def choose_strategy(job: Job, checkpoint: Checkpoint | None = None) -> str:
    """
    Name the strategy for *job*, of whose file *checkpoint* was recorded earlier.

    What was copied of another version is not thrown away: it is followed, which compares all of it in the end.
    """
    if job.growing:
        return "follow"
    if all(item.fingerprint.size <= BUNDLE_FILE_SIZE for item in job.items):
        return "bundle"
    of_another = checkpoint is not None and (checkpoint.growing or checkpoint.fingerprint != job.items[0].fingerprint)
    return "follow" if of_another and checkpoint is not None and checkpoint.digests else "whole"


async def bundle(job: Job, tools: Tools) -> list[Result]:
    """Many small files: one call, one durability barrier, one read-back."""
    await tools.throttle.take(job.size)
    async with tools.shutdown.shield():  # it is short: better finished than littered about
        results = await tools.destination.write_bundle(list(job.items), tools.manner, tools.storage.stirs)
    for item, result in zip(job.items, results, strict=True):
        if result.verdict == Verdict.WRITTEN:
            tools.board.copied(tools.entry(item), item.fingerprint.size)
            tools.board.verified(tools.entry(item), item.fingerprint.size)
    return results


async def whole(job: Job, tools: Tools) -> list[Result]:
    """One large file, from its last checkpoint on: spans are written side by side while what is written settles."""
    (item,) = job.items
    prepared = await begin(item, tools, growing=False)
    if isinstance(prepared, Result):
        return [prepared]
    transfer = Transfer(item, prepared, tools, target=item.fingerprint.size, ended=True)
    async with kept_when_cancelled(transfer):
        await transfer.copy()
    digest = transfer.digest() if tools.manner.verify != "size" else None
    seal = transfer.seal or transfer.last_seal
    written = Result(Verdict.WRITTEN, digest=digest, closed=prepared.closed, sum=transfer.sum(), lost=prepared.lost)
    return [written._replace(seal=seal)]


STRATEGIES: dict[str, Strategy] = {"bundle": bundle, "whole": whole, "follow": follow}
