"""What `trioft sync` does with files: which it copies, how, and what they are afterwards."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash

from support import Running, Site, files_of, make_tree, mounted, pattern, read_tree, wait_until
from synced import BLOCK, LARGE, SMALL, SPANS, interrupted, old, partials_of, snapshot


def configured(site: Site, text: str) -> str:
    """Write a configuration file; return its name."""
    file = site.root / "trioft.yaml"
    file.write_text(text)
    return os.fspath(file)


# --- What is copied ---------------------------------------------------------------------------------------------------


def test_what_is_missing_or_different_is_copied(site: Site) -> None:
    """Files that DEST lacks, or has with another size or time, are copied, the same counted; nothing is deleted."""
    make_tree(
        site.source,
        {"same": b"1", "longer": b"22", "newer": b"3", "missing": b"4", "a/b/missing": b"5", "big": 2_000_000},
    )
    make_tree(site.dest, {"same": b"?", "longer": b"2", "newer": b"?", "extra": b"x", "extras/y": b"y", "none": None})
    for name in ("same", "longer"):
        shutil.copystat(site.source / name, site.dest / name)
    done = site.sync()
    assert done.code == 0
    expected = files_of(site.source) | {b"same": b"?", b"extra": b"x", b"extras/y": b"y"}
    assert files_of(site.dest) == expected
    assert (site.dest / "none").is_dir()
    assert set(done.files("done")) == {"longer", "newer", "missing", "a/b/missing", "big"}
    assert (done.summary["delivered"], done.summary["already"]) == (5, 1)
    assert done.summary["bytes"] == sum(len(content) for content in files_of(site.source).values()) - 1
    again = site.sync().summary
    assert (again["delivered"], again["already"], again["bytes"]) == (0, 6, 0)


def test_one_file_can_be_the_source(site: Site) -> None:
    """SOURCE may be one file: it alone is transferred, once, and a dry run knows whether it would be."""
    make_tree(site.source, {"one": b"1", "other": b"2"})
    site.source /= "one"
    assert list(site.sync("--dry-run").files("ready")) == ["one"]
    assert site.sync().summary["delivered"] == 1
    assert files_of(site.dest) == {b"one": b"1"}
    assert site.sync().summary["already"] == 1
    assert site.sync("--dry-run").files("ready") == {}


def test_folders_are_made_also_empty_ones(site: Site) -> None:
    """Empty folders arrive, with their permission bits; with --include only those that hold a wanted file."""
    make_tree(site.source, {"empty/emptier": None, "full/file.mov": b"1"})
    (site.source / "empty").chmod(0o750)
    (site.source / "full").chmod(0o711)
    assert site.sync().code == 0
    assert read_tree(site.dest) == read_tree(site.source)
    assert stat.S_IMODE((site.dest / "empty").stat().st_mode) == 0o750
    assert stat.S_IMODE((site.dest / "full").stat().st_mode) == 0o711
    site.dest = site.root / "other"
    site.dest.mkdir()
    assert site.sync("--include", "*.mov").code == 0
    assert read_tree(site.dest) == {b"full": None, b"full/file.mov": b"1"}


def test_times_permissions_and_attributes_are_kept(site: Site) -> None:
    """A delivered file has its source's modification time to the nanosecond, permission bits and user attributes."""
    modes = {"usual": 0o644, "private": 0o600, "program": 0o755, "readonly": 0o444, "suid": 0o4755, "odd": 0o000}
    files = {f"{name} {size}": mode for name, mode in modes.items() for size in (SMALL, SPANS)}
    for number, (name, mode) in enumerate(files.items()):
        path = site.source / name
        make_tree(site.source, {name: int(name.split()[1])})
        try:
            os.setxattr(path, "user.origin", b"camera \xff")
        except OSError:
            pytest.skip("no user attributes on this filesystem")
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number))
        path.chmod(mode if os.geteuid() == 0 else mode | 0o400)
    os.utime(site.source / f"usual {SMALL}", ns=(0, -1_234_567_891))  # before 1970
    assert site.sync().code == 0
    for name in files:
        here, there = (site.source / name).stat(), (site.dest / name).stat()
        assert there.st_mtime_ns == here.st_mtime_ns
        assert stat.S_IMODE(there.st_mode) == stat.S_IMODE(here.st_mode) & 0o777
        if os.access(site.dest / name, os.R_OK):
            assert os.getxattr(site.dest / name, "user.origin") == b"camera \xff"
    assert site.sync().summary["already"] == len(files)


