"""The gate: a command of the user's looks at each copy before it gets its final name."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import TRIOFT, Site, files_of, make_tree, pattern, wait_until
from trioft.config.file import load_config
from trioft.core.errors import ConfigError
from trioft.core.model import BLOCK_SIZE, BUNDLE_FILE_SIZE, MIB
from trioft.movers.programs import filled_in

SMALL, LARGE = 1_000, BUNDLE_FILE_SIZE + 1
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])


def gate(site: Site, *command: str, more: str = "", **copy: object) -> list[str | Path]:
    """Return the options that have *command* look at every copy; *more* is YAML."""
    path = site.root / "trioft.yaml"
    path.write_text(f"copy: {json.dumps({'gate': command, **copy})}\n{more}")
    return ["-c", path]


def script(site: Site, code: str) -> list[str]:
    """Return the command that runs *code* in Python, with the paths of the partial and of the site's root."""
    path = site.root / "check.py"
    path.write_text(f"import os, sys, time\npartial, root = sys.argv[1:3]\n{code}\n")
    return [sys.executable, "-I", "-S", str(path), "{partial}", str(site.root)]


def is_gone(process: int) -> bool:
    """Has a process ended?"""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@SIZES
def test_gate_looks_at_the_whole_copy_before_it_has_its_name(site: Site, size: int) -> None:
    """It finds all bytes in the partial, and nothing under the final name."""
    make_tree(site.source, {"in/take.mov": size})
    code = "open(root + '/seen', 'w').write(f'{os.path.getsize(partial)} {os.listdir(os.path.dirname(partial))}')"
    done = site.sync(*gate(site, *script(site, code)))
    assert done.code == 0, done.err
    seen = (site.root / "seen").read_text()
    assert seen.startswith(f"{size} [")
    assert "'take.mov'" not in seen
    assert seen.endswith(".trioft-partial']")
    assert files_of(site.dest) == files_of(site.source)


@SIZES
def test_what_the_gate_refuses_has_failed_with_the_reason_that_it_gave(site: Site, size: int) -> None:
    """It never gets its final name, others do; a later run, with another gate, delivers it."""
    make_tree(site.source, {"bad": size, "good": 10})
    command = ["sh", "-c", 'echo; echo "no moov atom" >&2; echo "in $1"; test "$1" != bad', "sh", "{name}", "{partial}"]
    done = site.sync(*gate(site, *command))
    assert done.code == 1
    assert done.summary["failed"] == 1
    line = done.files("failed")["bad"]
    assert line["reason"].endswith(": sh ended with 1: no moov atom / in bad")
    assert (line["error"]["op"], line["error"]["class"], line["attempt"]) == ("gate", "permanent", 0)
    assert files_of(site.dest).keys() - {b"good"} == {name for name in files_of(site.dest) if name.endswith(b"partial")}
    done = site.sync(*gate(site, "true", "{partial}"))
    assert done.code == 0, done.err
    assert files_of(site.dest) == files_of(site.source)


def test_watch_does_not_ask_again_until_the_file_changes(site: Site) -> None:
    """The gate says the same of the same file: a scan does not copy it again; another version has another chance."""
    make_tree(site.source, {"take": b"bad"})
    command = ["sh", "-c", 'echo x >> "$2"; ! grep -q bad "$1"', "sh", "{partial}", str(site.root / "asked")]
    agent = site.watch(*gate(site, *command, more="source: {scan_interval: 100ms}"))
    agent.wait_for_file("take", "failed")
    make_tree(site.source, {"other": b"good"})
    agent.wait_for_file("other", "done")
    make_tree(site.source, {"take": b"good by now"})
    agent.wait_for_file("take", "done")
    agent.end()
    assert (site.root / "asked").read_text() == "x\n" * 3
    assert files_of(site.dest) == files_of(site.source)


CHANGES = {
    "appended": "open(partial, 'ab').write(b'x')",
    "written over": "file = open(partial, 'r+b'); file.write(b'X' * 10)",
    "time set back": "was = os.stat(partial); file = open(partial, 'r+b'); file.write(b'X'); file.close();"
    " os.utime(partial, ns=(was.st_atime_ns, was.st_mtime_ns))",
    "mapped": "import mmap; file = open(partial, 'r+b'); map = mmap.mmap(file.fileno(), 0); map[:2] = bytes(2)",
    "replaced": "data = open(partial, 'rb').read(); os.unlink(partial); open(partial, 'wb').write(b'y' + data[1:])",
    "removed": "os.unlink(partial)",
    "made a folder": "os.unlink(partial); os.mkdir(partial)",
    "left alone": "",
    "only touched": "os.utime(partial)",
}
HARMLESS = {"left alone", "only touched"}


