"""What the configuration accepts, what it refuses and in which words, and that it can be written back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import pytest
from hypothesis import assume, example, given, settings

from configs import CONFIGS, problems_of
from support import ROOT, Site
from trioft.config import file as configfile
from trioft.config.file import from_environment, load_config
from trioft.config.kinds import Limit, MinFree, OnSuccess, Turn
from trioft.config.options import GROUPS, Config, Copy, Destination, Growing, Retry, Source, State
from trioft.config.policy import how_to_copy
from trioft.core.errors import ConfigError
from trioft.core.model import Rule

EXAMPLE = ROOT / "config.example.yaml"
OPTIONS = [f"{name}.{field.name}" for name, cls in GROUPS.items() for field in attrs.fields(cls)]

Load = Callable[..., Config]
TRANSFERS = "did you mean growing.transfers or copy.transfers or agent.transfers?"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text as ``trioft.yaml`` of the current directory, with options."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, options: Mapping[str, tuple[str, object]] | None = None) -> Config:
        Path("trioft.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config("trioft.yaml", options or {})

    return load


def nested(path: str, yaml: str) -> str:
    """Return a file with one option."""
    group, _, key = path.partition(".")
    return f"{group}:\n  {key}: {yaml}\n"


# --- Defaults and the example -------------------------------------------------------------------------------


def test_without_file_and_options_everything_has_its_default() -> None:
    """The defaults are those that the manual promises."""
    loaded = load_config(None, {})
    assert loaded == Config()
    assert loaded.source == Source(path=None, include=(), exclude=(), settle=10, settle_closed=0.5, scan_interval=10)
    assert loaded.destination == Destination(
        path=None,
        if_exists=None,
        min_free=MinFree(percent=1),
        check_interval=10,
        require_mount=False,
        marker=None,
        routes=(),
    )
    assert loaded.growing == Growing(
        mode="follow",
        min_size=16 * 2**20,
        transfers=8,
        headroom=0,
        poll=0.25,
        reconcile="full",
        include=(),
        exclude=(),
    )
    assert loaded.copy == Copy(
        transfers=4,
        movers=4,
        verify="readback",
        on_success=OnSuccess(action="keep"),
        order="oldest",
        bwlimit=Limit(),
        stall_timeout=30,
        checkpoint_size=256 * 2**20,
        checkpoint_time=5,
    )
    assert loaded.retry == Retry(retries=5, first=1, longest=60)
    assert loaded.metadata.xattrs is True
    assert loaded.log.level == "info"
    assert loaded.state == State(dir=None, keep_history=14 * 86400, shutdown_grace=10)


def test_configuration_cannot_be_changed() -> None:
    """A running agent has one configuration, from beginning to end."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load_config(None, {}).copy.transfers = 9  # type: ignore[misc]


def test_example_file_is_what_the_classes_say() -> None:
    """The example in the repository is generated, and up to date."""
    assert EXAMPLE.read_text("utf-8") == configfile.example()


def test_example_loads_as_the_defaults_with_everything_commented_out(load: Load) -> None:
    """A group whose options are all commented out is an empty group."""
    assert load(configfile.example()) == Config()


def test_example_shows_every_option_with_its_default(load: Load) -> None:
    """Every option has a line of its own, and all lines uncommented are the defaults."""
    text, count = re.subn(r"(?m)^#(   \w+: )", r"\1", configfile.example())
    assert count == len(OPTIONS)
    assert re.findall(r"(?m)^   (\w+): ", text) == [path.partition(".")[2] for path in OPTIONS]
    assert load(text) == Config()


@pytest.mark.parametrize("line", re.findall(r"(?m)^#   .*", configfile.example()), ids=OPTIONS)
def test_example_explains_every_option(line: str) -> None:
    """An option's line is: key and default, what it may be, and one sentence."""
    assert re.fullmatch(r"#   \w+: \S+ +# .+?\. [A-Z].+\.", line)


