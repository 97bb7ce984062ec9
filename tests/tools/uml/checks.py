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
from typing import TYPE_CHECKING, Any, TypeVar

from support import PATIENCE, Done, Running, Site, make_tree, pattern, wait_until
from trioft.core.model import BLOCK_SIZE, MIB
from trioft.core.naming import PROBE, is_own, is_partial
from trioft.movers.ops import linux

if TYPE_CHECKING:
    from uml.servers import Share

Seen = TypeVar("Seen")
Tree = dict[str | bytes, bytes | int | None]

# It looks, and tries again, soon; and follows small recordings, too.
OPTIONS = """
source: {scan_interval: 500ms}
destination: {check_interval: 500ms}
growing: {min_size: 4MiB, poll: 100ms}
retry: {first: 100ms, longest: 1s}
state: {shutdown_grace: 2s}
"""
# The first block of a file goes at once, the second after more than a second: time for something to go wrong.
SLOWLY = ("--bwlimit", "6MiB/s")
RESOLUTION = {"cifs": 100, "vfat": 2_000_000_000}  # ns of a modification time; 1 elsewhere
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

    def finished(self) -> dict[bytes, bytes]:
        """What the server has under final names."""
        return self._see(lambda path: None if is_own(path) else Path(os.fsdecode(path)).read_bytes())

    def partials(self) -> dict[bytes, int]:
        """The partials that the server has, with their sizes."""
        return self._see(lambda path: os.stat(path).st_size if is_partial(path) else None)

    def left(self) -> dict[bytes, int]:
        """All that trioft has for itself there. Not a probe's file whose mover died: those are swept later."""
        seen = self._see(lambda path: os.stat(path).st_size if is_own(path) else None)
        return {path: size for path, size in seen.items() if not path.startswith(PROBE)}

    def _see(self, look: Callable[[bytes], Seen | None]) -> dict[bytes, Seen]:
        base = os.fsencode(self.behind)
        while True:
            with contextlib.suppress(FileNotFoundError):  # it was renamed in this moment
                paths = [os.path.join(folder, name) for folder, _, names in os.walk(base) for name in names]
                seen = {os.path.relpath(path, base): look(path) for path in paths}
                return {path: what for path, what in seen.items() if what is not None}

    def wait_for_bytes(self) -> None:
        """Have the client send what it keeps, until the server has some bytes of what is being copied."""
        end = time.monotonic() + PATIENCE
        fd = os.open(self.dest, os.O_RDONLY | os.O_DIRECTORY)
        try:
            some = False
            while not some:
                # Looked at before: what was written until then is there when the client has sent it all.
                some = any(self.partials().values())
                with contextlib.suppress(OSError):  # of an earlier check
                    linux.syncfs(fd)
                assert time.monotonic() < end, "nothing is sent to the server"
                time.sleep(0.02)
        finally:
            os.close(fd)

    def said(self) -> str:
        """What those said that were started; for a person who wants to know why a check failed."""
        return "".join(f"\n{running.errors}\n{running.lines}" for running in self._running)

    def clear(self) -> None:
        """Give the memory back."""
        for folder in (self.root, self.behind):
            shutil.rmtree(folder, ignore_errors=True)


CHECKS: dict[str, Callable[[Ground], None]] = {}


def check(function: Callable[[Ground], None]) -> Callable[[Ground], None]:
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


def complete(running: Running) -> Done:
    """Wait until a sync has ended, and see that it says that everything is there."""
    done = running.end(0)
    assert done.code == 0, f"exit code {done.code}"
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
    assert found == [], found


@contextlib.contextmanager
def judged(ground: Ground, contents: dict[bytes, bytes]) -> Iterator[None]:
    """While inside, nothing but finished files bears a final name on the server; then, all do, and nothing is left."""

    def wrong() -> list[bytes]:
        return [path for path, content in ground.finished().items() if contents.get(path) != content]

    with never(wrong, 0.1):
        yield
    assert wrong() == [], wrong()
    assert ground.finished().keys() == contents.keys(), ground.finished().keys()
    assert ground.left() == {}, ground.left()


# --- what arrives -----------------------------------------------------------------------------------------------------


@check
def small_and_large_files_and_a_recording_arrive(ground: Ground) -> None:
    """A bundle, a file of three blocks, and a recording whose header is rewritten: with their content and times."""
    header, take = pattern(4096, 2), pattern(BLOCK_SIZE + 3 * MIB + 1, 3)
    contents = {b"small/%d" % number: pattern(number * 1_000, number) for number in range(40)}
    contents[b"large.mxf"] = THREE_BLOCKS
    make_tree(ground.source, {**dict(contents.items()), "empty": None})
    for number, path in enumerate(contents):
        os.utime(os.path.join(os.fsencode(ground.source), path), ns=(0, 1_600_000_000_123_456_789 + number * 10**9))
    contents[b"take.mov"] = header + take[4096:]
    with judged(ground, contents):
        with open(ground.source / "take.mov", "wb", buffering=0) as recorder:
            recorder.write(bytes(4096) + take[4096 : BLOCK_SIZE + MIB])
            running = ground.start("sync")
            wait_until(lambda: any(size >= BLOCK_SIZE for path, size in ground.partials().items() if b"take" in path))
            recorder.write(take[BLOCK_SIZE + MIB :])
            recorder.seek(0)
            recorder.write(header)
        done = complete(running)
    assert done.files("done")["large.mxf"]["strategy"] == "whole"
    assert done.files("done")["take.mov"]["strategy"] == "follow"
    assert done.summary["delivered"] == len(contents)
    assert (ground.behind / "empty").is_dir()
    for path in contents:
        source, there = (os.stat(os.path.join(os.fsencode(end), path)) for end in (ground.source, ground.behind))
        assert abs(source.st_mtime_ns - there.st_mtime_ns) < ground.resolution, path


