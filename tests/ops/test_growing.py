"""Files that are being written, copied behind their writers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from files import MANNER, Ground, failing, name_of, read
from growing_files import (
    BLOCK,
    LARGE,
    NAME,
    PIECE,
    bytes_told,
    closing_fails,
    compare,
    copy_again,
    differences_of,
    finish,
    noting,
    partial_name,
    pieces,
    put_partial,
    ranges_of,
    spoiled,
)
from support import files_of, pattern
from trioft.core.answers import Known, Written
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble
from trioft.core.model import VOID, Ends, Fingerprint, Item, Root
from trioft.movers.ops import source
from trioft.movers.ops.files import Away
from trioft.movers.ops.folder import growing

pytestmark = pytest.mark.usefixtures("small_blocks")

NOTHING = Known(0, b"")  # of a block that has not been copied before


@pytest.mark.parametrize(
    "call",
    ["peek", "copy_growing", "copy_ranges", "settle_ranges", "compare_span", "finish_attributes", "locate", "adopt"],
)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_nothing_is_done_below_a_folder_that_is_another_filesystem(ground: Ground, side: str, call: str) -> None:
    """An end whose device has changed is not looked into, and gets no byte: promise 5."""
    item = ground.add(NAME, 100)
    put_partial(ground, item)
    identity, partial, tell = item.fingerprint[:2], partial_name(ground, item), ground.told.append
    root = getattr(ground.ends, side)
    ends: Ends = ground.ends._replace(**{side: Root(root.path, root.dev + 1)})
    calls: dict[str, Callable[[], object]] = {
        "peek": lambda: source.peek(ends.source, NAME, identity, 0),
        "copy_growing": lambda: growing.copy_growing(ends, item, partial, 0, 100, [NOTHING], True, tell),
        "copy_ranges": lambda: growing.copy_ranges(ends, item, partial, ranges_of(pattern(100), (0, 100)), tell),
        "settle_ranges": lambda: growing.settle_ranges(ends.destination, partial, [], "size", tell),
        "compare_span": lambda: source.compare_span(ends.source, NAME, 0, 100, [(VOID, b"")], tell),
        "finish_attributes": lambda: growing.finish_attributes(ends, item, partial, MANNER),
        "locate": lambda: source.locate(ends.source, NAME, identity, True, None, tell),
        "adopt": lambda: growing.adopt(ends, b"old", identity, partial, b"new.partial"),
    }
    if call in {"source": ("settle_ranges",), "destination": ("peek", "compare_span", "locate")}[side]:
        calls[call]()  # these have nothing to do with it
        return
    with pytest.raises(Away):
        calls[call]()
    assert files_of(ground.dest) == {partial: b""}


@pytest.mark.parametrize("call", ["peek", "copy_growing", "copy_ranges", "compare_span", "finish_attributes", "locate"])
def test_what_is_only_read_may_fail_to_close(ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """An error at the close of a source or a folder says nothing about any byte, and stops nothing."""
    content = pattern(100)
    item = ground.add(NAME, content)
    put_partial(ground, item)
    identity, partial, tell = item.fingerprint[:2], partial_name(ground, item), ground.told.append
    calls: dict[str, tuple[Callable[[], object], object]] = {
        "peek": (lambda: source.peek(ground.ends.source, NAME, identity, 0).head, 100),
        "copy_growing": (lambda: growing.copy_growing(ground.ends, item, partial, 0, 100, [NOTHING], True, tell), None),
        "copy_ranges": (
            lambda: growing.copy_ranges(ground.ends, item, partial, ranges_of(content, (0, 100)), tell),
            [],
        ),
        "compare_span": (
            lambda: source.compare_span(ground.ends.source, NAME, 0, 100, [(VOID, b"")], tell),
            differences_of(content, 0),
        ),
        "finish_attributes": (lambda: growing.finish_attributes(ground.ends, item, partial, MANNER), []),
        "locate": (lambda: source.locate(ground.ends.source, b"old", identity, False, None, tell), NAME),
    }
    operation, answer = calls[call]
    with monkeypatch.context() as patch:
        closing_fails(patch, errno.EIO, lambda name: not name.endswith("partial"))
        assert operation() == answer


# --- copying behind the writer ---------------------------------------------------------------------------------------


def copy(ground: Ground, item: Item, start: int, end: int, *known: Known, final: bool = False) -> None:
    """Copy a span, of whose first blocks this is *known*."""
    told = [*known, *[NOTHING] * (len(range(start, end, BLOCK)) - len(known))]
    partial = partial_name(ground, item)
    growing.copy_growing(ground.ends, item, partial, start, end, told, final, ground.told.append)


def known_of(content: bytes, start: int, length: int) -> Known:
    """Return what is known of the block at *start* once *length* bytes of it have been copied."""
    return Known(length, pieces(content[start : start + length]))


def blocks_told(ground: Ground) -> list[tuple[int, int, bytes, bytes]]:
    """Number, length, digest and pieces of each block."""
    return [message[:] for message in ground.told if isinstance(message, Written)]


def blocks_of(content: bytes, start: int, end: int, *, final: bool = False) -> list[tuple[int, int, bytes, bytes]]:
    """Return what is to be told of these blocks: a digest only of those that are complete."""
    blocks = [(at // BLOCK, content[at : min(at + BLOCK, end)]) for at in range(start, end, BLOCK)]
    return [
        (number, len(block), block_digest(block) if final or len(block) == BLOCK else b"", pieces(block))
        for number, block in blocks
    ]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(
    ("start", "end"),
    [(0, LARGE), (0, 1), (0, BLOCK), (BLOCK, 3 * BLOCK), (2 * BLOCK, 2 * BLOCK + 77), (3 * BLOCK, LARGE)],
)
def test_what_lies_between_two_offsets_is_copied(
    ground: Ground, written: list[tuple[int, int]], start: int, end: int, final: bool
) -> None:
    """It lands where it belongs, and each block is told with what it has by now; a digest, once it is complete."""
    content = pattern(LARGE)
    item = ground.add(b"x/a", content)
    put_partial(ground, item)
    copy(ground, item, start, end, final=final)
    assert read(ground.partial(item)) == bytes(start) + content[start:end]
    assert blocks_told(ground) == blocks_of(content, start, end, final=final)
    assert written == [(at, min(BLOCK, end - at)) for at in range(start, end, BLOCK)]
    assert bytes_told(ground) == end - start


def test_a_block_is_told_once_it_is_written(ground: Ground) -> None:
    """What a mover has told of has reached the partial, should it die right after."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item)
    partial = ground.partial(item)
    told: list[int] = []

    def tell(message: Any) -> None:
        if isinstance(message, Written):
            at = message.number * BLOCK
            assert read(partial)[at:] == content[at:][: message.length]
            told.append(message.number)

    growing.copy_growing(ground.ends, item, partial_name(ground, item), 0, LARGE, [NOTHING] * 4, True, tell)
    assert told == [0, 1, 2, 3]


