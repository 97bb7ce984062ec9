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
# Whatever is called so belongs to trioft, whichever ledger it is of.
PARTIAL = b".trioft-partial"
HIDDEN = b".trioft-"
# Why a source file is left alone that is called so.
MANIFEST = "at the destination, trioft writes manifests of its own under names like this (copy.manifest)"
AT_ANY_DEPTH = "/**/"  # what a pattern begins with that leaves out names of manifests: what it matches is told
OWN = "trioft keeps names like this for itself: NAME.trioft-partial, and .trioft-NAME"
_PARTIAL = re.compile(rb"\.([0-9a-f]{16})\.trioft-partial\Z", re.DOTALL)
PROBE = HIDDEN + b"probe-"
PROBE_CONTENT = b"trioft"
VIEW_PROBE = PROBE + b"view-"  # and 24 hex digits, perhaps an end: an empty file, which is made at the source too
_VIEW_PROBE = re.compile(rb"\.trioft-probe-view-[0-9a-f]{24}(-source|-destination)?\Z")
_ASIDE = HIDDEN + b"replaced-"
_MOVED_ASIDE = re.compile(rb"\.trioft-replaced-([0-9a-f]{16})-(.+)\Z", re.DOTALL)
_PARTIAL_SUFFIX = len(b".0123456789abcdef") + len(PARTIAL)
# What partials of trioft 0.1, and files that it moved aside, are called. Other programs have such names too.
_FORMER = re.compile(rb"\.[0-9a-f]{8}\.(?:partial|replaced)\Z", re.DOTALL)


# What a delivered source is taken aside to, beside it, before it goes.
GOING = HIDDEN + b"going-"
_GOING_FOLDER = re.compile(rb"\.trioft-going-[0-9a-f]{8}\Z")


def is_going(name: bytes) -> bool:
    """Return whether this is a folder of sources on their way out, or the path of such a folder, or of one in it."""
    return b"/" + GOING in b"/" + name


def is_going_folder(path: bytes) -> bool:
    """Return whether this is what trioft calls a folder of sources on their way out."""
    return _GOING_FOLDER.match(path.rpartition(b"/")[2]) is not None


@functools.lru_cache(maxsize=256)
def mark_of(ledger: bytes) -> bytes:
    """Return the mark that is in the names of all partials of the ledger with this id: 8 hex digits."""
    return xxhash.xxh3_64_hexdigest(b"ledger:" + ledger)[:8].encode()


def partial_of(
    path: bytes,
    dev: int,
    ino: int,
    life: int = 0,
    place: bytes = b"",
    *,
    ledger: bytes = b"",
    name_max: int = NAME_MAX,
) -> bytes:
    """
    Return the partial's path for a source file: ``NAME.<16 hex>.trioft-partial``.

    It lies beside the file's final name, *place*, which is *path* where nothing else is said.

    The first half of the hex is the mark of the *ledger* that it belongs to: no other one writes or removes it. The
    second half is where the file lies (device, inode, path), and the ledger again: stable while the file grows, so
    that a restart finds its partial again; whether the *content* still fits is for the ledger's fingerprint and the
    block digests to say. Where it is in doubt whether a server still carries out a rename of the partial, it goes on
    in another *life*, under another name: what comes late finds nothing.
    A name that would be longer than *name_max* bytes is shortened, at a character's edge; the hex keeps it apart from
    its neighbours.
    """
    folder, slash, name = (place or path).rpartition(b"/")
    identity = b"%s:%d:%d:%s%s" % (ledger, dev, ino, path, b"\0%d" % life if life else b"")
    hashed = mark_of(ledger) + xxhash.xxh3_64_hexdigest(identity)[:8].encode()
    return b"%s%s%s.%s%s" % (folder, slash, shortened(name, max(1, name_max - _PARTIAL_SUFFIX)), hashed, PARTIAL)


def partial_for(item: Item) -> bytes:
    """Return the path of the partial of a job's file."""
    return partial_of(
        item.path, *item.fingerprint[:2], item.life, item.place, ledger=item.ledger, name_max=item.name_max
    )


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
    """Return whether *name* is one of a partial of trioft's, of whichever ledger."""
    return name.endswith(PARTIAL)


def lies_at(path: bytes, folder: bytes) -> bytes | None:
    """Return where *path* lies in *folder*: empty for the folder itself, None outside of it."""
    if path == folder:
        return b""
    prefix = folder.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def is_own(path: bytes) -> bool:
    """Return whether *path* has a name that trioft keeps for itself: a partial's, or a hidden one."""
    return path.endswith(PARTIAL) or (HIDDEN in path and path.rpartition(b"/")[2].startswith(HIDDEN))


def aside_of(target: bytes, partial: bytes, name_max: int = NAME_MAX) -> bytes:
    """Return what *target* is called while *partial* gets its name: hidden, with the mark of the same ledger."""
    folder, slash, name = target.rpartition(b"/")
    head = _ASIDE + mark_in(partial) + xxhash.xxh3_64_hexdigest(name)[:8].encode() + b"-"
    return folder + slash + head + shortened(name, name_max - len(head))


