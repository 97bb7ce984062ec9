"""What has changed in a file that was written: it is copied again, settled, and gets the last attributes."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import Any

import pytest

from files import Ground, failing, name_of, need_xattrs, read
from growing_files import (
    BLOCK,
    LARGE,
    NAME,
    PIECE,
    bytes_told,
    closing_fails,
    copy_again,
    finish,
    noting,
    partial_name,
    put_partial,
    ranges_of,
    settle,
    spoiled,
)
from support import pattern
from trioft.core.answers import Range
from trioft.core.errors import FileTrouble
from trioft.core.model import VOID

pytestmark = pytest.mark.usefixtures("small_blocks")

# --- copying again what has changed ----------------------------------------------------------------------------------

RANGES = [(0, 10), (PIECE, PIECE), (2 * BLOCK + 5, BLOCK), (LARGE - 3, 3)]


def holding(base: bytes, content: bytes, *ranges: tuple[int, int]) -> bytes:
    """Return *base* with what *content* has in these *ranges*."""
    there = bytearray(base)
    for at, length in ranges:
        there[at : at + length] = content[at : at + length]
    return bytes(there)


def test_ranges_are_copied_to_where_they_belong_and_nothing_else_is(
    ground: Ground, written: list[tuple[int, int]]
) -> None:
    """Where a recorder has rewritten a few kilobytes of many gigabytes, those are read and written."""
    content, former = pattern(LARGE), bytes(LARGE)
    item = ground.add(b"x/a", content)
    put_partial(ground, item, former)
    assert copy_again(ground, item, ranges_of(content, *RANGES)) == []
    assert read(ground.partial(item)) == holding(former, content, *RANGES)
    assert written == RANGES
    assert bytes_told(ground) == sum(length for _, length in RANGES)


@pytest.mark.parametrize(
    ("lost", "changed"),
    [
        ([0], [0]),
        ([9], [0]),
        ([10, PIECE - 1, 2 * PIECE, 2 * BLOCK + 4], []),  # in none of them
        ([2 * PIECE - 1, LARGE - 1], [PIECE, LARGE - 3]),
        ([3 * BLOCK + 4], [2 * BLOCK + 5]),
        ([0, PIECE, 2 * BLOCK + 5, LARGE - 3], [at for at, _ in RANGES]),
    ],
)
def test_a_range_that_holds_something_else_by_now_is_named_and_not_written(
    ground: Ground, written: list[tuple[int, int]], lost: list[int], changed: list[int]
) -> None:
    """What was compared is what is copied: of a range with one other bit no byte reaches the partial."""
    content, former = pattern(LARGE), bytes(LARGE)
    item = ground.add(NAME, spoiled(content, *lost))
    put_partial(ground, item, former)
    assert copy_again(ground, item, ranges_of(content, *RANGES)) == changed
    same = [(at, length) for at, length in RANGES if at not in changed]
    assert read(ground.partial(item)) == holding(former, content, *same)
    assert written == same
    assert bytes_told(ground) == sum(length for _, length in same)


@pytest.mark.parametrize("is_there", [True, False], ids=["at the source", "not at the source"])
def test_a_range_without_a_digest_is_never_copied(ground: Ground, is_there: bool) -> None:
    """VOID is the digest of nothing, not even of zeros."""
    item = ground.add(NAME, bytes(BLOCK) if is_there else pattern(BLOCK))
    put_partial(ground, item, b"x" * BLOCK)
    assert copy_again(ground, item, [Range(0, BLOCK, VOID)]) == [0]
    assert read(ground.partial(item)) == b"x" * BLOCK


def test_without_ranges_nothing_is_copied(ground: Ground, written: list[tuple[int, int]]) -> None:
    """An empty list is no list of everything."""
    item = ground.add(NAME, LARGE)
    put_partial(ground, item, b"untouched")
    assert copy_again(ground, item, []) == []
    assert read(ground.partial(item)) == b"untouched"
    assert written == []


def test_a_range_that_changes_while_it_is_copied_is_what_it_was(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once: what has the right digest is what is written, not what the source holds a moment later."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, bytes(LARGE))

    def rewrite(*_: object) -> None:
        with open(ground.at_source(NAME), "r+b") as file:
            file.write(bytes(LARGE))

    noting(monkeypatch, "preadv", rewrite)
    assert copy_again(ground, item, ranges_of(content, (0, BLOCK), (BLOCK, 10))) == [BLOCK]
    assert read(ground.partial(item)) == content[:BLOCK] + bytes(LARGE - BLOCK)


def test_short_reads_and_writes_leave_no_gap_in_a_range(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that does less than it was asked to neither ends a range nor changes it."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, bytes(LARGE))
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[: max(1, len(view) // 3)], at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][: 1 + len(views[0]) // 2]], at))
    assert copy_again(ground, item, ranges_of(content, *RANGES)) == []
    assert read(ground.partial(item)) == holding(bytes(LARGE), content, *RANGES)


@pytest.mark.parametrize("size", [0, 2 * PIECE, 2 * BLOCK + 5, 3 * BLOCK, LARGE - 1])
def test_a_source_that_ends_within_a_range_is_a_trouble(ground: Ground, size: int) -> None:
    """It is another version than the one that was compared: how far it goes is told, and nothing is made up."""
    content, former = pattern(LARGE), bytes(LARGE)
    item = ground.add(NAME, content[:size])
    put_partial(ground, item, former)
    with pytest.raises(FileTrouble) as caught:
        copy_again(ground, item, ranges_of(content, *RANGES))
    missing = next(max(size, at) for at, length in RANGES if at + length > size)
    assert caught.value.trouble[:5] == ("source", "read", NAME, missing, None)
    assert read(ground.partial(item)) == holding(former, content, *[r for r in RANGES if sum(r) <= size])


@pytest.mark.parametrize("close_fails", [False, True], ids=["alone", "and the close too"])
@pytest.mark.parametrize(
    ("call", "side", "op", "number"),
    [
        ("preadv", "source", "read", errno.EIO),
        ("preadv", "source", "read", errno.ESTALE),
        ("pwrite", "destination", "write", errno.EIO),
        ("pwrite", "destination", "write", errno.ENOSPC),
        ("pwrite", "destination", "write", errno.EDQUOT),
    ],
)
def test_a_range_that_cannot_be_copied_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, side: str, op: str, number: int, close_fails: bool
) -> None:
    """Side, path and byte are told, whatever is said at the close, and what came before it has been copied."""
    content, former = pattern(LARGE), bytes(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, former)
    with monkeypatch.context() as patch:
        failing(patch, call, number, lambda fd, data, at: at >= 2 * BLOCK)
        if close_fails:
            closing_fails(patch, errno.EDQUOT, lambda name: name.endswith("partial"))
        with pytest.raises(FileTrouble) as caught:
            copy_again(ground, item, ranges_of(content, *RANGES))
    path = NAME if side == "source" else partial_name(ground, item)
    assert caught.value.trouble[:5] == (side, op, path, 2 * BLOCK + 5, number)
    assert read(ground.partial(item)) == holding(former, content, *RANGES[:2])


def test_a_failed_close_after_ranges_is_a_trouble(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network filesystem says at the close is about what was written."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, bytes(LARGE))
    with monkeypatch.context() as patch:
        closing_fails(patch, errno.EDQUOT, lambda name: name.endswith("partial"))
        with pytest.raises(FileTrouble) as caught:
            copy_again(ground, item, ranges_of(content, *RANGES))
    assert caught.value.trouble[:5] == ("destination", "close", partial_name(ground, item), None, errno.EDQUOT)


# --- settling what was written again ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "bad"),
    [
        ([], []),
        ([0], [0]),
        ([9], [0]),
        ([10, PIECE - 1, 2 * PIECE, 2 * BLOCK + 4], []),  # in none of them
        ([2 * PIECE - 1, LARGE - 1], [PIECE, LARGE - 3]),
        ([3 * BLOCK + 4], [2 * BLOCK + 5]),
    ],
)
def test_ranges_that_differ_are_named_by_their_offsets(ground: Ground, lost: list[int], bad: list[int]) -> None:
    """What was written again is read back, and nothing else: one wrong bit is found."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, spoiled(content, *lost))
    assert settle(ground, item, ranges_of(content, *RANGES)) == bad
    assert [message for message in ground.told if message[0] == "verified"] == [
        ("verified", length) for _, length in RANGES
    ]
    for verify in ("size", "transfer"):
        assert settle(ground, item, ranges_of(content, *RANGES), verify) == []


