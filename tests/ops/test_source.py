"""Files that are being written: looked at, copied behind their writer, compared, and found under another name."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from files import (
    MANNER,
    Ground,
    failing,
    fingerprint,
    held,
    name_of,
    need_leases,
    need_xattrs,
    open_files,
    ordinary_user,
    read,
)
from support import files_of, pattern
from trioft.core import answers
from trioft.core.answers import Difference, Known, Peek, Range
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble
from trioft.core.model import BLOCK_SIZE, KIB, VOID, Ends, Fingerprint, Found, Item, Root, Verdict
from trioft.core.naming import partial_of
from trioft.movers.ops import linux, source, writers
from trioft.movers.ops.files import Away
from trioft.movers.ops.folder import growing

BLOCK = 4096  # what a block is here where files are copied or compared: see ``ground``
LARGE = 3 * BLOCK + 123  # four blocks, the last one short
PIECE = 1024  # and what a piece of it is
GRAIN = 64 * KIB  # filesystems have no smaller holes
NAME = b"recording"
NFS, FAT = 0x6969, 0x4D44
NOTHING = Known(0, b"")  # of a block that has not been copied before


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    for module in (source, growing):
        monkeypatch.setattr(module, "BLOCK_SIZE", BLOCK)
        monkeypatch.setattr(module, "PIECE_SIZE", PIECE)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as in a mover: a lease that somebody meets ends nobody
    try:
        with Ground(tmp_path) as place:
            yield place
            left = [name for name in open_files() if str(tmp_path) in name]
            assert left == [], "an operation left something open"
    finally:
        signal.signal(signal.SIGIO, before)


def spoiled(content: bytes, *offsets: int) -> bytes:
    changed = bytearray(content)
    for offset in offsets:
        changed[offset] ^= 1
    return bytes(changed)


def closing_fails(monkeypatch: pytest.MonkeyPatch, number: int, when: Callable[[str], bool]) -> None:
    """Let a close report an error, after it has closed, where *when* says so of the file's name."""
    real = os.close

    def late(fd: int) -> None:
        fails = when(name_of(fd))
        real(fd)
        if fails:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "close", late)


def noting(monkeypatch: pytest.MonkeyPatch, call: str, note: Callable[..., object]) -> list[Any]:
    """Return a list that gets what *note* makes of the arguments of each call of ``os``, once it has been done."""
    real = getattr(os, call)
    noted: list[Any] = []

    def then(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        noted.append(note(*args))
        return result

    monkeypatch.setattr(os, call, then)
    return noted


def partial_name(ground: Ground, item: Item) -> bytes:
    return os.path.relpath(ground.partial(item), os.fsencode(ground.dest))


def put_partial(ground: Ground, item: Item, content: bytes = b"") -> None:
    os.makedirs(os.path.dirname(ground.partial(item)), exist_ok=True)
    with open(ground.partial(item), "wb") as file:
        file.write(content)


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
        "locate": lambda: source.locate(ends.source, NAME, identity, True, tell),
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
        "finish_attributes": (lambda: growing.finish_attributes(ground.ends, item, partial, MANNER), None),
        "locate": (lambda: source.locate(ground.ends.source, b"old", identity, False, tell), NAME),
    }
    operation, answer = calls[call]
    with monkeypatch.context() as patch:
        closing_fails(patch, errno.EIO, lambda name: not name.endswith(".partial"))
        assert operation() == answer


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
    monkeypatch.setattr(os, "geteuid", lambda: user)
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


# --- copying behind the writer ---------------------------------------------------------------------------------------


def copy(ground: Ground, item: Item, start: int, end: int, *known: Known, final: bool = False) -> None:
    """Copy a span, of whose first blocks this is *known*."""
    told = [*known, *[NOTHING] * (len(range(start, end, BLOCK)) - len(known))]
    partial = partial_name(ground, item)
    growing.copy_growing(ground.ends, item, partial, start, end, told, final, ground.told.append)


def pieces(content: bytes) -> bytes:
    return b"".join(block_digest(content[at : at + PIECE]) for at in range(0, len(content), PIECE))


