"""
Two source names that are one name at the destination: by case, by composition, by dots and blanks at the end.

Whatever comes to such a name second, in the same run or a later one, never replaces what came first (promise 3); and
names as long as the destination holds them arrive, whatever it says of itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks import tell
from faults_mount import fault_mount
from support import Site, files_of, make_tree
from trioft.core.naming import is_own

PAIRS = {
    "case": ("CLIP.MXF", "clip.mxf"),
    "folders": ("Day One/a.mxf", "day one/a.mxf"),
    "normal": ("\u00e9tude.mov", "e\u0301tude.mov"),
    "trim": ("take", "take."),
}


@pytest.fixture(params=[*PAIRS])
def pair(request: pytest.FixtureRequest, site: Site) -> Iterator[tuple[str, str]]:
    """Two names, and a destination that takes them for one."""
    with fault_mount({"folders": "case"}.get(request.param, request.param)) as made:
        site.dest = made.place
        yield PAIRS[request.param]


def contents(site: Site) -> list[bytes]:
    return sorted([*files_of(site.source).values(), *files_of(site.dest).values()])


@pytest.mark.parametrize("policy", ["overwrite", "rename", "skip", "fail"])
def test_of_two_names_that_are_one_both_contents_stay(site: Site, pair: tuple[str, str], policy: str) -> None:
    """One is delivered; the other one gets a number, or stays where it is, and that is said."""
    make_tree(site.source, {pair[0]: b"first recording", pair[1]: b"second recording, another one"})
    done = site.sync("--on-success", "delete", "--if-exists", policy)
    assert contents(site) == [b"first recording", b"second recording, another one"]
    assert done.code == (1 if policy in ("overwrite", "fail") else 0)
    assert len(files_of(site.dest)) == (2 if policy == "rename" else 1)


@pytest.mark.parametrize("keep", [True, False], ids=["keep", "delete"])
def test_a_later_run_replaces_nothing_of_another_name(site: Site, pair: tuple[str, str], keep: bool) -> None:
    """What was delivered, and is perhaps the only copy by now, is known by its own name."""
    action = "keep" if keep else "delete"
    make_tree(site.source, {pair[0]: b"first recording"})
    assert site.sync("--on-success", action, "--if-exists", "overwrite").code == 0
    make_tree(site.source, {pair[1]: b"second recording, another one"})
    done = site.sync("--on-success", action, "--if-exists", "overwrite")
    assert (done.code, set(done.files("failed"))) == (1, {pair[1]})
    assert set(files_of(site.dest).values()) == {b"first recording"}
    assert (site.source / pair[1]).read_bytes() == b"second recording, another one"


def test_a_later_version_of_the_same_name_still_replaces_the_first(site: Site, pair: tuple[str, str]) -> None:
    """However the destination spells it."""
    for content in (b"one", b"another one"):
        make_tree(site.source, {pair[1]: content})
        done = site.sync("--if-exists", "overwrite")
        assert done.code == 0, done.err
        assert [*files_of(site.dest).values()] == [content]


def test_without_its_ledger_a_name_in_other_capitals_is_not_replaced(site: Site) -> None:
    """What lies there may be anybody's; the name that it was made with tells that it is not this file's."""
    with fault_mount("case") as made:
        site.dest = made.place
        make_tree(made.backing, {"CLIP.MXF": b"of somebody"})
        make_tree(site.source, {"clip.mxf": b"mine, and another one"})
        done = site.sync("--if-exists", "overwrite")
        assert (done.code, "takes the two names for one" in done.err) == (1, True)
        assert files_of(site.dest) == {b"CLIP.MXF": b"of somebody"}


def test_same_size_and_time_under_another_name_is_no_copy(site: Site) -> None:
    """Size and time would do for the file's own name, but not for one that only looks like it."""
    with fault_mount("case") as made:
        site.dest = made.place
        make_tree(site.source, {"CLIP.MXF": b"1111", "clip.mxf": b"2222"})
        for name in ("CLIP.MXF", "clip.mxf"):
            os.utime(site.source / name, (1_000_000_000, 1_000_000_000))
        done = site.sync("--if-exists", "overwrite")
        assert done.code == 1
        assert (done.summary["delivered"], done.summary["already"]) == (1, 0)


# FAT, and servers that have names for DOS, find a file by a second, short name, too.
SHORT = {"files": ("long file name.mov", "LONGFI~1.MOV"), "folders": ("a long folder/x.mov", "ALONGF~1/x.mov")}