def test_import_of_the_module_is_light() -> None:
    """cattrs and PyYAML are loaded where they are used: ``trioft --help`` needs neither."""
    code = (
        "import sys, trioft.config.options, trioft.config.file; sys.exit(bool({'cattrs', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# --- Values that are accepted -------------------------------------------------------------------------------


READ: list[tuple[str, str, object]] = [
    ("source.path", "/media/in", "/media/in"),
    ("source.path", '"/media/\\u00e9"', "/media/é"),
    ("source.include", '["*.mov", "a/**/b?.[mM]xf"]', ("*.mov", "a/**/b?.[mM]xf")),
    ("source.exclude", '\n    - "*.tmp"', ("*.tmp",)),
    ("source.settle", "0s", 0.0),
    ("source.settle_closed", "10s", 10.0),
    ("source.scan_interval", "100ms", 0.1),
    ("destination.if_exists", "skip", "skip"),
    ("destination.if_exists", "null", None),
    ("destination.routes", "[]", ()),
    ("destination.routes", '[{match: "*.mxf", to: "K/{name}"}]', (Rule("*.mxf", "", "K/{name}"),)),
    ("destination.routes", '[{regex: "(?P<d>.).*", to: "{d}/{name}"}]', (Rule("", "(?P<d>.).*", "{d}/{name}"),)),
    ("destination.min_free", "0B", MinFree(bytes=0)),
    ("destination.min_free", "10GiB", MinFree(bytes=10 * 2**30)),
    ("destination.min_free", "0.5%", MinFree(percent=0.5)),
    ("destination.min_free", "100%", MinFree(percent=100)),
    ("destination.require_mount", "true", True),
    ("destination.marker", ".trioft/volume..7", ".trioft/volume..7"),
    ("growing.mode", "wait", "wait"),
    ("growing.min_size", "0B", 0),
    ("growing.transfers", "64", 64),
    ("growing.headroom", "4MiB", 4 * 2**20),
    ("growing.poll", "50ms", 0.05),
    ("growing.reconcile", "edges", "edges"),
    ("growing.include", '["*.mxf", "live/**"]', ("*.mxf", "live/**")),
    ("growing.exclude", '\n    - "draft*"', ("draft*",)),
    ("copy.transfers", "64", 64),
    ("copy.movers", "1", 1),
    ("copy.verify", "size", "size"),
    ("copy.on_success", "delete", OnSuccess(action="delete")),
    ("copy.on_success", "'archive:../done: a'", OnSuccess(action="archive", folder="../done: a")),
    ("copy.order", "newest", "newest"),
    ("copy.bwlimit", "off", Limit()),
    ("copy.bwlimit", '"off"', Limit()),
    ("copy.bwlimit", "20MiB", Limit(20 * 2**20)),
    ("copy.bwlimit", "1.5MB/s", Limit(1_500_000)),
    ("copy.bwlimit", "08:00,1MB", Limit(turns=(Turn(None, 480, 10**6),))),
    (
        "copy.bwlimit",
        "08:00,1MB/s  18:30,off Sat-00:00,off Sun-23:59,1B",
        Limit(turns=(Turn(None, 480, 10**6), Turn(None, 1110, None), Turn(5, 0, None), Turn(6, 1439, 1))),
    ),
    ("copy.stall_timeout", "1s", 1.0),
    ("copy.checkpoint_size", "8MiB", 8 * 2**20),
    ("copy.checkpoint_time", "1ms", 0.001),
    ("retry.retries", "0", 0),
    ("retry.first", "60s", 60.0),
    ("retry.longest", "0s", 0.0),
    ("metadata.xattrs", "false", False),
    ("log.level", "debug", "debug"),
    ("state.dir", "./state", "./state"),
    ("state.keep_history", "0s", 0.0),
    ("state.shutdown_grace", "1m30s", 90.0),
]


@pytest.mark.parametrize(("path", "yaml", "value"), READ, ids=[f"{path}={yaml}" for path, yaml, _ in READ])
def test_values_are_read(load: Load, path: str, yaml: str, value: object) -> None:
    """What the file says in its notation arrives as seconds, bytes and words."""
    group, _, key = path.partition(".")
    read = getattr(getattr(load(nested(path, yaml)), group), key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "source:\n", "source: {}\n", "\ufeffsource:\n"],
    ids=["empty", "comment", "group", "braces", "bom"],
)
def test_file_without_options_is_the_defaults(load: Load, text: str) -> None:
    """An empty file, and an empty group, are no mistakes."""
    assert load(text) == Config()


