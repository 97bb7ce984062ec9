"""Large files, span by span: written, durable, verified, and never spliced from two."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from files import MANNER, Ground, failing, held, name_of, need_leases, read
from support import files_of, pattern
from trioft.core.answers import Prepared, Written
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble, Remedy, classify
from trioft.core.model import BLOCK_SIZE, VOID, Checkpoint, Item, Result
from trioft.movers.ops import linux
from trioft.movers.ops.folder import large as large_module
from whole_files import bundle, digests, spoiling, verdicts

LARGE = 2 * BLOCK_SIZE + 123  # three blocks, the last one short


@functools.cache
def large() -> bytes:
    return pattern(LARGE)


# --- prepare ---------------------------------------------------------------------------------------------------------


def prepare(ground: Ground, item: Item, checkpoint: Checkpoint | None = None, **manner: Any) -> Result | Prepared:
    return large_module.prepare(ground.ends, item, checkpoint, MANNER._replace(**manner), False, ground.told.append)


def resumed(ground: Ground, item: Item, checkpoint: Checkpoint | None = None, **manner: Any) -> tuple[int, bytes]:
    """Prepare a partial; return from which byte on it is written, and the digests of what is below."""
    answer = prepare(ground, item, checkpoint, **manner)
    assert isinstance(answer, Prepared)
    return answer.offset, answer.digests


def checkpoint_of(ground: Ground, item: Item, offset: int, content: bytes | None = None) -> Checkpoint:
    content = large() if content is None else content
    partial = os.path.relpath(ground.partial(item), os.fsencode(ground.dest))
    return Checkpoint(partial, item.fingerprint, offset, digests(content[:offset]))


def put_partial(ground: Ground, item: Item, content: bytes) -> None:
    with open(ground.partial(item), "wb") as file:
        file.write(content)


def spoiled(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


def test_a_large_file_begins_with_an_empty_partial(ground: Ground) -> None:
    """Nothing is there: it starts at byte 0, in a folder that has been made for it."""
    item = ground.add(b"x/y/a", large(), mode=0o640)
    assert resumed(ground, item) == (0, b"")
    assert read(ground.partial(item)) == b""
    assert stat.S_IMODE(os.stat(ground.partial(item)).st_mode) == 0o640


def test_a_new_partial_is_found_again_after_a_power_cut(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that hold a new partial are made durable before anything is written into it."""
    item = ground.add(b"x/y/a", large())
    synced = []
    real = os.fsync

    def noted(fd: int) -> None:
        real(fd)
        synced.append(name_of(fd))

    monkeypatch.setattr(os, "fsync", noted)
    prepare(ground, item)
    assert sorted(synced) == ["dest", "x", "y"]


@pytest.mark.parametrize("offset", [BLOCK_SIZE, 2 * BLOCK_SIZE, LARGE])
@pytest.mark.parametrize("verify", ["transfer", "readback"])
def test_a_checkpoint_of_this_version_is_where_it_goes_on(ground: Ground, offset: int, verify: str) -> None:
    """What is below the checkpoint is kept without a look at the source; what was written above it is dropped."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large()[:offset] + bytes(LARGE - offset))
    checkpoint = checkpoint_of(ground, item, offset)
    ground.add(b"a", spoiled(large(), 0))  # the source is not read
    os.utime(ground.at_source(b"a"), ns=(0, item.fingerprint.mtime_ns))
    item = ground.item(b"a")
    checkpoint = checkpoint._replace(fingerprint=item.fingerprint)
    assert resumed(ground, item, checkpoint, verify=verify) == (offset, checkpoint.digests)
    assert os.stat(ground.partial(item)).st_size == offset


def test_at_level_readback_every_block_below_a_checkpoint_is_read_again(ground: Ground) -> None:
    """Nobody knows what happened to a partial meanwhile: it is kept up to the first block that is not as recorded."""
    item = ground.add(b"a", large())
    put_partial(ground, item, spoiled(large(), BLOCK_SIZE + 7))
    for offset in (2 * BLOCK_SIZE, LARGE):
        checkpoint = checkpoint_of(ground, item, offset)
        assert resumed(ground, item, checkpoint) == (BLOCK_SIZE, digests(large()[:BLOCK_SIZE]))
        put_partial(ground, item, spoiled(large(), BLOCK_SIZE + 7))
    assert resumed(ground, item, checkpoint, verify="transfer") == (LARGE, digests(large()))


def test_a_checkpoint_at_level_size_has_no_digests_and_is_trusted_at_that_level(ground: Ground) -> None:
    """Whoever wants sizes compared, and nothing else, gets exactly that."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large())
    checkpoint = checkpoint_of(ground, item, BLOCK_SIZE)._replace(digests=b"")
    assert resumed(ground, item, checkpoint, verify="size") == (BLOCK_SIZE, b"")


