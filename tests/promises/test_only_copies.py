"""Nothing replaces what may be the only copy: two cards with the same names."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support import Done, Site, files_of, make_tree, mounted


def insert(site: Site, content: bytes, day: int) -> None:
    """A card with one take is put in."""
    make_tree(site.source, {"CLIP/C0001.MP4": content})
    os.utime(site.source / "CLIP/C0001.MP4", (1_000_000_000 + 86_400 * day,) * 2)


@pytest.mark.parametrize("then", [["--on-success", "delete"], []])
def test_a_second_card_with_the_same_names_keeps_the_first_take(site: Site, then: list[str]) -> None:
    """Its takes are numbered, also where its own sources stay: those of the first card are gone."""
    insert(site, b"card one", 1)
    assert site.sync("--on-success", "delete").code == 0
    for number, content in enumerate([b"card two", b"card three"], 2):
        insert(site, content, number)
        done = site.sync(*then)
        assert (done.code, done.summary["delivered"]) == (0, 1)
        assert site.sync(*then).code == 0
    takes = files_of(site.dest)
    assert sorted(takes.values()) == sorted([b"card one", b"card two", b"card three"])
    assert takes[b"CLIP/C0001.MP4"] == b"card one"


@pytest.mark.parametrize("action", ["delete", "archive"])
def test_what_is_all_that_is_left_is_not_even_overwritten_on_demand(site: Site, action: str) -> None:
    """The file fails, with what would help; the take that is there stays, and so does the source."""
    on_success = action if action == "delete" else f"archive:{site.root}/archive"
    insert(site, b"card one", 1)
    assert site.sync("--on-success", on_success).code == 0
    insert(site, b"card two", 2)
    for options in (["--on-success", on_success], []):
        done = site.sync(*options, "--if-exists", "overwrite")
        assert (done.code, done.summary["failed"]) == (1, 1)
        reason = done.files("failed")["CLIP/C0001.MP4"]["reason"]
        assert reason.startswith(
            "CLIP/C0001.MP4 was delivered from an earlier file of this name, which was removed then"
        )
        assert reason.endswith("--if-exists rename keeps both")
        assert files_of(site.dest) == {b"CLIP/C0001.MP4": b"card one"}
        assert files_of(site.source) == {b"CLIP/C0001.MP4": b"card two"}


def test_a_file_that_is_still_there_is_replaced_by_its_next_version(site: Site) -> None:
    """Nothing of it is lost: its source has become that."""
    insert(site, b"version one", 1)
    assert site.sync().code == 0
    insert(site, b"version two", 2)
    assert site.sync().code == 0
    assert files_of(site.dest) == {b"CLIP/C0001.MP4": b"version two"}
    insert(site, b"version three", 3)
    assert site.sync("--if-exists", "overwrite", "--on-success", "delete").code == 0
    assert files_of(site.dest) == {b"CLIP/C0001.MP4": b"version three"}


def test_a_numbered_copy_is_not_replaced_by_a_file_of_that_name(site: Site) -> None:
    """What another source was delivered as is no copy of this one."""
    insert(site, b"card one", 1)
    assert site.sync("--on-success", "delete").code == 0
    insert(site, b"card two", 2)
    assert site.sync("--on-success", "delete").code == 0
    make_tree(site.source, {"CLIP/C0001_1.MP4": b"called so"})
    done = site.sync()
    assert (done.code, done.summary["failed"]) == (1, 1)
    takes = files_of(site.dest)
    assert takes == {b"CLIP/C0001.MP4": b"card one", b"CLIP/C0001_1.MP4": b"card two"}
    assert site.sync("--if-exists", "rename").code == 0
    assert files_of(site.dest) == {**takes, b"CLIP/C0001_1_1.MP4": b"called so"}


class Neighbour:
    """A second source that goes to the same destination, with a ledger of its own in the same state directory."""

    def __init__(self, site: Site) -> None:
        self.site, self.source = site, site.root / "other source"
        self.source.mkdir()

    def sync(self, *options: str | Path, dest: Path | None = None) -> Done:
        site = self.site
        ends = self.source, dest or site.dest
        return site.run("sync", *ends, "--state-dir", site.state, "--json", "--settle", "100ms", *options)


@pytest.fixture
def neighbour(site: Site) -> Neighbour:
    return Neighbour(site)


def begin(site: Site, neighbour: Neighbour, on_success: str = "keep") -> None:
    """One source has delivered a file, and another one has a file of that name."""
    make_tree(site.source, {"a/x": b"AAA"})
    make_tree(neighbour.source, {"a/x": b"BBBB"})
    if on_success == "archive":
        on_success = f"archive:{site.root}/archive"
    assert site.sync("--on-success", on_success).code == 0


@pytest.mark.parametrize("action", ["delete", "archive", "keep", "removed by hand"])
def test_what_another_source_was_delivered_as_is_not_replaced(site: Site, neighbour: Neighbour, action: str) -> None:
    """Two sources, one destination, two ledgers: the file fails, and it is said whose name it is."""
    begin(site, neighbour, "keep" if action == "removed by hand" else action)
    if action == "removed by hand":
        os.unlink(site.source / "a/x")
    for options in ([], ["--if-exists", "overwrite"]):
        done = neighbour.sync(*options)
        assert (done.code, done.summary["failed"]) == (1, 1)
        reason = done.files("failed")["a/x"]["reason"]
        assert reason.startswith(f"{site.source}/a/x, of another source, has been delivered under the same name, a/x")
        assert reason.endswith("--if-exists rename keeps both")
        assert files_of(site.dest) == {b"a/x": b"AAA"}
    assert neighbour.sync("--if-exists", "rename").code == 0
    assert files_of(site.dest) == {b"a/x": b"AAA", b"a/x_1": b"BBBB"}


def test_a_destination_is_the_same_however_it_is_spelled(site: Site, neighbour: Neighbour) -> None:
    """Over a symbolic link, or as a folder in the one that the other source goes to."""
    begin(site, neighbour, "delete")
    (site.root / "link").symlink_to(site.root)
    done = neighbour.sync(dest=site.root / "link" / site.dest.name)
    assert (done.code, done.summary["failed"]) == (1, 1)
    make_tree(neighbour.source, {"x": b"BBBB"})
    (neighbour.source / "a/x").unlink()
    done = neighbour.sync(dest=site.dest / "a")
    assert (done.code, done.summary["failed"]) == (1, 1)
    assert files_of(site.dest) == {b"a/x": b"AAA"}


def test_a_destination_that_is_mounted_twice_is_one(site: Site, neighbour: Neighbour) -> None:
    """The filesystem says so, and the folder on it."""
    image, first, second = site.root / "disk", site.dest, site.root / "second"
    second.mkdir()
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with mounted(image, first, "-o", "loop"), mounted(first, second, "--bind"):
        begin(site, neighbour, "delete")
        done = neighbour.sync(dest=second)
        assert (done.code, done.summary["failed"]) == (1, 1)
        assert (site.dest / "a/x").read_bytes() == b"AAA"


def test_equal_content_of_another_source_is_no_harm(site: Site, neighbour: Neighbour) -> None:
    """It is there already; and other names are free, as are those of a ledger with another destination."""
    begin(site, neighbour)
    make_tree(neighbour.source, {"a/x": b"AAA", "b": b"new"})
    times = os.stat(site.source / "a/x")
    os.utime(neighbour.source / "a/x", ns=(times.st_atime_ns, times.st_mtime_ns))
    done = neighbour.sync()
    assert (done.code, done.summary["already"], done.summary["delivered"]) == (0, 1, 1)
    elsewhere = site.root / "elsewhere"
    elsewhere.mkdir()
    make_tree(elsewhere, {"a/x": b"of nobody"})
    assert neighbour.sync(dest=elsewhere).code == 0
    assert files_of(elsewhere) == {b"a/x": b"AAA", b"b": b"new"}


def test_where_another_ledger_cannot_be_read_nothing_is_replaced(site: Site, neighbour: Neighbour) -> None:
    """Nobody knows what it has delivered. A name that is free is given."""
    begin(site, neighbour)
    for name in os.listdir(site.state):
        if ".sqlite" in name:
            (site.state / name).unlink()
    (site.state / "0123456789abcdef.sqlite").write_bytes(b"no database at all" * 100)
    make_tree(neighbour.source, {"b": b"new"})
    done = neighbour.sync()
    assert (done.code, done.summary["failed"], done.summary["delivered"]) == (1, 1, 1)
    reason = done.files("failed")["a/x"]["reason"]
    assert reason.startswith(f"the ledger {site.state}/0123456789abcdef.sqlite cannot be read (")
    assert files_of(site.dest) == {b"a/x": b"AAA", b"b": b"new"}
    (site.state / "0123456789abcdef.sqlite").unlink()
    assert neighbour.sync().code == 0
    assert files_of(site.dest) == {b"a/x": b"BBBB", b"b": b"new"}


Card = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def cards(site: Site) -> list[Card]:
    """Two cards for one reader, each with a take of the same name. They are in it while inside."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    made: list[Card] = []
    for number, content in enumerate([b"card A", b"the card B"]):
        image = site.root / f"card {number}"
        with open(image, "wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        made.append(lambda image=image: mounted(image, site.source, "-o", "loop"))  # type: ignore[misc]
        with made[-1]():
            (site.source / "lost+found").rmdir()
            insert(site, content, number + 1)
    return made


TAKE = "CLIP/C0001.MP4"


def test_another_card_in_the_reader_replaces_nothing_of_the_first(site: Site, cards: list[Card]) -> None:
    """Its takes are no next versions: they are numbered, or fail. The same card, put in again, changes nothing."""
    first, second = cards
    take = TAKE.encode()
    with first():
        assert site.sync().code == 0
    with second():
        done = site.sync("--if-exists", "overwrite")
        assert (done.code, done.summary["failed"]) == (1, 1)
        reason = done.files("failed")[TAKE]["reason"]
        assert reason.startswith(f"{TAKE} was delivered from a file of this name on another volume than the one")
        assert files_of(site.dest) == {take: b"card A"}
        assert site.sync().code == 0
        takes = {take: b"card A", b"CLIP/C0001_1.MP4": b"the card B"}
        assert files_of(site.dest) == takes
        assert site.sync().summary["delivered"] == 0
    with first():
        assert site.sync().summary["delivered"] == 0
        insert(site, b"card A, edited", 5)
        assert site.sync().code == 0
    assert files_of(site.dest) == {**takes, take: b"card A, edited"}


def test_what_another_card_was_delivered_as_is_known_for_good(site: Site, cards: list[Card]) -> None:
    """Also when history has been forgotten, and other names were given meanwhile."""
    first, second = cards
    with first():
        assert site.sync().code == 0
    with second():
        assert site.sync("--if-exists", "rename").code == 0
        (ledger,) = [name for name in os.listdir(site.state) if name.endswith(".sqlite")]
        with contextlib.closing(sqlite3.connect(site.state / ledger)) as db:
            db.execute("DELETE FROM history")
            db.commit()
        insert(site, b"card B, edited", 5)
        assert site.sync().code == 0
    takes = files_of(site.dest)
    assert takes[TAKE.encode()] == b"card A"
    assert sorted(takes.values()) == sorted([b"card A", b"the card B", b"card B, edited"])


def test_the_same_content_on_another_volume_is_already_there(site: Site, cards: list[Card]) -> None:
    """Who moves to another disk goes on with it: what was compared is the present file's, and so its next versions."""
    first, second = cards
    with first():
        assert site.sync().code == 0
    with second():
        insert(site, b"card A", 1)
        assert site.sync().summary["already"] == 1
        insert(site, b"card A, edited", 5)
        assert site.sync().code == 0
    assert files_of(site.dest) == {TAKE.encode(): b"card A, edited"}


def test_a_card_that_is_put_in_again_has_next_versions(site: Site, cards: list[Card]) -> None:
    """It is the same one, by its UUID, whatever device it is."""
    with cards[0]():
        assert site.sync().code == 0
    with cards[0]():
        insert(site, b"edited", 5)
        assert site.sync().code == 0
    assert files_of(site.dest) == {TAKE.encode(): b"edited"}
