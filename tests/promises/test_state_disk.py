"""The disk of the state is full, or its ledger is locked by somebody: a watch waits, and a sync does for a while."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import Running, Site, files_of, make_tree, mounted, wait_until

OPTIONS = """
source: {settle: 100ms, settle_closed: 100ms, scan_interval: 300ms}
copy: {on_success: delete}
"""


def ledger_of(site: Site) -> Path:
    (path,) = site.state.glob("*.sqlite")
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have the ledger locked, as a shell does in which somebody has begun a transaction."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        yield
        shell.execute("ROLLBACK")


def left(site: Site) -> int:
    """Return how many files the source has still."""
    return sum(len(files) for _, _, files in os.walk(site.source))


def started(site: Site) -> Running:
    (site.root / "trioft.yaml").write_text(OPTIONS)
    agent = site.watch("-c", site.root / "trioft.yaml")
    make_tree(site.source, {"first": b"1"})
    agent.wait_for_file("first", "done")
    return agent


def is_about_the_ledger(text: str) -> bool:
    return text.startswith("ledger: the ledger ") and "it is waited for, and nothing is removed meanwhile" in text


def test_a_watch_waits_for_a_ledger_that_somebody_has_locked(site: Site) -> None:
    """No file is reported, and no source removed, before that is on record; then all goes on by itself."""
    agent = started(site)
    with locked(ledger_of(site)):
        make_tree(site.source, {f"new {n}": b"2" for n in range(20)})
        told = agent.wait_for(lambda line: line["event"] == "agent")
        assert is_about_the_ledger(told["text"])
        assert "database is locked" in told["text"]
        assert len(files_of(site.source)) == 20
        assert not [line for line in agent.lines if line.get("state") == "done" and line["path"] != "first"]
    agent.wait_for(lambda line: line["event"] == "agent" and line["text"] == "ledger: it works again")
    wait_until(lambda: not left(site))
    done = agent.end()
    assert (done.code, done.summary["delivered"], done.summary["failed"]) == (0, 21, 0)
    assert len(files_of(site.dest)) == 21


def test_a_watch_that_waits_for_its_ledger_can_be_stopped(site: Site) -> None:
    """Within the grace period, and nothing is lost: the next one finds out what was not recorded."""
    agent = started(site)
    with locked(ledger_of(site)):
        make_tree(site.source, {"new": b"2"})
        agent.wait_for(lambda line: line["event"] == "agent")
        done = agent.end(signal.SIGTERM, 20)
        assert done.code in (0, 3)
        assert "Traceback" not in done.err
        assert files_of(site.source) == {b"new": b"2"}
    again = site.watch("-c", site.root / "trioft.yaml")
    again.wait_for_file("new", "done")
    assert again.end().code == 0


def test_a_watch_begins_as_soon_as_its_ledger_can_be_opened(site: Site) -> None:
    """It does not end because somebody looks at its ledger while it starts."""
    started(site).end()
    with locked(ledger_of(site)):
        agent = site.watch("-c", site.root / "trioft.yaml")
        assert is_about_the_ledger(agent.wait_for(lambda line: line["event"] == "agent")["text"])
    make_tree(site.source, {"new": b"2"})
    agent.wait_for_file("new", "done")
    assert agent.end().code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_watch_waits_for_room_on_the_disk_of_its_state(site: Site) -> None:
    """A full disk of the state ends no watch, and lets no source be removed without a record."""
    site.state.mkdir(exist_ok=True)
    with mounted("none", site.state, "-t", "tmpfs", "-o", "size=16m"):
        agent = started(site)
        filler = site.state / "filler"
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            for _ in range(5000):
                file.write(bytes(4096))
        make_tree(site.source, {f"folder {n}/{'x' * 200} {n}": b"2" for n in range(1000)})
        told = agent.wait_for(lambda line: line["event"] == "agent")
        assert "database or disk is full" in told["text"] or os.strerror(errno.ENOSPC) in told["text"]
        assert left(site)
        filler.unlink()
        wait_until(lambda: not left(site))
        done = agent.end()
        assert (done.code, done.summary["delivered"], done.summary["failed"]) == (0, 1001, 0)


def test_a_watch_waits_for_its_source(site: Site) -> None:
    """As for its destination: a disk that is plugged in later, or a folder that is still to be made."""
    (site.root / "trioft.yaml").write_text(OPTIONS)
    site.source.rmdir()
    agent = site.watch("-c", site.root / "trioft.yaml")
    told = agent.wait_for(lambda line: line["event"] == "source")
    assert told["text"].startswith("source not usable: the source is not there")
    make_tree(site.source, {"first": b"1"})
    agent.wait_for_file("first", "done")
    assert agent.end().code == 0
    site.source.rename(site.root / "elsewhere")
    done = site.sync("-c", site.root / "trioft.yaml")
    assert (done.code, "the source is not there" in done.err) == (3, True)
