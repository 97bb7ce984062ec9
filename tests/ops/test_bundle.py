"""Small files in bundles: written, durable, verified, and never spliced from two."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from files import (
    MANNER,
    Ground,
    failing,
    held,
    name_of,
    need_leases,
    need_syncfs,
    need_xattrs,
    ordinary_user,
    publication,
    read,
)
from support import files_of, pattern
from trioft.core.answers import Prepared
from trioft.core.digests import file_digest
from trioft.core.errors import Remedy, classify
from trioft.core.model import BLOCK_SIZE, BUNDLE_FILE_SIZE, Ends, Root, Verdict
from trioft.movers.ops import linux, writers
from trioft.movers.ops.files import Away
from trioft.movers.ops.folder import bundle as bundle_module
from trioft.movers.ops.folder import large as large_module
from trioft.movers.ops.folder import publish
from whole_files import bundle, digests, spoiling, verdicts


@pytest.mark.parametrize("verify", ["size", "transfer", "readback"])
@pytest.mark.parametrize("count", [1, 10], ids=["fsync each", "one barrier"])
def test_a_bundle_is_written_under_partial_names(ground: Ground, count: int, verify: str) -> None:
    """Every file of a bundle is complete under its partial name, and under no other: promise 1."""
    sizes = [0, 1, 4096, BUNDLE_FILE_SIZE, 70_000][:count] + [17] * (count - 5)
    items = [ground.add(b"folder %d/file %d" % (n % 3, n), pattern(size, n)) for n, size in enumerate(sizes)]
    results = bundle(ground, items, verify=verify)
    assert verdicts(results) == ["written"] * count
    assert [read(ground.partial(item)) for item in items] == [pattern(size, n) for n, size in enumerate(sizes)]
    assert len(files_of(ground.dest)) == count
    for n, (size, result) in enumerate(zip(sizes, results, strict=True)):
        assert result.digest == (None if verify == "size" else file_digest(digests(pattern(size, n))))
    assert ground.told == [("written", count)]


NAMES = {
    "255 bytes": b"n" * 251 + b".mov",
    "255 bytes of UTF-8": ("ü" * 127).encode() + b"x",
    "no UTF-8": b"\xff\xfe\x80",
    "newline": b"line\nbreak\r\ttab",
    "backslash": b'a\\b:c*d?e"f<g>h|',
    "spaces": b" . ",
    "dash": b"-rf",
    "hidden": b".hidden",
    "number": b"a_1.mov",
    "nearly a partial": b"a.12345678.partial.mov",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_every_legal_name_is_copied(ground: Ground, name: bytes) -> None:
    """A name is bytes: whatever Linux allows arrives unchanged, below a folder of such a name too."""
    item = ground.add(name[:200] + b"/" + name)
    (written,) = bundle(ground, [item])
    assert written.verdict == Verdict.WRITTEN
    (partial,) = files_of(ground.dest)
    assert len(os.path.basename(partial)) <= 255
    (published,) = publish.publish(ground.ends, [publication(item)], MANNER)
    assert published.verdict == Verdict.PUBLISHED
    assert files_of(ground.dest) == files_of(ground.source)


def test_long_names_that_begin_alike_get_partials_of_their_own(ground: Ground) -> None:
    """The partial of a name that had to be shortened is never taken for another file's."""
    items = [ground.add(b"n" * 250 + b"%05d" % n, b"%d" % n) for n in range(4)]
    assert verdicts(bundle(ground, items)) == ["written"] * 4
    assert sorted(files_of(ground.dest).values()) == [b"0", b"1", b"2", b"3"]


def test_attributes_are_on_the_partial_already(ground: Ground) -> None:
    """Permission bits and user attributes are there before the file gets its final name."""
    need_xattrs(ground.source)
    ground.add(b"a", mode=0o751)
    os.setxattr(ground.at_source(b"a"), "user.take", b"7")
    item = ground.item(b"a")
    bundle(ground, [item])
    assert stat.S_IMODE(os.stat(ground.partial(item)).st_mode) == 0o751
    assert os.getxattr(ground.partial(item), "user.take") == b"7"


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555, 0o644], ids=oct)
def test_a_write_protected_file_is_copied_and_stays_write_protected(ground: Ground, mode: int) -> None:
    """What nobody may write can still be copied, small or large, by a user who is not root."""
    small, big = ground.add(b"small", mode=mode), ground.add(b"big", BLOCK_SIZE + 1, mode=mode)
    content = read(ground.at_source(b"big"))
    partial = os.path.basename(ground.partial(big))
    with ordinary_user():
        assert verdicts(bundle(ground, [small])) == ["written"]
        assert isinstance(large_module.prepare(ground.ends, big, None, MANNER, False, ground.told.append), Prepared)
        large_module.copy_span(ground.ends, big, partial, 0, len(content), MANNER, ground.told.append)
        destination = ground.ends.destination
        assert large_module.settle(
            destination, partial, 0, len(content), digests(content), "readback", ground.told.append
        ) == []  # fmt: skip
        # A restart finds its partial and may go on with it.
        assert isinstance(large_module.prepare(ground.ends, big, None, MANNER, False, ground.told.append), Prepared)
        large_module.copy_span(ground.ends, big, partial, BLOCK_SIZE, len(content), MANNER, ground.told.append)
        results = publish.publish(ground.ends, [publication(small), publication(big)], MANNER)
    assert verdicts(results) == ["published"] * 2
    assert files_of(ground.dest) == files_of(ground.source)
    assert [stat.S_IMODE(os.stat(ground.at_dest(path)).st_mode) for path in (b"small", b"big")] == [mode] * 2


