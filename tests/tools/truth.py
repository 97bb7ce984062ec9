"""The promises that every ending must keep, checked by looking at the files and into the ledger."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

import xxhash

from support import Site, files_of, wait_until
from trioft.core.model import BLOCK_SIZE, VOID
from trioft.core.naming import GOING, is_own, is_view_probe


class Begun(NamedTuple):
    """What a ledger says of a transfer in progress."""

    partial: bytes
    offset: int
    digests: bytes
    growing: bool


class Recorded(NamedTuple):
    """What a ledger says."""

    delivered: dict[bytes, bytes]  # path to final name
    removed: set[bytes]
    checkpoints: dict[bytes, Begun]

    def settled(self, path: bytes) -> int:
        """How far the checkpoint of *path* reaches; 0 where there is none."""
        return self.checkpoints[path].offset if path in self.checkpoints else 0


def recorded(site: Site, *, running: bool = False) -> Recorded:
    """
    Return what the ledger of *site* says.

    That of an agent that has ended is read from a copy, so that looking at it repairs nothing.
    """
    ledgers = list(site.state.glob("*.sqlite"))
    if not ledgers:
        return Recorded({}, set(), {})
    (ledger,) = ledgers
    if running:
        return _read(f"{ledger}")
    with tempfile.TemporaryDirectory() as place:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{ledger}{suffix}", os.path.join(place, f"copy.sqlite{suffix}"))
        return _read(os.path.join(place, "copy.sqlite"))


def _read(path: str) -> Recorded:
    with contextlib.closing(sqlite3.connect(path)) as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'file'").fetchone():
            return Recorded({}, set(), {})
        files = db.execute("SELECT folder, name, outcome, removal, target FROM file").fetchall()
        rows = db.execute("SELECT path, partial, offset, digests, growing FROM checkpoint").fetchall()
    known = {os.path.join(folder, name): rest for folder, name, *rest in files}
    return Recorded(
        {path: target for path, (outcome, _, target) in known.items() if outcome in ("delivered", "already")},
        {path for path, (_, removal, _) in known.items() if removal == "removed"},
        {path: Begun(partial, offset, digests, bool(growing)) for path, partial, offset, digests, growing in rows},
    )


def sources_of(site: Site) -> dict[bytes, bytes]:
    """
    Return what the source holds; what was just taken aside, to be removed, under its own name.

    What a look for views has left, that was cut short, is nobody's: it is cleared up a day later.
    """
    return {
        b"/".join(part for part in path.split(b"/") if not part.startswith(GOING)): content
        for path, content in files_of(site.source).items()
        if not is_view_probe(path, len(content))
    }


def check_promises(site: Site, contents: Mapping[bytes, bytes]) -> Recorded:
    """
    Check what must be so at any moment of transferring *contents*, also if nothing more ever happens.

    Returns what the ledger says.
    """
    says = recorded(site)
    there = files_of(site.dest)
    # 1. A final name is a finished file.
    finished = {path for path in there if not is_own(path)}
    assert finished <= contents.keys(), "a final name that nobody asked for"
    assert [path for path in finished if there[path] != contents[path]] == [], "a final name with other content"
    # The ledger does not say more than is true.
    assert set(says.delivered.values()) <= finished
    assert all(path == target for path, target in says.delivered.items())
    # 2. A checkpoint never leads.
    for path, (partial, offset, digests, growing) in says.checkpoints.items():
        if partial not in there and path in finished:
            continue  # it has its final name, and the ledger was not told any more
        assert len(there[partial]) >= offset
        if growing:  # what its recorder had written when it was read; nothing is said of what is written again
            held, says_of = blocks_of(digests_of(there[partial][:offset])), blocks_of(digests)
            assert len(held) == len(says_of)
            differing = [n for n, digest in enumerate(says_of) if digest not in (VOID, held[n])]
            assert differing == [], f"{path!r} differs in these blocks below byte {offset:,}"
        else:
            assert there[partial][:offset] == contents[path][:offset], f"{path!r} differs below byte {offset:,}"
            assert digests == digests_of(contents[path][:offset])
    # 3. A source is removed only when it is delivered.
    sources = sources_of(site)
    assert [path for path in sources if sources[path] != contents[path]] == [], "a source was changed"
    assert contents.keys() - sources.keys() <= finished & says.delivered.keys(), "a source is gone too early"
    return says


def digests_of(content: bytes) -> bytes:
    """Return the digests of the blocks of *content*, in order."""
    starts = range(0, len(content), BLOCK_SIZE)
    return b"".join(xxhash.xxh3_128_digest(content[start : start + BLOCK_SIZE]) for start in starts)


def blocks_of(digests: bytes) -> list[bytes]:
    return [digests[at : at + 16] for at in range(0, len(digests), 16)]


def children_of(pid: int) -> set[int]:
    """Return the movers and other children that the agent *pid* started and that still run, orphans included."""
    children = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                command = file.read()
                if b"trioft." in command and f"main({pid}".encode() in command:
                    children.add(int(name))
    return children


def check_nobody_is_left(pid: int) -> None:
    """The agent *pid* is gone, and with it, at once or in a moment, all that it started."""
    assert not os.path.exists(f"/proc/{pid}")
    wait_until(lambda: not children_of(pid), 5)
