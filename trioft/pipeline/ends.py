"""
The two ends, before the first file: finds out what they are, refuses what cannot work, waits for what may come.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from trioft.config.options import Config
from trioft.core import operations as ask
from trioft.core.answers import End
from trioft.core.errors import (
    IDENTIFY,
    AwayError,
    ConfigError,
    FileTrouble,
    Remedy,
    Side,
    UnusableError,
    classify,
    hint_for,
    show_path,
)
from trioft.core.manifest import own_names
from trioft.core.model import Ends, Place, Root
from trioft.movers.pool import Call
from trioft.pipeline.storage import Storage
from trioft.state.board import Board

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Pair:
    """The two ends, found out and found good."""

    source: End
    destination: End
    only: bytes | None  # SOURCE is this one file in its folder
    own: tuple[str, ...]  # patterns of what trioft itself keeps in the source, the archive

    @property
    def ends(self) -> Ends:
        return Ends(Root(self.source.path, self.source.dev), Root(self.destination.path, self.destination.dev))

    @property
    def ledger_source(self) -> bytes:
        return os.path.join(self.source.path, self.only) if self.only else self.source.path


async def find_ends(config: Config, call: Call, state_dir: str) -> Pair:
    """
    Find out what source and destination are. Nothing is written.

    Raises ``UnusableError`` or ``ConfigError`` if they are not what trioft can work with, ``AwayError`` if the
    destination is not there.
    """
    others = {"state directory": state_dir}
    if config.log.file is not None:
        others["log file"] = _folder_of(config.log.file)
    if config.copy.on_success.folder is not None:
        others["archive folder"] = config.copy.on_success.folder
    sides = (Side.SOURCE, Side.DESTINATION, *[Side.SOURCE] * len(others))  # the others lie on this machine, as it does
    paths = (config.source.path, config.destination.path, *others.values())
    places = [Place(side, _absolute(path)) for side, path in zip(sides, paths, strict=True) if path]
    try:
        source, destination, *rest = await call(ask.INSPECT, places)
        only = None
        if source.kind == "file":
            path, only = os.path.split(source.path)
            source = (await call(ask.INSPECT, [Place(Side.SOURCE, path)]))[0]._replace(mount=source.mount)
        _check_end(source, "source")
        _check_end(destination, "destination")
        if only is None:
            await _refuse_overlap(call, source, destination)
        elif os.path.join(source.path, only) == os.path.join(destination.path, only):
            raise ConfigError(["source and destination are the same file"])
        own = [*own_names(config.copy.manifest)]
        for what, folder in zip(others, rest, strict=True):
            if only is None and await call(
                ask.CONTAINS, Place(Side.SOURCE, source.path), Place(Side.SOURCE, folder.path)
            ):
                relative = folder.path[len(source.path) + 1 :]
                if what != "archive folder" or not relative:
                    raise ConfigError([f"the {what} must not be inside the source: {show_path(folder.path)}"])
                own.append(_literal_glob(relative))
        if config.copy.on_success.folder is not None:
            await refuse_archive_elsewhere(call, source.path, _absolute(config.copy.on_success.folder))
    except FileTrouble as error:
        trouble = error.trouble
        raise AwayError(str(trouble), side=trouble.side, hint=hint_for(trouble)) from error
    return Pair(source=source, destination=destination, only=only, own=tuple(own))


async def refuse_archive_elsewhere(call: Call, source: bytes, archive: bytes) -> None:
    """Raise ``ConfigError`` if no file can be moved from *source* to *archive* in one step."""
    if not await call(ask.CAN_MOVE, source, archive):
        text = f"copy.on_success: the archive {show_path(archive)} is on another filesystem than the source"
        hint = "delivered files are moved there in one step: choose a folder on the filesystem of the source"
        raise ConfigError([text], hint=hint)


def _absolute(path: str) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _folder_of(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def _check_end(end: End, side: str) -> None:
    path = show_path(end.path)
    if end.kind == "missing" and side == "destination":
        hint = "trioft never creates it: mount it, or make the folder yourself"
        raise AwayError(f"the destination is not there: {path}", side=side, hint=hint)
    if end.kind == "missing":
        raise AwayError(f"the source is not there: {path}", side=side, hint="mount it, or see to its name")
    if end.error and end.is_away:
        raise AwayError(f"the {side} cannot be used: {path}: {end.error}", side=side)
    if end.error:
        raise UnusableError(f"the {side} cannot be used: {path}: {end.error}")
    if end.kind != "folder":
        raise UnusableError(f"the {side} is not a folder: {path}")


async def _refuse_overlap(call: Call, source: End, destination: End) -> None:
    if (source.dev, source.ino) == (destination.dev, destination.ino):
        raise ConfigError(["source and destination are the same folder"])
    its, other = Place(Side.SOURCE, source.path), Place(Side.DESTINATION, destination.path)
    if await call(ask.CONTAINS, its, other):
        raise ConfigError(["the destination is inside the source: it would be copied into itself for ever"])
    if await call(ask.CONTAINS, other, its):
        raise ConfigError(["the source is inside the destination"])


def _literal_glob(path: bytes) -> str:
    """Return a pattern for exactly this folder at the root of the source."""
    return "/" + re.sub(r"([\[*?])", r"[\1]", os.fsdecode(path))


async def with_patience(find: Callable[[], Awaitable[T]], config: Config, board: Board, *, patient: bool) -> T:
    """Return what *find* returns. Where it finds an end away, and we are *patient*, it is asked again and again."""
    pause = 0.0
    while True:
        try:
            found = await find()
            board.set_source(None)
            board.set_destination(None)
            return found
        except AwayError as error:
            if not patient:
                raise
            tell = board.set_source if error.side == Side.SOURCE else board.set_destination
            tell(f"not usable: {error}" + (f" ({error.hint})" if error.hint else ""))
        pause = config.retry.longer(pause)
        await trio.sleep(pause)


async def check_ends(storage: Storage, call: Call) -> None:
    """Have the ends probed for the first time. Raises ``UnusableError``; ``AwayError`` where waiting may help."""
    try:
        await storage.begin(call)
    except FileTrouble as error:
        trouble = error.trouble
        if classify(trouble) == Remedy.GIVE_UP:
            raise UnusableError(f"cannot use the {trouble.side}: {trouble}", hint=hint_for(trouble)) from error
        text = trouble.text if trouble.op == IDENTIFY else str(trouble)
        raise AwayError(text, side=trouble.side, hint=hint_for(trouble)) from error
