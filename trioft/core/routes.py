"""
Routes: the rules of ``destination.routes``, which say where a file goes if not to the place that it has at the source.

A name follows from a file's path and version alone, so that every run finds the same one.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from trioft.core.errors import ROUTE, Side, Trouble, show_path
from trioft.core.model import Fingerprint, Found, Routes, Rule
from trioft.core.naming import NAME_MAX, compile_globs, is_marker, is_own

FIELDS = ("name", "stem", "suffix", "parent", "path", "mtime", "size")
# What a time may be written with: what means the same to every program, in whatever language it is run.
_DIRECTIVES = "YmdHMSyjGVuaAbB%"
# Seconds of processor time that an expression has for one name: a thousand times what any sensible one takes. Once so
# many seconds went into those that took longer, names get less each: a folder full of them must not stop a scan.
_LONGEST, _PATIENCE, _LONGEST_LATER = 0.1, 3.0, 0.002
_NO_VERSION = Fingerprint(0, 0, 0, 0, 0)  # for a name that does not depend on it
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Unroutable(ValueError):
    """A rule makes no name of this file. *number* is the errno that says so best; *rule* is the rule's, if known."""

    def __init__(self, text: str, number: int = errno.EINVAL, rule: int | None = None) -> None:
        super().__init__(text)
        self.number, self.rule = number, rule


class _Piece(NamedTuple):
    """A part of a template: text, or a field with its format."""

    text: str
    field: str = ""
    format: str = ""


# --- reading rules ---------------------------------------------------------------------------------------------------


