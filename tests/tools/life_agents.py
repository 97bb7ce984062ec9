"""
Agents for ``lives``: each is a fork of this process that does a whole sync, with movers that are forks of it.

Real functions work on real folders, and whoever is killed is killed by SIGKILL. What is made up: blocks are small, an
agent may stand on another machine, capitals may make no difference at the destination, and the devices of files may
have other numbers. Where a ``Point`` says so, a mover stops in the middle of an operation, and the world goes on.

This module has to be imported before anything of trioft that copies: it makes the blocks small.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pickle
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trioft.core import model

BLOCK = 4096
model.BLOCK_SIZE, model.SPAN_SIZE, model.BUNDLE_FILE_SIZE = BLOCK, 2 * BLOCK, 1500
model.Checkpoint.is_coherent.__defaults__ = (BLOCK,)

import attrs  # noqa: E402
import trio  # noqa: E402 - what is below takes the size of a block from the model

from trioft.agent import agent as composition  # noqa: E402
from trioft.agent import job  # noqa: E402
from trioft.cli import clean as cleaning  # noqa: E402
from trioft.config.file import load_config  # noqa: E402
from trioft.core.answers import BUSY, UNKNOWN  # noqa: E402
from trioft.core.bugs import MoverBug, name_bug, tell_bug  # noqa: E402
from trioft.core.errors import FileTrouble, Side, Trouble, meaning_of  # noqa: E402
from trioft.movers.ops import files, identity, linux, slate, writers  # noqa: E402
from trioft.movers.ops import main as mover  # noqa: E402
from trioft.movers.pool import MoverDied, Stuck  # noqa: E402
from trioft.pipeline import claiming  # noqa: E402
from trioft.state import keeper, lock  # noqa: E402
from trioft.state.board import Board  # noqa: E402

# Calls at which a mover may stop, by what they take first: a name in a folder, or a descriptor.
NAMED = ("open", "stat", "mkdir", "rmdir", "unlink", "rename", "utime", "link")
OPENED = ("pwrite", "write", "ftruncate", "fchmod", "fsync", "fdatasync", "preadv", "posix_fadvise")
COMMIT = "commit"  # stands for an operation: the ledger's

_real = {name: getattr(os, name) for name in (*NAMED, *OPENED, "readlink", "listdir", "read", "write")}


_CONFIG = load_config(None, {})


class Point(NamedTuple):
    """Where an agent stops: before, in the middle of or after the *nth* call of a kind in operations of a name."""

    operation: str
    call: str  # empty: any
    nth: int
    when: str  # before, half, after


class Errand(NamedTuple):
    """What an agent is to do, and where."""

    source: str
    dest: str
    state: str
    archive: str
    options: dict[str, dict[str, object]]
    machine: str = ""  # empty: this one
    share: bool = False  # the source is a share that other machines have, too
    folds: bool = False  # the destination takes names that differ in capitals for one
    shift: int = 0  # is added to the numbers of devices
    accept: bool = False  # other filesystems than before are meant
    blind: bool = False  # nobody can tell whether a source has a writer
    seed: int = 0
    points: tuple[Point, ...] = ()


class Stop(NamedTuple):
    """An agent stands at a point."""

    point: int  # which one
    checked: bool  # delivered copies have been looked at for the last time, and what was looked at is not removed yet
    operation: str
    mover: int  # its process; 0: it is the agent itself
    doing: str
    leased: bool  # it may hold a lease: who opens that file would wait for as long as it stops


class Ended(NamedTuple):
    """An agent has ended by itself."""

    code: int
    said: list[str]
    bugs: list[str]


class Agent:
    """An agent, seen from outside: ``go_on`` until it has ended, or is killed."""

    def __init__(self, errand: Errand, foreign: Sequence[int] = ()) -> None:
        """*foreign* descriptors are those of others, and it has none of them."""
        self.errand = errand
        self.has_ended = False
        ours, answers = os.pipe()
        orders, self._orders = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                linux.die_with_parent(parent)
                os.close(ours)
                os.close(self._orders)
                for fd in foreign:
                    os.close(fd)
                code = _work(errand, orders, answers)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(orders)
        os.close(answers)
        self._answers = open(ours, "rb")  # noqa: SIM115 - closed with the agent
        self.mover = 0

    def go_on(self, order: bytes = b"") -> Stop | Ended:
        """Let it work until it stops or ends; *order* is for one that has stopped."""
        if order:
            os.write(self._orders, order)
        line = self._answers.readline()
        if not line:
            self.close()
            return Ended(70, [], ["the agent ended without a word"])
        kind, fields = json.loads(line)
        if kind == "stop":
            stop = Stop(*fields)
            self.mover = stop.mover
            return stop
        self.close()
        return Ended(*fields)

    def kill_mover(self) -> Stop | Ended:
        """Kill the mover that has stopped, and go on."""
        if not self.mover:
            return self.go_on(b"g")
        os.kill(self.mover, signal.SIGKILL)
        return self.go_on()

    def kill(self) -> None:
        """Kill it, and its movers with it."""
        os.kill(self.pid, signal.SIGSTOP)  # it is not to see how its mover ends
        if self.mover:
            os.kill(self.mover, signal.SIGKILL)
            with contextlib.suppress(OSError):
                while b"Z" not in _state_of(self.mover):
                    pass
        os.kill(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self.has_ended = True
        self._answers.close()
        os.close(self._orders)
        os.waitpid(self.pid, 0)


def _state_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0]


# --- inside of it ----------------------------------------------------------------------------------------------------


def _work(errand: Errand, orders: int, answers: int) -> int:
    """Be the agent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    writers.prepare_leases()
    trio._core._run._r = random.Random(errand.seed)
    world = _World(errand, orders, answers)
    world.install()
    config = _CONFIG  # this process has its own
    for group, options in _options(errand).items():
        its = getattr(config, group)
        kinds = {field.name: field.metadata["kind"] for field in attrs.fields(type(its))}
        setattr(config, group, attrs.evolve(its, **{name: kinds[name].read(options[name]) for name in options}))
    accept = tuple(Side) if errand.accept else ()
    config.copy = attrs.evolve(config.copy, checkpoint_size=BLOCK)
    boards: list[Board] = []
    said: list[str] = []
    bugs: list[str] = []

    async def run() -> object:
        board = Board()
        board.notices.append(lambda what, text: said.append(f"{what}: {text}"))
        board.listeners.append(lambda entry: said.append(f"{entry.path!r}: {entry.state}: {entry.reason}"))
        boards.append(board)
        return await composition.run_agent(config, board, once=True, state_dir=errand.state, accept_new=accept)

    try:
        trio.run(run)
        code = 1 if boards[0].totals.failed else 4 if boards[0].totals.busy else 0
    except BaseException as error:
        meaning = meaning_of(error)
        code = 70 if meaning is None else meaning.exit_code
        said.append(str(meaning))
        if meaning is None:
            bugs += [name_bug(error), *tell_bug(error)]
    bugs += [text for text in said if text.startswith("bug: ")]
    os.write(answers, json.dumps(["end", [code, said, bugs]]).encode() + b"\n")
    return 0


