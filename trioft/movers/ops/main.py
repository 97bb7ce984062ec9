"""
The child process that does the file operations: reads a request, runs one operation, answers.

A request is ``(operation, arguments)``; answers are any number of ``("progress", value)``, then one of
``("done", value)``, ``("trouble", Trouble)``, ``("short", text)`` where this process lacks memory or threads, or
``("bug", text)``. It ends when its pipe closes. The agent's signals
are not for it: Ctrl-C and a service manager's SIGTERM reach the agent, which lets it finish what a checkpoint needs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Never, TypeVar, TypeVarTuple

from trioft.core import operations as asked
from trioft.core.errors import FileTrouble
from trioft.core.operations import Operation
from trioft.movers.ops import identity, linux, mounts, removal, scan, slate, source, survey, writers
from trioft.movers.ops.folder import (
    bundle,
    claims,
    existing,
    growing,
    large,
    listing,
    manifests,
    markers,
    names,
    probe,
    publish,
    readback,
    seals,
    sparse,
    views,
)
from trioft.movers.ops.wire import receive, send

Told = TypeVar("Told")
Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")

# The functions behind the operations, by name; those of TELLING take a function that they tell what they have done.
OPERATIONS: dict[str, Callable[..., Any]] = {}
TELLING: set[str] = set()


def does(operation: Operation[Never, Answer, *Arguments], function: Callable[[*Arguments], Answer]) -> None:
    """Have *operation* done by *function*."""
    OPERATIONS[operation.name] = function


def tells(
    operation: Operation[Told, Answer, *Arguments],
    function: Callable[[*Arguments, Callable[[Told], None]], Answer],
) -> None:
    """Have *operation* done by *function*, which tells what it has done while it goes on."""
    OPERATIONS[operation.name] = function
    TELLING.add(operation.name)


does(asked.INSPECT, mounts.inspect)
does(asked.CONTAINS, mounts.contains)
does(asked.CAN_MOVE, mounts.can_move)
does(asked.PROBE_SOURCE, mounts.probe_source)
does(asked.PROBE, probe.probe)
does(asked.RECOGNIZE, probe.recognize)
does(asked.FIND_NAMING, names.find_naming)
does(asked.FIND_VIEW, views.find_view)
does(asked.CLAIM, claims.claim)
does(asked.BEAT, claims.beat)
does(asked.READ_CLAIMS, claims.read_claims)
does(asked.RELEASE, claims.release)
does(asked.SCAN, scan.scan)
does(asked.COMPARE, scan.scan)
does(asked.LOOK, scan.look)
tells(asked.SURVEY, survey.survey)
does(asked.PEEK, source.peek)
tells(asked.LOCATE, source.locate)
tells(asked.COMPARE_SPAN, source.compare_span)
does(asked.REMOVE_SOURCES, removal.remove_sources)
does(asked.PUT_BACK_SOURCES, removal.put_back)
does(asked.REMOVE_EMPTIED, source.remove_emptied)
does(asked.MAKE_FOLDERS, listing.make_folders)
tells(asked.WRITE_BUNDLE, bundle.write_bundle)
tells(asked.PREPARE, large.prepare)
tells(asked.COPY_SPAN, large.copy_span)
tells(asked.SETTLE, large.settle)
tells(asked.COPY_GROWING, growing.copy_growing)
tells(asked.COPY_RANGES, growing.copy_ranges)
tells(asked.SETTLE_RANGES, growing.settle_ranges)
tells(asked.FINISH_ATTRIBUTES, growing.finish_attributes)
does(asked.ADOPT, growing.adopt)
does(asked.SIZE_OF, publish.size_of)
does(asked.HOLES_OF, sparse.holes_of)
does(asked.DISCARD, publish.discard)
does(asked.FIND_LEFTOVERS, listing.find_leftovers)
does(asked.PUT_BACK, publish.put_back)
does(asked.SEAL, seals.seal)
tells(asked.IS_SEALED, seals.is_sealed)
tells(asked.ARE_SEALED, seals.are_sealed)
tells(asked.FIND_FORMER, existing.find_former)
tells(asked.PUBLISH, publish.publish)
does(asked.MARK, markers.mark)
tells(asked.READ_DELIVERED, readback.read_delivered)
tells(asked.SUM_DELIVERED, manifests.sum_delivered)
does(asked.WRITE_SUMS, manifests.write_sums)
does(asked.FIND_HISTORIES, manifests.find_histories)
tells(asked.APPEND_GENERATION, manifests.append_generation)


def load_rare() -> None:
    """Make the operations known that no transfer needs: a mover starts a twentieth faster without them."""
    from trioft.movers.ops.folder import measure

    does(asked.PLANT, measure.plant)
    does(asked.UPROOT, measure.uproot)
    does(asked.BEGIN_MEASURING, measure.begin_measuring)
    does(asked.MEASURE, measure.measure)
    does(asked.END_MEASURING, measure.end_measuring)


def main(parent: int) -> None:
    """
    Serve requests from standard input until it closes, or until the process *parent* ends.

    The command's last argument is the descriptor of the slate.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    writers.prepare_leases()
    if not linux.die_with_parent(parent):
        return
    if len(sys.argv) > 1:
        slate.attach(int(sys.argv[-1]))
    # Nothing else may write into the pipe of answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        while (request := receive(0)) is not None:
            send(answers, _run(answers, *request))
    except BrokenPipeError:
        return  # the agent is gone, and with it anybody who would care


def _run(answers: int, operation: str, arguments: tuple[object, ...]) -> tuple[str, object]:
    if operation not in OPERATIONS:
        load_rare()
    if operation in TELLING:
        arguments = (*arguments, lambda value: send(answers, ("progress", value)))
    slate.clear()
    identity.begin_operation()
    try:
        return "done", OPERATIONS[operation](*arguments)
    except FileTrouble as error:
        return "trouble", error.trouble
    except BrokenPipeError:
        raise
    except MemoryError:
        return "short", "there is not enough memory"
    except Exception as error:
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return "short", "there are too many processes"
        import traceback  # a tenth of a mover's start, and nobody wants to need it

        return "bug", traceback.format_exc()
