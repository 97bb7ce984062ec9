"""Several jobs in one agent: each for itself, whatever happens to the others; shown together."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio

import odd_mover
from operators import SCHEMA, Operator, url_of
from pages import Look, row
from support import PATIENCE, Running, Site, files_of, make_tree, pattern, wait_until
from trioft.agent.agent import run_agent
from trioft.config.file import load_config
from trioft.core.model import MIB, FileState
from trioft.core.naming import partial_of
from trioft.state.board import Entry
from trioft.state.overview import Overview

QUICK = {"source": {"settle": "100ms"}, "retry": {"first": "100ms", "longest": "500ms"}}


class Station:
    """Jobs ``a`` and ``b``, each with two folders, and one configuration for both."""

    def __init__(self, site: Site) -> None:
        self.site, self.file = site, site.root / "station.yaml"
        self.source = {name: site.root / f"{name} in" for name in "ab"}
        self.dest = {name: site.root / f"{name} out" for name in "ab"}
        for folder in (*self.source.values(), *self.dest.values()):
            folder.mkdir()
        self.configure()

    def configure(self, jobs: Mapping[str, Any] | None = None, **groups: Any) -> None:
        """Write the configuration: *groups* for both, *jobs* for one."""
        listed = [
            {
                **(jobs or {}).get(name, {}),
                "name": name,
                "source": {"path": str(self.source[name])},
                "destination": {"path": str(self.dest[name])},
            }
            for name in "ab"
        ]
        config = {**QUICK, "state": {"dir": str(self.site.state)}, **groups, "jobs": listed}
        self.file.write_text(json.dumps(config))

    def sync(self, *options: str) -> Any:
        return self.site.run("sync", "-c", self.file, "--json", *options)

    def watch(self, *options: str) -> Running:
        return self.site.begin("watch", "-c", self.file, "--json", *options)


@pytest.fixture
def station(site: Site) -> Station:
    return Station(site)


def of(job: str, path: str, state: str) -> Callable[[dict[str, Any]], bool]:
    """Return a test for the line that says that a job's file is in *state*."""
    return lambda line: (line.get("job"), line.get("path"), line.get("state")) == (job, path, state)


# --- each for itself


def test_each_job_has_its_own_source_destination_and_ledger(station: Station) -> None:
    """Files of one name are different files; the summary tells of both, and of each."""
    make_tree(station.source["a"], {"x": b"a's", "large": 9 * MIB})
    make_tree(station.source["b"], {"x": b"b's"})
    done = station.sync()
    assert done.code == 0, done.err
    assert files_of(station.dest["a"]) == files_of(station.source["a"])
    assert files_of(station.dest["b"]) == {b"x": b"b's"}
    assert sorted((line["job"], line["path"]) for line in done.lines if line.get("state") == "done") == [
        ("a", "large"),
        ("a", "x"),
        ("b", "x"),
    ]
    assert done.summary["delivered"] == 3
    jobs = {job["name"]: job for job in done.summary["jobs"]}
    assert (jobs["a"]["delivered"], jobs["b"]["delivered"]) == (2, 1)
    assert jobs["a"]["bytes"] + jobs["b"]["bytes"] == done.summary["bytes"]
    assert len(list(station.site.state.glob("*.sqlite"))) == 2
    assert station.sync().summary["already"] == 3


def test_a_run_without_jobs_is_what_it_was(site: Site) -> None:
    """No job has a name there, and nobody hears of jobs."""
    make_tree(site.source, {"x": b"1"})
    done = site.sync()
    assert done.files("done")["x"]["job"] is None
    assert "jobs" not in done.summary


def test_only_the_chosen_jobs_run(station: Station) -> None:
    """``--job`` is repeatable; nothing of the others is touched."""
    for name in "ab":
        make_tree(station.source[name], {"x": b"1"})
    done = station.sync("--job", "b")
    assert [job["name"] for job in done.summary["jobs"]] == ["b"]
    assert files_of(station.dest["a"]) == {}
    assert files_of(station.dest["b"]) == {b"x": b"1"}
    assert station.sync("--job", "b", "--job", "a").summary["delivered"] == 1