@pytest.mark.parametrize("verify", ["transfer", "readback"])
def test_a_checkpoint_of_a_lower_level_proves_nothing_at_a_higher_one(ground: Ground, verify: str) -> None:
    """A recorded offset is verified at the level that is asked for now: promise 2."""
    item = ground.add(b"a", large())
    put_partial(ground, item, spoiled(large(), BLOCK_SIZE + 7))
    checkpoint = checkpoint_of(ground, item, 2 * BLOCK_SIZE)._replace(digests=b"")
    assert resumed(ground, item, checkpoint, verify=verify) == (BLOCK_SIZE, digests(large()[:BLOCK_SIZE]))


@pytest.mark.parametrize("how", ["none", "other version", "other partial", "last block differs", "shorter partial"])
def test_without_a_checkpoint_that_fits_blocks_are_compared_and_kept_as_far_as_they_match(
    ground: Ground, how: str
) -> None:
    """A partial is used only as far as it is proved to be of this source: it never splices two files."""
    item = ground.add(b"a", large())
    checkpoint: Checkpoint | None = checkpoint_of(ground, item, 2 * BLOCK_SIZE)
    put_partial(ground, item, spoiled(large(), BLOCK_SIZE))
    assert checkpoint is not None
    match how:
        case "none":
            checkpoint = None
        case "other version":
            checkpoint = checkpoint._replace(fingerprint=item.fingerprint._replace(mtime_ns=1))
        case "other partial":
            checkpoint = checkpoint._replace(partial=b"b.00000000.partial")
        case "shorter partial":
            put_partial(ground, item, large()[: 2 * BLOCK_SIZE - 1])
    assert resumed(ground, item, checkpoint) == (BLOCK_SIZE, digests(large()[:BLOCK_SIZE]))
    assert os.stat(ground.partial(item)).st_size == BLOCK_SIZE
    assert ("compared", BLOCK_SIZE) in ground.told


@pytest.mark.parametrize(
    ("there", "kept", "again"),
    [
        (lambda: b"", 0, 0),
        (lambda: large()[: BLOCK_SIZE - 1], 0, 0),
        (lambda: pattern(LARGE, 99), 0, 0),
        (lambda: large()[:BLOCK_SIZE] + bytes(BLOCK_SIZE), BLOCK_SIZE, 0),
        (lambda: spoiled(large(), 0), 2 * BLOCK_SIZE, 1),
        (lambda: large(), 2 * BLOCK_SIZE, 0),  # the short last block is cheap to write again
        (lambda: large() + b"more", 2 * BLOCK_SIZE, 0),
    ],
    ids=["empty", "less than a block", "another file", "zeros behind", "first byte", "all of it", "longer"],
)
def test_what_a_partial_without_a_row_has_in_common_with_the_source_is_kept(
    ground: Ground, there: Callable[[], bytes], kept: int, again: int
) -> None:
    """With the state folder lost, a 25 GB file still goes on near where it was, and is right to the last byte."""
    item = ground.add(b"a", large())
    put_partial(ground, item, there())
    # Blocks that differ have no digest, and are written again.
    assert resumed(ground, item) == (kept, again * VOID + digests(large()[:kept])[again * 16 :])
    assert os.stat(ground.partial(item)).st_size == kept


