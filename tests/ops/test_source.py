"""Files that are being written, at the source: looked at, and compared with what was copied."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from files import Ground, failing, fingerprint, held, name_of, need_leases, ordinary_user, read
from growing_files import (
    BLOCK,
    LARGE,
    NAME,
    PIECE,
    compare,
    copy_again,
    differences_of,
    noting,
    pieces,
    put_partial,
    settle,
    spoiled,
)
from support import pattern
from trioft.core import answers
from trioft.core.answers import Peek, Range
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble
from trioft.core.model import BLOCK_SIZE, KIB, VOID, Found, Item, Verdict
from trioft.movers.ops import linux, source, writers

pytestmark = pytest.mark.usefixtures("small_blocks")

GRAIN = 64 * KIB  # filesystems have no smaller holes
NFS, FAT = 0x6969, 0x4D44


# --- a look: which file ----------------------------------------------------------------------------------------------


def peek(ground: Ground, item: Item, copied: int = 0) -> Peek:
    return source.peek(ground.ends.source, item.path, item.fingerprint[:2], copied)


def nothing_proves(monkeypatch: pytest.MonkeyPatch, magic: int = FAT) -> None:
    """Have the source on a filesystem where the kernel does not know all writers."""
    monkeypatch.setattr(writers, "_magic_of_device", {})
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: magic)


@pytest.mark.parametrize("how", ["removed", "renamed", "folder removed", "folder renamed", "folder replaced"])
def test_a_file_that_has_its_name_no_more_is_gone(ground: Ground, how: str) -> None:
    """Nothing is under the name, or there is no such folder any more: another look may find it elsewhere."""
    item = ground.add(b"x/a")
    match how:
        case "removed":
            os.unlink(ground.at_source(b"x/a"))
        case "renamed":
            os.rename(ground.at_source(b"x/a"), ground.at_source(b"x/b"))
        case "folder removed":
            os.unlink(ground.at_source(b"x/a"))
            os.rmdir(ground.at_source(b"x"))
        case _:
            os.rename(ground.at_source(b"x"), ground.at_source(b"y"))
            if how == "folder replaced":
                ground.add(b"x", b"a file")
    assert peek(ground, item) == Peek(Verdict.GONE)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("how", ["another file", "a link to it", "a link to another", "a folder", "a pipe", "a socket"])
def test_another_file_under_its_name_is_a_change(ground: Ground, how: str) -> None:
    """What has been copied is of one file: what has its name now is never taken for more of it."""
    item = ground.add(NAME, b"content")
    path, away = ground.at_source(NAME), ground.at_source(b"away")
    os.rename(path, away)
    match how:
        case "another file":
            ground.add(NAME, b"content")
        case "a link to it":
            os.symlink(b"away", path)
        case "a link to another":
            os.symlink(b"nowhere", path)
        case "a folder":
            os.mkdir(path)
        case "a pipe":
            os.mkfifo(path)
        case "a socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
    assert peek(ground, item) == Peek(Verdict.CHANGED)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["a folder", "a pipe", "a socket"])
def test_what_is_no_regular_file_is_never_found(ground: Ground, what: str) -> None:
    """An inode number is given away again at once: what has it now may be no file at all."""
    path = ground.at_source(NAME)
    match what:
        case "a folder":
            os.mkdir(path)
        case "a pipe":
            os.mkfifo(path)
        case "a socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
    assert peek(ground, ground.item(NAME)) == Peek(Verdict.CHANGED)


@pytest.mark.parametrize("which", [0, 1], ids=["device", "inode"])
def test_device_and_inode_both_tell_a_file_from_another(ground: Ground, which: int) -> None:
    """One that differs is enough."""
    item = ground.add(NAME)
    identity = list(item.fingerprint[:2])
    identity[which] += 1
    assert source.peek(ground.ends.source, NAME, (identity[0], identity[1]), 0) == Peek(Verdict.CHANGED)


def test_a_file_is_found_as_it_is_now(ground: Ground) -> None:
    """Its present version, whatever it was when somebody looked before: size, times and permission bits."""
    need_leases(ground.source)
    item = ground.add(b"x/" + NAME, b"content", mode=0o640)
    for _ in range(2):
        version = fingerprint(ground.at_source(item.path))
        mode = stat.S_IMODE(os.stat(ground.at_source(item.path)).st_mode)
        found = Found(item.path, mode, version)
        assert peek(ground, item) == Peek(None, found, version.size, answers.CLOSED, answers.PROVED)
        with open(ground.at_source(item.path), "ab") as file:
            file.write(b", and more")
        os.chmod(ground.at_source(item.path), 0o600)
    assert version.size == len(b"content, and more")


def test_what_was_written_before_the_answer_is_in_the_version(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that closes between two questions leaves no gap: the version is looked at after the writer."""
    need_leases(ground.source)
    item = ground.add(NAME, b"content")
    real = writers.ask_lease

    def last_words(fd: int, device: int) -> str:
        with open(ground.at_source(NAME), "ab") as file:
            file.write(b", and its end")
        return real(fd, device)

    monkeypatch.setattr(writers, "ask_lease", last_words)
    answer = peek(ground, item)
    assert answer.writer == answers.CLOSED
    assert answer.head == len(b"content, and its end")
    assert answer.found is not None
    assert answer.found.fingerprint == fingerprint(ground.at_source(NAME))


