"""
Manifests through the command line: what was delivered is listed, and the tools of others find it so.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from files import MANNER, Ground, root_of
from support import TOOLS, Done, Site, files_of, make_tree, pattern, wait_until
from trioft.core.digests import block_digest, file_digest
from trioft.core.errors import FileTrouble, Remedy, classify
from trioft.core.manifest import with_sums
from trioft.core.model import Unlisted, Verdict
from trioft.core.naming import MANIFEST
from trioft.movers.ops.folder.manifests import sum_delivered, write_sums

MIB = 1 << 20
XSD = TOOLS / "ascmhl_xsd"
SUFFIXES = {"sha256sum": ".sha256", "xxh128sum": ".xxh128"}
TREE: dict[str | bytes, bytes | int | None] = {
    "empty": b"",
    "one": b"1",
    "a/small": 1000,
    "a/of one block": 3 * MIB,
    "a/of three blocks": 17 * MIB + 5,
    "a/b/\u00e4": b"umlaut",
    b"a/b/no utf-8 \xff": b"bytes",
}


def listing(site: Site, kind: str, per: str = "folder", *more: str) -> list[str | Path]:
    """Return the options of a run that writes manifests."""
    path = site.root / f"{kind}-{per}.yaml"
    path.write_text("\n".join([f"copy: {{manifest: {kind}, manifest_per: {per}}}", *more]))
    return ["-c", path]


def check(manifest: Path) -> set[str]:
    """Have the tool that a manifest is for check it; return the names that it found to be right."""
    tool = {".sha256": "sha256sum", ".xxh128": "xxhsum"}[manifest.suffix]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, "-c", manifest.name], cwd=manifest.parent, capture_output=True, check=False)
    assert done.returncode == 0, done
    lines = done.stdout.decode("utf-8", "surrogateescape").splitlines()
    return {line.removesuffix(": OK") for line in lines if line.endswith(": OK")}


def ascmhl(*commands: tuple[str | Path, ...]) -> subprocess.CompletedProcess[str]:
    """Run commands of the reference implementation, up to the first that fails; without its search for a newer one."""
    pytest.importorskip("ascmhl", reason="the reference implementation of ASC MHL is not installed")
    code = "from ascmhl import commands\n" + "\n".join(
        f"commands.{name}({list(map(str, arguments))!r}, standalone_mode=False)" for name, *arguments in commands
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def check_history(folder: Path, generations: int) -> None:
    """The history of *folder* is as its schemas ask for, and all that is below it is in it, and right."""
    manifests = sorted((folder / "ascmhl").glob("*.mhl"))
    assert len(manifests) == generations
    chain = folder / "ascmhl" / "ascmhl_chain.xml"
    assert all(manifest.name in chain.read_text() for manifest in manifests)
    done = ascmhl(
        *(("xsd_schema_check", manifest, "-xsd", XSD / "ASCMHL.xsd") for manifest in manifests),
        ("xsd_schema_check", chain, "-xsd", XSD / "ASCMHLDirectory.xsd"),
        ("verify", folder),
    )
    assert done.returncode == 0, done


def today() -> datetime.date:
    return datetime.datetime.now().astimezone().date()


def partials(site: Site) -> list[Path]:
    return [path for path in site.dest.rglob("*") if path.name.endswith("partial")]


def unlisted(site: Site) -> list[bytes]:
    """Return what the ledger says is still to be listed."""
    (path,) = site.state.glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [target for (target,) in db.execute("SELECT target FROM unlisted")]


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SUFFIXES)
def test_each_folder_lists_its_files(site: Site, kind: str) -> None:
    """Every delivered file is in the manifest of its folder, with the sum of its bytes; a later run adds to it."""
    make_tree(site.source, TREE)
    options = listing(site, kind)
    assert site.sync(*options).summary["delivered"] == len(TREE)
    name = f"trioft{SUFFIXES[kind]}"
    assert check(site.dest / name) == {"empty", "one"}
    assert check(site.dest / "a" / name) == {"small", "of one block", "of three blocks"}
    assert check(site.dest / "a" / "b" / name) == {"\u00e4", "no utf-8 \udcff"}
    assert len(files_of(site.dest)) == len(TREE) + 3

    make_tree(site.source, {"two": b"2", "one": b"replaced"})
    done = site.sync(*options)
    assert (done.code, done.summary["delivered"], done.summary["already"]) == (0, 2, len(TREE) - 1)
    assert check(site.dest / name) == {"empty", "one", "two"}
    assert unlisted(site) == []


def test_one_manifest_lists_all_of_a_day(site: Site) -> None:
    """It lies at the top of the destination, and has the paths below that."""
    make_tree(site.source, {"a/b": b"1", "c": b"2"})
    days = {today()}
    assert site.sync(*listing(site, "sha256sum", "day")).code == 0
    days.add(today())  # should it have been midnight
    (manifest,) = [path for path in site.dest.iterdir() if path.suffix == ".sha256"]
    assert manifest.name in {f"trioft-{day}.sha256" for day in days}
    assert check(manifest) == {"a/b", "c"}


def test_at_level_size_the_sums_are_there_too(site: Site) -> None:
    """Whoever wants no comparison may still want a manifest; large files are read for it."""
    make_tree(site.source, {"small": b"1", "large": 2 * MIB})
    assert site.sync(*listing(site, "xxh128sum"), "--verify", "size").code == 0
    assert check(site.dest / "trioft.xxh128") == {"small", "large"}


def test_a_watch_lists_when_nothing_has_arrived_for_a_while_and_when_it_is_stopped(site: Site) -> None:
    """The manifest is there while the watch goes on; what it has not yet got round to is listed at its end."""
    make_tree(site.source, {"a": b"1"})
    watch = site.watch(*listing(site, "sha256sum"))
    manifest = site.dest / "trioft.sha256"
    wait_until(manifest.exists)
    assert check(manifest) == {"a"}
    make_tree(site.source, {"b": b"2"})
    watch.wait_for_file("b", "done")
    assert watch.end().code == 0
    assert check(manifest) == {"a", "b"}
    assert partials(site) == []


def test_a_recording_is_listed_as_it_is_once_it_is_closed(site: Site) -> None:
    """What its recorder rewrites at the end is in the sum, also where that is the digest of the only block."""
    path = site.source / "take"
    with open(path, "wb", buffering=0) as recording:
        recording.write(pattern(2 * MIB))
        sync = site.start("sync", *listing(site, "xxh128sum", "folder", "growing: {min_size: 1MiB}"))
        sync.wait_for(lambda line: line.get("state") == "growing" or line.get("strategy") == "follow")
        recording.write(pattern(MIB, 1))
        recording.seek(0)
        recording.write(b"the header that is written last")
    assert sync.end(0).code == 0
    assert check(site.dest / "trioft.xxh128") == {"take"}


def test_what_a_killed_run_has_delivered_is_listed_by_the_next(site: Site) -> None:
    """Between a delivery and its manifest a run may be cut short; nothing is delivered again for that."""
    make_tree(site.source, {"small": b"1", "large": 9 * MIB})
    options = listing(site, "sha256sum")
    (site.dest / "trioft.sha256").mkdir()  # however long the kill takes
    watch = site.watch(*options)
    for name in ("small", "large"):
        watch.wait_for_file(name, "done")
    watch.end(signal.SIGKILL)
    (site.dest / "trioft.sha256").rmdir()
    done = site.sync(*options)
    assert (done.code, done.summary["delivered"], done.summary["already"]) == (0, 0, 2)
    assert check(site.dest / "trioft.sha256") == {"small", "large"}


def test_what_was_published_and_not_recorded_is_listed_by_the_next_run(site: Site) -> None:
    """
    The agent may die between the rename and its ledger's row.

    What the ledger has then is what it noted before the rename; made by hand here. A file that did not get its name is
    not listed, nor is another one that has it.
    """
    make_tree(site.source, {"renamed": b"1", "other": b"2"})
    options = listing(site, "sha256sum")
    assert site.sync(*options).code == 0
    (site.dest / "trioft.sha256").unlink()
    (path,) = site.state.glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for name, content in {b"renamed": b"1", b"other": b"x", b"never": b"3"}.items():
            digest = file_digest(block_digest(content))
            size, mtime, _ = db.execute(
                "SELECT size, mtime_ns, name FROM file WHERE name = ?", (b"renamed",)
            ).fetchone()
            if name == b"other":
                mtime = (site.dest / "other").stat().st_mtime_ns
            row = (name, "publishing", size, mtime, digest, hashlib.sha256(content).digest(), "2026-01-31T12:00:00Z")
            db.execute("INSERT INTO unlisted VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("DELETE FROM file")
    done = site.sync(*options)
    assert (done.code, done.summary["delivered"]) == (0, 0)
    assert check(site.dest / "trioft.sha256") == {"renamed"}
    assert unlisted(site) == []


def test_a_delivered_file_that_went_bad_is_told_and_not_listed(site: Site) -> None:
    """What is read for a manifest is compared with what was delivered: no manifest vouches for other bytes."""
    make_tree(site.source, {"good": 9 * MIB, "bad": 9 * MIB})
    quick = "retry: {retries: 1, first: 10ms}"
    (site.dest / "trioft.sha256").mkdir()
    assert site.sync(*listing(site, "sha256sum", "folder", quick)).code == 1
    times = (site.dest / "bad").stat()
    with open(site.dest / "bad", "r+b") as file:
        file.seek(8 * MIB)
        file.write(b"!")
    os.utime(site.dest / "bad", ns=(times.st_atime_ns, times.st_mtime_ns))
    options = listing(site, "xxh128sum", "folder", quick)  # whose sums nobody has read yet
    done = site.sync(*options)
    assert (done.code, done.summary["failed"]) == (1, 1)
    assert done.files("failed")["bad"]["error"]["text"].endswith(
        "the destination holds other bytes than were delivered"
    )
    assert check(site.dest / "trioft.xxh128") == {"good"}
    shutil.copy2(site.source / "bad", site.dest / "bad")
    assert site.sync(*options).code == 0
    assert check(site.dest / "trioft.xxh128") == {"good", "bad"}


def test_a_manifest_that_cannot_be_written_fails_the_run_and_is_written_by_the_next(site: Site) -> None:
    """The files are delivered; that they are not listed is an error that says where and why."""
    make_tree(site.source, {"a": b"1"})
    (site.dest / "trioft.sha256").mkdir()
    options = listing(site, "sha256sum", "folder", "retry: {retries: 1, first: 10ms}")
    done = site.sync(*options)
    assert (done.code, done.summary["delivered"]) == (1, 1)
    assert "Traceback" not in done.err
    assert done.files("failed")["trioft.sha256"]["error"]["side"] == "destination"
    (site.dest / "trioft.sha256").rmdir()
    assert site.sync(*options).code == 0
    assert check(site.dest / "trioft.sha256") == {"a"}
    assert partials(site) == []


def test_manifests_of_a_source_do_not_take_the_place_of_those_of_the_destination(site: Site) -> None:
    """Where trioft writes them itself they are left at the source, and told; others are files like all others."""
    make_tree(site.source, {"a": b"1", "trioft.sha256": b"of another run", "trioft.xxh128": b"of another kind"})
    make_tree(site.source, {"d/trioft.sha256": b"of another run", "d/trioft-2026-01-31.sha256": b"of a day"})
    done = site.sync(*listing(site, "sha256sum"))
    assert (done.code, done.summary["delivered"], done.summary["skipped"]) == (0, 2, 3)
    skipped = done.files("skipped")
    assert {*skipped} == {"trioft.sha256", "d/trioft.sha256", "d/trioft-2026-01-31.sha256"}
    assert all(MANIFEST in line["reason"] for line in skipped.values())
    assert site.sync(*listing(site, "sha256sum"), "--exclude", "trioft*").files("skipped") == {}
    assert check(site.dest / "trioft.sha256") == {"a", "trioft.xxh128"}


# --- reading ----------------------------------------------------------------------------------------------------------


def test_only_what_was_delivered_is_read_for_a_manifest(ground: Ground) -> None:
    """Another version, another content, or nothing, are three answers; a doubtful file may have got a number."""
    ground.old(b"a", b"other")
    ground.old(b"a_1", b"wanted")
    mtime = os.stat(ground.at_dest(b"a")).st_mtime_ns
    file = Unlisted(b"a", 6, mtime, file_digest(block_digest(b"wanted")), None)
    dest, expected = root_of(ground.dest), hashlib.sha256(b"wanted").digest()

    def read(file: Unlisted, by_number: bool = False) -> tuple[Verdict, bytes, bytes | None]:
        result = sum_delivered(dest, file, "sha256sum", MANNER.resolution_ns, by_number, ground.told.append)
        return result.verdict, result.target, result.sum

    assert read(file) == (Verdict.CHANGED, b"", None)
    assert read(file._replace(target=b"b"))[0] == Verdict.GONE
    assert read(file._replace(target=b"a_1")) == (Verdict.SUMMED, b"a_1", expected)
    assert read(file._replace(doubtful=True)) == (Verdict.CHANGED, b"", None)
    assert read(file._replace(doubtful=True), by_number=True) == (Verdict.SUMMED, b"a_1", expected)
    with pytest.raises(FileTrouble, match="other bytes than were delivered"):
        read(file._replace(target=b"a_1", digest=bytes(16)))
    assert read(file._replace(target=b"a_1", digest=bytes(16), doubtful=True))[0] == Verdict.CHANGED


def test_only_one_at_a_time_adds_to_a_manifest(ground: Ground) -> None:
    """Two that read the same manifest, and add to it, would lose what one of them adds: the second tries again."""
    dest = root_of(ground.dest)
    write_sums(dest, b"m", {b"a": bytes(32)})
    lock = os.open(ground.dest, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(FileTrouble) as caught:
        write_sums(dest, b"m", {b"b": bytes(32)})
    assert classify(caught.value.trouble) == Remedy.RETRY
    os.close(lock)
    write_sums(dest, b"m", {b"b": bytes(32)})
    assert (ground.dest / "m").read_bytes() == with_sums(b"", {b"a": bytes(32), b"b": bytes(32)})
    assert os.listdir(ground.dest) == ["m"]


# --- ASC MHL ----------------------------------------------------------------------------------------------------------


def test_an_asc_mhl_history_documents_each_folder_at_the_top(site: Site) -> None:
    """The reference implementation finds every file, and each right; a later run adds a generation with what is new."""
    make_tree(site.source, {"A001/clip <&> 1": 9 * MIB, "A001/sub/\u00e4": b"1", "B002/x": b"2", "top": b"3"})
    options = listing(site, "ascmhl")
    assert site.sync(*options).code == 0
    for folder in (site.dest / "A001", site.dest / "B002", site.dest):
        check_history(folder, 1)
    assert not (site.dest / "A001" / "sub" / "ascmhl").exists()
    make_tree(site.source, {"A001/later": b"4", "A001/.DS_Store": b"5"})
    assert site.sync(*options).code == 0
    check_history(site.dest / "A001", 2)
    check_history(site.dest / "B002", 1)
    assert site.sync(*options).summary["delivered"] == 0
    check_history(site.dest / "A001", 2)


def test_one_asc_mhl_history_documents_all(site: Site) -> None:
    """Per day there is one, each of whose generations has its date."""
    make_tree(site.source, {"A001/clip": b"1", "top": b"2"})
    assert site.sync(*listing(site, "ascmhl", "day")).code == 0
    assert sorted(site.dest.rglob("ascmhl")) == [site.dest / "ascmhl"]
    check_history(site.dest, 1)


def card(site: Site, hash_format: str) -> None:
    make_tree(site.source, {"CLIPS/1.mov": b"clip", "CLIPS/2.mov": 9 * MIB, "card.xml": b"<card/>"})
    done = ascmhl(("create", site.source, "-h", hash_format))
    assert done.returncode == 0, done


def test_the_history_of_a_camera_card_is_verified_and_continued(site: Site) -> None:
    """It is transferred as it is; the new generation has its hashes too, computed from what the destination holds."""
    card(site, "c4")
    options = listing(site, "ascmhl")
    assert site.sync(*options).code == 0
    newest = max((site.dest / "ascmhl").glob("*.mhl")).read_text()
    assert newest.count('<c4 action="verified">') == newest.count('<xxh128 action="verified">') == 3
    check_history(site.dest, 2)
    # What has been continued is not replaced by what it was.
    done = site.sync(*options)
    assert (done.summary["delivered"], done.summary["already"]) == (0, 5)
    # The card is used again, and has a generation of its own; none is lost.
    make_tree(site.source, {"CLIPS/3.mov": b"later"})
    assert ascmhl(("create", site.source, "-h", "c4")).returncode == 0
    assert site.sync(*options).code == 0
    check_history(site.dest, 4)


def test_a_card_that_is_not_what_its_history_says_is_told(site: Site) -> None:
    """It arrives as it is; that it went bad before is recorded, and said."""
    card(site, "md5")
    (site.source / "CLIPS" / "1.mov").write_bytes(b"clop")
    done = site.sync(*listing(site, "ascmhl"))
    texts = [line["text"] for line in done.lines if line["event"] == "manifest"]
    assert texts == ["CLIPS/1.mov: the ASC MHL history there has another hash of it: recorded as failed"]
    newest = max((site.dest / "ascmhl").glob("*.mhl"))
    assert newest.read_text().count('action="failed"') == 2
    assert ascmhl(("verify", site.dest)).returncode != 0


def test_nothing_is_built_upon_a_history_that_was_altered(site: Site) -> None:
    """Somebody has to look at it; then what is not listed yet is."""
    options = listing(site, "ascmhl", "folder", "retry: {retries: 1, first: 10ms}")
    make_tree(site.source, {"A/1": b"1"})
    assert site.sync(*options).code == 0
    (manifest,) = (site.dest / "A" / "ascmhl").glob("*.mhl")
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b"original", b"verified"))
    make_tree(site.source, {"A/2": b"2"})
    done = site.sync(*options)
    assert (done.code, done.summary["delivered"]) == (1, 1)
    (failed,) = done.files("failed").values()
    assert "is not what its chain says" in failed["reason"]
    assert list((site.dest / "A" / "ascmhl").glob("*.mhl")) == [manifest]
    manifest.write_bytes(content)
    assert site.sync(*options).code == 0
    check_history(site.dest / "A", 2)


def test_a_name_that_xml_cannot_hold_is_told(site: Site) -> None:
    """It is delivered, and the others are listed."""
    make_tree(site.source, {b"A/\xff": b"1", "A/b": b"2"})
    done: Done = site.sync(*listing(site, "ascmhl"))
    assert (done.code, done.summary["delivered"]) == (0, 2)
    (line,) = [line for line in done.lines if line["event"] == "manifest"]
    assert line["text"].endswith("not listed: an ASC MHL has no way to write this name")
    assert len(list((site.dest / "A" / "ascmhl").glob("*.mhl"))) == 1
    assert unlisted(site) == []
