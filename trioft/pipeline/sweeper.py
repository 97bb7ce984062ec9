"""
The sweeper: removes orphaned partials at the start, left by transfers that nobody is going to continue.
"""

from __future__ import annotations

import trio

from trioft.core.errors import FileTrouble, show_path
from trioft.movers.client import Destination, Source
from trioft.pipeline.backlog import Backlog
from trioft.state.board import Board
from trioft.state.ledger import Ledger, Port

_OLD = 24 * 60 * 60  # seconds: what is younger may belong to somebody who is only away for the night


async def sweep(
    source: Source, destination: Destination, backlog: Backlog, ledger: Port, board: Board, done: trio.Event
) -> None:
    """
    Search the destination for partials older than a day that nobody is going to continue; remove them.

    That is, no file at hand belongs to them, and no ledger row of a file that the source still has, under any name.
    Ends when the destination has been searched, or at its first trouble: the next start tries again. Sets *done* then.
    """
    with ledger:
        folders = [b""]
        try:
            while folders:
                found = await destination.find_partials(folders[-500:])
                folders = folders[:-500] + found.rest
                old = [path for path, age in found.partials if age > _OLD]
                if not old:
                    continue
                begun = await ledger.call(Ledger.transfers_into, old)
                left = {
                    partial: name
                    for partial, (name, checkpoint) in begun.items()
                    if await source.locate(name, checkpoint.fingerprint[:2], everywhere=True) is None
                }
                orphans = [path for path in old if path not in begun or path in left]
                orphans = [path for path in orphans if not backlog.owns_partial(path)]
                await destination.discard(orphans)
                for partial in orphans:
                    if partial in left:
                        await ledger.call(Ledger.drop_checkpoint, left[partial])
                for path in orphans:
                    text = f"removed a partial of a transfer that nobody continues: {show_path(path)}"
                    board.notice("partial", text, level="info", event="partial.removed", path=show_path(path))
        except FileTrouble as error:
            board.notice("partial", f"stopped searching for orphaned partials: {error}", event="sweep.stopped")
        done.set()
