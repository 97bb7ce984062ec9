"""What is mounted below the source hangs: it is told as what it is, and all else goes on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from faults_mount import fault_mount
from support import Site, files_of, make_tree, mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")

OPTIONS = """
source: {settle: 100ms, settle_closed: 100ms, scan_interval: 300ms}
copy: {stall_timeout: 2s}
"""


@contextlib.contextmanager
def hanging(site: Site) -> Iterator[int]:
    """Mount something at ``b`` of the source; yield who has to answer there, and is stopped."""
    (site.root / "trioft.yaml").write_text(OPTIONS)
    make_tree(site.source, {"a/f": b"1", "b": None, "c/z": b"3"})
    with fault_mount() as mount:
        make_tree(mount.backing, {"g": b"2", "below/h": b"4"})
        assert mount._process is not None
        with mounted(mount.place, site.source / "b", "--bind"):
            os.kill(mount._process.pid, signal.SIGSTOP)
            try:
                yield mount._process.pid
            finally:
                site.stop_all()
                os.kill(mount._process.pid, signal.SIGCONT)


def test_a_sync_delivers_all_else(site: Site) -> None:
    """It says which folder of the source does not answer, blames no destination, and does not end with 0."""
    with hanging(site):
        done = site.sync("-c", site.root / "trioft.yaml")
    assert files_of(site.dest) == {b"a/f": b"1", b"c/z": b"3"}
    assert (done.code, done.summary["delivered"], done.summary["failed"]) == (1, 2, 1)
    assert "the source is left out below b, which does not answer; the rest goes on" in done.err
    assert "destination not usable" not in done.err


def test_a_watch_goes_on_and_comes_back_to_it(site: Site) -> None:
    """What is new elsewhere arrives meanwhile, and what hung is delivered when it answers again."""
    with hanging(site) as server:
        agent = site.watch("-c", site.root / "trioft.yaml")
        agent.wait_for(lambda line: line["event"] == "source" and "left out below b" in line["text"])
        make_tree(site.source, {"c/new": b"5"})
        for path in ("a/f", "c/z", "c/new"):
            agent.wait_for_file(path, "done")
        os.kill(server, signal.SIGCONT)
        agent.wait_for(lambda line: line["event"] == "source" and "answers again below b" in line["text"])
        for path in ("b/g", "b/below/h"):
            agent.wait_for_file(path, "done")
        done = agent.end()
    assert (done.code, done.summary["delivered"], done.summary["failed"]) == (0, 5, 0)
    assert "not reliable" not in done.err
