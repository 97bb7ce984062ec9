"""
A destination that shows the source's own files, or leads back to them: there every file is "already there".

An overlay over the source, a FUSE filesystem over it, and, below the destination, links, bind mounts and FUSE mounts
of one of its folders. The sources are to be removed after their delivery; they must all stay (promise 3).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks import tell
from faults_mount import FaultMount, fault_mount
from support import Site, files_of, make_tree, pattern

FILES: dict[str | bytes, bytes | int | None] = {
    "take.mxf": pattern(3_000_000, 1),
    "notes": b"hello",
    "day/one": b"1",
    "day/two": b"2",
}


@contextlib.contextmanager
def mounted(point: Path, *how: str | Path) -> Iterator[None]:
    """While inside, something is mounted at *point*; skips the test where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    try:
        tell("mount", *how, point)
    except OSError as error:
        pytest.skip(f"cannot mount here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", point], capture_output=True, timeout=30, check=False)


@contextlib.contextmanager
def overlay(site: Site, source_is: str) -> Iterator[None]:
    """The destination is an overlay, in which the source is the layer below, or the one that is written to."""
    for name in ("other", "work"):
        (site.root / name).mkdir()
    lower, upper = (site.source, site.root / "other") if source_is == "lower" else (site.root / "other", site.source)
    options = f"lowerdir={lower},upperdir={upper},workdir={site.root / 'work'}"
    with mounted(site.dest, "-t", "overlay", "-o", options, "overlay"):
        yield


@pytest.mark.parametrize("source_is", ["upper", "lower"])
@pytest.mark.parametrize("command", ["sync", "watch"])
def test_an_overlay_over_the_source_is_refused(site: Site, command: str, source_is: str) -> None:
    """What is written at the one end appears at the other: such a pair is not worked on."""
    make_tree(site.source, FILES)
    before = files_of(site.source)
    with overlay(site, source_is):
        done = site.start(command, "--on-success", "delete").end(0)
        assert (done.code, "two views of the same files" in done.err) == (2, True)
    assert files_of(site.source) == before


@pytest.fixture
def view() -> Iterator[FaultMount]:
    with fault_mount() as made:
        yield made


@pytest.mark.parametrize("below", ["", "day"])
def test_a_fuse_filesystem_over_the_source_is_refused(site: Site, view: FaultMount, below: str) -> None:
    """Also one over a folder of the source: what is delivered to it would be found there, and delivered again."""
    make_tree(view.backing, FILES)
    view.begin()
    site.source, site.dest = view.backing, view.place / below
    before = files_of(site.source)
    done = site.sync("--on-success", "delete")
    assert (done.code, "two views of the same files" in done.err) == (2, True)
    assert files_of(site.source) == before


def test_a_destination_that_shows_the_source_is_refused_where_sources_stay_too(site: Site, view: FaultMount) -> None:
    """Nothing is lost there; but that everything has been copied would be a lie."""
    make_tree(view.backing, FILES)
    site.source, site.dest = view.backing, view.place
    assert site.sync().code == 2
    assert files_of(site.source).keys() == {os.fsencode(name) for name in FILES}


@contextlib.contextmanager
def leading_back(site: Site, how: str) -> Iterator[None]:
    """The folder ``day`` of the destination is that of the source."""
    point, target = site.dest / "day", site.source / "day"
    if how == "link":
        point.symlink_to(target)
        yield
        return
    point.mkdir()
    with mounted(point, "--bind", target):
        yield


@pytest.mark.parametrize("policy", ["overwrite", "rename"])
@pytest.mark.parametrize("how", ["link", "bind mount"])
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "delete"])
def test_a_folder_that_leads_back_into_the_source_frees_none_of_its_files(
    site: Site, how: str, policy: str, keep: bool
) -> None:
    """The files of that folder fail, and say why; all others are delivered."""
    make_tree(site.source, FILES)
    before = files_of(site.source)
    with leading_back(site, how):
        done = site.sync("--on-success", "keep" if keep else "delete", "--if-exists", policy)
        assert done.code == 1
        assert set(done.files("failed")) == {"day/one", "day/two"}
        assert "lies in the source itself" in done.err
    left = files_of(site.source)
    assert {b"day/one": b"1", b"day/two": b"2"}.items() <= left.items()
    assert left.keys() <= before.keys()
    assert set(done.files("done")) == {"take.mxf", "notes"}


@contextlib.contextmanager
def leading_to_another(site: Site, how: str) -> Iterator[None]:
    """The folder ``sub`` of the destination is the folder ``other`` of the source, or of what is mounted there."""
    make_tree(site.source, {"sub/f": b"1", "sub/new/g": b"2"})
    other = site.source / "other"
    other.mkdir()
    point = site.dest / "sub"
    with contextlib.ExitStack() as stack:
        if how == "link":
            point.symlink_to(other)
        else:
            point.mkdir()
            if how == "bind mount of what is mounted there":
                disk = site.root / "disk"
                disk.mkdir()
                stack.enter_context(mounted(disk, "-t", "tmpfs", "tmpfs"))
                stack.enter_context(mounted(other, "--bind", disk))
                (disk / "below").mkdir()
                other = disk / "below"
            stack.enter_context(mounted(point, "--bind", other))
        yield


