"""
Mounts that go away and come back under a running trioft, or between two runs (promise 5).

The destination, or the source, is a real filesystem in an image file. Where it is unmounted, an ordinary folder of the
local disk is left in its place. That nothing was ever made in it, not even a probe's file for a moment, the kernel
tells (inotify).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from disks import Disk, disk, quick_folder, tell
from inotify import IN_ISDIR, IN_OPEN, read_events, watched
from support import Done, Running, Site, files_of, make_tree, pattern, wait_until
from trioft.core.model import BLOCK_SIZE, MIB
from truth import recorded

OPTIONS = """
source: {settle_closed: 100ms, scan_interval: 300ms}
destination: {check_interval: 200ms, min_free: 0B}
copy: {checkpoint_size: 8MiB}
retry: {first: 50ms, longest: 200ms}
"""
BIG = pattern(5 * BLOCK_SIZE + 77, 1)
SLOWLY = ("--bwlimit", "20MiB/s")


class Bare:
    """A mount point as it is where nothing is mounted; sees what is done in it, and how often it is looked at."""

    def __init__(self, folder: Path) -> None:
        """Before anything is mounted there."""
        self.folder = folder
        self.fd = watched(folder)
        self.looks = 0

    def close(self) -> None:
        os.close(self.fd)

    def check_untouched(self) -> None:
        """Nothing was made, changed or removed in it since there is this object, not even for a moment."""
        for mask, name in read_events(self.fd):
            assert mask & ~IN_ISDIR == IN_OPEN, f"{name!r} in the bare mount point: event {mask:#x}"
            self.looks += 1

    def see_looks(self, running: Running, count: int = 3) -> None:
        """Return when it has been looked at so many times, and left alone."""

        def happened() -> bool:
            assert running.process.poll() is None, running.errors
            self.check_untouched()
            return self.looks >= wanted

        self.check_untouched()
        wanted = self.looks + count
        wait_until(happened)


class Place:
    """A site one end of which is a disk."""

    def __init__(self, site: Site, made: Disk, bare: Bare) -> None:
        self.site, self.disk, self.bare = site, made, bare
        self.config = site.root / "trioft.yaml"
        self.config.write_text(OPTIONS)

    def watch(self, *options: str) -> Running:
        return self.site.watch("-c", self.config, *options)

    def sync(self, *options: str) -> Done:
        return self.site.sync("-c", self.config, *options)

    def expect(self, contents: Mapping[bytes, bytes]) -> None:
        """Exactly these files are at the destination, and no partial is."""
        assert self.disk.is_mounted
        assert sorted(files_of(self.site.dest)) == sorted(contents)
        assert files_of(self.site.dest) == dict(contents)


def _make_place(place: Path, end: str) -> Iterator[Place]:
    site = Site(place)
    point: Path = getattr(site, end)
    bare = Bare(point)
    with contextlib.closing(bare), disk("ext4", place / "disk.img", point) as made:
        (point / "lost+found").rmdir()
        try:
            yield Place(site, made, bare)
        finally:
            site.stop_all()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The destination is a disk."""
    with quick_folder(tmp_path) as folder:
        yield from _make_place(folder, "dest")


@pytest.fixture
def source_place(tmp_path: Path) -> Iterator[Place]:
    """The source is a disk."""
    with quick_folder(tmp_path) as folder:
        yield from _make_place(folder, "source")


