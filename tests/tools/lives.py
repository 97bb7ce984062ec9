"""
Lives of two agents with a destination in common, step by step, and what must be so after each step.

``python tests/tools/lives.py --lives N --seed S`` lives N of them; what breaks a promise is made as small as possible,
and told. A life is a list of steps that are made up beforehand, so that it can be lived again, also with fewer steps.

What must be so, whoever has done a step:

* each byte sequence that was ever complete at a source, or that somebody else has laid at the destination, is still at
  a source, in an archive, or at the destination under a final name; unless the user has removed or replaced it there,
  or ``overwrite`` asks for it and nothing on record says that it may be all that is left;
* what has newly got a final name is a whole version that a source had under that name;
* no partial of another ledger or another program is touched, nor anything outside of the ends;
* what a ledger says was delivered and removed is what was delivered, and is somewhere;
* two agents never have the same pair, as long as nobody meddles with the claim, and the second one touches nothing;
* where nobody can prove that a source has no writer, it is not deleted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import xxhash

from life_agents import BLOCK, COMMIT, Agent, Ended, Errand, Point, Stop, clean, real_name
from trioft.core.claim import is_claim
from trioft.core.digests import file_digest
from trioft.core.naming import GOING, is_own, is_partial, is_probe, target_of_aside
from trioft.state import rowsums
from trioft.state.ledger import ledger_path

NAMES = (b"A.mov", b"a.mov", b"b.mov", b"d/A.mov", b"d/a.mov", b"D/a.mov")
SIZES = (0, 7, 100, 100, 1400, BLOCK, 2 * BLOCK + 5, 3 * BLOCK + 123)
TIMES = (1_600_000_000, 1_600_000_000, 1_600_000_010)
# What another program calls what it has not finished, and what looks like trioft's own, but is not.
STRANGERS = (b"A.mov.partial", b"A.mov.0123abcd.partial", b"a.mov.part", b"d/A.mov.0123456789abcdef.trioft-partial",
             b"x.trioft-partial")  # fmt: skip
# Where agents stop: operations, how often they are chosen, and their calls, each with how many there may be.
_PLACES: dict[str, tuple[int, dict[str, int]]] = {
    "publish": (8, {"rename": 2, "stat": 9, "utime": 2, "fsync": 1, "open": 3}),
    "remove_sources": (8, {"mkdir": 2, "open": 4, "rename": 2, "rmdir": 2, "stat": 9, "unlink": 2}),
    "write_bundle": (4, {"open": 6, "pwrite": 2, "fsync": 2, "stat": 2, "preadv": 4}),
    "copy_span": (3, {"pwrite": 3, "open": 6, "preadv": 3}),
    "settle": (2, {"preadv": 4, "fdatasync": 2}),
    "prepare": (2, {"open": 4, "fsync": 1, "stat": 2}),
    "are_sealed": (2, {"stat": 3, "open": 2}),
    "find_former": (1, {"stat": 1, "open": 2}),
    "compare": (1, {"open": 3}),
    "claim": (1, {"rename": 1, "open": 3, "unlink": 2, "write": 2}),
    "release": (1, {"open": 2, "unlink": 1}),
    "put_back_sources": (1, {"rename": 1, "rmdir": 1}),
    "discard": (1, {"unlink": 1}),
    COMMIT: (5, {COMMIT: 9}),
}
_AT_WORK = {*_PLACES} - {"claim", "release", "compare"}


class BrokenPromise(Exception):
    """What should never be so is so."""


class Thing(NamedTuple):
    """A file that is somewhere."""

    zone: str  # source, archive, dest (under a final name), aside, own (a partial, a claim, …), outside
    path: bytes  # whole
    digest: bytes
    status: tuple[int, int, int, int]


class Party(NamedTuple):
    """Who an agent is."""

    source: str
    state: str
    archive: str
    machine: str
    share: bool


def make_life(seed: int) -> list[Any]:
    """Make up a life: the parties, then its steps."""
    r = random.Random(seed)
    second = r.choice(["other source", "other source", "other ledger", "other machine", "same ledger"])
    life: list[Any] = [("begin", second, r.random() < 0.4)]
    life += [("user", "write", *_numbers(r)) for _ in range(r.randint(1, 3))]
    for _ in range(r.randint(2, 6)):
        life += [_user(r) for _ in range(r.choice([0, 1, 1, 2]))]
        first = r.randrange(2)
        if r.random() < 0.7:
            life.append(("user", "write", first, *_numbers(r)[1:]))
        life.append(_sync(r, first, deep=True))
    return [*life, _sync(r, deep=False), _sync(r, deep=False)]


def _numbers(r: random.Random) -> list[int]:
    return [r.randrange(1 << 20) for _ in range(5)]


_USER = Counter(
    {"write": 14, "append": 3, "move": 3, "remove": 2, "hold": 3, "let go": 3, "card": 2, "remount": 2, "take copy": 4,
     "edit copy": 3, "lay file": 4, "edit partial": 6, "lay stranger": 3, "spoil claim": 4, "save ledger": 3,
     "restore ledger": 4, "lose ledger": 2, "spoil ledger": 3, "wait": 3, "clean": 2, "lead back": 2, "lead away": 2,
     "lead off": 2}
)  # fmt: skip


# What is likely to matter to an agent that has stopped in an operation.
_MATTERS = {
    "publish": ["take copy", "take copy", "edit copy", "edit partial", "lay file", "write", "lead off", "lead back"],
    COMMIT: ["take copy", "edit copy", "edit partial", "write", "hold", "lose ledger"],
    "remove_sources": ["write", "append", "hold", "move", "lead away", "take copy"],
    "are_sealed": ["write", "append", "hold", "lead away"],
}
_MATTERS_ELSE = ["edit partial", "edit partial", "write", "append", "lay file", "move", "spoil claim", "wait"]


def _user(r: random.Random, operation: str | None = None) -> Any:
    what = r.choices(list(_USER), list(_USER.values()))[0]
    if operation is not None and r.random() < 0.7:
        what = r.choice(_MATTERS.get(operation, _MATTERS_ELSE))
    return ("user", what, *_numbers(r))


def _meanwhile(r: random.Random, operation: str, agent: int) -> list[Any]:
    """Make up what happens while an agent has stopped in an operation."""
    acts = [_user(r, operation) for _ in range(r.choice([0, 1, 1, 2]))]
    if r.random() < 0.35:
        spoilt = [("user", "spoil claim", *_numbers(r))] if r.random() < 0.5 else []
        acts += [*spoilt, _sync(r, r.choice([agent, 1 - agent, 1 - agent]), deep=False)]
    return acts


def _sync(r: random.Random, agent: int | None = None, *, deep: bool) -> Any:
    agent = r.randrange(2) if agent is None else agent
    options: dict[str, dict[str, object]] = {
        "copy": {"on_success": r.choice(["keep", "delete", "delete", "archive"]),
                 "verify": r.choice(["transfer", "readback", "readback"])},
        "destination": {"if_exists": r.choice([None, None, "overwrite", "rename"])},
    }  # fmt: skip
    points, meanwhile = [], []
    if deep:
        for _ in range(r.choice([0, 1, 1, 2, 2])):
            operation = r.choices(list(_PLACES), [often for often, _ in _PLACES.values()])[0]
            call, most = r.choice(list(_PLACES[operation][1].items()))
            points.append(Point(operation, call, r.randint(1, most), r.choice(["before", "after", "half"])))
            meanwhile.append((_meanwhile(r, operation, agent), r.choice(["go", "go", "go", "kill mover", "kill"])))
    return (
        "sync",
        agent,
        options,
        points,
        meanwhile,
        r.random() < 0.08,
        r.randrange(1 << 20),
    )


class Life:
    """One life, as far as it has been lived."""

    def __init__(self, told: list[str] | None = None) -> None:
        self.root = tempfile.mkdtemp(prefix="trioft-life-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.told = told if told is not None else []
        self.counts: Counter[str] = Counter()
        self.dest, self.outside = self._folder("dest"), self._folder("outside")
        self.parties: list[Party] = []
        self.folds = False
        self.shift = 0
        self.versions: dict[bytes, set[bytes]] = {}  # digest → paths that it was complete at
        self.contents: dict[bytes, bytes] = {}
        self.strangers: set[bytes] = set()  # digests of what others have laid at the destination
        self.owners: dict[bytes, bytes] = {}  # partials → the ledgers that they were made by
        self.gone: set[bytes] = set()  # digests of what the user, or `overwrite`, has taken away
        self.loose = 0  # bytes of partials that were changed while nobody was looking
        self.tampered: set[bytes] = set()  # what a user has made of a partial that was just getting its name
        self.ledgers: list[tuple[str, bytes]] = []
        self.held: list[tuple[int, bytes]] = []  # sources that somebody has open for writing
        self.running: list[_Run] = []
        self.agents: list[Agent] = []
        self.meddled = False
        self.number = 0

    def _folder(self, name: str) -> str:
        path = os.path.join(self.root, name)
        os.makedirs(path, exist_ok=True)
        return path

    def end(self) -> None:
        for agent in self.agents:
            if not agent.has_ended:
                agent.kill()
        for fd, _ in self.held:
            os.close(fd)
        shutil.rmtree(self.root)

    def say(self, text: str) -> None:
        self.told.append("  " * len(self.running) + text)

    # --- living

    def live(self, life: Sequence[Any]) -> None:
        for step in life:
            self.take(step)

    def take(self, step: Any) -> None:
        match step:
            case ("begin", second, folds):
                self._begin(second, folds)
            case ("user", what, *numbers):
                before = self.look()
                self.counts[f"user: {what}"] += 1
                getattr(self, "user_" + what.replace(" ", "_"))(*numbers)
                self._drop_unlinked()  # he has removed it himself
                self._forgive(before, self.look())
            case ("sync", number, options, points, meanwhile, blind, seed):
                self._sync(number, options, points, meanwhile, blind, seed)

    def _begin(self, second: str, folds: bool) -> None:
        self.folds = folds
        self.say(f"two agents: {second}{'; capitals make no difference' if folds else ''}")
        names = ["first", "first" if second in ("other ledger", "other machine", "same ledger") else "second"]
        is_far = second == "other machine"
        for n, name in enumerate(names):
            state = "state 0" if second in ("same ledger",) or n == 0 else f"state {n}"
            self.parties.append(
                Party(
                    self._folder(f"source {name}"),
                    self._folder(state),
                    os.path.join(self.root, f"archive {n}"),
                    "elsewhere" if is_far and n else "",
                    is_far,
                )
            )

    # --- what is there

    def look(self) -> list[Thing]:
        things = []
        zones = [(party.source, "source") for party in self.parties]
        zones += [(party.archive, "archive") for party in self.parties]
        for top, zone in dict([*zones, (self.dest, "dest"), (self.outside, "outside")]).items():
            for folder, _, names in os.walk(os.fsencode(top)):
                for name in names:
                    path = os.path.join(folder, name)
                    its = os.lstat(path)
                    if not stat.S_ISREG(its.st_mode):
                        continue
                    kind = zone
                    if zone == "dest" and is_own(path):
                        kind = "aside" if target_of_aside(path) is not None else "own"
                    if is_partial(path):  # whoever opens it may have to wait for the agent that has stopped
                        things.append(
                            Thing(kind, path, b"", (its.st_ino, its.st_size, its.st_mtime_ns, its.st_ctime_ns))
                        )
                        continue
                    with open(path, "rb") as file:
                        content = file.read()
                    digest = xxhash.xxh3_128_digest(content)
                    if kind != "own":
                        self.contents[digest] = content
                    things.append(Thing(kind, path, digest, (its.st_ino, its.st_size, its.st_mtime_ns, its.st_mode)))
        return things

    def note_versions(self) -> None:
        """What is complete at a source now was complete there once."""
        busy = {(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd, _ in self.held}
        for party in self.parties:
            top = os.fsencode(party.source)
            for thing in self.look():
                if thing.zone == "source" and thing.path.startswith(top + b"/"):
                    its = os.stat(thing.path)
                    name = b"/".join(p for p in thing.path[len(top) + 1 :].split(b"/") if not p.startswith(GOING))
                    if (its.st_dev, its.st_ino) not in busy:
                        self.versions.setdefault(thing.digest, set()).add(name)

    # --- what the user does

    def _names_in(self, top: str) -> list[bytes]:
        return sorted(
            os.path.relpath(thing.path, os.fsencode(top))
            for thing in self.look()
            if thing.path.startswith(os.fsencode(top) + b"/") and GOING not in thing.path
        )

    def _source(self, a: int) -> str:
        return self.parties[a % 2].source

    def _some(self, top: str, a: int, b: int) -> bytes | None:
        """Return one of the files that a folder has."""
        names = [name for name in self._names_in(top) if not is_own(name)]
        return os.path.join(os.fsencode(top), names[(a * 7 + b) % len(names)]) if names else None

    def _content(self, size: int) -> bytes:
        self.number += 1
        return random.Random(self.number).randbytes(size)

    def _put(self, path: bytes, content: bytes, when: int, *, over: bool) -> bool:
        """Write a file, in place or not, as programs do; where links or folders are in the way, do not."""
        if any(os.path.islink(path[:at]) for at in range(len(path)) if path[at : at + 1] == b"/"):
            return False
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            new = os.fsencode(self.root) + b"/new"
            fd = os.open(path if over else new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
            os.write(fd, content)
            os.close(fd)
            if not over:
                os.rename(new, path)
        except BlockingIOError:
            self.counts["had to wait to write to it"] += 1
            return False
        except (NotADirectoryError, IsADirectoryError, FileExistsError):
            return False
        os.utime(path, (when, when))
        return True

    def user_write(self, a: int, b: int, c: int, d: int, e: int) -> None:
        path = os.path.join(os.fsencode(self._source(a)), NAMES[b % len(NAMES)])
        content = self._content(SIZES[c % len(SIZES)])
        if self._put(path, content, TIMES[d % len(TIMES)], over=e % 3 == 0):
            self.say(f"user: writes {self._short(path)}, {len(content)} bytes{' in place' if e % 3 == 0 else ''}")
            self.note_versions()

    def user_append(self, a: int, b: int, c: int, d: int, _: int) -> None:
        path = self._some(self._source(a), b, c)
        if path is not None:
            with open(path, "ab") as file:
                file.write(self._content(1 + d % 500))
            self.say(f"user: appends to {self._short(path)}")
            self.note_versions()

    def user_move(self, a: int, b: int, c: int, d: int, _: int) -> None:
        path = self._some(self._source(a), b, c)
        if path is not None:
            new = os.path.join(os.fsencode(self._source(a)), NAMES[d % len(NAMES)])
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(new), exist_ok=True)
                os.rename(path, new)
                self.say(f"user: renames {self._short(path)} to {self._short(new)}")
            self.note_versions()

    def user_remove(self, a: int, b: int, c: int, *_: int) -> None:
        path = self._some(self._source(a), b, c)
        if path is not None:
            os.unlink(path)
            self.say(f"user: removes {self._short(path)}")

    def user_hold(self, a: int, b: int, c: int, *_: int) -> None:
        path = self._some(self._source(a), b, c)
        if path is not None and len(self.held) < 2:
            self.held.append((os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC), path))
            self.say(f"user: opens {self._short(path)} for writing")

    def user_let_go(self, *_: int) -> None:
        """Whoever has a source open writes to it once more."""
        if self.held:
            fd, path = self.held.pop(0)
            os.write(fd, self._content(50))
            os.close(fd)
            self.say(f"user: writes what was opened as {self._short(path)}, and closes it")
            self.note_versions()

    def _drop_unlinked(self) -> list[bytes]:
        """Close the files that have no name any more; return what they were called."""
        dropped = [(fd, path) for fd, path in self.held if not os.fstat(fd).st_nlink]
        self.held = [one for one in self.held if one not in dropped]
        for fd, _ in dropped:
            os.close(fd)
        return [path for _, path in dropped]

    def user_card(self, a: int, b: int, c: int, d: int, e: int) -> None:
        """Another card is in the reader, with files of the same names, sizes and times."""
        top = self._source(a)
        for fd, _ in self.held:
            os.close(fd)
        self.held.clear()
        old = [(t.path, os.stat(t.path)) for t in self.look() if t.path.startswith(os.fsencode(top) + b"/")]
        self.number += 1
        os.rename(top, os.path.join(self.root, f"card {self.number}"))
        os.mkdir(top)
        for n, (path, its) in enumerate(old):
            if GOING not in path and (b >> n) % 3:
                self._put(path, self._content(its.st_size), int(its.st_mtime), over=True)
        for run in self.running:
            run.has_pair = False
        self.say(f"user: puts another card into {self._short(os.fsencode(top))}")
        self.note_versions()

    def user_remount(self, a: int, *_: int) -> None:
        self.shift = 0 if self.shift else 1 + a % 100
        self.say("the source and the destination are mounted anew: their devices have other numbers")

    def user_take_copy(self, _: int, b: int, c: int, *rest: int) -> None:
        path = self._some(self.dest, b, c)
        if path is not None:
            os.unlink(path)
            self.say(f"user: removes {self._short(path)}")

    def user_edit_copy(self, _: int, b: int, c: int, d: int, e: int) -> None:
        path = self._some(self.dest, b, c)
        if path is not None:
            its = os.stat(path)
            if self._flip(path, d) and e % 2:
                os.utime(path, ns=(its.st_atime_ns, its.st_mtime_ns))
            self.say(f"user: edits {self._short(path)}")
            self._stranger(path)

    def _stranger(self, path: bytes) -> None:
        with open(path, "rb") as file:
            self.strangers.add(xxhash.xxh3_128_digest(file.read()))

    def _flip(self, path: bytes, where: int) -> bool:
        size = os.path.getsize(path)
        if not size:
            return False
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        except BlockingIOError:
            self.counts["had to wait to write to it"] += 1
            return False
        byte = os.pread(fd, 1, where % size)[0] ^ 1
        os.pwrite(fd, bytes([byte]), where % size)
        os.close(fd)
        return True

    def user_lay_file(self, a: int, b: int, c: int, d: int, e: int) -> None:
        """Somebody puts a file of his own under a final name; of the size and time of a source, perhaps."""
        name = NAMES[b % len(NAMES)]
        source = os.path.join(os.fsencode(self._source(a)), name)
        size, when = SIZES[c % len(SIZES)] + 1, TIMES[d % len(TIMES)]
        if e % 2 and os.path.isfile(source):
            size, when = os.path.getsize(source), int(os.path.getmtime(source))
        path = self._at_dest(name)
        if size and self._put(path, self._content(size), when, over=e % 3 == 0):
            self.say(f"user: lays a file of his own, {self._short(path)}, {size} bytes")
            self._stranger(path)

    def _at_dest(self, name: bytes) -> bytes:
        path = os.fsencode(self.dest)
        for part in name.split(b"/"):
            with contextlib.suppress(OSError):
                part = real_name(path, part) if self.folds else part
            path = os.path.join(path, part)
        return path

    def user_edit_partial(self, _: int, b: int, c: int, d: int, e: int) -> None:
        paths = sorted(thing.path for thing in self.look() if thing.zone == "own" and is_partial(thing.path))
        if paths:
            path = paths[b % len(paths)]
            its = os.stat(path)
            publishing = any(run.stop is not None and run.stop.operation == "publish" for run in self.running)
            if not self._flip(path, d):
                return
            if e % 2 and not publishing:
                os.utime(path, ns=(its.st_atime_ns, its.st_mtime_ns))
            self.say(f"user: changes a byte of {self._short(path)}")
            mine = [run for run in self.running if self.owners.get(path) == self._id(run.number)]
            for run in mine:
                run.edits += 1
            self.loose += not mine
            if publishing:
                with open(path, "rb") as file:
                    self.tampered.add(xxhash.xxh3_128_digest(file.read()))

    def user_lay_stranger(self, _: int, b: int, c: int, *rest: int) -> None:
        path = self._at_dest(STRANGERS[b % len(STRANGERS)])
        if self._put(path, self._content(20), 1_500_000_000, over=False):
            self.say(f"another program makes {self._short(path)}")
            self._stranger(path)

    def user_spoil_claim(self, a: int, b: int, *_: int) -> None:
        claims = sorted(os.path.join(self.dest, name) for name in os.listdir(self.dest) if is_claim(name.encode()))
        if not claims:
            return
        path, self.meddled = claims[b % len(claims)], True
        match a % 5:
            case 0:
                os.unlink(path)
            case 1:
                os.utime(path, (1_500_000_000, 1_500_000_000))
            case 2:
                os.truncate(path, 0)
            case 3:
                with open(path, "w", encoding="ascii") as file:
                    file.write("no claim")
                os.utime(path, (1_500_000_000, 1_500_000_000))
            case _:
                os.rename(path, os.path.join(self.dest, ".trioft-claim-0"))
        self.say(f"user: spoils a claim ({a % 5})")

    def _ledger(self, a: int) -> str:
        party = self.parties[a % 2]
        return ledger_path(party.state, os.fsencode(party.source), os.fsencode(self.dest))

    def _is_free(self, a: int) -> bool:
        """Nobody touches the ledger of an agent that is at work."""
        return all(self._ledger(run.number) != self._ledger(a) for run in self.running) and os.path.exists(
            self._ledger(a)
        )

    def user_save_ledger(self, a: int, *_: int) -> None:
        if self._is_free(a):
            with contextlib.closing(sqlite3.connect(self._ledger(a))) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with open(self._ledger(a), "rb") as file:
                self.ledgers.append((self._ledger(a), file.read()))
            self.say(f"user: saves the ledger of {a % 2}")

    def user_restore_ledger(self, a: int, b: int, *_: int) -> None:
        saved = [content for path, content in self.ledgers if path == self._ledger(a)]
        if saved and self._is_free(a):
            self._forget(a)
            with open(self._ledger(a), "wb") as file:
                file.write(saved[b % len(saved)])
            self.say(f"user: restores an old ledger of {a % 2}")

    def user_lose_ledger(self, a: int, *_: int) -> None:
        if self._is_free(a):
            self._forget(a)
            self.say(f"user: loses the ledger of {a % 2}")

    def _forget(self, a: int) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._ledger(a) + suffix)

    def user_spoil_ledger(self, a: int, b: int, c: int, *_: int) -> None:
        """A bit of a row flips on the disk."""
        if not self._is_free(a):
            return
        with contextlib.closing(sqlite3.connect(self._ledger(a))) as db, db:
            table = ("file", "checkpoint", "checkpoint")[b % 3]
            columns = {
                "file": ("size = size + 1", "removal = 'pending'", "mtime_ns = mtime_ns + 1", "outcome = 'delivered'"),
                "checkpoint": (f"offset = offset + {BLOCK}, digests = digests || zeroblob(16)", "size = size + 1",
                               "digests = zeroblob(length(digests))", "ino = ino + 1"),
            }[table]  # fmt: skip
            with contextlib.suppress(sqlite3.DatabaseError):
                db.execute(f"UPDATE {table} SET {columns[c % 4]}")
        self.say(f"user: bits flip in the ledger of {a % 2}, {table}: {columns[c % 4]}")

    def user_wait(self, *_: int) -> None:
        """Two days go by, as far as trioft's own files tell."""
        past = time.time() - 2 * 24 * 3600
        for thing in self.look():
            if thing.zone in ("own", "aside") and not any(run.stop is not None for run in self.running):
                os.utime(thing.path, (past, past))
        self.say("two days go by")

    def user_clean(self, a: int, *_: int) -> None:
        before = self.look()
        clean(self.dest, self.parties[a % 2].state)
        self.say(f"user: trioft clean {self._short(os.fsencode(self.dest))} --remove --older-than 1d")
        self._check_loss(before, self.look(), None, b"")

    def user_lead_back(self, a: int, b: int, *_: int) -> None:
        """A folder of the destination leads back into the source."""
        name = (b"d", b"D")[b % 2]
        self._lay_link(os.path.join(os.fsencode(self._source(a)), name), self._at_dest(name), aside=False)

    def user_lead_away(self, a: int, b: int, *_: int) -> None:
        """A folder of the source is moved elsewhere, and a link is laid in its place."""
        self._lay_link(b"", os.path.join(os.fsencode(self._source(a)), (b"d", b"D")[b % 2]), aside=True)

    def user_lead_off(self, _: int, b: int, *rest: int) -> None:
        """Another user lays a link at the destination that leads elsewhere."""
        if os.geteuid() == 0:
            place = self._at_dest((b"d", b"D")[b % 2])
            self._lay_link(b"", place, aside=True)
            if os.path.islink(place):
                os.lchown(place, 4711, 4711)

    def _lay_link(self, target: bytes, place: bytes, *, aside: bool) -> None:
        if os.path.islink(place) or (target and not os.path.isdir(target)):
            return
        self.number += 1
        if aside:
            target = os.path.join(os.fsencode(self.outside), b"%d" % self.number)
            if os.path.isdir(place):
                os.rename(place, target)
                for run in self.running:
                    run.moved.add(target)
            else:
                os.mkdir(target)
        elif os.path.exists(place):
            return
        with contextlib.suppress(FileExistsError):
            os.symlink(target, place)
            self.say(f"user: lays a link, {self._short(place)} -> {self._short(target)}")

    def _short(self, path: bytes) -> str:
        return os.fsdecode(os.path.relpath(path, os.fsencode(self.root)))

    # --- what agents do

    def _sync(
        self, number: int, options: dict[str, Any], points: list[Point], meanwhile: list[Any], blind: bool, seed: int
    ) -> None:
        party = self.parties[number]
        action = options["copy"]["on_success"]
        archive = f"archive:{party.archive}" if action == "archive" else action
        options = options | {"copy": options["copy"] | {"on_success": archive}}
        if_exists = options["destination"]["if_exists"]
        overwrites = if_exists == "overwrite" or (if_exists is None and action == "keep")
        errand = Errand(party.source, self.dest, party.state, party.archive, options, party.machine, party.share,
                        self.folds, self.shift, True, blind, seed, tuple(points))  # fmt: skip
        self.say(f"agent {number}: sync {action}, {if_exists}{', blind' if blind else ''}, {points}")
        self.counts["sync"] += 1
        rivals = [run for run in self.running if run.has_pair and self.parties[run.number].source == party.source]
        is_near = any(self.parties[run.number].machine == party.machine for run in rivals)
        is_kept_out = bool(rivals) and (is_near or not self.meddled)
        start = self.look()
        if not self.running:
            self.meddled = self.meddled and any(is_claim(os.path.basename(t.path)) for t in start if t.zone == "own")
        run = _Run(number, errand, overwrites, blind and action == "delete")
        run.level = options["copy"]["verify"] if action == "keep" else "readback"
        outcome = self._segment(run, lambda: run.begin(self))
        while isinstance(outcome, Stop):
            run.stop = outcome
            self.counts[f"stopped in {outcome.operation}"] += 1
            self.say(f"agent {number} has stopped {outcome.doing} ({outcome.operation})")
            acts, then = meanwhile[outcome.point]
            run.has_pair = outcome.operation in _AT_WORK and not is_kept_out
            self.running.append(run)
            for act in acts:
                if act[0] == "sync" and outcome.leased:
                    self.counts["left out: it would only wait"] += 1
                else:
                    self.take(act)
            self.running.remove(run)
            self.counts[f"then {then}"] += 1
            self.say(f"agent {number}: {then}")
            if then == "kill":
                self.loose += run.edits
                self._segment(run, run.agent.kill)
                return
            run.has_lost_a_mover |= then == "kill mover"
            order = run.agent.kill_mover if then == "kill mover" else lambda: run.agent.go_on(b"g")
            outcome = self._segment(run, order)
        self.counts[f"ended with {outcome.code}"] += 1
        self.say(f"agent {number} has ended with {outcome.code}: {'; '.join(outcome.said)}")
        if outcome.bugs:
            raise BrokenPromise("a bug: " + "\n".join(outcome.bugs))
        if is_kept_out:
            self.counts["kept out"] += 1
            if outcome.code != 5:
                raise BrokenPromise("two agents work on one pair")
        if outcome.code == 0 and run.stop is None and not any(run.stop for run in self.running):
            self._check_delivered(party, start, self.look())

    def _segment(self, run: _Run, work: Any) -> Any:
        """Have an agent work for a while; see that it keeps its promises."""
        before, ledger = self.look(), _copy_of(self._ledger(run.number))
        outcome = work()
        after = self.look()
        its = self._id(run.number)
        self._check_loss(before, after, run, ledger)
        is_cut = not isinstance(outcome, Ended) or run.has_lost_a_mover
        self._check_names(before, after, run, is_cut=is_cut)
        self._check_others(before, after, its)
        self._forgive(before, after)
        self._check_removed(run.number, after)
        if removed := self._drop_unlinked():
            raise BrokenPromise(f"{removed} was removed while somebody had it open for writing")
        if run.is_blind:
            there = {thing.digest for thing in after if thing.zone == "source"}
            if any(thing.zone == "source" and thing.digest not in there for thing in before):
                raise BrokenPromise("a source was deleted although nobody can prove that it has no writer")
        return outcome

    def _forgive(self, before: list[Thing], after: list[Thing]) -> None:
        there = {thing.digest for thing in after if thing.zone in ("source", "archive", "dest", "aside")}
        copies = {thing.digest for thing in after if thing.zone == "dest"}
        for thing in before:
            if thing.zone in ("source", "archive", "dest", "aside") and thing.digest not in there:
                self.gone.add(thing.digest)
            if thing.zone == "dest" and thing.digest not in copies:
                for run in self.running:
                    if run.stop is not None and run.stop.checked:
                        run.doomed.add(thing.digest)

    def _id(self, number: int) -> bytes:
        """Return which ledger an agent has now."""
        rows = _ask(_copy_of(self._ledger(number)), "SELECT value FROM about WHERE key = 'id'")
        return rows[0][0] if rows else b""

    # --- what must be so

    def _check_loss(self, before: list[Thing], after: list[Thing], run: _Run | None, ledger: Any) -> None:
        # Outside are folders that a user has moved there, and others that he has led the destination to.
        held = {thing.digest for thing in after if thing.zone != "own"}
        now = {thing.path: thing for thing in after}
        self._check_outside(before, now, run)
        for thing in before:
            if thing.zone == "own" or thing.digest in held:
                continue
            if thing.digest not in self.versions and thing.digest not in self.strangers:
                continue
            if run is not None and thing.digest in run.doomed:
                self.counts["taken by the user at the last moment"] += 1
                continue
            new = now.get(thing.path)
            why_not = f"it was at {self._short(thing.path)}"
            if run is not None and thing.zone == "dest" and new is not None:
                if self.contents[new.digest].startswith(self.contents[thing.digest]):
                    continue  # all of it is in the new one
                path = os.path.relpath(thing.path, os.fsencode(self.dest))
                why_not += f", where {self.versions.get(new.digest)} is now"
                if run.overwrites and path in self.versions.get(new.digest, ()):
                    if not _is_protected(ledger, path):
                        self.counts["replaced as `overwrite` asks for"] += 1
                        continue
                    why_not += "; the ledger knows that it may be all that is left"
            raise BrokenPromise(f"{self.versions.get(thing.digest, 'a file of somebody')} is lost: {why_not}")

    def _led_to(self) -> set[bytes]:
        """Return where links at the destination lead that trioft's own user has laid: there it delivers to."""
        places = set()
        for place in map(self._at_dest, (b"d", b"D")):
            while os.path.islink(place) and os.lstat(place).st_uid == os.geteuid():
                place = os.path.join(os.path.dirname(place), os.readlink(place))
            places.add(place)
        return places

    def _is_loosely(self, content: bytes) -> bool:
        """Is this a version, but for the bytes that were changed in its partial while nobody was looking?"""
        versions = [self.contents[digest] for digest in self.versions]
        return any(
            len(its) == len(content) and sum(a != b for a, b in zip(its, content, strict=True)) <= self.loose
            for its in versions
        )

    def _check_outside(self, before: list[Thing], now: dict[bytes, Thing], run: _Run | None) -> None:
        """What was moved away while an agent had it open it may still work in; what is no partial it leaves alone."""
        moved = run.moved if run is not None else set()
        there = {thing.path: thing for thing in before if thing.zone == "outside" and not is_own(thing.path)}
        for path, thing in there.items():
            if now.get(path) != thing and not any(path.startswith(folder + b"/") for folder in moved):
                raise BrokenPromise(f"{self._short(path)}, outside, was touched")
        moved = {*moved, *self._led_to()} if run is not None else set()
        for path, thing in now.items():
            is_new = thing.zone == "outside" and path not in there and not is_own(path)
            if is_new and not any(path.startswith(folder + b"/") for folder in moved):
                raise BrokenPromise(f"{self._short(path)} was made outside")

    def _check_names(self, before: list[Thing], after: list[Thing], run: _Run, *, is_cut: bool) -> None:
        there = {(thing.path, thing.digest) for thing in before}
        for thing in after:
            if thing.zone == "dest" and (thing.path, thing.digest) not in there:
                path = os.path.relpath(thing.path, os.fsencode(self.dest))
                if thing.digest in self.tampered and is_cut:
                    continue
                names = self.versions.get(thing.digest)
                if names is None:
                    if run.level == "transfer" and self._is_loosely(self.contents[thing.digest]):
                        self.counts["changed behind a level that reads nothing back"] += 1
                        continue
                    raise BrokenPromise(f"{path!r} is no version that there ever was")
                names, same = {_unnumbered(name) for name in names}, {_unnumbered(path)}
                if self.folds:
                    names, same = {name.upper() for name in names}, {name.upper() for name in same}
                if not names & same:
                    raise BrokenPromise(f"{path!r} is a version of {names}")

    def _check_others(self, before: list[Thing], after: list[Thing], its: bytes) -> None:
        now = {thing.path: thing for thing in after if _is_somebodys(thing)}
        for thing in before:
            if _is_somebodys(thing) and not (its and self.owners.get(thing.path) == its):
                if now.get(thing.path) != thing:
                    raise BrokenPromise(f"a partial of somebody else was touched: {self._short(thing.path)}")
                del now[thing.path]
        self.owners.update(dict.fromkeys(now, its))

    def _check_removed(self, number: int, after: list[Thing]) -> None:
        held = {thing.digest for thing in after if thing.zone != "own"}
        query = f"SELECT folder, name, digest, {rowsums.FILE} FROM file WHERE removal = 'removed'"
        known = {_as_ledger(self.contents[digest]): digest for digest in self.versions if digest in self.contents}
        for folder, name, digest, *_ in _ask(_copy_of(self._ledger(number)), query):
            its = known.get(digest)
            if its is None:
                raise BrokenPromise(f"{folder}/{name} was removed, and nobody knows what it was")
            if its not in held and its not in self.gone:
                raise BrokenPromise(f"{folder}/{name} was removed, and is nowhere")

    def _check_delivered(self, party: Party, start: list[Thing], after: list[Thing]) -> None:
        # A link of trioft's own user is followed, wherever it leads.
        zones = (
            ("dest", "source", "outside")
            if any(os.path.islink(self._at_dest(name)) for name in (b"d", b"D"))
            else ("dest",)
        )
        copies = {thing.digest for thing in after if thing.zone in zones}
        looks = {(_unnumbered(thing.path), *thing.status[1:3]) for thing in after if thing.zone == "dest"}
        top = os.fsencode(party.source)
        for thing in start:
            if thing.zone == "source" and thing.path.startswith(top + b"/") and GOING not in thing.path:
                path = os.path.relpath(thing.path, top)
                if is_own(path):
                    continue
                if thing.digest not in copies and (_unnumbered(self._at_dest(path)), *thing.status[1:3]) not in looks:
                    raise BrokenPromise(f"all is well, it says, but {path!r} is not at the destination")


