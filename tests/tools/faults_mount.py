"""
``faultfs``, mounted: for tests that need a destination in which anything can go wrong.

The tests look at the folder that is shown there (``backing``), never at the mount: whoever touches a mount that does
not answer cannot even be killed. At the end the process behind the mount is killed, which sets free all that wait for
it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

_PROGRAM = Path(__file__).with_name("faultfs.py")
_PATIENCE = 30.0  # seconds for an answer


class FaultMount:
    """A ``faultfs`` on a folder, and what it can be asked for: see ``faultfs.Control``."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self._options = options
        self.backing, self.place = root / "backing", root / "mount"
        self._socket = str(root / "socket")
        self._lines: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._talk = root / "talk"

    def start(self) -> None:
        """Mount it. Skips the test where that is not possible."""
        with open(self._talk, "ab") as talk:
            self._process = subprocess.Popen(
                [sys.executable, _PROGRAM, self.backing, self.place, self._socket, *self._options],
                stdin=subprocess.PIPE,
                stderr=talk,
            )
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None:
                pytest.skip(f"no FUSE: {self._talk.read_text().strip()[-500:]}")
            assert time.monotonic() < end, "it was not mounted"
            time.sleep(0.01)
        # An ordinary folder would do everything right, and fill the disk.
        assert os.stat(self.place).st_dev != os.stat(self.root).st_dev

    def _answers(self) -> bool:
        try:
            self.ask("status")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def kill(self) -> None:
        """End it, as when a server goes for good: all that waits for it gets an error."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.wait(_PATIENCE)
            self._process.stdin.close()
            self._process = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._socket)

    def unmount(self) -> None:
        for command in (["umount", "-l"], ["fusermount3", "-u", "-z"]):
            if is_mounted(self.place):
                with contextlib.suppress(FileNotFoundError):
                    subprocess.run([*command, self.place], capture_output=True, timeout=20, check=False)
        assert not is_mounted(self.place)

    def ask(self, do: str, **fields: Any) -> Any:
        """Have something done, at once, and return the answer."""
        if self._lines is None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_PATIENCE)
                connection.connect(self._socket)
                self._lines = connection.makefile("rwb")
        self._lines.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        self._lines.flush()
        return _result(json.loads(self._lines.readline()))

    async def wait(self, seconds: float = _PATIENCE, **wanted: int) -> dict[str, Any]:
        """Return the status as soon as it has these values, or more."""
        with trio.fail_after(seconds):
            async with await trio.open_unix_socket(self._socket) as stream:
                await stream.send_all(json.dumps({"do": "wait", **wanted}).encode() + b"\n")
                answer = b""
                while not answer.endswith(b"\n"):
                    piece = await stream.receive_some()
                    assert piece, "the filesystem has ended"
                    answer += piece
        status: dict[str, Any] = _result(json.loads(answer))
        return status

    def begin(self) -> None:
        """Nothing goes wrong, nothing has been counted, and whatever a test has put there is durable."""
        self.ask("begin")

    def fail(self, op: str, glob: str = "*", **rule: Any) -> int:
        """Let something go wrong: see ``faultfs_rules``."""
        number: int = self.ask("add", op=op, glob=glob, **rule)
        return number


def _result(answer: dict[str, Any]) -> Any:
    assert "error" not in answer, answer["error"]
    return answer["ok"]


def why_not() -> str | None:
    """Say why no such filesystem can be mounted here, or None if one can."""
    if importlib.util.find_spec("pyfuse3") is None:
        return "pyfuse3 is not installed (the extra test-fuse)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there, or not ours to use"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    return None


@contextlib.contextmanager
def fault_mount(*options: str) -> Iterator[FaultMount]:
    """Mount a ``faultfs`` over an empty folder while inside. Skips the test where that is not possible."""
    if reason := why_not():
        pytest.skip(f"no FUSE: {reason}")
    with tempfile.TemporaryDirectory(prefix="trioft-fuse-") as root, contextlib.ExitStack() as stack:
        mount = FaultMount(Path(root), *options)
        mount.backing.mkdir()
        mount.place.mkdir()
        stack.callback(_end, mount)
        mount.start()
        yield mount


def _end(mount: FaultMount) -> None:
    mount.kill()
    mount.unmount()
    talk = (mount.root / "talk").read_text()
    assert "Traceback" not in talk, talk


def is_mounted(place: Path) -> bool:
    """Ask the kernel's table: asking the mount itself may take for ever."""
    with open("/proc/self/mountinfo", "rb") as table:
        return any(line.split(b" ")[4] == os.fsencode(place) for line in table)
