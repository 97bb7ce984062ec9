"""
Names: which paths are wanted, what a partial is called, and which final name a file gets.

Paths are bytes, relative to the source or the destination, with ``/`` between their parts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

import xxhash

from trioft.core.errors import show_path
from trioft.core.model import Item

NAME_MAX = 255  # bytes of one name, on every filesystem that Linux mounts for writing
HIDDEN = b".trioft-"  # how the names begin of what trioft makes at an end for itself
_PARTIAL = re.compile(rb"\.[0-9a-f]{8}\.partial\Z", re.DOTALL)
_PARTIAL_SUFFIX = len(b".12345678.partial")


def partial_of(path: bytes, dev: int, ino: int, life: int = 0, place: bytes = b"") -> bytes:
    """
    Return the partial's path for a source file: ``NAME.<8 hex of the source's identity>.partial``.

    It lies beside the file's final name, *place*, which is *path* where nothing else is said.

    The identity is where the file lies (device, inode, path): stable while it grows, so that a restart finds its
    partial again; whether the *content* still fits is for the ledger's fingerprint and the block digests to say.
    Where it is in doubt whether a server still carries out a rename of the partial, it goes on in another *life*, under
    another name: what comes late finds nothing.
    A name that would be too long is shortened, at a character's edge; the hex keeps it apart from its neighbours.
    """
    folder, slash, name = (place or path).rpartition(b"/")
    identity = xxhash.xxh3_64_hexdigest(b"%d:%d:%s%s" % (dev, ino, path, b"\0%d" % life if life else b""))[:8].encode()
    return b"%s%s%s.%s.partial" % (folder, slash, shortened(name, NAME_MAX - _PARTIAL_SUFFIX), identity)


def partial_for(item: Item) -> bytes:
    """Return the path of the partial of a job's file."""
    return partial_of(item.path, *item.fingerprint[:2], item.life, item.place)


def former_partial_for(item: Item) -> bytes:
    """Return the path that its partial had in its life before."""
    return partial_for(item._replace(life=max(0, item.life - 1)))


def shortened(name: bytes, most: int) -> bytes:
    """Cut *name* to *most* bytes, or a few less: not through a UTF-8 character."""
    end = min(len(name), most)
    while 0 < end < len(name) and 0x80 <= name[end] < 0xC0:
        end -= 1
    return name[: end or most]


def is_partial(name: bytes) -> bool:
    """Does *name* look like one of trioft's own partials?"""
    return name.endswith(b".partial") and _PARTIAL.search(name) is not None


def is_marker(path: bytes, suffix: bytes) -> bool:
    """Is this the name of a file, and *suffix* after it? Where that is empty, there are no markers."""
    return suffix != b"" and path.endswith(suffix) and path.rpartition(b"/")[2] != suffix


def waits_for(path: bytes, suffix: bytes) -> str:
    """Say which marker a file waits for."""
    return f"waits for {show_path(path.rpartition(b'/')[2] + suffix)}"


def numbered(path: bytes) -> Iterator[bytes]:
    """Yield *path*, then ``STEM_1.EXT``, ``STEM_2.EXT`` …, each within NAME_MAX."""
    yield path
    folder, slash, name = path.rpartition(b"/")
    dot = name.rfind(b".")
    # What is longer than this is no extension, and would leave no room for the number.
    stem, extension = (name[:dot], name[dot:]) if dot > 0 and len(name) - dot <= 64 else (name, b"")
    number = 0
    while True:
        number += 1
        tail = b"_%d%s" % (number, extension)
        yield folder + slash + shortened(stem, NAME_MAX - len(tail)) + tail


@functools.lru_cache(maxsize=64)
def compile_globs(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """
    Return one expression that matches what any of *patterns* matches, or None where there are none.

    A pattern without ``/`` matches a name at any depth; one with ``/`` matches the whole relative path. ``*`` and
    ``?`` stop at ``/``, ``**`` does not (``**/x`` matches ``x`` too); ``[a-z]`` and ``[!a-z]`` are sets. A pattern
    that matches a folder covers everything below it.
    """
    if not patterns:
        return None
    return re.compile("|".join(rf"(?:{_translate(pattern)})(?:/.*)?" for pattern in patterns), re.DOTALL)


def _translate(glob: str) -> str:
    glob = glob.rstrip("/")
    out = "" if "/" in glob else "(?:.*/)?"
    at = 1 if glob.startswith("/") else 0  # trioft's own way to say: at the root only
    while at < len(glob):
        if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
            out += "(?:.*/)?"
            at += 3
        elif glob.startswith("**", at):
            out += ".*"
            at += 2
        elif glob[at] == "*":
            out += "[^/]*"
            at += 1
        elif glob[at] == "?":
            out += "[^/]"
            at += 1
        elif glob[at] == "[" and (end := glob.find("]", at + (3 if glob.startswith(("!", "^"), at + 1) else 2))) > 0:
            inside = glob[at + 1 : end]
            negated = inside[0] in "!^"
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
            out += f"(?!/)[{'^' if negated else ''}{body}]"
            at = end + 1
        else:
            out += re.escape(glob[at])
            at += 1
    return out


class Wanted:
    """Which paths the user wants: an exclude beats an include, and no include means everything."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = compile_globs(tuple(include))
        self._exclude = compile_globs(tuple(exclude))

    def folder(self, path: bytes) -> bool:
        """May anything below this folder be wanted?"""
        return self._exclude is None or not _matches(self._exclude, path)

    def file(self, path: bytes) -> bool:
        """Is this file (or link, or device) wanted? trioft's own partials never are."""
        if is_partial(path) or (self._exclude is not None and _matches(self._exclude, path)):
            return False
        return self._include is None or _matches(self._include, path)


def why_not_wanted(path: bytes, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Say why the file *path* is not wanted, or None."""
    if is_partial(path):
        return "this is a name of trioft's own partials"
    for pattern in exclude:
        if Wanted((pattern,), ()).file(path):
            return f"excluded by {pattern!r}"
    if not Wanted(include, ()).file(path):
        return f"included are only {', '.join(map(repr, include))}"
    return None


def _matches(expression: re.Pattern[str], path: bytes) -> bool:
    return expression.fullmatch(path.decode("utf-8", "surrogateescape")) is not None
