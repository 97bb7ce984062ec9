"""What the ends are, whether they are still the same, and what the destination can do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from files import (
    Ground,
    ordinary_user,
    other_filesystem,
    root_of,
    without_privileges,
)
from support import mounted
from trioft.core.answers import KEEPS_NO_TIMES, Probed
from trioft.core.errors import IDENTIFY, FileTrouble, Remedy, Side, classify
from trioft.core.model import Identity, Place, Root
from trioft.movers.ops import linux, scan
from trioft.movers.ops import mounts as mounts_module
from trioft.movers.ops.files import Away
from trioft.movers.ops.folder import probe as probe_module


def at(path: os.PathLike[str]) -> Place:
    return Place(Side.SOURCE, os.fsencode(path))


def contains(above: bytes, below: bytes) -> bool:
    return mounts_module.contains(Place(Side.SOURCE, above), Place(Side.DESTINATION, below))


def probe(ground: Ground, marker: bytes | None = None, was: Identity | None = None, mounted: bool = False) -> Probed:
    return probe_module.probe(os.fsencode(ground.dest), was, marker, mounted)


# --- inspect and contains --------------------------------------------------------------------------------------------


def test_each_path_is_told_for_what_it_is(ground: Ground, tmp_path: Path) -> None:
    """A folder, a file, something else, or nothing: never an exception, and never anything created."""
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("source")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    names = ["source", "file", "pipe", "link", "dangling", "loop", "missing", "file/below", "missing/below"]
    ends = mounts_module.inspect([at(tmp_path / name) for name in names])
    assert dict(zip(names, [end.kind for end in ends], strict=True)) == {
        "source": "folder",
        "file": "file",
        "pipe": "other",
        "link": "folder",
        "dangling": "missing",
        "loop": "other",
        "missing": "missing",
        "file/below": "missing",
        "missing/below": "missing",
    }
    assert ends[0].path == ends[3].path == os.fsencode(ground.source)
    assert (ends[0].dev, ends[0].ino) == (ground.source.stat().st_dev, ground.source.stat().st_ino)
    assert ends[0].error is None
    assert not (tmp_path / "missing").exists()
    assert not (tmp_path / "nowhere").exists()


def test_an_end_without_access_says_so(ground: Ground) -> None:
    """A folder that cannot be searched is known to be useless before the first copy."""
    ground.source.chmod(0o600)
    (end,) = without_privileges(lambda: mounts_module.inspect([at(ground.source)]))
    assert (end.kind, end.error) == ("folder", "Permission denied")


def test_an_end_tells_what_is_mounted_there() -> None:
    """The kind and the name of the filesystem tell the right share from the local disk below it: promise 5."""
    (end,) = mounts_module.inspect([Place(Side.SOURCE, b"/proc/self")])
    assert end.mount[0] == "proc"
    assert not end.remote
    (root,) = mounts_module.inspect([Place(Side.SOURCE, b"/")])
    assert root.mount[0] not in ("", "proc")


@pytest.mark.parametrize("name", ["plain", "with blanks\tand\ntabs", "back\\slash\\040", "médias ü", "日本"])
def test_a_mount_point_of_any_name_is_found(tmp_path: Path, name: str) -> None:
    """Whatever a mount point is called, what is mounted there is told from what lies below it: promise 5."""
    point = tmp_path / name
    point.mkdir()
    script = f"""