def known_of(content: bytes, start: int, length: int) -> Known:
    """Return what is known of the block at *start* once *length* bytes of it have been copied."""
    return Known(length, pieces(content[start : start + length]))


def blocks_told(ground: Ground) -> list[tuple[int, int, bytes, bytes]]:
    """Number, length, digest and pieces of each block."""
    return [message[1:] for message in ground.told if message[0] == "block"]


def blocks_of(content: bytes, start: int, end: int, *, final: bool = False) -> list[tuple[int, int, bytes, bytes]]:
    """Return what is to be told of these blocks: a digest only of those that are complete."""
    blocks = [(at // BLOCK, content[at : min(at + BLOCK, end)]) for at in range(start, end, BLOCK)]
    return [
        (number, len(block), block_digest(block) if final or len(block) == BLOCK else b"", pieces(block))
        for number, block in blocks
    ]


def ranges_of(content: bytes, *ranges: tuple[int, int]) -> list[Range]:
    return [Range(at, length, block_digest(content[at : at + length])) for at, length in ranges]


def bytes_told(ground: Ground) -> int:
    return sum(message[1] for message in ground.told if message[0] == "bytes")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where the partial was written, and how many bytes."""
    return noting(monkeypatch, "pwrite", lambda fd, view, at: (at, len(view)))


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
        if message[0] == "block":
            assert read(partial)[message[1] * BLOCK :] == content[message[1] * BLOCK :][: message[2]]
            told.append(message[1])

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
        closing_fails(patch, errno.EDQUOT, lambda name: name.endswith(".partial"))
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


# --- copying again what has changed ----------------------------------------------------------------------------------


def copy_again(ground: Ground, item: Item, ranges: list[Range]) -> list[int]:
    return growing.copy_ranges(ground.ends, item, partial_name(ground, item), ranges, ground.told.append)


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
            closing_fails(patch, errno.EDQUOT, lambda name: name.endswith(".partial"))
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
        closing_fails(patch, errno.EDQUOT, lambda name: name.endswith(".partial"))
        with pytest.raises(FileTrouble) as caught:
            copy_again(ground, item, ranges_of(content, *RANGES))
    assert caught.value.trouble[:5] == ("destination", "close", partial_name(ground, item), None, errno.EDQUOT)


# --- settling what was written again ---------------------------------------------------------------------------------


def settle(ground: Ground, item: Item, ranges: list[Range], verify: str = "readback") -> list[int]:
    partial = partial_name(ground, item)
    return growing.settle_ranges(ground.ends.destination, partial, ranges, verify, ground.told.append)


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
            closing_fails(patch, errno.EIO, lambda name: name.endswith(".partial"))
        elif call == "open":
            failing(patch, call, errno.EIO, lambda path, *_: path.endswith(b".partial"))
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


# --- comparing -------------------------------------------------------------------------------------------------------


def copied_of(content: bytes, known: str = "digests") -> list[tuple[bytes, bytes]]:
    """Return what is known of each block: its digest, the digests of its pieces, or both."""
    blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    return [
        (b"" if known == "pieces" else block_digest(block), b"" if known == "digests" else pieces(block))
        for block in blocks
    ]


def compare(
    ground: Ground, item: Item, start: int, end: int, expected: bytes, known: str = "digests"
) -> list[Difference]:
    copied = copied_of(expected, known)
    return source.compare_span(ground.ends.source, item.path, start, end, copied, ground.told.append)


def differences_of(content: bytes, *numbers: int) -> list[Difference]:
    """Return what is said of blocks that differ: what they hold in *content*."""
    blocks = [(number, content[number * BLOCK :][:BLOCK]) for number in numbers]
    return [Difference(number, block_digest(block), pieces(block)) for number, block in blocks]


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


# --- attributes ------------------------------------------------------------------------------------------------------


def finish(ground: Ground, item: Item, *, xattrs: bool = True) -> None:
    growing.finish_attributes(ground.ends, item, partial_name(ground, item), MANNER._replace(xattrs=xattrs))


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
            closing_fails(patch, number, lambda name: name.endswith(".partial"))
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


# --- another name ----------------------------------------------------------------------------------------------------


def locate(ground: Ground, item: Item, *, everywhere: bool = True) -> bytes | None:
    return source.locate(ground.ends.source, item.path, item.fingerprint[:2], everywhere, ground.told.append)


class Entry:
    """An entry of a folder, of which something is to be asked first."""

    def __init__(self, entry: os.DirEntry[str], ask: Callable[[os.DirEntry[str]], None]) -> None:
        self.entry, self.ask = entry, ask

    def __getattr__(self, name: str) -> Any:
        return getattr(self.entry, name)

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        self.ask(self.entry)
        return self.entry.stat(follow_symlinks=follow_symlinks)


def looking(monkeypatch: pytest.MonkeyPatch, error: Callable[[str], int]) -> None:
    """Let looking at an entry of a folder fail with what *error* says of its name, if it says anything."""
    real = os.scandir

    def ask(entry: os.DirEntry[str]) -> None:
        if number := error(entry.name):
            raise OSError(number, os.strerror(number))

    @contextlib.contextmanager
    def scandir(fd: int) -> Iterator[Iterator[Entry]]:
        with real(fd) as entries:
            yield (Entry(entry, ask) for entry in entries)

    monkeypatch.setattr(os, "scandir", scandir)


def rename(ground: Ground, old: bytes, new: bytes) -> None:
    os.makedirs(os.path.dirname(ground.at_source(new)), exist_ok=True)
    os.rename(ground.at_source(old), ground.at_source(new))


@pytest.mark.parametrize(
    "new",
    [
        b"x/b.mov",
        b"b.mov",
        b"y/b.mov",
        b"y/a.mov",
        b"x/y/z/b.mov",
        b"x/.hidden",
        b"x/a.mov.partial",
        b"y\xff/\xfe\x80",
        b"y/line\nbreak",
        b"y/" + b"n" * 255,
    ],
)
def test_a_file_that_was_renamed_is_found(ground: Ground, new: bytes) -> None:
    """In its folder, or, if it is to be found everywhere, above, below or elsewhere; whatever its name is made of."""
    for other in (b"x/c.mov", b"y/d.mov", b"e.mov"):
        ground.add(other)
    item = ground.add(b"x/a.mov")
    rename(ground, b"x/a.mov", new)
    assert locate(ground, item) == new
    beside = os.path.dirname(new) == b"x"
    assert locate(ground, item, everywhere=False) == (new if beside else None)


def test_a_file_of_the_topmost_folder_is_found(ground: Ground) -> None:
    """The source itself is a folder like any other."""
    item = ground.add(b"a.mov")
    assert locate(ground, item) == b"a.mov"  # it still has its name
    rename(ground, b"a.mov", b"b.mov")
    assert locate(ground, item) == b"b.mov"


def test_a_file_whose_folder_was_renamed_is_found(ground: Ground) -> None:
    """It has kept its own name, and its former folder is not there."""
    item = ground.add(b"x/y/a.mov")
    os.rename(ground.at_source(b"x"), ground.at_source(b"z"))
    assert locate(ground, item) == b"z/y/a.mov"


def test_a_file_that_is_gone_is_not_found(ground: Ground) -> None:
    """Another file under its name is not taken for it, nor is one with the same content."""
    item = ground.add(b"x/a.mov", b"content")
    rename(ground, b"x/a.mov", b"../away")
    ground.add(b"x/a.mov", b"content")
    ground.add(b"y/a.mov", b"content")
    assert locate(ground, item) is None


@pytest.mark.parametrize("which", [0, 1], ids=["device", "inode"])
def test_only_the_file_with_this_device_and_inode_is_found(ground: Ground, which: int) -> None:
    """Inode numbers are the same on many filesystems, and one source may have several of them below it."""
    item = ground.add(b"a")
    identity = list(item.fingerprint[:2])
    identity[which] += 1
    assert source.locate(ground.ends.source, b"a", (identity[0], identity[1]), True, ground.told.append) is None


def test_links_lead_nowhere(ground: Ground) -> None:
    """What has left the source is not found through a link: the file's, its own folder's or another's."""
    item = ground.add(b"x/a")
    elsewhere = ground.source.parent / "elsewhere"
    (ground.source / "x").rename(elsewhere)
    (ground.source / "x").symlink_to(elsewhere)
    (ground.source / "y").symlink_to(elsewhere)
    (ground.source / "a").symlink_to(elsewhere / "a")
    assert locate(ground, item) is None
    assert ("searched", b"y") not in ground.told


def test_its_own_folder_is_searched_first(ground: Ground) -> None:
    """A file is mostly renamed where it is: of two names, the one beside its former name is found."""
    item = ground.add(b"x/a")
    for other in (b"b", b"w/b", b"y/b"):
        ground.add(other)
        os.unlink(ground.at_source(other))
        os.link(ground.at_source(b"x/a"), ground.at_source(other))
    rename(ground, b"x/a", b"x/c")
    assert locate(ground, item) == b"x/c"
    assert ground.told == []  # no other folder was searched before


def test_each_folder_that_was_searched_is_told(ground: Ground) -> None:
    """A search through a million files is slow, not stalled."""
    item = ground.add(b"x/a")
    ground.add(b"y/z/b")
    os.unlink(ground.at_source(b"x/a"))
    assert locate(ground, item) is None
    assert {folder for _, folder in ground.told} == {b"", b"x", b"y", b"y/z"}
    assert {what for what, _ in ground.told} == {"searched"}


@pytest.mark.parametrize("folder", [b"", b"x/"])
def test_a_search_beside_a_file_looks_into_no_other_folder(ground: Ground, folder: bytes) -> None:
    """A source may hold a million files: who only asks about a rename does not have all of it read."""
    item = ground.add(folder + b"a")
    ground.add(folder + b"y/z/b")
    os.unlink(ground.at_source(item.path))
    assert locate(ground, item, everywhere=False) is None
    assert ground.told == [("searched", folder.rstrip(b"/"))]


def test_a_folder_that_may_not_be_read_does_not_end_the_search(ground: Ground) -> None:
    """It is left out, and the others are searched."""
    item = ground.add(b"x/a")
    for n in range(5):
        ground.add(b"closed %d/b" % n)
        os.chmod(ground.at_source(b"closed %d" % n), 0)
    rename(ground, b"x/a", b"y/a")
    try:
        with ordinary_user():
            assert locate(ground, item) == b"y/a"
    finally:
        for n in range(5):
            os.chmod(ground.at_source(b"closed %d" % n), 0o755)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("call", ["open", "scandir", "an entry"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EHOSTDOWN])
def test_a_folder_that_does_not_answer_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, number: int, everywhere: bool
) -> None:
    """Of a file that may be in it nobody can say that it is gone: what was copied of it would be thrown away."""
    item = ground.add(b"x/a")
    rename(ground, b"x/a", b"x/b")
    match call:
        case "open":
            failing(monkeypatch, "open", number, lambda path, *_: path == b"x")
        case "scandir":
            failing(monkeypatch, "scandir", number, lambda fd: name_of(fd) == "x")
        case "an entry":
            looking(monkeypatch, lambda name: number if name == "b" else 0)
    with pytest.raises(FileTrouble) as caught:
        locate(ground, item, everywhere=everywhere)
    assert caught.value.trouble[:5] == ("source", "read", b"x", None, number)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM])
