"""
What `trioft doctor` measures at the ends: one value for each check. What they mean, ``cli.diagnosis`` says.
"""

from __future__ import annotations

from typing import NamedTuple


class Planted(NamedTuple):
    """What the kernel says of the writer of a file at the source: closed, busy or unknown."""

    while_written: str
    closed: str
    strength: str  # what it would be worth to take such a file for closed


class Space(NamedTuple):
    free: int  # bytes
    total: int
    free_inodes: int | None  # None: the filesystem does not count them


class Fsync(NamedTuple):
    seconds: float  # of a small file, the median
    folder_error: str | None  # why a folder cannot be made durable


class Rename(NamedTuple):
    """Why a rename does not work, to a free name, over a file, over an open file, without replacing; None: it does."""

    refused: str | None
    replace: str | None = None
    replace_open: str | None = None
    noreplace: str | None = None


class Times(NamedTuple):
    resolution_ns: int
    lost_years: list[int]  # of which no times are kept
    clock_ahead: float  # seconds


class Names(NamedTuple):
    refused: dict[str, str]  # what kind of name, and why
    folds_case: bool
    normalises: bool


class Sizes(NamedTuple):
    asked: bool
    refused: tuple[int, str] | None  # the smallest size that is too large, and why
    sparse: bool | None  # None: a program makes it up


class Attributes(NamedTuple):
    xattrs: str | None  # why there are none
    lost_modes: list[str]


class ReadBack(NamedTuple):
    """The share of a file that is in the page cache, before and after it was dropped; None: nobody can tell."""

    cached_before: float | None
    cached_after: float | None


class Throughput(NamedTuple):
    """Bytes a second, durable, and read back; *mismatch* is near the byte that does not read back."""

    mismatch: int | None
    write: float = 0.0
    read: float = 0.0
    bytes: int = 0


class SmallFiles(NamedTuple):
    rate: float  # files a second
    one_barrier: bool


Measured = Space | Fsync | Rename | Times | Names | Sizes | Attributes | ReadBack | Throughput | SmallFiles