def test_lower_settle_takes_the_default_of_settle_closed_along(load: Load) -> None:
    """A person who sets one option is never told about another one that is at its default."""
    assert load(nested("source.settle", "100ms")).source == Source(settle=0.1, settle_closed=0.1)
    assert load(nested("retry.longest", "100ms")).retry == Retry(longest=0.1, first=0.1)


@pytest.mark.parametrize(
    ("min_free", "floor"),
    [
        (MinFree(percent=1), 10**10),
        (MinFree(percent=0), 0),
        (MinFree(percent=100), 10**12),
        (MinFree(bytes=5), 5),
        (MinFree(bytes=0), 0),
    ],
    ids=str,
)
def test_min_free_is_a_part_of_the_whole_or_a_number_of_bytes(min_free: MinFree, floor: int) -> None:
    """``floor`` says how many bytes of a destination of 1 TB stay free."""
    assert min_free.floor(10**12) == floor


# --- Values that are refused --------------------------------------------------------------------------------

DURATION = "a duration with its unit, such as 10s"
SIZE = "a size with its unit, such as 64MiB"
RATE = "a rate with its unit, such as 20MiB/s, or off"
TURN = "a time and a rate, such as 18:00,off or Mon-08:00,20MiB/s"
FREE = "a percentage from 0% to 100%, or a size with its unit, such as 10GiB"
COUNT = "a whole number from 1 to 64"
PATH = "a path, such as /media/ingest"
PATTERNS = 'patterns relative to the source, such as "**/*.mov"'
MARKER = "a relative path without .., such as .volume-7"
REMOVAL = "a source file is removed only after verification at the level transfer or readback"
DONE = "keep, delete or archive:DIR, such as archive:/media/done"


