"""The seal: what was verified is what gets the final name, and what a source is removed for."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from files import MANNER, Ground, failing, publication, read
from support import files_of, pattern
from trioft.core.answers import Prepared, Sealed
from trioft.core.errors import SEAL, FileTrouble
from trioft.core.model import BLOCK_SIZE, Fingerprint, Item, Manner, Result, Verdict
from trioft.core.naming import partial_for
from trioft.movers.ops import beneath, linux
from trioft.movers.ops.folder import bundle, large, partials, publish, seals

SIZE = 2 * BLOCK_SIZE + 5
REMOVING = MANNER._replace(prove_existing=True)


def need_steady(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        if linux.filesystem_magic(fd) not in linux.STEADY:
            pytest.skip("the filesystem does not tell of each change")
    finally:
        os.close(fd)


def change(path: bytes, at: int = 0, *, same_times: bool = True) -> None:
    """Change one byte, as a virus scanner does that cleans: the times of the content are set back."""
    was = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    if same_times:
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def sealed_by(told: list[object]) -> Fingerprint | None:
    return next((message.seal for message in reversed(told) if isinstance(message, Sealed)), None)


def written(ground: Ground, *items: Item, manner: Manner = MANNER) -> list[Result]:
    return bundle.write_bundle(ground.ends, [*items], manner, lambda step: None)


def published(ground: Ground, item: Item, result: Result, manner: Manner = MANNER) -> Result:
    its = publication(item)._replace(seal=result.seal, digest=result.digest)
    (answer,) = publish.publish(ground.ends, [its], manner)
    return answer


@pytest.mark.parametrize("same_times", [True, False])
def test_a_partial_that_is_changed_after_its_read_back_gets_no_name(ground: Ground, same_times: bool) -> None:
    """Whatever its times say: what is in doubt is read again, and is not what was written."""
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item)
    need_steady(ground.dest)
    change(ground.partial(item), same_times=same_times)
    answer = published(ground, item, result)
    assert answer.trouble is not None
    assert (answer.trouble.op, answer.trouble.errno) == (SEAL, None)
    assert "somebody else has changed this partial" in answer.trouble.text
    assert b"a" not in files_of(ground.dest)


def test_a_partial_that_was_only_touched_gets_its_name(ground: Ground) -> None:
    """It is read again, and holds what it did."""
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item)
    os.utime(ground.partial(item))
    os.chmod(ground.partial(item), 0o644)
    answer = published(ground, item, result)
    assert (answer.verdict, answer.target) == (Verdict.PUBLISHED, b"a")
    assert files_of(ground.dest) == {b"a": b"content"}


def test_without_a_digest_nothing_can_be_read_again(ground: Ground) -> None:
    """At level `size` a partial that somebody has changed is copied once more."""
    need_steady(ground.dest)
    manner = MANNER._replace(verify="size")
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item, manner=manner)
    change(ground.partial(item))
    assert published(ground, item, result, manner).verdict == Verdict.TROUBLE


def test_where_times_are_a_servers_own_size_and_time_have_to_do(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inodes and ctimes of a network filesystem say nothing: another time is read again, the same one is believed."""
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: 0x6969)
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item)
    assert result.seal is not None
    other = result._replace(seal=result.seal._replace(ino=1, ctime_ns=1))
    change(ground.partial(item), same_times=False)
    assert published(ground, item, other).verdict == Verdict.TROUBLE
    change(ground.partial(item), same_times=False)  # as it was
    assert published(ground, item, other).verdict == Verdict.PUBLISHED


@pytest.fixture
def no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing keeps others from a partial that gets its name."""
    monkeypatch.setattr(publish, "held_still", lambda dst, name: contextlib.nullcontext())


def interfering(monkeypatch: pytest.MonkeyPatch, module: object, call: str, work: Callable[[], object]) -> list[str]:
    """Have *work* done before each *call*; return a list of the calls."""
    real, calls = getattr(module, call), list[str]()

    def both(*arguments: object, **more: object) -> object:
        calls.append(call)
        work()
        return real(*arguments, **more)

    monkeypatch.setattr(module, call, both)
    return calls


@pytest.mark.usefixtures("no_leases")
def test_what_is_changed_in_the_last_moment_is_seen_by_its_time(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the seal and the rename, whoever writes sets the time anew."""
    need_steady(ground.dest)
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item)
    real = os.utime

    def utime(*arguments: object, **more: object) -> None:
        real(*arguments, **more)  # type: ignore[arg-type]
        monkeypatch.undo()
        change(ground.partial(item), same_times=False)

    monkeypatch.setattr(os, "utime", utime)
    assert published(ground, item, result).verdict == Verdict.TROUBLE
    assert b"a" not in files_of(ground.dest)


