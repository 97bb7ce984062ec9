"""A delivered source goes in three steps: aside, asked once more, and away; or it is put back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from files import Ground, held, need_leases
from support import files_of
from trioft.core.model import Item, Result, Verdict
from trioft.movers.ops import removal, writers


def remove(ground: Ground, *items: Item, archive: Path | None = None) -> list[Result]:
    delivered = [(item.path, item.fingerprint) for item in items]
    return removal.remove_sources(ground.ends.source, delivered, None if archive is None else os.fsencode(archive))


def going(ground: Ground) -> list[bytes]:
    """Return the folders of files on their way out, relative to the source."""
    found = []
    for folder, below, _ in os.walk(os.fsencode(ground.source)):
        found += [os.path.relpath(os.path.join(folder, name), os.fsencode(ground.source)) for name in below]
    return [path for path in found if os.path.basename(path).startswith(b".trioft-going-")]


@pytest.fixture(params=["delete", "archive"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Both ways in which a source can go."""
    return tmp_path / "done" if request.param == "archive" else None


class At:
    """Does something once, right after the first or the second question for a writer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: int, work: Any) -> None:
        self.asked = 0
        real = writers.ask_lease

        def ask(fd: int, device: int) -> str:
            self.asked += 1
            if self.asked == when == 2:
                work()
            answer = real(fd, device)
            if self.asked == when == 1:
                work()
            return answer

        monkeypatch.setattr(writers, "ask_lease", ask)


def test_what_is_appended_after_the_first_look_is_not_lost(
    ground: Ground, archive: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened the file by its name before it went aside is found by the second look: promise 3."""
    need_leases(ground.source)
    item = ground.add(b"x/log", b"line\n")
    real = os.rename

    def append() -> None:
        with open(ground.at_source(b"x/log"), "ab") as file:
            file.write(b"late\n")

    At(monkeypatch, 1, append)
    (result,) = remove(ground, item, archive=archive)
    assert result.verdict == Verdict.CHANGED
    assert files_of(ground.source) == {b"x/log": b"line\nlate\n"}
    assert going(ground) == []
    assert real is os.rename


