"""
Whole transfers in which one call goes wrong: the first, the second, … until none does.

The agent is the real one, and so are its movers, except that ``faulty_mover`` stands between them and the system.
Whatever goes wrong, and wherever, in the end everything is at the destination, and at no moment was a promise broken.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio

from disks import quick_folder
from faulty_mover import Plan
from support import files_of, make_tree, pattern
from trioft.agent.agent import run_agent
from trioft.config.kinds import MinFree, OnSuccess
from trioft.config.options import Config, Copy, Destination, Growing, Retry, Source, State
from trioft.core.errors import FileTrouble, TrioftError
from trioft.core.model import BLOCK_SIZE
from trioft.core.naming import is_own
from trioft.state.board import Board, Totals

Tree = dict[str | bytes, bytes | int | None]

MANY: Tree = {
    b"large.mxf": pattern(2 * BLOCK_SIZE + 70_001, 1),  # three blocks, the last one short
    b"a.txt": pattern(10, 2),
    b"older.txt": b"the new version",
    b"sub/c.txt": pattern(20, 4),
    b"sub/empty": b"",
}
FEW: Tree = {b"a.txt": pattern(10, 2), b"older.txt": b"the new version", b"sub/c.txt": pattern(20, 4)}
# A recording that goes on while it is copied, gets its header when it is closed, and another name before.
GROWING: Tree = {
    b"a.txt": pattern(10, 2),
    b"older.txt": b"the new version",
    b"take.mxf": pattern(2 * BLOCK_SIZE + 9, 7),
}
RENAMED: Tree = {b"a.txt": pattern(10, 2), b"older.txt": b"the new version", b"sub/take.mxf": GROWING[b"take.mxf"]}
HEADER = 4096
OLD = b"the old version"  # of the same size


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there is room: what is lost here is taken away by the faulty mover, not by a disk."""
    with quick_folder(tmp_path) as folder:
        yield folder


@attrs.define
class Outcome:
    """How a run ended."""

    totals: Totals
    refused: list[BaseException]  # what ended it before its time
    notices: list[str]

    @property
    def claims_success(self) -> bool:
        return not self.refused and self.totals.failed == 0 and self.totals.skipped == 0


class Recording:
    """A file that has been begun, and goes on when some of it has been copied."""

    def __init__(self, begun: Path, finished: Path) -> None:
        self.begun, self.finished = begun, finished
        self.content = finished.read_bytes()
        finished.unlink()
        self.fd = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.write(0, bytes(HEADER))
        self.write(HEADER, self.content[HEADER : BLOCK_SIZE + 100_000])

    def write(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)

    def is_copied(self, dest: Path) -> bool:
        """Is the first block at the destination?"""
        return any(path.stat().st_size > BLOCK_SIZE for path in dest.glob("take.mxf.*.trioft-partial"))

    async def go_on(self, dest: Path) -> None:
        """Write the rest as soon as a block has been copied, or when nobody is going to copy anything."""
        try:
            while not self.is_copied(dest):  # noqa: ASYNC110 - what other processes do sets no event
                await trio.sleep(0.01)
            self.begun.rename(self.finished)
            self.write(BLOCK_SIZE + 100_000, self.content[BLOCK_SIZE + 100_000 :])
            await trio.sleep(0.1)
        finally:
            if self.begun != self.finished and self.begun.exists():
                self.begun.rename(self.finished)
            self.write(0, self.content)
            os.close(self.fd)


