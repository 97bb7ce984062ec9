"""
The values that travel between tasks and to the movers. Nothing here does anything.

All are named tuples: cheap to make by the hundred thousand, to compare and to send through a pipe.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from trioft.core.errors import Side, Trouble

KIB = 1024
MIB = 1024 * KIB

# One digest, one read-back comparison, one piece that is written again when it is wrong.
BLOCK_SIZE = 8 * MIB
# Stands for the digest of a block that has to be written again, whatever it holds. No block has it: xxh3-128 would give
# it to one in 2**128.
VOID = bytes(16)
# What one mover call copies at most. The longest that Ctrl-C leaves unfinished.
SPAN_SIZE = 64 * MIB
# Files up to this size travel in bundles.
BUNDLE_FILE_SIZE = 1 * MIB
BUNDLE_FILES = 256
BUNDLE_BYTES = 32 * MIB


class Fingerprint(NamedTuple):
    """One version of one source file. Inodes are reused at once, so device and inode alone are no identity."""

    dev: int
    ino: int
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int

    @property
    def changed_ns(self) -> int:
        """The last change of content or attributes; a program that sets an old mtime cannot hide it."""
        return max(self.mtime_ns, self.ctime_ns)


class Volume(NamedTuple):
    """What is mounted below an end, and belongs to it: a disk among several, a share in a folder."""

    point: bytes  # relative to the end
    id: int  # of this mount: another one has another
    kind: str  # filesystem type
    source: str  # a server's share, a device
    place: bytes  # which folder of it is mounted

    def is_same(self, other: Volume) -> bool:
        """Return whether the same is mounted there, if perhaps once more."""
        return self._replace(id=0) == other._replace(id=0)


class Root(NamedTuple):
    """The source's or the destination's folder. Operations refuse to work in it once it is another one."""

    path: bytes
    dev: int
    ino: int = 0  # 0: not asked for, where servers and clients make up what they like
    uuid: str = ""  # of the filesystem; empty: not asked for. Two disks in one slot have the same device and inode
    # Which mounting of the filesystem; empty: not asked for. The next one gets the device number of one that has gone.
    mounting: str = ""
    mounts: tuple[tuple[bytes, int], ...] = ()  # below it: where, and which mount it has to be; -1: none will do

    @property
    def is_far(self) -> bool:
        """Is it behind a network, where each operation waits for an answer? Servers are not asked for an inode."""
        return not self.ino


class Place(NamedTuple):
    """A path, and at which end it lies."""

    side: Side
    path: bytes


class Identity(NamedTuple):
    """Which folder of which filesystem an end is; what the ledger keeps of it, from one run to the next."""

    kind: str  # filesystem type; empty where the system does not tell
    source: str  # what is mounted: a server's share, a device
    uuid: str  # of the filesystem, if it has one on its disk
    place: bytes  # where on it the folder lies
    point: bytes  # where it is mounted

    def has_such_uuid(self, other: Identity) -> bool:
        """Return whether their UUIDs tell if it is the same filesystem: an older kernel told less of it, or nothing."""
        return bool(self.uuid) and len(self.uuid) == len(other.uuid)

    def is_filesystem_of(self, other: Identity) -> bool:
        """Return whether both are on one filesystem: by its UUID, or else by what is mounted."""
        return self.uuid == other.uuid if self.has_such_uuid(other) else self.source == other.source


class Ends(NamedTuple):
    source: Root
    destination: Root


class Found(NamedTuple):
    """A regular file of the source."""

    path: bytes  # relative to the source
    mode: int  # permission bits
    fingerprint: Fingerprint
    # True: its marker says that it is complete. False: it has none yet. None: none is asked for, or it is older than
    # the file and says nothing.
    marked: bool | None = None
    there: bool = False  # the destination has it, but not the marker that would say so
    routed: bytes = b""  # where it goes, if not to the same path
    trouble: Trouble | None = None  # why it can go nowhere

    @property
    def target(self) -> bytes:
        """Where it goes, relative to the destination."""
        return self.routed or self.path


class Markers(NamedTuple):
    """What is added to a file's name to say that it is complete; empty: nothing."""

    source: bytes = b""  # who writes a file makes it; it is not transferred
    destination: bytes = b""  # trioft makes it, for those who read there


