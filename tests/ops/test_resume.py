"""What of a partial is still good: a transfer that was interrupted goes on, and never believes more than is proved."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from files import MANNER, Ground, failing, held, name_of, need_leases, open_files, read
from support import pattern
from trioft.core import answers
from trioft.core.answers import Prepared
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble
from trioft.core.model import VOID, Checkpoint, Item, Result, Verdict
from trioft.movers.ops import source
from trioft.movers.ops.folder import existing, large, resume

BLOCK = 4096  # what a block is here: see ``ground``
BLOCKS = 5
TAIL = 123
LARGE = BLOCKS * BLOCK + TAIL  # the last block is a short one


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    for module in (large, existing, source, resume):
        monkeypatch.setattr(module, "BLOCK_SIZE", BLOCK)
    with Ground(tmp_path) as place:
        yield place
        left = [name for name in open_files() if str(tmp_path) in name]
        assert left == [], "an operation left something open"


# Once for a file that is finished, and once for one that grows.
for_either = pytest.mark.parametrize("growing", [False, True], ids=["finished", "growing"])


def digests(content: bytes) -> bytes:
    return b"".join(block_digest(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK))


def with_void(digests: bytes, *numbers: int) -> bytes:
    return b"".join(VOID if n in numbers else digests[16 * n : 16 * n + 16] for n in range(len(digests) // 16))


def spoiled(content: bytes, *blocks: int) -> bytes:
    """Return *content* with one bit changed in each of these *blocks*."""
    changed = bytearray(content)
    for number in blocks:
        changed[number * BLOCK + (7 * number + 1) % min(BLOCK, len(content) - number * BLOCK)] ^= 1
    return bytes(changed)


def put_partial(ground: Ground, item: Item, content: bytes) -> None:
    with open(ground.partial(item), "wb") as file:
        file.write(content)


def checkpoint_of(ground: Ground, item: Item, content: bytes, offset: int, *, growing: bool) -> Checkpoint:
    partial = os.path.relpath(ground.partial(item), os.fsencode(ground.dest))
    return Checkpoint(partial, item.fingerprint, offset, digests(content[:offset]), growing)


def prepare(
    ground: Ground, item: Item, checkpoint: Checkpoint | None = None, *, growing: bool, **manner: Any
) -> Result | Prepared:
    """Prepare the partial as the movers do; how sure it is that the source is closed is left out."""
    answer = large.prepare(ground.ends, item, checkpoint, MANNER._replace(**manner), growing, ground.told.append)
    return answer._replace(closed="") if isinstance(answer, Prepared) else answer


def compared(ground: Ground) -> int:
    return sum(message[1] for message in ground.told if message[0] == "compared")


def spoiling(monkeypatch: pytest.MonkeyPatch, offset: int) -> list[bool]:
    """
    Let the disk lose a bit of the partial as soon as it is to be read from behind the page cache.

    Returns a list that gets whether the partial was made durable before.
    """
    advise, sync = os.posix_fadvise, os.fsync
    synced: set[str] = set()
    durable: list[bool] = []

    def note(fd: int) -> None:
        sync(fd)
        synced.add(name_of(fd))

    def spoil(fd: int, start: int, length: int, advice: int) -> None:
        if name_of(fd).endswith("partial") and advice == os.POSIX_FADV_DONTNEED and not durable:
            durable.append(name_of(fd) in synced)
            os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1]), offset)
        advise(fd, start, length, advice)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "posix_fadvise", spoil)
    return durable


# --- without a checkpoint: what matches the source is kept -----------------------------------------------------------


@for_either
@settings(max_examples=50)
@given(
    changed=st.sets(st.integers(0, BLOCKS)),
    size=st.integers(0, LARGE + BLOCK),
)
@example(changed=set(), size=LARGE)
@example(changed={0, 3}, size=BLOCKS * BLOCK)
@example(changed={4}, size=LARGE)
@example(changed=set(range(BLOCKS)), size=LARGE)
@example(changed=set(), size=BLOCK - 1)
def test_every_block_that_matches_the_source_is_kept(
    ground: Ground, growing: bool, changed: set[int], size: int
) -> None:
    """With the ledger lost, what is right stays, what is not is VOID, and behind the last match nothing is left."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    there = (spoiled(content, *changed) + pattern(BLOCK, 99))[:size]
    put_partial(ground, item, there)
    matching = [n for n in range(min(size, LARGE) // BLOCK) if n not in changed]
    kept = (matching[-1] + 1) * BLOCK if matching else 0
    expected = with_void(digests(content[:kept]), *changed)
    assert prepare(ground, item, growing=growing) == Prepared(kept, expected)
    assert read(ground.partial(item)) == there[:kept]  # and what is below is as it was


@for_either
@pytest.mark.parametrize("lack", ["none", "other partial"])
def test_a_checkpoint_of_another_partial_is_none(ground: Ground, growing: bool, lack: str) -> None:
    """What is known of other bytes says nothing about these."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, spoiled(content, 1))
    checkpoint = checkpoint_of(ground, item, spoiled(content, 1), 4 * BLOCK, growing=growing)
    other = None if lack == "none" else checkpoint._replace(partial=b"b.00000000.partial")
    expected = with_void(digests(content[: BLOCKS * BLOCK]), 1)
    assert prepare(ground, item, other, growing=growing) == Prepared(BLOCKS * BLOCK, expected)
    assert compared(ground) == BLOCKS * BLOCK


@for_either
@pytest.mark.parametrize("verify", ["transfer", "readback"])
def test_a_checkpoint_without_digests_proves_nothing_at_a_higher_level(
    ground: Ground, growing: bool, verify: str
) -> None:
    """A recorded offset is verified at the level that is asked for now: promise 2."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, spoiled(content, 0))
    checkpoint = checkpoint_of(ground, item, content, 2 * BLOCK, growing=growing)._replace(digests=b"")
    expected = with_void(digests(content[: BLOCKS * BLOCK]), 0)
    assert prepare(ground, item, checkpoint, growing=growing, verify=verify) == Prepared(BLOCKS * BLOCK, expected)


def test_the_numbers_of_void_blocks_are_told() -> None:
    """Whoever writes on knows from them what has to be written again."""
    some = digests(pattern(LARGE))
    assert Prepared(0, b"").void == []
    assert Prepared(LARGE, some).void == []
    assert Prepared(LARGE, with_void(some, 0, 3, 5)).void == [0, 3, 5]


@for_either
def test_blocks_are_compared_as_they_are_on_the_disk(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, growing: bool
) -> None:
    """Before a block is kept it is made durable and read from behind the page cache: promise 2."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    synced = spoiling(monkeypatch, 2 * BLOCK)
    expected = with_void(digests(content[: BLOCKS * BLOCK]), 2)
    assert prepare(ground, item, growing=growing) == Prepared(BLOCKS * BLOCK, expected)
    assert synced == [True]


# --- a finished file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["transfer", "readback"])
@pytest.mark.parametrize("offset", [BLOCK, 4 * BLOCK, LARGE])
def test_a_checkpoint_of_a_finished_file_is_believed(ground: Ground, offset: int, verify: str) -> None:
    """This very version was copied: the source is not read again, and what was written above is dropped."""
    content = pattern(LARGE)
    item = ground.add(b"a", pattern(LARGE, 99))  # nobody looks
    put_partial(ground, item, content)
    checkpoint = checkpoint_of(ground, item, content, offset, growing=False)
    expected = Prepared(offset, digests(content[:offset]))
    assert prepare(ground, item, checkpoint, growing=False, verify=verify) == expected
    assert read(ground.partial(item)) == content[:offset]


@pytest.mark.parametrize("verify", ["transfer", "readback"])
@pytest.mark.parametrize("offset", [BLOCK, 4 * BLOCK, LARGE])
def test_what_was_copied_while_a_file_grew_is_never_believed_of_a_finished_one(
    ground: Ground, offset: int, verify: str
) -> None:
    """What was copied may have been rewritten since, though the version is the one of then: it is compared."""
    former = pattern(LARGE)
    content = spoiled(former, 0, 2)
    item = ground.add(b"a", content)
    put_partial(ground, item, former)
    checkpoint = checkpoint_of(ground, item, former, offset, growing=True)
    assert checkpoint.fingerprint == item.fingerprint
    expected = Prepared(BLOCKS * BLOCK, with_void(digests(content[: BLOCKS * BLOCK]), 0, 2))
    assert prepare(ground, item, checkpoint, growing=False, verify=verify) == expected


@pytest.mark.parametrize("fact", ["size", "mtime_ns", "ctime_ns", "ino", "dev"])
def test_a_checkpoint_of_another_version_is_not_believed_of_a_finished_file(ground: Ground, fact: str) -> None:
    """Any difference will do: blocks of two versions never become one file."""
    former = pattern(LARGE)
    content = spoiled(former, 1)
    item = ground.add(b"a", content)
    put_partial(ground, item, former)
    checkpoint = checkpoint_of(ground, item, former, 3 * BLOCK, growing=False)
    other = item.fingerprint._replace(**{fact: getattr(item.fingerprint, fact) - 1})
    expected = Prepared(BLOCKS * BLOCK, with_void(digests(content[: BLOCKS * BLOCK]), 1))
    assert prepare(ground, item, checkpoint._replace(fingerprint=other), growing=False) == expected


@pytest.mark.parametrize("offset", [4 * BLOCK, LARGE])
@pytest.mark.parametrize("lost", [[1], [3], [2, 3], [1, 2, 3]], ids=str)
def test_of_a_finished_file_the_blocks_before_the_first_lost_one_are_kept(
    ground: Ground, offset: int, lost: list[int]
) -> None:
    """Nobody knows what happened to the partial: up to there it is as recorded, without a look at the source."""
    content = pattern(LARGE)
    item = ground.add(b"a", pattern(LARGE, 99))  # nobody looks
    put_partial(ground, item, spoiled(content, *lost))
    checkpoint = checkpoint_of(ground, item, content, offset, growing=False)
    kept = lost[0] * BLOCK
    assert prepare(ground, item, checkpoint, growing=False) == Prepared(kept, digests(content[:kept]))
    assert os.stat(ground.partial(item)).st_size == kept


def test_a_finished_file_whose_first_block_is_lost_is_compared(ground: Ground) -> None:
    """A look at the source saves what comes behind it."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, spoiled(content, 0, 2))
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=False)
    expected = Prepared(BLOCKS * BLOCK, with_void(digests(content[: BLOCKS * BLOCK]), 0, 2))
    assert prepare(ground, item, checkpoint, growing=False) == expected


def test_below_readback_a_finished_file_whose_last_block_is_lost_is_compared(ground: Ground) -> None:
    """Only that one was looked at: it says that the others cannot be relied on either."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, spoiled(content, 1, 3))
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=False)
    expected = Prepared(BLOCKS * BLOCK, with_void(digests(content[: BLOCKS * BLOCK]), 1, 3))
    assert prepare(ground, item, checkpoint, growing=False, verify="transfer") == expected


def test_a_finished_file_that_was_being_written_again_is_kept_up_to_there(ground: Ground) -> None:
    """A block that was VOID when its checkpoint was made is not kept for what the partial happens to hold."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=False)
    checkpoint = checkpoint._replace(digests=with_void(checkpoint.digests, 2))
    assert prepare(ground, item, checkpoint, growing=False) == Prepared(2 * BLOCK, digests(content[: 2 * BLOCK]))


def test_a_partial_that_is_shorter_than_a_finished_files_checkpoint_is_compared(ground: Ground) -> None:
    """A checkpoint that leads is none: promise 2."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, spoiled(content, 1)[: 4 * BLOCK - 1])
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=False)
    expected = Prepared(3 * BLOCK, with_void(digests(content[: 3 * BLOCK]), 1))
    assert prepare(ground, item, checkpoint, growing=False) == expected


# --- a file that grows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growing_then", [False, True], ids=["was finished", "was growing"])
def test_a_growing_file_goes_on_from_a_checkpoint_of_any_version(ground: Ground, growing_then: bool) -> None:
    """All of it will be compared in the end: what has changed in the source meanwhile is found there, not here."""
    former = pattern(LARGE)
    item = ground.add(b"a", former)
    put_partial(ground, item, former)
    checkpoint = checkpoint_of(ground, item, former, 4 * BLOCK, growing=growing_then)
    ground.add(b"a", spoiled(former, 0, 2) + b"and more")
    assert prepare(ground, item, checkpoint, growing=True) == Prepared(4 * BLOCK, digests(former[: 4 * BLOCK]))
    assert read(ground.partial(item)) == former[: 4 * BLOCK]


@settings(max_examples=50)
@given(
    offset=st.integers(1, LARGE),
    void=st.sets(st.integers(0, BLOCKS)),
    lost=st.sets(st.integers(0, BLOCKS)),
    changed=st.sets(st.integers(0, BLOCKS)),
    source_size=st.integers(0, LARGE + BLOCK),
    partial_size=st.integers(0, LARGE + BLOCK),
)
@example(offset=4 * BLOCK, void={1}, lost={2}, changed={3}, source_size=LARGE, partial_size=LARGE)
@example(offset=LARGE, void=set(), lost=set(), changed=set(), source_size=3 * BLOCK - 1, partial_size=LARGE)
@example(offset=LARGE, void=set(), lost={BLOCKS}, changed=set(), source_size=LARGE, partial_size=3 * BLOCK + 1)
@example(offset=2 * BLOCK, void=set(), lost=set(), changed=set(), source_size=BLOCK - 1, partial_size=LARGE)
@example(offset=2 * BLOCK, void={0, 1}, lost=set(), changed=set(), source_size=LARGE, partial_size=2 * BLOCK)
def test_of_a_growing_file_whole_blocks_are_kept_that_are_as_recorded(
    ground: Ground,
    offset: int,
    void: set[int],
    lost: set[int],
    changed: set[int],
    source_size: int,
    partial_size: int,
) -> None:
    """It is cut at a whole block that both ends have; what is lost, or was VOID, is VOID; the last decides on doubt."""
    former = pattern(LARGE)
    item = ground.add(b"a", (spoiled(former, *changed) + pattern(BLOCK, 98))[:source_size])
    put_partial(ground, item, (spoiled(former, *lost) + pattern(BLOCK, 99))[:partial_size])
    checkpoint = checkpoint_of(ground, item, former, offset, growing=True)
    checkpoint = checkpoint._replace(digests=with_void(checkpoint.digests, *void))
    count = min(offset, source_size, partial_size) // BLOCK
    expected = with_void(digests(former[: count * BLOCK]), *void, *lost)
    doubtful = count > 0 and (count - 1) in changed | void | lost
    assert prepare(ground, item, checkpoint, growing=True) == Prepared(count * BLOCK, expected, doubtful=doubtful)
    assert os.stat(ground.partial(item)).st_size == count * BLOCK


def test_a_block_that_is_lost_keeps_none_of_the_others(ground: Ground) -> None:
    """Of a recording of 25 GB, one lost block is written again, not all that follows."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, spoiled(content, 0, 2))
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=True)
    answer = prepare(ground, item, checkpoint, growing=True)
    assert answer == Prepared(4 * BLOCK, with_void(checkpoint.digests, 0, 2))
    assert isinstance(answer, Prepared)
    assert answer.void == [0, 2]