def _options(errand: Errand) -> dict[str, dict[str, object]]:
    own: dict[str, dict[str, object]] = {
        "source": {"path": errand.source, "settle": "0s", "settle_closed": "0s"},
        "destination": {"path": errand.dest},
        "copy": {"checkpoint_time": "1ms", "transfers": 1, "movers": 1},
        "growing": {"mode": "wait"},
        "retry": {"retries": 1, "first": "1ms", "longest": "1ms"},
    }
    for group, options in errand.options.items():
        own.setdefault(group, {}).update(options)
    return own


class _World:
    """What an agent finds instead of the system: its calls, counted, and perhaps bent."""

    def __init__(self, errand: Errand, orders: int, answers: int) -> None:
        self._errand, self._orders, self._answers = errand, orders, answers
        self._left = dict(enumerate(errand.points))
        self._counts = dict.fromkeys(self._left, 0)
        self._operation, self._is_mover = "", False
        self._checked = self._leased = False
        self._dest = os.fsencode(errand.dest)

    # --- stopping

    def _stop(self, number: int, doing: str) -> None:
        del self._left[number]
        pid = os.getpid() if self._is_mover else 0
        checked = self._checked or self._operation in ("are_sealed", "remove_sources")
        line = json.dumps(["stop", Stop(number, checked, self._operation, pid, doing, self._leased)])
        _real["write"](self._answers, line.encode() + b"\n")
        if not _real["read"](self._orders, 1):
            os._exit(0)

    def _due(self, call: str) -> tuple[int, str] | None:
        """Count a call; return at which point it is, if it is at one, and when it stops."""
        due = None
        for number, point in self._left.items():
            if point.operation in ("", self._operation) and point.call in ("", call):
                self._counts[number] += 1
                if self._counts[number] == point.nth and due is None:
                    due = number, point.when
        return due

    def _around(self, call: str, doing: str, real: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        if not self._operation or (due := self._due(call)) is None:
            return real()
        number, when = due
        if when == "half" and half is not None:
            value = half()
            self._stop(number, f"{doing}, half of it done")
            return value
        if when != "after":
            self._stop(number, f"before {doing}")
            return real()
        value = real()
        self._stop(number, f"after {doing}")
        return value

    # --- calls

    def install(self) -> None:
        for name in NAMED:
            setattr(os, name, self._named(name, _real[name]))
        for name in OPENED:
            setattr(os, name, self._opened(name, _real[name]))
        renameat2, openat2, control = linux.renameat2, linux.openat2, fcntl.fcntl

        def controlling(fd: int, call: int, what: Any = 0) -> Any:
            value = control(fd, call, what)
            if call == fcntl.F_SETLEASE:
                self._leased = what != fcntl.F_UNLCK
            return value

        vars(fcntl)["fcntl"] = controlling

        def renaming(old: bytes, new: bytes, dir_fd: int, flags: int, new_dir_fd: int | None = None) -> None:
            there = dir_fd if new_dir_fd is None else new_dir_fd
            names = self._folded(old, dir_fd), self._folded(new, there)
            self._around(
                "rename", f"rename {old!r} to {new!r}", lambda: renameat2(*names[:1], names[1], dir_fd, flags, there)
            )

        def opening(path: bytes, flags: int, dir_fd: int, resolve: int) -> int:
            return openat2(self._folded(path, dir_fd), flags, dir_fd, resolve)

        linux.renameat2, linux.openat2 = renaming, opening
        errand = self._errand
        if errand.machine:
            claiming._line_of = lambda path: f"{errand.machine}:{path}"
            claiming._pid_namespace = lambda: f"pid:[{errand.machine}]"
            vars(claiming)["socket"] = _Named(errand.machine)
            bind = lock._bind
            lock._bind = lambda name: bind(name + errand.machine)
        if errand.share:
            claiming._source_of = lambda pair, identity: b"share\0" + errand.source.encode()
        if errand.blind:
            ask = writers.ask_lease
            writers.ask_lease = lambda fd, device: _only_if_busy(ask(fd, device))
        if errand.shift:
            real = files.fingerprint_of

            def shifted(status: os.stat_result) -> model.Fingerprint:
                its = real(status)
                return its._replace(dev=its.dev + errand.shift)

            for module in [*sys.modules.values()]:
                if getattr(module, "fingerprint_of", None) is real:
                    module.fingerprint_of = shifted  # type: ignore[attr-defined]
        trio.to_thread.run_sync = _inline  # type: ignore[assignment]
        commit = keeper._commit

        def committing(ledger: Any, batch: Any) -> None:
            self._operation = COMMIT
            try:
                self._around(COMMIT, "commit", lambda: commit(ledger, batch))
            finally:
                self._operation = ""

        keeper._commit = committing
        vars(job)["Movers"] = functools.partial(_Movers, self)

    def _named(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def work(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._operation:
                return real(path, *args, **kwargs)
            if self._errand.folds:
                path = self._folded(path, kwargs.get("dir_fd", kwargs.get("src_dir_fd")))
                if call in ("rename", "link"):
                    args = (self._folded(args[0], kwargs.get("dst_dir_fd")), *args[1:])
            return self._around(call, f"{call} {path!r} {args!r}", lambda: real(path, *args, **kwargs))

        return work

    def _opened(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def work(fd: int, *args: Any, **kwargs: Any) -> Any:
            half = None
            if call == "pwrite":
                half = lambda: real(fd, args[0][: len(args[0]) // 2 or 1], args[1])  # noqa: E731
            return self._around(call, call, lambda: real(fd, *args, **kwargs), half)

        return work

    # --- names that fold

    def _folded(self, path: Any, dir_fd: int | None) -> Any:
        """Return what *path* is really called, where capitals make no difference."""
        if not self._errand.folds or dir_fd is None or not isinstance(path, bytes):
            return path
        try:
            at = os.fsencode(_real["readlink"](f"/proc/self/fd/{int(dir_fd)}"))
        except OSError:
            return path
        if at != self._dest and not at.startswith(self._dest + b"/"):
            return path
        real = []
        for part in path.split(b"/"):
            name = part
            with contextlib.suppress(OSError):
                name = real_name(at, part)
            real.append(name)
            at = os.path.join(at, name)
        return b"/".join(real)

    # --- operations

    def carry_out(self, name: str, arguments: tuple[object, ...], tell: Callable[[Any], None] | None) -> object:
        """Have an operation done; by a process of its own, if it may be stopped in the middle."""
        try:
            if any(point.operation in ("", name) for point in self._left.values()):
                return self._by_another(name, arguments, tell)
            return self._do(name, arguments, tell)
        finally:
            if name == "are_sealed":
                self._checked = True
            elif name == "remove_sources":
                self._checked = False

    def _do(self, name: str, arguments: tuple[object, ...], tell: Callable[[Any], None] | None) -> object:
        if name in mover.TELLING:
            arguments = (*arguments, tell or (lambda _: None))
        slate.clear()
        identity.begin_operation()
        self._operation, self._leased = name, False
        try:
            return mover.OPERATIONS[name](*arguments)
        finally:
            self._operation = ""

    def _by_another(self, name: str, arguments: tuple[object, ...], tell: Callable[[Any], None] | None) -> object:
        ours, theirs = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            linux.die_with_parent(parent)
            os.close(ours)
            self._is_mover = True
            with open(theirs, "wb") as out:
                try:
                    value = self._do(name, arguments, lambda value: _put(out, ("progress", value)))
                    answer: tuple[str, object] = ("done", (value, self._left, self._counts))
                except FileTrouble as error:
                    answer = ("trouble", (error.trouble, self._left, self._counts))
                except BaseException:
                    answer = ("bug", traceback.format_exc())
                _put(out, answer)
            os._exit(0)
        os.close(theirs)
        points = {*self._left}
        try:
            with open(ours, "rb") as answers:
                while True:
                    try:
                        kind, value = pickle.load(answers)
                    except EOFError:
                        break
                    if kind == "progress":
                        if tell is not None:
                            tell(value)
                    elif kind == "bug":
                        raise MoverBug(name, value)
                    else:
                        value, self._left, self._counts = value
                        if kind == "trouble":
                            raise FileTrouble(value)
                        return value
        finally:
            os.waitpid(pid, 0)
        # It was killed at the one point at which it may have stopped last: that is over, too.
        for number in points:
            if self._left[number].operation in ("", name):
                del self._left[number]
                break
        raise MoverDied("killed")


def _put(out: Any, value: object) -> None:
    pickle.dump(value, out)
    out.flush()


def _only_if_busy(answer: str) -> str:
    return answer if answer == BUSY else UNKNOWN


class _Named:
    """Stands for the module ``socket``, on a machine with another name."""

    def __init__(self, host: str) -> None:
        self._host = host

    def gethostname(self) -> str:
        return self._host


async def _inline(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return function(*args)


class _Movers:
    """Stands for ``Movers``: what is asked for is done at once, and nothing else meanwhile."""

    def __init__(
        self,
        world: _World,
        limit: int,
        stall_timeout: float,
        command: Sequence[str] | None = None,
        stuck: Stuck | None = None,
        starts: object = None,
    ) -> None:
        self._world = world
        self.stall_timeout, self.replaced, self.alive = stall_timeout, 0, 0
        self.stuck = stuck or Stuck()

    async def __aenter__(self) -> _Movers:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def warm_up(self, count: int) -> None:
        """There is nothing to start."""

    async def call(
        self, operation: Any, *arguments: object, tell: Callable[[Any], None] | None = None, owner: object = ()
    ) -> object:
        await trio.lowlevel.checkpoint()
        for _ in range(2):
            try:
                return self._world.carry_out(operation.name, arguments, tell)
            except MoverDied:
                self.replaced += 1
        text = "the process that did this died, twice"
        raise FileTrouble(Trouble(operation.sides[-1], operation.name, b"", None, None, text))


def real_name(folder: bytes, name: bytes) -> bytes:
    """Return what is called *name*, or the same in other capitals, in *folder*; *name*, if nothing is."""
    names = _real["listdir"](folder)
    if name in names:
        return name
    wanted = _folded(name)
    return next((its for its in names if _folded(its) == wanted), name)


def _folded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape").upper()


def clean(dest: str, state: str) -> None:
    """Have ``trioft clean`` remove what is older than a day."""
    pid = os.fork()
    if not pid:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            errand = Errand("", dest, state, "", {})
            world = _World(errand, -1, -1)
            world.install()
            vars(cleaning)["Movers"] = functools.partial(_Movers, world)
            cleaning.run_clean(dest, (), state, remove=True, older_than="1d", as_json=False)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
