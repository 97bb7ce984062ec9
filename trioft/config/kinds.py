"""
Kinds: what the values of an option may be, and how they are read and written.

``config.options`` declares every option with one of these. A kind reads what YAML made of the file, strictly:
nothing is converted that a person did not write.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, NamedTuple

import attrs

from trioft.core.model import Rule
from trioft.core.naming import compile_globs
from trioft.core.routes import faults_of
from trioft.core.units import (
    as_written,
    format_duration,
    format_percent,
    format_rate,
    format_size,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
    visible,
    wrong,
)


class Kind(NamedTuple):
    """What the values of an option may be, and how they are read and written."""

    unit: str
    read: Callable[[object], object]  # a value of the file; ValueError says what was found and expected
    show: Callable[[Any], object] = lambda value: value  # the inverse of *read*
    from_word: Callable[[str], object] = lambda word: word  # a word of the command line as the file has it


class Faults(ValueError):
    """Several things that are wrong with one value: ``(where in it, text)``, as ``("[0].to", "…")``."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{where}: {text}" for where, text in faults))
        self.faults = faults


# --- Values that have a class of their own ------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class MinFree:
    """Space that is left free: a part of the whole, or a number of bytes. One of them is None."""

    percent: float | None = None
    bytes: int | None = None

    def floor(self, total_bytes: int) -> int:
        """Return the bytes that must stay free on a filesystem of *total_bytes*."""
        return int(total_bytes * self.percent / 100) if self.percent is not None else self.bytes or 0

    def __str__(self) -> str:
        return format_percent(self.percent) if self.percent is not None else format_size(self.bytes or 0)


@attrs.frozen(kw_only=True)
class OnSuccess:
    """What happens to a source file that was delivered; *folder* is where ``archive`` moves it."""

    action: Literal["keep", "delete", "archive"]
    folder: str | None = None

    def __str__(self) -> str:
        return self.action if self.folder is None else f"{self.action}:{self.folder}"


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class Turn(NamedTuple):
    """A moment of every day, or of one day a week, from which on another rate holds. In local time."""

    day: int | None  # 0 is Monday; None: every day
    minute: int  # of the day
    rate: int | None  # bytes a second; None: any

    def __str__(self) -> str:
        day = "" if self.day is None else f"{_DAYS[self.day]}-"
        return f"{day}{self.minute // 60:02}:{self.minute % 60:02},{format_rate(self.rate)}"


@attrs.frozen
class Limit:
    """A limit on throughput: always the same *rate* (None: any), or what the *turns* of a timetable say."""

    rate: int | None = None
    turns: tuple[Turn, ...] = ()

    def at(self, moment: datetime) -> int | None:
        """
        Return the bytes a second that may pass at *moment*, in local time: what the last turn before it says.

        The clock on the wall is asked, not how long ago something was: when that clock is put forward or back, the
        rate is the one for what it shows. Of two turns at the same minute the one of the weekday counts.
        """
        if not self.turns:
            return self.rate
        week: dict[int, int | None] = {}
        for turn in sorted(self.turns, key=lambda turn: turn.day is not None):
            for day in range(7) if turn.day is None else (turn.day,):
                week[day * 1440 + turn.minute] = turn.rate
        now = moment.weekday() * 1440 + moment.hour * 60 + moment.minute
        return week[max((minute for minute in week if minute <= now), default=max(week))]  # a week begins as it ended

    def now(self) -> int | None:
        """Return the bytes a second that may pass now."""
        return self.at(datetime.now())  # noqa: DTZ005 - local time is what is meant

    def __str__(self) -> str:
        return " ".join(map(str, self.turns)) if self.turns else format_rate(self.rate)


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int  # 0: any that is free

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# --- Makers of kinds ----------------------------------------------------------------------------------------


def plain(unit: str, expected: str, test: Callable[[Any], bool]) -> Kind:
    """Return the kind of the values that pass *test* and stay what they are."""

    def read(value: object) -> object:
        if not test(value):
            raise wrong(value, expected)
        return value

    return Kind(unit, read)


