"""
Filesystems in image files: they are mounted, unmounted, mounted through another device, and lose their power.

Everything here needs root and loop devices; where there are none, the test is skipped and says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutting_mover import cut_power

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    # With inodes that have room for whole seconds only.
    "ext3": ["mkfs.ext3", "-q", "-F", "-I", "128"],
}
# ext4 makes up for programs that rename without an fsync; a network server's disk may not.
OPTIONS = {"ext4": "noauto_da_alloc", "xfs": "defaults", "ext3": "defaults"}
SIZES = {"ext4": 96 << 20, "xfs": 300 << 20, "ext3": 32 << 20}  # xfs takes no less; the files are sparse


def tell(*command: str | Path) -> str:
    """Run a command of the system and return what it prints; raise with what it says where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


class Disk:
    """One filesystem in *image*, and the folder *point* where it is mounted, or not."""

    def __init__(self, kind: str, image: Path, point: Path, size: int | None = None) -> None:
        self.kind, self.image, self.point = kind, image, point
        with open(image, "wb") as file:
            file.truncate(size or SIZES[kind])
        tell(*MKFS[kind], image)
        self.device = self.attach()

    def attach(self) -> str:
        return tell("losetup", "--find", "--show", self.image)

    @property
    def is_mounted(self) -> bool:
        return os.stat(self.point).st_dev != os.stat(self.point.parent).st_dev

    def mount(self) -> None:
        """Mount it; its journal is replayed."""
        tell("mount", "-t", self.kind, "-o", OPTIONS[self.kind], self.device, self.point)
        assert self.is_mounted, "nothing is mounted: all that follows would go to the local disk"

    def unmount(self, *options: str) -> None:
        """Unmount it as soon as nobody uses it; with ``--lazy`` at once."""
        end = time.monotonic() + 20
        while True:
            try:
                tell("umount", *options, self.point)
                break
            except OSError as error:
                if "busy" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.005)
        assert not self.is_mounted
        # A test beside this one may have made a mount namespace, which has it until it ends: mounted again, it would be
        # the same filesystem as before, without its power.
        kept = Path(f"/sys/fs/{self.kind}", os.path.basename(self.device))
        while not options and kept.exists():
            assert time.monotonic() < end + 60, f"{self.device} is still mounted in another namespace"
            time.sleep(0.005)

    def remount(self) -> None:
        self.unmount()
        self.mount()

    def change_device(self) -> None:
        """Have another loop device, as a drive that is plugged in again may get another name."""
        old, self.device = self.device, self.attach()
        tell("losetup", "--detach", old)

    def swap(self, other: Disk) -> None:
        """Have each the device name of the other, as drives that change places. Neither is mounted."""
        for one in (self, other):
            tell("losetup", "--detach", one.device)
        self.device, other.device = other.device, self.device
        for one in (self, other):
            tell("losetup", one.device, one.image)

    def dismantle(self) -> None:
        """Leave nothing behind, whatever happened."""
        for _ in range(5):  # a mount on top of a mount
            if subprocess.run(
                ["umount", "--lazy", self.point], capture_output=True, timeout=30, check=False
            ).returncode:
                break
        for line in tell("losetup", "--noheadings", "--output", "NAME", "--associated", self.image).split():
            tell("losetup", "--detach", line)


@contextlib.contextmanager
def disk(kind: str, image: Path, point: Path, size: int | None = None) -> Iterator[Disk]:
    """Make a filesystem and mount it at *point* while inside; skips the test where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    if shutil.which(MKFS[kind][0]) is None:
        pytest.skip(f"{MKFS[kind][0]} is not installed")
    try:
        made = Disk(kind, image, point, size)
    except OSError as error:
        pytest.skip(f"no loop devices here: {error}")
    try:
        try:
            made.mount()
        except OSError as error:
            pytest.skip(f"cannot mount here: {error}")
        yield made
    finally:
        made.dismantle()


def can_lose_power(made: Disk) -> bool:
    """Can this filesystem be cut off? Leaves it mounted and well."""
    try:
        cut_power(os.fspath(made.point))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise
    made.remount()
    return True


@contextlib.contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """Yield a folder in memory, if there is room for it, for what only has to be there, not to be durable."""
    if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="trioft-test-") as folder:
            yield Path(folder)
    else:
        yield otherwise
