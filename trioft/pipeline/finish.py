"""
Finish: from a verified partial to a delivered file, and only then, perhaps, to a removed source.

The one readable sequence. Every step has happened, durably, before the next one begins.
"""

from __future__ import annotations

import itertools
import json
import os
from datetime import UTC, datetime, timedelta

import trio

from trioft.core.errors import GATE, SEAL, FileTrouble, Side, Trouble, show_path
from trioft.core.manifest import is_listed
from trioft.core.model import FileState, Item, Job, Manner, Publication, Result, Unlisted, Verdict, policy_for
from trioft.core.naming import numbered, partial_for
from trioft.core.units import timestamp
from trioft.movers.programs import filled_in, run_command
from trioft.pipeline.context import Tools
from trioft.state import claims, origins, proofs, unlisted, versions
from trioft.state.ledger import Entry, Ledger, Removal

# So many versions of one file within so many seconds, each under a name of its own, are worth a warning.
_MANY, _SHORT = 3, 3600.0
_NUMBERS = 1000  # names of a file, with numbers, among which its own may be

UNPROVEN = (
    "delivered sources are not deleted where nobody can prove that they are not being written"
    " (a network source, a card with FAT or exFAT, an overlay, a folder exported by NFS, or files of other users);"
    " --on-success archive:DIR is possible"
)


async def finish(job: Job, results: list[Result], tools: Tools) -> list[Result]:
    """
    Publish what a strategy has WRITTEN, record it, and let the gate decide about the sources.

    Shielded for the grace period: a file whose final name has been given is also recorded. Returns the results with
    PUBLISHED, or what prevented it, in the place of WRITTEN; a PUBLISHED one with a trouble is a delivered file whose
    source could not be removed.
    """
    async with tools.shutdown.shield():
        # 1. The strategy has made the content durable and verified it.
        # 2. The user's own check has nothing against it.
        if tools.config.copy.gate is not None:
            results = [await _ask(item, result, tools) for item, result in zip(job.items, results, strict=True)]
        # 3. Times, final name, folder made durable: in one call for all.
        results = await _publish(job, results, tools)
        # 4. Those who wait for a marker find it.
        if tools.manner.markers.destination:
            results = await _mark(results, tools)
        # 5. The ledger knows, and survives a power cut, before anybody else is told.
        delivered = await _record(job, results, tools)
        # 6. The gate: only what is recorded may be removed, and only if it is still what was delivered.
        if tools.config.copy.on_success.action != "keep" and delivered:
            results = await _remove_sources(job, results, delivered, tools)
            if tools.config.source.remove_empty_folders:
                await _remove_emptied({os.path.dirname(job.items[n].path) for n in delivered}, tools)
    return results


async def _remove_emptied(folders: set[bytes], tools: Tools) -> None:
    """Remove the folders that deliveries have emptied. One that cannot be removed stays, and harms nobody."""
    try:
        removed = await tools.source.remove_emptied(sorted(folders - {b""}))
    except FileTrouble:
        return
    for folder in removed:
        tools.board.record("info", "folder.removed", path=show_path(folder))


async def _ask(item: Item, result: Result, tools: Tools) -> Result:
    """
    Have the user's command look at a partial. One that it ends with 0 for, and has left as it was, may be published.

    It is killed when the grace period is over; the file is then checked by the next run.
    """
    settings, root = tools.config.copy, tools.destination.root
    if result.verdict != Verdict.WRITTEN or settings.gate is None:
        return result
    partial = partial_for(item)
    tools.board.move(tools.entry(item), FileState.VERIFYING, "the gate looks at it")
    if tools.manner.verify != "readback":
        # The next run would believe a checkpoint, whatever the command has done to the partial.
        await tools.ledger.call(Ledger.drop_checkpoint, item.path)
    if result.seal is not None:
        (is_whole,) = await tools.destination.are_sealed([(partial, result.seal, result.digest)])
        if not is_whole:
            text = "somebody else has changed this partial since it was verified"
            return Result(Verdict.TROUBLE, trouble=Trouble(Side.DESTINATION, SEAL, partial, None, None, text))
    seal = await tools.destination.seal(partial, item.fingerprint.mtime_ns)
    values = {
        "partial": os.path.join(root.path, partial),
        "source": os.path.join(tools.source.root.path, item.path),
        "name": item.path,
        "size": b"%d" % item.fingerprint.size,
    }
    number = None
    try:
        why_not = await run_command(
            filled_in(settings.gate, values),
            limit=settings.gate_timeout,
            left_behind=lambda process: tools.stuck.add(process, "the gate", Side.DESTINATION, [item.fingerprint[:2]]),
            starts=tools.starts,
        )
    except OSError as error:
        number = error.errno
        why_not = f"{settings.gate[0]} cannot be started: {error.strerror}"
    if why_not is None:
        if await tools.destination.is_sealed(partial, seal, result.digest):
            return result._replace(seal=seal)
        why_not = "it has changed the copy: it may only read it"
    return Result(Verdict.TROUBLE, trouble=Trouble(Side.DESTINATION, GATE, partial, None, number, why_not))


