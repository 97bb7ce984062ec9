"""
Movers that can also do what no mover should: die, hang, chatter, raise.

Operations that wait do so for a file: a test makes it when it has seen enough.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.operations import BOTH, DESTINATION, SOURCE, Operation
from trioft.movers.ops import main as mover
from trioft.movers.ops.slate import touch


def command() -> list[str]:
    """Return the command that runs this mover."""
    path = [*sys.path, os.path.dirname(os.path.abspath(__file__))]
    start = f"import sys; sys.path.extend({path!r}); import odd_mover, trioft.movers.ops.main; "
    return [sys.executable, "-I", "-S", "-c", f"{start}odd_mover.main({os.getpid()})"]


def changed(folder: Path, code: str) -> list[str]:
    """
    Return the command that runs a mover in which lines of *code* have changed an operation.

    They find the module ``mover``, and ``os`` and ``time``, and are written to a file in *folder*.
    """
    (folder / "changed_mover.py").write_text(f"import os, time\nfrom trioft.movers.ops import main as mover\n{code}\n")
    start = f"import sys; sys.path.extend({[*sys.path, str(folder)]!r}); import changed_mover, trioft.movers.ops.main; "
    return [sys.executable, "-I", "-S", "-c", f"{start}changed_mover.mover.main({os.getpid()})"]


_REFUSING = """
from collections.abc import Callable
from typing import Never
from trioft.core.errors import FileTrouble, Side, Trouble
from trioft.core.operations import BOTH, DESTINATION, SOURCE, Operation
from trioft.movers.ops.slate import touch
publish = mover.OPERATIONS["publish"]
def refused(*arguments):
    with open({log!r}, "a+") as log:
        log.write("x")
        log.seek(0)
        if len(log.read()) > {times}:
            return publish(*arguments)
    raise FileTrouble(Trouble("destination", "rename", b"file", {offset}, 16, "Device or resource busy"))
mover.OPERATIONS["publish"] = refused
"""


def refusing(folder: Path, log: Path, times: int, offset: int | None = None) -> list[str]:
    """Return the command that runs a mover which gives nothing its final name, so many *times*; *log* counts them."""
    return changed(folder, _REFUSING.format(log=str(log), times=times, offset=offset))


def main(parent: int) -> None:
    mover.does(WHO, who)
    mover.does(HOLD, hold)
    mover.does(HOLD_AT, hold_at)
    mover.does(DIE, die)
    mover.tells(COUNT, count)
    mover.does(ECHO, echo)
    mover.does(CHATTER, chatter)
    mover.does(STUMBLE, stumble)
    mover.does(REFUSE, refuse)
    mover.main(parent)


WHO: Operation[Never, int] = Operation("who", BOTH)
HOLD: Operation[Never, int, str] = Operation("hold", BOTH)
HOLD_AT: Operation[Never, int, str, list[Side]] = Operation("hold_at", BOTH)
DIE: Operation[Never, int, str, int] = Operation("die", BOTH)
COUNT: Operation[int, int, int, float, int] = Operation("count", BOTH)
ECHO: Operation[Never, Any, Any] = Operation("echo", BOTH)
CHATTER: Operation[Never, str] = Operation("chatter", BOTH)
STUMBLE: Operation[Never, None] = Operation("stumble", BOTH)
REFUSE: Operation[Never, None, Trouble] = Operation("refuse", BOTH)
# In the background.
WHO_BEHIND: Operation[Never, int] = Operation("who", BOTH, background=True)
HOLD_BEHIND: Operation[Never, int, str] = Operation("hold", BOTH, background=True)
ECHO_BEHIND: Operation[Never, Any, Any] = Operation("echo", BOTH, background=True)
REFUSE_BEHIND: Operation[Never, None, Trouble] = Operation("refuse", BOTH, background=True)
# At one end.
HOLD_AT_SOURCE: Operation[Never, int, str] = Operation("hold", SOURCE)
ECHO_AT_SOURCE: Operation[Never, Any, Any] = Operation("echo", SOURCE)
ECHO_AT_DESTINATION: Operation[Never, Any, Any] = Operation("echo", DESTINATION)


def who() -> int:
    """Return this process's id."""
    return os.getpid()


def hold(folder: str) -> int:
    """Say in *folder* that this process is busy, and return its id when there is a file ``go`` in it."""
    with open(os.path.join(folder, f"busy.{os.getpid()}"), "w"):
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.005)
    return os.getpid()


def hold_at(folder: str, sides: list[Side]) -> int:
    """The same, after each of *sides* was touched."""
    for side in sides:
        touch(side)
    return hold(folder)


def die(folder: str, times: int) -> int:
    """Die, as if killed, until that has happened so many *times*; then return how often."""
    died = len(os.listdir(folder))
    if died < times:
        with open(os.path.join(folder, str(died)), "x"):
            os.kill(os.getpid(), 9)
    return died


def count(upto: int, pause: float, silent_from: int, progress: Callable[[int], None]) -> int:
    """Tell the numbers up to *upto*, with pauses, but none from *silent_from* on."""
    for number in range(upto):
        time.sleep(pause)
        if number < silent_from:
            progress(number)
    return upto


def echo(value: Any) -> Any:
    return value


def chatter() -> str:
    """Write to standard output, as a careless library would."""
    os.write(1, b"nobody asked for this\n")
    return "answer"


def stumble() -> None:
    raise ZeroDivisionError("no operation should raise this")


def refuse(trouble: Trouble) -> None:
    raise FileTrouble(trouble)
