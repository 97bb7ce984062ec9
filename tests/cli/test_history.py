"""What happened, as it is recorded on the way and told afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from typer.testing import CliRunner

import odd_mover
from pasts import ask_ledger, filled, ledgers_of, line
from support import OUTCOMES, PATIENCE, ROOT, TRIOFT, Site, make_tree, run_without_privilege, wait_until
from trioft.agent.agent import run_agent
from trioft.cli.app import app
from trioft.cli.history import EVENTS
from trioft.config.options import Config, Destination, Retry, Source
from trioft.core.model import BLOCK_SIZE, FileState, Fingerprint
from trioft.state.board import Board
from trioft.state.journal import Journal
from trioft.state.keeper import run_ledger
from trioft.state.ledger import Ledger, open_port
from trioft.state.reader import Filter, Records

README = (ROOT / "README.md").read_text("utf-8")
LARGE = 4 * BLOCK_SIZE


def ask(site: Site, *options: str | Path) -> list[dict[str, Any]]:
    """Return what ``trioft history`` tells of this site, as JSON."""
    done = site.run("history", site.source, site.dest, "--state-dir", site.state, "--json", *options)
    assert (done.code, done.err) == (0, "")
    return done.lines


def events_of(site: Site, path: str) -> list[tuple[str, str]]:
    """Return event and detail of all that happened to one file."""
    return [(line["event"], line["detail"]) for line in ask(site) if line["path"] == path]


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_a_small_file_that_arrives_at_the_first_attempt_is_one_line(site: Site) -> None:
    """What goes well costs nothing more; how it went, and on which proof, is in that line."""
    make_tree(site.source, {f"{n}": 100 for n in range(20)})
    assert site.sync().code == 0
    lines = ask(site)
    assert [line["event"] for line in lines] == ["delivered"] * 20
    for part in ("verified: readback", "closed: proved", "strategy: bundle", "found: 2", "copied in: "):
        assert part in lines[0]["detail"]


def test_a_file_that_is_held_open_waits_in_one_line(site: Site) -> None:
    """However often it is looked at: that it waited, and for what, is told once."""
    with open(site.source / "held", "wb") as file:
        file.write(b"1")
        file.flush()
        agent = site.watch()
        agent.wait_for_file("held", "settling")
        (ledger,) = ledgers_of(site, 1)
        wait_until(lambda: ask_ledger(ledger, "SELECT 1 FROM history WHERE event = 'settling'"))
        for number in range(5):  # each time it settles anew, and is found to be open
            os.utime(file.fileno())
            (site.source / f"{number}").write_bytes(b"1")
            agent.wait_for_file(f"{number}", "done")
    agent.wait_for_file("held", "done")
    agent.end()
    (first, *_), *rest = events_of(site, "held")
    assert (first, [event for event, _ in rest]) == ("settling", ["delivered"])
    assert events_of(site, "held")[0][1] == "somebody has it open for writing"


async def test_each_error_is_a_line_with_its_attempt_and_its_offset(site: Site, tmp_path: Path) -> None:
    """Who asks why a file took so long finds every attempt."""
    make_tree(site.source, {"file": 1000})
    config = Config(
        source=Source(path=str(site.source), settle_closed=0.01, settle=0.1),
        destination=Destination(path=str(site.dest), if_exists="overwrite"),
        retry=Retry(retries=3, first=0.01),
    )
    mover = odd_mover.refusing(tmp_path, tmp_path / "log", 2, offset=123)
    with trio.fail_after(PATIENCE):
        await run_agent(config, Board(), once=True, state_dir=str(site.state), mover=mover)
    events = await trio.to_thread.run_sync(events_of, site, "file")
    assert [event for event, _ in events] == ["waiting", "waiting", "delivered"]
    for attempt in (1, 2):
        assert "rename 'file' at the destination, byte 123: Device or resource busy" in events[attempt - 1][1]
        assert f"failed attempts: {attempt}" in events[attempt - 1][1]
    assert "failed attempts: 2" in events[2][1]


def test_where_a_transfer_was_resumed_and_what_it_was_called(site: Site) -> None:
    """A large file tells from which byte on it was copied, and under which name it began."""
    make_tree(site.source, {"take.tmp": LARGE})
    (site.root / "c.yaml").write_text("copy: {checkpoint_size: 8MiB, checkpoint_time: 1ms, bwlimit: 16MiB/s}\n")
    options = ("-c", site.root / "c.yaml")
    running = site.start("sync", *options)
    (ledger,) = ledgers_of(site, 1)
    wait_until(lambda: ask_ledger(ledger, "SELECT max(offset) >= 8388608 FROM checkpoint") == [(1,)])
    assert running.end(signal.SIGTERM).code == 143
    os.rename(site.source / "take.tmp", site.source / "take.mxf")
    assert site.sync().code == 0
    assert events_of(site, "take.tmp") == [("copying", "whole, from byte 0; closed: proved")]
    events = dict(events_of(site, "take.mxf"))
    assert list(events) == ["renamed", "copying", "verifying", "delivered"]
    assert events["renamed"] == "it was called take.tmp"
    offset = int(events["copying"].partition("from byte ")[2].partition(";")[0])
    assert 0 < offset < LARGE
    assert offset % BLOCK_SIZE == 0


def test_a_folder_that_cannot_be_read_has_failed(site: Site) -> None:
    """What is below it was not delivered: whoever looks for failures finds it."""
    make_tree(site.source, {"shut/a": 1})
    (site.source / "shut").chmod(0)
    run_without_privilege("sync", site.source, site.dest, "--state-dir", site.state, "--settle", "0s")
    (site.source / "shut").chmod(0o755)
    ((event, detail),) = events_of(site, "shut")
    assert event == "failed"
    assert "Permission denied" in detail


async def test_the_journal_is_bounded_for_each_file_and_in_all(tmp_path: Path) -> None:
    """Promise 7: a file that is never left alone fills neither memory nor ledger, and what is lost is counted."""
    path = str(tmp_path / "ledger.sqlite")
    board = Board()
    journal = Journal(board)
    fingerprint = Fingerprint(1, 1, 1, 1, 1)
    restless = board.add(b"restless", fingerprint)
    for number in range(1000):
        board.remark(restless, "retried", f"{number}")
    for number in range(11_000):
        board.move(board.add(b"%d" % number, fingerprint), FileState.SETTLING, "somebody has it open for writing")
    port, requests = open_port(1)
    async with trio.open_nursery() as services:
        services.start_soon(run_ledger, Ledger(path), requests)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run, port)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    with contextlib.closing(Records(path)) as records:
        lines = list(records.history(Filter()))
    assert sum(line.path == b"restless" for line in lines) == 100
    assert (len(lines), lines[-1].event, lines[-1].detail) == (10_001, "lost", "1,100 lines: the ledger is too slow")
    assert {line.event for line in lines} <= set(EVENTS)


# --- what is told -----------------------------------------------------------------------------------------------------


LINES = [
    line("delivered", b"old.mov", 7200),
    line("failed", b"day/bad.mxf", 5400, detail="write: no"),
    line("delivered", b"day/good.mxf", 3000, detail="verified: readback"),
    line("refused", b"day/good.mxf", 2999, detail="Permission denied"),
    line("waiting", b"late", 60, detail="space: 1 B free"),
]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["--since", "90m", "--until", "10m"], [2, 3]),
        (["--since", "100m"], [1, 2, 3, 4]),
        (["--until", "2000-01-01"], []),
        (["--since", "2000-01-01T00:00:00+02:00"], [0, 1, 2, 3, 4]),
        (["--failed"], [1, 3]),
        (["--failed", "--event", "waiting"], [1, 3, 4]),
        (["--event", "delivered"], [0, 2]),
        (["--path", "*.mxf"], [1, 2, 3]),
        (["--path", "day", "--event", "delivered"], [2]),
        (["--limit", "2"], [3, 4]),
        (["--limit", "99"], [0, 1, 2, 3, 4]),
        (["--limit", "1", "--path", "day/*"], [3]),
    ],
    ids=lambda value: " ".join(map(str, value)) or "all",
)
def test_filters_choose_lines(site: Site, options: list[str], expected: list[int]) -> None:
    """All of them together; the newest comes last."""
    filled(site, LINES)
    pair = [str(site.source), str(site.dest), "--state-dir", str(site.state)]
    done = CliRunner().invoke(app, ["history", *pair, "--json", *options])  # in this process, as there are many
    assert (done.exit_code, done.stderr) == (0, "")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["event"], line["path"]) for line in told] == [(LINES[n][1], LINES[n][2].decode()) for n in expected]


def test_text_has_one_line_for_each_event(site: Site) -> None:
    """Time by this machine's clock, event, size, path, detail; what a terminal must not see is escaped."""
    filled(site, [*LINES, line("failed", b"new\nline\x1b", 1, detail="rename: \x1b[31m")])
    done = site.run("history", site.source, site.dest, "--state-dir", site.state, env={"TZ": "Asia/Tokyo"})
    first, *_, last = done.out.splitlines()
    assert len(done.out.splitlines()) == len(LINES) + 1
    when = datetime.fromisoformat(LINES[0].time) + timedelta(hours=9)
    assert first == f"{when:%Y-%m-%d %H:%M:%S}  delivered       7 B  old.mov"
    assert last.endswith(r"failed          7 B  new\nline\x1b  (rename: \x1b[31m)")


