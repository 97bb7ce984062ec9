"""
All about one file: what is on record, what the configuration says, what it is now at both ends; and what follows from
that: whether its source may be removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

import attrs
import trio

from trioft.cli.history import local
from trioft.cli.pairs import all_ledgers, ledger_of, resolved
from trioft.config.options import Config
from trioft.config.policy import markers_of, routes_of
from trioft.core import answers
from trioft.core import operations as ask
from trioft.core.answers import Look, Piece, Seen
from trioft.core.errors import ConfigError, FileTrouble, show_path
from trioft.core.model import Checkpoint, Fingerprint, Markers, Root
from trioft.core.naming import Wanted, is_marker, why_not_wanted
from trioft.core.routes import explain as explain_route
from trioft.core.units import format_size
from trioft.movers.pool import Movers
from trioft.pipeline.verification import NO_DIGEST, SAME_NS
from trioft.state.findings import VERIFIED, Finding, last_finding
from trioft.state.ledger import Line
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

    @property
    def target(self) -> bytes:
        """Its final name at the destination, or what that would be."""
        is_delivered = self.recorded is not None and self.recorded.is_delivered and self.recorded.target
        return self.recorded.target if self.recorded is not None and is_delivered else self.decision.target


# --- the answer -------------------------------------------------------------------------------------------------------


def why_not_remove(x: Explanation) -> str | None:
    """
    Say why the source must not be removed now, or None where that loses nothing.

    What trioft itself asks for before it removes one; and that what was delivered is still there.
    """
    recorded, now = x.recorded, x.now
    if recorded is None:
        return "it is not on record that it was delivered"
    if not recorded.is_delivered:
        return f"it was not delivered: it has {recorded.known.outcome}"
    if not recorded.target:
        return "another file has been delivered under its name since"
    if now.source is None:
        return f"the source cannot be looked at: {now.source_error}"
    trouble = now.source.trouble
    if now.source.kind == "gone":
        return "it is gone already" + (": trioft has removed it" if recorded.known.removal == "removed" else "")
    if now.source.found is None:
        return f"what is there now is no regular file, or cannot be looked at{f': {trouble}' if trouble else ''}"
    fingerprint = now.source.found.fingerprint
    if not recorded.known.is_still(fingerprint):
        return "it has changed since it was delivered"
    if recorded.known.ctime_ns != fingerprint.ctime_ns:
        return "something about it has changed since it was delivered (its ctime): perhaps its content"
    if recorded.digest is None:
        return "its content was never compared with that of its copy"
    if now.source.writer == answers.BUSY:
        return "somebody has it open for writing"
    if now.source.writer != answers.CLOSED:
        return "nobody can prove that it is not being written"
    return _why_not_there(x, recorded)


def _why_not_there(x: Explanation, recorded: Recorded) -> str | None:
    """Say why what was delivered may not be at the destination any more, or None."""
    there, name = x.now.there, show_path(recorded.target)
    if there is None:
        return f"the destination cannot be looked at: {x.now.destination_error}"
    if there.trouble is not None:
        return f"its copy cannot be looked at: {there.trouble}"
    if there.size is None:
        return f"there is no {name} at the destination any more"
    if there.size != recorded.known.size or abs(there.mtime_ns - recorded.known.mtime_ns) >= SAME_NS:
        return f"{name} has another size or time than what was delivered: somebody has replaced it"
    finding = x.finding
    if finding is None or finding.digest != recorded.digest or finding.verdict in (VERIFIED, NO_DIGEST):
        return None
    if any(line.event in ("delivered", "already") and line.time > finding.time for line in x.history):
        return None  # it was delivered once more since
    return f"`trioft verify` has found it to be {finding.verdict}, on {local(finding.time)}"


# --- finding out ------------------------------------------------------------------------------------------------------


def decide(config: Config, path: bytes, source: bytes, version: Fingerprint | None = None) -> Decision:
    """Return what *config* says about a file; of which *version*, a rule for its name may have to know."""
    why_not = why_not_wanted(path, config.source.include, config.source.excluded)
    archive = config.copy.on_success.folder
    if archive is not None and _below(os.fsencode(os.path.abspath(archive)), os.path.join(source, path)) is not None:
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


def _below(folder: bytes, path: bytes) -> bytes | None:
    """Return where *path* lies in *folder*, or None."""
    prefix = folder.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def explain(config: Config, records: Records, path: bytes) -> Explanation:
    """Find out everything about the source file *path*."""
    recorded, checkpoint = records.file(path), records.checkpoint_of(path)
    version = Fingerprint(0, 0, *recorded.known[2:5]) if recorded is not None else None
    decision = decide(config, path, records.source, version)
    target = recorded.target if recorded is not None and recorded.is_delivered and recorded.target else decision.target
    now = trio.run(_look, config, records, path, target, checkpoint.partial if checkpoint is not None else None)
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
    )


async def _look(config: Config, records: Records, path: bytes, target: bytes, partial: bytes | None) -> Now:
    """Look at both ends at the same time: neither waits for the other, nor for long."""
    found: dict[str, Now] = {}
    async with Movers(2, min(_LOOKING, config.copy.stall_timeout)) as movers, trio.open_nursery() as nursery:

        async def look_at_source() -> None:
            markers = markers_of(config)
            if any(is_marker(path, end) for end in markers):
                markers = Markers()  # it is looked at all the same
            try:
                root = await _root_of(movers, records, path)
                (look,) = await movers.call(ask.LOOK, root, [path], (), (), markers, None)
                found["source"] = Now(source=look)
            except FileTrouble as error:
                found["source"] = Now(source_error=str(error))

        async def look_at_destination() -> None:
            settings, was = config.destination, records.identity_of("destination")
            marker = os.fsencode(settings.marker) if settings.marker else None
            pieces = [Piece(name, 0, 0) for name in (target, partial) if name is not None]
            try:
                root = await movers.call(ask.RECOGNIZE, records.destination, was, marker, settings.require_mount)
                there, *rest = await movers.call(ask.READ_DELIVERED, root, pieces)
                found["destination"] = Now(there=there, partial=rest[0] if rest else None)
            except FileTrouble as error:
                found["destination"] = Now(destination_error=str(error))

        nursery.start_soon(look_at_source)
        nursery.start_soon(look_at_destination)
    there = found["destination"]
    return attrs.evolve(
        found["source"], there=there.there, partial=there.partial, destination_error=there.destination_error
    )


async def _root_of(movers: Movers, records: Records, path: bytes) -> Root:
    """Return the source's folder, which is not the source where that is one file."""
    was = records.identity_of("source")
    try:
        root, _ = await movers.call(ask.PROBE_SOURCE, records.source, was)
    except FileTrouble as error:
        alone = os.path.dirname(records.source)
        is_gone = error.trouble.errno in (errno.ENOTDIR, errno.ENOENT)
        if not is_gone or os.path.join(alone, path) != records.source:
            raise
        root, _ = await movers.call(ask.PROBE_SOURCE, alone, was)
    assert isinstance(root, Root)
    return root


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
            if path is None or path.startswith(b".."):
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
    if (path := _at_an_end(records, absolute)) is not None:
        return path
    # It may be called so by way of a link.
    (folder,) = trio.run(resolved, [os.path.dirname(absolute)], _LOOKING)
    return _at_an_end(records, os.path.join(folder, os.path.basename(absolute)))


def _at_an_end(records: Records, absolute: bytes) -> bytes | None:
    if absolute == records.source:  # it is this one file, or the folder, which is no file
        name = os.path.basename(absolute)
        return name if records.knows(name) else None
    if (path := _below(records.source, absolute)) is not None:
        return path
    target = _below(records.destination, absolute)
    return None if target is None else records.source_of(target) or target
