"""A world for the scanner: a source that exists in a class only, on a clock that jumps."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from support import as_call, found
from trioft.config.options import Config, Source
from trioft.core import answers
from trioft.core.answers import Folder, Listing, Look, Probed
from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.folding import Naming
from trioft.core.model import Ends, FileState, Found, Identity, Job, Manner, Root
from trioft.movers import client
from trioft.movers.events import Changes
from trioft.pipeline.backlog import Backlog
from trioft.pipeline.scanner import Scanner
from trioft.pipeline.storage import Storage
from trioft.state.board import Board
from trioft.state.ledger import Known, Port

S = FileState
ENDS = Ends(Root(b"/in", 1), Root(b"/out", 2))
HERE = Identity("ext4", "/dev/sda1", "", b"/", b"/")
PROBED = Probed(ENDS.destination, HERE, 10**15, 10**15, 1, True)
NEW = time.time() + 10**6  # a modification time that no clock calls old


class NoLedger(Port):
    """Answers what the ledger would; writes nothing, and needs no thread."""

    def __init__(self, known: dict[bytes, Known]) -> None:
        self.known = known
        self.asked: list[tuple[float, object]] = []  # when, and about what

    def __exit__(self, *_: object) -> None:
        pass

    async def call(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append((trio.current_time(), args[0]))
        return dict(self.known)


class World:
    """A source that exists in this class only, a scanner on it, and a copier for each lane that says what it got."""

    def __init__(self, *, once: bool = False, room: int = 4, growing_room: int = 4, **groups: Any) -> None:
        self.config = Config(**groups)
        self.board = Board()
        self.told: list[str] = []
        self.heard: list[tuple[bytes, str, str | None]] = []
        self.board.notices.append(lambda what, text: self.told.append(text))
        self.board.listeners.append(lambda entry: self.heard.append((entry.path, str(entry.state), entry.reason)))
        self.backlog = Backlog(self.board)
        self.storage = Storage(ENDS, dict.fromkeys(Side), self.config, self.board)
        self.changes = Changes(self.backlog.wake)
        self.known: dict[bytes, Known] = {}
        self.ledger = NoLedger(self.known)
        self.files: dict[bytes, Found] = {}
        self.writer: dict[bytes, str] = {}  # CLOSED where nothing is said
        self.listing = Listing([], [], [], [], [], [], [], [], 0.0)  # what every scan tells beside the files
        self.unchanged: list[bytes] = []  # folders of the last scan in which nothing had changed
        self.troubles: list[Trouble] = []  # of the next calls
        self.calls: list[tuple[float, str, Any]] = []
        self.jobs: list[tuple[float, list[bytes], bool]] = []
        self.followed: list[tuple[float, bytes]] = []  # handed out in the lane of those that grow
        self.names: dict[tuple[int, int], bytes] = {}  # what files that have another name by now are called
        self.begun = trio.current_time()
        self.send, self.receive = trio.open_memory_channel[Job](room)
        self.send_growing, self.receive_growing = trio.open_memory_channel[Job](growing_room)
        self.scanner = Scanner(
            config=self.config,
            once=once,
            only=None,
            own=(),
            board=self.board,
            backlog=self.backlog,
            storage=self.storage,
            ledger=self.ledger,
            source=client.Source(as_call(self.call), lambda: self.storage.ends),
            destination=client.Destination(as_call(self.call), lambda: self.storage.ends),
            manner=Manner("readback", "overwrite", False, 1, True),
            changes=self.changes,
        )

    @property
    def now(self) -> float:
        return trio.current_time() - self.begun

    async def call(
        self,
        operation: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        about = arguments[2 if operation.name == "make_folders" else 1]
        self.calls.append((self.now, operation.name, about))
        await trio.lowlevel.checkpoint()
        if self.troubles:
            raise FileTrouble(self.troubles.pop(0))
        if operation.name in ("scan", "compare"):
            folders = arguments[1]
            read = [
                Folder(folder, [file for path, file in self.files.items() if path.rpartition(b"/")[0] == folder])
                for folder in folders
            ]
            stamps = arguments[2]
            if stamps is not None:
                read = [folder._replace(stamp=repr(folder.files).encode()) for folder in read]
                self.unchanged = [folder.path for folder in read if stamps.get(folder.path) == folder.stamp]
                read = [folder for folder in read if folder.path not in self.unchanged]
            return self.listing._replace(folders=read, unchanged=self.unchanged)
        if operation.name == "make_folders":
            return []
        if operation.name == "locate":
            return self.names.get(arguments[2])
        assert operation.name == "look"
        return [self.look(path) for path in arguments[1]]

    def answer_by(self, call: Any) -> None:
        """Have another one answer what the scanner asks movers."""
        source = client.Source(as_call(call), lambda: self.storage.ends)
        destination = client.Destination(as_call(call), lambda: self.storage.ends)
        self.scanner.source = self.scanner._walk.source = source
        self.scanner.destination = self.scanner._walk.destination = destination

    def look(self, path: bytes) -> Look:
        if path not in self.files:
            below = any(name.startswith(path + b"/") for name in self.files)
            return Look(path, "folder" if below else "gone")
        return Look(path, "file", self.files[path], self.writer.get(path, answers.CLOSED))

    def put(self, path: bytes, size: int = 1, *, mtime: float = NEW, writer: str = answers.CLOSED) -> None:
        """The file is there, in a version that nobody has seen before."""
        self.files[path] = found(path, size, mtime=mtime, version=len(self.heard) + len(self.calls) + 1)
        self.writer[path] = writer

    async def copy(self) -> None:
        """Take every job, and deliver its files at once."""
        async for job in self.receive:
            assert not job.growing
            self.jobs.append((self.now, [item.path for item in job.items], all(item.settled for item in job.items)))
            self.deliver(job, S.READY)

    async def follow(self) -> None:
        """Take every job in the lane of the files that grow, and deliver them at once."""
        async for job in self.receive_growing:
            assert job.growing
            (item,) = job.items
            self.followed.append((self.now, item.path))
            self.deliver(job, S.GROWING)

    def deliver(self, job: Job, state: FileState) -> None:
        for item in job.items:
            if (pending := self.backlog.find(item.id)) is not None and pending.entry.state == state:
                self.board.move(pending.entry, S.COPYING)
                size, mtime_ns = item.fingerprint[2:4]
                self.known[item.path] = Known("delivered", "", size, mtime_ns, item.fingerprint.ctime_ns)
                self.backlog.finished(pending, S.DONE)

    async def run(self, seconds: float = 10_000, *, then: Callable[[], Awaitable[None]] | None = None) -> float:
        """Run the scanner, for some time or to its end; return when it ended, or infinity."""
        ended = math.inf
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.copy)
                nursery.start_soon(self.follow)
                if then is not None:
                    nursery.start_soon(then)
                await self.scanner.run(self.send, self.send_growing)
                ended = self.now
                nursery.cancel_scope.cancel()
        return ended

    def scans(self) -> list[float]:
        return [when for when, operation, _ in self.calls if operation in ("scan", "compare")]

    def looks(self, path: bytes) -> list[float]:
        return [when for when, operation, paths in self.calls if operation == "look" and path in paths]


def source(**settings: Any) -> Source:
    return Source(**({"settle": 10.0, "settle_closed": 0.5, "scan_interval": 60.0} | settings))


EIO = Trouble(Side.DESTINATION, "open", b"folder", None, errno.EIO, "Input/output error")


async def probing(world: World, *, fails: int, side: Side = Side.DESTINATION) -> None:
    """Stand in for the agent: look after the ends; the first probes of one *side* fail."""
    failed = 0

    async def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal failed
        if operation.name == "find_view":
            return None
        if operation.name == "find_naming":
            return Naming()
        if (operation.name == "probe_source") == (side == Side.SOURCE) and failed < fails:
            failed += 1
            raise FileTrouble(EIO._replace(side=side))
        return (ENDS.source, HERE) if operation.name == "probe_source" else PROBED

    await world.storage.run(as_call(call), world.backlog.offer_again)
