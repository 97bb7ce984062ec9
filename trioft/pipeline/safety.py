"""
Safety: may a source be removed? The one definition, for ``trioft safe``, ``explain``, and the page.

*Yes* only if every file that is there now is the version that was delivered, nobody is writing it, its content was
verified wholly, and its copy is there now as it was sealed. *No* where one of that is known not to be so; *unknown*
where something could not be looked at, or nothing can prove it.

``judge`` is the definition, for one file: it touches nothing. ``inquiry`` finds out the facts, and asks it about many.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import NamedTuple

import attrs

from trioft.core import answers
from trioft.core.answers import Seen, Sight
from trioft.core.errors import show_path
from trioft.core.model import Fingerprint
from trioft.pipeline.verification import NO_DIGEST
from trioft.state.findings import VERIFIED, Finding
from trioft.state.proofs import Proof
from trioft.state.reader import Recorded

# Times of a destination that are kept less exactly than this tell little: another file may well have the same one.
_COARSE_NS = 1_000_000_000
# Where it was never noted how exactly they are kept.
_COARSEST_NS = 2_000_000_000
_EXAMPLES = 3


class Answer(enum.StrEnum):
    """What is said of a file, and of many."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Reason(NamedTuple):
    """Why the answer is not yes."""

    answer: Answer
    kind: str  # the same for all files with the same reason
    text: str


class Content(NamedTuple):
    """What was read of a file just now."""

    digest: bytes | None  # of its copy; None where that could not be read, or has another size
    is_source: bool | None = None  # it is what the source holds; None: that was not read


# --- the definition ---------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Facts:
    """All that is known about one file of the source, from the ledger and from both ends."""

    recorded: Recorded | None
    proof: Proof
    source: Sight
    copy: Seen | None  # None: the destination cannot be looked at, *away* says why
    away: str | None = None
    finding: Finding | None = None  # of `trioft verify`, about its copy
    resolution_ns: int | None = None  # of the destination's times
    content: Content | None = None  # None: nothing was read
    archived: Fingerprint | None = None  # it was moved to an archive; this is what it was then
    other_volume: bool = False  # the source is another one than the one that was copied last


def judge(x: Facts) -> Reason | None:
    """Say why a source file must not be removed now, or None where that loses nothing."""
    recorded = x.recorded
    if recorded is None:
        return no("not_on_record", "it is not on record that it was delivered")
    if not recorded.is_delivered:
        what = "it was skipped" if recorded.known.outcome == "skipped" else f"it has {recorded.known.outcome}"
        return no("not_delivered", f"it was not delivered: {what}")
    if not recorded.target:
        return no("replaced", "another file has been delivered under its name since")
    return _why_not_source(x, recorded) or _why_not_proved(x, recorded) or _why_not_copy(x, recorded)


def no(kind: str, text: str) -> Reason:
    """Return a reason for which it is known that a source must stay."""
    return Reason(Answer.NO, kind, text)


def unknown(kind: str, text: str) -> Reason:
    """Return a reason for which nobody can say that it may go."""
    return Reason(Answer.UNKNOWN, kind, text)


def why_not_seen(sight: Sight) -> Reason:
    """Say what is to be said of what could not be looked at, or is not there."""
    if sight.kind == "unreadable":
        return unknown("unseen", f"the source cannot be looked at: {sight.trouble}")
    return no("gone", "it is not there")


def _why_not_source(x: Facts, recorded: Recorded) -> Reason | None:
    """Say why what is at the source now may not be what was delivered, or may be being written."""
    sight, known = x.source, recorded.known
    if sight.kind == "unreadable":
        return why_not_seen(sight)
    if sight.kind == "gone":
        removed = ": trioft has removed it" if known.removal == "removed" else ""
        return no("gone", f"it is gone already{removed}")
    now = sight.fingerprint
    if now is None:
        return no("no_file", "what is there now is no regular file")
    if (now.size, now.mtime_ns) != (known.size, known.mtime_ns):
        return no("changed", "it has changed since it was delivered")
    content = x.content
    if content is not None and content.is_source is False and content.digest == recorded.digest is not None:
        return no("changed", "it does not hold what was delivered")
    is_read = content is not None and content.is_source is True
    if x.archived is not None:
        if (now.ino, now.size) != (x.archived.ino, x.archived.size):
            return no("changed", "it is another file than the one that was delivered")
        if content is None or content.is_source is None:
            return unknown("archived", "it has been moved since it was delivered: only reading it tells what it holds")
    elif x.other_volume and (content is None or content.is_source is None):
        return unknown("other_volume", "another volume was mounted there when it was delivered: only reading it tells")
    elif now.ctime_ns != known.ctime_ns and not is_read:
        return no("touched", "something about it has changed since it was delivered (its ctime): perhaps its content")
    if sight.writer == answers.BUSY:
        return no("written", "somebody has it open for writing")
    if sight.writer != answers.CLOSED:
        return unknown("maybe_written", "nobody can prove that it is not being written")
    return None


