"""
What operations tell on their way and answer in the end: the values that movers send back to the agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trioft.core.errors import Trouble
from trioft.core.model import KIB, VOID, Fingerprint, Found, Identity, Root, Verdict, Volume

CLOSED = "closed"  # proved: nobody has it open for writing, just now
BUSY = "busy"  # proved: somebody has
UNKNOWN = "unknown"

# How sure it is that nobody writes a file any more, once that is taken for so.
PROVED = "proved"  # the kernel says so
MARKED = "marked"  # who wrote it has made its marker since
LIKELY = "likely"  # no process of this machine, the only one that could; and it was quiet
TIMEOUT = "timeout"  # it was quiet; nobody knows more


KEEPS_NO_TIMES = 1 << 62  # any two times are the same


class Step(NamedTuple):
    """Something was done: an operation is not stuck. *amount* is in bytes where bytes are what was worked on."""

    what: str  # bytes (written, or a hole), holes (of these), synced, verified, compared, changed, read
    amount: int


class Searched(NamedTuple):
    """A folder was searched."""

    folder: bytes


class Written(NamedTuple):
    """A block was written; nothing of it is durable yet."""

    number: int
    length: int
    digest: bytes  # empty while the block may still grow, or at level `size`
    pieces: bytes = b""  # digests of its pieces, of a file that grows


class Sealed(NamedTuple):
    """What a partial is, now that an operation has written to it."""

    seal: Fingerprint


class End(NamedTuple):
    """What one end is, found out once at the start."""

    path: bytes  # absolute, without symbolic links
    kind: str  # folder, file, missing, other
    dev: int
    ino: int
    mount: tuple[str, str]  # filesystem type and what is mounted
    remote: bool
    error: str | None
    is_away: bool = False  # the error is one of those of servers that do not answer


class Probed(NamedTuple):
    """The state of a destination that can be written to."""

    root: Root
    identity: Identity
    free: int  # bytes that this user may still write, as the filesystem says: advice, not truth
    total: int
    resolution_ns: int
    keeps_permissions: bool
    files: int | None = None  # that this user may still make, whatever their size; None: nobody counts them
    volumes: tuple[Volume, ...] = ()  # what is mounted below it
    largest: int = 2**63 - 1  # bytes that one file there may have


class Folder(NamedTuple):
    """A folder of the source, with those of its files that are of interest."""

    path: bytes
    files: list[Found]
    stamp: bytes = b""  # the same for the same files in the same versions; empty where nobody asked for it


class Listing(NamedTuple):
    """A part of the source's tree."""

    folders: list[Folder]  # that were read, but for those that have the stamp they had
    unchanged: list[bytes]  # these
    rest: list[bytes]  # folders still to be read: those below, and what one call did not get to
    twins: list[Found]  # files that the destination has, as far as size and time tell: most are only counted
    alike: list[Found]  # the same, where rules can give one name to several files: it has these, or others
    missing: list[bytes]  # folders that the destination does not have
    skipped: list[tuple[bytes, str]]
    troubles: list[Trouble]
    seconds: float  # processor time that it took
    going: Sequence[bytes] = ()  # folders of sources that were taken aside, to be removed


class Look(NamedTuple):
    """What one path of the source is right now."""

    path: bytes
    kind: str  # file, folder, gone, unreadable, other (or not wanted)
    found: Found | None = None
    writer: str = UNKNOWN
    trouble: Trouble | None = None  # why it is unreadable


class Sight(NamedTuple):
    """What one name of the source is right now, whatever the configuration says about it."""

    path: bytes
    kind: str  # file, folder, gone, unreadable; else what it is, such as a symbolic link
    fingerprint: Fingerprint | None = None  # of a file
    writer: str = UNKNOWN
    trouble: Trouble | None = None  # why it is unreadable


class Survey(NamedTuple):
    """Everything in some folders of the source."""

    seen: list[Sight]
    rest: list[bytes]  # folders still to be surveyed: those below, and what one call did not get to


class Leftover(NamedTuple):
    """Something at the destination that has one of trioft's own names, or one that trioft 0.1 gave."""

    path: bytes  # relative to the destination
    size: int  # bytes
    age: float  # seconds since it was written last
    is_folder: bool = False


class Leftovers(NamedTuple):
    """What was found in a part of the destination."""

    found: list[Leftover]
    rest: list[bytes]  # folders still to be searched


# What is compared, and written again, of a block that has changed: recorders rewrite a few kilobytes here and there.
PIECE_SIZE = 256 * KIB


class Peek(NamedTuple):
    """What a file that may be growing is right now."""

    verdict: Verdict | None  # GONE or CHANGED: under this name there is none, or another one
    found: Found | None = None
    head: int = 0  # it has been written up to here; less than its size where it was preallocated
    writer: str = UNKNOWN
    strength: str = ""  # what it would be worth to take it for closed
    marked: bool | None = None  # as in ``Found``


class Known(NamedTuple):
    """What was copied of a block before: its first *length* bytes, of which each piece had these digests."""

    length: int
    pieces: bytes  # 16 bytes a piece


class Difference(NamedTuple):
    """A block of the source that is not what was copied, as it is now."""

    number: int
    digest: bytes
    pieces: bytes


class Range(NamedTuple):
    """A part of a file, and what it holds."""

    offset: int
    length: int
    digest: bytes


class Prepared(NamedTuple):
    """A partial that is ready to be written from *offset* on."""

    offset: int
    digests: bytes  # of the blocks below *offset*; VOID for those that have to be written again
    closed: str = ""  # how sure it is that nobody writes the source
    doubtful: bool = False  # a growing file may be another one than the partial was made of: all has to be compared
    seal: Fingerprint | None = None  # what the partial is; None where its filesystem does not tell of each change
    lost: tuple[str, ...] = ()  # extended attributes that the destination does not take

    @property
    def void(self) -> list[int]:
        """The numbers of the blocks that have to be written again."""
        return void_blocks(self.digests)


def void_blocks(digests: bytes) -> list[int]:
    return [n for n in range(len(digests) // 16) if digests[16 * n : 16 * n + 16] == VOID]


class Piece(NamedTuple):
    """What to read of a file at the destination."""

    target: bytes
    start: int  # a block's first byte
    end: int  # not above start: only look at the file


class Seen(NamedTuple):
    """What a file at the destination is."""

    size: int | None  # None: there is no regular file of this name
    mtime_ns: int = 0
    digests: bytes = b""  # of the blocks that were asked for, as far as the file goes
    trouble: Trouble | None = None
    file: tuple[int, int] = (0, 0)  # its device and inode
    in_source: bool = False  # the folder that it lies in is one of the source's: this is no copy
