"""The claim of a run: what is said where there can be none, and what ends a run that has lost its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from support import as_call
from trioft.config.options import Config
from trioft.core.answers import End
from trioft.core.claim import BEAT, Claimed, Holder
from trioft.core.errors import LockedError, Side
from trioft.core.model import Identity
from trioft.pipeline.claiming import Claiming, this_process
from trioft.pipeline.ends import Pair
from trioft.pipeline.storage import Storage
from trioft.state.board import Board

IDENTITY = Identity("ext4", "/dev/x", "uuid", b"/", b"/")
OTHER = this_process("0" * 8, "/elsewhere")._replace(host="elsewhere", pid=4711)


class Desk:
    """A claim, and a destination that gives the answers of a test."""

    def __init__(self, folder: Path) -> None:
        ends = [End(bytes(folder / name), "folder", 1, n, ("ext4", "x"), False, None) for n, name in enumerate("ab")]
        pair = Pair(source=ends[0], destination=ends[1], only=None, own=())
        self.board = Board()
        self.said: list[str] = []
        self.board.notices.append(lambda what, text: self.said.append(text))
        self.answers: dict[str, Claimed] = {}
        self.asked: list[tuple[str, bytes, Holder]] = []
        storage = Storage(pair.ends, dict.fromkeys(Side, IDENTITY), Config(), self.board)
        self.claiming = Claiming(pair, b"id", storage, as_call(self._answer), self.board)

    async def _answer(self, operation: Any, _root: object, name: bytes, mine: Holder) -> Claimed:
        self.asked.append((operation.name, name, mine))
        return self.answers.get(operation.name, Claimed())


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_destination_that_takes_no_claim_is_no_reason_not_to_work(desk: Desk) -> None:
    """It is said once, with the reason; other machines are not told then."""
    desk.answers["claim"] = Claimed(why_not="No space left on device")
    await desk.claiming.begin()
    (said,) = desk.said
    assert "No space left on device" in said
    await desk.claiming.end()


async def test_somebody_elses_claim_ends_the_run(desk: Desk) -> None:
    """With who it is; his claim is not taken away, and the pair is free for others of this machine."""
    desk.answers["claim"] = Claimed(holder=OTHER)
    for _ in range(2):
        with pytest.raises(LockedError, match=r"trioft on elsewhere \(process 4711\) works on this since"):
            await desk.claiming.begin()
        await desk.claiming.end()
    assert {name for name, *_ in desk.asked} == {"claim"}


async def test_a_claim_that_was_taken_over_is_told(desk: Desk) -> None:
    """By which host and process it was held."""
    desk.answers["claim"] = Claimed(instead_of=OTHER)
    await desk.claiming.begin()
    assert "took over from trioft on elsewhere (process 4711), whose claim was still there" in desk.said[0]
    await desk.claiming.end()
    assert desk.asked[-1][0] == "release"


async def test_a_run_that_has_lost_its_claim_ends(desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
    """It was not heard of for minutes, and somebody else works on the pair by now."""
    await desk.claiming.begin()
    desk.answers["beat"] = Claimed()
    with trio.move_on_after(3.5 * BEAT):
        await desk.claiming.keep()
    assert [name for name, *_ in desk.asked] == ["claim", "beat", "beat", "beat"]
    desk.answers["beat"] = Claimed(holder=OTHER)
    with pytest.raises(LockedError, match="elsewhere"):
        await desk.claiming.keep()
    await desk.claiming.end()


async def test_of_one_machine_one_gets_the_pair(desk: Desk, tmp_path: Path) -> None:
    """Without any claim, as on a destination that takes none."""
    await desk.claiming.begin()
    other = Desk(tmp_path)
    with pytest.raises(LockedError, match="another trioft works on this source and destination: process"):
        await other.claiming.begin()
    await desk.claiming.end()
    await other.claiming.begin()
    await other.claiming.end()
