"""Files go where rules send them: what is told of that, and names that several files would have."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import sqlite3
import stat
from pathlib import Path

import pytest

from support import ROOT, Site, files_of, make_tree, pattern, wait_until
from trioft.core.model import BLOCK_SIZE, Fingerprint

pytestmark = pytest.mark.usefixtures("east_of_greenwich")

README = (ROOT / "README.md").read_text("utf-8")
# 2026-05-01 12:30:15 UTC
VERSION = Fingerprint(1, 2, 1234, 1_777_638_615 * 10**9 + 5, 7)
FLAT = 'destination: {routes: [{match: "*", to: "all/{name}"}]}\n'
SMALL, LARGE = 1000, 2_000_000  # sizes of files that travel in a bundle, and alone


def configured(site: Site, text: str) -> Path:
    file = site.root / "trioft.yaml"
    file.write_text(text)
    return file


# --- what is told of a rule -------------------------------------------------------------------------------------------


def test_explain_shows_the_rule_and_the_name_it_makes(site: Site) -> None:
    """Before and after the transfer; and who has lost its name to another file is told to stay."""
    make_tree(site.source, {"a/x": b"x", "b/x": b"xx"})
    file = configured(site, FLAT)
    pair: list[str | Path] = [site.source, site.dest, "-c", file, "--state-dir", site.state]
    assert site.sync("-c", file, "--include", "a").code == 0
    before = site.run("explain", "b/x", *pair).out
    assert "destination.routes[0] (match '*'): it goes to all/x" in before
    (site.dest / "all/x").unlink()
    assert site.sync("-c", file, "--include", "b").code == 0
    assert "destination.routes[0] (match '*'): it goes to all/x" in site.run("explain", "b/x", *pair).out
    assert "another file has been delivered under its name since" in site.run("explain", "a/x", *pair).out
    verified = site.run("verify", *pair)
    assert verified.code == 0


# --- the configuration ------------------------------------------------------------------------------------------------


def test_every_rule_that_cannot_work_is_told_at_the_start(site: Site) -> None:
    """All problems at once, each with its place, beside those of other options; nothing is transferred."""
    make_tree(site.source, {"a": b"a"})
    file = configured(
        site,
        r"""
destination:
  min_fre: 1%
  routes:
    - {match: "/a", to: "{name}"}
    - {regex: "(", to: "{nam}/{"}
    - {match: "*.mxf", regex: "x", to: "{name}"}
    - {mach: "a", to: "x"}
    - 3
    - {regex: "(?P<name>a)", to: "a/../{mtime}/{mtime:%Q}/{size:3}/"}
    - {regex: "a(?P<b>.)", to: "/{b}{c}"}
    - {match: "a", to: "a\0"}
    - {match: "a"}
    - {match: "a", to: ""}
    - {match: "a", to: "{}"}
    - {match: "a", to: "a}"}