@pytest.mark.parametrize("kind", [*SHORT])
@pytest.mark.parametrize("action", ["keep", "delete"])
@pytest.mark.parametrize("policy", ["overwrite", "rename"])
def test_a_name_that_is_the_short_one_of_another_replaces_nothing(
    site: Site, kind: str, action: str, policy: str
) -> None:
    """It is not known before which name that is: the destination has made it up."""
    long, short = SHORT[kind]
    with fault_mount("dos") as made:
        site.dest = made.place
        make_tree(site.source, {long: b"first recording"})
        assert site.sync("--on-success", action, "--if-exists", policy).code == 0
        make_tree(site.source, {short: b"second recording, another one"})
        done = site.sync("--on-success", action, "--if-exists", policy)
        assert done.code == (1 if policy == "overwrite" else 0)
        assert ("takes the two names for one" in done.err) == (policy == "overwrite")
        assert files_of(site.dest)[os.fsencode(long)] == b"first recording"
        assert set(contents(site)) == {b"first recording", b"second recording, another one"}


@pytest.mark.parametrize("kind", [*SHORT])
def test_in_one_run_a_long_name_and_a_short_one_replace_nothing(site: Site, kind: str) -> None:
    """Whichever comes first, and also where nothing lies in the folder that is really another one."""
    with fault_mount("dos") as made:
        site.dest = made.place
        make_tree(site.source, dict(zip(SHORT[kind], [b"first recording", b"second, another one"], strict=True)))
        site.sync("--on-success", "delete", "--if-exists", "overwrite")
        assert contents(site) == [b"first recording", b"second, another one"]


def test_names_as_long_as_the_destination_holds_them_arrive(site: Site) -> None:
    """Their partials are shortened; what it says of its longest name may be wrong."""
    with fault_mount("short") as made:
        site.dest = made.place
        tree: dict[str | bytes, bytes | int | None] = {
            "n" * length + ".mxf": b"x" * length for length in (100, 110, 125, 139)
        }
        make_tree(site.source, {**tree, "large" + "n" * 134 + ".mxf": 9_000_000})
        done = site.sync("--on-success", "delete")
        assert done.code == 0, done.err
        assert len(files_of(site.dest)) == 5
        make_tree(site.source, {"n" * 140 + ".mxf": b"too long"})
        done = site.sync("--on-success", "delete")
        assert (done.code, "File name too long" in done.err) == (1, True)


def test_a_long_name_that_is_taken_gets_a_number_that_fits(site: Site) -> None:
    """The number takes the place of the end of the name."""
    with fault_mount("short") as made:
        site.dest = made.place
        name = "n" * 139 + ".mxf"
        for content in (b"one", b"another one"):
            make_tree(site.source, {name: content})
            assert site.sync("--on-success", "delete", "--if-exists", "rename").code == 0
        assert files_of(site.dest).keys() == {name.encode(), b"n" * 137 + b"_1.mxf"}


@pytest.fixture
def exfat(site: Site) -> Iterator[Path]:
    """The destination is an exFAT disk."""
    if os.geteuid() != 0 or not (shutil.which("mkfs.exfat") and shutil.which("mount.exfat-fuse")):
        pytest.skip("exfat-fuse, and root, are needed")
    image = site.root / "disk.img"
    image.touch()
    os.truncate(image, 64 << 20)
    tell("mkfs.exfat", image)
    try:
        device = tell("losetup", "--find", "--show", image)
    except OSError as error:
        pytest.skip(f"no loop devices here: {error}")
    try:
        try:
            tell("mount.exfat-fuse", device, site.dest)
        except OSError as error:
            pytest.skip(f"cannot mount here: {error}")
        yield site.dest
    finally:
        subprocess.run(["umount", "--lazy", site.dest], capture_output=True, timeout=30, check=False)
        subprocess.run(["losetup", "--detach", device], capture_output=True, timeout=30, check=False)


@pytest.mark.parametrize("policy", ["overwrite", "rename", "skip"])
def test_on_a_real_exfat_both_contents_stay(site: Site, exfat: Path, policy: str) -> None:
    """No stand-in: a card as it is sold, which has neither links nor a rename that replaces nothing."""
    make_tree(site.source, {"CLIP.MXF": b"first recording", "clip.mxf": b"second recording, another one"})
    done = site.sync("--on-success", "delete", "--if-exists", policy)
    assert done.code == (1 if policy == "overwrite" else 0)
    assert contents(site) == [b"first recording", b"second recording, another one"]
    assert not [name for name in files_of(exfat) if is_own(name)]
