"""A real OpenSSH server on the loopback interface, which can die and come back, and an sshfs mount of it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import wait_until

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
"""
# One that does not answer for two seconds is gone; one that has gone is asked for again.
OPTIONS = "reconnect,ServerAliveInterval=1,ServerAliveCountMax=2,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class SshServer:
    """One sshd with keys and a port of its own; all its files are in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        for key in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True, timeout=30)
        # sshd starts itself anew for each session, with / as its working directory: all paths are absolute.
        (folder / "config").write_text(CONFIG.format(port=self.port, folder=folder.resolve()))
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # it insists on this folder
        self.listener: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers."""
        folder = self.folder.resolve()
        self.listener = subprocess.Popen(
            [shutil.which("sshd", path=_PATH) or "", "-D", "-f", folder / "config", "-E", folder / "log"]
        )
        wait_until(self._answers, 10)

    def _answers(self) -> bool:
        assert self.listener is not None
        assert self.listener.poll() is None, (self.folder / "log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def sessions(self) -> list[int]:
        """Return the process ids of all that the listener has started, children before their parents."""
        assert self.listener is not None
        parents = _parents()
        found, new = [], [self.listener.pid]
        while new:
            new = [pid for pid, parent in parents.items() if parent in new]
            found += new
        return found[::-1]

    def kill(self) -> None:
        """Kill the listener and all its sessions: the server is gone, in the middle of whatever it did."""
        if self.listener is None:
            return
        os.kill(self.listener.pid, signal.SIGSTOP)  # nobody new comes meanwhile
        for pid in [*self.sessions(), self.listener.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.listener.wait(10)
        self.listener = None


_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def _parents() -> dict[int, int]:
    """Return the parent of each process."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    return parents


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Run an sshd while inside; skips the test where there is none."""
    if shutil.which("sshd", path=_PATH) is None or shutil.which("ssh-keygen") is None:
        pytest.skip("openssh-server is not installed")
    folder.mkdir()
    server = SshServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def sshfs(server: SshServer, remote: Path, point: Path, port: int | None = None) -> Iterator[None]:
    """
    Mount *remote*, as *server* has it, at *point* while inside; skips the test where that cannot be done.

    *port* is where the server is reached, if not at its own.
    """
    if shutil.which("sshfs") is None:
        pytest.skip("sshfs is not installed")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no FUSE here")
    options = f"{OPTIONS},port={port or server.port},IdentityFile={(server.folder / 'user').resolve()},BatchMode=yes"
    what = f"{getpass.getuser()}@127.0.0.1:{remote.resolve()}"
    outside = point.stat().st_dev
    with open(server.folder / "sshfs.log", "wb") as log:
        daemon = subprocess.Popen(
            ["sshfs", "-f", "-o", options, what, point], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 20
        while point.stat().st_dev == outside:
            said = (server.folder / "sshfs.log").read_text()
            if daemon.poll() is not None and "fuse" in said and "not permitted" in said:
                pytest.skip(f"cannot mount here: {said}")
            assert daemon.poll() is None, said
            assert time.monotonic() < end, f"nothing is mounted; {said}"
            time.sleep(0.01)
        yield
    finally:
        # The daemon first: what hangs in it gets an error then, and no process stays in the kernel.
        daemon.kill()
        daemon.wait(10)
        subprocess.run(["umount", "--lazy", point], stderr=sys.stderr, timeout=30, check=False)
        assert point.stat().st_dev == outside
