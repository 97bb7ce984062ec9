"""Files that are copied as they are, for tests of bundles and of large files."""

from __future__ import annotations

import os
from typing import Any

import pytest

from files import MANNER, Ground, name_of
from trioft.core.digests import block_digest
from trioft.core.model import BLOCK_SIZE, Item, Result
from trioft.movers.ops.folder import bundle as bundle_module


def digests(content: bytes) -> bytes:
    return b"".join(block_digest(content[at : at + BLOCK_SIZE]) for at in range(0, len(content), BLOCK_SIZE))


def bundle(ground: Ground, items: list[Item], **manner: Any) -> list[Result]:
    return bundle_module.write_bundle(ground.ends, items, MANNER._replace(**manner), ground.told.append)


def verdicts(results: list[Result]) -> list[str]:
    return [str(result.verdict) for result in results]


def spoiling(monkeypatch: pytest.MonkeyPatch, name: bytes, offset: int = 0) -> None:
    """Let the disk lose a bit of the partial of *name* as soon as it has been made durable, before it is read back."""
    real = os.posix_fadvise
    done = False

    def spoil(fd: int, start: int, length: int, advice: int) -> None:
        nonlocal done
        if advice == os.POSIX_FADV_DONTNEED and name_of(fd).startswith(os.fsdecode(name) + ".") and not done:
            done = True
            os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1]), offset)
            os.fsync(fd)
        real(fd, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", spoil)
