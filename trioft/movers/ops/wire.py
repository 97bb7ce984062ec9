"""
Messages between a child process and its parent: a length (8 bytes, big-endian) and a pickle.
"""

from __future__ import annotations

import os
import pickle
import struct
from typing import Any

LENGTH = struct.Struct(">Q")


def receive(fd: int) -> Any:
    head = _read(fd, LENGTH.size)
    if head is None:
        return None
    body = _read(fd, LENGTH.unpack(head)[0])
    return None if body is None else pickle.loads(body)


def _read(fd: int, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            return None
        data += piece
    return data


def send(fd: int, message: object) -> None:
    """Write one message."""
    body = pickle.dumps(message, protocol=5)
    view = memoryview(LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(fd, view) :]


# More changes than this at a time, and a scan of everything is cheaper than a look at each.
MOST = 5_000