def says(event: str, *words: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line["event"] == event and all(word in line["text"] for word in words)


def wait_for_middle(place: Place, running: Running) -> None:
    """Return when some of the big file is settled, and some is still to come."""
    running.wait_for_file("big.mov", "copying")
    wait_until(lambda: recorded(place.site, running=True).settled(b"big.mov") >= BLOCK_SIZE)


def wait_until_parked(running: Running, end: str) -> dict[str, Any]:
    """Return what is said of the big file when it waits for one of the ends."""
    waiting = running.wait_for_file("big.mov", "waiting")
    assert waiting["reason"].startswith(end)
    assert BLOCK_SIZE <= waiting["bytes_verified"] < len(BIG)
    return waiting


def check_resumed(done: Done, parked: dict[str, Any], contents: Mapping[bytes, bytes]) -> None:
    """Nothing that was settled when the big file was *parked* has been copied again."""
    again = parked["bytes_copied"] - parked["bytes_verified"]
    # Small files have no checkpoint: those that were in the middle of it begin again.
    others = sum(len(content) for path, content in contents.items() if path != b"big.mov")
    assert done.summary["bytes"] <= len(BIG) + again + 2 * others


def finish(running: Running, contents: Mapping[bytes, bytes]) -> Done:
    """See *contents* delivered, none of them failed, none with an attempt counted against it; stop."""
    for path in contents:
        running.wait_for_file(os.fsdecode(path), "done")
    done = running.end()
    assert done.code == 0, done.err
    assert done.summary["failed"] == 0
    counted = [(line["path"], line["state"], line["reason"]) for line in done.lines if line.get("attempt")]
    assert not counted, counted
    return done


# --- the destination, under a running watch ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lazily", "when-idle", "other-device"])
def test_a_destination_that_is_unmounted_in_mid_copy_is_waited_for(how: str, place: Place) -> None:
    """Nothing is written below the bare mount point; the copy goes on by itself once the filesystem is back."""
    site = place.site
    contents = {b"big.mov": BIG, b"late/new.txt": b"arrives while it is away"}
    make_tree(site.source, {b"big.mov": BIG})
    running = place.watch(*SLOWLY)
    wait_for_middle(place, running)
    place.disk.unmount(*["--lazy"] * (how == "lazily"))
    make_tree(site.source, {b"late/new.txt": contents[b"late/new.txt"]})
    running.wait_for(says("storage", "not usable"))
    parked = wait_until_parked(running, "destination")
    place.bare.see_looks(running)
    if how == "other-device":
        place.disk.change_device()
    place.disk.mount()
    running.wait_for(says("storage", "usable again"))
    done = finish(running, contents)
    place.expect(contents)
    check_resumed(done, parked, contents)
    place.disk.unmount()
    place.bare.check_untouched()


def test_a_destination_that_is_unmounted_while_nothing_is_to_do_is_noticed(place: Place) -> None:
    """It is said before anybody needs it; what comes meanwhile waits, and arrives once the filesystem is back."""
    make_tree(place.site.source, {b"first": b"1"})
    running = place.watch()
    running.wait_for_file("first", "done")
    place.disk.unmount()
    running.wait_for(says("storage", "not usable"))
    make_tree(place.site.source, {b"second": b"2", b"folder/third": pattern(2 * MIB)})
    waiting = running.wait_for_file("second", "waiting")
    assert waiting["reason"].startswith("destination")
    place.bare.see_looks(running)
    place.disk.mount()
    contents = {b"first": b"1", b"second": b"2", b"folder/third": pattern(2 * MIB)}
    finish(running, contents)
    place.expect(contents)
    place.disk.unmount()
    place.bare.check_untouched()


@pytest.mark.parametrize("which", ["tmpfs", "same-kind", "same-device"])
def test_another_filesystem_in_the_destinations_place_is_left_alone(which: str, place: Place) -> None:
    """Another drive in the same slot, even under the same device name, gets nothing of what was meant for the first."""
    site = place.site
    contents = {b"big.mov": BIG, b"new": b"new"}
    make_tree(site.source, {b"big.mov": BIG})
    other = site.root / "other"
    other.mkdir()
    with disk("ext4", site.root / "other.img", other) as stranger:
        (other / "lost+found").rmdir()
        stranger.unmount()
        running = place.watch(*SLOWLY)
        wait_for_middle(place, running)
        place.disk.unmount()
        running.wait_for(says("storage", "not usable"))
        parked = wait_until_parked(running, "destination")
        if which == "tmpfs":
            tell("mount", "-t", "tmpfs", "-o", "size=1m", "none", site.dest)
        else:
            if which == "same-device":
                place.disk.swap(stranger)
            tell("mount", "-t", "ext4", stranger.device, site.dest)
        assert place.disk.is_mounted
        inside = Bare(site.dest)
        make_tree(site.source, {b"new": b"new"})
        inside.see_looks(running)
        inside.close()
        assert list(site.dest.iterdir()) == []
        place.disk.unmount()
        if which == "same-device":
            stranger.swap(place.disk)
        place.disk.mount()
        running.wait_for(says("storage", "usable again"))
        done = finish(running, contents)
        place.expect(contents)
        check_resumed(done, parked, contents)
        place.disk.unmount()
        place.bare.check_untouched()


def test_another_disk_under_the_same_name_gets_nothing_before_anybody_has_looked(place: Place) -> None:
    """Drives may change places between two looks: each operation makes sure that it works on the right one."""
    site = place.site
    place.config.write_text(OPTIONS.replace("check_interval: 200ms", "check_interval: 1h"))
    make_tree(site.source, {b"first": b"1"})
    other = site.root / "other"
    other.mkdir()
    with disk("ext4", site.root / "other.img", other) as stranger:
        (other / "lost+found").rmdir()
        stranger.unmount()
        running = place.watch()
        running.wait_for_file("first", "done")
        place.disk.unmount()
        place.disk.swap(stranger)
        tell("mount", "-t", "ext4", stranger.device, site.dest)
        make_tree(site.source, {b"second": b"2"})
        line = running.wait_for(lambda line: line.get("path") == "second" and line["state"] in ("waiting", "done"))
        assert list(site.dest.iterdir()) == []
        assert line["reason"].startswith("destination")
        place.disk.unmount()
        stranger.swap(place.disk)
        place.disk.mount()
        finish(running, {b"second": b"2"})
        place.expect({b"first": b"1", b"second": b"2"})


@pytest.mark.parametrize("kind", ["tmpfs", "bindfs"])
def test_another_filesystem_with_the_same_device_number_gets_nothing(kind: str, site: Site) -> None:
    """The kernel gives the number of what is gone to what comes next: that gets no file, and no source goes for it."""
    if os.geteuid() != 0 or shutil.which(kind if kind == "bindfs" else "mount") is None:
        pytest.skip(f"no {kind} can be mounted here")
    backing = [site.root / "right", site.root / "wrong"]

    def mount(which: int) -> None:
        if kind == "tmpfs":
            tell("mount", "-t", "tmpfs", backing[which].name, site.dest)
        else:
            backing[which].mkdir(exist_ok=True)
            tell("bindfs", backing[which], site.dest)

    def is_unmounted() -> bool:
        # Not lazily: its number is free only when nobody has it open any more.
        return subprocess.run(["umount", site.dest], capture_output=True, check=False).returncode == 0

    config = site.root / "trioft.yaml"
    config.write_text(OPTIONS.replace("check_interval: 200ms", "check_interval: 1h"))
    contents = {b"big.mov": BIG, b"other.mov": pattern(2 * BLOCK_SIZE, 2)}
    make_tree(site.source, dict(contents.items()))
    mount(0)
    try:
        running = site.watch("-c", config, "--on-success", "delete", *SLOWLY)
        for path in ("big.mov", "other.mov"):
            running.wait_for_file(path, "copying")
        wait_until(is_unmounted)
        mount(1)
        inside = Bare(site.dest)
        for path in ("big.mov", "other.mov"):
            running.wait_for_file(path, "waiting")
        inside.see_looks(running)
        inside.close()
        assert files_of(site.source) == contents
        assert list(site.dest.iterdir()) == []
        tell("umount", "--lazy", site.dest)
        mount(0)
        finish(running, contents)
        assert files_of(site.dest) == contents
        assert files_of(site.source) == {}
    finally:
        site.stop_all()
        tell("umount", "--lazy", site.dest)


# --- the destination, from one run to the next ------------------------------------------------------------------------


def test_a_sync_into_a_bare_mount_point_is_refused_unless_it_is_wanted(place: Place) -> None:
    """What was delivered to a filesystem before does not go to the local disk now: exit code 3, and what to do."""
    make_tree(place.site.source, {b"first": b"1"})
    assert place.sync().code == 0
    make_tree(place.site.source, {b"second": b"2"})
    place.disk.unmount()
    refused = place.sync()
    assert refused.code == 3
    assert "--accept-new-destination" in refused.err
    place.bare.check_untouched()
    accepted = place.sync("--accept-new-destination")
    assert accepted.code == 0, accepted.err
    assert files_of(place.site.dest) == {b"first": b"1", b"second": b"2"}
    # It is what the next run expects then, and the first filesystem is a strange one.
    assert place.sync().code == 0
    place.disk.mount()
    assert place.sync().code == 3
    assert files_of(place.site.dest) == {b"first": b"1"}


def test_a_watch_of_a_destination_that_is_not_mounted_yet_waits_for_it(place: Place) -> None:
    """At a start before the share is there, as after a power cut: nothing goes to the local disk meanwhile."""
    make_tree(place.site.source, {b"first": b"1"})
    assert place.sync().code == 0
    make_tree(place.site.source, {b"second": b"2"})
    place.disk.unmount()
    running = place.watch()
    running.wait_for(says("storage", "not usable"))
    place.bare.see_looks(running)
    place.disk.mount()
    finish(running, {b"second": b"2"})
    place.expect({b"first": b"1", b"second": b"2"})
    place.disk.unmount()
    place.bare.check_untouched()


def test_a_watch_of_a_destination_that_does_not_exist_yet_waits_for_it(site: Site) -> None:
    """It says so, never makes it, and copies once it is there."""
    site.dest.rmdir()
    (site.root / "trioft.yaml").write_text(OPTIONS)
    make_tree(site.source, {b"first": b"1"})
    running = site.watch("-c", site.root / "trioft.yaml")
    running.wait_for(says("storage", "not there"))
    assert not site.dest.exists()
    site.dest.mkdir()
    finish(running, {b"first": b"1"})
    assert files_of(site.dest) == {b"first": b"1"}


# --- the source -------------------------------------------------------------------------------------------------------


def check_nothing_is_missed(done: Done) -> None:
    """No file was told to be gone or failed."""
    assert done.files("gone") == done.files("failed") == {}


@pytest.mark.parametrize("how", ["lazily", "when-idle", "other-device"])
def test_a_source_that_is_unmounted_in_mid_copy_is_away_not_empty(how: str, source_place: Place) -> None:
    """No file is gone, none has failed, none has used up an attempt: the copy goes on when the source is back."""
    place, site = source_place, source_place.site
    contents = {b"big.mov": BIG} | {b"small/%d" % number: b"%d" % number for number in range(20)}
    make_tree(site.source, dict(contents.items()))
    running = place.watch(*SLOWLY)
    wait_for_middle(place, running)
    place.disk.unmount(*["--lazy"] * (how == "lazily"))
    running.wait_for(says("source", "not usable"))
    parked = wait_until_parked(running, "source")
    place.bare.see_looks(running)
    if how == "other-device":
        place.disk.change_device()
    place.disk.mount()
    running.wait_for(says("source", "usable again"))
    done = finish(running, contents)
    check_nothing_is_missed(done)
    assert files_of(site.dest) == contents
    check_resumed(done, parked, contents)


def test_a_source_that_comes_back_as_another_device_before_anybody_noticed_is_the_same(source_place: Place) -> None:
    """Unmounted and mounted again between two reads, under another device number: that is nobody's fault."""
    place, site = source_place, source_place.site
    make_tree(site.source, {b"big.mov": BIG})
    running = place.watch("--bwlimit", "10MiB/s")  # almost a second between two reads
    wait_for_middle(place, running)
    place.disk.unmount()
    place.disk.change_device()
    place.disk.mount()
    done = finish(running, {b"big.mov": BIG})
    check_nothing_is_missed(done)
    assert files_of(site.dest) == {b"big.mov": BIG}


def test_a_source_that_is_unmounted_while_nothing_is_to_do_is_noticed(source_place: Place) -> None:
    """What the local disk has in its place is not transferred; what the source has when it is back, is."""
    place, site = source_place, source_place.site
    make_tree(site.source, {b"first": b"1"})
    running = place.watch()
    running.wait_for_file("first", "done")
    place.disk.unmount()
    make_tree(site.source, {b"stray": b"of the local disk"})
    running.wait_for(says("source", "not usable"))
    place.disk.mount()
    make_tree(site.source, {b"second": b"2"})
    done = finish(running, {b"first": b"1", b"second": b"2"})
    check_nothing_is_missed(done)
    assert files_of(site.dest) == {b"first": b"1", b"second": b"2"}


def test_a_sync_of_a_source_that_is_unmounted_in_mid_copy_does_not_end_as_if_all_were_done(source_place: Place) -> None:
    """It waits for the source, and goes on."""
    place, site = source_place, source_place.site
    contents = {b"big.mov": BIG, b"small": b"1"}
    make_tree(site.source, dict(contents.items()))
    running = site.start("sync", "-c", place.config, *SLOWLY)
    wait_for_middle(place, running)
    place.disk.unmount("--lazy")
    running.wait_for(says("source", "not usable"))
    place.bare.see_looks(running)
    place.disk.mount()
    done = running.end(0)
    assert done.code == 0, done.err
    check_nothing_is_missed(done)
    assert files_of(site.dest) == contents