def _why_not_proved(x: Facts, recorded: Recorded) -> Reason | None:
    """Say why what was delivered may have other content than its source had."""
    if x.content is not None:
        return None  # it was read again just now: that proves it, or not
    if recorded.digest is None:
        return no("not_compared", "its content was never compared with that of its copy")
    match x.proof.how:
        case "readback" | "compared":
            return None
        case "edges":
            return no("edges", "not all of it was compared with its copy (growing.reconcile: edges)")
        case "":
            if x.finding is not None and (x.finding.digest, x.finding.verdict) == (recorded.digest, VERIFIED):
                return None
            return unknown("no_proof", "it is not on record any more how its copy was verified")
        case how:
            return no("not_read_back", f"its copy was not read back: it was verified by {how} only")


def _why_not_copy(x: Facts, recorded: Recorded) -> Reason | None:
    """Say why what was delivered may not be at the destination any more."""
    there, known, name = x.copy, recorded.known, show_path(recorded.target)
    if there is None:
        return unknown("away", f"the destination cannot be looked at: {x.away}")
    if there.trouble is not None:
        return unknown("copy_unseen", f"its copy cannot be looked at: {there.trouble}")
    if there.size is None:
        return no("copy_gone", f"there is no {name} at the destination any more")
    if x.source.fingerprint is not None and there.file == x.source.fingerprint[:2]:
        return no("copy_is_source", f"{name} at the destination is the source itself, by another way")
    if there.in_source:
        return no("copy_in_source", f"the folder of {name} at the destination lies in the source itself: it is no copy")
    resolution = x.resolution_ns or _COARSEST_NS
    if there.size != known.size:
        return no("copy_changed", _another(name))
    if x.content is not None:
        return _why_not_content(x, recorded)
    if abs(there.mtime_ns - known.mtime_ns) >= resolution:
        return no("copy_changed", _another(name))
    finding = x.finding
    is_bad = finding is not None and finding.digest == recorded.digest and finding.verdict not in (VERIFIED, NO_DIGEST)
    # Only what the ledger has noted after that is a later delivery; clocks do not tell.
    if finding is not None and is_bad and (finding.after is None or x.proof.number <= finding.after):
        return no("found_bad", f"`trioft verify` has found it to be {finding.verdict}, on {_local(finding.time)}")
    if resolution >= _COARSE_NS:
        text = f"the destination keeps times in steps of {resolution / 1e9:g} s: another file may have the same one"
        return unknown("coarse_times", f"{text}; only reading it tells")
    return None


def _another(name: str) -> str:
    return f"{name} has another size or time than what was delivered: somebody has replaced it"


def _why_not_content(x: Facts, recorded: Recorded) -> Reason | None:
    content, name = x.content, show_path(recorded.target)
    assert content is not None
    if content.digest is None:
        return unknown("copy_unread", f"{name} could not be read")
    if content.is_source is False:
        return no("copy_differs", f"{name} does not hold what the source holds")
    if recorded.digest is not None and content.digest != recorded.digest:
        return no("copy_differs", f"{name} does not hold what was delivered")
    if content.is_source is None and needs_source(x):
        return unknown("source_unread", "the source could not be read")
    return None


def needs_source(x: Facts) -> bool:
    """Must the source be read too, as the digest on record, if there is one, does not say what it holds now?"""
    recorded, now = x.recorded, x.source.fingerprint
    if recorded is None or now is None:
        return False
    moved = x.archived is not None or x.other_volume or now.ctime_ns != recorded.known.ctime_ns
    return recorded.digest is None or x.proof.how in ("edges", "size") or moved


def _local(time: str) -> str:
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


# --- what is found of many --------------------------------------------------------------------------------------------


@attrs.define
class Count:
    """How many files, and some of them."""

    files: int = 0
    examples: list[bytes] = attrs.field(factory=list)

    def add(self, path: bytes) -> None:
        self.files += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(path)


@attrs.define
class Tally:
    """What was found of the files of a source, or of a part of it."""

    files: int = 0
    size: int = 0  # bytes
    reasons: dict[str, tuple[Reason, Count]] = attrs.field(factory=dict)
    others: dict[str, Count] = attrs.field(factory=dict)  # what is no file, and is never copied, by what it is

    @property
    def answer(self) -> Answer:
        found = {reason.answer for reason, _ in self.reasons.values()}
        if Answer.NO in found:
            return Answer.NO
        return Answer.UNKNOWN if found else Answer.YES

    def add(self, path: bytes, reason: Reason) -> None:
        """One more file for which the answer is not yes. Of several the first one's words are kept."""
        self.reasons.setdefault(reason.kind, (reason, Count()))[1].add(path)

    def end(self) -> None:
        """All was looked at."""
        if not self.files and not self.reasons:
            self.reasons["nothing"] = no("nothing", "there is no file here: nothing to be safe"), Count()


def tally_fields(tally: Tally) -> dict[str, object]:
    """Return what was found, as JSON has it."""
    return {
        "safe": tally.answer,
        "files": tally.files,
        "bytes": tally.size,
        "reasons": [
            {"safe": reason.answer, "kind": reason.kind, "text": reason.text, **_count_fields(count)}
            for reason, count in tally.reasons.values()
        ],
        "not_copied": [{"kind": kind, **_count_fields(count)} for kind, count in tally.others.items()],
    }


def _count_fields(count: Count) -> dict[str, object]:
    return {"files": count.files, "examples": [show_path(path) for path in count.examples]}
