"""
The operations that find out what the two ends are: which filesystem, and whether it can be used. Run in a mover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from trioft.core.answers import End
from trioft.core.errors import IDENTIFY, FileTrouble, Remedy, Side, Trouble, classify, show_path, trouble_of
from trioft.core.model import Identity, Place, Root, Volume
from trioft.movers.ops import linux
from trioft.movers.ops.beneath import Top
from trioft.movers.ops.files import close_quietly, status_of
from trioft.movers.ops.mounting import mounting_of
from trioft.movers.ops.serials import serial_of
from trioft.movers.ops.slate import touch

# Filesystems on which other machines write: no event tells of it, and inodes may be the client's own invention.
_REMOTE = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "fuse", "glusterfs", "virtiofs")
# Those whose UUID is on the disk: it tells two disks apart that are called the same, and knows one that is called
# otherwise after a restart. Others make one up at each mount.
_UUID_ON_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs"}
_SERIAL_ON_DISK = {"vfat", "msdos", "exfat", "ntfs3", "fuseblk"}


# --- what is mounted where -------------------------------------------------------------------------------------------


class _Mount(NamedTuple):
    """A line of the kernel's mount table."""

    id: int
    device: bytes
    root: bytes  # which folder of the filesystem is mounted
    point: bytes
    kind: str
    source: str


