"""The list of jobs in a configuration: what it accepts, what it refuses in which words, and how it is written back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from configs import problems_of
from support import Site
from trioft.config import file as configfile
from trioft.config.file import load_config
from trioft.config.options import AGENT_GROUPS, GROUPS, Config
from trioft.core.errors import ConfigError

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load ``trioft.yaml`` with these groups, and these jobs."""
    monkeypatch.chdir(tmp_path)

    def load(
        jobs: object, groups: Mapping[str, Any] | None = None, options: Mapping[str, tuple[str, object]] | None = None
    ) -> Config:
        Path("trioft.yaml").write_text(json.dumps({**(groups or {}), "jobs": jobs}))
        return load_config("trioft.yaml", options or {})

    return load


def job(name: str, **groups: Any) -> dict[str, Any]:
    """Return a job from /in/NAME to /out/NAME, with more options."""
    ends = {"source": {"path": f"/in/{name}"}, "destination": {"path": f"/out/{name}"}}
    return {"name": name, **{group: {**ends.get(group, {}), **groups.get(group, {})} for group in {**ends, **groups}}}


# --- What is accepted -------------------------------------------------------------------------------------------------


def test_a_job_has_what_holds_for_all_but_for_what_it_has_otherwise(load: Load) -> None:
    """Key by key: the command line beats the job, the job what stands beside ``jobs``, that the defaults."""
    groups = {"source": {"settle": "3s", "include": ["*.mxf"]}, "copy": {"transfers": 2, "movers": 2}}
    jobs = [job("a"), job("b", source={"settle": "1s"}, copy={"movers": 7, "verify": "transfer"})]
    config = load(jobs, groups, {"copy.transfers": ("--transfers", "9")})
    a, b = config.jobs["a"], config.jobs["b"]
    assert list(config.jobs) == ["a", "b"]
    assert (a.source.path, a.destination.path) == ("/in/a", "/out/a")
    assert (a.source.settle, a.source.include, a.copy.movers, a.copy.verify) == (3, ("*.mxf",), 2, "readback")
    assert (b.source.settle, b.source.include, b.copy.movers, b.copy.verify) == (1, ("*.mxf",), 7, "transfer")
    assert (a.copy.transfers, b.copy.transfers) == (9, 9)
    assert b.source.settle_closed == 0.5


def test_what_is_the_agents_is_the_same_for_all(load: Load) -> None:
    """A job sees the agent's options as they are beside ``jobs``."""
    config = load([job("a")], {"state": {"shutdown_grace": "1s"}, "agent": {"bwlimit": "1MiB/s", "transfers": 3}})
    for group in AGENT_GROUPS:
        assert getattr(config.jobs["a"], group) == getattr(config, group)
    assert (config.agent.bwlimit.now(), config.agent.transfers) == (2**20, 3)


def test_no_jobs_are_no_jobs(load: Load) -> None:
    """As in the example, where all of them are commented out."""
    assert load(None).jobs == {}


def test_it_is_written_as_it_is_read(load: Load, tmp_path: Path) -> None:
    """``config show`` prints what is in effect, and each job's own options only."""
    jobs = [job("a"), job("b", source={"settle": "20s"}, copy={"verify": "transfer"})]
    config = load(jobs, {"source": {"settle": "100ms"}, "retry": {"retries": 2}})
    text = configfile.dump(config)
    assert "- name: b\n  source:\n    path: /in/b\n    settle: 20s\n    settle_closed: 500ms\n" in text
    (tmp_path / "again.yaml").write_text(text)
    assert load_config("again.yaml", {}) == config


def test_the_example_has_jobs_that_load(tmp_path: Path) -> None:
    """Uncommented, they are a configuration."""
    lines = configfile.example().splitlines()
    file = tmp_path / "jobs.yaml"
    file.write_text("\n".join(line.removeprefix("# ") for line in lines[lines.index("# jobs:") :]))
    assert list(load_config(str(file), {}).jobs) == ["cam-1", "scans"]


