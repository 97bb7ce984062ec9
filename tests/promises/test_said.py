"""What the command line says, and where; nobody who reads it, or does not, stops a transfer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import PATIENCE, TRIOFT, Done, Site, files_of, make_tree, wait_until

# --- What is said -----------------------------------------------------------------------------------------------------


def test_nothing_is_said_where_all_is_well(site: Site) -> None:
    """Off a terminal a run without problems is silent: cron sends no mail."""
    make_tree(site.source, {"a": b"1", "folder/large": 2_000_000})
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert files_of(site.dest) == files_of(site.source)


def test_quiet_says_only_what_failed(site: Site) -> None:
    """`--quiet` leaves out what was skipped, and keeps what failed; without it both are told."""
    make_tree(site.source, {"taken": b"new", "fine": b"1"})
    make_tree(site.dest, {"taken": b"old one"})
    (site.source / "link").symlink_to("fine")
    pair: list[str | Path] = ["sync", site.source, site.dest, "--state-dir", site.state]
    options = ["--settle", "100ms", "--if-exists", "fail"]
    quiet = site.run(*pair, *options, "--quiet")
    assert quiet.code == 1
    assert "taken: another file has this name" in quiet.err
    assert "link" not in quiet.err
    normal = site.run(*pair, *options)
    assert "taken: another file has this name" in normal.err
    assert "link: skipped: symbolic link" in normal.err
    assert quiet.out == normal.out == ""


def test_verbose_says_what_was_done(site: Site) -> None:
    """`-v` tells each file and a summary, on stderr."""
    make_tree(site.source, {"a": b"123"})
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms", "-v")
    assert done.code == 0
    assert done.out == ""
    assert "a: delivered, 3 bytes" in done.err
    assert "1 delivered and verified (readback)" in done.err


def test_odd_names_are_shown_escaped(site: Site) -> None:
    """A name cannot play tricks with the terminal: control characters and what is no UTF-8 are shown escaped."""
    make_tree(site.source, {b"\x1b[2Jevil\n\xff": b"1"})
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms", "-v")
    assert r"\x1b[2Jevil\n\xff: delivered" in done.err
    assert "\x1b" not in done.err


# --- Readers that go away ---------------------------------------------------------------------------------------------


def _shell(site: Site, command: str) -> Done:
    """Run a shell line in which ``$SYNC`` is a sync of the site's 300 small files, and keep its exit code."""
    make_tree(site.source, {f"f{n}": b"%d" % n for n in range(300)})
    sync = [*TRIOFT, "sync", str(site.source), str(site.dest), "--state-dir", str(site.state), "--settle", "100ms"]
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; SYNC={subprocess.list2cmdline(sync)!r}; {command}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "command",
    [
        "$SYNC --json | head -1",
        "$SYNC --json | true",
        "$SYNC -v 2>&1 | head -1",
        "$SYNC -v 2> /dev/full",
        "$SYNC --json >&-",
        "$SYNC -v 2>&-",
        "$SYNC -v <&- >&- 2>&-",
    ],
)
def test_no_reader_can_stop_a_transfer(site: Site, command: str) -> None:
    """Promise 6: whoever reads stdout may go away, and whoever reads stderr have a full disk; the files arrive."""
    done = _shell(site, command)
    assert (done.code, done.err) == (0, "")
    assert files_of(site.dest) == files_of(site.source)


def test_a_dry_run_can_be_piped_into_head(site: Site) -> None:
    """`trioft sync --dry-run | head -1` ends as other programs do: quietly."""
    make_tree(site.source, {f"{'long name' * 20} {n}": b"%d" % n for n in range(1000)})
    done = _shell(site, "$SYNC --dry-run | head -1")
    assert done.err == ""
    assert len(done.out.splitlines()) == 1


