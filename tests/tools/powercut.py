"""
Transfers whose destination loses its power after a certain step, and what must be so then.

The agent is the real one, in a process of its own; its movers are real, but for what ``cutting_mover`` adds. Source and
ledger lie on another filesystem and survive: the hardest case, since everything that was said of the destination stays
said.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import trio

from cutting_mover import Plan
from disks import Disk
from support import PATIENCE, Site, files_of, make_tree, wait_until
from trioft.agent.agent import run_agent
from trioft.config.kinds import MinFree, OnSuccess
from trioft.config.options import Config, Copy, Destination, Growing, Retry, Source, State
from trioft.core.errors import FileTrouble, TrioftError
from trioft.core.model import BLOCK_SIZE, VOID
from trioft.core.naming import is_own, is_partial
from trioft.state.board import Board, Totals
from truth import blocks_of, digests_of, recorded, sources_of

# As a fork, which costs nothing, but of a process that has no threads: it has these modules, and makes all the others.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pytest", "trioft.agent.agent"])

DIES = "the agent is killed, and no power is cut"
DIES_WITH_IT = "the agent loses its power too"
DIES_OF_IT = "the agent is killed when it has noticed"
SURVIVES = "the agent lives on, and the destination comes back"
FATES = (DIES_OF_IT, DIES_WITH_IT, SURVIVES)


Level = Literal["transfer", "readback"]
HEADER = 4096


class Recording:
    """A file that is being written, by this process; what it will hold is *content*."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.content = content
        self.fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.write(0, bytes(HEADER))
        self.write(HEADER, content[HEADER : BLOCK_SIZE + 100_000])

    def write(self, offset: int, data: bytes) -> None:
        assert self.fd is not None
        assert os.pwrite(self.fd, data, offset) == len(data)

    def finish(self) -> None:
        """Write the rest, and the header at last; close."""
        if self.fd is not None:
            self.write(BLOCK_SIZE + 100_000, self.content[BLOCK_SIZE + 100_000 :])
            self.write(0, self.content[:HEADER])
            os.close(self.fd)
            self.fd = None


class Ended(NamedTuple):
    """How a run ended that was not killed."""

    totals: Totals
    refused: list[str]

    @property
    def claims_success(self) -> bool:
        return not self.refused and self.totals.failed == 0 and self.totals.skipped == 0