def test_ends_in_common_are_allowed_where_nothing_can_be_lost(load: Load) -> None:
    """One source to two places; many cameras to one folder."""
    keep = {"if_exists": "rename", "path": "/out"}
    assert len(load([job("a"), job("b", source={"path": "/in/a"})]).jobs) == 2
    assert len(load([job("a", destination=keep), job("b", destination=keep)]).jobs) == 2


# --- What is refused --------------------------------------------------------------------------------------------------

NAME = "1 to 32 letters, digits, - or _"
MISSING = "missing: every job has its own"
OVERLAP = "one job would transfer what the other one has put there"


@pytest.mark.parametrize(
    ("jobs", "problems"),
    [
        ({}, ["jobs: found a mapping, expected a list of jobs, each with a name"]),
        ([], ["jobs: found an empty list, expected a list of jobs, each with a name"]),
        (["a"], ['jobs[0]: found "a", expected name, source, destination and more groups']),
        ([{"name": "a"}], [f"jobs[0].source.path: {MISSING}", f"jobs[0].destination.path: {MISSING}"]),
        ([{**job("a"), "source": {"path": None}}], [f"jobs[0].source.path: {MISSING}"]),
        ([{**job("a"), "destination": None}], [f"jobs[0].destination.path: {MISSING}"]),
        ([{**job("a"), "name": "cam 1"}], [f'jobs[0].name: found "cam 1", expected {NAME}, such as cam-1']),
        ([{**job("a"), "name": 1}], [f"jobs[0].name: found 1, expected {NAME}, such as cam-1"]),
        ([{**job("a"), "name": "x" * 33}], [f'jobs[0].name: found "{"x" * 33}", expected {NAME}, such as cam-1']),
        ([{k: v for k, v in job("a").items() if k != "name"}], [f"jobs[0].name: missing: {NAME}"]),
        ([job("a"), {**job("b"), "name": "a"}], ["jobs[1].name: found a, which is the name of jobs[0]"]),
        ([{**job("a"), "feed": {}}], ["jobs[0].feed: belongs to the agent, not to a job: it stands beside jobs"]),
        ([{**job("a"), "sorce": {}}], ["jobs[0].sorce: unknown key, did you mean source?"]),
        ([{**job("a"), "copy": 4}], ["jobs[0].copy: found 4, expected options"]),
        ([{**job("a"), "copy": None}], []),
        ([job("a", copy={"verfy": "size"})], ["jobs[0].copy.verfy: unknown key, did you mean verify?"]),
        (
            [job("a"), job("b", source={"settle": "1s", "settle_closed": "2s"})],
            ["jobs[1].source.settle_closed: found 2s, expected at most source.settle, which is 1s"],
        ),
        ([job("a"), {**job("b"), "source": {"path": 3}}], ["jobs[1].source.path: found 3, expected a path, such as"]),
        (
            [job("a"), job("b", source={"path": "/in/a/"}, destination={"path": "/out/../out/a"})],
            ["jobs[1]: the same source and destination as jobs[0] (a)"],
        ),
        (
            [job("a"), job("b", source={"path": "/out/a/new"})],
            [f"jobs[1].source.path: found /out/a/new, which overlaps with the destination of a: {OVERLAP}"],
        ),
        (
            [job("a", source={"path": "/out"}), job("b")],
            [f"jobs[0].source.path: found /out, which overlaps with the destination of b: {OVERLAP}"],
        ),
        (
            [job("a", source={"path": "/done"}), job("b", copy={"on_success": "archive:/done/b"})],
            [f"jobs[0].source.path: found /done, which overlaps with the archive folder of b: {OVERLAP}"],
        ),
        (
            [job("a"), job("b", source={"path": "/in/a"}, copy={"on_success": "delete"})],
            ["jobs[1].copy.on_success: expected keep, here and there: a has a source in common with it"],
        ),
        (
            [job("a", destination={"if_exists": "rename"}), job("b", destination={"path": "/out/a"})],
            ["jobs[1].destination.if_exists: expected rename, skip or fail, here and there: a has a destination in"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(load: Load, jobs: object, problems: list[str]) -> None:
    """A path through the list to the key, what was found, and what is expected; nothing is told twice."""
    if not problems:
        load(jobs)
        return
    told = problems_of(load, jobs)
    assert len(told) == len(problems)
    for text, problem in zip(told, problems, strict=True):
        assert text.startswith(f"trioft.yaml: {problem}")


def test_everything_wrong_is_said_at_once(load: Load) -> None:
    """Beside ``jobs`` and in each of them, once each."""
    jobs = [job("a", copy={"transfers": 0}), job("b", retry={"first": "2h"}), {"name": "c"}]
    assert [
        text.partition(": ")[2].partition(": ")[0] for text in problems_of(load, jobs, {"copy": {"movers": 0}})
    ] == [
        "copy.movers",
        "jobs[2].source.path",
        "jobs[2].destination.path",
        "jobs[0].copy.transfers",
        "jobs[1].retry.first",
    ]


_KEYS = st.sampled_from(["name", "path", "verify", "settle", "if_exists", "on_success", 7, *GROUPS])
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.sampled_from(["/in", "/in/a", "/out", "a", "1s", "delete"])
)
_ANYTHING = st.recursive(_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4))


_JOB = st.builds(job, st.sampled_from("abc"), copy=st.dictionaries(_KEYS, _VALUES, max_size=2)) | _ANYTHING


@given(st.lists(_JOB, max_size=3) | _ANYTHING)
@example([job("a", copy={7: 1, "nothing": 2})])
@example([{7: 1, "nothing": 2}])
def test_whatever_stands_there_is_read_or_refused(jobs: object) -> None:
    """No configuration ends in a traceback, and each problem is one line with a place."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"jobs": jobs}, file)
        file.flush()
        problems: list[str] = []
        config = Config()
        try:
            config = load_config(file.name, {})
        except ConfigError as error:
            problems = error.problems
    assert all(text.startswith(f"{file.name}: jobs") and len(text.splitlines()) == 1 for text in problems), problems
    assert bool(config.jobs) == (not problems and jobs is not None)
    assert all(job.source.path and job.destination.path for job in config.jobs.values())


def test_with_jobs_there_is_no_other_source_or_destination(load: Load) -> None:
    """Neither beside them nor on the command line."""
    text = "there are jobs, which have their own"
    assert problems_of(load, [job("a")], {"source": {"path": "/x"}}) == [f"trioft.yaml: source.path: {text}"]
    options = {"source.path": ("SOURCE", "/x"), "destination.path": ("DEST", "/y")}
    assert problems_of(load, [job("a")], {}, options) == [f"SOURCE: {text}", f"DEST: {text}"]


def test_only_jobs_that_there_are_can_be_chosen(site: Site, tmp_path: Path) -> None:
    """The nearest name is proposed; where there are no jobs, that is said."""
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"jobs": [job("cam-1"), job("scans")]}))
    done = site.run("sync", "-c", file, "--job", "cam1", "--job", "scans")
    assert (done.code, done.err) == (2, "trioft: error: --job cam1: there is no such job, did you mean cam-1?\n")
    done = site.run("watch", site.source, site.dest, "--job", "a")
    assert (done.code, done.err) == (2, "trioft: error: --job a: the configuration has no jobs\n")


def test_an_agents_options_are_no_jobs(load: Load) -> None:
    """Every group is either the agent's or a job's."""
    names = {field.name for field in attrs.fields(Config)} - {"jobs"}
    for group in names - {"source", "destination"}:
        given = [{**job("a"), group: {}}]
        if group in AGENT_GROUPS:
            assert f"jobs[0].{group}: belongs to the agent" in problems_of(load, given)[0]
        else:
            load(given)
