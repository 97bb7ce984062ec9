"""
What can go wrong, how it is told, and what is done about it.

Two kinds of trouble, kept apart:

``TrioftError``                 ends a command; carries its exit code and a hint.
  ├─ ``ConfigError``            2  wrong usage or configuration (every problem at once)
  └─ ``UnusableError``          3  source, destination or state cannot be used
       ├─ ``AwayError``         3  not there now; a watch waits for it
       ├─ ``LockedError``       5  another trioft works on the same pair
       └─ ``LedgerError``       3  the ledger cannot be opened or written

``FileTrouble``                 one operation on one file failed; the run goes on.

``classify`` is the one table that says what to do about a ``Trouble``.
"""

from __future__ import annotations

import enum
import errno as errno_
import os
from typing import NamedTuple


class TrioftError(Exception):
    """Ends a command: the text says what is wrong, *hint* what to do about it."""

    exit_code = 1

    def __init__(self, text: str, *, hint: str | None = None) -> None:
        super().__init__(text)
        self.hint = hint


class ConfigError(TrioftError):
    """Wrong usage or configuration. *problems* holds one line for each thing that is wrong."""

    exit_code = 2

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


class UnusableError(TrioftError):
    """The source, the destination or the state directory cannot be used."""

    exit_code = 3


class AwayError(UnusableError):
    """An end is not there now, or not the right one: it may be mounted later."""

    def __init__(self, text: str, *, side: str, hint: str | None = None) -> None:
        super().__init__(text, hint=hint)
        self.side = side


class LockedError(UnusableError):
    """Another trioft works on the same source and destination."""

    exit_code = 5


class LedgerError(UnusableError):
    """
    The ledger cannot be opened, read or written. It is never silently recreated.

    Where it *passes*, it may work later: its disk is full, or somebody has locked it.
    """

    def __init__(self, text: str, *, hint: str | None = None, passes: bool = False) -> None:
        super().__init__(text, hint=hint)
        self.passes = passes


class Side(enum.StrEnum):
    """Where an operation failed."""

    SOURCE = "source"
    DESTINATION = "destination"


# The operation that finds out which filesystem an end is.
IDENTIFY = "identify"
# The look whether anybody else has changed a partial.
SEAL = "seal"
# The user's own check of a copy, before that gets its final name.
GATE = "gate"
# The operation that finds out where a file goes.
ROUTE = "route"
# What is said of something that is called as a marker is (copy.done_file), and is none.
NO_MARKER = "something else than an empty file has the name of a marker"

_LONGEST_PATH = 4095  # bytes that the kernel takes in one call
_SHOWN = 200  # bytes of such a path that are told


class Trouble(NamedTuple):
    """One failed operation, with all that a person needs to understand it."""

    side: str
    op: str  # open, read, write, fsync, rename, …: the operation's usual name
    path: bytes  # relative to the root of its side
    offset: int | None
    errno: int | None  # None where trioft itself found the fault, see *text*
    text: str

    def __str__(self) -> str:
        where = f"{self.op} {_in_short(self.path)!r} at the {self.side}" if self.path else f"{self.op} the {self.side}"
        if self.offset is not None:
            where += f", byte {self.offset}"
        name = errno_.errorcode.get(self.errno, str(self.errno)) if self.errno is not None else None
        return f"{where}: {self.text}" + (f" ({name})" if name else "")


def _in_short(path: bytes) -> str:
    """Return a path as text; of one that is longer than any call takes only its two ends."""
    if len(path) <= _LONGEST_PATH:
        return show_path(path)
    half = _SHOWN // 2
    return f"{show_path(path[:half])}…{show_path(path[-half:])}"