def test_a_partial_is_compared_as_it_is_on_the_disk(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before blocks are kept they are made durable and read from behind the page cache: promise 2."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large())
    spoiling(monkeypatch, b"a", BLOCK_SIZE + 5)
    assert resumed(ground, item) == (BLOCK_SIZE, digests(large()[:BLOCK_SIZE]))


def test_a_shorter_source_keeps_no_more_than_it_has(ground: Ground) -> None:
    """A partial of a version that was longer is cut."""
    content = large()[: BLOCK_SIZE + 5]
    item = ground.add(b"a", content)
    put_partial(ground, item, large())
    assert resumed(ground, item) == (BLOCK_SIZE, digests(content[:BLOCK_SIZE]))


@pytest.mark.parametrize("verdict", ["gone", "changed", "busy", "already", "exists"])
def test_a_large_file_that_must_not_be_copied_now_is_not_prepared(ground: Ground, verdict: str) -> None:
    """The same questions are asked of a large file as of small ones, and no partial is begun."""
    item = ground.add(b"a", LARGE)
    with held(ground.at_source(b"a"), "writer" if verdict == "busy" else "reader"):
        match verdict:
            case "gone":
                os.unlink(ground.at_source(b"a"))
            case "changed":
                os.truncate(ground.at_source(b"a"), 5)
            case "busy":
                need_leases(ground.source)
            case "already":
                ground.old(b"a", LARGE)
                ground.same_times(item)
            case "exists":
                ground.old(b"a")
        result = prepare(ground, item, if_exists="fail")
    assert isinstance(result, Result)
    assert str(result.verdict) == verdict
    assert not os.path.exists(ground.partial(item))


@pytest.mark.parametrize("call", ["ftruncate", "fsync", "fstat", "preadv"])
def test_a_partial_that_cannot_be_prepared_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """An error while a partial is looked at leaves nothing open, and tells what failed."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large())
    failing(monkeypatch, call, errno.EIO, lambda fd, *_: name_of(fd).startswith("a."))
    with pytest.raises(FileTrouble) as caught:
        prepare(ground, item)
    trouble = caught.value.trouble
    partial = os.path.basename(ground.partial(item))
    assert (trouble.side, trouble.path, trouble.errno) == ("destination", partial, errno.EIO)


# --- spans -----------------------------------------------------------------------------------------------------------


def span(ground: Ground, item: Item, start: int, end: int, **manner: Any) -> None:
    partial = os.path.basename(ground.partial(item))
    large_module.copy_span(ground.ends, item, partial, start, end, MANNER._replace(**manner), ground.told.append)


@pytest.mark.parametrize("cached", [False, True], ids=["not there", "there"])
def test_the_page_cache_has_of_a_source_what_it_had_before(ground: Ground, cached: bool) -> None:
    """Terabytes that pass by do not drive out what others have there; nor is what others have there dropped."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    with open(ground.at_source(b"a"), "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if linux.bytes_in_cache(file.fileno(), 0, LARGE) != 0:
            pytest.skip("nothing can be dropped from the page cache here, or nobody tells what is there")
        if cached:
            file.read()
        span(ground, item, 0, LARGE)
        there = linux.bytes_in_cache(file.fileno(), 0, LARGE)
        assert there is not None
        assert there >= LARGE if cached else there == 0


def blocks_told(ground: Ground) -> list[tuple[int, int, bytes]]:
    return [message[:3] for message in ground.told if isinstance(message, Written)]


def bytes_told(ground: Ground) -> int:
    return sum(message[1] for message in ground.told if message[0] == "bytes")


def test_spans_may_be_written_in_any_order(ground: Ground) -> None:
    """Each span lands where it belongs, and the digest of each of its blocks is told once the block is written."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    span(ground, item, BLOCK_SIZE, LARGE)
    assert read(ground.partial(item)) == bytes(BLOCK_SIZE) + large()[BLOCK_SIZE:]
    span(ground, item, 0, BLOCK_SIZE)
    assert read(ground.partial(item)) == large()
    numbers, lengths, told = zip(*blocks_told(ground), strict=True)
    assert (numbers, lengths) == ((1, 2, 0), (BLOCK_SIZE, 123, BLOCK_SIZE))
    assert told[2] + told[0] + told[1] == digests(large())
    assert bytes_told(ground) == LARGE


def test_at_level_size_no_digest_is_made(ground: Ground) -> None:
    """Whoever wants sizes compared, and nothing else, does not pay for more."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    span(ground, item, 0, LARGE, verify="size")
    assert blocks_told(ground) == [(0, BLOCK_SIZE, b""), (1, BLOCK_SIZE, b""), (2, 123, b"")]


def test_a_span_survives_short_reads_and_writes(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that does less than it was asked to leaves no gap."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[: max(1, len(view) // 3)], at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][: 1 + len(views[0]) // 2]], at))
    span(ground, item, 0, LARGE)
    assert read(ground.partial(item)) == large()
    assert bytes_told(ground) == LARGE


@pytest.mark.parametrize("how", ["rewritten", "grown", "shrunk", "replaced"])
def test_a_source_that_changes_while_a_span_is_copied_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Blocks of two versions never become one file: the copy is stopped, and begins anew: promise 1."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    path = ground.at_source(b"a")
    real = os.preadv
    done: list[bool] = []

    def meanwhile(fd: int, buffers: Any, offset: int) -> int:
        count = real(fd, buffers, offset)
        if not done:
            done.append(True)
            match how:
                case "rewritten":
                    with open(path, "r+b") as file:
                        file.write(b"header")
                case "grown":
                    with open(path, "ab") as file:
                        file.write(b"more")
                case "shrunk":
                    os.truncate(path, BLOCK_SIZE)
                case "replaced":
                    os.rename(path, path + b"~")
                    ground.add(b"a", pattern(LARGE, 99))
        return count

    monkeypatch.setattr(os, "preadv", meanwhile)
    with pytest.raises(FileTrouble) as caught:
        span(ground, item, 0, LARGE)
    assert (caught.value.trouble.side, caught.value.trouble.errno) == ("source", None)
    assert classify(caught.value.trouble) == Remedy.RETRY


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_a_failed_write_tells_its_byte_and_no_block_beyond(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A block is told only when all of it has been written."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    failing(monkeypatch, "pwrite", number, lambda fd, view, at: at >= BLOCK_SIZE + 3 * 2**20)
    with pytest.raises(FileTrouble) as caught:
        span(ground, item, 0, LARGE)
    partial = os.path.basename(ground.partial(item))
    assert caught.value.trouble[:5] == ("destination", "write", partial, BLOCK_SIZE + 3 * 2**20, number)
    assert blocks_told(ground) == [(0, BLOCK_SIZE, block_digest(large()[:BLOCK_SIZE]))]


@pytest.mark.parametrize("failed_before", [False, True], ids=["alone", "after a failed write"])
def test_a_failed_close_is_a_failed_write(ground: Ground, monkeypatch: pytest.MonkeyPatch, failed_before: bool) -> None:
    """What a network filesystem says at the close is not lost; nor does it hide what went wrong before."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    real = os.close

    def late(fd: int) -> None:
        written = os.path.basename(os.fsencode(name_of(fd))) == os.path.basename(ground.partial(item))
        real(fd)
        if written:
            raise OSError(errno.EDQUOT, "")

    if failed_before:
        failing(monkeypatch, "pwrite", errno.ESTALE)
    monkeypatch.setattr(os, "close", late)
    with pytest.raises(FileTrouble) as caught:
        span(ground, item, 0, LARGE)
    expected = ("write", errno.ESTALE) if failed_before else ("close", errno.EDQUOT)
    assert (caught.value.trouble.op, caught.value.trouble.errno) == expected


def test_what_is_only_read_may_fail_to_close(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error at the close of a source or a folder says nothing about any byte, and stops nothing."""
    item, small = ground.add(b"a", large()), ground.add(b"small")
    put_partial(ground, item, b"")
    real = os.close

    def late(fd: int) -> None:
        only_read = not name_of(fd).endswith("partial")
        real(fd)
        if only_read:
            raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "close", late)
    span(ground, item, 0, LARGE)
    assert verdicts(bundle(ground, [small])) == ["written"]


@pytest.mark.parametrize("missing", ["source", "partial"])
def test_a_span_needs_both_files(ground: Ground, missing: str) -> None:
    """A partial that somebody removed is not made again by a span: that would leave a hole."""
    item = ground.add(b"a", large())
    put_partial(ground, item, b"")
    os.unlink(ground.at_source(b"a") if missing == "source" else ground.partial(item))
    with pytest.raises(FileTrouble) as caught:
        span(ground, item, 0, LARGE)
    assert (caught.value.trouble.op, caught.value.trouble.errno) == ("open", errno.ENOENT)
    assert caught.value.trouble.side == ("source" if missing == "source" else "destination")
    assert missing == "source" or files_of(ground.dest) == {}


# --- settle ----------------------------------------------------------------------------------------------------------


def settle(ground: Ground, item: Item, start: int, end: int, verify: str = "readback") -> list[int]:
    partial = os.path.basename(ground.partial(item))
    wanted = digests(large()[start:end])
    return large_module.settle(ground.ends.destination, partial, start, end, wanted, verify, ground.told.append)


def test_what_is_as_it_was_written_settles(ground: Ground) -> None:
    """A range is durable and read back: progress is told for both."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large())
    assert settle(ground, item, 0, LARGE) == []
    assert [message for message in ground.told if message[0] == "synced"] == [
        ("synced", 0),
        ("synced", BLOCK_SIZE),
        ("synced", 2 * BLOCK_SIZE),
    ]
    assert sum(message[1] for message in ground.told if message[0] == "verified") == LARGE
    assert settle(ground, item, BLOCK_SIZE, 2 * BLOCK_SIZE) == []


@pytest.mark.parametrize(
    ("offsets", "bad"),
    [([0], [0]), ([BLOCK_SIZE - 1], [0]), ([BLOCK_SIZE], [1]), ([LARGE - 1], [2]), ([5, LARGE - 1], [0, 2])],
)
def test_blocks_that_differ_are_named(ground: Ground, offsets: list[int], bad: list[int]) -> None:
    """One wrong bit is found, and the number of its block says what has to be written again."""
    item = ground.add(b"a", large())
    content = large()
    for offset in offsets:
        content = spoiled(content, offset)
    put_partial(ground, item, content)
    assert settle(ground, item, 0, LARGE) == bad
    for verify in ("size", "transfer"):
        assert settle(ground, item, 0, LARGE, verify) == []


def test_blocks_are_numbered_from_the_files_start(ground: Ground) -> None:
    """A range in the middle names its blocks as the whole file does."""
    item = ground.add(b"a", large())
    put_partial(ground, item, spoiled(large(), 2 * BLOCK_SIZE + 1))
    assert settle(ground, item, BLOCK_SIZE, LARGE) == [2]


def test_the_read_back_comes_from_behind_the_page_cache(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared is what the destination has, after it was made durable: in this order, or it proves nothing."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large())
    calls: list[str] = []
    for call in ("fdatasync", "posix_fadvise", "preadv"):
        real = getattr(os, call)

        def noted(*args: Any, _call: str = call, _real: Any = real) -> Any:
            if _call != "posix_fadvise" or args[-1] == os.POSIX_FADV_DONTNEED:
                calls.append(_call)
            return _real(*args)

        monkeypatch.setattr(os, call, noted)
    spoiling(monkeypatch, b"a", 5)
    assert settle(ground, item, 0, LARGE) == [0]
    assert calls[:3] == ["fdatasync", "posix_fadvise", "preadv"]
    # Each block is read, in pieces, and then dropped.
    assert [call for call, _ in itertools.groupby(calls[2:])] == ["preadv", "posix_fadvise"] * 3


def test_what_is_read_back_does_not_stay_in_the_page_cache(ground: Ground) -> None:
    """A transfer of terabytes leaves the machine's memory to others; and using it over again is twice as fast."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large())
    with open(ground.partial(item), "r+b") as file:
        os.fsync(file.fileno())
        before = linux.resident_share(file.fileno(), LARGE)
        assert settle(ground, item, 0, LARGE) == []
        if before == 1:  # some filesystems have no page cache
            assert linux.resident_share(file.fileno(), LARGE) < 0.1


@pytest.mark.parametrize("verify", ["size", "transfer", "readback"])
@pytest.mark.parametrize("size", [0, BLOCK_SIZE, LARGE - 1])
def test_a_short_partial_never_settles(ground: Ground, size: int, verify: str) -> None:
    """Missing bytes are found at every level: promise 2."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large()[:size])
    with pytest.raises(FileTrouble) as caught:
        settle(ground, item, 0, LARGE, verify)
    assert (caught.value.trouble.op, caught.value.trouble.offset) == ("read back", size)


@pytest.mark.parametrize("call", ["open", "write_back", "fdatasync", "close", "preadv"])
def test_an_error_while_settling_is_a_trouble(ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A range that could not be made durable, or not be read back, is not settled."""
    item = ground.add(b"a", large())
    put_partial(ground, item, large())
    if call == "write_back":

        def fail(fd: int, offset: int, length: int) -> None:
            raise OSError(errno.EIO, "")

        monkeypatch.setattr(linux, "write_back", fail)
    elif call == "close":
        real = os.close

        def late(fd: int) -> None:
            partial = name_of(fd).endswith("partial")
            real(fd)
            if partial:
                raise OSError(errno.EIO, "")

        monkeypatch.setattr(os, "close", late)
    elif call == "open":
        failing(monkeypatch, "open", errno.EIO, lambda path, *_: path.endswith(b"partial"))
    else:
        failing(monkeypatch, call, errno.EIO)
    with pytest.raises(FileTrouble) as caught:
        settle(ground, item, 0, LARGE)
    assert (caught.value.trouble.side, caught.value.trouble.errno) == ("destination", errno.EIO)
    assert classify(caught.value.trouble) == Remedy.DESTINATION


def test_a_partial_that_is_gone_does_not_settle(ground: Ground) -> None:
    """A partial that somebody removed is a trouble, not a success."""
    item = ground.add(b"a", large())
    with pytest.raises(FileTrouble) as caught:
        settle(ground, item, 0, LARGE)
    assert caught.value.trouble.errno == errno.ENOENT