async def _publish(job: Job, results: list[Result], tools: Tools) -> list[Result]:
    written = [n for n, result in enumerate(results) if result.verdict == Verdict.WRITTEN]
    if not written:
        return results
    # Another ledger's file may have come to the name while this one was copied.
    items = dict(zip(written, await tools.claims.heed_others([job.items[n] for n in written]), strict=True))
    publications = await _publications([(items[n], results[n]) for n in written], tools)
    # Should this be cut short, the next run finds out which of them have got their names, and lists those.
    kind = tools.manner.manifest
    to_list = [_unlisted(job.items[n], results[n]) for n in written if is_listed(kind, job.items[n].target)]
    if to_list:
        await tools.ledger.call(unlisted.announce, to_list)
    published = await tools.destination.publish(publications, tools.manner)
    results = results[:]
    for n, result in zip(written, published, strict=True):
        copied = results[n]
        note = items[n].kept if result.verdict == Verdict.EXISTS and items[n].kept else copied.note
        results[n] = result._replace(
            digest=copied.digest, closed=copied.closed, note=note, sum=copied.sum, lost=copied.lost
        )
        if copied.lost and result.verdict == Verdict.PUBLISHED:
            _tell_lost(job.items[n], copied.lost, tools)
    return results


def _tell_lost(item: Item, lost: tuple[str, ...], tools: Tools) -> None:
    """Say that a file has arrived without some of its extended attributes."""
    path, names = show_path(item.path), ", ".join(show_path(os.fsencode(name)) for name in lost)
    text = f"{path}: delivered without the extended attributes {names}: the destination does not take them"
    tools.board.notice("file", text, event="file.attributes", path=path, reason=f"not taken: {names}")


async def _publications(written: list[tuple[Item, Result]], tools: Tools) -> list[Publication]:
    """
    Say how the partials that were *written* get their final names.

    Where names are not replaced, one still is: that of an earlier version of the same source file, of which all is in
    the new one. A log that was appended to, or an upload that was resumed, is no other file.
    """
    items = [item for item, _ in written]
    publications = [_publication(item, result, tools.manner) for item, result in written]
    later = [n for n, item in enumerate(items) if item.before and publications[n].if_exists == "rename"]
    if later:
        found = await tools.destination.find_former([items[n] for n in later])
        for n, former in zip(later, found, strict=True):
            publications[n] = publications[n]._replace(former=former)
    return publications


def _publication(item: Item, result: Result, manner: Manner) -> Publication:
    if_exists = policy_for(item, manner)
    made = Publication(item.path, partial_for(item), item.mode, item.fingerprint, item.target, if_exists)
    return made._replace(doubtful=item.doubtful, seal=result.seal, digest=result.digest)


async def _mark(results: list[Result], tools: Tools) -> list[Result]:
    """Make the markers of what is at the destination, durably. A file without its marker is tried again."""
    there = [n for n, result in enumerate(results) if result.verdict in (Verdict.PUBLISHED, Verdict.ALREADY)]
    if not there:
        return results
    targets = [results[n].target for n in there]
    troubles = await tools.destination.mark(targets, tools.manner.markers.destination)
    results = results[:]
    for n, trouble in zip(there, troubles, strict=True):
        if trouble is not None:
            results[n] = Result(Verdict.TROUBLE, trouble=trouble)
    return results


def _unlisted(item: Item, result: Result) -> Unlisted:
    _, _, size, mtime_ns, _ = item.fingerprint
    return Unlisted(result.target or item.target, size, mtime_ns, result.digest, result.sum)