@pytest.mark.usefixtures("no_leases")
@pytest.mark.parametrize("somebody_writes", [True, False])
def test_a_time_that_the_destination_cannot_hold_is_no_change(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, somebody_writes: bool
) -> None:
    """It makes the same of it each time: an ext4 with small inodes knows none after 2038. A write sets another one."""
    need_steady(ground.dest)
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item)
    real, last = os.utime, 2**31 - 1
    asked: list[tuple[int, int]] = []

    def utime(name: bytes, *, ns: tuple[int, int], **more: Any) -> None:
        real(name, ns=(last * 10**9, last * 10**9), **more)
        asked.append(ns)
        if somebody_writes and len(asked) == 1:
            with open(ground.partial(item), "r+b") as file:
                file.write(b"CONTENT")

    monkeypatch.setattr(os, "utime", utime)
    answer = published(ground, item, result)
    assert answer.verdict == (Verdict.TROUBLE if somebody_writes else Verdict.PUBLISHED)
    assert (b"a" in files_of(ground.dest)) != somebody_writes
    assert {modified for _, modified in asked} == {item.fingerprint.mtime_ns}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EBUSY])
def test_a_partial_whose_times_cannot_be_set_is_not_sealed(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What passes, or is to be told, is not passed over: only a filesystem that never sets any is done without."""
    item = ground.add(b"a", b"content")
    written(ground, item)
    failing(monkeypatch, "utime", number)
    with pytest.raises(FileTrouble) as caught:
        seals.seal(ground.ends.destination, partial_for(item), 1)
    assert caught.value.trouble[:5] == ("destination", "utimens", partial_for(item), None, number)
    monkeypatch.undo()
    failing(monkeypatch, "utime", errno.EPERM)
    assert seals.seal(ground.ends.destination, partial_for(item), 1).size == len(b"content")


RENAMES = {"overwrite": "rename", "rename": "rename_noreplace"}


@pytest.mark.usefixtures("no_leases")
@pytest.mark.parametrize("policy", [*RENAMES])
def test_what_is_changed_between_the_last_look_and_the_rename_does_not_keep_its_name(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """It is a partial again, which is compared anew: no wrong byte stays under a final name, and no source goes."""
    need_steady(ground.dest)
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item)
    partial = ground.partial(item)

    def interfere() -> None:
        if os.path.exists(partial):
            change(partial, same_times=False)

    interfering(monkeypatch, beneath, RENAMES[policy], interfere)
    its = publication(item, policy)._replace(seal=result.seal, digest=result.digest)
    (answer,) = publish.publish(ground.ends, [its], MANNER)
    assert answer.trouble is not None
    assert (answer.verdict, answer.trouble.op) == (Verdict.TROUBLE, SEAL)
    assert [*files_of(ground.dest)] == [os.path.relpath(partial, os.fsencode(ground.dest))]


@pytest.mark.parametrize("policy", [*RENAMES])
def test_nobody_begins_to_write_to_a_partial_that_is_getting_its_name(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """From the look at its seal to its name; also what was read again then. Who opens it for writing has to wait."""
    need_steady(ground.dest)
    item = ground.add(b"a", b"content")
    (result,) = written(ground, item)
    os.utime(ground.partial(item))
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as in a mover: it tells that somebody waits

    def interfere() -> None:
        with pytest.raises(BlockingIOError):
            os.open(ground.partial(item), os.O_WRONLY | os.O_NONBLOCK)

    utimes = interfering(monkeypatch, beneath, "utime", interfere)
    renames = interfering(monkeypatch, beneath, RENAMES[policy], interfere)
    its = publication(item, policy)._replace(seal=result.seal, digest=result.digest)
    try:
        (answer,) = publish.publish(ground.ends, [its], MANNER)
    finally:
        signal.signal(signal.SIGIO, before)
    assert (answer.verdict, utimes, renames) == (Verdict.PUBLISHED, ["utime"], [RENAMES[policy]])
    with open(ground.at_dest(b"a"), "r+b"):
        pass  # nothing is held any more


def test_a_copy_that_was_changed_under_its_final_name_is_not_what_was_sealed(ground: Ground) -> None:
    """What is looked at before a source goes: there, the same file, unchanged, or else read again."""
    items = [ground.add(b"%d" % n, b"content %d" % n) for n in range(5)]
    copies = []
    for item, result in zip(items, written(ground, *items), strict=True):
        answer = published(ground, item, result, REMOVING)
        assert answer.seal is not None
        copies.append((answer.target, answer.seal, result.digest))
    change(ground.at_dest(b"1"))
    os.unlink(ground.at_dest(b"2"))
    os.utime(ground.at_dest(b"3"))
    with open(ground.at_dest(b"4"), "ab") as file:
        file.write(b"+")
    need_steady(ground.dest)
    assert seals.are_sealed(ground.ends.destination, copies, lambda step: None) == [True, False, False, True, False]


# --- while it is copied -----------------------------------------------------------------------------------------------


def begun(ground: Ground) -> tuple[Item, list[object]]:
    """Return a large file whose partial is prepared, and what was told."""
    need_steady(ground.dest)
    item = ground.add(b"a", pattern(SIZE))
    told: list[object] = []
    prepared = large.prepare(ground.ends, item, None, MANNER, False, told.append)
    assert prepared == Prepared(0, b"", prepared.closed) if isinstance(prepared, Prepared) else False
    return item, told


def test_spans_follow_one_another_where_nobody_else_writes(ground: Ground) -> None:
    """Each begins with what the one before has left."""
    item, told = begun(ground)
    for start in (0, BLOCK_SIZE, 2 * BLOCK_SIZE):
        seal = sealed_by(told)
        assert seal is not None
        end = min(SIZE, start + BLOCK_SIZE)
        its = item._replace(seal=seal)
        large.copy_span(ground.ends, its, partial_for(item), start, end, MANNER, told.append)
    assert read(ground.partial(item)) == pattern(SIZE)
    assert published(ground, item, Result(Verdict.WRITTEN, seal=sealed_by(told))).verdict == Verdict.PUBLISHED


def test_a_change_between_two_spans_is_found(ground: Ground) -> None:
    """Also of what was read back long ago, and with the times set back."""
    item, told = begun(ground)
    its = item._replace(seal=sealed_by(told))
    large.copy_span(ground.ends, its, partial_for(item), 0, BLOCK_SIZE, MANNER, told.append)
    change(ground.partial(item))
    its = item._replace(seal=sealed_by(told))
    with pytest.raises(FileTrouble, match="somebody else has changed this partial"):
        large.copy_span(ground.ends, its, partial_for(item), BLOCK_SIZE, SIZE, MANNER, told.append)


def test_a_change_in_the_middle_of_a_span_is_found(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each write of its own, trioft looks whether the last one was its own too."""
    item, told = begun(ground)
    real, count = partials.alone, 0

    @contextlib.contextmanager
    def alone(fd: int) -> Iterator[None]:
        nonlocal count
        with real(fd):
            yield
        count += 1
        if count == 7:
            change(ground.partial(item))

    monkeypatch.setattr(partials, "alone", alone)
    its = item._replace(seal=sealed_by(told))
    with pytest.raises(FileTrouble, match="somebody else has changed this partial"):
        large.copy_span(ground.ends, its, partial_for(item), 0, SIZE, MANNER, told.append)
    assert count == 7


def test_nobody_writes_in_the_middle_of_a_write(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another one wrote then would pass for trioft's own: who opens the partial for that has to wait."""
    item, told = begun(ground)

    def interfere() -> None:
        with pytest.raises(BlockingIOError):
            os.open(ground.partial(item), os.O_RDWR | os.O_NONBLOCK)

    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as in a mover: it tells that somebody waits
    writes = interfering(monkeypatch, partials, "_write_all", interfere)
    its = item._replace(seal=sealed_by(told))
    try:
        large.copy_span(ground.ends, its, partial_for(item), 0, SIZE, MANNER, told.append)
    finally:
        signal.signal(signal.SIGIO, before)
    assert writes
    with open(ground.partial(item), "r+b"):
        pass  # nothing is held any more


def test_the_checkpoint_of_a_partial_is_not_prepared_while_somebody_changes_it(ground: Ground) -> None:
    """What is compared at the start is watched too."""
    item, told = begun(ground)
    large.copy_span(ground.ends, item, partial_for(item), 0, SIZE, MANNER, told.append)
    steps = 0

    def tell(message: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            change(ground.partial(item))

    with pytest.raises(FileTrouble, match="somebody else has changed this partial"):
        large.prepare(ground.ends, item, None, MANNER, False, tell)