class Rule(NamedTuple):
    """Files that match go to *to*. Either *match*, a pattern, or *regex* is given, the other is empty."""

    match: str
    regex: str
    to: str

    def __str__(self) -> str:
        return f"regex {self.regex!r}" if self.regex else f"match {self.match!r}"


class Routes(NamedTuple):
    """Where files go that do not keep their path: the first rule that matches counts."""

    rules: tuple[Rule, ...]
    # Names that no file gets, as trioft writes there itself:
    marker: bytes = b""  # that end so, see ``Markers``
    manifests: tuple[str, ...] = ()  # that match one of these patterns


class Manner(NamedTuple):
    """How files are copied: what every operation needs of the configuration."""

    verify: str  # size, transfer or readback
    if_exists: str  # rename, overwrite, skip or fail
    prove_existing: bool  # what is already there is compared byte for byte, because its source may be removed
    resolution_ns: int  # of the destination's modification times
    xattrs: bool
    manifest: str = "none"  # xxh128sum, sha256sum or ascmhl
    markers: Markers = Markers()
    routes: Routes | None = None
    # Where names are overwritten: what happens to a file whose name is all that is left of an earlier one of its path.
    if_rival: str = "fail"
    permissions: bool = True  # the destination keeps permission bits
    name_max: int = 255  # bytes of a name, at the destination


class Item(NamedTuple):
    """One file of a job."""

    id: int  # its entry on the board
    path: bytes
    mode: int
    fingerprint: Fingerprint
    settled: bool  # quiet long enough here; otherwise only a proof that nobody writes lets it be copied
    life: int = 0  # of its partial: one more for each rename that may still happen
    marked: bool = False  # who wrote it has said that it is complete
    routed: bytes = b""  # where it goes, if not to the same path
    place: bytes = b""  # its partial lies beside this name; empty: beside its own
    # Another source file that has this name at the destination, or, if it is its own path, an earlier one that was
    # removed when it had been delivered, or was on another volume: neither is replaced. Absolute where another ledger
    # has it on record.
    rival: bytes = b""
    kept: str = ""  # why what has the name is not replaced, where the rival alone does not say it
    seal: Fingerprint | None = None  # what its partial was when trioft had written to it last; None: not asked for
    doubtful: bool = False  # another version was delivered: what is there of the same size and time may be that one
    before: bytes = b""  # the name under which an earlier version of this very file was delivered; empty: none is known
    ledger: bytes = b""  # the id of the ledger that its partial belongs to
    name_max: int = 255  # bytes of a name, at the destination

    @property
    def target(self) -> bytes:
        """The final name that it is to have, relative to the destination."""
        return self.routed or self.path

    @property
    def is_routed(self) -> bool:
        """Has a rule made up the folders that it lies in, as partial or in the end?"""
        return bool(self.routed) or self.place not in (b"", self.path)


class Job(NamedTuple):
    """What a copier takes at a time: one file, or a bundle of small ones."""

    items: tuple[Item, ...]
    growing: bool = False  # it is still being written

    @property
    def size(self) -> int:
        return sum(item.fingerprint.size for item in self.items)


class Verdict(enum.StrEnum):
    """What came of one file when a mover looked at it, wrote it or published it."""

    OPEN = "open"  # at the source: it may be copied
    WRITTEN = "written"  # under its partial name, durable and verified
    PUBLISHED = "published"  # under its final name
    REMOVED = "removed"  # its source, or moved to the archive
    SUMMED = "summed"  # read for a manifest
    ALREADY = "already"  # the destination had it
    EXISTS = "exists"  # another file has its name, and if_exists is skip or fail
    BUSY = "busy"  # somebody writes it
    UNPROVEN = "unproven"  # nobody can tell whether somebody writes it
    UNMARKED = "unmarked"  # nobody writes it, but it has not been said to be complete
    CHANGED = "changed"  # it is not the version that was asked for
    GONE = "gone"
    PAUSED = "paused"  # by an operator
    LEFT = "left"  # by an operator
    TROUBLE = "trouble"


