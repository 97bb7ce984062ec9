"""Sparse files: their holes take no space at the destination, and are verified as the zeros that they are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from disks import disk
from sparse_files import make_sparse
from support import Site, pattern

MIB = 1 << 20


def is_equal(one: Path, other: Path) -> bool:
    with open(one, "rb") as a, open(other, "rb") as b:
        while True:
            mine, its = a.read(8 * MIB), b.read(8 * MIB)
            if mine != its:
                return False
            if not mine:
                return True


def held(path: Path) -> int:
    """Return how many bytes of the disk a file takes."""
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize("seed", range(4))
def test_holes_stay_holes(site: Site, seed: int) -> None:
    """Wherever they lie: at the beginning, in the middle of blocks and spans, at the end."""
    chance = random.Random(seed)
    size = chance.randrange(70 * MIB, 200 * MIB)
    offsets = [0, size - 1] if seed == 0 else [chance.randrange(size - MIB) for _ in range(seed * 3)]
    make_sparse(site.source / "a", size, *((at, pattern(chance.randrange(1, MIB), at)[: size - at]) for at in offsets))
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert is_equal(site.source / "a", site.dest / "a")
    assert held(site.dest / "a") <= held(site.source / "a") + 4 * MIB
    assert site.run("verify", site.source, site.dest, "--state-dir", site.state).code == 0


def test_a_file_that_is_all_hole_arrives(site: Site) -> None:
    """Nothing but zeros: its size is right."""
    make_sparse(site.source / "a", 65 * MIB + 3)
    assert site.sync().summary["delivered"] == 1
    assert is_equal(site.source / "a", site.dest / "a")
    assert held(site.dest / "a") < MIB


def test_a_sparse_file_needs_no_more_room_than_it_takes(site: Site, tmp_path: Path) -> None:
    """An image that is larger than the disk, with little in it; what is not sparse waits as ever."""
    with disk("ext4", tmp_path / "image", site.dest, 96 * MIB):
        make_sparse(site.source / "vm.img", 900 * MIB, (500 * MIB, pattern(MIB)))
        assert site.sync().summary["delivered"] == 1
        assert is_equal(site.source / "vm.img", site.dest / "vm.img")
        with open(site.source / "full", "wb") as file:
            for _ in range(15):
                file.write(pattern(8 * MIB))
        os.utime(site.source / "full", (1e9, 1e9))
        agent = site.watch("-v")
        agent.wait_for(lambda line: line.get("path") == "full" and line.get("state") == "waiting")
        agent.end()


def test_what_was_there_before_does_not_shine_through_a_hole(site: Site) -> None:
    """A partial with other bytes where the source has a hole by now: they are gone in the end."""
    size = 40 * MIB
    (site.source / "a").write_bytes(pattern(size))
    agent = site.watch("-v", "--bwlimit", "20MiB/s")
    agent.wait_for(lambda line: line.get("path") == "a" and line.get("state") == "copying")
    make_sparse(site.source / "a", size, (30 * MIB, b"x"))
    agent.wait_for_file("a", "done")
    agent.end()
    assert is_equal(site.source / "a", site.dest / "a")


def test_a_sparse_file_that_grows_keeps_its_holes(site: Site) -> None:
    """A recorder that leaves something out: what it has written arrives, and what it has not takes no room."""
    agent = site.watch("-v", "--settle", "2s")
    with open(site.source / "rec", "wb", buffering=0) as file:
        for part in range(4):
            file.seek(part * 30 * MIB)
            file.write(pattern(MIB, part))
            agent.wait_for(lambda line: line.get("path") == "rec")
        file.truncate(130 * MIB)
    agent.wait_for_file("rec", "done")
    agent.end()
    assert is_equal(site.source / "rec", site.dest / "rec")
    assert held(site.dest / "rec") < 20 * MIB
