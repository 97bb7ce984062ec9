"""A file that is delivered again: touched, appended to, resumed, given other permissions, or really another version."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from support import Running, Site, files_of, make_tree, pattern, wait_until, watcher_of

MIB = 1 << 20


def watching(site: Site, *options: str) -> Running:
    """Start to watch, and wait until files are found by events."""
    agent = site.watch("-v", *options)
    wait_until(lambda: watcher_of(agent.process.pid))
    return agent


def deliver(site: Site, agent: Running, name: str, content: bytes) -> None:
    """Give a source file *content*, and wait until what is at the destination is what it is now."""
    path = site.source / name
    with open(path, "ab" if path.exists() and content.startswith(path.read_bytes()) else "wb") as file:
        file.write(content[file.tell() :])
    wanted = os.stat(path)

    def has_arrived() -> bool:
        return any(
            (there.st_size, there.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns)
            for there in (os.stat(site.dest / name) for name in os.listdir(site.dest) if not name.endswith("partial"))
        )

    wait_until(has_arrived)


@pytest.mark.parametrize("size", [0, 1000, 9 * MIB])
def test_a_touched_file_is_no_second_file(site: Site, size: int) -> None:
    """Same content, other time: only the time of the copy is set, and `verify` still knows its digest."""
    make_tree(site.source, {"a": size})
    agent = watching(site)
    agent.wait_for_file("a", "done")
    was = os.stat(site.dest / "a")
    os.utime(site.source / "a", (1_500_000_000, 1_500_000_000))
    wait_until(lambda: os.stat(site.dest / "a").st_mtime == 1_500_000_000)
    assert os.stat(site.dest / "a").st_ino == was.st_ino, "nothing was copied"
    assert agent.end().code == 0
    assert files_of(site.dest) == files_of(site.source)
    verified = site.run("verify", site.source, site.dest, "--state-dir", site.state)
    assert verified.code == 0, verified.out
    again = site.sync()
    assert (again.summary["already"], again.summary["delivered"]) == (1, 0)


def test_a_sync_sets_the_time_of_a_copy_and_reads_but_does_not_write(site: Site) -> None:
    """The next sync finds nothing to do."""
    make_tree(site.source, {"a": 2 * MIB})
    assert site.sync().summary["delivered"] == 1
    was = os.stat(site.dest / "a")
    os.utime(site.source / "a", (1_500_000_000, 1_500_000_000))
    assert site.sync().summary["bytes"] == 0
    now = os.stat(site.dest / "a")
    assert (now.st_ino, now.st_mtime) == (was.st_ino, 1_500_000_000)
    assert site.sync().summary["already"] == 1


def test_a_file_that_is_appended_to_keeps_its_name(site: Site) -> None:
    """A log, a resumed upload: what was delivered is the beginning of what there is now."""
    agent = watching(site)
    content = b""
    for number in range(5):
        content += b"line %d\n" % number
        deliver(site, agent, "app.log", content)
        assert (site.dest / "app.log").read_bytes() == content
    large = pattern(20 * MIB)
    deliver(site, agent, "up.mxf", large[: 8 * MIB + 5])
    deliver(site, agent, "up.mxf", large)
    agent.end()
    assert files_of(site.dest) == {b"app.log": content, b"up.mxf": large}


def test_other_content_gets_another_name(site: Site) -> None:
    """One changed byte, or an end that was cut off: both versions stay, and the third is a warning."""
    agent = watching(site)
    versions = [b"first version", b"First version", b"First", b"Last"]
    for content in versions:
        deliver(site, agent, "a", content)
    done = agent.end()
    assert sorted(files_of(site.dest).values()) == sorted(versions)
    warnings = [line for line in done.err.splitlines() if "times within an hour" in line]
    assert len(warnings) == 1, done.err


def test_what_somebody_did_to_the_copy_is_not_replaced(site: Site) -> None:
    """The copy was changed: it is no beginning of the source any more, and stays."""
    agent = watching(site)
    deliver(site, agent, "a", b"first\n")
    (site.dest / "a").write_bytes(b"mine!\n")
    deliver(site, agent, "a", b"first\nsecond\n")
    agent.end()
    assert files_of(site.dest) == {b"a": b"mine!\n", b"a_1": b"first\nsecond\n"}


def test_another_file_of_the_same_beginning_is_not_taken_for_the_earlier_version(site: Site) -> None:
    """What is there under the name was not delivered from this source file: it is another one's."""
    make_tree(site.dest, {"a": b"begin"})
    make_tree(site.source, {"a": b"begin, and end"})
    agent = watching(site)
    agent.wait_for_file("a", "done")
    agent.end()
    assert files_of(site.dest) == {b"a": b"begin", b"a_1": b"begin, and end"}