class _Run:
    """A sync that has begun."""

    def __init__(self, number: int, errand: Errand, overwrites: bool, is_blind: bool) -> None:
        self.number, self.errand, self.overwrites, self.is_blind = number, errand, overwrites, is_blind
        self.agent: Agent
        self.stop: Stop | None = None
        self.has_pair = False
        self.doomed: set[bytes] = set()
        self.level = "readback"
        self.has_lost_a_mover = False
        self.edits = 0  # of partials, by the user, meanwhile
        self.moved: set[bytes] = set()  # folders that were moved away meanwhile

    def begin(self, life: Life) -> Stop | Ended:
        self.agent = Agent(self.errand, [fd for fd, _ in life.held])
        life.agents.append(self.agent)
        return self.agent.go_on()


def _is_somebodys(thing: Thing) -> bool:
    """Is it a partial, or looks like one? Claims and probes are everybody's."""
    name = os.path.basename(thing.path)
    return thing.zone == "own" and not is_claim(name) and not is_probe(name, 0)


def _unnumbered(path: bytes) -> bytes:
    return re.sub(rb"(_\d+)+(?=\.mov$)", b"", path)


def _as_ledger(content: bytes) -> bytes:
    blocks = range(0, len(content), BLOCK)
    return file_digest(b"".join(xxhash.xxh3_128_digest(content[at : at + BLOCK]) for at in blocks))


