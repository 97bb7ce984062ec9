"""In a container: as process 1, and with a root that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import PATIENCE, TRIOFT, Site, files_of, make_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces here")

HOOK = ["sh", "-c", "(sleep 0.2 &) ; cat >/dev/null"]


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(pid: int) -> list[tuple[int, str]]:
    """Return the children of a process, and their states."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid:
            found.append((int(stat.parent.name), state))
    return found


def defunct_of(pid: int) -> list[int]:
    return [child for child, state in children_of(pid) if state == "Z"]


def test_process_1_takes_in_what_hooks_leave_behind(site: Site) -> None:
    """No process stays defunct; signals reach the agent, whose exit code is that of the container."""
    make_tree(site.source, {f"f{n}": b"x" for n in range(10)})
    config = site.root / "trioft.yaml"
    config.write_text(f"hooks: {{delivered: {json.dumps(HOOK)}}}\n")
    paths = [os.fspath(path) for path in (site.source, site.dest, "-c", config, "--state-dir", site.state)]
    command = ["unshare", "--pid", "--fork", "--mount-proc", *TRIOFT, "watch", *paths, "--settle", "100ms"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as outer:
        try:
            until(lambda: len(files_of(site.dest)) == 10)
            ((init, _),) = children_of(outer.pid)
            assert children_of(init)
            until(lambda: not defunct_of(init))
            os.kill(init, signal.SIGTERM)
            assert outer.wait(PATIENCE) == 0
        finally:
            outer.kill()


def test_a_root_that_cannot_be_written_will_do(site: Site) -> None:
    """Nothing but source, destination and state is written, not even a temporary file."""
    make_tree(site.source, {"f": b"x"})
    config = site.root / "trioft.yaml"
    config.write_text(f"hooks: {{delivered: {json.dumps(HOOK)}}}\ncopy: {{gate: [test, -f, '{{partial}}']}}\n")
    site.state.mkdir(exist_ok=True)
    binds = "".join(f"mount --bind '{path}' '{path}' && " for path in (site.source, site.dest, site.state))
    script = f'{binds} mount -o remount,ro,bind / && ! touch /tmp/x 2>/dev/null && exec "$@"'
    paths = [os.fspath(path) for path in (site.source, site.dest, "-c", config, "--state-dir", site.state)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *TRIOFT, "sync", *paths, "--settle", "100ms"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if "remount" in done.stderr or (not done.stderr and done.returncode == 1):
        pytest.skip("the root cannot be made read-only here")
    assert (done.returncode, files_of(site.dest)) == (0, {b"f": b"x"}), done.stderr
