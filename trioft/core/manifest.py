"""
Manifests: which delivered files they list, what they are called, and the lines of those that ``sha256sum -c`` and
``xxhsum -c`` read. Those of the ASC Media Hash List are in ``ascmhl``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import xxhash

from trioft.core.naming import AT_ANY_DEPTH

NONE = "none"
ASC_MHL = "ascmhl"
_SUFFIXES = {"xxh128sum": b".xxh128", "sha256sum": b".sha256"}
BLOCK_SUMS = ("xxh128sum", ASC_MHL)  # the sum of a file of one block is that block's digest
_NAME = b"trioft"

# GNU coreutils write names in which a line could end, or an escape begin, like this, and mark the line.
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_UNESCAPES = {escaped: plain for plain, escaped in _ESCAPES.items()}
_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{32}|[0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)


class Hasher(Protocol):
    """What takes the bytes of a file, one piece after the other."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


def hasher(kind: str) -> Hasher:
    """Return what computes the sums that manifests of this *kind* have."""
    if kind != "sha256sum":
        return xxhash.xxh3_128()
    # OpenSSL takes longer to load than all the rest of a mover, and few need it.
    import hashlib

    return hashlib.sha256()


def sum_of(kind: str, data: bytes | bytearray | memoryview) -> bytes:
    """Return the sum of a file that is *data*."""
    its = hasher(kind)
    its.update(data)
    return its.digest()


def sum_length(kind: str) -> int:
    """Return how many bytes the sums of this *kind* have."""
    return 32 if kind == "sha256sum" else 16


def is_listed(kind: str, target: bytes) -> bool:
    """Is the delivered file *target* listed in manifests of this *kind*? Not these themselves, as they change."""
    if kind == NONE:
        return False
    *folders, name = target.split(b"/")
    if kind == ASC_MHL:  # these two are what its specification leaves out
        return b"ascmhl" not in folders and name != b".DS_Store"
    suffix = re.escape(_SUFFIXES[kind])
    return re.fullmatch(_NAME + rb"(-\d{4}-\d\d-\d\d)?" + suffix, name) is None


def own_names(kind: str) -> tuple[str, ...]:
    """Return patterns of the names under which trioft writes manifests of this *kind*; those of a source are left."""
    if kind not in _SUFFIXES:
        return ()
    name, suffix = _NAME.decode(), _SUFFIXES[kind].decode()
    name = AT_ANY_DEPTH + name
    return name + suffix, f"{name}-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]{suffix}"


def manifest_of(kind: str, per: str, target: bytes, day: str) -> tuple[bytes, bytes]:
    """Return which manifest of sums lists *target*, delivered on *day*, and under which name."""
    if per == "day":
        return b"%s-%s%s" % (_NAME, day.encode("ascii"), _SUFFIXES[kind]), target
    folder, slash, name = target.rpartition(b"/")
    return folder + slash + _NAME + _SUFFIXES[kind], name


def with_sums(manifest: bytes, sums: Mapping[bytes, bytes]) -> bytes:
    """
    Return *manifest* with the *sums* of these names added, or in the place of those that they had.

    Names that are not among them stay, whether their files are still there or not: it says what was delivered. So do
    lines that say something else.
    """
    lines, others = {}, []
    for line in manifest.split(b"\n"):
        if (name := _name_in(line)) is not None:
            lines[name] = line
        elif line:
            others.append(line)
    lines |= {name: _line(name, its) for name, its in sums.items()}
    return b"".join(line + b"\n" for line in (*others, *(lines[name] for name in sorted(lines))))


def _line(name: bytes, its_sum: bytes) -> bytes:
    escaped = re.sub(rb"[\\\n\r]", lambda match: _ESCAPES[match[0]], name)
    shown = b"./-" if name == b"-" else escaped  # which would be standard input
    return b"%s%s  %s" % (b"\\" if escaped != name else b"", its_sum.hex().encode("ascii"), shown)


def _name_in(line: bytes) -> bytes | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    name = match[3].removeprefix(b"./")
    if match[1]:
        name = re.sub(rb"\\[\\nr]", lambda found: _UNESCAPES[found[0]], name)
    return name