def whole(unit: str, allowed: range) -> Kind:
    """Return the kind of the whole numbers in *allowed*."""
    kind = plain(unit, f"a {unit}", lambda value: type(value) is int and value in allowed)
    return kind._replace(from_word=lambda word: int(word) if re.fullmatch("-?[0-9]{1,19}", word) else word)


def one_of(*words: str | None) -> Kind:
    """Return the kind of exactly these *words*; None stands for null."""
    *most, last = (word or "null" for word in words)
    unit = f"{', '.join(most)} or {last}"
    return plain(unit, unit, lambda value: value in words)


def at_least(low: str, unit: str, parse: Callable[[object], float], show: Callable[[Any], str]) -> Kind:
    """Return the kind of what *parse* reads, from *low* on."""

    def read(value: object) -> float:
        parsed = parse(value)
        if parsed < parse(low):
            raise wrong(value, f"a {unit} of at least {low}")
        return parsed

    return Kind(unit, read, show)


def duration(low: str) -> Kind:
    """Return the kind of the durations from *low* on."""
    return at_least(low, "duration", parse_duration, format_duration)


def size(low: str) -> Kind:
    """Return the kind of the sizes from *low* on."""
    return at_least(low, "size", parse_size, format_size)


def command(*placeholders: str) -> Kind:
    """
    Return the kind of the commands: a list of words, the first of them a program.

    Where there are *placeholders*, such as ``{partial}``, the first of them has to be in a word.
    """
    example = f"a list of words, such as {json.dumps(['check', *placeholders[:1]])}"

    def read(value: object) -> object:
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not value:
            raise wrong(value, example)
        if bad := [as_written(word) for n, word in enumerate(value) if not (_is_path(word) or (n and word == ""))]:
            raise ValueError(
                f"found {', '.join(bad)}, expected {example}: words, in quotes where YAML takes them for more"
            )
        if placeholders:
            unknown = {name for word in value for name in re.findall(r"\{[a-z]+\}", word)} - {*placeholders}
            if unknown:
                raise ValueError(f"found {', '.join(sorted(unknown))}, known are {', '.join(placeholders)}")
            if not any(placeholders[0] in word for word in value[1:]):
                raise ValueError(f"found no {placeholders[0]} among its words, expected {example}")
        return tuple(value)

    return Kind("list of words or null", read, lambda value: None if value is None else list(value))


# --- Kinds --------------------------------------------------------------------------------------------------


def _is_path(value: object) -> bool:
    """Say whether *value* can name a file; surrogates stand for bytes that are no UTF-8."""
    try:
        return isinstance(value, str) and value != "" and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _read_path(value: object) -> object:
    if value is not None and not _is_path(value):
        raise wrong(value, "a path, such as /media/ingest")
    if isinstance(value, str) and re.match("~[^/]*(/|$)", value):
        raise wrong(value, "a path without ~, which only shells know, such as /home/me/x; a folder of that name is ./~")
    return value


def _is_within(value: object) -> bool:
    return isinstance(value, str) and _is_path(value) and value[0] != "/" and ".." not in value.split("/")


def _is_suffix(value: object) -> bool:
    """Say whether *value* makes another name of a name, and none that is taken for a partial."""
    is_name = _is_path(value) and isinstance(value, str) and "/" not in value and len(os.fsencode(value)) <= 64
    return is_name and not str(value).endswith((".partial", ".trioft-partial"))


def _read_patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise wrong(value, 'a list of patterns, such as ["*.mov"]')
    if bad := [as_written(item) for item in value if not _is_path(item) or item[0] == "/"]:
        raise ValueError(f'found {", ".join(bad)}, expected patterns relative to the source, such as "**/*.mov"')
    for item in value:
        try:
            compile_globs((item,))
        except re.error as error:
            raise ValueError(f"{item!r} is no pattern: {error}") from None
    return tuple(value)


