"""What `trioft watch` does while files appear, grow, change and vanish: every test has an agent running beside it."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from support import TRIOFT, Running, Site, files_of, make_tree, movers_of, pattern, wait_until, watcher_of

# A rescan comes after ten seconds: what is delivered sooner was found by an event.
SOON = 5.0
BLOCK = 8 << 20


def is_state(path: str, state: str, dest: str | None = None) -> Callable[[dict[str, Any]], bool]:
    return lambda line: (
        line.get("path") == path and line.get("state") == state and (dest is None or line.get("dest") == dest)
    )


def is_held(path: str) -> Callable[[dict[str, Any]], bool]:
    """Has it been said that somebody has this file open for writing?"""
    return lambda line: line.get("path") == path and "open for writing" in (line.get("reason") or "")


def sentinel(site: Site, agent: Running, name: str = "sentinel") -> None:
    """Have another file delivered: what should have been done by now, has been."""
    make_tree(site.source, {name: b"!"})
    agent.wait_for_file(name, "done")


def watching(site: Site, *options: str) -> Running:
    """Start to watch, and wait until files are found by events."""
    agent = site.watch(*options)
    wait_until(lambda: watcher_of(agent.process.pid))
    make_tree(site.source, {"first": b"1"})
    agent.wait_for_file("first", "done")
    return agent


# --- What appears -----------------------------------------------------------------------------------------------------


def test_new_files_are_delivered_soon(site: Site) -> None:
    """A file is delivered moments after it was closed, also in a folder that was just made."""
    agent = watching(site)
    make_tree(site.source, {"new": b"1", "x/y/new": b"2", "large": 2_000_000})
    for path in ("new", "x/y/new", "large"):
        agent.wait_for_file(path, "done", SOON)
    assert files_of(site.dest) == files_of(site.source)
    done = agent.end()
    assert (done.code, done.summary["delivered"]) == (0, 4)


def test_what_is_moved_in_is_delivered_soon(site: Site) -> None:
    """A file or a whole folder that is moved into the source is found at once, however old it is."""
    agent = watching(site)
    make_tree(site.root, {"file": b"1", "folder/deep/file": b"2", "folder/file": b"3"})
    os.utime(site.root / "file", (1e9, 1e9))
    (site.root / "file").rename(site.source / "file")
    (site.root / "folder").rename(site.source / "folder")
    for path in ("file", "folder/deep/file", "folder/file"):
        agent.wait_for_file(path, "done", SOON)
    assert files_of(site.dest) == files_of(site.source)


def test_what_was_there_before_the_start_is_delivered(site: Site) -> None:
    """Watching begins with what is there."""
    make_tree(site.source, {"there": b"1", "x/there": 2_000_000})
    agent = site.watch()
    agent.wait_for_file("there", "done")
    agent.wait_for_file("x/there", "done")
    assert files_of(site.dest) == files_of(site.source)


def test_many_files_at_once(site: Site) -> None:
    """Three thousand files that appear at once all arrive, none twice."""
    agent = watching(site)
    make_tree(site.source, {f"{n % 7}/{n}": b"%d" % n for n in range(3_000)})
    seen: set[str] = set()

    def all_done(line: dict[str, Any]) -> bool:
        if line.get("state") == "done":
            seen.add(line["path"])
        return len(seen) == 3_001

    agent.wait_for(all_done)
    assert files_of(site.dest) == files_of(site.source)
    done = agent.end()
    assert (done.code, done.summary["delivered"]) == (0, 3_001)


def test_names_that_are_no_utf8_do_not_end_the_events(site: Site) -> None:
    """A file whose name is no UTF-8 arrives within moments, and so does what comes after it."""
    agent = watching(site)
    make_tree(site.source, {b"bad\xff": b"1"})
    agent.wait_for_file(r"bad\xff", "done", SOON)
    make_tree(site.source, {"good": b"2"})
    agent.wait_for_file("good", "done", SOON)
    done = agent.end()
    assert done.complaints == []
    assert files_of(site.dest) == files_of(site.source)


# --- Files that are being written -------------------------------------------------------------------------------------


def test_a_file_is_never_delivered_before_it_is_closed(site: Site) -> None:
    """A file that somebody holds open for writing waits, however long nothing is written to it."""
    agent = watching(site)
    with open(site.source / "open", "ab", buffering=0) as file:
        file.write(b"first half, ")
        agent.wait_for(is_held("open"))
        sentinel(site, agent)
        assert set(files_of(site.dest)) == {b"first", b"sentinel"}
        file.write(b"second half")
    agent.wait_for_file("open", "done", SOON)
    assert (site.dest / "open").read_bytes() == b"first half, second half"


def test_a_memory_map_is_a_writer_too(site: Site) -> None:
    """A file that is written through a memory map waits until that is gone, although nobody has it open."""
    agent = watching(site)
    with open(site.source / "mapped", "w+b") as file:
        file.write(bytes(BLOCK))
        file.flush()
        view = mmap.mmap(file.fileno(), BLOCK)
    agent.wait_for(is_held("mapped"))
    sentinel(site, agent)
    view[5:9] = b"late"
    assert "mapped" not in os.listdir(site.dest)
    view.close()
    agent.wait_for_file("mapped", "done", SOON)
    assert files_of(site.dest) == files_of(site.source)


def test_a_file_that_vanishes_while_it_settles_is_gone(site: Site) -> None:
    """A temporary file that is deleted before it was closed is no failure, and leaves nothing behind."""
    agent = watching(site)
    with open(site.source / "temporary", "wb", buffering=0) as file:
        file.write(b"x")
        agent.wait_for(is_held("temporary"))
        (site.source / "temporary").unlink()
        agent.wait_for_file("temporary", "gone", SOON)
    done = agent.end()
    assert (done.code, done.summary["failed"], os.listdir(site.dest)) == (0, 0, ["first"])


def test_a_writer_that_comes_back_costs_nothing(site: Site) -> None:
    """
    Promise 3: with --on-success delete, a file that is opened again while it is copied stays until it is closed.

    What was appended is then added to the copy, which has the same name as before.
    """
    agent = watching(site, "--on-success", "delete", "--bwlimit", "16MiB/s")
    first, more = pattern(2 * BLOCK, 1), pattern(1000, 2)
    make_tree(site.root, {"new": first})
    (site.root / "new").rename(site.source / "take.mov")  # closed: it is not followed
    wait_until(lambda: any(path.stat().st_size for path in site.dest.glob("take.mov.*.trioft-partial")))
    with open(site.source / "take.mov", "ab", buffering=0) as file:
        agent.wait_for(is_state("take.mov", "done"))
        assert (site.source / "take.mov").exists()
        file.write(more)
    wait_until(lambda: os.listdir(site.source) == [])
    assert files_of(site.dest) == {b"first": b"1", b"take.mov": first + more}


# --- The same name again ----------------------------------------------------------------------------------------------


def test_a_second_recording_never_replaces_the_first(site: Site) -> None:
    """Recordings of the same name become NAME, NAME_1 and NAME_2; each keeps what it holds."""
    agent = watching(site)
    for dest in ("take.mov", "take_1.mov", "take_2.mov"):
        make_tree(site.root, {"new": dest.encode()})
        (site.root / "new").rename(site.source / "take.mov")
        agent.wait_for(is_state("take.mov", "done", dest), SOON)
    assert files_of(site.dest) == {b"first": b"1"} | {n: n for n in (b"take.mov", b"take_1.mov", b"take_2.mov")}


def test_a_file_that_changed_after_its_delivery_is_delivered_again(site: Site) -> None:
    """With --if-exists overwrite the destination follows the source."""
    agent = watching(site, "--if-exists", "overwrite")
    for content in (b"one", b"two!", b"six"):
        make_tree(site.source, {"a": content})
        agent.wait_for(lambda line: line.get("state") == "done" and line["path"] == "a", SOON)
        agent.lines.clear()
        assert (site.dest / "a").read_bytes() == content


@pytest.mark.parametrize("ledger", ["with the ledger", "without"])
def test_a_restart_copies_nothing_twice(site: Site, ledger: str) -> None:
    """After a restart only what is new is copied, even if the state directory was lost."""
    make_tree(site.source, {"a": b"1", "x/b": 2_000_000})
    agent = site.watch()
    agent.wait_for_file("a", "done")
    agent.wait_for_file("x/b", "done")
    assert agent.end().code == 0
    if ledger == "without":
        for path in site.state.iterdir():
            path.unlink()
    agent = site.watch()
    sentinel(site, agent, "x/new")
    done = agent.end()
    assert (done.code, done.summary["delivered"], done.summary["bytes"]) == (0, 1, 1)
    assert files_of(site.dest) == files_of(site.source)


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_without_events_files_are_found_by_rescans(site: Site) -> None:
    """When the process that reports events dies, that is said once, and the source is scanned instead."""
    config = site.root / "trioft.yaml"
    config.write_text("source: {scan_interval: 300ms}\n")
    agent = watching(site, "-c", os.fspath(config))
    watcher = watcher_of(agent.process.pid)
    assert watcher is not None
    os.kill(watcher, signal.SIGKILL)
    agent.wait_for(lambda line: line["event"] == "events")
    for n in range(3):
        sentinel(site, agent, f"new {n}")
    done = agent.end()
    assert done.code == 0
    (text,) = [line["text"] for line in done.lines if line["event"] == "events"]
    assert "no more file events" in text
    assert "scanned instead" in text
    assert done.err.count("file events") == 1


def test_events_that_cannot_be_had_are_told_once(site: Site) -> None:
    """Where the kernel gives no events, that is said once, with the reason, and files arrive all the same."""
    config = site.root / "trioft.yaml"
    config.write_text("source: {scan_interval: 300ms}\n")
    # In a user namespace of its own, the limit on inotify is this process's own too.
    inside = 'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", inside, "sh", *TRIOFT]
    if subprocess.run([*command[:5], "echo 0 >/proc/sys/user/max_inotify_instances"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    paths = [os.fspath(path) for path in (site.source, site.dest, "-c", config, "--state-dir", site.state)]
    process = subprocess.Popen(
        [*command, "watch", *paths, "--settle", "100ms", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    agent = Running(process)
    try:
        agent.wait_for(lambda line: line["event"] == "events")
        sentinel(site, agent)
    finally:
        done = agent.end()
    assert done.code == 0
    (text,) = [line["text"] for line in done.lines if line["event"] == "events"]
    assert text.startswith("no file events: ")
    assert done.err.count("file events") == 1


def test_a_temporary_error_is_tried_again(site: Site) -> None:
    """A file that cannot be delivered just now waits, says why and until when, and arrives once it can be."""
    agent = watching(site)
    (site.dest / "x").symlink_to("not yet there")
    make_tree(site.source, {"x/a": b"1"})
    waiting = agent.wait_for_file("x/a", "waiting")
    assert waiting["reason"].startswith("retry in ")
    assert waiting["attempt"] == 1
    assert waiting["error"]["side"] == "destination"
    (site.dest / "x").unlink()
    agent.wait_for_file("x/a", "done")
    assert files_of(site.dest) == files_of(site.source)


def test_a_failed_file_is_tried_again_when_it_changes_or_at_a_start(site: Site) -> None:
    """A file that has failed is left alone until it changes or trioft is started again; the others go on."""
    config = site.root / "trioft.yaml"
    config.write_text("source: {scan_interval: 200ms}\n")
    options = ("-c", os.fspath(config), "--if-exists", "fail")
    make_tree(site.dest, {"a": b"taken"})
    agent = watching(site, *options)

    def failures() -> int:
        return sum(is_state("a", "failed")(line) for line in agent.lines)

    make_tree(site.source, {"a": b"1"})
    agent.wait_for_file("a", "failed")
    for n in range(3):
        sentinel(site, agent, f"sentinel {n}")
    assert failures() == 1
    make_tree(site.source, {"a": b"22"})
    agent.wait_for(lambda line: failures() == 2 or (is_state("a", "failed")(line) and line["size"] == 2))
    assert agent.end().code == 0
    (site.dest / "a").unlink()
    agent = site.watch(*options)
    agent.wait_for_file("a", "done")
    assert (site.dest / "a").read_bytes() == b"22"


def test_a_source_that_is_ready_may_change_while_it_waits_its_turn(site: Site) -> None:
    """A file that changes again and again while others are copied arrives in its newest version."""
    agent = watching(site, "--transfers", "1", "--bwlimit", "16MiB/s", "--if-exists", "overwrite")
    make_tree(site.source, {"large": 3 * BLOCK, "large 2": 3 * BLOCK})
    wait_until(lambda: any(path.stat().st_size for path in site.dest.glob("large*.trioft-partial")))
    for n in range(4):
        make_tree(site.source, {"small": b"%d" % n * (n + 1), "other": b"%d" % n * (n + 1)})
        time.sleep(0.3)  # long enough to get ready; nothing tells when that is
    for path in ("large", "large 2"):
        agent.wait_for_file(path, "done")
    sentinel(site, agent)
    assert files_of(site.dest) == files_of(site.source)
    done = agent.end()
    assert (done.code, done.summary["failed"], done.complaints) == (0, 0, [])


# --- The end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_cleanly(site: Site, number: int) -> None:
    """Stopped by a signal, watch ends with exit code 0, a summary, and no process left behind."""
    agent = watching(site)
    children = [*movers_of(agent.process.pid), watcher_of(agent.process.pid)]
    done = agent.end(number)
    assert done.code == 0
    assert done.summary["delivered"] == 1
    assert "Traceback" not in done.err
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]


def test_a_killed_agent_leaves_no_process_behind(site: Site) -> None:
    """Killed, it takes its children with it: none of them may go on to change files at the destination."""
    agent = watching(site)
    children = [*movers_of(agent.process.pid), watcher_of(agent.process.pid)]
    assert len(children) >= 2
    agent.end(signal.SIGKILL)
    wait_until(lambda: not [pid for pid in children if os.path.exists(f"/proc/{pid}")])