def test_stdout_may_have_any_encoding(site: Site) -> None:
    """A name that the terminal's encoding cannot show is shown escaped; it is no reason to fail."""
    make_tree(site.source, {"tägliches Brot": b"1"})
    done = site.run("sync", site.source, site.dest, "--dry-run", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")
    assert r"t\xe4gliches Brot" in done.out


# --- In a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """As much of a terminal as Rich uses: a screen of endless lines, a cursor, and what is on them in the end."""

    _CODE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r\n|[\r\n])|([^\x1b\r\n])")

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.cursor_shown = True

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            match = self._CODE.match(text, at)
            assert match is not None, f"unknown control sequence: {text[at : at + 10]!r}"
            at = match.end()
            numbers, code, line_end, character = match.groups()
            if character:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1
            elif line_end:
                self.column = 0
                if line_end != "\r":
                    self.row += 1
                    if self.row == len(self.lines):
                        self.lines.append("")
            elif code == "A":
                self.row -= int(numbers or 1)
                assert self.row >= 0, "the display moved above the first line"
            elif code == "K":
                assert numbers == "2"
                self.lines[self.row] = ""
            elif code in "hl":
                assert numbers == "?25"
                self.cursor_shown = code == "h"
            else:
                assert code == "m", f"unexpected control sequence {code}"


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, list[bytes]]]:
    """A pseudo terminal of 24 lines with 80 columns: its slave side, and what has been written to it so far."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
            while piece := os.read(master, 65536):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield slave, pieces
    finally:
        os.close(slave)
        reader.join(PATIENCE)
        os.close(master)


def _sync_in_terminal(site: Site, *options: str) -> tuple[int, str, str]:
    """Run a sync of a second or so in a terminal; return exit code, stdout and what the terminal got."""
    make_tree(site.source, {"small": b"1", "recording.mxf": 24 << 20, "recording 2.mxf": 24 << 20})
    (site.source / "link").symlink_to("small")
    pair: list[str | Path] = ["sync", site.source, site.dest, "--state-dir", site.state]
    with terminal() as (slave, pieces):
        process = subprocess.Popen(
            [*TRIOFT, *pair, "--settle", "100ms", "--bwlimit", "48MiB/s", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=slave,
            env={**os.environ, "TERM": "xterm"},
        )
        out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out.decode(), b"".join(pieces).decode()


def test_progress_is_shown_in_a_terminal(site: Site) -> None:
    """In a terminal the files being copied are shown while they are; in the end only sentences are left."""
    code, out, seen = _sync_in_terminal(site)
    assert (code, out) == (0, "")
    assert "recording.mxf" in seen
    assert "to go" in seen
    assert "/s" in seen
    screen = Terminal()
    screen.feed(seen)
    assert screen.cursor_shown
    lines = [line.rstrip() for line in screen.lines if line.strip()]
    assert lines[0] == "link: skipped: symbolic link: trioft copies regular files only"
    assert re.fullmatch(r"3 delivered and verified \(readback\): 50\.3 MB copied, 1 skipped in \d+\.\d s", lines[1])
    assert len(lines) == 2
    assert files_of(site.dest) == files_of(site.source)


@pytest.mark.parametrize("option", ["--no-progress", "--quiet"])
def test_progress_can_be_switched_off(site: Site, option: str) -> None:
    """`--no-progress` and `--quiet` draw nothing, also in a terminal."""
    shutil.rmtree(site.state, ignore_errors=True)
    code, out, seen = _sync_in_terminal(site, option)
    assert (code, out) == (0, "")
    assert "\x1b" not in seen
    assert "to go" not in seen


def test_json_lines_stay_clean_in_a_terminal(site: Site) -> None:
    """With `--json` stdout holds JSON lines only, whatever is drawn on stderr."""
    code, out, seen = _sync_in_terminal(site, "--json")
    assert code == 0
    assert Done(code, out, "").summary["delivered"] == 3
    assert "to go" in seen


def test_a_reader_of_the_json_lines_that_does_not_read_stops_neither_the_files_nor_the_end(site: Site) -> None:
    """With stdout a pipe that nobody reads all files arrive, and a signal still ends it in time."""
    make_tree(site.source, {f"file {n}": 10 for n in range(3000)})
    process = subprocess.Popen(
        [*TRIOFT, "watch", site.source, site.dest, "--state-dir", site.state, "--json", "--settle", "100ms"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        wait_until(
            lambda: (
                sum(name.startswith("file ") and not name.endswith("partial") for name in os.listdir(site.dest)) == 3000
            )
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize(
    "arguments",
    [
        ["sync", "--json"],
        ["sync", "--dry-run"],
        ["verify", "--json"],
        ["history"],
        ["safe"],
        ["config", "init"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_a_report_that_could_not_be_written_is_no_success(site: Site, arguments: list[str]) -> None:
    """On a full disk: it is said on stderr, without a traceback, and by the exit code."""
    make_tree(site.source, {f"{n}": 1 for n in range(20)})
    ends: list[str | Path] = [site.source, site.dest, "--state-dir", site.state]
    if arguments[0] in ("verify", "history", "safe"):
        assert site.sync().code == 0
    match arguments[0]:
        case "safe":
            ends.pop(1)
        case "config" | "--help":
            ends = []
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([*TRIOFT, *arguments, *ends], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    if arguments == ["sync", "--json"]:
        assert files_of(site.dest) == files_of(site.source)


@pytest.mark.parametrize("arguments", ["history", "--help", "config show"])
def test_nobody_has_to_listen(site: Site, arguments: str) -> None:
    """Standard output and standard error may be closed."""
    command = f"{shlex.join(TRIOFT)} {arguments}"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), closed


def test_a_copy_that_is_passed_over_as_it_is_not_what_was_delivered_is_said(site: Site) -> None:
    """It has the size and time on record, and other bytes: that is told, and under which name the file is there now."""
    make_tree(site.source, {"x": b"good"})
    assert site.sync().code == 0
    copy = site.dest / "x"
    was = copy.stat()
    copy.write_bytes(b"baad")
    os.utime(copy, ns=(was.st_atime_ns, was.st_mtime_ns))
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state, "--on-success", "delete", "-v")
    assert (done.code, copy.read_bytes(), (site.dest / "x_1").read_bytes()) == (0, b"baad", b"good")
    said = "x at the destination does not hold any more what was delivered under that name"
    assert f"trioft: warning: x: {said}; it is delivered as x_1" in done.err
    assert "x: delivered as x_1, 4 bytes" in done.err
    history = site.run("history", site.source, site.dest, "--state-dir", site.state, "--json")
    assert said in history.out