import json, os, subprocess, sys
sys.path.extend({sys.path!r})
from support import mounted
from trioft.movers.ops import linux, mounts as mounts_module, scan
point = os.fsencode(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "the right share", point], check=True)
os.mkdir(point + b"/below")
paths = [point + b"/below", point, os.path.dirname(point)]
print(json.dumps([end.mount for end in mounts_module.inspect([("source", path) for path in paths])]))
"""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-I", "-S", "-c", script, str(point)]
    if shutil.which("unshare") is None or subprocess.run([*command[:3], "true"], check=False).returncode:
        pytest.skip("cannot make a mount namespace here")
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    below, at, above = json.loads(done.stdout)
    assert below == at == ["tmpfs", "the\\040right\\040share"]
    assert above != at


def test_a_folder_contains_itself_and_what_is_below(ground: Ground, tmp_path: Path) -> None:
    """Asked of the filesystem: links, and folders that are still to be made, do not hide it."""
    ground.old(b"a/b/file")
    (tmp_path / "link").symlink_to("dest")
    dest = os.fsencode(ground.dest)
    for below in (b"", b"/a", b"/a/b", b"/a/b/file", b"/a/missing", b"/missing/too"):
        assert contains(dest, dest + below), below
    for path in (os.fsencode(tmp_path), os.fsencode(ground.source), dest + b"+", b"/", b"/nowhere"):
        assert not contains(dest, path), path
    assert contains(dest, os.fsencode(tmp_path / "link" / "a"))
    assert contains(os.fsencode(tmp_path / "link"), dest)
    assert contains(b"/", dest)
    assert not contains(b"/nowhere", dest)


def test_two_filesystems_are_told_apart(ground: Ground) -> None:
    """A root on another device is another root, whatever lies in it."""
    with other_filesystem(ground.source) as elsewhere:
        ours, theirs = mounts_module.inspect([at(ground.source), at(elsewhere)])
        assert ours.dev != theirs.dev
        assert ours.mount != theirs.mount
        with pytest.raises(Away):
            scan.scan(Root(root_of(elsewhere).path, ours.dev), [b""], None, (), (), None, None)


# --- probe -----------------------------------------------------------------------------------------------------------


def test_a_probe_uses_the_destination_and_leaves_nothing(ground: Ground) -> None:
    """Usable means that it was used: written, synced, timed, removed."""
    before = ground.dest.stat()
    probed = probe(ground)
    assert probed.root._replace(mounting="") == Root(os.fsencode(ground.dest), before.st_dev, before.st_ino)
    assert probed.root.mounting
    assert 0 < probed.free <= probed.total
    assert probed.identity.kind
    assert os.listdir(ground.dest) == []
    assert ground.dest.stat().st_mtime_ns != before.st_mtime_ns


@pytest.mark.parametrize(
    ("keeps", "resolution"),
    [(1, 1), (100, 100), (1000, 1_000), (10**9, 10**9), (2 * 10**9, 2 * 10**9), (0, KEEPS_NO_TIMES)],
)
def test_a_probe_measures_how_exactly_times_are_kept(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, keeps: int, resolution: int
) -> None:
    """From nanoseconds to the two seconds of FAT, and where no time can be set, none is compared."""
    real = os.utime

    def rounding(path: bytes, *, ns: tuple[int, int], dir_fd: int, follow_symlinks: bool) -> None:
        if not keeps:
            raise OSError(errno.EPERM, "")
        real(path, ns=(ns[0], ns[1] // keeps * keeps), dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "utime", rounding)
    assert probe(ground).resolution_ns == resolution


def test_a_probe_tells_whether_permission_bits_are_kept(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers ignore them without a word."""
    assert probe(ground).keeps_permissions
    monkeypatch.setattr(os, "fchmod", lambda fd, mode: None)
    assert not probe(ground).keeps_permissions


