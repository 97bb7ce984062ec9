"""
``trioft doctor``: measures what both ends can do, one thing after the other, and says what each means.

Everything is done by movers, with a limit of time; what is made at the ends is removed again, also after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

from trioft.agent.signals import ended_by
from trioft.cli import diagnosis
from trioft.cli.diagnosis import Finding, Result
from trioft.config.options import Config
from trioft.core import operations as ask
from trioft.core.errors import (
    FileTrouble,
    Remedy,
    Side,
    TrioftError,
    UnusableError,
    classify,
    first_of,
    hint_for,
    show_path,
)
from trioft.movers.events import Changes, run_events
from trioft.movers.pool import Call, Movers, Starts
from trioft.pipeline.ends import Pair, find_ends
from trioft.state.ledger import now

T = TypeVar("T")
Tell = Callable[[Finding], None]

# In this order: what is quick first.
_CHECKS = ("space", "fsync", "rename", "times", "names", "large files", "attributes", "read-back")
_LONG_CHECKS = ("throughput", "small files")
_PATIENCE = 2.0  # times copy.stall_timeout, for those
_WATCHES = 20.0  # seconds until all watches are set: that walks the source
_EVENT = 3.0  # seconds until an event is taken for lost
_CLEARING = 10.0  # seconds


def run_doctor(config: Config, state_dir: str, write: Callable[[str], None], *, as_json: bool) -> int:
    """Run ``trioft doctor``; return its exit code. Raises ``TrioftError``."""
    results: Counter[Result] = Counter()

    def tell(finding: Finding) -> None:
        results[finding.result] += 1
        for line in [_as_json(finding)] if as_json else _as_text(finding):
            write(line)

    try:
        stopped_by = trio.run(_run, config, state_dir, tell)
    except BaseExceptionGroup as group:
        for kind in (TrioftError, BrokenPipeError):  # the latter: whoever read our output has gone
            if (error := first_of(group, kind)) is not None:
                raise error from None
        raise
    if stopped_by is not None:
        return 128 + stopped_by
    counts = {result.value: results[result] for result in Result}
    if as_json:
        write(json.dumps({"event": "summary", "time": now(), **counts}))
    else:
        write(", ".join(f"{count} {name}" for name, count in counts.items() if count))
    return 1 if results[Result.PROBLEM] else 0


def _as_json(finding: Finding) -> str:
    return json.dumps({"event": "check", "time": now(), **finding._asdict()})


def _as_text(finding: Finding) -> Iterator[str]:
    yield f"{finding.result:8} {finding.side}, {finding.check}: {finding.measured}"
    if finding.result != Result.OK:
        yield f"         {finding.meaning}"
        if finding.advice is not None:
            yield f"         see: {finding.advice}"


async def _run(config: Config, state_dir: str, tell: Tell) -> int | None:
    """Look at both ends; return the number of the signal that stopped it, or None."""
    async with (
        ended_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received,
        Movers(2, config.copy.stall_timeout) as movers,
    ):
        pair = await find_ends(config, movers.call, state_dir)
        await _examine_source(pair, movers.call, tell)
        await _examine_destination(pair, movers.call, tell)
    return received[0] if received else None


async def _examine_source(pair: Pair, call: Call, tell: Tell) -> None:
    for finding in diagnosis.source(pair.source):
        tell(finding)
    # A name that no transfer takes for a file: another trioft may be watching.
    name = b".trioft-doctor-%d" % os.getpid()
    heard = Heard(name)
    async with trio.open_nursery() as nursery:
        if pair.source.remote:  # nobody asks for events there, either
            heard.fail(f"none are asked for on {pair.source.mount[0]}")
        else:
            nursery.start_soon(run_events, pair.source.path, heard, Starts(), heard.fail)
        with trio.move_on_after(_WATCHES):
            await heard.ready.wait()
        begun, may_be_there = trio.current_time(), True
        try:
            found = await call(ask.PLANT, pair.source.path, name)
            may_be_there = found is not None
            if may_be_there and heard.why_not is None and heard.ready.is_set():
                with trio.move_on_after(_EVENT):
                    await heard.event.wait()
        except FileTrouble as error:
            raise _unusable(error) from error
        finally:
            if may_be_there:
                await _clear(tell, Side.SOURCE, name, lambda: call(ask.UPROOT, pair.source.path, name))
        nursery.cancel_scope.cancel()
    if heard.at is not None:
        tell(diagnosis.events(max(0.0, heard.at - begun), None))
    elif heard.why_not is not None:
        tell(diagnosis.events(None, heard.why_not))
    elif found is None:
        tell(diagnosis.events_unknown("this user may not make a file there"))
    elif not heard.ready.is_set():
        tell(diagnosis.events_unknown(f"its folders could not be watched within {_WATCHES:.0f} s"))
    else:
        tell(diagnosis.events(None, None))
    for finding in diagnosis.writing(found):
        tell(finding)


class Heard(Changes):
    """Waits for the event of one file."""

    def __init__(self, name: bytes) -> None:
        super().__init__(lambda: None)
        self.ready, self.event = trio.Event(), trio.Event()
        self.at: float | None = None
        self.why_not: str | None = None
        self._name = name

    def watching(self, *, everywhere: bool) -> None:
        self.ready.set()

    def add(self, paths: list[bytes] | None) -> None:
        if paths is not None and self._name in paths and self.at is None:
            self.at = trio.current_time()
            self.event.set()

    def fail(self, why: str) -> None:
        self.why_not = why
        self.ready.set()


async def _examine_destination(pair: Pair, call: Call, tell: Tell) -> None:
    root, folder = pair.ends.destination, b".trioft-doctor-%d" % os.getpid()
    try:
        await _try(call(ask.BEGIN_MEASURING, root, folder))
        # There, so that nothing of it can be left behind either.
        probed = await _try(call(ask.PROBE, os.path.join(root.path, folder), None, None, False))
        for finding in diagnosis.destination(pair.destination, probed):
            tell(finding)
        for what in (*_CHECKS, *_LONG_CHECKS):
            measure = ask.MEASURE.with_patience(_PATIENCE) if what in _LONG_CHECKS else ask.MEASURE
            try:
                found = await call(measure, root, folder, what)
            except FileTrouble as error:
                if classify(error.trouble) in (Remedy.DESTINATION, Remedy.SOURCE):
                    raise _unusable(error) from error
                text, hint = str(error.trouble), hint_for(error.trouble)
                tell(Finding(Side.DESTINATION, what, Result.PROBLEM, text, "it cannot do this", hint))
                continue
            for finding in diagnosis.judge(found):
                tell(finding)
    finally:
        await _clear(tell, Side.DESTINATION, folder, lambda: call(ask.END_MEASURING, root, folder))


async def _try(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except FileTrouble as error:
        raise _unusable(error) from error


async def _clear(tell: Tell, side: Side, name: bytes, remove: Callable[[], Awaitable[None]]) -> None:
    """Remove what was made, whatever has ended us; say so where that does not succeed in time."""
    why = f"no answer for {_CLEARING:.0f} s"
    with trio.move_on_after(_CLEARING, shield=True):
        try:
            await remove()
            return
        except FileTrouble as error:
            why = str(error.trouble)
    text = f"{show_path(name)} is left behind: {why}"
    tell(Finding(side, "clearing up", Result.PROBLEM, text, "nothing else uses it", "remove it"))


def _unusable(error: FileTrouble) -> UnusableError:
    trouble = error.trouble
    return UnusableError(f"cannot use the {trouble.side}: {trouble}", hint=hint_for(trouble))
