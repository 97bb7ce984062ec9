"""The command line as people and scripts meet it: exit codes, and what happens to bad input."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Done, Site, files_of, make_tree, mounted, run_without_privilege
from trioft import __version__

EXIT_CODES = ["0", "1", "2", "3", "4", "5", "130", "143"]


def assert_refused(done: Done, code: int, *fragments: str) -> None:
    """Check the exit code, and that stderr holds every fragment, in sentences, and stdout no data but a summary."""
    assert done.code == code, done.err
    for fragment in fragments:
        assert fragment in done.err
    assert "Traceback" not in done.err
    assert [(line["event"], line["exit_code"]) for line in done.lines] in ([], [("summary", code)])


def untouched(site: Site) -> bool:
    """Has nothing been written to the destination, and no ledger been made?"""
    return not os.listdir(site.dest) and not site.state.exists()


# --- Wrong usage: exit code 2 -----------------------------------------------------------------------------------------


def test_all_impossible_options_are_reported_at_once(site: Site) -> None:
    """Every option with an impossible value is named, with what was found and what is expected; nothing is touched."""
    options = {
        "--transfers": ("0", "a whole number from 1 to 64"),
        "--settle": ("10", "a duration with its unit, such as 10s"),
        "--bwlimit": ("fast", "a rate with its unit, such as 20MiB/s, or off"),
        "--if-exists": ("maybe", "rename, overwrite, skip"),
        "--verify": ("none", "size, transfer or readback"),
        "--growing": ("shrink", "follow or wait"),
        "--on-success": ("burn", "keep, delete or archive:DIR"),
        "--min-free": ("200%", "a percentage from 0% to 100%, or a size"),
        "--include": ("/abs", "patterns relative to the source"),
    }
    arguments = [word for option, (value, _) in options.items() for word in (option, value)]
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state, *arguments)
    assert_refused(done, 2)
    for option, (value, expected) in options.items():
        assert f'trioft: error: {option}: found "{value}"' in done.err or f"{option}: found {value}" in done.err
        assert expected in done.err
    assert untouched(site)


def test_all_problems_of_a_config_file_are_reported_at_once(site: Site) -> None:
    """Unknown keys, wrong types and impossible values are named with their path and a hint, beside those of options."""
    file = site.root / "trioft.yaml"
    file.write_text(
        "sauce: {path: /x}\n"
        "source: {path: 3, settle: 10}\n"
        "destination: {min_fre: 1%, if_exists: maybe}\n"
        "copy: {transfers: 3.9, checkpoint_size: 1B}\n"
    )
    done = site.run("sync", "-c", file, "--verify", "none")
    assert_refused(
        done,
        2,
        f"{file}: sauce: unknown key, did you mean source?",
        f"{file}: source.path: found 3, expected a path",
        f"{file}: source.settle: found 10, expected a duration with its unit, such as 10s",
        f"{file}: destination.min_fre: unknown key, did you mean min_free?",
        f'{file}: destination.if_exists: found "maybe"',
        f"{file}: copy.transfers: found 3.9, expected a whole number",
        f'{file}: copy.checkpoint_size: found "1B", expected a size of at least 8MiB',
        '--verify: found "none"',
    )


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"source: [", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"- a\n- b\n", "expected groups of options"),
        (b"source: {path: /a}\nsource: {path: /b}\n", "given before, in line 1"),
    ],
    ids=["not there", "no YAML", "binary", "a list", "a key twice"],
)
def test_an_unusable_config_file_is_refused(site: Site, content: bytes | None, fragment: str) -> None:
    """A configuration file that cannot be understood stops trioft before it does anything."""
    file = site.root / "trioft.yaml"
    if content is not None:
        file.write_bytes(content)
    assert_refused(site.run("sync", site.source, site.dest, "-c", file), 2, str(file), fragment)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["sync"], "SOURCE and DEST missing"),
        (["sync", "a"], "DEST missing"),
        (["watch"], "SOURCE and DEST missing"),
        (["sync", "a", "b", "c"], "c"),
        (["sync", "a", "b", "--bogus"], "--bogus"),
        (["sync", "a", "b", "--transfers"], "--transfers"),
        (["watch", "a", "b", "--dry-run"], "--dry-run"),
        (["frobnicate"], "frobnicate"),
        (["config", "frobnicate"], "frobnicate"),
        (["config", "check"], "no configuration file given"),
        (["sync", "a", "b", "--verify", "size", "--on-success", "delete"], "--on-success: found delete, expected keep"),
        (["sync", "a", "b", "--include", ""], '--include: found ""'),
        (["sync", "", "b"], "SOURCE"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused(site: Site, arguments: list[str], fragment: str) -> None:
    """What makes no sense is refused with exit code 2 and a sentence that names it."""
    assert_refused(site.run(*arguments), 2, fragment)


def test_a_pattern_that_is_none_is_refused(site: Site) -> None:
    """A glob that cannot be read is named instead of matching nothing for ever."""
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state, "--exclude", "[z-a]")
    assert_refused(done, 2, "--exclude: '[z-a]' is no pattern")


# --- The ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "dest", "fragments"),
    [
        ("nowhere", "dest", ["the source is not there", "nowhere"]),
        ("source", "nowhere", ["the destination is not there", "hint: trioft never creates it"]),
        ("source", "no/where", ["the destination is not there", "no/where"]),
        ("source", "dangling", ["the destination is not there"]),
        ("file/below", "dest", ["the source is not there"]),
        ("fifo", "dest", ["the source is not a folder"]),
        ("source", "fifo", ["the destination is not a folder"]),
        ("source", "file", ["the destination is not a folder"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_ends_are_refused(site: Site, source: str, dest: str, fragments: list[str]) -> None:
    """An end that is not there, or no folder, is exit code 3; promise 5: the destination root is never made."""
    (site.root / "file").write_bytes(b"x")
    os.mkfifo(site.root / "fifo")
    (site.root / "dangling").symlink_to("no/where")
    done = site.run("sync", site.root / source, site.root / dest, "--state-dir", site.state)
    assert_refused(done, 3, *fragments)
    assert untouched(site)
    assert not (site.root / "nowhere").exists()
    assert not (site.root / "no").exists()


@pytest.mark.parametrize("missing", ["source", "dest"])
def test_a_dry_run_refuses_unusable_ends(site: Site, missing: str) -> None:
    """It refuses what `sync` refuses; a watch waits for both of its ends."""
    (site.root / missing).rmdir()
    done = site.run("sync", "--dry-run", site.source, site.dest, "--state-dir", site.state)
    assert_refused(done, 3, "is not there")
    assert not (site.root / missing).exists()


def test_a_read_only_destination_is_refused(site: Site) -> None:
    """A destination that cannot be written to is found out before anything is copied."""
    with mounted("none", site.dest, "-t", "tmpfs", "-o", "size=1m,ro"):
        assert_refused(site.sync(), 3, "the destination", "Read-only file system", "hint: ")


def test_a_destination_without_permission_is_refused(site: Site) -> None:
    """A destination in which this user may not write is exit code 3, and says what does not work."""
    site.dest.chmod(0o555)
    done = run_without_privilege("sync", site.source, site.dest, "--state-dir", site.state)
    assert_refused(done, 3, "the destination", "create", "Permission denied", "hint: give trioft's user access")


def test_a_source_without_permission_is_refused(site: Site) -> None:
    """A source folder that this user may not read is exit code 3, not an empty source."""
    site.source.chmod(0o000)
    done = run_without_privilege("sync", site.source, site.dest, "--state-dir", site.state)
    assert_refused(done, 3, "the source cannot be used", "Permission denied")


def test_a_state_directory_that_cannot_be_made_is_refused(site: Site) -> None:
    """Without a ledger nothing is copied."""
    make_tree(site.source, {"a": b"1"})
    site.state.write_bytes(b"in the way")
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state)
    assert_refused(done, 3, "cannot use the state directory", "hint: choose another one with --state-dir")
    assert os.listdir(site.dest) == []


# --- Ends that overlap ------------------------------------------------------------------------------------------------


def _links(site: Site) -> None:
    (site.root / "to-source").symlink_to(site.source)
    (site.root / "to-inside").symlink_to(site.source / "inside")


@pytest.mark.parametrize(
    ("source", "dest", "options", "fragment"),
    [
        ("source", "source", [], "the same folder"),
        ("source", "source/inside/..", [], "the same folder"),
        ("source", "to-source", [], "the same folder"),
        ("to-source", "source", [], "the same folder"),
        ("source", "source/inside", [], "the destination is inside the source"),
        ("source", "to-inside", [], "the destination is inside the source"),
        ("source/inside", "source", [], "the source is inside the destination"),
        ("to-inside", "to-source", [], "the source is inside the destination"),
        ("source/file", "source", [], "the same file"),
        ("source", "dest", ["--state-dir", "source/state"], "the state directory must not be inside the source"),
        ("source", "dest", ["--state-dir", "to-inside/a/b"], "the state directory must not be inside the source"),
        ("source", "dest", ["--on-success", "archive:to-source"], "the archive folder must not be"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_ends_that_overlap_are_refused(site: Site, source: str, dest: str, options: list[str], fragment: str) -> None:
    """Nothing is ever copied into itself, however the path is written; the source stays as it was."""
    make_tree(site.source, {"inside": None, "file": b"1"})
    _links(site)
    before = files_of(site.source)
    arguments: list[str | Path] = ["sync", site.root / source, site.root / dest]
    if "--state-dir" not in options:
        arguments += ["--state-dir", site.state]
    arguments += [
        f"archive:{site.root}/{o[8:]}" if o.startswith("archive:") else o if o[0] == "-" else site.root / o
        for o in options
    ]
    assert_refused(site.run(*arguments), 2, fragment)
    assert files_of(site.source) == before
    assert untouched(site)


@pytest.mark.parametrize(
    ("mount", "at", "fragment"),
    [
        ("source", "dest", "the same folder"),
        ("source/inside", "dest", "the destination is inside the source"),
        ("dest/inside", "source", "the source is inside the destination"),
    ],
    ids=lambda value: value,
)
def test_bind_mounts_do_not_hide_that_ends_overlap(site: Site, mount: str, at: str, fragment: str) -> None:
    """The same folder, or one inside the other, is recognized where a bind mount gives it another path."""
    make_tree(site.root, {"source/inside": None, "dest/inside": None})
    with mounted(site.root / mount, site.root / at, "--bind"):
        make_tree(site.source, {"a": b"1"})
        before = files_of(site.source), files_of(site.dest)
        assert_refused(site.run("sync", site.source, site.dest, "--state-dir", site.state), 2, fragment)
        assert (files_of(site.source), files_of(site.dest)) == before


# --- The lock and the ledger ------------------------------------------------------------------------------------------


def test_a_pair_belongs_to_one_trioft_at_a_time(site: Site) -> None:
    """A second trioft on the same pair is refused and names the first; when that has ended, however, it may work."""
    first = site.watch()
    make_tree(site.source, {"a": b"1"})
    first.wait_for_file("a", "done")
    done = site.run("sync", site.source, site.dest, "--state-dir", site.state)
    assert_refused(done, 5, "another trioft works on this", f"process {first.process.pid}", "hint: ")
    assert first.end(signal.SIGKILL).code == -signal.SIGKILL
    assert site.sync().code == 0


def _other_sqlite(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE music (name TEXT)")


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "fragments"),
    [
        (lambda path: path.write_bytes(b"no ledger" * 1000), ["not a database", "hint: move it away and start again"]),
        (_other_sqlite, ["no ledger of trioft", "hint: move it away"]),
        (_newer, ["a newer trioft", "hint: use the newer trioft"]),
    ],
    ids=["corrupt", "another program's", "newer"],
)
def test_a_ledger_that_cannot_be_used_is_left_alone(
    site: Site, spoil: Callable[[Path], None], fragments: list[str]
) -> None:
    """A ledger that is corrupt, foreign or newer is exit code 3 with what to do; it is never replaced or changed."""
    assert site.sync().code == 0
    (ledger,) = site.state.glob("*.sqlite")
    spoil(ledger)
    before = ledger.read_bytes()
    make_tree(site.source, {"a": b"1"})
    assert_refused(site.run("sync", site.source, site.dest, "--state-dir", site.state), 3, str(ledger), *fragments)
    assert ledger.read_bytes() == before
    assert os.listdir(site.dest) == []


# --- Files that fail --------------------------------------------------------------------------------------------------


def test_an_unreadable_file_fails_alone(site: Site) -> None:
    """A file that cannot be read fails, with a hint; all others arrive, and the exit code is 1."""
    make_tree(site.source, {"a": b"1", "locked": b"2", "large": 2_000_000, "locked-large": 2_000_000, "z/z": b"3"})
    (site.source / "locked").chmod(0o000)
    (site.source / "locked-large").chmod(0o000)
    done = run_without_privilege(
        "sync", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms", "--json"
    )
    assert done.code == 1
    assert set(files_of(site.dest)) == {b"a", b"large", b"z/z"}
    failed = done.files("failed")
    assert set(failed) == {"locked", "locked-large"}
    error = failed["locked"]["error"]
    assert (error["side"], error["op"], error["path"], error["errno"]) == ("source", "open", "locked", 13)
    assert "give trioft's user access" in error["hint"]
    assert done.summary["failed"] == 2
    assert done.summary["delivered"] == 3
    assert "trioft: error: locked: open 'locked' at the source: Permission denied (EACCES)" in done.err
    assert "hint: give trioft's user access" in done.err
    assert "2 failed" in done.err
    assert "Traceback" not in done.err


def test_an_unreadable_folder_fails_alone(site: Site) -> None:
    """A folder that cannot be read fails, since nobody knows what is in it; all others are transferred."""
    make_tree(site.source, {"a": b"1", "locked/x": b"2", "z/z": b"3"})
    (site.source / "locked").chmod(0o000)
    done = run_without_privilege(
        "sync", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms", "--json"
    )
    (site.source / "locked").chmod(0o700)
    assert done.code == 1
    assert set(files_of(site.dest)) == {b"a", b"z/z"}
    assert set(done.files("failed")) == {"locked"}
    assert "locked: open 'locked' at the source: Permission denied (EACCES)" in done.err


def test_a_folder_of_the_destination_that_cannot_be_used_fails_alone(site: Site) -> None:
    """What lies in the way at the destination fails the files below it, with a hint; the others arrive."""
    make_tree(site.source, {"a": b"1", "loop/x": b"2", "file/x": b"3", "locked/x": b"4", "folder": b"5", "z/z": b"6"})
    make_tree(site.dest, {"file": b"in the way", "locked": None, "folder": None})
    (site.dest / "loop").symlink_to("loop")
    (site.dest / "locked").chmod(0o000)
    done = run_without_privilege(
        "sync", site.source, site.dest, "--state-dir", site.state, "--settle", "100ms", "--json"
    )
    (site.dest / "locked").chmod(0o700)
    assert done.code == 1
    assert set(done.files("done")) == {"a", "z/z"}
    failed = {path: line["error"]["hint"] for path, line in done.files("failed").items()}
    assert {path for path in failed if "/" in path or path == "folder"} == {"loop/x", "file/x", "locked/x", "folder"}
    assert "symbolic link" in failed["loop/x"]
    assert "move it aside" in failed["file/x"]
    assert "give trioft's user access" in failed["locked/x"]
    assert "a folder is in the way" in failed["folder"]
    assert files_of(site.dest) == {b"a": b"1", b"z/z": b"6", b"file": b"in the way"}


# --- The configuration file -------------------------------------------------------------------------------------------


def test_config_init_writes_a_file_that_config_check_accepts(site: Site) -> None:
    """`config init` writes every option, and never over a file that exists."""
    file = site.root / "new.yaml"
    done = site.run("config", "init", file)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert site.run("config", "init").out == file.read_text()
    done = site.run("config", "check", "-c", file)
    assert (done.code, done.out) == (0, f"{file}: ok\n")
    file.write_text("mine")
    assert_refused(site.run("config", "init", file), 2, "exists already", "hint: choose another name")
    assert file.read_text() == "mine"
    assert_refused(site.run("config", "init", site.root / "no" / "where"), 2, "cannot write")


def test_config_show_prints_the_configuration_in_effect(site: Site) -> None:
    """`config show` prints what the file says and the defaults for the rest, as a file that says the same."""
    file = site.root / "trioft.yaml"
    file.write_text("copy: {transfers: 9}\n")
    shown = site.run("config", "show", "-c", file)
    assert shown.code == 0
    assert re.search(r"^  transfers: 9$", shown.out, re.MULTILINE)
    assert re.search(r"^  verify: readback$", shown.out, re.MULTILINE)
    again = site.root / "again.yaml"
    again.write_text(shown.out)
    assert site.run("config", "show", "-c", again).out == shown.out


def test_config_check_reports_what_is_wrong(site: Site) -> None:
    """`config check` finds every problem, with the exit code that a run would have."""
    file = site.root / "trioft.yaml"
    file.write_text("copy: {transfers: 0, verify: none}\n")
    assert_refused(site.run("config", "check", "-c", file), 2, "copy.transfers", "copy.verify")


def test_the_config_file_may_hold_everything(site: Site) -> None:
    """SOURCE, DEST and options come from TRIOFT_CONFIG; -c goes before it, and the command line before both."""
    make_tree(site.source, {"a.mov": b"1", "b.txt": b"2"})
    file = site.root / "trioft.yaml"
    file.write_text(
        f"source: {{path: {site.source}, settle: 100ms, exclude: ['*.txt']}}\n"
        f"destination: {{path: {site.dest}}}\nstate: {{dir: {site.state}}}\n"
    )
    env = {"TRIOFT_CONFIG": os.fspath(file)}
    assert site.run("sync", env=env).code == 0
    assert set(files_of(site.dest)) == {b"a.mov"}
    assert site.run("sync", "--exclude", "*.mov", env=env).code == 0
    assert set(files_of(site.dest)) == {b"a.mov", b"b.txt"}
    other = site.root / "other.yaml"
    other.write_text("source: {path: /nowhere/at/all}\n")
    assert_refused(site.run("sync", "-c", other, env=env), 2, "DEST missing")
    assert_refused(site.run("sync", env={"TRIOFT_CONFIG": ""}), 2, "SOURCE and DEST missing")


# --- Help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["sync", "--help"], ["watch", "-h"]], ids=" ".join)
def test_help_tells_the_exit_codes(site: Site, arguments: list[str]) -> None:
    """A script's author finds the exit codes in the help."""
    done = site.run(*arguments)
    assert (done.code, done.err) == (0, "")
    status = done.out[done.out.index("EXIT STATUS") :]
    assert set(EXIT_CODES) <= set(re.findall(r"\d+", status))


def test_help_explains_every_option_and_command(site: Site) -> None:
    """Each command and each option comes with a sentence."""
    assert all(re.search(rf"\b{command}\b +[A-Z]", site.run("--help").out) for command in ("sync", "watch", "config"))
    text = " ".join(site.run("sync", "--help").out.split())
    for option in ("--include", "--exclude", "--transfers", "--verify", "--growing", "--settle", "--on-success"):
        assert re.search(rf"{option} [A-Z]+ [A-Za-z]", text), option
    for option in ("--if-exists", "--bwlimit", "--min-free", "--state-dir", "--config"):
        assert re.search(rf"{option} [A-Z]+ [A-Za-z]", text), option
    for option in ("--json", "--quiet", "--verbose", "--no-progress", "--dry-run"):
        assert re.search(rf"{option} [A-Z]", text), option
    assert "Example: trioft sync" in text


def test_the_version_is_told(site: Site) -> None:
    """`--version` prints name and version, and nothing else."""
    done = site.run("--version")
    assert (done.code, done.out, done.err) == (0, f"trioft {__version__}\n", "")
