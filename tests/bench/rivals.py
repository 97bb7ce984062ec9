"""The commands that are compared: trioft, and the tools that people use instead, where they are installed."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import trio
from workbench import TRIOFT, Bench, CannotRun, remove

from trioft import __version__

READBACK, TRANSFER = "trioft", "trioft --verify transfer"
CP, RSYNC, RSYNC_FSYNC, RCLONE = "cp -r; sync", "rsync -a", "rsync -a --fsync", "rclone copy"
RCLONE_8 = "rclone copy --transfers 8"

Command = Callable[[Path, Path], list[str]]  # how to copy what is in one folder into another


def command_of(bench: Bench, tool: str) -> Command:
    """Return it; raises ``CannotRun`` where *tool* is not installed."""
    if tool in (READBACK, TRANSFER):
        return functools.partial(_trioft, bench.place / "state", "readback" if tool == READBACK else "transfer")
    if tool == CP:
        script = 'cp -r "$1/." "$2" && sync -f "$2"'
        return lambda source, destination: ["sh", "-c", script, "sh", str(source), str(destination)]
    program, *options = tool.split()
    if not shutil.which(program) or ("--fsync" in options and "--fsync" not in _output("rsync", "--help")):
        raise CannotRun(f"no {tool} here")
    if program == "rsync":
        return lambda source, destination: [program, *options, f"{source}/", str(destination)]
    return lambda source, destination: [program, *options, "-q", str(source), str(destination)]


def present(bench: Bench, *tools: str) -> dict[str, Command]:
    """Return those of *tools* that are installed."""
    found = {}
    for tool in tools:
        try:
            found[tool] = command_of(bench, tool)
        except CannotRun:
            continue
    return found


def _trioft(state: Path, level: str, source: Path, destination: Path) -> list[str]:
    remove(state)  # it knows nothing
    ends = [str(source), str(destination), "--state-dir", str(state)]
    return [*TRIOFT, "sync", *ends, "--verify", level, "--settle", "100ms", "-q"]


def versions() -> list[str]:
    """Say what is compared."""
    lines = [f"trioft {__version__}, Python {platform.python_version()}, Trio {trio.__version__}"]
    lines += [
        " ".join(_output(tool, "--version").split("\n")[0].split()) for tool in ("cp", "rsync", "rclone", "lsyncd")
    ]
    return [line.replace("Version:", "lsyncd") for line in lines if line]


def _output(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