@pytest.mark.parametrize("verify", ["size", "transfer", "readback"])
def test_ranges_are_made_durable_and_then_read_from_behind_the_page_cache(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """
    In this order, or it proves nothing; made durable they are at every level: promise 2.

    What is dropped goes to the ends of pages: of one that is asked for in part nothing would be.
    """
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, content)
    calls: list[tuple[Any, ...]] = []
    noting(monkeypatch, "fdatasync", lambda fd: calls.append(("sync", name_of(fd))))
    noting(monkeypatch, "posix_fadvise", lambda fd, *rest: calls.append(("drop", *rest)))
    noting(monkeypatch, "preadv", lambda fd, views, at: calls.append(("read", at, len(views[0]))))
    assert settle(ground, item, ranges_of(content, *RANGES[:2]), verify) == []
    drop = ("drop", 0, mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)
    assert calls[0] == ("sync", os.fsdecode(partial_name(ground, item)))
    assert calls[1:] == (
        [
            drop,
            ("read", 0, 10),
            drop,
            drop,
            ("read", PIECE, PIECE),
            drop,
        ]
        if verify == "readback"
        else []
    )


def test_a_partial_that_is_too_short_for_its_ranges_is_a_trouble(ground: Ground) -> None:
    """Missing bytes are no difference that could be written again: somebody has cut it."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, content[: BLOCK + 5])
    with pytest.raises(FileTrouble) as caught:
        settle(ground, item, ranges_of(content, (BLOCK, 10)))
    assert caught.value.trouble[:5] == ("destination", "read", partial_name(ground, item), BLOCK + 5, None)


@pytest.mark.parametrize(
    ("call", "op"), [("open", "open"), ("fdatasync", "fsync"), ("preadv", "read"), ("close", "read back")]
)
def test_an_error_while_ranges_settle_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, op: str
) -> None:
    """What could not be made durable, or not be read back, is not settled."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, content)
    with monkeypatch.context() as patch:
        if call == "close":
            closing_fails(patch, errno.EIO, lambda name: name.endswith("partial"))
        elif call == "open":
            failing(patch, call, errno.EIO, lambda path, *_: path.endswith(b"partial"))
        else:
            failing(patch, call, errno.EIO)
        with pytest.raises(FileTrouble) as caught:
            settle(ground, item, ranges_of(content, *RANGES))
    trouble = caught.value.trouble
    partial = partial_name(ground, item)
    assert (trouble.side, trouble.op, trouble.path, trouble.errno) == ("destination", op, partial, errno.EIO)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ELOOP])
