"""
``trioft verify``: what was delivered is read again at the destination, and compared with the ledger's digests.

Movers read, block by block and from behind the page cache, several files at a time. What is found is kept as it is
found: an interrupted verification goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from trioft.agent.signals import ended_by
from trioft.cli.history import Wish, parse_wish
from trioft.cli.pairs import ledger_of
from trioft.cli.progress import clock, draw
from trioft.cli.voice import Voice, terminal, to_stderr, translate
from trioft.config.options import Config
from trioft.core.errors import FileTrouble, UnusableError, show_path
from trioft.core.units import size_text
from trioft.movers.pool import Movers
from trioft.pipeline.inquiry import count_unrecorded
from trioft.pipeline.throttle import Rate, Throttle
from trioft.pipeline.verification import (
    CHANGED,
    FAILURES,
    MISMATCH,
    MISSING,
    NO_DIGEST,
    UNREADABLE,
    Judgement,
    Tally,
    Verification,
)
from trioft.state.fields import path_fields
from trioft.state.findings import VERIFIED, Findings, findings_path
from trioft.state.lock import Lock
from trioft.state.reader import Records

if TYPE_CHECKING:
    from rich.console import RenderableType


class Allowed(NamedTuple):
    """What is no failure, as somebody has said so."""

    changed: bool = False  # somebody has replaced what was delivered
    none: bool = False  # nothing that was asked for is on record


def run_verify(
    config: Config,
    state_dir: str,
    wish: Wish,
    *,
    again: bool,
    allowed: Allowed,
    as_json: bool,
    quiet: bool,
    progress: bool,
) -> int:
    """Run ``trioft verify``; return its exit code. Raises ``TrioftError``."""
    wanted = parse_wish(wish)
    path = ledger_of(config, state_dir)
    screen = terminal() if progress and not quiet else None
    voice = Voice(lambda: "error" if quiet else config.log.level, to_stderr(screen), as_json=as_json)
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(contextlib.closing(Records(path)))
        lock = Lock(findings_path(path) + ".lock")
        stack.callback(lock.release)
        findings = stack.enter_context(contextlib.closing(Findings(findings_path(path))))
        findings.begin(json.dumps([wish.since, wish.path]), again=again)
        tally, begun = Tally(), time.monotonic()
        bad = FAILURES if allowed.changed else (*FAILURES, CHANGED)
        unrecorded: list[int | str] = []  # how many files of the source are not on record, or why nobody can tell

        async def run() -> int | None:
            async with (
                ended_by(signal.SIGINT, signal.SIGTERM) as received,
                Movers(config.copy.movers, config.copy.stall_timeout) as movers,
                trio.open_nursery() as helpers,
            ):
                throttle = Throttle(config.copy.bwlimit.now())
                helpers.start_soon(throttle.follow, config.copy.bwlimit.now)
                verification = Verification(
                    config=config,
                    records=records,
                    findings=findings,
                    wanted=wanted,
                    movers=movers,
                    throttle=throttle,
                    tally=tally,
                    tell=functools.partial(_tell, voice, bad),
                )
                if screen is None:
                    await verification.run()
                else:
                    await verification.measure()
                    rate = Rate()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(
                            draw, lambda: picture(tally, rate.add(trio.current_time(), tally.bytes)), screen
                        )
                        await verification.run()
                        nursery.cancel_scope.cancel()
                try:
                    unrecorded.append(await count_unrecorded(movers.call, records, wanted.paths))
                except FileTrouble as error:
                    unrecorded.append(str(error))
                helpers.cancel_scope.cancel()
            return received[0] if received else None

        try:
            stopped_by = trio.run(run)
        except BaseException as error:
            voice.end(1)
            translate(error)
        if stopped_by is None:
            findings.end()
        is_none = not tally.files and not tally.skipped and stopped_by is None and not allowed.none
        has_failed = is_none or any(tally.counts[verdict] for verdict in bad)
        _tell_summary(voice, tally, time.monotonic() - begun, unrecorded[0] if unrecorded else None, failed=has_failed)
        if is_none:
            what = "nothing of what was asked for is" if wish.since or wish.path else "nothing is"
            voice.say("error", f"{what} on record as delivered: nothing was verified (--allow-none lets that pass)")
        if stopped_by is not None:
            voice.say("warning", "interrupted; the same command goes on where it stopped")
            voice.end(1)
            return 128 + stopped_by
    voice.end(None)
    return int(has_failed) if has_failed or voice.torn is None else UnusableError.exit_code


def _tell(voice: Voice, bad: Sequence[str], judged: Judgement) -> None:
    delivery, verdict, detail, _ = judged
    level = "error" if verdict in bad else "warning" if verdict == CHANGED else "debug"
    voice.say(level, f"{show_path(delivery.target)}: {verdict}" + (f": {detail}" if detail else ""))
    voice.emit(
        "verify",
        **path_fields("path", delivery.path),
        **path_fields("dest", delivery.target),
        verdict=verdict,
        size=delivery.size,
        digest=delivery.digest.hex() if delivery.digest is not None else None,
        detail=detail or None,
    )


def _tell_summary(voice: Voice, tally: Tally, seconds: float, unrecorded: int | str | None, *, failed: bool) -> None:
    counts = {**tally.counts, VERIFIED: tally.counts[VERIFIED] + tally.skipped}
    not_on_record = unrecorded if isinstance(unrecorded, int) else None
    voice.emit(
        "summary",
        **counts,
        not_on_record=not_on_record,
        bytes=tally.bytes,
        resumed=tally.skipped,
        seconds=round(seconds, 3),
    )
    before = f" ({tally.skipped:,} of them before it was interrupted)" if tally.skipped else ""
    parts = [f"{counts[VERIFIED]:,} verified{before}"]
    for verdict, words in (
        (MISSING, "missing"),
        (MISMATCH, "not what was delivered"),
        (CHANGED, "replaced since by somebody"),
        (NO_DIGEST, "without a digest on record, of the right size"),
        (UNREADABLE, "unreadable"),
    ):
        if counts[verdict]:
            parts.append(f"{counts[verdict]:,} {words}")
    level = "error" if failed else "info"
    voice.say(level, f"{', '.join(parts)}: {size_text(tally.bytes)} read in {seconds:.1f} s")
    if isinstance(unrecorded, str):
        voice.say("warning", f"nobody knows whether all files of the source are on record: {unrecorded}")
    elif unrecorded:
        files = "1 file of the source is" if unrecorded == 1 else f"{unrecorded:,} files of the source are"
        voice.say("warning", f"{files} not on record as delivered in the present version: nothing was verified of that")


def picture(tally: Tally, rate: float | None) -> RenderableType:
    """Return what the terminal shows."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = tally.bytes + tally.skipped_bytes
    head = Text(f"{tally.files + tally.skipped:,} of {tally.all_files:,} files", style="bold")
    head.append(f"; {size_text(done)} of {size_text(tally.all_bytes)}", style="")
    if bad := sum(tally.counts[verdict] for verdict in FAILURES):
        head.append(f"; {bad:,} not good", style="bold red")
    if rate:
        head.append(f"; {size_text(round(rate))}/s, {clock(max(0, tally.all_bytes - done) / rate)} left")
    bar = Table.grid()  # a bar alone does not end its line
    bar.add_row(ProgressBar(total=max(1, tally.all_bytes), completed=done, width=60))
    return Group(head, bar)
