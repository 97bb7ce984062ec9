"""Files that are being written and get another name: they are found, and their partials go on under it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from files import Ground, failing, name_of, ordinary_user
from growing_files import LARGE, noting, partial_name, put_partial
from support import files_of
from trioft.core.answers import Searched
from trioft.core.errors import FileTrouble
from trioft.core.model import Fingerprint, Item
from trioft.core.naming import partial_of
from trioft.movers.ops import source
from trioft.movers.ops.folder import growing

pytestmark = pytest.mark.usefixtures("small_blocks")

# --- another name ----------------------------------------------------------------------------------------------------


def locate(ground: Ground, item: Item, *, everywhere: bool = True, was: Fingerprint | None = None) -> bytes | None:
    return source.locate(ground.ends.source, item.path, item.fingerprint[:2], everywhere, was, ground.told.append)


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


@pytest.mark.parametrize("is_known", [True, False])
def test_a_file_on_a_filesystem_that_was_mounted_anew_is_found(ground: Ground, is_known: bool) -> None:
    """Its device has another number. In all else it is what it was, and has the same name: it is the same version."""
    now = ground.add(b"x/a.mov")
    before = now._replace(fingerprint=now.fingerprint._replace(dev=now.fingerprint.dev + 1))
    assert locate(ground, before, was=before.fingerprint if is_known else None) == (b"x/a.mov" if is_known else None)
    older = before.fingerprint._replace(mtime_ns=before.fingerprint.mtime_ns - 1)
    assert locate(ground, before, was=older) is None
    rename(ground, b"x/a.mov", b"x/b.mov")
    assert locate(ground, before, was=before.fingerprint) is None  # inodes alone are alike on all disks


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
    assert source.locate(ground.ends.source, b"a", (identity[0], identity[1]), True, None, ground.told.append) is None


def test_links_lead_nowhere(ground: Ground) -> None:
    """What has left the source is not found through a link: the file's, its own folder's or another's."""
    item = ground.add(b"x/a")
    elsewhere = ground.source.parent / "elsewhere"
    (ground.source / "x").rename(elsewhere)
    (ground.source / "x").symlink_to(elsewhere)
    (ground.source / "y").symlink_to(elsewhere)
    (ground.source / "a").symlink_to(elsewhere / "a")
    assert locate(ground, item) is None
    assert Searched(b"y") not in ground.told


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
    assert {step.folder for step in ground.told} == {b"", b"x", b"y", b"y/z"}


@pytest.mark.parametrize("folder", [b"", b"x/"])
def test_a_search_beside_a_file_looks_into_no_other_folder(ground: Ground, folder: bytes) -> None:
    """A source may hold a million files: who only asks about a rename does not have all of it read."""
    item = ground.add(folder + b"a")
    ground.add(folder + b"y/z/b")
    os.unlink(ground.at_source(item.path))
    assert locate(ground, item, everywhere=False) is None
    assert ground.told == [Searched(folder.rstrip(b"/"))]


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
    path = partial if path.endswith(b"partial") else path
    with monkeypatch.context() as patch:
        failing(patch, call, number, lambda name, *_: name == os.path.basename(path))
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
