"""
The child process that does the file operations: reads a request, runs one operation, answers.

A message is a length (8 bytes, big-endian) and a pickle. A request is ``(operation, arguments)``; answers are
any number of ``("progress", value)``, then one of ``("done", value)``, ``("trouble", Trouble)`` or ``("bug", text)``.
It ends when its pipe closes. The agent's signals are not for it: Ctrl-C and a service manager's SIGTERM reach
the agent, which lets it finish what a checkpoint needs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from trioft.core.errors import FileTrouble
from trioft.movers.ops import linux, mounts, scan, source, writers
from trioft.movers.ops.folder import (
    bundle,
    growing,
    large,
    listing,
    manifests,
    markers,
    measure,
    probe,
    publish,
    readback,
)
from trioft.movers.ops.wire import receive, send

OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        mounts.inspect,
        mounts.contains,
        mounts.probe_source,
        probe.probe,
        probe.recognize,
        scan.scan,
        scan.look,
        listing.make_folders,
        listing.find_partials,
        bundle.write_bundle,
        large.prepare,
        large.copy_span,
        large.settle,
        source.peek,
        growing.copy_growing,
        growing.copy_ranges,
        growing.settle_ranges,
        source.compare_span,
        growing.finish_attributes,
        source.locate,
        growing.adopt,
        publish.size_of,
        publish.seal,
        publish.is_sealed,
        publish.publish,
        markers.mark,
        publish.discard,
        source.remove_sources,
        readback.read_delivered,
        measure.plant,
        measure.uproot,
        measure.begin_measuring,
        measure.measure,
        measure.end_measuring,
        manifests.sum_delivered,
        manifests.write_sums,
        manifests.find_histories,
        manifests.append_generation,
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
        while (request := receive(0)) is not None:
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
