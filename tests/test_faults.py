"""
Whole transfers in which one call goes wrong: the first, the second, … until none does.

The agent is the real one, and so are its movers, except that ``faulty_mover`` stands between them and the system. Whatever
goes wrong, and wherever, in the end everything is at the destination, and at no moment was a promise broken.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from faulty_mover import Plan
from files import open_files
from support import files_of, make_tree, pattern
from trioft.agent import run_agent
from trioft.board import Board, Totals
from trioft.config import Config, Copy, Destination, MinFree, OnSuccess, Retry, Source, State
from trioft.errors import FileTrouble, TrioftError
from trioft.model import BLOCK_SIZE
from trioft.naming import is_partial

MANY = {
    b"large.mxf": pattern(2 * BLOCK_SIZE + 70_001, 1),  # three blocks, the last one short
    b"a.txt": pattern(10, 2),
    b"b.bin": pattern(300_000, 3),
    b"older.txt": b"the new version",
    b"sub/c.txt": pattern(20, 4),
    b"sub/empty": b"",
}
FEW = {b"a.txt": pattern(10, 2), b"older.txt": b"the new version", b"sub/c.txt": pattern(20, 4)}
OLD = b"the version of last year"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """
    A folder in memory, if there is room: what these tests lose is taken away by the faulty mover, not by a disk.
    """
    if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="trioft-test-") as folder:
            yield Path(folder)
    else:
        yield tmp_path


@attrs.define
class Outcome:
    """How a run ended."""

    totals: Totals
    refused: list[BaseException]  # what ended it before its time
    notices: list[str]

    @property
    def claims_success(self) -> bool:
        return not self.refused and self.totals.failed == 0 and self.totals.skipped == 0


class Trial:
    """One transfer in which one call goes wrong, and, if need be, one more in which none does."""

    def __init__(
        self,
        folder: Path,
        tree: dict[bytes, bytes],
        *,
        verify: str = "readback",
        on_success: str = "keep",
        if_exists: str = "overwrite",
    ) -> None:
        self.folder, self.tree = folder, tree
        self.verify, self.on_success, self.if_exists = verify, on_success, if_exists
        self.source, self.dest, self.state = folder / "source", folder / "dest", folder / "state"
        self.expected, self.old, self.notes = folder / "expected", folder / "old", folder / "notes"
        self.archive = folder / "archive"
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

    def run(self, kind: str = "error", number: int = errno.EIO, at: int = 0) -> Outcome:
        """Transfer once; the call number *at* goes wrong."""
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
                path=str(self.dest), if_exists=self.if_exists, min_free=MinFree(bytes=0), check_interval=0.05
            ),
            copy=Copy(
                transfers=2,
                movers=2,
                verify=self.verify,
                on_success=OnSuccess(action=self.on_success, folder=folder),
                checkpoint_size=BLOCK_SIZE,
                stall_timeout=20.0,
            ),
            retry=Retry(first=0.01, longest=0.01),
            state=State(dir=str(self.state), shutdown_grace=5.0),
        )
        return trio.run(self._run, config, mover)

    async def _run(self, config: Config, mover: list[str]) -> Outcome:
        board = Board()
        outcome = Outcome(board.totals, [], [])
        board.notices.append(lambda what, text: outcome.notices.append(f"{what}: {text}"))
        try:
            await run_agent(config, board, once=True, state_dir=str(self.state), mover=mover)
        except* (TrioftError, FileTrouble) as group:
            outcome.refused.extend(group.exceptions)
        return outcome

    @property
    def fired(self) -> str:
        """Which call went wrong; nothing if there were not so many."""
        path = self.notes / "fired"
        return path.read_text(errors="backslashreplace").strip() if path.exists() else ""

    @property
    def calls(self) -> int:
        """How many calls have been counted."""
        return int((self.notes / "count").read_bytes())

    def check_promises(self) -> None:
        """At no time was a wrong thing under a final name, or a source removed that was not delivered."""
        path = self.notes / "violations"
        assert not path.exists(), path.read_text()
        there = files_of(self.dest)
        wanted = files_of(self.expected)
        for name, content in there.items():
            if not is_partial(name):
                assert content in (wanted.get(name), OLD if name == b"older.txt" else None, *self._renamed(name))

    def _renamed(self, name: bytes) -> list[bytes]:
        return [files_of(self.expected)[b"older.txt"]] if name == b"older_1.txt" and self.if_exists == "rename" else []

    def check_complete(self) -> None:
        """Everything is at the destination, as it was at the source, and nothing else."""
        wanted = files_of(self.expected)
        if self.if_exists == "rename":
            wanted[b"older_1.txt"] = wanted[b"older.txt"]
            wanted[b"older.txt"] = OLD
        there = files_of(self.dest)
        # A probe's file that could not be removed is swept away a day later.
        there = {name: content for name, content in there.items() if not name.startswith(b".trioft-probe-")}
        assert sorted(there) == sorted(wanted)
        assert there == wanted
        assert stat.S_IMODE((self.dest / "a.txt").stat().st_mode) == 0o440
        if self.on_success == "keep":
            for name in wanted:
                if b"older" not in name:
                    source, copy = (os.stat(os.path.join(os.fsencode(end), name)) for end in (self.source, self.dest))
                    assert source.st_mtime_ns == copy.st_mtime_ns, name
            assert files_of(self.source) == files_of(self.expected)
        else:
            assert files_of(self.source) == {}
        if self.on_success == "archive":
            assert files_of(self.archive) == files_of(self.expected)

    def try_at(self, kind: str, number: int, at: int) -> bool:
        """Let the call number *at* go wrong, and see everything arrive. Returns False if there were not so many calls."""
        self.begin()
        before = open_files()
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
            assert open_files() == before
        except AssertionError as error:
            error.add_note(f"call {at} ({what}): {kind} {errno.errorcode[number]}; {outcome}")
            raise
        return bool(what)


SCENARIOS = {
    "many": dict(tree=MANY),
    "few delete": dict(tree=FEW, on_success="delete"),
    "many delete": dict(tree=MANY, on_success="delete"),
    "many transfer": dict(tree=MANY, verify="transfer"),
    "few rename": dict(tree=FEW, if_exists="rename"),
    "many archive": dict(tree=MANY, on_success="archive"),
}

@pytest.mark.timeout(1000)
def test_probe(place):
    import time
    sc, kind, number, start, stride = os.environ["TRY"].split(",")
    trial = Trial(place, **SCENARIOS[sc])
    n = int(start); t = time.time(); bad = 0
    while True:
        try:
            if not trial.try_at(kind, getattr(errno, number), n):
                break
        except BaseException as e:
            bad += 1
            import traceback
            print("=====", n, trial.fired)
            notes = getattr(e, "__notes__", [])
            if os.environ.get("FULL"):
                traceback.print_exc()
            else:
                print(type(e), str(e)[:600], notes)
        n += int(stride)
    print("calls", n, "seconds", time.time() - t, "bad", bad)
