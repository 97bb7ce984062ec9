"""A name that is taken in the last moment: between the look whether it is free, and the rename."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import trio

import odd_mover
from files import MANNER, Ground, failing, publication, read
from support import PATIENCE, Site, files_of, make_tree, pattern
from trioft.agent.agent import run_agent
from trioft.config.options import Config, Destination, Retry, Source
from trioft.core.model import BLOCK_SIZE, Verdict
from trioft.core.naming import is_partial
from trioft.movers.ops import linux
from trioft.movers.ops.folder import large, publish
from trioft.state.board import Board

# Somebody takes the name x.mov just before trioft gives it, in whatever way it does that.
_OVERTAKING = """
from trioft.movers.ops import linux
call, link, rename = linux._call, os.link, os.rename
def overtake(new):
    path = os.path.join({dest!r}, new)
    if os.path.basename(new) == b"x.mov" and not os.path.lexists(path):
        {make}
def overtaken_call(name, *arguments):
    if name == "renameat2":
        if {links}:
            raise OSError(22, "this filesystem cannot")
        overtake(arguments[3].value)
    return call(name, *arguments)
def overtaken_link(old, new, **how):
    overtake(new)
    link(old, new, **how)
def overtaken_rename(old, new, **how):
    overtake(new)
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
    return {path: content for path, content in files_of(site.dest).items() if not is_partial(path)}


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


@pytest.fixture
def folder(ground: Ground) -> Iterator[int]:
    """The source, opened."""
    fd = os.open(ground.source, os.O_RDONLY)
    yield fd
    os.close(fd)


def _no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(name: str, *args: object) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(linux, "_call", cannot)


def test_a_link_whose_answer_was_lost_is_found_and_finished(
    ground: Ground, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may make the second name twice in its own eyes, or trioft be killed before it takes the first away."""
    _no_renameat2(monkeypatch)
    ground.add(b"old", b"content")
    os.link(ground.at_source(b"old"), ground.at_source(b"new"))
    linux.rename_noreplace(b"old", b"new", folder)
    assert files_of(ground.source) == {b"new": b"content"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_links_the_name_is_looked_at_by_one_at_a_time(
    ground: Ground, folder: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Two movers of this machine that both find the name free would otherwise both take it."""
    _no_renameat2(monkeypatch)
    failing(monkeypatch, "link", number)
    for name in (b"a", b"b"):
        ground.add(name, name)
    fcntl.flock(folder, fcntl.LOCK_EX)
    errors: list[Any] = []

    def rename() -> None:
        another = os.open(ground.source, os.O_RDONLY)
        try:
            linux.rename_noreplace(b"a", b"new", another)
        except OSError as error:
            errors.append(error)
        finally:
            os.close(another)

    thread = threading.Thread(target=rename)
    thread.start()
    os.rename(ground.at_source(b"b"), ground.at_source(b"new"))
    fcntl.flock(folder, fcntl.LOCK_UN)
    thread.join(PATIENCE)
    assert isinstance(errors[0], FileExistsError)
    assert files_of(ground.source) == {b"a": b"a", b"new": b"b"}


def test_an_error_of_the_link_that_is_about_something_else_is_told(
    ground: Ground, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server answers that is away does not make trioft rename in a less safe way."""
    _no_renameat2(monkeypatch)
    failing(monkeypatch, "link", errno.ESTALE)
    ground.add(b"a")
    with pytest.raises(OSError, match="Stale") as caught:
        linux.rename_noreplace(b"a", b"new", folder)
    assert caught.value.errno == errno.ESTALE
    assert not os.path.exists(ground.at_source(b"new"))


def test_a_partial_that_has_a_final_name_too_is_not_written_to(ground: Ground) -> None:
    """Killed between the two halves of giving a name, and the source has changed since: what is finished stays so."""
    content = pattern(BLOCK_SIZE + 1000)
    item = ground.add(b"a", content)
    with open(ground.partial(item), "wb") as file:
        file.write(content)
    os.link(ground.partial(item), ground.at_dest(b"a"))
    with open(ground.at_source(b"a"), "ab") as file:
        file.write(b"more")
    prepared = large.prepare(ground.ends, ground.item(b"a"), None, MANNER, False, ground.told.append)
    assert prepared.offset == 0  # type: ignore[union-attr]
    assert os.stat(ground.partial(item)).st_size == 0
    assert read(ground.at_dest(b"a")) == content


def test_an_old_file_that_was_moved_aside_does_not_come_back_over_a_newer_one(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses to replace it, and then the rename fails for somebody else's file: neither is lost."""
    item = ground.add(b"a", b"ours")
    with open(ground.partial(item), "wb") as file:
        file.write(b"ours")
    ground.old(b"a", b"old")
    real = os.rename

    def rename(old: bytes, new: bytes, **how: int) -> None:
        if is_partial(old):
            raise OSError(errno.EACCES, "")
        real(old, new, **how)
        if old == b"a":  # aside
            ground.old(b"a", b"faster")

    monkeypatch.setattr(os, "rename", rename)
    (result,) = publish.publish(ground.ends, [publication(item)], MANNER)
    assert result.verdict == Verdict.TROUBLE
    assert sorted(files_of(ground.dest).values()) == [b"faster", b"old", b"ours"]
    assert read(ground.at_dest(b"a")) == b"faster"
