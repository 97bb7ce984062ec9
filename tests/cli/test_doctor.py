"""`trioft doctor`: what it measures is true, what it says can be acted on, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from faults_mount import FaultMount, fault_mount
from files import need_leases
from support import PATIENCE, ROOT, TRIOFT, Done, Site, make_tree, mounted, read_tree, run_without_privilege, wait_until
from trioft.cli import diagnosis
from trioft.cli.diagnosis import Finding, Result
from trioft.core.answers import KEEPS_NO_TIMES
from trioft.core.measured import Measured, Names, Sizes, Times
from trioft.movers.ops.folder.measure import ODD_NAMES

CHECKS = {
    ("source", "filesystem"),
    ("source", "events"),
    ("source", "removal"),
    ("source", "closed files"),
    ("destination", "filesystem"),
    ("destination", "space"),
    ("destination", "fsync"),
    ("destination", "rename"),
    ("destination", "rename without replacing"),
    ("destination", "times"),
    ("destination", "clock"),
    ("destination", "names"),
    ("destination", "large files"),
    ("destination", "attributes"),
    ("destination", "permissions"),
    ("destination", "read-back"),
    ("destination", "throughput"),
    ("destination", "small files"),
}


def examined(done: Done) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what was found, by end and check."""
    assert "Traceback" not in done.err, done.err
    return {(line["side"], line["check"]): line for line in done.lines if line["event"] == "check"}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Done]:
    """A site that was examined, and what came of it."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.dest = site.dest / "odd\nname"  # a line stays one line of JSON
    make_tree(site.source, {"a": b"1"})
    make_tree(site.dest, {"b": b"2"})
    return site, site.run("doctor", site.source, site.dest, "--json")


def test_everything_is_looked_at_and_nothing_left_behind(once: tuple[Site, Done]) -> None:
    """Each thing that matters has a finding; both ends are as they were; the exit code says whether all is well."""
    site, done = once
    found = examined(done)
    assert set(found) >= CHECKS
    assert done.code == any(line["result"] == "problem" for line in found.values())
    assert all(line["measured"] and line["meaning"] for line in found.values())
    counts = {name: sum(line["result"] == name for line in found.values()) for name in Result}
    assert {name: done.summary[name] for name in Result} == counts
    assert (read_tree(site.source), read_tree(site.dest)) == ({b"a": b"1"}, {b"b": b"2"})
    assert not site.state.exists()


def test_a_local_disk_can_do_what_trioft_needs(once: tuple[Site, Done]) -> None:
    """On the filesystem of these tests events arrive, leases prove, names and times are kept."""
    site, done = once
    need_leases(site.root)
    found = examined(done)
    at_destination = ("names", "times", "rename", "rename without replacing", "permissions")
    for check in (("source", "events"), ("source", "closed files"), *(("destination", at) for at in at_destination)):
        assert found[check]["result"] == "ok", found[check]


def test_what_a_person_reads_says_what_to_set(site: Site) -> None:
    """One line for what is well; what is not, has what it means, and where to look."""
    done = site.run("doctor", site.source, site.dest)
    lines = done.out.splitlines()
    assert any(line.startswith("ok       destination, rename: ") for line in lines)
    notes = [n for n, line in enumerate(lines) if line.startswith(("note", "problem"))]
    assert all(lines[n + 1].startswith("         ") for n in notes)
    assert " ok" in lines[-1]


@pytest.mark.parametrize("end", ["source", "dest"])
def test_an_end_that_is_not_there_is_not_made(site: Site, end: str) -> None:
    """Promise 5: exit code 3, and nothing was created."""
    (site.root / end).rmdir()
    done = site.run("doctor", site.source, site.dest)
    assert (done.code, (site.root / end).exists()) == (3, False)
    assert "is not there" in done.err


def test_one_of_several_jobs_is_examined(site: Site) -> None:
    """A configuration of several jobs has several pairs: which one is meant has to be said."""
    file = site.root / "c.yaml"
    gone = site.root / "gone"
    file.write_text(f"jobs:\n- {{name: a, source: {{path: {site.source}}}, destination: {{path: {gone}}}}}\n")
    unnamed = site.run("doctor", "-c", file)
    assert (unnamed.code, "there are several jobs: a" in unnamed.err, "--job" in unnamed.err) == (2, True, True)
    named = site.run("doctor", "-c", file, "--job", "a")
    assert (named.code, f"the destination is not there: {gone}" in named.err) == (3, True)


def test_a_source_that_may_not_be_written_is_only_read(site: Site) -> None:
    """Then it is not known whether events arrive, and that is said."""
    (site.source / "a").write_bytes(b"1")
    site.source.chmod(0o555)
    done = run_without_privilege("doctor", site.source, site.dest, "--json")
    site.source.chmod(0o755)
    found = examined(done)
    assert found["source", "events"]["result"] == found["source", "closed files"]["result"] == "unknown"
    assert found["source", "removal"]["result"] == "note"
    assert os.listdir(site.source) == ["a"]


def test_a_destination_that_may_not_be_written_is_unusable(site: Site) -> None:
    """Where nothing can be written, there is nothing to be measured."""
    site.dest.chmod(0o555)
    done = run_without_privilege("doctor", site.source, site.dest, "--json")
    site.dest.chmod(0o755)
    assert done.code == 3
    assert "Permission denied" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_it_clears_up_when_it_is_interrupted(site: Site, number: int) -> None:
    """Ctrl-C in the middle leaves nothing behind either."""
    process = subprocess.Popen(
        [*TRIOFT, "doctor", site.source, site.dest, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: os.listdir(site.dest))
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + number, b"")
    assert b"summary" not in out
    assert os.listdir(site.dest) == os.listdir(site.source) == []


def test_a_reader_that_goes_away_ends_it_without_a_mess(site: Site) -> None:
    """`trioft doctor | head -1` ends quietly, and clears up."""
    command = [*TRIOFT, "doctor", str(site.source), str(site.dest)]
    pipe = ["bash", "-c", '"$@" | head -1', "bash", *command]
    done = subprocess.run(pipe, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    assert os.listdir(site.dest) == os.listdir(site.source) == []


def test_a_full_disk_for_the_output_is_said(site: Site) -> None:
    """Nothing of what it has made is left behind, either."""
    command = [*TRIOFT, "doctor", str(site.source), str(site.dest)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (3, b"trioft: error: cannot write to stdout: No space left on device\n")
    assert os.listdir(site.dest) == os.listdir(site.source) == []


def test_a_destination_without_room_is_a_problem_and_no_mess(site: Site) -> None:
    """What does not fit is told; the rest is measured, and what was written is taken away."""
    with mounted("tmpfs", site.dest, "-t", "tmpfs", "-o", "size=6m"):
        done = site.run("doctor", site.source, site.dest, "--json")
        found = examined(done)
        assert done.code == 1
        assert found["destination", "throughput"]["result"] == "problem"
        assert "No space left" in found["destination", "throughput"]["measured"]
        assert found["destination", "small files"]["result"] == "ok"
        assert found["destination", "filesystem"]["result"] == "problem"  # in memory
        assert os.listdir(site.dest) == []


# --- a destination at which anything goes wrong -----------------------------------------------------------------------


@pytest.fixture
def mount() -> Iterator[FaultMount]:
    with fault_mount() as made:
        (made.backing / "dest").mkdir()
        yield made


def examine(site: Site, mount: FaultMount) -> Done:
    config = site.root / "trioft.yaml"
    config.write_text("copy: {stall_timeout: 1s}\n")
    return site.run("doctor", site.source, mount.place / "dest", "-c", config, "--json")


def test_what_does_not_work_is_found(site: Site, mount: FaultMount) -> None:
    """Each thing that a destination may not be able to do is told as what it is; the others are still looked at."""
    mount.fail("setxattr", errno="EOPNOTSUPP", times=0)
    mount.fail("chmod", errno="EPERM", times=0)
    mount.fail("fsyncdir", errno="EINVAL", times=0)
    mount.fail("utimens", errno="EPERM", times=0)
    mount.fail("create", "*colon*", errno="EINVAL", times=0)
    mount.fail("rename", "*/open", errno="EACCES", times=0)
    mount.fail("write", "*/throughput", flip=True)
    done = examine(site, mount)
    found = examined(done)
    for check, result, words in (
        ("attributes", "note", "not supported"),
        ("permissions", "note", "not kept: "),
        ("fsync of folders", "note", "Invalid argument"),
        ("times", "problem", "are not kept"),
        ("names", "problem", "a colon: Invalid argument"),
        ("rename", "ok", ""),
        ("rename over open files", "note", "Permission denied"),
        ("throughput", "problem", "does not read back"),
        ("large files", "unknown", ""),
        ("small files", "ok", ""),
    ):
        line = found["destination", check]
        assert (line["result"], words in line["measured"]) == (result, True), line
    # This filesystem can do a lot, but not rmdir: the folder stays, and that is told.
    assert (done.code, set(read_tree(mount.backing / "dest").values())) == (1, {None})
    assert "is left behind: rmdir" in found["destination", "clearing up"]["measured"]


def test_what_fails_as_a_whole_is_a_problem_among_others(site: Site, mount: FaultMount) -> None:
    """A measurement that cannot be made says why, under its own name."""
    mount.fail("rename", errno="EPERM", times=0)
    mount.fail("write", "*/throughput", errno="EFBIG")
    found = examined(examine(site, mount))
    for check, words in (("rename", "not permitted"), ("small files", "not permitted"), ("throughput", "too large")):
        line = found["destination", check]
        assert (line["result"], words in line["measured"]) == ("problem", True), line


def test_a_destination_that_hangs_is_told_not_hung_on(site: Site, mount: FaultMount) -> None:
    """Who does not answer for `copy.stall_timeout` is unusable: exit code 3, soon, with the reason."""
    mount.fail("write", "*throughput", stall=60)
    begun = time.monotonic()
    done = examine(site, mount)
    assert time.monotonic() - begun < 40
    assert done.code == 3
    assert "no progress for " in done.err
    assert "Traceback" not in done.err


# --- what it means ----------------------------------------------------------------------------------------------------


def judged(found: Measured) -> dict[str, Finding]:
    return {finding.check: finding for finding in diagnosis.judge(found)}


def test_a_server_that_folds_names_is_a_problem() -> None:
    """Two files that become one name would take each other's place: that has to be known before."""
    found = judged(Names(refused={}, folds_case=True, normalises=True))
    assert [found[check].result for check in ("names", "case", "Unicode")] == ["ok", "problem", "problem"]
    assert "if_exists" in str(found["case"].advice)