class FileTrouble(Exception):
    """An operation on one file failed. ``classify`` tells what to do about it."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble

    def __reduce__(self) -> tuple[type[FileTrouble], tuple[Trouble]]:
        return type(self), (self.trouble,)


def first_of(
    group: BaseExceptionGroup[BaseException], kind: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """Return the first error of a *kind*, or of several, in *group*, however deep it lies; None if there is none."""
    error: BaseException | None = group.subgroup(kind)
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def meaning_of(error: BaseException) -> TrioftError | None:
    """Return what the *error* that ended a run, or a group of them, means to a person; None where it is a bug."""
    group = BaseExceptionGroup("", [error])
    known = first_of(group, TrioftError)
    if isinstance(known, TrioftError):
        return known
    trouble = first_of(group, FileTrouble)
    if isinstance(trouble, FileTrouble) and group.split(FileTrouble)[1] is None:
        return UnusableError(str(trouble), hint=hint_for(trouble.trouble))
    return None


class Remedy(enum.StrEnum):
    """What to do about a ``Trouble``."""

    DESTINATION = "destination"  # close the gate, probe, go on from the checkpoint; no attempt counted
    SOURCE = "source"  # the same at the source, but where it is well, this file is tried a limited number of times
    SPACE = "space"  # wait for space; smaller files go on
    RETRY = "retry"  # this file again after a pause, a limited number of times
    GIVE_UP = "permanent"  # this file fails now; the others go on


# Seen in real outages of network mounts, on any operation.
_AWAY = {
    errno_.ESTALE,
    errno_.EHOSTDOWN,
    errno_.EHOSTUNREACH,
    errno_.ENETDOWN,
    errno_.ENETUNREACH,
    errno_.ENETRESET,
    errno_.ETIMEDOUT,
    errno_.ENOTCONN,
    errno_.ESHUTDOWN,
    errno_.ENODEV,
    errno_.ENXIO,
    errno_.ECONNABORTED,
    errno_.ECONNREFUSED,
    errno_.ECONNRESET,
    errno_.EREMOTEIO,
}
# At the source it is a bad sector.
_DESTINATION_AWAY = _AWAY | {errno_.EIO}
_NO_SPACE = {errno_.ENOSPC, errno_.EDQUOT}
_NEVER = {
    errno_.EACCES,
    errno_.EPERM,
    errno_.ENAMETOOLONG,
    errno_.EROFS,
    errno_.EISDIR,
    errno_.ENOTDIR,
    errno_.ELOOP,
    errno_.EINVAL,
    errno_.EFBIG,
    errno_.EILSEQ,
    errno_.EEXIST,
    errno_.EOPNOTSUPP,
    errno_.EXDEV,
    errno_.ECANCELED,  # by an operator
}
# There are too many processes or open files, or no memory.
_EXHAUSTED = {errno_.EAGAIN, errno_.ENOMEM, errno_.ENFILE, errno_.EMFILE}
# May be over in a moment: a file in use, an exhausted server, a bad sector, a file or folder that somebody takes away.
_TEMPORARY = {
    errno_.EBUSY,
    errno_.ETXTBSY,
    errno_.EAGAIN,
    errno_.EINTR,
    errno_.EDEADLK,
    errno_.ENOLCK,
    errno_.ENOMEM,
    errno_.ENFILE,
    errno_.EMFILE,
    errno_.ENOENT,
    errno_.ENOTEMPTY,
    errno_.EIO,
    *_NO_SPACE,  # at the source
}


def classify(trouble: Trouble) -> Remedy:
    """
    Say what to do about *trouble*: the one table of errno × operation × side.

    An errno that is not in the table is taken for temporary, so that nothing is given up for ever because of an error
    that nobody has thought of; ``hint_for`` says so.
    """
    number = trouble.errno
    if trouble.op == GATE:
        # It says the same of the same file; and an error in starting it is not the destination's.
        return Remedy.RETRY if number in _EXHAUSTED else Remedy.GIVE_UP
    if number is None:
        return Remedy.RETRY  # source changed, digest mismatch: found by trioft, may be gone next time
    if trouble.side == Side.DESTINATION:
        if number in _DESTINATION_AWAY:
            return Remedy.DESTINATION
        if number in _NO_SPACE:
            return Remedy.SPACE
        if trouble.op == "rename" and number in (errno_.EACCES, errno_.EBUSY, errno_.EPERM):
            return Remedy.RETRY  # network servers refuse to replace a file that somebody has open
    elif number in _AWAY:
        return Remedy.SOURCE
    return Remedy.GIVE_UP if number in _NEVER else Remedy.RETRY


_HINTS = {
    errno_.EACCES: "give trioft's user access to this path",
    errno_.EPERM: "give trioft's user access to this path",
    errno_.ENAMETOOLONG: "the {side} cannot hold a name this long: rename the file",
    errno_.EROFS: "the {side} is mounted read-only",
    errno_.EISDIR: "a folder is in the way of this file: move it aside",
    errno_.ENOTDIR: "a file is in the way of this folder: move it aside",
    errno_.EINVAL: "the {side} does not accept this name: rename the file",
    errno_.EILSEQ: "the {side} does not accept this name: rename the file",
    errno_.EFBIG: "the filesystem of the {side} cannot hold a file this large",
    errno_.EOPNOTSUPP: "the filesystem of the {side} cannot do this",
    errno_.EEXIST: "choose another --if-exists policy, or move the file at the destination aside",
    errno_.ELOOP: "there is a symbolic link in the way; trioft does not follow links",
    errno_.EXDEV: "the archive folder must be on the source's filesystem",
    errno_.ECANCELED: "retry it on the page, or start trioft again",
    errno_.ENOSPC: "free some space at the {side}; trioft goes on by itself",
    errno_.EDQUOT: "the quota at the {side} is used up; trioft goes on by itself when there is room",
}
# Operations on a name: elsewhere, EINVAL has other causes.
_NAMING = {"open", "create", "stat", "mkdir", "rename"}


def may_concern_all(trouble: Trouble) -> bool:
    """Is it an error of this one file, or has the whole destination become unwritable? Only a probe can tell."""
    is_operation = trouble.op != GATE
    return (
        is_operation
        and trouble.side == Side.DESTINATION
        and trouble.errno in (errno_.EACCES, errno_.EPERM, errno_.EROFS)
    )


def hint_for(trouble: Trouble) -> str | None:
    """Return what a person can do about *trouble*, or None where there is nothing better than to wait."""
    if trouble.op == IDENTIFY:
        side = trouble.side
        return f"mount the right {side}; if it has moved on purpose, start once with --accept-new-{side}"
    if trouble.op == GATE:
        return None if trouble.errno is None or trouble.errno in _EXHAUSTED else "see copy.gate in the configuration"
    if trouble.op == ROUTE and trouble.errno != errno_.EEXIST:
        return "change the rule in destination.routes, or rename the file"
    if trouble.errno == errno_.EXDEV and trouble.side == Side.DESTINATION:
        return "start trioft again: it then copies the file to the filesystem that it belongs to"
    if trouble.errno == errno_.ELOOP and trouble.side == Side.DESTINATION:
        return "remove the symbolic link, or make root its owner (chown -h root LINK) if it is meant to be there"
    if trouble.errno == errno_.EFBIG and trouble.side == Side.DESTINATION and "ulimit" in trouble.text:
        return "raise the limit of trioft's own process (ulimit -f, LimitFSIZE of its service)"
    if trouble.errno == errno_.ENAMETOOLONG and len(trouble.path) > _LONGEST_PATH:
        return "the whole path is too long for this system: shorten the names of its folders"
    if trouble.errno == errno_.EEXIST and trouble.text == NO_MARKER:
        return "move it aside, or choose another copy.done_file"
    if trouble.errno is None or (trouble.errno == errno_.EINVAL and trouble.op not in _NAMING):
        return None
    if trouble.errno not in _DESTINATION_AWAY | _NEVER | _TEMPORARY:
        return "trioft does not know this error, and takes it for temporary"
    hint = _HINTS.get(trouble.errno)
    return hint.format(side=trouble.side) if hint is not None else None


def show_path(path: bytes) -> str:
    """
    Return *path* as text that is safe to print: what is no UTF-8, and control characters, are escaped.

    Different names can look the same; ``path_b64`` in the feed and the JSON lines holds the exact bytes.
    """
    text = path.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable()
        else f"\\x{ord(c) - 0xDC00:02x}"
        if 0xDC80 <= ord(c) <= 0xDCFF
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def trouble_of(error: OSError, side: str, op: str, path: bytes, offset: int | None = None) -> Trouble:
    """Translate an ``OSError`` into trioft's words."""
    text = os.strerror(error.errno) if error.errno is not None else str(error)
    if error.errno == errno_.ELOOP and error.strerror:
        text = error.strerror  # which link is in the way, where trioft itself refused to follow it
    return Trouble(side, op, path, offset, error.errno, text)


def mismatch(partial: bytes, offset: int) -> Trouble:
    return Trouble(
        Side.DESTINATION,
        "read back",
        partial,
        offset,
        None,
        "the destination holds other bytes than were written",
    )
