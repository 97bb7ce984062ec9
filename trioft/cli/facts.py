"""
All about one file: what is on record, what the configuration says, what it is now at both ends; and what follows from
that: whether its source may be removed.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

import attrs
import trio

from trioft.cli.pairs import all_ledgers, ledger_of, resolved
from trioft.config.options import Config
from trioft.config.policy import markers_of, routes_of
from trioft.core import operations as ask
from trioft.core.answers import Look, Piece, Seen, Sight
from trioft.core.errors import ConfigError, FileTrouble, show_path
from trioft.core.manifest import own_names
from trioft.core.model import Checkpoint, Fingerprint, Markers
from trioft.core.naming import Wanted, is_marker, lies_at, why_not_wanted
from trioft.core.routes import explain as explain_route
from trioft.core.units import format_size
from trioft.movers.pool import Movers
from trioft.pipeline.inquiry import Area, find_source, is_other_volume
from trioft.pipeline.safety import Facts, Reason, judge
from trioft.state.findings import Finding, last_finding
from trioft.state.ledger import Line
from trioft.state.proofs import Proof
from trioft.state.reader import Recorded, Records

_LOOKING = 10.0  # seconds to look at either end


class Decision(NamedTuple):
    """What the configuration says about a file."""

    why_not: str | None  # why it is not transferred
    target: bytes  # its final name, if nothing else has it
    rule: str  # why it is called so
    growing: str  # what happens while it is being written


@attrs.frozen(kw_only=True)
class Now:
    """What is there at this moment. Where an end could not be looked at, its error says why."""

    source: Look | None = None
    source_error: str | None = None
    other_volume: bool = False  # the source is on another one than the one that was copied last
    there: Seen | None = None
    partial: Seen | None = None
    destination_error: str | None = None


@attrs.frozen(kw_only=True)
class Explanation:
    """All about one file."""

    path: bytes
    source: bytes
    destination: bytes
    decision: Decision
    recorded: Recorded | None
    checkpoint: Checkpoint | None
    finding: Finding | None
    history: list[Line]
    now: Now
    proof: Proof = attrs.field(factory=Proof)
    resolution_ns: int | None = None  # of the destination's times
    archive: bytes = b""  # the folder that it was moved to, if that is what is explained
    archived: Fingerprint | None = None  # which file it was then

    @property
    def is_folder(self) -> bool:
        """Is what is there now a folder, or was it none that anything is on record of, but of files below it?"""
        return self.now.source is not None and self.now.source.kind == "folder" and self.recorded is None

    @property
    def target(self) -> bytes:
        """Its final name at the destination, or what that would be."""
        is_delivered = self.recorded is not None and self.recorded.is_delivered and self.recorded.target
        return self.recorded.target if self.recorded is not None and is_delivered else self.decision.target


# --- the answer -------------------------------------------------------------------------------------------------------


def why_not_remove(x: Explanation) -> str | None:
    """Say why the source must not be removed now, or None where that loses nothing. ``safety`` has the definition."""
    reason = reason_of(x)
    return None if reason is None else reason.text


def reason_of(x: Explanation) -> Reason | None:
    """Return why the source must not be removed now, and whether that is known."""
    now = x.now
    facts = Facts(
        recorded=x.recorded,
        proof=x.proof,
        source=_sight_of(now.source, x.path),
        copy=now.there,
        away=now.destination_error,
        finding=x.finding,
        resolution_ns=x.resolution_ns,
        archived=x.archived,
        other_volume=now.other_volume,
    )
    reason = judge(facts)
    if reason is not None and reason.kind == "unseen" and now.source is None:
        return reason._replace(text=f"the source cannot be looked at: {now.source_error}")
    return reason


def _sight_of(look: Look | None, path: bytes) -> Sight:
    if look is None:
        return Sight(path, "unreadable")
    fingerprint = look.found.fingerprint if look.found is not None else None
    return Sight(path, look.kind, fingerprint, look.writer, look.trouble)


# --- finding out ------------------------------------------------------------------------------------------------------


def decide(config: Config, path: bytes, source: bytes, version: Fingerprint | None = None) -> Decision:
    """Return what *config* says about a file; of which *version*, a rule for its name may have to know."""
    why_not = why_not_wanted(path, config.source.include, (*config.source.excluded, *own_names(config.copy.manifest)))
    archive = config.copy.on_success.folder
    if archive is not None and lies_at(os.path.join(source, path), os.fsencode(os.path.abspath(archive))):
        why_not = "it is in the archive folder"
    markers = markers_of(config)
    if is_marker(path, markers.source) and not (version is not None and version.size):
        why_not = "it only says that another file is complete (source.done_suffix)"
    elif is_marker(path, markers.destination):
        why_not = "at the destination, its name would say that another file is complete (copy.done_file)"
    growing = config.growing
    if growing.mode == "wait":
        while_it_grows = "waits until it is closed (growing.mode: wait)"
    elif not Wanted(growing.include, growing.exclude).file(path):
        while_it_grows = "waits until it is closed (growing.include, growing.exclude)"
    else:
        while_it_grows = f"is followed, from {format_size(growing.min_size)} on"
    if (routes := routes_of(config)) is None:
        return Decision(why_not, path, "the tree is kept", while_it_grows)
    routed = explain_route(routes, path, version)
    return Decision(why_not, routed.target or path, routed.text, while_it_grows)


def explain(config: Config, records: Records, path: bytes, area: Area = Area()) -> Explanation:  # noqa: B008 - a value
    """Find out everything about the source file *path*, which may lie elsewhere by now, in the *area* of an archive."""
    recorded, checkpoint = records.file(path), records.checkpoint_of(path)
    version = Fingerprint(0, 0, *recorded.known[2:5]) if recorded is not None else None
    decision = decide(config, path, records.source, version)
    target = recorded.target if recorded is not None and recorded.is_delivered and recorded.target else decision.target
    now = trio.run(_look, config, records, path, target, checkpoint.partial if checkpoint is not None else None, area)
    return Explanation(
        path=path,
        source=records.source,
        destination=records.destination,
        decision=decision,
        recorded=recorded,
        checkpoint=checkpoint,
        finding=last_finding(records.path, target),
        history=records.history_of(path),
        now=now,
        proof=records.proof_of(recorded) if recorded is not None else Proof(),
        resolution_ns=records.resolution_ns,
        archive=area.archive,
        archived=records.archive_of(path)[1] if area.archive else None,
    )


async def _look(config: Config, records: Records, path: bytes, target: bytes, partial: bytes | None, area: Area) -> Now:
    """Look at both ends at the same time: neither waits for the other, nor for long."""
    found: dict[str, Now] = {}
    async with Movers(2, min(_LOOKING, config.copy.stall_timeout)) as movers, trio.open_nursery() as nursery:

        async def look_at_source() -> None:
            markers = markers_of(config)
            if any(is_marker(path, end) for end in markers):
                markers = Markers()  # it is looked at all the same
            try:
                is_other = False
                if area.archive:
                    root, _ = await movers.call(ask.PROBE_SOURCE, area.archive, None)
                else:
                    root, identity = await find_source(movers.call, records, path)
                    is_other = is_other_volume(records.identity_of("source"), identity)
                place = area.path if area.archive else path
                (look,) = await movers.call(ask.LOOK, root, [place or b"."], (), (), markers, None)
                found["source"] = Now(source=look, other_volume=is_other)
            except FileTrouble as error:
                found["source"] = Now(source_error=str(error))

        async def look_at_destination() -> None:
            settings, was = config.destination, records.identity_of("destination")
            marker = os.fsencode(settings.marker) if settings.marker else None
            pieces = [Piece(name, 0, 0) for name in (target, partial) if name is not None]
            try:
                root = await movers.call(ask.RECOGNIZE, records.destination, was, marker, settings.require_mount)
                there, *rest = await movers.call(ask.READ_DELIVERED, root, pieces, area.archive or records.source)
                found["destination"] = Now(there=there, partial=rest[0] if rest else None)
            except FileTrouble as error:
                found["destination"] = Now(destination_error=str(error))

        nursery.start_soon(look_at_source)
        nursery.start_soon(look_at_destination)
    there = found["destination"]
    return attrs.evolve(
        found["source"], there=there.there, partial=there.partial, destination_error=there.destination_error
    )


# --- which file -------------------------------------------------------------------------------------------------------


def find(config: Config, state_dir: str, text: str) -> tuple[str, bytes]:
    """
    Return the ledger and the path of the file that a person calls *text*.

    That is its path, absolute or below SOURCE, or the name of its copy or its partial, absolute or below DEST.
    Raises ``TrioftError``.
    """
    name = os.fsencode(text)
    ledgers = all_ledgers(state_dir)
    if config.source.path or config.destination.path or len(ledgers) < 2:
        ledger = ledger_of(config, state_dir)
        with contextlib.closing(Records(ledger)) as records:
            path = _known_as(records, name)
            if path is None and not os.path.isabs(name):
                path = os.path.normpath(name)
            if path is None or path == b".." or path.startswith(b"../"):
                ends = f"{show_path(records.source)} nor below {show_path(records.destination)}"
                raise ConfigError([f"{show_path(name)} is neither below {ends}"])
            return ledger, path
    found = []
    for ledger in ledgers:
        with contextlib.closing(Records(ledger)) as records:
            if (path := _known_as(records, name)) is not None:
                found.append((ledger, path))
    if len(found) != 1:
        count = f"{len(found)} pairs know" if found else "no pair knows"
        raise ConfigError([f"{count} {show_path(name)}"], hint="name SOURCE and DEST too")
    return found[0]


def _known_as(records: Records, name: bytes) -> bytes | None:
    """Return the path of the file that *name* means here, if it means one."""
    relative, absolute = os.path.normpath(name), os.path.abspath(name)
    if not os.path.isabs(name):
        if records.knows(relative):
            return relative
        if (path := records.source_of(relative)) is not None:
            return path
        if records.has_files_below(relative):
            return relative
    if (path := _at_an_end(records, absolute)) is not None:
        return path
    # It may be called so by way of a link.
    (folder,) = trio.run(resolved, [os.path.dirname(absolute)], _LOOKING)
    return _at_an_end(records, os.path.join(folder, os.path.basename(absolute)))


def _at_an_end(records: Records, absolute: bytes) -> bytes | None:
    if absolute == records.source:  # it is this one file, or the folder
        name = os.path.basename(absolute)
        return name if records.knows(name) else b""
    if path := lies_at(absolute, records.source):
        return path
    target = lies_at(absolute, records.destination) or None
    return None if target is None else records.source_of(target) or target
