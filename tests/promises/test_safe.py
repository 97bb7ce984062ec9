"""Promise 9: what trioft says of safety is looked at now, from one definition; what it cannot know is "unknown"."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import time
import urllib.request
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from support import Done, Site, make_tree, run_without_privilege, unnoticed, wait_until
from trioft.cli.safe import areas_of
from trioft.config.options import Config
from trioft.core.model import BLOCK_SIZE
from trioft.movers.pool import Movers
from trioft.pipeline.inquiry import Area, Inquiry
from trioft.pipeline.safety import Answer
from trioft.state.reader import Records

CODES = {"yes": 0, "no": 1, "unknown": 4}
LARGE = 9 * BLOCK_SIZE + 1  # more than one span


def ask(site: Site, path: str | Path, *options: str | Path) -> dict[str, Any]:
    """Return what ``trioft safe`` says of one path, as JSON; its exit code says the same."""
    done = site.run("safe", path, "--state-dir", site.state, "--json", *options)
    (told,) = done.lines
    assert (done.code, done.err) == (CODES[told["safe"]], "")
    return told


def kinds(told: dict[str, Any]) -> dict[str, int]:
    """Return the reasons, each with how many files it is true of."""
    return {reason["kind"]: reason["files"] for reason in told["reasons"]}


def test_what_was_delivered_and_is_there_is_safe(site: Site) -> None:
    """The whole source, a folder, a file, by a link; small, large and empty files, with odd names too."""
    make_tree(site.source, {"day/small": 1000, "day/large": LARGE, "empty": b"", b"odd\xff": 5})
    assert site.sync().code == 0
    (site.root / "link").symlink_to(site.source)
    for path in (site.source, site.source / "day", site.source / "day/large", "day/small", site.root / "link/day"):
        for read in ((), ("--read",)):
            told = ask(site, path, *read)
            assert (told["safe"], told["reasons"], told["read"]) == ("yes", [], bool(read)), path
    told = ask(site, site.source)
    assert (told["files"], told["bytes"]) == (4, LARGE + 1005)
    assert [(part["path"], part["safe"], part["files"]) for part in told["folders"]] == [("day", "yes", 2)]
    done = site.run("safe", site.source, "--state-dir", site.state)
    assert done.code == 0
    assert "yes: each of 4 files" in done.out
    assert "(--read reads it again)" in done.out


@pytest.mark.parametrize(
    ("change", "kind", "answer"),
    [
        ("edit the source", "changed", "no"),
        ("edit the source, set its time back", "touched", "no"),
        ("add a file", "not_on_record", "no"),
        ("open the source", "written", "no"),
        ("remove the copy", "copy_gone", "no"),
        ("cut the copy", "copy_changed", "no"),
        ("another file of this size", "copy_changed", "no"),
        ("link the copy to the source", "touched", "no"),
        ("a folder that leads to the source", "copy_is_source", "no"),
        ("take the destination away", "away", "unknown"),
    ],
)
def test_each_doubt_is_told(site: Site, change: str, kind: str, answer: str) -> None:
    """One file is enough; how many, and which, is said. Reading the copies makes no doubt smaller."""
    make_tree(site.source, {"day/a": b"right", "day/b": b"other"})
    assert site.sync().code == 0
    source, copy = site.source / "day/a", site.dest / "day/a"
    with contextlib.ExitStack() as held:
        if change == "edit the source":
            source.write_bytes(b"another")
        elif change == "edit the source, set its time back":
            with unnoticed(source):
                source.write_bytes(b"wrong")
        elif change == "add a file":
            make_tree(site.source, {"day/c": b"new"})
        elif change == "open the source":
            held.enter_context(open(source, "r+b"))
        elif change == "remove the copy":
            copy.unlink()
        elif change == "cut the copy":
            with unnoticed(copy):
                copy.write_bytes(b"")
        elif change == "another file of this size":
            mtime = copy.stat().st_mtime_ns + 1_000_000
            copy.write_bytes(b"wrong")
            os.utime(copy, ns=(mtime, mtime))
        elif change == "link the copy to the source":
            copy.unlink()
            copy.hardlink_to(source)
        elif change == "a folder that leads to the source":
            shutil.rmtree(site.dest / "day")
            (site.dest / "day").symlink_to(site.source / "day")
        else:
            site.dest.rename(site.root / "elsewhere")
        told = ask(site, site.source / "day")
        assert (told["safe"], kind in kinds(told)) == (answer, True), told
        told = ask(site, site.source / "day", "--read")
        assert told["safe"] == answer


def test_only_reading_tells_that_a_copy_was_changed_and_got_its_time_back(site: Site) -> None:
    """Without --read it is said what was looked at; with it, which file is wrong."""
    make_tree(site.source, {"a": b"right", "large": LARGE})
    assert site.sync().code == 0
    for name in ("a", "large"):
        with unnoticed(site.dest / name), open(site.dest / name, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"X")
    assert ask(site, site.source)["safe"] == "yes"
    assert kinds(ask(site, site.source, "--read")) == {"copy_differs": 2}


@pytest.mark.parametrize("level", ["size", "transfer"])
def test_a_level_that_reads_nothing_back_is_not_enough(site: Site, level: str) -> None:
    """Until everything is read: at level size, where no digest is on record, the source too."""
    make_tree(site.source, {"a": b"right", "large": LARGE})
    assert site.sync("--verify", level).code == 0
    assert kinds(ask(site, site.source)) == {"not_compared" if level == "size" else "not_read_back": 2}
    assert ask(site, site.source, "--read")["safe"] == "yes"
    with unnoticed(site.dest / "a"):
        (site.dest / "a").write_bytes(b"wrong")
    assert kinds(ask(site, site.source, "--read")) == {"copy_differs": 1}


def test_what_filters_leave_out_is_not_copied(site: Site) -> None:
    """Also a name that trioft gives a meaning of its own; links are said to be there, and no more."""
    make_tree(site.source, {"a.mov": 10, "a.tmp": 10, "b.trioft-partial": 10})
    (site.source / "link").symlink_to("a.mov")
    os.mkfifo(site.source / "pipe")
    assert site.sync("--include", "*.mov").code == 0
    told = ask(site, site.source)
    assert (told["safe"], kinds(told)) == ("no", {"not_on_record": 2})
    assert {entry["kind"]: entry["examples"] for entry in told["not_copied"]} == {
        "symbolic link": ["link"],
        "named pipe": ["pipe"],
    }


def test_where_history_is_gone_the_ledger_does_not_say_how_it_was_verified(site: Site) -> None:
    """Then nobody knows, until it is read: by --read, or by `trioft verify`."""
    make_tree(site.source, {"a": b"1"})
    assert site.sync().code == 0
    (ledger,) = site.state.glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(ledger)) as db, db:
        db.execute("DELETE FROM history")
    assert kinds(ask(site, site.source)) == {"no_proof": 1}
    assert ask(site, site.source, "--read")["safe"] == "yes"
    assert site.run("verify", site.source, site.dest, "--state-dir", site.state).code == 0
    assert ask(site, site.source)["safe"] == "yes"


def test_an_archive_is_asked_about_where_it_lies(site: Site) -> None:
    """Its files are those that were delivered; what they hold by now, only reading them tells."""
    make_tree(site.source, {"day/a": b"1", "b": LARGE})
    archive = site.root / "done"
    assert site.sync("--on-success", f"archive:{archive}").code == 0
    assert kinds(ask(site, archive)) == {"archived": 2}
    assert ask(site, archive, "--read")["safe"] == "yes"
    assert ask(site, archive / "day/a", "--read")["safe"] == "yes"
    with unnoticed(archive / "day/a"):
        (archive / "day/a").write_bytes(b"2")
    told = ask(site, archive, "--read")
    assert (told["safe"], kinds(told)) == ("no", {"changed": 1})
    assert told["reasons"][0]["text"] == "it does not hold what was delivered"
    assert kinds(ask(site, site.source)) == {"nothing": 0}


def test_what_nothing_is_on_record_of_is_not_safe(site: Site) -> None:
    """Whether there is a ledger or not; a source that is gone neither."""
    assert kinds(ask(site, "/etc/passwd")) == {"not_on_record": 1}
    make_tree(site.source, {"a": b"1"})
    assert site.sync().code == 0
    assert kinds(ask(site, "/etc/passwd")) == {"not_on_record": 1}
    assert kinds(ask(site, site.source / "nothing")) == {"gone": 1}


def test_what_cannot_be_looked_at_is_unknown(site: Site) -> None:
    """A folder of the source that is not ours to read, a copy that is not."""
    make_tree(site.source, {"day/a": b"1", "b": b"2"})
    assert site.sync().code == 0
    for folder in (site.source / "day", site.dest / "day"):
        folder.chmod(0)
        done = run_without_privilege("safe", site.source, "--state-dir", site.state, "--json")
        folder.chmod(0o755)
        assert (done.code, done.lines[0]["safe"]) == (4, "unknown"), done.lines


def test_one_file_as_the_source_is_asked_about(site: Site) -> None:
    """By its name; its neighbours are no part of it."""
    make_tree(site.source, {"one": b"1", "other": b"2"})
    one = site.source / "one"
    assert site.run("sync", one, site.dest, "--state-dir", site.state, "--settle", "0s").code == 0
    told = ask(site, one)
    assert (told["safe"], told["files"]) == ("yes", 1)


def test_each_destination_has_to_have_it(site: Site) -> None:
    """Where a source is copied to two, one answer of no is enough."""
    make_tree(site.source, {"a": b"1"})
    other = site.root / "other"
    other.mkdir()
    for dest in (site.dest, other):
        assert site.run("sync", site.source, dest, "--state-dir", site.state, "--settle", "0s").code == 0
    (other / "a").unlink()
    done: Done = site.run("safe", site.source, "--state-dir", site.state, "--json")
    assert (done.code, sorted(told["safe"] for told in done.lines)) == (1, ["no", "yes"])


# --- any history ------------------------------------------------------------------------------------------------------

FILES, ROUNDS = 150, 6


class Past:
    """Random histories of many files at a time, with what is true of each."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site, self.random, self.seed = site, random.Random(seed), seed
        self.sneaky: set[str] = set()  # copies that were changed, and got their times back
        self.ledgers: list[Path] = []

    def name(self, number: int) -> str:
        return f"d{number % 7}/f{number}"

    def content(self, size: int | None = None) -> bytes:
        return self.random.randbytes(size if size is not None else self.random.choice([0, 1, 5, 9, 1000]))

    def happen(self, name: str) -> None:
        """Let something happen to a file, at either end."""
        source, copy = self.site.source / name, self.site.dest / name
        there = source.exists() and source.is_file()
        copied = copy.is_file() and not copy.is_symlink()
        match self.random.randrange(14):
            case 0 | 1:
                source.parent.mkdir(parents=True, exist_ok=True)
                source.write_bytes(self.content())
            case 2 if there:
                with unnoticed(source):
                    source.write_bytes(self.content(source.stat().st_size))
            case 3 if there:
                os.utime(source)
            case 4 if there:
                source.unlink()
            case 5 if copied:
                copy.unlink()
            case 6 if copied:
                with unnoticed(copy):
                    copy.write_bytes(self.content(copy.stat().st_size))
                self.sneaky.add(name)
            case 7 if copied:
                later = copy.stat().st_mtime_ns + self.random.choice([1, 1_000_000, 1_900_000_000])
                copy.write_bytes(self.content(copy.stat().st_size))
                os.utime(copy, ns=(later, later))
            case 8 if copied and there:
                copy.unlink()
                self.random.choice([copy.hardlink_to, copy.symlink_to])(source)
            case 9 if copied:
                other = self.site.dest / self.name(self.random.randrange(FILES))
                if other.is_file() and other != copy:
                    copy.replace(other)
                    self.sneaky.add(str(other.relative_to(self.site.dest)))
            case 10 if there:
                source.chmod(self.random.choice([0o600, 0o644]))
            case _:
                pass

    def go_on(self) -> None:
        """Have trioft work, in some way; now and then on a ledger of an earlier time."""
        options = ["--verify", self.random.choice(["readback", "readback", "transfer", "size"])]
        options += ["--if-exists", self.random.choice(["overwrite", "rename"])]
        if self.random.random() < 0.3:
            options += ["--exclude", f"*{self.random.randrange(10)}"]
        assert self.site.sync(*options).code in (0, 1, 4)
        (ledger,) = self.site.state.glob("*.sqlite")
        if self.ledgers and self.random.random() < 0.4:
            shutil.copyfile(self.random.choice(self.ledgers), ledger)
        else:
            self.ledgers.append(self.site.root / f"ledger-{len(self.ledgers)}")
            shutil.copyfile(ledger, self.ledgers[-1])

    def answers(self, *, read: bool) -> dict[str, Answer]:
        """Return what is said of each file."""
        (ledger,) = self.site.state.glob("*.sqlite")
        names = [self.name(number) for number in range(FILES)]

        async def ask_all() -> dict[str, Answer]:
            answers = {}
            with contextlib.closing(Records(str(ledger))) as records:
                async with Movers(1, 30) as movers:
                    for name in names:
                        inquiry = Inquiry(config=Config(), records=records, call=movers.call, read=read)
                        answers[name] = (await inquiry.run(Area(name.encode()))).answer
            return answers

        return trio.run(ask_all)

    def is_safe(self, name: str) -> bool:
        """Is there anywhere at the destination a file of its own with this content?"""
        source = self.site.source / name
        if not source.is_file():
            return False
        content, file = source.read_bytes(), (source.stat().st_dev, source.stat().st_ino)
        folder = (self.site.dest / name).parent
        copies = [path for path in folder.glob(f"{Path(name).name}*") if path.is_file() and not path.is_symlink()]
        return any(path.read_bytes() == content and (path.stat().st_dev, path.stat().st_ino) != file for path in copies)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_has_happened_it_never_says_yes_wrongly(site: Site, seed: int) -> None:
    """Edited, set back, removed at either end, filtered, delivered again, ledgers restored: a few hundred histories."""
    past = Past(site, seed)
    for number in range(FILES):
        make_tree(site.source, {past.name(number): past.content()})
    said = {Answer.YES: 0, Answer.NO: 0, Answer.UNKNOWN: 0}
    for _ in range(ROUNDS):
        past.go_on()
        for number in range(FILES):
            if past.random.random() < 0.4:
                past.happen(past.name(number))
        for read in (True, False):
            for name, answer in past.answers(read=read).items():
                said[answer] += 1
                # Without --read a copy that got its time back cannot be told from what was delivered.
                if answer == Answer.YES and (read or name not in past.sneaky):
                    assert past.is_safe(name), (seed, name, read)
    assert said[Answer.YES] > FILES
    assert said[Answer.NO] > FILES