_TURN = re.compile(rf"(?:({'|'.join(_DAYS)})-)?([01][0-9]|2[0-3]):([0-5][0-9]),(\S+)")


def _read_limit(value: object) -> Limit:
    if not isinstance(value, str) or ":" not in value:
        return Limit(parse_rate(value))
    turns: dict[tuple[int | None, int], Turn] = {}
    for word in value.split():
        match = _TURN.fullmatch(word)
        if match is None:
            raise wrong(word, "a time and a rate, such as 18:00,off or Mon-08:00,20MiB/s")
        day = _DAYS.index(match[1]) if match[1] else None
        turn = Turn(day, int(match[2]) * 60 + int(match[3]), parse_rate(match[4]))
        if turns.setdefault(turn[:2], turn) is not turn:
            raise wrong(word, f"one rate for each time: there is {turns[turn[:2]]} already")
    return Limit(turns=tuple(turns.values()))


def _read_routes(value: object) -> tuple[Rule, ...]:
    if not isinstance(value, list | tuple):
        raise wrong(value, 'a list of rules, such as [{match: "*.mxf", to: "KAMERA/{name}"}]')
    faults: list[tuple[str, str]] = []
    rules = []
    for number, entry in enumerate(value):
        rule, wrong_here = _read_rule(entry)
        faults += [(f"[{number}]{'.' if key else ''}{key}", text) for key, text in wrong_here]
        rules.append(rule)
    if faults:
        raise Faults(faults)
    return tuple(rules)


def _read_rule(entry: object) -> tuple[Rule, list[tuple[str, str]]]:
    """Return a rule, and what is wrong with it."""
    if not isinstance(entry, dict):
        text = wrong(entry, 'a rule, such as {match: "*.mxf", to: "KAMERA/{name}"}')
        return Rule("", "", ""), [("", str(text))]
    faults = []
    for key in entry.keys() - {*Rule._fields}:
        near = difflib.get_close_matches(str(key), Rule._fields, 1) or [", ".join(Rule._fields)]
        faults.append((visible(str(key)), f"unknown key, did you mean {near[0]}?"))
    if len(entry.keys() & {"match", "regex"}) != 1:
        faults.append(("", "expected either match or regex"))
    if "to" not in entry:
        faults.append(("", "expected to, where the files go"))
    for key in entry.keys() & {*Rule._fields}:
        if not _is_path(entry[key]):
            faults.append((key, str(wrong(entry[key], "a text, not empty and without NUL"))))
        elif key == "match" and entry[key][0] == "/":
            faults.append((key, str(wrong(entry[key], 'a pattern relative to the source, such as "**/*.mov"'))))
    if faults:
        return Rule("", "", ""), faults
    rule = Rule(entry.get("match", ""), entry.get("regex", ""), entry["to"])
    return rule, list(faults_of(rule))


def _show_routes(rules: tuple[Rule, ...]) -> list[dict[str, str]]:
    return [{key: text for key, text in rule._asdict().items() if text} for rule in rules]


def _read_min_free(value: object) -> MinFree:
    with contextlib.suppress(ValueError):
        return MinFree(percent=parse_percent(value))
    with contextlib.suppress(ValueError):
        return MinFree(bytes=parse_size(value))
    raise wrong(value, "a percentage from 0% to 100%, or a size with its unit, such as 10GiB")


def _read_on_success(value: object) -> OnSuccess:
    action: Any
    action, _, folder = value.partition(":") if isinstance(value, str) else ("", "", "")
    if action == "archive" and folder.startswith("~"):
        _read_path(folder)
    if value in ("keep", "delete") or (action == "archive" and _is_path(folder)):
        return OnSuccess(action=action, folder=folder or None)
    raise wrong(value, "keep, delete or archive:DIR, such as archive:/media/done")


