"""``trioft explain``: all about one file, and the answer to the question whether its source may be removed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from pasts import ask_ledger, filled, ledgers_of, line
from support import ROOT, Site, make_tree, run_without_privilege, wait_until
from trioft.cli.facts import Explanation, Now, decide, find, why_not_remove
from trioft.config.kinds import OnSuccess
from trioft.config.options import Config, Copy, Growing, Source
from trioft.core import answers
from trioft.core.answers import Look, Seen
from trioft.core.errors import ConfigError
from trioft.core.model import BLOCK_SIZE, Fingerprint, Found
from trioft.state.findings import Finding
from trioft.state.ledger import Known
from trioft.state.proofs import Proof
from trioft.state.reader import Recorded

README = (ROOT / "README.md").read_text("utf-8")
TIME = "2026-01-01T00:00:00.000Z"


def explained(site: Site, path: str | Path, *options: str | Path) -> dict[str, Any]:
    """Return what is told about a file, as JSON."""
    done = site.run("explain", path, site.source, site.dest, "--state-dir", site.state, "--json", *options)
    assert (done.code, done.err) == (0, "")
    (told,) = done.lines
    return told


def text_of(site: Site, path: str | Path) -> list[str]:
    """Return the lines for people."""
    done = site.run("explain", path, site.source, site.dest, "--state-dir", site.state)
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


# --- may the source be removed? ---------------------------------------------------------------------------------------

FINGERPRINT = Fingerprint(1, 2, 1000, 3 * 10**9, 4 * 10**9)
KNOWN = Known("delivered", "", 1000, 3 * 10**9, 4 * 10**9)
RECORDED = Recorded(b"a", b"a", b"d" * 16, "proved", KNOWN)
LOOK = Look(b"a", "file", Found(b"a", 0o644, FINGERPRINT), answers.CLOSED)
NOW = Now(source=LOOK, there=Seen(1000, 3 * 10**9))
WELL = Explanation(
    path=b"a",
    source=b"/s",
    destination=b"/d",
    decision=decide(Config(), b"a", b"/s"),
    recorded=RECORDED,
    checkpoint=None,
    finding=None,
    history=[],
    now=NOW,
    proof=Proof("readback", 7),
    resolution_ns=1,
)


def _recorded(**changes: Any) -> Explanation:
    return attrs.evolve(WELL, recorded=RECORDED._replace(**changes))


def _known(**changes: Any) -> Explanation:
    return _recorded(known=KNOWN._replace(**changes))


def _now(**changes: Any) -> Explanation:
    return attrs.evolve(WELL, now=attrs.evolve(NOW, **changes))


def _found(**changes: Any) -> Explanation:
    return _now(source=LOOK._replace(found=Found(b"a", 0o644, FINGERPRINT._replace(**changes))))


def _finding(verdict: str, digest: bytes = b"d" * 16, after: int | None = 7) -> Explanation:
    return attrs.evolve(WELL, finding=Finding(b"a", digest, TIME, verdict, 1000, "", after))


@pytest.mark.parametrize(
    "x",
    [
        WELL,
        _known(outcome="already"),
        _finding("verified"),
        _finding("mismatch", b"e" * 16),
        _finding("mismatch", after=6),
        attrs.evolve(WELL, proof=Proof("compared", 7)),
        attrs.evolve(_finding("verified"), proof=Proof()),
    ],
    ids=["well", "already", "verified", "another version", "delivered once more", "compared", "read since"],
)
def test_a_source_may_go_when_nothing_speaks_against_it(x: Explanation) -> None:
    """Delivered, unchanged, closed, and still there; what was found of an earlier version does not count."""
    assert why_not_remove(x) is None


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (attrs.evolve(WELL, recorded=None), "it is not on record that it was delivered"),
        (_known(outcome="failed"), "it was not delivered: it has failed"),
        (_known(outcome="skipped"), "it was not delivered: it was skipped"),
        (_now(source=None, source_error="it hangs"), "the source cannot be looked at: it hangs"),
        (_now(source=Look(b"a", "gone")), "it is gone already"),
        (_now(source=Look(b"a", "folder")), "what is there now is no regular file"),
        (_found(size=1001), "it has changed since"),
        (_found(mtime_ns=5), "it has changed since"),
        (_found(ctime_ns=5), "something about it has changed since"),
        (_recorded(digest=None), "its content was never compared"),
        (_now(source=LOOK._replace(writer=answers.BUSY)), "somebody has it open for writing"),
        (_now(source=LOOK._replace(writer=answers.UNKNOWN)), "nobody can prove that it is not being written"),
        (_now(there=None, destination_error="it hangs"), "the destination cannot be looked at: it hangs"),
        (_now(there=Seen(None)), "there is no a at the destination any more"),
        (_now(there=Seen(999, 3 * 10**9)), "a has another size or time than what was delivered"),
        (_now(there=Seen(1000, 9 * 10**9)), "a has another size or time than what was delivered"),
        (_finding("mismatch"), "`trioft verify` has found it to be mismatch"),
        (_now(there=Seen(1000, 3 * 10**9 + 1)), "a has another size or time than what was delivered"),
        (_now(there=Seen(1000, 3 * 10**9, file=(1, 2))), "a at the destination is the source itself"),
        (_now(other_volume=True), "another volume was mounted there when it was delivered"),
        (_finding("unreadable"), "`trioft verify` has found it to be unreadable"),
        (_finding("mismatch", after=None), "`trioft verify` has found it to be mismatch"),
        (
            attrs.evolve(WELL, proof=Proof("transfer", 7)),
            "its copy was not read back: it was verified by transfer only",
        ),
        (attrs.evolve(WELL, proof=Proof("edges", 7)), "not all of it was compared"),
        (attrs.evolve(WELL, proof=Proof()), "it is not on record any more how its copy was verified"),
        (attrs.evolve(WELL, resolution_ns=2 * 10**9), "the destination keeps times in steps of 2 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_doubt_keeps_the_source(x: Explanation, reason: str) -> None:
    """One is enough, and it is said which."""
    assert reason in str(why_not_remove(x))


def test_the_answer_is_the_last_line(site: Site) -> None:
    """For somebody with a full card in his hand, who reads no more than that."""
    make_tree(site.source, {"a": 1000})
    assert site.sync().code == 0
    assert text_of(site, "a")[-1].startswith("May the source be removed? Yes: it is what was delivered, durable")
    with open(site.source / "a", "r+b"):
        assert text_of(site, "a")[-1] == "May the source be removed? No: somebody has it open for writing."
    (site.dest / "a").unlink()
    assert text_of(site, "a")[-1] == "May the source be removed? No: there is no a at the destination any more."
    (site.source / "a").unlink()
    assert text_of(site, "a")[-1] == "May the source be removed? No: it is gone already."


def test_what_verify_has_found_is_told(site: Site) -> None:
    """A copy with the right size and time, and a wrong byte, is no copy."""
    make_tree(site.source, {"a": b"right"})
    assert site.sync().code == 0
    status = (site.dest / "a").stat()
    (site.dest / "a").write_bytes(b"wrong")
    os.utime(site.dest / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert explained(site, "a")["removable"]
    assert site.run("verify", site.source, site.dest, "--state-dir", site.state).code == 1
    told = explained(site, "a")
    assert (told["removable"], told["verified"]["verdict"]) == (False, "mismatch")
    assert "`trioft verify` has found it to be mismatch" in told["why_not"]


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_file_is_explained_with_all_that_is_known(site: Site) -> None:
    """What is there, what is configured, what is on record, what happened; and every field is documented."""
    make_tree(site.source, {"day/take.mov": 3_000_000})
    assert site.sync("--on-success", f"archive:{site.root}/done").code == 0
    told = explained(site, "day/take.mov")
    assert (told["path"], told["dest"]) == ("day/take.mov", "day/take.mov")
    assert (told["removable"], told["why_not"]) == (False, "it is gone already: trioft has removed it")
    assert told["recorded"]["removal"] == "removed"
    assert [line["event"] for line in told["history"]] == ["copying", "delivered", "removed"]
    assert told["now"]["source"]["kind"] == "gone"
    assert told["now"]["destination"]["size"] == 3_000_000
    for field in {*told, *told["decision"], *told["recorded"], *told["now"], *told["now"]["source"]}:
        assert f"`{field}`" in README, field
    lines = text_of(site, "day/take.mov")
    assert "  source:        it is not there" in lines
    assert f"  digest:        {told['recorded']['digest']}" in lines
    assert any(f"removed    moved below {site.root}/done, after its copy was durable" in line for line in lines)


def test_a_file_on_its_way_tells_how_far_it_is(site: Site) -> None:
    """Where it can be continued, in a running agent too, and by the name of its partial."""
    make_tree(site.source, {"big": 6 * BLOCK_SIZE})
    (site.root / "c.yaml").write_text("copy: {checkpoint_size: 8MiB, checkpoint_time: 1ms, bwlimit: 8MiB/s}\n")
    running = site.start("sync", "-c", site.root / "c.yaml")
    (ledger,) = ledgers_of(site, 1)
    wait_until(lambda: ask_ledger(ledger, "SELECT offset > 0 FROM checkpoint") == [(1,)])
    (partial,) = site.dest.glob("*.trioft-partial")
    told = explained(site, partial.name)
    running.end(signal.SIGKILL)
    assert (told["path"], told["checkpoint"]["partial"]) == ("big", partial.name)
    assert 0 < told["checkpoint"]["offset"] < told["checkpoint"]["size"] == 6 * BLOCK_SIZE
    assert told["now"]["partial"]["size"] >= told["checkpoint"]["offset"]
    assert (told["removable"], told["why_not"]) == (False, "it is not on record that it was delivered")
    assert any(" % durable and verified: " in line for line in text_of(site, "big"))


@pytest.mark.parametrize(
    ("path", "config", "why_not"),
    [
        (b"a.mov", Config(), None),
        (b"tmp/a.mov", Config(source=Source(exclude=("*.log", "tmp"))), "excluded by 'tmp'"),
        (b"a.txt", Config(source=Source(include=("*.mov", "x"))), "included are only '*.mov', 'x'"),
        (b"a.0123abcd.partial", Config(), None),
        (b"a.trioft-partial", Config(), "trioft keeps names like this for itself"),
        (
            b"done/a",
            Config(copy=Copy(on_success=OnSuccess(action="archive", folder="/s/done"))),
            "it is in the archive",
        ),
    ],
    ids=["wanted", "excluded", "not included", "former partial", "partial", "archive"],
)
def test_the_configuration_says_what_is_transferred(path: bytes, config: Config, why_not: str | None) -> None:
    """And by which pattern it is left out."""
    decision = decide(config, path, b"/s")
    assert (decision.why_not or "").startswith(why_not or "")
    assert (decision.why_not is None) == (why_not is None)


@pytest.mark.parametrize(
    ("growing", "words"),
    [
        (Growing(), "is followed, from 16MiB on"),
        (Growing(mode="wait"), "waits until it is closed (growing.mode: wait)"),
        (Growing(exclude=("*.mov",)), "waits until it is closed (growing.include, growing.exclude)"),
    ],
    ids=["follow", "wait", "excluded"],
)
def test_the_configuration_says_what_happens_while_it_is_written(growing: Growing, words: str) -> None:
    """Followed, or not, and why not."""
    assert decide(Config(growing=growing), b"a.mov", b"/s").growing == words


# --- which file -------------------------------------------------------------------------------------------------------


def test_a_file_is_found_by_every_name_it_has(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, below the source, from here, by way of a link, by its copy's name; the pair by itself."""
    make_tree(site.source, {"day/take.mov": b"1"})
    agent = site.watch()
    agent.wait_for_file("day/take.mov", "done")
    (site.source / "day/take.mov").write_bytes(b"22")
    agent.wait_for(lambda line: line.get("dest") == "day/take_1.mov" and line["state"] == "done")
    agent.end()
    (site.root / "link").symlink_to(site.source)
    monkeypatch.chdir(site.source / "day")
    names: list[str | Path] = [
        site.source / "day/take.mov",
        "day/take.mov",
        "./take.mov",
        site.root / "link/day/take.mov",
        site.dest / "day/take_1.mov",
        "day/take_1.mov",
        site.dest / "day/take.mov",  # an earlier version's
    ]
    (ledger,) = site.state.glob("*.sqlite")
    for name in names:
        assert find(Config(), str(site.state), str(name)) == (str(ledger), b"day/take.mov"), name
    done = site.run("explain", "take.mov", "--state-dir", site.state, "--json")
    assert (done.lines[0]["path"], done.lines[0]["dest"]) == ("day/take.mov", "day/take_1.mov")