@pytest.mark.parametrize(
    ("resolution", "text"),
    [(1, "kept to 1 ns"), (100, "kept to 100 ns"), (1_000_000_000, "kept to 1 s"), (2_000_000_000, "kept to 2 s")],
)
def test_the_precision_of_times_is_told(resolution: int, text: str) -> None:
    """As people say it."""
    assert judged(Times(resolution_ns=resolution, lost_years=[], clock_ahead=0.0))["times"].measured == text


def test_a_clock_that_differs_is_noted() -> None:
    """Ahead or behind, with the seconds."""
    found = judged(Times(resolution_ns=KEEPS_NO_TIMES, lost_years=[1902, 2107], clock_ahead=-3600.0))
    assert (found["clock"].result, found["clock"].measured) == ("note", "its clock is 3,600 s behind")
    assert (found["times"].result, found["range of times"].measured) == ("problem", "not those of 1902, 2107")


@pytest.mark.parametrize(
    ("refused", "asked", "result"),
    [
        (None, True, "ok"),
        (None, False, "unknown"),
        ((4 << 30, "EFBIG"), True, "problem"),
        ((8 << 40, "EFBIG"), True, "note"),
    ],
)
def test_the_largest_file_is_told(refused: Any, asked: bool, result: str) -> None:
    """FAT ends at 4 GiB, which many recordings exceed."""
    found = judged(Sizes(refused=refused, asked=asked, sparse=False))
    assert (found["large files"].result, found["holes"].result) == (result, "note")


def test_no_odd_name_is_longer_than_a_name_may_be() -> None:
    """What is tried is legal on Linux, so that a refusal is the destination's."""
    assert all(0 < len(name) <= 255 and not {*name} & {0, 47} for name in ODD_NAMES.values())
    assert {len(ODD_NAMES[what]) for what in ("255 bytes", "255 bytes of UTF-8")} == {255}


def test_every_field_of_a_finding_is_documented() -> None:
    """What a script reads is in the README."""
    text = (ROOT / "README.md").read_text("utf-8")
    for field in (*Finding._fields, *Result):
        assert f"`{field}`" in text, field
