"""
The page of an agent that has any number of files and does nothing: the feed and the port are real, the board is filled.

    python tests/tools/page_stage.py FILES

It tells its address in a line of JSON. Each line on standard input is a list that says what happens next, and is
answered with a line: ``["add", STATE, SIZE, PATH, REASON]``, ``["copy", PATH, COPIED, VERIFIED]``. It ends when there
are no more.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from types import SimpleNamespace
from typing import cast

import trio

from trioft.agent.job import JobRun
from trioft.config.file import load_config
from trioft.config.options import Config
from trioft.core.errors import Side
from trioft.core.model import FileState, Fingerprint, Identity
from trioft.pipeline.storage import Storage
from trioft.serve.server import serving
from trioft.state.board import Board, Entry

S = FileState
TB = 10**12
# How a file comes to the state.
WAYS = {
    S.SETTLING: (S.SETTLING,),
    S.GROWING: (S.GROWING,),
    S.READY: (S.READY,),
    S.COPYING: (S.READY, S.COPYING),
    S.VERIFYING: (S.READY, S.COPYING, S.VERIFYING),
    S.WAITING: (S.READY, S.WAITING),
    S.DONE: (S.READY, S.COPYING, S.DONE),
    S.FAILED: (S.READY, S.COPYING, S.FAILED),
}


def storage() -> Storage:
    """Return a storage of which only the figures are read."""
    ends = {side: Identity("nfs4", f"nas:/{side}", "", b"/", b"/mnt") for side in Side}
    return cast(Storage, SimpleNamespace(identity=ends, free=TB, total=4 * TB, reserved_bytes=TB // 10))


def add(board: Board, path: str, size: int, state: FileState, reason: str | None = None) -> Entry:
    name = os.fsencode(path)
    entry = board.add(name, Fingerprint(1, len(board.live) + 1, size, 0, 0))
    way = WAYS[state]
    for step in way:
        if step == S.DONE:
            board.copied(entry, size)
            board.verified(entry, size)
            entry.target = name
            board.totals.delivered += 1
        board.totals.failed += step == S.FAILED
        board.move(entry, step, reason if step == way[-1] else None)
    return entry


def obey(board: Board, line: str) -> None:
    """Do what a line says."""
    what, *words = json.loads(line)
    if what == "add":
        state, size, path, *reason = words
        add(board, path, size, FileState(state), *reason)
    elif what == "copy":
        path, copied, verified = words
        (entry,) = (entry for entry in board.live.values() if entry.path == os.fsencode(path))
        board.copied(entry, copied)
        board.verified(entry, verified)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "config.yaml")
        await trio.Path(file).write_text(
            "feed: {listen: '127.0.0.1:0'}\nsource: {path: /mnt/source}\ndestination: {path: /mnt/dest}\n"
        )
        config: Config = load_config(file, {})
        board = Board()
        board.scanned = True
        addresses: list[str] = []
        board.notices.append(lambda _, text: addresses.append(text.rpartition(" ")[2]))
        run = JobRun(config, board)
        run.storage = storage()
        async with serving(config, board, [run], once=False, state_dir=folder):
            for n in range(int(sys.argv[1])):
                add(board, f"day {n // 1000}/clip {n:05d}.mxf", 1_000_000 + n, S.READY)
            print(json.dumps(addresses[0]), flush=True)
            async with trio.lowlevel.FdStream(os.dup(0)) as stream:
                rest = b""
                async for data in stream:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        obey(board, line.decode())
                        print("done", flush=True)


if __name__ == "__main__":
    trio.run(main)