def target_of_aside(aside: bytes) -> bytes | None:
    """Return what a file that was moved aside was called; None where that cannot be told any more."""
    folder, slash, name = aside.rpartition(b"/")
    found = _MOVED_ASIDE.match(name)
    if found is None or xxhash.xxh3_64_hexdigest(found[2])[:8].encode() != found[1][8:]:
        return None
    return folder + slash + found[2]


def is_probe(path: bytes, size: int) -> bool:
    """Return whether this is what a probe of the destination has left, which was killed in the middle."""
    return path.rpartition(b"/")[2].startswith(PROBE) and size <= len(PROBE_CONTENT)


def is_view_probe(path: bytes, size: int) -> bool:
    """
    Return whether this is what a look for views has left, which was killed in the middle.

    At the source too: what has any other of trioft's names there, or anything in it, may be somebody's.
    """
    return size == 0 and _VIEW_PROBE.match(path.rpartition(b"/")[2]) is not None


def is_former(name: bytes) -> bool:
    """Return whether *name* may be one of a partial of trioft 0.1; other programs have such names too."""
    return name.endswith((b".partial", b".replaced")) and _FORMER.search(name) is not None


def mark_in(path: bytes) -> bytes:
    """Return the mark of a ledger in the name of a partial, or of a file that was moved aside; or nothing."""
    found = _PARTIAL.search(path) or _MOVED_ASIDE.match(path.rpartition(b"/")[2])
    return found[1][:8] if found is not None else b""


def belongs_to(path: bytes, ledger: bytes) -> bool:
    """Return whether a partial, or a file that was moved aside, has the mark of this ledger."""
    return mark_in(path) == mark_of(ledger)


def is_marker(path: bytes, suffix: bytes) -> bool:
    """Is this the name of a file, and *suffix* after it? Where that is empty, there are no markers."""
    return suffix != b"" and path.endswith(suffix) and path.rpartition(b"/")[2] != suffix


def waits_for(path: bytes, suffix: bytes) -> str:
    """Say which marker a file waits for."""
    return f"waits for {show_path(path.rpartition(b'/')[2] + suffix)}"


def numbered(path: bytes, name_max: int = NAME_MAX) -> Iterator[bytes]:
    """Yield *path*, then ``STEM_1.EXT``, ``STEM_2.EXT`` …, each within *name_max* bytes."""
    yield path
    folder, slash, name = path.rpartition(b"/")
    dot = name.rfind(b".")
    # What is longer than this is no extension, and would leave no room for the number.
    stem, extension = (name[:dot], name[dot:]) if dot > 0 and len(name) - dot <= 64 else (name, b"")
    number = 0
    while True:
        number += 1
        tail = b"_%d%s" % (number, extension)
        yield folder + slash + shortened(stem, name_max - len(tail)) + tail


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
        self._manifests = compile_globs(tuple(glob for glob in exclude if glob.startswith(AT_ANY_DEPTH)))
        self._exclude = compile_globs(tuple(glob for glob in exclude if not glob.startswith(AT_ANY_DEPTH)))

    def folder(self, path: bytes) -> bool:
        """Return whether anything below this folder may be wanted."""
        return not is_own(path) and not is_going(path) and not self.excludes(path) and not self._is_manifest(path)

    def excludes(self, path: bytes) -> bool:
        """Return whether the user does not want to hear of this path at all."""
        return self._exclude is not None and _matches(self._exclude, path)

    def file(self, path: bytes) -> bool:
        """Return whether this file (or link, or device) is wanted; what has one of trioft's own names never is."""
        if is_own(path) or is_going(path) or self.excludes(path) or self._is_manifest(path):
            return False
        return self._include is None or _matches(self._include, path)

    def why_skipped(self, path: bytes) -> str | None:
        """Say why *path* is left although the user has not excluded it: for its name. None where that is not so."""
        if self.excludes(path):
            return None
        if is_own(path):
            return OWN
        is_included = self._include is None or _matches(self._include, path)
        return MANIFEST if is_included and self._is_manifest(path) else None

    def _is_manifest(self, path: bytes) -> bool:
        return self._manifests is not None and _matches(self._manifests, path)


def why_not_wanted(path: bytes, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Say why the file *path* is not wanted, or None."""
    if is_going(path):
        return "trioft takes sources aside there before they go"
    if is_own(path):
        return OWN
    for pattern in exclude:
        if Wanted((pattern,), ()).file(path):
            if pattern.startswith(AT_ANY_DEPTH):
                return MANIFEST
            return f"excluded by {pattern!r}"
    if not Wanted(include, ()).file(path):
        return f"included are only {', '.join(map(repr, include))}"
    return None


def _matches(expression: re.Pattern[str], path: bytes) -> bool:
    return expression.fullmatch(path.decode("utf-8", "surrogateescape")) is not None
