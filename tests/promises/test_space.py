"""Space that somebody else takes in the middle of a copy, and gives back; and quotas, of which no figure tells."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import TRIOFT, Done, Running, Site, files_of, make_tree, mounted, pattern, wait_until
from trioft.core.model import BLOCK_SIZE, MIB
from trioft.core.naming import is_own, partial_of
from trioft.state.ledger import Ledger
from truth import recorded

OPTIONS = """
source: {settle_closed: 100ms, scan_interval: 300ms}
destination: {check_interval: 200ms, min_free: 0B}
copy: {checkpoint_size: 8MiB}
"""
SIZE = 64 * MIB
BIG = pattern(6 * BLOCK_SIZE + 77, 1)
SMALL = pattern(300_000, 2)


@pytest.fixture
def tight(site: Site) -> Iterator[Site]:
    """A destination of 64 MiB, in memory."""
    (site.root / "trioft.yaml").write_text(OPTIONS)
    with mounted("none", site.dest, "-t", "tmpfs", "-o", f"size={SIZE}"):
        assert site.dest.stat().st_dev != site.root.stat().st_dev
        yield site
        site.stop_all()


def fill(path: Path) -> None:
    """Take all the space that is left, but never more than there can be."""
    with open(path, "wb", buffering=0) as file:
        try:
            for _ in range(SIZE // 65536):
                file.write(bytes(65536))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def parked(site: Site) -> tuple[Running, int]:
    """Copy some of the big file and let it run out of space; return what runs, and how much of it is settled."""
    make_tree(site.source, {b"big.mov": BIG})
    running = site.watch("--bwlimit", "16MiB/s", "-c", site.root / "trioft.yaml")
    wait_until(lambda: recorded(site, running=True).settled(b"big.mov") >= 3 * BLOCK_SIZE)
    fill(site.dest / "somebody else's")
    waiting = running.wait_for_file("big.mov", "waiting")
    assert waiting["reason"].startswith("space: ")
    assert waiting["attempt"] == 0
    return running, recorded(site, running=True).settled(b"big.mov")


def test_a_file_that_runs_out_of_space_parks_and_goes_on_from_its_checkpoint(tight: Site) -> None:
    """Smaller files go on where they fit, and what was settled of the large one is not copied again."""
    running, settled = parked(tight)
    other = tight.dest / "somebody else's"
    os.truncate(other, other.stat().st_size - MIB)  # enough for the small one only
    make_tree(tight.source, {b"small": SMALL})
    running.wait_for_file("small", "done")
    assert b"big.mov" not in files_of(tight.dest)
    other.unlink()
    running.wait_for_file("big.mov", "done")
    done = running.end()
    assert done.code == 0, done.err
    assert files_of(tight.dest) == {b"big.mov": BIG, b"small": SMALL}
    assert {line["attempt"] for line in done.lines if line["event"] == "file"} == {0}
    # At most two blocks had been written and not been settled.
    assert done.summary["bytes"] <= len(BIG) + len(SMALL) + 2 * BLOCK_SIZE
    assert settled >= 3 * BLOCK_SIZE


def test_a_file_that_is_parked_for_space_goes_on_from_its_checkpoint_in_the_next_run(tight: Site) -> None:
    """Also where trioft dies meanwhile, and the space is back when it starts again."""
    running, settled = parked(tight)
    running.end(signal.SIGKILL)
    (tight.dest / "somebody else's").unlink()
    done = tight.sync()
    assert done.code == 0, done.err
    assert files_of(tight.dest) == {b"big.mov": BIG}
    assert done.summary["bytes_resumed"] >= settled > 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=lambda number: errno.errorcode[number])
def test_a_refusal_at_the_first_byte_is_believed_whatever_the_figures_say(number: int, site: Site) -> None:
    """As with a quota: the filesystem says that there is room, and takes nothing. It is tried again, others go on."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    (site.root / "trioft.yaml").write_text(OPTIONS)
    make_tree(site.source, {b"big.mov": BIG, b"small": SMALL})
    status = (site.source / "big.mov").stat()
    assert site.sync("--include", "nothing yet").code == 0  # now there is a ledger, whose partial it will be
    (path,) = site.state.glob("*.sqlite")
    with contextlib.closing(Ledger(str(path))) as ledger:
        name = partial_of(b"big.mov", status.st_dev, status.st_ino, ledger=ledger.id)
    partial = os.path.join(os.fsencode(site.dest), name)
    arguments = ["sync", site.source, site.dest, "--state-dir", site.state, "-c", site.root / "trioft.yaml", "--json"]
    # Refused in each process once or twice.
    tampering = ["-e", "trace=pwrite64", "-e", f"inject=pwrite64:error={errno.errorcode[number]}:when=1..2"]
    process = subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-P", partial, *tampering, *TRIOFT, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "ptrace" in process.stderr:
        pytest.skip("strace may not trace here")
    done = Done(process.returncode, process.stdout, process.stderr)
    assert done.code == 0, done.err
    waiting = done.files("waiting")["big.mov"]
    assert waiting["reason"].startswith("space: ")
    assert {line["attempt"] for line in done.lines if line["event"] == "file"} == {0}
    assert files_of(site.dest) == {b"big.mov": BIG, b"small": SMALL}
    assert not any(map(is_own, files_of(site.dest)))
