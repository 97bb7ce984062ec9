"""
A long life: Hypothesis makes up what happens to a source, to trioft, to its partials and to its memory, step by step.

The oracle is the two real trees. The machine remembers every version that each path of the source ever had, and after
every run, however that ended, checks the promises 1 to 3: a final name holds one of these versions, whole; a run that
says that all is well has brought the newest one of each file; a source is removed only if the destination has it.

What may be all that is left of a removed source is not replaced: once sources have been removed, a file may have a
numbered name.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from support import Done, Running, Site, pattern, wait_until
from trioft.core.naming import GOING, is_own, is_view_probe

MIB = 1 << 20
BLOCK = 8 * MIB
PATHS = ["a", "b", "d/a", "d/b", "e/f/a"]

# Every block is settled and recorded by itself, so that there is much to go wrong.
CONFIG = "source: {settle: 100ms}\ncopy: {checkpoint_size: 8MiB, checkpoint_time: 1ms}\n"

paths = st.sampled_from(PATHS)
small_sizes = st.sampled_from([0, 1, 1000, MIB - 1, MIB])
large_sizes = st.sampled_from([MIB + 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5, 3 * BLOCK])
sizes = st.one_of(small_sizes, large_sizes, large_sizes)
seeds = st.integers(0, 9)
fractions = st.floats(0, 1)
changes = st.sampled_from(["write", "replace", "append", "patch", "rename", "delete", "touch", "mkdir"])


def digest_of(path: Path) -> bytes:
    return xxhash.xxh3_128_digest(path.read_bytes())


def files_below(root: Path) -> dict[str, Path]:
    return {os.fspath(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def number_of(name: str) -> tuple[str, int]:
    """Return the path of the source that was delivered as *name*, and the number that this has; 0: none."""
    found = re.fullmatch(r"(.+)_(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def has_movers(agent: int) -> bool:
    """Is any mover of this agent left, also of one that is gone?"""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"trioft.movers.ops.main" in command and b"main(%d" % agent in command:
            return True
    return False


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory, where there is such a place: thousands of files of many megabytes are written and synced here.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="trioft-machine-", dir=memory))
        self.site = Site(self.root)
        self.config = self.root / "trioft.yaml"
        self.versions: dict[str, set[bytes]] = defaultdict(set)
        # Times that differ: to trioft a file of the same size and time is the same file.
        self.clock = 1_600_000_000_000_000_000
        self.removes = False  # some run was to remove what it had delivered

    def teardown(self) -> None:
        self.site.stop_all()
        shutil.rmtree(self.root)

    def sources(self) -> dict[str, Path]:
        """Return the files of the source; what was just taken aside, to be removed, by its own name."""
        going = os.fsdecode(GOING)
        return {
            "/".join(part for part in name.split("/") if not part.startswith(going)): path
            for name, path in files_below(self.site.source).items()
            if not is_view_probe(os.fsencode(name), path.stat().st_size)
        }

    def source_digests(self) -> dict[str, bytes]:
        return {name: digest_of(path) for name, path in self.sources().items()}

    def partials(self) -> list[Path]:
        return sorted(path for path in self.site.dest.rglob("*.trioft-partial") if path.is_file())

    def bytes_written(self) -> int:
        total = 0
        for path in self.site.dest.rglob("*.trioft-partial"):
            with contextlib.suppress(FileNotFoundError):  # it has got its final name
                total += path.stat().st_size
        return total

    def written(self, path: Path) -> None:
        """A new version of *path* is complete."""
        self.clock += 1_000_000_007
        os.utime(path, ns=(self.clock, self.clock))
        self.versions[os.fspath(path.relative_to(self.site.source))].add(digest_of(path))

    def check_final_names(self) -> None:
        """Promise 1: what is not trioft's own is, as a whole, what the source once had under this name."""
        for name, path in files_below(self.site.dest).items():
            if not is_own(os.fsencode(name)):
                source, number = number_of(name)
                assert self.removes or not number, f"{name} has a number, although no source was ever removed"
                assert digest_of(path) in self.versions[source], f"{name} is no version that there ever was"

    def copies(self) -> dict[str, list[Path]]:
        """Return what the destination has of each path of the source."""
        copies: dict[str, list[Path]] = defaultdict(list)
        for name, path in files_below(self.site.dest).items():
            copies[number_of(name)[0]].append(path)
        return copies

    def check_delivered(self, expected: dict[str, bytes], times: dict[str, int] | None = None) -> None:
        """The destination has what is *expected*, and if *times* are given, with these."""
        copies = self.copies()
        for name, digest in expected.items():
            same = [path for path in copies[name] if digest_of(path) == digest]
            assert same, f"{name} is not what the source has"
            assert times is None or times[name] in [path.stat().st_mtime_ns for path in same], f"{name} lost its time"

    # --- What happens to the source

    @initialize(size=large_sizes)
    def begin(self, size: int) -> None:
        self.config.write_text(CONFIG)
        self.change("write", "a", "b", size, 0, 0)
        self.change("write", "d/b", "b", 100, 0, 0)

    @rule(how=changes, name=paths, to=paths, size=sizes, seed=seeds, where=fractions)
    def change(self, how: str, name: str, to: str, size: int, seed: int, where: float) -> None:
        """A program does something with a file, as programs do it. Not all need all arguments."""
        path = self.site.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = pattern(size, seed)
        match how if path.exists() or how in ("write", "replace", "mkdir") else None:
            case "write":
                path.write_bytes(content)
            case "replace":
                (self.root / "new").write_bytes(content)
                (self.root / "new").rename(path)
            case "append" if path.stat().st_size <= 3 * BLOCK:
                with path.open("ab") as file:
                    file.write(content)
            case "patch":  # a header, or something in the middle
                with path.open("r+b") as file:
                    file.seek(int(where * max(0, path.stat().st_size - 8)))
                    file.write(b"patched!")
            case "rename":
                new = self.site.source / to
                new.parent.mkdir(parents=True, exist_ok=True)
                path.rename(new)
                path = new
            case "delete":
                path.unlink()
                return
            case "touch":
                pass
            case "mkdir":
                (self.site.source / "e" / "z").mkdir(parents=True, exist_ok=True)
                return
            case _:
                return
        self.written(path)

    # --- What happens to trioft's own things

    def damage(self, how: str, where: float) -> None:
        """While trioft is away, something happens to its partials that nobody can see from outside."""
        for path in self.partials():
            status = path.stat()
            match how:
                case "remove":
                    path.unlink()
                    continue
                case "truncate":
                    os.truncate(path, int(where * status.st_size))
                case "extend":
                    os.truncate(path, status.st_size + BLOCK)
                case "overwrite":
                    with path.open("r+b") as file:
                        file.seek(int(where * max(0, status.st_size - 6)))
                        file.write(b"damage")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    # --- Runs

    def check_success(self, done: Done) -> None:
        # That a file was delivered several times, each time under another name, is worth a warning.
        told = [line for line in done.err.splitlines() if "times within an hour" not in line]
        assert (done.code, told) == (0, [])
        self.check_final_names()

    @rule(transfers=st.sampled_from(["1", "4"]))
    def sync(self, transfers: str) -> None:
        """A run that ends by itself has brought everything, and touched nothing at the source."""
        expected = self.source_digests()
        times = {name: path.stat().st_mtime_ns for name, path in self.sources().items()}
        folders = [path.relative_to(self.site.source) for path in self.site.source.rglob("*") if path.is_dir()]
        folders = [folder for folder in folders if not folder.name.startswith(os.fsdecode(GOING))]
        self.check_success(self.site.sync("-c", self.config, "--transfers", transfers))
        self.check_delivered(expected, times)
        assert all((self.site.dest / folder).is_dir() for folder in folders)
        assert self.source_digests() == expected

    @rule()
    def move(self) -> None:
        """Promise 3: with --on-success delete the files are at the destination, and only then not at the source."""
        expected = self.source_digests()
        self.removes = True
        self.check_success(self.site.sync("-c", self.config, "--on-success", "delete"))
        self.check_delivered(expected)
        assert self.sources() == {}

    def start(self, *options: str) -> Running:
        """Start a run that takes its time, and wait until it begins."""
        running = self.site.start("sync", "-c", self.config, "--bwlimit", "32MiB/s", *options)
        wait_until(lambda: has_movers(running.process.pid) or running.process.poll() is not None)
        return running

    @rule(
        number=st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]),
        late=st.booleans(),
        after=fractions,
        options=st.sampled_from([(), ("--on-success", "delete"), ("--transfers", "1")]),
        damage=st.sampled_from(["none", "overwrite", "overwrite", "remove", "truncate", "extend"]),
        where=fractions,
        forget=st.sampled_from([False, False, True]),
    )
    def stop(
        self, number: int, late: bool, after: float, options: tuple[str, ...], damage: str, where: float, forget: bool
    ) -> None:
        """
        A run is killed, or stopped, at any moment: no source is lost, and no process goes on behind its back.

        Then its partials may be damaged, and its state directory lost.
        """
        before = self.source_digests()
        self.removes = self.removes or "delete" in options
        running = self.start(*options)
        if late:
            wait_until(lambda: self.bytes_written() > BLOCK or running.process.poll() is not None)
        time.sleep(0.6 * after)  # any moment will do
        done = running.end(number)
        assert done.code in (0, -number, 128 + number), done.err
        wait_until(lambda: not has_movers(running.process.pid))
        self.check_final_names()
        remaining = self.source_digests()
        assert remaining.items() <= before.items()
        lost = {name: digest for name, digest in before.items() if name not in remaining}
        assert not lost or "delete" in options
        self.check_delivered(lost)
        self.damage(damage, where)
        if forget:
            shutil.rmtree(self.site.state, ignore_errors=True)

    @rule(how=changes, name=paths, to=paths, size=sizes, seed=seeds, after=fractions)
    def disturb(self, how: str, name: str, to: str, size: int, seed: int, after: float) -> None:
        """A file changes while a run copies: no mixture arrives, neither now nor with the next run."""
        running = self.start()
        time.sleep(0.8 * after)  # any moment will do
        self.change(how, name, to, size, seed, after)
        done = running.end(0)
        assert done.code == 0, done.err
        self.check_final_names()


@pytest.mark.timeout(900)  # a failure is made as small as possible before it is shown
def test_no_life_breaks_a_promise() -> None:
    """Whatever happens, in whatever order: a final name holds a whole version, and a run that ends well brought all."""
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=15,
            stateful_step_count=12,
            deadline=None,
            derandomize="CI" in os.environ,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