""",
    )
    done = site.sync("-c", file)
    assert done.code == 2
    assert files_of(site.dest) == {}
    told = [line.removeprefix(f"trioft: error: {file}: ") for line in done.err.splitlines()]
    at = "destination.routes"
    for line, beginning in zip(
        told,
        [
            f'{at}[0].match: found "/a", expected a pattern relative to the source',
            f"{at}[1].regex: no regular expression: missing ), unterminated subpattern at position 0",
            f"{at}[1].to: a single {{, expected {{FIELD}}; a brace itself is written {{{{",
            f"{at}[2]: expected either match or regex",
            f"{at}[3].mach: unknown key, did you mean match?",
            f"{at}[3]: expected either match or regex",
            f'{at}[4]: found 3, expected a rule, such as {{match: "*.mxf", to: "KAMERA/{{name}}"}}',
            f"{at}[5].regex: the group name has the name of a field",
            f"{at}[5].to: expected a format for mtime, such as {{mtime:%Y-%m-%d}}",
            f"{at}[5].to: unknown '%Q' in the format of mtime, known: %Y %m %d",
            f"{at}[5].to: only mtime has a format, not {{size}}",
            f"{at}[5].to: expected a path that ends in the name of a file",
            f"{at}[5].to: expected a path without the parts . and ..",
            f"{at}[6].to: unknown field {{c}}, known here: b, mtime, name, parent, path, size, stem, suffix",
            f"{at}[6].to: expected a path below the destination, without / at its beginning",
            f'{at}[7].to: found "a\\u0000", expected a text, not empty and without NUL',
            f"{at}[8]: expected to, where the files go",
            f'{at}[9].to: found "", expected a text, not empty and without NUL',
            f"{at}[10].to: {{}} names no field",
            f"{at}[11].to: a single }}, expected {{FIELD}}; a brace itself is written }}}}",
            "destination.min_fre: unknown key, did you mean min_free?",
        ],
        strict=True,
    ):
        assert line.startswith(beginning)


def test_rules_may_stand_in_the_environment(site: Site) -> None:
    """As every option may; what is wrong with them is told with its place there."""
    make_tree(site.source, {"in/x": b"x"})
    command: list[str | Path] = ["sync", site.source, site.dest, "--state-dir", site.state]
    done = site.run(*command, env={"TRIOFT_DESTINATION_ROUTES": '[{match: "*", to: "../{name}"}]'})
    assert done.code == 2
    assert "TRIOFT_DESTINATION_ROUTES[0].to: expected a path without the parts . and .." in done.err
    assert site.run(*command, env={"TRIOFT_DESTINATION_ROUTES": '[{match: "*", to: "all/{name}"}]'}).code == 0
    assert files_of(site.dest) == {b"all/x": b"x"}


def test_rules_are_shown_as_they_were_written(site: Site) -> None:
    """What `config show` prints is a file that can be used."""
    text = 'destination: {routes: [{match: "*.mxf", to: "K/{name}"}, {regex: "(?P<d>[0-9]).*", to: "{d}/{name}"}]}\n'
    shown = site.run("config", "show", "-c", configured(site, text)).out
    assert "- match: '*.mxf'" in shown
    assert site.run("config", "show", "-c", configured(site, shown)).out == shown


# --- transfers --------------------------------------------------------------------------------------------------------


def test_the_cameras_of_the_readme_find_their_folders(site: Site) -> None:
    """The README's example is a configuration that does what is said there."""
    (text,) = re.findall(r"```yaml\n(destination:\n  routes:\n.*?)```", README, re.DOTALL)
    listing = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", README, re.MULTILINE)
    make_tree(site.source, {path: path.encode() for path, _ in listing})
    for path, _ in listing:
        os.utime(site.source / path, (VERSION.mtime_ns / 1e9,) * 2)
    file = configured(site, text)
    dry = site.sync("-c", file, "--dry-run")
    assert {line["path"]: line["dest"] for line in dry.files("ready").values()} == dict(listing)
    assert (
        "card1/260501_1200_A_Cam1.mxf -> KAMERA/"
        in site.run("sync", site.source, site.dest, "-c", file, "--dry-run").out
    )
    assert files_of(site.dest) == {}
    done = site.sync("-c", file)
    assert (done.code, len(done.files("done"))) == (0, len(listing))
    assert files_of(site.dest) == {target.encode(): path.encode() for path, target in listing}
    assert {line["path"]: line["dest"] for line in done.files("done").values()} == dict(listing)
    again = site.sync("-c", file).summary
    assert (again["already"], again["delivered"], again["bytes"]) == (len(listing), 0, 0)
    assert site.sync("-c", file, "--dry-run").files("ready") == {}


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_odd_names_are_routed_without_loss(site: Site, size: int) -> None:
    """A name that is no text, and one with a newline, arrive as the bytes they are; folders are as any new one here."""
    content = pattern(size)
    make_tree(site.source, {b"in\xff/\xe9\n.mov": content})
    done = site.sync("-c", configured(site, 'destination: {routes: [{match: "*.mov", to: "K/{parent}/x/{name}"}]}\n'))
    assert done.code == 0
    assert files_of(site.dest) == {b"K/in\xff/x/\xe9\n.mov": content}
    expected = 0o777 & ~_umask()
    assert [stat.S_IMODE((site.dest / path).stat().st_mode) for path in ("K", "K/in\udcff")] == [expected] * 2


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_without_a_possible_name_fails_alone(site: Site) -> None:
    """It has failed, with the rule and what to do; the others go on; no empty folders are made for them."""
    make_tree(site.source, {"in/" + "x" * 200: b"long", "in/ok": b"ok", "empty": None})
    file = configured(site, 'destination: {routes: [{match: "*", to: "{stem}{stem}"}]}\n')
    assert site.sync("-c", file, "--dry-run").code == 1
    done = site.sync("-c", file)
    assert done.code == 1
    (failed,) = done.files("failed").values()
    assert failed["error"]["class"] == "permanent"
    assert "destination.routes[0]: " in failed["reason"]
    assert failed["error"]["hint"] == "change the rule in destination.routes, or rename the file"
    assert files_of(site.dest) == {b"okok": b"ok"}
    assert not (site.dest / "empty").exists()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_markers_and_manifests_follow_a_file_to_where_it_goes(site: Site, size: int) -> None:
    """They stand beside its name at the destination, and say so of that; the source's markers beside its path."""
    contents = {b"K/a.mov": pattern(size, 1), b"K/b.mov": pattern(size, 2)}
    make_tree(site.source, {"in/a.mov": contents[b"K/a.mov"], "in/b.mov": contents[b"K/b.mov"]})
    make_tree(site.source, {"in/no.mov": b"no", "in/c.sha256": b"c"})
    make_tree(site.source, dict.fromkeys(("in/a.mov.ok", "in/b.mov.ok", "in/c.sha256.ok"), b""))
    text = """
source: {done_suffix: .ok}
destination: {routes: [{match: "*.mov", to: "K/{name}"}, {match: "*.sha256", to: "K/trioft{suffix}"}]}
copy: {done_file: .done, manifest: sha256sum}
"""
    file = configured(site, text)
    dry = site.sync("-c", file, "--dry-run")
    assert (dry.code, sorted(dry.files("ready"))) == (1, ["in/a.mov", "in/b.mov"])
    for _ in range(2):
        done = site.sync("-c", file)
        assert done.code == 1
        assert "what trioft calls manifests (copy.manifest)" in done.files("failed")["in/c.sha256"]["reason"]
        arrived = files_of(site.dest)
        listed = arrived.pop(b"K/trioft.sha256").decode()
        assert arrived == contents | dict.fromkeys((b"K/a.mov.done", b"K/b.mov.done"), b"")
        sums = {name: hashlib.sha256(arrived[f"K/{name}".encode()]).hexdigest() for name in ("a.mov", "b.mov")}
        assert listed == "".join(f"{its}  {name}\n" for name, its in sums.items())
        (ledger,) = site.state.glob("*.sqlite")
        with contextlib.closing(sqlite3.connect(ledger)) as db:
            assert db.execute("SELECT * FROM unlisted").fetchall() == []  # nothing is left to be listed
    assert done.summary["already"] == 2