def test_ranges_of_a_partial_that_is_gone_do_not_settle(ground: Ground, number: int) -> None:
    """A partial that somebody removed, or put a link in place of, is a trouble, not a success."""
    item = ground.add(NAME, LARGE)
    if number == errno.ELOOP:
        ground.old(b"elsewhere", LARGE)
        os.symlink(b"elsewhere", ground.partial(item))
    with pytest.raises(FileTrouble) as caught:
        settle(ground, item, [])
    assert (caught.value.trouble.op, caught.value.trouble.errno) == ("open", number)


# --- attributes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "partials"), [(0o751, 0o751), (0o644, 0o644), (0o404, 0o604), (0o440, 0o640), (0o4755, 0o755)], ids=oct
)
def test_permission_bits_that_a_recording_got_last_arrive(ground: Ground, mode: int, partials: int) -> None:
    """What its recorder gave it when it was closed; the owner may still read and write the partial."""
    item = ground.add(NAME, b"content")
    put_partial(ground, item, b"content")
    os.chmod(ground.at_source(NAME), mode)
    finish(ground, ground.item(NAME))
    assert stat.S_IMODE(os.stat(ground.partial(item)).st_mode) == partials
    assert read(ground.partial(item)) == b"content"


@pytest.mark.parametrize("xattrs", [True, False])
def test_attributes_that_a_recording_got_last_arrive(ground: Ground, xattrs: bool) -> None:
    """User attributes too, where the destination takes them."""
    need_xattrs(ground.source)
    item = ground.add(NAME)
    put_partial(ground, item)
    os.setxattr(ground.at_source(NAME), "user.take", b"7")
    os.setxattr(ground.at_source(NAME), "user.binary", b"\0\xff")
    finish(ground, item, xattrs=xattrs)
    there = {name: os.getxattr(ground.partial(item), name) for name in os.listxattr(ground.partial(item))}
    assert {name: value for name, value in there.items() if name.startswith("user.")} == (
        {"user.take": b"7", "user.binary": b"\0\xff"} if xattrs else {}
    )


