"""
Recordings are copied while they are written, and what arrives is what they hold once they are closed.

The recorders are real processes (``recorder.py``), each of which writes and ends its file as one kind of program does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import trio
import xxhash

import odd_mover
from faults_mount import fault_mount
from recorder import PROFILES, Content
from support import OUTCOMES, PATIENCE, TOOLS, Site, files_of, make_tree, mounted, pattern, wait_until
from trioft.agent.agent import run_agent
from trioft.config.file import load_config
from trioft.config.kinds import OnSuccess
from trioft.core.model import VOID
from trioft.pipeline.follow import EDGE
from trioft.state.board import Board
from truth import check_promises, recorded

MIB = 1 << 20
BLOCK = 8 * MIB
SIZE = 40 * MIB + 4096  # the last block is a short one
RECORDER = TOOLS / "recorder.py"

# Small files are followed too, and every block is settled and recorded by itself: there is much to go wrong.
CONFIG = """
source: {settle: 3s, settle_closed: 400ms}
copy: {checkpoint_size: 8MiB, checkpoint_time: 100ms}
growing: {min_size: 1MiB%s}
"""


class Recorder:
    """A recorder at work: it begins the end of its recording when it is told to."""

    at_work: ClassVar[list[Recorder]] = []

    def __init__(self, profile: str, path: Path, *options: str, size: int = SIZE, rate: str = "20MiB/s") -> None:
        self.path = path
        self.lines: list[str] = []
        self.at_work.append(self)
        command = [sys.executable, str(RECORDER), profile, str(path), "--size", str(size), "--rate", rate, "--wait"]
        self.process = subprocess.Popen(
            [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def until(self, word: str) -> str:
        """Return what it says about *word*, once it does."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(word):
                return line.rstrip("\n").partition(" ")[2]
        raise AssertionError(f"it ended before {word}: {self.lines}")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died
            self.process.stdin.write("\n")

    def end(self) -> None:
        """Have it end its recording, and wait until it has."""
        self.go_on()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.lines += [line.rstrip("\n") for line in self.process.stdout]
        self.process.stdout.close()
        self.process.wait(PATIENCE)
        self.at_work.remove(self)

    def kill(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.process.wait(PATIENCE)
        self.at_work.remove(self)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    place = Site(tmp_path)
    yield place
    place.stop_all()
    for recorder in [*Recorder.at_work]:
        recorder.kill()


def config_file(site: Site, growing: str = "") -> Path:
    path = site.root / "trioft.yaml"
    path.write_text(CONFIG % growing)
    return path


def configured(site: Site, growing: str = "") -> tuple[str, ...]:
    return ("-c", str(config_file(site, growing)), "--settle", "3s")


def copied(site: Site) -> int:
    """How many bytes the partials at the destination hold."""
    sizes = []
    for path in site.dest.glob("*.trioft-partial"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # it has got its final name, or another one
            continue
    return max(sizes, default=0)


def history(site: Site) -> list[tuple[str, bytes, str]]:
    """What the ledger tells of outcomes: event, path, detail."""
    (ledger,) = site.state.glob("*.sqlite")
    db = sqlite3.connect(ledger)
    try:
        return db.execute(f"SELECT event, path, detail FROM history WHERE event IN {OUTCOMES} ORDER BY id").fetchall()
    finally:
        db.close()


def is_done(path: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("path") == path and line.get("state") == "done"


# What each profile's file is called, and what else it needs.
ORDINARY = sorted(set(PROFILES) - {"pausing", "reopening", "killed"})
# What a sync, which scans once and hears of no events, has to find out by itself.
IN_SYNC = ["mxf", "renaming", "renamed-after", "replaced", "truncating"]


@pytest.mark.parametrize(
    ("profile", "command"),
    [(profile, "watch") for profile in ORDINARY] + [(profile, "sync") for profile in IN_SYNC],
)
def test_what_arrives_is_what_the_recorder_left(profile: str, command: str, site: Site) -> None:
    """However a recorder writes and ends its file: the copy keeps up with it, and in the end is the same."""
    path = site.source / "take.mxf"
    if command == "watch":
        agent = site.watch(*configured(site))
        recorder = Recorder(profile, path)
    else:
        recorder = Recorder(profile, path)
        wait_until(lambda: any(file.stat().st_blocks * 512 > MIB for file in site.source.iterdir()))
        agent = site.start("sync", *configured(site))
    recorder.until("recorded")
    # Before it is closed all but the last bit is at the destination, under a partial name.
    wait_until(lambda: copied(site) >= SIZE - BLOCK)
    assert all(name.endswith(b"partial") for name in files_of(site.dest))
    recorder.end()
    agent.wait_for(is_done("take.mxf"))
    done = agent.end(signal.SIGTERM if command == "watch" else 0)
    assert (done.code, done.complaints, done.summary["failed"]) == (0, [], 0)
    content = path.read_bytes()
    assert len(content) == SIZE
    if profile != "mp4":  # the heads of its boxes lie over the content
        assert content == Content(0).read(0, SIZE)
    assert files_of(site.dest) == {b"take.mxf": content}
    assert (site.dest / "take.mxf").stat().st_mtime_ns == path.stat().st_mtime_ns
    line = done.files("done")["take.mxf"]
    assert (line["strategy"], line["closed"]) == ("follow", "proved")
    blocks = b"".join(xxhash.xxh3_128_digest(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK))
    assert line["digest"] == xxhash.xxh3_128_hexdigest(blocks)
    if profile in ("mxf", "mp4"):
        assert 4096 <= line["bytes_patched"] < 2 * BLOCK  # not all the blocks that something was rewritten in
    assert [event for event, _, _ in history(site)] == ["delivered"]
    assert "closed: proved" in history(site)[0][2]
    check_promises(site, {b"take.mxf": content})


def test_a_recorder_that_is_killed_has_its_recording_delivered_as_it_is(site: Site) -> None:
    """What a recorder had written when it died arrives."""
    agent = site.watch(*configured(site))
    recorder = Recorder("killed", site.source / "take.mxf")
    recorder.until("recorded")
    recorder.end()
    agent.wait_for(is_done("take.mxf"))
    assert agent.end().code == 0
    assert files_of(site.dest) == {b"take.mxf": Content(0).read(0, SIZE * 2 // 3)}


def test_a_recorder_that_closes_and_opens_again_is_waited_for(site: Site) -> None:
    """A file that is opened again within the time that closed ones get is one recording."""
    options = configured(site)
    (site.root / "trioft.yaml").write_text((CONFIG % "").replace("400ms", "2s"))
    agent = site.watch(*options)
    recorder = Recorder("reopening", site.source / "take.mxf", "--pause", "0.3")
    recorder.until("recorded")
    recorder.end()
    agent.wait_for(is_done("take.mxf"))
    done = agent.end()
    assert (done.code, done.complaints, done.summary["delivered"]) == (0, [], 1)
    assert files_of(site.dest) == {b"take.mxf": Content(0).read(0, SIZE)}


def test_a_recording_that_goes_on_after_its_delivery_arrives_as_a_whole_too(site: Site) -> None:
    """Where the pause was too long, there are two deliveries, each of which is whole; the newest is all of it."""
    agent = site.watch(*configured(site), "--if-exists", "overwrite")
    first, more = pattern(3 * BLOCK + 5, 1), pattern(2 * BLOCK, 2)
    make_tree(site.source, {"take.mxf": first})
    agent.wait_for(is_done("take.mxf"))
    assert files_of(site.dest) == {b"take.mxf": first}
    agent.lines.clear()
    with open(site.source / "take.mxf", "ab", buffering=0) as file:
        file.write(more)
        wait_until(lambda: copied(site) == len(first + more))
        assert (site.dest / "take.mxf").read_bytes() == first
    agent.wait_for(is_done("take.mxf"))
    assert files_of(site.dest) == {b"take.mxf": first + more}


@pytest.mark.parametrize("action", ["delete", "keep"])
def test_a_pause_longer_than_every_timeout_ends_nothing(action: str, site: Site) -> None:
    """Promise 3: as long as its writer has it open, a source stays; then all of it has arrived, and it goes."""
    options = configured(site)
    (site.root / "trioft.yaml").write_text((CONFIG % "").replace("3s", "200ms").replace("400ms", "100ms"))
    agent = site.watch(*options[:2], "--settle", "200ms", "--on-success", action)
    recorder = Recorder("pausing", site.source / "take.mxf", rate="40MiB/s")
    recorder.until("paused")
    wait_until(lambda: copied(site) >= SIZE // 2)
    for n in range(4):  # each of them is quiet for longer than the settle time, then delivered
        make_tree(site.source, {f"sentinel {n}": b"!"})
        agent.wait_for(is_done(f"sentinel {n}"))
    assert (site.source / "take.mxf").stat().st_size == SIZE // 2
    assert not (site.dest / "take.mxf").exists()
    recorder.go_on()
    recorder.until("recorded")
    content = (site.source / "take.mxf").read_bytes()
    assert content == Content(0).read(0, SIZE)
    recorder.end()
    agent.wait_for(is_done("take.mxf"))
    wait_until(lambda: (site.source / "take.mxf").exists() == (action == "keep"))
    assert agent.end().code == 0
    assert (site.dest / "take.mxf").read_bytes() == content
    if action == "delete":
        assert ("removed", b"take.mxf") in [row[:2] for row in history(site)]


@pytest.mark.parametrize("size", [2 * BLOCK + 5, BLOCK, 5, 0], ids=["in-a-block", "at-a-block", "small", "empty"])
def test_a_recording_that_is_cut_in_the_end_arrives_as_short_as_it_is(size: int, site: Site) -> None:
    """What was copied of a longer file is not in a shorter one."""
    agent = site.watch(*configured(site))
    content = pattern(3 * BLOCK)
    with open(site.source / "take", "wb", buffering=0) as file:
        file.write(content)
        wait_until(lambda: copied(site) == len(content))
        file.truncate(size)
    agent.wait_for(is_done("take"))
    assert agent.end().code == 0
    assert files_of(site.dest) == {b"take": content[:size]}


# --- Who is followed --------------------------------------------------------------------------------------------------


def test_sync_leaves_a_recording_for_its_next_run_if_it_is_told_to_wait(site: Site) -> None:
    """With --growing wait, a file that is being written is left alone, and the exit code says so."""
    recorder = Recorder("ts", site.source / "take.mxf")
    make_tree(site.source, {"other": b"1"})
    recorder.until("recorded")
    done = site.sync(*configured(site), "--growing", "wait")
    assert (done.code, done.summary["busy"], done.summary["delivered"]) == (4, 1, 1)
    assert files_of(site.dest) == {b"other": b"1"}
    recorder.end()


@pytest.mark.parametrize(
    ("growing", "followed"),
    [
        (", include: ['*.mxf']", True),
        (", include: ['*.mov']", False),
        (", exclude: ['take.*']", False),
        (", mode: wait", False),
        ("}\nlog: {level: info", True),
    ],
    ids=["included", "not-included", "excluded", "wait", "default"],
)
def test_who_is_not_followed_is_copied_when_it_is_closed(growing: str, followed: bool, site: Site) -> None:
    """Patterns and the mode say which files are copied while they grow; all of them arrive."""
    agent = site.watch(*configured(site, growing))
    recorder = Recorder("ts", site.source / "take.mxf")
    recorder.until("recorded")
    if followed:
        wait_until(lambda: copied(site) == SIZE)
    else:
        make_tree(site.source, {"sentinel": b"!"})
        agent.wait_for(is_done("sentinel"))
        assert copied(site) == 0
    recorder.end()
    line = agent.wait_for(is_done("take.mxf"))
    assert line["strategy"] == ("follow" if followed else "whole")
    assert (site.dest / "take.mxf").read_bytes() == Content(0).read(0, SIZE)


def test_a_file_is_followed_from_a_certain_size_on(site: Site) -> None:
    """Small files are not worth it: they are copied when they are closed, and larger ones from then on."""
    path = site.root / "trioft.yaml"
    path.write_text("growing: {min_size: 24MiB}\nsource: {settle_closed: 100ms}\n")
    agent = site.watch("-c", path)
    with open(site.source / "take", "wb", buffering=0) as file:
        file.write(pattern(3 * BLOCK - 1))
        agent.wait_for(lambda line: "open for writing" in (line.get("reason") or ""))
        assert copied(site) == 0
        file.write(b"!")
        wait_until(lambda: copied(site) == 3 * BLOCK)
    agent.wait_for(is_done("take"))


def test_a_recording_may_stay_behind_its_end(site: Site) -> None:
    """With a headroom, so many bytes at the end are not copied before the close."""
    agent = site.watch(*configured(site, ", headroom: 5MiB"))
    recorder = Recorder("ts", site.source / "take.mxf")
    recorder.until("recorded")
    wait_until(lambda: copied(site) == SIZE - 5 * MIB)
    make_tree(site.source, {"sentinel": b"!"})
    agent.wait_for(is_done("sentinel"))
    assert copied(site) == SIZE - 5 * MIB
    recorder.end()
    agent.wait_for(is_done("take.mxf"))
    assert (site.dest / "take.mxf").read_bytes() == Content(0).read(0, SIZE)


# --- What is compared in the end --------------------------------------------------------------------------------------


def test_edges_alone_are_compared_where_that_is_asked_for_and_the_ledger_says_so(site: Site) -> None:
    """With reconcile: edges what lies between is not read again, and nobody is told that it was."""
    size = 2 * EDGE + 3 * BLOCK
    agent = site.watch(*configured(site, ", reconcile: edges"))
    with open(site.source / "take", "wb", buffering=0) as file:
        content = bytearray(pattern(size))
        file.write(content)
        wait_until(lambda: copied(site) == size)
        for at in (0, EDGE - 1, EDGE + BLOCK, size - EDGE, size - 1):
            os.pwrite(file.fileno(), b"!", at)
            content[at : at + 1] = b"!"
    agent.wait_for(is_done("take"))
    assert agent.end().code == 0
    there = (site.dest / "take").read_bytes()
    assert [n for n in range(size // BLOCK) if there[n * BLOCK :][:BLOCK] != content[n * BLOCK :][:BLOCK]] == [
        (EDGE + BLOCK) // BLOCK
    ]
    ((_, _, detail),) = history(site)
    assert f"not compared with the closed file: bytes {EDGE} to {EDGE + 3 * BLOCK}" in detail


def test_attributes_are_those_of_the_closed_file(site: Site) -> None:
    """Permission bits that change while a file is written are those that it has in the end."""
    agent = site.watch(*configured(site))
    recorder = Recorder("ts", site.source / "take.mxf")
    wait_until(lambda: copied(site) > 0)
    os.chmod(site.source / "take.mxf", 0o440)
    recorder.until("recorded")
    recorder.end()
    agent.wait_for(is_done("take.mxf"))
    assert (site.dest / "take.mxf").stat().st_mode & 0o777 == 0o440


# --- trioft dies, the recorder goes on --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_recording_goes_on_from_its_checkpoint(number: int, site: Site) -> None:
    """When trioft dies in the middle of a recording, the next start goes on where it was, while it is being written."""
    options = configured(site)
    recorder = Recorder("mxf", site.source / "take.mxf")
    agent = site.watch(*options)
    settled = 0
    for _ in range(3):
        wait_until(lambda: recorded(site, running=True).settled(b"take.mxf") > settled)  # noqa: B023
        agent.end(number)
        settled = recorded(site).settled(b"take.mxf")
        assert settled <= copied(site)
        agent = site.watch(*options)
        agent.wait_for_file("take.mxf", "copying")
    recorder.until("recorded")
    recorder.end()
    agent.wait_for(is_done("take.mxf"))
    done = agent.end()
    assert done.summary["bytes_resumed"] >= settled > 0
    assert files_of(site.dest) == {b"take.mxf": Content(0).read(0, SIZE)}


@pytest.mark.parametrize("forget", [False, True], ids=["with-its-ledger", "without"])
@pytest.mark.parametrize("profile", ["mxf", "renamed-after", "truncating", "replaced"])
def test_what_ended_while_trioft_was_away_is_continued_not_believed(profile: str, forget: bool, site: Site) -> None:
    """A recording that was rewritten, renamed or begun anew meanwhile arrives as it is now, from what is still true."""
    options = configured(site)
    recorder = Recorder(profile, site.source / "take.mxf")
    agent = site.watch(*options)
    wait_until(lambda: recorded(site, running=True).checkpoints)
    agent.end(signal.SIGKILL)
    recorder.until("recorded")
    recorder.end()
    if forget:
        shutil.rmtree(site.state)
    agent = site.watch(*options)
    agent.wait_for(is_done("take.mxf"))
    done = agent.end()
    assert (done.code, done.complaints) == (0, [])
    there = files_of(site.dest)
    partials = [name for name in there if name.endswith(b"partial")]
    assert there.pop(b"take.mxf") == Content(0).read(0, SIZE)
    if forget:  # nobody knows whose it was
        assert there.keys() == set(partials[:1])
    else:
        assert there == {}
    if profile == "renamed-after" and not forget:
        assert done.summary["bytes_resumed"] >= BLOCK


def test_a_death_while_blocks_are_written_again_leaves_no_mixture(site: Site) -> None:
    """Between the close and the final name trioft may die at any moment: the next start delivers what is true."""
    options = configured(site)
    recorder = Recorder("mxf", site.source / "take.mxf", rate="100MiB/s")
    agent = site.watch(*options)
    recorder.until("recorded")
    wait_until(lambda: copied(site) == SIZE - 4096)
    recorder.end()
    for n in range(8):
        time.sleep(0.15 * (n % 4))  # any moment will do
        agent.end(signal.SIGKILL)
        check_final(site)
        agent = site.watch(*options)
    agent.wait_for(lambda line: line.get("state") == "done" or (site.dest / "take.mxf").exists())
    agent.end()
    check_final(site)
    assert site.sync(*options).code == 0
    # A probe that died with its mover is swept away at another start.
    there = {name: content for name, content in files_of(site.dest).items() if not name.startswith(b".trioft-probe-")}
    assert there == {b"take.mxf": Content(0).read(0, SIZE)}


_LOOKS_INTO_THE_LEDGER = """
import glob, shutil
copy_ranges = mover.OPERATIONS["copy_ranges"]

def looking(*arguments):
    for name in glob.glob({state!r} + "/*.sqlite*"):
        shutil.copy(name, {folder!r})
    return copy_ranges(*arguments)

mover.OPERATIONS["copy_ranges"] = looking
"""


_LIES_ONCE = """
original = mover.OPERATIONS[{operation!r}]

def lying(ends, item, partial, *arguments):
    result = original(ends, item, partial, *arguments)
    try:
        os.close(os.open({folder!r} + "/lied", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return result
    with open(os.path.join(ends.destination.path, partial), "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    return result

mover.OPERATIONS[{operation!r}] = lying
"""


@pytest.mark.parametrize("operation", ["copy_growing", "copy_ranges"])
async def test_what_the_destination_holds_wrongly_is_found_and_written_again(operation: str, site: Site) -> None:
    """A byte that flips on its way, while a file is followed or while it is reconciled, never gets a final name."""
    config = load_config(str(config_file(site)), {"source.path": ("SOURCE", str(site.source))})
    config = attrs.evolve(
        config,
        destination=attrs.evolve(config.destination, path=str(site.dest)),
        retry=attrs.evolve(config.retry, first=0.05),
    )
    code = _LIES_ONCE.format(operation=operation, folder=str(site.root))
    content = bytearray(pattern(2 * BLOCK + 5))
    board, reasons = Board(), set()
    board.listeners.append(lambda entry: reasons.add(str(entry.reason)))
    fd = os.open(site.source / "take", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, content, 0)
    async with trio.open_nursery() as nursery:
        run = functools.partial(run_agent, config, board, once=True, state_dir=str(site.state))
        nursery.start_soon(functools.partial(run, mover=odd_mover.changed(site.root, code)))
        await trio.to_thread.run_sync(wait_until, lambda: copied(site) == len(content))
        content[0] ^= 0x80
        os.pwrite(fd, content[:1], 0)
        os.close(fd)
    assert (site.root / "lied").exists()
    found = ("other bytes than were written", "somebody else has changed this partial")
    assert any(text in reason for reason in reasons for text in found)
    assert files_of(site.dest) == {b"take": bytes(content)}


_CANNOT_SEARCH = """
from trioft.core.errors import FileTrouble, Trouble

def cannot_search(*arguments):
    raise FileTrouble(Trouble("source", "read", b"folder", None, 5, "Input/output error"))

mover.OPERATIONS["locate"] = cannot_search
"""


async def test_a_search_for_a_new_name_that_never_succeeds_does_not_keep_a_sync_for_ever(site: Site) -> None:
    """A large file that vanished, in a source that cannot be searched, has failed, for a reason that is told."""
    config = load_config(str(config_file(site)), {"source.path": ("SOURCE", str(site.source))})
    config = attrs.evolve(
        config,
        destination=attrs.evolve(config.destination, path=str(site.dest)),
        retry=attrs.evolve(config.retry, first=0.05, retries=2),
    )
    board, told = Board(), []
    board.notices.append(lambda what, text: told.append(text))
    fd = os.open(site.source / "take", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, pattern(2 * BLOCK), 0)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            run = functools.partial(run_agent, config, board, once=True, state_dir=str(site.state))
            nursery.start_soon(functools.partial(run, mover=odd_mover.changed(site.root, _CANNOT_SEARCH)))
            await trio.to_thread.run_sync(wait_until, lambda: copied(site) == 2 * BLOCK)
            (site.source / "take").unlink()
            os.close(fd)
    assert board.totals.failed == 1
    assert len(told) <= 1, "it is not told again and again"


async def test_a_checkpoint_does_not_speak_for_what_is_being_written_again(site: Site) -> None:
    """Promise 2: before a block below a checkpoint is touched, the ledger says that it is to be written again."""
    seen = site.root / "seen"
    seen.mkdir()
    code = _LOOKS_INTO_THE_LEDGER.format(state=str(site.state), folder=str(seen))
    config = load_config(str(config_file(site)), {"source.path": ("SOURCE", str(site.source))})
    config = attrs.evolve(config, destination=attrs.evolve(config.destination, path=str(site.dest)))
    content = bytearray(pattern(4 * BLOCK))
    fd = os.open(site.source / "take", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, content, 0)
    async with trio.open_nursery() as nursery:
        run = functools.partial(run_agent, config, Board(), once=True, state_dir=str(site.state))
        nursery.start_soon(functools.partial(run, mover=odd_mover.changed(site.root, code)))
        settled = functools.partial(wait_until, lambda: recorded(site, running=True).settled(b"take") == 4 * BLOCK)
        await trio.to_thread.run_sync(settled)
        for at in (0, 2 * BLOCK + 100):
            os.pwrite(fd, b"!", at)
            content[at : at + 1] = b"!"
        os.close(fd)
    assert files_of(site.dest) == {b"take": bytes(content)}
    (ledger,) = seen.glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        ((offset, digests),) = db.execute("SELECT offset, digests FROM checkpoint").fetchall()
    assert offset == 4 * BLOCK
    assert [digests[16 * n :][:16] == VOID for n in range(4)] == [True, False, True, False]


async def test_a_recording_that_had_settled_before_it_was_closed_is_sealed(site: Site) -> None:
    """Where a destination does not tell of each change: it ends with a block, all is on record, and nothing is left."""
    config = load_config(str(config_file(site)), {"source.path": ("SOURCE", str(site.source))})
    board, content = Board(), pattern(2 * BLOCK)
    with fault_mount() as mount:
        config = attrs.evolve(
            config,
            destination=attrs.evolve(config.destination, path=str(mount.place)),
            copy=attrs.evolve(config.copy, on_success=OnSuccess(action="delete")),
        )
        fd = os.open(site.source / "take", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, content, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(run_agent, config, board, once=True, state_dir=str(site.state)))
            settled = functools.partial(wait_until, lambda: recorded(site, running=True).settled(b"take") == 2 * BLOCK)
            await trio.to_thread.run_sync(settled)
            os.close(fd)
        assert (board.totals.delivered, board.totals.failed) == (1, 0)
        assert files_of(mount.backing) == {b"take": content}
    assert files_of(site.source) == {}


def check_final(site: Site) -> None:
    """Promise 1, whatever happened."""
    if (site.dest / "take.mxf").exists():
        assert (site.dest / "take.mxf").read_bytes() == Content(0).read(0, SIZE)


def test_a_file_that_grows_again_while_it_is_copied_is_not_begun_anew(site: Site) -> None:
    """What was copied of a finished file is kept when somebody opens it again to append."""
    config = site.root / "trioft.yaml"
    config.write_text("copy: {checkpoint_size: 8MiB, checkpoint_time: 50ms}\nsource: {settle_closed: 100ms}\n")
    first, more = pattern(8 * BLOCK, 1), pattern(1000, 2)
    make_tree(site.source, {"take": first})
    agent = site.watch("-c", config, "--bwlimit", "30MiB/s")
    wait_until(lambda: recorded(site, running=True).settled(b"take") >= 2 * BLOCK)
    with open(site.source / "take", "ab", buffering=0) as file:
        file.write(more)
    agent.wait_for(is_done("take"))
    done = agent.end()
    assert files_of(site.dest) == {b"take": first + more}
    assert done.files("done")["take"]["strategy"] == "follow"
    assert done.summary["bytes"] < len(first + more) + 3 * BLOCK


# --- Real recorders ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize(("name", "codec"), [("take.mp4", "mpeg4"), ("take.mxf", "mpeg2video")])
def test_what_ffmpeg_records_is_followed_and_can_be_played(name: str, codec: str, site: Site) -> None:
    """A real MP4 and a real MXF, whose headers are written again at the end, arrive as they are, and are readable."""
    agent = site.watch(*configured(site))
    # Noise does not compress: a few seconds are enough for several blocks.
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "nullsrc=s=640x360:r=25"]
    command += ["-vf", "geq=random(1)*255:128:128", "-t", "5", "-c:v", codec, "-b:v", "60M", "-minrate", "60M"]
    command += ["-maxrate", "60M", "-bufsize", "20M", "-q:v", "2", str(site.source / name)]
    recorder = subprocess.Popen(command)
    wait_until(lambda: copied(site) > BLOCK)
    assert recorder.poll() is None, "it is still recording"
    assert recorder.wait(120) == 0
    line = agent.wait_for(is_done(name))
    assert line["strategy"] == "follow"
    assert agent.end().code == 0
    assert files_of(site.dest) == files_of(site.source)
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]
    frames = subprocess.run([*probe, site.dest / name], capture_output=True, text=True, check=True)
    assert frames.stderr == ""
    assert int(frames.stdout.strip().strip(",")) == 125


# --- What is known of it meanwhile, and in the end --------------------------------------------------------------------


async def test_how_far_behind_its_recorder_a_copy_is_can_be_seen(site: Site) -> None:
    """The lag is measured in bytes and in seconds while a recording goes on; before and after it is unknown, not 0."""
    config = load_config(str(config_file(site)), {"source.path": ("SOURCE", str(site.source))})
    config = attrs.evolve(config, destination=attrs.evolve(config.destination, path=str(site.dest)))
    board = Board()
    done = trio.Event()
    board.listeners.append(lambda entry: done.set() if entry.state == "done" else None)
    seen: list[tuple[int, float]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(run_agent, config, board, once=False, state_dir=str(site.state)))
        recorder = Recorder("ts", site.source / "take.mxf", rate="10MiB/s")
        with trio.fail_after(PATIENCE):
            while not (board.live and board.totals.delivered == 0 and len(seen) > 50):
                for entry in board.live.values():
                    if entry.lag_bytes is None:
                        assert entry.lag_seconds is None
                    else:
                        assert entry.lag_seconds is not None
                        assert 0 <= entry.lag_bytes <= entry.size
                        seen.append((entry.lag_bytes, entry.lag_seconds))
                await trio.sleep(0.02)  # as a viewer does
            (entry,) = board.live.values()
            await trio.to_thread.run_sync(recorder.until, "recorded")
            await trio.to_thread.run_sync(recorder.end)
            await done.wait()
        nursery.cancel_scope.cancel()
    assert any(count > 0 and seconds > 0 for count, seconds in seen), "it is never quite up to date"
    assert any(count < 10 * MIB for count, _ in seen), "but it keeps up"
    assert (entry.lag_bytes, entry.lag_seconds) == (None, None)
    assert (entry.bytes_compared, entry.closed) == (SIZE, "proved")


def test_where_nobody_can_prove_that_it_is_closed_quiet_time_ends_a_recording(site: Site, tmp_path: Path) -> None:
    """On a filesystem without proofs, a writer that is found is waited for; then time decides, and that is said."""
    options = configured(site)
    (site.root / "trioft.yaml").write_text((CONFIG % "").replace("3s", "1s"))
    with mounted("ramfs", site.source, "-t", "ramfs"):
        agent = site.watch(*options[:2], "--settle", "1s")
        recorder = Recorder("pausing", site.source / "take.mxf", rate="40MiB/s")
        recorder.until("paused")
        wait_until(lambda: copied(site) >= SIZE // 2)
        for n in range(2):
            make_tree(site.source, {f"sentinel {n}": b"!"})
            agent.wait_for(is_done(f"sentinel {n}"))
        assert not (site.dest / "take.mxf").exists()
        recorder.go_on()
        recorder.until("recorded")
        recorder.end()
        line = agent.wait_for(is_done("take.mxf"))
        assert agent.end().code == 0
        assert line["closed"] == ("likely" if os.geteuid() == 0 else "timeout")
        assert (site.dest / "take.mxf").read_bytes() == Content(0).read(0, SIZE)
    assert f"closed: {line['closed']}" in next(detail for _, path, detail in history(site) if path == b"take.mxf")
