"""
A slow link: an sshfs mount of a real sshd, with a relay between them that holds everything up for a while.

This kernel may have no netem, and a container no right to use it. The relay delays each direction by half a round trip
and limits nothing else: what comes meanwhile travels at the same time.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import pytest
from workbench import CannotRun

from servers import ssh_server, sshfs

MOST_ON_THE_WAY = 1024  # pieces of 64 KiB in each direction


@contextlib.contextmanager
def mounted(folder: Path, round_trip: float) -> Iterator[tuple[Path, Path]]:
    """Have a mount in *folder* while inside; yield its point, and the folder that the server has behind it."""
    point, behind = folder / "mount", folder / "behind"
    point.mkdir()
    behind.mkdir()
    try:
        with ssh_server(folder / "ssh") as server, _relay(server.port, round_trip) as port:
            with sshfs(server, behind, point, port=port):
                yield point, behind
    except pytest.skip.Exception as reason:
        raise CannotRun(str(reason)) from None


@contextlib.contextmanager
def _relay(port: int, round_trip: float) -> Iterator[int]:
    """Run a relay to *port* while inside; yield its own port."""
    command = [sys.executable, __file__, str(port), str(round_trip)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def _serve(port: int, delay: float) -> None:
    """Relay connections to *port*. Runs until killed."""

    async def connect(near: trio.SocketStream) -> None:
        async with near, await trio.open_tcp_stream("127.0.0.1", port) as far:
            with contextlib.suppress(trio.BrokenResourceError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_carry, near, far, delay)
                    nursery.start_soon(_carry, far, near, delay)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(connect, listeners)


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, delay: float) -> None:
    """Carry bytes one way, each piece *delay* seconds after it came. Ends when *source* does."""
    send, receive = trio.open_memory_channel[tuple[float, bytes | bytearray]](MOST_ON_THE_WAY)

    async def take() -> None:
        async with send:
            async for data in source:
                await send.send((trio.current_time() + delay, data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async for due, data in receive:
            await trio.sleep_until(due)
            await sink.send_all(data)
        await sink.send_eof()


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]), float(sys.argv[2]) / 2)
