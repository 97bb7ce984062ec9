"""A slow uplink: a relay on this machine through which a server gets no more than so many bytes a second."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

_BUFFER = 16 << 10


@contextlib.contextmanager
def slow_link(port: int, rate: int) -> Iterator[int]:
    """Yield a port behind which the server at *port* is reached; what is sent to it takes its time."""
    with contextlib.ExitStack() as ends, socket.socket() as listener:
        threads: list[threading.Thread] = []

        def start(function: object, *arguments: object) -> None:
            threads.append(threading.Thread(target=function, args=arguments))  # type: ignore[arg-type]
            threads[-1].start()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near = ends.enter_context(listener.accept()[0])
                    far = ends.enter_context(socket.create_connection(("127.0.0.1", port)))
                    start(_carry, near, far, rate)
                    start(_carry, far, near, None)

        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        start(serve)
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(20)


def _carry(source: socket.socket, sink: socket.socket, rate: int | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_BUFFER):
            if rate is not None:
                time.sleep(len(data) / rate)
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
