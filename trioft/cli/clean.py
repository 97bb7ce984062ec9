"""
``trioft clean``: what trioft has left at a destination, and whose it is; removes what it is told to.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import trio

from trioft.cli.output import print_all
from trioft.cli.pairs import all_ledgers
from trioft.core import operations as ask
from trioft.core.answers import Leftover
from trioft.core.claim import Standing, is_claim
from trioft.core.errors import ConfigError, FileTrouble, LedgerError, LockedError, Side, UnusableError, show_path
from trioft.core.model import Place, Root
from trioft.core.naming import is_former, is_partial, lies_at, mark_in, mark_of, target_of_aside
from trioft.core.units import parse_duration, size_text, span_text
from trioft.movers.pool import Movers
from trioft.pipeline.claiming import this_process
from trioft.state.fields import path_fields
from trioft.state.ledger import now
from trioft.state.lock import Lock
from trioft.state.reader import Records

_PATIENCE = 30.0  # seconds without an answer of the destination


class _Ledger(NamedTuple):
    """A ledger of this state folder."""

    source: bytes
    in_use: bool
    begun: dict[bytes, bytes]  # of the leftovers, those that a transfer on record continues: the file of each


class _Found(NamedTuple):
    """A leftover, and what is known about it."""

    leftover: Leftover
    kind: str  # partial, former, aside, claim, other
    whose: str
    held: bool  # somebody is at work with it


def run_clean(
    dest: str, names: Sequence[str], state_dir: str, *, remove: bool, older_than: str | None, as_json: bool
) -> int:
    """Run ``trioft clean``; return its exit code. Raises ``TrioftError``."""
    age = None
    if older_than is not None:
        try:
            age = parse_duration(older_than)
        except ValueError as error:
            raise ConfigError([f"--older-than: {error}"]) from None
    if remove and not names and age is None:
        raise ConfigError(
            ["--remove: nothing says what is to be removed"],
            hint="name it after DEST, as it is listed, or add --older-than, such as --older-than 7d",
        )
    return trio.run(_clean, os.fsencode(os.path.abspath(dest)), names, age, state_dir, remove, as_json)


async def _clean(
    dest: bytes, names: Sequence[str], age: float | None, state_dir: str, remove: bool, as_json: bool
) -> int:
    async with Movers(1, _PATIENCE) as movers:
        try:
            (end,) = await movers.call(ask.INSPECT, [Place(Side.DESTINATION, dest)])
            if end.kind != "folder" or end.error:
                raise UnusableError(f"the destination cannot be used: {show_path(dest)}: {end.error or end.kind}")
            root = Root(end.path, end.dev)
            leftovers: list[Leftover] = []
            folders = [b""]
            while folders:
                part = await movers.call(ask.FIND_LEFTOVERS, root, folders[-500:])
                folders = folders[:-500] + part.rest
                leftovers += part.found
            leftovers.sort()
            ledgers = _ledgers(state_dir, [one.path for one in leftovers])
            claims = [one.path for one in leftovers if is_claim(one.path)]
            standing = await movers.call(ask.READ_CLAIMS, root, claims, this_process("", ""))
            found = [_judge(one, ledgers, standing) for one in leftovers]
            _check_names(names, found, root.path)
            chosen = [one for one in found if _is_chosen(one, names, age, root.path)]
            removed, failed = (await _remove(movers, root, chosen)) if remove else ([], [])
        except FileTrouble as error:
            raise UnusableError(str(error)) from error
    shown = found if not names and age is None else chosen
    print_all(_as_json(shown, removed) if as_json else _as_text(shown, removed))
    _say(found, chosen, removed, failed, remove=remove)
    return 1 if len(removed) < len(chosen) and remove else 0


def _ledgers(state_dir: str, paths: list[bytes]) -> dict[bytes, _Ledger]:
    """Return what this state folder knows about leftovers, by the marks of its ledgers."""
    ledgers = {}
    for path in all_ledgers(state_dir):
        with contextlib.suppress(LedgerError), contextlib.closing(Records(path)) as records:
            in_use = False
            try:
                Lock(path.removesuffix(".sqlite") + ".lock").release()
            except LockedError:
                in_use = True
            except UnusableError:
                pass
            begun = {partial: name for partial, (name, _) in records.transfers_into(paths).items()}
            ledgers[mark_of(records.id)] = _Ledger(records.source, in_use, begun)
    return ledgers


def _judge(leftover: Leftover, ledgers: dict[bytes, _Ledger], standing: list[Standing]) -> _Found:
    path = leftover.path
    if is_claim(path):
        claim = next((one for one in standing if one.path == path), None)
        if claim is None or claim.holder is None:
            return _Found(leftover, "claim", "a claim that cannot be read", claim is not None and claim.lives)
        state = "" if claim.lives else ", which is gone"
        return _Found(leftover, "claim", f"{claim.holder}{state}: {claim.holder.source}", claim.lives)
    kind = "partial" if is_partial(path) else "former" if is_former(path) else "aside" if mark_in(path) else "other"
    mark = mark_in(path)
    for known, ledger in ledgers.items():
        if mark == known or path in ledger.begun:
            what = f"of {show_path(ledger.source)}"
            if path in ledger.begun:
                what += f", where {show_path(ledger.begun[path])} goes on"
            return _Found(leftover, kind, _with_kind(kind, path, what), ledger.in_use)
    holder = next(
        (one.holder for one in standing if one.lives and one.holder and one.holder.mark == mark.decode()), None
    )
    if mark and holder is not None:
        return _Found(leftover, kind, _with_kind(kind, path, f"in use by trioft on {holder.host}"), True)
    what = "of trioft 0.1, or of another program" if kind == "former" else "of another ledger" if mark else "of a check"
    return _Found(leftover, kind, _with_kind(kind, path, what), False)


def _with_kind(kind: str, path: bytes, whose: str) -> str:
    if kind != "aside":
        return whose
    target = target_of_aside(path)
    name = "a file" if target is None else show_path(target)
    return f"what {name} was before it was replaced; {whose}"


def _is_chosen(found: _Found, names: Sequence[str], age: float | None, root: bytes) -> bool:
    """Return whether a leftover is one of those that are meant: by name, or as it is old and surely trioft's own."""
    if any(_is_named(found.leftover.path, name, root) for name in names):
        return age is None or found.leftover.age > age
    # What may be another program's, or an older version of somebody's file, goes by name only.
    return not names and age is not None and found.leftover.age > age and found.kind not in ("former", "aside")


