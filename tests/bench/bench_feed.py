"""
What watching costs: the time of a transfer with so many clients of its feed, over its time without any.

Run by hand: ``.venv/bin/python tests/bench/bench_feed.py [--clients 200 500] [--mute 50] [--rounds 3]``, alternating.
Clients are raw sockets in a process of their own, which read as fast as they can; *mute* ones never read.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from trioft.notation import format_size, parse_size

HANDSHAKE = (
    "GET /feed HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def watch(port: int, count: int, mute: int) -> None:
    """Be so many clients, and say when all are connected."""

    async def client(reads: bool, connected: trio.Event) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(HANDSHAKE.format(port=port).encode())
        if reads:
            await stream.receive_some()
        connected.set()
        try:
            while reads and await stream.receive_some(1 << 20):
                pass
        except trio.BrokenResourceError:
            return
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        events = [trio.Event() for _ in range(count + mute)]
        for number, event in enumerate(events):
            nursery.start_soon(client, number < count, event)
        for event in events:
            await event.wait()
        print("connected", flush=True)


def run(size: int, clients: int, mute: int) -> tuple[float, float, float]:
    """Transfer once; return the seconds from the start of the copy to its end, processor seconds, and MiB at most."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("source", "dest", "state"):
            (root / name).mkdir()
        ends = [str(root / "source"), str(root / "dest"), "--state-dir", str(root / "state")]
        command = [sys.executable, "-m", "trioft", "watch", *ends, "--feed", "127.0.0.1:0", "--settle", "1s"]
        agent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        watchers: subprocess.Popen[str] | None = None
        try:
            assert agent.stderr is not None
            port = re.search(r":(\d+)/", agent.stderr.readline())
            assert port is not None
            if clients or mute:
                arguments = [sys.executable, __file__, "--be", port[1], str(clients), str(mute)]
                watchers = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
                assert watchers.stdout is not None
                assert watchers.stdout.readline() == "connected\n"
            data = os.urandom(1 << 20)
            with open(root / "new", "wb") as file:
                for _ in range(size >> 20):
                    file.write(data)
            os.sync()
            begun = time.monotonic()
            (root / "new").rename(root / "source" / "large.mxf")
            while not (root / "dest" / "large.mxf").exists():
                time.sleep(0.005)
            seconds = time.monotonic() - begun
            usage = Path(f"/proc/{agent.pid}/status").read_text("ascii")
            peak = re.search(r"VmHWM:\s+(\d+)", usage)
            ticks = Path(f"/proc/{agent.pid}/stat").read_text("ascii").rpartition(")")[2].split()
            processor = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
            return seconds, processor, int(peak[1]) / 1024 if peak else 0.0
        finally:
            if watchers is not None:
                watchers.kill()
                watchers.wait()
            agent.send_signal(signal.SIGTERM)
            agent.wait(30)


def main() -> None:
    if sys.argv[1:2] == ["--be"]:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        port, count, mute = map(int, sys.argv[2:])
        trio.run(watch, port, count, mute)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[200, 500])
    parser.add_argument("--mute", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="1GiB")
    given = parser.parse_args()
    size = parse_size(given.size)
    assert shutil.disk_usage(tempfile.gettempdir()).free > 4 * size
    kinds = [(0, 0), *((count, 0) for count in given.clients), (0, given.mute)]
    results: dict[tuple[int, int], list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    for _ in range(given.rounds):
        for kind in kinds:
            results[kind].append(run(size, *kind))
    print(f"### One file of {format_size(size)} with clients of the feed, medians of {given.rounds}, alternating\n")
    print(
        "| clients that read | that never read | seconds | over none | processor seconds of the agent | memory, MiB |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    for kind, runs in results.items():
        ratios = [there[0] / none[0] for there, none in zip(runs, results[0, 0], strict=True)]
        seconds, processor, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        figures = [f"{seconds:.2f}", f"{statistics.median(ratios):.2f}", f"{processor:.1f}", f"{memory:.0f}"]
        print("|", " | ".join([*map(str, kind), *figures]), "|")


if __name__ == "__main__":
    main()
