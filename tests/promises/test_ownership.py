"""Promise 4, beyond one process: one trioft for a pair, and no partial of another ledger is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support import PATIENCE, TRIOFT, Site, files_of, make_tree, pattern, wait_until
from synced import BLOCK, LARGE, partials_of
from trioft.core.claim import STALE

SLOW = ("--bwlimit", "16MiB/s")
SLOWER = ("--bwlimit", "512KiB/s")  # it does not end by itself while a test goes on


def claims_of(site: Site) -> list[Path]:
    return sorted(site.dest.glob(".trioft-*"))


def copying(site: Site, *options: str, slow: tuple[str, ...] = SLOWER) -> subprocess.Popen[bytes]:
    """Start a sync of this site, and return it once it is copying."""
    there = len(partials_of(site.dest))
    process = subprocess.Popen(
        [*TRIOFT, "sync", site.source, site.dest, "--state-dir", site.state, "-q", *slow, *options],
        stdin=subprocess.DEVNULL,
    )
    wait_until(lambda: len(partials_of(site.dest)) > there)
    return process


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    process.send_signal(number)
    assert process.wait(PATIENCE) == (-number if number == signal.SIGKILL else 128 + number)


def alone(site: Site, *options: str) -> list[str]:
    """Return the command of another sync of the same pair: one that has nothing but the ends in common with ours."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root may make namespaces")
    command = [
        *TRIOFT,
        "sync",
        str(site.source),
        str(site.dest),
        "--state-dir",
        str(site.root / "other state"),
        *options,
    ]
    return ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", *command]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_a_second_agent_with_another_state_folder_is_refused(site: Site) -> None:
    """Root beside a user, a service beside a run by hand: the second one ends with 5, and touches nothing."""
    make_tree(site.source, {"take.mxf": LARGE})
    content = (site.source / "take.mxf").read_bytes()
    first = copying(site, "--on-success", "delete")
    there = set(files_of(site.dest))
    link = site.root / "the same"
    link.symlink_to(site.source)
    for source in (site.source, link):
        done = site.run(
            "sync", source, site.dest, "--state-dir", site.root / "other", "--on-success", "delete", "--json"
        )
        assert (done.code, done.summary["exit_code"], done.summary["delivered"]) == (5, 5, 0)
        assert f"process {first.pid}" in done.err
        assert f"process {first.pid}" in done.summary["problem"]
    quiet = site.run("sync", site.source, site.dest, "--state-dir", site.root / "other", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (5, "", "")
    assert set(files_of(site.dest)) == there
    end(first)
    assert site.sync("--on-success", "delete").code == 0
    assert files_of(site.dest) == {b"take.mxf": content}
    assert files_of(site.source) == {}


def test_another_machine_is_told_who_works_there(site: Site) -> None:
    """It has nothing but the ends in common: a claim at the destination says which host and process, and since when."""
    make_tree(site.source, {"take.mxf": LARGE})
    command = alone(site, "--json")
    first = copying(site)
    (claim,) = claims_of(site)
    said = json.loads(claim.read_bytes())
    assert (said["pid"], said["source"]) == (first.pid, str(site.source))
    done = run(command)
    assert done.returncode == 5, done.stderr
    assert f"trioft on {said['host']} (process {first.pid}) works on this since {said['since']}" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 5
    end(first)
    assert claims_of(site) == []
    assert run(command).returncode == 0


def test_a_claim_of_a_killed_process_is_taken_over_at_once(site: Site) -> None:
    """By whoever can see that it is gone; from elsewhere, after it has not been heard of for some minutes."""
    make_tree(site.source, {"take.mxf": LARGE})
    command = alone(site, "-q")
    first = copying(site)
    end(first, signal.SIGKILL)
    (claim,) = claims_of(site)
    assert run(command).returncode == 5
    past = claim.stat().st_mtime - STALE - 60
    os.utime(claim, (past, past))
    assert run(command).returncode == 0
    make_tree(site.source, {"more": pattern(LARGE, 3)})
    second = copying(site)
    end(second, signal.SIGKILL)
    assert len(claims_of(site)) == 1
    done = site.sync()
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert claims_of(site) == []


def test_agents_of_different_sources_work_into_one_folder(site: Site) -> None:
    """Each with a partial of its own, also where both have a file of one name."""
    other = Site.__new__(Site)
    other.__dict__.update(site.__dict__, source=site.root / "other source", state=site.root / "other state")
    other.source.mkdir()
    make_tree(site.source, {"take.mxf": LARGE})
    make_tree(other.source, {"take.mxf": pattern(LARGE, 7)})
    first = copying(site, "--if-exists", "rename", slow=SLOW)
    done = other.sync("--if-exists", "rename")
    assert (done.code, done.summary["delivered"]) == (0, 1)
    assert first.wait(PATIENCE) == 0
    contents = {path.read_bytes() for path in (site.source / "take.mxf", other.source / "take.mxf")}
    assert {*files_of(site.dest).values()} == contents
    assert set(files_of(site.dest)) == {b"take.mxf", b"take_1.mxf"}


@pytest.mark.parametrize("wrong", ["removed", "of another name"])
def test_where_the_claim_is_wrong_every_byte_is_right_all_the_same(wrong: str, site: Site) -> None:
    """Two agents that do not know of each other work on one pair: each has a partial of its own, nothing is lost."""
    make_tree(site.source, {"take.mxf": LARGE})
    content = (site.source / "take.mxf").read_bytes()
    command = alone(site, "--on-success", "delete", "-q")
    first = copying(site, "--on-success", "delete", slow=("--bwlimit", "4MiB/s"))
    (claim,) = claims_of(site)
    claim.unlink() if wrong == "removed" else claim.rename(site.dest / ".trioft-claim-0")
    done = run(command)
    first.wait(PATIENCE)
    assert done.returncode in (0, 1), done.stderr
    assert content in files_of(site.dest).values()
    finished = {name: data for name, data in files_of(site.dest).items() if b".trioft-" not in name}
    assert set(finished.values()) == {content}


def test_a_partial_of_another_ledger_stays_as_it_is(site: Site) -> None:
    """Whatever it holds, and however old: it is neither continued nor cut nor removed, and told of by `clean`."""
    make_tree(site.source, {"take.mxf": LARGE})
    first = copying(site, slow=SLOW)
    wait_until(lambda: any(path.stat().st_size > BLOCK for path in partials_of(site.dest)))
    end(first)
    (partial,) = partials_of(site.dest)
    os.utime(partial, (0, 0))
    before = partial.read_bytes()
    done = site.run("sync", site.source, site.dest, "--state-dir", site.root / "other state", "--json")
    assert (done.code, done.summary["bytes_resumed"]) == (0, 0)
    assert (partial.read_bytes(), partial.stat().st_mtime) == (before, 0)
    assert (site.dest / "take.mxf").read_bytes() == (site.source / "take.mxf").read_bytes()


def test_a_file_that_is_replaced_while_it_is_copied_leaves_nothing(site: Site) -> None:
    """A watch removes the partial of the one before at once."""
    make_tree(site.source, {"db.bak": LARGE})
    agent = site.watch(*SLOW, "--if-exists", "overwrite")
    known: set[str] = set()

    def are_new() -> bool:
        return not known.issuperset(path.name for path in partials_of(site.dest))

    for n in range(3):
        wait_until(are_new)
        known.update(path.name for path in partials_of(site.dest))
        make_tree(site.root, {"new": pattern(LARGE, 10 + n)})
        (site.root / "new").rename(site.source / "db.bak")
    content = (site.source / "db.bak").read_bytes()
    wait_until(lambda: (site.dest / "db.bak").exists() and (site.dest / "db.bak").read_bytes() == content)
    wait_until(lambda: not partials_of(site.dest))
    agent.end()
    assert len(known) > 1
    assert files_of(site.dest) == files_of(site.source)


def test_the_summary_comes_whatever_ended_the_run(site: Site) -> None:
    """A script that reads JSON lines finds the last one also where nothing could be done."""
    for code, command in (
        (3, ["sync", str(site.source), str(site.root / "none")]),
        (2, ["sync", str(site.source), str(site.source)]),
        (2, ["sync", str(site.source), str(site.dest), "--transfers", "many"]),
    ):
        done = site.run(*command, "--state-dir", str(site.state), "--json")
        assert (done.code, done.summary["exit_code"], done.summary["delivered"]) == (code, code, 0)
        assert done.summary["problem"]