def _copy_of(ledger: str) -> tuple[bytes, bytes]:
    parts = []
    for suffix in ("", "-wal"):
        try:
            with open(ledger + suffix, "rb") as file:
                parts.append(file.read())
        except FileNotFoundError:
            parts.append(b"")
    return parts[0], parts[1]


def _ask(copy: tuple[bytes, bytes], query: str, values: Sequence[object] = ()) -> list[Any]:
    if not copy[0]:
        return []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        for suffix, content in zip(("", "-wal"), copy, strict=True):
            with open(f"{place}/copy{suffix}", "wb") as file:
                file.write(content)
        with contextlib.closing(sqlite3.connect(f"{place}/copy")) as db:
            rowsums.teach(db)
            if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'history'").fetchone():
                return []
            return db.execute(query, values).fetchall()


def _is_protected(ledger: tuple[bytes, bytes], path: bytes) -> bool:
    """Does a ledger say that what was delivered as *path* may be all that is left, or is another file's?"""
    own = os.path.split(path)
    query = (
        f"SELECT 1 FROM file WHERE target = ?1 AND {rowsums.IS_SOUND} AND outcome IN ('delivered', 'already')"
        " AND (removal = 'removed' OR (folder, name) <> (?2, ?3))"
        " UNION SELECT 1 FROM history WHERE event = 'removed' AND target = ?1"
    )
    return bool(_ask(ledger, query, (path, *own)))