REFUSED = [
    # bare numbers, and other notation that is none
    ("source.settle", "10", "10", DURATION),
    ("source.settle", '"10"', '"10"', DURATION),
    ("source.settle", "0", "0", DURATION),
    ("source.settle", "1:30", "90", DURATION),
    ("source.settle", "-1s", '"-1s"', DURATION),
    ("source.settle", "10 s", '"10 s"', DURATION),
    ("source.settle", '""', '""', DURATION),
    ("source.settle", "5m2h", '"5m2h"', DURATION),
    ("source.settle", "٣s", '"٣s"', DURATION),
    ("source.settle", "", "null", DURATION),
    ("source.settle", "36501d", '"36501d"', "a duration of at most 36500d"),
    ("copy.checkpoint_size", "268435456", "268435456", SIZE),
    ("copy.checkpoint_size", "64mib", '"64mib"', SIZE),
    ("copy.checkpoint_size", "-64MiB", '"-64MiB"', SIZE),
    ("copy.checkpoint_size", "8388608TiB", '"8388608TiB"', "a size below 8388608TiB"),
    ("copy.bwlimit", "20", "20", RATE),
    ("copy.bwlimit", "on", "true", RATE),
    ("copy.bwlimit", "0B", '"0B"', RATE),
    ("copy.bwlimit", "20MiB/m", '"20MiB/m"', RATE),
    ("copy.bwlimit", "08:00,20", '"20"', RATE),
    ("copy.bwlimit", "8:00,off", '"8:00,off"', TURN),
    ("copy.bwlimit", "24:00,off", '"24:00,off"', TURN),
    ("copy.bwlimit", "08:00,off Monday-09:00,1B", '"Monday-09:00,1B"', TURN),
    ("copy.bwlimit", "08:00,off 08:00,1B", '"08:00,1B"', "one rate for each time: there is 08:00,off already"),
    ("copy.order", "random", '"random"', "oldest, newest, smallest, largest or name"),
    ("destination.min_free", "10", "10", FREE),
    ("destination.min_free", "101%", '"101%"', FREE),
    ("destination.min_free", "-1%", '"-1%"', FREE),
    ("destination.min_free", "1.%", '"1.%"', FREE),
    # no coercion
    ("copy.transfers", "four", '"four"', COUNT),
    ("copy.transfers", "3.9", "3.9", COUNT),
    ("copy.transfers", "4.0", "4.0", COUNT),
    ("copy.transfers", '"4"', '"4"', COUNT),
    ("copy.transfers", "true", "true", COUNT),
    ("copy.transfers", "[4]", "a list", COUNT),
    ("copy.transfers", "{}", "a mapping", COUNT),
    ("metadata.xattrs", '"no"', '"no"', "true or false"),
    ("metadata.xattrs", "1", "1", "true or false"),
    ("source.include", '"*.mov"', '"*.mov"', 'a list of patterns, such as ["*.mov"]'),
    ("source.include", "[1]", "1", PATTERNS),
    ("source.path", "7", "7", PATH),
    ("source.path", "2024-01-01", '"2024-01-01"', PATH),
    ("source.path", '"a\\0b"', '"a\\u0000b"', PATH),
    ("source.path", '"\\uD800"', '"\\ud800"', PATH),
    ("state.dir", '""', '""', PATH),
    # values outside of what is possible
    ("copy.transfers", "0", "0", COUNT),
    ("copy.transfers", "65", "65", COUNT),
    ("copy.movers", "0", "0", COUNT),
    ("copy.movers", "65", "65", COUNT),
    ("growing.transfers", "0", "0", COUNT),
    ("growing.transfers", "65", "65", COUNT),
    ("growing.min_size", "-1B", '"-1B"', SIZE),
    ("growing.min_size", "16", "16", SIZE),
    ("growing.headroom", "off", "false", SIZE),
    ("growing.poll", "49ms", '"49ms"', "a duration of at least 50ms"),
    ("growing.include", '["/abs"]', '"/abs"', PATTERNS),
    ("growing.exclude", '["/abs"]', '"/abs"', PATTERNS),
    ("retry.retries", "-1", "-1", "a whole number from 0"),
    ("copy.checkpoint_size", "8191KiB", '"8191KiB"', "a size of at least 8MiB"),
    ("copy.checkpoint_time", "0s", '"0s"', "a duration of at least 1ms"),
    ("copy.stall_timeout", "999ms", '"999ms"', "a duration of at least 1s"),
    ("source.scan_interval", "99ms", '"99ms"', "a duration of at least 100ms"),
    ("destination.check_interval", "0s", '"0s"', "a duration of at least 100ms"),
    ("source.include", '["*.mov", "/abs", ""]', '"/abs", ""', PATTERNS),
    ("source.exclude", '["/abs"]', '"/abs"', PATTERNS),
    ("destination.marker", "/volume", '"/volume"', MARKER),
    ("destination.marker", "a/../../b", '"a/../../b"', MARKER),
    ("destination.marker", '""', '""', MARKER),
    # words that are none of those offered
    ("destination.if_exists", "replace", '"replace"', "rename, overwrite, skip, fail or null"),
    ("destination.if_exists", '"null"', '"null"', "rename, overwrite, skip, fail or null"),
    ("growing.mode", "null", "null", "follow or wait"),
    ("growing.reconcile", "none", '"none"', "full or edges"),
    ("copy.verify", "Size", '"Size"', "size, transfer or readback"),
    ("copy.verify", "[size]", "a list", "size, transfer or readback"),
    ("log.level", "off", "false", "debug, info, warning or error"),
    ("copy.on_success", "archive", '"archive"', DONE),
    ("copy.on_success", '"archive:"', '"archive:"', DONE),
    ("copy.on_success", '"keep:"', '"keep:"', DONE),
    ("copy.on_success", "{archive: /done}", "a mapping", DONE),
]


@pytest.mark.parametrize(
    ("path", "yaml", "found", "expected"), REFUSED, ids=[f"{path}={yaml}" for path, yaml, *_ in REFUSED]
)
def test_impossible_values_are_refused(load: Load, path: str, yaml: str, found: str, expected: str) -> None:
    """A message says where, what was found, and what is expected instead."""
    assert problems_of(load, nested(path, yaml)) == [f"trioft.yaml: {path}: found {found}, expected {expected}"]


def test_settle_closed_is_at_most_settle(load: Load) -> None:
    """A closed file needs no more patience than one about which nothing is known."""
    assert problems_of(load, "source: {settle: 1s, settle_closed: 2s}") == [
        "trioft.yaml: source.settle_closed: found 2s, expected at most source.settle, which is 1s"
    ]


