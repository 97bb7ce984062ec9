"""
What trioft promises on a share: each check is one promise, and its docstring says it.

They run inside a guest, with the real command line on the mounted share. What has arrived is read on the server's side,
not through the client.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from support import PATIENCE, Done, Running, Site, files_of, make_tree, pattern, wait_until
from trioft import linux
from trioft.model import BLOCK_SIZE, MIB
from trioft.naming import is_partial

if TYPE_CHECKING:
    from uml.servers import Share

# Looks and tries again soon; and follows small recordings, too.
OPTIONS = """
source: {scan_interval: 500ms}
destination: {check_interval: 500ms}
growing: {min_size: 4MiB, poll: 100ms}
retry: {first: 100ms, longest: 1s}
"""
RESOLUTION = {"cifs": 100}  # ns of a modification time; 1 elsewhere
THREE_BLOCKS = pattern(2 * BLOCK_SIZE + 70_001, 1)


class Ground(Site):
    """A source in memory, and a folder of the share as the destination."""

    def __init__(self, share: Share, name: str) -> None:
        root = Path("/run/checks", name)
        root.mkdir(parents=True)
        super().__init__(root)
        self.share = share
        self.resolution = RESOLUTION.get(share.name, 1)
        self.behind, self.dest = share.behind / name, share.where / name
        self.behind.mkdir(exist_ok=True)
        self.config = root / "trioft.yaml"
        self.config.write_text(OPTIONS)

    def start(self, command: str, *options: str | Path) -> Running:
        return super().start(command, "-c", self.config, *options)

    def partials(self) -> dict[bytes, int]:
        """The partials that the server has, with their sizes."""
        return {path: len(content) for path, content in self.there().items() if is_partial(path)}

    def write_back_until(self, happened: Callable[[], bool]) -> None:
        """Have the client send what it keeps to the server, until something has happened."""
        end = time.monotonic() + PATIENCE
        fd = os.open(self.dest, os.O_RDONLY | os.O_DIRECTORY)
        try:
            while not happened():
                with contextlib.suppress(OSError):  # of an earlier check: it has been told to whom it concerns
                    linux.syncfs(fd)
                assert time.monotonic() < end, "nothing is sent to the server"
                time.sleep(0.02)
        finally:
            os.close(fd)

    def finished(self) -> dict[bytes, bytes]:
        """What the server has under final names."""
        return {path: content for path, content in self.there().items() if not is_partial(path)}

    def there(self) -> dict[bytes, bytes]:
        """What the server has."""
        while True:
            with contextlib.suppress(FileNotFoundError):  # renamed in this moment
                return files_of(self.behind)

    def said(self) -> str:
        """What those said that were started; for a person who wants to know why a check failed."""
        return "".join(f"\n{running.errors}\n{running.lines}" for running in self._running)

    def clear(self) -> None:
        """Give the memory back."""
        for folder in (self.root, self.behind):
            shutil.rmtree(folder, ignore_errors=True)


def bare_folders(share: Share) -> None:
    """Make what lies below the mount point, where nothing must ever arrive."""
    for name in CHECKS:
        (share.where / f"{share.name}-{name}").mkdir()


CHECKS: dict[str, Callable[[Ground], None]] = {}


def check(function: Callable[[Ground], None]) -> Callable[[Ground], None]:
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


def complete(running: Running) -> Done:
    """Wait until a sync has ended, and see that it says that everything is there."""
    done = running.end(0)
    assert done.code == 0, f"exit code {done.code}: {done.err}\n{done.out}"
    assert done.summary["failed"] == done.summary["busy"] == 0
    return done


@contextlib.contextmanager
def never(happens: Callable[[], object], pause: float) -> Iterator[None]:
    """While inside, look again and again whether something *happens*; fail if it ever did."""
    ended = Event()
    found: list[object] = []

    def look() -> None:
        try:
            while not ended.wait(pause):
                found.extend(filter(None, [happens()]))
        except BaseException as error:
            found.append(error)

    looking = Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
    assert found == []


@contextlib.contextmanager
def judged(ground: Ground, contents: dict[bytes, bytes]) -> Iterator[None]:
    """While inside, look at the server all the time: nothing but finished files bears a final name there."""

    def wrong() -> list[bytes]:
        return [path for path, content in ground.finished().items() if contents.get(path) != content]

    with never(wrong, 0.1):
        yield
    assert ground.finished() == contents
    assert ground.partials() == {}


# --- what arrives -----------------------------------------------------------------------------------------------------


@check
def small_and_large_files_and_a_recording_arrive(ground: Ground) -> None:
    """A bundle, a file of three blocks, and a recording whose header is rewritten: with their content and times."""
    header, take = pattern(4096, 2), pattern(BLOCK_SIZE + 3 * MIB + 1, 3)
    small = {b"small/%d" % number: pattern(number * 1_000, number) for number in range(40)}
    contents = {**small, b"large.mxf": THREE_BLOCKS, b"take.mov": header + take[4096:]}
    make_tree(ground.source, {**dict(small.items()), b"large.mxf": THREE_BLOCKS, "empty": None})
    for number, path in enumerate(sorted(path for path in contents if path != b"take.mov")):
        os.utime(os.path.join(os.fsencode(ground.source), path), ns=(0, 1_600_000_000_123_456_789 + number * 10**9))
    with judged(ground, contents):
        with open(ground.source / "take.mov", "wb", buffering=0) as recorder:
            recorder.write(bytes(4096) + take[4096 : BLOCK_SIZE + MIB])
            running = ground.start("sync")
            wait_until(lambda: any(size >= BLOCK_SIZE for path, size in ground.partials().items() if b"take" in path))
            recorder.write(take[BLOCK_SIZE + MIB :])
            recorder.seek(0)
            recorder.write(header)
        done = complete(running)
    assert {path: line["strategy"] for path, line in done.files("done").items() if "/" not in path} == {
        "large.mxf": "whole",
        "take.mov": "follow",
    }
    assert done.summary["delivered"] == len(contents)
    assert (ground.behind / "empty").is_dir()
    for path in contents:
        source, there = (os.stat(os.path.join(os.fsencode(end), path)) for end in (ground.source, ground.behind))
        assert abs(source.st_mtime_ns - there.st_mtime_ns) < ground.resolution, path


@check
def what_has_arrived_is_not_copied_again(ground: Ground) -> None:
    """A second sync, which remembers nothing of the first, finds everything there."""
    make_tree(ground.source, {"folder/a": b"a", "folder/empty": b"", "b": b"b", "large": THREE_BLOCKS})
    complete(ground.start("sync"))
    before = {path: os.stat(ground.behind / os.fsdecode(path)) for path in ground.finished()}
    ground.state = ground.root / "another state"
    done = complete(ground.start("sync"))
    assert (done.summary["already"], done.summary["delivered"], done.summary["bytes"]) == (4, 0, 0)
    after = {path: os.stat(ground.behind / os.fsdecode(path)) for path in ground.finished()}
    assert [(there.st_ino, there.st_ctime_ns) for there in after.values()] == [
        (there.st_ino, there.st_ctime_ns) for there in before.values()
    ]


# --- what is replaced -------------------------------------------------------------------------------------------------


@check
def an_older_file_that_somebody_reads_is_replaced_and_never_lost(ground: Ground) -> None:
    """
    The old file or the new one is there at any moment, and in the end the new one, also when the reader has closed.

    A plain rename would fail on CIFS, and destroy the old file when its reader closes it.
    """
    (ground.behind / "file").write_bytes(b"the old version")
    (ground.source / "file").write_bytes(THREE_BLOCKS)
    old = os.open(ground.behind / "file", os.O_PATH)  # on the server; nobody is kept from anything by it

    def both_are_lost() -> bool:
        # As long as it has any name, the old file is there; once it has none, the new one must be.
        if os.fstat(old).st_nlink:
            return False
        there = ground.behind / "file"
        return not there.exists() or there.read_bytes() != THREE_BLOCKS

    try:
        with never(both_are_lost, 0.01):
            with open(ground.dest / "file", "rb", buffering=0) as reader:
                assert reader.read(3) == b"the"
                complete(ground.start("sync", "--if-exists", "overwrite"))
                assert ground.finished()[b"file"] == THREE_BLOCKS
            ground.share.unmount()  # only then is everything closed, also what the client had put off
            ground.share.mount()
    finally:
        os.close(old)
    assert ground.finished() == {b"file": THREE_BLOCKS}


# --- what goes wrong --------------------------------------------------------------------------------------------------


@check
def a_server_that_dies_and_comes_back_is_waited_for(ground: Ground) -> None:
    """In the middle of a copy, and for seconds: no file fails, everything arrives, and nothing wrong in between."""
    contents = {b"large": THREE_BLOCKS, b"another": pattern(BLOCK_SIZE + 1, 5), b"small": b"small"}
    make_tree(ground.source, dict(contents.items()))
    with judged(ground, contents):
        running = ground.start("sync", "--bwlimit", "8MiB/s")
        ground.write_back_until(lambda: sum(ground.partials().values()) > 2 * MIB)
        ground.share.server.stop()
        time.sleep(3.5)  # this is how long it is away
        assert running.process.poll() is None
        ground.share.server.start()
        complete(running)


@check
def a_server_that_runs_full_is_waited_for(ground: Ground) -> None:
    """
    The reason is said, and the file is completed when there is room again, with all that the server had not taken.

    The clients take more than the server has room for, say so once, and then that all is well.
    """
    contents = {b"large": THREE_BLOCKS}
    make_tree(ground.source, dict(contents.items()))
    with judged(ground, contents):
        running = ground.start("sync", "--bwlimit", "8MiB/s")
        ground.write_back_until(lambda: sum(ground.partials().values()) > 2 * MIB)
        with ground.share.filled():
            waiting = running.wait_for_file("large", "waiting")
            assert waiting["reason"].startswith("space"), waiting
        complete(running)


@check
def a_byte_that_changes_on_the_server_before_it_is_verified_is_found(ground: Ground) -> None:
    """The read-back is of what the server has, not of what the client remembers."""
    contents = {b"large": THREE_BLOCKS}
    make_tree(ground.source, dict(contents.items()))
    running = ground.start("sync", "--bwlimit", "8MiB/s")
    ground.write_back_until(lambda: sum(ground.partials().values()) > 2 * MIB)
    (partial,) = ground.partials()
    with open(os.path.join(os.fsencode(ground.behind), partial), "r+b") as file:
        file.seek(MIB)
        file.write(bytes([contents[b"large"][MIB] ^ 1]))
    done = complete(running)
    assert ground.finished() == contents
    assert done.summary["bytes"] > len(THREE_BLOCKS)


@check
def a_share_that_is_unmounted_under_a_watch_is_waited_for(ground: Ground) -> None:
    """Nothing goes into the folder below the mount point; when the share is back, what is new arrives there."""
    running = ground.start("watch")
    (ground.source / "first").write_bytes(b"first")
    wait_until(lambda: ground.finished() == {b"first": b"first"})
    running.wait_for_file("first", "done")
    ground.share.unmount("--lazy")
    bare = ground.dest
    assert bare.is_dir()
    (ground.source / "second").write_bytes(b"second")
    waiting = running.wait_for_file("second", "waiting")
    assert waiting["reason"].startswith("destination"), waiting
    assert list(bare.iterdir()) == []
    ground.share.mount()
    running.wait_for_file("second", "done")
    assert ground.finished() == {b"first": b"first", b"second": b"second"}
    assert running.end().code == 0
    ground.share.unmount()
    try:
        assert list(bare.iterdir()) == []
    finally:
        ground.share.mount()
