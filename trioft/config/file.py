"""
The configuration file: read, with every problem at once; and written, as it is in effect or as an example.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from trioft.config.jobs import Tree, read_jobs, unknown, why_not_together
from trioft.config.kinds import Faults, Kind
from trioft.config.options import GROUPS, Config
from trioft.core.errors import ConfigError
from trioft.core.units import as_written, visible

if TYPE_CHECKING:
    import cattrs

_TOKEN = "TRIOFT_FEED_TOKEN"

# --- Reading ------------------------------------------------------------------------------------------------


class _Refused(ValueError):
    """The value of one option was refused, for one reason, or several: each with where in the value it lies."""

    def __init__(self, group: str, key: str, error: ValueError) -> None:
        super().__init__(str(error))
        self.key = (group, key)
        self.faults = error.faults if isinstance(error, Faults) else [("", str(error))]


def load_config(file: str | None, options: Mapping[str, tuple[str, object]]) -> Config:
    """
    Return the configuration of *file* with *options* laid over it; ``ConfigError`` tells all problems at once.

    *options* are the command line's: ``{"copy.transfers": ("--transfers", "4")}``. Messages name the label
    instead of the key. None and an empty list stand for an option that was not given.
    """
    problems: list[str] = []
    tree = _read_file(file, problems) if file is not None else {}
    labels = {path: label for path, (label, value) in options.items() if value not in (None, [], ())}
    words: Tree = {}
    for path in labels:
        group, _, key = path.partition(".")
        words.setdefault(group, {})[key] = options[path][1]
    listed = tree.pop("jobs", None)

    def add(path: str, text: str) -> None:
        option, bracket, inside = path.partition("[")
        if option in labels:
            where = labels[option] + bracket + inside
        else:
            where = f"{visible(file)}: {visible(path)}" if file is not None else path
        problems.append(f"{where}: {text}")

    converter = _converter(labels)
    config, faults = _structure(_over(tree, words), converter, labels)
    for path, text, _ in faults:
        add(path, text)
    if listed is not None:
        for side in ("source", "destination"):
            if getattr(config, side).path is not None:
                add(f"{side}.path", "there are jobs, which have their own")
            for groups in (tree, words):
                groups.get(side, {}).pop("path", None)
        common = {group: values for group, values in tree.items() if group in GROUPS}
        jobs, refused = read_jobs(listed)
        found: list[tuple[str, str, Config]] = []
        for place, name, own in jobs:
            job, faults = _structure(_over(_over(common, own), words), converter, labels)
            # What a job has not got of its own was told above.
            its = [(path, text) for path, text, keys in faults if any(key in own.get(group, {}) for group, key in keys)]
            refused += [(f"{place}.{path}", text) for path, text in its]
            found.append((place, name, job))
        for path, text in [*refused, *why_not_together(found)]:
            add(path, text)
        config = attrs.evolve(config, jobs={name: job for _, name, job in found})
    if problems:
        raise ConfigError(problems)
    return config


def from_environment(environment: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    """
    Return the options that *environment* has, as ``load_config`` takes them: TRIOFT_GROUP_KEY for each.

    A name like these that stands for none is a ``ConfigError``. The feed's token is not among them: nobody shows it.
    """
    paths = {f"TRIOFT_{group}_{key}".upper(): f"{group}.{key}" for group, cls in GROUPS.items() for key in _keys(cls)}
    groups = tuple(f"TRIOFT_{group}_".upper() for group in GROUPS)
    options: dict[str, tuple[str, object]] = {}
    problems = []
    for name, word in environment.items():
        if name not in paths:
            if name.startswith(groups):
                near = difflib.get_close_matches(name, paths, 1)
                problems.append(f"{name}: it stands for no option" + (f", did you mean {near[0]}?" if near else ""))
        elif name != _TOKEN and word:  # an empty one is how many programs say that it is not set
            options[paths[name]] = name, _value_of(word)
    if problems:
        raise ConfigError(problems, hint="it is in the environment")
    return options


def _value_of(word: str) -> object:
    """Return a word of the environment as the file would have it; lists and null are written as there."""
    if not word.startswith("[") and word not in ("true", "false", "null"):
        return word
    import yaml

    try:
        return json.loads(word)  # which may hold what YAML does not allow
    except ValueError:
        try:
            return yaml.safe_load(word)
        except yaml.YAMLError:
            return word


def _over(tree: Tree, more: Tree) -> Tree:
    """Return *more* laid over *tree*, key by key."""
    laid = {**tree}
    for group, values in more.items():
        below = tree.get(group)
        laid[group] = {**below, **values} if isinstance(below, dict) else values
    return laid


# Path, what is wrong there, and the groups and keys that this is about.
_Fault = tuple[str, str, list[tuple[str, str]]]


def _structure(tree: Tree, converter: cattrs.Converter, labels: Mapping[str, str]) -> tuple[Config, list[_Fault]]:
    """Return what *tree* says, with defaults for what it has not, or has wrongly; and what is wrong with that."""
    import cattrs

    tree = {group: {**values} if isinstance(values, dict) else values for group, values in tree.items()}
    faults: list[_Fault] = []
    refused: set[tuple[str, str]] = set()
    try:
        config = converter.structure(tree, Config)
    except cattrs.ClassValidationError as error:
        for (group, key), where, text in _refusals(error):
            faults.append(((f"{group}.{key}" if group else key) + where, text, [(group, key)]))
            refused.add((group, key))
            (tree[group] if group else tree).pop(key, None)
        config = converter.structure(tree, Config)  # the rest, to find what does not go together
    for group, key, other, text in _conflicts(config):
        its_group, _, its_key = other.rpartition(".")
        its_group = its_group or group
        if not refused & {(group, key), (its_group, its_key)}:
            told = text.format(other=labels.get(f"{its_group}.{its_key}", f"{its_group}.{its_key}"))
            faults.append((f"{group}.{key}", told, [(group, key), (its_group, its_key)]))
    return config, faults


def _converter(labels: Mapping[str, str]) -> cattrs.Converter:
    """Return a converter that reads every option by its kind: cattrs by itself makes 3 of 3.9."""
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn, override

    def hook(group: str, key: str, kind: Kind) -> Callable[[object, object], object]:
        def read(value: object, _: object) -> object:
            if isinstance(value, str) and f"{group}.{key}" in labels:
                value = kind.from_word(value)
            try:
                return kind.read(value)
            except ValueError as error:
                raise _Refused(group, key, error) from None

        return read

    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    for group, cls in GROUPS.items():
        hooks: dict[str, Any] = {
            field.name: override(struct_hook=hook(group, field.name, field.metadata["kind"]))
            for field in attrs.fields(cls)
        }
        converter.register_structure_hook(cls, make_dict_structure_fn(cls, converter, **hooks))
    whole = make_dict_structure_fn(Config, converter, jobs=override(omit=True))
    converter.register_structure_hook(Config, whole)
    return converter


def _refusals(error: Exception) -> Iterator[tuple[tuple[str, str], str, str]]:
    """Yield the group and key, where in its value, and what is wrong there, of everything that cattrs refused."""
    from cattrs import ClassValidationError, ForbiddenExtraKeysError

    match error:
        case ClassValidationError():
            for inner in error.exceptions:
                yield from _refusals(inner)
        case ForbiddenExtraKeysError():
            group = next((name for name, cls in GROUPS.items() if cls is error.cl), "")
            for key in sorted(error.extra_fields):
                yield (group, key), "", _unknown_key(group, key)
        case _Refused():
            for where, text in error.faults:
                yield error.key, where, text
        case _:
            raise error


def _unknown_key(group: str, key: str) -> str:
    known = _keys(GROUPS.get(group, Config))
    elsewhere = [f"{name}.{key}" for name, cls in GROUPS.items() if key in _keys(cls)]
    return unknown(key, known, elsewhere)


def _keys(cls: type[Any]) -> list[str]:
    return [field.name for field in attrs.fields(cls)]


def _conflicts(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """Yield group, key, other key (or GROUP.KEY) and what is wrong, for values that do not go together."""
    for group, cls in GROUPS.items():
        values = getattr(config, group)
        for field in attrs.fields(cls):
            kind, other = field.metadata["kind"], field.metadata["at_most"]
            if other is not None and (value := getattr(values, field.name)) > (most := getattr(values, other)):
                text = f"found {kind.show(value)}, expected at most {{other}}, which is {kind.show(most)}"
                yield group, field.name, other, text
    if config.copy.verify == "size" and (action := config.copy.on_success.action) != "keep":
        text = f"found {action}, expected keep where {{other}} is size: "
        text += "a source file is removed only after verification at the level transfer or readback"
        yield "copy", "on_success", "verify", text
    if config.growing.reconcile == "edges" and (action := config.copy.on_success.action) != "keep":
        text = f"found {action}, expected keep where {{other}} is edges: "
        text += "a copy that was not compared as a whole never frees its source"
        yield "copy", "on_success", "growing.reconcile", text


def _read_file(file: str, problems: list[str]) -> Tree:
    """Return the groups of *file*, and add to *problems* what belongs to no option."""
    try:
        with open(file, "rb") as stream:
            tree, faults = _read_yaml(stream.read())
    except OSError as error:
        tree, faults = None, [f"cannot be read: {error.strerror}"]
    if tree is not None and not isinstance(tree, dict):
        faults.append(f"found {as_written(tree)}, expected groups of options: {', '.join(GROUPS)}")
        tree = None
    groups: dict[str, Any] = {}
    for key, group in (tree or {}).items():
        groups[str(key)] = {str(k): v for k, v in group.items()} if isinstance(group, dict) else group
        if key in GROUPS and not isinstance(group, dict):
            groups[key] = {}
            if group is not None:  # otherwise all its options are commented out
                faults.append(f"{key}: found {as_written(group)}, expected options: {', '.join(_keys(GROUPS[key]))}")
    problems += [f"{visible(file)}: {fault}" for fault in faults]
    return groups


def _read_yaml(text: bytes) -> tuple[Any, list[str]]:
    """Return the content of *text*, and what is wrong with it as YAML."""
    import yaml

    faults: list[str] = []

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:  # PyYAML keeps the last of several, silently
                line = key.start_mark.line + 1
                if (name := str(key.value)) in lines:
                    faults.append(f"line {line}: {visible(name)}: given before, in line {lines[name]}")
                lines[name] = line
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
            text = str(node.value)
            if re.fullmatch("[-+]?0[0-7_]+", text):  # which YAML 1.1 takes for octal
                line, plain = node.start_mark.line + 1, text.replace("_", "").lstrip("+-0") or "0"
                faults.append(
                    f"line {line}: found {text}, expected a number without 0 at its beginning, such as {plain}"
                )
            return int(super().construct_yaml_int(node))

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)

    try:
        return yaml.load(text, Loader), faults
    except Exception as error:  # PyYAML lets the ValueError, KeyError, … of malformed scalars escape
        problem, mark = getattr(error, "problem", None) or str(error), getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        quotes = "; a text that begins with * or & needs quotes" if re.search("alias|anchor", str(error)) else ""
        return None, [*faults, f"{where}not YAML: {visible(' '.join(problem.split()))}{quotes}"]


# --- Writing ------------------------------------------------------------------------------------------------


def _shown(config: Config) -> dict[str, dict[str, object]]:
    """Return the values of *config* as the file has them."""

    def show(values: object, field: attrs.Attribute[Any]) -> object:
        value, kind = getattr(values, field.name), field.metadata["kind"]
        return kind.show(value)

    return {
        group: {field.name: show(getattr(config, group), field) for field in attrs.fields(cls)}
        for group, cls in GROUPS.items()
    }


def _shown_with_jobs(config: Config) -> dict[str, object]:
    """Return the values of *config*, and of its jobs those that are others than its own."""
    groups = _shown(config)
    if not config.jobs:
        return {**groups}
    jobs: list[dict[str, object]] = []
    for name, job in config.jobs.items():
        its = {
            group: {key: value for key, value in values.items() if value != groups[group][key]}
            for group, values in _shown(job).items()
        }
        jobs.append({"name": name, **{group: values for group, values in its.items() if values}})
    return {**groups, "jobs": jobs}


def dump(config: Config) -> str:
    """Return *config* as YAML from which ``load_config`` reads it back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def represent_str(self, data: str) -> yaml.ScalarNode:
            style = None if data.isprintable() else '"'  # PyYAML itself writes some line breaks as they are
            return self.represent_scalar("tag:yaml.org,2002:str", data, style)

    Dumper.add_representer(str, Dumper.represent_str)
    return str(yaml.dump(_shown_with_jobs(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=2**31))


_HEAD = """\
# The configuration of trioft: every option with its default, what it may be, and what it is for.
# Remove the # in front of an option to change it. The command line overrides this file.
#
# Durations: 500ms, 10s, 1.5h, 2h45m, 14d. Sizes: 64MiB (binary), 10GB (decimal). Rates: 20MiB/s.
# Patterns are relative to the source; ** spans folders; they need quotes: ["**/*.mov", "dailies/*"].
#
# A running trioft reads this file again when it gets a SIGHUP (kill -HUP PID): options with * hold at once then, the
# others from the next start on.
"""

_JOBS = """
# Several jobs in one agent: each has a name, a source and a destination. The options above hold for all of them, and
# each may have others of its own; only feed, log, agent and state are the agent's. With jobs, there is no path above.
# jobs:
# - {name: cam-1, source: {path: /ingest/cam-1}, destination: {path: /mnt/nas/cam-1}}
# - {name: scans, source: {path: /scans}, destination: {path: /mnt/archive/scans}, copy: {verify: transfer}}
"""


def example() -> str:
    """Return a configuration file with every option, commented out."""
    lines = [_HEAD.rstrip()]
    for group, values in _shown(Config()).items():
        lines.append(f"\n# {GROUPS[group].__doc__}\n{group}:")
        for field in attrs.fields(GROUPS[group]):
            value = values[field.name]
            entry = f"{field.name}: {value if isinstance(value, str) else json.dumps(value)}"
            mark = "* " if field.metadata["live"] else ""
            lines.append(f"#   {entry:24} # {mark}{field.metadata['kind'].unit}. {field.metadata['reason']}")
    return "\n".join(lines) + "\n" + _JOBS
