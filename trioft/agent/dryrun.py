"""
A dry run: which files a sync would copy. Writes nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trioft.config.options import Config
from trioft.config.policy import how_to_copy
from trioft.core import operations as ask
from trioft.core.answers import Listing, Piece
from trioft.core.errors import FileTrouble
from trioft.core.model import SPAN_SIZE, Ends, Found
from trioft.movers.client import Source
from trioft.movers.pool import Call, Movers
from trioft.pipeline.ends import find_ends
from trioft.state.board import Board

# A dry run writes nothing, so it does not find out how exactly the destination keeps times; not worse than this.
_COARSEST_NS = 2_000_000_000


async def list_missing(config: Config, tell: Callable[[Found], None], board: Board, *, state_dir: str) -> None:
    """
    Call *tell* with each file that a sync would copy. Writes nothing anywhere, not even the ledger.

    What only a comparison of contents can tell is found out with ``copy.checksum``.
    """
    async with Movers(2, config.copy.stall_timeout) as movers:
        pair = await find_ends(config, movers.call, state_dir)
        source = Source(movers.call, lambda: pair.ends)
        manner, exclude = how_to_copy(config, True, _COARSEST_NS), (*config.source.excluded, *pair.own)

        async def compare(folders: list[bytes]) -> Listing:
            return await source.compare(folders, config.source.include, exclude, manner, twins=True)

        async def take_twins(twins: Iterable[Found]) -> None:
            for found in twins:
                if config.copy.checksum and not await _hold_the_same(movers.call, pair.ends, found):
                    tell(found)
                else:
                    board.totals.already += 1

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
            twins = [found for found in (*there.twins, *there.alike) if found.path in wanted]
            await take_twins(twins)
            board.totals.already += len(wanted) - len(missing) - len(twins)
            return
        folders = [b""]
        while folders:
            batch, folders = folders[-500:], folders[:-500]
            listing = await compare(batch)
            folders += listing.rest
            await take_twins((*listing.twins, *listing.alike))
            for path, reason in listing.skipped:
                board.skip(path, reason)
            for trouble in listing.troubles:
                board.fail_folder(trouble)
            for folder in listing.folders:
                take(folder.files)


async def _hold_the_same(call: Call, ends: Ends, found: Found) -> bool:
    """Does the destination's file hold what the source's does? Raises ``FileTrouble`` where they cannot be read."""
    for start in range(0, found.fingerprint.size, SPAN_SIZE):
        end = min(start + SPAN_SIZE, found.fingerprint.size)
        piece = Piece(found.target, start, end)
        (seen,) = await call(ask.READ_DELIVERED, ends.destination, [piece], ends.source.path, tell=_ignore)
        if seen.trouble is not None:
            raise FileTrouble(seen.trouble)
        if seen.in_source:
            return False
        blocks = [(seen.digests[at : at + 16], b"") for at in range(0, len(seen.digests), 16)]
        if seen.size != found.fingerprint.size:
            return False
        if await call(ask.COMPARE_SPAN, ends.source, found.path, start, end, blocks, tell=_ignore):
            return False
    return True


def _ignore(_: object) -> None:
    pass