def test_each_job_has_its_own_records(station: Station) -> None:
    """``history``, ``explain`` and ``verify`` take the pair of a job by its name."""
    make_tree(station.source["a"], {"x": b"a's"})
    make_tree(station.source["b"], {"x": b"b's", "y": b"2"})
    station.sync()
    of_b = ("-c", station.file, "--job", "b")
    history = station.site.run("history", *of_b, "--json")
    assert {(line["path"], line["event"]) for line in history.lines} == {("x", "delivered"), ("y", "delivered")}
    assert str(station.dest["b"]) in station.site.run("explain", "x", *of_b).out
    (station.dest["b"] / "y").unlink()
    assert station.site.run("verify", "-c", station.file, "--job", "a").code == 0
    assert station.site.run("verify", *of_b).code == 1


def test_a_dry_run_lists_the_files_of_all_jobs(station: Station) -> None:
    """Also where one of them has nowhere to go to."""
    for name in "ab":
        make_tree(station.source[name], {"x": b"1"})
    station.dest["a"].rmdir()
    done = station.sync("--dry-run")
    assert done.code == 3
    assert [(line["job"], line["path"]) for line in done.lines if line["event"] == "file"] == [("b", "x")]
    assert files_of(station.dest["b"]) == {}


@pytest.mark.parametrize(
    ("in_a", "code"),
    [("a failure", 1), ("no destination", 3), ("a source in the destination", 2), ("an open file", 4)],
)
def test_the_exit_code_is_that_of_the_job_that_is_worst_off(station: Station, in_a: str, code: int) -> None:
    """What happens in one job, the other one delivers all the same."""
    make_tree(station.source["b"], {"x": b"1"})
    make_tree(station.source["a"], {"taken": b"mine"})
    with open(station.source["a"] / "open", "wb") if in_a == "an open file" else open(__file__, "rb"):
        match in_a:
            case "a failure":
                make_tree(station.dest["a"], {"taken": b"another"})
            case "no destination":
                station.dest["a"].rmdir()
            case "a source in the destination":
                station.dest["a"].rmdir()
                station.dest["a"].symlink_to(station.site.root)
        done = station.sync("--if-exists", "fail", "--growing", "wait")
    assert done.code == code, done.err
    assert files_of(station.dest["b"]) == {b"x": b"1"}
    codes = {job["name"]: job["exit_code"] for job in done.summary["jobs"]}
    assert codes == {"a": code, "b": 0}
    problem = next(job["problem"] for job in done.summary["jobs"] if job["name"] == "a")
    assert (problem is not None) == (code in (2, 3))
    assert ("trioft: error: a: " in done.err) == (code != 4)


def test_a_signal_ends_all_jobs_and_what_they_have_copied_is_kept(station: Station) -> None:
    """Each records a checkpoint, and goes on from there."""
    station.configure(copy={"bwlimit": "8MiB/s", "checkpoint_size": "8MiB", "checkpoint_time": "100ms"})
    for name in "ab":
        make_tree(station.source[name], {"large": 48 * MIB})
    agent = station.site.begin("sync", "-c", station.file, "--json")
    for name in "ab":
        wait_until(functools.partial(has_more_than, 9 * MIB, station.dest[name]))
    done = agent.end(signal.SIGTERM)
    assert done.code == 143, done.err
    station.configure()
    done = station.sync()
    assert done.code == 0
    assert all(job["bytes_resumed"] >= 8 * MIB for job in done.summary["jobs"])
    for name in "ab":
        assert files_of(station.dest[name]) == files_of(station.source[name])


def has_more_than(size: int, folder: Path) -> bool:
    return any(path.stat().st_size > size for path in folder.iterdir())


# --- one job's trouble


def test_a_destination_that_is_away_is_waited_for_by_its_job_alone(station: Station) -> None:
    """At the start, and later; it says whose it is, and goes on when it is there."""
    for name in "ab":
        make_tree(station.source[name], {"x": b"1"})
    away = station.dest["a"].rename(station.site.root / "away")
    agent = station.watch()
    agent.wait_for(of("b", "x", "done"))
    assert "is not there" in agent.wait_for(lambda line: line["event"] == "storage")["text"]
    away.rename(station.dest["a"])
    agent.wait_for(of("a", "x", "done"))
    station.dest["a"].rename(away)
    make_tree(station.source["a"], {"y": b"2"})
    agent.wait_for(of("a", "y", "waiting"))
    make_tree(station.source["b"], {"y": b"2"})
    agent.wait_for(of("b", "y", "done"))
    assert {line["job"] for line in agent.lines if line["event"] == "storage"} == {"a"}
    away.rename(station.dest["a"])
    agent.wait_for(of("a", "y", "done"))
    assert agent.end().code == 0


