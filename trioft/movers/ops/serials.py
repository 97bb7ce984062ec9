"""
The serial number of a FAT, exFAT or NTFS volume: what tells one card in a reader from the next. Run in a mover.

The kernel has no call that tells it: it stands in the first sector of the device, or udev has read it there.
"""

from __future__ import annotations

import os

_BY_SERIAL = "/dev/disk/by-uuid"
_SECTOR = 512
# Where it stands, by what the sector says of itself: the latter's place, what is there, the number's place and length.
_PLACES = (
    (3, b"EXFAT   ", 100, 4),
    (3, b"NTFS    ", 72, 8),
    (82, b"FAT32   ", 67, 4),
    (54, b"FAT", 39, 4),
)


def serial_of(device: str) -> str:
    """Return the serial number, in hexadecimal, of the volume on *device*; empty where nobody may know it."""
    if not device.startswith("/"):
        return ""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            sector = os.pread(fd, _SECTOR, 0)
        finally:
            os.close(fd)
    except OSError:  # only root may read devices, as a rule
        return _told_by_udev(device)
    for mark_at, mark, at, length in _PLACES:
        if sector[mark_at : mark_at + len(mark)] == mark:
            number = int.from_bytes(sector[at : at + length], "little")
            return f"{number:0{2 * length}x}" if number else ""
    return ""


def _told_by_udev(device: str) -> str:
    try:
        real = os.path.realpath(device)
        for name in os.listdir(_BY_SERIAL):
            if os.path.realpath(os.path.join(_BY_SERIAL, name)) == real:
                return name.replace("-", "").lower()
    except OSError:
        pass
    return ""
