"""
A destination that is not well for a while, or not for some: gone as a whole, full, or with folders that cannot be made.

Nothing is wrong with the files then, and nothing is counted against them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_runs import Told, both, check_history, config_of, delivered, recordings, transfer
from faults_mount import FaultMount, fault_mount
from support import Site, files_of, make_tree, pattern
from trioft.core.model import BLOCK_SIZE, MIB, FileState
from trioft.state.board import Entry

NUMBERS = itertools.count(1)
GONE = ("EIO", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "ENOTCONN")


@pytest.fixture(scope="module")
def mounted_once() -> Iterator[FaultMount]:
    with fault_mount() as mount:
        yield mount


class Place:
    """A source, and a folder of the mount."""

    def __init__(self, mount: FaultMount, root: Path) -> None:
        self.mount = mount
        self.name = str(next(NUMBERS))
        self.source, self.state = root / "source", root / "state"
        self.dest, self.backing = mount.place / self.name, mount.backing / self.name
        self.backing.mkdir()
        mount.begin()

    def check(self, contents: dict[bytes, bytes]) -> None:
        assert delivered(self.backing) == contents
        check_history(self.mount, self.name, contents)


@pytest.fixture
def place(mounted_once: FaultMount, tmp_path: Path) -> Place:
    return Place(mounted_once, tmp_path)


@pytest.mark.parametrize("strategy", ["bundle", "whole", "follow"])
@pytest.mark.parametrize("name", GONE)
async def test_while_the_destination_is_gone_everything_waits_and_then_arrives(
    name: str, strategy: str, place: Place
) -> None:
    """Whatever is asked there fails, in the middle of a transfer: it is told, no attempt is counted, all arrives."""
    size = {"bundle": 3000, "whole": BLOCK_SIZE + 1, "follow": MIB + 1}[strategy]
    contents = {f"folder-{n}/file".encode(): pattern(size + n, n) for n in range(3)}
    told = Told()
    rules: list[int] = []

    def hear(entry: Entry) -> None:
        outages = [text for text in told.notices if text.startswith("storage: destination not usable")]
        if entry.state == FileState.COPYING and not rules:
            rules.append(place.mount.fail("*", f"{place.name}*", errno=name, nth=12, times=0))
        elif rules and len(outages) >= 1:
            place.mount.ask("stop_rule", id=rules[0])

    config = config_of(place.source, place.dest, place.state, growing_from=MIB)
    if strategy == "follow":
        with recordings({place.source / os.fsdecode(path): held for path, held in contents.items()}, MIB) as go_on:
            await transfer(config, told, hear=both(hear, go_on))
    else:
        make_tree(place.source, dict(contents.items()))
        await transfer(config, told, hear=hear)
    assert told.claims_success, told
    assert any(name in text for text in told.notices if text.startswith("storage"))
    assert told.notices[-1] == "storage: the destination is usable again"
    assert set(told.attempts.values()) == {0}
    place.check(contents)


async def test_a_full_destination_takes_what_has_room_and_the_rest_when_there_is_more(place: Place) -> None:
    """What does not fit waits, and says for what; smaller files go on; when there is room again, it arrives."""
    contents = {b"large": pattern(3 * MIB, 1)} | {f"small-{n}".encode(): pattern(3000, n) for n in range(5)}
    make_tree(place.source, dict(contents.items()))
    seen: list[bytes] = []

    def hear(entry: Entry) -> None:
        if entry.state == FileState.DONE:
            seen.append(entry.path)
        if len(seen) == 5 and entry.path == b"large" and str(entry.reason).startswith("space"):
            place.mount.ask("fill", free=10 * MIB)

    place.mount.ask("fill", free=2 * MIB)
    config = config_of(place.source, place.dest, place.state, check_interval=0.1)
    told = await transfer(config, hear=hear)
    assert told.claims_success
    assert seen[-1] == b"large"
    assert any("needs 3.15 MB" in reason for reason in told.reasons[b"large"]), told.reasons
    assert told.attempts[b"large"] == 0
    place.check(contents)


async def test_a_quota_that_no_figure_tells_of_is_waited_for_as_well(place: Place) -> None:
    """There is space, it says, and refuses each write of a large file: this waits, and arrives when it may."""
    contents = {b"large": pattern(3 * MIB, 1), b"small": pattern(3000, 2)}
    make_tree(place.source, dict(contents.items()))
    rule = place.mount.fail("write", f"{place.name}/large*", errno="EDQUOT", times=0)
    waits: list[str] = []

    def hear(entry: Entry) -> None:
        if entry.path == b"large" and entry.state == FileState.WAITING:
            waits.append(str(entry.reason))
            if len(waits) == 4:
                place.mount.ask("stop_rule", id=rule)

    told = await transfer(config_of(place.source, place.dest, place.state, check_interval=0.1), hear=hear)
    assert told.claims_success
    assert all(text.startswith("space") for text in waits)
    assert any("EDQUOT" in text for text in waits)
    assert told.attempts[b"large"] == 0
    place.check(contents)


@pytest.mark.parametrize("name", [*GONE, "ENOSPC", "EBUSY"])
async def test_a_folder_that_could_not_be_made_just_now_is_made(name: str, place: Place) -> None:
    """As for a file: what passes is waited for, or tried again, and then nothing has failed."""
    contents = {b"folder/below/file": b"content"}
    make_tree(place.source, {b"folder/below/file": b"content", "empty": None})
    for folder in ("folder", "empty"):
        place.mount.fail("mkdir", f"{place.name}/{folder}", errno=name, times=2 if name == "ESTALE" else 1)
    told = await transfer(config_of(place.source, place.dest, place.state, check_interval=0.1))
    assert place.mount.ask("status")["fired"] >= 2
    assert (place.backing / "empty").is_dir()
    place.check(contents)
    assert told.claims_success, told


async def test_a_file_is_not_charged_with_what_happens_to_the_others_of_its_bundle(place: Place) -> None:
    """Each of ten small files meets a destination that is gone, once, one after the other: no attempt is counted."""
    contents = {f"file-{n}".encode(): pattern(3000, n) for n in range(10)}
    make_tree(place.source, dict(contents.items()))
    for n in range(10):
        place.mount.fail("write", f"{place.name}/file-{n}.*", errno="EIO")
    told = await transfer(config_of(place.source, place.dest, place.state))
    assert place.mount.ask("status")["fired"] == 10
    assert told.claims_success, told
    assert set(told.attempts.values()) == {0}
    place.check(contents)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("EACCES", "access to this path"), ("EROFS", "mounted read-only"), ("ENAMETOOLONG", "rename the file")],
)
def test_a_file_that_cannot_be_delivered_is_told_and_the_next_run_delivers_it(
    name: str, hint: str, place: Place, site: Site
) -> None:
    """Exit code 1, the reason and what to do about it; the others have arrived. Afterwards, exit code 0."""
    contents = {b"good": b"good", b"bad": b"bad"}
    make_tree(site.source, dict(contents.items()))
    place.mount.fail("create", f"{place.name}/bad.*", errno=name)
    site.dest.rmdir()
    site.dest = place.dest
    done = site.sync()
    assert done.code == 1, done.err
    (failed,) = done.files("failed").values()
    assert (failed["path"], failed["error"]["op"]) == ("bad", "create")
    assert hint in failed["error"]["hint"]
    assert f"({name})" in done.err
    assert hint in done.err
    assert files_of(place.backing) == {b"good": b"good"}
    assert site.sync().code == 0
    place.check(contents)
