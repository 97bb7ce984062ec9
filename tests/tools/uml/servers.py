"""Servers on the guest's loopback, and what they share, mounted by the kernel's own clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from support import wait_until

BEHIND = Path("/run/behind")  # the folder that is shared, as the server has it: in memory, and not large
WHERE = Path("/run/share")  # where the client mounts it
SIZE = "160m"


def command(*arguments: str | Path, given: str | None = None) -> None:
    """Run a command; if it fails, so does the check, with what it said."""
    done = subprocess.run(arguments, input=given, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: exit code {done.returncode}: {done.stdout}{done.stderr}")


def load(*modules: str) -> None:
    command("modprobe", "-d", "/run/kernel", "-a", *modules)


def make_folder_behind() -> None:
    BEHIND.mkdir()
    command("mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=777", "behind", BEHIND)
    assert os.stat(BEHIND).st_dev != os.stat("/run").st_dev


class Server(Protocol):
    """What shares the folder."""

    def start(self) -> None:
        """Start it, and return when it answers."""

    def stop(self) -> None:
        """End it without a word to its clients."""


class Share:
    """A shared folder, and its mount."""

    def __init__(self, name: str, server: Server, kind: str, what: str, options: str, patient: bool = True) -> None:
        self.name, self._server = name, server
        self.is_patient = patient  # its client waits for a server that is away, instead of giving up
        self.behind, self.where = BEHIND, WHERE
        self._mount = ["mount", "-t", kind, what, str(WHERE), "-o", options]

    def mount(self) -> None:
        command(*self._mount)
        others = {os.stat(folder).st_dev for folder in ("/run", BEHIND) if os.path.isdir(folder)}
        assert os.stat(WHERE).st_dev not in others, "nothing is mounted"

    def unmount(self, *options: str) -> None:
        command("umount", *options, WHERE)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """While inside, the server is gone, and has told nobody."""
        self._server.stop()
        try:
            yield
        finally:
            self._server.start()

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """While inside, the server has no space left, not for a byte."""
        filler = BEHIND / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 20, 4096):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(size)) == size:
                            pass
            assert os.statvfs(BEHIND).f_bavail == 0
            yield
        finally:
            filler.unlink(missing_ok=True)


class Disk(Share):
    """A disk, or card, with FAT: no server, and what it has is seen in one place only."""

    def __init__(self) -> None:
        load("loop", "vfat", "nls_cp437", "nls_utf8")
        image = Path("/run/disk")
        with image.open("wb") as file:
            file.truncate(160 << 20)
        command("mkfs.vfat", "-F", "32", image)
        self.name, self.is_patient = "vfat", False
        self.behind = self.where = WHERE
        self._mount = ["mount", "-t", "vfat", str(image), str(WHERE), "-o", "loop,utf8"]


class Samba:
    """smbd: one process for each connection, all in one process group."""

    _CONFIG = """
        [global]
        server role = standalone server
        interfaces = 127.0.0.1/8
        bind interfaces only = yes
        smb ports = 445
        disable netbios = yes
        load printers = no
        lock directory = /run/samba
        state directory = /run/samba
        cache directory = /run/samba
        private dir = /run/samba
        pid directory = /run/samba
        ncalrpc dir = /run/samba/ncalrpc
        log file = /run/samba/log
        passdb backend = tdbsam:/run/samba/passwords
        [share]
        path = /run/behind
        read only = no
        """

    def __init__(self) -> None:
        # What its encryption and signatures need is not found by the client on its own.
        load("cifs", "cmac", "ccm", "gcm", "hmac", "md5", "sha256_generic", "sha512_generic", "ecb", "aes_generic")
        load("nls_utf8")
        Path("/run/samba/ncalrpc").mkdir(parents=True)
        self._config = Path("/run/samba/config")
        self._config.write_text(self._CONFIG)
        command("smbpasswd", "-c", self._config, "-a", "-s", "root", given="secret\nsecret\n")

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["smbd", "--foreground", "--no-process-group", "-s", self._config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: _answers(445), 20)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not _answers(445), 20)


class Nfsd:
    """nfsd: threads of the kernel, which forget their clients when they end."""

    def __init__(self) -> None:
        load("nfsd", "nfs", "nfsv4", "nfsv3", "sunrpc")
        command("mount", "-t", "tmpfs", "state", "/var/lib/nfs")
        for folder in ("rpc_pipefs", "v4recovery", "sm", "sm.bak"):
            Path("/var/lib/nfs", folder).mkdir()
        for file in ("etab", "rmtab", "state"):
            Path("/var/lib/nfs", file).touch()
        command("mount", "-t", "rpc_pipefs", "pipes", "/var/lib/nfs/rpc_pipefs")
        command("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        command("rpcbind")
        wait_until(lambda: _answers(111), 20)
        command("exportfs", "-o", "rw,no_root_squash,sync,insecure,fsid=0,no_subtree_check", f"127.0.0.1:{BEHIND}")
        command("rpc.mountd")
        # For so long a new server waits for the clients of the one before: the shortest that it takes.
        for name in ("nfsv4leasetime", "nfsv4gracetime"):
            Path("/proc/fs/nfsd", name).write_text("10")

    def start(self) -> None:
        command("rpc.nfsd", "--tcp", "4")
        wait_until(lambda: _answers(2049), 20)

    def stop(self) -> None:
        command("rpc.nfsd", "0")


def _answers(port: int) -> bool:
    with socket.socket() as end:
        return end.connect_ex(("127.0.0.1", port)) == 0


def shares_of(server: str) -> list[Share]:
    """Start the server; return what it shares, in all the ways it is to be mounted."""
    WHERE.mkdir()
    if server == "disk":
        return [Disk()]
    make_folder_behind()
    if server == "cifs":
        samba = Samba()
        samba.start()
        return [Share("cifs", samba, "cifs", "//127.0.0.1/share", "username=root,password=secret,vers=3.1.1")]
    nfsd = Nfsd()
    nfsd.start()
    return [
        Share("nfs4", nfsd, "nfs", "127.0.0.1:/", "vers=4.2"),
        Share("nfs3", nfsd, "nfs", f"127.0.0.1:{BEHIND}", "vers=3,nolock,soft,timeo=10,retrans=1", patient=False),
    ]