def test_what_is_void_stays_void_whatever_the_partial_holds(ground: Ground) -> None:
    """A block that was being written again is not read, let alone believed."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=True)
    checkpoint = checkpoint._replace(digests=with_void(checkpoint.digests, 1))
    assert prepare(ground, item, checkpoint, growing=True) == Prepared(4 * BLOCK, checkpoint.digests)
    assert compared(ground) == 3 * BLOCK


def test_below_readback_only_the_last_block_of_a_growing_file_is_read_again(ground: Ground) -> None:
    """It was verified once, and that has to do; the last block is the one that a crash would have torn."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=True)
    for lost, found in ((1, []), (3, [3])):
        put_partial(ground, item, spoiled(content, lost))
        answer = prepare(ground, item, checkpoint, growing=True, verify="transfer")
        assert answer == Prepared(4 * BLOCK, with_void(checkpoint.digests, *found), doubtful=bool(found))


@pytest.mark.parametrize("changed", range(4))
def test_a_growing_file_is_doubtful_when_its_last_block_is_another(ground: Ground, changed: int) -> None:
    """An inode number is given away again: what is under the name may be another recording, compared as a whole."""
    former = pattern(LARGE)
    item = ground.add(b"a", spoiled(former, changed))
    put_partial(ground, item, former)
    checkpoint = checkpoint_of(ground, item, former, 4 * BLOCK, growing=True)
    expected = Prepared(4 * BLOCK, checkpoint.digests, doubtful=changed == 3)
    assert prepare(ground, item, checkpoint, growing=True) == expected


