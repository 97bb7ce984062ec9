"""Descriptors: the limit is raised, programs of the user's do not notice, and viewers get what is left."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trioft.movers import descriptors

CODE = """
import resource, subprocess, sys
from trioft.movers import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
assert descriptors.raise_limit() == descriptors.limit() == 512
child = subprocess.Popen(["sh", "-c", "read line; ulimit -Sn; ulimit -Hn"], stdin=subprocess.PIPE, text=True)
descriptors.lower_for(child.pid)
child.communicate("go")
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_is_raised_for_trioft_alone() -> None:
    """It needs more than the usual 1,024 some day; a hook that uses select() would break with more."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["256", "512"] or done.stdout.split("\n")[1:3] == ["256", "512"], done.stdout
    assert "(512, 512)" in done.stdout


@pytest.mark.parametrize(
    ("limit", "movers", "jobs", "connections"),
    [(256, 13, 1, 119), (1024, 13, 1, 887), (10**6, 13, 1, 1024), (64, 26, 2, 8)],
)
def test_viewers_get_what_movers_leave(
    monkeypatch: pytest.MonkeyPatch, limit: int, movers: int, jobs: int, connections: int
) -> None:
    """Movers, ledgers and events come first; a few connections there are always."""
    monkeypatch.setattr(descriptors, "limit", lambda: limit)
    assert descriptors.connections_beside(movers, jobs, 1024) == connections