def test_each_file_of_a_bundle_has_a_verdict_of_its_own(ground: Ground) -> None:
    """One file that cannot be copied now keeps none of the others from it."""
    need_leases(ground.source)
    items = {
        path: ground.add(path, b"of " + path) for path in (b"gone", b"changed", b"busy", b"there", b"other", b"new")
    }
    os.unlink(ground.at_source(b"gone"))
    ground.add(b"changed", b"another version")
    ground.old(b"there", b"of there")
    ground.same_times(items[b"there"])
    ground.old(b"other", b"of somebody else")
    with held(ground.at_source(b"busy"), "writer"):
        results = bundle(ground, list(items.values()), if_exists="skip")
    assert verdicts(results) == ["gone", "changed", "busy", "already", "exists", "written"]
    assert set(files_of(ground.dest)) == {b"there", b"other", os.path.basename(ground.partial(items[b"new"]))}


def test_without_proof_a_file_that_has_not_settled_is_unproven(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot tell whether somebody writes a file, it has to be quiet first."""
    monkeypatch.setattr(writers, "_magic_of_device", {})
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: 0xFF534D42)  # CIFS
    ground.add(b"a")
    assert verdicts(bundle(ground, [ground.item(b"a", settled=False), ground.item(b"a")])) == ["unproven", "written"]


@pytest.mark.parametrize("how", ["grows", "shrinks", "is rewritten"])
def test_a_file_that_changes_while_it_is_read_is_not_copied(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What was read before and after a change is never put together: promise 1."""
    item = ground.add(b"a", b"first version")
    path = ground.at_source(b"a")
    real = os.preadv

    def meanwhile(fd: int, buffers: Any, offset: int) -> int:
        match how:
            case "grows":
                with open(path, "ab") as file:
                    file.write(b", and more")
            case "shrinks":
                os.truncate(path, 5)
            case _:
                with open(path, "r+b") as file:
                    file.write(b"FIRST")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", meanwhile)
    assert verdicts(bundle(ground, [item])) == ["changed"]
    assert files_of(ground.dest) == {}


def test_a_source_that_is_read_in_pieces_is_copied_whole(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem may hand out less than was asked for: that is no change of the file."""
    item = ground.add(b"a", 10_000)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:4096]], at))
    assert verdicts(bundle(ground, [item])) == ["written"]
    assert read(ground.partial(item)) == read(ground.at_source(b"a"))


@pytest.mark.parametrize("count", [2, 6], ids=["fsync each", "one barrier"])
def test_a_byte_that_is_lost_after_the_write_is_found_by_the_read_back(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """What the destination has is compared with what was read, and one bad file fails alone."""
    items = [ground.add(b"file %d" % n) for n in range(count)]
    spoiling(monkeypatch, b"file 1", 99)
    results = bundle(ground, items)
    assert verdicts(results) == ["written", "trouble"] + ["written"] * (count - 2)
    trouble = results[1].trouble
    assert trouble is not None
    assert (trouble.op, trouble.errno) == ("read back", None)
    assert classify(trouble) == Remedy.RETRY


@pytest.mark.parametrize("verify", ["size", "transfer", "readback"])
def test_a_partial_that_is_too_short_is_found_at_every_level(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """The size at least is compared, always."""
    items = [ground.add(b"file %d" % n) for n in range(4)]
    real = linux.syncfs

    def cut(fd: int) -> None:
        real(fd)
        os.truncate(ground.partial(items[2]), 99)

    need_syncfs(ground.dest)
    monkeypatch.setattr(linux, "syncfs", cut)
    assert verdicts(bundle(ground, items, verify=verify)) == ["written", "written", "trouble", "written"]


def test_a_failed_barrier_fails_all_that_relied_on_it(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one syncfs stands for all files and fails, none of them is taken for durable."""
    items = [ground.add(b"file %d" % n) for n in range(5)]
    need_syncfs(ground.dest)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(linux, "syncfs", fail)
    results = bundle(ground, items)
    assert [result.trouble and result.trouble[:5] for result in results] == [
        ("destination", "syncfs", b"", None, errno.EIO)
    ] * 5


def test_after_a_failed_sync_every_byte_is_written_again(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed fsync has thrown the data away, and the next one says nothing: a new file is begun."""
    item = ground.add(b"a", b"content")
    with monkeypatch.context() as patch:
        real = os.fsync

        def lose(fd: int) -> None:
            if name_of(fd).startswith("a."):
                os.pwrite(fd, bytes(7), 0)
                real(fd)
                raise OSError(errno.EIO, "")
            real(fd)

        patch.setattr(os, "fsync", lose)
        (result,) = bundle(ground, [item], verify="transfer")
    assert result.trouble is not None
    assert (result.trouble.op, result.trouble.errno) == ("fsync", errno.EIO)
    assert verdicts(bundle(ground, [item], verify="transfer")) == ["written"]
    assert read(ground.partial(item)) == b"content"


def test_a_file_for_which_there_is_no_space_fails_alone(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller files may still fit."""
    items = [ground.add(b"file %d" % n) for n in range(5)]
    failing(monkeypatch, "pwrite", errno.ENOSPC, lambda fd, *_: name_of(fd).startswith("file 1."))
    results = bundle(ground, items)
    assert verdicts(results) == ["written", "trouble", "written", "written", "written"]
    assert results[1].trouble is not None
    assert classify(results[1].trouble) == Remedy.SPACE


def test_all_sources_of_a_bundle_are_asked_for_before_the_first_is_read(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk, or a server, answers many at a time: who asks for one after the other waits for each."""
    items = [ground.add(b"file %d" % n) for n in range(3)]
    calls: list[tuple[str, str]] = []
    advise, read_into = os.posix_fadvise, os.preadv

    def noted_advice(fd: int, *rest: int) -> None:
        if rest[-1] == os.POSIX_FADV_WILLNEED:
            calls.append(("ask", name_of(fd)))
        advise(fd, *rest)

    def noted_read(fd: int, *rest: Any) -> int:
        calls.append(("read", name_of(fd)))
        return read_into(fd, *rest)

    monkeypatch.setattr(os, "posix_fadvise", noted_advice)
    monkeypatch.setattr(os, "preadv", noted_read)
    assert verdicts(bundle(ground, items, verify="transfer")) == ["written"] * 3
    names = [f"file {n}" for n in range(3)]
    assert calls[:3] == [("ask", name) for name in names]
    assert sorted(set(calls[3:])) == [("read", name) for name in names]


def test_a_destination_that_is_gone_is_not_asked_for_every_file(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server is gone, the rest of the bundle does not wait for one time-out after the other."""
    items = [ground.add(b"file %d" % n) for n in range(5)]
    asked: list[str] = []

    def gone(fd: int, *_: object) -> bool:
        if not name_of(fd).startswith("file 0."):
            asked.append(name_of(fd))
        return bool(asked)

    failing(monkeypatch, "pwrite", errno.EHOSTDOWN, gone)
    results = bundle(ground, items)
    assert verdicts(results) == ["written"] + ["trouble"] * 4
    assert {result.trouble for result in results[1:]} == {results[1].trouble}
    assert len(asked) == 1


def test_an_unreadable_source_does_not_stop_the_bundle(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector of the source concerns one file: EIO there does not mean that the destination is gone."""
    items = [ground.add(b"file %d" % n) for n in range(3)]
    failing(monkeypatch, "preadv", errno.EIO, lambda fd, *_: name_of(fd) == "file 1")
    results = bundle(ground, items)
    assert verdicts(results) == ["written", "trouble", "written"]
    assert results[1].trouble is not None
    assert classify(results[1].trouble) == Remedy.RETRY


def test_a_leftover_partial_is_replaced_not_written_over(ground: Ground) -> None:
    """A mover that was left behind on a dead mount may wake up later: it writes into a file that has no name."""
    item = ground.add(b"a", b"new")
    with open(ground.partial(item), "wb") as left_behind:
        assert verdicts(bundle(ground, [item])) == ["written"]
        left_behind.write(b"late, and longer than the file")
        left_behind.flush()
    assert read(ground.partial(item)) == b"new"


@pytest.mark.parametrize("call", ["write_bundle", "prepare", "copy_span", "settle"])
def test_nothing_is_written_below_a_folder_that_is_not_the_destination(ground: Ground, call: str) -> None:
    """A destination whose device has changed gets no byte: promise 5."""
    item = ground.add(b"a")
    root = ground.ends.destination
    ends = Ends(ground.ends.source, Root(root.path, root.dev + 1))
    partial = os.path.basename(ground.partial(item))
    calls: dict[str, Callable[[], object]] = {
        "write_bundle": lambda: bundle_module.write_bundle(ends, [item], MANNER, ground.told.append),
        "prepare": lambda: large_module.prepare(ends, item, None, MANNER, False, ground.told.append),
        "copy_span": lambda: large_module.copy_span(ends, item, partial, 0, 100, MANNER, ground.told.append),
        "settle": lambda: large_module.settle(ends.destination, partial, 0, 100, b"", "size", ground.told.append),
    }
    with pytest.raises(Away):
        calls[call]()
    assert os.listdir(ground.dest) == []
