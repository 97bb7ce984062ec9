"""How often a file is tried."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import odd_mover
from support import PATIENCE, Site, make_tree
from trioft.agent.agent import run_agent
from trioft.config.options import Config, Destination, Retry, Source
from trioft.core.model import BLOCK_SIZE, MIB
from trioft.state.board import Board


@pytest.mark.parametrize("size", [1000, 3 * MIB, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 1])
async def test_a_file_that_never_gets_its_final_name_is_given_up(size: int, site: Site, tmp_path: Path) -> None:
    """After so many attempts, whatever its size: that its bytes arrive each time is not getting anywhere."""
    make_tree(site.source, {"file": size})
    log = tmp_path / "log"
    config = Config(
        source=Source(path=str(site.source), settle_closed=0.01, settle=0.1),
        destination=Destination(path=str(site.dest), if_exists="overwrite"),
        retry=Retry(retries=3, first=0.01),
    )
    board = Board()
    mover = odd_mover.refusing(tmp_path, log, 12)
    with trio.fail_after(PATIENCE):
        await run_agent(config, board, once=True, state_dir=str(site.state), mover=mover)
    assert board.totals.failed == 1
    assert len(log.read_text()) == 4