class Trial:
    """One transfer in which one call goes wrong, and, if need be, one more in which none does."""

    def __init__(
        self,
        folder: Path,
        tree: Tree,
        *,
        verify: Literal["size", "transfer", "readback"] = "readback",
        on_success: Literal["keep", "delete", "archive"] = "keep",
        if_exists: Literal["rename", "overwrite"] = "overwrite",
    ) -> None:
        self.folder, self.tree = folder, tree
        self.verify, self.on_success, self.if_exists = verify, on_success, if_exists
        self.source, self.dest, self.state = folder / "source", folder / "dest", folder / "state"
        self.expected, self.old, self.notes = folder / "expected", folder / "old", folder / "notes"
        self.archive = folder / "archive"
        self.take = self.source / os.fsdecode(next((name for name in tree if b"take" in os.fsencode(name)), b"none"))
        self.recording: Recording | None = None
        make_tree(self.expected, tree)
        make_tree(self.old, {"older.txt": OLD})

    def begin(self) -> None:
        """Have source, destination and ledger as they are before the first transfer."""
        for folder in (self.source, self.dest, self.state, self.notes, self.archive):
            shutil.rmtree(folder, ignore_errors=True)
        make_tree(self.source, self.tree)
        os.chmod(self.source / "a.txt", 0o440)
        shutil.copytree(self.old, self.dest)
        self.notes.mkdir()
        self.recording = None
        if self.take.exists():
            self.recording = Recording(self.source / "take.mxf", self.take)

    def run(
        self, kind: str = "error", number: int = errno.EIO, at: int = 0, hear: Callable[[str], None] | None = None
    ) -> Outcome:
        """Transfer once; the call number *at* goes wrong. *hear* is called with each reason why a file waits."""
        paths = (self.notes, self.source, self.dest, self.expected, self.old, self.state)
        plan = tuple(Plan(kind, number, at, *map(os.fsencode, paths)))
        script = (
            f"import sys; sys.path.extend({sys.path!r}); from faulty_mover import main; main({os.getpid()}, {plan!r})"
        )
        mover = [sys.executable, "-I", "-S", "-c", script]
        folder = str(self.archive) if self.on_success == "archive" else None
        config = Config(
            source=Source(path=str(self.source), settle=0.0, settle_closed=0.0, scan_interval=0.05),
            destination=Destination(
                path=str(self.dest),
                if_exists=self.if_exists,
                min_free=MinFree(bytes=0),
                check_interval=0.3 if number in (errno.ENOSPC, errno.EDQUOT) else 30.0,
            ),
            copy=Copy(
                transfers=1 if kind == "lost" else 2,  # few calls are counted then: their order is to be the same
                movers=2,
                verify=self.verify,
                on_success=OnSuccess(action=self.on_success, folder=folder),
                checkpoint_size=BLOCK_SIZE,
                stall_timeout=20.0,
            ),
            growing=Growing(min_size=BLOCK_SIZE, poll=0.05),
            retry=Retry(first=0.01, longest=0.01),
            state=State(dir=str(self.state), shutdown_grace=5.0),
        )
        return trio.run(self._run, config, mover, hear)

    async def _run(self, config: Config, mover: list[str], hear: Callable[[str], None] | None) -> Outcome:
        board = Board()
        outcome = Outcome(board.totals, [], [])
        board.notices.append(lambda what, text: outcome.notices.append(f"{what}: {text}"))
        if hear is not None:
            board.listeners.append(lambda entry: hear(entry.reason or ""))
        try:
            async with trio.open_nursery() as nursery:
                if self.recording is not None:
                    nursery.start_soon(self.recording.go_on, self.dest)
                    self.recording = None  # it is finished in this run
                await run_agent(config, board, once=True, state_dir=str(self.state), mover=mover)
                nursery.cancel_scope.cancel()
        except* (TrioftError, FileTrouble) as group:
            outcome.refused.extend(group.exceptions)
        return outcome

    @property
    def fired(self) -> str:
        """Which call went wrong; nothing if there were not so many."""
        path = self.notes / "fired"
        return path.read_text(errors="backslashreplace").strip() if path.exists() else ""

    def check_promises(self) -> None:
        """At no time was a wrong thing under a final name, or a source removed that was not delivered."""
        path = self.notes / "violations"
        assert not path.exists(), path.read_text()
        wanted = self.tree | {b"older_1.txt": self.tree[b"older.txt"]}
        for name, content in files_of(self.dest).items():
            if not is_own(name):
                assert content == wanted[name] or (name, content) == (b"older.txt", OLD), name

    def check_complete(self) -> None:
        """Everything is at the destination, as it was at the source, and nothing else."""
        wanted = {os.fsencode(name): content for name, content in self.tree.items()}
        if self.if_exists == "rename":
            wanted[b"older_1.txt"] = wanted[b"older.txt"]
            wanted[b"older.txt"] = OLD
        there = files_of(self.dest)
        # A probe's file that could not be removed is swept away a day later.
        there = {name: content for name, content in there.items() if not name.startswith(b".trioft-probe-")}
        assert sorted(there) == sorted(wanted)
        assert there == wanted
        if "chmod" not in self.fired:  # permission bits that cannot be set are done without
            assert stat.S_IMODE((self.dest / "a.txt").stat().st_mode) == 0o440
        if self.on_success == "keep":
            for name in wanted:
                if b"older" not in name:
                    source, copy = (os.stat(os.path.join(os.fsencode(end), name)) for end in (self.source, self.dest))
                    assert source.st_mtime_ns == copy.st_mtime_ns, name
            assert files_of(self.source) == self.tree
        else:
            assert files_of(self.source) == {}
        if self.on_success == "archive":
            assert files_of(self.archive) == self.tree

    def try_at(self, kind: str, number: int, at: int) -> bool:
        """Let the call number *at* go wrong, and see everything arrive. Returns False if there were less calls."""
        self.begin()
        outcome = self.run(kind, number, at)
        what = self.fired
        try:
            self.check_promises()
            if outcome.claims_success:
                self.check_complete()
            else:
                again = self.run()
                assert again.claims_success, again
                self.check_promises()
                self.check_complete()
        except AssertionError as error:
            error.add_note(f"call {at} ({what}): {kind} {errno.errorcode.get(number)}; {outcome}")
            raise
        return bool(what)


KEEP, DELETE, ARCHIVE = {"on_success": "keep"}, {"on_success": "delete"}, {"on_success": "archive"}