def test_among_several_pairs_the_one_that_knows_it_is_found(site: Site) -> None:
    """If several do, or none, they have to be named."""
    filled(site, [line("delivered", b"a"), line("delivered", b"both")])
    filled(site, [line("delivered", b"b"), line("delivered", b"both")], at="-b")
    done = site.run("explain", "b", "--state-dir", site.state, "--json")
    assert done.lines[0]["source"] == f"{site.source}-b"
    for name, text in (("both", "2 pairs know both"), ("nothing", "no pair knows nothing")):
        done = site.run("explain", name, "--state-dir", site.state)
        assert (done.code, done.out) == (2, "")
        assert f"trioft: error: {text}\nhint: name SOURCE and DEST too\n" == done.err


def test_one_file_as_the_source_is_explained(site: Site) -> None:
    """Its folder is where it is looked at."""
    make_tree(site.source, {"one": b"1", "other": b"2"})
    one = site.source / "one"
    assert site.run("sync", one, site.dest, "--state-dir", site.state, "--settle", "0s").code == 0
    for name in ("one", one):
        done = site.run("explain", name, one, site.dest, "--state-dir", site.state, "--json")
        assert (done.lines[0]["path"], done.lines[0]["removable"]) == ("one", True)


def test_a_file_that_nobody_knows_is_explained_too(site: Site) -> None:
    """What is not on record may still be in the source, and left out for a reason; elsewhere is nothing to explain."""
    make_tree(site.source, {"a": b"1", "b.tmp": b"1"})
    (site.root / "c.yaml").write_text("source: {exclude: ['*.tmp']}\n")
    assert site.sync("-c", site.root / "c.yaml").code == 0
    told = explained(site, site.source / "b.tmp", "-c", site.root / "c.yaml")
    assert (told["decision"]["why_not"], told["now"]["source"]["size"]) == ("excluded by '*.tmp'", 1)
    assert (told["recorded"], told["history"], told["removable"]) == (None, [], False)
    with pytest.raises(ConfigError, match="is neither below"):
        find(Config(), str(site.state), "../x")
    done = site.run("explain", "/etc/passwd", site.source, site.dest, "--state-dir", site.state)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"trioft: error: /etc/passwd is neither below {site.source} nor below {site.dest}\n"


