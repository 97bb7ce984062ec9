"""The log: what happens, one line an event, on stderr or in a file that is rotated."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import trioft
from support import Done, Site, make_tree
from trioft.cli.logs import Log, LogFile
from trioft.cli.output import Outlet
from trioft.state.board import Board


def configured(site: Site, log: str) -> tuple[str, str]:
    """Return the option for a configuration file with these settings of the log."""
    file = site.root / "trioft.yaml"
    file.write_text(f"log: {{{log}}}\n")
    return "-c", os.fspath(file)


def watched(site: Site, *options: str) -> Done:
    """Run a watch on a small tree until all of that is delivered."""
    make_tree(site.source, {"a": b"1", "b c": b"2"})
    (site.source / "link").symlink_to("a")
    agent = site.watch(*options)
    for path in ("a", "b c"):
        agent.wait_for_file(path, "done")
    return agent.end()


def events(lines: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the events of a log in JSON, by name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, lines):
        found.setdefault(line["event"], []).append(line)
    return found


def test_a_watch_logs_to_stderr(site: Site) -> None:
    """Each line has a time, a level, an event and fields; stdout stays what it was."""
    done = watched(site)
    assert done.summary["delivered"] == 2
    lines = [line.split(" ", 3) for line in done.err.splitlines()]
    assert all(line[0].endswith("Z") and line[1] == "info" for line in lines)
    names = [line[2] for line in lines]
    assert names[:3] == ["agent.started", "source.found", "destination.found"]
    assert names[-2:] == ["signal.received", "agent.stopped"]
    delivered = [line[3] for line in lines if line[2] == "file.delivered"]
    assert any(fields.startswith("path=a size=1 strategy=bundle closed=proved digest=") for fields in delivered)
    assert any(fields.startswith('path="b c" size=1 ') for fields in delivered)
    assert [part for line in lines if line[2] == "file.skipped" for part in line[3].split(" ", 1)] == [
        "path=link",
        'reason="symbolic link: trioft copies regular files only"',
    ]


def test_a_log_in_json_is_all_that_stderr_has(site: Site) -> None:
    """With `log.format: json` every line is an object, also that of an end nobody wished for."""
    options = configured(site, "format: json")
    seen = events(watched(site, *options).err.splitlines())
    assert {line["path"] for line in seen["file.delivered"]} == {"a", "b c"}
    assert seen["agent.started"][0]["mode"] == "watch"
    assert seen["signal.received"][0]["signal"] == "SIGTERM"
    assert seen["agent.stopped"][0]["delivered"] == 2
    (site.source / "link").unlink()
    again = site.run("sync", site.source / "gone", site.dest, "--state-dir", site.state, *options)
    (failed,) = events(again.err.splitlines())["agent.failed"]
    assert (again.code, failed["level"]) == (3, "error")
    assert failed["reason"].startswith("the source is not there")


def test_a_failed_file_says_why(site: Site) -> None:
    """What failed has its reason, what stands behind it, and a hint."""
    make_tree(site.source, {"a": b"new"})
    make_tree(site.dest, {"a/in the way": b""})
    done = site.sync(*configured(site, "format: json"), "--if-exists", "overwrite")
    (failed,) = events(done.err.splitlines())["file.failed"]
    assert (failed["level"], failed["path"], failed["side"], failed["op"]) == ("error", "a", "destination", "rename")
    assert "folder" in failed["hint"]
    assert done.code == 1


def test_a_log_file_leaves_stderr_to_people(site: Site) -> None:
    """With `log.file` the log is there, of watch and of sync, and stderr has sentences, as without a log."""
    options = configured(site, f"file: {site.root}/log, format: json")
    done = watched(site, *options)
    assert done.err == "link: skipped: symbolic link: trioft copies regular files only\n"
    assert site.sync(*options).code == 0
    seen = events((site.root / "log").read_text().splitlines())
    assert [line["mode"] for line in seen["agent.started"]] == ["watch", "sync"]
    assert [line["already"] for line in seen["agent.stopped"]] == [0, 2]
    assert (site.root / "log").stat().st_mode & 0o007 == 0  # names of files are nobody's business


def test_quiet_and_verbose_are_levels(site: Site) -> None:
    """`-q` logs what failed, `-v` also steps on the way."""
    assert watched(site, "-q").err == ""
    (site.source / "a").write_bytes(b"other")
    agent = site.watch("-v", "--if-exists", "overwrite", "--exclude", "link", "--exclude", "b c")
    make_tree(site.source, {"large": 3 << 20})
    agent.wait_for_file("large", "done")
    assert " debug file.begun path=large " in agent.end().err


@pytest.mark.parametrize("place", ["source/log", "source/x/log", "nowhere/log", "dest"])
def test_a_log_file_that_cannot_be_is_refused(site: Site, place: str) -> None:
    """One in the source would be transferred for ever, one that cannot be opened would log nothing."""
    (site.source / "x").mkdir()
    done = site.sync(*configured(site, f"file: {site.root / place}"))
    assert done.code == 2
    assert ("the log file must not be inside the source" if "source" in place else "log.file: cannot write") in done.err
    assert "Traceback" not in done.err


async def test_an_outage_is_lost_and_returned_with_its_reason() -> None:
    """What becomes of an end is said once each way, whatever kind of notice it is elsewhere."""
    lines: list[str] = []
    outlet, board = Outlet(lines.append), Board()
    Log(outlet, lambda: "info", "text").attach(board)
    board.set_destination("not usable since 12:00:00: it is away")
    board.set_destination(None)
    board.notice("hooks", "a hook failed")
    outlet.drain()
    assert [line.split(" ", 1)[1] for line in lines] == [
        'warning destination.lost reason="not usable since 12:00:00: it is away"',
        'info destination.returned reason="the destination is usable again"',
        'warning hooks.noticed reason="a hook failed"',
    ]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("a", "a"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "a"', r'"say \"a\""'),
        ("back\\slash", r'"back\\slash"'),
        ("line\nbreak", r'"line\nbreak"'),
        ("\x1b[2J", r'"\u001b[2J"'),
        ("\u202e", r'"\u202e"'),
        ("tägliches", "tägliches"),
        (3, "3"),
        (True, "true"),
        (0.25, "0.25"),
    ],
)
def test_a_value_is_one_word(value: object, word: str) -> None:
    """No value can be taken for two, end the line, or play tricks with a terminal."""
    lines: list[str] = []
    outlet = Outlet(lines.append)
    Log(outlet, lambda: "info", "text").record("info", "file.noticed", {"key": value, "unknown": None})
    outlet.drain()
    assert lines[0].partition("file.noticed ")[2] == f"key={word}"


def test_every_event_stands_in_the_readme() -> None:
    """Whoever sets up an alarm finds each event that there is."""
    package = Path(trioft.__file__).parent
    readme = (package.parent / "README.md").read_text("utf-8")
    said = re.compile(r'(?:"(?:debug|info|warning|error)", |event=)"([a-z]+\.[a-z_]+)"')
    names = {match[1] for path in package.rglob("*.py") for match in said.finditer(path.read_text("utf-8"))}
    assert len(names) > 20
    assert [name for name in sorted(names) if f"`{name}`" not in readme] == []


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_log_file_is_rotated(tmp_path: Path) -> None:
    """No file exceeds its size, as many as asked for are kept, and no line is torn or lost before its time."""
    path = tmp_path / "log"
    file = LogFile(os.fspath(path), 1000, 3, "text")
    for n in range(500):
        file.write(f"line {n:03}")
    names = ["log", "log.1", "log.2", "log.3"]
    assert sorted(os.listdir(tmp_path)) == names
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)
    kept = [line for name in reversed(names) for line in (tmp_path / name).read_text().splitlines()]
    assert kept == [f"line {n:03}" for n in range(500 - len(kept), 500)]
    assert len(kept) > 3 * (1000 // 9)


def test_a_log_file_that_was_moved_is_begun_anew(tmp_path: Path) -> None:
    """logrotate may move it: what comes then is in a new file."""
    path = tmp_path / "log"
    file = LogFile(os.fspath(path), 10**6, 1, "text")
    file.write("before")
    path.rename(tmp_path / "moved")
    file.write("after")
    assert ((tmp_path / "moved").read_text(), path.read_text()) == ("before\n", "after\n")


def test_a_log_that_cannot_be_written_for_a_while_says_how_much_is_missing(tmp_path: Path) -> None:
    """A folder that is gone, or a full disk, costs lines; the log goes on, and says that there is a gap."""
    folder = tmp_path / "logs"
    folder.mkdir()
    file = LogFile(os.fspath(folder / "log"), 10**6, 1, "text")
    file.write("one")
    folder.rename(tmp_path / "away")
    file.write("two")
    file.write("three")
    (tmp_path / "away").rename(folder)
    file.write("four")
    one, empty, gap, four = (folder / "log").read_text().splitlines()
    assert (one, empty, four) == ("one", "", "four")
    assert gap.endswith(" warning log.interrupted lines=2")