async def _record(job: Job, results: list[Result], tools: Tools) -> list[int]:
    """Record what is at the destination now. Returns which items are, with a proof of their content."""
    removing = tools.config.copy.on_success.action != "keep"
    entries, delivered, to_list = [], [], []
    for n, (item, result) in enumerate(zip(job.items, results, strict=True)):
        # What was there already counts as delivered only if its bytes were compared.
        proved = result.verdict == Verdict.PUBLISHED or (
            result.verdict == Verdict.ALREADY and result.digest is not None
        )
        if proved:
            delivered.append(n)
            if is_listed(tools.manner.manifest, result.target):
                to_list.append((item.target, _unlisted(item, result)))
        if proved or result.verdict == Verdict.ALREADY:
            entries.append(
                Entry(
                    "delivered" if result.verdict == Verdict.PUBLISHED else "already",
                    item.path,
                    result.target,
                    item.fingerprint,
                    result.digest,
                    _detail(item, result, tools) if proved else "same size and time",
                    "pending" if proved and removing else "",
                    result.closed,
                )
            )
    if entries:
        await tools.ledger.call(_record_all, entries, to_list)
        _warn_of_altered(job, results, tools)
        await _warn_of_versions(job, results, tools)
    return delivered


def _warn_of_altered(job: Job, results: list[Result], tools: Tools) -> None:
    """Say that copies were found not to be any more what was delivered: of sources that are, and got other names."""
    for item, result in zip(job.items, results, strict=True):
        if text := _altered(item, result, tools):
            path, dest = show_path(item.path), show_path(result.target)
            fields = {"path": path, "dest": dest, "reason": text}
            tools.board.notice("file", f"{path}: {text}; it is delivered as {dest}", event="file.altered", **fields)


def _altered(item: Item, result: Result, tools: Tools) -> str | None:
    """Say so where the copy that was delivered of this very version was passed over: it was found to be another one."""
    if result.verdict != Verdict.PUBLISHED or not item.before or item.doubtful or result.target == item.target:
        return None
    names = itertools.islice(numbered(item.target, tools.manner.name_max), _NUMBERS)
    for name in itertools.takewhile(lambda name: name != result.target, names):
        if name == item.before:
            return f"{show_path(name)} at the destination does not hold any more what was delivered under that name"
    return None


async def _warn_of_versions(job: Job, results: list[Result], tools: Tools) -> None:
    """Say that a file was delivered under several names within a short time: somebody writes it again and again."""
    since = timestamp(datetime.now(UTC) - timedelta(seconds=_SHORT))
    for item, result in zip(job.items, results, strict=True):
        if result.verdict != Verdict.PUBLISHED or result.target == item.target or not item.before:
            continue
        count = await tools.ledger.call(versions.count_versions, item.path, since)
        if count == _MANY:
            text = (
                f"{show_path(item.path)} was delivered {count} times within an hour, each time with other content, and"
                f" under another name ({show_path(result.target)} is the newest): have it delivered once its writer has"
                " done (source.done_suffix, source.settle), leave it out (source.exclude, source.exclude_presets), or"
                " keep the newest alone (--if-exists overwrite)"
            )
            tools.board.notice("file", text, event="file.versions", path=show_path(item.path), count=count, reason=text)


def _record_all(ledger: Ledger, entries: list[Entry], to_list: list[tuple[bytes, Unlisted]]) -> None:
    entries = proofs.without_known(ledger, entries)
    claims.pass_on(ledger, entries)
    origins.note_delivered(ledger, entries)
    unlisted.record(ledger, entries, to_list)


def _detail(item: Item, result: Result, tools: Tools) -> str:
    """Say in the history what stands behind a delivery, and how it went."""
    entry = tools.entry(item)
    details = [f"verified: {tools.manner.verify}"]
    if result.closed:
        details.append(f"closed: {result.closed}")
    if entry.strategy:
        details.append(f"strategy: {entry.strategy}")
    details.append(f"found: {timestamp(entry.found_at)}")
    if entry.started_at is not None:
        details.append(f"copied in: {trio.current_time() - entry.started_at:.1f} s")
    if entry.attempt:
        details.append(f"failed attempts: {entry.attempt}")
    if patched := entry.bytes_patched:
        details.append(f"rewritten by its recorder, and copied again: {patched} bytes")
    if tools.config.copy.gate is not None and result.verdict == Verdict.PUBLISHED:
        details.append(f"let through by {tools.config.copy.gate[0]}")
    if result.lost:
        details.append(
            f"extended attributes not taken: {', '.join(show_path(os.fsencode(name)) for name in result.lost)}"
        )
    if result.note:
        details.append(result.note)
    if altered := _altered(item, result, tools):
        details.append(altered)
    return "; ".join(details)