@check
def what_has_arrived_is_not_copied_again(ground: Ground) -> None:
    """A second sync, which remembers nothing of the first, finds everything there, and touches none of it."""
    make_tree(ground.source, {"folder/a": b"a", "folder/empty": b"", "b": b"b", "large": 2 * MIB})

    def touched() -> dict[bytes, tuple[int, int]]:
        statuses = {path: os.stat(os.path.join(os.fsencode(ground.behind), path)) for path in ground.finished()}
        return {path: (status.st_ino, status.st_ctime_ns) for path, status in statuses.items()}

    complete(ground.start("sync"))
    before = touched()
    ground.state = ground.root / "another state"
    done = complete(ground.start("sync"))
    assert (done.summary["already"], done.summary["delivered"], done.summary["bytes"]) == (4, 0, 0)
    assert touched() == before


# --- what is replaced -------------------------------------------------------------------------------------------------


@check
def an_older_file_that_somebody_reads_is_replaced_and_never_lost(ground: Ground) -> None:
    """
    The old file or the new one is there at any moment, and in the end the new one, also when the reader has closed.

    On CIFS a rename over a file that is open fails, and then the file is deleted when it is closed.
    """
    old, new = b"the old version", b"the new version, which is longer"
    there = ground.behind / "file"
    there.write_bytes(old)
    (ground.source / "file").write_bytes(new)
    fd = os.open(there, os.O_PATH)  # on the server, and nobody is kept from anything by it

    def both_are_lost() -> bool:
        has_a_name = os.fstat(fd).st_nlink > 0
        try:
            return there.read_bytes() not in (old, new)
        except FileNotFoundError:  # moved aside for a moment: the best that CIFS can do
            return not (has_a_name and ground.share.name == "cifs")

    try:
        with never(both_are_lost, 0.01):
            with open(ground.dest / "file", "rb", buffering=0) as reader:
                assert reader.read(3) == b"the"
                complete(ground.start("sync", "--if-exists", "overwrite"))
                assert ground.finished()[b"file"] == new
            ground.share.unmount()  # only then everything is closed, also what the client had put off
            ground.share.mount()
    finally:
        os.close(fd)
    assert ground.finished() == {b"file": new}


# --- what goes wrong --------------------------------------------------------------------------------------------------


@check
def a_server_that_dies_and_comes_back_is_waited_for(ground: Ground) -> None:
    """In the middle of a copy, and for seconds: no file fails, everything arrives, and nothing wrong in between."""
    contents = {b"large": THREE_BLOCKS, b"another": pattern(3 * MIB, 5), b"small": b"small"}
    make_tree(ground.source, dict(contents.items()))
    with judged(ground, contents):
        running = ground.start("sync", *SLOWLY)
        ground.wait_for_bytes()
        with ground.share.away():
            if ground.share.is_patient:
                time.sleep(3.5)
                assert running.process.poll() is None
            else:
                running.wait_for(_waits_for_destination)
        complete(running)


def _waits_for_destination(line: dict[str, Any]) -> bool:
    return line.get("state") == "waiting" and line["reason"].startswith("destination")


@check
def an_agent_ends_while_its_server_is_away(ground: Ground) -> None:
    """Operations that do not come back hold up nobody, and spoil nothing when the server is back."""
    contents = {b"large": THREE_BLOCKS, b"another": pattern(3 * MIB, 5)}
    make_tree(ground.source, dict(contents.items()))
    with judged(ground, contents):
        running = ground.start("sync", *SLOWLY)
        ground.wait_for_bytes()
        with ground.share.away():
            assert running.end().code == 143
        complete(ground.start("sync"))


@check
def a_server_that_runs_full_is_waited_for(ground: Ground) -> None:
    """
    The reason is said, and the file is completed when there is room again, with all that the server had not taken.

    The clients take more than the server has room for, say so once, and then that all is well.
    """
    contents = {b"large": THREE_BLOCKS}
    make_tree(ground.source, dict(contents.items()))
    with judged(ground, contents):
        running = ground.start("sync", *SLOWLY)
        ground.wait_for_bytes()
        with ground.share.filled():
            waiting = running.wait_for_file("large", "waiting")
            assert waiting["reason"].startswith("space"), waiting
        complete(running)