def test_a_file_that_may_not_be_read_is_a_trouble(ground: Ground) -> None:
    """That trioft has no access is neither a file that is gone nor another one."""
    item = ground.add(NAME, mode=0o000)
    with ordinary_user(), pytest.raises(FileTrouble) as caught:
        peek(ground, item)
    assert caught.value.trouble[:5] == ("source", "open", NAME, None, errno.EACCES)


@pytest.mark.parametrize("how", ["proved", "not proved"])
def test_an_error_in_the_middle_of_a_look_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A source that does not answer is told with its name, and nothing stays open."""
    if how == "not proved":
        nothing_proves(monkeypatch)
    item = ground.add(NAME)
    failing(monkeypatch, "fstat", errno.ESTALE, lambda fd: name_of(fd) == os.fsdecode(NAME))
    with pytest.raises(FileTrouble) as caught:
        peek(ground, item)
    assert caught.value.trouble[:5] == ("source", "stat", NAME, None, errno.ESTALE)


# --- a look: who writes it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "answer", "strength"),
    [
        ("writer", answers.BUSY, ""),
        ("reader and writer", answers.BUSY, ""),
        ("memory map", answers.BUSY, ""),  # its descriptor is closed: only the kernel still knows of it
        ("reader", answers.CLOSED, answers.PROVED),
    ],
)
def test_a_writer_is_seen_as_long_as_it_is_there(ground: Ground, how: str, answer: str, strength: str) -> None:
    """By a descriptor or by a memory map: while anybody can still write, nothing is worth anything."""
    need_leases(ground.source)
    item = ground.add(NAME)
    with held(ground.at_source(NAME), how):
        assert peek(ground, item)[3:5] == (answer, strength)
    assert peek(ground, item)[3:5] == (answers.CLOSED, answers.PROVED)


@pytest.mark.parametrize(
    ("magic", "user", "strength"),
    [
        (FAT, 0, answers.LIKELY),
        (FAT, 1000, answers.TIMEOUT),  # it may not look into the processes of others
        (NFS, 0, answers.TIMEOUT),  # another machine may write
        (NFS, 1000, answers.TIMEOUT),
    ],
    ids=["local, root", "local, a user", "shared, root", "shared, a user"],
)
def test_where_the_kernel_proves_nothing_the_strength_says_so(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, magic: int, user: int, strength: str
) -> None:
    """That no writer was found is worth what trioft could look at, and never a proof: promise 3."""
    nothing_proves(monkeypatch, magic)
    monkeypatch.setattr(writers, "sees_all_processes", lambda: user == 0)
    item = ground.add(NAME)
    assert peek(ground, item)[3:5] == (answers.UNKNOWN, strength)
    with held(ground.at_source(NAME), "reader"):
        assert peek(ground, item)[3:5] == (answers.UNKNOWN, strength)


@pytest.mark.parametrize("magic", [FAT, NFS], ids=["local", "shared"])
def test_where_the_kernel_proves_nothing_a_writer_of_this_machine_is_found(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, magic: int
) -> None:
    """Whoever is in the open-file table is a writer, whatever the filesystem."""
    nothing_proves(monkeypatch, magic)
    item = ground.add(NAME)
    with held(ground.at_source(NAME), "writer"):
        assert peek(ground, item)[3:5] == (answers.BUSY, "")
    assert peek(ground, item).writer == answers.UNKNOWN


@pytest.mark.parametrize("how", ["reader", "writer"])
def test_the_open_file_table_is_not_read_where_the_kernel_has_answered(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A lease takes microseconds, the table of all processes milliseconds: several times a second that counts."""
    need_leases(ground.source)
    item = ground.add(NAME)
    monkeypatch.setattr(writers, "find_writers", lambda files: pytest.fail("it was read"))
    with held(ground.at_source(NAME), how):
        assert peek(ground, item).verdict is None


