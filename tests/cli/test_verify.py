"""``trioft verify``: what was delivered is read again, and every difference has its name."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from faults_mount import fault_mount
from support import (
    ROOT,
    TRIOFT,
    Done,
    Running,
    Site,
    make_tree,
    mounted,
    pattern,
    run_without_privilege,
    unnoticed,
    wait_until,
)
from trioft.cli.verify import picture
from trioft.core.answers import Seen
from trioft.core.model import BLOCK_SIZE, MIB, Fingerprint
from trioft.pipeline.verification import VERDICTS, Tally, judge
from trioft.state.ledger import Entry, Ledger
from trioft.state.reader import Delivery

README = (ROOT / "README.md").read_text("utf-8")
LARGE = 9 * BLOCK_SIZE + 1  # more than one span
ALONE = 17 * MIB  # two of these are two jobs


def verify(site: Site, *options: str | Path) -> Done:
    """Run ``trioft verify`` on this site, with JSON lines."""
    return site.run("verify", site.source, site.dest, "--state-dir", site.state, "--json", *options)


def started(site: Site, *options: str) -> Running:
    """Start it."""
    command = [*TRIOFT, "verify", str(site.source), str(site.dest), "--state-dir", str(site.state), "--json", *options]
    return Running(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))


def verdicts(done: Done) -> dict[str, str]:
    """Return the verdict on each file, by its name at the destination."""
    return {line["dest"]: line["verdict"] for line in done.lines if line["event"] == "verify"}


def test_what_is_there_as_it_was_delivered_is_verified(site: Site) -> None:
    """Small, large and empty files, odd names, and those whose sources are gone; exit code 0."""
    make_tree(site.source, {"a/small": 1000, "large": LARGE, "empty": b"", b"odd\xff": 5})
    assert site.sync("--on-success", "delete").code == 0
    done = verify(site)
    assert (done.code, done.err) == (0, f"4 verified: {(LARGE + 1005) / 1e6:.3g} MB read in {_seconds(done)} s\n")
    assert set(verdicts(done).values()) == {"verified"}
    assert done.summary == {
        **dict.fromkeys(VERDICTS, 0),
        "event": "summary",
        "time": done.summary["time"],
        "seconds": done.summary["seconds"],
        "verified": 4,
        "not_on_record": 0,
        "bytes": LARGE + 1005,
        "resumed": 0,
    }
    for field in {key.removesuffix("_b64") for line in done.lines for key in line}:
        assert f"`{field}`" in README, field


def _seconds(done: Done) -> str:
    return f"{done.summary['seconds']:.1f}"


def test_every_difference_has_its_name(site: Site) -> None:
    """What is missing, damaged or cut off is no success; what somebody has replaced is his."""
    names = ["same", "touched", "gone", "folder", "link", "flipped", "late", "cut", "longer", "replaced", "resized"]
    make_tree(site.source, {name: (LARGE if name == "late" else 1000) for name in names})
    assert site.sync().code == 0
    there = {name: site.dest / name for name in names}
    os.utime(there["touched"], (1e9, 1e9))
    for name in ("gone", "folder", "link"):
        there[name].unlink()
    there["folder"].mkdir()
    there["link"].symlink_to(site.source / "link")
    for name, at in (("flipped", 500), ("late", LARGE - 1)):
        with unnoticed(there[name]), open(there[name], "r+b") as file:
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), at)
    for name, size in (("cut", 999), ("longer", 1001)):
        with unnoticed(there[name]):
            os.truncate(there[name], size)
    there["replaced"].write_bytes(pattern(1000, seed=7))
    os.utime(there["replaced"], (1e9, 1e9))
    there["resized"].write_bytes(b"1")
    os.utime(there["resized"], (1e9, 1e9))
    done = verify(site)
    assert done.code == 1
    assert verdicts(done) == {
        **dict.fromkeys(["same", "touched"], "verified"),
        **dict.fromkeys(["gone", "folder", "link"], "missing"),
        **dict.fromkeys(["flipped", "late", "cut", "longer"], "mismatch"),
        **dict.fromkeys(["replaced", "resized"], "changed"),
    }
    assert "trioft: error: flipped: mismatch: other bytes than were delivered\n" in done.err
    assert "trioft: error: cut: mismatch: 999 bytes instead of 1,000\n" in done.err
    assert "trioft: error: resized: changed: 1 bytes instead of 1,000\n" in done.err
    summary = "trioft: error: 2 verified, 3 missing, 4 not what was delivered, 2 replaced since by somebody: "
    assert summary in done.err
    for verdict in VERDICTS:
        assert f"`{verdict}`" in README, verdict


def test_only_what_is_asked_for_is_verified(site: Site) -> None:
    """By path, and by when it was delivered; where nothing is, that is a failure, unless it is allowed."""
    make_tree(site.source, {"a.mov": 10, "a.txt": 10})
    assert site.sync().code == 0
    (site.dest / "a.mov").unlink()
    assert verdicts(verify(site, "--path", "*.txt")) == {"a.txt": "verified"}
    assert verdicts(verify(site, "--since", "1h")) == {"a.mov": "missing", "a.txt": "verified"}
    for option, code in (("--again", 1), ("--allow-none", 0)):
        done = verify(site, "--since", "0s", option)
        assert (done.code, verdicts(done), done.summary["verified"]) == (code, {}, 0)


def test_what_somebody_has_replaced_is_a_failure_unless_allowed(site: Site) -> None:
    """A copy that was cut to nothing has another time too; also with --quiet the reason is said."""
    make_tree(site.source, {"a": 10})
    assert site.sync().code == 0
    (site.dest / "a").write_bytes(b"")
    os.utime(site.dest / "a", (1e9, 1e9))
    done = verify(site, "--quiet")
    assert (done.code, verdicts(done)) == (1, {"a": "changed"})
    assert "trioft: error: a: changed: 0 bytes instead of 10\n" in done.err
    assert "trioft: error: 0 verified, 1 replaced since by somebody" in done.err
    done = verify(site, "--allow-changed")
    assert (done.code, verdicts(done)) == (0, {"a": "changed"})
    done = site.run("verify", site.source, site.dest, "--state-dir", site.state, "--path", "nothing", "--quiet")
    assert done.code == 1
    assert "nothing of what was asked for is on record as delivered" in done.err


def test_it_is_said_how_many_files_of_the_source_are_not_on_record(site: Site) -> None:
    """What was left out, and what has changed since: nothing was verified of that."""
    make_tree(site.source, {"a": 10, "left/b.tmp": 10, "left/c": 10})
    assert site.sync("--exclude", "*.tmp").code == 0
    (site.source / "left/c").write_bytes(b"another version")
    done = verify(site)
    assert (done.code, done.summary["not_on_record"]) == (0, 2)
    assert "warning: 2 files of the source are not on record as delivered in the present version" in done.err
    assert verify(site, "--path", "a").summary["not_on_record"] == 0


def test_a_clock_that_was_ahead_hides_nothing(site: Site) -> None:
    """What was found when it was ahead is no reason to skip a file; a delivery of that time does not overrule it."""
    make_tree(site.source, {"a": b"right"})
    assert site.sync().code == 0
    assert verify(site).code == 0
    (ledger,) = site.state.glob("*.sqlite")
    for path, query in (
        (ledger, "UPDATE history SET time = '2100-01-01T00:00:00.000Z'"),
        (ledger.with_suffix(".verify"), "UPDATE finding SET time = '2100-01-01T00:00:00.000Z'"),
    ):
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute(query)
    with unnoticed(site.dest / "a"):
        (site.dest / "a").write_bytes(b"wrong")
    done = verify(site)
    assert (done.code, verdicts(done)) == (1, {"a": "mismatch"})
    told = site.run("explain", "a", site.source, site.dest, "--state-dir", site.state, "--json").lines[0]
    assert "`trioft verify` has found it to be mismatch" in told["why_not"]


def test_without_digests_only_sizes_are_compared(site: Site) -> None:
    """What was delivered at level `size` is said to be no more than of the right size."""
    make_tree(site.source, {"right": 10, "wrong": 10, "gone": 10})
    assert site.sync("--verify", "size").code == 0
    with unnoticed(site.dest / "wrong"):
        os.truncate(site.dest / "wrong", 9)
    (site.dest / "gone").unlink()
    done = verify(site)
    assert (done.code, done.summary["bytes"]) == (1, 0)
    assert verdicts(done) == {"right": "no_digest", "wrong": "mismatch", "gone": "missing"}
    assert "1 without a digest on record, of the right size" in done.err


def test_a_file_that_cannot_be_read_is_unreadable(site: Site) -> None:
    """It may be well, but nobody knows: that is no success, and the others are verified."""
    make_tree(site.source, {"a": 10, "b": 10})
    assert site.sync().code == 0
    (site.dest / "a").chmod(0)
    options = (site.source, site.dest, "--state-dir", site.state, "--json")
    done = run_without_privilege("verify", *options)
    assert (done.code, verdicts(done)) == (1, {"a": "unreadable", "b": "verified"})
    assert "a: unreadable: open 'a' at the destination, byte 0: Permission denied (EACCES)" in done.err


def test_one_file_that_hangs_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    """It is given up after the time limit; where nothing answers any more, that is said of the destination."""
    with fault_mount() as mount:
        site = Site(tmp_path)
        site.dest = mount.place / "dest"
        (mount.backing / "dest").mkdir()
        make_tree(site.source, {"a": 10, "hangs": 10, "z": 10})
        assert site.sync().code == 0
        (site.root / "c.yaml").write_text("copy: {stall_timeout: 1s}\nretry: {first: 10ms}\n")
        mount.fail("read", "dest/hangs", stall=0, times=0)
        done = verify(site, "-c", site.root / "c.yaml")
        assert (done.code, verdicts(done)) == (1, {"a": "verified", "hangs": "unreadable", "z": "verified"})
        assert "hangs: unreadable: read 'hangs' at the destination: no progress for 1 s (ETIMEDOUT)" in done.err
        mount.fail("*", "*", stall=0, times=0)
        done = verify(site, "-c", site.root / "c.yaml")
        assert (done.code, done.out) == (3, "")
        assert "the destination cannot be read: recognize the destination: no progress for 1 s" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_verification_goes_on(number: int, site: Site) -> None:
    """What was verified is not read again."""
    make_tree(site.source, {"a": 10, "b": ALONE, "c": ALONE, "d": ALONE})
    assert site.sync().code == 0
    running = started(site, "--bwlimit", "17MiB/s", "--transfers", "1")
    running.wait_for(lambda line: line.get("dest") == "a")
    stopped = running.end(number)
    assert stopped.code == 128 + number
    assert "interrupted; the same command goes on where it stopped" in stopped.err
    count = stopped.summary["verified"]
    assert 1 <= count < 4
    done = verify(site)
    assert (done.code, done.summary["verified"], done.summary["resumed"]) == (0, 4, count)
    assert set(verdicts(done)) | set(verdicts(stopped)) == {"a", "b", "c", "d"}
    assert not set(verdicts(done)) & set(verdicts(stopped))
    assert f"4 verified ({count} of them before it was interrupted)" in done.err
    assert verify(site).summary["resumed"] == 0  # it had come to its end


def test_again_begins_anew(site: Site) -> None:
    """Also where an earlier one was killed; so does another wish. What was bad is looked at once more."""
    make_tree(site.source, {"a": 10, "b": ALONE, "c": ALONE})
    assert site.sync().code == 0
    (site.dest / "a").rename(site.dest / "aside")
    for option, value in (("--again", ""), ("--path", "?")):
        running = started(site, "--bwlimit", "1MiB/s", "--transfers", "1")
        running.wait_for(lambda line: line.get("dest") == "b")
        running.end(signal.SIGKILL)
        assert verify(site, *filter(None, (option, value))).summary["resumed"] == 0
    running = started(site, "--bwlimit", "1MiB/s", "--transfers", "1")
    running.wait_for(lambda line: line.get("dest") == "b")
    running.end(signal.SIGKILL)
    (site.dest / "aside").rename(site.dest / "a")
    assert verdicts(verify(site)) == {"a": "verified", "c": "verified"}


def test_two_at_a_time_are_refused(site: Site) -> None:
    """They would read everything twice."""
    make_tree(site.source, {"a": ALONE, "b": ALONE})
    assert site.sync().code == 0
    running = started(site, "--bwlimit", "1MiB/s")
    wait_until(lambda: any(lock.read_text() for lock in site.state.glob("*.verify.lock")))
    done = verify(site)
    running.end(signal.SIGKILL)
    assert done.code == 5
    assert f"process {running.process.pid}" in done.err


@pytest.mark.parametrize("how", ["gone", "another"])
def test_a_destination_that_is_not_there_is_not_taken_for_empty(how: str, site: Site) -> None:
    """Nothing is said to be missing from a share that is not mounted: exit code 3."""
    make_tree(site.source, {"a": 10})
    with contextlib.ExitStack() as stack:
        if how == "another":
            stack.enter_context(mounted("none", site.dest, "-t", "tmpfs", "-o", "size=1m"))
        assert site.sync().code == 0
        if how == "gone":
            site.dest.rename(site.root / "elsewhere")
    done = verify(site)
    assert (done.code, done.out) == (3, "")
    assert "trioft: error: the destination cannot be read: " in done.err
    assert "hint: mount the right destination" in done.err or how == "gone"


def test_an_agent_may_work_meanwhile(site: Site) -> None:
    """It holds the pair, and goes on; what it delivers is verified next time."""
    make_tree(site.source, {"a": 10})
    agent = site.watch()
    agent.wait_for_file("a", "done")
    assert verdicts(verify(site)) == {"a": "verified"}
    make_tree(site.source, {"b": 10})
    agent.wait_for_file("b", "done")
    assert verdicts(verify(site)) == {"a": "verified", "b": "verified"}
    assert agent.end().code == 0


def test_earlier_recordings_of_the_same_name_are_verified_too(site: Site) -> None:
    """A second recording of a name does not replace the first: both have to be there."""
    make_tree(site.source, {"take.mov": b"the first"})
    agent = site.watch()
    agent.wait_for_file("take.mov", "done")
    (site.source / "take.mov").write_bytes(b"the second one")
    agent.wait_for(lambda line: line.get("dest") == "take_1.mov" and line["state"] == "done")
    agent.end()
    assert verdicts(verify(site)) == {"take.mov": "verified", "take_1.mov": "verified"}
    with unnoticed(site.dest / "take.mov"):
        (site.dest / "take.mov").write_bytes(b"the worst")
    assert verdicts(verify(site)) == {"take.mov": "mismatch", "take_1.mov": "verified"}


def test_what_another_file_was_delivered_as_is_no_mismatch(site: Site) -> None:
    """Where two sources were delivered under one name, one after the other, the later is there: that is known."""
    make_tree(site.source, {"a": b"later", "b": b"former"})
    assert site.sync("--if-exists", "overwrite").code == 0
    (ledger,) = site.state.glob("*.sqlite")
    status = (site.dest / "a").stat()
    fingerprint = Fingerprint(1, 1, 5, status.st_mtime_ns, 0)
    with contextlib.closing(Ledger(str(ledger))) as db, db.transaction():
        db.record([Entry("delivered", b"b", b"a", fingerprint, b"d" * 16, "")])
    done = verify(site, "--path", "b")
    assert (done.code, verdicts(done)) == (1, {"a": "changed", "b": "verified"})
    assert "a: changed: it is what was delivered of a, under the same name" in done.err


def test_of_earlier_versions_a_later_time_tells_that_they_were_replaced() -> None:
    """History has no modification times, only that of the delivery: what was written later, somebody else wrote."""
    delivery = Delivery(b"a", b"a", 10, b"d" * 16, None, "2026-01-01T00:00:00.000Z")
    before, after = 1_767_000_000 * 10**9, 1_768_000_000 * 10**9
    cases: list[tuple[Seen, bytes, str]] = [
        (Seen(10, before), b"d" * 16, "verified"),
        (Seen(10, after), b"d" * 16, "verified"),
        (Seen(10, before), b"e" * 16, "mismatch"),
        (Seen(10, after), b"e" * 16, "changed"),
        (Seen(11, after), b"d" * 16, "changed"),
        (Seen(None), b"", "missing"),
    ]
    assert [judge(delivery, seen, digest).verdict for seen, digest, _ in cases] == [verdict for *_, verdict in cases]


def test_a_terminal_shows_how_far_it_is() -> None:
    """Files, bytes, speed, what remains; and what is not good."""
    tally = Tally(files=3, bytes=10**9, skipped=2, skipped_bytes=10**9, all_files=10, all_bytes=4 * 10**9)
    tally.counts["missing"] = 1
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(picture(tally, 1e8))
    text = console.export_text()
    assert "5 of 10 files; 2 GB of 4 GB; 1 not good; 100 MB/s, 0:20 left" in text
