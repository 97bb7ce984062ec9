"""
Cases: what watching costs: transfers with so many clients of the feed, over the same without any.

Clients are raw sockets in a process of their own, which read as fast as they can. They need a processor themselves,
which elsewhere would be another machine's; so the transfers that are compared have a limited throughput, which leaves
them enough of it: what is longer then was held up. The agent's processor time tells the rest.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import trio
from agents import LOOK_EVERY_AT_ALL, await_name, watching
from processes import cpu_of, own_memory_of
from rows import Row, compared
from trees import make_large
from workbench import Bench, Run

HANDSHAKE = (
    "GET /feed HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TRANSFERS = 8
MUTE = 50  # clients that never read
RATE = "64MiB/s"
NOTE = "the clients read, on the same processors: elsewhere they would be other machines"


def feed_clients(bench: Bench) -> Iterator[Row]:
    """8 transfers, with 1, 10, 100, 500 clients of the feed, and with 50 that never read; at most 64 MiB/s, and not."""
    size = bench.size(2**26, 2**24)  # bytes, of each file
    bench.need(3 * TRANSFERS * size)
    counts = bench.size([1, 10, 100, 500], [500])
    crowds = {"none": (0, 0), **{f"{count}": (count, 0) for count in counts}, "mute": (0, MUTE)}
    contestants = {name: functools.partial(_transfer, bench, size, RATE, *crowd) for name, crowd in crowds.items()}
    contestants["none, free"] = functools.partial(_transfer, bench, 4 * size, "off", 0, 0)
    contestants["500, free"] = functools.partial(_transfer, bench, 4 * size, "off", 500, 0)
    runs = bench.in_turns("clients of the feed", contestants, cold=contestants)
    work = f"{TRANSFERS} transfers, {RATE} in all"
    for count in counts:
        name = f"{work}, {count} feed clients"
        yield compared(name, "without clients", runs[f"{count}"], runs["none"], 1.05)
        more = [1000 * (ours.cpu - none.cpu) / count for ours, none in zip(runs[f"{count}"], runs["none"], strict=True)]
        seconds = runs[f"{count}"][0].seconds
        yield Row(f"{name}: processor time of each", "", sorted(more)[len(more) // 2] / seconds, "ms a second")
        memories = [max(run.memory for run in runs[key]) for key in (f"{count}", "none")]
        yield Row(f"{name}: memory of each", "", (memories[0] - memories[1]) / 1024 / count, "KiB")
    yield compared(f"{work}, {MUTE} that never read", "without clients", runs["mute"], runs["none"], 1.05)
    work = f"{TRANSFERS} transfers, no limit, 500 feed clients"
    yield compared(work, "without clients", runs["500, free"], runs["none, free"], 1.05, NOTE)


def _transfer(bench: Bench, size: int, rate: str, readers: int, mute: int, _: bool) -> Run:
    """Transfer once; return the seconds from the first file's appearance to the last final name, and what it took."""
    with bench.folder("clients") as folder:
        new = folder / "new"
        new.mkdir()
        for number in range(TRANSFERS):
            make_large(new / f"{number}.mxf", size)
        os.sync()
        options = ["--feed", "127.0.0.1:0", "--settle", "1s", "--transfers", f"{TRANSFERS}", "--bwlimit"]
        with watching(bench, folder, options=[*options, rate]) as agent:
            port = re.search(r"127\.0\.0\.1:(\d+)", (folder / "errors").read_text("utf-8"))
            assert port is not None
            with _clients(port[1], readers, mute) if readers or mute else contextlib.nullcontext():
                begun, used = time.perf_counter(), cpu_of(agent.pid)
                for path in new.iterdir():
                    path.rename(folder / "source" / path.name)
                memory = 0
                for number in range(TRANSFERS):
                    end = await_name(agent, folder / "destination" / f"{number}.mxf", LOOK_EVERY_AT_ALL)
                    memory = max(memory, own_memory_of(agent.pid))
                return Run(end - begun, cpu_of(agent.pid) - used, memory)


@contextlib.contextmanager
def _clients(port: str, readers: int, mute: int) -> Iterator[None]:
    """While inside, so many are connected."""
    command = [sys.executable, __file__, port, str(readers), str(mute)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"connected\n"
            yield
        finally:
            process.kill()


async def _watch(port: int, readers: int, mute: int) -> None:
    """Be so many clients, and say when all are connected. Runs until killed."""

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
        events = [trio.Event() for _ in range(readers + mute)]
        for number, event in enumerate(events):
            nursery.start_soon(client, number < readers, event)
        for event in events:
            await event.wait()
        print("connected", flush=True)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    trio.run(_watch, int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