def _is_named(path: bytes, name: str, root: bytes) -> bool:
    wanted = os.fsencode(name)
    wanted = lies_at(wanted, root) or wanted.removeprefix(b"./")
    return path == wanted or fnmatch.fnmatchcase(os.fsdecode(path), os.fsdecode(wanted))


def _check_names(names: Sequence[str], found: list[_Found], root: bytes) -> None:
    strangers = [name for name in names if not any(_is_named(one.leftover.path, name, root) for one in found)]
    if strangers:
        raise ConfigError(
            [f"{name}: nothing that trioft has left is called so" for name in strangers],
            hint="`trioft clean DEST` lists what there is",
        )


async def _remove(movers: Movers, root: Root, chosen: list[_Found]) -> tuple[list[bytes], list[str]]:
    """Remove what is *chosen*, but for what somebody is at work with; return what is gone, and what went wrong."""
    removed: list[bytes] = []
    failed: list[str] = []
    for one in chosen:
        path = one.leftover.path
        if one.held:
            failed.append(f"{show_path(path)}: it is in use, and stays")
            continue
        try:
            if one.leftover.is_folder:
                await movers.call(ask.END_MEASURING, root, path)
            else:
                await movers.call(ask.DISCARD, root, [path])
            removed.append(path)
        except FileTrouble as error:
            failed.append(str(error))
    return removed, failed


def _as_text(found: list[_Found], removed: list[bytes]) -> Iterable[str]:
    for one in found:
        leftover = one.leftover
        state = "removed" if leftover.path in removed else "in use" if one.held else "left"
        age = span_text(max(0.0, leftover.age))
        yield f"{size_text(leftover.size):>8}  {age:>8} old  {state:<7}  {show_path(leftover.path)}  ({one.whose})"


def _as_json(found: list[_Found], removed: list[bytes]) -> Iterable[str]:
    for one in found:
        fields = {
            "event": "leftover",
            "time": now(),
            **path_fields("path", one.leftover.path),
            "size": one.leftover.size,
            "age": round(one.leftover.age),
            "kind": one.kind,
            "whose": one.whose,
            "in_use": one.held,
            "removed": one.leftover.path in removed,
        }
        yield json.dumps(fields)
    sizes = {one.leftover.path: one.leftover.size for one in found}
    total = {"found": len(found), "bytes": sum(sizes.values())}
    gone = {"removed": len(removed), "bytes_removed": sum(sizes[path] for path in removed)}
    yield json.dumps({"event": "summary", "time": now(), **total, **gone})


def _say(found: list[_Found], chosen: list[_Found], removed: list[bytes], failed: list[str], *, remove: bool) -> None:
    for text in failed:
        print(f"trioft: error: {text}", file=sys.stderr)  # noqa: T201
    if not found:
        text = "trioft has left nothing there"
    elif not remove:
        many = len(chosen) or len(found)
        text = f"{many:,} of {len(found):,}; nothing is removed without --remove, and names or --older-than"
    else:
        text = f"{len(removed):,} of {len(found):,} removed"
    print(text, file=sys.stderr)  # noqa: T201