def test_first_pause_is_at_most_the_longest(load: Load) -> None:
    """Pauses get longer, not shorter."""
    assert problems_of(load, "retry: {first: 2m}") == [
        "trioft.yaml: retry.first: found 2m, expected at most retry.longest, which is 60s"
    ]


@pytest.mark.parametrize("on_success", ["delete", "archive:/done"])
def test_nothing_is_removed_after_a_comparison_of_sizes(load: Load, on_success: str) -> None:
    """A source file is only removed after what was written has been verified."""
    action = on_success.partition(":")[0]
    assert problems_of(load, f"copy: {{verify: size, on_success: '{on_success}'}}") == [
        f"trioft.yaml: copy.on_success: found {action}, expected keep where copy.verify is size: {REMOVAL}"
    ]
    assert load(f"copy: {{verify: transfer, on_success: '{on_success}'}}").copy.verify == "transfer"


@pytest.mark.parametrize("on_success", ["delete", "archive:/done"])
def test_nothing_is_removed_after_a_comparison_of_edges(load: Load, on_success: str) -> None:
    """What was not compared as a whole never frees its source: promise 3."""
    action = on_success.partition(":")[0]
    (problem,) = problems_of(load, f"growing: {{reconcile: edges}}\ncopy: {{on_success: '{on_success}'}}")
    assert problem.startswith(f"trioft.yaml: copy.on_success: found {action}, expected keep where growing.reconcile is")
    assert load("growing: {reconcile: edges}").growing.reconcile == "edges"


def test_where_sources_go_names_are_numbered_and_copies_are_read_back(load: Load) -> None:
    """What is there may be all that is left of an earlier source; what was asked for is done all the same."""
    assert how_to_copy(load(""), True, 1).if_exists == "overwrite"
    assert how_to_copy(load(""), False, 1).if_exists == "rename"
    removing = how_to_copy(load("copy: {on_success: delete, verify: transfer}"), True, 1)
    assert (removing.if_exists, removing.verify) == ("rename", "readback")
    asked = load("copy: {on_success: 'archive:/done'}\ndestination: {if_exists: overwrite}")
    assert how_to_copy(asked, True, 1).if_exists == "overwrite"


def test_values_that_were_refused_are_in_no_conflict(load: Load) -> None:
    """One mistake is one message: a refused value is not compared with others."""
    assert len(problems_of(load, "source: {settle: 1, settle_closed: 20s}")) == 1


# --- Keys that are refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("destination: {min_fre: 1%}", "destination.min_fre: unknown key, did you mean min_free?"),
        ("sorce: {path: /a}", "sorce: unknown key, did you mean source?"),
        ("source: {transfers: 4}", f"source.transfers: unknown key, {TRANSFERS}"),
        ("transfers: 4", f"transfers: unknown key, {TRANSFERS}"),
        ("log: {qqq: 4}", "log.qqq: unknown key, known here: level, format, file, max_size, keep"),
        ("log: {1: 4}", "log.1: unknown key, known here: level, format, file, max_size, keep"),
        ('log: {"\\e": 4}', "log.\\x1b: unknown key, known here: level, format, file, max_size, keep"),
        ("7: {}", f"7: unknown key, known here: {', '.join(GROUPS)}, jobs"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_known_one(load: Load, text: str, problem: str) -> None:
    """A slip of the pen must not leave an option at its default."""
    assert problems_of(load, text) == [f"trioft.yaml: {problem}"]


def test_group_must_be_a_group(load: Load) -> None:
    """A value where options are expected is told with the options."""
    assert problems_of(load, "retry: 5") == ["trioft.yaml: retry: found 5, expected options: retries, longest, first"]


@pytest.mark.parametrize(("text", "found"), [("- source", "a list"), ("sync", '"sync"'), ("&a [*a]", "a list")])
def test_file_must_hold_groups(load: Load, text: str, found: str) -> None:
    """A file that is YAML, but no configuration, is refused."""
    assert problems_of(load, text) == [f"trioft.yaml: found {found}, expected groups of options: {', '.join(GROUPS)}"]


def test_every_key_that_is_given_twice_is_refused_with_its_lines(load: Load) -> None:
    """YAML libraries keep the last one silently; nobody knows which one was meant."""
    text = "copy:\n  transfers: 2\n  transfers: 3\nlog: {level: info, level: debug}\ncopy:\n  movers: 2\n"
    assert sorted(problems_of(load, text)) == [
        "trioft.yaml: line 3: transfers: given before, in line 2",
        "trioft.yaml: line 4: level: given before, in line 4",
        "trioft.yaml: line 5: copy: given before, in line 1",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("source: {path: [}", "line 1: not YAML: "),
        ("source:\n  include: [*.mov]", "line 2: not YAML: .*; a text that begins with \\* or & needs quotes"),
        ("a: 1\n---\nb: 2", "line 2: not YAML: "),
        ("a: !!python/name:os.system x", "line 1: not YAML: "),
        ("a: 2024-99-99", "not YAML: "),
        ("a: !!bool x", "not YAML: "),
        ("[" * 5000, "not YAML: "),
        (b"a: \xff", "not YAML: "),
        (b"a: \x00", "not YAML: "),
    ],
    ids=["syntax", "unquoted-star", "documents", "python", "date", "bool", "depth", "no-utf8", "nul"],
)
def test_file_that_is_no_yaml_is_refused(load: Load, text: str | bytes, problem: str) -> None:
    """Whatever is wrong with a file, it is told with the file's name, and the line where it is known."""
    (found,) = problems_of(load, text)
    assert re.match(f"trioft.yaml: {problem}", found)


