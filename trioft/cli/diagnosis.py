"""
What the doctor's measurements mean: pure functions from what was measured to findings that a person can act on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from trioft.core.answers import KEEPS_NO_TIMES, End, Probed
from trioft.core.errors import Side
from trioft.core.measured import (
    Attributes,
    Fsync,
    Measured,
    Names,
    Planted,
    ReadBack,
    Rename,
    Sizes,
    SmallFiles,
    Space,
    Throughput,
    Times,
)
from trioft.core.units import size_text


class Result(enum.StrEnum):
    OK = "ok"
    NOTE = "note"  # worth knowing, or setting something
    PROBLEM = "problem"  # files will fail, wait, or be less safe than they seem
    UNKNOWN = "unknown"


class Finding(NamedTuple):
    """One thing that was looked at."""

    side: Side
    check: str
    result: Result
    measured: str
    meaning: str
    advice: str | None = None  # what to set or to do


_S, _D = Side.SOURCE, Side.DESTINATION
_OK, _NOTE, _PROBLEM, _UNKNOWN = Result.OK, Result.NOTE, Result.PROBLEM, Result.UNKNOWN


# --- the source -------------------------------------------------------------------------------------------------------


def source(end: End) -> Iterator[Finding]:
    """Say what the source is."""
    kind, device = end.mount
    text = f"{kind} ({device})"
    if end.remote:
        meaning = "other machines can write there unseen: no events of what they do, no proof that a file is closed"
        yield Finding(_S, "filesystem", _NOTE, text, meaning, "source.scan_interval, source.settle")
    else:
        yield Finding(_S, "filesystem", _OK, text, "only this machine writes there")


def events(seconds: float | None, why_not: str | None) -> Finding:
    """Say whether a new file was heard of, and how soon."""
    if seconds is not None:
        return Finding(_S, "events", _OK, f"a new file was heard of after {seconds * 1000:.0f} ms", "found at once")
    meaning = "new files are found when the source is scanned"
    advice = "source.scan_interval: that is how late they may be found"
    if why_not is not None:
        return Finding(_S, "events", _NOTE, why_not, meaning, advice)
    return Finding(_S, "events", _PROBLEM, "a new file was not heard of", meaning, advice)


def events_unknown(why: str) -> Finding:
    meaning = "whether new files are heard of, or found when the source is scanned, is seen at work"
    return Finding(_S, "events", _UNKNOWN, why, meaning)


def writing(found: Planted | None) -> Iterator[Finding]:
    """Say whether sources can be removed, and whether the kernel proves that nobody writes a file."""
    if found is None:
        meaning = "files can be transferred, not removed or archived"
        yield Finding(_S, "removal", _NOTE, "this user may not write there", meaning, "copy.on_success: keep")
        meaning = "whether the kernel tells when a file is closed is seen at work: `closed` in the JSON lines"
        yield Finding(_S, "closed files", _UNKNOWN, "asked of a file of one's own only", meaning)
        return
    yield Finding(_S, "removal", _OK, "this user may write there", "copy.on_success: delete or archive:DIR can be used")
    if (found.while_written, found.closed) == ("busy", "closed"):
        meaning = "files are copied source.settle_closed after their close; but only root is told of others' files"
        yield Finding(_S, "closed files", _OK, "the kernel proves it (lease)", meaning)
    else:
        sure = "the open-file table is looked at" if found.strength == "likely" else "nobody knows more"
        meaning = f"a file counts as closed when it was quiet for source.settle ({sure}); none is deleted"
        advice = "source.settle: longer than the longest pause of a writer"
        yield Finding(_S, "closed files", _NOTE, "the kernel proves nothing there (no lease)", meaning, advice)


# --- the destination --------------------------------------------------------------------------------------------------


def destination(end: End, probed: Probed) -> Iterator[Finding]:
    """Say what the destination is."""
    kind, device = end.mount
    point = probed.identity.point.decode("utf-8", "backslashreplace")
    text = f"{kind} ({device}), mounted at {point}"
    if kind in ("tmpfs", "ramfs"):
        yield Finding(_D, "filesystem", _PROBLEM, text, "it is in memory: a power cut takes all of it")
    elif point == "/":
        meaning = "it is on the disk of the system: if a share should be mounted there, it is not"
        advice = "mount it; destination.require_mount: true waits for it"
        yield Finding(_D, "filesystem", _NOTE, text, meaning, advice)
    else:
        yield Finding(_D, "filesystem", _OK, text, "trioft waits when something else is in its place")


def _space(found: Space) -> Iterator[Finding]:
    text = f"{size_text(found.free)} of {size_text(found.total)} free"
    if not found.total:
        yield Finding(_D, "space", _NOTE, "it does not say", "files fail to fit only when they are written")
    elif found.free < found.total // 100:
        meaning = "files wait for space, in their partials"
        yield Finding(_D, "space", _PROBLEM, text, meaning, "free some; destination.min_free")
    else:
        yield Finding(_D, "space", _OK, text, "advice, not truth: quotas are not in it")
    inodes = found.free_inodes
    if inodes is not None:
        few = inodes < 10_000
        meaning = "so many more files can be made" if few else "enough"
        yield Finding(_D, "inodes", _PROBLEM if few else _OK, f"{inodes:,} free", meaning)


def _fsync(found: Fsync) -> Iterator[Finding]:
    text = f"an fsync takes {found.seconds * 1000:.3g} ms"
    if found.seconds < 20e-6:
        meaning = "no disk and no network is that fast: a power cut may take what is called durable"
        yield Finding(_D, "fsync", _PROBLEM, text, meaning, "a mount or server option such as sync")
    else:
        yield Finding(_D, "fsync", _OK, text, "it is taken for honest: only a power cut proves it")
    if found.folder_error is not None:
        meaning = "a new name is as durable as the server makes it"
        yield Finding(_D, "fsync of folders", _NOTE, found.folder_error, meaning)


def _rename(found: Rename) -> Iterator[Finding]:
    if found.refused is not None:
        yield Finding(_D, "rename", _PROBLEM, found.refused, "nothing could ever get its final name there")
        return
    if found.replace is not None:
        meaning = "the old file is moved aside first: for a moment neither has the name"
        yield Finding(_D, "rename", _NOTE, found.replace, meaning, "destination.if_exists: rename avoids it")
    else:
        yield Finding(_D, "rename", _OK, "a file replaces another in one step", "a final name is never half a file")
    if found.replace_open is not None:
        meaning = "while somebody reads the old version, the new one waits, or the old one is moved aside"
        text = f"not over a file that is open: {found.replace_open}"
        yield Finding(_D, "rename over open files", _NOTE, text, meaning, "destination.if_exists: rename avoids it")
    if found.noreplace is not None:
        meaning = "between the look at a name and its use, somebody else's new file could be replaced"
        yield Finding(_D, "rename without replacing", _NOTE, found.noreplace, meaning)
    else:
        yield Finding(_D, "rename without replacing", _OK, "in one step", "no other's file is ever replaced by mistake")


def _times(found: Times) -> Iterator[Finding]:
    resolution = found.resolution_ns
    if resolution == KEEPS_NO_TIMES:
        meaning = "files are compared by their size alone"
        advice = "with copy.on_success, or in watch, contents are compared; else remove what has changed"
        yield Finding(_D, "times", _PROBLEM, "modification times are not kept", meaning, advice)
    else:
        text = f"kept to {_span(resolution)}"
        yield Finding(_D, "times", _OK, text, "a changed file is known by its time, to that precision")
    if found.lost_years:
        text = f"not those of {', '.join(map(str, found.lost_years))}"
        meaning = "files of such times get another one there; without its ledger, a sync copies them again"
        yield Finding(_D, "range of times", _NOTE, text, meaning)
    ahead = found.clock_ahead
    if abs(ahead) > 2:
        text = f"its clock is {abs(ahead):,.0f} s {'ahead' if ahead > 0 else 'behind'}"
        meaning = "trioft does not mind; people who compare times do"
        yield Finding(_D, "clock", _NOTE, text, meaning, "NTP, here and on the server")
    else:
        yield Finding(_D, "clock", _OK, "its clock is that of this machine", "within 2 s")


def _span(nanoseconds: int) -> str:
    for unit, name in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")):
        if nanoseconds >= unit:
            return f"{nanoseconds // unit} {name}"
    return f"{nanoseconds} ns"


def _names(found: Names) -> Iterator[Finding]:
    if found.refused:
        text = "refused: " + "; ".join(f"{what}: {why}" for what, why in found.refused.items())
        meaning = "a file with such a name fails; the others go on"
        yield Finding(_D, "names", _PROBLEM, text, meaning, "rename such files at the source, or source.exclude")
    else:
        yield Finding(_D, "names", _OK, "all odd names are kept as they are", "every name of Linux arrives")
    for is_one, check, text in (
        (found.folds_case, "case", "A and a are one name"),
        (found.normalises, "Unicode", "é in one character and in two are one name, or get another one"),
    ):
        if is_one:
            meaning = "of two files that differ only in that, one takes the other's place"
            yield Finding(_D, check, _PROBLEM, text, meaning, "destination.if_exists: rename keeps both, numbered")


def _sizes(found: Sizes) -> Iterator[Finding]:
    if found.refused is not None:
        size, error = found.refused
        result = _PROBLEM if size < 1 << 40 else _NOTE
        meaning = "larger files fail"
        yield Finding(_D, "large files", result, f"{size_text(size)} is too large: {error}", meaning)
    elif found.asked:
        yield Finding(_D, "large files", _OK, "8 TiB fit", "no recording is too large")
    else:
        meaning = "whether there is a size that does not fit would only be seen by writing it"
        yield Finding(_D, "large files", _UNKNOWN, "not tried: it could take the space", meaning)
    if found.sparse is False:
        meaning = "sparse files may take more space there than here"
        yield Finding(_D, "holes", _NOTE, "a hole takes space", meaning)


def _attributes(found: Attributes) -> Iterator[Finding]:
    if found.xattrs is not None:
        meaning = "extended attributes of files (user.*) do not arrive"
        yield Finding(_D, "attributes", _NOTE, found.xattrs, meaning, "metadata.xattrs: false says that it is meant")
    else:
        yield Finding(_D, "attributes", _OK, "user.* is kept", "extended attributes arrive")
    if found.lost_modes:
        meaning = "files there have the permissions of the mount"
        yield Finding(_D, "permissions", _NOTE, f"not kept: {', '.join(found.lost_modes)}", meaning)
    else:
        yield Finding(_D, "permissions", _OK, "kept", "files have there what they have at the source")


def _readback(found: ReadBack) -> Iterator[Finding]:
    left = found.cached_after
    if left == 0:
        text = "what was dropped from the page cache is read from there again"
        yield Finding(_D, "read-back", _OK, text, "copy.verify: readback proves what the destination holds")
    else:
        text = f"{left:.0%} stays in the page cache, though it was to be dropped"
        meaning = "a read-back may see this machine's memory instead of the destination"
        yield Finding(
            _D, "read-back", _PROBLEM, text, meaning, "copy.verify: readback is worth no more than transfer there"
        )


def _throughput(found: Throughput) -> Iterator[Finding]:
    if found.mismatch is not None:
        text = f"what was written does not read back, near byte {found.mismatch:,}"
        yield Finding(_D, "throughput", _PROBLEM, text, "do not trust this destination", "its hardware, its network")
        return
    text = f"{size_text(round(found.write))}/s written and durable, {size_text(round(found.read))}/s read back"
    slow = found.write < 10e6
    meaning = f"a file of 25 GB takes about {25e9 / found.write / 60:.0f} min"
    yield Finding(_D, "throughput", _NOTE if slow else _OK, f"{text} ({size_text(found.bytes)})", meaning)


def _small_files(found: SmallFiles) -> Iterator[Finding]:
    barrier = "one barrier for all" if found.one_barrier else "an fsync each"
    text = f"{found.rate:,.0f} files of 4 KiB a second, durable ({barrier})"
    slow = found.rate < 50
    meaning = f"10,000 of them take about {10_000 / found.rate / 60:.1f} min in one process"
    advice = "copy.transfers, copy.movers: several wait at the same time" if slow else None
    yield Finding(_D, "small files", _NOTE if slow else _OK, text, meaning, advice)


def judge(found: Measured) -> Iterator[Finding]:
    """Say what a measurement of the destination means."""
    match found:
        case Space():
            yield from _space(found)
        case Fsync():
            yield from _fsync(found)
        case Rename():
            yield from _rename(found)
        case Times():
            yield from _times(found)
        case Names():
            yield from _names(found)
        case Sizes():
            yield from _sizes(found)
        case Attributes():
            yield from _attributes(found)
        case ReadBack():
            yield from _readback(found)
        case Throughput():
            yield from _throughput(found)
        case SmallFiles():
            yield from _small_files(found)
