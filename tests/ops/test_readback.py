"""Reading back what was delivered earlier."""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any

import pytest

from files import Ground, failing, name_of
from support import pattern
from trioft.core.answers import Piece, Seen
from trioft.core.digests import block_digest
from trioft.core.errors import FileTrouble
from trioft.core.model import BLOCK_SIZE
from trioft.movers.ops.folder.readback import read_delivered


def put(ground: Ground, name: bytes, content: bytes) -> os.stat_result:
    """Make a file at the destination."""
    with open(ground.at_dest(name), "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return os.stat(ground.at_dest(name))


def read(ground: Ground, *pieces: Piece) -> list[Seen]:
    return read_delivered(ground.ends.destination, list(pieces), ground.ends.source.path, ground.told.append)


def test_blocks_are_digested_as_far_as_the_file_goes(ground: Ground) -> None:
    """And what the file is now is told with them; where nothing is to be read, only that."""
    content = pattern(2 * BLOCK_SIZE + 5)
    status = put(ground, b"a", content)
    blocks = [block_digest(content[at : at + BLOCK_SIZE]) for at in range(0, len(content), BLOCK_SIZE)]
    (all_of_it, some, beyond, look) = read(
        ground,
        Piece(b"a", 0, len(content)),
        Piece(b"a", BLOCK_SIZE, 2 * BLOCK_SIZE),
        Piece(b"a", 2 * BLOCK_SIZE, 9 * BLOCK_SIZE),
        Piece(b"a", 0, 0),
    )
    assert [all_of_it.digests, some.digests] == [b"".join(blocks), blocks[1]]
    assert [beyond.digests, look.digests] == [blocks[2], b""]
    assert {seen[:2] for seen in (all_of_it, some, beyond, look)} == {(len(content), status.st_mtime_ns)}
    assert sum(count for _, count in ground.told) == len(content) + BLOCK_SIZE + 5


def test_what_is_read_comes_from_behind_the_page_cache(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk has lost meanwhile is found; and nothing that was read stays in memory."""
    put(ground, b"a", pattern(BLOCK_SIZE + 5))
    calls: list[tuple[Any, ...]] = []
    real_advise, real_read = os.posix_fadvise, os.preadv

    def advise(fd: int, *rest: Any) -> None:
        calls.append(rest)
        real_advise(fd, *rest)

    def note_read(fd: int, *rest: Any) -> int:
        if calls[-1] != ("read",):  # a block is read in pieces
            calls.append(("read",))
        return real_read(fd, *rest)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "preadv", note_read)
    read(ground, Piece(b"a", 0, BLOCK_SIZE + 5))
    dropped = os.POSIX_FADV_DONTNEED
    # To the ends of pages: of one that is asked for in part nothing would be dropped.
    assert calls[0] == (0, BLOCK_SIZE + mmap.PAGESIZE, dropped)
    assert calls[1:] == [("read",), (0, BLOCK_SIZE, dropped), ("read",), (BLOCK_SIZE, mmap.PAGESIZE, dropped)]


def test_one_file_that_cannot_be_read_does_not_hold_up_the_others(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why, with the place; what is no regular file is not there."""
    for name in (b"a", b"bad", b"z"):
        put(ground, name, b"1")
    os.mkdir(ground.at_dest(b"folder"))
    os.symlink(b"a", ground.at_dest(b"link"))
    failing(monkeypatch, "preadv", errno.EIO, lambda fd, *_: name_of(fd) == "bad")
    seen = read(ground, *(Piece(name, 0, 1) for name in (b"a", b"bad", b"folder", b"link", b"none", b"a/b", b"z")))
    assert [one.size for one in seen] == [1, None, None, None, None, None, 1]
    troubles = [one.trouble for one in seen if one.trouble is not None]
    assert [(trouble.op, trouble.path, trouble.offset, trouble.errno) for trouble in troubles] == [
        ("read", b"bad", 0, errno.EIO)
    ]


def test_a_destination_that_is_another_one_is_not_read(ground: Ground) -> None:
    """What lies in the folder under a mount point is nobody's copy."""
    other = ground.ends.destination._replace(dev=ground.ends.destination.dev + 1)
    with pytest.raises(FileTrouble, match="another filesystem is mounted"):
        read_delivered(other, [Piece(b"a", 0, 1)], b"/nowhere", ground.told.append)
