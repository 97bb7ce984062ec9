"""
Every way to fail × every operation at the destination × every strategy.

Something goes wrong below the mount that is the destination, once, or until trioft has told of it, while a few files
are transferred. What becomes of them is what the table of ``errors`` and the kind of the failure say; whatever it is,
at no moment is there anything wrong under a final name, and in the end everything is at the destination.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from fault_runs import Told, both, check_history, config_of, delivered, recordings, transfer
from faults_mount import FaultMount, fault_mount
from support import files_of, make_tree, pattern
from trioft.core.errors import Remedy, Side, classify, hint_for
from trioft.core.model import MIB, FileState
from trioft.core.naming import is_own
from trioft.state.board import Entry

STRATEGIES = ("bundle", "whole", "follow")

# What trioft does, and what arrives at the filesystem.
OPERATIONS = {
    "create": "create",
    "open": "open",
    "write": "write",
    "close": "flush",
    "fsync": "fsync",
    "read-back": "read",
    "stat": "getattr",
    "utimens": "utimens",
    "rename": "rename",
    "mkdir": "mkdir",
    "fsync-folder": "fsyncdir",
}
OF_FOLDERS = {"mkdir", "fsync-folder"}
HAS_NO_PATH = {"write", "close", "fsync", "read-back", "fsync-folder"}

# What is done about an errno at the destination.
REMEDIES = {
    **dict.fromkeys(("EIO", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "ENOTCONN"), Remedy.DESTINATION),
    **dict.fromkeys(("ENOSPC", "EDQUOT"), Remedy.SPACE),
    **dict.fromkeys(("EROFS", "EACCES", "ENAMETOOLONG"), Remedy.GIVE_UP),
    "EBUSY": Remedy.RETRY,
}


@attrs.frozen
class Effect:
    """A way to fail: what the rule says, and on which operations it makes sense (None: on all)."""

    name: str
    rule: dict[str, Any]
    only: tuple[str, ...] | None = None
    remedy: Remedy | None = None  # None: it is not even noticed

    @property
    def operations(self) -> list[str]:
        """What it can happen to. Who finds a new file stale, the kernel, makes it once more: trioft never knows."""
        names = [name for name in OPERATIONS if self.only is None or name in self.only]
        return [name for name in names if (self.name, name) != ("ESTALE", "stat")]

    def remedy_of(self, operation: str) -> Remedy | None:
        # Servers refuse to replace a file that somebody has open: that passes.
        if operation == "rename" and self.name == "EACCES":
            return Remedy.RETRY
        return self.remedy


EFFECTS = [
    *(Effect(name, {"errno": name}, None, remedy) for name, remedy in REMEDIES.items()),
    # It has happened, but nobody was told: what is done again must do no harm.
    Effect("late", {"errno": "ETIMEDOUT", "late": True}, None, Remedy.DESTINATION),
    Effect("slow", {"stall": 0.1}),
    Effect("short", {"short": True}, ("write",)),
    # Only a read-back finds these.
    Effect("flip", {"flip": True}, ("write", "read-back"), Remedy.RETRY),
    Effect("drop", {"drop": True}, ("write",), Remedy.RETRY),
]


def _runs() -> Iterator[Any]:
    """Yield an effect, a strategy, and the operations that go wrong in one run, each with a file of its own."""
    for effect, strategy in itertools.product(EFFECTS, STRATEGIES):
        operations = effect.operations
        # The files of a bundle share the fate of one that meets a destination that is gone.
        together = 1 if strategy == "bundle" and effect.remedy == Remedy.DESTINATION else len(operations)
        for at in range(0, len(operations), together):
            chosen = tuple(operations[at : at + together])
            what = chosen[0] if len(chosen) == 1 else "all"
            yield pytest.param(effect, strategy, chosen, id=f"{effect.name.replace(' ', '-')}-{strategy}-{what}")


@pytest.fixture(scope="module")
def mount() -> Iterator[FaultMount]:
    with fault_mount() as mounted:
        yield mounted
        print(f"\n{Arena.count} transfers to a destination in which something went wrong")


@pytest.fixture(scope="module")
def caching_mount() -> Iterator[FaultMount]:
    with fault_mount("caching") as mounted:
        yield mounted


class Arena:
    """A source, and a folder of the mount; in the source there is a file for each operation, and two more."""

    count = 0

    def __init__(self, mount: FaultMount, root: Path, strategy: str, operations: tuple[str, ...]) -> None:
        self.number = Arena.count = Arena.count + 1
        self.mount, self.strategy = mount, strategy
        self.source, self.state = root / "source", root / "state"
        self.dest, self.backing = mount.place / str(self.number), mount.backing / str(self.number)
        self.backing.mkdir()
        mount.begin()
        size = {"bundle": 3000, "whole": MIB + 1, "follow": MIB + 1}[strategy]
        names = [*operations, "calm", "quiet"]
        self.contents = {f"{name}/file".encode(): pattern(size + n, n) for n, name in enumerate(names)}
        self.rules: dict[str, int] = {}
        self.waits_for_space = False

    def spoil(self, effect: Effect, operation: str) -> None:
        """Have the operation go wrong for its own file."""
        glob = f"{self.number}/{operation}" + ("" if operation in OF_FOLDERS else "/*")
        rule = dict(effect.rule)
        self.waits_for_space |= effect.remedy == Remedy.SPACE
        if "errno" in rule:
            rule["lose"] = operation in ("close", "fsync") and not rule.get("late")
            # The kernel asks once more: after ESTALE for a path, and where it could not read ahead.
            if operation == "read-back" or (rule["errno"] == "ESTALE" and operation not in HAS_NO_PATH):
                rule["times"] = 0
        self.rules[operation] = self.mount.fail(OPERATIONS[operation], glob, **rule)

    async def run(self) -> Told:
        """Transfer. What goes wrong until it is cleared, is cleared when it has been told."""
        config = config_of(
            self.source,
            self.dest,
            self.state,
            check_interval=0.05 if self.waits_for_space else 60.0,
            include=("*",),  # so that it is not the scan that makes the folders
            growing_from=MIB,
            transfers=1 if self.strategy == "bundle" else 2,
        )
        clear = functools.partial(_clear_what_is_told, self)
        if self.strategy != "follow":
            if not self.source.exists():
                make_tree(self.source, dict(self.contents.items()))
            return await transfer(config, hear=clear)
        paths = {self.source / os.fsdecode(name): content for name, content in self.contents.items()}
        with recordings({path: content for path, content in paths.items() if not path.exists()}, MIB) as go_on:
            return await transfer(config, hear=both(clear, go_on))

    def fired(self) -> dict[str, int]:
        by_id = {rule["id"]: rule["fired"] for rule in self.mount.ask("rules")}
        return {operation: by_id[number] for operation, number in self.rules.items()}

    def check_promises(self) -> None:
        """Nothing wrong, or not durable, had a final name at any time, and nothing was written under one."""
        check_history(self.mount, str(self.number), self.contents)

    def check_complete(self) -> None:
        """Everything is at the destination, and nothing else; nothing has become of the source."""
        assert delivered(self.backing) == self.contents
        assert files_of(self.source) == self.contents
        for name in map(os.fsdecode, self.contents):
            assert (self.source / name).stat().st_mtime_ns == (self.backing / name).stat().st_mtime_ns


def _clear_what_is_told(arena: Arena, entry: Entry) -> None:
    if entry.trouble is not None:
        rule = arena.rules.get(os.path.dirname(os.fsdecode(entry.path)))
        if rule is not None:
            arena.mount.ask("stop_rule", id=rule)


@pytest.mark.parametrize(("effect", "strategy", "operations"), list(_runs()))
async def test_what_becomes_of_a_file_is_what_the_table_says(
    effect: Effect, strategy: str, operations: tuple[str, ...], mount: FaultMount, tmp_path: Path
) -> None:
    """
    The destination is gone: no attempt is counted, and all arrives. No space: it waits, and arrives. What passes is
    tried again, and arrives. What does not: the file fails, with a reason and a hint; the others arrive; and when it is
    over, the next run delivers it.
    """
    arena = Arena(mount, tmp_path, strategy, operations)
    for operation in operations:
        arena.spoil(effect, operation)
    told = await arena.run()
    assert told.refused == []
    assert set(told.strategies.values()) == {strategy}
    fired = arena.fired()
    assert all(fired.values()), fired
    arena.check_promises()
    failed = []
    for operation in operations:
        path = f"{operation}/file".encode()
        remedy = effect.remedy_of(operation)
        check_what_was_told(told, path, effect, remedy)
        if remedy == Remedy.GIVE_UP:
            failed.append(path)
    for name in (b"calm/file", b"quiet/file"):
        assert told.states[name] == FileState.DONE
    assert told.totals.failed == len(failed)
    if not failed:
        arena.check_complete()
    else:
        there = {name for name in delivered(arena.backing) if strategy == "bundle" or not is_own(name)}
        assert there - {b"fsync-folder/file"} == arena.contents.keys() - set(failed)  # that one has been renamed
        again = await arena.run()
        assert again.claims_success
        assert again.totals.delivered + again.totals.already == len(arena.contents)
        assert again.totals.delivered >= len(failed) - 1
        arena.check_promises()
        arena.check_complete()
    shutil.rmtree(arena.backing)


CACHED = [
    *(Effect(name, {"errno": name}, ("write",), REMEDIES[name]) for name in ("EIO", "ENOSPC")),
    *(Effect(name, {name: True}, ("write",), Remedy.RETRY) for name in ("flip", "drop")),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("effect", CACHED, ids=lambda effect: effect.name)
async def test_what_the_page_cache_holds_is_not_taken_for_what_the_destination_holds(
    effect: Effect, strategy: str, caching_mount: FaultMount, tmp_path: Path
) -> None:
    """
    A write goes wrong when the kernel gets to it, long after it was said to have happened.

    Its error comes with later operations, once with each; or, where there is none, the wrong content is found.
    """
    arena = Arena(caching_mount, tmp_path, strategy, ("write",))
    arena.spoil(effect, "write")
    told = await arena.run()
    assert told.claims_success
    assert all(arena.fired().values())
    assert told.troubles[b"write/file"]
    assert told.troubles.keys() == {b"write/file"} or strategy == "bundle"
    arena.check_promises()
    arena.check_complete()


def check_what_was_told(told: Told, path: bytes, effect: Effect, remedy: Remedy | None) -> None:
    """The trouble is what went wrong, the class is the right one, and so is what was done."""
    troubles = told.troubles.get(path, [])
    attempts, state = told.attempts[path], told.states[path]
    context = f"{path!r}: {troubles} {told.reasons.get(path)}"
    if remedy is None:
        assert (troubles, attempts, state) == ([], 0, FileState.DONE), context
        return
    if effect.name == "late":  # that it has happened may have been seen
        assert (attempts, state) == (0, FileState.DONE), context
        return
    assert troubles, context
    for trouble in troubles:
        assert trouble.side == Side.DESTINATION
        assert classify(trouble) == remedy, context
        if "errno" in effect.rule:
            assert f"({effect.rule['errno']})" in str(trouble), context
    if remedy == Remedy.GIVE_UP:
        assert state == FileState.FAILED, context
        assert str(troubles[-1]) in told.reasons[path][-1]
        assert hint_for(troubles[-1]), context
    else:
        assert state == FileState.DONE, context
        assert (attempts > 0) == (remedy == Remedy.RETRY), context
        begins = {Remedy.DESTINATION: "destination", Remedy.SPACE: "space", Remedy.RETRY: "retry"}[remedy]
        assert any(reason.startswith(begins) for reason in told.reasons[path]), context
