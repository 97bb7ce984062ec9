"""A delivered source is removed, or not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from files import Ground, held, need_leases, ordinary_user, other_filesystem
from support import files_of
from trioft.core.errors import Remedy, classify
from trioft.core.model import Fingerprint, Item, Result, Root, Verdict
from trioft.movers.ops import linux, removal, writers
from trioft.movers.ops.files import Away


def remove(ground: Ground, *items: Item, archive: Path | None = None) -> list[Result]:
    delivered = [(item.path, item.fingerprint) for item in items]
    return removal.remove_sources(ground.ends.source, delivered, None if archive is None else os.fsencode(archive))


def verdicts(results: list[Result]) -> list[str]:
    return [str(result.verdict) for result in results]


@pytest.fixture(params=["delete", "archive"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Both ways in which a source can go."""
    return tmp_path / "done" if request.param == "archive" else None


def test_a_delivered_source_goes(ground: Ground, archive: Path | None) -> None:
    """Unchanged and written by nobody: it is removed, or archived with its folder, and the proof is told."""
    need_leases(ground.source)
    item = ground.add(b"x/a.mov", b"content")
    assert remove(ground, item, archive=archive) == [Result(Verdict.REMOVED, writer="closed")]
    assert files_of(ground.source) == {}
    assert archive is None or files_of(archive) == {b"x/a.mov": b"content"}
    # A mover that died right after that is repeated.
    assert verdicts(remove(ground, item, archive=archive)) == ["gone"]


@pytest.mark.parametrize("how", ["writer", "reader and writer", "memory map"])
def test_a_source_that_somebody_writes_stays(ground: Ground, archive: Path | None, how: str) -> None:
    """Whoever has it open for writing, or mapped, keeps it, however long it has been quiet: promise 3."""
    need_leases(ground.source)
    item = ground.add(b"a", b"content")
    with held(ground.at_source(b"a"), how):
        assert verdicts(remove(ground, item, archive=archive)) == ["busy"]
        assert files_of(ground.source) == {b"a": b"content"}
    assert verdicts(remove(ground, item, archive=archive)) == ["removed"]


def test_a_source_that_somebody_writes_through_another_name_stays(ground: Ground, archive: Path | None) -> None:
    """A writer that opened the file by a hard link is found as well."""
    need_leases(ground.source)
    ground.add(b"a", b"content")
    os.link(ground.at_source(b"a"), ground.at_source(b"b"))
    item = ground.item(b"a")
    with held(ground.at_source(b"b"), "writer"):
        assert verdicts(remove(ground, item, archive=archive)) == ["busy"]
    assert verdicts(remove(ground, item, archive=archive)) == ["removed"]
    assert files_of(ground.source) == {b"b": b"content"}


def test_a_source_that_somebody_reads_goes(ground: Ground, archive: Path | None) -> None:
    """A reader loses nothing: it keeps what it has open."""
    item = ground.add(b"a", b"content")
    with held(ground.at_source(b"a"), "reader"):
        assert verdicts(remove(ground, item, archive=archive)) == ["removed"]


