"""What the movers see: what lies in the source, what the destination lacks, where partials are."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from files import (
    MANNER,
    Ground,
    held,
    need_leases,
    ordinary_user,
)
from support import make_tree
from trioft.core import answers
from trioft.core.answers import Listing
from trioft.core.errors import FileTrouble, Remedy, classify
from trioft.core.model import Found, Manner, Root
from trioft.core.naming import OWN
from trioft.movers.ops import linux, writers
from trioft.movers.ops import scan as scan_module
from trioft.movers.ops.files import Away
from trioft.movers.ops.folder import listing

# --- scan ------------------------------------------------------------------------------------------------------------


def scan(
    ground: Ground,
    folders: list[bytes] | None = None,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    compared: Manner | None = None,
) -> Listing:
    """Scan as sync does (*compared*) or as watch does, until nothing is left to be read."""
    destination = ground.ends.destination if compared else None
    listing = Listing([], [], folders or [b""], [], [], [], [], [], 0.0)
    while listing.rest:
        part = scan_module.scan(ground.ends.source, listing.rest, None, include, exclude, destination, compared)
        listing = Listing(
            listing.folders + part.folders,
            listing.unchanged + part.unchanged,
            part.rest,
            listing.twins + part.twins,
            listing.alike + part.alike,
            listing.missing + part.missing,
            listing.skipped + part.skipped,
            listing.troubles + part.troubles,
            listing.seconds + part.seconds,
        )
    return listing


def paths(listing: Listing) -> set[bytes]:
    return {found.path for folder in listing.folders for found in folder.files}


def test_a_scan_finds_every_file_of_every_folder(ground: Ground) -> None:
    """Each file is told with what it is, below the folder it lies in; empty folders are told too."""
    tree: dict[str | bytes, bytes | int | None] = {
        "a": 10,
        "x/b": 20,
        "x/y/c": 30,
        "empty": None,
        b"\xff\n/\xfe": 1,
        ".hidden/.d": 0,
    }
    make_tree(ground.source, tree)
    os.chmod(ground.source / "a", 0o4711)
    listing = scan(ground)
    assert paths(listing) == {os.fsencode(path) for path, content in tree.items() if content is not None}
    assert {folder.path for folder in listing.folders} == {b"", b"x", b"x/y", b"empty", b"\xff\n", b".hidden"}
    found = {found.path: found for folder in listing.folders for found in folder.files}
    assert found[b"a"] == Found(b"a", 0o4711, ground.item(b"a").fingerprint)
    assert (listing.twins, listing.missing, listing.skipped, listing.troubles) == ([], [], [], [])
    assert paths(scan(ground, [b"x"])) == {b"x/b", b"x/y/c"}


def test_what_is_no_regular_file_is_told_and_skipped(ground: Ground, tmp_path: Path) -> None:
    """Links are not followed, not even to folders; pipes, sockets and devices are not opened."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"")
    (ground.source / "link").symlink_to(tmp_path / "elsewhere" / "file")
    (ground.source / "link to a folder").symlink_to(tmp_path / "elsewhere")
    (ground.source / "dangling").symlink_to("nowhere")
    os.mkfifo(ground.source / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        home = os.open(ground.source, os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{home}/socket")  # a path of the test may be too long for a socket
        os.close(home)
    listing = scan(ground)
    assert paths(listing) == set()
    assert {path: reason.partition(":")[0] for path, reason in listing.skipped} == {
        b"link": "symbolic link",
        b"link to a folder": "symbolic link",
        b"dangling": "symbolic link",
        b"pipe": "named pipe",
        b"socket": "socket",
    }


def test_partials_and_what_is_not_wanted_are_passed_over(ground: Ground) -> None:
    """An exclude beats an include and covers all below a folder; trioft's own partials are never taken for files."""
    make_tree(
        ground.source,
        {"a.mov": 1, "a.txt": 1, "a.mov.12345678.partial": 1, "tmp/a.mov": 1, "x/tmp/b.mov": 1, "x/c.mov": 1},
    )
    (ground.source / "x" / "link.txt").symlink_to("c.mov")
    listing = scan(ground, include=("*.mov",), exclude=("tmp",))
    assert paths(listing) == {b"a.mov", b"x/c.mov"}
    assert {folder.path for folder in listing.folders} == {b"", b"x"}
    assert listing.skipped == []


@pytest.mark.parametrize(
    ("twin", "counts"),
    [("same", True), ("size", False), ("time", False), ("folder", False), ("link", False), ("none", False)],
)
def test_in_sync_a_file_with_the_same_size_and_time_is_counted_and_not_told(
    ground: Ground, twin: str, counts: bool
) -> None:
    """What the destination has is left alone; what is missing or different there is found."""
    item = ground.add(b"x/a", b"content")
    ground.old(b"x/other")
    match twin:
        case "same":
            ground.old(b"x/a", b"CONTENT")
            ground.same_times(item)
        case "size":
            ground.old(b"x/a", b"content+")
            ground.same_times(item)
        case "time":
            ground.old(b"x/a", b"content")
        case "folder":
            os.mkdir(ground.at_dest(b"x/a"))
        case "link":
            os.symlink(ground.at_source(b"x/a"), ground.at_dest(b"x/a"))
    listing = scan(ground, compared=MANNER)
    assert (len(listing.twins), paths(listing)) == ((1, set()) if counts else (0, {b"x/a"}))


def test_folders_that_the_destination_lacks_are_told(ground: Ground) -> None:
    """Empty ones too, so that they can be made; one that a file is in the way of is not among them."""
    make_tree(ground.source, {"there/a": 1, "missing/b": 1, "missing/below": None, "in the way/c": 1})
    ground.old(b"there/a")
    ground.old(b"in the way")
    listing = scan(ground, compared=MANNER)
    assert sorted(listing.missing) == [b"missing", b"missing/below"]
    assert paths(listing) == {b"there/a", b"missing/b", b"in the way/c"}


def test_folders_that_vanish_or_cannot_be_read_stop_nothing(ground: Ground) -> None:
    """A folder without access is told as a trouble, one that is gone is not, and the others are scanned."""
    make_tree(ground.source, {"closed/a": 1, "open/b": 1})
    (ground.source / "closed").chmod(0o300)
    (ground.source / "link").symlink_to("open")
    with ordinary_user():
        listing = scan(ground, [b"", b"gone", b"open/b", b"open"])
    assert [trouble[:5] for trouble in listing.troubles] == [("source", "open", b"closed", None, errno.EACCES)]
    assert paths(listing) == {b"open/b"}
    listing = scan(ground, [b"link"])
    assert [trouble.errno for trouble in listing.troubles] in ([], [errno.ELOOP])
    assert paths(listing) == set()


def test_one_folder_of_the_destination_that_cannot_be_read_does_not_hold_up_the_scan(ground: Ground) -> None:
    """Only a destination that is gone ends a scan. Here, each file of the folder will fail, and say why."""
    make_tree(ground.source, {"loop/a": 1, "closed/b": 1, "fine/c": 1})
    (ground.dest / "loop").symlink_to("loop")
    (ground.dest / "closed").mkdir(0o300)
    with ordinary_user():
        listing = scan(ground, compared=MANNER)
    assert paths(listing) == {b"loop/a", b"closed/b", b"fine/c"}
    assert listing.troubles == []


def test_a_destination_that_is_gone_ends_the_scan(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are not taken for missing because the destination does not answer."""
    make_tree(ground.source, {"a": 1})
    make_tree(ground.dest, {"a": 1})
    real = os.scandir

    def stale(fd: int) -> Any:
        if os.readlink(f"/proc/self/fd/{fd}") == str(ground.dest):
            raise OSError(errno.ESTALE, "")
        return real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", stale)
        with pytest.raises(FileTrouble) as caught:
            scan(ground, compared=MANNER)
    assert classify(caught.value.trouble) == Remedy.DESTINATION
    with pytest.raises(Away):
        scan_module.scan(ground.ends.source, [b""], None, (), (), Root(ground.ends.destination.path, 1), MANNER)


def test_a_file_that_vanishes_from_the_destination_meanwhile_is_missing(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that was listed, and is gone when it is looked at, does not count as there."""
    make_tree(ground.source, {"a": 1, "b": 1})
    make_tree(ground.dest, {"a": 1, "b": 1})
    for path in (b"a", b"b"):
        ground.same_times(ground.item(path))
    real = os.scandir

    class Vanishing:
        """What scandir returns, except that a file goes while it is read."""

        def __init__(self, fd: int) -> None:
            self._entries = real(fd)
            if os.readlink(f"/proc/self/fd/{fd}") == str(ground.dest):
                found = list(self._entries)
                (ground.dest / "b").unlink()
                self._entries = iter(found)  # type: ignore[assignment]

        def __enter__(self) -> Any:
            return self._entries

        def __exit__(self, *_: object) -> None:
            if hasattr(self._entries, "close"):
                self._entries.close()

    monkeypatch.setattr(os, "scandir", Vanishing)
    listing = scan(ground, compared=MANNER)
    assert (len(listing.twins), paths(listing)) == (1, {b"b"})


def test_a_scan_is_cut_into_calls(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call returns after some thousand names with what is left, so that files are copied while the tree is read."""
    monkeypatch.setattr(scan_module, "NAMES_A_CALL", 10)
    make_tree(ground.source, {f"folder {n}/file {m}": 1 for n in range(9) for m in range(4)})
    found: set[bytes] = set()
    calls, rest = 0, [b""]
    while rest:
        listing = scan_module.scan(ground.ends.source, rest, None, (), (), None, None)
        assert found.isdisjoint(paths(listing))
        found |= paths(listing)
        rest = listing.rest
        calls += 1
    assert len(found) == 36
    assert calls >= 4


def test_a_folder_in_which_nothing_changed_is_not_told_again(ground: Ground) -> None:
    """Its stamp holds while its files are the same ones, in the same versions: not after any change of one of them."""
    make_tree(ground.source, {"still/a": 1, "still/b": 2, "x/a": 1, "x/b": 2})
    changes: list[Callable[[], object]] = [
        lambda: (ground.source / "x/new").write_bytes(b""),
        lambda: (ground.source / "x/new").rename(ground.source / "x/other"),
        lambda: (ground.source / "x/other").unlink(),
        lambda: (ground.source / "x/a").write_bytes(b"2"),
        lambda: os.utime(ground.source / "x/a", ns=(1, 1)),
        lambda: os.chmod(ground.source / "x/b", 0o600),
        lambda: os.replace(ground.source / "x/a", ground.source / "x/b"),
    ]

    def scan_again(stamps: dict[bytes, bytes]) -> Listing:
        return scan_module.scan(ground.ends.source, [b"still", b"x"], stamps, (), (), None, None)

    stamps = {folder.path: folder.stamp for folder in scan_again({}).folders}
    for change in changes:
        change()
        listing = scan_again(stamps)
        assert [folder.path for folder in listing.folders] == [b"x"]
        assert listing.unchanged == [b"still"]
        stamps[b"x"] = listing.folders[0].stamp
        assert sorted(scan_again(stamps).unchanged) == [b"still", b"x"]


@pytest.mark.parametrize("operation", ["scan", "look", "make_folders", "find_leftovers"])
def test_nothing_is_looked_at_below_another_filesystem(ground: Ground, operation: str) -> None:
    """A root whose device has changed is away, for every operation: promise 5."""
    ends = ground.ends
    source, destination = Root(ends.source.path, 1), Root(ends.destination.path, 1)
    calls: dict[str, Any] = {
        "scan": lambda: scan_module.scan(source, [b""], None, (), (), None, None),
        "look": lambda: scan_module.look(source, [b"a"], (), ()),
        "make_folders": lambda: listing.make_folders(ends.source, destination, [b"a"]),
        "find_leftovers": lambda: listing.find_leftovers(destination, [b""]),
    }
    with pytest.raises(Away):
        calls[operation]()
    assert os.listdir(ground.dest) == []


def test_folders_are_made_and_what_cannot_be_made_is_told(ground: Ground) -> None:
    """One folder that fails keeps no other from being made."""
    make_tree(ground.source, {"a/b": None, "in the way/c": None})
    ground.old(b"in the way")
    troubles = listing.make_folders(ground.ends.source, ground.ends.destination, [b"a/b", b"in the way/c", b"d"])
    assert [trouble[:5] for trouble in troubles] == [("destination", "mkdir", b"in the way/c", None, errno.ENOTDIR)]
    assert (ground.dest / "a" / "b").is_dir()
    assert (ground.dest / "d").is_dir()


# --- look ------------------------------------------------------------------------------------------------------------


def look(ground: Ground, *asked: bytes, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[Any]:
    return scan_module.look(ground.ends.source, list(asked), include, exclude)


def test_a_look_tells_what_each_path_is_now(ground: Ground) -> None:
    """Files with their fingerprint and whether somebody writes them; everything else by its kind."""
    need_leases(ground.source)
    quiet, written = ground.add(b"x/quiet"), ground.add(b"written")
    (ground.source / "link").symlink_to("written")
    (ground.source / "linked").symlink_to("x")
    os.mkfifo(ground.source / "pipe")
    with held(ground.at_source(b"written"), "writer"):
        asked = [b"x/quiet", b"written", b"x", b"link", b"linked/quiet", b"pipe", b"gone", b"x/quiet/below", b"no/such"]
        looks = look(ground, *asked)
    assert [seen.path for seen in looks] == asked
    assert [seen.kind for seen in looks] == [
        *("file", "file", "folder", "other", "other", "other", "gone", "other", "gone")
    ]
    assert looks[0].found == Found(b"x/quiet", 0o644, quiet.fingerprint)
    assert (looks[0].writer, looks[1].writer) == (answers.CLOSED, answers.BUSY)
    assert looks[1].found.fingerprint == written.fingerprint
    assert look(ground, b"written")[0].writer == answers.CLOSED


def test_what_is_not_wanted_is_not_looked_into(ground: Ground) -> None:
    """Paths from file events are filtered as those of a scan are."""
    make_tree(ground.source, {"a.mov": 1, "a.txt": 1, "tmp/b.mov": 1, "a.mov.12345678.partial": 1})
    asked = b"a.mov", b"a.txt", b"tmp", b"tmp/b.mov", b"a.mov.12345678.partial"
    looks = look(ground, *asked, include=("*.mov",), exclude=("tmp",))
    assert [seen.kind for seen in looks] == ["file", "other", "other", "other", "other"]


def test_a_file_that_cannot_be_opened_is_still_a_file(ground: Ground) -> None:
    """Whoever may not read a file learns that when it is copied: it is not taken for gone."""
    ground.add(b"closed", mode=0)
    make_tree(ground.source, {"folder/a": 1})
    (ground.source / "folder").chmod(0o600)
    with ordinary_user():
        closed, below = look(ground, b"closed", b"folder/a")
    (ground.source / "folder").chmod(0o700)
    assert (closed.kind, closed.writer) == ("file", answers.UNKNOWN)
    assert below.kind == "unreadable"


def test_where_leases_prove_nothing_the_open_file_table_is_searched(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer on this machine is found on any filesystem; that none is found proves nothing."""
    monkeypatch.setattr(writers, "_magic_of_device", {})
    monkeypatch.setattr(linux, "filesystem_magic", lambda fd: 0x6969)  # NFS
    ground.add(b"written")
    ground.add(b"quiet")
    with held(ground.at_source(b"written"), "writer"):
        assert [seen.writer for seen in look(ground, b"written", b"quiet")] == [answers.BUSY, answers.UNKNOWN]


# --- find_leftovers ---------------------------------------------------------------------------------------------------


def test_what_trioft_has_left_is_found_with_its_size_and_age(ground: Ground) -> None:
    """Wherever it lies, and nothing else: no links, no names that only look like it; of folders only trioft's own."""
    names = [
        b"a.mov.0123456789abcdef.trioft-partial",
        b"x/y/\xff\n.0123456789abcdef.trioft-partial",
        b".trioft-probe-1-2",
        b"x/.trioft-replaced-0123456789abcdef-a.mov",
        b"former.mov.12345678.partial",
        b"former.12345678.replaced",
    ]
    others = [b"a.partial", b"a.1234567.partial", b"a.12345678.partial.mov", b"a.ABCDEF01.partial", b"x/final"]
    for name in names + others:
        ground.old(name)
    ground.old(b".trioft-doctor-1/in it")
    (ground.dest / "d.00000000.partial").mkdir()
    (ground.dest / "l.trioft-partial").symlink_to("x/final")
    (ground.dest / "linked").symlink_to("x")
    leftovers = listing.find_leftovers(ground.ends.destination, [b""])
    assert leftovers.rest == []
    files = [one for one in leftovers.found if not one.is_folder]
    assert sorted(one.path for one in files) == sorted(names)
    assert all(one.age > 24 * 60 * 60 and one.size == len(b"old") for one in files)
    assert [one.path for one in leftovers.found if one.is_folder] == [b".trioft-doctor-1"]
    os.utime(ground.at_dest(names[0]))
    ages = {one.path: one.age for one in listing.find_leftovers(ground.ends.destination, [b""]).found}
    assert ages[names[0]] < 60 * 60


def test_the_search_for_leftovers_passes_over_what_cannot_be_read(ground: Ground) -> None:
    """No access to a folder means nothing of ours: the search goes on."""
    ground.old(b"closed/a.trioft-partial")
    ground.old(b"open/b.trioft-partial")
    (ground.dest / "closed").chmod(0)
    with ordinary_user():
        found = listing.find_leftovers(ground.ends.destination, [b"", b"gone"])
    (ground.dest / "closed").chmod(0o700)
    assert [one.path for one in found.found] == [b"open/b.trioft-partial"]


def test_names_that_trioft_keeps_for_itself_are_skipped_and_said_to_be(ground: Ground) -> None:
    """Files of other programs whose partials look like trioft 0.1's are ordinary files."""
    make_tree(
        ground.source,
        {"a.trioft-partial": 1, ".trioft-x": 1, ".trioft-y/a": 1, "b.0123abcd.partial": 1, "n.trioft-partial": 1},
    )
    found = scan_module.scan(ground.ends.source, [b""], None, (), ("n.*",), None, None)
    assert [one.path for folder in found.folders for one in folder.files] == [b"b.0123abcd.partial"]
    assert sorted(found.skipped) == [(path, OWN) for path in (b".trioft-x", b".trioft-y", b"a.trioft-partial")]
    assert found.rest == []
