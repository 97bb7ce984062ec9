"""
The configuration: the classes below are the manual of every option.

An option is declared once: its type, its default in the notation of the file, what its values may be (``kinds``), and
one sentence that says what it is for. Reading, checking, messages, ``example`` and ``dump`` follow from it.

What ``load_config`` returns has been checked. A class that is built by hand, as tests do, is not.
"""

# ruff: noqa: RUF009  (``option`` declares a field, it is not a default that is shared by accident)

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from trioft.errors import ConfigError
from trioft.kinds import (
    COUNT,
    MARKER,
    MIN_FREE,
    ON_SUCCESS,
    PATH,
    PATTERNS,
    PERIOD,
    RATE,
    SIZE,
    SWITCH,
    TIME,
    Kind,
    MinFree,
    OnSuccess,
    duration,
    one_of,
    size,
    whole,
)
from trioft.notation import as_written, visible

if TYPE_CHECKING:
    import cattrs

# --- The manual ---------------------------------------------------------------------------------------------


def option(default: object, kind: Kind, reason: str, *, at_most: str | None = None) -> Any:
    """
    Declare an option: its *default* in the notation of the file, its *kind*, and what it is for.

    *at_most* names an option declared before it that its value may not exceed. Its default goes down with
    that one, so that only what a person wrote is ever refused.
    """
    value: Any = kind.read(default)
    metadata = {"kind": kind, "reason": reason, "at_most": at_most}
    if at_most is None:
        return attrs.field(default=value, metadata=metadata)
    bounded = attrs.Factory(lambda self: min(value, getattr(self, at_most)), takes_self=True)
    return attrs.field(default=bounded, metadata=metadata)


@attrs.frozen(kw_only=True)
class Source:
    """Where the files come from."""

    path: str | None = option(None, PATH, "The folder, or the one file, that is transferred.")
    include: tuple[str, ...] = option(
        [], PATTERNS, "Only files that match one of these are transferred; all, where there is none."
    )
    exclude: tuple[str, ...] = option(
        [], PATTERNS, "Files that match one of these are left alone, even where include matches too."
    )
    settle: float = option(
        "10s",
        TIME,
        "A file must be left alone this long before it is copied, where there is no better proof.",
    )
    settle_closed: float = option(
        "500ms",
        TIME,
        "The same for closed files, as some programs open them again; <= settle.",
        at_most="settle",
    )
    scan_interval: float = option(
        "10s", PERIOD, "The whole source is looked through this often, as file events can get lost."
    )


@attrs.frozen(kw_only=True)
class Destination:
    """Where the files go. Moved to another filesystem on purpose? Start once with --accept-new-destination."""

    path: str | None = option(None, PATH, "The folder that receives the files; it must exist.")
    if_exists: Literal["rename", "overwrite", "skip", "fail"] | None = option(
        None,
        one_of("rename", "overwrite", "skip", "fail", None),
        "For names that are taken; null: overwrite in sync, and rename in watch, to lose no recording.",
    )
    min_free: MinFree = option(
        "1%",
        MIN_FREE,
        "Files wait rather than leave less space than this, as others write there too.",
    )
    check_interval: float = option("10s", PERIOD, "The destination's health and free space are looked at this often.")
    require_mount: bool = option(
        False, SWITCH, "Wait until something is mounted there; files would fill the local disk otherwise."
    )
    marker: str | None = option(
        None,
        MARKER,
        "A file that must exist in the destination folder, to tell the right volume from others.",
    )


@attrs.frozen(kw_only=True)
class Growing:
    """What happens to files that are still being written."""

    mode: Literal["follow", "wait"] = option(
        "follow",
        one_of("follow", "wait"),
        "Copy them while they grow, and sync stays for them; or wait for the close, and sync leaves them.",
    )
    min_size: int = option("16MiB", SIZE, "Smaller ones wait until they are closed, as most of them soon are.")
    transfers: int = option(
        8, COUNT, "Files followed at the same time, each with a lane of its own beside copy.transfers."
    )
    headroom: int = option(
        "0B", SIZE, "Stay this far behind the end, for recorders that write its last part more than once."
    )
    poll: float = option("250ms", duration("50ms"), "Look at each this often, where no event tells that it has grown.")
    reconcile: Literal["full", "edges"] = option(
        "full",
        one_of("full", "edges"),
        "Compare all of it once it is closed, or its first and last 64 MiB only, for slow source disks.",
    )
    include: tuple[str, ...] = option(
        [], PATTERNS, "Only files that match one of these are followed; all, where there is none."
    )
    exclude: tuple[str, ...] = option([], PATTERNS, "Files that match one of these wait until they are closed.")