def _mounts() -> Iterator[_Mount]:
    """Yield what is mounted, the latest last. Nothing where there is no such table."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            left, _, right = line.partition(b" - ")
            # Octal stands for blanks and backslashes; everything else is the name's own bytes.
            number, _, device, root, point = (
                re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
                for field in left.split(b" ")[:5]
            )
            kind, source = right.split()[:2]
            yield _Mount(int(number), device, root, point, os.fsdecode(kind), os.fsdecode(source))


def _inside(point: bytes) -> bytes:
    """Return what the paths of all that lies in the folder *point* begin with."""
    return point.rstrip(b"/") + b"/"


def _mount_at(path: bytes) -> tuple[_Mount | None, bytes]:
    """Return what is mounted at or above *path*, which need not exist, and where on that the path lies."""
    best, answer = -1, None
    for mount in _mounts():
        prefix = _inside(mount.point)
        if (path + b"/").startswith(prefix) and len(prefix) >= best:
            best, answer = len(prefix), mount
    return (None, b"") if answer is None else (answer, os.path.join(answer.root, path[best:]))


def mounts_at(paths: Iterable[bytes]) -> list[int]:
    """Return the numbers of what is mounted at or above *paths*: they change with each mount. Touches no mount."""
    ends = tuple(path + b"/" for path in paths)
    mounts = _mounts() if ends else ()
    return [mount.id for mount in mounts if any(end.startswith(_inside(mount.point)) for end in ends)]


def volumes_below(path: bytes) -> tuple[Volume, ...]:
    """Return what is mounted below *path*, by name; of several in one place the one that is seen. Touches no mount."""
    prefix = _inside(path)
    found = {
        mount.point[len(prefix) :]: Volume(mount.point[len(prefix) :], mount.id, mount.kind, mount.source, mount.root)
        for mount in _mounts()
        if mount.point.startswith(prefix) and mount.point != prefix
    }
    return tuple(found[point] for point in sorted(found))


def mounts_below(path: bytes) -> dict[bytes, tuple[int, bytes, bytes]]:
    """
    Return number, device and root of what is mounted at *path* (b"") and below it, by the place there.

    Touches no mount.

    At *path* is also what that lies on. The kernel gives the number of one that is gone to the next one.
    """
    prefix, best = _inside(path), -1
    found: dict[bytes, tuple[int, bytes, bytes]] = {}
    for mount in _mounts():
        point = _inside(mount.point)
        if prefix.startswith(point) and len(point) >= best:
            best, found[b""] = len(point), (mount.id, mount.device, mount.root)
        elif point.startswith(prefix):
            found[point[len(prefix) : -1]] = mount.id, mount.device, mount.root
    return found


def lies_within(fd: int, source: bytes, root: int) -> bool:
    """
    Does the folder that is open as *fd* lie in the folder *source*, whatever links and mounts it was reached by?

    Asks the mount table, and touches no mount. *root* is the end that the folder was reached from, which itself does
    not lie in *source* for all that is known; where it does, by a mount in there, that does not count.
    """
    place, end = (os.readlink(b"/proc/self/fd/%d" % its) for its in (fd, root))
    numbers = linux.mount_id(fd), linux.mount_id(root)
    if (place + b"/").startswith(_inside(end)) and numbers[0] == numbers[1] != -1:
        return False
    if (place + b"/").startswith(_inside(source)):
        return True
    mounts = list(_mounts())
    its, roots = (
        next(((m.device, os.path.join(m.root, path[len(_inside(m.point)) :])) for m in mounts if m.id == number), None)
        for number, path in zip(numbers, (place, end), strict=True)
    )
    above, below = _mount_at(source)
    tops = [(m.device, m.root) for m in mounts if m.point.startswith(_inside(source))]
    tops = [top for top in tops if roots is None or not _is_in(roots, top)]
    if above is not None:
        tops.append((above.device, below))
    return its is not None and any(_is_in(its, top) for top in tops)


def _is_in(place: tuple[bytes, bytes], top: tuple[bytes, bytes]) -> bool:
    """Is a place, of a device, *top* or inside of it?"""
    return place[0] == top[0] and (place[1] + b"/").startswith(_inside(top[1]))


def _identify(fd: int, path: bytes) -> Identity:
    """Return which folder of which filesystem is open as *fd*; not of *path*, which may lead elsewhere by now."""
    number, where = linux.mount_id(fd), path
    with contextlib.suppress(OSError):
        where = os.readlink(b"/proc/self/fd/%d" % fd)
    mount = next((mount for mount in _mounts() if mount.id == number), None)
    if mount is None:  # another system, or a root of its own without a table
        return Identity("", "", "", path, b"")
    uuid = linux.filesystem_uuid(fd) if mount.kind in _UUID_ON_DISK else ""
    if mount.kind in _SERIAL_ON_DISK:
        uuid = serial_of(mount.source)
    place = os.path.join(mount.root, where[len(_inside(mount.point)) :])
    return Identity(mount.kind, mount.source, uuid, place, mount.point)


def why_not_same(was: Identity, now: Identity) -> str | None:
    """Say why *now* is another place than *was*, or None: also if it is the same, mounted elsewhere, or once more."""
    same = was.is_filesystem_of(now)
    if same and (was.kind, was.place) == (now.kind, now.place):
        return None
    if (bare := why_not_mounted(was, now)) is not None:
        return bare
    if same and was.kind == now.kind:
        # A part of the same disk, or what is mounted has the same name, as all memory disks have.
        return (
            f"another folder is mounted there: {show_path(now.place)} of {_show(now)} instead of {show_path(was.place)}"
        )
    shown, instead_of = _show(now), _show(was)
    if shown == instead_of:  # two disks may be called the same, one after the other
        shown, instead_of = (f"{_show(its)[:-1]}, UUID {its.uuid or 'unknown'})" for its in (now, was))
    return f"another filesystem is mounted there: {shown} instead of {instead_of}"


def why_not_mounted(was: Identity, now: Identity) -> str | None:
    """Say that what was mounted is so no more, or None. Another medium in the same place will do: cards are changed."""
    # Does it lie on what is mounted above the former mount point?
    if was.point != now.point and (was.point + b"/").startswith(_inside(now.point)):
        return f"nothing is mounted at {show_path(was.point)}, where {_show(was)} was"
    return None


def _show(identity: Identity) -> str:
    return f"{identity.source} ({identity.kind})"


# --- what the ends are -----------------------------------------------------------------------------------------------


def inspect(places: Sequence[Place]) -> list[End]:
    """Tell what each of *places* is. Never raises: what cannot be looked at is told in ``error``."""
    return [_inspect_one(*place) for place in places]


def _inspect_one(side: Side, path: bytes) -> End:
    touch(side)
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError as error:
        kind = "missing" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "other"
        is_away = classify(trouble_of(error, Side.DESTINATION, "stat", b"")) == Remedy.DESTINATION
        return End(real, kind, 0, 0, ("", ""), False, error.strerror, is_away)
    folder, file = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode)
    mount, _ = _mount_at(real)
    return End(
        real,
        "folder" if folder else "file" if file else "other",
        status.st_dev,
        status.st_ino,
        ("", "") if mount is None else (mount.kind, mount.source),
        mount is not None and mount.kind.startswith(_REMOTE),
        None if os.access(real, os.R_OK | (os.X_OK if folder else 0)) else os.strerror(errno.EACCES),
    )


def contains(above: Place, below: Place) -> bool:
    """Is *below* the folder *above*, or inside of it? Asks the filesystem: bind mounts and links cannot hide it."""
    (mount, place), (its_mount, its_place) = _mount_at(above.path), _mount_at(below.path)
    is_same = mount is not None and its_mount is not None and mount.device == its_mount.device
    if is_same and (its_place + b"/").startswith(place.rstrip(b"/") + b"/"):
        return True
    try:
        touch(above.side)
        wanted, path = os.stat(above.path), below.path
        touch(below.side)
        while True:
            with contextlib.suppress(FileNotFoundError):  # a folder that is still to be made
                status = os.stat(path)
                if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
            if path == b"/":
                return False
            path = os.path.dirname(path)
    except OSError:
        return False


def can_move(source: bytes, folder: bytes) -> bool:
    """
    Can a file of the folder *source* be renamed into *folder*, which need not exist yet?

    Not to another filesystem, nor to the same one mounted elsewhere. What cannot be looked at is taken for movable: it
    is told otherwise, as what it is.
    """
    touch(Side.SOURCE)
    ends = [os.path.realpath(source), os.path.realpath(folder)]
    try:
        if not os.path.isdir(ends[0]):  # the source is this one file
            ends[0] = os.path.dirname(ends[0])
        while not os.path.isdir(ends[1]) and ends[1] != b"/":
            ends[1] = os.path.dirname(ends[1])
        one, other = (os.stat(end) for end in ends)
    except OSError:
        return True
    mounts = [mount for mount, _ in map(_mount_at, ends)]
    return one.st_dev == other.st_dev and (None in mounts or len({mount.id for mount in mounts if mount}) == 1)


# --- whether they can be used ----------------------------------------------------------------------------------------


def probe_source(path: bytes, was: Identity | None) -> tuple[Root, Identity]:
    """
    Find out whether the source *path* is there, and is not the bare mount point of what it *was*.

    Raises ``FileTrouble``.
    """
    with _opened(path, Side.SOURCE) as (_, root, identity):
        if was is not None and (why := why_not_mounted(was, identity)) is not None:
            raise _other_place(Side.SOURCE, why)
        return root, identity


@contextlib.contextmanager
def _opened(path: bytes, side: Side) -> Iterator[tuple[Top, Root, Identity]]:
    """Open a root; yield its descriptor, and what that is."""
    touch(side)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileTrouble(trouble_of(error, side, "open", b"")) from error
    try:
        status = status_of(fd, side, b"")
        identity = _identify(fd, path)
        is_remote = not identity.kind or identity.kind.startswith(_REMOTE)
        top = Top(fd, is_source=side == Side.SOURCE)
        ino = 0 if is_remote else status.st_ino
        # That of a card is not asked for at each operation: it stands on the device.
        uuid = identity.uuid if identity.kind in _UUID_ON_DISK else ""
        yield top, Root(path, status.st_dev, ino, uuid, mounting_of(fd)), identity
        top.close()
    finally:
        close_quietly(fd)


def _other_place(side: Side, why: str) -> FileTrouble:
    return FileTrouble(Trouble(side, IDENTIFY, b"", None, errno.ENODEV, why))