def test_a_gate_that_changes_the_copy_gets_nothing_delivered(site: Site) -> None:
    """What was verified is what gets the final name; and what the gate left is not believed by the next run either."""
    for change in CHANGES:
        make_tree(site.source, {f"small/{change}": SMALL, f"large/{change}": LARGE})
    code = f"exec({CHANGES!r}[os.path.basename(partial).partition('.')[0]])"
    done = site.sync(*gate(site, *script(site, code), verify="transfer", checkpoint_time="1ms"))
    assert done.code == 1
    failed = done.files("failed")
    assert failed.keys() == {f"{size}/{change}" for size in ("small", "large") for change in CHANGES.keys() - HARMLESS}
    assert all("it has changed the copy" in line["reason"] for line in failed.values())
    for path, content in files_of(site.dest).items():
        assert path.endswith(b"partial") or content == files_of(site.source)[path]
    for left in site.dest.rglob("*.trioft-partial"):
        if left.is_dir():
            left.rmdir()
    done = site.sync(*gate(site, "true", "{partial}", verify="transfer"))
    assert done.code == 0, done.err
    assert files_of(site.dest) == files_of(site.source)


def test_what_a_gate_has_changed_is_not_believed_after_a_kill_either(site: Site) -> None:
    """Killed before anything is on record: the next run compares all that was copied, where no read-back does that."""
    make_tree(site.source, {"a": 3 * BLOCK_SIZE})
    code = "open(partial, 'r+b').write(b'X' * 100); os.kill(os.getppid(), 9)"
    options = {"verify": "transfer", "checkpoint_size": "8MiB", "checkpoint_time": "1ms"}
    assert site.sync(*gate(site, *script(site, code), **options)).code == -signal.SIGKILL
    done = site.sync(*gate(site, "true", "{partial}", **options))
    assert done.code == 0, done.err
    assert done.summary["bytes_resumed"] >= BLOCK_SIZE
    assert files_of(site.dest) == files_of(site.source)


def test_a_gate_that_gives_no_answer_is_ended_with_all_that_it_started(site: Site) -> None:
    """After `copy.gate_timeout` the file has failed, and no process is left."""
    make_tree(site.source, {"a": 10})
    command = ["sh", "-c", "sleep 600 & echo $! > $2; echo waiting; wait", "sh", "{partial}", str(site.root / "child")]
    done = site.sync(*gate(site, *command, gate_timeout="300ms"))
    assert done.code == 1
    assert "sh gave no answer in 300ms: waiting" in done.files("failed")["a"]["reason"]
    wait_until(lambda: is_gone(int((site.root / "child").read_text())), 5)


def test_what_the_gate_leaves_running_ends_with_it(site: Site) -> None:
    """A child that has its output open neither holds the file up nor stays."""
    make_tree(site.source, {"a": 10})
    command = ["sh", "-c", "sleep 600 & echo $! > $2", "sh", "{partial}", str(site.root / "child")]
    done = site.sync(*gate(site, *command))
    assert done.code == 0, done.err
    wait_until(lambda: is_gone(int((site.root / "child").read_text())), 5)


def test_a_gate_holds_up_no_other_file(site: Site) -> None:
    """While one file is looked at, others that were found with it are delivered."""
    make_tree(site.source, {f"{n}": n for n in range(20)})
    command = ["sh", "-c", '[ "$1" != 7 ] || until [ -e "$3" ]; do sleep 0.01; done', "sh", "{name}", "{partial}"]
    agent = site.watch(*gate(site, *command, str(site.root / "go")))
    for n in range(20):
        if n != 7:
            agent.wait_for_file(f"{n}", "done")
    assert not (site.dest / "7").exists()
    (site.root / "go").touch()
    agent.wait_for_file("7", "done")
    assert agent.end().code == 0


def test_a_gate_that_talks_without_end_is_listened_to_no_longer_than_is_worth_it(site: Site) -> None:
    """Of what it says, the beginning is told, whatever bytes that are; the rest costs nothing."""
    make_tree(site.source, {"a": 10})
    code = "os.write(1, b'\\x1b[31m\\xff ' + b'x' * 3_000_000); sys.exit(7)"
    done = site.sync(*gate(site, *script(site, code)))
    reason = done.files("failed")["a"]["reason"]
    assert "ended with 7: \\x1b[31m\\xff xxx" in reason
    assert len(reason) < 1_000


def test_a_gate_inherits_no_token_and_no_input(site: Site) -> None:
    """Of trioft's environment it gets what is not trioft's own; it can read nothing, and is in a session of its own."""
    make_tree(site.source, {"a": 10})
    code = (
        "open(root + '/seen', 'w').write(repr((sys.stdin.read(), os.getsid(0) == os.getpid(), os.environ['KEPT'],"
        " [name for name in os.environ if 'TRIOFT' in name], sorted(map(int, os.listdir('/proc/self/fd')))[:4])))"
    )
    options = site._arguments("sync", tuple(gate(site, *script(site, code))))
    done = site.run(*options, env={"TRIOFT_FEED_TOKEN": "secret-secret-secret", "KEPT": "1"})
    assert done.code == 0, done.err
    assert (site.root / "seen").read_text().startswith("('', True, '1', [], [0, 1, 2")