def test_a_manifest_lists_each_of_the_files_that_were_to_have_one_name(site: Site) -> None:
    """Under the names that they were given, also where they have travelled together."""
    make_tree(site.source, {f"{folder}/x": folder.encode() for folder in "abc"})
    file = configured(site, FLAT + "copy: {manifest: sha256sum}\n")
    assert site.sync("-c", file, "--if-exists", "rename").summary["delivered"] == 3
    listed = (site.dest / "all/trioft.sha256").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in listed] == ["x", "x_1", "x_2"]
    assert {line.partition(" ")[0] for line in listed} == {
        hashlib.sha256(text).hexdigest() for text in (b"a", b"b", b"c")
    }


def test_a_manifest_has_the_sum_of_the_file_that_has_the_name_now(site: Site) -> None:
    """Somebody took the first one away, and another file was sent to its place."""
    make_tree(site.source, {"a/x": b"first", "b/x": b"other"})
    file = configured(site, FLAT + "copy: {manifest: sha256sum}\n")
    for folder, content in (("a", b"first"), ("b", b"other")):
        (site.dest / "all/x").unlink(missing_ok=True)
        assert site.sync("-c", file, "--include", folder).code == 0
        listed = (site.dest / "all/trioft.sha256").read_text()
        assert listed == f"{hashlib.sha256(content).hexdigest()}  x\n"


