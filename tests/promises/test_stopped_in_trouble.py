"""A stop in a moment in which something goes wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

import odd_mover
from support import Site, make_tree
from trioft.agent.agent import run_agent
from trioft.config.options import Config, Copy, Destination, Source
from trioft.core.model import MIB
from trioft.movers.child import Child
from trioft.state.board import Board

_HANGING = """
def hang(*arguments):
    time.sleep(1000)
mover.OPERATIONS["copy_span"] = hang
"""


async def test_a_stop_while_a_stuck_mover_is_given_up_is_a_stop(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mover on a dead mount takes a while to die: an agent that is stopped meanwhile ends as it always does."""
    giving_up = trio.Event()
    end = Child.end

    async def end_slowly(child: Child) -> bool:
        giving_up.set()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.5)
        return await end(child)

    monkeypatch.setattr(Child, "end", end_slowly)
    make_tree(site.source, {"file": 3 * MIB})
    config = Config(
        source=Source(path=str(site.source), settle_closed=0.01, settle=0.1),
        destination=Destination(path=str(site.dest)),
        copy=Copy(stall_timeout=0.3),
    )
    mover = odd_mover.changed(tmp_path, _HANGING)
    received: list[int | None] = []

    async def run() -> None:
        received.append(await run_agent(config, Board(), once=True, state_dir=str(site.state), mover=mover))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await giving_up.wait()
            os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
