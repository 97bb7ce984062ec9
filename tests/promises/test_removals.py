"""Sources go in three steps, in whole runs: what is killed in between loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from files import need_leases
from support import TOOLS, Site, files_of, make_tree, wait_until

# Kills the agent, and the mover with it, at one step of the removal of `in/a`.
_DYING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import trio
from odd_mover import changed
from trioft.agent.agent import run_agent
from trioft.config.file import load_config
from trioft.state.board import Board

root, step, when = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
config = load_config(None, {"source.path": ("", f"{root}/source"), "destination.path": ("", f"{root}/dest"),
    "copy.on_success": ("", sys.argv[5])})
mover = changed(root, f'''
from trioft.movers.ops import removal
beneath = removal.beneath
class Dying:
    def __getattr__(self, name):
        return getattr(beneath, name)
    def {step}(self, path, *rest, **more):
        if os.path.basename(path) == b"a" and {when!r} == "before":
            os.kill(os.getppid(), 9), os.kill(os.getpid(), 9)
        beneath.{step}(path, *rest, **more)
        if os.path.basename(path) == b"a":
            os.kill(os.getppid(), 9), os.kill(os.getpid(), 9)
removal.beneath = Dying()
''')

async def run():
    await run_agent(config, Board(), once=True, state_dir=str(root / "state"), mover=mover)

trio.run(run)
"""


@pytest.mark.parametrize("command", ["sync", "watch"])
@pytest.mark.parametrize(
    ("step", "when", "action"),
    [
        ("rename_noreplace", "before", "delete"),
        ("rename_noreplace", "after", "delete"),
        ("unlink", "before", "delete"),
        ("unlink", "after", "delete"),
        ("rename_noreplace", "after", "archive"),
    ],
)
def test_a_run_that_is_killed_while_a_source_goes_is_made_up_for(
    site: Site, command: str, step: str, when: str, action: str
) -> None:
    """The content is at both ends, or at one; the next run puts back what lies aside, and ends it."""
    need_leases(site.source)
    make_tree(site.source, {"in/a": b"first", "b": b"second"})
    os.utime(site.source / "b", (1_000_000_000, 1_000_000_000))
    content = files_of(site.source)
    on_success = action if action == "delete" else f"archive:{site.root}/archive"
    died = subprocess.run(
        [sys.executable, "-c", _DYING, TOOLS, site.root, step, when, on_success], timeout=60, check=False
    )
    assert died.returncode == -9
    assert content.items() <= files_of(site.dest).items()
    agent = site.start(command, "--on-success", on_success)
    wait_until(lambda: [path.name for path in site.source.rglob("*")] == ["in"])
    assert agent.end(15 if command == "watch" else 0).code == 0
    assert files_of(site.dest) == content
    assert action == "delete" or files_of(site.root / "archive") == content


def test_each_source_that_goes_is_a_line_of_the_log(site: Site) -> None:
    """What was removed, and what was archived, and to where."""
    need_leases(site.source)
    make_tree(site.source, {"in/a": 10})
    log = site.root / "log"
    options: list[str | Path] = ["-c", site.root / "trioft.yaml"]
    (site.root / "trioft.yaml").write_text(f"log: {{file: {log}, format: json}}\n")
    assert site.sync(*options, "--on-success", "delete").code == 0
    make_tree(site.source, {"in/a": 11})
    make_tree(site.root / "archive", {"in/a": 1})
    assert site.sync(*options, "--on-success", f"archive:{site.root}/archive").code == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (removed,) = [line for line in lines if line["event"] == "source.removed"]
    (archived,) = [line for line in lines if line["event"] == "source.archived"]
    assert (removed["level"], removed["path"]) == ("info", f"{site.source}/in/a")
    assert (archived["path"], archived["to"]) == (f"{site.source}/in/a", f"{site.root}/archive/in/a_1")


def test_an_archive_elsewhere_is_refused_before_anything_is_copied(site: Site) -> None:
    """Nothing could be moved there in one step: check, doctor and a start say so."""
    from files import other_filesystem

    make_tree(site.source, {"a": 10})
    with other_filesystem(site.source) as elsewhere:
        (site.root / "trioft.yaml").write_text(
            f"source: {{path: {site.source}}}\ndestination: {{path: {site.dest}}}\n"
            f"copy: {{on_success: 'archive:{elsewhere}/made/later'}}\n"
        )
        for command in (["config", "check"], ["doctor"], ["sync"], ["watch"]):
            done = site.run(*command, "-c", site.root / "trioft.yaml")
            assert done.code == 2
            assert f"the archive {elsewhere}/made/later is on another filesystem than the source" in done.err
    assert files_of(site.dest) == {}
    (site.root / "trioft.yaml").write_text(
        f"source: {{path: {site.source}}}\ncopy: {{on_success: 'archive:{site.root}/made/later'}}\n"
    )
    assert site.run("config", "check", "-c", site.root / "trioft.yaml").code == 0


def test_a_folder_that_only_looks_like_one_of_what_was_taken_aside_stays(site: Site) -> None:
    """Nothing in it is moved; that it is left alone is said, whatever hex digits its name has."""
    folders = [".trioft-going-holiday", "in/.trioft-going-01234567", ".trioft-going-0123456789"]
    files: dict[str | bytes, bytes | int | None] = {f"{folder}/photo.jpg": b"mine" for folder in folders}
    make_tree(site.source, files)
    before = files_of(site.source)
    for command in ("sync", "watch"):
        agent = site.start(command, "--on-success", "delete")
        if command == "watch":
            make_tree(site.source, {"later": b"1"})
            wait_until(lambda: (site.dest / "later").exists() and not (site.source / "later").exists())
        done = agent.end(15 if command == "watch" else 0)
        assert done.code == 0
        assert "put back" not in done.err
    assert files_of(site.source) == before
    assert site.sync().summary["skipped"] == len(folders)
