"""`source.remove_empty_folders`: the source's folders that deliveries have emptied."""

from __future__ import annotations

import pytest

from files import need_leases
from support import Site, files_of, make_tree, read_tree


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("action", ["delete", "archive"])
def test_emptied_folders_are_removed_where_that_is_asked_for(site: Site, asked: bool, action: str) -> None:
    """With those above them; not one in which anything is left, one that was empty before, or the source itself."""
    need_leases(site.source)
    config = site.root / "config.yaml"
    config.write_text(f"source: {{remove_empty_folders: {str(asked).lower()}}}\n", encoding="utf-8")
    make_tree(
        site.source, {"a/b/c/one": b"1", "a/b/two": 2_000_000, "kept/x": b"x", "kept/not.tmp": b"y", "bare": None}
    )
    archive = site.root / "archive"
    archive.mkdir()
    what = "delete" if action == "delete" else f"archive:{archive}"
    done = site.sync("-c", config, "--on-success", what, "--exclude", "*.tmp")
    assert (done.code, done.summary["delivered"]) == (0, 3)
    assert {*files_of(site.dest)} == {b"a/b/c/one", b"a/b/two", b"kept/x"}
    left = {b"kept", b"kept/not.tmp", b"bare"} | (set() if asked else {b"a", b"a/b", b"a/b/c"})
    assert {*read_tree(site.source)} == left
