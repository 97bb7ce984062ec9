"""
A dry run: which files a sync would copy. Writes nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from trioft.config.options import Config
from trioft.config.policy import how_to_copy
from trioft.core.answers import Listing
from trioft.core.model import Found
from trioft.movers.client import Source
from trioft.movers.pool import Movers
from trioft.pipeline.ends import find_ends
from trioft.state.board import Board

# A dry run writes nothing, so it does not find out how exactly the destination keeps times; not worse than this.
_COARSEST_NS = 2_000_000_000


async def list_missing(config: Config, tell: Callable[[Found], None], board: Board, *, state_dir: str) -> None:
    """
    Call *tell* with each file that a sync would copy. Writes nothing anywhere, not even the ledger.

    It does not find out what only a comparison of contents could tell.
    """
    async with Movers(1, config.copy.stall_timeout) as movers:
        pair = await find_ends(config, movers.call, state_dir)
        source = Source(movers.call, lambda: pair.ends)
        manner, exclude = how_to_copy(config, True, _COARSEST_NS), (*config.source.excluded, *pair.own)

        async def compare(folders: list[bytes]) -> Listing:
            return await source.compare(folders, config.source.include, exclude, manner, twins=True)

        def take(files: list[Found]) -> None:
            for found in files:
                if found.there:
                    board.totals.already += 1
                elif found.trouble is not None:
                    board.fail_folder(found.trouble)
                elif found.marked is not False:
                    tell(found)

        if pair.only is not None:
            names = config.source.include, exclude
            looks = await source.look([pair.only], *names, manner.markers, manner.routes)
            wanted = [look.path for look in looks if look.found is not None]
            there = await compare([b""])
            missing = [found for folder in there.folders for found in folder.files if found.path in wanted]
            take(missing)
            board.totals.already += len(wanted) - len(missing)
            return
        folders = [b""]
        while folders:
            batch, folders = folders[-500:], folders[:-500]
            listing = await compare(batch)
            folders += listing.rest
            board.totals.already += listing.already + len(listing.alike)
            for path, reason in listing.skipped:
                board.skip(path, reason)
            for trouble in listing.troubles:
                board.fail_folder(trouble)
            for folder in listing.folders:
                take(folder.files)