def test_a_writer_that_has_it_open_when_it_goes_aside_keeps_it(
    ground: Ground, archive: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened the file in the last moment: the file is put back under its name, and what it writes is there."""
    need_leases(ground.source)
    item = ground.add(b"x/log", b"line\n")
    (aside,) = [removal.going_for(b"x/log") + b"/log"]
    opened: list[Any] = []

    def hold() -> None:
        opened.append(held(ground.at_source(aside), "writer"))
        opened[0].__enter__()

    At(monkeypatch, 2, hold)
    (result,) = remove(ground, item, archive=archive)
    opened[0].__exit__(None, None, None)
    assert (result.verdict, result.note) == (Verdict.BUSY, "")
    assert files_of(ground.source) == {b"x/log": b"line\n"}
    assert going(ground) == []


def test_a_newcomer_keeps_the_name_and_both_files_stay(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has to be put back replaces nothing: it gets a number, and that is said."""
    need_leases(ground.source)
    item = ground.add(b"x/take.mov", b"content")
    aside = removal.going_for(b"x/take.mov") + b"/take.mov"

    def replace() -> None:
        ground.add(b"x/take.mov", b"newcomer")
        with open(ground.at_source(aside), "ab") as file:
            file.write(b"+")

    At(monkeypatch, 2, replace)
    (result,) = remove(ground, item)
    assert result.verdict == Verdict.CHANGED
    assert result.note == "it is called x/take_1.mov now, as another file has its name"
    assert files_of(ground.source) == {b"x/take.mov": b"newcomer", b"x/take_1.mov": b"content+"}


def test_a_call_that_was_killed_in_between_is_done_again(ground: Ground, archive: Path | None) -> None:
    """What lies aside already goes from there; once it has gone, it is gone."""
    need_leases(ground.source)
    item = ground.add(b"x/take", b"content")
    aside = removal.going_for(b"x/take")
    os.mkdir(ground.at_source(aside))
    os.rename(ground.at_source(b"x/take"), ground.at_source(aside + b"/take"))
    assert [result.verdict for result in remove(ground, item, archive=archive)] == [Verdict.REMOVED]
    assert going(ground) == []
    assert files_of(ground.source) == {}
    assert archive is None or files_of(archive) == {b"x/take": b"content"}
    assert [result.verdict for result in remove(ground, item, archive=archive)] == [Verdict.GONE]


def test_what_another_run_has_left_aside_is_kept(ground: Ground) -> None:
    """A file of the same name went aside earlier, and its run was killed: it gets a name of its own back."""
    need_leases(ground.source)
    item = ground.add(b"take", b"second")
    aside = removal.going_for(b"take")
    ground.add(aside + b"/take", b"first")
    assert [result.verdict for result in remove(ground, item)] == [Verdict.REMOVED]
    assert files_of(ground.source) == {b"take_1": b"first"}


def test_put_back_replaces_nothing_and_leaves_no_folder(ground: Ground) -> None:
    """A start gives everything its name again; where that is taken, a number."""
    for name in (b"x/free", b"x/taken"):
        ground.add(removal.going_for(name) + b"/" + os.path.basename(name), b"old " + name)
    ground.add(b"x/taken", b"new")
    names = removal.put_back(ground.ends.source, going(ground))
    assert sorted(names) == [b"x/free", b"x/taken_1"]
    assert files_of(ground.source) == {b"x/free": b"old x/free", b"x/taken": b"new", b"x/taken_1": b"old x/taken"}
    assert going(ground) == []


def test_what_trioft_has_not_taken_aside_is_not_put_back(ground: Ground) -> None:
    """The name of the folder says which file it is for: any other in it is somebody else's."""
    aside = removal.going_for(b"x/take")
    ground.add(aside + b"/take", b"1")
    ground.add(aside + b"/photo.jpg", b"2")
    ground.add(b"x/.trioft-going-holiday/take", b"3")
    assert removal.put_back(ground.ends.source, going(ground)) == [b"x/take"]
    assert files_of(ground.source) == {
        b"x/take": b"1",
        aside + b"/photo.jpg": b"2",
        b"x/.trioft-going-holiday/take": b"3",
    }


def test_what_is_just_being_removed_is_not_put_back(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that passes by meanwhile leaves it alone."""
    need_leases(ground.source)
    item = ground.add(b"take")
    seen: list[list[bytes]] = []

    def scan() -> None:
        seen.append(removal.put_back(ground.ends.source, going(ground)))
        assert going(ground)

    At(monkeypatch, 2, scan)
    assert [result.verdict for result in remove(ground, item)] == [Verdict.REMOVED]
    assert seen == [[]]


@pytest.mark.parametrize("count", [2, 10])
def test_all_delivered_names_of_a_file_go_at_once(ground: Ground, archive: Path | None, count: int) -> None:
    """That one of them goes sets the ctime of the file: it is no change of its content."""
    need_leases(ground.source)
    ground.add(b"name 0", b"content")
    for n in range(1, count):
        os.link(ground.at_source(b"name 0"), ground.at_source(b"name %d" % n))
    items = [ground.item(b"name %d" % n) for n in range(count)]
    assert [result.verdict for result in remove(ground, *items, archive=archive)] == [Verdict.REMOVED] * count
    assert files_of(ground.source) == {}


def test_a_name_of_a_file_that_has_changed_meanwhile_stays(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written through another name between two removals: the rest of the names stay."""
    need_leases(ground.source)
    ground.add(b"a", b"content")
    for name in (b"b", b"other"):
        os.link(ground.at_source(b"a"), ground.at_source(name))
    items = [ground.item(b"a"), ground.item(b"b")]

    def write() -> None:
        with open(ground.at_source(b"other"), "r+b") as file:
            file.write(b"CONTENT")

    real = removal._Source.remove

    def remove_and_write(self: Any, *rest: Any) -> Result:
        result = real(self, *rest)
        write()
        return result

    monkeypatch.setattr(removal._Source, "remove", remove_and_write)
    assert [result.verdict for result in remove(ground, *items)] == [Verdict.REMOVED, Verdict.CHANGED]
    assert files_of(ground.source) == {b"b": b"CONTENT", b"other": b"CONTENT"}