@pytest.mark.parametrize("call", ["write", "fsync", "utime", "stat", "unlink", "close", "fstatvfs"])
def test_a_probe_that_fails_in_any_step_says_in_which(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A destination on which one thing does not work is not usable now; nothing else is concluded from that."""
    real = getattr(os, call)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if call == "close":
            name = os.readlink(f"/proc/self/fd/{args[0]}")
            real(*args)
            if "trioft-probe-" not in name:
                return None
        if call == "stat" and "dir_fd" not in kwargs:
            return real(*args, **kwargs)
        raise OSError(errno.EIO, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(FileTrouble) as caught:
            probe(ground)
    trouble = caught.value.trouble
    assert (trouble.side, trouble.errno) == ("destination", errno.EIO)
    assert trouble.op == {"utime": "stat", "close": "fsync", "fstatvfs": "stat"}.get(call, call)
    assert classify(trouble) == Remedy.DESTINATION


@pytest.mark.parametrize("what", ["missing", "a file", "read only"])
def test_a_probe_never_makes_the_destination(ground: Ground, what: str) -> None:
    """What is not there is told, not created: promise 5."""
    path = ground.dest / "mount point"
    if what == "a file":
        path.write_bytes(b"")
    elif what == "read only":
        path.mkdir(0o555)
    with ordinary_user(), pytest.raises(FileTrouble) as caught:
        probe_module.probe(os.fsencode(path), None, None, False)
    expected = {"missing": errno.ENOENT, "a file": errno.ENOTDIR, "read only": errno.EACCES}
    assert caught.value.trouble.errno == expected[what]
    assert path.exists() == (what != "missing")


def test_a_probe_writes_nothing_where_it_should_not_be(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another filesystem than expected, or none that is mounted: told before anything is created there: promise 5."""
    here = probe(ground).identity
    monkeypatch.setattr(linux, "filesystem_uuid", lambda fd: "")
    before = ground.dest.stat().st_mtime_ns
    elsewhere = here._replace(kind="nfs4", source="nas:/media", uuid="", place=b"/", point=os.fsencode(ground.dest))
    for was, required, text in [
        (elsewhere, False, "nothing is mounted at .*, where nas:/media .nfs4. was"),
        (elsewhere._replace(point=here.point), False, "another filesystem is mounted there: .* instead of nas:/media"),
        (here._replace(uuid="", place=b"/other"), False, "another folder is mounted there: .* instead of /other"),
        (None, os.stat("/").st_dev == ground.dest.stat().st_dev, "nothing is mounted at the destination folder"),
    ]:
        if was is None and not required:
            continue  # cannot be shown here: the folder lies on a mount
        with pytest.raises(FileTrouble, match=text) as caught:
            probe(ground, None, was, required)
        assert (caught.value.trouble.op, caught.value.trouble.errno) == (IDENTIFY, errno.ENODEV)
        assert classify(caught.value.trouble) == Remedy.DESTINATION
    assert ground.dest.stat().st_mtime_ns == before
    assert probe(ground, None, here._replace(uuid="")).identity == here._replace(uuid="")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "close"])
def test_a_destination_that_is_full_can_be_probed(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """It is well, but for the space: that is what the probe says, and measures what does not need any."""
    real = getattr(os, call)

    def fail(*args: Any) -> Any:
        is_probe = call != "close" or "trioft-probe-" in os.readlink(f"/proc/self/fd/{args[0]}")
        if call == "close":
            real(*args)
        if is_probe:
            raise OSError(number, "")

    monkeypatch.setattr(os, call, fail)
    probed = probe(ground)
    assert (probed.free == 0) == (call != "close")
    assert probed.resolution_ns == 1
    assert os.listdir(ground.dest) == []


def test_a_mount_at_the_destination_is_noticed_without_touching_it(ground: Ground) -> None:
    """The agent may ask for this: the kernel's table says it, whatever has become of the mounts."""
    paths = [os.fsencode(ground.dest)]
    before = mounts_module.mounts_at(paths)
    assert before
    with mounted("none", ground.source, "-t", "tmpfs"):
        assert mounts_module.mounts_at(paths) == before, "it is mounted elsewhere"
    with mounted("none", ground.dest, "-t", "tmpfs"):
        assert len(mounts_module.mounts_at(paths)) == len(before) + 1
        assert mounts_module.mounts_at([]) == []
    assert mounts_module.mounts_at(paths) == before


SHARE = Identity("nfs4", "nas:/media", "", b"/day", b"/mnt/nas")
DISK = Identity("ext4", "/dev/sdb1", "55" * 16, b"/day", b"/media/disk")
BARE = Identity("ext4", "/dev/sda1", "77" * 16, b"/mnt/nas/day", b"/")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (SHARE, SHARE),
        (SHARE, SHARE._replace(point=b"/media/nas")),
        (DISK, DISK._replace(source="/dev/sdc1")),
        (DISK, DISK._replace(uuid="")),  # by an older kernel
        (DISK._replace(uuid="1234"), DISK),
    ],
    ids=["itself", "mounted-elsewhere", "called-otherwise", "no-uuid-now", "another-uuid-then"],
)
def test_the_same_place_is_known_again(was: Identity, now: Identity) -> None:
    """After a restart a share may be mounted elsewhere, and a disk be called otherwise: it is the same."""
    assert mounts_module.why_not_same(was, now) is None


