"""Markers: what says, beside a file, that it is complete; made by its writer at the source, by trioft where it goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from files import MANNER, Ground, publication
from support import TOOLS, Running, Site, files_of, make_tree, pattern, wait_until, watcher_of
from trioft.config.file import load_config
from trioft.core.errors import ConfigError
from trioft.core.model import MIB, Markers, Verdict
from trioft.movers.ops import removal
from trioft.movers.ops.folder import publish
from trioft.movers.ops.folder.markers import mark
from truth import recorded

# Nobody waits for this long: what is delivered needed no quiet time.
LONG = ("--settle", "1h")


def config(site: Site, **groups: Mapping[str, object]) -> list[str | Path]:
    """Return the options that set these groups."""
    path = site.root / "trioft.yaml"
    path.write_text(json.dumps(groups))
    return ["-c", path]


def marked(site: Site, more: Mapping[str, object] | None = None, **groups: Mapping[str, object]) -> list[str | Path]:
    """Return the options for files that are complete when NAME.ok is there."""
    return config(site, source={"done_suffix": ".ok", **(more or {})}, **groups)


def waits(path: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("path") == path and line.get("reason") == f"waits for {os.path.basename(path)}.ok"


def reported(agent: Running, path: str, word: str) -> dict[str, Any]:
    return agent.wait_for(lambda line: line.get("path") == path and word in (line.get("reason") or ""))


# --- at the source ----------------------------------------------------------------------------------------------------


def test_a_sync_leaves_what_has_no_marker_for_the_next_run(site: Site) -> None:
    """That is no failure, and is counted as what is still being written; markers themselves are not transferred."""
    make_tree(site.source, {"a": 10, "a.ok": 0, "in/b": 20, "in/c": 2 * MIB, ".ok": 5, "b.ok/x": 1, "b.ok/x.ok": 0})
    done = site.sync(*marked(site))
    assert done.code == 4
    assert (done.summary["delivered"], done.summary["busy"], done.summary["failed"]) == (2, 3, 0)
    assert done.files("settling")["in/b"]["reason"] == "waits for b.ok: left for the next run"
    assert files_of(site.dest).keys() == {b"a", b"b.ok/x"}
    assert site.sync("--dry-run", *marked(site)).files("ready") == {}
    make_tree(site.source, {"in/b.ok": b"", "in/c.ok": b"", ".ok.ok": b""})
    assert site.sync(*marked(site)).code == 0
    assert files_of(site.dest).keys() == {b"a", b"b.ok/x", b"in/b", b"in/c", b".ok"}


def test_a_marker_counts_whatever_patterns_say_of_it(site: Site) -> None:
    """Patterns are for files."""
    make_tree(site.source, {"a.mov": 10, "a.mov.ok": 0, "b.mov": 10})
    done = site.sync(*marked(site), "--include", "*.mov", "--exclude", "*.ok")
    assert (done.code, done.summary["delivered"], done.summary["busy"]) == (4, 1, 1)


def test_watch_delivers_a_file_as_soon_as_its_marker_is_there(site: Site) -> None:
    """Until then it says what it waits for; then no quiet time is needed, and no scan."""
    options = marked(site, {"scan_interval": "1h", "settle_closed": "1h"})
    agent = site.watch(*options, *LONG)
    make_tree(site.source, {"first": 1, "first.ok": 0})
    agent.wait_for_file("first", "done")
    make_tree(site.source, {"in/a": 10})
    os.utime(site.source / "in/a", (1_000_000_000, 1_000_000_000))
    agent.wait_for(waits("in/a"))
    (site.source / "in/a.ok").touch()
    assert agent.wait_for_file("in/a", "done")["closed"] == "proved"
    assert agent.end().code == 0
    assert files_of(site.dest).keys() == {b"first", b"in/a"}


def test_a_marker_found_by_a_scan_does_as_well(site: Site) -> None:
    """Where events do not come, it takes until the next scan."""
    make_tree(site.source, {"a": 10})
    agent = site.watch(*marked(site, {"scan_interval": "200ms"}))
    agent.wait_for(waits("a"))
    wait_until(lambda: watcher_of(agent.process.pid))
    os.kill(watcher_of(agent.process.pid) or 0, 9)
    agent.wait_for(lambda line: line["event"] == "events")
    (site.source / "a.ok").touch()
    agent.wait_for_file("a", "done")
    agent.end()


def test_what_somebody_writes_waits_for_the_close_whatever_its_marker_says(site: Site) -> None:
    """A marker that comes too early replaces quiet time, and no proof."""
    make_tree(site.source, {"a.ok": 0})
    agent = site.watch(*marked(site))
    with (site.source / "a").open("wb") as file:
        file.write(b"x" * 10)
        file.flush()
        (site.source / "a.ok").touch()
        reported(agent, "a", "open for writing")
        file.write(b"y")
    agent.wait_for_file("a", "done")
    agent.end()
    assert (site.dest / "a").read_bytes() == b"x" * 10 + b"y"


def test_a_marker_that_is_older_than_its_file_proves_no_quiet(site: Site) -> None:
    """A file that is written again has its earlier marker: it is ready as one without, which takes its quiet time."""
    make_tree(site.source, {"a.ok": 0, "a": 10, "b": 10, "b.ok": 0})
    os.utime(site.source / "a.ok", (1_000_000_000, 1_000_000_000))
    agent = site.watch(*marked(site, {"settle_closed": "1h"}), *LONG)
    agent.wait_for_file("b", "done")
    agent.end()
    assert files_of(site.dest).keys() == {b"b"}
    done = site.sync(*marked(site))
    assert done.code == 0
    assert files_of(site.dest).keys() == {b"a", b"b"}


def test_recordings_are_followed_before_they_have_their_markers(site: Site) -> None:
    """
    They are copied while they grow, and get their names when their markers are there.

    One that is closed and has none keeps no lane of its own: others are followed meanwhile.
    """
    contents = {"a": pattern(20 * MIB, 1), "b": pattern(20 * MIB, 2)}
    growing: dict[str, object] = {"min_size": "1MiB", "transfers": 1}
    agent = site.watch(*marked(site, growing=growing, copy={"checkpoint_size": "8MiB"}), "--settle", "500ms")
    for name, content in contents.items():
        with (site.source / name).open("wb") as file:
            file.write(content[: 10 * MIB])
            file.flush()
            agent.wait_for_file(name, "copying")
            file.write(content[10 * MIB :])
        agent.wait_for(waits(name))
    assert not any((site.dest / name).exists() for name in contents)
    for name in contents:
        (site.source / f"{name}.ok").touch()
        assert agent.wait_for_file(name, "done")["strategy"] == "follow"
    done = agent.end()
    assert done.summary["bytes"] < 2 * (20 + 8) * MIB  # what was settled was not copied again
    assert files_of(site.dest) == {name.encode(): content for name, content in contents.items()}


def test_a_recording_whose_marker_comes_with_the_close_is_complete_at_once(site: Site) -> None:
    """It keeps its lane until then: nothing is read again, and no quiet time passes."""
    growing: dict[str, object] = {"min_size": "1MiB"}
    agent = site.watch(*marked(site, {"settle_closed": "1h"}, growing=growing), *LONG)
    for name in ("first", "second"):  # the one may have been found by the first scan; the other by events
        make_tree(site.source, {name: 1, f"{name}.ok": 0})
        agent.wait_for_file(name, "done")
    with (site.source / "a").open("wb") as file:
        file.write(pattern(2 * MIB))
        file.flush()
        agent.wait_for_file("a", "copying")
        file.write(pattern(1 * MIB))
    (site.source / "a.ok").touch()
    line = agent.wait_for_file("a", "done")
    assert (line["strategy"], line["attempt"], line["bytes_copied"]) == ("follow", 0, 3 * MIB)
    agent.end()
    assert (site.dest / "a").read_bytes() == pattern(2 * MIB) + pattern(1 * MIB)


def test_a_sync_follows_a_recording_to_its_close_and_leaves_it_for_its_marker(site: Site) -> None:
    """What was copied of it is kept: the next run goes on there."""
    options = marked(site, growing={"min_size": "1MiB"}, copy={"checkpoint_size": "8MiB"})
    with (site.source / "a").open("wb") as file:
        file.write(pattern(10 * MIB))
        file.flush()
        agent = site.start("sync", *options)
        agent.wait_for_file("a", "copying")
        file.write(pattern(10 * MIB))
    done = agent.end(0)
    assert (done.code, done.summary["busy"]) == (4, 1)
    (site.source / "a.ok").touch()
    done = site.sync(*options)
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert done.summary["bytes_resumed"] >= 16 * MIB
    assert files_of(site.dest) == {b"a": pattern(10 * MIB) * 2}


def test_explain_says_that_a_file_lacks_its_marker(site: Site) -> None:
    """What a file waits for is in its history, and whether it is there by now is looked at; a marker is told as one."""
    make_tree(site.source, {"a": 10, "b": 10, "b.ok": 0})
    options = marked(site)
    assert site.sync(*options).code == 4
    told = {name: site.run("explain", name, "--state-dir", site.state, *options).out for name in ("a", "b", "b.ok")}
    assert "waits for a.ok: left for the next run" in told["a"]
    assert "; it lacks its marker" in told["a"]
    assert "; its marker is there" in told["b"]
    assert "it only says that another file is complete (source.done_suffix)" in told["b.ok"]


def test_a_source_takes_its_marker_along(site: Site) -> None:
    """It is removed with its file, and archived beside it; not before it, and no other one."""
    make_tree(site.source, {"a": 10, "a.ok": 0, "in/b": 10, "in/b.ok": 0, "c": 10, "d.ok": 0})
    archive = site.root / "archive"
    make_tree(archive, {"in/b": b"old"})
    assert site.sync(*marked(site), "--on-success", "delete", "--include", "a").code == 0
    assert files_of(site.source).keys() == {b"in/b", b"in/b.ok", b"c", b"d.ok"}
    assert site.sync(*marked(site), "--on-success", f"archive:{archive}").code == 4
    assert files_of(site.source).keys() == {b"c", b"d.ok"}
    assert files_of(archive).keys() == {b"in/b", b"in/b_1", b"in/b_1.ok"}


def test_a_marker_that_was_made_anew_stays(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """It speaks of the file that comes next, not of the one that has just been removed."""
    item = ground.add(b"a")
    ground.add(b"a.ok", b"")
    real = os.unlink

    def unlink(path: bytes, **options: Any) -> None:
        real(path, **options)
        if os.path.basename(path) == b"a":
            real(ground.at_source(b"a.ok"))
            ground.add(b"a.ok", b"new")

    monkeypatch.setattr(os, "unlink", unlink)
    (result,) = removal.remove_sources(ground.ends.source, [(b"a", item.fingerprint)], None, b".ok")
    assert result.verdict == Verdict.REMOVED
    assert files_of(ground.source) == {b"a.ok": b"new"}


def test_a_marker_with_content_is_a_file_of_its_own(site: Site) -> None:
    """What exists nowhere else is transferred; delivered, it goes after the file that it speaks of."""
    make_tree(site.source, {"in/take.mxf": 2 * MIB, "in/take.mxf.ok": b"reel 7", "small": 10, "small.ok": b"sum"})
    make_tree(site.source, {"waits": 10, "empty": 10, "empty.ok": 0, "left.ok": b"of none"})
    wanted = {name: data for name, data in files_of(site.source).items() if name not in (b"waits", b"empty.ok")}
    done = site.sync(*marked(site), "--on-success", "delete")
    assert done.code == 4
    assert files_of(site.dest) == wanted
    assert files_of(site.source).keys() == {b"waits"}


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_watch_transfers_a_marker_with_content_too(site: Site, size: int) -> None:
    """The file waits for it; then both arrive, and go, whichever of them is delivered first."""
    agent = site.watch(*marked(site), "--on-success", "delete")
    make_tree(site.source, {"take": size})
    agent.wait_for(waits("take"))
    make_tree(site.source, {"take.ok": b"reel 7"})
    agent.wait_for_file("take", "done")
    agent.wait_for_file("take.ok", "done")
    wait_until(lambda: files_of(site.source) == {})
    agent.end()
    assert files_of(site.dest).keys() == {b"take", b"take.ok"}


# --- at the destination -----------------------------------------------------------------------------------------------

DONE = {"done_file": ".done"}


def test_who_reads_at_the_destination_finds_a_marker_beside_each_file(site: Site) -> None:
    """It is empty, and there for every file that was delivered, small and large; also where another name was given."""
    make_tree(site.source, {"a": 10, "in/b.mov": 2 * MIB, "empty/": None})
    make_tree(site.dest, {"a": b"other"})
    done = site.sync(*config(site, copy=DONE), "--if-exists", "rename")
    assert done.code == 0, done.err
    assert files_of(site.dest).keys() == {b"a", b"a_1", b"a_1.done", b"in/b.mov", b"in/b.mov.done"}
    assert (site.dest / "a_1.done").stat().st_size == 0


@pytest.mark.parametrize("policy", ["overwrite", "rename"])
def test_a_marker_is_never_there_before_its_file_is_complete(ground: Ground, policy: str) -> None:
    """What an earlier file of that name has left goes before the new one comes; a marker of another file stays."""
    manner = MANNER._replace(if_exists=policy, markers=Markers(destination=b".done"))
    item = ground.add(b"a.mov", b"new")
    for name in (b"a.mov", b"a.mov.done", b"a_1.mov.done"):
        ground.old(name, b"" if name.endswith(b"done") else b"old")
    with open(ground.partial(item), "xb") as file:
        file.write(b"new")
    (result,) = publish.publish(ground.ends, [publication(item, policy)], manner)
    target = b"a.mov" if policy == "overwrite" else b"a_1.mov"
    assert (result.verdict, result.target) == (Verdict.PUBLISHED, target)
    markers = {name for name in files_of(ground.dest) if name.endswith(b".done")}
    assert markers == {b"a_1.mov.done" if policy == "overwrite" else b"a.mov.done"}
    for _ in range(2):  # what has been done may be asked for again
        assert mark(ground.ends.destination, [target, b"no/folder"], b".done")[0] is None
    assert files_of(ground.dest)[target + b".done"] == b""


def test_what_is_no_marker_is_not_taken_for_one(site: Site) -> None:
    """Something that only has such a name is never removed, and the file that would need it says so."""
    make_tree(site.source, {"a": 10, "b": 10, "c": 10})
    make_tree(site.dest, {"a.done": b"precious", "b.done": None})
    done = site.sync(*config(site, copy=DONE))
    assert done.code == 1
    assert done.files("failed").keys() == {"a", "b"}
    assert "something else than an empty file has the name of a marker" in done.files("failed")["a"]["reason"]
    assert files_of(site.dest).keys() - {b"c", b"c.done"} == {b"a.done"}


def test_a_source_file_with_the_name_of_a_marker_is_not_transferred(site: Site) -> None:
    """At the destination that name says that another file is complete, and nothing else may say that."""
    make_tree(site.source, {"a.done": b"notes", "b": 10})
    done = site.sync(*config(site, copy=DONE))
    assert (done.code, done.summary["skipped"]) == (0, 1)
    assert "(copy.done_file)" in done.files("skipped")["a.done"]["reason"]
    assert files_of(site.dest).keys() == {b"b", b"b.done"}


def test_a_source_is_not_removed_before_its_marker_is_there(site: Site) -> None:
    """A marker that cannot be made is a trouble of its file, which is tried again; until then nothing is recorded."""
    make_tree(site.source, {"a": 10, "in/" + "x" * 255: 10})
    done = site.sync(*config(site, copy=DONE, retry={"retries": 1, "first": "10ms"}), "--on-success", "delete")
    assert done.code == 1
    (failed,) = done.files("failed").values()
    assert failed["error"]["errno"] == 36  # ENAMETOOLONG
    assert files_of(site.source).keys() == {b"in/" + b"x" * 255}
    assert files_of(site.dest).keys() >= {b"a", b"a.done"}
    assert recorded(site).delivered.keys() == {b"a"}


def test_a_marker_that_was_taken_away_is_not_made_again(site: Site) -> None:
    """Whoever waited for it has had it. Without the ledger nobody knows that, and it is made."""
    make_tree(site.source, {"a": 10})
    assert site.sync(*config(site, copy=DONE)).code == 0
    (site.dest / "a.done").unlink()
    done = site.sync(*config(site, copy=DONE))
    assert (done.code, done.summary["already"]) == (0, 1)
    assert files_of(site.dest).keys() == {b"a"}
    assert site.sync(*config(site, copy=DONE), "--state-dir", site.root / "other").code == 0
    assert files_of(site.dest).keys() == {b"a", b"a.done"}


_DYING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import trio
from odd_mover import changed
from trioft.agent.agent import run_agent
from trioft.state.board import Board
from trioft.config.file import load_config

root, once = Path(sys.argv[2]), sys.argv[3] == "sync"
config = load_config(str(root / "trioft.yaml"), {"source.path": ("", f"{root}/source"),
    "destination.path": ("", f"{root}/dest"), "source.settle": ("", "100ms")})
mover = changed(root, "mover.OPERATIONS['mark'] = lambda *_: (os.kill(os.getppid(), 9), time.sleep(9))")

async def run():
    await run_agent(config, Board(), once=once, state_dir=str(root / "state"), mover=mover)

trio.run(run)
"""


