"""The filesystem in which anything can go wrong does what it says, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from faults_mount import FaultMount, fault_mount, is_mounted
from support import files_of, make_tree, pattern, read_tree


@pytest.fixture(scope="module")
def mounted_once() -> Iterator[FaultMount]:
    with fault_mount() as mount:
        yield mount


@pytest.fixture
def fs(mounted_once: FaultMount) -> FaultMount:
    """A mounted filesystem with nothing in it, and no rules."""
    mounted_once.begin()
    for path in sorted(mounted_once.backing.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    mounted_once.begin()
    return mounted_once


def write(path: Path, data: bytes, offset: int = 0, *, sync: bool = False) -> int:
    """Write as trioft does: one call at an offset."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        count = os.pwrite(fd, data, offset)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    return count


def read_anew(path: Path) -> bytes:
    """Read from behind the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def test_without_a_rule_it_is_an_ordinary_folder(fs: FaultMount) -> None:
    """What is written, made, renamed, removed and set there is so in the folder behind it, and can be read."""
    content = pattern(3_000_000)
    make_tree(fs.place, {"folder/below/a": content, "b": b"b", "c": b"", "folder/empty": None})
    (fs.place / "b").rename(fs.place / "folder" / "b")
    (fs.place / "c").unlink()
    os.utime(fs.place / "folder/b", ns=(1, 1_234_567_891_123_456_789))
    (fs.place / "folder/b").chmod(0o440)
    os.truncate(fs.place / "folder/below/a", 2_000_000)
    with contextlib.suppress(OSError):  # not every filesystem has them
        os.setxattr(fs.backing / "folder/b", "user.shape", b"round")
        os.setxattr(fs.place / "folder/b", "user.colour", b"red")
        assert os.getxattr(fs.place / "folder/b", "user.shape") == b"round"
        assert os.getxattr(fs.backing / "folder/b", "user.colour") == b"red"
    wanted = {b"folder": None, b"folder/below": None, b"folder/empty": None, b"folder/b": b"b"}
    assert read_tree(fs.place) == wanted | {b"folder/below/a": content[:2_000_000]}
    assert read_tree(fs.backing) == read_tree(fs.place)
    status = (fs.place / "folder/b").stat()
    assert (status.st_mtime_ns, status.st_mode & 0o777, status.st_nlink) == (1_234_567_891_123_456_789, 0o440, 1)


FAILING: dict[str, Callable[[Path], Any]] = {
    "create": lambda folder: write(folder / "new", b"x"),
    "open": lambda folder: read_anew(folder / "file"),
    "read": lambda folder: read_anew(folder / "file"),
    "write": lambda folder: write(folder / "file", b"x"),
    "flush": lambda folder: write(folder / "file", b"x"),
    "fsync": lambda folder: write(folder / "file", b"x", sync=True),
    "fsyncdir": sync_folder,
    "rename": lambda folder: (folder / "file").rename(folder / "other"),
    "unlink": lambda folder: (folder / "file").unlink(),
    "mkdir": lambda folder: (folder / "below").mkdir(),
    "getattr": lambda folder: (folder / "file").stat(),
    "truncate": lambda folder: os.truncate(folder / "file", 1),
    "chmod": lambda folder: (folder / "file").chmod(0o600),
    "utimens": lambda folder: os.utime(folder / "file", (1, 1)),
    "readdir": os.listdir,
    "statfs": os.statvfs,
}


@pytest.mark.parametrize("name", ["EIO", "ETIMEDOUT", "EACCES", "EDQUOT", "EHOSTDOWN"])
def test_any_operation_fails_as_it_is_told_and_works_the_next_time(fs: FaultMount, name: str) -> None:
    """
    A rule for one time makes one call fail, with its errno, and no other.

    Twice where the kernel tries again by itself: what it could not read ahead; and, for ESTALE, whatever has a path.
    """
    for op, call in FAILING.items():
        folder = fs.place / op
        make_tree(folder, {"file": b"content"})
        times = 2 if op == "read" else 1
        fs.fail(op, "*" if op == "statfs" else f"{op}*", errno=name, times=times)
        print(op)
        with pytest.raises(OSError, match=re.escape(os.strerror(getattr(errno, name)))):
            call(folder)
        call(folder)
        assert [rule["fired"] for rule in fs.ask("rules")] == [times]
        fs.ask("clear")


def test_a_rule_is_about_the_nth_hit_and_about_some_paths(fs: FaultMount) -> None:
    """From the third write to a partial on, two fail."""
    fs.fail("write", "*.trioft-partial", nth=3, times=2, errno="EIO")
    (fs.place / "other").write_bytes(b"x")
    went = []
    for _ in range(6):
        try:
            write(fs.place / "a.trioft-partial", b"x")
            went.append(True)
        except OSError:
            went.append(False)
    assert went == [True, True, False, False, True, True]


def test_an_answer_can_be_lost(fs: FaultMount) -> None:
    """A late error comes when all is done."""
    (fs.place / "a").write_bytes(b"a")
    fs.fail("rename", errno="ETIMEDOUT", late=True)
    with pytest.raises(TimeoutError):
        (fs.place / "a").rename(fs.place / "b")
    assert files_of(fs.backing) == {b"b": b"a"}


def test_a_write_can_be_short_wrong_or_lost(fs: FaultMount) -> None:
    """As disks and servers do it: without an error."""
    for kind, count, stored in [("short", 4, b"abcd"), ("flip", 8, b"abcddfgh"), ("drop", 8, bytes(8))]:
        fs.fail("write", kind, **{kind: True})
        assert write(fs.place / kind, b"abcdefgh") == count
        assert (fs.backing / kind).read_bytes() == stored
    fs.fail("read", "short", flip=True)
    assert [read_anew(fs.place / "short") for _ in range(2)] == [b"abbd", b"abcd"]


def test_it_can_be_full(fs: FaultMount) -> None:
    """It takes as many bytes as are free, and says how many there are; what is removed makes room."""
    fs.ask("fill", free=10_000)
    assert os.statvfs(fs.place).f_bavail == 2
    assert write(fs.place / "a", bytes(6_000)) == 6_000
    assert write(fs.place / "b", bytes(6_000)) == 4_000
    with pytest.raises(OSError, match="No space"):
        write(fs.place / "b", b"x", 4_000)
    assert os.statvfs(fs.place).f_bavail == 0
    (fs.place / "a").unlink()
    assert os.statvfs(fs.place).f_bavail == 1
    assert write(fs.place / "b", bytes(6_000)) == 6_000


async def test_what_stalls_goes_on_when_it_is_released(fs: FaultMount) -> None:
    """Until then nobody gets an answer, and others do."""
    (fs.place / "a").write_bytes(b"a")
    rule = fs.fail("rename", stall=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, (fs.place / "a").rename, fs.place / "b")
        await fs.wait(stalled=1)
        assert files_of(fs.backing) == {b"a": b"a"}
        assert os.statvfs(fs.place).f_bavail > 0
        fs.ask("release", id=rule)
    assert files_of(fs.backing) == {b"b": b"a"}


def test_what_is_delayed_happens_after_it_has_failed(fs: FaultMount) -> None:
    """As with a server that has not heard that nobody waits for it any more."""
    fs.fail("write", errno="ETIMEDOUT", delayed="")
    with pytest.raises(TimeoutError):
        write(fs.place / "a", b"late")
    assert files_of(fs.backing) == {b"a": b""}
    (fs.place / "a").rename(fs.place / "b")
    fs.ask("happen")
    assert files_of(fs.backing) == {b"b": b"late"}
    fs.fail("rename", errno="ETIMEDOUT", delayed="open")
    with pytest.raises(TimeoutError):
        (fs.place / "b").rename(fs.place / "c")
    (fs.place / "other").write_bytes(b"")
    assert (fs.backing / "b").exists()
    with open(fs.place / "b", "rb"):
        pass  # it was there when its name was looked for
    assert files_of(fs.backing) == {b"c": b"late", b"other": b""}


# --- power cuts -------------------------------------------------------------------------------------------------------


def test_a_power_cut_takes_back_content_that_was_not_fsynced(fs: FaultMount) -> None:
    """A new file is empty then, an older one is as it was, longer or shorter; what was fsynced stays."""
    make_tree(fs.place, {"older": b"1234567890", "shorter": b"1234567890"})
    for name in ("older", "shorter"):
        write(fs.place / name, b"1234567890", sync=True)
    write(fs.place / "new", b"new")
    write(fs.place / "synced", b"synced", sync=True)
    sync_folder(fs.place)
    write(fs.place / "older", b"xx", 4)
    write(fs.place / "older", b"yyyy", 9)
    os.truncate(fs.place / "shorter", 3)
    write(fs.place / "shorter", b"z", 5)
    fs.ask("cut")
    wanted = {b"new": b"", b"synced": b"synced", b"older": b"1234567890", b"shorter": b"1234567890"}
    assert files_of(fs.backing) == files_of(fs.place) == wanted


def test_a_power_cut_takes_back_names_whose_folder_was_not_fsynced(fs: FaultMount) -> None:
    """Created, renamed, replaced, removed, made: none of it has happened; with an fsync of the folder all of it has."""
    before: dict[str | bytes, bytes | int | None] = {"kept/a": b"a", "kept/target": b"old", "kept/gone": b"gone"}
    for folder, is_synced in (("one", False), ("two", True)):
        make_tree(fs.backing / folder, before)
        place = fs.place / folder
        write(place / "kept/new", b"new", sync=True)
        (place / "kept/new").rename(place / "kept/target")
        (place / "kept/a").rename(place / "kept/b")
        (place / "kept/gone").unlink()
        (place / "made").mkdir()
        write(place / "made/file", b"file", sync=True)
        sync_folder(place / "made")
        if is_synced:
            sync_folder(place / "kept")
            sync_folder(place)
    fs.ask("cut")
    one = {b"one/kept/a": b"a", b"one/kept/target": b"old", b"one/kept/gone": b"gone"}
    two = {b"two/kept/target": b"new", b"two/kept/b": b"a", b"two/made/file": b"file"}
    assert files_of(fs.backing) == one | two
    assert files_of(fs.place) == one | two
    assert not (fs.backing / "one/made").exists()


def test_what_was_renamed_before_it_was_durable_is_an_empty_file_with_a_final_name(fs: FaultMount) -> None:
    """The mistake that this is all about."""
    write(fs.place / "a", b"content")
    (fs.place / "a").rename(fs.place / "b")
    sync_folder(fs.place)
    fs.ask("cut")
    assert files_of(fs.backing) == {b"b": b""}
    ((old, new, held, durable),) = fs.ask("history")["renames"]
    assert (old, new) == ("a", "b")
    assert held != durable


def test_what_was_open_when_the_power_was_cut_is_stale(fs: FaultMount) -> None:
    """Its owner has to open it again, and then it is what is left of it."""
    fd = os.open(fs.place / "a", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"a", 0)
    os.fsync(fd)
    sync_folder(fs.place)
    os.pwrite(fd, b"b", 1)
    fs.ask("cut")
    for call in (lambda: os.pwrite(fd, b"c", 0), lambda: os.fsync(fd), lambda: os.fstat(fd)):
        with pytest.raises(OSError, match="Stale"):
            call()
    with contextlib.suppress(OSError):
        os.close(fd)
    assert (fs.place / "a").read_bytes() == b"a"


def test_the_power_can_be_cut_after_any_change(fs: FaultMount) -> None:
    """After the fifth change nothing works any more, until the power is back."""
    fs.ask("cut", at=5, stay_off=True)  # create, write, fsync, write, fsync
    write(fs.place / "a", b"a", sync=True)
    with pytest.raises(OSError, match="not connected"):
        write(fs.place / "a", b"b", 1, sync=True)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(fs.place)
    status = fs.ask("status")
    assert (status["off"], status["changes"]) == (True, 5)
    fs.ask("power_on")
    assert files_of(fs.place) == {}  # its name was never made durable


def test_a_torn_write_is_neither_old_nor_new(fs: FaultMount) -> None:
    """With a seed some of it arrives: every page is the old one, the new one, or nothing."""
    seen = set()
    for seed in range(8):
        write(fs.place / "a", b"o" * 200_000, sync=True)
        sync_folder(fs.place)
        write(fs.place / "a", b"n" * 300_000)
        fs.ask("cut", seed=seed)
        content = (fs.backing / "a").read_bytes()
        pages = [content[at : at + 65536] for at in range(0, len(content), 65536)]
        assert all(len(set(page)) <= 2 for page in pages)
        assert len(content) in (200_000, 300_000)
        seen.add(content)
        (fs.place / "a").unlink()
        fs.begin()
    assert len(seen) > 3


def test_nothing_is_left_of_it() -> None:
    """Whatever waits for an answer gets an error, and the mount is gone."""
    with fault_mount() as mount:
        place = mount.place
        assert is_mounted(place)
        mount.kill()
    assert not is_mounted(place)