def test_file_that_cannot_be_read_is_refused_together_with_wrong_options(tmp_path: Path) -> None:
    """Options are checked even without the file."""
    file = str(tmp_path / "none\udce4.yaml")
    assert problems_of(load_config, file, {"copy.movers": ("--movers", "0")}) == [
        f"{tmp_path}/none\\udce4.yaml: cannot be read: No such file or directory",
        f"--movers: found 0, expected {COUNT}",
    ]


def test_all_problems_are_told_at_once(load: Load) -> None:
    """Nobody has to repair a file one message at a time."""
    text = """
source:
    settle: 10
    settle_closed: 20s
    include: "*.mov"
destination:
    min_fre: 1%
copy:
    transfers: four
    transfers: 99
    verify: size
    on_success: delete
retry: 3
logs: {}
"""
    assert sorted(problems_of(load, text, {"copy.movers": ("--movers", "many")})) == sorted(
        [
            "trioft.yaml: line 10: transfers: given before, in line 9",
            "trioft.yaml: retry: found 3, expected options: retries, longest, first",
            f"trioft.yaml: source.settle: found 10, expected {DURATION}",
            'trioft.yaml: source.include: found "*.mov", expected a list of patterns, such as ["*.mov"]',
            "trioft.yaml: destination.min_fre: unknown key, did you mean min_free?",
            f"trioft.yaml: copy.transfers: found 99, expected {COUNT}",
            f'--movers: found "many", expected {COUNT}',
            "trioft.yaml: logs: unknown key, did you mean log?",
            f"trioft.yaml: copy.on_success: found delete, expected keep where copy.verify is size: {REMOVAL}",
        ]
    )


# --- The command line ---------------------------------------------------------------------------------------


def test_options_override_the_file(load: Load) -> None:
    """What was given on the command line wins; the rest of the file stays."""
    loaded = load(
        "source: {include: [a]}\ncopy: {transfers: 2, movers: 3}",
        {"copy.transfers": ("--transfers", "8"), "source.include": ("--include", ["b", "c"])},
    )
    assert loaded == Config(source=Source(include=("b", "c")), copy=Copy(transfers=8, movers=3))


def test_options_need_no_file() -> None:
    """All of them arrive as words."""
    options = {
        "source.path": ("SOURCE", "in"),
        "destination.if_exists": ("--if-exists", "fail"),
        "destination.min_free": ("--min-free", "10GB"),
        "copy.transfers": ("--transfers", "4"),
        "copy.bwlimit": ("--bwlimit", "off"),
        "copy.on_success": ("--on-success", "archive:done"),
        "retry.retries": ("--retries", 0),
    }
    assert load_config(None, options) == Config(
        source=Source(path="in"),
        destination=Destination(if_exists="fail", min_free=MinFree(bytes=10**10)),
        copy=Copy(transfers=4, on_success=OnSuccess(action="archive", folder="done")),
        retry=Retry(retries=0),
    )