def test_a_job_whose_ledger_is_broken_is_started_again_until_it_can_work(station: Station) -> None:
    """Everybody who looks is told of it meanwhile, and the other job goes on."""
    make_tree(station.source["a"], {"x": b"1"})
    station.sync("--job", "a")
    (ledger,) = station.site.state.glob("*.sqlite")
    good = ledger.read_bytes()
    ledger.write_bytes(b"this is no ledger " * 1000)
    make_tree(station.source["a"], {"y": b"2"})
    make_tree(station.source["b"], {"y": b"2"})
    agent = station.watch("--feed", "127.0.0.1:0")
    url = url_of(agent)
    agent.wait_for(of("b", "y", "done"))
    told = agent.wait_for(lambda line: line["event"] == "job")
    assert told["job"] == "a"
    assert f"the ledger {ledger} cannot be used" in told["text"]
    assert state_of(url, "a") == "failed"
    assert state_of(url, "b") == "running"
    with pytest.raises(urllib.error.HTTPError) as unwell:
        urllib.request.urlopen(f"{url}healthz")
    with unwell.value as answer:
        assert [reason.partition(":")[0] for reason in json.load(answer)["reasons"]] == ["a"]
    ledger.write_bytes(good)
    agent.wait_for(of("a", "y", "done"))
    assert agent.wait_for(lambda line: line["event"] == "job" and line != told)["text"] == "the job is at work again"
    assert state_of(url, "a") == "running"
    assert agent.end().code == 0
    assert [line["job"] for line in agent.lines if line["event"] == "job"] == ["a", "a"]


def test_a_job_whose_ledger_is_locked_waits_for_it(station: Station) -> None:
    """Somebody else holds the file's lock: that is said, no job ends, and what goes on meanwhile is recorded after."""
    make_tree(station.source["a"], {"x": b""})
    station.configure(state={"dir": str(station.site.state)}, copy={"bwlimit": "6MiB/s", "checkpoint_time": "1h"})
    agent = station.watch("--feed", "127.0.0.1:0", "--job", "a")
    agent.wait_for(of("a", "x", "done"))
    (ledger,) = station.site.state.glob("*.sqlite")
    make_tree(station.source["a"], {"large": 48 * MIB})
    wait_until(functools.partial(has_more_than, 0, station.dest["a"]))
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        make_tree(station.source["a"], {"y": b"2"})
        told = agent.wait_for(lambda line: line["event"] == "agent")
        assert "is locked" in told["text"]
        assert "it is waited for" in told["text"]
        assert state_of(url_of(agent), "a") == "running"
    agent.wait_for(of("a", "y", "done"))
    agent.wait_for(of("a", "large", "done"))
    assert agent.end().code == 0
    assert files_of(station.dest["a"]) == files_of(station.source["a"])


def test_a_job_whose_ledger_fails_in_the_middle_goes_on_when_it_can(station: Station) -> None:
    """Somebody has taken a table out: what is at hand is given up, and found again; nothing is delivered twice."""
    make_tree(station.source["a"], {"x": b""})
    state = {"dir": str(station.site.state), "shutdown_grace": "100ms"}
    station.configure(state=state, copy={"bwlimit": "6MiB/s", "checkpoint_time": "1h"})
    agent = station.watch("--feed", "127.0.0.1:0", "--job", "a")
    agent.wait_for(of("a", "x", "done"))
    (ledger,) = station.site.state.glob("*.sqlite")
    make_tree(station.source["a"], {"large": 48 * MIB})
    wait_until(functools.partial(has_more_than, 0, station.dest["a"]))
    with without_a_table(ledger):
        make_tree(station.source["a"], {"y": b"2"})
        told = agent.wait_for(lambda line: line["event"] == "job")
        assert "no such table" in told["text"]
        wait_until(lambda: state_of(url_of(agent), "a") == "failed")
        with urllib.request.urlopen(f"{url_of(agent)}status") as answer:
            assert [file["path"] for file in json.load(answer)["files"]] == ["x"]
    agent.wait_for(of("a", "y", "done"))
    agent.wait_for(of("a", "large", "done"))
    assert agent.end().code == 0
    assert files_of(station.dest["a"]) == files_of(station.source["a"])


