"""
A filesystem in which anything can go wrong: ``python faultfs.py BACKING MOUNT SOCKET [caching]``.

It shows the folder BACKING at MOUNT; *caching* means that the kernel keeps what is written, and writes it when it is
asked to, as it does on network filesystems. What is to go wrong is said in lines of JSON through a Unix socket: see
``Control``. It ends, and unmounts, when its standard input is closed.

======================  ================================================
``faults_mount``        starts it, and ends it, for a test
``faultfs``             what it can be asked for
``faultfs_operations``  what the kernel asks for
``faultfs_faults``      how an operation happens, or not
``faultfs_rules``       what is to go wrong
``faultfs_tree``        the files, and what of them a power cut takes back
======================  ================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pyfuse3
import trio

from faultfs_faults import LONGEST
from faultfs_names import NamingFS
from faultfs_operations import FaultFS


class Control:
    """
    What can be asked for through the socket: ``{"do": NAME, …}`` is answered by ``{"ok": …}`` or ``{"error": TEXT}``.

    The names are those of the methods, without ``do_``.
    """

    def __init__(self, fs: FaultFS) -> None:
        self.fs = fs

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        try:
            while piece := await stream.receive_some():
                *lines, received = (received + piece).split(b"\n")
                for line in lines:
                    answer = await self._answer(json.loads(line))
                    await stream.send_all(json.dumps(answer).encode() + b"\n")
        except trio.BrokenResourceError:
            pass  # who asked has gone

    async def _answer(self, request: dict[str, Any]) -> dict[str, object]:
        do = request.pop("do")
        try:
            if do == "wait":
                return {"ok": await self.wait(**request)}
            return {"ok": getattr(self, f"do_{do}")(**request)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    async def wait(self, **wanted: Any) -> dict[str, Any]:
        """Answer when the status has these values: numbers are reached, or exceeded."""
        while not all(self.do_status()[name] >= value for name, value in wanted.items()):
            await self.fs.stirred.wait()
        return self.do_status()

    def do_status(self) -> dict[str, Any]:
        fs = self.fs
        fired = sum(rule.fired for rule in fs.rules.all.values())
        return {
            "off": fs.is_off,
            "cuts": fs.cuts,
            "stalled": fs.stalled.total(),
            "waiting": len(fs.waiting),
            "fired": fired,
            "changes": fs.changes,
            "free": fs.free,
            "counts": dict(fs.counts),
        }

    def do_begin(self) -> None:
        self.do_release()
        self.fs.begin()

    def do_add(self, **rule: Any) -> int:
        return self.fs.rules.add(**rule)

    def do_clear(self, id: int | None = None) -> None:
        self.fs.rules.clear(id)

    def do_stop_rule(self, id: int) -> None:
        """It does not fire any more, and is still listed."""
        rule = self.fs.rules.all[id]
        rule.times = max(1, rule.fired)

    def do_rules(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(rule) for rule in self.fs.rules.all.values()]

    def do_release(self, id: int | None = None) -> None:
        """What is stalled by a rule, or by any, goes on."""
        for number in list(self.fs.stalled) if id is None else [id]:
            self.fs.set_free(number)

    def do_happen(self) -> None:
        """What was delayed happens."""
        self.fs.let_happen()

    def do_fill(self, free: int | None) -> None:
        """So many bytes more can be written; None: no end of them."""
        self.fs.free = free

    def do_cut(self, at: int = 0, seed: int | None = None, stay_off: bool = False) -> None:
        """
        Cut the power, now or after change number *at*, and have it back at once, or not.

        With a *seed*, a part of what is not durable stays.
        """
        if at:
            self.fs.cut_at, self.fs.cut_seed, self.fs.cut_stays_off = at, seed, stay_off
        else:
            self.fs.power_cut(seed, stay_off)

    def do_power_on(self) -> None:
        self.fs.is_off = False

    def do_log(self) -> list[str]:
        """The last operations."""
        return list(self.fs.log)

    def do_history(self) -> dict[str, Any]:
        """
        What has been renamed (old, new, digest of the content, and of what of it was durable), and which names files
        had while they were written.
        """
        return {"renames": self.fs.renames, "written": sorted(self.fs.written)}


async def _serve(fs: FaultFS, path: str) -> None:
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(path)
        listening.listen(16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            nursery.start_soon(trio.serve_listeners, Control(fs).serve, [trio.SocketListener(listening)])
            with trio.move_on_after(LONGEST):
                await trio.lowlevel.wait_readable(0)
            _leave()


def _leave() -> None:
    """Unmount and end: who waits for an answer gets an error then."""
    for command in (["umount", "-l"], ["fusermount3", "-u", "-z"]):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run([*command, sys.argv[2]], check=False, capture_output=True, timeout=10)
    os._exit(0)


def main(backing: str, mount: str, path: str, *options: str) -> None:
    fs = NamingFS(os.fsencode(backing), options) if {*options} - {"caching"} else FaultFS(os.fsencode(backing))
    fs.enable_writeback_cache = "caching" in options
    pyfuse3.init(fs, mount, {"fsname=faultfs", "default_permissions"})
    trio.run(_serve, fs, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