def _read_address(value: object) -> Address | None:
    if value is None:
        return None
    match = (
        re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s/]+)):([0-9]{1,5})", value) if isinstance(value, str) else None
    )
    if match is None or int(match[3]) > 65535:
        raise wrong(value, "HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return Address(match[1] or match[2], int(match[3]))


def _read_names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise wrong(value, 'a list of host names, such as ["ingest-1.example.org"]')
    if bad := [as_written(item) for item in value if not isinstance(item, str) or not re.fullmatch(r"[\w.-]+", item)]:
        raise ValueError(f"found {', '.join(bad)}, expected host names without a port, such as ingest-1.example.org")
    return tuple(name.lower() for name in value)


# Names that programs give to what they have not finished, or keep for themselves: ``source.exclude_presets``.
PRESETS = {
    "downloads": (
        *("*.part", "*.partial", "*.crdownload", "*.download", "*.opdownload", "*.filepart", "*.aria2"),
        *("*.!ut", "*.!qB", "*.bc!", "*.tmp", "*.temp", ".*." + 6 * "[A-Za-z0-9]"),
        *("*.lftp-pget-status", ".in.*.", ".pureftpd-upload.*"),
    ),
    "editors": (
        *("*~", "#*#", ".#*", "~$*", ".~lock.*#", "*.sw[a-p]", "4913", "*.kate-swp", ".goutputstream-*"),
        *("~*.tmp", ".*.un~", "*.autosave"),
    ),
}


def _read_presets(value: object) -> tuple[str, ...]:
    known = ", ".join(PRESETS)
    if not isinstance(value, list | tuple):
        raise wrong(value, f"a list of some of {known}")
    if bad := [as_written(item) for item in value if not (isinstance(item, str) and item in PRESETS)]:
        raise ValueError(f"found {', '.join(bad)}, expected some of {known}")
    return tuple(value)


def _is_token(value: object) -> bool:
    """Say whether *value* fits into a header, and is long enough not to be guessed."""
    return isinstance(value, str) and why_weak(value) is None


def why_weak(token: str) -> str | None:
    """Say why a *token* is too easy to guess, or fits into no header; None for a good one."""
    if re.fullmatch(r"[!-~]{16,200}", token) is None:
        return "expected 16 to 200 printable characters without blanks"
    if len(set(token)) < 5:
        return "expected more than the same few characters again and again"
    return None


PATH = Kind("path", _read_path)
MARKER = plain(
    "path", "a relative path without .., such as .volume-7", lambda value: value is None or _is_within(value)
)
SUFFIX = plain("suffix", "the end of a name, such as .done", lambda value: value is None or _is_suffix(value))
PATTERNS = Kind("list of patterns", _read_patterns, list)
NAME_PRESETS = Kind(f"list of {' and '.join(PRESETS)}", _read_presets, list)
ROUTES = Kind("list of rules", _read_routes, _show_routes)
SWITCH = plain("true or false", "true or false", lambda value: isinstance(value, bool))
TIME, PERIOD = duration("0s"), duration("100ms")
SIZE = size("0B")
LIMIT = Kind("rate, timetable or off", _read_limit, str)
COUNT = whole("whole number from 1 to 64", range(1, 65))
COUNT_OR_NONE = Kind(f"{COUNT.unit} or null", lambda value: None if value is None else COUNT.read(value))
JOB_NAME = plain(
    "1 to 32 letters, digits, - or _",
    "1 to 32 letters, digits, - or _, such as cam-1",
    lambda value: isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]{1,32}", value) is not None,
)
BASE_PATH = plain(
    "path",
    "a path with / at its beginning and none at its end, such as /trioft",
    lambda value: value is None or (isinstance(value, str) and re.fullmatch(r"(/[\w.~-]+)+", value) is not None),
)
MIN_FREE = Kind("percentage or size", _read_min_free, str)
ADDRESS = Kind("HOST:PORT", _read_address, lambda value: None if value is None else str(value))
NAMES = Kind("list of host names", _read_names, list)
TOKEN = plain(
    "16 or more characters",
    "16 to 200 printable characters without blanks, and not the same few again and again",
    lambda value: value is None or _is_token(value),
)
ON_SUCCESS = Kind("keep, delete or archive:DIR", _read_on_success, str)