def test_a_look_keeps_no_writer_waiting(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is given back before anything else is looked at: a recorder opens the file as if nobody had asked."""
    need_leases(ground.source)
    item = ground.add(NAME)
    opened: list[int] = []
    real = os.fstat

    def meanwhile(fd: int) -> os.stat_result:
        if name_of(fd) == os.fsdecode(NAME) and not opened:
            opened.append(os.open(ground.at_source(NAME), os.O_WRONLY | os.O_NONBLOCK))
            os.close(opened[0])
        return real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", meanwhile)
        assert peek(ground, item).writer == answers.CLOSED
    assert len(opened) == 1
    os.close(os.open(ground.at_source(NAME), os.O_WRONLY | os.O_NONBLOCK))


# --- a look: the write head ------------------------------------------------------------------------------------------


def need_holes(folder: Path, *, preallocated: bool = False) -> None:
    """Skip where files have no holes that can be asked for."""
    path = folder / "holes"
    try:
        with open(path, "wb") as file:
            if preallocated:
                os.posix_fallocate(file.fileno(), 0, 4 * GRAIN)
            file.write(bytes(GRAIN))
            file.flush()
            os.ftruncate(file.fileno(), 4 * GRAIN)
            if os.lseek(file.fileno(), 0, os.SEEK_HOLE) != GRAIN:
                pytest.skip(f"no sparse files on the filesystem of {folder}")
    except OSError as error:
        pytest.skip(f"no sparse files on the filesystem of {folder}: {error}")
    finally:
        path.unlink()


def recording(ground: Ground, size: int, *pieces: tuple[int, int], preallocate: bool = False) -> Item:
    """Make a source file of *size* bytes in which only these *pieces* (start, end) have been written."""
    item = ground.add(NAME, b"")
    fd = os.open(ground.at_source(NAME), os.O_RDWR | os.O_CLOEXEC)
    try:
        if preallocate:
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
        for start, end in pieces:
            for at in range(start, end, GRAIN):
                os.pwrite(fd, b"x" * min(GRAIN, end - at), at)
    finally:
        os.close(fd)
    return item


@pytest.mark.parametrize("size", [0, 1, 12_345, GRAIN])
def test_a_plain_file_has_been_written_up_to_its_end(ground: Ground, size: int) -> None:
    """Where nothing was preallocated, the size says it all."""
    item = ground.add(NAME, size)
    assert peek(ground, item).head == size
    assert peek(ground, item, size).head == size
    assert peek(ground, item, size + 1).head == size  # it has become shorter


@pytest.mark.parametrize("preallocate", [False, True], ids=["truncated", "preallocated"])
@pytest.mark.parametrize("reserved", [GRAIN, BLOCK_SIZE, 4 * BLOCK_SIZE])
def test_space_that_was_reserved_is_no_content(ground: Ground, preallocate: bool, reserved: int) -> None:
    """A file that is filled from its beginning has been written up to where only a hole follows."""
    need_holes(ground.source, preallocated=preallocate)
    for filled in (0, GRAIN, 5 * GRAIN):
        item = recording(ground, 5 * GRAIN + reserved, (0, filled), preallocate=preallocate)
        assert peek(ground, item).head == filled
        assert peek(ground, item, min(filled, 2 * GRAIN)).head == filled


def test_a_small_hole_in_the_middle_is_content(ground: Ground) -> None:
    """Some filesystems keep zeros as holes: what is smaller than a block, and far from the end, ends nothing."""
    need_holes(ground.source)
    small = BLOCK_SIZE - GRAIN
    size = GRAIN + small + GRAIN + BLOCK_SIZE
    item = recording(ground, size, (0, GRAIN), (GRAIN + small, size))
    assert peek(ground, item).head == size
    # Several of them, too.
    size = 5 * GRAIN + BLOCK_SIZE
    item = recording(ground, size, (GRAIN, 2 * GRAIN), (3 * GRAIN, size))
    assert peek(ground, item).head == size


@pytest.mark.parametrize("hole", [BLOCK_SIZE, BLOCK_SIZE + GRAIN, 3 * BLOCK_SIZE])
def test_a_hole_of_a_block_or_more_is_where_it_ends(ground: Ground, hole: int) -> None:
    """A recorder that wrote its index at the end first has not written what lies between."""
    need_holes(ground.source)
    size = 2 * GRAIN + hole + 2 * BLOCK_SIZE
    item = recording(ground, size, (0, 2 * GRAIN), (2 * GRAIN + hole, size))
    assert peek(ground, item).head == 2 * GRAIN


@pytest.mark.parametrize(("behind", "is_content"), [(0, False), (BLOCK_SIZE - 2 * GRAIN, False), (BLOCK_SIZE, True)])
def test_a_small_hole_near_the_end_is_where_it_ends(ground: Ground, behind: int, is_content: bool) -> None:
    """The last block may be preallocated only partly: within a block of the end, every hole counts."""
    need_holes(ground.source)
    size = 3 * GRAIN + behind
    item = recording(ground, size, (0, GRAIN), (2 * GRAIN, size))
    assert peek(ground, item).head == (size if is_content else GRAIN)


def test_a_hole_that_begins_exactly_a_block_before_the_end_is_near_it(ground: Ground) -> None:
    """The border belongs to the end; one piece more belongs to the middle."""
    need_holes(ground.source)
    for more in (0, GRAIN):
        size = GRAIN + BLOCK_SIZE + more
        item = recording(ground, size, (0, GRAIN), (2 * GRAIN, size))
        assert peek(ground, item).head == (size if more else GRAIN)


def test_what_was_copied_is_not_looked_at_again(ground: Ground) -> None:
    """Holes below what was copied are settled; one that it ends in begins there, as far as anybody cares."""
    need_holes(ground.source)
    hole = 2 * BLOCK_SIZE
    item = recording(ground, 2 * GRAIN + hole, (0, GRAIN), (GRAIN + hole, 2 * GRAIN + hole))
    assert peek(ground, item, GRAIN).head == GRAIN
    assert peek(ground, item, 5 * GRAIN).head == 5 * GRAIN  # inside the hole
    assert peek(ground, item, GRAIN + hole).head == 2 * GRAIN + hole  # behind it
    item = recording(ground, 4 * GRAIN, (0, GRAIN))
    assert peek(ground, item, 2 * GRAIN).head == 2 * GRAIN  # inside the one at the end


@settings(max_examples=50)
@given(
    written=st.lists(st.booleans(), min_size=1, max_size=16),
    copied=st.integers(0, 17),
)
@example(written=[True, False, False, False, True, True, True, True, True], copied=0)
def test_the_head_is_the_first_hole_that_is_large_or_near_the_end(
    ground: Ground, written: list[bool], copied: int
) -> None:
    """Whatever has been written in whatever order, nothing below the head is a large hole, and it is no further on."""
    need_holes(ground.source)
    block = 4  # pieces
    size = len(written)
    head = size
    for n in range(copied, size):
        if not written[n] and (n == copied or written[n - 1]):
            length = [*written[n:], True].index(True)
            if length >= block or n >= size - block:
                head = n
                break
    item = recording(ground, size * GRAIN, *[(n * GRAIN, (n + 1) * GRAIN) for n in range(size) if written[n]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_HOLE", block * GRAIN)
        assert peek(ground, item, copied * GRAIN).head == head * GRAIN


@pytest.mark.parametrize("how", ["not known", "one hole, at the end", "shorter by then"])
def test_where_holes_cannot_be_asked_for_the_size_is_the_head(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A filesystem that cannot tell is one on which everything counts as written."""
    item = recording(ground, 2 * BLOCK_SIZE, (0, GRAIN))
    if how == "not known":
        failing(monkeypatch, "lseek", errno.EINVAL)
    elif how == "shorter by then":
        real = os.lseek

        def cut(fd: int, at: int, whence: int) -> int:
            os.truncate(ground.at_source(NAME), 0)
            return real(fd, at, whence)

        monkeypatch.setattr(os, "lseek", cut)
    else:
        monkeypatch.setattr(os, "lseek", lambda fd, at, whence: 2 * BLOCK_SIZE)
    assert peek(ground, item).head == 2 * BLOCK_SIZE


# --- comparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["digests", "pieces", "both"])
@pytest.mark.parametrize(
    ("offsets", "differing"),
    [
        ([], []),
        ([0], [0]),
        ([BLOCK - 1], [0]),
        ([BLOCK], [1]),
        ([LARGE - 1], [3]),  # the last, shorter one
        ([1, 2, 2 * BLOCK, LARGE - 1], [0, 2, 3]),
    ],
)
def test_blocks_that_are_not_what_was_copied_are_named(
    ground: Ground, offsets: list[int], differing: list[int], known: str
) -> None:
    """Those, as they are now, and no others, are to be written again: one wrong bit is enough."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    expected = spoiled(content, *offsets)
    assert compare(ground, item, 0, LARGE, expected, known) == differences_of(content, *differing)
    assert [message[0] for message in ground.told] == ["compared"] * 4
    assert sum(message[1] for message in ground.told) == LARGE


def test_compared_blocks_are_numbered_from_the_files_start(ground: Ground) -> None:
    """A span in the middle names its blocks as the whole file does, and looks at nothing else."""
    content = pattern(LARGE)
    now = spoiled(content, 0, 2 * BLOCK + 1, LARGE - 1)
    item = ground.add(NAME, now)
    assert compare(ground, item, BLOCK, 3 * BLOCK, content[BLOCK : 3 * BLOCK]) == differences_of(now, 2)
    assert compare(ground, item, 3 * BLOCK, LARGE, content[3 * BLOCK :]) == differences_of(now, 3)


def test_a_block_without_a_digest_always_differs(ground: Ground) -> None:
    """VOID is no block's digest, not even that of zeros."""
    content = bytes(2 * BLOCK)
    ground.add(NAME, content)
    copied = [(VOID, b""), (block_digest(bytes(BLOCK)), b"")]
    differences = source.compare_span(ground.ends.source, NAME, 0, 2 * BLOCK, copied, ground.told.append)
    assert differences == differences_of(content, 0)


def test_a_block_of_which_less_was_copied_differs(ground: Ground) -> None:
    """Its pieces are all right as far as they go: what is behind them is to be written too."""
    content = pattern(2 * BLOCK)
    ground.add(NAME, content)
    for length in (1, PIECE, BLOCK - PIECE, BLOCK - 1):
        copied = [(b"", pieces(content[:length])), (b"", pieces(content[BLOCK:]))]
        differences = source.compare_span(ground.ends.source, NAME, 0, 2 * BLOCK, copied, ground.told.append)
        assert differences == differences_of(content, 0)


def test_what_differs_can_be_copied_as_it_was_found(ground: Ground) -> None:
    """The pieces of a difference are those that ``copy_ranges`` asks the source for: together they make it equal."""
    former = pattern(LARGE)
    content = spoiled(former, 5, PIECE, 2 * BLOCK - 1, LARGE - 1)
    item = ground.add(NAME, content)
    put_partial(ground, item, former)
    ranges = [
        Range(at, min(PIECE, LARGE - at), digests[n : n + 16])
        for number, _, digests in compare(ground, item, 0, LARGE, former)
        for n, at in zip(range(0, len(digests), 16), range(number * BLOCK, LARGE, PIECE), strict=False)
    ]
    assert copy_again(ground, item, ranges) == []
    assert read(ground.partial(item)) == content
    assert settle(ground, item, ranges) == []
    assert compare(ground, item, 0, LARGE, read(ground.partial(item))) == []


@pytest.mark.parametrize("size", [0, BLOCK, 2 * BLOCK + 5, LARGE - 1])
def test_a_source_that_ends_too_early_is_no_difference_but_a_trouble(ground: Ground, size: int) -> None:
    """It is not the version that was to be compared: how far it goes is told."""
    content = pattern(LARGE)
    item = ground.add(NAME, content[:size])
    with pytest.raises(FileTrouble) as caught:
        compare(ground, item, 0, LARGE, content)
    assert caught.value.trouble[:5] == ("source", "read", NAME, size, None)


@pytest.mark.parametrize("what", ["gone", "a link", "unreadable", "read error"])
def test_a_source_that_cannot_be_compared_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Never is a block taken for equal that was not read."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    path = ground.at_source(NAME)
    match what:
        case "gone":
            os.unlink(path)
        case "a link":
            os.rename(path, path + b"~")
            os.symlink(NAME + b"~", path)
        case "unreadable":
            os.chmod(path, 0)
        case "read error":
            failing(monkeypatch, "preadv", errno.EIO, lambda fd, views, at: at == BLOCK)
    with ordinary_user(), pytest.raises(FileTrouble) as caught:
        compare(ground, item, 0, LARGE, content)
    expected: dict[str, tuple[str, int | None, int]] = {
        "gone": ("open", None, errno.ENOENT),
        "a link": ("open", None, errno.ELOOP),
        "unreadable": ("open", None, errno.EACCES),
        "read error": ("read", BLOCK, errno.EIO),
    }
    op, offset, number = expected[what]
    assert caught.value.trouble[:5] == ("source", op, NAME, offset, number)


@pytest.mark.parametrize("known", ["digests", "pieces"])
def test_what_was_compared_leaves_the_page_cache(ground: Ground, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """A large file pushes nothing out of memory; a block that differs stays there, as it will soon be read again."""
    content = pattern(LARGE)
    item = ground.add(NAME, content)
    calls: list[tuple[str, int, int]] = []

    def note(fd: int, at: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            calls.append((name_of(fd), at, length))

    noting(monkeypatch, "preadv", lambda fd, views, at: calls.append(("read", at, len(views[0]))))
    noting(monkeypatch, "posix_fadvise", note)
    expected = spoiled(content, 2 * BLOCK)[BLOCK:]
    assert compare(ground, item, BLOCK, LARGE, expected, known) == differences_of(content, 2)
    name, short = os.fsdecode(NAME), LARGE - 3 * BLOCK
    assert calls == [
        ("read", BLOCK, BLOCK),
        (name, BLOCK, BLOCK),
        ("read", 2 * BLOCK, BLOCK),
        ("read", 3 * BLOCK, short),
        (name, 3 * BLOCK, short),
    ]