@attrs.frozen(kw_only=True)
class Copy:
    """How files are copied."""

    transfers: int = option(4, COUNT, "Files or bundles copied at the same time, to keep a network busy.")
    movers: int = option(4, COUNT, "Processes for files, as many again for growing ones: a dead mount stops only them.")
    verify: Literal["size", "transfer", "readback"] = option(
        "readback",
        one_of("size", "transfer", "readback"),
        "Compare sizes; what was read with what was written; or what is read back, which finds most.",
    )
    on_success: OnSuccess = option(
        "keep",
        ON_SUCCESS,
        "For delivered source files; DIR is on the source's filesystem, as they are moved there.",
    )
    bwlimit: int | None = option(
        "off", RATE, "The most that all transfers together use, such as 20MiB/s, to leave some to others."
    )
    stall_timeout: float = option(
        "30s",
        duration("1s"),
        "An operation without progress for this long has failed; dead mounts never answer.",
    )
    checkpoint_size: int = option(
        "256MiB",
        size("8MiB"),
        "Progress is made durable after this much, so that no more is ever copied again.",
    )
    checkpoint_time: float = option(
        "5s", duration("1ms"), "Progress is made durable after this long too, for slow destinations."
    )


@attrs.frozen(kw_only=True)
class Retry:
    """What happens after an error with one file."""

    retries: int = option(
        5,
        whole("whole number from 0", range(2**63)),
        "A file is tried again this often; then it failed, until it changes.",
    )
    longest: float = option("60s", TIME, "The longest pause before another attempt; pauses double up to it.")
    first: float = option("1s", TIME, "The first pause, as most errors pass soon; <= longest.", at_most="longest")


@attrs.frozen(kw_only=True)
class Metadata:
    """What is copied beside the content."""

    xattrs: bool = option(True, SWITCH, "Copy extended attributes (user.*) where both ends have them.")


@attrs.frozen(kw_only=True)
class Log:
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = option(
        "info", one_of("debug", "info", "warning", "error"), "Messages of less weight are not written."
    )


@attrs.frozen(kw_only=True)
class State:
    """What trioft remembers."""

    dir: str | None = option(None, PATH, "The folder of the ledgers; null: the user's state folder for trioft.")
    keep_history: float = option("14d", TIME, "The history goes back this long, so that it does not grow for ever.")
    shutdown_grace: float = option("10s", TIME, "After the signal to stop, this long remains to reach a checkpoint.")


@attrs.frozen(kw_only=True)
class Config:
    """All options."""

    source: Source = Source()
    destination: Destination = Destination()
    growing: Growing = Growing()
    copy: Copy = Copy()
    retry: Retry = Retry()
    metadata: Metadata = Metadata()
    log: Log = Log()
    state: State = State()


_GROUPS: dict[str, type[Any]] = {group.name: type(group.default) for group in attrs.fields(Config)}


# --- Reading ------------------------------------------------------------------------------------------------


class _Refused(ValueError):
    """The value of one option was refused."""

    def __init__(self, group: str, key: str, text: str) -> None:
        super().__init__(text)
        self.key = (group, key)


def load_config(file: str | None, options: Mapping[str, tuple[str, object]]) -> Config:
    """
    Return the configuration of *file* with *options* laid over it; ``ConfigError`` tells all problems at once.

    *options* are the command line's: ``{"copy.transfers": ("--transfers", "4")}``. Messages name the label
    instead of the key. None and an empty list stand for an option that was not given.
    """
    import cattrs

    problems: list[str] = []
    tree = _read_file(file, problems) if file is not None else {}
    labels = {path: label for path, (label, value) in options.items() if value not in (None, [], ())}
    for path in labels:
        group, _, key = path.partition(".")
        tree.setdefault(group, {})[key] = options[path][1]

    def add(group: str, key: str, text: str) -> None:
        path = f"{group}.{key}" if group else key
        where = labels.get(path) or (f"{visible(file)}: {visible(path)}" if file is not None else path)
        problems.append(f"{where}: {text}")

    converter = _converter(labels)
    refused: set[tuple[str, str]] = set()
    try:
        config = converter.structure(tree, Config)
    except cattrs.ClassValidationError as error:
        for (group, key), text in _refusals(error):
            add(group, key, text)
            refused.add((group, key))
            del (tree[group] if group else tree)[key]
        config = converter.structure(tree, Config)  # the rest, to find what does not go together
    for group, key, other, text in _conflicts(config):
        if not refused & {(group, key), (group, other)}:
            add(group, key, text.format(other=labels.get(f"{group}.{other}", f"{group}.{other}")))
    if problems:
        raise ConfigError(problems)
    return config


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
                raise _Refused(group, key, str(error)) from None

        return read

    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    for group, cls in _GROUPS.items():
        hooks: dict[str, Any] = {
            field.name: override(struct_hook=hook(group, field.name, field.metadata["kind"]))
            for field in attrs.fields(cls)
        }
        converter.register_structure_hook(cls, make_dict_structure_fn(cls, converter, **hooks))
    return converter


