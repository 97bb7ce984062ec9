"""Other content of the same size and time is another version, and what is known of a delivery is not forgotten."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from disks import disk
from pasts import ask_ledger, ledgers_of
from support import Site, files_of, make_tree, wait_until
from trioft.core.model import BLOCK_SIZE, Fingerprint
from trioft.state import proofs
from trioft.state.ledger import Entry, Ledger

LARGE = BLOCK_SIZE + 1


def rewrite(path: Path, content: bytes) -> None:
    """Give a file other content, and its time back: so do containers, and programs that write into their pictures."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_watch_delivers_what_got_its_time_back(site: Site) -> None:
    """Its ctime tells; what only got other permissions is compared, and its digest stays on record."""
    make_tree(site.source, {"a": b"aaaa", "b": b"bbbb", "large": LARGE})
    agent = site.watch("--if-exists", "overwrite")
    for name in ("a", "b", "large"):
        agent.wait_for_file(name, "done")
    (ledger,) = ledgers_of(site, 1)
    rewrite(site.source / "a", b"AAAA")
    rewrite(site.source / "large", bytes(LARGE))
    (site.source / "b").chmod(0o600)
    wait_until(lambda: files_of(site.source).items() <= files_of(site.dest).items())
    agent.wait_for(lambda line: (line.get("path"), line.get("reason")) == ("b", "already there"))
    done = agent.end()
    assert done.summary["delivered"] == 5
    assert ask_ledger(ledger, "SELECT count(*) FROM file WHERE digest IS NOT NULL") == [(3,)]
    assert site.run("safe", site.source, "--state-dir", site.state, "--read").code == 0


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_sync_delivers_what_got_its_time_back(site: Site, size: int) -> None:
    """Where the ledger knows which version it has delivered; what it does not know is taken for what it seems."""
    make_tree(site.source, {"a": bytes(size), "strange": b"strange"})
    make_tree(site.dest, {"strange": b"STRANGE"})
    status = (site.source / "strange").stat()
    os.utime(site.dest / "strange", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert site.sync().summary["already"] == 1
    rewrite(site.source / "a", b"x" * size)
    done = site.sync()
    assert (done.summary["delivered"], done.summary["already"]) == (1, 1)
    assert (site.dest / "a").read_bytes() == b"x" * size
    assert site.sync().summary["already"] == 2


def test_with_checksum_contents_are_compared(site: Site) -> None:
    """Whatever size and time say; a dry run says what would be copied, and writes nothing."""
    make_tree(site.source, {"same": b"same", "other": b"other", "large": LARGE, "new": b"new"})
    make_tree(site.dest, {"same": b"same", "other": b"OTHER", "large": bytes(LARGE)})
    for name in ("same", "other", "large"):
        status = (site.source / name).stat()
        os.utime(site.dest / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    before = files_of(site.dest)
    done = site.sync("--dry-run")
    assert {line["path"] for line in done.lines if line["event"] == "file"} == {"new"}
    done = site.sync("--dry-run", "--checksum")
    assert {line["path"] for line in done.lines if line["event"] == "file"} == {"new", "other", "large"}
    assert files_of(site.dest) == before
    done = site.sync("--checksum")
    assert (done.code, done.summary["delivered"], done.summary["already"]) == (0, 3, 1)
    assert files_of(site.dest) == files_of(site.source)
    assert site.run("safe", site.source, "--state-dir", site.state).code == 0


def test_a_second_version_within_a_step_of_the_destinations_clock_is_delivered(site: Site) -> None:
    """The ledger knows the exact time of the first: the destination keeps whole seconds only."""
    with disk("ext3", site.root / "image", site.dest):
        make_tree(site.source, {"status": b"take 1"})
        agent = site.watch("--if-exists", "overwrite")
        agent.wait_for_file("status", "done")
        status = (site.source / "status").stat()
        (site.source / "status").write_bytes(b"take 2")
        os.utime(site.source / "status", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
        wait_until(lambda: (site.dest / "status").read_bytes() == b"take 2")
        assert agent.end().summary["delivered"] == 2


def test_a_later_look_does_not_take_a_digest_away(tmp_path: Path) -> None:
    """Found again by a scan that had begun before its delivery was on record: the digest stays, and the proof too."""
    print_of = Fingerprint(1, 2, 3, 4, 5)
    delivered = Entry("delivered", b"a", b"a", print_of, b"d" * 16, "verified: readback", "", "proved")
    again = Entry("already", b"a", b"a", print_of, None, "same size and time")
    with contextlib.closing(Ledger(str(tmp_path / "x.sqlite"))) as ledger:
        with ledger.transaction():
            ledger.record([delivered])
            assert proofs.without_known(ledger, [again]) == []
            for other in (
                again._replace(target=b"b"),
                again._replace(fingerprint=print_of._replace(ctime_ns=6)),
                again._replace(digest=b"e" * 16),
                delivered,
            ):
                assert proofs.without_known(ledger, [other]) == [other]
        rows = ledger.execute("SELECT outcome, digest, closed FROM file").fetchall()
        events = ledger.execute("SELECT event, digest FROM history ORDER BY id").fetchall()
    assert rows == [("delivered", b"d" * 16, "proved")]
    assert events == [("delivered", b"d" * 16), ("already", None)]