def test_jobs_may_have_rules_of_their_own(site: Site) -> None:
    """One has those that stand beside the jobs, another one its own; what is wrong with them is told with its place."""
    ends = {name: [site.root / f"{name} {end}" for end in ("in", "out")] for name in "ab"}
    for source, dest in ends.values():
        dest.mkdir()
        make_tree(source, {"in/x": b"x"})
    text = """
destination: {{routes: [{{match: "*", to: "all/{{name}}"}}]}}
jobs:
- {{name: a, source: {{path: {a[0]}}}, destination: {{path: {a[1]}}}}}
- {{name: b, source: {{path: {b[0]}}}, destination: {{path: {b[1]}, routes: [{{match: "*", to: "{to}/{{name}}"}}]}}}}
"""
    done = site.run("sync", "-c", configured(site, text.format(to="..", **ends)))
    assert done.code == 2
    assert "jobs[1].destination.routes[0].to: expected a path without the parts . and .." in done.err
    done = site.run("sync", "-c", configured(site, text.format(to="own", **ends)), "--state-dir", site.state)
    assert done.code == 0
    assert [files_of(dest) for _, dest in ends.values()] == [{b"all/x": b"x"}, {b"own/x": b"x"}]


# --- one name for several files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "alike"), [(SMALL, True), (LARGE, True), (LARGE, False)])
def test_a_sync_never_lets_one_source_replace_another(site: Site, size: int, alike: bool) -> None:
    """The second file that would get a name fails, and says who has it: in this run, and in every later one."""
    make_tree(site.source, {"a/x": pattern(size, 1), "b/x": pattern(size, 2), "c/y": b"y"})
    for number, path in enumerate(("a/x", "b/x")):
        os.utime(site.source / path, (1e9 if alike else 1e9 + number,) * 2)
    file = configured(site, FLAT)
    first = site.sync("-c", file)
    assert first.summary["delivered"] == 2
    (failed,) = first.files("failed").values()
    (winner,) = {"a/x", "b/x"} - {failed["path"]}
    there = {b"all/x": (site.source / winner).read_bytes(), b"all/y": b"y"}
    removing = ("--on-success", "delete", "--if-exists", "overwrite")  # it would be numbered else
    for done in (first, site.sync("-c", file), site.sync("-c", file, *removing)):
        (line,) = done.files("failed").values()
        assert line["reason"] == f"{winner} has been delivered under the same name, all/x, and is not replaced"
        assert done.code == 1
        assert files_of(site.dest) == there
    assert files_of(site.source) == {os.fsencode(failed["path"]): (site.source / failed["path"]).read_bytes()}
    # It has been moved aside: then there is room.
    (site.dest / "all/x").rename(site.dest / "kept")
    assert site.sync("-c", file).code == 0
    assert files_of(site.dest)[b"all/x"] == (site.source / failed["path"]).read_bytes()


def test_who_lost_its_place_to_another_file_is_not_there_any_more(site: Site) -> None:
    """Also where both look the same: what was delivered under a name last is what counts."""
    make_tree(site.source, {"a/x": b"first", "b/x": b"other"})
    for path in ("a/x", "b/x"):
        os.utime(site.source / path, (1e9, 1e9))
    file = configured(site, FLAT)
    assert site.sync("-c", file, "--include", "a").code == 0
    (site.dest / "all/x").unlink()
    assert site.sync("-c", file, "--include", "b").code == 0
    done = site.sync("-c", file)
    assert (done.code, done.summary["already"], list(done.files("failed"))) == (1, 1, ["a/x"])
    assert files_of(site.dest) == {b"all/x": b"other"}


def test_a_new_version_of_the_same_source_replaces_the_old_one(site: Site) -> None:
    """DEST is to match SOURCE, wherever a file lies there."""
    file = configured(site, FLAT)
    for content in (b"first", b"second"):
        make_tree(site.source, {"a/x": content})
        assert site.sync("-c", file).code == 0
        assert files_of(site.dest) == {b"all/x": content}


def test_equal_files_may_share_a_name(site: Site) -> None:
    """What has the same content is there already, byte for byte; but neither then replaces what the other has."""
    make_tree(site.source, {"a/x": SMALL})
    for folder in "bcd":
        shutil.copytree(site.source / "a", site.source / folder)
    file = configured(site, FLAT)
    done = site.sync("-c", file)  # one after the other
    assert (done.code, done.summary["delivered"], done.summary["already"]) == (0, 1, 3)
    done = site.sync("-c", file)
    assert (done.code, done.summary["already"], done.summary["bytes"]) == (0, 4, 0)
    (site.source / "a/x").write_bytes(b"another")
    done = site.sync("-c", file)
    assert "has been delivered under the same name, all/x, and is not replaced" in done.files("failed")["a/x"]["reason"]
    assert files_of(site.dest) == {b"all/x": (site.source / "b/x").read_bytes()}