@pytest.mark.parametrize("end", ["source", "partial", "checkpoint"])
def test_a_checkpoint_of_less_than_a_block_is_where_a_growing_file_begins_anew(ground: Ground, end: str) -> None:
    """There is nothing to be kept, and nothing to be in doubt about."""
    content = pattern(LARGE)
    short = BLOCK - 1
    item = ground.add(b"a", content[:short] if end == "source" else content)
    put_partial(ground, item, content[:short] if end == "partial" else content)
    checkpoint = checkpoint_of(ground, item, content, short if end == "checkpoint" else 3 * BLOCK, growing=True)
    assert prepare(ground, item, checkpoint, growing=True) == Prepared(0, b"")
    assert read(ground.partial(item)) == b""


def test_the_blocks_of_a_growing_files_checkpoint_are_read_from_the_disk(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page cache still holds says nothing about what the destination has."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    spoiling(monkeypatch, BLOCK + 9)
    checkpoint = checkpoint_of(ground, item, content, 4 * BLOCK, growing=True)
    assert prepare(ground, item, checkpoint, growing=True) == Prepared(4 * BLOCK, with_void(checkpoint.digests, 1))


@for_either
def test_only_a_growing_file_is_prepared_while_somebody_writes_it(ground: Ground, growing: bool) -> None:
    """For a growing one it has to be the same file, in whatever version; and nothing says that it is closed."""
    need_leases(ground.source)
    content = pattern(LARGE)
    item = ground.add(b"a", content[:BLOCK])
    put_partial(ground, item, content)
    with held(ground.at_source(b"a"), "writer"):
        if not growing:
            assert prepare(ground, item, growing=False) == Result(Verdict.BUSY)
            return
        with open(ground.at_source(b"a"), "ab") as file:
            file.write(content[BLOCK:])
        expected = Prepared(BLOCKS * BLOCK, digests(content[: BLOCKS * BLOCK]))
        assert large.prepare(ground.ends, item, None, MANNER, True, ground.told.append) == expected


def test_of_a_finished_file_it_is_told_how_sure_it_is_that_it_is_closed(ground: Ground) -> None:
    """The answer of the kernel goes with what is prepared."""
    need_leases(ground.source)
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    checkpoint = checkpoint_of(ground, item, content, LARGE, growing=False)
    expected = Prepared(LARGE, digests(content), closed=answers.PROVED)
    assert large.prepare(ground.ends, item, checkpoint, MANNER, False, ground.told.append) == expected


@for_either
@pytest.mark.parametrize("how", ["gone", "another file"])
def test_what_is_not_that_file_is_not_prepared(ground: Ground, growing: bool, how: str) -> None:
    """Growing or not: a partial of one file is no beginning of another, and stays as it is."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    os.rename(ground.at_source(b"a"), ground.at_source(b"b"))
    if how == "another file":
        ground.add(b"a", content)
    verdict = Verdict.GONE if how == "gone" else Verdict.CHANGED
    assert prepare(ground, item, growing=growing) == Result(verdict)
    assert read(ground.partial(item)) == content


# --- what goes wrong -------------------------------------------------------------------------------------------------


@for_either
@pytest.mark.parametrize(
    ("known", "call"),  # what a checkpoint covers was synced when it was made
    [
        (False, "fstat"),
        (False, "fsync"),
        (False, "posix_fadvise"),
        (False, "preadv"),
        (True, "fstat"),
        (True, "posix_fadvise"),
        (True, "preadv"),
    ],
)
def test_a_partial_that_cannot_be_looked_at_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, known: bool, growing: bool
) -> None:
    """An error of the destination is told, nothing stays open, and the partial is not touched."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    checkpoint = checkpoint_of(ground, item, content, 3 * BLOCK, growing=growing) if known else None
    failing(monkeypatch, call, errno.EIO, lambda fd, *_: name_of(fd).endswith("partial"))
    with pytest.raises(FileTrouble) as caught:
        prepare(ground, item, checkpoint, growing=growing)
    trouble, partial = caught.value.trouble, os.path.basename(ground.partial(item))
    assert (trouble.side, trouble.path, trouble.errno) == ("destination", partial, errno.EIO)
    assert read(ground.partial(item)) == content


@pytest.mark.parametrize("known", [False, True], ids=["without a checkpoint", "with a checkpoint"])
def test_a_growing_source_that_cannot_be_read_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """It is the source's, and the partial is not cut because of it."""
    content = pattern(LARGE)
    item = ground.add(b"a", content)
    put_partial(ground, item, content)
    checkpoint = checkpoint_of(ground, item, content, 3 * BLOCK, growing=True) if known else None
    failing(monkeypatch, "preadv", errno.EIO, lambda fd, views, at: name_of(fd) == "a" and at == 2 * BLOCK)
    with pytest.raises(FileTrouble) as caught:
        prepare(ground, item, checkpoint, growing=True)
    assert caught.value.trouble[:5] == ("source", "read", b"a", 2 * BLOCK, errno.EIO)
    assert read(ground.partial(item)) == content
