"""
Death at any moment: of the agent, by kill -9, and of its movers.

After each death the promises are checked by looking, and the next start, or the same run, completes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import odd_mover
from disks import disk
from sparse_files import make_sparse
from support import PATIENCE, Running, Site, files_of, make_tree, movers_of, pattern, wait_until
from trioft.agent.agent import run_agent
from trioft.config.file import load_config
from trioft.config.kinds import OnSuccess
from trioft.config.options import Config
from trioft.core.errors import FileTrouble, UnusableError
from trioft.core.model import BLOCK_SIZE, MIB
from trioft.core.naming import aside_of, partial_of
from trioft.movers.ops.main import OPERATIONS, TELLING
from trioft.movers.ops.removal import going_for
from trioft.state.board import Board
from trioft.state.reader import Records
from truth import Recorded, check_promises, children_of, recorded

# Set this to the number that a failed test has printed, to get the same moments again, as far as the machine allows.
SEED = int(os.environ.get("TRIOFT_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)

# As many checkpoints as can be; and what fails is tried again soon.
OPTIONS = """
copy: {checkpoint_size: 8MiB, stall_timeout: 1s}
retry: {first: 50ms}
source: {scan_interval: 1s}
"""


def _contents(size: int) -> dict[bytes, bytes]:
    contents = {b"large/%d.mov" % number: pattern(size + number, number) for number in range(3)}
    for number in range(300):
        contents[b"small/%d/%d" % (number % 7, number)] = pattern(number * 211, number)
    return contents


CONTENTS = _contents(16 * MIB)


class Arena:
    """A site on which agents die."""

    def __init__(self, site: Site, *options: str) -> None:
        self.site = site
        config = site.root / "trioft.yaml"
        config.write_text(OPTIONS)
        self._options = [*options, "-c", str(config)]
        self.begin_anew()

    def begin_anew(self) -> None:
        """The whole tree is at the source, and nothing anywhere else."""
        for folder in (self.site.source, self.site.dest, self.site.state):
            shutil.rmtree(folder, ignore_errors=True)
        self.site.source.mkdir()
        self.site.dest.mkdir()
        make_tree(self.site.source, dict(CONTENTS.items()))

    def start(self, command: str, *options: str) -> Running:
        return self.site.start(command, *self._options, *options)

    def is_complete(self) -> bool:
        return recorded(self.site, running=True).delivered.keys() == CONTENTS.keys()

    def kill(self, running: Running) -> Recorded:
        """Kill the agent, see that its children die with it, check the promises; return what its ledger says."""
        running.end(signal.SIGKILL)
        wait_until(lambda: not children_of(running.process.pid), 5)
        return check_promises(self.site, CONTENTS)


def finish(running: Running, arena: Arena, command: str) -> int:
    """Let an agent complete; check that it has; return how many bytes it resumed."""
    if command == "watch":
        wait_until(lambda: movers_of(running.process.pid))  # from then on, signals are its own
        wait_until(arena.is_complete)
    done = running.end(signal.SIGTERM if command == "watch" else 0)
    assert done.code == 0, done.err
    check_promises(arena.site, CONTENTS)
    there = files_of(arena.site.dest)
    for litter in [path for path in there if path.startswith(b".trioft-probe-")]:
        del there[litter]  # a probe died with its mover: swept at the next start
    assert there == CONTENTS
    resumed: int = done.summary["bytes_resumed"]
    return resumed


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("command", "action", "kills"),
    [("sync", "keep", 14), ("sync", "delete", 14), ("watch", "keep", 10), ("watch", "delete", 12)],
)
def test_an_agent_that_is_killed_at_any_moment_keeps_its_promises(
    command: str, action: str, kills: int, site: Site
) -> None:
    """After each kill -9: no unfinished file under a final name, no checkpoint that leads, no source gone too early."""
    print(f"TRIOFT_TEST_SEED={SEED}")
    chance = random.Random(f"{SEED} {command} {action}")
    arena = Arena(site, "--on-success", action)
    begun = time.monotonic()
    running = arena.start(command)
    wait_until(lambda: any(site.dest.iterdir()) or running.process.poll() is not None)
    first = time.monotonic() - begun  # before that, there is nothing to lose
    finish(running, arena, command)
    last = time.monotonic() - begun
    arena.begin_anew()
    moments = [(number + chance.random()) / kills for number in range(kills)]
    chance.shuffle(moments)
    while moments:
        begun = time.monotonic()
        running = arena.start(command)
        while time.monotonic() - begun < first + moments[-1] * (last - first) and running.process.poll() is None:
            time.sleep(0.001)
        if running.process.poll() is None:
            moments.pop()
            if arena.kill(running).delivered.keys() == CONTENTS.keys():
                arena.begin_anew()
        else:  # it had less left to do, or was faster this time
            last = max(first, (last + time.monotonic() - begun) / 2)
            finish(running, arena, command)
            arena.begin_anew()
    finish(arena.start(command), arena, command)


def test_a_killed_agent_goes_on_from_its_last_checkpoint(site: Site) -> None:
    """What was settled before the kill is not copied again."""
    arena = Arena(site)
    running = arena.start("sync", "--bwlimit", "25MiB/s")
    wait_until(lambda: recorded(site, running=True).checkpoints)
    settled = sum(begun.offset for begun in arena.kill(running).checkpoints.values())
    assert settled > 0
    assert finish(arena.start("sync"), arena, "sync") >= settled


def _remove(partial: Path, offset: int) -> None:
    partial.unlink()


def _truncate(partial: Path, offset: int) -> None:
    os.truncate(partial, BLOCK_SIZE // 2)


def _damage(partial: Path, offset: int) -> None:
    with open(partial, "r+b") as file:
        for at in (0, offset - 1):
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("harm", [_remove, _truncate, _damage], ids=["removed", "truncated", "damaged"])
def test_a_checkpoint_whose_partial_was_lost_is_forgotten_before_anything_is_written(
    harm: Callable[[Path, int], None], site: Site
) -> None:
    """
    A partial that somebody removed, or a server lost, is begun anew, and its old checkpoint never believed again.

    Else a second death could leave a new partial that is long enough for it, but has gaps.
    """
    contents = {b"large": pattern(9 * BLOCK_SIZE)}
    make_tree(site.source, dict(contents.items()))
    config = site.root / "trioft.yaml"
    config.write_text("copy: {checkpoint_size: 16MiB}\n")
    running = site.start("sync", "--bwlimit", "50MiB/s", "-c", config)
    wait_until(lambda: recorded(site, running=True).settled(b"large") >= 3 * BLOCK_SIZE)
    running.end(signal.SIGKILL)
    offset = check_promises(site, contents).settled(b"large")
    (partial,) = site.dest.glob("large.*.trioft-partial")
    harm(partial, offset)

    def is_written_anew() -> bool:
        """Its first block was lost, whatever was done to it: that has been written, and not yet all that was lost."""
        with contextlib.suppress(FileNotFoundError), partial.open("rb") as file:
            status = os.fstat(file.fileno())
            begins = file.read(1) == contents[b"large"][:1]
            return begins and status.st_mtime_ns > harmed and status.st_size < offset
        return False

    harmed = time.time_ns()
    config.write_text("copy: {checkpoint_size: 1GiB, checkpoint_time: 1h}\n")  # no newer one replaces it
    running = site.start("sync", "--bwlimit", "10MiB/s", "-c", config)
    wait_until(is_written_anew)
    running.end(signal.SIGKILL)
    check_promises(site, contents)
    assert site.sync().code == 0
    assert files_of(site.dest) == contents


# --- movers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crashed"])
@pytest.mark.parametrize("command", ["sync", "watch"])
def test_movers_may_die_at_any_moment_of_a_run(command: str, number: signal.Signals, site: Site) -> None:
    """The operation is done again, or the file goes on from its checkpoint: the same run completes."""
    print(f"TRIOFT_TEST_SEED={SEED}")
    chance = random.Random(f"{SEED} {command} {number}")
    arena = Arena(site)
    running = arena.start(command, "--bwlimit", "25MiB/s")
    running.wait_for(lambda line: line.get("state") == "copying")
    killed = 0
    while killed < 20 and running.process.poll() is None:
        movers = movers_of(running.process.pid)
        if movers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(movers), number)
                killed += 1
        time.sleep(chance.uniform(0, 0.1))
    assert killed > 5
    finish(running, arena, command)


@pytest.mark.parametrize("command", ["sync", "watch"])
def test_all_movers_may_die_at_once(command: str, site: Site) -> None:
    """As when memory is short and the kernel takes one child after the other."""
    arena = Arena(site)
    running = arena.start(command, "--bwlimit", "40MiB/s")
    for wanted in (1, 16 * MIB, 36 * MIB):
        running.wait_for(lambda line: line.get("state") == "copying")
        wait_until(lambda wanted=wanted: size_below(site.dest) >= wanted)  # type: ignore[misc]
        for mover in movers_of(running.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(mover, signal.SIGKILL)
    finish(running, arena, command)


def size_below(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


@pytest.mark.parametrize("command", ["sync", "watch"])
def test_a_mover_that_hangs_is_replaced_and_the_transfer_goes_on_from_its_checkpoint(command: str, site: Site) -> None:
    """A stall closes the gate, a probe opens it again, and the same run completes; a person is told about both."""
    arena = Arena(site)
    running = arena.start(command, "--bwlimit", "40MiB/s")
    wait_until(lambda: recorded(site, running=True).checkpoints)
    stopped: list[int] = []
    while not stopped:
        stopped = stop_one_that_copies(running.process.pid)
    ends = ("source", "storage")  # it is blamed on what it was touching as it was stopped
    running.wait_for(lambda line: line["event"] in ends and "no progress for 1" in line["text"])
    running.wait_for(lambda line: line["event"] in ends and "usable again" in line["text"])
    wait_until(lambda: not os.path.exists(f"/proc/{stopped[0]}"))
    finish(running, arena, command)


def stop_one_that_copies(pid: int) -> list[int]:
    """Stop a mover of the agent *pid* that has a large file open, if there is one."""
    for mover in movers_of(pid):
        with contextlib.suppress(OSError):
            opened = [os.readlink(f"/proc/{mover}/fd/{name}") for name in os.listdir(f"/proc/{mover}/fd")]
            if any("/large/" in name for name in opened):
                os.kill(mover, signal.SIGSTOP)
                return [mover]
    return []


# --- every operation --------------------------------------------------------------------------------------------------

_DYING = """
original = mover.OPERATIONS[{operation!r}]