def _refusals(error: Exception) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the group and key, and what is wrong with it, of everything that cattrs refused."""
    from cattrs import ClassValidationError, ForbiddenExtraKeysError

    match error:
        case ClassValidationError():
            for inner in error.exceptions:
                yield from _refusals(inner)
        case ForbiddenExtraKeysError():
            group = next((name for name, cls in _GROUPS.items() if cls is error.cl), "")
            for key in sorted(error.extra_fields):
                yield (group, key), _unknown_key(group, key)
        case _Refused():
            yield error.key, str(error)
        case _:
            raise error


def _unknown_key(group: str, key: str) -> str:
    known = _keys(_GROUPS.get(group, Config))
    elsewhere = [f"{name}.{key}" for name, cls in _GROUPS.items() if key in _keys(cls)]
    near = difflib.get_close_matches(key, known, 1) or elsewhere
    return f"unknown key, did you mean {' or '.join(near)}?" if near else f"unknown key, known here: {', '.join(known)}"


def _keys(cls: type[Any]) -> list[str]:
    return [field.name for field in attrs.fields(cls)]


def _conflicts(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """Yield group, key, other key and what is wrong, for values that do not go together."""
    for group, cls in _GROUPS.items():
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


def _read_file(file: str, problems: list[str]) -> dict[str, Any]:
    """Return the groups of *file*, and add to *problems* what belongs to no option."""
    try:
        with open(file, "rb") as stream:
            tree, faults = _read_yaml(stream.read())
    except OSError as error:
        tree, faults = None, [f"cannot be read: {error.strerror}"]
    if tree is not None and not isinstance(tree, dict):
        faults.append(f"found {as_written(tree)}, expected groups of options: {', '.join(_GROUPS)}")
        tree = None
    groups: dict[str, Any] = {}
    for key, group in (tree or {}).items():
        groups[str(key)] = {str(k): v for k, v in group.items()} if isinstance(group, dict) else group
        if key in _GROUPS and not isinstance(group, dict):
            groups[key] = {}
            if group is not None:  # otherwise all its options are commented out
                faults.append(f"{key}: found {as_written(group)}, expected options: {', '.join(_keys(_GROUPS[key]))}")
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
        for group, cls in _GROUPS.items()
    }


def dump(config: Config) -> str:
    """Return *config* as YAML from which ``load_config`` reads it back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def represent_str(self, data: str) -> yaml.ScalarNode:
            style = None if data.isprintable() else '"'  # PyYAML itself writes some line breaks as they are
            return self.represent_scalar("tag:yaml.org,2002:str", data, style)

    Dumper.add_representer(str, Dumper.represent_str)
    return str(yaml.dump(_shown(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=2**31))


_HEAD = """\
# The configuration of trioft: every option with its default, what it may be, and what it is for.
# Remove the # in front of an option to change it. The command line overrides this file.
#
# Durations: 500ms, 10s, 1.5h, 2h45m, 14d. Sizes: 64MiB (binary), 10GB (decimal). Rates: 20MiB/s.
# Patterns are relative to the source; ** spans folders; they need quotes: ["**/*.mov", "dailies/*"].
"""


def example() -> str:
    """Return a configuration file with every option, commented out."""
    lines = [_HEAD.rstrip()]
    for group, values in _shown(Config()).items():
        lines.append(f"\n# {_GROUPS[group].__doc__}\n{group}:")
        for field in attrs.fields(_GROUPS[group]):
            value = values[field.name]
            entry = f"{field.name}: {value if isinstance(value, str) else json.dumps(value)}"
            lines.append(f"#   {entry:24} # {field.metadata['kind'].unit}. {field.metadata['reason']}")
    return "\n".join(lines) + "\n"
