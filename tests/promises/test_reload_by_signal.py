"""SIGHUP: a running trioft reads its configuration again, and what can change at once does."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support import PATIENCE, TRIOFT, Done, Running, Site, files_of, make_tree, movers_of, wait_until
from trioft.core.model import BLOCK_SIZE, MIB


class Operated:
    """A running trioft with a configuration file that can be written anew."""

    def __init__(self, site: Site, command: str, *options: str, **groups: object) -> None:
        self.file = site.root / "trioft.yaml"
        self.write(**groups)
        self.run: Running = site.start(command, "-c", self.file, *options)
        self.wait_for, self.wait_for_file = self.run.wait_for, self.run.wait_for_file

    def write(self, **groups: object) -> None:
        self.file.write_text(json.dumps(groups))  # YAML can be JSON

    def hang_up(self) -> None:
        self.run.process.send_signal(signal.SIGHUP)

    def reload(self, **groups: object) -> str:
        """Have other *groups* read, and return what was said to be in effect since."""
        before = {id(line) for line in self.run.lines}
        self.write(**groups)
        self.hang_up()
        began = "the configuration was read again: "
        told = self.wait_for(lambda line: id(line) not in before and line.get("text", "").startswith(began))
        return str(told["text"]).removeprefix(began)

    def in_order(self, state: str) -> list[str]:
        return [line["path"] for line in self.run.lines if line.get("state") == state]

    def end(self, number: int = signal.SIGTERM) -> Done:
        """End it; nothing has failed."""
        done = self.run.end(number)
        assert (done.code, done.summary["failed"]) == (0, 0), done.err
        return done


def make_files(site: Site, count: int, size: int) -> None:
    """Make f0, f1, … of which each is newer than the one before, and all are old."""
    for n in range(count):
        make_tree(site.source, {f"f{n}": size})
        os.utime(site.source / f"f{n}", (1e9 + n, 1e9 + n))


@pytest.mark.parametrize("command", ["sync", "watch"])
def test_a_limit_that_is_lifted_is_lifted_for_those_that_wait(site: Site, command: str) -> None:
    """A transfer that would go on for minutes under the old limit is over in a moment."""
    make_tree(site.source, {"large": 6 * BLOCK_SIZE})
    agent = Operated(site, command, copy={"bwlimit": "100KB/s"})
    agent.wait_for_file("large", "copying")
    assert agent.reload(copy={"bwlimit": "off"}) == "copy.bwlimit is off, was 100KB/s"
    agent.wait_for_file("large", "done")
    agent.end(0 if command == "sync" else signal.SIGTERM)
    assert files_of(site.dest) == files_of(site.source)


def test_another_order_holds_for_those_that_are_ready(site: Site) -> None:
    """What is under way, and the next that was handed out, goes on; then the order is the new one."""
    make_files(site, 6, 1_100_000)
    groups: dict[str, object] = {"bwlimit": "4MB/s", "transfers": 1}
    agent = Operated(site, "watch", "--settle", "0s", copy=groups)
    agent.wait_for_file("f0", "copying")
    assert agent.reload(copy={**groups, "order": "newest"}) == "copy.order is newest, was oldest"
    for n in range(6):
        agent.wait_for_file(f"f{n}", "done")
    first, *others = agent.in_order("copying")
    assert first == "f0"
    if others[0] == "f1":
        others.append(others.pop(0))
    assert others == ["f5", "f4", "f3", "f2", "f1"]
    agent.end()


def test_more_or_fewer_files_are_copied_at_a_time_at_once(site: Site) -> None:
    """More begin while the first goes on; fewer are left as those that are at work are done, and none is disturbed."""
    make_files(site, 6, 2 * MIB)
    agent = Operated(site, "watch", copy={"bwlimit": "6MB/s", "transfers": 1})
    agent.wait_for_file("f0", "copying")
    assert agent.reload(copy={"bwlimit": "6MB/s", "transfers": 3}) == "copy.transfers is 3, was 1"
    for n in range(6):
        agent.wait_for_file(f"f{n}", "done")
    assert most_at_a_time(agent.run.lines) == 3
    agent.reload(copy={"bwlimit": "6MB/s", "transfers": 1})
    agent.run.lines.clear()
    make_tree(site.source, {f"g{n}": 2 * MIB for n in range(3)})
    for n in range(3):
        agent.wait_for_file(f"g{n}", "done")
    assert most_at_a_time(agent.run.lines) == 1
    agent.end()
    assert files_of(site.dest) == files_of(site.source)


def most_at_a_time(lines: list[dict[str, Any]]) -> int:
    active: set[str] = set()
    most = 0
    for line in lines:
        if line["event"] == "file":
            (active.add if line["state"] == "copying" else active.discard)(line["path"])
            most = max(most, len(active))
    return most


def test_more_recordings_are_followed_as_soon_as_there_may_be_more(site: Site) -> None:
    """One that had to wait for a lane is copied while it grows, too."""
    growing = {"min_size": "1B"}
    agent = Operated(site, "watch", growing={**growing, "transfers": 1})
    with open(site.source / "a", "wb") as first, open(site.source / "b", "wb") as second:
        for recording in (first, second):
            recording.write(bytes(MIB))
            recording.flush()
        for name in "ab":
            agent.wait_for_file(name, "growing")
        agent.wait_for(lambda line: line.get("state") == "copying")
        agent.reload(growing={**growing, "transfers": 2})
        for name in "ab":
            agent.wait_for_file(name, "copying")
    for name in "ab":
        agent.wait_for_file(name, "done")
    agent.end()


def test_other_files_are_wanted_at_once(site: Site) -> None:
    """What is wanted now is looked for, however long until the next scan; what waited and is not wanted is let go."""
    make_files(site, 4, 3 * MIB)
    make_tree(site.source, {"late": b"1"})
    slow = {"bwlimit": "100KB/s", "transfers": 1}
    agent = Operated(site, "watch", source={"include": ["f*"], "scan_interval": "1h"}, copy=slow)
    agent.wait_for_file("f0", "copying")
    said = agent.reload(source={"exclude": ["f2", "f3"], "scan_interval": "1h"})
    assert said.startswith('source.include is [], was ["f*"]; source.exclude is ["f2", "f3"], was []; ')
    agent.wait_for_file("late", "done")
    for name in ("f0", "f1"):
        agent.wait_for_file(name, "done")
    done = agent.end()
    assert {*files_of(site.dest)} == {b"f0", b"f1", b"late"}
    assert done.summary["delivered"] == 3


def test_files_that_wait_for_space_go_on_as_soon_as_less_has_to_stay_free(site: Site) -> None:
    """They do not wait for the next look at the destination, which may be far."""
    make_tree(site.source, {"a": b"1"})
    agent = Operated(site, "watch", destination={"min_free": "100%", "check_interval": "1h"})
    agent.wait_for_file("a", "waiting")
    said = agent.reload(destination={"min_free": "0B", "check_interval": "1h"})
    assert said == "destination.min_free is 0B, was 100%"
    agent.wait_for_file("a", "done")
    agent.end()


def test_what_cannot_change_is_told(site: Site) -> None:
    """Each option that needs a start is named; the others of the same file hold already. No secret is told."""
    agent = Operated(site, "watch")
    make_tree(site.source, {"a": b"1"})
    agent.wait_for_file("a", "done")
    said = agent.reload(
        copy={"movers": 1, "transfers": 2, "verify": "transfer"},
        feed={"token": "correct horse battery".replace(" ", "-"), "control": True},
        state={"shutdown_grace": "1s"},
        log={"level": "warning"},
    )
    assert said == "copy.transfers is 2, was 4; log.level is warning, was info"
    later = [line["text"] for line in agent.run.lines if "next start" in line.get("text", "")]
    names = ["copy.movers", "copy.verify", "feed.token", "feed.control", "state.shutdown_grace"]
    assert later == [f"{name}: takes effect at the next start" for name in names]
    done = agent.end()
    assert "correct" not in done.out + done.err
    assert "read again" not in done.err, "the level holds at once"


def test_a_bad_configuration_is_refused_as_a_whole(site: Site) -> None:
    """Every problem is told at once, also with --quiet, and all that was in effect stays; a good one is then taken."""
    agent = Operated(site, "watch", "--quiet", copy={"transfers": 2})
    make_tree(site.source, {"a": b"1"})
    agent.wait_for_file("a", "done")
    agent.write(copy={"transfers": 0, "order": "newest", "bwlimt": "off"})
    agent.hang_up()
    agent.wait_for(lambda line: "is refused as a whole" in line.get("text", ""))
    texts = [line["text"] for line in agent.run.lines if line["event"] == "config"]
    *problems, last = texts
    assert {*problems} == {
        f"{agent.file}: copy.bwlimt: unknown key, did you mean bwlimit?",
        f"{agent.file}: copy.transfers: found 0, expected a whole number from 1 to 64",
    }
    assert last == "the new configuration is refused as a whole: the one in effect stays"
    agent.file.unlink()
    agent.hang_up()
    agent.wait_for(lambda line: "cannot be read: No such file or directory" in line.get("text", ""))
    assert agent.reload(copy={"order": "newest"}) == "copy.transfers is 4, was 2; copy.order is newest, was oldest"
    make_tree(site.source, {"b": b"2"})
    agent.wait_for_file("b", "done")
    done = agent.end()
    assert "copy.transfers: found 0" in done.err
    assert "read again" not in done.err


def test_the_command_line_stays_laid_over_the_file(site: Site) -> None:
    """What was typed holds until the end, as it did from the beginning."""
    agent = Operated(site, "watch", "--bwlimit", "50MB/s", copy={"bwlimit": "1MB/s"})
    make_tree(site.source, {"a": b"1"})
    agent.wait_for_file("a", "done")
    assert agent.reload(copy={"bwlimit": "2MB/s"}) == "nothing else holds now"
    assert agent.reload(copy={"bwlimit": "2MB/s", "order": "name"}) == "copy.order is name, was oldest"
    agent.end()


def test_without_a_file_there_is_nothing_to_read(site: Site) -> None:
    """That is said, and nothing changes; least of all does it end."""
    agent = site.watch()
    make_tree(site.source, {"a": b"1"})
    agent.wait_for_file("a", "done")
    agent.process.send_signal(signal.SIGHUP)
    told = agent.wait_for(lambda line: line["event"] == "config")
    assert told["text"] == "there is no configuration file to be read again: it is named with -c or TRIOFT_CONFIG"
    make_tree(site.source, {"b": b"2"})
    agent.wait_for_file("b", "done")
    assert agent.end().code == 0


def test_a_configuration_is_also_read_while_the_destination_is_waited_for(site: Site) -> None:
    """What it says holds when there is something to do."""
    site.dest.rmdir()
    make_files(site, 3, 2 * MIB)
    agent = Operated(site, "watch", retry={"first": "100ms"}, copy={"transfers": 1})
    agent.wait_for(lambda line: line["event"] == "storage")
    agent.reload(retry={"first": "100ms", "longest": "200ms"}, copy={"transfers": 1, "order": "newest"})
    site.dest.mkdir()
    for n in range(3):
        agent.wait_for_file(f"f{n}", "done")
    assert agent.in_order("copying") == ["f2", "f1", "f0"]
    agent.end()


def test_many_signals_do_no_harm(site: Site) -> None:
    """A signal in any moment, from the beginning to the end, costs no file and leaves no process."""
    make_tree(site.source, {**{f"f{n}": 300_000 for n in range(20)}, "large": 2 * BLOCK_SIZE})
    agent = Operated(site, "sync", copy={"bwlimit": "20MB/s"})
    agent.wait_for(lambda line: line["event"] == "file")
    children = movers_of(agent.run.process.pid)
    for n in range(30):
        if agent.run.process.poll() is not None:
            break
        agent.write(
            copy={"bwlimit": f"{n % 5 * 5 + 10}MB/s", "transfers": n % 3 + 1, "order": ["name", "largest"][n % 2]}
        )
        agent.hang_up()
        time.sleep(0.05)
    agent.end(0)
    assert files_of(site.dest) == files_of(site.source)
    assert children
    wait_until(lambda: not [pid for pid in children if os.path.exists(f"/proc/{pid}")])


@pytest.mark.parametrize(("hour", "table", "least"), [(6, "00:00,1MB 12:00,1B", 1.1), (18, "00:00,1B 12:00,off", 0)])
def test_a_timetable_goes_by_the_local_clock(site: Site, hour: int, table: str, least: float) -> None:
    """In the morning there is one limit, in the evening another; morning and evening are where the agent is."""
    make_tree(site.source, {f"f{n}": 1_100_000 for n in range(2)})
    zone = f"HERE{-((hour - time.gmtime().tm_hour) % 24)}"  # west is positive
    options: list[str | Path] = ["--state-dir", site.state, "--settle", "100ms", "--json", "--bwlimit", table]
    done = site.run("sync", site.source, site.dest, *options, env={"TZ": zone})
    assert (done.code, done.summary["delivered"]) == (0, 2)
    assert done.summary["seconds"] > least


def test_a_terminal_that_goes_ends_what_was_started_in_it(tmp_path: Path, site: Site) -> None:
    """Whoever closes the window does not leave a transfer behind: it stops as with Ctrl-C, and is resumable."""
    make_tree(site.source, {"large": 6 * BLOCK_SIZE})
    arguments = ["sync", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms", "--bwlimit", "10MiB/s"]
    here, there = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *TRIOFT, *map(str, arguments)], stdin=there, stdout=there, stderr=there
    )
    os.close(there)
    wait_until(lambda: any(path.stat().st_size > BLOCK_SIZE for path in site.dest.glob("*.trioft-partial")))
    os.close(here)
    assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= BLOCK_SIZE