def test_json_has_exact_names_and_documented_fields(site: Site) -> None:
    """A removal tells its proofs; a name that is no UTF-8 has its bytes."""
    make_tree(site.source, {b"odd\xff": b"1"})
    assert site.sync("--on-success", "delete").code == 0
    delivered, removed = ask(site)
    assert (delivered["path"], delivered["path_b64"]) == ("odd\\xff", "b2Rk/w==")
    assert (delivered["digest"], delivered["proofs"]) != (None, {})
    assert removed["proofs"]["durable_and_verified"] == "readback"
    assert removed["detail"].startswith("deleted, after its copy was durable and verified (readback)")
    assert (removed["source"], removed["destination"]) == (str(site.source), str(site.dest))
    for field in {*delivered, *removed["proofs"]}:
        assert f"`{field.removesuffix('_b64')}`" in README, field
    for event in EVENTS:
        assert f"`{event}`" in README, event
    assert set(OUTCOMES) <= set(EVENTS)


def test_without_a_pair_all_are_told_in_the_order_of_time(site: Site) -> None:
    """One stream, with the newest of all, and each line says where it belongs."""
    filled(site, [line("delivered", b"%d" % n, 100 - n) for n in (0, 2, 4)])
    filled(site, [line("delivered", b"%d" % n, 100 - n) for n in (1, 3, 5)], at="-b")
    done = site.run("history", "--state-dir", site.state, "--json")
    assert [line["path"] for line in done.lines] == ["0", "1", "2", "3", "4", "5"]
    assert [line["source"] for line in done.lines] == [str(site.source), f"{site.source}-b"] * 3
    done = site.run("history", "--state-dir", site.state, "--json", "--limit", "3")
    assert [line["path"] for line in done.lines] == ["3", "4", "5"]
    assert f"{site.source}-b: 5" in site.run("history", "--state-dir", site.state).out


