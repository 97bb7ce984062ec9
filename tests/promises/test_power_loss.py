"""
The power of the destination fails: after the first change there, after the second, … until there are no more.

Nothing is durable there before it was asked for. Right after the cut the promises are checked on what is left; then
trioft is started again, and everything arrives.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fault_runs import SECONDS, Told, check_history, config_of, delivered, transfer
from faults_mount import FaultMount, fault_mount
from support import Site, make_tree, pattern
from trioft.core.model import BLOCK_SIZE
from truth import check_promises, recorded, sources_of

OLD = b"the old version"
# Nothing in the root: who makes that durable must not do so by the way.
CONTENTS: dict[bytes, bytes] = {
    b"far/large.mxf": pattern(2 * BLOCK_SIZE + 70_001, 1),  # three blocks, the last one short: two checkpoints
    b"one/a.txt": pattern(5000, 2),
    b"one/b.txt": pattern(3000, 3),
    b"old/er.txt": b"the new version, longer",
    b"two/below/c.txt": pattern(20, 4),
    b"two/below/empty": b"",
}
# With this, after every change, and in every way; without it, after some of them.
EVERYTHING = "TRIOFT_TEST_EVERY_FAULT" in os.environ


@pytest.fixture(scope="module")
def mount() -> Iterator[FaultMount]:
    with fault_mount() as mounted:
        yield mounted


class Trial:
    """A move to a destination whose power fails. Its site's destination is what lies behind the mount."""

    def __init__(self, mount: FaultMount, root: Path, include: tuple[str, ...]) -> None:
        self.mount, self.root, self.include = mount, root, include
        self.kept, self.aside = root / "kept", mount.root / "aside"
        make_tree(self.kept, dict(CONTENTS.items()))

    def begin(self) -> None:
        """Source, destination and ledger are as they are before the first run."""
        for folder in (self.root / "site", self.mount.backing / "dest"):
            shutil.rmtree(folder, ignore_errors=True)
        (self.root / "site").mkdir()
        self.site = Site(self.root / "site")
        shutil.copytree(self.kept, self.site.source, dirs_exist_ok=True)
        self.site.dest = self.mount.backing / "dest"
        make_tree(self.site.dest, {"old/er.txt": OLD})
        self.mount.begin()

    async def run(self) -> Told:
        """Move everything."""
        dest = self.mount.place / "dest"
        return await transfer(config_of(self.site.source, dest, self.site.state, delete=True, include=self.include))

    async def run_until_it_is_cut(self) -> None:
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await self.mount.wait(SECONDS, cuts=1)
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await self.run()
            nursery.cancel_scope.cancel()

    def check_what_is_left(self) -> None:
        """The promises 1 to 3, on what is durable; and the older file has its name until the new one has it."""
        older = self.site.dest / "old/er.txt"
        is_older = older.exists() and older.read_bytes() == OLD
        if is_older:
            older.rename(self.aside)
        check_promises(self.site, CONTENTS)
        if is_older:
            self.aside.rename(older)
        assert older.exists()

    def check_complete(self) -> None:
        assert delivered(self.site.dest) == CONTENTS
        assert sources_of(self.site) == {}
        says = recorded(self.site)
        assert says.removed == CONTENTS.keys()
        assert says.checkpoints == {}

    async def changes_at_the_start(self) -> int:
        """Return how many changes come first, up to the claim: where the power fails before that, nothing begins."""
        self.begin()
        self.mount.fail("rename", "*.trioft-claim-*", stall=0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            await self.mount.wait(SECONDS, stalled=1)
            changes: int = self.mount.ask("status")["changes"]
            self.mount.ask("release")
        return changes + 1

    async def try_at(self, at: int, seed: int | None, *, goes_on: bool) -> bool:
        """Cut the power after change number *at*. Returns False if there are not so many."""
        self.begin()
        self.mount.ask("cut", at=at, seed=seed, stay_off=not goes_on)
        try:
            if goes_on:
                told = await self.run()
                was_cut = bool(self.mount.ask("status")["cuts"])
            else:
                await self.run_until_it_is_cut()
                was_cut = bool(self.mount.ask("status")["cuts"])
                if not was_cut:
                    self.check_complete()
                    return False
                self.check_what_is_left()
                self.mount.ask("power_on")
                told = await self.run()
            assert told.claims_success, told
            check_history(self.mount, "dest", CONTENTS)
            self.check_complete()
        except BaseException as error:
            error.add_note(f"after change {at}, seed {seed}: {self.mount.ask('log')[-80:]}")
            raise
        return was_cut


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("goes_on", "torn", "stride"),
    [(False, False, 4), (False, True, 5), (True, False, 5), (True, True, 7)],
    ids=["everything-stops-lost", "everything-stops-torn", "the-server-stops-lost", "the-server-stops-torn"],
)
async def test_after_a_power_cut_at_any_moment_the_promises_hold_and_everything_arrives(
    goes_on: bool, torn: bool, stride: int, mount: FaultMount, tmp_path: Path
) -> None:
    """
    No final name with other content than the whole, no checkpoint above what is there, no source gone too early.

    Where trioft stops as well, the next run completes; where it does not, it notices, and this one does.
    """
    trial = Trial(mount, tmp_path, ("*",) if torn else ())  # with that, it is not the scan that makes the folders
    at, count = torn + (await trial.changes_at_the_start() if goes_on else 1), 0
    while await trial.try_at(at, at if torn else None, goes_on=goes_on):
        at += 1 if EVERYTHING else stride
        count += 1
    print(f"{count} power cuts, the last after change {at}")
    assert at > 40, "there were less changes than there must be"