OTHERS = ["link", "bind mount", "bind mount of what is mounted there"]


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "delete"])
def test_a_folder_that_is_another_one_of_the_source_gets_nothing(site: Site, how: str, keep: bool) -> None:
    """What would be delivered there would lie in the source. Also below it, where there is no such folder yet."""
    with leading_to_another(site, how):
        options = ["--on-success", "keep" if keep else "delete", "--exclude", "other"]
        done = site.sync(*options)
        assert (done.code, set(done.files("failed"))) == (1, {"sub/f", "sub/new/g"}), done.err
        assert "lies in the source itself" in done.err
        assert files_of(site.source) == {b"sub/f": b"1", b"sub/new/g": b"2"}


def test_what_lies_in_the_source_is_no_copy(site: Site) -> None:
    """Neither for `safe` nor for `verify`, whatever was delivered under that name."""
    make_tree(site.source, {"sub/f": b"1", "other/g": b"2"})
    assert site.sync("--verify", "readback").code == 0
    assert site.run("safe", site.source / "sub", "--state-dir", site.state).code == 0
    os.rename(site.dest / "sub" / "f", site.source / "other" / "f")
    with mounted(site.dest / "sub", "--bind", site.source / "other"):
        _is_no_copy(site)
    (site.dest / "sub").rmdir()
    (site.dest / "sub").symlink_to("../source/sub")
    _is_no_copy(site)


def _is_no_copy(site: Site) -> None:
    for read in ([], ["--read"]):
        done = site.run("safe", site.source / "sub", "--state-dir", site.state, *read)
        assert (done.code, "source itself" in done.out) == (1, True), done.out + done.err
    done = site.run("verify", site.source, site.dest, "--state-dir", site.state, "--again")
    assert done.code == 1, done.err
    assert "sub/f: missing: its folder at the destination lies in the source itself" in done.err
    assert "1 verified, 1 missing" in done.err


@pytest.mark.parametrize("policy", ["overwrite", "rename"])
def test_a_fuse_mount_of_a_source_folder_below_the_destination_frees_none_of_its_files(
    site: Site, view: FaultMount, policy: str
) -> None:
    """It has other device and inode numbers: what is written there for a moment gives it away."""
    make_tree(view.backing, FILES)
    site.source = view.backing
    (site.dest / "day").mkdir()
    with mounted(site.dest / "day", "--bind", view.place / "day"):
        done = site.sync("--on-success", "delete", "--if-exists", policy)
        assert done.code == 1
        assert set(done.files("failed")) == {"day/one", "day/two"}
        assert "is the source file itself" in done.err
    assert files_of(site.source) == {b"day/one": b"1", b"day/two": b"2"}


def test_a_rule_that_leads_back_into_the_source_is_found_out(site: Site) -> None:
    """Not only the folder of the same name may be one of the source's."""
    make_tree(site.source, {"in/a": b"1", "day/b": b"2"})
    (site.dest / "elsewhere").symlink_to(site.source / "day")
    config = site.root / "trioft.yaml"
    config.write_text('destination: {routes: [{match: "in/*", to: "elsewhere/{name}"}]}\n')
    done = site.sync("-c", config, "--on-success", "delete")
    assert "lies in the source itself" in done.err, done.err
    assert files_of(site.source) == {b"in/a": b"1"}


def test_a_hard_link_of_the_source_is_a_copy_that_stays(site: Site) -> None:
    """Another name of the same file keeps what it holds when the source's name goes: that is no view."""
    make_tree(site.source, {"day/one": b"1"})
    (site.dest / "day").mkdir()
    os.link(site.source / "day" / "one", site.dest / "day" / "one")
    done = site.sync("--on-success", "delete")
    assert done.code == 0, done.err
    assert files_of(site.dest) == {b"day/one": b"1"}
    assert not files_of(site.source)


def test_what_a_look_that_was_killed_has_left_in_the_source_is_nobodys(site: Site) -> None:
    """It is neither transferred nor told of, and no reason not to remove the source; a day later it is cleared up."""
    left, named = site.source / f".trioft-probe-view-{'0' * 24}", site.source / f".trioft-probe-view-{'1' * 24}"
    make_tree(site.source, {**FILES, left.name: b"", named.name: b"somebody's"})
    os.utime(named, (0, 0))
    done = site.sync()
    assert (done.code, done.summary["skipped"]) == (0, 1)
    named.unlink()
    done = site.sync()
    assert (done.code, done.summary["skipped"]) == (0, 0)
    assert site.run("safe", site.source, "--state-dir", site.state).code == 0
    assert left.exists()
    os.utime(left, (0, 0))
    assert site.sync("--on-success", "delete").code == 0
    assert files_of(site.source) == {}
    assert files_of(site.dest).keys() == {os.fsencode(name) for name in FILES}