@check
def a_byte_that_changes_on_the_server_before_it_is_verified_is_found(ground: Ground) -> None:
    """The read-back is of what the server has, not of what the client remembers."""
    contents = {b"large": THREE_BLOCKS}
    make_tree(ground.source, dict(contents.items()))
    with judged(ground, contents):
        running = ground.start("sync", *SLOWLY)
        ground.wait_for_bytes()
        ((partial, size),) = ground.partials().items()
        assert size < len(THREE_BLOCKS)
        with open(os.path.join(os.fsencode(ground.behind), partial), "r+b") as file:
            file.write(bytes([THREE_BLOCKS[0] ^ 1]))
        done = complete(running)
    assert done.summary["bytes"] >= len(THREE_BLOCKS) + BLOCK_SIZE


@check
def a_share_that_is_unmounted_under_a_watch_is_waited_for(ground: Ground) -> None:
    """Nothing goes into the folder below the mount point; when the share is back, what is new arrives there."""
    running = ground.start("watch")
    (ground.source / "first").write_bytes(b"first")
    running.wait_for_file("first", "done")
    assert ground.finished() == {b"first": b"first"}
    ground.share.unmount("--lazy")
    bare = ground.dest
    assert bare.is_dir()
    try:
        (ground.source / "second").write_bytes(b"second")
        waiting = running.wait_for_file("second", "waiting")
        assert waiting["reason"].startswith("destination"), waiting
        assert list(bare.iterdir()) == []
    finally:
        ground.share.mount()
    running.wait_for_file("second", "done")
    assert running.end().code == 0
    assert ground.finished() == {b"first": b"first", b"second": b"second"}
    ground.share.unmount()
    try:
        assert list(bare.iterdir()) == []
    finally:
        ground.share.mount()


# --- on disks with FAT ------------------------------------------------------------------------------------------------


@check
def of_names_that_are_one_on_fat_no_content_is_lost(ground: Ground) -> None:
    """By case, by dots at the end, and where one is the short name of another: in one run, and in two."""
    first: Tree = {"A.mov": b"1", "take": b"2", "long file name.mov": b"3", "a long folder/x.mov": b"4", "good": b"5"}
    second: Tree = {"a.mov": b"6", "take.": b"7", "LONGFI~1.MOV": b"8", "ALONGF~1/x.mov": b"9", "b:d": b"10"}
    everything = {*first.values(), *second.values()}
    for policy in ("overwrite", "rename"):
        for trees in ([first, second], [{**first, **second}]):
            for tree in trees:
                make_tree(ground.source, tree)
                done = ground.start("sync", "--on-success", "delete", "--if-exists", policy).end(0)
                failed = done.files("failed")
                assert done.code == (1 if failed else 0)
            assert "does not accept this name" in failed["b:d"]["error"]["hint"], failed
            there = ground.finished()
            assert b"good" in there
            left = {path.read_bytes() for path in ground.source.rglob("*") if path.is_file()}
            assert {*there.values(), *left} == everything, (policy, len(trees), there, left)
            for folder in (ground.source, ground.dest, ground.state):
                shutil.rmtree(folder)
            for folder in (ground.source, ground.dest):
                folder.mkdir()


@check
def times_that_fat_has_not_are_delivered_once(ground: Ground) -> None:
    """Before 1980, after 2107, and odd seconds: the second sync finds all of them there."""
    years = {"1970": 0, "1979": 315_500_000, "odd": 1_700_000_001, "2039": 2_180_000_000, "2200": 7_258_118_400}
    make_tree(ground.source, {name: name.encode() for name in years})
    for name, seconds in years.items():
        os.utime(ground.source / name, (seconds, seconds + 0.5))
    assert complete(ground.start("sync")).summary["delivered"] == len(years)
    done = complete(ground.start("sync"))
    assert (done.summary["delivered"], done.summary["already"]) == (0, len(years))


@check
def a_version_of_the_same_size_within_two_seconds_arrives(ground: Ground) -> None:
    """FAT keeps times in steps of two seconds: they do not tell the two apart."""
    running = ground.start("watch", "--if-exists", "overwrite")
    new_content = []
    for content, time_then in ((b"one", 1_700_000_000.0), (b"two", 1_700_000_001.5)):
        new = ground.root / "new"
        new_content.append(content)
        new.write_bytes(content)
        os.utime(new, (time_then, time_then))
        new.rename(ground.source / "file")
        wait_until(lambda: ground.finished() == {b"file": new_content[-1]})
    assert running.end().code == 0


FOR_DISKS = ("of-names-that-are-one", "times-that-fat", "a-version-of-the-same-size")
ON_SHARES = [name for name in CHECKS if not name.startswith(FOR_DISKS)]

# What is checked: the servers, their shares as they are mounted, and the checks on each.
PLAN = {
    "cifs": {"cifs": ON_SHARES},
    "disk": {
        "vfat": [
            name
            for name in CHECKS
            if name.startswith((*FOR_DISKS, "small-and-large", "what-has-arrived", "a-share-that-is-unmounted"))
        ],
    },
    "nfs": {
        "nfs4": ON_SHARES,
        # With the option "soft": errors instead of patience.
        "nfs3": [name for name in CHECKS if name.startswith(("small-and-large", "a-server-that"))],
    },
}
