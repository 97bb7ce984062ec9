"""
The jobs of a configuration: how their list is read, and which of them do not go together.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from trioft.config.kinds import JOB_NAME
from trioft.config.options import AGENT_GROUPS, GROUPS, Config
from trioft.core.errors import ConfigError
from trioft.core.units import as_written, visible

Tree = dict[str, Any]
Fault = tuple[str, str]  # path, and what is wrong there


def read_jobs(listed: object) -> tuple[list[tuple[str, str, Tree]], list[Fault]]:
    """
    Return place, name and groups of options of each job; and what is wrong with them, but for the options themselves.

    A job without a name of its own is called after its place, so that its options can be read too.
    """
    faults: list[Fault] = []
    jobs: list[tuple[str, str, Tree]] = []
    names: dict[object, str] = {}
    if not isinstance(listed, list) or not listed:
        found = "an empty list" if listed == [] else as_written(listed)
        return [], [("jobs", f"found {found}, expected a list of jobs, each with a name")]
    for number, job in enumerate(listed):
        place = f"jobs[{number}]"
        if not isinstance(job, dict):
            faults.append((place, f"found {as_written(job)}, expected name, source, destination and more groups"))
            continue
        name, known = job.get("name"), False
        try:
            JOB_NAME.read(name)
        except ValueError as error:
            faults.append((f"{place}.name", str(error) if "name" in job else f"missing: {JOB_NAME.unit}"))
        else:
            known = names.setdefault(name, place) == place
            if not known:
                faults.append((f"{place}.name", f"found {name}, which is the name of {names[name]}"))
        groups = {str(key): group for key, group in job.items() if key != "name"}
        faults += _wrong_groups(place, groups)
        own = {
            key: {str(option): value for option, value in group.items()}
            for key, group in groups.items()
            if key in _OWN and isinstance(group, dict)
        }
        for side in ("source", "destination"):
            if own.get(side, {}).get("path") is None:
                faults.append((f"{place}.{side}.path", "missing: every job has its own"))
        jobs.append((place, str(name) if known else place, own))
    return jobs, faults


_OWN = [name for name in GROUPS if name not in AGENT_GROUPS]


def _wrong_groups(place: str, groups: Tree) -> Iterator[Fault]:
    for key, group in groups.items():
        if key in AGENT_GROUPS:
            yield f"{place}.{key}", "belongs to the agent, not to a job: it stands beside jobs"
        elif key not in _OWN:
            yield f"{place}.{key}", unknown(key, ["name", *_OWN], [])
        elif group is not None and not isinstance(group, dict):
            yield f"{place}.{key}", f"found {as_written(group)}, expected options"


def unknown(key: str, known: Sequence[str], elsewhere: Sequence[str]) -> str:
    """Say what may have been meant by *key*, which is none of the *known* ones."""
    near = difflib.get_close_matches(key, known, 1) or elsewhere
    return f"unknown key, did you mean {' or '.join(near)}?" if near else f"unknown key, known here: {', '.join(known)}"


def choose(config: Config, names: Sequence[str]) -> Config:
    """Return *config* with only the jobs of these *names*. Raises ``ConfigError``."""
    problems = []
    for name in names:
        if not config.jobs:
            problems.append(f"--job {visible(name)}: the configuration has no jobs")
        elif name not in config.jobs:
            near = difflib.get_close_matches(name, config.jobs, 1) or config.jobs
            problems.append(f"--job {visible(name)}: there is no such job, did you mean {' or '.join(near)}?")
    if problems:
        raise ConfigError(problems)
    return attrs.evolve(config, jobs={name: job for name, job in config.jobs.items() if name in names})


# --- What does not go together ----------------------------------------------------------------------------------------


def why_not_together(jobs: Sequence[tuple[str, str, Config]]) -> Iterator[Fault]:
    """
    Yield what is wrong with *jobs* (place, name, options) that are fine one by one.

    As far as their paths tell: links and mounts are not looked at.
    """
    for number, (place, name, job) in enumerate(jobs):
        for other_place, other_name, other in jobs[:number]:
            if _ends(job) == _ends(other) and all(_ends(job)):
                yield place, f"the same source and destination as {other_place} ({visible(other_name)})"
                continue
            yield from _why_not_both(place, job, other_name, other)
            yield from ((path, text) for path, text in _feeds(other_place, other, name, job))
            yield from ((path, text) for path, text in _feeds(place, job, other_name, other))


def _feeds(place: str, job: Config, other_name: str, other: Config) -> Iterator[Fault]:
    """One job must not pick up what the other one delivers, or puts away."""
    source, _ = _ends(job)
    _, destination = _ends(other)
    archive = other.copy.on_success.folder
    for folder, what in ((destination, "destination"), (archive and os.path.abspath(archive), "archive folder")):
        if _overlap(source, folder):
            text = f"found {visible(str(source))}, which overlaps with the {what} of {visible(other_name)}: "
            yield f"{place}.source.path", text + "one job would transfer what the other one has put there"


def _why_not_both(place: str, job: Config, other_name: str, other: Config) -> Iterator[Fault]:
    """Two jobs may have one end in common, unless one could take away what the other one needs."""
    (source, destination), (other_source, other_destination) = _ends(job), _ends(other)
    name = visible(other_name)
    if _overlap(source, other_source) and {job.copy.on_success.action, other.copy.on_success.action} != {"keep"}:
        text = f"expected keep, here and there: {name} has a source in common with it, and may not be done with a file"
        yield f"{place}.copy.on_success", text
    if _overlap(destination, other_destination):
        policies = {job.destination.if_exists, other.destination.if_exists}
        if policies & {None, "overwrite"}:
            text = f"expected rename, skip or fail, here and there: {name} has a destination in common with it"
            yield f"{place}.destination.if_exists", f"{text}, and one could overwrite what the other one has delivered"


def _ends(job: Config) -> tuple[str | None, str | None]:
    source, destination = job.source.path, job.destination.path
    return source and os.path.abspath(source), destination and os.path.abspath(destination)


def _overlap(one: str | None, other: str | None) -> bool:
    """Are they the same folder, or is one of them in the other?"""
    return one is not None and other is not None and os.path.commonpath([one, other]) in (one, other)
