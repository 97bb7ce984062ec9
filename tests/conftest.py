"""
The rules of these tests.

They work on real files below ``tmp_path``, with real processes and real signals; the command line runs as a child
process. No test sleeps for luck: it waits for something to happen, with a limit. Every test says in one sentence what
trioft promises. Names of tests are sentences, names of helpers are in ``support``.

The folders are those of the house, and a test lies where the module or the wing is that it tests: ``core``, ``config``,
``ops`` and ``movers``, ``state``, ``pipeline``, ``agent``, ``serve``, ``cli``. Beside them:

``promises``  what only whole runs can show, by promise: real agents, kills, faults, mounts, power cuts, shares
``house``     the tests of what is no module: documents, layers, benches, tools
``tools``     what tests are made of: it is on the path of all of them
``bench``     how fast it is; measured by hand

``sh tests/run.sh quick`` leaves the promises out and takes two minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from files import Ground, open_files
from growing_files import small_blocks, written  # noqa: F401 (fixtures)
from pages import browser, look, stage  # noqa: F401 (fixtures)
from support import Site

settings.register_profile(
    "default",
    deadline=None,  # the machine is shared: time says nothing about correctness
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A source, a destination and a state directory, and the command line on them."""
    place = Site(tmp_path)
    yield place
    place.stop_all()


@pytest.fixture
def east_of_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are those of this machine: here it stands two hours east of Greenwich."""
    monkeypatch.setenv("TZ", "CEST-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Two roots for file operations, which leave nothing open."""
    with Ground(tmp_path) as place:
        yield place
        left = [name for name in open_files() if str(tmp_path) in name]
        assert left == [], "an operation left something open"
