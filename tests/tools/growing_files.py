"""Files that are being written, for tests of the operations on them: small blocks, partials, what is known and told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from files import MANNER, Ground, name_of
from trioft.core.answers import Difference, Range
from trioft.core.digests import block_digest
from trioft.core.model import Item
from trioft.movers.ops import source
from trioft.movers.ops.folder import growing

BLOCK = 4096  # what a block is here where files are copied or compared: see ``small_blocks``
LARGE = 3 * BLOCK + 123  # four blocks, the last one short
PIECE = 1024  # and what a piece of it is
NAME = b"recording"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks and pieces are small where files that grow are copied or compared; and no signal ends this process."""
    for module in (source, growing):
        monkeypatch.setattr(module, "BLOCK_SIZE", BLOCK)
        monkeypatch.setattr(module, "PIECE_SIZE", PIECE)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as in a mover: a lease that somebody meets ends nobody
    yield
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


def pieces(content: bytes) -> bytes:
    return b"".join(block_digest(content[at : at + PIECE]) for at in range(0, len(content), PIECE))


def ranges_of(content: bytes, *ranges: tuple[int, int]) -> list[Range]:
    return [Range(at, length, block_digest(content[at : at + length])) for at, length in ranges]


def bytes_told(ground: Ground) -> int:
    return sum(message[1] for message in ground.told if message[0] == "bytes")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where the partial was written, and how many bytes."""
    return noting(monkeypatch, "pwrite", lambda fd, view, at: (at, len(view)))


def copy_again(ground: Ground, item: Item, ranges: list[Range]) -> list[int]:
    return growing.copy_ranges(ground.ends, item, partial_name(ground, item), ranges, ground.told.append)


def settle(ground: Ground, item: Item, ranges: list[Range], verify: str = "readback") -> list[int]:
    partial = partial_name(ground, item)
    return growing.settle_ranges(ground.ends.destination, partial, ranges, verify, ground.told.append)


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


def finish(ground: Ground, item: Item, *, xattrs: bool = True) -> None:
    growing.finish_attributes(ground.ends, item, partial_name(ground, item), MANNER._replace(xattrs=xattrs))