@pytest.mark.parametrize("command", ["sync", "watch"])
@pytest.mark.parametrize("action", ["keep", "delete"])
def test_a_marker_that_a_killed_agent_did_not_make_is_made_by_the_next_run(
    site: Site, command: str, action: str
) -> None:
    """Killed between the final name and the marker: nothing is on record, no source is gone, and the marker comes."""
    make_tree(site.source, {"a": 10, "b": 2 * MIB})
    content = files_of(site.source)
    options = config(site, copy={**DONE, "on_success": action})
    died = subprocess.run([sys.executable, "-c", _DYING, TOOLS, site.root, command], timeout=60, check=False)
    assert died.returncode == -9
    there = files_of(site.dest)
    assert [name for name in there if name in content]
    assert not [name for name in there if name.endswith(b".done")]
    assert files_of(site.source) == content
    assert recorded(site).delivered == {}
    agent = site.start(command, *options)
    for name in content:
        wait_until(lambda name=name: (site.dest / f"{name.decode()}.done").exists())  # type: ignore[misc]
    if command == "watch":
        wait_until(lambda: recorded(site, running=True).delivered.keys() == content.keys())
    if action == "delete":
        wait_until(lambda: files_of(site.source) == {})
    assert agent.end(15 if command == "watch" else 0).code == 0
    assert {name: data for name, data in files_of(site.dest).items() if not name.endswith(b".done")} == content


@pytest.mark.parametrize("suffix", ["", "/", "a/b", ".partial", ".0123abcd.partial", "\0", "x" * 65, 1])
@pytest.mark.parametrize(("group", "key"), [("source", "done_suffix"), ("copy", "done_file")])
def test_a_suffix_is_the_end_of_a_name(site: Site, group: str, key: str, suffix: object) -> None:
    """Whatever else is given is refused, one that would make a partial's name too."""
    _, path = config(site, **{group: {key: suffix}})
    with pytest.raises(ConfigError, match=rf"{group}\.{key}: found .*, expected the end of a name, such as \.done"):
        load_config(str(path), {})
