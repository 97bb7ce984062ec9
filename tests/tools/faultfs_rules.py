"""
What is to go wrong in ``faultfs``: rules, what they match, and how often.

A rule is an operation, a pattern for the path (``*`` matches ``/`` too), the hit from which on it fires (``nth``), how
often (``times``, 0: until it is cleared), and what happens then:

errno       the operation does not happen, and fails
late        it happens, and fails with ``errno``: the answer was lost
delayed     it fails with ``errno`` at once, and happens later: just before this operation on the same path, or (empty)
            when it is asked for
lose        what was written since the file was fsynced is gone, its size is not: so do disks, and servers that run full
stall       seconds for which it does not answer; 0: until it is released. It happens after that
short       a write does half of what it was asked to, and says so
flip        one bit is wrong: of what is stored, or of what is read
drop        a write says that it happened
"""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import os
from typing import Any

# What changes something, or makes it durable: there are as many moments at which a power cut can come.
CHANGES = frozenset({"create", "write", "truncate", "chmod", "utimens", "setxattr", "removexattr", "mkdir"})
CHANGES |= {"unlink", "rename", "fsync", "fsyncdir"}
OPERATIONS = CHANGES | {"lookup", "getattr", "open", "read", "flush", "opendir", "readdir", "statfs"}
GROUPS = {"*": OPERATIONS, "change": CHANGES, "stat": frozenset({"lookup", "getattr"})}


@dataclasses.dataclass
class Rule:
    op: str
    glob: str = "*"
    nth: int = 1
    times: int = 1
    errno: str | None = None
    late: bool = False
    delayed: str | None = None
    stall: float | None = None
    short: bool = False
    flip: bool = False
    drop: bool = False
    lose: bool = False
    id: int = 0
    hits: int = 0
    fired: int = 0

    def __post_init__(self) -> None:
        if self.op not in OPERATIONS | GROUPS.keys():
            raise ValueError(f"no operation is called {self.op!r}")

    @property
    def number(self) -> int:
        """The errno, 0 where there is none."""
        return int(getattr(errno, self.errno)) if self.errno else 0

    def is_hit(self, op: str, paths: tuple[bytes, ...]) -> bool:
        """Count this operation, if it is what the rule is about; say whether it is its turn."""
        if op not in GROUPS.get(self.op, (self.op,)):
            return False
        if not any(fnmatch.fnmatchcase(os.fsdecode(path), self.glob) for path in paths):
            return False
        self.hits += 1
        if self.hits < self.nth or (self.times and self.fired >= self.times):
            return False
        self.fired += 1
        return True


class Rules:
    """The rules in force. The first that fires decides."""

    def __init__(self) -> None:
        self.all: dict[int, Rule] = {}
        self._next = 1

    def add(self, **fields: Any) -> int:
        rule = Rule(**fields)
        rule.id, self._next = self._next, self._next + 1
        self.all[rule.id] = rule
        return rule.id

    def clear(self, number: int | None = None) -> None:
        if number is None:
            self.all.clear()
        else:
            del self.all[number]

    def hit(self, op: str, paths: tuple[bytes, ...]) -> Rule | None:
        for rule in self.all.values():
            if rule.is_hit(op, paths):
                return rule
        return None
