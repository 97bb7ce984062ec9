"""Hooks: programs that are told what has come of each file, and can neither hold up a copy nor make one fail."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio
import trio.testing

import trioft
from support import PATIENCE, Site, files_of, found, make_tree, wait_until
from trioft.agent import hooks as hooks_module
from trioft.agent.hooks import Hooks
from trioft.config.options import Config
from trioft.config.options import Hooks as Settings
from trioft.core.model import FileState
from trioft.pipeline.shutdown import Shutdown
from trioft.state.board import Board

SCHEMA = json.loads((Path(trioft.__file__).parent / "serve/page" / "feed.schema.json").read_text("utf-8"))


def hooks(site: Site, more: str = "", **options: object) -> list[str | Path]:
    """Return the options that set hooks; *more* is YAML."""
    path = site.root / "trioft.yaml"
    path.write_text(f"hooks: {json.dumps(options)}\n{more}")
    return ["-c", path]


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def notices(lines: list[dict[str, Any]]) -> list[str]:
    return [line["text"] for line in lines if line["event"] == "hooks"]


def test_hooks_are_told_of_each_file_that_is_delivered_or_has_failed(site: Site) -> None:
    """As the feed has it, one JSON object on standard input; what the file is called, no shell ever sees."""
    make_tree(site.source, {"a": 10, "in/$(touch x) b": 20, b"\xff": 30, "bad": 40})
    (site.dest / "bad").mkdir()
    command = ["sh", "-c", 'cat >> "$1"', "sh"]
    done = site.sync(
        *hooks(site, delivered=[*command, str(site.root / "done")], failed=[*command, str(site.root / "failed")])
    )
    assert done.code == 1
    delivered, (failed,) = told(site.root / "done"), told(site.root / "failed")
    assert {(file["path"], file["state"]) for file in delivered} == {
        (path, "done") for path in ("a", "in/$(touch x) b", "\\xff")
    }
    assert (failed["path"], failed["error"]["errno"]) == ("bad", 21)
    entry = {"$ref": "#/$defs/file", "$defs": SCHEMA["$defs"]}
    for file in [*delivered, failed]:
        jsonschema.validate(file, entry)
        assert file["finished_at"] is not None
        line = (done.files("done") | done.files("failed"))[file["path"]]
        assert {name: value for name, value in line.items() if name not in ("event", "time")}.items() <= file.items()


def test_a_sync_waits_for_its_hooks_and_not_they_for_it(site: Site) -> None:
    """All is delivered while the first hook still runs; the run ends when the last has been run."""
    make_tree(site.source, {f"{n}": n for n in range(10)})
    script = 'until [ -e "$1/go" ]; do sleep 0.01; done; echo x >> "$1/ran"'
    agent = site.start("sync", *hooks(site, delivered=["sh", "-c", script, "sh", str(site.root)]))
    wait_until(lambda: files_of(site.dest) == files_of(site.source))
    for n in range(10):
        agent.wait_for_file(f"{n}", "done")
    assert agent.process.poll() is None
    (site.root / "go").touch()
    assert agent.end(0).code == 0
    assert (site.root / "ran").read_text() == "x\n" * 10


def test_a_hook_that_fails_is_told_and_changes_nothing(site: Site) -> None:
    """Its output says why; one that takes too long is ended. The files are delivered all the same."""
    make_tree(site.source, {"a": 10, "b": 10})
    script = 'case "$(cat)" in *\'"path": "a"\'*) echo no route >&2; exit 5;; *) exec sleep 600;; esac'
    done = site.sync(*hooks(site, delivered=["sh", "-c", script], timeout="500ms"))
    assert done.code == 0, done.err
    assert sorted(notices(done.lines)) == [
        "hooks.delivered of a: sh ended with 5: no route",
        "hooks.delivered of b: sh gave no answer in 500ms",
    ]
    assert done.summary["delivered"] == 2


def test_programs_that_are_not_there_are_a_wrong_configuration(site: Site) -> None:
    """That is said at the start, for all at once, and nothing is transferred."""
    make_tree(site.source, {"a": 10})
    done = site.sync(*hooks(site, delivered=["no-such-hook"], failed=["/dev/null", "x"]))
    assert done.code == 2
    assert "hooks.delivered: no-such-hook is not installed" in done.err
    assert "hooks.failed: /dev/null is not installed, or not executable" in done.err
    assert files_of(site.dest) == {}


def test_what_is_left_of_the_hooks_at_the_end_of_the_grace_period_is_counted(site: Site) -> None:
    """A stop waits no longer than `state.shutdown_grace`; the hook that runs then is ended."""
    make_tree(site.source, {f"{n}": n for n in range(5)})
    script = 'echo $$ > "$1"; exec sleep 600'
    options = hooks(
        site, "state: {shutdown_grace: 300ms}", delivered=["sh", "-c", script, "sh", str(site.root / "pid")]
    )
    agent = site.watch(*options)
    for n in range(5):
        agent.wait_for_file(f"{n}", "done")
    wait_until(lambda: (site.root / "pid").exists() and (site.root / "pid").read_text())
    done = agent.end(signal.SIGTERM, 20)
    assert done.code == 0, done.err
    assert notices(done.lines) == ["5 hooks were not run to the end: the run ended before"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((site.root / "pid").read_text()), 0)


async def test_what_is_too_much_for_the_queue_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: a file that comes when the queue is full is not told of, and that is said."""
    monkeypatch.setattr(hooks_module, "WAITING", 3)
    board, said = Board(), list[str]()
    board.notices.append(lambda what, text: said.append(text))
    command = ("sh", "-c", 'until [ -e "$1/go" ]; do sleep 0.01; done; echo x >> "$1/ran"', "sh", str(tmp_path))
    its_hooks = Hooks(Config(hooks=Settings(failed=command)), board)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(its_hooks.run, Shutdown(10))
            for n in range(8):
                entry = board.add(b"%d" % n, found().fingerprint)
                for state in (FileState.READY, FileState.COPYING, FileState.FAILED):
                    board.move(entry, state)
                if n == 0:
                    await trio.testing.wait_all_tasks_blocked()
            (tmp_path / "go").touch()
            its_hooks.close()
    assert said == ["4 hooks were not run: 3 files waited to be told of already"]
    assert (tmp_path / "ran").read_text() == "x\n" * 4