@pytest.mark.parametrize("xattrs", [True, False])
def test_attributes_that_a_recording_has_no_more_are_taken_away(ground: Ground, xattrs: bool) -> None:
    """Those that the partial got when it began too, where they are copied at all; a changed one has its last value."""
    need_xattrs(ground.source)
    item = ground.add(NAME)
    put_partial(ground, item)
    for name in ("user.gone", "user.gone too", "user.take"):
        os.setxattr(ground.partial(item), name, b"6")
    os.setxattr(ground.at_source(NAME), "user.take", b"7")
    finish(ground, item, xattrs=xattrs)
    names = [name for name in os.listxattr(ground.partial(item)) if name.startswith("user.")]
    there = {name: os.getxattr(ground.partial(item), name) for name in names}
    assert there == (
        {"user.take": b"7"} if xattrs else dict.fromkeys(["user.gone", "user.gone too", "user.take"], b"6")
    )


def test_only_user_attributes_are_taken_away(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the destination's system has given a file is its own."""
    item = ground.add(NAME)
    put_partial(ground, item)
    partial = os.fsdecode(partial_name(ground, item))
    own = ["security.selinux", "system.posix_acl_access", "trusted.x", "user.gone"]
    removed: list[tuple[str, str]] = []
    monkeypatch.setattr(os, "listxattr", lambda fd: own if name_of(fd) == partial else [])
    monkeypatch.setattr(os, "removexattr", lambda fd, name: removed.append((name_of(fd), name)))
    finish(ground, item)
    assert removed == [(partial, "user.gone")]


def test_an_attribute_that_cannot_be_taken_away_is_done_without(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others arrive all the same, and the partial is made durable."""
    need_xattrs(ground.source)
    item = ground.add(NAME)
    put_partial(ground, item)
    os.setxattr(ground.partial(item), "user.gone", b"6")
    os.setxattr(ground.at_source(NAME), "user.take", b"7")
    failing(monkeypatch, "removexattr", errno.EPERM)
    synced = noting(monkeypatch, "fsync", name_of)
    finish(ground, item)
    assert os.getxattr(ground.partial(item), "user.take") == b"7"
    assert synced == [os.fsdecode(partial_name(ground, item))]


def test_last_attributes_are_durable(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partial is synced once it has them, not before: promise 2."""
    need_xattrs(ground.source)
    item = ground.add(NAME)
    put_partial(ground, item)
    os.setxattr(ground.at_source(NAME), "user.take", b"7")
    os.setxattr(ground.partial(item), "user.gone", b"6")
    calls: list[tuple[str, str]] = []
    for call in ("fchmod", "setxattr", "removexattr", "fsync"):
        noting(monkeypatch, call, lambda fd, *_, call=call: calls.append((call, name_of(fd))))
    finish(ground, item)
    name = os.fsdecode(partial_name(ground, item))
    assert calls == [("removexattr", name), ("fchmod", name), ("setxattr", name), ("fsync", name)]


def test_attributes_that_the_destination_does_not_take_are_done_without(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording arrives without them; what is said of that, the destination's probe says once."""
    item = ground.add(NAME)
    put_partial(ground, item)
    failing(monkeypatch, "fchmod", errno.EPERM)
    failing(monkeypatch, "listxattr", errno.EOPNOTSUPP)
    synced = noting(monkeypatch, "fsync", name_of)
    finish(ground, item)
    assert synced == [os.fsdecode(partial_name(ground, item))]


@pytest.mark.parametrize(
    ("call", "op", "number"),
    [("fsync", "fsync", errno.EIO), ("fsync", "fsync", errno.ENOSPC), ("close", "close", errno.EDQUOT)],
)
def test_attributes_that_are_not_durable_are_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, op: str, number: int
) -> None:
    """An error of the destination is told, and leaves nothing open."""
    item = ground.add(NAME)
    put_partial(ground, item)
    with monkeypatch.context() as patch:
        if call == "close":
            closing_fails(patch, number, lambda name: name.endswith("partial"))
        else:
            failing(patch, call, number)
        with pytest.raises(FileTrouble) as caught:
            finish(ground, item)
    assert caught.value.trouble[:5] == ("destination", op, partial_name(ground, item), None, number)


@pytest.mark.parametrize("call", ["fchmod", "setxattr", "removexattr"])
def test_a_destination_that_is_gone_is_no_attribute_to_do_without(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """They can be set later, when it is back."""
    need_xattrs(ground.source)
    item = ground.add(NAME)
    put_partial(ground, item)
    os.setxattr(ground.partial(item), "user.gone", b"6")
    os.setxattr(ground.at_source(NAME), "user.take", b"7")
    failing(monkeypatch, call, errno.EHOSTDOWN)
    with pytest.raises(FileTrouble) as caught:
        finish(ground, item)
    assert (caught.value.trouble.side, caught.value.trouble.errno) == ("destination", errno.EHOSTDOWN)