def test_a_long_history_is_read_in_pages(site: Site) -> None:
    """In order and complete, whichever page a line is on; and who stops reading holds nobody up."""
    path = filled(site, [line("delivered", b"%d" % n, (5000 - n) // 2000) for n in range(5000)])
    with contextlib.closing(Records(path)) as records:
        told = records.history(Filter())
        assert next(told).path == b"0"
        # A reader that stayed in its transaction would keep SQLite from taking up what is written: busy is 1 then.
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO about VALUES ('more', x'00')")
            db.commit()
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert [int(line.path) for line in told] == list(range(1, 5000))
        assert [int(line.path) for line in records.history(Filter(), 2500)] == list(range(2500, 5000))


def test_history_is_told_while_an_agent_writes_it(site: Site) -> None:
    """It needs no lock, and takes none."""
    make_tree(site.source, {"a": 1})
    agent = site.watch()
    agent.wait_for_file("a", "done")
    assert [line["path"] for line in ask(site)] == ["a"]
    make_tree(site.source, {"b": 1})
    agent.wait_for_file("b", "done")
    assert [line["path"] for line in ask(site)] == ["a", "b"]
    assert agent.end().code == 0


def test_the_pair_is_found_by_any_name_and_without_its_ends(site: Site) -> None:
    """By way of a link, relative, from the configuration; and when neither end is there any more."""
    filled(site, LINES[:1])
    (site.root / "link").symlink_to(site.source)
    done = site.run("history", site.root / "link", site.dest, "--state-dir", site.state)
    assert "old.mov" in done.out, done.err
    config = site.root / "c.yaml"
    config.write_text(json.dumps({"source": {"path": str(site.source)}, "destination": {"path": str(site.dest)}}))
    site.source.rmdir()
    site.dest.rmdir()
    done = site.run("history", "-c", config, "--state-dir", site.state)
    assert "old.mov" in done.out, done.err


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (
            ["--since", "3", "--until", "2026-02-30", "--event", "exploded", "--path", "[z-a]"],
            2,
            [
                '--since: found "3", expected a duration, such as 2h, or a date',
                '--until: found "2026-02-30"',
                '--event: found "exploded", expected one of delivered, ',
                "'[z-a]' is no pattern",
            ],
        ),
        (["SOURCE"], 2, ["DEST missing", "hint: known are: "]),
        (["/nowhere", "/at/all"], 3, ["nothing is on record of /nowhere and /at/all", "hint: known are: "]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_usage_is_refused(site: Site, arguments: list[str], code: int, fragments: list[str]) -> None:
    """With a sentence for each thing that is wrong, and what there is instead."""
    filled(site, LINES)
    done = site.run("history", *arguments, "--state-dir", site.state)
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err
    for fragment in fragments:
        assert fragment in done.err


def _older(path: Path) -> Iterator[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 1")
    yield "was written by an older trioft"
    yield "hint: use `trioft sync` or `trioft watch` on this pair once"


def _damaged(path: Path) -> Iterator[str]:
    path.write_bytes(b"SQLite format 3\0" + bytes(5000))
    yield "cannot be used"


def _foreign(path: Path) -> Iterator[str]:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    yield "is an SQLite file, but no ledger of trioft"


@pytest.mark.parametrize("change", [_older, _damaged, _foreign], ids=lambda change: change.__name__)
def test_a_ledger_that_cannot_be_read_is_said_and_left_alone(site: Site, change: Any) -> None:
    """Exit code 3; it is neither brought up to date nor repaired by who only reads."""
    path = Path(filled(site, LINES))
    fragments = list(change(path))
    before = path.read_bytes()
    done = site.run("history", "--state-dir", site.state)
    assert (done.code, done.out) == (3, "")
    for fragment in fragments:
        assert fragment in done.err
    assert path.read_bytes() == before


def test_a_ledger_in_a_folder_that_cannot_be_written_is_read(site: Site) -> None:
    """A copy for the archive, or another user's: reading needs no more than to be allowed to read."""
    filled(site, LINES)
    for file in site.state.iterdir():
        file.chmod(0o444)
    site.state.chmod(0o555)
    done = run_without_privilege("history", "--state-dir", site.state)
    site.state.chmod(0o755)
    assert (done.code, len(done.out.splitlines())) == (0, len(LINES)), done.err


def test_nothing_on_record_is_no_error(site: Site) -> None:
    """A machine on which nothing was transferred yet has an empty history."""
    done = site.run("history", "--state-dir", site.state)
    assert (done.code, done.out) == (0, "")
    assert "nothing is on record" in done.err


def test_a_full_disk_for_the_output_is_said(site: Site) -> None:
    """Whoever redirects it to a full disk does not take half of it for all."""
    filled(site, LINES)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*TRIOFT, "history", "--state-dir", str(site.state)],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (3, b"trioft: error: cannot write to stdout: No space left on device\n")
