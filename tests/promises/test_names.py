"""Names: every one that Linux allows arrives byte for byte."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from names import EURO, LONG_UTF8, NASTY, legal_names
from support import Site, files_of, make_tree, read_tree


def tree_of(paths: Sequence[Sequence[bytes]]) -> dict[str | bytes, bytes | int | None]:
    """Return a tree with a file at each of *paths*, leaving out those where a file or folder is in the way."""
    files: dict[str | bytes, bytes | int | None] = {}
    folders: set[bytes] = set()
    for parts in paths:
        above = {b"/".join(parts[:n]) for n in range(1, len(parts))}
        path = b"/".join(parts)
        if path not in folders and not above & files.keys():
            folders |= above
            files[path] = path  # each file holds its own name
    return files


@settings(max_examples=5)
@given(st.lists(st.lists(legal_names, min_size=1, max_size=4), min_size=1, max_size=150))
@example([[name] for name in NASTY])
@example([[name, name] for name in NASTY])
def test_every_legal_name_arrives(paths: list[list[bytes]]) -> None:
    """Every name that Linux allows, of files and of folders, arrives byte for byte, and a second run finds it there."""
    with tempfile.TemporaryDirectory() as root:
        site = Site(Path(root))
        make_tree(site.source, tree_of(paths))
        done = site.sync()
        assert (done.code, done.err) == (0, "")
        assert read_tree(site.dest) == read_tree(site.source)
        count = len(files_of(site.source))
        assert done.summary["delivered"] == count
        assert site.sync().summary["already"] == count


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["small", "large"])
def test_long_names_leave_room_for_a_number(site: Site, size: int) -> None:
    """Names of 255 bytes can be delivered a second time: what precedes the number is cut, but no character is."""
    long = [b"x" * 255, b"x" * 250 + b".mov", LONG_UTF8, EURO, b"\xff" * 255, b"s." + b"e" * 253]
    make_tree(site.source, dict.fromkeys(long, size))
    make_tree(site.dest, dict.fromkeys(long, b"taken"))
    done = site.sync("--if-exists", "rename")
    assert (done.code, done.err) == (0, "")
    there = files_of(site.dest)
    assert [there.pop(name) for name in long] == [b"taken"] * len(long)
    assert sorted(there.values()) == sorted(files_of(site.source).values())
    assert b"x" * 249 + b"_1.mov" in there
    assert "ä".encode() * 126 + b"_1" in there
    assert EURO[: 3 * 84] + b"_1" in there


def test_paths_may_be_almost_as_long_as_the_kernel_takes_them(site: Site) -> None:
    """Deep folders arrive; a path that no system call takes fails alone, and says why."""
    folder = "/".join(["d" * 200] * 19)
    make_tree(site.source, {f"{folder}/file": b"1", f"{folder}/large": 2_000_000, "other": b"2"})
    assert site.sync().code == 0
    assert files_of(site.dest) == files_of(site.source)
    here = os.getcwd()
    try:
        os.chdir(site.source / folder)
        Path("e" * 200).mkdir()
        os.chdir("e" * 200)
        Path("f" * 200).mkdir()
        os.chdir("f" * 200)
        Path("x" * 200).write_bytes(b"3")
    finally:
        os.chdir(here)
    make_tree(site.source, {"new": b"4"})
    done = site.sync()
    assert done.code == 1
    assert "File name too long" in done.err
    assert set(done.files("done")) == {"new"}


def test_names_of_triofts_own_are_skipped_and_those_of_other_programs_are_not(site: Site) -> None:
    """What is called like a partial of trioft's stays where it is, and that is said; rclone's are ordinary files."""
    make_tree(site.source, {"a.12345678.partial": b"1", "x/b.trioft-partial": b"2", ".trioft-c": b"3"})
    done = site.sync()
    assert (done.code, done.summary["delivered"], done.summary["skipped"]) == (0, 1, 2)
    assert set(files_of(site.dest)) == {b"a.12345678.partial"}
    skipped = done.files("skipped")
    assert set(skipped) == {"x/b.trioft-partial", ".trioft-c"}
    assert all("for itself" in line["reason"] for line in skipped.values())
