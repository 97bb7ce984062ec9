"""A name that is taken in the last moment: between the look whether it is free, and the rename."""

from __future__ import annotations

import os
from typing import Literal

import pytest
import trio

import odd_mover
from support import PATIENCE, Site, files_of, make_tree, pattern
from trioft.agent.agent import run_agent
from trioft.config.options import Config, Destination, Retry, Source
from trioft.core.naming import is_own
from trioft.state.board import Board

# Somebody takes the name x.mov just before trioft gives it, in whatever way it does that.
_OVERTAKING = """
from trioft.movers.ops import linux
call, link, rename = linux._call, os.link, os.rename
def overtake(new, folder):
    path = os.path.join(os.readlink(b"/proc/self/fd/%d" % folder), new)
    if path.startswith({dest!r}) and os.path.basename(new) == b"x.mov" and not os.path.lexists(path):
        {make}
def overtaken_call(name, *arguments):
    if name == "renameat2":
        if {links}:
            raise OSError(22, "this filesystem cannot")
        overtake(arguments[3].value, arguments[2].value)
    return call(name, *arguments)
def overtaken_link(old, new, **how):
    overtake(new, how["dst_dir_fd"])
    link(old, new, **how)
def overtaken_rename(old, new, **how):
    overtake(new, how["dst_dir_fd"])
    rename(old, new, **how)
linux._call, os.link, os.rename = overtaken_call, overtaken_link, overtaken_rename
"""
_FILE = 'open(path, "x").write("faster")'
_FOLDER = 'os.mkdir(path); open(path + b"/inside", "x").write("faster")'
_FOLDERS = ("small", "large")
Policy = Literal["rename", "overwrite", "skip", "fail"]


async def overtaken(site: Site, policy: Policy, make: str, *, links: bool = False) -> Board:
    """Transfer a small and a large file while somebody takes both names."""
    make_tree(site.source, {"small/x.mov": pattern(1000, 1), "large/x.mov": pattern(2_000_000, 2)})
    code = _OVERTAKING.format(dest=os.fsencode(site.dest), make=make, links=links)
    config = Config(
        source=Source(path=str(site.source), settle_closed=0.01, settle=0.1),
        destination=Destination(path=str(site.dest), if_exists=policy),
        retry=Retry(retries=1, first=0.01),
    )
    board = Board()
    mover = odd_mover.changed(site.root, code)
    with trio.fail_after(PATIENCE):
        await run_agent(config, board, once=True, state_dir=str(site.state), mover=mover)
    return board


def finished(site: Site) -> dict[bytes, bytes]:
    return {path: content for path, content in files_of(site.dest).items() if not is_own(path)}


@pytest.mark.parametrize("links", [False, True], ids=["by rename", "by link"])
@pytest.mark.parametrize("policy", ["rename", "skip", "fail"])
async def test_only_overwrite_takes_a_name_from_whoever_was_faster(site: Site, policy: Policy, links: bool) -> None:
    """Each policy does what it says about a name that was free a moment ago, in whatever way the filesystem renames."""
    board = await overtaken(site, policy, _FILE, links=links)
    theirs = {f"{folder}/x.mov".encode(): b"faster" for folder in _FOLDERS}
    ours = {f"{folder}/x_1.mov".encode(): (site.source / folder / "x.mov").read_bytes() for folder in _FOLDERS}
    assert finished(site) == (theirs | ours if policy == "rename" else theirs)
    totals = board.totals
    expected = {"rename": (2, 0, 0), "skip": (0, 2, 0), "fail": (0, 0, 2)}[policy]
    assert (totals.delivered, totals.skipped, totals.failed) == expected


async def test_overwrite_replaces_what_came_in_the_last_moment(site: Site) -> None:
    """DEST is to match SOURCE, whenever somebody wrote there."""
    board = await overtaken(site, "overwrite", _FILE)
    assert board.totals.delivered == 2
    assert files_of(site.dest) == files_of(site.source)


@pytest.mark.parametrize("policy", ["rename", "overwrite"])
async def test_a_folder_that_comes_into_the_way_stays_with_all_it_holds(site: Site, policy: Policy) -> None:
    """No policy replaces a folder: the file is numbered, or has failed."""
    board = await overtaken(site, policy, _FOLDER)
    theirs = {f"{folder}/x.mov/inside".encode(): b"faster" for folder in _FOLDERS}
    ours = {f"{folder}/x_1.mov".encode(): (site.source / folder / "x.mov").read_bytes() for folder in _FOLDERS}
    assert finished(site) == (theirs | ours if policy == "rename" else theirs)
    assert (board.totals.delivered, board.totals.failed) == ((2, 0) if policy == "rename" else (0, 2))


# --- where no rename of the kernel replaces nothing ------------------------------------------------------------------
