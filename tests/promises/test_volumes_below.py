"""
Disks that are mounted below the destination: each has its own identity, as the destination itself has (promise 5).

Where one is unmounted, an ordinary folder is left in its place: nothing may be put into that, and no source go for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks import Disk, disk
from inotify import IN_ISDIR, IN_OPEN, read_events, watched
from support import Site, files_of, make_tree, pattern

OPTIONS = """
source: {settle_closed: 100ms, scan_interval: 300ms}
destination: {check_interval: 300ms, min_free: 0B}
copy: {on_success: delete}
retry: {retries: 2, first: 50ms, longest: 200ms}
"""


class Place:
    """A site in whose destination a disk is mounted."""

    def __init__(self, site: Site, card: Disk, bare: int) -> None:
        self.site, self.card, self.bare = site, card, bare
        self.config = site.root / "trioft.yaml"
        self.config.write_text(OPTIONS)

    def check_untouched(self) -> None:
        """Nothing was made in the bare mount point, not even for a moment."""
        for mask, name in read_events(self.bare):
            assert mask & ~IN_ISDIR == IN_OPEN, f"{name!r} in the bare mount point: event {mask:#x}"


@pytest.fixture
def place(site: Site) -> Iterator[Place]:
    point = site.dest / "card"
    point.mkdir()
    bare = watched(point)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, bare)
        card = stack.enter_context(disk("ext4", site.root / "card.img", point))
        (point / "lost+found").rmdir()
        stack.callback(site.stop_all)
        made = Place(site, card, bare)
        make_tree(site.source, {"card/first": b"1"})
        done = site.sync("-c", made.config)
        assert (done.code, files_of(point)) == (0, {b"first": b"1"}), done.err
        yield made


def test_a_run_without_the_disk_delivers_all_but_what_goes_there(place: Place) -> None:
    """Its files fail, and say what is missing; their sources stay."""
    site = place.site
    place.card.unmount()
    make_tree(site.source, {"card/second": b"2", "card/deep/third": b"3", "other": b"4"})
    done = site.sync("-c", place.config)
    assert done.code == 1
    assert set(done.files("failed")) == {"card/second", "card/deep/third"}
    assert "nothing is mounted at card below the destination" in done.err
    assert files_of(site.source) == {b"card/second": b"2", b"card/deep/third": b"3"}
    assert files_of(site.dest) == {b"other": b"4"}
    place.check_untouched()
    place.card.mount()
    assert site.sync("-c", place.config).code == 0
    assert files_of(site.dest / "card") == {b"first": b"1", b"second": b"2", b"deep/third": b"3"}


def test_while_the_disk_is_away_what_goes_there_waits(place: Place) -> None:
    """A watch that goes on delivers all the rest, and the files of the disk when it is back."""
    site = place.site
    running = site.watch("-c", place.config)
    make_tree(site.source, {"card/second": b"2"})
    running.wait_for_file("card/second", "done")
    place.card.unmount()
    make_tree(site.source, {"card/third": pattern(3_000_000, 3), "other": b"4"})
    running.wait_for_file("other", "done")
    line = running.wait_for_file("card/third", "waiting")
    assert line["reason"].startswith("destination: ")
    assert (site.source / "card" / "third").exists()
    place.check_untouched()
    place.card.mount()
    running.wait_for_file("card/third", "done")
    assert running.end().code == 0
    place.check_untouched()
    assert not files_of(site.source)


def test_another_disk_in_its_place_is_not_filled(place: Place, tmp_path: Path) -> None:
    """It is another filesystem, and that is said; with --accept-new-destination it is taken."""
    site = place.site
    place.card.unmount()
    with disk("ext4", tmp_path / "another.img", site.dest / "card") as another:
        make_tree(site.source, {"card/second": b"2"})
        done = site.sync("-c", place.config)
        assert (done.code, "another filesystem is mounted at card" in done.err) == (1, True)
        assert not [name for name in files_of(another.point) if b"second" in name]
        done = site.sync("-c", place.config, "--accept-new-destination")
        assert done.code == 0, done.err
        assert files_of(another.point)[b"second"] == b"2"