class Trial:
    """One tree that is moved to one disk, again and again."""

    def __init__(
        self, made: Disk, site: Site, tree: Mapping[str, bytes], old: Mapping[str, bytes], python_path: list[str]
    ) -> None:
        """*old* is at the destination before. *python_path* has trioft and these tests."""
        self.disk, self.site, self.python_path = made, site, python_path
        self.tree = {os.fsencode(name): content for name, content in tree.items()}
        self.old = {os.fsencode(name): content for name, content in old.items()}
        self.notes = site.root / "notes"
        self.recording: Recording | None = None
        self.times: dict[bytes, int] = {}  # when each file of the source was modified last
        self.orphans: set[bytes] = set()  # partials whose ledger was lost: nobody continues them, nor takes them away

    def begin(self) -> None:
        """Have both ends and the ledger as they are before the first transfer; that is durable."""
        self.disk.remount()  # a failed trial may have left it without power
        for folder in (self.site.source, self.site.state, self.notes):
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.site.dest.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        make_tree(self.site.source, dict(self.tree.items()))
        make_tree(self.site.dest, dict(self.old.items()))
        for name, content in self.tree.items():
            if name.startswith(b"take"):
                path = self.site.source / os.fsdecode(name)
                path.unlink()
                self.recording = Recording(path, content)
        self.note_times()
        self.orphans = set()
        self.disk.remount()

    def note_times(self) -> None:
        for name in files_of(self.site.source):
            self.times[name] = os.stat(os.path.join(os.fsencode(self.site.source), name)).st_mtime_ns

    def run(self, at: int = 0, fate: str = DIES_OF_IT, verify: Level = "readback") -> Ended | None:
        """Transfer once, with a power cut after step *at*. Returns None if the agent was killed."""
        shutil.rmtree(self.notes, ignore_errors=True)
        self.notes.mkdir()
        devices = (self.site.source.stat().st_dev, self.site.dest.stat().st_dev)
        assert len(set(devices)) == 2
        plan = Plan(at, fate != DIES, fate in (DIES, DIES_WITH_IT), str(self.notes), str(self.site.dest), devices)
        recording, self.recording = self.recording, None
        process = _FORKS.Process(target=_run, args=(self, plan, fate, verify))
        process.start()
        try:
            if recording is not None:
                wait_until(lambda: self.is_begun() or not process.is_alive(), 15)
                recording.finish()
            process.join(PATIENCE)
            assert process.exitcode is not None, f"it hangs; power cut after {self.cut!r}, {fate}"
        finally:
            process.kill()
            process.join()
            if recording is not None:
                recording.finish()
                self.times = {}  # when exactly it was closed nobody knows
        ended = self.notes / "ended"
        if ended.exists():
            return Ended(*pickle.loads(ended.read_bytes()))
        assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}"
        return None

    def is_begun(self) -> bool:
        """Has a block of the recording been copied, or the power been cut?"""
        try:
            sizes = [path.stat().st_size for path in self.site.dest.glob("take*.trioft-partial")]
        except OSError:
            return True
        return bool(self.cut) or any(size >= BLOCK_SIZE for size in sizes)

    @property
    def cut(self) -> str:
        """After which step the power was cut; nothing if there were not so many."""
        path = self.notes / "cut"
        return path.read_text() if path.exists() else ""

    @property
    def steps(self) -> list[str]:
        """What the last run did."""
        return (self.notes / "steps").read_text().splitlines()

    def check_promises(self) -> None:
        """What must be so at any moment, also if nothing more ever happens."""
        says = recorded(self.site)
        there = files_of(self.site.dest)
        finished = {path: content for path, content in there.items() if not is_own(path)}
        # 1. Nothing wrong and nothing short under a final name; what was replaced is there, or its replacement is.
        assert finished.keys() <= self.tree.keys(), "a final name that nobody asked for"
        wrong = [name for name, held in finished.items() if held not in (self.tree[name], self.old.get(name))]
        assert wrong == [], "wrong content under a final name"
        assert self.old.keys() <= finished.keys(), "a file that was to be replaced is lost"
        # What the ledger says is at the destination, is.
        absent = [name for name in says.delivered if there.get(name) != self.tree[name]]
        assert absent == [], "recorded as delivered, and not there"
        # 2. No checkpoint above bytes that are there and right.
        for path, (partial, offset, digests, growing) in says.checkpoints.items():
            if partial not in there and there.get(path) == self.tree[path]:
                continue  # it has its final name, and the ledger was not told any more
            assert partial in there, f"there is a checkpoint of {path!r}, and no partial"
            digests_held = digests_of(there[partial][:offset])
            if growing:  # of what its recorder had written then; nothing is said of a block that is written again
                assert len(there[partial]) >= offset
                pairs = zip(blocks_of(digests_held), blocks_of(digests), strict=True)
                assert all(its == said for its, said in pairs if said != VOID), f"{path!r} is not what was recorded"
            else:
                assert there[partial][:offset] == self.tree[path][:offset], f"{path!r} differs below byte {offset:,}"
                assert digests == digests_held
        # 3. No source is gone whose copy is not there, complete and recorded.
        left = sources_of(self.site)
        gone = self.tree.keys() - left.keys()
        lost = [path for path in gone if there.get(path) != self.tree[path]]
        assert lost == [], "the source is removed, and its copy is not there"
        assert gone <= says.delivered.keys(), "the source is removed, and the ledger does not know"
        held = {path: os.stat(os.path.join(os.fsencode(self.site.dest), path)).st_mtime_ns for path in gone}
        assert all(held[path] == self.times.get(path, held[path]) for path in gone), "the copy has lost its time"
        assert all(self.tree[path] == content for path, content in left.items())

    def wait_for_the_cut(self) -> None:
        """Return when the power is off: on a busy machine that is announced some time before."""
        end = time.monotonic() + PATIENCE
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                os.utime(self.site.dest)
                time.sleep(0.005)

    def check_complete(self) -> None:
        """Everything is at the destination and on record, nothing is at the source, and nothing is left over."""
        there = files_of(self.site.dest)
        # The file of a probe that could not be removed is swept away a day later.
        there = {
            name: content
            for name, content in there.items()
            if not name.startswith(b".trioft-probe-") and name not in self.orphans
        }
        assert sorted(there) == sorted(self.tree)
        assert there == self.tree
        assert files_of(self.site.source) == {}
        says = recorded(self.site)
        assert says.delivered.keys() == self.tree.keys()
        assert says.checkpoints == {}

    def try_at(self, at: int, fate: str, killed_after: int = 0, forgets: bool = False) -> bool:
        """
        Cut the power after step *at*, check the promises, see everything arrive. False: there were less steps.

        With *killed_after* that is done in a second run; the first was killed after so many steps, and then, if it
        *forgets*, the ledger was lost.
        """
        self.begin()
        if killed_after:
            assert self.run(killed_after, DIES) is None
            if forgets:
                shutil.rmtree(self.site.state)
                self.orphans = {name for name in files_of(self.site.dest) if is_partial(name)}
                assert self.orphans, "there is nothing that the next run could take for its own"
        ended = None
        # To read back drops pages, and before that writes them: it makes up for some of what may be forgotten.
        verify: Level = "readback" if at % 2 else "transfer"
        try:
            ended = self.run(at, fate, verify)
            if not self.cut:
                assert ended is not None
                assert ended.claims_success
                self.check_complete()
                return False
            if fate != SURVIVES or not (self.notes / "returned").exists():
                self.disk.remount()
            self.check_promises()
            if ended is not None and ended.claims_success:
                self.check_complete()
            else:
                self._complete()
        except AssertionError as error:
            error.add_note(f"power cut after step {at} ({self.cut}); {fate}; {verify}; {ended}; {self.steps}")
            raise
        return True

    def _complete(self) -> None:
        """A second run delivers the rest, and copies nothing again that was settled and has still its partial."""
        begun, there = recorded(self.site).checkpoints, files_of(self.site.dest)
        settled = sum(checkpoint.offset for checkpoint in begun.values() if checkpoint.partial in there)
        again = self.run()
        assert again is not None
        assert again.claims_success, again
        assert again.totals.bytes_resumed >= settled
        self.check_promises()
        self.check_complete()