def test_a_new_configuration_is_nothing_to_what_a_job_had_at_hand_before_it_failed(station: Station) -> None:
    """What it begins again with follows the new one; the files of before are nobody's any more."""
    state = {"dir": str(station.site.state), "shutdown_grace": "100ms"}
    settings = {"state": state, "copy": {"bwlimit": "6MiB/s", "checkpoint_time": "1h"}}
    station.configure(**settings)
    agent = station.watch("--feed", "127.0.0.1:0", "--job", "a")
    agent.wait_for(lambda line: line["event"] == "feed")
    wait_until(lambda: list(station.site.state.glob("*.sqlite")) != [])
    (ledger,) = station.site.state.glob("*.sqlite")
    make_tree(station.source["a"], {"large": 48 * MIB, **{f"other{n}": 2 * MIB for n in range(9)}})
    wait_until(functools.partial(has_more_than, 0, station.dest["a"]))
    with without_a_table(ledger):
        make_tree(station.source["a"], {"y": b"2"})
        wait_until(lambda: state_of(url_of(agent), "a") == "failed")
        station.configure(**settings, source={"exclude": ["other*", "y"]})
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for(lambda line: line["event"] == "reload")
    agent.wait_for(of("a", "large", "done"))
    assert agent.end().code == 0
    assert b"large" in files_of(station.dest["a"])
    assert b"y" not in files_of(station.dest["a"])


@contextlib.contextmanager
def without_a_table(ledger: Path) -> Iterator[None]:
    """While inside, a table that each record needs is not in the ledger."""
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None, timeout=60)) as other:
        other.execute("ALTER TABLE file RENAME TO taken_out")
        yield
        other.execute("ALTER TABLE taken_out RENAME TO file")


def state_of(url: str, name: str) -> Any:
    with urllib.request.urlopen(f"{url}status") as answer:
        message = json.load(answer)
    jsonschema.validate(message, SCHEMA)
    return next(job["state"] for job in message["jobs"] if job["name"] == name)


def test_a_watch_that_is_stopped_while_a_job_cannot_run_says_so_with_its_exit_code(station: Station) -> None:
    """Somebody else works on its pair: exit code 5, although the other job is fine."""
    other = station.site.begin(
        "watch", station.source["a"], station.dest["a"], "--json", "--state-dir", station.site.state
    )
    make_tree(station.source["a"], {"x": b"1"})
    other.wait_for_file("x", "done")
    agent = station.watch()
    assert "another trioft works on this" in agent.wait_for(lambda line: line["event"] == "job")["text"]
    make_tree(station.source["b"], {"x": b"1"})
    agent.wait_for(of("b", "x", "done"))
    done = agent.end()
    assert done.code == 5
    assert [job["exit_code"] for job in done.summary["jobs"]] == [5, 0]
    assert other.end().code == 0


def test_a_watch_ends_by_itself_when_no_job_can_ever_run(station: Station) -> None:
    """A wrong configuration does not get right by waiting: exit code 2."""
    for name in "ab":
        station.dest[name].rmdir()
        station.dest[name].symlink_to(station.source[name])
    done = station.watch().end(0)
    assert done.code == 2
    assert done.err.count("source and destination are the same folder") >= 2


async def test_a_bug_in_one_job_ends_that_one(station: Station) -> None:
    """Its story is told, none of its files is at hand any more, and it is not tried again; the other delivers all."""
    make_tree(station.source["a"], {"large": 9 * MIB})
    make_tree(station.source["b"], {"large": 20 * MIB})
    config = load_config(str(station.file), {})
    overview = Overview(config.jobs)
    a, b = overview.boards
    told: list[tuple[str, str]] = []
    a.notices.append(lambda what, text: told.append((what, text)))
    code = _BUGGY_IN_A.format(source=str(station.source["a"]))
    mover = odd_mover.changed(station.site.root, code)
    with trio.fail_after(PATIENCE):
        assert await run_agent(config, overview, once=True, state_dir=str(station.site.state), mover=mover) is None
    assert b.totals.delivered == 1
    assert files_of(station.dest["b"]) == files_of(station.source["b"])
    assert (a.problem is not None, b.problem) == (True, None)
    assert overview.live == {}
    assert told[0][0] == "job"
    assert "this is a bug in trioft: ZeroDivisionError: a bug" in told[0][1]
    assert "in buggy" in told[0][1]


_BUGGY_IN_A = """
original = mover.OPERATIONS["compare"]
def buggy(source, *arguments):
    if source.path == {source!r}.encode():
        raise ZeroDivisionError("a bug")
    return original(source, *arguments)
mover.OPERATIONS["compare"] = buggy
"""


# --- what they have in common


