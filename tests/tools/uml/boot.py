"""Starts a User-Mode Linux on the host, and collects what the checks inside say."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PATHS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
SECONDS = 220  # that a guest may run for, on a loaded machine; it ends itself a little earlier
NEEDS = {
    "cifs": ("linux.uml", "modprobe", "smbd", "smbpasswd", "mount.cifs"),
    "disk": ("linux.uml", "modprobe", "mkfs.vfat", "losetup"),
    "nfs": ("linux.uml", "modprobe", "rpcbind", "rpc.nfsd", "rpc.mountd", "exportfs", "mount.nfs"),
}


class Report(NamedTuple):
    """What a guest said."""

    booted: bool
    results: dict[str, str | None]  # name of a check to what failed, or None
    console: str


def what_is_missing(server: str) -> str | None:
    """Say why this machine cannot run a guest with this server, or None if nothing is known to be in the way."""
    missing = [command for command in NEEDS[server] if shutil.which(command, path=PATHS) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (.ci/run installs what these tests need)"
    return None


def run(server: str, folder: Path) -> Report:
    """Boot a guest with this *server*, wait for its end, and return what it said. *folder* is for its files."""
    kernel = shutil.which("linux.uml", path=PATHS)
    assert kernel is not None
    command = [
        *(kernel, "mem=1G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"uml_dir={folder}/"),
        *("con=null", "con0=null,fd:1", "quiet", "loglevel=1", "panic=-1"),
        # To the first process: its environment, and after -- its arguments.
        *(f"PYTHONPATH={HERE.parent}", f"init={sys.executable}", "--", str(HERE / "guest.py"), server),
    ]
    for code in (HERE.parent, HERE.parents[2] / "trioft"):
        # The guest cannot keep what it compiles.
        compileall.compile_dir(code, maxlevels=3, quiet=2)
    environment = dict(os.environ)
    if shim := _build_shim(folder):
        environment["LD_PRELOAD"] = str(shim)
    with open(folder / "console", "w+b") as console:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
        finally:
            # Each process of the guest is one of the host, and traced by the kernel's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        console.seek(0)
        return _understand(console.read().decode("utf-8", "backslashreplace"))


def _build_shim(folder: Path) -> Path | None:
    """Build what UML needs on processors with large registers; without a compiler it may do without."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    shim = folder / "shim.so"
    options = ["-shared", "-fPIC", "-O1", "-fno-stack-protector"]
    subprocess.run([compiler, *options, "-o", shim, HERE / "shim.c"], check=True, capture_output=True, timeout=60)
    return shim


def _understand(console: str) -> Report:
    booted, results = False, {}
    for line in console.splitlines():
        with contextlib.suppress(json.JSONDecodeError, TypeError, KeyError):
            result = json.loads(line)
            if "booted" in result:
                booted = True
            else:
                results[result["check"]] = result["failure"]
    return Report(booted, results, console)
