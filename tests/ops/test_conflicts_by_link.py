"""A name that is taken in the last moment, where no rename of the kernel replaces nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from files import MANNER, Ground, failing, publication, read
from support import PATIENCE, files_of, pattern
from trioft.core.model import BLOCK_SIZE, Verdict
from trioft.core.naming import is_own
from trioft.movers.ops import linux
from trioft.movers.ops.folder import large, publish


@pytest.fixture
def folder(ground: Ground) -> Iterator[int]:
    """The source, opened."""
    fd = os.open(ground.source, os.O_RDONLY)
    yield fd
    os.close(fd)


def _no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(name: str, *args: object) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(linux, "_call", cannot)


def test_a_link_whose_answer_was_lost_is_found_and_finished(
    ground: Ground, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may make the second name twice in its own eyes, or trioft be killed before it takes the first away."""
    _no_renameat2(monkeypatch)
    ground.add(b"old", b"content")
    os.link(ground.at_source(b"old"), ground.at_source(b"new"))
    linux.rename_noreplace(b"old", b"new", folder)
    assert files_of(ground.source) == {b"new": b"content"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_links_the_name_is_looked_at_by_one_at_a_time(
    ground: Ground, folder: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Two movers of this machine that both find the name free would otherwise both take it."""
    _no_renameat2(monkeypatch)
    failing(monkeypatch, "link", number)
    for name in (b"a", b"b"):
        ground.add(name, name)
    fcntl.flock(folder, fcntl.LOCK_EX)
    errors: list[Any] = []

    def rename() -> None:
        another = os.open(ground.source, os.O_RDONLY)
        try:
            linux.rename_noreplace(b"a", b"new", another)
        except OSError as error:
            errors.append(error)
        finally:
            os.close(another)

    thread = threading.Thread(target=rename)
    thread.start()
    os.rename(ground.at_source(b"b"), ground.at_source(b"new"))
    fcntl.flock(folder, fcntl.LOCK_UN)
    thread.join(PATIENCE)
    assert isinstance(errors[0], FileExistsError)
    assert files_of(ground.source) == {b"a": b"a", b"new": b"b"}


def test_an_error_of_the_link_that_is_about_something_else_is_told(
    ground: Ground, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server answers that is away does not make trioft rename in a less safe way."""
    _no_renameat2(monkeypatch)
    failing(monkeypatch, "link", errno.ESTALE)
    ground.add(b"a")
    with pytest.raises(OSError, match="Stale") as caught:
        linux.rename_noreplace(b"a", b"new", folder)
    assert caught.value.errno == errno.ESTALE
    assert not os.path.exists(ground.at_source(b"new"))


def test_a_partial_that_has_a_final_name_too_is_not_written_to(ground: Ground) -> None:
    """Killed between the two halves of giving a name, and the source has changed since: what is finished stays so."""
    content = pattern(BLOCK_SIZE + 1000)
    item = ground.add(b"a", content)
    with open(ground.partial(item), "wb") as file:
        file.write(content)
    os.link(ground.partial(item), ground.at_dest(b"a"))
    with open(ground.at_source(b"a"), "ab") as file:
        file.write(b"more")
    prepared = large.prepare(ground.ends, ground.item(b"a"), None, MANNER, False, ground.told.append)
    assert prepared.offset == 0  # type: ignore[union-attr]
    assert os.stat(ground.partial(item)).st_size == 0
    assert read(ground.at_dest(b"a")) == content


def test_an_old_file_that_was_moved_aside_does_not_come_back_over_a_newer_one(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses to replace it, and then the rename fails for somebody else's file: neither is lost."""
    item = ground.add(b"a", b"ours")
    with open(ground.partial(item), "wb") as file:
        file.write(b"ours")
    ground.old(b"a", b"old")
    real = os.rename

    def rename(old: bytes, new: bytes, **how: int) -> None:
        if is_own(old):
            raise OSError(errno.EACCES, "")
        real(old, new, **how)
        if old == b"a":  # aside
            ground.old(b"a", b"faster")

    monkeypatch.setattr(os, "rename", rename)
    (result,) = publish.publish(ground.ends, [publication(item)], MANNER)
    assert result.verdict == Verdict.TROUBLE
    assert sorted(files_of(ground.dest).values()) == [b"faster", b"old", b"ours"]
    assert read(ground.at_dest(b"a")) == b"faster"


def test_of_threads_that_look_and_rename_one_gets_the_name(
    ground: Ground, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a descriptor, whose lock keeps processes apart only: each waits until the other has renamed."""
    _no_renameat2(monkeypatch)
    failing(monkeypatch, "link", errno.EPERM)
    real, looked = os.stat, threading.Barrier(8)

    def slow(*args: Any, **kwargs: Any) -> os.stat_result:
        with contextlib.suppress(threading.BrokenBarrierError):
            looked.wait(0.02)  # others look at the same time, if anything lets them
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "stat", slow)
    names = [b"%d" % n for n in range(8)]
    for name in names:
        ground.add(name, name)
    taken: list[bytes] = []

    def rename(name: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            linux.rename_noreplace(name, b"new", folder)
            taken.append(name)

    threads = [threading.Thread(target=rename, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    monkeypatch.undo()
    assert len(taken) == 1
    assert len(files_of(ground.source)) == 8