def test_how_a_gate_has_ended_is_known_in_any_environment(site: Site) -> None:
    """Also where trioft is started by somebody who ignores how his children end, and leaves that to his own."""
    make_tree(site.source, {"a": 10})
    options = site._arguments("sync", tuple(gate(site, "false", "{partial}")))
    script = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *TRIOFT, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "false ended with 1" in done.stderr


def test_a_second_signal_ends_the_gate_too(site: Site) -> None:
    """The file is not lost: the next run copies what is missing of it, asks again, and delivers it."""
    make_tree(site.source, {"a": LARGE})
    command = ["sh", "-c", 'echo $$ > "$2"; exec sleep 600', "sh", "{partial}", str(site.root / "gate")]
    agent = site.watch(*gate(site, *command))
    wait_until(lambda: (site.root / "gate").exists() and (site.root / "gate").read_text())
    agent.process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert agent.end(signal.SIGTERM).code == 0
    assert time.monotonic() - begun < 5
    assert is_gone(int((site.root / "gate").read_text()))
    assert not (site.dest / "a").exists()
    assert site.sync(*gate(site, "test", "-s", "{partial}")).code == 0
    assert files_of(site.dest) == files_of(site.source)


def test_a_recording_is_looked_at_once_it_is_complete(site: Site) -> None:
    """The gate sees what the recorder has closed, not what was copied meanwhile."""
    take = site.source / "take"
    content = pattern(3 * MIB)
    command = ["sh", "-c", 'wc -c < "$1" >> "$2"', "sh", "{partial}", str(site.root / "sizes")]
    agent = site.watch(*gate(site, *command, more="growing: {min_size: 1MiB}"))
    with take.open("wb") as file:
        file.write(content[: 2 * MIB])
        file.flush()
        agent.wait_for_file("take", "copying")
        file.write(content[2 * MIB :])
    assert agent.wait_for_file("take", "done")["strategy"] == "follow"
    agent.end()
    assert (site.root / "sizes").read_text().split() == [str(3 * MIB)]
    assert (site.dest / "take").read_bytes() == content


def test_a_program_that_is_not_there_is_a_wrong_configuration(site: Site) -> None:
    """That is said at the start, and nothing is transferred."""
    make_tree(site.source, {"a": 10})
    done = site.sync(*gate(site, "no-such-program", "{partial}"))
    assert done.code == 2
    assert "copy.gate: no-such-program is not installed, or not executable" in done.err
    assert files_of(site.dest) == {}


def test_a_program_that_cannot_be_run_fails_the_file(site: Site) -> None:
    """A script without its first line, for one: said with the system's words, and no traceback."""
    make_tree(site.source, {"a": 10})
    program = site.root / "program"
    program.write_bytes(b"\x7fnothing that runs")
    program.chmod(0o755)
    done = site.sync(*gate(site, str(program), "{partial}"))
    assert done.code == 1
    assert "program cannot be started: Exec format error" in done.files("failed")["a"]["reason"]
    assert "hint: see copy.gate" in done.err


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("ffprobe {partial}", 'found "ffprobe {partial}", expected a list of words, such as ["check", "{partial}"]'),
        ("[]", "found a list, expected a list of words"),
        ("[ffprobe]", "found no {partial} among its words"),
        ('[ffprobe, "{partail}"]', "found {partail}, known are {partial}, {source}, {name}, {size}"),
        ('[ffprobe, 1, "{partial}"]', "found 1, expected a list of words"),
        ('["", "{partial}"]', 'found "", expected a list of words'),
        ('[a, "\\0", "{partial}"]', 'found "\\u0000", expected a list of words'),
    ],
)
def test_a_command_is_a_list_of_words(site: Site, written: str, text: str) -> None:
    """No shell takes it apart, so nothing in a name can be taken for more than a name; what else is written is told."""
    path = site.root / "trioft.yaml"
    path.write_text(f"copy:\n  gate: {written}\n")
    with pytest.raises(ConfigError, match=rf"copy\.gate: {re.escape(text)}"):
        load_config(str(path), {})


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1), st.binary(max_size=20))
def test_what_is_filled_in_is_no_pattern_itself(words: list[str], value: bytes) -> None:
    """Each placeholder becomes exactly its value, whatever that holds; all else stays as it was written."""
    values = {"partial": b"{name}" + value, "name": value, "size": b"1"}
    filled = filled_in([*words, "{partial}", "-x={name}{size}", "{other} {", "{Name}"], values)
    assert filled[-4:] == [b"{name}" + value, b"-x=" + value + b"1", b"{other} {", b"{Name}"]
    plain = [word for word in words if "{" not in word]
    assert [word for word, given in zip(filled, words, strict=False) if "{" not in given] == [*map(os.fsencode, plain)]
