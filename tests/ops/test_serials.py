"""Serial numbers of volumes: two cards in one reader are told apart by them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from trioft.movers.ops import serials

MAKERS = {
    "fat12": (["mkfs.vfat", "-F", "12"], 4),
    "fat16": (["mkfs.vfat", "-F", "16"], 32),
    "fat32": (["mkfs.vfat", "-F", "32"], 64),
    "exfat": (["mkfs.exfat"], 64),
    "ntfs": (["mkfs.ntfs", "-F", "-Q"], 64),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_serial_is_what_other_tools_say(kind: str, tmp_path: Path) -> None:
    """It stands in the first sector, where mkfs has put it."""
    command, size = MAKERS[kind]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if shutil.which(command[0], path=path) is None or shutil.which("blkid", path=path) is None:
        pytest.skip(f"needs {command[0]} and blkid")
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(size << 20)
    environment = {**os.environ, "PATH": path}
    subprocess.run([*command, str(image)], check=True, capture_output=True, env=environment)
    asked = ["blkid", "-p", "-o", "value", "-s", "UUID", str(image)]
    told = subprocess.run(asked, check=True, capture_output=True, text=True, env=environment).stdout.strip()
    assert serials.serial_of(str(image)) == told.replace("-", "").lower() != ""


def test_what_is_no_such_volume_has_none(tmp_path: Path) -> None:
    """Another filesystem, a folder, nothing at all, or a name that is no path."""
    (tmp_path / "other").write_bytes(bytes(4096))
    for device in (f"{tmp_path / 'other'}", f"{tmp_path}", f"{tmp_path / 'none'}", "none"):
        assert serials.serial_of(device) == ""


def test_where_the_device_may_not_be_read_udev_has_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its links are called as what it has read."""
    device, links = tmp_path / "sdb1", tmp_path / "links"
    links.mkdir()
    (links / "12AB-34CD").symlink_to(device)
    monkeypatch.setattr(serials, "_BY_SERIAL", str(links))
    assert serials.serial_of(str(device)) == "12ab34cd"
