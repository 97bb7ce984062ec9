"""Sources whose inode numbers do not last: cards that are put in again, and mounts that number anew at each look."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shifting_fs
from support import Site, files_of, make_tree, pattern, wait_until

MIB = 1 << 20
_LOOP_CTL_ADD, _LOOP_CTL_REMOVE = 0x4C80, 0x4C81
EXFAT_FUSE = shutil.which("mount.exfat-fuse", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextlib.contextmanager
def shifting(folder: Path, point: Path) -> Iterator[None]:
    """Mount *folder* at *point* with inode numbers that do not last."""
    pytest.importorskip("pyfuse3")
    point.mkdir()
    process = subprocess.Popen([sys.executable, shifting_fs.__file__, folder, point])
    try:
        wait_until(lambda: point.is_mount() or process.poll() is not None)
        if process.poll() is not None:
            pytest.skip("cannot mount here")
        yield
    finally:
        subprocess.run(["fusermount3", "-u", "-z", point], check=False)
        process.wait(20)


@pytest.mark.parametrize("command", ["sync", "watch"])
def test_files_arrive_whose_inodes_are_others_at_each_look(site: Site, tmp_path: Path, command: str) -> None:
    """Small ones and large ones; nothing is copied again and again."""
    make_tree(site.source, {"a": b"a", "b": b"b", "large": 20 * MIB})
    for name in ("a", "b", "large"):
        os.utime(site.source / name, (1e9, 1e9))
    point = tmp_path / "point"
    with shifting(site.source, point):
        agent = site.begin(command, point, site.dest, "--state-dir", site.state, "--json", "--settle", "1s", "-v")
        if command == "watch":
            for name in ("a", "b", "large"):
                agent.wait_for_file(name, "done", 20)
        done = agent.end(0 if command == "sync" else 15)
        assert (done.code, done.summary["delivered"]) == (0, 3)
    assert files_of(site.dest) == files_of(site.source)


class Card:
    """A card with one clip, which is in the reader while inside."""

    def __init__(self, image: Path, clip: bytes) -> None:
        self.image, self.clip = image, clip
        with open(image, "wb") as file:
            file.truncate(len(clip) + 24 * MIB)
        subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)

    @contextlib.contextmanager
    def inserted(self, point: Path, device: str) -> Iterator[None]:
        subprocess.run(["losetup", device, self.image], check=True)
        try:
            subprocess.run([EXFAT_FUSE or "", device, point], check=True, capture_output=True)
            try:
                if not (point / "C0001.MP4").exists():
                    (point / "C0001.MP4").write_bytes(self.clip)
                    os.utime(point / "C0001.MP4", (1_451_606_880, 1_451_606_880))
                yield
            finally:
                subprocess.run(["umount", point], check=True)
        finally:
            subprocess.run(["losetup", "-d", device], check=True)
            wait_until(lambda: subprocess.run(["losetup", device], capture_output=True, check=False).returncode != 0)


@pytest.fixture
def reader() -> Iterator[str]:
    """The device that cards are put into: a high number, as tests beside this one take the lowest that is free."""
    if EXFAT_FUSE is None or shutil.which("mkfs.exfat", path="/usr/sbin:/sbin:/usr/bin") is None or os.geteuid() != 0:
        pytest.skip("needs root, exfat-fuse and exfatprogs")
    number = 1000 + os.getpid() % 1000
    with open("/dev/loop-control", "rb") as control:
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(control, _LOOP_CTL_ADD, number)
        yield f"/dev/loop{number}"
        with contextlib.suppress(OSError):
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)


def copied_in_part(site: Site) -> int:
    """Let a sync copy some of the card, and end it; return how much is there then."""
    agent = site.start("sync", "--bwlimit", "16MiB/s", "-v")

    def some() -> bool:
        return any(path.stat().st_size >= 24 * MIB for path in site.dest.iterdir())

    wait_until(some)
    agent.end(2)
    return max(path.stat().st_size for path in site.dest.iterdir())


def test_a_card_that_is_put_in_again_goes_on_where_it_was(site: Site, tmp_path: Path, reader: str) -> None:
    """Its inode numbers are others then."""
    card = Card(tmp_path / "card", pattern(64 * MIB))
    with card.inserted(site.source, reader):
        copied_in_part(site)
    with card.inserted(site.source, reader):
        for name in ("x", "y"):
            (site.source / name).touch()  # they take the numbers
            (site.source / name).unlink()
        done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= 8 * MIB
    assert files_of(site.dest) == {b"C0001.MP4": card.clip}


def test_two_cards_that_look_the_same_are_not_spliced(site: Site, tmp_path: Path, reader: str) -> None:
    """Device, inode, path, size and times are the same: what was copied of the one is no part of the other."""
    one, two = Card(tmp_path / "one", pattern(64 * MIB, 1)), Card(tmp_path / "two", pattern(64 * MIB, 2))
    with one.inserted(site.source, reader):
        copied_in_part(site)
    with two.inserted(site.source, reader):
        done = site.sync()
    assert done.summary["delivered"] == 1
    assert files_of(site.dest) == {b"C0001.MP4": two.clip}