@settings(max_examples=100)
@given(
    known=st.tuples(*[st.integers(0, BLOCK)] * 4),
    changed=st.sets(st.integers(0, LARGE - 1), max_size=6),
    first=st.integers(0, 3),
    length=st.integers(1, LARGE),
    size=st.integers(0, LARGE),
    final=st.booleans(),
)
@example(known=(BLOCK,) * 4, changed={5, 3 * PIECE, BLOCK + 1}, first=0, length=LARGE, size=LARGE, final=True)
@example(known=(BLOCK, 2 * PIECE + 7, 0, 0), changed={BLOCK + 1}, first=1, length=3 * PIECE, size=LARGE, final=False)
@example(known=(BLOCK, 2 * PIECE + 7, 0, 0), changed={BLOCK + 1}, first=1, length=3 * PIECE, size=LARGE, final=True)
@example(known=(3 * PIECE, 0, 0, 0), changed=set(), first=0, length=LARGE, size=PIECE + 1, final=True)
def test_what_was_told_is_what_the_partial_holds_and_no_more_was_written_than_had_to_be(
    ground: Ground,
    written: list[tuple[int, int]],
    known: tuple[int, ...],
    changed: set[int],
    first: int,
    length: int,
    size: int,
    final: bool,
) -> None:
    """Whatever was known, has changed, or is missing: complete blocks are the source's, and every digest is true."""
    start = first * BLOCK
    end = min(start + length, LARGE)
    most = LARGE if final else end - 1  # of a block that grows, more is asked for than is known
    known = tuple(max(0, min(n, most - number * BLOCK)) for number, n in enumerate(known))
    former = pattern(LARGE)
    content = spoiled(former, *changed)[:size]
    before = b"".join(former[n * BLOCK :][: known[n]].ljust(BLOCK, b"\0") for n in range(4))
    item = ground.add(NAME, content)
    put_partial(ground, item, before)
    ground.told.clear()
    written.clear()
    knowns = [known_of(former, n * BLOCK, known[n]) for n in range(first, -(-end // BLOCK))]
    copy(ground, item, start, end, *knowns, final=final)
    there = read(ground.partial(item))

    total = 0
    for number, told, digest, of_pieces in blocks_told(ground):
        offset = number * BLOCK
        stop = min(BLOCK, end - offset)
        is_complete = final or stop == BLOCK
        looked_at = offset + (0 if is_complete else known[number] // PIECE * PIECE)  # below, it was not read again
        if size >= looked_at:
            assert told == max(0, min(stop, size - offset))
        assert there[looked_at : offset + told] == content[looked_at : offset + told]
        assert there[offset:looked_at] == before[offset:looked_at]
        assert digest == (block_digest(there[offset : offset + told]) if is_complete else b"")
        assert of_pieces == pieces(there[offset : offset + told])
        total += told
    assert (total == end - start) == (size >= end)

    untouched = bytearray(there)
    last = -1
    for offset, count in written:
        assert count > 0
        assert offset > last or (offset == last and offset % BLOCK == 0)  # in order, and together where they could be
        last = offset + count
        untouched[offset:last] = before[offset:last]
        for low in range(offset // PIECE * PIECE, last, PIECE):
            high = min(low + PIECE, low // BLOCK * BLOCK + known[low // BLOCK])  # up to here it was known
            assert max(offset, low) >= high or former[low:high] != content[:end][low:high]
    assert untouched == before
    assert bytes_told(ground) == sum(count for _, count in written)


@pytest.mark.parametrize("length", [1, PIECE, PIECE + 500, BLOCK - 1])
@pytest.mark.parametrize("end", [2 * BLOCK - PIECE, 2 * BLOCK, 3 * BLOCK + 50])
def test_a_block_that_was_begun_goes_on_where_it_was(
    ground: Ground, written: list[tuple[int, int]], length: int, end: int
) -> None:
    """Of the last block, only what is new is written, and what is told is about all of it."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    end = max(end, BLOCK + length + 1)
    put_partial(ground, item, content[: BLOCK + length])
    copy(ground, item, BLOCK, end, known_of(content, BLOCK, length))
    assert read(ground.partial(item)) == content[:end]
    assert written[0] == (BLOCK + length, min(end, 2 * BLOCK) - BLOCK - length)
    assert [at for at, _ in written[1:]] == list(range(2 * BLOCK, end, BLOCK))
    assert bytes_told(ground) == end - BLOCK - length
    assert blocks_told(ground) == blocks_of(content, BLOCK, end)


@pytest.mark.parametrize("final", [False, True])
def test_nothing_new_is_nothing_to_write(ground: Ground, written: list[tuple[int, int]], final: bool) -> None:
    """A block that has not grown is told, and stays as it is."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, content)
    known = [known_of(content, at, BLOCK) for at in range(0, 3 * BLOCK, BLOCK)]
    copy(ground, item, 0, LARGE, *known, known_of(content, 3 * BLOCK, LARGE - 3 * BLOCK), final=final)
    assert written == []
    assert bytes_told(ground) == 0
    assert blocks_told(ground) == blocks_of(content, 0, LARGE, final=final)


def test_of_a_block_that_grows_only_the_last_piece_is_read_again(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, written: list[tuple[int, int]]
) -> None:
    """A recorder that writes a little at a time does not have all of the block read each time."""
    former = pattern(LARGE)
    begun = 2 * PIECE + 500
    content = spoiled(former, BLOCK + 5, BLOCK + 2 * PIECE + 5)  # the first of them will be found when it is complete
    item = ground.add(NAME, content)
    put_partial(ground, item, former[: BLOCK + begun])
    asked = noting(monkeypatch, "preadv", lambda fd, views, at: (at, len(views[0])))
    copy(ground, item, BLOCK, BLOCK + 3 * PIECE + 7, known_of(former, BLOCK, begun))
    assert asked == [(BLOCK + 2 * PIECE, PIECE + 7)]
    assert written == [(BLOCK + 2 * PIECE, PIECE + 7)]  # it was rewritten since: from its start
    there = former[: BLOCK + 2 * PIECE] + content[BLOCK + 2 * PIECE : BLOCK + 3 * PIECE + 7]
    assert read(ground.partial(item)) == there
    assert blocks_told(ground) == [(1, 3 * PIECE + 7, b"", pieces(there[BLOCK:]))]


@pytest.mark.parametrize(("end", "final"), [(2 * BLOCK, False), (2 * BLOCK - 5, True)], ids=["whole", "the last"])
def test_a_block_that_is_complete_is_read_again_from_its_start(
    ground: Ground, written: list[tuple[int, int]], end: int, final: bool
) -> None:
    """A recorder that went back, as to correct a header, is followed there: the pieces that it changed are written."""
    former = pattern(LARGE)
    content = spoiled(former, BLOCK + 5)
    begun = 2 * PIECE + 500
    item = ground.add(NAME, content)
    put_partial(ground, item, former[: BLOCK + begun])
    copy(ground, item, BLOCK, end, known_of(former, BLOCK, begun), final=final)
    assert written == [(BLOCK, PIECE), (BLOCK + begun, end - BLOCK - begun)]
    assert read(ground.partial(item)) == former[:BLOCK] + content[BLOCK:end]
    assert blocks_told(ground) == blocks_of(content, BLOCK, end, final=final)
    assert bytes_told(ground) == PIECE + end - BLOCK - begun


def test_of_blocks_that_are_written_again_only_changed_pieces_are(
    ground: Ground, written: list[tuple[int, int]]
) -> None:
    """Where a recorder has rewritten a few kilobytes, a few kilobytes are copied; neighbours are written at once."""
    former = pattern(LARGE)
    content = spoiled(former, 0, PIECE, 3 * PIECE, BLOCK, 3 * BLOCK - 1, LARGE - 1)
    item = ground.add(NAME, content)
    put_partial(ground, item, former)
    known = [known_of(former, at, min(BLOCK, LARGE - at)) for at in range(0, LARGE, BLOCK)]
    copy(ground, item, 0, LARGE, *known, final=True)
    assert written == [
        (0, 2 * PIECE),
        (3 * PIECE, PIECE),
        (BLOCK, PIECE),
        (3 * BLOCK - PIECE, PIECE),
        (3 * BLOCK, LARGE - 3 * BLOCK),
    ]
    assert read(ground.partial(item)) == content
    assert blocks_told(ground) == blocks_of(content, 0, LARGE, final=True)


def test_what_is_known_of_one_block_is_not_taken_for_the_next(ground: Ground) -> None:
    """Blocks that begin alike are written all the same."""
    content = pattern(BLOCK) * 3
    item = ground.add(NAME, content)
    put_partial(ground, item, content[:1500])
    copy(ground, item, 0, 3 * BLOCK, known_of(content, 0, 1500))
    assert read(ground.partial(item)) == content


@pytest.mark.parametrize("final", [False, True])
def test_a_begun_piece_that_was_cut_is_written_again(
    ground: Ground, written: list[tuple[int, int]], final: bool
) -> None:
    """A file that ends before what was known of it: its rest is written, and told with the length it has."""
    content = pattern(LARGE)
    item = ground.add(NAME, content[: BLOCK + PIECE + 400])
    put_partial(ground, item, content[: BLOCK + PIECE + 900])
    copy(ground, item, BLOCK, 2 * BLOCK - 1, known_of(content, BLOCK, PIECE + 900), final=final)
    assert written == [(BLOCK + PIECE, 400)]
    assert blocks_told(ground) == blocks_of(content, BLOCK, BLOCK + PIECE + 400, final=final)


@pytest.mark.parametrize("size", [2 * BLOCK + 10, 2 * BLOCK, 2 * BLOCK - 1, BLOCK + 1])
def test_a_file_that_ends_before_is_copied_to_its_end(ground: Ground, size: int) -> None:
    """That is no trouble: what is told says how far it went, and nothing is invented behind it."""
    content = pattern(size)
    item = ground.add(NAME, content)
    put_partial(ground, item)
    copy(ground, item, BLOCK, 6 * BLOCK)
    assert read(ground.partial(item)) == bytes(BLOCK) + content[BLOCK:]
    told = [(number, length) for number, length, *_ in blocks_told(ground) if length]
    assert told == [(at // BLOCK, min(BLOCK, size - at)) for at in range(BLOCK, size, BLOCK)]
    assert bytes_told(ground) == size - BLOCK


@pytest.mark.parametrize("size", [0, BLOCK - 1, BLOCK])
def test_of_a_file_that_ends_before_the_first_block_nothing_is_copied(ground: Ground, size: int) -> None:
    """It has become shorter than what was copied: there is nothing to add."""
    item = ground.add(NAME, size)
    put_partial(ground, item, bytes(BLOCK))
    copy(ground, item, BLOCK, 3 * BLOCK)
    assert read(ground.partial(item)) == bytes(BLOCK)
    assert [length for _, length, *_ in blocks_told(ground)] == [0]


def test_a_file_that_goes_on_meanwhile_is_no_trouble(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version is not asked for: what is written while it is copied is for the next time."""
    content = pattern(LARGE)
    item = ground.add(NAME, content[:BLOCK])
    put_partial(ground, item)
    with open(ground.at_source(NAME), "ab") as file:
        file.write(content[BLOCK : 2 * BLOCK])

    def write_on(*_: object) -> None:
        with open(ground.at_source(NAME), "ab") as file:
            file.write(b"more")

    noting(monkeypatch, "preadv", write_on)
    copy(ground, item, 0, 2 * BLOCK)
    assert os.stat(ground.at_source(NAME)).st_size > 2 * BLOCK
    assert read(ground.partial(item)) == content[: 2 * BLOCK]
    assert blocks_told(ground) == blocks_of(content, 0, 2 * BLOCK)


@pytest.mark.parametrize("which", [0, 1], ids=["device", "inode"])
def test_bytes_of_another_file_are_never_added(ground: Ground, which: int) -> None:
    """Under the name is another file by now: to whoever asked for this one, it is not there."""
    item = ground.add(NAME, LARGE)
    put_partial(ground, item, b"untouched")
    partial = partial_name(ground, item)
    other = list(item.fingerprint)
    other[which] += 1
    item = item._replace(fingerprint=Fingerprint(*other))
    with pytest.raises(FileTrouble) as caught:
        growing.copy_growing(ground.ends, item, partial, 0, LARGE, [NOTHING] * 4, False, ground.told.append)
    assert caught.value.trouble[:5] == ("source", "open", NAME, None, errno.ENOENT)
    assert files_of(ground.dest) == {partial: b"untouched"}
    assert ground.told == []


@pytest.mark.parametrize("operation", ["copy_growing", "copy_ranges", "finish_attributes"])
@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("no source", errno.ENOENT),
        ("no partial", errno.ENOENT),
        ("a link for a source", errno.ELOOP),
        ("a link for a partial", errno.ELOOP),
    ],
)
def test_both_files_have_to_be_there(ground: Ground, operation: str, what: str, number: int) -> None:
    """A partial that somebody removed is not made again, and no link is followed, on either side."""
    item = ground.add(NAME, LARGE)
    put_partial(ground, item)
    at_source = what.endswith("source")
    path = ground.at_source(NAME) if at_source else ground.partial(item)
    os.rename(path, path + b"~")
    if number == errno.ELOOP:
        os.symlink(os.path.basename(path) + b"~", path)
    before = files_of(ground.dest)
    operations: dict[str, Callable[[], object]] = {
        "copy_growing": lambda: copy(ground, item, 0, LARGE),
        "copy_ranges": lambda: copy_again(ground, item, ranges_of(pattern(LARGE), (0, LARGE))),
        "finish_attributes": lambda: finish(ground, item),
    }
    with pytest.raises(FileTrouble) as caught:
        operations[operation]()
    side, name = ("source", NAME) if at_source else ("destination", partial_name(ground, item))
    assert caught.value.trouble[:5] == (side, "open", name, None, number)
    assert files_of(ground.dest) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
@pytest.mark.parametrize("fails_at", [0, BLOCK, 3 * BLOCK])
def test_a_failed_write_tells_its_byte_and_no_block_beyond(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int, fails_at: int
) -> None:
    """A block is told only when all of it has been written."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item)
    failing(monkeypatch, "pwrite", number, lambda fd, view, at: at >= fails_at)
    with pytest.raises(FileTrouble) as caught:
        copy(ground, item, 0, LARGE)
    assert caught.value.trouble[:5] == ("destination", "write", partial_name(ground, item), fails_at, number)
    assert blocks_told(ground) == blocks_of(content, 0, fails_at)


def test_a_failed_write_of_a_begun_block_tells_its_byte(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offset is that of the first byte that is new."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, content[: BLOCK + 1500])
    failing(monkeypatch, "pwrite", errno.EIO)
    with pytest.raises(FileTrouble) as caught:
        copy(ground, item, BLOCK, 2 * BLOCK, known_of(content, BLOCK, 1500))
    expected = ("destination", "write", partial_name(ground, item), BLOCK + 1500, errno.EIO)
    assert caught.value.trouble[:5] == expected
    assert blocks_told(ground) == []


@pytest.mark.parametrize("failed_before", [False, True], ids=["alone", "after a failed write"])
def test_a_failed_close_is_a_failed_write(ground: Ground, monkeypatch: pytest.MonkeyPatch, failed_before: bool) -> None:
    """What a network filesystem says at the close is not lost; nor does it hide what went wrong before."""
    item = ground.add(NAME, LARGE)
    put_partial(ground, item)
    if failed_before:
        failing(monkeypatch, "pwrite", errno.ESTALE)
    with monkeypatch.context() as patch:
        closing_fails(patch, errno.EDQUOT, lambda name: name.endswith("partial"))
        with pytest.raises(FileTrouble) as caught:
            copy(ground, item, 0, LARGE)
    expected = ("write", 0, errno.ESTALE) if failed_before else ("close", None, errno.EDQUOT)
    assert caught.value.trouble[:5] == ("destination", expected[0], partial_name(ground, item), *expected[1:])


def test_a_source_that_cannot_be_read_tells_its_byte(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a trouble of the source, whatever the destination has taken so far."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:1000]], at))
    failing(monkeypatch, "preadv", errno.EIO, lambda fd, views, at: at >= BLOCK + 1000)
    with pytest.raises(FileTrouble) as caught:
        copy(ground, item, 0, LARGE)
    assert caught.value.trouble[:5] == ("source", "read", NAME, BLOCK + 1000, errno.EIO)
    assert read(ground.partial(item)) == content[:BLOCK]


def test_short_reads_and_writes_leave_no_gap(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that does less than it was asked to is no end of the file."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, content[:1500])
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[: max(1, len(view) // 3)], at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][: 1 + len(views[0]) // 2]], at))
    copy(ground, item, 0, LARGE, known_of(content, 0, 1500))
    assert read(ground.partial(item)) == content
    assert blocks_told(ground) == blocks_of(content, 0, LARGE)


@pytest.mark.parametrize(
    ("end", "known", "finished"),
    [
        (LARGE, 0, [0, 1, 2]),
        (2 * BLOCK, 500, [0, 1]),
        (BLOCK - 1, 0, []),
        (9 * BLOCK, 0, [0, 1, 2]),
        (2 * BLOCK, BLOCK, [0, 1]),  # the first was known: it is read again all the same
    ],
)
def test_finished_blocks_leave_the_page_cache(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, end: int, known: int, finished: list[int]
) -> None:
    """What is read of a recording pushes nothing out of memory; the block that still grows will be read again soon."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item, content[:known])
    advice = noting(monkeypatch, "posix_fadvise", lambda fd, *rest: (name_of(fd), *rest))
    copy(ground, item, 0, end, known_of(content, 0, known))
    dropped = [(name, at, length) for name, at, length, kind in advice if kind == os.POSIX_FADV_DONTNEED]
    assert dropped == [(os.fsdecode(NAME), n * BLOCK, BLOCK) for n in finished]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_a_page_cache_that_takes_no_advice_stops_nothing(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What is copied, and found to differ, is the same where the source's filesystem cannot be told what to keep."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    put_partial(ground, item)
    failing(monkeypatch, "posix_fadvise", number)
    copy(ground, item, 0, LARGE)
    assert read(ground.partial(item)) == content
    assert blocks_told(ground) == blocks_of(content, 0, LARGE)
    assert compare(ground, item, 0, LARGE, spoiled(content, BLOCK)) == differences_of(content, 1)