def _run(trial: Trial, plan: Plan, fate: str, verify: Level) -> None:
    """Run an agent, in this process."""
    ended = trio.run(_transfer, trial, plan, fate, verify)
    path = trial.notes / "ended"
    path.with_suffix(".new").write_bytes(pickle.dumps(tuple(ended)))
    path.with_suffix(".new").rename(path)


async def _transfer(trial: Trial, plan: Plan, fate: str, verify: Level) -> Ended:
    board = Board()
    ended = Ended(board.totals, [])

    def hear(what: str, text: str) -> None:
        if what == "storage" and "not usable" in text and trial.cut:
            if fate == DIES_OF_IT:
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == SURVIVES and not (trial.notes / "returned").exists():
                trial.wait_for_the_cut()
                trial.disk.remount()
                (trial.notes / "returned").touch()

    board.notices.append(hear)
    script = (
        f"import sys; sys.path[:0] = {trial.python_path!r}; from cutting_mover import main;"
        f" main({os.getpid()}, {tuple(plan)!r})"
    )
    mover = [sys.executable, "-I", "-S", "-c", script]
    config = _config(trial.site, verify)
    try:
        await run_agent(config, board, once=True, state_dir=str(trial.site.state), mover=mover)
    except* (TrioftError, FileTrouble) as group:
        ended.refused.extend(str(error) for error in group.exceptions)
    return ended


def _config(site: Site, verify: Level) -> Config:
    return Config(
        source=Source(path=str(site.source), settle=0.0, settle_closed=0.0),
        destination=Destination(path=str(site.dest), if_exists="overwrite", min_free=MinFree(bytes=0)),
        # One thing after the other: what is made durable for one file must not hide what is missing for another.
        copy=Copy(
            transfers=1,
            movers=1,
            verify=verify,
            on_success=OnSuccess(action="delete"),
            checkpoint_size=BLOCK_SIZE,
        ),
        growing=Growing(min_size=BLOCK_SIZE, poll=0.05),
        retry=Retry(first=0.01, longest=0.01),
        state=State(dir=str(site.state)),
    )