# --- searching -------------------------------------------------------------------------------------------------------


def attempt(life: Sequence[Any], counts: Counter[str] | None = None) -> tuple[str, list[str]] | None:
    """Live a life; return what was wrong, if anything was, and the story of it."""
    told: list[str] = []
    one = Life(told)
    try:
        one.live(life)
    except BrokenPromise as error:
        return str(error), told
    finally:
        one.end()
        if counts is not None:
            counts.update(one.counts)
    return None


def shrink(life: list[Any], seconds: float) -> list[Any]:
    """Leave out what is not needed to break a promise."""
    end = time.monotonic() + seconds
    changed = True
    while changed and time.monotonic() < end:
        changed = False
        for smaller in _smaller(life):
            if time.monotonic() > end:
                break
            if attempt(smaller) is not None:
                life, changed = smaller, True
                break
    return life


def _smaller(life: list[Any]) -> Iterator[list[Any]]:
    for at in range(len(life) - 1, 0, -1):
        yield life[:at] + life[at + 1 :]
    for at, step in enumerate(life):
        if step[0] == "sync":
            *head, points, meanwhile, blind, seed = step
            for n, (acts, then) in enumerate(meanwhile):
                for act in range(len(acts)):
                    less = [*meanwhile[:n], (acts[:act] + acts[act + 1 :], then), *meanwhile[n + 1 :]]
                    yield [*life[:at], (*head, points, less, blind, seed), *life[at + 1 :]]
            if points:
                yield [*life[:at], (*head, points[:-1], meanwhile[:-1], blind, seed), *life[at + 1 :]]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lives", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no life after so long")
    parser.add_argument("--go-on", action="store_true", help="also after a promise was broken")
    parser.add_argument("--as-it-is", action="store_true", help="make nothing smaller")
    told = parser.parse_args()
    counts: Counter[str] = Counter()
    end, lived, broken = time.monotonic() + told.seconds, 0, 0
    for seed in range(told.seed, told.seed + told.lives):
        if time.monotonic() > end:
            break
        life = make_life(seed)
        lived += 1
        wrong = attempt(life, counts)
        if wrong is not None:
            broken += 1
            small = life if told.as_it_is else shrink(life, 30)
            again = attempt(small) or wrong
            print(f"life {seed}: {again[0]}", *again[1], sep="\n  ", flush=True)
            if not told.go_on:
                break
    print(json.dumps({"lived": lived, "broken": broken, "counts": dict(sorted(counts.items()))}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
