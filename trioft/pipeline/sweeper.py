"""
The sweeper: removes partials of this ledger that nobody is going to continue. What belongs to another one stays.

At the start it searches the destination for what earlier runs have left; while the agent runs, ``clear_up`` removes the
partial of a file that was replaced by another one while it was copied.
"""

from __future__ import annotations

import trio

from trioft.core.claim import is_claim
from trioft.core.errors import FileTrouble, show_path
from trioft.core.naming import belongs_to, is_former, is_partial, is_probe, target_of_aside
from trioft.movers.client import Destination, Source
from trioft.pipeline.backlog import Backlog
from trioft.state.board import Board
from trioft.state.ledger import Ledger, Port

_OLD = 24 * 60 * 60  # seconds: what is younger may belong to a file that has not been found yet
_AGAIN = 60.0  # seconds until what could not be removed is tried again


async def sweep(
    source: Source, destination: Destination, backlog: Backlog, ledger: Port, board: Board, done: trio.Event
) -> None:
    """
    Search the destination for partials of this ledger, older than a day, that nobody is going to continue; remove them.

    That is, no file at hand belongs to them, and no ledger row of a file that the source still has, under any name.
    What was moved aside, to be replaced, when a run was killed, gets its name back.
    Ends when the destination has been searched, or at its first trouble: the next start tries again. Sets *done* then.
    """
    with ledger:
        folders = [b""]
        try:
            while folders:
                leftovers = await destination.find_leftovers(folders[-500:])
                folders = folders[:-500] + leftovers.rest
                files = [one for one in leftovers.found if not one.is_folder]
                aside = [one.path for one in files if belongs_to(one.path, backlog.ledger) and not is_partial(one.path)]
                await _put_back(aside, destination, board)
                old = [one for one in files if one.age > _OLD]
                litter = [one.path for one in old if is_probe(one.path, one.size) or is_claim(one.path)]
                await destination.discard(litter)
                partials = [one.path for one in old if is_partial(one.path) or is_former(one.path)]
                orphans = await _orphans_among(partials, source, backlog, ledger)
                await _remove(orphans, destination, ledger, board)
        except FileTrouble as error:
            board.notice("partial", f"stopped searching for orphaned partials: {error}", event="sweep.stopped")
        done.set()


async def clear_up(source: Source, destination: Destination, backlog: Backlog, ledger: Port, board: Board) -> None:
    """Remove partials whose files have been replaced by others, as soon as there are any. Runs until cancelled."""
    with ledger:
        while True:
            await backlog.orphaned.wait()
            if not await clear_up_once(source, destination, backlog, ledger, board):
                await trio.sleep(_AGAIN)


async def clear_up_once(source: Source, destination: Destination, backlog: Backlog, ledger: Port, board: Board) -> bool:
    """Remove the partials whose files have been replaced by now. Returns whether that was possible."""
    partials = backlog.take_orphans()
    try:
        orphans = await _orphans_among(partials, source, backlog, ledger)
        await _remove(orphans, destination, ledger, board)
    except FileTrouble:
        backlog.add_orphans(partials)
        return False
    return True


async def _orphans_among(partials: list[bytes], source: Source, backlog: Backlog, ledger: Port) -> list[bytes]:
    """Return those of *partials* that are this ledger's, and that nobody is going to continue."""
    if not partials:
        return []
    begun = await ledger.call(Ledger.transfers_into, partials)
    orphans = []
    for partial in partials:
        if partial in begun:
            name, checkpoint = begun[partial]
            was = checkpoint.fingerprint  # a source that was mounted anew has another device number
            is_orphan = await source.locate(name, was[:2], everywhere=True, was=was) is None
        else:
            # A manifest's is of no ledger: it is written within a second.
            is_orphan = is_partial(partial) and (belongs_to(partial, backlog.ledger) or belongs_to(partial, b""))
        if is_orphan and not backlog.owns_partial(partial):
            orphans.append(partial)
    return orphans


async def _remove(orphans: list[bytes], destination: Destination, ledger: Port, board: Board) -> None:
    if not orphans:
        return
    await destination.discard(orphans)
    await ledger.call(Ledger.drop_checkpoints_into, orphans)
    for path in orphans:
        text = f"removed a partial of a transfer that nobody continues: {show_path(path)}"
        board.notice("partial", text, level="info", event="partial.removed", path=show_path(path))


async def _put_back(aside: list[bytes], destination: Destination, board: Board) -> None:
    """An earlier run was killed between moving a file aside and giving another one its name."""
    back = {*await destination.put_back(aside)} if aside else set()
    for path in aside:
        target = target_of_aside(path)
        name = "a file" if target is None else show_path(target)
        if path in back:
            text = f"put back {name}: a run that was cut short had moved it aside"
            board.notice("partial", text, event="aside.put_back", path=name)
        else:
            text = f"the former version of {name} is still there as {show_path(path)}: `trioft clean` removes it"
            board.notice("partial", text, event="aside.kept", path=show_path(path))
