"""What `trioft sync` does with sources that were delivered."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from support import OUTCOMES, Site, files_of, make_tree, mounted, pattern, read_tree, wait_until
from synced import BLOCK, SMALL, SPANS, partials_of, snapshot


def history(site: Site) -> list[tuple[str, bytes, bytes, str]]:
    """Return event, path, target and detail of the outcomes that the ledger has recorded, in order."""
    (ledger,) = site.state.glob("*.sqlite")
    with closing(sqlite3.connect(ledger)) as db:
        return db.execute(
            f"SELECT event, path, target, detail FROM history WHERE event IN {OUTCOMES} ORDER BY id"
        ).fetchall()


# --- What happens to the source ---------------------------------------------------------------------------------------


def test_keep_leaves_the_source_as_it_is(site: Site) -> None:
    """Without --on-success nothing at the source changes, not even a time."""
    make_tree(site.source, {"a": SMALL, "folder/b": SPANS})
    before = snapshot(site.source)
    assert site.sync().code == 0
    assert snapshot(site.source) == before


def test_delete_removes_sources_that_were_delivered(site: Site) -> None:
    """Promise 3: what was delivered is removed from the source, folders stay, and the proofs are on record."""
    make_tree(site.source, {"a": SMALL, "folder/b": SPANS})
    before = files_of(site.source)
    done = site.sync("--on-success", "delete")
    assert (done.code, done.summary["delivered"]) == (0, 2)
    assert read_tree(site.source) == {b"folder": None}
    assert files_of(site.dest) == before
    events = history(site)
    for path, content in before.items():
        assert [event for event, its, *_ in events if its == path] == ["delivered", "removed"]
        proofs = json.loads(next(detail for event, its, _, detail in events if (event, its) == ("removed", path)))
        assert proofs["durable_and_verified"] == "readback"
        assert proofs["no_writer"] == "closed"
        assert proofs["source"]["size"] == len(content)


def test_a_file_that_is_already_there_is_removed_only_after_a_comparison(site: Site) -> None:
    """A source that the destination has already is removed once all of it was compared, and is not copied again."""
    make_tree(site.source, {"a": SMALL, "b": SPANS})
    assert site.sync().code == 0
    before, there = files_of(site.source), snapshot(site.dest)
    done = site.sync("--on-success", "delete")
    assert (done.code, done.summary["already"], done.summary["bytes"]) == (0, 2, 0)
    assert all(line["digest"] is not None for line in done.files("done").values())
    assert os.listdir(site.source) == []
    assert files_of(site.dest) == before
    assert snapshot(site.dest)[1:] == there[1:]


@pytest.mark.parametrize(
    ("policy", "expected", "stays"),
    [
        ("overwrite", {"": "mine"}, False),
        ("rename", {"": "other", "_1": "mine"}, False),
        ("skip", {"": "other"}, True),
        ("fail", {"": "other"}, True),
    ],
)
def test_the_same_size_and_time_are_no_proof(site: Site, policy: str, expected: dict[str, str], stays: bool) -> None:
    """A file that only looks the same at the destination costs no source: its content is delivered, or it stays."""
    contents: dict[tuple[str, str], bytes] = {}
    for name, size in (("a", SMALL), ("b", SPANS)):
        contents["mine", name], contents["other", name] = pattern(size, 1), pattern(size - 1, 1) + b"?"
        make_tree(site.source, {name: contents["mine", name]})
        make_tree(site.dest, {name: contents["other", name]})
        shutil.copystat(site.source / name, site.dest / name)
    before = files_of(site.source)
    done = site.sync("--on-success", "delete", "--if-exists", policy)
    assert done.code == (1 if policy == "fail" else 0)
    assert files_of(site.dest) == {
        f"{name}{tail}".encode(): contents[content, name] for name in "ab" for tail, content in expected.items()
    }
    assert files_of(site.source) == (before if stays else {})


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_archive_moves_sources_that_were_delivered(site: Site, relative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`archive:DIR` moves delivered sources below DIR, in their folders, and never over a file that is there."""
    make_tree(site.source, {"a.mov": b"1", "x/y/b": 2_000_000})
    make_tree(site.root, {"archive/a.mov": b"an older one"})
    before = files_of(site.source)
    monkeypatch.chdir(site.root)
    done = site.sync("--on-success", "archive:archive" if relative else f"archive:{site.root}/archive")
    assert (done.code, done.err) == (0, "")
    assert read_tree(site.source) == {b"x": None, b"x/y": None}
    assert files_of(site.dest) == before
    archived = {b"a.mov": b"an older one", b"a_1.mov": b"1", b"x/y/b": before[b"x/y/b"]}
    assert files_of(site.root / "archive") == archived
    assert sorted(path for event, path, *_ in history(site) if event == "removed") == [b"a.mov", b"x/y/b"]


def test_an_archive_inside_the_source_is_left_out(site: Site) -> None:
    """The archive may lie in the source: what is in it is not transferred, but others of the same name are."""
    make_tree(site.source, {"a": b"1", "done/old": b"2", "x/done/b": b"3", "x/done*": b"4"})
    assert site.sync("--on-success", f"archive:{site.source}/done").code == 0
    assert files_of(site.dest) == {b"a": b"1", b"x/done/b": b"3", b"x/done*": b"4"}
    assert set(files_of(site.source)) == {b"done/a", b"done/old", b"done/x/done/b", b"done/x/done*"}


def test_an_archive_on_another_filesystem_keeps_the_source(site: Site) -> None:
    """No source could be moved to such an archive: it is refused at the start, before anything is copied."""
    make_tree(site.source, {"a": b"1"})
    archive = site.root / "archive"
    archive.mkdir()
    with mounted("none", archive, "-t", "tmpfs", "-o", "size=1m"):
        done = site.sync("--on-success", f"archive:{archive}")
    assert done.code == 2
    assert "choose a folder on the filesystem of the source" in done.err
    assert (files_of(site.source), files_of(site.dest)) == ({b"a": b"1"}, {})


def test_a_source_that_changed_is_not_removed(site: Site) -> None:
    """Promise 3: a file that is opened for writing while it is copied is delivered as it was, and not removed."""
    make_tree(site.source, {"a": 2 * BLOCK})
    before = files_of(site.source)
    running = site.start("sync", "--on-success", "delete", "--bwlimit", "8MiB/s", "--growing", "wait")
    wait_until(lambda: partials_of(site.dest) and partials_of(site.dest)[0].stat().st_size)
    with open(site.source / "a", "ab"):
        running.wait_for_file("a", "done")
        running.end(0)
    assert files_of(site.source) == files_of(site.dest) == before