# What goes wrong, in which transfer, and how many calls lie between two that are tried.
SWEEPS = [
    # Each call of a transfer of small files, each of which is synced by itself.
    ("error", errno.EIO, FEW, DELETE, 1),
    # The same with a large file, a barrier for the small ones, and an older file that is replaced.
    ("error", errno.EIO, MANY, DELETE, 11),
    # What fails because of the space, or of permissions, is not tried again at once.
    ("error", errno.ENOSPC, MANY, DELETE, 31),
    ("error", errno.EACCES, MANY, KEEP, 29),
    ("error", errno.ESTALE, MANY, ARCHIVE, 31),
    # It happened, and its answer was lost.
    ("late", errno.EIO, FEW, {"if_exists": "rename"}, 7),
    ("late", errno.EIO, MANY, DELETE, 19),
    # What was written is lost, and only one call says so, once. Without a read-back nothing else would find it.
    ("lost", errno.EIO, MANY, {"verify": "transfer"}, 1),
    ("lost", errno.ENOSPC, FEW, {"verify": "size"}, 1),
    # The process dies.
    ("kill", 0, FEW, {"if_exists": "rename"}, 5),
    ("kill", 0, MANY, DELETE, 19),
    # The same for a file that is being written, and is renamed.
    ("error", errno.EIO, GROWING, DELETE, 61),
    ("error", errno.EIO, RENAMED, DELETE, 61),
    ("error", errno.ENOSPC, GROWING, KEEP, 97),
    ("late", errno.EIO, RENAMED, DELETE, 83),
    ("lost", errno.EIO, GROWING, {"verify": "transfer"}, 5),
    ("lost", errno.EIO, RENAMED, {"verify": "readback"}, 5),
    ("kill", 0, GROWING, DELETE, 89),
    ("kill", 0, RENAMED, KEEP, 89),
    ("short", 0, RENAMED, {"verify": "transfer"}, 29),
    # Less is read or written than was asked for. Again, a read-back would make up for what is forgotten.
    ("short", 0, MANY, {"verify": "size"}, 5),
]
EVERYTHING = "TRIOFT_TEST_EVERY_FAULT" in os.environ  # every call in every sweep: takes a quarter of an hour


def describe(sweep: Any) -> str:
    kind, number, tree, settings, _ = sweep
    name = {id(MANY): "many", id(FEW): "few", id(GROWING): "growing", id(RENAMED): "renamed"}[id(tree)]
    words = [kind, errno.errorcode.get(number, ""), name, *settings.values()]
    return " ".join(word for word in words if word)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sweep", SWEEPS, ids=describe)
def test_whatever_call_goes_wrong_everything_arrives_and_no_promise_is_broken(place: Path, sweep: Any) -> None:
    """
    After a fault in any call the transfer goes on by itself, or says that it failed and the next one completes it.

    At no time is there wrong content under a final name, or content that a power cut could take back (promise 1), and
    no source is removed that is not delivered, durable and recorded (promise 3). Who claims success has all delivered.
    """
    kind, number, tree, settings, stride = sweep
    trial = Trial(place, tree, **settings)
    at = 1
    while trial.try_at(kind, number, at):
        at += 1 if EVERYTHING else stride
    assert at > 5, "nothing went wrong"


@pytest.mark.parametrize("on_success", ["keep", "delete", "archive"])
@pytest.mark.parametrize("verify", ["size", "transfer", "readback"])
@pytest.mark.parametrize("tree", [MANY, FEW, GROWING, RENAMED], ids=["many", "few", "growing", "renamed"])
def test_where_nothing_goes_wrong_the_order_of_the_steps_is_right(
    place: Path,
    tree: Tree,
    verify: Literal["size", "transfer", "readback"],
    on_success: Literal["keep", "delete", "archive"],
) -> None:
    """Durable before renamed, renamed and recorded before removed, at every level and for every file."""
    trial = Trial(place, tree, verify=verify, on_success=on_success)
    trial.begin()
    outcome = trial.run()
    trial.check_promises()
    trial.check_complete()
    assert outcome.claims_success
    assert outcome.totals.delivered == len(tree)
    assert outcome.notices == []


@pytest.mark.parametrize("size", [100, BLOCK_SIZE + 9], ids=["small", "large"])
@pytest.mark.parametrize("fate", ["removed", "renamed"])
def test_a_file_that_goes_away_while_it_waits_leaves_no_partial(place: Path, size: int, fate: str) -> None:
    """What was begun of a file is removed also when the file vanishes between two attempts."""
    trial = Trial(place, {b"a.txt": pattern(size, 3)}, verify="transfer")
    one = trial.source / "a.txt"
    seen: list[bytes] = []

    def leave(text: str) -> None:
        # It has met the full destination, and waits.
        if text.startswith("space") and one.exists():
            seen.extend(filter(is_own, files_of(trial.dest)))
            one.rename(trial.source / "other.bin") if fate == "renamed" else one.unlink()

    for at in range(1, 9):  # the first of these calls are the probe's
        trial.begin()
        trial.run("lost", errno.ENOSPC, at, hear=leave)
        if seen:
            break
    assert len(seen) == 1, "nothing had been begun"
    assert sorted(files_of(trial.dest)) == [b"older.txt"] + [b"other.bin"] * (fate == "renamed")