def faults_of(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield the key, and what is wrong with its value, of everything that cannot work whatever the files are."""
    fields = set(FIELDS)
    try:
        fields |= _expression(rule).groupindex.keys()
    except (re.error, OverflowError, RecursionError) as error:
        fields.clear()  # nobody knows
        yield ("regex", f"no regular expression: {error}") if rule.regex else ("match", f"no pattern: {error}")
    else:
        for name in sorted(_expression(rule).groupindex.keys() & {*FIELDS}):
            yield "regex", f"the group {name} has the name of a field, call it something else"
    try:
        pieces = _parse(rule.to)
    except ValueError as error:
        yield "to", str(error)
        return
    for piece in pieces:
        if piece.field and fields and piece.field not in fields:
            yield "to", f"unknown field {{{piece.field}}}, known here: {', '.join(sorted(fields))}"
        elif piece.format and piece.field != "mtime":
            yield "to", f"only mtime has a format, not {{{piece.field}}}"
        elif piece.field == "mtime" and not piece.format:
            yield "to", "expected a format for mtime, such as {mtime:%Y-%m-%d}"
        elif bad := _bad_directive(piece.format):
            yield "to", f"unknown {bad!r} in the format of mtime, known: %{' %'.join(_DIRECTIVES)}"
    literal = "".join(piece.text if not piece.field else "x" for piece in pieces)
    if literal.startswith("/"):
        yield "to", "expected a path below the destination, without / at its beginning"
    elif not literal or literal.endswith("/"):
        yield "to", "expected a path that ends in the name of a file, such as {name}"
    if {".", ".."} & {*literal.split("/")}:
        yield "to", "expected a path without the parts . and .."
    try:
        literal_bytes = "".join(piece.text for piece in pieces).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        yield "to", "expected a text that names can be made of"
    else:
        if b"\0" in literal_bytes:
            yield "to", "expected a path without NUL"
        if any(len(part) > NAME_MAX for part in literal_bytes.split(b"/")):
            yield "to", f"expected a path without a part of more than {NAME_MAX} bytes"


def _bad_directive(format: str) -> str:
    """Return the first of a time's directives that is none, or an empty text."""
    directives = re.findall(r"%.?", format, re.DOTALL)
    return next((text for text in directives if len(text) < 2 or text[1] not in _DIRECTIVES), "")


@functools.lru_cache(maxsize=256)
def _parse(to: str) -> list[_Piece]:
    """Return the pieces of a template. Raises ``ValueError`` where its braces are not balanced."""
    pieces, at = [], 0
    for match in _PIECE.finditer(to):
        pieces.append(_Piece(to[at : match.start()]))
        at = match.end()
        if match[0] in ("{{", "}}"):
            pieces.append(_Piece(match[0][0]))
        elif match[1] is None:
            raise ValueError(f"a single {match[0]}, expected {{FIELD}}; a brace itself is written {match[0] * 2}")
        else:
            field, _, format = match[1].partition(":")
            if not field:
                raise ValueError(f"{match[0]} names no field")
            pieces.append(_Piece("", field, format))
    return [piece for piece in [*pieces, _Piece(to[at:])] if piece != _Piece("")]


@functools.lru_cache(maxsize=256)
def _expression(rule: Rule) -> re.Pattern[str]:
    """Return what a rule is asked with, as Python reads it: a path for one with ``/``, else, for a regex, a name."""
    if not rule.regex:
        expression = compile_globs((rule.match,))
        assert expression is not None
        return expression
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a regular expression may mean in another Python
        return re.compile(rule.regex, re.DOTALL)


@functools.lru_cache(maxsize=256)
def _limited(rule: Rule) -> Any:
    """Return the same as something that can be asked for a limited time: Python's own goes on for ever, if it likes."""
    import regex  # 40 ms, and only rules that are asked need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return regex.compile(_expression(rule).pattern, regex.DOTALL | regex.VERSION0)


_spent = 0.0  # seconds, in this process, on names for which an expression took too long


def _match(rule: Rule, text: str) -> Any:
    """Return the match of a rule, or None. Raises ``TimeoutError`` where its expression takes too long for a name."""
    global _spent
    longest = _LONGEST if _spent < _PATIENCE else _LONGEST_LATER
    try:
        return _limited(rule).fullmatch(text, timeout=longest)
    except TimeoutError:
        _spent += longest
        raise


# --- using them ------------------------------------------------------------------------------------------------------


def find_rule(rules: Sequence[Rule], path: bytes) -> tuple[int, dict[str, str]] | None:
    """
    Return the number of the first rule that matches *path*, and the text of its groups; None if none does.

    Raises ``Unroutable`` if an expression takes too long for it: nobody knows then which rule is the first.
    """
    text = path.decode("utf-8", "surrogateescape")
    for number, rule in enumerate(rules):
        by_name = rule.regex and "/" not in rule.regex
        asked = text.rpartition("/")[2] if by_name else text
        try:
            match = _match(rule, asked)
        except TimeoutError:
            what = "regex" if rule.regex else "match"
            raise Unroutable(
                f"its {what} takes too long for this name: write it without repeated repetitions",
                number=errno.EINVAL,
                rule=number,
            ) from None
        if match:
            return number, {name: value or "" for name, value in match.groupdict().items()}
    return None


def target_of(routes: Routes, path: bytes, fingerprint: Fingerprint) -> bytes:
    """
    Return where this version of the file *path* goes. Without a rule for it, that is where it is.

    Raises ``Unroutable`` if its rule makes no name of it that the destination could hold.
    """
    if (found := find_rule(routes.rules, path)) is None:
        return path
    number, groups = found
    return _check(_fill(routes.rules[number], path, fingerprint, groups), routes)


def _fill(rule: Rule, path: bytes, fingerprint: Fingerprint, groups: dict[str, str]) -> str:
    text = path.decode("utf-8", "surrogateescape")
    parent, _, name = text.rpartition("/")
    stem, suffix = os.path.splitext(name)
    values = groups | {"name": name, "stem": stem, "suffix": suffix, "parent": parent, "path": text}
    values["size"] = str(fingerprint.size)
    when = time.localtime(fingerprint.mtime_ns // 10**9)
    return "".join(
        re.sub("%.", lambda directive: time.strftime(directive[0], when), piece.format)
        if piece.field == "mtime"
        else piece.text + values.get(piece.field, "")
        for piece in _parse(rule.to)
    )


def _check(name: str, routes: Routes) -> bytes:
    """Return *name* as a path. Raises ``Unroutable`` if it is none that a file may have."""
    parts = name.split("/")
    target = "/".join(filter(None, parts)).encode("utf-8", "surrogateescape")
    if not parts[-1]:
        raise Unroutable(f"{_shown(name)} does not end in the name of a file")
    if {".", ".."} & {*parts}:
        raise Unroutable(f"{_shown(name)} has a part . or ..")
    if any(len(part) > NAME_MAX for part in target.split(b"/")):
        raise Unroutable(f"{_shown(name)} has a part of more than {NAME_MAX} bytes", errno.ENAMETOOLONG)
    if any(map(is_own, target.split(b"/"))):
        raise Unroutable(f"{_shown(name)} has a name that trioft keeps for itself")
    if is_marker(target, routes.marker):
        raise Unroutable(f"{_shown(name)} says there that another file is complete (copy.done_file)")
    manifests = compile_globs(routes.manifests)
    if manifests is not None and manifests.fullmatch("/".join(filter(None, parts))):
        raise Unroutable(f"{_shown(name)} is what trioft calls manifests (copy.manifest)")
    return target


def _shown(name: str) -> str:
    return repr(show_path(name.encode("utf-8", "surrogateescape")))


def route(found: Found, routes: Routes | None) -> Found:
    """Return *found* with the name that *routes* give it, or with the trouble of having none."""
    if routes is None:
        return found
    try:
        target = target_of(routes, found.path, found.fingerprint)
    except Unroutable as error:
        number = error.rule
        if number is None:
            number, _ = find_rule(routes.rules, found.path) or (0, {})
        text = f"destination.routes[{number}]: {error}"
        return found._replace(trouble=Trouble(Side.DESTINATION, ROUTE, found.path, None, error.number, text))
    return found._replace(routed=target if target != found.path else b"")


class Explanation(NamedTuple):
    """What the rules make of a file."""

    number: int | None  # of its rule; None: it has none
    target: bytes | None  # None: it has no possible name, or that depends on a version that is not known
    text: str


def explain(routes: Routes, path: bytes, fingerprint: Fingerprint | None) -> Explanation:
    """Say which rule a file has, and where it goes; without a *fingerprint* that may not be known."""
    try:
        found = find_rule(routes.rules, path)
    except Unroutable as error:
        text = f"it cannot be transferred, as {error}"
        return Explanation(
            error.rule, None, f"destination.routes[{error.rule}] ({routes.rules[error.rule or 0]}): {text}"
        )
    if found is None:
        return Explanation(None, path, f"no rule matches: it goes to {show_path(path)}")
    number, rule, target = found[0], routes.rules[found[0]], None
    if fingerprint is None and {piece.field for piece in _parse(rule.to)} & {"mtime", "size"}:
        text = f"it goes to {rule.to}, as soon as its time and size are known"
    else:
        try:
            target = target_of(routes, path, fingerprint or _NO_VERSION)
            text = f"it goes to {show_path(target)}"
        except Unroutable as error:
            text = f"it cannot be transferred, as {error}"
    return Explanation(number, target, f"destination.routes[{number}] ({rule}): {text}")