def _away(site: Site) -> None:
    shutil.rmtree(site.dest)


def _shut(site: Site) -> None:
    (site.dest / "day").chmod(0)


@pytest.mark.parametrize(
    ("change", "words"), [(_away, "the destination cannot be looked at: "), (_shut, "its copy cannot be looked at: ")]
)
def test_an_end_that_cannot_be_looked_at_keeps_the_source(
    site: Site, change: Callable[[Site], None], words: str
) -> None:
    """All the rest is told nevertheless."""
    make_tree(site.source, {"day/a": b"1"})
    assert site.sync().code == 0
    change(site)
    done = run_without_privilege("explain", "day/a", site.source, site.dest, "--state-dir", site.state)
    assert done.code == 0
    assert "delivered as day/a" in done.out
    assert f"May the source be removed? Unknown: {words}" in done.out
    if site.dest.exists():
        (site.dest / "day").chmod(0o755)


def test_a_folder_is_explained_as_what_is_in_it(site: Site) -> None:
    """One file that was not delivered keeps the folder; the source itself is a folder too."""
    make_tree(site.source, {"day/a": b"1", "day/b": b"2", "night/c": b"3"})
    assert site.sync("--exclude", "b").code == 0
    told = explained(site, site.source / "day")
    assert (told["kind"], told["removable"], told["files"]) == ("folder", False, 2)
    assert told["why_not"] == "1 files: it is not on record that it was delivered"
    assert explained(site, site.source / "night")["removable"]
    assert not explained(site, site.source)["removable"]
    assert "  no: 1 of 2 files: it is not on record that it was delivered (day/b)" in text_of(site, "day")


def test_what_was_moved_to_the_archive_is_explained_there(site: Site) -> None:
    """It is the file that was delivered, under the name that it had then; what it holds, only reading it tells."""
    make_tree(site.source, {"day/take.mov": b"1"})
    archive = site.root / "done"
    assert site.sync("--on-success", f"archive:{archive}").code == 0
    told = explained(site, archive / "day/take.mov")
    assert (told["path"], told["recorded"]["removal"]) == ("day/take.mov", "removed")
    assert told["now"]["source"]["size"] == 1
    assert told["safe"] == "unknown"
    assert "only reading it tells what it holds" in told["why_not"]