@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_policies_that_leave_names_alone_do_so(site: Site, policy: str) -> None:
    """An appended file is another one for them, and the copy stays as it is."""
    make_tree(site.source, {"a": b"begin"})
    assert site.sync("--if-exists", policy).code == 0
    make_tree(site.source, {"a": b"begin, and end"})
    done = site.sync("--if-exists", policy)
    assert done.summary["skipped" if policy == "skip" else "failed"] == 1
    assert files_of(site.dest) == {b"a": b"begin"}


@pytest.mark.parametrize("size", [10, 2 * MIB])
@pytest.mark.parametrize("how", ["sync", "watch"])
def test_changed_permission_bits_arrive(site: Site, how: str, size: int) -> None:
    """A chmod alone: the copy gets the bits, and nothing is written again."""
    make_tree(site.source, {"a": size})
    os.chmod(site.source / "a", 0o644)
    assert site.sync().summary["delivered"] == 1
    was = os.stat(site.dest / "a")
    os.chmod(site.source / "a", 0o600)
    if how == "sync":
        assert site.sync().summary["already"] == 1
    else:
        agent = watching(site)
        wait_until(lambda: mode_of(site.dest / "a") == 0o600)
        agent.end()
    now = os.stat(site.dest / "a")
    assert (now.st_ino, now.st_mtime_ns, stat.S_IMODE(now.st_mode)) == (was.st_ino, was.st_mtime_ns, 0o600)
    assert site.run("verify", site.source, site.dest, "--state-dir", site.state).code == 0


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_folders_of_a_group_stay_so(site: Site) -> None:
    """The set-group-ID bit that the destination gives to new folders, and that of the source, are kept."""
    make_tree(site.source, {"a/b/f": b"x", "own/f": b"y"})
    os.chmod(site.source / "a/b", 0o755)
    os.chmod(site.dest, 0o2775)
    assert site.sync().code == 0
    assert [mode_of(site.dest / name) & 0o2000 for name in ("a", "a/b", "own")] == [0o2000] * 3
    other = site.root / "plain"
    other.mkdir(mode=0o755)
    os.chmod(site.source / "own", 0o2750)
    done = site.run("sync", site.source, other, "--state-dir", site.state, "--json", "--settle", "100ms")
    assert done.code == 0
    assert (mode_of(other / "own"), mode_of(other / "a") & 0o2000) == (0o2750, 0)


def test_set_user_id_is_not_handed_on(site: Site) -> None:
    """A copy belongs to whoever trioft runs as: its rights are not those of the source's owner."""
    make_tree(site.source, {"tool": b"#!"})
    os.chmod(site.source / "tool", 0o4755)
    assert site.sync().code == 0
    assert mode_of(site.dest / "tool") == 0o755


@pytest.mark.parametrize(("names", "left"), [(["downloads"], {b"a~", b"a"}), (["downloads", "editors"], {b"a"})])
def test_what_programs_have_not_finished_is_left_alone(site: Site, names: list[str], left: set[bytes]) -> None:
    """The names of browsers and rsync, and those of editors, where they are asked for."""
    config = site.root / "config.yaml"
    config.write_text(f"source:\n  exclude_presets: {names}\n", encoding="utf-8")
    tree: dict[str | bytes, Any] = dict.fromkeys(("a", "a.part", "b.crdownload", ".c.mov.Xy12Ab", "a~"), b"x")
    make_tree(site.source, tree)
    assert site.sync("-c", config).code == 0
    assert {*files_of(site.dest)} == left