def test_options_that_were_not_given_leave_the_file_alone(load: Load) -> None:
    """None, and an empty list, are what a command line has for an option that is absent."""
    options: dict[str, tuple[str, object]] = {
        "copy.transfers": ("--transfers", None),
        "source.include": ("--include", []),
    }
    loaded = load("source: {include: [a]}\ncopy: {transfers: 2}", options)
    assert loaded == Config(source=Source(include=("a",)), copy=Copy(transfers=2))


@pytest.mark.parametrize(
    ("path", "label", "word", "problem"),
    [
        ("copy.transfers", "--transfers", "four", f'found "four", expected {COUNT}'),
        ("copy.transfers", "--transfers", "99", f"found 99, expected {COUNT}"),
        ("copy.transfers", "--transfers", "3.9", f'found "3.9", expected {COUNT}'),
        ("source.settle", "--settle", "10", f'found "10", expected {DURATION}'),
        ("copy.bwlimit", "--bwlimit", "20", f'found "20", expected {RATE}'),
        ("source.include", "--include", ["/a"], f'found "/a", expected {PATTERNS}'),
        ("copy.transferz", "--transferz", "4", "unknown key, did you mean transfers?"),
        ("copy.on_success", "--on-success", "remove", f'found "remove", expected {DONE}'),
    ],
)
def test_messages_name_the_option_that_was_typed(path: str, label: str, word: object, problem: str) -> None:
    """A person who typed ``--transfers`` need not know ``copy.transfers``."""
    assert problems_of(load_config, None, {path: (label, word)}) == [f"{label}: {problem}"]


def test_wrong_value_in_the_file_does_not_matter_where_an_option_overrides_it(load: Load) -> None:
    """Only values that count are checked."""
    assert load("copy: {transfers: 99}", {"copy.transfers": ("--transfers", "9")}).copy.transfers == 9


def test_conflict_between_file_and_option_names_both(load: Load) -> None:
    """Each end of a conflict is named as the person wrote it."""
    assert problems_of(load, "source: {settle_closed: 1s}", {"source.settle": ("--settle", "500ms")}) == [
        "trioft.yaml: source.settle_closed: found 1s, expected at most --settle, which is 500ms"
    ]
    assert problems_of(load, "copy: {verify: size}", {"copy.on_success": ("--on-success", "delete")}) == [
        f"--on-success: found delete, expected keep where copy.verify is size: {REMOVAL}"
    ]


def test_paths_that_are_no_utf8_stay_as_they_are() -> None:
    """Names are bytes underneath: what the command line could not decode is kept."""
    path = os.fsdecode(b"/media/\xe4\n\xff")
    loaded = load_config(None, {"source.path": ("SOURCE", path), "source.include": ("--include", [path[1:]])})
    assert os.fsencode(loaded.source.path or "") == b"/media/\xe4\n\xff"
    assert os.fsencode(loaded.source.include[0]) == b"media/\xe4\n\xff"


# --- Writing ------------------------------------------------------------------------------------------------


@settings(deadline=None)  # it reads and writes files
@given(written=CONFIGS)
@example(written=Config(source=Source(path="\x85", include=("\u2028", "\ufeff", "\U0001f600 \x1b", "\udce4"))))
def test_every_configuration_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, written: Config
) -> None:
    """``trioft config show`` is a file that can be used: every name in it, and every number, is exact."""
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(configfile.dump(written), "utf-8")
    assert load_config(str(file), {}) == written


def test_dump_uses_the_notation_of_the_file() -> None:
    """What is shown is what a person would write."""
    text = configfile.dump(
        Config(copy=Copy(on_success=OnSuccess(action="archive", folder="/done"), bwlimit=Limit(10**6)))
    )
    assert re.findall(r"^\w+", text, re.MULTILINE) == list(GROUPS)
    for line in (
        "settle_closed: 500ms",
        "min_free: 1%",
        "if_exists: null",
        "on_success: archive:/done",
        "bwlimit: 1MB/s",
        "checkpoint_size: 256MiB",
        "min_size: 16MiB",
        "headroom: 0B",
        "poll: 250ms",
        "keep_history: 14d",
    ):
        assert f"\n  {line}\n" in text