def test_hard_links_and_holes_are_copied_as_files(site: Site) -> None:
    """A file with two names arrives as two files, a file with holes with zeros in them."""
    make_tree(site.source, {"a": b"1", "sparse": b""})
    os.link(site.source / "a", site.source / "b")
    os.truncate(site.source / "sparse", 3 << 20)
    assert site.sync().code == 0
    assert files_of(site.dest) == {b"a": b"1", b"b": b"1", b"sparse": bytes(3 << 20)}


def test_what_is_no_regular_file_is_skipped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, pipes, sockets and devices are skipped with a reason, and that is no failure."""
    make_tree(site.source, {"file": b"1", "folder/file": b"2"})
    (site.source / "link").symlink_to("file")
    (site.source / "folder link").symlink_to("folder")
    (site.source / "dangling").symlink_to("nowhere")
    os.mkfifo(site.source / "pipe")
    reasons = dict.fromkeys(("link", "folder link", "dangling"), "symbolic link") | {"pipe": "named pipe"}
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(site.source)  # a socket's path must be short
        listener.bind("socket")
    reasons["socket"] = "socket"
    if os.geteuid() == 0:
        os.mknod(site.source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        reasons["null"] = "character device"
    done = site.sync()
    assert done.code == 0
    skipped = {path: line["reason"].partition(":")[0] for path, line in done.files("skipped").items()}
    assert skipped == reasons
    assert done.summary["skipped"] == len(reasons)
    assert all(f"{path}: skipped: {reason}" in done.err for path, reason in reasons.items())
    assert read_tree(site.dest) == {b"file": b"1", b"folder": None, b"folder/file": b"2"}


def test_more_files_than_are_looked_after_at_a_time(site: Site) -> None:
    """Promise 7 costs no file: a folder with more files than are held in memory is transferred all the same."""
    make_tree(site.source, {f"f{n}": b"" for n in range(10_400)})
    done = site.sync("--verify", "transfer")
    assert (done.code, done.summary["delivered"]) == (0, 10_400)
    assert sorted(os.listdir(site.dest)) == sorted(os.listdir(site.source))


# --- Which files are wanted -------------------------------------------------------------------------------------------

_TREE = ["a.mov", "b.txt", "x/a.mov", "x/b.txt", "x/y/a.mov", "x/y/b.txt", "tmp/a.mov", "x/tmp", "star*.mov"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--include", "*.mov"], ["a.mov", "x/a.mov", "x/y/a.mov", "tmp/a.mov", "star*.mov"]),
        (["--include", "x/**/*.mov"], ["x/a.mov", "x/y/a.mov"]),
        (["--include", "x/", "--exclude", "y"], ["x/a.mov", "x/b.txt", "x/tmp"]),
        (["--exclude", "tmp", "--exclude", "*.mov"], ["b.txt", "x/b.txt", "x/y/b.txt"]),
        (["--include", "*.mov", "--exclude", "x/**"], ["a.mov", "tmp/a.mov", "star*.mov"]),
        (["--include", "?.mov", "--exclude", "[!t]*/*.mov"], ["a.mov", "x/y/a.mov", "tmp/a.mov"]),
    ],
    ids=lambda value: " ".join(value) if value[0][0] == "-" else "",
)
def test_patterns_choose_files(site: Site, options: list[str], expected: list[str]) -> None:
    """`*` stops at /, `**` does not; without / a pattern matches at any depth; folders cover; exclude beats include."""
    make_tree(site.source, dict.fromkeys(_TREE, b"1"))
    assert site.sync(*options).code == 0
    assert set(files_of(site.dest)) == {name.encode() for name in expected}


# --- Names that are taken ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "names", "code", "state"),
    [
        ("overwrite", {"a.b.mov": "new"}, 0, "done"),
        ("rename", {"a.b.mov": "old", "a.b_1.mov": "new"}, 0, "done"),
        ("skip", {"a.b.mov": "old"}, 0, "skipped"),
        ("fail", {"a.b.mov": "old"}, 1, "failed"),
        (None, {"a.b.mov": "new"}, 0, "done"),
    ],
)
def test_if_exists_says_what_happens_to_a_name_that_is_taken(
    site: Site, policy: str | None, names: dict[str, str], code: int, state: str
) -> None:
    """Each policy leaves exactly what it says, and a second run changes nothing; sync overwrites by default."""
    contents = {
        (what, size): pattern(size, seed) for seed, what in enumerate(("old", "new")) for size in (SMALL, SPANS)
    }
    for size in (SMALL, SPANS):
        make_tree(site.source, {f"{size}/a.b.mov": contents["new", size]})
        make_tree(site.dest, {f"{size}/a.b.mov": contents["old", size]})
        old(site.dest / f"{size}/a.b.mov", 1)
    options = ["--if-exists", policy] if policy else []
    done = site.sync(*options)
    assert done.code == code
    expected = {f"{size}/{name}".encode(): contents[names[name], size] for name in names for size in (SMALL, SPANS)}
    assert files_of(site.dest) == expected
    assert len(done.files(state)) == 2
    for path, line in done.files(state).items():
        if state == "done":
            assert line["dest"] == f"{path[: -len('a.b.mov')]}{max(names)}"
        else:
            assert line["reason"] == "another file has this name at the destination"
    assert site.sync(*options).code == code
    assert files_of(site.dest) == expected


# --- Dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_anywhere(site: Site) -> None:
    """`--dry-run` lists what would be copied, as text or JSON, and touches neither end nor the state directory."""
    make_tree(site.source, {"same": b"1", "new": b"22", "x/new": 2_000_000, "empty": None})
    make_tree(site.dest, {"same": b"1", "new": b"2"})
    shutil.copystat(site.source / "same", site.dest / "same")
    (site.source / "link").symlink_to("same")
    site.state.mkdir()
    make_tree(site.dest, {"gone.12345678.partial": b"x"})
    old(site.dest / "gone.12345678.partial", 2)
    before = snapshot(site.source, site.dest, site.state)
    done = site.sync("--dry-run", "--on-success", "delete", "--if-exists", "rename")
    assert done.code == 0
    assert {path: line["size"] for path, line in done.files("ready").items()} == {"new": 2, "x/new": 2_000_000}
    assert set(done.files("skipped")) == {"link"}
    assert done.summary["already"] == 1
    text = site.run("sync", site.source, site.dest, "--state-dir", site.state, "--dry-run")
    assert [line.split() for line in sorted(text.out.splitlines())] == [["2", "new"], ["2,000,000", "x/new"]]
    assert snapshot(site.source, site.dest, site.state) == before


# --- How it is copied -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["size", "transfer", "readback"])
def test_verification_levels(site: Site, level: str) -> None:
    """Every level delivers; the digest, which README defines, is recorded at all but `size`."""
    make_tree(site.source, {"small": b"123", "none": b"", "large": BLOCK + 1})
    done = site.sync("--verify", level)
    assert done.code == 0
    assert files_of(site.dest) == files_of(site.source)
    for path, content in files_of(site.source).items():
        blocks = (content[at : at + BLOCK] for at in range(0, len(content), BLOCK))
        digest = xxhash.xxh3_128_hexdigest(b"".join(map(xxhash.xxh3_128_digest, blocks)))
        assert done.files("done")[path.decode()]["digest"] == (None if level == "size" else digest)


@pytest.mark.parametrize(("count", "size"), [(900, 10_000), (2, 3_000_000)], ids=["small files", "large files"])
def test_bwlimit_limits_the_throughput(site: Site, count: int, size: int) -> None:
    """All transfers together keep to `--bwlimit`: what follows waits until what went before is paid for."""
    make_tree(site.source, {f"f{n}": size for n in range(count)})
    done = site.sync("--bwlimit", "3MB/s")
    assert (done.code, done.summary["bytes"]) == (0, count * size)
    assert files_of(site.dest) == files_of(site.source)
    assert 0.8 < done.summary["seconds"] < 10  # the first bundle or span goes at once


def test_transfers_limits_how_many_are_copied_at_a_time(site: Site) -> None:
    """`--transfers 1` copies one file after the other; with more, files are copied side by side."""
    make_tree(site.source, {f"f{n}": 2_000_000 for n in range(4)})

    def most_at_a_time(*options: str) -> int:
        active: set[str] = set()
        most = 0
        done = site.sync(*options, "--if-exists", "rename", "--bwlimit", "20MB/s")
        assert (done.code, done.summary["delivered"]) == (0, 4)
        for line in done.lines[:-1]:
            (active.add if line["state"] == "copying" else active.discard)(line["path"])
            most = max(most, len(active))
        return most

    assert most_at_a_time("--transfers", "1") == 1
    shutil.rmtree(site.dest)
    site.dest.mkdir()
    assert 2 <= most_at_a_time("--transfers", "3") <= 3


def test_json_lines_have_the_promised_fields(site: Site) -> None:
    """Scripts rely on these fields: every line has event and time, odd names their bytes; the summary is last."""
    make_tree(site.source, {"large": 2_000_000, b"bad\xff\nname": b"1", "good\nñame": b"22", "taken": b"333"})
    make_tree(site.dest, {"taken": b"4444"})
    (site.source / "link").symlink_to("large")
    done = site.sync("--if-exists", "fail")
    assert done.code == 1
    for line in done.lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    names = {"path", "state", "reason", "size", "dest", "strategy", "bytes_copied", "bytes_verified", "attempt"}
    names |= {"bytes_patched", "growing", "lag_bytes", "lag_seconds", "closed", "job"}
    for line in done.lines[:-1]:
        assert line["event"] == "file"
        assert set(line) - {"path_b64", "dest_b64"} == {"event", "time", "digest", "error"} | names
    assert set(done.summary) == {
        "event", "time", "delivered", "already", "failed", "skipped", "busy", "bytes", "bytes_resumed", "seconds",
    }  # fmt: skip
    counts = {key: done.summary[key] for key in ("delivered", "already", "failed", "skipped", "busy", "bytes")}
    assert counts == {"delivered": 3, "already": 0, "failed": 1, "skipped": 1, "busy": 0, "bytes": 2_000_003}
    delivered = done.files("done")
    assert set(delivered) == {"large", r"bad\xff\nname", "good\nñame"}
    odd = delivered[r"bad\xff\nname"]
    assert base64.b64decode(odd["path_b64"]) == base64.b64decode(odd["dest_b64"]) == b"bad\xff\nname"
    assert odd["dest"] == odd["path"]
    assert "path_b64" not in delivered["good\nñame"]
    large = delivered["large"]
    assert (large["strategy"], large["size"]) == ("whole", 2_000_000)
    assert large["bytes_copied"] == large["bytes_verified"] == 2_000_000
    assert [line["state"] for line in done.lines[:-1] if line["path"] == "large"] == ["copying", "done"]
    assert done.files("skipped")["link"]["dest"] is None
    # What nobody writes any more has not grown, and lags behind nobody.
    assert {line["closed"] for line in delivered.values()} == {"proved"}
    assert {(line["growing"], line["bytes_patched"]) for line in done.lines[:-1]} == {(False, 0)}
    assert {(line["lag_bytes"], line["lag_seconds"]) for line in done.lines[:-1]} == {(None, None)}


# --- Files that are being written -------------------------------------------------------------------------------------


@contextmanager
def writer(path: Path, how: str) -> Iterator[None]:
    """Somebody has *path* open for writing: since just now, or for days without having written."""
    with open(path, "ab", buffering=0) as file:
        file.write(b"first half, ")
        if how == "for days":
            old(path, 3)
        yield


@pytest.mark.parametrize("how", ["just now", "for days"])
def test_growing_wait_leaves_open_files_for_the_next_run(site: Site, how: str) -> None:
    """With `--growing wait` a file that somebody writes is left, counted as busy, and told by exit code 4."""
    make_tree(site.source, {"closed": b"1"})
    with writer(site.source / "open", how):
        done = site.sync("--growing", "wait")
    assert done.code == 4
    assert files_of(site.dest) == {b"closed": b"1"}
    assert (done.summary["busy"], done.summary["delivered"], done.summary["failed"]) == (1, 1, 0)
    assert "still being written" in done.files("settling")["open"]["reason"]
    assert "1 not complete yet, left for the next run" in done.err
    assert site.sync("--growing", "wait").code == 0
    assert files_of(site.dest) == files_of(site.source)


@pytest.mark.parametrize("how", ["just now", "for days"])
def test_growing_follow_stays_until_open_files_are_closed(site: Site, how: str) -> None:
    """By default sync stays until a file that somebody writes is closed, then delivers all of it."""
    make_tree(site.source, {"closed": b"1"})
    with open(site.source / "open", "ab", buffering=0) as file:
        file.write(b"first half, ")
        if how == "for days":
            old(site.source / "open", 3)
        running = site.start("sync")
        running.wait_for(lambda line: line.get("path") == "open" and "open for writing" in (line["reason"] or ""))
        running.wait_for_file("closed", "done")
        assert files_of(site.dest) == {b"closed": b"1"}
        file.write(b"second half")
    done = running.end(0)
    assert (done.code, done.summary["delivered"]) == (0, 2)
    assert files_of(site.dest) == {b"closed": b"1", b"open": b"first half, second half"}


def test_a_file_that_changes_while_it_is_copied_is_copied_again(site: Site) -> None:
    """Promise 1: a file that is written to while it is copied arrives as it is when that ends, never as a mixture."""
    make_tree(site.source, {"a": LARGE})
    running = site.start("sync", "--bwlimit", "16MiB/s")
    for n in range(2):
        running.wait_for(lambda line: line.get("state") == "copying")
        wait_until(lambda: partials_of(site.dest) and partials_of(site.dest)[0].stat().st_size >= BLOCK)
        with open(site.source / "a", "r+b") as file:
            file.seek(n * BLOCK)
            file.write(b"changed")
        running.lines.clear()
        running.wait_for(lambda line: line.get("state") in ("waiting", "settling"))
        assert not (site.dest / "a").exists()
    done = running.end(0)
    assert done.code == 0
    assert files_of(site.dest) == files_of(site.source)


def test_a_small_file_that_changes_all_the_time(site: Site) -> None:
    """A file that is rewritten again and again is delivered when that stops; until then nothing half of it arrives."""
    path = site.source / "a"
    path.write_bytes(b"0" * 1000)
    stop = threading.Event()
    seen: list[bytes] = []

    def rewrite() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            path.write_bytes(b"%d" % (n % 10) * (1000 + n))
            stop.wait(0.03)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        running = site.start("sync")
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            if (site.dest / "a").exists():
                seen.append((site.dest / "a").read_bytes())
            time.sleep(0.02)
    finally:
        stop.set()
        thread.join()
    assert all(len(set(content)) == 1 and len(content) >= 1000 for content in seen)
    assert running.end(0).code in (0, 4)
    assert site.sync().code == 0
    assert files_of(site.dest) == files_of(site.source)


# --- A destination that fills up --------------------------------------------------------------------------------------


def _wait_for_space(running: Running, path: str) -> None:
    line = running.wait_for_file(path, "waiting")
    assert line["reason"].startswith("space: "), line


def test_a_full_destination_holds_up_only_what_does_not_fit(site: Site) -> None:
    """A file that does not fit waits and says so, smaller ones go on, and it is delivered once there is room."""
    config = configured(site, "destination: {check_interval: 200ms, min_free: 1MiB}\n")
    with mounted("none", site.dest, "-t", "tmpfs", "-o", "size=40m"):
        assert site.dest.stat().st_dev != site.root.stat().st_dev
        make_tree(site.dest, {"in the way": 20 << 20})
        make_tree(site.source, {"big": 24 << 20, "mid": 4 << 20, "small": b"1"})
        running = site.start("sync", "-c", config)
        _wait_for_space(running, "big")
        running.wait_for_file("mid", "done")
        running.wait_for_file("small", "done")
        assert "big" not in os.listdir(site.dest)
        (site.dest / "in the way").unlink()
        done = running.end(0)
        assert (done.code, done.summary["delivered"]) == (0, 3)
        assert files_of(site.dest) == files_of(site.source)


def test_inodes_are_waited_for(site: Site) -> None:
    """A destination that has space, but no inodes, makes files wait, not fail, and says so."""
    config = configured(site, "destination: {check_interval: 200ms, min_free: 0B}\n")
    with mounted("none", site.dest, "-t", "tmpfs", "-o", "size=40m,nr_inodes=12"):
        make_tree(site.dest, {f"in the way {n}": b"" for n in range(9)})  # leaves room for a probe and little more
        make_tree(site.source, {f"f{n}": 1_500_000 for n in range(6)})
        running = site.start("sync", "-c", config, "--transfers", "1")
        waiting = running.wait_for(lambda line: line.get("state") == "waiting")
        assert waiting["reason"].startswith("space: ")
        assert "inode" in waiting["reason"]
        for path in site.dest.glob("in the way*"):
            path.unlink()
        done = running.end(0)
        assert (done.code, done.summary["delivered"]) == (0, 6)
        assert files_of(site.dest) == files_of(site.source)


def test_a_partial_counts_as_space_that_is_there(site: Site) -> None:
    """A file that was interrupted needs room for its rest only."""
    config = configured(site, "destination: {check_interval: 200ms, min_free: 0B}\n")
    make_tree(site.source, {"a": LARGE})
    with mounted("none", site.dest, "-t", "tmpfs", "-o", "size=30m"):
        interrupted(site, "-c", config)
        assert site.sync("-c", config).code == 0
        assert files_of(site.dest) == files_of(site.source)