def test_the_limit_of_throughput_of_all_jobs_holds_for_them_together(station: Station) -> None:
    """Two jobs at once are not faster than one; each may have less of its own."""
    station.configure(agent={"bwlimit": "8MiB/s"}, copy={"bwlimit": "100MiB/s"})
    for name in "ab":
        make_tree(station.source[name], {f"{n}": 4 * MIB for n in range(3)})
    done = station.sync()
    assert done.summary["bytes"] == 24 * MIB
    # What was paid for last takes no time any more.
    assert done.summary["seconds"] >= (24 - 2 * 8) / 8


async def test_the_limit_of_transfers_of_all_jobs_holds_for_them_together(station: Station) -> None:
    """One at a time, whose ever it is; and all of them get their turn."""
    station.configure(agent={"transfers": 1})
    for name in "ab":
        make_tree(station.source[name], {f"{n}": 9 * MIB for n in range(3)})
    config = load_config(str(station.file), {})
    overview = Overview(config.jobs)
    most = 0

    def count(entry: Entry) -> None:
        nonlocal most
        busy = (FileState.COPYING, FileState.VERIFYING)
        most = max(most, sum(entry.state in busy for entry in overview.live.values()))

    for board in overview.boards:
        board.listeners.append(count)
    with trio.fail_after(PATIENCE):
        await run_agent(config, overview, once=True, state_dir=str(station.site.state))
    assert most == 1
    assert overview.totals.delivered == 6


def test_who_waits_for_his_destination_takes_no_place_from_others(station: Station) -> None:
    """With one place for all, the job whose destination is there has it."""
    station.configure(agent={"transfers": 1})
    agent = station.watch()
    for name in "ab":
        make_tree(station.source[name], {"x": b"1"})
        agent.wait_for(of(name, "x", "done"))
    station.dest["a"].rename(station.site.root / "away")
    make_tree(station.source["a"], {f"{n}": 9 * MIB for n in range(6)})
    agent.wait_for(lambda line: line.get("job") == "a" and line.get("state") == "waiting")
    make_tree(station.source["b"], {"y": 9 * MIB})
    agent.wait_for(of("b", "y", "done"))
    agent.end()


def test_an_old_partial_of_another_job_stays_where_they_deliver_into_one_folder(station: Station) -> None:
    """Each job removes only what its own ledger has left."""
    station.dest["b"] = station.dest["a"] / "b"
    station.dest["b"].mkdir()
    station.configure(destination={"if_exists": "rename"})
    partial = station.dest["a"] / "b" / os.fsdecode(partial_of(b"take.mxf", 1, 2, ledger=b"another"))
    partial.write_bytes(b"1")
    os.utime(partial, (0, 0))
    assert station.sync().code == 0
    assert partial.exists()


# --- shown together


@pytest.fixture
def shown(station: Station) -> Iterator[tuple[Running, str, Operator]]:
    """Both jobs at work, with a file that failed in one of them; and an operator at the feed."""
    station.configure({"a": {"copy": {"verify": "transfer", "on_success": "delete"}}}, feed={"control": True})
    make_tree(station.source["a"], {"x": b"a's"})
    make_tree(station.source["b"], {"x": b"b's", "taken": b"mine"})
    make_tree(station.dest["b"], {"taken": b"another"})
    agent = station.watch("--feed", "127.0.0.1:0", "--if-exists", "fail")
    url = url_of(agent)
    agent.wait_for(of("a", "x", "done"))
    agent.wait_for(of("b", "x", "done"))
    agent.wait_for(of("b", "taken", "failed"))
    operator = Operator(int(url.rstrip("/").rpartition(":")[2]))
    try:
        yield agent, url, operator
    finally:
        operator.leave()


def test_one_feed_has_the_files_of_all_jobs(shown: tuple[Running, str, Operator], station: Station) -> None:
    """Under ids of their own, with their job; the sections of today are what all have in common."""
    _, url, operator = shown
    wait_until(lambda: operator.sections.get("totals", {}).get("delivered") == 2)
    files = {(file["job"], file["path"], file["state"]) for file in operator.files.values()}
    assert files == {("a", "x", "done"), ("b", "x", "done"), ("b", "taken", "failed")}
    jobs = {job["name"]: job for job in operator.sections["jobs"]}
    assert [(name, job["verify"], job["on_success"]) for name, job in jobs.items()] == [
        ("a", "transfer", "delete"),
        ("b", "readback", "keep"),
    ]
    assert (operator.sections["agent"]["verify"], operator.sections["agent"]["on_success"]) == ("transfer", "various")
    assert (jobs["a"]["totals"]["failed"], jobs["b"]["totals"]["failed"]) == (0, 1)
    assert operator.sections["totals"]["failed"] == 1
    station.dest["b"].rename(station.site.root / "away")
    make_tree(station.source["b"], {"z": b"1"})
    wait_until(lambda: operator.sections["destination"]["state"] == "away")
    assert operator.sections["destination"]["path"] == str(station.dest["b"])
    assert operator.sections["source"]["state"] == "ok"
    with urllib.request.urlopen(f"{url}status") as answer:
        jsonschema.validate(json.load(answer), SCHEMA)