# --- The environment


@given(CONFIGS)
def test_every_option_may_stand_in_the_environment(config: Config) -> None:
    """TRIOFT_GROUP_KEY is what the file would have there; lists and null are written as there."""
    environment = {}
    for group, cls in GROUPS.items():
        for field in attrs.fields(cls):
            shown = field.metadata["kind"].show(getattr(getattr(config, group), field.name))
            word = shown if isinstance(shown, str) else json.dumps(shown)
            assume("\0" not in word and (not isinstance(shown, str) or _is_plain(shown)))
            environment[f"TRIOFT_{group}_{field.name}".upper()] = word
    token = environment.pop("TRIOFT_FEED_TOKEN")
    loaded = load_config(
        None, from_environment({**environment, "TRIOFT_FEED_TOKEN": token, "HOME": "/", "TRIOFT_X": ""})
    )
    assert loaded.feed.token is None  # it is not shown to anybody
    assert attrs.evolve(loaded, feed=attrs.evolve(loaded.feed, token=config.feed.token)) == config


def _is_plain(word: str) -> bool:
    return not word.startswith("[") and word not in ("true", "false", "null")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TRIOFT_COPY_TRANSFER", "it stands for no option, did you mean TRIOFT_COPY_TRANSFERS?"),
        ("TRIOFT_FEED_XYZZY", "it stands for no option"),
    ],
)
def test_a_name_in_the_environment_that_is_almost_one_is_refused(name: str, text: str) -> None:
    """A word that was misspelled is not taken for nothing."""
    with pytest.raises(ConfigError) as caught:
        from_environment({name: "1"})
    assert caught.value.problems[0].startswith(f"{name}: {text}")


def test_the_command_line_beats_the_environment_and_that_the_file(site: Site) -> None:
    """The nearer, the stronger; what is wrong is called by the name that it was given under."""
    file = site.root / "c.yaml"
    file.write_text("copy: {transfers: 2, movers: 2, verify: size}")
    env = {"TRIOFT_COPY_TRANSFERS": "3", "TRIOFT_COPY_MOVERS": "3", "TRIOFT_CONFIG": str(file)}
    shown = site.run("config", "show", env=env).out
    assert "transfers: 3\n  movers: 3\n  verify: size" in shown
    wrong = site.run("config", "show", env=env | {"TRIOFT_COPY_MOVERS": "many"})
    assert wrong.code == 2
    assert "TRIOFT_COPY_MOVERS: found" in wrong.err
    assert site.run("sync", site.source, site.dest, "--transfers", "0", env=env).err.startswith(
        "trioft: error: --transfers: found 0"
    )


@pytest.mark.parametrize("number", ["010", "007", "-010", "0_10"])
def test_numbers_that_yaml_takes_for_octal_are_refused(tmp_path: Path, number: str) -> None:
    """Whoever writes 010 means 10, and would get 8."""
    file = tmp_path / "c.yaml"
    file.write_text(f"copy:\n  transfers: {number}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(file), {})
    assert f"line 2: found {number}, expected a number without 0 at its beginning" in "\n".join(caught.value.problems)


@pytest.mark.parametrize("path", ["~", "~/ingest", "~somebody/ingest"])
def test_a_tilde_is_no_home_here(path: str) -> None:
    """Only shells know it: trioft would look for a folder of that name."""
    for option, value in (("source.path", path), ("copy.on_success", f"archive:{path}"), ("log.file", path)):
        with pytest.raises(ConfigError, match="a path without ~, which only shells know"):
            load_config(None, {option: (option, value)})
    assert load_config(None, {"source.path": ("SOURCE", f"./{path}")}).source.path == f"./{path}"
    assert load_config(None, {"source.path": ("SOURCE", "a~")}).source.path == "a~"


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    """Many programs, such as compose, cannot leave one out."""
    assert from_environment({"TRIOFT_COPY_TRANSFERS": "", "TRIOFT_FEED_LISTEN": "", "TRIOFT_LOG_LEVEL": "error"}) == {
        "log.level": ("TRIOFT_LOG_LEVEL", "error")
    }
