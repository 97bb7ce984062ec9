"""Whole transfers to a destination in which anything can go wrong, and what is told of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import trio

from faults_mount import FaultMount
from support import files_of
from trioft.agent.agent import run_agent
from trioft.config.kinds import MinFree, OnSuccess
from trioft.config.options import Config, Copy, Destination, Growing, Retry, Source, State
from trioft.core.errors import FileTrouble, TrioftError, Trouble
from trioft.core.model import MIB, FileState
from trioft.core.naming import is_own
from trioft.state.board import Board, Entry, Totals

SECONDS = 60.0  # that one transfer may take on a loaded machine


@attrs.define
class Told:
    """What a run has told, and how it ended."""

    totals: Totals = attrs.field(factory=Totals)
    troubles: dict[bytes, list[Trouble]] = attrs.field(factory=dict)  # each told once, in order
    reasons: dict[bytes, list[str]] = attrs.field(factory=dict)
    states: dict[bytes, FileState] = attrs.field(factory=dict)  # the last ones
    strategies: dict[bytes, str] = attrs.field(factory=dict)  # the first ones
    attempts: dict[bytes, int] = attrs.field(factory=dict)  # the most that were counted
    notices: list[str] = attrs.field(factory=list)
    refused: list[BaseException] = attrs.field(factory=list)

    def hear(self, entry: Entry) -> None:
        path = entry.path
        self.states[path] = entry.state
        self.attempts[path] = max(entry.attempt, self.attempts.get(path, 0))
        if entry.strategy is not None:
            self.strategies.setdefault(path, entry.strategy)
        if entry.reason:
            self.reasons.setdefault(path, []).append(entry.reason)
        if entry.trouble is not None:
            troubles = self.troubles.setdefault(path, [])
            if not troubles or troubles[-1] is not entry.trouble:
                troubles.append(entry.trouble)

    @property
    def claims_success(self) -> bool:
        return not self.refused and self.totals.failed == self.totals.skipped == self.totals.busy == 0


def config_of(
    source: Path,
    dest: Path,
    state: Path,
    *,
    delete: bool = False,
    check_interval: float = 60.0,
    stall_timeout: float = 30.0,
    include: tuple[str, ...] = (),
    growing_from: int = 16 * MIB,
    transfers: int = 2,
) -> Config:
    """Return a configuration with which a transfer in which something goes wrong takes parts of a second."""
    return Config(
        source=Source(path=str(source), settle=0.0, settle_closed=0.0, scan_interval=0.1, include=include),
        destination=Destination(
            path=str(dest), if_exists="overwrite", min_free=MinFree(bytes=0), check_interval=check_interval
        ),
        copy=Copy(
            transfers=transfers,
            movers=transfers,
            on_success=OnSuccess(action="delete" if delete else "keep"),
            checkpoint_size=8 * MIB,
            stall_timeout=stall_timeout,
        ),
        growing=Growing(min_size=growing_from, poll=0.05, transfers=12),
        retry=Retry(first=0.01, longest=0.05),
        state=State(dir=str(state), shutdown_grace=0.2),
    )


async def transfer(config: Config, told: Told | None = None, *, hear: Callable[[Entry], None] | None = None) -> Told:
    """Run an agent in this process until it ends. *hear* is called with each change of a file's state."""
    told = Told() if told is None else told
    board = Board()
    told.totals = board.totals
    board.listeners.append(told.hear)
    if hear is not None:
        board.listeners.append(hear)
    board.notices.append(lambda what, text: told.notices.append(f"{what}: {text}"))
    assert config.state.dir is not None
    try:
        with trio.fail_after(SECONDS):
            signal = await run_agent(config, board, once=True, state_dir=config.state.dir)
            assert signal is None, "somebody has stopped it"
    except* (TrioftError, FileTrouble) as group:
        told.refused.extend(group.exceptions)
    return told


def both(one: Callable[[Entry], None], other: Callable[[Entry], None]) -> Callable[[Entry], None]:
    """Return what has both hear."""

    def hear(entry: Entry) -> None:
        one(entry)
        other(entry)

    return hear


@contextlib.contextmanager
def recordings(contents: dict[Path, bytes], begun: int) -> Iterator[Callable[[Entry], None]]:
    """
    Have files open for writing, *begun* bytes long; each is written to its end, and closed, once it is being copied.

    Yields what has to hear of that.
    """
    open_files: dict[Path, int] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            open_files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.pwrite(open_files[path], content[:begun], 0)

        def hear(entry: Entry) -> None:
            if entry.state != FileState.COPYING:
                return
            for path, fd in list(open_files.items()):
                if os.fsencode(path).endswith(b"/" + entry.path):
                    os.pwrite(fd, contents[path][begun:], begun)
                    os.close(fd)
                    del open_files[path]

        yield hear
    finally:
        for fd in open_files.values():
            os.close(fd)


def delivered(folder: Path) -> dict[bytes, bytes]:
    """Return the files below *folder*, but for that of a probe that was under way as its agent ended."""
    return {name: content for name, content in files_of(folder).items() if not name.startswith(b".trioft-probe-")}


def check_history(mount: FaultMount, folder: str, *versions: dict[bytes, bytes], late: bool = False) -> None:
    """
    At no moment was there anything wrong below *folder*.

    What got a final name was one of the *versions* of it, whole and durable; and nothing was written under one, unless
    something came *late*.
    """
    history = mount.ask("history")
    for _, new, held, durable in history["renames"]:
        name = os.fsencode(new.removeprefix(folder + "/"))
        if not is_own(name):
            wanted = [hashlib.sha256(contents[name]).hexdigest() for contents in versions if name in contents]
            assert held in wanted, f"{new} got its final name with wrong content"
            assert durable == held, f"{new} got its final name before it was durable"
    assert late or [name for name in history["written"] if not is_own(os.fsencode(name))] == []
