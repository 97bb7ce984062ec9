"""
The child process that does the file operations: reads a request, runs one operation, answers.

A message is a length (8 bytes, big-endian) and a pickle. A request is ``(operation, arguments)``; answers are
any number of ``("progress", value)``, then one of ``("done", value)``, ``("trouble", Trouble)`` or ``("bug", text)``.
It ends when its pipe closes. The agent's signals are not for it: Ctrl-C and a service manager's SIGTERM reach
the agent, which lets it finish what a checkpoint needs.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
from collections.abc import Callable
from typing import Any

from trioft.core.errors import FileTrouble
from trioft.movers.ops import linux, writers
from trioft.movers.ops import mounts as endsio
from trioft.movers.ops import scan as surveyio
from trioft.movers.ops import source as growio
from trioft.movers.ops.folder import bundle as bundleio
from trioft.movers.ops.folder import large as copyio
from trioft.movers.ops.folder import manifests as manifestio
from trioft.movers.ops.folder import markers as markerio
from trioft.movers.ops.folder import measure as doctorio
from trioft.movers.ops.folder import publish as publishio
from trioft.movers.ops.folder import readback as verifyio

LENGTH = struct.Struct(">Q")

OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        endsio.inspect,
        endsio.contains,
        endsio.probe_source,
        endsio.probe,
        endsio.recognize,
        surveyio.scan,
        surveyio.look,
        surveyio.make_folders,
        surveyio.find_partials,
        bundleio.write_bundle,
        copyio.prepare,
        copyio.copy_span,
        copyio.settle,
        growio.peek,
        growio.copy_growing,
        growio.copy_ranges,
        growio.settle_ranges,
        growio.compare_span,
        growio.finish_attributes,
        growio.locate,
        growio.adopt,
        publishio.size_of,
        publishio.seal,
        publishio.is_sealed,
        publishio.publish,
        markerio.mark,
        publishio.discard,
        publishio.remove_sources,
        verifyio.read_delivered,
        doctorio.plant,
        doctorio.uproot,
        doctorio.begin_measuring,
        doctorio.measure,
        doctorio.end_measuring,
        manifestio.sum_delivered,
        manifestio.write_sums,
        manifestio.find_histories,
        manifestio.append_generation,
    )
}
# These tell what they have done while they go on.
TELLING = {"write_bundle", "prepare", "copy_span", "settle", "locate", "is_sealed"}
TELLING |= {"copy_growing", "compare_span", "copy_ranges", "settle_ranges", "read_delivered"}
TELLING |= {"sum_delivered", "append_generation"}


def main(parent: int) -> None:
    """Serve requests from standard input until it closes, or until the process *parent* ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    writers.prepare_leases()
    if not linux.die_with_parent(parent):
        return
    # Nothing else may write into the pipe of answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        while (request := _receive(0)) is not None:
            send(answers, _run(answers, *request))
    except BrokenPipeError:
        return  # the agent is gone, and with it anybody who would care


def _run(answers: int, operation: str, arguments: tuple[Any, ...]) -> tuple[str, object]:
    if operation in TELLING:
        arguments = (*arguments, lambda value: send(answers, ("progress", value)))
    try:
        return "done", OPERATIONS[operation](*arguments)
    except FileTrouble as error:
        return "trouble", error.trouble
    except BrokenPipeError:
        raise
    except Exception:
        import traceback  # a tenth of a mover's start, and nobody wants to need it

        return "bug", traceback.format_exc()


def _receive(fd: int) -> Any:
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
