"""
The ASC Media Hash List, version 2.0: the files of a *history*, which documents a folder and all below it.

A history is the folder ``ascmhl``: its manifests, called generations, are never changed, and its chain names them in
order, each with its C4 digest. What is written here is what the specification 1.0 and its schema ask for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import xxhash

from trioft.core.manifest import Hasher
from trioft.core.naming import NAME_MAX, shortened

FOLDER = b"ascmhl"
CHAIN = b"ascmhl_chain.xml"
FORMAT = "xxh128"
# Files and folders that change with every look, or every generation: the specification leaves them out.
IGNORED = (".DS_Store", "ascmhl", "ascmhl/")
_GENERATION = rb"(?s)(\d{4,})(?:_.+)?\.mhl"
_NOT_IN_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # compiled only where it is needed: 5 ms
_ESCAPES = str.maketrans({char: f"&#{ord(char)};" for char in '&<>"\r\n\t'})
_C4 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

# The formats in which others may have recorded a file, in the order in which the schema wants them; and what hashlib
# calls those that it has.
FORMATS = {"c4": "sha512", "md5": "md5", "sha1": "sha1", FORMAT: "", "xxh3": "", "xxh64": ""}


class Hash(NamedTuple):
    """What a generation says of a file, in one format."""

    format: str
    text: str
    action: str  # original, verified or failed


class Record(NamedTuple):
    """What a generation says of one file."""

    path: str  # relative to the folder that the history documents
    size: int
    mtime_ns: int
    hashes: tuple[Hash, ...]


class Link(NamedTuple):
    """A chain's entry for one generation."""

    number: str
    name: str
    c4: str


class Generation(NamedTuple):
    """A manifest that was read."""

    tool: str  # that made it
    hashes: dict[str, list[Hash]]  # by path


class Creator(NamedTuple):
    """Who writes a generation, and when."""

    time: str  # RFC 3339
    host: str
    version: str  # of trioft


class Unreadable(ValueError):
    """Not what the specification says. The text says where."""


def text_of(hash_format: str, digest: bytes) -> str:
    """Return *digest* as it is written in this format."""
    if hash_format != "c4":
        return digest.hex()
    number, text = int.from_bytes(digest, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _C4[digit] + text
    return "c4" + text.rjust(88, "1")


def hasher(hash_format: str) -> Hasher:
    """Return what computes digests in this format."""
    if name := FORMATS[hash_format]:
        # OpenSSL takes longer to load than all the rest of a mover, and few need it.
        import hashlib

        return hashlib.new(name, usedforsecurity=False)
    its: Hasher = {FORMAT: xxhash.xxh3_128, "xxh3": xxhash.xxh3_64, "xxh64": xxhash.xxh64}[hash_format]()
    return its


def c4_of(data: bytes) -> str:
    """Return the C4 digest of *data*."""
    its = hasher("c4")
    its.update(data)
    return text_of("c4", its.digest())


def name_in_xml(path: bytes) -> str | None:
    """Return *path* as text, or None where XML has no way to write it: bytes that are no UTF-8, control characters."""
    try:
        text = path.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if re.search(_NOT_IN_XML, text) else text


def generation_number(name: bytes) -> int | None:
    """Return the number of the generation that is called *name*, or None if none is."""
    match = re.fullmatch(_GENERATION, name)
    return int(match[1]) if match else None


def generation_name(number: int, folder: bytes, time: str) -> bytes:
    """Return ``NNNN_FOLDER_DATE_TIMEZ.mhl``, for a generation made at *time*."""
    stamp = datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%d_%H%M%SZ").encode("ascii")
    head, tail = b"%04d_" % number, b"_%s.mhl" % stamp
    name = folder if name_in_xml(folder) else b"root"
    return head + shortened(name, NAME_MAX - len(head) - len(tail)) + tail


def write_generation(records: Iterable[Record], creator: Creator) -> bytes:
    """Return the manifest of files that were transferred."""
    patterns = "".join(f"      <pattern>{pattern}</pattern>\n" for pattern in IGNORED)
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<hashlist version="2.0" xmlns="urn:ASC:MHL:v2.0">\n'
        f"  <creatorinfo>\n    <creationdate>{creator.time}</creationdate>\n"
        f"    <hostname>{_text(re.sub(_NOT_IN_XML, '?', creator.host))}</hostname>\n"
        f'    <tool version="{_text(creator.version)}">trioft</tool>\n  </creatorinfo>\n'
        "  <processinfo>\n    <process>transfer</process>\n"
        f"    <ignore>\n{patterns}    </ignore>\n  </processinfo>\n  <hashes>\n"
    )
    lines = [head]
    for record in records:
        time = _time(record.mtime_ns)
        modified = f' lastmodificationdate="{time}"' if time else ""
        lines.append(f'    <hash>\n      <path size="{record.size}"{modified}>{_text(record.path)}</path>\n')
        for its in sorted(record.hashes, key=lambda its: list(FORMATS).index(its.format)):
            lines.append(f'      <{its.format} action="{its.action}">{its.text}</{its.format}>\n')
        lines.append("    </hash>\n")
    lines.append("  </hashes>\n</hashlist>\n")
    return "".join(lines).encode("utf-8")


