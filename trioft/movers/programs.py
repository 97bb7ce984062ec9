"""
Commands: programs of the user's that trioft runs. The gate looks at a copy, hooks are told what has come of a file.

Each runs in a session of its own, for a limited time, and is ended together with all that it has started. It inherits
nothing but its standard streams, and none of trioft's own variables: a token may be among them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

import trio

from trioft.config.options import Config
from trioft.core.errors import ConfigError, show_path
from trioft.core.units import format_duration
from trioft.movers import descriptors
from trioft.movers.ops.slate import make_memory_file
from trioft.movers.pool import Starts

# Variables that are trioft's own: tokens may be among them, and how it speaks to the service manager.
_OWN = ("TRIOFT_", "NOTIFY_", "WATCHDOG_")
# Bytes of a command's output that are kept, and how much of them is told.
_KEPT = 4096
_LINES = 5
_CHARACTERS = 500
# Seconds between two looks at what is written beyond that: it is thrown away, and costs no more than this.
_RESTING = 0.01
_DYING = 1.0  # seconds
_PIECE = 65536

# Programs that are loaded at a time. Threads of their own: one that lies on a dead mount keeps its, and the ledger, for
# one, needs threads too.
_starting = trio.CapacityLimiter(16)


def check_programs(config: Config) -> None:
    """Raise ``ConfigError`` if a program that is to be run is not there, before the first file needs it."""
    commands = {
        "copy.gate": config.copy.gate,
        "hooks.delivered": config.hooks.delivered,
        "hooks.failed": config.hooks.failed,
    }
    missing = [
        f"{key}: {show_path(os.fsencode(words[0]))} is not installed, or not executable"
        for key, words in commands.items()
        if words is not None and shutil.which(words[0]) is None
    ]
    if missing:
        raise ConfigError(missing, hint="install it, or give its full path")


def filled_in(words: Sequence[str], values: Mapping[str, bytes]) -> list[bytes]:
    """Return *words* with their placeholders, as ``{partial}``, replaced by *values*; once: a value is no pattern."""

    def value_of(match: re.Match[bytes]) -> bytes:
        return values.get(match[1].decode("ascii"), match[0])

    return [re.sub(rb"\{([a-z]+)\}", value_of, os.fsencode(word)) for word in words]


class Running:
    """A process, and all that it has started."""

    def __init__(self, words: Sequence[str | bytes], told: bytes) -> None:
        """Blocks until the program has been loaded. Raises ``OSError`` if it cannot be."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
        # A file, as a pipe would have to be filled while it is read, by somebody who may never read it.
        with os.fdopen(make_memory_file("trioft-told"), "r+b", 0) if told else open(os.devnull, "r+b", 0) as stdin:
            stdin.write(told)
            stdin.seek(0)
            self._process = subprocess.Popen(
                words,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
                env=environment,
            )
        descriptors.lower_for(self.pid)
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.kept = bytearray()  # of its output

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_held(self) -> bool:
        """Has it still not died, some time after it was killed?"""
        try:
            return os.waitpid(self.pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:
            return False

    async def ended(self) -> None:
        """Return when it has ended. It is not reaped: as long as it is not, its number is nobody else's."""
        while self._still_runs():
            try:
                fd = os.pidfd_open(self.pid)
            except (AttributeError, OSError):  # not Linux
                await trio.sleep(0.01)
                continue
            try:
                await trio.lowlevel.wait_readable(fd)
            finally:
                os.close(fd)

    def _still_runs(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    async def read(self) -> None:
        """Read what it writes, and keep the beginning. Ends when nobody can write any more."""
        while True:
            await trio.lowlevel.wait_readable(self.output)
            if not self.read_now():
                return
            if len(self.kept) == _KEPT:
                await trio.sleep(_RESTING)

    def read_now(self) -> bool:
        """Read what there is to be read at once; return whether there may be more some time."""
        with contextlib.suppress(BlockingIOError):
            piece = os.read(self.output, _PIECE)
            self.kept += piece[: _KEPT - len(self.kept)]
            return bool(piece)
        return True

    def kill(self) -> None:
        """Kill it, if it has not ended, and all that it has started in its session and left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> int | None:
        """Kill what is left of it, and return its exit code; None if it does not even die. Not cancelled."""
        self.kill()
        with trio.CancelScope(shield=True), trio.move_on_after(_DYING):
            await self.ended()
        self.read_now()
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._process.poll() is None:
            self._process.returncode = -signal.SIGKILL  # it will be, and nobody is to wait for it
            return None
        return self._process.returncode


async def run_command(
    words: Sequence[str | bytes],
    *,
    limit: float,
    left_behind: Callable[[Running], None],
    told: bytes = b"",
    starts: Starts | None = None,
) -> str | None:
    """
    Run a command, with *told* as its standard input, and return None if it ends with 0, else what happened, in words.

    Raises ``OSError`` if it cannot be started; where that is for want of processes, descriptors or memory, and *starts*
    is given, it is waited for instead. One that has not ended after *limit* seconds is killed; one that the
    kernel does not let die, as it waits for a dead mount, is given to *left_behind*. When cancelled, it is killed too.
    """
    process: Running | None = None
    code: int | None = None
    has_ended = False
    with trio.move_on_after(limit) as patience:
        while process is None:
            try:
                process = await _start(words, told)
            except OSError as error:
                if starts is None or error.errno not in descriptors.EXHAUSTED:
                    raise
                patience.deadline = math.inf
                await starts.pause(error)
                patience.deadline = trio.current_time() + limit
        if starts is not None:
            starts.succeeded()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.read)
                await process.ended()
                has_ended = True
                nursery.cancel_scope.cancel()
        finally:
            code = await process.end()
            if code is None:
                left_behind(process)
    program = show_path(os.path.basename(os.fsencode(words[0])))
    if code == 0 and has_ended:
        return None
    if not has_ended:
        text = f"{program} gave no answer in {format_duration(limit)}"
    elif code is not None and code < 0:
        text = f"{program} was killed by {_name_of(-code)}"
    else:
        text = f"{program} ended with {code}"
    output = _first_lines(bytes(process.kept)) if process is not None else ""
    return f"{text}: {output}" if output else text


async def _start(words: Sequence[str | bytes], told: bytes) -> Running:
    """Start a command in a thread: its program may lie on a disk that does not answer, which holds nobody else up."""
    started: list[Running] = []
    is_over = False

    def start() -> None:
        started.append(Running(words, told))
        if is_over:
            started[0].kill()

    try:
        await trio.to_thread.run_sync(start, abandon_on_cancel=True, limiter=_starting)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "there are too many processes") from error  # no thread could be started
    except trio.Cancelled:
        is_over = True
        for process in started:
            process.kill()
        raise
    return started[0]


def _first_lines(output: bytes) -> str:
    """Return the first lines that say anything, as far as a person wants to read them, and a terminal can show them."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    text = " / ".join(map(show_path, lines[:_LINES]))
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