def _log_removal(item: Item, removal: Result, archive: bytes | None, tools: Tools) -> None:
    """Write to the log what has gone, and where to; have its marker looked at, if that is a file of its own."""
    path = show_path(os.path.join(tools.source.root.path, item.path))
    if archive is None:
        tools.board.record("info", "source.removed", path=path)
    else:
        place = removal.target or os.path.join(archive, item.path)
        tools.board.record("info", "source.archived", path=path, to=show_path(place))
    if tools.manner.markers.source:
        tools.changes.add([item.path + tools.manner.markers.source])


def _absolute(folder: str) -> bytes:
    return os.fsencode(os.path.abspath(folder))


async def _check_copies(results: list[Result], delivered: list[int], tools: Tools) -> list[Result]:
    """
    Look whether the *delivered* are at the destination now, as they were verified.

    Returns *results* with a trouble for those that are not: they stay pending, and the next look proves them once more.
    """
    copies = [(results[n].target, seal, results[n].digest) for n in delivered if (seal := results[n].seal) is not None]
    unseen: Trouble | None = None
    sealed: list[bool] = []
    for attempt in range(tools.config.retry.retries + 1):
        try:
            sealed, unseen = await tools.destination.are_sealed(copies), None
            break
        except FileTrouble as error:
            unseen = error.trouble
            await trio.sleep(tools.config.retry.first * attempt)
    answers = iter(sealed)
    results = results[:]
    for n in delivered:
        is_there = unseen is None and results[n].seal is not None and next(answers)
        if not is_there:
            text = "the copy is not what was verified any more"
            changed = Trouble(Side.DESTINATION, SEAL, results[n].target, None, None, text)
            results[n] = results[n]._replace(trouble=unseen or changed)
    return results


async def _remove_sources(job: Job, results: list[Result], delivered: list[int], tools: Tools) -> list[Result]:
    folder = tools.config.copy.on_success.folder
    archive = _absolute(folder) if folder is not None else None
    removals: list[Result] = []
    # What was sealed is looked at once more: from now on it may be the only copy.
    results = await _check_copies(results, delivered, tools)
    delivered = [n for n in delivered if results[n].trouble is None]
    for attempt in range(tools.config.retry.retries + 1):
        try:
            sources = [(job.items[n].path, job.items[n].fingerprint) for n in delivered]
            removals = await tools.source.remove(sources, archive, tools.manner.markers.source)
            break
        except FileTrouble as error:
            # It may have happened, or in part. Asked again, it says which are gone, so that each removal is recorded.
            removals = [Result(Verdict.TROUBLE, trouble=error.trouble)] * len(delivered)
            await trio.sleep(tools.config.retry.first * attempt)
    results = results[:]
    rows = []
    for n, removal in zip(delivered, removals, strict=True):
        item, result = job.items[n], results[n]
        if removal.verdict in (Verdict.REMOVED, Verdict.GONE):
            proofs = {
                "archived_below": archive and archive.decode("utf-8", "backslashreplace"),
                "durable_and_verified": tools.manner.verify,
                "renamed_to": result.target.decode("utf-8", "backslashreplace"),
                "source": item.fingerprint._asdict(),
                "no_writer": removal.writer or "gone already",
                "closed": result.closed,
            }
            rows.append(Removal(item.path, result.target, item.fingerprint.size, "removed", json.dumps(proofs)))
            if removal.verdict == Verdict.REMOVED:
                _log_removal(item, removal, archive, tools)
            if removal.note:
                text = f"{show_path(item.path)}: removed, but {removal.note}"
                tools.board.notice("source", text, event="marker.kept")
        elif removal.trouble is not None:
            why = str(removal.trouble)
            rows.append(Removal(item.path, result.target, item.fingerprint.size, "refused", why))
            results[n] = result._replace(trouble=removal.trouble)
        elif removal.verdict == Verdict.UNPROVEN:
            rows.append(Removal(item.path, result.target, item.fingerprint.size, "refused", UNPROVEN))
            tools.board.notice_once("source", UNPROVEN, event="source.kept")
        else:  # it stays pending in the ledger: the next look delivers and proves it once more
            why = "somebody writes it" if removal.verdict == Verdict.BUSY else "it, or another name of it, has changed"
            if removal.verdict == Verdict.UNMARKED:
                continue  # it goes when its file has gone
            if removal.note:
                why += f"; {removal.note}"
            tools.board.notice(
                "source", f"{show_path(item.path)}: delivered, but its source stays: {why}", event="source.kept"
            )
    if rows:
        await tools.ledger.call(Ledger.record_removals, rows)
    return results