def die():
    # Once each for so many processes.
    for number in range({times}):
        try:
            os.close(os.open(f"{folder}/died.{{number}}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        os.kill(os.getpid(), 9)

def dying(*arguments):
    if {moment!r} == "before":
        die()
    if {moment!r} == "in-the-middle":
        progress = arguments[-1]
        def tell_and_die(message):
            progress(message)
            die()
        arguments = (*arguments[:-1], tell_and_die)
    result = original(*arguments)
    if {moment!r} == "after":
        die()
    return result

mover.OPERATIONS[{operation!r}] = dying
"""

# Before anything is written. A person stands by, who is told.
AT_THE_START = {"inspect", "contains", "can_move", "probe_source", "probe", "find_naming", "find_view", "claim"}
# No sync needs them: the doctor's, those of `trioft verify`, `clean` and `safe`, and that of a watch, which compares
# nothing.
OF_OTHERS = {
    *("scan", "plant", "uproot", "begin_measuring", "measure", "end_measuring", "recognize", "read_delivered"),
    *("read_claims", "survey"),
}
# What has to be asked for, for these to be needed: options, by their groups. The gate touches what it looks at, so that
# all of it is read again. A disk that is full is looked at often.
ASKED_FOR: dict[str, dict[str, dict[str, Any]]] = {
    "seal": {"copy": {"gate": ("touch", "{partial}")}},
    "is_sealed": {"copy": {"gate": ("touch", "{partial}")}},
    "mark": {"copy": {"done_file": ".done"}},
    "can_move": {"copy": {"on_success": OnSuccess(action="archive", folder="archive")}},
    "sum_delivered": {"copy": {"manifest": "sha256sum"}},
    "write_sums": {"copy": {"manifest": "sha256sum"}},
    "find_histories": {"copy": {"manifest": "ascmhl"}},
    "append_generation": {"copy": {"manifest": "ascmhl"}},
    "remove_emptied": {"source": {"remove_empty_folders": True}},
    "holes_of": {"destination": {"check_interval": 0.1}},
}

TELL_OF_READING = {"are_sealed", "publish"}  # and of that only: what is as it was sealed is not read


def _deaths() -> list[Any]:
    """Return all operations, moments, and numbers of deaths."""
    deaths: list[Any] = []
    for operation in (name for name in OPERATIONS if name not in OF_OTHERS):
        for moment in ("before", "in-the-middle", "after"):
            # A generation tells of files that it reads: where the history of a card has other sums, and here is none.
            if moment != "in-the-middle" or operation in TELLING - {"append_generation", *TELL_OF_READING}:
                deaths.append((operation, moment, 1 if operation in AT_THE_START else 5))
    deaths += [(operation, "after", 2) for operation in sorted(AT_THE_START)]
    return deaths


class Take:
    """A recording, begun before trioft is, that gets its final name, its end and its header while it is followed."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.content = pattern(2 * BLOCK_SIZE + 5 * MIB + 1, 99)
        self.begun = site.source / "take.tmp"
        self.fd = os.open(self.begun, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.write(0, bytes(4096))
        self.write(4096, self.content[4096 : BLOCK_SIZE + MIB])

    def write(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)

    async def go_on(self) -> None:
        """What is copied of it is on record: it is renamed, written to its end, and closed."""
        try:
            while recorded(self.site, running=True).settled(b"take.tmp") < BLOCK_SIZE:  # noqa: ASYNC110 - no event of ours
                await trio.sleep(0.01)
            os.rename(self.begun, self.site.source / "takes" / "take.mxf")
            self.write(BLOCK_SIZE + MIB, self.content[BLOCK_SIZE + MIB :])
            await trio.sleep(0.1)
            self.write(0, self.content[:4096])
        finally:
            os.close(self.fd)


def arrange(operation: str, site: Site, held: contextlib.ExitStack, patch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """Have things be so that *operation* is needed; return what is at the source, by that, and at the destination."""
    match operation:
        case "beat":
            patch.setattr("trioft.pipeline.claiming.BEAT", 0.02)
        case "holes_of":  # it is asked only where there is not room for all of a file
            held.enter_context(disk("ext4", site.root / "image", site.dest, 96 * MIB))
            make_sparse(site.source / "sparse", 120 * MIB, (60 * MIB, pattern(MIB)))
            return {b"sparse": bytes(60 * MIB) + pattern(MIB) + bytes(59 * MIB)}
        case "find_former":  # an earlier version is there, and the file has become longer
            begun = pattern(5 * MIB)
            make_tree(site.source, {"log": begun})
            assert site.sync("--on-success", "delete").code == 0
            make_tree(site.source, {"log": begun + b"more"})
            return {b"log": begun + b"more"}
        case "put_back":  # an earlier run was killed as it replaced a file
            make_tree(site.source, {"first": b"first"})
            assert site.sync("--on-success", "delete").code == 0
            (site.dest / "first").unlink()
            (ledger,) = site.state.glob("*.sqlite")
            with contextlib.closing(Records(str(ledger))) as records:
                partial = partial_of(b"aside", 1, 1, ledger=records.id)
            (site.dest / os.fsdecode(aside_of(b"aside", partial))).write_bytes(b"moved aside")
    return {}


@pytest.mark.parametrize(("operation", "moment", "times"), _deaths())
async def test_a_mover_may_die_in_every_operation(
    operation: str, moment: str, times: int, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it begins, in the middle, or when all but the answer is done: the same run completes."""
    with contextlib.ExitStack() as held:
        contents = arrange(operation, site, held, monkeypatch)
        await _die_in(operation, moment, times, site, contents)


async def _die_in(operation: str, moment: str, times: int, site: Site, contents: dict[bytes, bytes]) -> None:
    contents |= {
        b"large": pattern(2 * BLOCK_SIZE + 1),
        b"small/a": b"a",
        b"small/b": b"b",
        b"small/there": b"there",
        b"there": pattern(3 * MIB),
    }
    make_tree(site.source, {path: content for path, content in contents.items() if path not in (b"sparse", b"log")})
    make_tree(site.source, {"empty/folder": None, "takes": None})
    # A run that was killed had taken this aside, to remove it.
    make_tree(site.source, {f"{os.fsdecode(going_for(b'back'))}/back": b"back"})
    contents[b"back"] = b"back"
    for path in (b"there", b"small/there"):  # these are compared only
        target = os.path.join(os.fsencode(site.dest), path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(os.path.join(os.fsencode(site.source), path), target)
    old = site.dest / "old.01234567.partial"
    old.write_bytes(b"a partial of another program")
    os.utime(old, (0, 0))
    board, config = Board(), config_of(site)
    code = _DYING.format(operation=operation, moment=moment, times=times, folder=site.root)
    asked_for = ASKED_FOR.get(operation, {})
    for group, options in asked_for.items():
        values = {
            key: attrs.evolve(value, folder=f"{site.root}/{value.folder}") if isinstance(value, OnSuccess) else value
            for key, value in options.items()
        }
        config = attrs.evolve(config, **{group: attrs.evolve(getattr(config, group), **values)})
    run = functools.partial(
        run_agent, config, board, once=True, state_dir=str(site.state), mover=odd_mover.changed(site.root, code)
    )
    with trio.fail_after(PATIENCE):
        if operation in AT_THE_START and times > 1:
            # Nothing has begun yet, and a person stands by.
            with pytest.RaisesGroup(pytest.RaisesExc(UnusableError, match="died, twice"), flatten_subgroups=True):
                await run()
            del contents[b"back"]
            assert files_of(site.source) == {**contents, going_for(b"back") + b"/back": b"back"}
            return
        take = Take(site)
        contents[b"takes/take.mxf"] = take.content
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take.go_on)
            assert await run() is None
        # A search for what is left over that was cut short is begun again by the next start.
        while operation == "put_back" and not (site.dest / "aside").exists():
            assert await run() is None
    assert list(site.root.glob("died.*"))
    assert board.totals.failed == 0
    there = files_of(site.dest)
    made = [path for path in there if path.endswith((b".done", b"trioft.sha256", b".mhl", b"ascmhl_chain.xml"))]
    assert bool(made) == bool(asked_for.get("copy", {}).keys() & {"done_file", "manifest"})
    for path in made:
        del there[path]
    assert there.pop(b"old.01234567.partial") == b"a partial of another program"
    if operation == "put_back":
        assert there.pop(b"aside") == b"moved aside"
    assert there == contents
    assert files_of(site.source) == {}
    assert (site.dest / "empty" / "folder").is_dir()
    says = recorded(site)
    if operation == "put_back":
        contents[b"first"] = b"first"  # by the earlier run
    assert says.delivered.keys() == says.removed == contents.keys()
    assert says.checkpoints == {}


async def test_a_single_file_that_cannot_be_looked_at_is_not_taken_for_delivered(site: Site) -> None:
    """A sync of one file that could not even look at it says so: it does not end as if there was nothing to do."""
    make_tree(site.source, {"file": b"content"})
    code = _DYING.format(operation="look", moment="before", times=2, folder=site.root)
    config = config_of(site)
    config = attrs.evolve(config, source=attrs.evolve(config.source, path=str(site.source / "file")))
    run = functools.partial(run_agent, config, Board(), once=True, state_dir=str(site.state))
    with trio.fail_after(PATIENCE):
        with pytest.RaisesGroup(pytest.RaisesExc(FileTrouble, match="died, twice"), flatten_subgroups=True):
            await run(mover=odd_mover.changed(site.root, code))
        assert await run() is None
    assert files_of(site.dest) == {b"file": b"content"}


def config_of(site: Site) -> Config:
    config = load_config(
        None,
        {
            "source.path": ("SOURCE", str(site.source)),
            "destination.path": ("DEST", str(site.dest)),
            "source.settle": ("--settle", "2s"),
            "copy.on_success": ("--on-success", "delete"),
        },
    )
    return attrs.evolve(
        config,
        source=attrs.evolve(config.source, settle_closed=0.05, scan_interval=0.1),
        growing=attrs.evolve(config.growing, min_size=4 * MIB, poll=0.05),
        copy=attrs.evolve(config.copy, checkpoint_size=BLOCK_SIZE),
        retry=attrs.evolve(config.retry, first=0.01),
    )