@pytest.mark.parametrize(
    ("was", "now", "text"),
    [
        (SHARE, BARE, "nothing is mounted at /mnt/nas, where nas:/media (nfs4) was"),
        (
            SHARE,
            SHARE._replace(source="old:/media"),
            "another filesystem is mounted there: old:/media (nfs4) instead of nas:/media (nfs4)",
        ),
        (
            DISK,
            DISK._replace(uuid="66" * 16),
            (
                f"another filesystem is mounted there: /dev/sdb1 (ext4, UUID {'66' * 16})"
                f" instead of /dev/sdb1 (ext4, UUID {DISK.uuid})"
            ),
        ),
        (
            SHARE,
            SHARE._replace(place=b"/night"),
            "another folder is mounted there: /night of nas:/media (nfs4) instead of /day",
        ),
    ],
    ids=["bare", "another-share", "another-disk-of-the-same-name", "another-folder"],
)
def test_another_place_is_told_from_the_right_one(was: Identity, now: Identity, text: str) -> None:
    """Promise 5: whatever lies at the path of the destination, it is used only if it is the destination."""
    assert mounts_module.why_not_same(was, now) == text


@pytest.mark.parametrize("kind", ["tmpfs", "xfs", "ext4"])
def test_a_uuid_is_asked_for_where_it_is_on_the_disk(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A memory disk has another one at each mount: by that it would never be known again."""
    monkeypatch.setattr(linux, "filesystem_uuid", lambda fd: "33" * 16)
    mounts = list(mounts_module._mounts())
    monkeypatch.setattr(mounts_module, "_mounts", lambda: iter([mount._replace(kind=kind) for mount in mounts]))
    assert probe(ground).identity.uuid == ("" if kind == "tmpfs" else "33" * 16)


def test_a_source_is_probed_without_a_write(ground: Ground) -> None:
    """Another card in the same reader will do; the bare mount point will not: it is away, not empty."""
    path, before = os.fsencode(ground.source), ground.source.stat()
    root, identity = mounts_module.probe_source(path, None)
    assert (root.path, root.dev) == (path, before.st_dev)
    for was in (identity, identity._replace(source="/dev/card", uuid="5", place=b"/other"), None):
        assert mounts_module.probe_source(path, was) == (root, identity)
    with pytest.raises(FileTrouble, match="nothing is mounted at") as caught:
        mounts_module.probe_source(path, Identity("vfat", "/dev/card", "", b"/", path))
    assert classify(caught.value.trouble) == Remedy.SOURCE
    assert ground.source.stat().st_mtime_ns == before.st_mtime_ns


def test_a_source_that_is_not_there_says_so(ground: Ground) -> None:
    """A folder that was unmounted and removed, as desktops do, is a trouble of the source."""
    with pytest.raises(FileTrouble) as caught:
        mounts_module.probe_source(os.fsencode(ground.source / "none"), None)
    assert (caught.value.trouble.side, caught.value.trouble.errno) == ("source", errno.ENOENT)


def test_a_probe_looks_for_the_marker(ground: Ground) -> None:
    """A folder without the file that marks the right volume is not the destination: promise 5."""
    with pytest.raises(FileTrouble) as caught:
        probe(ground, b"marks/this one")
    assert (caught.value.trouble.op, caught.value.trouble.errno) == ("find the marker", errno.ENOENT)
    assert os.listdir(ground.dest) == []
    ground.old(b"marks/this one")
    probe(ground, b"marks/this one")
