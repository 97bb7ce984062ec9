"""Configurations as Hypothesis makes them up, and what is wrong with one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from trioft.config.kinds import Limit, MinFree, OnSuccess, Turn
from trioft.config.options import Config, Copy, Destination, Growing, Hooks, Retry, Source, State
from trioft.core.errors import ConfigError
from trioft.core.model import Rule


def problems_of(call: Callable[..., Config], *args: Any) -> list[str]:
    """Return the problems that *call* raises."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)
    return caught.value.problems


RATES = st.none() | st.integers(1, 2**63 - 1)


def limits() -> st.SearchStrategy[Limit]:
    """Return rates, and timetables in which no time has two rates."""
    turns = st.builds(Turn, st.none() | st.integers(0, 6), st.integers(0, 1439), RATES)
    tables = st.lists(turns, min_size=1, max_size=20, unique_by=lambda turn: turn[:2])
    return st.builds(Limit, RATES) | tables.map(lambda table: Limit(turns=tuple(table)))


_FILENAMES = st.binary(min_size=1, max_size=12).map(lambda name: os.fsdecode(name.replace(b"\0", b"x")))
_PATTERN_LISTS = st.lists(_FILENAMES.filter(lambda name: name[0] != "/"), max_size=3).map(tuple)
_ANY_PATH = _FILENAMES | st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)
_PATHS = st.none() | _ANY_PATH.filter(lambda path: not path.startswith("~"))
_COMMANDS = st.none() | st.lists(_FILENAMES.filter(lambda word: "{" not in word), min_size=1, max_size=3).map(tuple)
_GATES = _COMMANDS.map(lambda words: words and (*words, "", "if={partial}{size}"))
# None that makes a partial's name of a name: that is refused.
_SUFFIXES = st.none() | _FILENAMES.map(lambda name: name.replace("/", "|")).filter(
    lambda name: not name.endswith("partial")
)
_RULES = st.builds(
    Rule, match=_FILENAMES.filter(lambda name: name[0] not in "/["), regex=st.just(""), to=st.just("{name}")
) | st.builds(
    Rule,
    match=st.just(""),
    regex=_FILENAMES.map(re.escape),
    to=_FILENAMES.map(lambda name: re.sub(r"[{}/.]", "_", name)),
)
_SECONDS = st.integers(1000, 10**9).map(lambda milliseconds: milliseconds / 1000)
_CONFIGS = st.builds(
    Config,
    source=st.builds(
        Source, path=_PATHS, include=_PATTERN_LISTS, exclude=_PATTERN_LISTS, settle=_SECONDS, scan_interval=_SECONDS
    ),
    destination=st.builds(
        Destination,
        path=_PATHS,
        if_exists=st.sampled_from(["rename", "overwrite", "skip", "fail", None]),
        min_free=st.builds(MinFree, percent=st.floats(0, 100, allow_subnormal=False))
        | st.builds(MinFree, bytes=st.integers(0, 2**63 - 1)),
        require_mount=st.booleans(),
        marker=st.sampled_from([None, "off", "1:30", "yes", "~", "a: b", "# c", " d "]),
        routes=st.lists(_RULES, max_size=3).map(tuple),
    ),
    growing=st.builds(
        Growing,
        mode=st.sampled_from(["follow", "wait"]),
        min_size=st.integers(0, 2**63 - 1),
        transfers=st.integers(1, 64),
        headroom=st.integers(0, 2**63 - 1),
        poll=_SECONDS,
        reconcile=st.sampled_from(["full", "edges"]),
        include=_PATTERN_LISTS,
        exclude=_PATTERN_LISTS,
    ),
    copy=st.builds(
        Copy,
        transfers=st.integers(1, 64),
        on_success=st.sampled_from([OnSuccess(action="keep"), OnSuccess(action="delete")])
        | st.builds(OnSuccess, action=st.just("archive"), folder=_FILENAMES.filter(lambda path: path[0] != "~")),
        order=st.sampled_from(["oldest", "newest", "smallest", "largest", "name"]),
        bwlimit=limits(),
        checkpoint_size=st.integers(8 * 2**20, 2**63 - 1),
        done_file=_SUFFIXES,
        gate=_GATES,
        checkpoint_time=_SECONDS,
    ),
    retry=st.builds(Retry, retries=st.integers(0, 2**63 - 1), longest=_SECONDS, first=st.just(0.25)),
    hooks=st.builds(Hooks, delivered=_COMMANDS, failed=_COMMANDS, timeout=_SECONDS),
    state=st.builds(State, dir=_PATHS, keep_history=_SECONDS, shutdown_grace=_SECONDS),
)
# What was compared at its edges only never frees a source: that is refused.
CONFIGS = _CONFIGS.filter(lambda config: config.growing.reconcile == "full" or config.copy.on_success.action == "keep")
