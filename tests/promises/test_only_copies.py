"""Nothing replaces what may be the only copy: two cards with the same names."""

from __future__ import annotations

import os

import pytest

from support import Site, files_of, make_tree


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
