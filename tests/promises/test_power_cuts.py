"""
Power cuts: a real filesystem loses what is not on its disk, after each step of a transfer in turn.

``kill -9`` shows no missing fsync, as the page cache survives. Here the filesystem itself is cut off, unmounted, and
mounted again from what its disk holds. The sources are deleted once they are delivered: said too early, it is lost.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator

import pytest

from disks import Disk, can_lose_power, disk, quick_folder
from powercut import DIES_WITH_IT, FATES, Trial
from support import Site, pattern
from trioft.core.model import BLOCK_SIZE

BUNDLE = {  # one barrier for all of a folder, which are found together
    "new/folder/a.txt": pattern(10, 1),
    "new/folder/b.txt": pattern(70_000, 2),
    "new/folder/c.txt": pattern(5_000, 3),
    "new/folder/d.txt": b"d",
    "older.txt": b"the new version",
}
FEW = {"new/a.txt": pattern(9_000, 4), "older.txt": b"the new version"}  # each is synced by itself
LARGE = {"new/large.mxf": pattern(2 * BLOCK_SIZE + 70_001, 5)}
OLD = {"older.txt": b"the old version"}
# A file that is being recorded when it is found; the rest of it, and its header, come when a block has been copied.
RECORDING = {"take.mxf": pattern(2 * BLOCK_SIZE + 9, 6), "older.txt": b"the new version"}
TREES = {"bundle": (BUNDLE, OLD), "few": (FEW, OLD), "large": (LARGE, {}), "recording": (RECORDING, OLD)}
# Which steps are tried: of a recording not all, as each takes longer.
STRIDES = {"recording": 3}
EVERYTHING = "TRIOFT_TEST_EVERY_FAULT" in os.environ  # each step with each fate
WITH_PYTHON = [*sys.path]


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def cuttable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Disk, Site]]:
    """A disk that can lose its power, as the destination of a site."""
    with quick_folder(tmp_path_factory.mktemp("power")) as place:
        site = Site(place)
        with disk(request.param, place / "disk.img", site.dest) as made:
            if not can_lose_power(made):
                pytest.skip(f"{request.param} cannot be cut off on this kernel")
            yield made, site


@pytest.mark.timeout(300)
@pytest.mark.parametrize("tree", TREES)
def test_a_power_cut_after_any_step_loses_nothing(tree: str, cuttable: tuple[Disk, Site]) -> None:
    """
    Promises 1 to 3 hold on what the disk has when the power is back, and the next run completes.

    Whether the agent dies in the same moment, or a little later, or lives on and the destination comes back under it.
    """
    made, site = cuttable
    trial = Trial(made, site, *TREES[tree], WITH_PYTHON)
    fates = itertools.cycle(FATES)
    at = 1
    while all(trial.try_at(at, fate) for fate in (FATES if EVERYTHING else [next(fates)])):
        at += 1 if EVERYTHING else STRIDES.get(tree, 1)
    assert at > 10, "too few steps"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("tree", "step", "which", "forgets"),
    [("few", "rename", -1, False), ("large", "pwrite", 1, False), ("large", "pwrite", 1, True)],
)
def test_a_power_cut_after_a_restart_loses_nothing(
    tree: str, step: str, which: int, forgets: bool, cuttable: tuple[Disk, Site]
) -> None:
    """
    What a killed agent has left is not durable yet: that it can be read proves nothing.

    The next one makes files durable that it finds under their final names before it removes their sources, and what it
    finds of a partial before it counts on it. Without the ledger that a partial belongs to, it leaves that alone.
    """
    trial = Trial(*cuttable, *TREES[tree], WITH_PYTHON)
    trial.begin()
    trial.run()
    killed_after = [n for n, did in enumerate(trial.steps, 1) if did.startswith(step)][which]
    # Every second step on the one filesystem, the others on the other.
    at = 1 if EVERYTHING or trial.disk.kind == "ext4" else 2
    while trial.try_at(at, DIES_WITH_IT, killed_after, forgets):
        at += 1 if EVERYTHING else 2
    assert at > 3, "too few steps"