def write_chain(links: Iterable[Link]) -> bytes:
    """Return the chain of these generations."""
    entries = "".join(
        f'  <hashlist sequencenr="{_text(link.number)}">\n    <path>{_text(link.name)}</path>\n'
        f"    <c4>{_text(link.c4)}</c4>\n  </hashlist>\n"
        for link in links
    )
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<ascmhldirectory xmlns="urn:ASC:MHL:DIRECTORY:v2.0">\n'
    return f"{head}{entries}</ascmhldirectory>\n".encode()


def read_chain(data: bytes | bytearray) -> list[Link]:
    """Return the generations that a chain names. Raises ``Unreadable``."""
    links = []
    for element in _parse(data, "ascmhldirectory"):
        link = Link(element.get("sequencenr") or "", _child(element, "path"), _child(element, "c4"))
        if not link.name or "/" in link.name or not link.c4:
            raise Unreadable(f"its entry {link.number or '?'} has no name of a file beside it, or no c4")
        links.append(link)
    return links


def read_generation(data: bytes) -> Generation:
    """Return what a manifest says of files; of directories nothing. Raises ``Unreadable``."""
    root = _parse(data, "hashlist")
    hashes: dict[str, list[Hash]] = {}
    for element in root.iterfind("{*}hashes/{*}hash"):
        its = [
            Hash(name, (child.text or "").strip(), child.get("action") or "")
            for child in element
            if (name := child.tag.rpartition("}")[2]) in FORMATS
        ]
        hashes.setdefault(_child(element, "path"), []).extend(its)
    return Generation(root.findtext("{*}creatorinfo/{*}tool", "").strip(), hashes)


def is_chain(path: bytes) -> bool:
    """Is this the chain of some history?"""
    return (b"/" + path).endswith(b"/%s/%s" % (FOLDER, CHAIN))


def continues(chain: bytes | bytearray, other: bytes | bytearray) -> bool:
    """Does *chain* have all that *other* has, and perhaps generations that were added since?"""
    try:
        return set(read_chain(chain)) >= set(read_chain(other))
    except Unreadable:
        return False


def _parse(data: bytes | bytearray, tag: str) -> Any:
    # Few movers ever read one.
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unreadable(f"it is no XML: {error}") from None
    if root.tag.rpartition("}")[2] != tag:
        raise Unreadable(f"it has no <{tag}>")
    return root


def _child(element: Any, name: str) -> str:
    return element.findtext("{*}" + name) or ""


def _text(text: str) -> str:
    return text.translate(_ESCAPES)


def _time(mtime_ns: int) -> str | None:
    """Return a time as the schema wants it, or None for those that it has no way to write."""
    try:
        return datetime.fromtimestamp(mtime_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None


def folder_name(root: bytes, folder: bytes) -> bytes:
    """Return what the folder that a history documents is called."""
    return os.path.basename(os.path.normpath(os.path.join(root, folder)))