def test_a_file_that_keeps_its_path_is_not_replaced_by_one_that_is_sent_there(site: Site) -> None:
    """Whether a rule gave the name or not: it is the first one's."""
    make_tree(site.source, {"K/x": b"kept", "in/z": b"sent"})
    file = configured(site, 'destination: {routes: [{match: "z", to: "K/x"}]}\n')
    site.sync("-c", file, "--include", "x")
    done = site.sync("-c", file)
    assert done.files("failed")["in/z"]["reason"].startswith("K/x has been delivered under the same name")
    assert files_of(site.dest) == {b"K/x": b"kept"}


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_watch_numbers_the_second_file_of_a_name(site: Site, size: int) -> None:
    """Every recording arrives, whatever they have in common: also where size and time are the same."""
    file = configured(site, FLAT)
    running = site.watch("-c", file)
    for number, folder in enumerate("abc"):
        make_tree(site.root / folder, {"x": pattern(size, number)})
        os.utime(site.root / folder / "x", (1e9, 1e9))
        (site.root / folder).rename(site.source / folder)
        running.wait_for_file(f"{folder}/x", "done")
    assert running.end().code == 0
    expected = {name: pattern(size, number) for number, name in enumerate((b"all/x", b"all/x_1", b"all/x_2"))}
    assert files_of(site.dest) == expected
    # Another start finds each of them where it is, and makes no more.
    running = site.watch("-c", file)
    make_tree(site.source, {"d/y": b"y"})
    running.wait_for_file("d/y", "done")
    running.end()
    assert files_of(site.dest) == expected | {b"all/y": b"y"}


# --- recordings, and what was interrupted -----------------------------------------------------------------------------


def test_a_recording_goes_where_its_last_version_belongs(site: Site) -> None:
    """While it is written, its partial lies where it would go now; in the end its time says where it goes."""
    routes = 'destination: {routes: [{match: "*.mov", to: "{mtime:%Y-%m-%d}/{name}"}]}\ngrowing: {min_size: 1MiB}\n'
    running = site.watch("-c", configured(site, routes))
    content = pattern(BLOCK_SIZE + 1_500_000)
    with (site.root / "take.mov").open("wb") as file:
        file.write(content[: BLOCK_SIZE + 1])
        file.flush()
        os.utime(file.fileno(), ns=(VERSION.mtime_ns, VERSION.mtime_ns))
        (site.root / "take.mov").rename(site.source / "take.mov")
        running.wait_for(lambda line: line.get("state") == "copying" and line["growing"])
        wait_until(
            lambda: [path for path in site.dest.glob("2026-05-01/*.trioft-partial") if path.stat().st_size > BLOCK_SIZE]
        )
        file.write(content[BLOCK_SIZE + 1 :])
        file.flush()
        day_later = VERSION.mtime_ns + 86400 * 10**9
        os.utime(file.fileno(), ns=(day_later, day_later))
    line = running.wait_for_file("take.mov", "done")
    assert running.end().code == 0
    assert line["dest"] == "2026-05-02/take.mov"
    assert files_of(site.dest) == {b"2026-05-02/take.mov": content}
    assert (site.dest / "2026-05-02/take.mov").stat().st_mtime_ns == day_later


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_transfer_goes_on_where_new_rules_send_it(site: Site, number: int) -> None:
    """What was copied of a file under one rule is not copied again under another."""
    make_tree(site.source, {"in/x.mov": 3 * BLOCK_SIZE})
    config = 'destination: {{routes: [{{match: "*.mov", to: "{}/{{name}}"}}]}}\ncopy: {{checkpoint_size: 8MiB}}\n'
    running = site.start("sync", "-c", configured(site, config.format("one")), "--bwlimit", "16MiB/s")
    wait_until(lambda: any(path.stat().st_size > 2 * BLOCK_SIZE for path in site.dest.rglob("*.mov.*.trioft-partial")))
    running.end(number)
    (partial,) = files_of(site.dest)
    assert partial.startswith(b"one/x.mov.")
    done = site.sync("-c", configured(site, config.format("two")))
    assert (done.code, done.summary["bytes_resumed"] >= BLOCK_SIZE) == (0, True)
    assert files_of(site.dest) == {b"two/x.mov": (site.source / "in/x.mov").read_bytes()}
