"""`trioft clean`: what is left at a destination, whose it is, and what is removed of it."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from typing import Any

import pytest

from support import Done, Site, files_of, make_tree, wait_until
from synced import LARGE, old, partials_of
from trioft.core.naming import partial_of
from trioft.state.ledger import Ledger

FOREIGN = os.fsdecode(partial_of(b"x/theirs.mxf", 1, 2, ledger=b"another"))
FORMER = "movie.mkv.1a2b3c4d.partial"
ASIDE = "x/.trioft-replaced-0123456789abcdef-a.mov"
PROBE = ".trioft-probe-1-2"


@pytest.fixture
def left(site: Site) -> Site:
    """A destination with a file, and what trioft, or another program, has left beside it."""
    make_tree(site.source, {"a": b"1"})
    assert site.sync().code == 0
    make_tree(site.dest, {FOREIGN: b"12", FORMER: b"123", ASIDE: b"1234", PROBE: b"trioft", "x/mine": b"a user's"})
    make_tree(site.dest, {".trioft-doctor-7/x": b"?"})
    for name in (FOREIGN, FORMER, ASIDE, PROBE, "x/mine"):
        old(site.dest / name, 10)
    return site


def clean(site: Site, *options: str) -> Done:
    return site.run("clean", site.dest, *options, "--state-dir", site.state)


def found(done: Done) -> dict[str, dict[str, Any]]:
    return {line["path"]: line for line in done.lines if line["event"] == "leftover"}


def test_what_is_left_is_listed_and_nothing_is_removed(left: Site) -> None:
    """With size, age and whose it is; the user's own files are not among it."""
    before = files_of(left.dest)
    done = clean(left, "--json")
    assert done.code == 0
    lines = found(done)
    kinds = {FOREIGN: "partial", FORMER: "former", ASIDE: "aside", PROBE: "other", ".trioft-doctor-7": "other"}
    assert {path: line["kind"] for path, line in lines.items()} == kinds
    assert lines[FOREIGN]["size"] == 2
    assert 9 * 86400 < lines[FOREIGN]["age"] < 11 * 86400
    assert "another program" in lines[FORMER]["whose"]
    assert "a.mov was before" in lines[ASIDE]["whose"] or "a file was before" in lines[ASIDE]["whose"]
    assert (done.summary["found"], done.summary["removed"]) == (5, 0)
    text = clean(left)
    assert all(name in text.out for name in kinds)
    assert "mine" not in text.out
    assert "nothing is removed without --remove" in text.err
    assert files_of(left.dest) == before


def test_what_is_old_is_removed_but_for_what_may_be_somebody_elses(left: Site) -> None:
    """Other programs' files, and former versions of files, go by name only."""
    done = clean(left, "--older-than", "7d", "--remove", "--json")
    assert (done.code, done.summary["removed"]) == (0, 2)
    assert set(files_of(left.dest)) == {b"a", b"x/mine", FORMER.encode(), ASIDE.encode(), b".trioft-doctor-7/x"}
    done = clean(left, FORMER, str(left.dest / ASIDE), ".trioft-doctor-*", "--remove", "--json")
    assert (done.code, done.summary["removed"]) == (0, 3)
    assert set(files_of(left.dest)) == {b"a", b"x/mine"}
    assert clean(left).err.strip() == "trioft has left nothing there"


def test_a_name_that_is_none_of_these_removes_nothing(left: Site) -> None:
    """A user's file is never removed, whatever is asked for."""
    before = files_of(left.dest)
    for options in (["x/mine", "--remove"], ["--remove"], ["--older-than", "soon"], ["../a", FOREIGN, "--remove"]):
        done = clean(left, *options)
        assert done.code == 2, done.err
        assert "hint" in done.err or "--older-than" in done.err
    assert files_of(left.dest) == before


def test_what_a_living_trioft_works_with_stays(site: Site) -> None:
    """Its partial and its claim are told to be in use, whoever asks; once it has been killed, they may go."""
    make_tree(site.source, {"take.mxf": LARGE})
    agent = site.start("sync", "--bwlimit", "512KiB/s")
    wait_until(lambda: any(path.stat().st_size for path in partials_of(site.dest)))
    for state in (site.state, site.root / "other state"):
        done = site.run("clean", site.dest, "*", "--remove", "--state-dir", state, "--json")
        assert (done.code, done.summary["found"], done.summary["removed"]) == (1, 2, 0)
        assert all(line["in_use"] for line in found(done).values())
        assert done.err.count("it is in use, and stays") == 2
    agent.end(signal.SIGKILL)
    done = clean(site, "*", "--remove", "--json")
    assert (done.code, done.summary["removed"]) == (0, 2)
    assert files_of(site.dest) == {}
    assert site.sync().code == 0


def test_a_partial_that_is_on_record_says_what_it_belongs_to(site: Site) -> None:
    """Before somebody removes it, it is told which file it is of."""
    make_tree(site.source, {"take.mxf": LARGE})
    agent = site.start("sync", "--bwlimit", "16MiB/s")
    wait_until(lambda: any(path.stat().st_size > LARGE // 3 + 1 for path in partials_of(site.dest)))
    assert agent.end(signal.SIGINT).code == 130
    (path,) = site.state.glob("*.sqlite")
    with closing(Ledger(str(path))) as ledger:
        assert ledger.checkpoint_of(b"take.mxf") is not None
    (line,) = found(clean(site, "--json")).values()
    assert line["whose"] == f"of {site.source}, where take.mxf goes on"
    assert not line["in_use"]


def test_a_destination_that_is_not_there_is_refused(site: Site) -> None:
    """With exit code 3, and no folder is made."""
    done = site.run("clean", site.root / "none", "--state-dir", site.state)
    assert done.code == 3
    assert "cannot be used" in done.err