def test_without_leases_a_writer_is_found_in_the_open_file_table(
    ground: Ground, archive: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where the kernel proves nothing, trioft looks for writers itself. That none was found is no proof: then a file may
    be moved, which loses nothing, but not deleted: promise 3.
    """
    monkeypatch.setattr(writers, "_magic_of_device", {})
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: 0x6969)  # NFS
    item = ground.add(b"a")
    with held(ground.at_source(b"a"), "writer"):
        assert verdicts(remove(ground, item, archive=archive)) == ["busy"]
    (result,) = remove(ground, item, archive=archive)
    assert (str(result.verdict), result.writer) == (("removed", "unknown") if archive else ("unproven", ""))
    assert files_of(ground.source if archive is None else archive).keys() == {b"a"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "change", ["content", "appended", "time", "attributes", "hard link", "copy", "a link", "a folder", "a pipe"]
)
def test_a_source_that_is_not_what_was_delivered_stays(ground: Ground, archive: Path | None, change: str) -> None:
    """Any difference in device, inode, size or times keeps the file, as what is there was not delivered: promise 3."""
    item = ground.add(b"a", b"content")
    path, other = ground.source / "a", ground.source / "b"
    match change:
        case "content":
            path.write_bytes(b"CONTENT")
        case "appended":
            ground.add(b"a", b"content+")
        case "time":
            os.utime(path, (1, 1))
        case "attributes":
            path.chmod(0o600)
        case "hard link":  # the ctime is another: who can say what else was done
            os.link(path, other)
        case "copy":
            shutil.copy2(path, other)
            other.replace(path)
        case "a link":
            path.rename(other)
            path.symlink_to("b")
        case "a folder":
            path.unlink()
            path.mkdir()
        case "a pipe":
            path.unlink()
            os.mkfifo(path)
    before = os.lstat(path)
    assert verdicts(remove(ground, item, archive=archive)) == ["changed"]
    assert os.path.samestat(os.lstat(path), before)


@pytest.mark.parametrize("fact", Fingerprint._fields)
def test_every_fact_of_the_fingerprint_counts(ground: Ground, archive: Path | None, fact: str) -> None:
    """Device, inode, size, mtime and ctime: one that differs is enough for the file to stay."""
    item = ground.add(b"a", b"content")
    other = item.fingerprint._replace(**{fact: getattr(item.fingerprint, fact) + 1})
    assert verdicts(remove(ground, item._replace(fingerprint=other), archive=archive)) == ["changed"]
    assert files_of(ground.source) == {b"a": b"content"}


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_source_that_is_replaced_while_the_gate_looks_stays(
    ground: Ground, archive: Path | None, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The last look is at the name that will be removed, not only at the file that was opened."""
    item = ground.add(b"x/a", b"content")
    real = writers.ask_lease

    def meanwhile(fd: int, device: int) -> str:
        answer = real(fd, device)
        ground.add(b"y/a", b"another")
        if what == "folder":
            os.rename(ground.at_source(b"x"), ground.at_source(b"z"))
            os.rename(ground.at_source(b"y"), ground.at_source(b"x"))
        else:
            os.replace(ground.at_source(b"y/a"), ground.at_source(b"x/a"))
        return answer

    monkeypatch.setattr(writers, "ask_lease", meanwhile)
    assert verdicts(remove(ground, item, archive=archive)) == ["changed"]
    assert files_of(ground.source)[b"x/a"] == b"another"


def test_each_source_is_judged_by_itself(ground: Ground, archive: Path | None) -> None:
    """One that must stay keeps no other."""
    items = [ground.add(b"file %d" % n) for n in range(4)]
    os.unlink(ground.at_source(b"file 1"))
    os.utime(ground.at_source(b"file 2"), (1, 1))
    assert verdicts(remove(ground, *items, archive=archive)) == ["removed", "gone", "changed", "removed"]
    assert set(files_of(ground.source)) == {b"file 2"}


def test_a_source_that_may_not_be_removed_is_a_trouble(ground: Ground, archive: Path | None) -> None:
    """A folder that trioft may not write to keeps its file, and that is said."""
    item = ground.add(b"x/a", b"content")
    (ground.source / "x").chmod(0o555)
    with ordinary_user():
        (result,) = remove(ground, item, archive=archive)
    (ground.source / "x").chmod(0o755)
    assert result.trouble is not None
    op = "rename" if archive else "unlink"
    assert result.trouble[:5] == ("source", op, b"x/a", None, errno.EACCES)
    assert files_of(ground.source) == {b"x/a": b"content"}


def test_nothing_is_removed_from_another_filesystem(ground: Ground, archive: Path | None) -> None:
    """When something else is mounted at the source, nothing there is touched: promise 5."""
    item = ground.add(b"a", b"content")
    root = Root(ground.ends.source.path, ground.ends.source.dev + 1)
    folder = None if archive is None else os.fsencode(archive)
    with pytest.raises(Away):
        removal.remove_sources(root, [(item.path, item.fingerprint)], folder)
    assert files_of(ground.source) == {b"a": b"content"}


def test_an_archived_source_replaces_nothing(ground: Ground, tmp_path: Path) -> None:
    """A name that the archive has already gets a number."""
    archive = tmp_path / "done"
    for n in range(3):
        item = ground.add(b"x/a.mov", b"take %d" % n)
        assert verdicts(remove(ground, item, archive=archive)) == ["removed"]
    assert files_of(archive) == {b"x/a.mov": b"take 0", b"x/a_1.mov": b"take 1", b"x/a_2.mov": b"take 2"}


def test_an_archive_on_another_filesystem_is_refused_with_a_reason(ground: Ground) -> None:
    """A move that would have to be a copy is not made: the source stays."""
    item = ground.add(b"a", b"content")
    with other_filesystem(ground.source) as elsewhere:
        (result,) = remove(ground, item, archive=elsewhere / "done")
        assert files_of(elsewhere) == {}
    assert result.trouble is not None
    assert result.trouble[:5] == ("source", "rename", b"a", None, errno.EXDEV)
    assert classify(result.trouble) == Remedy.GIVE_UP
    assert files_of(ground.source) == {b"a": b"content"}


def test_an_archive_that_vanishes_is_not_a_source_that_is_gone(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is still there is never recorded as removed."""
    item = ground.add(b"a", b"content")
    archive = tmp_path / "done"
    real = os.makedirs

    def vanish(path: bytes, exist_ok: bool = False) -> None:
        real(path, exist_ok=exist_ok)
        archive.rmdir()

    monkeypatch.setattr(os, "makedirs", vanish)
    (result,) = remove(ground, item, archive=archive)
    assert result.trouble is not None
    assert result.trouble.errno == errno.ENOENT
    assert files_of(ground.source) == {b"a": b"content"}


@pytest.mark.parametrize("name", [b"\xff\xfe", b"line\nbreak", b"n" * 255], ids=["no UTF-8", "newline", "255 bytes"])
def test_a_source_of_any_name_goes(ground: Ground, archive: Path | None, name: bytes) -> None:
    """Every legal name can be removed and archived, twice."""
    for content in (b"first", b"second"):
        item = ground.add(name, content)
        assert verdicts(remove(ground, item, archive=archive)) == ["removed"]
    assert archive is None or sorted(files_of(archive).values()) == [b"first", b"second"]
