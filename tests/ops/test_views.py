"""Whether the destination is another view of the source: what is made at one end appears at the other."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from files import Ground
from support import files_of, mounted
from trioft.core.naming import is_probe
from trioft.movers.ops import beneath, slate
from trioft.movers.ops.folder import views

UNIQUE = b"0123456789abcdef01234567"


def find_view(ground: Ground, *left_out: bytes, by_source: bool = True) -> str | None:
    return views.find_view(ground.ends, by_source, UNIQUE, [*left_out])


def noted(monkeypatch: pytest.MonkeyPatch, then: Callable[[bytes], None] = lambda path: None) -> list[bytes]:
    """Return the paths of which a status is asked from now on, each after *then*."""
    asked: list[bytes] = []
    real = beneath.stat_of

    def stat_of(path: bytes, *, dir_fd: int) -> os.stat_result:
        asked.append(path)
        then(path)
        return real(path, dir_fd=dir_fd)

    monkeypatch.setattr(beneath, "stat_of", stat_of)
    return asked


@pytest.mark.parametrize("by_source", [True, False])
def test_an_attempt_that_is_cut_short_leaves_nothing_behind_the_next_one(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, by_source: bool
) -> None:
    """At either end: its file has the same name, and is not taken for what the other end shows."""
    (ground.source / "folder").mkdir()
    (ground.dest / "folder").mkdir()
    with monkeypatch.context() as cut:
        cut.setattr(beneath, "unlink", lambda *_, **__: None)
        assert find_view(ground, by_source=by_source) is None
    left = {*files_of(ground.dest), *files_of(ground.source)}
    assert len(left) == (2 if by_source else 1)
    assert all(is_probe(path, 0) for path in left)
    assert find_view(ground, by_source=by_source) is None
    assert files_of(ground.dest) == files_of(ground.source) == {}


def test_what_a_probe_leaves_is_known_in_every_folder() -> None:
    """The sweeper removes it; not what only begins with such a folder."""
    assert is_probe(b"x/y/.trioft-probe-view-0", 0)
    assert not is_probe(b".trioft-probe-view-0/x", 0)


def test_a_folder_that_does_not_answer_is_left_out(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only at the source, and only that one; before another is looked at, the slate says which."""
    for folder in ("a", "b"):
        (ground.source / folder).mkdir()
        (ground.dest / folder).mkdir()
    seen: list[bytes] = []
    monkeypatch.setattr(views, "look_at", seen.append)
    asked = noted(monkeypatch, lambda path: seen.append(b"stat " + path.split(b"/")[0]))
    assert find_view(ground, b"b", by_source=False) is None
    assert [os.path.dirname(path) for path in asked] == [b"", b"a"]
    at = seen.index(b"stat a")
    assert seen[at - 1] == b"a"
    assert b"b" not in seen
    assert seen[-1] == b""
    asked.clear()
    assert find_view(ground, b"b") is None
    assert sorted(os.path.dirname(path) for path in asked) == [b"", b"", b"a", b"a", b"b"]


def test_the_slate_names_the_folder_that_hangs(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that hangs cannot say where."""
    (ground.source / "b").mkdir()
    monkeypatch.setattr(slate, "_memory", memory := bytearray(slate._SIZE))
    said: list[bytes] = []

    def read(path: bytes) -> None:
        length = int.from_bytes(memory[slate._LENGTH : slate._PATH], "little")
        said.append(bytes(memory[slate._PATH : slate._PATH + length]))

    noted(monkeypatch, read)
    assert find_view(ground) is None
    assert said == [b"", b"b", b""]


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO])
def test_a_folder_of_the_source_that_is_dead_keeps_nobody_out(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The scan tells of it. The source itself has to answer."""
    (ground.source / "b").mkdir()

    def fail(path: bytes) -> None:
        if path.startswith(b"b/"):
            raise OSError(number, os.strerror(number))

    asked = noted(monkeypatch, fail)
    assert find_view(ground, by_source=False) is None
    assert [os.path.dirname(path) for path in asked] == [b"", b"b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_view_in_a_folder_is_found_unless_that_is_left_out(ground: Ground) -> None:
    """It says where."""
    (ground.source / "b").mkdir()
    with mounted(ground.dest, ground.source / "b", "--bind"):
        assert find_view(ground) == "what is written at the destination appears at the source, in its folder b"
        assert find_view(ground, b"b") is None
    assert files_of(ground.dest) == {}