def test_status_and_metrics_say_whose_everything_is(shown: tuple[Running, str, Operator], site: Site) -> None:
    """A line for each job, a column for its files; a label for its figures."""
    _, url, _ = shown
    done = site.run("status", url)
    assert re.search(r"^a: running$", done.out, re.MULTILINE)
    assert re.search(r"^failed +b +4 B +taken", done.out, re.MULTILINE)
    with urllib.request.urlopen(f"{url}metrics") as answer:
        metrics = answer.read().decode()
    assert 'trioft_files_total{outcome="delivered",transfer_job="a"} 1.0' in metrics
    assert 'trioft_files_total{outcome="failed",transfer_job="b"} 1.0' in metrics
    assert "trioft_feed_clients 1.0" in metrics


def test_jobs_are_paused_together_or_one_by_one(shown: tuple[Running, str, Operator], station: Station) -> None:
    """A paused job copies nothing, while the others go on; a file is its own job's business."""
    agent, _, operator = shown
    assert operator.ask("pause", job="a") == (True, "paused: nothing more is copied until it is resumed")
    make_tree(station.source["a"], {"later": pattern(9 * MIB)})
    make_tree(station.source["b"], {"later": pattern(9 * MIB)})
    agent.wait_for(of("b", "later", "done"))
    wait_until(lambda: [job["paused"] for job in operator.sections["jobs"]] == [True, False])
    assert operator.sections["agent"]["paused"] is False
    assert operator.ask("resume", job="c") == (False, "there is no such job")
    assert operator.ask("pause")[0]
    wait_until(lambda: operator.sections["agent"]["paused"] is True)
    assert not (station.dest["a"] / "later").exists()
    ids = {(file["job"], file["path"]): number for number, file in operator.files.items()}
    assert operator.ask("cancel", ids["a", "later"])[0]
    assert operator.ask("resume")[0]
    agent.wait_for(of("a", "later", "failed"))
    assert operator.ask("retry", ids["a", "later"]) == (True, "later is tried again")
    agent.wait_for(of("a", "later", "done"))


@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="pip install 'trioft[test-page]'")
def test_the_page_has_a_card_for_each_job(shown: tuple[Running, str, Operator], station: Station, look: Look) -> None:
    """May its source be removed? And whose files are these: all of them, or those of one job."""
    from playwright.sync_api import expect

    agent, url, _ = shown
    make_tree(station.source["a"], {"taken": b"of another job"})
    agent.wait_for(of("a", "taken", "done"))
    page = look(url)
    cards = page.locator("#job-list > li")
    expect(cards).to_have_count(2)
    expect(cards.nth(0)).to_contain_text(str(station.dest["a"]))
    expect(cards.nth(0)).to_contain_text("There is no file that could be removed.")
    expect(cards.nth(1)).to_contain_text("1 failed")
    expect(cards.nth(1)).to_contain_text("No: 1 failed.")
    expect(page.locator("#source")).to_be_hidden()
    expect(page.locator("#troubles > li")).to_contain_text("b: taken")
    expect(row(page, "x")).to_have_count(2)
    page.get_by_label("Job", exact=True).select_option("b")
    expect(row(page, "x")).to_have_count(1)
    expect(row(page, "b: x")).to_contain_text("verified by read-back")
    page.get_by_role("button", name="Pause b").click()
    expect(cards.nth(1)).to_contain_text("paused")
    expect(cards.nth(0)).to_contain_text("at work")
    expect(page.locator("#answer")).to_contain_text("paused")
    station.dest["a"].rename(station.site.root / "away")
    make_tree(station.source["a"], {"z": b"1"})
    expect(cards.nth(0)).to_contain_text("not usable since")
    agent.end()
    expect(cards.nth(0)).to_contain_text("Unknown: there is no connection to the agent.")