def test_a_folder_that_is_gone_meanwhile_does_not_end_the_search(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Removed, replaced by a file, or closed to us since its parent was read: all others are searched."""
    item = ground.add(b"x/a")
    for n in range(5):
        ground.add(b"gone %d/b" % n)
    rename(ground, b"x/a", b"y/a")
    failing(monkeypatch, "open", number, lambda path, *_: path.startswith(b"gone") or path == b"x")
    assert locate(ground, item) == b"y/a"


@pytest.mark.parametrize("new", [b"x/e", b"x/y/e"], ids=["beside it", "below it"])
def test_an_entry_that_vanishes_while_it_is_looked_at_hides_no_other(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, new: bytes
) -> None:
    """Who renames a file again and again leaves names that are listed, and not there when they are looked at."""
    item = ground.add(b"x/a")
    for name in (b"x/b", b"x/c", b"x/d", new):
        os.makedirs(os.path.dirname(ground.at_source(name)), exist_ok=True)
        os.link(ground.at_source(b"x/a"), ground.at_source(name))
    looking(monkeypatch, lambda name: errno.ENOENT if name in "abcd" else 0)
    assert locate(ground, item) == new


# --- the partial under another name ----------------------------------------------------------------------------------


def adopt(ground: Ground, item: Item, new: bytes) -> bool | None:
    """Have *item*'s partial go on as that of *new*."""
    identity = item.fingerprint[:2]
    return growing.adopt(ground.ends, item.path, identity, partial_name(ground, item), partial_of(new, *identity))


def test_a_partial_goes_on_under_the_new_name(ground: Ground) -> None:
    """It is renamed, not copied: what there is of it is kept."""
    item = ground.add(b"x/a", LARGE)
    put_partial(ground, item, b"copied so far")
    inode = os.stat(ground.partial(item)).st_ino
    rename(ground, b"x/a", b"x/b")
    assert adopt(ground, item, b"x/b")
    assert files_of(ground.dest) == {partial_name(ground, ground.item(b"x/b")): b"copied so far"}
    assert os.stat(ground.partial(ground.item(b"x/b"))).st_ino == inode


@pytest.mark.parametrize(
    ("old", "new", "synced"),
    [
        (b"a", b"b", ["dest"]),
        (b"x/a", b"x/b", ["x"]),
        (b"x/a", b"b", ["dest", "x"]),
        (b"x/a", b"y/a", ["dest", "x", "y"]),  # y is new there
        (b"x/a", b"y/z/a", ["dest", "x", "y", "z"]),
        (b"x/a", b"x/z/a", ["x", "z"]),
    ],
)
def test_the_renamed_partial_is_found_again_after_a_power_cut(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes, synced: list[str]
) -> None:
    """Both folders are made durable once it has moved, and so is every folder that got a new one: promise 2."""
    item = ground.add(old)
    put_partial(ground, item)
    rename(ground, old, new)
    target = ground.partial(ground.item(new))
    noted = noting(monkeypatch, "fsync", lambda fd: (name_of(fd), os.path.exists(target)))
    assert adopt(ground, item, new)
    assert sorted(noted) == [(name, True) for name in synced]


def test_folders_that_are_missing_are_made_as_they_are_at_the_source(ground: Ground) -> None:
    """The new name may be in a folder that the destination does not have yet."""
    item = ground.add(b"a")
    put_partial(ground, item, b"copied so far")
    rename(ground, b"a", b"y/z/a")
    os.chmod(ground.at_source(b"y"), 0o750)
    os.chmod(ground.at_source(b"y/z"), 0o555)
    assert adopt(ground, item, b"y/z/a")
    assert files_of(ground.dest) == {partial_of(b"y/z/a", *item.fingerprint[:2]): b"copied so far"}
    assert stat.S_IMODE(os.stat(ground.at_dest(b"y")).st_mode) == 0o750
    assert stat.S_IMODE(os.stat(ground.at_dest(b"y/z")).st_mode) == 0o755


def test_a_file_that_still_has_its_old_name_keeps_its_partial(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has two names then, and each is a file of its own: nothing is touched."""
    item = ground.add(b"x/a")
    put_partial(ground, item, b"copied so far")
    os.link(ground.at_source(b"x/a"), ground.at_source(b"b"))
    synced = noting(monkeypatch, "fsync", name_of)
    assert adopt(ground, item, b"b") is False
    assert files_of(ground.dest) == {partial_name(ground, item): b"copied so far"}
    assert synced == []


@pytest.mark.parametrize("there", ["nothing", "another file", "a link to it", "no folder", "a file for a folder"])
def test_whatever_else_has_the_old_name_keeps_nothing(ground: Ground, there: str) -> None:
    """Only the very file that was copied has a claim on the partial."""
    item = ground.add(b"x/a")
    put_partial(ground, item, b"copied so far")
    rename(ground, b"x/a", b"b")
    match there:
        case "another file":
            ground.add(b"x/a")
        case "a link to it":
            os.symlink(ground.at_source(b"b"), ground.at_source(b"x/a"))
        case "no folder":
            os.rmdir(ground.at_source(b"x"))
        case "a file for a folder":
            os.rmdir(ground.at_source(b"x"))
            ground.add(b"x")
    assert adopt(ground, item, b"b")
    assert files_of(ground.dest) == {partial_of(b"b", *item.fingerprint[:2]): b"copied so far"}


@pytest.mark.parametrize("new", [b"b", b"y/b", b"x/y/z/b"])
@pytest.mark.parametrize("what", ["partial", "folder"])
def test_where_there_is_no_partial_nothing_is_adopted(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, what: str, new: bytes
) -> None:
    """It was finished, or removed, meanwhile: the file begins anew, no folder is made, and that is no trouble."""
    item = ground.add(b"x/a")
    if what == "partial":
        put_partial(ground, item)
        os.unlink(ground.partial(item))
    rename(ground, b"x/a", new)
    before = sorted(os.walk(ground.dest))
    synced = noting(monkeypatch, "fsync", name_of)
    assert adopt(ground, item, new) is None
    assert sorted(os.walk(ground.dest)) == before
    assert synced == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("call", "side", "path"),
    [
        ("stat", "source", b"x/a"),
        ("stat", "destination", b"x/a.partial"),
        ("mkdir", "destination", b"y"),
        ("rename", "destination", b"x/a.partial"),
    ],
)
def test_what_keeps_a_partial_from_being_adopted_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, side: str, path: bytes, number: int
) -> None:
    """It is told of the side, the operation and the path that it was about, and the partial is where it was."""
    item = ground.add(b"x/a")
    put_partial(ground, item, b"copied so far")
    rename(ground, b"x/a", b"y/a")
    partial = partial_name(ground, item)
    path = partial if path.endswith(b".partial") else path
    with monkeypatch.context() as patch:
        failing(patch, call, number, lambda name, *_: name == path)
        with pytest.raises(FileTrouble) as caught:
            adopt(ground, item, b"y/a")
    assert caught.value.trouble[:5] == (side, call, path, None, number)
    assert files_of(ground.dest) == {partial: b"copied so far"}


@pytest.mark.parametrize(
    ("call", "op", "number"),
    [("rename", "rename", errno.EIO), ("rename", "rename", errno.EACCES), ("fsync", "fsync", errno.EIO)],
)
def test_a_partial_that_cannot_be_renamed_is_a_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, op: str, number: int
) -> None:
    """Whether it has moved for good is not known: the destination's error is told."""
    item = ground.add(b"a")
    put_partial(ground, item)
    rename(ground, b"a", b"b")
    failing(monkeypatch, call, number)
    with pytest.raises(FileTrouble) as caught:
        adopt(ground, item, b"b")
    path = partial_name(ground, item) if call == "rename" else b""
    assert caught.value.trouble[:5] == ("destination", op, path, None, number)


def test_a_file_in_the_way_of_the_new_folder_is_a_trouble(ground: Ground) -> None:
    """What is there under a folder's name is not touched."""
    item = ground.add(b"a")
    put_partial(ground, item, b"copied so far")
    rename(ground, b"a", b"y/a")
    ground.old(b"y", b"a file")
    with pytest.raises(FileTrouble) as caught:
        adopt(ground, item, b"y/a")
    assert (caught.value.trouble.side, caught.value.trouble.errno) == ("destination", errno.ENOTDIR)
    assert files_of(ground.dest) == {partial_name(ground, item): b"copied so far", b"y": b"a file"}


def test_a_folder_that_cannot_be_made_durable_where_servers_cannot_is_no_trouble(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename is then as durable as the server makes it."""
    item = ground.add(b"a")
    put_partial(ground, item)
    rename(ground, b"a", b"b")
    failing(monkeypatch, "fsync", errno.EINVAL)
    assert adopt(ground, item, b"b")