class Result(NamedTuple):
    """What a mover answers for one file."""

    verdict: Verdict
    target: bytes = b""  # the final name, relative to the destination
    digest: bytes | None = None  # of the whole file: the xxh3-128 of its block digests; None at level `size`
    trouble: Trouble | None = None
    writer: str = ""  # what `writers` said about it
    closed: str = ""  # how sure it is that nobody was writing it: proved, marked, likely or timeout
    found: Found | None = None  # the version that was copied, where that is not the one that was asked for
    note: str = ""  # what else a person should find in the ledger
    sum: bytes | None = None  # as a manifest has it; None: to be read, if anybody wants it
    seal: Fingerprint | None = None  # what was verified: the partial; once published, or found there, the copy
    lost: tuple[str, ...] = ()  # extended attributes that the destination does not take


class Checkpoint(NamedTuple):
    """Every byte of *partial* below *offset* is durable and verified."""

    partial: bytes  # relative to the destination
    fingerprint: Fingerprint  # of the source that the bytes were read from
    offset: int
    digests: bytes  # 16 bytes a block, in order, VOID for those that are being written again; empty at level `size`
    growing: bool = False  # *fingerprint* is what it was then: what is below *offset* may have been rewritten since

    def is_coherent(self, block_size: int = BLOCK_SIZE) -> bool:
        """Return whether it has one digest for each block below *offset*, or, as at level `size`, none at all."""
        return not self.digests or len(self.digests) == -(-self.offset // block_size) * 16


class Former(NamedTuple):
    """The copy of an earlier version of a source file, of which all is in the present one: that may replace it."""

    target: bytes  # relative to the destination
    there: Fingerprint  # of the copy, when it was compared


class Publication(NamedTuple):
    """A verified partial that may get its final name."""

    path: bytes  # of its source
    partial: bytes
    mode: int
    fingerprint: Fingerprint
    target: bytes
    if_exists: str  # as in ``Manner``
    seal: Fingerprint | None = None  # what the partial was when it was verified; None: nobody knows
    digest: bytes | None = None  # of the whole file
    doubtful: bool = False  # as in ``Item``
    former: Former | None = None  # what its final name may be taken from


class Unlisted(NamedTuple):
    """A delivered file that no manifest lists yet."""

    target: bytes  # its final name, relative to the destination
    size: int
    mtime_ns: int
    digest: bytes | None  # of the whole file, as the ledger has it
    sum: bytes | None  # as a manifest has it; None: to be read
    time: str = ""  # of its delivery
    doubtful: bool = False  # an earlier run was cut short as it published it


class FileState(enum.StrEnum):
    SETTLING = "settling"
    GROWING = "growing"
    READY = "ready"
    COPYING = "copying"
    VERIFYING = "verifying"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    GONE = "gone"


class Wait(enum.StrEnum):
    """What a file that is WAITING waits for. Its reason says the same, and more, in words for people."""

    DESTINATION = "destination"
    SOURCE = "source"
    SPACE = "space"
    RETRY = "retry"
    PAUSED = "paused"  # for an operator


_S = FileState
# Ends are final: a file that comes back is a new entry.
TRANSITIONS: dict[FileState, frozenset[FileState]] = {
    _S.SETTLING: frozenset({_S.READY, _S.GROWING, _S.FAILED, _S.GONE}),
    _S.GROWING: frozenset({_S.SETTLING, _S.READY, _S.COPYING, _S.VERIFYING, _S.WAITING, _S.FAILED, _S.GONE}),
    _S.READY: frozenset({_S.SETTLING, _S.COPYING, _S.WAITING, _S.FAILED, _S.GONE}),
    _S.COPYING: frozenset({_S.SETTLING, _S.VERIFYING, _S.WAITING, _S.DONE, _S.FAILED, _S.SKIPPED, _S.GONE}),
    _S.VERIFYING: frozenset({_S.SETTLING, _S.COPYING, _S.WAITING, _S.DONE, _S.FAILED, _S.SKIPPED, _S.GONE}),
    _S.WAITING: frozenset({_S.SETTLING, _S.READY, _S.GROWING, _S.COPYING, _S.FAILED, _S.GONE}),
    _S.DONE: frozenset(),
    _S.FAILED: frozenset(),
    _S.SKIPPED: frozenset(),
    _S.GONE: frozenset(),
}
FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)


def policy_for(item: Item, manner: Manner) -> str:
    """Return what happens if the name of *item* is taken: what another source file has delivered is not replaced."""
    if not item.rival or manner.if_exists != "overwrite":
        return manner.if_exists
    return manner.if_rival if item.rival == item.path else "fail"


ACTIVE = (FileState.COPYING, FileState.VERIFYING)
