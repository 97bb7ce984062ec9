"""Only movers touch the source and the destination: an agent that waits for neither can always answer, and end."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from support import PATIENCE, TRIOFT, Site, files_of, make_tree


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_agent_touches_neither_source_nor_destination(site: Site) -> None:
    """In a whole sync, each system call on a path below SOURCE or DEST, or relative to them, is made by a child."""
    make_tree(site.source, {"small": 1000, "folder/large": 20_000_000, "folder/empty": None})
    trace = site.root / "trace"
    arguments = ["sync", str(site.source), str(site.dest), "--state-dir", str(site.state), "--settle", "100ms"]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=%file,%desc,process", "-o", str(trace), *TRIOFT, *arguments],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    if b"ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert files_of(site.dest) == files_of(site.source)

    ours = re.compile(f'"({re.escape(str(site.source))}|{re.escape(str(site.dest))})[/"]')
    lines = [line.split(maxsplit=1) for line in trace.read_text(errors="replace").splitlines()]
    agent = lines[0][0]
    movers = {pid for pid, call in lines if call.startswith("execve(") and "trioft.movers.ops.main" in call}
    touching = {pid for pid, call in lines if ours.search(call) and not call.startswith("execve(")}
    assert movers, "there were movers"
    assert touching, "and they worked"
    assert agent not in touching
    assert touching <= movers
