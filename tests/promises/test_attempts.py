"""How often a file is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import trio

import odd_mover
from support import PATIENCE, Site, files_of, make_tree
from trioft.agent.agent import run_agent
from trioft.config.options import Config, Copy, Destination, Retry, Source
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


_CHANGING = """
publish = mover.OPERATIONS["publish"]
def changed(ends, publications, manner, progress):
    partial = os.path.join(ends.destination.path, publications[0].partial)
    if not os.path.exists({log!r}):
        with open({log!r}, "x"), open(partial, "r+b") as file:
            file.write(b"changed")
    return publish(ends, publications, manner, progress)
mover.OPERATIONS["publish"] = changed
"""


@pytest.mark.parametrize("level", ["transfer", "readback"])
async def test_what_is_changed_before_it_gets_its_name_is_compared_anew(
    level: Literal["transfer", "readback"], site: Site, tmp_path: Path
) -> None:
    """All of it, whatever the level: the checkpoints that were recorded before are not believed any more."""
    make_tree(site.source, {"file": 4 * BLOCK_SIZE + 1})
    config = Config(
        source=Source(path=str(site.source), settle_closed=0.01, settle=0.1),
        destination=Destination(path=str(site.dest)),
        copy=Copy(verify=level, checkpoint_size=BLOCK_SIZE, checkpoint_time=0.001),
        retry=Retry(retries=3, first=0.01),
    )
    board, log = Board(), tmp_path / "log"
    mover = odd_mover.changed(tmp_path, _CHANGING.format(log=str(log)))
    with trio.fail_after(PATIENCE):
        await run_agent(config, board, once=True, state_dir=str(site.state), mover=mover)
    assert log.exists()
    assert (board.totals.delivered, board.totals.failed) == (1, 0)
    assert files_of(site.dest) == files_of(site.source)