def test_the_areas_that_are_meant_are_those_of_all_ledgers(site: Site) -> None:
    """Of a source inside another one both are asked."""
    make_tree(site.source, {"sub/a": b"1"})
    other = site.root / "other"
    other.mkdir()
    for source, dest in ((site.source, site.dest), (site.source / "sub", other)):
        assert site.run("sync", source, dest, "--state-dir", site.state, "--settle", "0s").code == 0
    found = areas_of(Config(), str(site.state), os.fsencode(site.source / "sub/a"))
    assert sorted(area.path for _, area in found) == [b"a", b"sub/a"]


# --- of the port


def known_at(url: str) -> dict[str, Any]:
    """Return what the port says now of the only job."""
    with urllib.request.urlopen(f"{url}api/v1/safe", timeout=20) as answer:
        (known,) = json.load(answer)["jobs"]
    return cast(dict[str, Any], known)


def until_current(url: str) -> dict[str, Any]:
    wait_until(lambda: known_at(url)["current"], seconds=15)
    return known_at(url)


def test_what_the_port_calls_current_is_so_now(site: Site) -> None:
    """A copy that goes, and one that is overwritten, are not missed for long."""
    make_tree(site.source, {"a": 1000, "b": 1000})
    agent = site.watch("--feed", "127.0.0.1:0")
    url = agent.wait_for(lambda line: line["event"] == "feed")["text"].rpartition(" ")[2]
    agent.wait_for_file("b", "done")
    assert until_current(url)["safe"] == "yes"

    def tells_of(kind: str) -> None:
        """From 5 s on nobody hears a yes that is called current; and soon it is known what is wrong."""
        time.sleep(5.2)
        told = known_at(url)
        assert (told["safe"], told["current"]) != ("yes", True)
        told = until_current(url)
        assert (told["safe"], kind in kinds(told)) == ("no", True), told

    (site.dest / "a").rename(site.root / "aside")
    tells_of("copy_gone")
    (site.root / "aside").rename(site.dest / "a")
    wait_until(lambda: until_current(url)["safe"] == "yes", seconds=30)
    (site.dest / "b").write_bytes(b"another one")
    tells_of("copy_changed")


def test_the_port_does_not_call_a_source_safe_that_is_being_written(site: Site) -> None:
    """What was appended by somebody who still holds it open, is known of at once, or after some seconds."""
    make_tree(site.source, {"a": 1000})
    agent = site.watch("--feed", "127.0.0.1:0")
    url = agent.wait_for(lambda line: line["event"] == "feed")["text"].rpartition(" ")[2]
    agent.wait_for_file("a", "done")
    assert until_current(url)["safe"] == "yes"
    with open(site.source / "a", "ab") as held:
        held.write(b"more")
        held.flush()
        time.sleep(5.2)
        for _ in range(5):
            told = known_at(url)
            assert (told["safe"], told["current"]) != ("yes", True), told
    agent.wait_for_file("a", "done")
    wait_until(lambda: until_current(url)["safe"] == "yes", seconds=30)
